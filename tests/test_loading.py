"""From rows to batches: what arrives does not depend on how it was loaded."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import Rows, Vector

from mmssl import Media, Window
from mmssl.contracts import Batch, Sample
from mmssl.data import time_limit
from mmssl.data.loading import (
    ClipReader,
    Loaded,
    LoaderSettings,
    Unreadable,
    Views,
    ordered_batches,
    training_batches,
    training_window,
)
from mmssl.data.sampling import Sampler
from mmssl.data.skipped import Lacking, Skipped, read_ledger
from mmssl.errors import UserError

MODALITIES = {"a": Vector("a"), "b": Vector("b", dim=3)}


def train(dataset: Rows, workers: int = 0, start: int = 0, count: int = 5) -> list[Batch]:
    reader = ClipReader(dataset, MODALITIES, seed=1, sampler=Sampler(len(dataset), 1))
    settings = LoaderSettings(workers=workers, prefetch=2)
    batches = training_batches(reader, start=start, batch_size=4, count=count, settings=settings)
    return [loaded.batch for loaded in batches]


def same(first: Batch, second: Batch) -> bool:
    return (
        torch.equal(first.index, second.index)
        and torch.equal(first.seeds, second.seeds)
        and all(torch.equal(first.clips[name], second.clips[name]) for name in first.clips)
        and all(torch.equal(first.present[name], second.present[name]) for name in first.clips)
    )


def test_workers_change_nothing() -> None:
    dataset = Rows(30, bad=[3, 4], without={"b": [7, 8]})
    for first, second in zip(train(dataset, 0), train(dataset, 2), strict=True):
        assert same(first, second)


def test_a_later_start_gives_the_later_batches() -> None:
    dataset = Rows(30)
    assert all(
        same(a, b)
        for a, b in zip(train(dataset)[2:], train(dataset, start=8, count=3), strict=True)
    )


def test_every_clip_is_that_of_its_row() -> None:
    dataset = Rows(30)
    still = {"a": Vector("a", augment=0)}
    reader = ClipReader(dataset, still, seed=0, sampler=Sampler(30, 5))
    expected = {row: ClipReader(dataset, still, seed=0)[row][0].tensors["a"] for row in range(30)}
    settings = LoaderSettings(workers=2)
    for loaded in training_batches(reader, start=0, batch_size=10, count=6, settings=settings):
        for i, row in enumerate(loaded.batch.index.tolist()):
            # The clip differs from the central one by its window and jitter only.
            assert torch.allclose(loaded.batch.clips["a"][i], expected[row], atol=0.06)
            assert loaded.batch.labels[i] == row % 3


def test_an_unreadable_row_is_replaced_in_training_and_named() -> None:
    dataset = Rows(20, bad=[5])
    reader = ClipReader(dataset, MODALITIES, seed=1, sampler=Sampler(20, 1))
    settings = LoaderSettings()
    batches = list(training_batches(reader, start=0, batch_size=4, count=5, settings=settings))
    rows = torch.cat([loaded.batch.index for loaded in batches])
    assert len(rows) == 20
    assert 5 not in rows
    assert [f for loaded in batches for f in loaded.unreadable] == [
        Unreadable(5, "row5", "is damaged")
    ]


def test_an_unreadable_row_stays_in_its_place_when_measuring() -> None:
    reader = ClipReader(Rows(7, bad=[2], without={"a": [4]}), MODALITIES, seed=1)
    loaded = list(
        ordered_batches(
            reader, np.arange(7), batch_size=3, split="validation", settings=LoaderSettings()
        )
    )
    assert torch.cat([x.batch.index for x in loaded]).tolist() == list(range(7))
    present = torch.cat([x.batch.present["a"] for x in loaded]).tolist()
    assert present == [True, True, False, True, False, True, True]
    assert torch.cat([x.batch.present["b"] for x in loaded]).tolist()[4]
    assert loaded[1].batch.clips["a"][1].eq(0).all()
    assert loaded[0].batch.split == "validation"


def test_a_modality_that_a_whole_batch_lacks_is_told_once() -> None:
    dataset = Rows(12, bad=[9], without={"a": [4], "b": range(3, 12)})
    reader = ClipReader(dataset, MODALITIES, seed=1)
    settings = LoaderSettings()
    loaded = list(
        ordered_batches(reader, range(12), batch_size=3, split="train", settings=settings)
    )
    assert [list(x.lacking) for x in loaded] == [[], ["b"], ["b"], ["b"]]
    lines: list[str] = []
    tell = Lacking(lines.append)
    for each in loaded:
        tell(each)
    assert lines == ["none of 3 samples in a batch has b: the first is row3: it has no b"]


@pytest.mark.parametrize("workers", [0, 1])
def test_only_unreadable_rows_end_in_one_line(workers: int) -> None:
    with pytest.raises(UserError) as caught:
        train(Rows(4, bad=range(4)), workers)
    message = r"20 samples in a row could not be read; the last was row\d: is damaged"
    assert re.fullmatch(message, str(caught.value))


def test_a_sample_without_any_modality_is_unreadable() -> None:
    dataset = Rows(3, without={"a": [1], "b": [1]})
    clip, failures = ClipReader(dataset, MODALITIES, seed=0)[1]
    assert not any(clip.present.values())
    assert failures[0].reason == "has none of the modalities a, b"


def test_views_stand_next_to_each_other() -> None:
    reader = ClipReader(Rows(3), MODALITIES, seed=0, views=Views(clips=2))
    (loaded,) = ordered_batches(
        reader, np.array([0, 2]), batch_size=8, split="train", settings=LoaderSettings()
    )
    assert loaded.batch.index.tolist() == [0, 0, 2, 2]
    # Windows of 2 s in samples of 10 s: the views begin 8 s apart.
    apart = loaded.batch.clips["a"][1] - loaded.batch.clips["a"][0]
    assert torch.allclose(apart, torch.full((8,), 0.008), atol=1e-5)


def test_windows() -> None:
    assert [Views(5).window(v, 1, 11, 2).start for v in range(5)] == [1, 3, 5, 7, 9]
    assert Views().window(0, 1, 11, 2) == Window(5, 2, 0.5)
    rng = np.random.default_rng(0)
    starts = [training_window(1, 11, 2, rng).start for _ in range(2000)]
    assert min(starts) >= 1
    assert max(starts) <= 9
    assert np.mean(starts) == pytest.approx(5, abs=0.15)


def test_crops_of_a_clip_stand_next_to_each_other() -> None:
    views = Views(clips=2, crops=3)
    assert len(views) == 6
    assert [views.window(v, 0, 10, 2) for v in range(6)] == [
        Window(start, 2, place) for start in (0, 8) for place in (0, 0.5, 1)
    ]
    assert Window(0, 4, 1.0).centred(2) == Window(1, 2, 1.0)


class ManyClasses(Rows):
    """Rows of several classes, of one, of none; the fourth was not labelled."""

    multilabel = True

    def sample(self, index: int) -> Sample:
        labels = ((0, 2), (1,), (), None)[index]
        return replace(super().sample(index), label=None, labels=labels)


def test_labels_of_several_classes() -> None:
    class Constant(Vector):
        def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
            return torch.zeros(8)

    reader = ClipReader(ManyClasses(4), {"a": Constant("a")}, seed=0)
    (loaded,) = ordered_batches(
        reader, range(4), batch_size=4, split="train", settings=LoaderSettings()
    )
    assert loaded.batch.labels.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0], [-100] * 3]
    assert loaded.batch.labels.dtype == torch.float32
    assert loaded.batch.chunk(2)[1].labels.tolist() == [[0, 0, 0], [-100] * 3]


def test_windows_longer_than_the_sample_are_around_it() -> None:
    assert Views().window(0, 1, 2, 4).start == -0.5
    # From the one that ends with the sample to the one that begins with it.
    assert [Views(3).window(v, 1, 2, 4).start for v in range(3)] == [-2, -0.5, 1]
    rng = np.random.default_rng(0)
    starts = [training_window(1, 2, 4, rng).start for _ in range(2000)]
    assert min(starts) >= -2
    assert max(starts) <= 1
    assert np.mean(starts) == pytest.approx(-0.5, abs=0.1)
    assert np.std(starts) == pytest.approx(3 / 12**0.5, rel=0.05)


def test_the_ledger_names_each_once_and_stops_over_the_threshold(tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    skipped = Skipped(path, {"train": 20, "validation": 5}, max_bad=0.1)
    for row in (3, 3, 4):
        skipped("train", Unreadable(row, f"row{row}", "torn"))
    with open(path, "a") as file:
        file.write('{"split": "tra')  # killed while writing
    again = Skipped(path, {"train": 20, "validation": 5}, max_bad=0.1)
    assert len(again) == 2
    again("train", Unreadable(4, "row4", "torn"))
    with pytest.raises(UserError, match=r"3 of 20 train samples cannot be read.*row9: torn"):
        again("train", Unreadable(9, "row9", "torn"))
    # Starting again is no way around it.
    with pytest.raises(UserError, match=r"3 of 20 train samples"):
        Skipped(path, {"train": 20}, max_bad=0.1)("train", Unreadable(9, "row9", "torn"))
    lines = path.read_text().splitlines()
    assert json.loads(lines[-1])["id"] == "row9"  # not fused with the line that a kill cut
    assert json.loads(lines[0]) == {"split": "train", "row": 3, "id": "row3", "reason": "torn"}


def test_a_process_that_stops_in_the_middle_leaves_no_workers() -> None:
    before = set(multiprocessing.active_children())
    reader = ClipReader(Rows(64), MODALITIES, seed=1)
    loader = ordered_batches(
        reader, range(64), batch_size=2, split="train", settings=LoaderSettings(workers=2)
    )
    next(loader), next(loader)  # one from each: both have begun
    started = set(multiprocessing.active_children()) - before
    assert len(started) == 2
    for worker in started:  # as a cluster does to all processes of a job
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGTERM)
    assert len(list(loader)) == 30
    again = ordered_batches(
        reader, range(64), batch_size=2, split="train", settings=LoaderSettings(workers=2)
    )
    next(again)
    again.close()
    assert set(multiprocessing.active_children()) == before


class Trap(Vector):
    """Does something terrible to whoever reads row 5."""

    def __init__(self, deed: str) -> None:
        super().__init__("a")
        self.deed = deed

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        if media.sample.id == "row5":
            if self.deed == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif self.deed.startswith("exit"):
                os._exit(int(self.deed[-1]))
            elif self.deed == "sleep":
                time.sleep(60)
            elif self.deed == "hang":
                # Where no exception of Python's reaches it.
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
                time.sleep(60)
        return super().read(media, window, rng)


DEEDS = {
    "crash": "ended the process that read it (SIGSEGV)",
    "exit 0": "ended the process that read it (exit code 0)",
    "exit 1": "ended the process that read it (exit code 1), or was stuck for 0.5 s",
    "sleep": "reading it took longer than 0.5 s",
    "hang": "ended the process that read it (exit code 1), or was stuck for 0.5 s",
}


@pytest.mark.parametrize(("deed", "workers"), [*((d, 2) for d in DEEDS), ("sleep", 0)])
def test_a_row_that_kills_or_holds_its_reader(
    deed: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_limit, "_GRACE", 0.5)
    settings = LoaderSettings(workers=workers, time_limit=0.5)

    def read(trap: str, dataset: Rows, sampler: Sampler | None) -> list[Loaded]:
        reader = ClipReader(dataset, {"a": Trap(trap)}, seed=1, sampler=sampler)
        if sampler is None:
            rows = np.arange(20)
            return list(
                ordered_batches(reader, rows, batch_size=2, split="train", settings=settings)
            )
        return list(training_batches(reader, start=0, batch_size=2, count=20, settings=settings))

    before = set(multiprocessing.active_children())
    named = Unreadable(5, "row5", DEEDS[deed])
    for sampler in (None, Sampler(20, 1)):
        loaded = read(deed, Rows(20), sampler)
        reference = read("", Rows(20, bad=[5]), sampler)
        assert len(loaded) == len(reference)
        assert all(same(a.batch, b.batch) for a, b in zip(loaded, reference, strict=True))
        assert {failure for item in loaded for failure in item.unreadable} == {named}
    assert set(multiprocessing.active_children()) == before


FAILING = """
from toys import Rows, Vector
from mmssl.data.loading import ClipReader, LoaderSettings, ordered_batches


