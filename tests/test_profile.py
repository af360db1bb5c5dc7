"""Where the time goes: `mmssl profile` and the stopwatch under it."""

import re
import shlex
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_runs import RECIPE, make_videos, mmssl, write_manifest
from torch import Tensor
from toys import Rows, Vector

from mmssl.contracts import Batch, Dataset, Sample, Storage, Window
from mmssl.data import timing
from mmssl.data.loading import ClipReader, LoaderSettings, training_batches
from mmssl.data.media import Media
from mmssl.data.sampling import Sampler
from mmssl.errors import UserError
from mmssl.pipeline.advice import Source, advice, look_at
from mmssl.pipeline.assembly import build_datasets
from mmssl.pipeline.profiling import Profile, profile
from mmssl.recipe import Recipe, load
from mmssl.training.loop import Pretraining
from mmssl.training.progress import Silent
from mmssl_media.commands.shard import shard

PARTS = [
    "open", "seek", "decode video", "convert", "audio", "collate", "other reading", "all",
    "transfer", "prepare", "forward", "backward", "other", "waiting for data", "all",
]  # fmt: skip


def recipe(folder: Path, *overrides: str) -> Recipe:
    path = folder / "small.yaml"
    if not path.exists():
        videos = make_videos(folder / "videos", 12)
        write_manifest(folder / "manifest.csv", videos)
        path.write_text(RECIPE)
    data = [f"data.train={{use: manifest, path: {folder / 'manifest.csv'}}}"]
    return load(path, [*data, "objective.rounds=2", f"runs={folder / 'runs'}", *overrides])


def test_every_part_has_a_row_and_the_times_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside: list[float] = []
    original = Pretraining.step

    def clocked(self: Pretraining, batch: Batch, factor: float) -> object:
        began = time.perf_counter()
        try:
            return original(self, batch, factor)
        finally:
            outside.append(time.perf_counter() - began)

    monkeypatch.setattr(Pretraining, "step", clocked)
    began = time.perf_counter()
    found = profile(recipe(tmp_path), 6, Silent())
    elapsed = time.perf_counter() - began
    rows = found.table().rows
    assert [row[1] for row in rows] == PARTS
    assert found.clips == 6 * 8
    assert all(seconds >= 0 for seconds in found.device.values())
    assert all(found.loader[name] > 0 for name in PARTS[:6])
    assert all(found.device[name] > 0 for name in ("transfer", "prepare", "forward", "backward"))
    # The parts that have names are nearly all that another clock sees of the steps.
    named = sum(seconds for part, seconds in found.device.items() if part != "other")
    assert 0.5 < named * found.clips / sum(outside[-6:]) <= 1
    assert found.device["other"] < 0.5 * sum(found.device.values())
    assert found.wall * found.clips < elapsed
    for side in (rows[:8], rows[8:]):
        assert sum(row[2] for row in side[:-1]) == pytest.approx(side[-1][2])
    assert not (tmp_path / "runs").exists()


