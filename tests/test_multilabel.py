"""Lists of samples that have several classes."""

import csv
import io
import json
import pickle
from pathlib import Path

import media_files
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import mmssl

from mmssl import UserError
from mmssl.contracts import IGNORE
from mmssl_media.manifest import Manifest
from mmssl_media.shards import Shards


def manifest(folder: Path, text: str, **parameters: object) -> Manifest:
    path = folder / "a.csv"
    path.write_text(text)
    return Manifest(path=path, **parameters)  # type: ignore[arg-type]


def test_several_classes(tmp_path: Path) -> None:
    data = manifest(tmp_path, "path,labels\na,dog;cat\nb,\nc,;\nd, emu ;dog;;dog\ne,cat\n")
    assert data.multilabel
    assert data.classes == ("cat", "dog", "emu")
    samples = [data.sample(row) for row in range(5)]
    assert [sample.labels for sample in samples] == [(0, 1), None, (), (1, 2), (0,)]
    assert [sample.label for sample in samples] == [None] * 5
    assert data.labels().tolist() == [IGNORE] * 5
    assert samples[0].fields == {"labels": "dog;cat"}
    assert pickle.loads(pickle.dumps(data)).sample(3) == samples[3]  # noqa: S301


def test_a_list_of_single_classes_is_none_of_several(tmp_path: Path) -> None:
    data = manifest(tmp_path, "path,label\na,dog\n")
    assert not data.multilabel
    assert data.sample(0).labels is None


def test_numbers_are_the_indices_of_classes(tmp_path: Path) -> None:
    data = manifest(tmp_path, "path,labels\na,10;2\nb,02;0\n")
    assert len(data.classes) == 11
    assert [data.sample(row).labels for row in range(2)] == [(2, 10), (0, 2)]


def test_given_classes_fix_the_order(tmp_path: Path) -> None:
    text = "path,labels\na,cat;dog\nb,emu\n"
    data = manifest(tmp_path, text, classes=["emu", "dog", "cat", "gnu"])
    assert data.classes == ("emu", "dog", "cat", "gnu")
    assert [data.sample(row).labels for row in range(2)] == [(1, 2), (0,)]
    with pytest.raises(UserError, match=r"a\.csv:3: labels: 'emu' is not among the classes given"):
        len(manifest(tmp_path, text, classes=["dog", "cat"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,labels\na,,y\nb,x,\n", r"a\.csv:3: label: must be empty in a list with a col"),
        ("path,labels\na,0;-1\n", r"a\.csv: label: '-1' is no class's index"),
        ("path,labels\na,0;9999999999\n", r"a\.csv: label: 9999999999 is too large"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        len(manifest(tmp_path, text))


def test_shards_keep_several_classes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        media_files.write(tmp_path / f"{name}.mp4", frames=5, fps=10)
    listed = manifest(tmp_path, "path,labels\na.mp4,dog;cat\nb.mp4,cat\n")
    done = mmssl("data", "shard", "a.csv", "-o", "shards", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    packed = Shards(path=str(tmp_path / "shards"))
    assert packed.multilabel
    assert packed.classes == listed.classes
    assert [packed.sample(row).labels for row in range(2)] == [(0, 1), (0,)]
    assert json.dumps(dict(packed.sample(0).fields)) == '{"labels": "dog;cat"}'


names = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters=";"),
    min_size=1,
    max_size=6,
).filter(lambda name: name == name.strip())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(names, min_size=1, max_size=4, unique=True), min_size=1, max_size=40))
def test_what_the_csv_module_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "labels"])
    writer.writerows([str(row), ";".join(several)] for row, several in enumerate(rows))
    classes = sorted({name for several in rows for name in several})
    path = tmp_path_factory.mktemp("list") / "a.csv"
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    data = Manifest(path=path, classes=classes)
    for row, several in enumerate(rows):
        found = data.sample(row).labels
        assert found is not None
        assert {data.classes[label] for label in found} == set(several)
        assert list(found) == sorted(found)
