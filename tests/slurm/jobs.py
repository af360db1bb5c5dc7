"""Runs on the cluster: what is typed on a login node, and what becomes of the jobs."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster import Cluster
from small_runs import RECIPE, make_videos, mmssl, steps, write_manifest

from mmssl.pipeline.records import Records

# Small steps of plain gradient descent, so that what several ranks round otherwise stays small:
# Adam's first step takes little more than signs, and fast ones take tiny networks apart.
SETTINGS = """\
extends: small.yaml
name: undisturbed
data: {train: {use: manifest, path: train.csv}}
training: {optimizer: {use: sgd, lr: 0.002}}
trackers: [brake]
evaluations:
  clusters: {use: clusters}
  probe:
    use: linear_probe
    train: {use: manifest, path: labelled.csv}
    test: {use: manifest, path: labelled.csv}
    untrained: false
    regularisation: [0.01]
"""

#: 2 rounds of 2 epochs of 4 steps, of 8 clips each.
STEPS = 16
BATCH = 8

# A plugin that lets tests act between two steps: it waits after each for as long as the run's
# folder has a file that says from which step on, and how many seconds.
BRAKE = """\
import time

from mmssl import Tracker, hookimpl


@hookimpl
def register_trackers(register):
    register("brake", "brake:Brake")


class Brake(Tracker):
    '''Waits after a step, for as long as a file says so.'''

    def open(self, folder, step):
        self.file = folder / "brake"

    def track(self, record):
        since = time.monotonic()
        while record["kind"] == "step" and self.file.is_file():
            first, seconds = self.file.read_text().split()
            if record["step"] < int(first) or time.monotonic() - since > float(seconds):
                break
            time.sleep(0.02)

    def close(self):
        pass
