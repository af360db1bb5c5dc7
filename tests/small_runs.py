"""Runs so small that tests can afford the real command line, real files and real signals."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from forked import MMSSL, CommandLine

from mmssl.training.log import read_log
from mmssl_media.synthetic_clips import CLASSES, Format, draw_frames, draw_sound, label_of, write

# Networks and clips as small as they come; 4 steps an epoch.
RECIPE = """\
name: small
seed: 1
threads: 1
device: cpu
modalities:
  video: {use: video, frames: 2, fps: 4, short_side: 20, crop: 16, rotate: 10, hue: 0.1}
  audio: {use: audio, seconds: 0.5, mels: 16, noise: 0.2, time_mask: 0.2}
backbones:
  video: {use: r3d_18, width: 0.125}
  audio: {use: resnet18_audio, width: 0.125}
data:
  train: {use: synthetic, videos: 48, side: 32, fps: 8, seconds: 1}
  workers: 1
objective:
  use: xdc
  rounds: 2
  clusters: 4
  normalize: standardize_l2
  balance: true
training:
  epoch_size: 32
  epochs: 2
  batch_size: 8
  optimizer: {use: adamw, lr: 0.002}
  schedule: cosine
  log_every: 1
"""


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """This process's variables, with a cache of made-up videos in ``folder``."""
    return {**os.environ, "MMSSL_CACHE": str(folder / "cache"), **variables}


def mmssl(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "stdout"), Path(folder, "stderr")
        env = environment(cwd) if env is None else env
        started = CommandLine(*arguments, cwd=cwd, env=env, out=out, err=err)
        try:
            code = started.wait(600)
        finally:
            started.send_signal(signal.SIGKILL)
        return subprocess.CompletedProcess(
            [MMSSL, *arguments], code, out.read_text(), err.read_text()
        )


def make_videos(folder: Path, count: int, side: int = 32) -> list[tuple[str, int]]:
    """Files and classes of made-up videos of one second."""
    folder.mkdir(parents=True)
    form = Format(side=side, fps=8, seconds=1.0)
    videos = []
    for i in range(count):
        label = label_of(0, i, len(CLASSES))
        path = folder / f"{i:03}.mp4"
        write(path, form, draw_frames(form, 0, i, label), draw_sound(form, 0, i, label))
        videos.append((str(path), label))
    return videos


def write_manifest(path: Path, videos: list[tuple[str, int]]) -> Path:
    """A list for the dataset ``manifest``."""
    path.write_text("path,label\n" + "".join(f"{file},{label}\n" for file, label in videos))
    return path


class Started:
    """A command line that is at work, in a session of its own, as a terminal or SLURM starts it.

    Args:
        arguments: of ``mmssl``.
        cwd: where; what it prints goes to files there, which its orphans may hold open.
        env: its variables.
    """

    def __init__(self, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> None:
        self.out, self.err = cwd / "stdout.txt", cwd / "stderr.txt"
        self.process = CommandLine(
            *arguments,
            cwd=cwd,
            env=environment(cwd) if env is None else env,
            out=self.out,
            err=self.err,
            session=True,
        )

    def wait_until(self, seen: Callable[[], bool], seconds: float = 120) -> None:
        """Watch the disk until something is seen there."""
        deadline = time.monotonic() + seconds
        while True:
            # First whether it ended, then what it left: in the other order, a process that ends
            # in between would have ended "too early".
            code = self.process.poll()
            if seen():
                return
            assert code is None, f"ended with {code} too early: {self.err.read_text()}"
            assert time.monotonic() < deadline, "nothing was seen in time"
            time.sleep(0.0005)

    def signal_all(self, number: int) -> None:
        """What Ctrl-C does: every process of the group gets the signal."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """``kill -9`` of the process that was started, and of no other."""
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait(30) == -signal.SIGKILL, "it ended before it was killed"

    def wait(self, seconds: float = 120) -> int:
        """Its exit code."""
        return self.process.wait(seconds)

    def alive(self) -> list[int]:
        """The processes of the session that still live; orphans stay in it."""
        living = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:  # it has gone meanwhile
                continue
            state, session = fields[0], int(fields[3])
            if session == self.process.pid and state not in "ZX":
                living.append(int(stat.parent.name))
        return living

    def all_gone(self, seconds: float = 40) -> bool:
        """Do all processes of the session end by themselves in time?"""
        deadline = time.monotonic() + seconds
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        return not self.alive()


def steps(folder: Path) -> int:
    """Optimizer steps in a run's log."""
    log = folder / "log.jsonl"
    return log.read_bytes().count(b'"kind": "step"') if log.is_file() else 0


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run computed: what the clock decides is left out, floats are exact."""
    clock = ("clips_per_second", "data_wait")
    clusters = [*folder.glob("clusters/*/*.npy"), *folder.glob("clusters/*/health.json")]
    metrics = sorted(folder.glob("evaluations/*/metrics.json"))
    return {
        "log": [{k: v for k, v in r.items() if k not in clock} for r in read_log(folder)],
        "clusters": {
            str(path.relative_to(folder)): (
                np.load(path).tolist() if path.suffix == ".npy" else json.loads(path.read_text())
            )
            for path in sorted(clusters)
        },
        "encoders": (folder / "checkpoints" / "encoders.safetensors").read_bytes(),
        "metrics": {path.parent.name: json.loads(path.read_text()) for path in metrics},
    }


def leftovers(folder: Path) -> list[str]:
    """Files that only a run at work may have."""
    unfinished = [*folder.rglob(".*"), *folder.rglob("*partial*"), *folder.rglob("labelling")]
    return [str(path.relative_to(folder)) for path in unfinished if path.name != ".lock"]
