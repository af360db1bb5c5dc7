"""`mmssl search`: nearest neighbours of a row, a file and a text."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import media_files
import numpy as np
import pytest
import torch
from pretrained_runs import installed, seen_and_heard, seen_and_read
from safetensors.torch import load_file, save_file

from mmssl import UserError, load_encoder
from mmssl.cli import main
from mmssl.pretrained import features_file
from mmssl.pretrained.checkpoint import open_pretrained
from mmssl.pretrained.dataset import named_dataset
from mmssl.pretrained.embed import embed
from mmssl.pretrained.export import export
from mmssl.pretrained.features_file import Column, FeaturesFile, write_features
from mmssl.pretrained.search import nearest, search
from mmssl.training.progress import Silent

CPU = torch.device("cpu")


def made(checkpoint: Path, data: Path, output: Path, clips: int = 1) -> FeaturesFile:
    embed(
        open_pretrained(checkpoint),
        named_dataset([str(data)]),
        output,
        clips=clips,
        workers=0,
        device=CPU,
        progress=Silent(),
    )
    return FeaturesFile(output)


def by_hand(values: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Cosines in float64."""
    values, query = values.astype(np.float64), query.astype(np.float64)
    return (values @ query) / np.linalg.norm(values, axis=1) / np.linalg.norm(query)


def whole(file: FeaturesFile, column: str) -> np.ndarray:
    return np.concatenate(list(file.pieces(column)))