"""


@dataclass(frozen=True)
class Site:
    """A folder that the cluster shares, and commands that are typed there.

    Args:
        cluster: whose jobs are looked at.
        folder: with the recipe, its data, and runs.
        environment: variables of the commands, which jobs inherit.
    """

    cluster: Cluster
    folder: Path
    environment: Mapping[str, str]

    def mmssl(self, *arguments: str, code: int = 0) -> list[str]:
        """What a command prints, or the one line in which it tells why it fails."""
        done = mmssl(*arguments, cwd=self.folder, env=self.environment)
        assert done.returncode == code, f"exit code {done.returncode}: {done.stderr}"
        assert len(done.stderr.splitlines()) == bool(code), done.stderr
        return (done.stderr or done.stdout).splitlines()

    def submit(self, name: str, *options: str) -> list[str]:
        """What ``mmssl run`` of the recipe prints, under a name, as jobs."""
        return self.mmssl("run", "recipe.yaml", "--launch=slurm", f"name={name}", *options)

    def jobs(self) -> list[str]:
        """All that were ever submitted to the cluster."""
        return sorted(self.cluster.run("squeue", "-h", "--states=all", "--format=%i").split())

    def processes(self) -> dict[int, int]:
        """All processes of jobs of this cluster, and their parents."""
        ours = f"SLURM_CONF={self.environment['SLURM_CONF']}"
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            words = _words(int(stat.parent.name), "environ")
            if ours in words and any(word.startswith("SLURM_JOB_ID=") for word in words):
                with contextlib.suppress(OSError):  # it has gone meanwhile
                    parent = stat.read_text().rpartition(")")[2].split()[1]
                    found[int(stat.parent.name)] = int(parent)
        return found

    def run(self, name: str) -> "Run":
        return Run(self, self.folder / "runs" / name)


@dataclass(frozen=True)
class Run:
    """A run's folder and its jobs."""

    site: Site
    folder: Path

    def job(self, stage: str = "pretrain") -> str:
        """The id of the job that a stage was handed over to, last."""
        job = Records(self.folder).job(stage)
        assert job is not None, f"{stage} was not submitted"
        return job.job

    def state(self, stage: str = "pretrain") -> str:
        return self.site.cluster.state(self.job(stage))

    def restarts(self) -> int:
        return self.site.cluster.restarts(self.job())

    def output(self, stage: str = "pretrain") -> str:
        """What the batch script and all tasks of a stage's job printed."""
        job = Records(self.folder).job(stage)
        files = sorted(Path(job.folder).glob(f"{job.job}_*log.*")) if job else []
        return "\n".join(path.read_text() for path in files)

    def nodes(self) -> str:
        """Where pretraining runs, such as ``n1`` or ``n[1-2]``."""
        return self.site.cluster.run("squeue", "-h", f"--jobs={self.job()}", "--format=%N")

    def brake(self, first: int, seconds: float = 1000) -> None:
        """Wait so long after this step, and after each that follows."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "brake.new").write_text(f"{first} {seconds}")
        (self.folder / "brake.new").replace(self.folder / "brake")

    def release(self) -> None:
        (self.folder / "brake").unlink()

    def wait(self, seen: Callable[[], bool], what: str, seconds: float = 240) -> None:
        """Watch the disk or the cluster until something is seen there."""
        deadline = time.monotonic() + seconds
        while not seen():
            if time.monotonic() > deadline:
                jobs = self.site.cluster.run("squeue", "--states=all", "--format=%i %j %T %r %N")
                raise AssertionError(f"not {what} after {seconds} s:\n{jobs}\n{self.output()}")
            time.sleep(0.05)

    def wait_for_step(self, number: int) -> None:
        self.wait(lambda: steps(self.folder) >= number, f"at step {number}")

    def wait_for(self, state: str, *stages: str, seconds: float = 240) -> None:
        """Until the jobs of stages, by default pretraining's, are in a state."""
        for stage in stages or ("pretrain",):
            self.wait(lambda: self.state(stage) == state, f"{stage} {state}", seconds)  # noqa: B023

    def written(self, step: int) -> list[bytes]:
        """The log's records of steps up to one, with what the clock made of them."""
        lines = (self.folder / "log.jsonl").read_bytes().splitlines()
        records = [line for line in lines if b'"kind": "step"' in line]
        return [line for line in records if json.loads(line)["step"] <= step]

    def saved(self) -> int:
        """The step of the newest checkpoint."""
        return max(int(path.stem[5:]) for path in self.folder.glob("checkpoints/step-*.pt"))

    def ended(self) -> str | None:
        """What the job said of its end."""
        record = Records(self.folder).ended("pretrain")
        return record and record["state"]

    def status(self) -> dict[str, tuple[str, str]]:
        """State and restarts of each stage, as ``mmssl status`` shows them."""
        rows: dict[str, list[str]] = {}
        for line in self.site.mmssl("status", str(self.folder)):
            if line.startswith("│"):
                cells = [cell.strip() for cell in line.strip("│").split("│")]
                stage = cells[0] or list(rows)[-1]  # a long text goes on below
                before = rows.get(stage, [""] * len(cells))
                rows[stage] = [f"{a} {b}".strip() for a, b in zip(before, cells, strict=True)]
        return {stage: (cells[1], cells[-1]) for stage, cells in rows.items()}

    def wait_until_blocked(self, *stages: str) -> None:
        """SLURM takes some seconds to see that what jobs wait for has failed."""
        blocked = "will not run: pretrain failed"
        for stage in stages:
            self.wait(lambda: self.status()[stage][0] == blocked, f"{stage} blocked")  # noqa: B023

    def kill_task(self, rank: int) -> None:
        """``kill -9`` of one process that trains, as the kernel does where memory runs out."""
        found = {
            pid: parent
            for pid, parent in self.site.processes().items()
            if {f"SLURM_JOB_ID={self.job()}", f"SLURM_PROCID={rank}"} <= {*_words(pid, "environ")}
            and _words(pid, "cmdline")[:1] == [sys.executable]
        }
        (task,) = (pid for pid, parent in found.items() if parent not in found)  # no loader process
        os.kill(task, signal.SIGKILL)


def _words(pid: int, file: str) -> list[str]:
    """What ``/proc`` has of a process; nothing if it has gone."""
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def make_site(cluster: Cluster, folder: Path) -> Site:
    """A folder with a recipe, its videos, and the plugin."""
    videos = make_videos(folder / "videos", 48)
    write_manifest(folder / "train.csv", videos)
    write_manifest(folder / "labelled.csv", videos[16:24])
    (folder / "small.yaml").write_text(RECIPE)
    (folder / "recipe.yaml").write_text(SETTINGS)
    info = folder / "site" / "brake-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brake\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[mmssl]\nbrake = brake\n")
    (info.parent / "brake.py").write_text(BRAKE)
    paths = [str(info.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return Site(cluster, folder, {**cluster.environment, "PYTHONPATH": os.pathsep.join(paths)})
