"""``mmssl data vocabulary``, and the captions of made-up videos."""

import csv
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from small_runs import environment, mmssl

from mmssl import UserError
from mmssl_media.commands.vocabulary import vocabulary
from mmssl_media.synthetic import Synthetic
from mmssl_media.synthetic_clips import CLASSES
from mmssl_media.text import Text, words_of

CAPTIONS = ["Stir the onion", "don't stir the PAN", "the pan's lid, the lid", "", "zebra"]


def manifest(path: Path, **columns: list[str]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", *columns])
        for number, values in enumerate(zip(*columns.values(), strict=True)):
            rows.writerow([f"row{number}", *values])
    return path


def made(folder: Path, *data: str, size: int = 2**16, min_count: int = 1) -> list[str]:
    output = folder / "words.txt"
    assert vocabulary(list(data), output, size, min_count) == 0
    text = output.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return text.split("\n")[:-1]


def test_frequent_words_come_first_then_the_alphabet(tmp_path: Path) -> None:
    path = manifest(tmp_path / "captions.csv", text=CAPTIONS)
    words = made(tmp_path, str(path))
    assert words == ["the", "lid", "stir", "don't", "onion", "pan", "pan's", "zebra"]
    counts = Counter(word for caption in CAPTIONS for word in words_of(caption))
    assert words == sorted(counts, key=lambda word: (-counts[word], word))
    # What the modality reads of it: 1 is the most frequent.
    text = Text(vocabulary=tmp_path / "words.txt", texts=1)
    assert text.ids("The lid of the PAN") == [1, 2, 1, 6]


def test_sizes_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(manifest(tmp_path / "captions.csv", text=CAPTIONS))
    assert made(tmp_path, path, size=4) == ["the", "lid", "stir"]  # and 0 is padding
    capsys.readouterr()
    assert made(tmp_path, path, min_count=2) == ["the", "lid", "stir"]
    said = " ".join(capsys.readouterr().out.split())
    assert "3 of 8 words, 61.5% of the 13 that 4 samples have" in said


def test_all_of_several_texts_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ['["a b", "b c"]', "", "[1]", "[]"]
    path = manifest(tmp_path / "captions.csv", text=["zebra", "c", "no", "no"], texts=texts)
    assert made(tmp_path, str(path)) == ["b", "c", "a"]
    assert "1 samples have a field texts that is no JSON list" in capsys.readouterr().out


def test_other_datasets_and_recipes(tmp_path: Path) -> None:
    path = manifest(tmp_path / "captions.csv", text=CAPTIONS)
    expected = made(tmp_path, str(path))
    (tmp_path / "words.txt").unlink()
    assert made(tmp_path, "use=manifest", f"path={path}") == expected
    (tmp_path / "words.txt").unlink()
    # The vocabulary that the recipe names need not be there yet, nor anything else of it.
    recipe = tmp_path / "my.yaml"
    recipe.write_text(
        "modalities:\n"
        f"  text: {{use: text, vocabulary: {tmp_path / 'words.txt'}}}\n"
        f"data:\n  train: {{use: manifest, path: {tmp_path / 'other.csv'}}}\n"
    )
    assert made(tmp_path, str(recipe), f"data.train.path={path}") == expected
    with pytest.raises(UserError, match=r"my\.yaml:4: data\.train\.path: no such file") as caught:
        made(tmp_path, str(recipe))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "output", "message"),
    [
        (["nothing.csv"], "words.txt", "no such manifest"),
        (["captions.csv"], "absent/words.txt", "there is no folder"),
        (["captions.csv"], ".", "is a folder"),
        (["captions.csv"], "captions.csv", "is the data themselves"),
        (["silent.csv"], "words.txt", "no word occurs in the fields"),
        (["empty.yaml"], "words.txt", "has no data.train"),
        (["use=nothing"], "words.txt", "nothing"),
    ],
)
def test_mistakes_are_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: list[str], output: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    manifest(tmp_path / "captions.csv", text=CAPTIONS)
    manifest(tmp_path / "silent.csv", label=["a", "b"])
    (tmp_path / "empty.yaml").write_text("seed: 1\n")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match=message) as caught:
        vocabulary(data, Path(output), 100, 1)
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_too_rare(tmp_path: Path) -> None:
    path = manifest(tmp_path / "captions.csv", text=CAPTIONS)
    with pytest.raises(UserError, match="no word occurs 9 times"):
        made(tmp_path, str(path), min_count=9)


