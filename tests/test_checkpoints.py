"""Checkpoints: whole or not at all, the last K kept."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl.errors import UserError
from mmssl.training import checkpoints


def test_the_newest_are_kept_and_loaded(tmp_path: Path) -> None:
    for step in (5, 10, 20, 100_000_000):
        checkpoints.save(tmp_path, {"step": step, "w": torch.full((2,), step)}, step=step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020.pt", "step-100000000.pt"]
    state = checkpoints.load_newest(tmp_path)
    assert state is not None
    assert state["step"] == 100_000_000


def test_nothing_to_load(tmp_path: Path) -> None:
    assert checkpoints.load_newest(tmp_path / "none") is None


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    checkpoints.write_atomically(path, lambda p: p.write_text("old"))

    def die(temporary: Path) -> None:
        temporary.write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.write_atomically(path, die)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_readable_by_whom_the_umask_allows(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")

    def private(temporary: Path) -> None:
        temporary.touch(mode=0o600)

    checkpoints.write_atomically(tmp_path / "file", private)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_leftovers_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".step-00000001.pt.99.tmp").write_text("half")
    checkpoints.save(tmp_path, {}, step=2, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002.pt"]


def test_a_damaged_file_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, {"step": 1}, step=1, keep=3)
    newest = checkpoints.save(tmp_path, {"step": 2}, step=2, keep=3)
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"step-00000002.pt cannot be read"):
        state = checkpoints.load_newest(tmp_path)
    assert state is not None
    assert state["step"] == 1
    assert [p.name for p in tmp_path.glob("*.damaged")] == ["step-00000002.pt.damaged"]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, {"step": 1}, step=1, keep=1)
    path.write_bytes(b"torn")
    with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(UserError, match="no ch"):
        checkpoints.load_newest(tmp_path)


SHORT_OF_MEMORY = """
import re, resource, sys
from pathlib import Path
from mmssl.errors import UserError
from mmssl.training import checkpoints
used = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000,) * 2)
try:
    checkpoints.load_newest(Path(sys.argv[1]))
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not limit a process's memory")
def test_a_checkpoint_is_not_damaged_where_memory_is_short(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoints.save(tmp_path, {"x": torch.zeros(40_000_000)}, step=step, keep=2)
    names = sorted(p.name for p in tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, str(tmp_path)], capture_output=True, text=True
    )
    assert "step-00000002.pt: not enough memory to read its 160 MB" in done.stdout, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == names


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("unable to mmap 99 bytes: Cannot allocate memory (12)"),
    ],
)
def test_no_word_for_too_little_memory_renames_a_file(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoints.save(tmp_path, {}, step=1, keep=1)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(UserError, match="not enough memory"):
        checkpoints.load_newest(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_another_format_is_refused(tmp_path: Path) -> None:
    torch.save({"format": 99}, tmp_path / "step-00000001.pt")
    with pytest.raises(UserError, match="was written by a newer mmssl than this one"):
        checkpoints.load_newest(tmp_path)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code ran",))


def test_no_code_runs_on_loading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"format": 1, "x": Evil()}, tmp_path / "step-00000001.pt")
    with (
        pytest.warns(UserWarning, match="cannot be read"),
        pytest.raises(UserError, match="no checkpoint can be read"),
    ):
        checkpoints.load_newest(tmp_path)
    assert "code ran" not in capsys.readouterr().out


def test_a_checkpoint_of_the_format_before_has_no_states(tmp_path: Path) -> None:
    torch.save({"format": 1, "w": torch.ones(2)}, tmp_path / "step-00000001.pt")
    state = checkpoints.load_newest(tmp_path)
    assert state is not None
    assert (state["callbacks"], state["trackers"], state["w"].tolist()) == ({}, {}, [1, 1])


class Own(torch.Tensor):
    """A class of tensors of somebody's own."""


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"mean": np.float64(3)}, r"state_dict\(\)\['mean'\] is a numpy.float64"),
        ({"a": [1, {"b": (2, Path("x"))}]}, r"\['a'\]\[1\]\['b'\]\[1\] is a pathlib"),
        ({(1, 2): 3}, r"has the key \(1, 2\)"),
        ([1, np.zeros(3)], r"state_dict\(\)\[1\] is a numpy.ndarray"),
        # Classes of dicts and tensors that torch saves, and reads no more with weights_only.
        (defaultdict(int, a=1), r"state_dict\(\) is a collections.defaultdict"),
        ({"a": torch.zeros(2).as_subclass(Own)}, r"\['a'\] is a test_checkpoints.Own"),
    ],
)
def test_states_that_could_not_be_read_again_are_refused(state: object, where: str) -> None:
    with pytest.raises(TypeError, match=where):
        checkpoints.storable(state)


def test_states_that_are_stored_are_read_again(tmp_path: Path) -> None:
    state = {
        "plain": [None, True, 3, 2.5, "x", b"y", (1, {2: "z"})],
        "net": torch.nn.BatchNorm1d(2).state_dict(),  # an OrderedDict
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    checkpoints.save(tmp_path, {"own": checkpoints.storable(state)}, step=1, keep=1)
    read = checkpoints.load_newest(tmp_path)
    assert read is not None
    assert read["own"]["plain"] == state["plain"]
    assert torch.equal(read["own"]["net"]["weight"], torch.ones(2))