@pytest.fixture
def many(tmp_path: Path, request: pytest.FixtureRequest) -> FeaturesFile:
    """Random features of 500 rows, some of which lack the modality; some are equal."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 7)).astype(np.float32)
    x[100:110] = 3 * x[42]
    present = rng.random(500) < 0.8
    present[[42, *range(100, 110)]] = True
    x[~present] = 0
    return stored(tmp_path / f"many.{request.param}", x, present)


def stored(path: Path, x: np.ndarray, present: np.ndarray) -> FeaturesFile:
    """Features of a modality ``x``, as a file."""
    n = len(x)
    ids = np.array([f"row {i}" for i in range(n)])
    piece = {
        "ids": ids,
        "paths": ids,
        "start": np.arange(float(n)),
        "end": np.where(np.arange(n) % 2, np.arange(n) + 1.0, np.nan),
        "labels": np.arange(n, dtype=np.int32) % 3 - (np.arange(n) % 3 == 2) * 102,
        "present/x": present,
        "features/x": x,
    }
    columns = [
        Column("ids", "<U7"),
        Column("paths", "<U7"),
        Column("start", "<f8"),
        Column("end", "<f8"),
        Column("labels", "<i4"),
        Column("present/x", "|b1"),
        Column("features/x", "<f4", (x.shape[1],)),
    ]
    about = {"format": 1, "rows": n, "modalities": ["x"], "classes": ["a", "b"]}
    parquet = path.suffix == ".parquet"
    write_features(path, about, columns, n, lambda names: [piece], parquet=parquet)
    return FeaturesFile(path)


@pytest.mark.parametrize("many", ["npz", "parquet"], indirect=True)
@pytest.mark.parametrize("rows", [1 << 14, 64, 7])
def test_neighbours_are_those_of_brute_force(
    many: FeaturesFile, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_file, "_ROWS", rows)
    values, present = whole(many, "features/x"), whole(many, "present/x")
    for row in (0, 7, 499):
        query = np.random.default_rng(row).normal(size=7).astype(np.float32)
        scores = np.where(present, by_hand(np.where(present[:, None], values, 1), query), -2)
        order = np.argsort(-scores, kind="stable")[:12]
        found = nearest(many, "features/x", query, 12)
        assert [r for r, _ in found] == order.tolist()
        assert np.allclose([s for _, s in found], scores[order], atol=1e-6)
    # Of equal ones the first come first, and a row is not its own neighbour.
    ten = nearest(many, "features/x", values[42], 10, without=42)
    assert [r for r, _ in ten] == list(range(100, 110))
    assert nearest(many, "features/x", values[42], 3)[0][0] == 42
    everything = nearest(many, "features/x", values[42], 1000)
    assert len(everything) == present.sum()


@pytest.mark.parametrize("rows", [1 << 14, 5, 1])
def test_of_equal_rows_the_first_come_first(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_file, "_ROWS", rows)
    rng = np.random.default_rng(0)
    same, best = rng.normal(size=(2, 131)).astype(np.float32)
    x = np.stack([*[same] * 10, best, *[same] * 10, best])
    file = stored(tmp_path / "f.npz", x, np.ones(22, bool))
    for k, expected in ((1, [10]), (3, [10, 21, 0]), (6, [10, 21, 0, 1, 2, 3])):
        assert [row for row, _ in nearest(file, "features/x", best, k)] == expected
    assert [row for row, _ in nearest(file, "features/x", same, 3, without=1)] == [0, 2, 3]


@pytest.mark.parametrize("rows", [1 << 14, 2])
def test_what_is_no_number_is_near_nothing(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_file, "_ROWS", rows)
    x = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    x[2], x[3], x[7, 1] = np.nan, np.inf, np.nan
    file = stored(tmp_path / "f.npz", x, np.ones(9, bool))
    finite = [0, 1, 4, 5, 6, 8]
    scores = by_hand(x[finite], x[0])
    found = nearest(file, "features/x", x[0], 20)
    assert [row for row, _ in found] == [finite[i] for i in np.argsort(-scores)]
    assert np.allclose([score for _, score in found], np.sort(scores)[::-1], atol=1e-6)
    with pytest.raises(UserError, match=r"features/x of the query holds NaN or infinity"):
        search(file, "row 7")


@pytest.mark.parametrize("many", ["npz", "parquet"], indirect=True)
def test_a_row_is_taken_without_those_behind_it(
    many: FeaturesFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = whole(many, "features/x")
    monkeypatch.setattr(features_file, "_ROWS", 7)
    read: list[int] = []
    pieces = FeaturesFile.pieces

    def counted(self: FeaturesFile, name: str) -> Iterator[np.ndarray]:
        for piece in pieces(self, name):
            read.append(len(piece))
            yield piece

    monkeypatch.setattr(FeaturesFile, "pieces", counted)
    assert np.array_equal(many.take("features/x", [8, 3, 8]), values[[8, 3, 8]])
    assert sum(read) <= 14
    assert [str(id) for id in many.take("ids", [499])] == ["row 499"]
    assert many.take("ids", []) == []


@pytest.mark.parametrize("many", ["npz", "parquet"], indirect=True)
def test_what_is_said_of_neighbours(many: FeaturesFile) -> None:
    (near,) = search(many, "row 42", k=2).values()
    assert [n.rank for n in near] == [1, 2]
    first, second = near
    assert (first.id, first.path, first.start, first.end) == ("row 100", "row 100", 100.0, None)
    assert (second.id, second.start, second.end) == ("row 101", 101.0, 102.0)
    assert (first.label, second.label) == ("b", "")  # 100 % 3, and one without label
    assert first.score == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(UserError, match="no modality 'y'; there are: x"):
        search(many, "row 42", modality="y")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seen_and_heard(tmp_path_factory.mktemp("heard"))


def test_a_file_is_compared_in_what_it_shares(run: Path, tmp_path: Path) -> None:
    videos = run.parent.parent / "videos"
    file = made(run, videos, tmp_path / "f.npz", clips=2)
    query = tmp_path / "query.mp4"
    shutil.copy(videos / "003.mp4", query)
    features = load_encoder(run)(query, clips=2)
    found = search(file, str(query), k=8, device="cpu")
    assert list(found) == ["features/video", "features/audio"]
    for column, near in found.items():
        vector = features[column.removeprefix("features/")][0].numpy()
        scores = by_hand(whole(file, column), vector)
        assert near[0].id == "003.mp4"
        assert near[0].score == pytest.approx(1, abs=1e-5)
        assert [n.score for n in near] == pytest.approx(np.sort(scores)[::-1].tolist(), abs=1e-5)
    # A row, by its id, is left out itself.
    rows = search(file, "003.mp4", k=8)
    assert [n.id for n in rows["features/video"]] == [
        n.id for n in found["features/video"] if n.id != "003.mp4"
    ]
    silent = media_files.write(tmp_path / "silent.mp4", frames=30)
    assert list(search(file, str(silent), device="cpu")) == ["features/video"]
    with pytest.raises(UserError, match=r"silent\.mp4: has no audio$"):
        search(file, str(silent), modality="audio", device="cpu")
    (tmp_path / "torn.mp4").write_bytes(b"?")
    with pytest.raises(UserError, match=r"torn\.mp4: "):
        search(file, str(tmp_path / "torn.mp4"), device="cpu")


def test_a_checkpoint_without_text(run: Path, tmp_path: Path) -> None:
    file = made(run, run.parent.parent / "videos", tmp_path / "f.npz")
    with pytest.raises(UserError, match="small knows no text: it has no modality") as refused:
        search(file, "a dog barking", device="cpu")
    assert "\n" not in str(refused.value)


def test_the_checkpoint_is_the_one_that_made_the_features(run: Path, tmp_path: Path) -> None:
    videos = run.parent.parent / "videos"
    moved = Path(shutil.copytree(run, tmp_path / "here"))
    file = made(moved, videos, tmp_path / "f.npz")
    moved.rename(tmp_path / "there")
    query = str(videos / "000.mp4")
    with pytest.raises(UserError, match=r"no run .*; --checkpoint says where it is now"):
        search(file, query, device="cpu")
    expected = search(file, query, checkpoint=str(tmp_path / "there"), device="cpu")
    out = export(run, tmp_path / "out")
    assert search(file, query, checkpoint=str(out), device="cpu") == expected
    other = seen_and_heard(tmp_path, "seed=9")
    with pytest.raises(UserError, match=r"has other weights than those that made .*f\.npz"):
        search(file, query, checkpoint=str(other), device="cpu")


@pytest.fixture
def spoken(tmp_path: Path) -> Iterator[Path]:
    with installed(tmp_path / "site"):
        yield seen_and_read(tmp_path)


def test_text_is_compared_in_the_objectives_space(spoken: Path, tmp_path: Path) -> None:
    file = made(spoken, tmp_path / "texts.csv", tmp_path / "f.npz")
    encoders = load_file(spoken / "checkpoints" / "encoders.safetensors")
    heads = load_file(spoken / "checkpoints" / "objective.safetensors")
    # By hand: count words, one layer, one head.
    words = torch.tensor([1.0, 0.0, 2.0, 0.0])
    layer = "backbones.text.layer"
    text = words @ encoders[f"{layer}.weight"].T + encoders[f"{layer}.bias"]
    vector = (text @ heads["heads.text.weight"].T + heads["heads.text.bias"]).numpy()
    video = whole(file, "features/video")
    embedded = video @ heads["heads.video.weight"].numpy().T + heads["heads.video.bias"].numpy()
    scores = by_hand(embedded, vector)
    order = np.argsort(-scores, kind="stable")
    found = search(file, "red ball ball", k=8, device="cpu")
    assert list(found) == ["embeddings/joint/video"]
    near = found["embeddings/joint/video"]
    assert [n.id for n in near] == [f"v{i}" for i in order]
    assert [n.score for n in near] == pytest.approx(scores[order].tolist(), abs=1e-5)
    assert near[0].path == str(tmp_path / "videos" / f"{order[0]:03}.mp4")

    # What an id names is a row, and an export with its objective serves as the run does.
    assert list(search(file, "v1")) == ["features/video", "features/text"]
    whole_ = export(spoken, tmp_path / "whole", objective=True)
    assert search(file, "red ball ball", k=8, checkpoint=str(whole_), device="cpu") == found
    with pytest.raises(UserError, match="compares text with none of text"):
        search(file, "red ball", modality="text", device="cpu")
    # Other heads of the same encoders would make other embeddings.
    heads["heads.video.bias"] += 1
    changed = Path(shutil.copytree(spoken, tmp_path / "changed"))
    save_file(heads, changed / "checkpoints" / "objective.safetensors")
    with pytest.raises(UserError, match="has other weights"):
        search(file, "red ball", checkpoint=str(changed), device="cpu")
    # Without it, there is nowhere to compare.
    bare = export(spoken)
    other = made(bare, tmp_path / "texts.csv", tmp_path / "g.npz")
    with pytest.raises(UserError, match=r"compares text with none of video, text.*--objective"):
        search(other, "red ball", device="cpu")


def test_the_command_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = made(run, run.parent.parent / "videos", tmp_path / "f.npz")

    def called(*words: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mmssl", "search", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    expected = search(file, "002.mp4", k=3)
    code, out, err = called(file.path, "002.mp4", "-k", 3, "--json")
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert printed["query"] == "002.mp4"
    assert list(printed["neighbours"]) == list(expected)
    for column, near in expected.items():
        assert printed["neighbours"][column] == [vars(n) for n in near]
    code, out, err = called(file.path, "002.mp4", "-k", 2, "--modality", "audio")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "features/audio"
    assert len(lines) == 3
    best = expected["features/audio"][0]
    assert lines[1].split() == ["1", f"{best.score:.3f}", best.id, "0–end", best.path]
    code, out, err = called(tmp_path / "nothing.npz", "x")
    assert (code, out) == (2, "")
    assert err == f"mmssl: {tmp_path}/nothing.npz: No such file or directory\n"