def test_few_steps_do_not_use_up_what_was_read_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers read 8 clips every 0.26 s; training on them takes 0.1 s, the first time long.

    So the 4 batches that are ready then would last for some 6 steps.
    """
    read = ClipReader._at_position
    taken: list[float] = []

    def slowly(self: ClipReader, position: int, sampler: Sampler) -> object:
        time.sleep(0.06)
        return read(self, position, sampler)

    def step(self: Pretraining, batch: Batch, factor: float) -> None:
        time.sleep(0.1 if taken else 1.0)
        taken.append(factor)

    monkeypatch.setattr(ClipReader, "_at_position", slowly)
    monkeypatch.setattr(Pretraining, "step", step)
    found = profile(recipe(tmp_path, "data.workers=2"), 5, Silent())
    assert 1 / found.wall < 1.1 * found.loader_rate, found.summary()
    assert found.waiting > 0.05 * found.wall
    assert len(taken) == 3 + 2 * 2 + 5


def test_balanced_sampling_and_a_reader_in_the_same_process(tmp_path: Path) -> None:
    found = profile(recipe(tmp_path, "data.workers=0", "objective.balance=true"), 4, Silent())
    # Nobody else reads: the training process waits as long as its own reading takes.
    assert found.waiting == pytest.approx(sum(found.loader.values()), rel=0.3, abs=2e-3)
    assert timing.take() == {}


class Sleepy(Vector):
    """Spends known times on known parts."""

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        with timing.step("seek"):
            time.sleep(0.002)
            with timing.step("decode video"):
                time.sleep(0.02)
        return super().read(media, window, rng)


def test_a_readers_parts_are_what_a_clock_outside_measures() -> None:
    reader = ClipReader(Rows(30), {"a": Sleepy("a")}, seed=0, sampler=Sampler(30, 0))
    settings = LoaderSettings(workers=0, timed=True)
    began = time.perf_counter()
    batches = training_batches(reader, start=0, batch_size=5, count=4, settings=settings)
    seconds = [loaded.seconds for loaded in batches]
    elapsed = time.perf_counter() - began
    timing.measure(False)
    assert sum(sum(parts.values()) for parts in seconds) == pytest.approx(elapsed, rel=0.25)
    for parts in seconds:
        assert parts["decode video"] >= 5 * 0.02
        # What is nested counts once.
        assert 5 * 0.002 <= parts["seek"] < parts["decode video"]


def test_the_device_is_waited_for_within_a_part() -> None:
    waited: list[float] = []

    def device() -> None:
        waited.append(time.perf_counter())
        time.sleep(0.01)

    timing.measure(wait=device)
    with timing.step("forward"):
        pass
    seconds = timing.take()
    timing.measure(False)
    assert len(waited) == 2
    assert seconds["forward"] >= 0.01


def test_objectives_that_relabel_see_no_media_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that are read are those that the steps train on, and no more."""
    reads: list[str] = []
    original = ClipReader._at_position

    def counted(self: ClipReader, position: int, sampler: Sampler) -> object:
        reads.append(f"{position}")
        return original(self, position, sampler)

    monkeypatch.setattr(ClipReader, "_at_position", counted)
    monkeypatch.setattr(ClipReader, "_at_row", lambda *_: pytest.fail("read for clustering"))
    profile(recipe(tmp_path, "data.workers=0"), 2, Silent())
    assert len(reads) == (3 + 2) * 8


def measured(**changed: object) -> Profile:
    loader = {
        "open": 0.001, "seek": 0.001, "decode video": 0.016, "convert": 0.001, "audio": 0.001,
        "collate": 0.0, "other reading": 0.0,
    }  # fmt: skip
    device = {"transfer": 0.0, "prepare": 0.0005, "forward": 0.002, "backward": 0.002, "other": 0.0}
    found = Profile(30, 960, 2, 0.010, 0.0055, loader, device)
    return replace(found, **changed)  # type: ignore[arg-type]


class Sharded(Rows):
    def storage(self) -> Storage | None:
        return Storage(np.array([10, 20]), 4)


