"""status, logs and cancel: what they say of a run's records and of SLURM's answers."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm, fake_slurm
from small_runs import RECIPE, mmssl

from mmssl.cli import main
from mmssl.pipeline.records import Job, Records
from mmssl.pipeline.run_folder import RunFolder, end_stage
from mmssl.pipeline.status import statuses
from mmssl.recipe import load

__all__ = ["fake_slurm"]

EVALUATIONS = """\
evaluations:
  clusters: {use: clusters}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that was prepared and not begun."""
    (tmp_path / "recipe.yaml").write_text(RECIPE + EVALUATIONS)
    monkeypatch.chdir(tmp_path)
    run = RunFolder(load("recipe.yaml"))
    run.prepare()
    return run


def hand_over(run: RunFolder, stage: str, job: str, launcher: str = "slurm") -> Path:
    """Note a job; where its log would be."""
    logs = run.path.absolute() / "jobs" / stage
    logs.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    record = Job(launcher, job, str(logs), "2026-01-01T00:00:00+00:00", host, 1, ["mmssl", "run"])
    run.hand_over(stage, record)
    return record.log


def states(run: RunFolder) -> list[str]:
    return [status.described for status in statuses([Records(run.path)])[0]]


def command(*words: str) -> int:
    """The exit code of the command line in this process."""
    before, sys.argv = sys.argv, ["mmssl", *words]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    raise AssertionError("main returned")


def test_a_run_without_jobs(folder: RunFolder) -> None:
    assert states(folder) == ["not started", "not started"]
    with folder.locked("pretrain"):
        folder.begin("pretrain", ["mmssl"])
        # Whether a lock is held only another process can ask.
        done = mmssl("status", "small", cwd=Path())
        assert re.search(r"pretrain +│ running +│", done.stdout)
        done = mmssl("cancel", "small", cwd=Path())
        words = f"runs in process {os.getpid()} on {socket.gethostname()}; stop it there"
        assert words in done.stdout
    assert states(folder) == ["interrupted", "not started"], "it was killed"
    end_stage(folder.path, "pretrain", "failed", "the loss is nan")
    end_stage(folder.path, "pretrain", "failed", "another rank has gone")
    assert states(folder) == ["failed: the loss is nan", "not started"]
    with folder.locked("pretrain"):
        folder.begin("pretrain", ["mmssl"])
    end_stage(folder.path, "pretrain", "interrupted", "stopped by a signal")
    assert states(folder)[0].startswith("interrupted")
    folder.finish("pretrain")
    assert states(folder) == ["finished", "not started"]


def test_a_stage_is_finished_for_its_recipe_only(folder: RunFolder) -> None:
    folder.finish("pretrain")
    folder.finish("clusters")
    assert states(folder) == ["finished", "finished"]
    changed = RunFolder(load("recipe.yaml", ["evaluations.clusters.round=1", "threads=2"]))
    changed.prepare()
    assert states(changed) == ["finished", "not started"]


@pytest.mark.parametrize(
    ("queue", "accounts", "expected"),
    [
        ({"7": "RUNNING", "8": "PENDING|Dependency"}, {}, ["running", "waiting for pretrain"]),
        ({"7": "PENDING|Priority", "8": "PENDING|Dependency"}, {}, ["queued: Priority", None]),
        ({"7": "PENDING", "8": "PENDING|Dependency"}, {}, ["queued", None]),
        ({"7": "COMPLETING", "8": "PENDING|Dependency"}, {}, ["running: completing", None]),
        (
            {"7": "FAILED", "8": "PENDING|DependencyNeverSatisfied"},
            {},
            ["failed: SLURM says FAILED", "will not run: pretrain failed"],
        ),
        ({}, {"7": "CANCELLED by 1000", "8": "CANCELLED"}, ["cancelled", "cancelled"]),
        ({}, {"7": "OUT_OF_MEMORY"}, ["failed: SLURM says OUT_OF_MEMORY", None]),
        ({}, {}, ["failed: SLURM knows its job no more", None]),
    ],
)
def test_what_slurm_says_of_jobs(
    queue: dict[str, str],
    accounts: dict[str, str],
    expected: list[str | None],
    folder: RunFolder,
    fake_slurm: FakeSlurm,
) -> None:
    hand_over(folder, "pretrain", "7")
    hand_over(folder, "clusters", "8")
    fake_slurm.queue(queue)
    fake_slurm.accounts(accounts)
    for found, wanted in zip(states(folder), expected, strict=True):
        assert wanted is None or found == wanted
    assert len(fake_slurm.calls("squeue")) == 1, "one question for all jobs"


def test_a_cluster_that_does_not_answer(folder: RunFolder, fake_slurm: FakeSlurm) -> None:
    hand_over(folder, "pretrain", "7")
    script = fake_slurm.bin / "squeue"
    script.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact' >&2; exit 1\n")
    expected = "unknown: squeue: slurm_load_jobs error: Unable to contact"
    assert states(folder)[0] == expected
    script.write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit 1"
    )
    fake_slurm.accounts({"7": "TIMEOUT"})
    assert states(folder)[0] == "failed: SLURM says TIMEOUT"


def test_what_status_shows(folder: RunFolder, fake_slurm: FakeSlurm) -> None:
    log = hand_over(folder, "pretrain", "55_3")
    log.write_text("hello\n")
    fake_slurm.queue({"55_3": "RUNNING"})
    for _ in range(3):
        process = "from mmssl.recipe import load; from mmssl.pipeline.run_folder import RunFolder;"
        code = f"{process} RunFolder(load('recipe.yaml')).begin('pretrain', ['mmssl'])"
        subprocess.run([sys.executable, "-c", code], check=True)
    records = [{"kind": "step", "step": n, "round": 1, "loss": 3.0 - n / 10} for n in range(1, 6)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder.path / "log.jsonl").write_text(lines + '{"kind": "ste')
    env = {**os.environ}
    done = mmssl("status", "runs/small", cwd=Path(), env=env)
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = [line for line in done.stdout.splitlines() if "pretrain " in line and "│" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    # 2 rounds of 2 epochs of 32 samples in batches of 8; three starts are two restarts.
    assert cells == ["pretrain", "running", "55_3", "5/16 steps", "2.500", "2"]
    assert f"pretrain: {log}" in done.stdout.replace("\n", " ")


@pytest.mark.parametrize("verb", ["status", "logs", "cancel", "compare"])
def test_a_run_that_is_not_there(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(verb, "nothing") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("mmssl: there is no run 'nothing': neither a run's folder nor the name")


@pytest.mark.parametrize("verb", ["status", "logs", "cancel", "compare"])
def test_they_import_nothing_heavy(verb: str, folder: RunFolder, fake_slurm: FakeSlurm) -> None:
    hand_over(folder, "pretrain", "7").write_text("line\n")
    code = (
        "import sys; from mmssl.cli import main\n"
        f"sys.argv = ['mmssl', {verb!r}, 'small']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print([m for m in ('torch', 'numpy', 'submitit', 'av') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_logs(folder: RunFolder, fake_slurm: FakeSlurm, capfd: pytest.CaptureFixture[str]) -> None:
    assert command("logs", "small") == 2
    assert "was not launched as a job" in capfd.readouterr().err
    log = hand_over(folder, "pretrain", "7")
    hand_over(folder, "clusters", "8")
    fake_slurm.queue({"7": "RUNNING", "8": "PENDING|Dependency"})
    assert command("logs", "small") == 0
    assert capfd.readouterr().out == "pretrain is running: it has printed nothing yet\n"
    log.write_text("submitit INFO (2026) - Starting\nround 1\nno end yet")
    assert command("logs", "small", "pretrain") == 0
    assert capfd.readouterr().out == "round 1\nno end yet\n"
    assert command("logs", "small", "clusters") == 0
    assert "clusters is waiting for pretrain" in capfd.readouterr().out
    assert command("logs", "small", "clusterz") == 2
    assert "there are: pretrain, clusters" in capfd.readouterr().err


def test_logs_are_followed_until_the_stage_ends(folder: RunFolder, fake_slurm: FakeSlurm) -> None:
    log = hand_over(folder, "pretrain", "7")
    log.write_text("first\n")
    fake_slurm.queue({"7": "RUNNING"})
    words = [sys.executable, "-c", "from mmssl.cli import main; main()", "logs", "small", "-f"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "first\n"
        with open(log, "a") as file:
            file.write("second\n")
        assert follower.stdout.readline() == "second\n"
        with open(log, "a") as file:
            file.write("last")
        folder.finish("pretrain")
        assert follower.stdout.read() == "last\n"
        assert follower.wait(30) == 0


def test_cancel(
    folder: RunFolder, fake_slurm: FakeSlurm, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("cancel", "small") == 0
    assert capfd.readouterr().out == "runs/small: nothing runs\n"
    hand_over(folder, "pretrain", "7")
    hand_over(folder, "clusters", "8")
    fake_slurm.queue({"7": "RUNNING", "8": "PENDING|Dependency"})
    assert command("cancel", "small") == 0
    assert capfd.readouterr().out.splitlines() == [
        "runs/small: pretrain: cancelled job 7",
        "runs/small: clusters: cancelled job 8",
    ]
    assert fake_slurm.calls("scancel") == ["7 8"]


def test_only_the_process_that_was_started_is_stopped(folder: RunFolder) -> None:
    """Numbers of processes come again: another one must not be taken for a local job's."""
    stranger: Any
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        hand_over(folder, "pretrain", str(stranger.pid), "local")
        assert states(folder)[0] == "not started"
        assert command("cancel", "small") == 0
        time.sleep(0.2)
        assert stranger.poll() is None
        stranger.kill()
    logs = str(folder.path.absolute() / "jobs" / "pretrain")
    # As submitit starts what controls local ranks.
    words = ["-c", "import time; time.sleep(60)", "submitit.local._local", logs]
    with subprocess.Popen([sys.executable, *words]) as ours:
        hand_over(folder, "pretrain", str(ours.pid), "local")
        assert states(folder)[0] == "running"
        assert command("cancel", "small") == 0
        assert ours.wait(30) == -signal.SIGTERM