def test_an_interrupted_count_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    path = manifest(tmp_path / "captions.csv", text=CAPTIONS)
    (tmp_path / "words.txt").write_text("before\n")
    monkeypatch.setattr("mmssl_media.text.words_of", interrupt)
    assert vocabulary([str(path)], tmp_path / "words.txt", 100, 1) == 130
    assert (tmp_path / "words.txt").read_text() == "before\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["captions.csv", "words.txt"]
    assert "interrupted" in capsys.readouterr().err


def test_from_the_command_line(tmp_path: Path) -> None:
    path = manifest(tmp_path / "captions.csv", text=CAPTIONS)
    done = mmssl(
        *("data", "vocabulary", str(path), "-o", "w.txt", "--size", "3"),
        cwd=tmp_path,
        env=environment(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "w.txt").read_text() == "the\nlid\n"


def test_processes_count_what_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(tmp_path / "captions.csv", text=[f"a{n % 7} b{n % 5}" for n in range(100)])
    expected = made(tmp_path, str(path))
    said = capsys.readouterr().out
    monkeypatch.setattr("mmssl_media.commands.vocabulary._PART", 9)
    assert made(tmp_path, str(path)) == expected
    assert "200 that 100 samples" in said
    assert capsys.readouterr().out == said

    def die(*_: Any) -> Any:
        os._exit(3)

    monkeypatch.setattr("mmssl_media.text.words_of", die)
    with pytest.raises(UserError, match="died"):
        made(tmp_path, str(path))


# What made-up videos say of themselves


def test_a_caption_tells_the_class_and_words_vary() -> None:
    dataset = Synthetic(videos=800)
    firsts: dict[int, set[str]] = {}
    words: dict[int, Counter[str]] = {}
    for row in range(len(dataset)):
        sample = dataset.sample(row)
        assert sample.label is not None
        texts = json.loads(sample.fields["texts"])
        assert len(texts) == 5
        assert texts[0] == sample.fields["text"]
        firsts.setdefault(sample.label, set()).add(texts[0])
        words.setdefault(sample.label, Counter()).update(words_of(texts[0]))
    assert len(firsts) == len(CLASSES)
    assert all(len(captions) > 20 for captions in firsts.values())
    # Said in some of the captions of the class, as its name has it, and of no other.
    told = [
        "level beeps",
        "upright whistles",
        "checkerboard chirps",
        "rings siren",
        "pinwheel noise",
    ]
    told += ["dots buzzes", "blocks notes", "flashes bells"]
    for label, both in enumerate(told):
        for word in both.split():
            others = [c for c in words if c != label and words[c][word]]
            assert words[label][word] > 5
            assert not others or word in ("chirps", "whistles")
    assert all(not firsts[a] & firsts[b] for a in firsts for b in firsts if a < b)


def test_captions_are_a_function_of_the_seed() -> None:
    def texts(**parameters: Any) -> list[str]:
        dataset = Synthetic(videos=20, **parameters)
        return [dataset.sample(row).fields["texts"] for row in range(20)]

    assert texts() == texts()
    assert texts() == texts(side=64, fps=10)  # what is said does not depend on how it looks
    assert texts() != texts(seed=1)
    assert texts() != texts(split="test")


def test_further_narrations_are_about_the_video_or_about_nothing() -> None:
    dataset = Synthetic(videos=400)
    related = total = 0
    said = [json.loads(dataset.sample(row).fields["texts"]) for row in range(400)]
    asides = Counter(text for texts in said for text in texts[1:])
    common = {text for text, count in asides.items() if count > 60}  # of all classes alike
    for texts in said:
        total += 4
        related += sum(text not in common for text in texts[1:])
    assert 5 <= len(common) <= 7
    assert 0.45 < related / total < 0.55


def test_most_classes_are_told_by_their_captions_words(tmp_path: Path) -> None:
    """Naive Bayes on words of other videos' captions finds the class."""
    import math

    train, test = Synthetic(videos=400), Synthetic(videos=80, split="test")
    words: list[Counter[str]] = [Counter() for _ in CLASSES]
    for row in range(400):
        sample = train.sample(row)
        words[sample.label or 0].update(words_of(sample.fields["text"]))
    every = set().union(*words)

    def score(label: int, text: str) -> float:
        total = words[label].total() + len(every)
        return sum(math.log((words[label][word] + 1) / total) for word in words_of(text))

    found = [
        max(range(len(CLASSES)), key=lambda label: score(label, test.sample(row).fields["text"]))
        for row in range(80)
    ]
    right = sum(test.sample(row).label == label for row, label in enumerate(found))
    assert right >= 76