class Files(Dataset):
    """The same file in every row."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __len__(self) -> int:
        return 3

    def sample(self, index: int) -> Sample:
        return Sample(str(index), self.path)


def test_what_is_proposed_can_be_done(tmp_path: Path) -> None:
    videos, slow = tmp_path / "videos", Source(720, 250)
    loader = {**measured().loader, "open": 0.04, "decode video": 0.04}
    small = recipe(tmp_path)
    folder = f"data.train={{use: folder, path: {videos}}}"
    for changed, listed in {"": tmp_path / "manifest.csv", folder: videos}.items():
        found = recipe(tmp_path, *[changed] * bool(changed))
        lines = advice(
            measured(loader=loader),
            found,
            device="cuda",
            dataset=Rows(30),
            source=slow,
            available=16,
        )
        proposed = [line.partition(": ")[0] for line in lines if line.startswith("mmssl data")]
        assert len(proposed) == 2
        for line in lines:
            if not line.startswith("mmssl data"):
                continue
            command, _, rest = line.partition(", then ")
            mmssl_, data, verb, source, *_ = shlex.split(command)
            assert (mmssl_, data, source) == ("mmssl", "data", str(listed))
            assert verb in ("transcode", "shard")
            override = shlex.split(rest[: rest.index("}'") + 2])[0]
            (tmp_path / "DIR").mkdir(exist_ok=True)
            (tmp_path / "DIR" / "manifest.csv").write_text("path\na.mp4\n")
            named = override.replace("DIR", str(tmp_path / "DIR"))
            assert recipe(tmp_path, named).data.train.use in ("manifest", "shards")
    shards = tmp_path / "my shards"
    shards.mkdir()
    for train in (
        "{use: synthetic, videos: 4}",
        f"{{use: shards, path: {shards}}}",
        f"{{use: manifest, path: {tmp_path}/manifest.csv, root: {tmp_path}}}",
    ):
        nowhere = recipe(tmp_path, f"data.train={train}")
        lines = advice(
            measured(loader=loader),
            nowhere,
            device="cuda",
            dataset=Rows(4),
            source=slow,
            available=16,
        )
        assert "of reading is" in "".join(lines)
        assert "mmssl data" not in "".join(lines)
    assert small.data.train.use == "manifest"


def test_proposed_commands_for_shards_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Typed in as they stand, though frames are wanted that no encoder of video takes."""
    monkeypatch.chdir(tmp_path)
    recipe(tmp_path)
    assert shard(Path("manifest.csv"), Path("big sh"), samples=5) == 0
    changes = ["data.train={use: shards, path: big sh}", "modalities.video.short_side=21"]
    (line,) = (
        line
        for line in advice(
            measured(),
            recipe(tmp_path, *changes),
            device="cuda",
            dataset=Sharded(30),
            source=Source(720, 250),
            available=16,
        )
        if line.startswith("mmssl data")
    )
    command, _, rest = line.partition(", then ")
    done = mmssl(*shlex.split(command)[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    override = shlex.split(rest[: rest.index("}'") + 2])[0]
    dataset, _ = build_datasets(recipe(tmp_path, override))
    assert len(dataset) == 12


def test_advice(tmp_path: Path) -> None:
    small = recipe(tmp_path)
    big, little = Source(720, 250), Source(20, 12)

    def said(found: Profile, source: Source = big, device: str = "cuda", **more: object) -> str:
        values = {"dataset": Rows(30), "available": 16, **more}
        return "\n".join(advice(found, small, device=device, source=source, **values))  # type: ignore[arg-type]

    # 222 clips/s could be trained; each costs 20 ms to read: 5 workers.
    found = said(measured())
    assert "bound by the loader" in found
    assert "data.workers=5" in found
    assert "mmssl data transcode" in found
    assert "--short-side 20 --gop 12" in found
    assert "manifest.csv" in found
    assert "shard" not in found
    # What cannot last says nothing of what bounds it.
    short = measured(wall=0.0046, waiting=0.0, loader={**measured().loader, "open": 0.004})
    found = said(short)
    assert "too few steps" in found
    assert "--steps 120" in found
    assert "bound by" not in found
    assert "too few steps" not in said(replace(short, workers=8))
    # No cores to spare.
    found = said(measured(), available=3)
    assert "more workers will not help" in found
    assert "data.workers=" not in found
    # Nothing to gain by a smaller copy.
    assert "transcode" not in said(measured(), little)
    # Opening dominates.
    opening = {**measured().loader, "open": 0.04}
    assert "mmssl data shard" in said(measured(loader=opening))
    assert "mmssl data shard" not in said(measured(loader=opening), dataset=Sharded(30))
    assert "data.workers=15" in said(measured(workers=0))
    # Training is the bound.
    training = measured(wall=0.0046, waiting=0.0001, workers=5)
    found = said(training)
    assert "bound by training" in found
    assert "bf16" in found
    assert "training.compile=true" in found
    assert "transcode" not in found
    assert "bf16" not in said(training, device="cpu")
    assert "preparing clips" in said(
        measured(wall=0.0203, waiting=0.0, device={**training.device, "prepare": 0.02})
    )


def test_a_source_is_looked_at(tmp_path: Path) -> None:
    from media_files import write

    path = write(tmp_path / "a.mp4", frames=60, size=(96, 64), gop=20)
    assert look_at(Files(str(path))) == Source(64, 20)
    assert look_at(Files(str(tmp_path / "none.mp4"))) == Source(0, 0)


def test_the_command(tmp_path: Path) -> None:
    recipe(tmp_path)
    done = mmssl(
        "profile", "small.yaml", f"data.train={{use: manifest, path: {tmp_path}/manifest.csv}}",
        "--steps", "3", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for part in PARTS:
        assert re.search(rf"│ {part} ", done.stdout), part
    assert "measured: " in done.stdout
    assert "bound by " in done.stdout
    assert not (tmp_path / "runs").exists()
    wrong = mmssl("profile", "small.yaml", "training.epochz=3", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "epochz" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1
    assert not wrong.stdout


def test_too_few_samples_is_a_mistake_of_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"objective.*13 clusters"):
        profile(recipe(tmp_path, "objective.clusters=13"), 1, Silent())


def test_help_imports_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.argv = ['mmssl', 'profile', '--help']\n"
        "from mmssl.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Measure some training steps" in shown.stdout
    assert shown.stdout.splitlines()[-1] == "False"
