"""`mmssl embed`: features of a dataset as one file."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import media_files
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pretrained_runs import installed, seen_and_heard, seen_and_read
from ranks import on_ranks
from safetensors.torch import load_file
from small_runs import Started

from mmssl import UserError, load_encoder
from mmssl.cli import main
from mmssl.pretrained import embed as module
from mmssl.pretrained import features_file
from mmssl.pretrained.checkpoint import open_pretrained
from mmssl.pretrained.dataset import named_dataset
from mmssl.pretrained.embed import Embedded, embed
from mmssl.pretrained.export import export
from mmssl.pretrained.features_file import FeaturesFile
from mmssl.pretrained.search import search
from mmssl.training import checkpoints, kept_features
from mmssl.training.progress import Silent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seen_and_heard(tmp_path_factory.mktemp("heard"))


@pytest.fixture(scope="module")
def videos(run: Path) -> list[Path]:
    return sorted((run.parent.parent / "videos").glob("*.mp4"))


@pytest.fixture
def listed(videos: list[Path], tmp_path: Path) -> Path:
    """Eight videos, one without sound, one that is none, a part of one, and classes."""
    silent = media_files.write(tmp_path / "silent.mp4", frames=30)
    (tmp_path / "torn.mp4").write_bytes(b"no video at all")
    rows: list[list[Any]] = [
        [f"v{i}", path, "", "", ["dog", "cat"][i % 2]] for i, path in enumerate(videos)
    ]
    rows[5:5] = [["torn", tmp_path / "torn.mp4", "", "", "cat"]]
    rows += [["silent", silent, "", "", ""], ["part", videos[0], "0.4", "0.95", "dog"]]
    with open(tmp_path / "list.csv", "w", newline="") as out:
        csv.writer(out).writerows([["id", "path", "start", "end", "label"], *rows])
    return tmp_path / "list.csv"


def made(checkpoint: Path, words: list[str], output: Path, **more: Any) -> Embedded:
    more = {"workers": 0, "batch_size": 4, "device": torch.device("cpu"), **more}
    return embed(
        open_pretrained(checkpoint), named_dataset(words), output, progress=Silent(), **more
    )


def contents(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def test_rows_are_those_of_one_file_after_the_other(
    run: Path, listed: Path, videos: list[Path], tmp_path: Path
) -> None:
    done = made(run, [str(listed)], tmp_path / "f.npz")
    found = contents(tmp_path / "f.npz")
    ids = [*(f"v{i}" for i in range(8)), "silent", "part"]
    assert found["ids"].tolist() == ids
    assert found["paths"].tolist() == [
        *map(str, videos),
        str(tmp_path / "silent.mp4"),
        str(videos[0]),
    ]
    assert found["start"].tolist() == [0.0] * 9 + [0.4]
    assert np.isnan(found["end"]).tolist() == [True] * 9 + [False]
    classes = found["classes"]
    assert [classes[k] if k >= 0 else "" for k in found["labels"]] == ["dog", "cat"] * 4 + [
        "",
        "dog",
    ]
    assert found["present/video"].all()
    assert found["present/audio"].tolist() == [True] * 8 + [False, True]

    encoder = load_encoder(run)
    for row, path in enumerate(found["paths"]):
        part = {"start": 0.4, "end": 0.95} if row == 9 else {}
        alone = encoder(str(path), **part)
        for modality in ("video", "audio"):
            values = found[f"features/{modality}"]
            assert (values.dtype, values.shape) == (np.float32, (10, 64))
            if found[f"present/{modality}"][row]:
                assert np.allclose(values[row], alone[modality][0], atol=1e-5)
            else:
                assert not values[row].any()
    assert not np.allclose(found["features/audio"][0], found["features/audio"][9], atol=1e-3)

    assert done.rows == 10
    assert done.columns == {"features/video": 64, "features/audio": 64}
    ((bad, reason),) = done.skipped
    assert (bad, bool(reason)) == ("torn", True)
    (line,) = (tmp_path / "f.npz.skipped.jsonl").read_text().splitlines()
    assert json.loads(line) == {"id": "torn", "reason": reason}
    about = json.loads(str(found["about"]))
    assert about["checkpoint"]["path"] == str(run)
    assert (about["rows"], about["skipped"], about["modalities"]) == (10, 1, ["video", "audio"])
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"f.npz", "f.npz.skipped.jsonl", "list.csv", "silent.mp4", "torn.mp4"}


def test_several_clips(run: Path, listed: Path, tmp_path: Path) -> None:
    made(run, [str(listed)], tmp_path / "f.npz", clips=3)
    found = contents(tmp_path / "f.npz")
    encoder = load_encoder(run)
    for row in (0, 4):
        expected = encoder(str(found["paths"][row]), clips=3)
        for modality, values in expected.items():
            assert np.allclose(found[f"features/{modality}"][row], values[0], atol=1e-5)
    once = encoder(str(found["paths"][0]))["video"][0]
    assert not np.allclose(found["features/video"][0], once, atol=1e-4)


def test_parquet_holds_the_same(run: Path, listed: Path, tmp_path: Path) -> None:
    for name in ("f.npz", "f.parquet"):
        made(run, [str(listed)], tmp_path / name)
    arrays = contents(tmp_path / "f.npz")
    table = pq.read_table(tmp_path / "f.parquet")
    assert str(table.schema.field("features/video").type) == "fixed_size_list<item: float>[64]" or (
        table.schema.field("features/video").type.list_size == 64
    )
    for modality in ("video", "audio"):
        got = np.array(table[f"features/{modality}"].to_pylist(), np.float32)
        assert np.array_equal(got, arrays[f"features/{modality}"])
        assert table[f"present/{modality}"].to_pylist() == arrays[f"present/{modality}"].tolist()
    assert table["ids"].to_pylist() == arrays["ids"].tolist()
    assert table["labels"].to_pylist()[-2:] == [None, arrays["labels"][-1]]
    assert table["end"].to_pylist()[-2:] == [None, 0.95]
    # And read again by the class that reads both.
    a, b = FeaturesFile(tmp_path / "f.npz"), FeaturesFile(tmp_path / "f.parquet")
    assert a.columns == b.columns
    assert len(a) == len(b) == 10
    for column in a.columns:
        left = np.concatenate(list(a.pieces(column)))
        right = np.concatenate(list(b.pieces(column)))
        assert np.array_equal(left, right, equal_nan=left.dtype.kind == "f"), column
        assert np.array_equal(left, arrays[column], equal_nan=left.dtype.kind == "f")
    assert a.find("part") == b.find("part") == 9
    assert a.find("v") is b.find("v") is None
    assert [str(x) for x in b.take("ids", [9, 0])] == ["part", "v0"]


def test_parquet_without_pyarrow(
    run: Path, listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"f\.parquet: .* pip install 'mmssl\[parquet\]'$"):
        made(run, [str(listed)], tmp_path / "f.parquet")
    assert not list(tmp_path.glob(".f*"))


def test_a_file_that_was_compressed_later_is_read(run: Path, listed: Path, tmp_path: Path) -> None:
    made(run, [str(listed)], tmp_path / "f.npz")
    np.savez_compressed(tmp_path / "g.npz", **contents(tmp_path / "f.npz"))  # type: ignore[arg-type]
    a, b = FeaturesFile(tmp_path / "f.npz"), FeaturesFile(tmp_path / "g.npz")
    assert np.array_equal(*(next(iter(x.pieces("features/audio"))) for x in (a, b)))


def test_a_finished_file_is_left_and_another_one_refused(
    run: Path, listed: Path, videos: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "f.npz"
    assert made(run, [str(listed)], output).new
    before = (output.stat().st_mtime_ns, output.read_bytes())
    moved = export(run, tmp_path / "encoders")  # the same weights, elsewhere
    for checkpoint in (run, moved):
        assert not made(checkpoint, [str(listed)], output).new
    for words, more in (([str(listed)], {"clips": 2}), ([str(videos[0].parent)], {})):
        with pytest.raises(UserError, match="holds other features"):
            made(run, words, output, **more)
    assert (output.stat().st_mtime_ns, output.read_bytes()) == before


@pytest.mark.parametrize("name", ["f.npz", "f.parquet"])
def test_several_classes_a_sample(run: Path, videos: list[Path], tmp_path: Path, name: str) -> None:
    named = ["dog", "cat;dog", "", "cat"]
    rows = [f'{videos[i]},"{labels}"\n' for i, labels in enumerate(named)]
    (tmp_path / "list.csv").write_text("path,labels\n" + "".join(rows))
    made(run, [str(tmp_path / "list.csv")], tmp_path / name)
    file = FeaturesFile(tmp_path / name)
    assert file.about["classes"] == ["cat", "dog"]
    (labels,) = file.pieces("labels")
    assert labels.tolist() == [[0, 1], [1, 1], [-100, -100], [1, 0]]
    ids = [str(path) for path in videos[:4]]
    (near,) = search(file, ids[0], k=3, modality="video").values()
    assert {n.id: n.label for n in near} == {ids[1]: "cat, dog", ids[2]: "", ids[3]: "cat"}


def test_datasets_of_any_kind(run: Path, videos: list[Path], tmp_path: Path) -> None:
    folder = made(run, [str(videos[0].parent)], tmp_path / "a.npz")
    assert folder.rows == 8
    assert "labels" not in contents(tmp_path / "a.npz")
    limited = {"use": "folder", "path": str(videos[0].parent), "labels": "none"}
    words = [f"{key}={value}" for key, value in limited.items()]
    assert made(run, words, tmp_path / "b.npz").rows == 8
    a, b = (contents(tmp_path / name) for name in ("a.npz", "b.npz"))
    assert np.array_equal(a["features/video"], b["features/video"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.csv"], r"^nothing\.csv: no such manifest or folder$"),
        (["use=foldr"], r"^use: unknown dataset 'foldr'; did you mean 'folder'\?$"),
        (["use=folder"], r"^path: 'path' is missing$"),
        ([".", "label=none"], r"^label: unknown key; did you mean 'labels'\?$"),
        ([".", "labels"], r"^'labels': write KEY=VALUE"),
    ],
)
def test_mistakes_in_naming_a_dataset(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        named_dataset(words)


def test_nothing_readable(run: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "torn.mp4").write_bytes(b"?")
    with pytest.raises(UserError, match=r"none of 1 samples could be read; .* torn\.mp4: "):
        made(run, [str(tmp_path / "data")], tmp_path / "f.npz")
    with pytest.raises(UserError, match=r"f\.txt: features are written to"):
        made(run, [str(tmp_path / "data")], tmp_path / "f.txt")
    with pytest.raises(UserError, match="there is no folder"):
        made(run, [str(tmp_path / "data")], tmp_path / "no" / "f.npz")


def test_blocks_of_something_else_are_not_gone_on_from(
    run: Path, listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            made(run, [str(listed)], tmp_path / "f.npz", clips=2)
    assert (tmp_path / ".f.npz.partial" / "000000.npz").is_file()
    made(run, [str(listed)], tmp_path / "f.npz")
    made(run, [str(listed)], tmp_path / "g.npz")
    assert (tmp_path / "f.npz").read_bytes() == (tmp_path / "g.npz").read_bytes()


def test_features_that_are_written_in_pieces(tmp_path: Path) -> None:
    """More rows than are in memory at a time; texts of different lengths; no rows of a piece."""
    rng = np.random.default_rng(0)
    sizes = [5, 0, 20_000, 1]
    pieces = [
        {
            "ids": np.array([f"é{i}" * (1 + i % 3) for i in range(n)], np.str_),
            "x": rng.normal(size=(n, 3)).astype(np.float32),
        }
        for n in sizes
    ]
    width = max(piece["ids"].dtype.itemsize // 4 for piece in pieces)
    columns = [features_file.Column("ids", f"<U{width}"), features_file.Column("x", "<f4", (3,))]
    about = {"format": 1, "classes": [], "modalities": [], "rows": sum(sizes)}
    for name in ("f.npz", "f.parquet"):
        features_file.write_features(
            tmp_path / name,
            about,
            columns,
            sum(sizes),
            lambda names: iter(pieces),
            parquet=name.endswith("parquet"),
        )
        file = FeaturesFile(tmp_path / name)
        assert max(map(len, file.pieces("x"))) <= 1 << 14
        for column in ("ids", "x"):
            expected = np.concatenate([piece[column] for piece in pieces])
            assert np.array_equal(np.concatenate(list(file.pieces(column))), expected)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"PAR1"])
@pytest.mark.parametrize("name", ["f.npz", "f.parquet"])
def test_what_is_no_file_of_features(content: bytes, name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"f\.(npz|parquet): "):
        FeaturesFile(tmp_path / name)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"f\.(npz|parquet): is no file of features"):
        FeaturesFile(tmp_path / name)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ([], "is no file of features"),
        ({}, "its format is None, not a number from 1 to 1"),
        ({"format": 2}, "was written by a newer mmssl than this one"),
        ({"format": 1, "modalities": [], "classes": []}, "is no file of features .* no rows"),
        ({"format": 1, "rows": "4", "modalities": []}, "is no file of features .* no rows"),
        ({"format": 1, "rows": 4, "classes": []}, "is no file of features .* no modalities"),
    ],
)
def test_what_is_described_otherwise(about: Any, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", about=json.dumps(about))
    with pytest.raises(UserError, match=message):
        FeaturesFile(tmp_path / "f.npz")


def test_a_single_array_is_no_file_of_features(tmp_path: Path) -> None:
    with open(tmp_path / "f.npz", "wb") as out:
        np.save(out, np.zeros((3, 2), np.float32))
    with pytest.raises(UserError, match=r"f\.npz: is no file of features"):
        FeaturesFile(tmp_path / "f.npz")


def test_a_disk_that_refuses(
    run: Path, listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    output, words = tmp_path / "f.npz", [str(listed)]
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *args: False)
        with pytest.raises(UserError, match="is not yours to write to"):
            made(run, words, output)
    (tmp_path / ".f.npz.partial").write_text("")
    with pytest.raises(UserError, match=r"\.f\.npz\.partial: File exists") as refused:
        made(run, words, output)
    assert "\n" not in str(refused.value)
    (tmp_path / ".f.npz.partial").unlink()
    for where, name in ((kept_features, "write_atomically"), (module, "write_features")):
        with monkeypatch.context() as patched:
            patched.setattr(where, name, full)
            with pytest.raises(UserError, match=r"f\.npz: No space left .* same command goes on$"):
                made(run, words, output)
        assert not output.exists()
    assert made(run, words, output).rows == 10
    assert not list(tmp_path.glob(".*"))


def long_list(videos: list[Path], path: Path, rows: int) -> Path:
    """Few files, many rows: parts of them, and here and there what cannot be read."""
    lines = ["id,path,start,end"]
    for i in range(rows):
        file = path.with_name("torn.mp4") if i % 100 == 7 else videos[i % 8]
        lines.append(f"r{i},{file},{(i % 10) / 20},")
    path.with_name("torn.mp4").write_bytes(b"?")
    path.write_text("\n".join([*lines, ""]))
    return path


def test_a_killed_pass_goes_on_where_it_was(run: Path, videos: list[Path], tmp_path: Path) -> None:
    data = long_list(videos, tmp_path / "long.csv", 900)
    made(run, [str(data)], tmp_path / "whole.npz", batch_size=32)
    words = ("embed", str(run), str(data), "-o", "f.npz", "--workers", "1", "--device", "cpu")
    partial = tmp_path / ".f.npz.partial"
    started = Started(*words, cwd=tmp_path)
    started.wait_until((partial / "000001.npz").is_file)
    started.kill()
    assert started.all_gone()
    assert not (tmp_path / "f.npz").exists()
    first = (partial / "000000.npz").stat().st_mtime_ns
    # It has blocks of its own, which it must not compute again, and tells so.
    (partial / "rows-000000.npz").unlink(missing_ok=True)
    half = tmp_path / ".f.npz.1.tmp"  # as of one that was killed while it wrote the output
    half.write_bytes(b"?")
    started = Started(*words, cwd=tmp_path)
    started.wait_until((partial / "rows-000000.npz").is_file)
    assert (partial / "000000.npz").stat().st_mtime_ns == first
    assert started.wait() == 0
    assert (tmp_path / "f.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    skipped = [tmp_path / f"{name}.npz.skipped.jsonl" for name in ("f", "whole")]
    assert skipped[0].read_text() == skipped[1].read_text()
    assert len(skipped[0].read_text().splitlines()) == 9
    assert not partial.exists()
    assert not half.exists()
    printed = started.out.read_text()
    assert "f.npz: 891 rows" in printed
    assert "9 samples could not be read" in printed


def _embed_here(run: Path, data: Path, output: Path) -> None:
    made(run, [str(data)], output, batch_size=32)


def test_ranks_share_the_work(run: Path, videos: list[Path], tmp_path: Path) -> None:
    data = long_list(videos, tmp_path / "long.csv", 600)
    on_ranks(2, _embed_here, run, data, tmp_path / "two.npz")
    _embed_here(run, data, tmp_path / "one.npz")
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
    skipped = [tmp_path / f"{name}.npz.skipped.jsonl" for name in ("one", "two")]
    assert skipped[0].read_text() == skipped[1].read_text()


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "wb")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_two_processes_do_not_write_one_file(run: Path, listed: Path, tmp_path: Path) -> None:
    (tmp_path / ".f.npz.partial").mkdir()
    lock = str(tmp_path / ".f.npz.partial" / ".lock")
    words = [sys.executable, "-c", HOLD, lock]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="in use by another process"):
            made(run, [str(listed)], tmp_path / "f.npz")
        other.kill()
    assert made(run, [str(listed)], tmp_path / "f.npz").rows == 10


def test_killed_just_after_the_output_was_there(
    run: Path, listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, partial = tmp_path / "f.npz", tmp_path / ".f.npz.partial"

    def killed(path: Path, write: Any) -> None:
        checkpoints.write_atomically(path, write)
        if path == output:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            made(run, [str(listed)], output)
    assert output.is_file()
    (line,) = (tmp_path / "f.npz.skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "torn"
    # What it left is cleared away, unless another process is still at it.
    words = [sys.executable, "-c", HOLD, str(partial / ".lock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert not made(run, [str(listed)], output).new
        other.kill()
    assert partial.is_dir()
    assert not made(run, [str(listed)], output).new
    assert not partial.exists()


def test_embeddings_stand_beside_features(tmp_path: Path) -> None:
    with installed(tmp_path / "site"):
        run = seen_and_read(tmp_path)
        data = str(tmp_path / "texts.csv")
        made(run, [data], tmp_path / "f.npz")
        found = contents(tmp_path / "f.npz")
        heads = load_file(run / "checkpoints" / "objective.safetensors")
        for modality in ("video", "text"):
            weight, bias = (heads[f"heads.{modality}.{x}"].numpy() for x in ("weight", "bias"))
            expected = found[f"features/{modality}"] @ weight.T + bias
            assert np.allclose(found[f"embeddings/joint/{modality}"], expected, atol=1e-5)
        assert found["embeddings/joint/video"].shape == (8, 6)
        # What no row has is left out.
        made(run, [str(tmp_path / "videos")], tmp_path / "g.npz")
        assert not [name for name in contents(tmp_path / "g.npz") if "text" in name]
        # An export without the objective computes something else.
        bare, whole = export(run), export(run, tmp_path / "whole", objective=True)
        assert not made(whole, [data], tmp_path / "f.npz").new
        with pytest.raises(UserError, match="holds other features"):
            made(bare, [data], tmp_path / "f.npz")
        # The data of pretraining may be gone.
        shutil.move(tmp_path / "texts.csv", tmp_path / "moved.csv")
        again = made(run, [str(tmp_path / "moved.csv")], tmp_path / "h.npz")
        assert again.columns["embeddings/joint/text"] == 6


def test_the_command_line(
    run: Path,
    listed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def called(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mmssl", "embed", *words])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    output = str(tmp_path / "f.npz")
    code, out, err = called(
        str(run), str(listed), "-o", output, "--workers", "0", "--device", "cpu"
    )
    assert (code, err) == (0, "")
    assert out.splitlines()[:3] == [
        f"{output}: 10 rows",
        "  features/video  10 × 64",
        "  features/audio  10 × 64",
    ]
    assert f"1 sample could not be read: {output}.skipped.jsonl" in out
    assert "  torn: " in out
    code, out, _ = called(str(run), str(listed), "-o", output, "--device", "cpu")
    assert (code, out) == (0, f"{output}: 10 rows are there already; nothing to do\n")
    code, out, err = called("nothing", str(listed), "-o", output)
    assert (code, out) == (2, "")
    assert err.startswith("mmssl: there is no run 'nothing'")
    assert err.count("\n") == 1
    for variable, value in (("WORLD_SIZE", "2"), ("MASTER_ADDR", "nowhere"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(variable, value)
    for rank, said in (("0", ""), ("1", "rank 1: ")):
        monkeypatch.setenv("RANK", rank)
        code, out, err = called("nothing", str(listed), "-o", output)
        assert (code, out) == (2, "")
        assert err.startswith(f"mmssl: {said}there is no run 'nothing'")
        assert err.count("\n") == 1
    monkeypatch.delenv("WORLD_SIZE")
    code, _, err = called(str(run), str(listed), "-o", output, "--device", "tpu?")
    assert (code, err) == (2, "mmssl: --device tpu?: write auto, cpu, cuda or cuda:N\n")