class Defect(Vector):
    def read(self, media, window, rng):
        if media.sample.id == "row5":
            raise {error}
        return super().read(media, window, rng)


reader = ClipReader(Rows(64), {{"sense": Defect("a")}}, seed=1)
settings = LoaderSettings(workers={workers})
for _ in ordered_batches(reader, range(64), batch_size=2, split="train", settings=settings):
    pass
"""


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", ['ValueError("a defect")', 'RuntimeError("a defect")'])
def test_a_defect_of_a_modality_ends_the_process(error: str, workers: int) -> None:
    """Its loader processes let the SIGTERM pass by which they would be ended at the exit."""
    done = subprocess.run(
        [sys.executable, "-c", FAILING.format(error=error, workers=workers)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "a defect" in done.stderr
    assert "while the modality 'sense' read the sample 'row5'" in done.stderr


def test_processes_that_keep_dying_end_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ClipReader(Rows(20), {"a": Trap("")}, seed=1)
    monkeypatch.setattr(Trap, "read", lambda *_: os._exit(9))
    settings = LoaderSettings(workers=1)
    with pytest.raises(UserError, match=r"5 loader processes died one after the other \(exit code"):
        list(ordered_batches(reader, range(20), batch_size=2, split="train", settings=settings))


def test_measured_steps_arrive_with_their_batches() -> None:
    reader = ClipReader(Rows(8), MODALITIES, seed=1)
    for workers in (0, 2):
        settings = LoaderSettings(workers=workers, timed=True)
        loaded = list(
            ordered_batches(reader, range(8), batch_size=2, split="train", settings=settings)
        )
        assert all({"read a", "read b", "collate"} <= set(item.seconds) for item in loaded)
    untimed = ordered_batches(
        reader, range(8), batch_size=2, split="train", settings=LoaderSettings()
    )
    assert next(untimed).seconds == {}


@pytest.mark.parametrize("reason", ["links to \udce9", "two\u2028lines\x85", "ends in é"])
def test_the_ledger_reads_what_it_wrote(tmp_path: Path, reason: str) -> None:
    path = tmp_path / "skipped.jsonl"
    skipped = Skipped(path, {"train": 20}, max_bad=1)
    for row in (1, 2):
        skipped("train", Unreadable(row, f"row{row}", reason))
    path.write_bytes(path.read_bytes() + b'{"split": "\xc3')  # killed within a letter
    assert [(record["row"], record["reason"]) for record in read_ledger(path)] == [
        (1, reason),
        (2, reason),
    ]
