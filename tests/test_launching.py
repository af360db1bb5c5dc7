"""Launchers: local processes for real, SLURM's scripts as bash runs them."""

import json
import os
import pickle
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm, fake_slurm
from small_runs import RECIPE, Started, environment, leftovers, mmssl, outcome, steps

from mmssl.cli import main
from mmssl.errors import UserError
from mmssl.pipeline.jobs import Stage, load_run
from mmssl.pipeline.records import Records
from mmssl.pipeline.run_folder import RunFolder
from mmssl.recipe import load

__all__ = ["fake_slurm"]

EVALUATIONS = """\
evaluations:
  clusters: {use: clusters}
"""
LOCAL = ("--launch", "local", "launch.processes=2")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a recipe."""
    (tmp_path / "recipe.yaml").write_text(RECIPE + EVALUATIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(*arguments: str) -> int:
    """The exit code of ``mmssl run recipe.yaml ...`` in this process."""
    before, sys.argv = sys.argv, ["mmssl", "run", "recipe.yaml", *arguments]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    raise AssertionError("main returned")


# Local processes


@pytest.mark.slow
def test_local_processes_are_stopped_by_ctrl_c_and_go_on_as_if_never_stopped(
    tmp_path: Path,
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE + EVALUATIONS)
    done = mmssl("run", "recipe.yaml", "name=whole", *LOCAL, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line for line in lines if "stage" in line] == ["stage: pretrain", "stage: clusters"]
    assert any(line.startswith("round  2/2  video") for line in lines), "rank 0 is heard"
    assert lines[-1] == "run folder: runs/whole"
    whole = tmp_path / "runs" / "whole"
    assert steps(whole) == 16
    for stage in ("pretrain", "clusters"):
        job = json.loads((whole / "jobs" / f"{stage}.json").read_text())
        assert (job["launcher"], job["ranks"]) == ("local", 2)
        assert job["command"][1:3] == ["run", "recipe.yaml"]
        ranks = {path.name for path in Path(job["folder"]).glob("*_log.out")}
        assert ranks == {f"{job['job']}_{rank}_log.out" for rank in (0, 1)}
    starts = json.loads((whole / "provenance.json").read_text())
    assert [start["stages"] for start in starts] == [["pretrain"], ["clusters"]]

    started = Started("run", "recipe.yaml", "name=cut", *LOCAL, cwd=tmp_path)
    cut = tmp_path / "runs" / "cut"
    started.wait_until(lambda: steps(cut) >= 5)
    started.signal_all(signal.SIGINT)
    assert started.wait() == 130
    assert started.err.read_text().splitlines() == [
        "mmssl: interrupted; nothing is lost: run the same command to go on in runs/cut"
    ]
    assert started.all_gone(1)
    assert steps(cut) < 16
    saved = max(int(path.stem[5:]) for path in cut.glob("checkpoints/step-*.pt"))
    assert saved == steps(cut), "the step at which it was stopped is not lost"
    assert Records(cut).ended("pretrain") is not None

    done = mmssl("run", "recipe.yaml", "name=cut", *LOCAL, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert outcome(cut) == outcome(whole)
    assert Records(cut).ended("pretrain") is None
    assert leftovers(cut) == []


def test_a_mistake_of_a_local_process_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = mmssl("run", "recipe.yaml", "training.optimizer.lr=1e30", *LOCAL, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("mmssl: the loss is nan at round 1, step 2")
    assert "Traceback" not in done.stdout
    shown = mmssl("status", "small", cwd=tmp_path).stdout
    assert "failed: the loss is nan" in shown


def test_ranks_that_torchrun_starts_are_one_run(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node=2", "--no-python", "mmssl", "run", "recipe.yaml"]
    env = environment(tmp_path)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"

    def started(*overrides: str) -> subprocess.CompletedProcess[str]:
        words = [*command, *overrides]
        return subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)

    done = started("training.epochs=1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("stage: pretrain") == 1
    assert lines.count("run folder: runs/small") == 1
    (start,) = json.loads((tmp_path / "runs/small/provenance.json").read_text())
    assert start["stages"] == ["pretrain"]
    assert steps(tmp_path / "runs" / "small") == 8

    done = started("seed=2")
    assert done.returncode
    told = [line for line in done.stderr.splitlines() if line.startswith("mmssl: ")]
    assert len(told) == 1
    assert "holds a run of another recipe (" in told[0]


# What is pickled, and locks


def test_a_job_is_a_folder_and_a_name(tmp_path: Path) -> None:
    stage = Stage(str(tmp_path / "a: b ${HOME}" / "007"), "pretrain")
    again = stage.checkpoint()
    assert again.function == stage
    assert not again.args
    pickled = pickle.dumps(stage)
    assert len(pickled) < 300
    code = f"import pickle, sys; pickle.loads({pickled!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n", "signals before torch is imported would kill the job"

    # Wherever the folder is by now, and whatever YAML makes of its name.
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    folder = RunFolder(load(tmp_path / "recipe.yaml", [f"runs={tmp_path}", 'name="007"']))
    folder.prepare()
    moved = Path(stage.folder)
    moved.parent.mkdir()
    folder.path.rename(moved)
    recipe = load_run(moved)
    assert RunFolder(recipe).path == moved
    assert RunFolder(recipe).fingerprint("pretrain") == folder.fingerprint("pretrain")


HOLD = """
import sys
from mmssl.pipeline.run_folder import RunFolder
from mmssl.recipe import load
with RunFolder(load("recipe.yaml")).locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_stages_of_a_run_may_be_at_work_and_one_only_once(place: Path) -> None:
    folder = RunFolder(load("recipe.yaml"))
    pipe = subprocess.PIPE
    with (
        folder.locked("clusters"),
        subprocess.Popen([sys.executable, "-c", HOLD, "pretrain"], stdin=pipe, stdout=pipe) as held,
    ):
        assert held.stdout is not None
        assert held.stdout.readline() == b"held\n"
        assert Records(folder.path).held("pretrain")
        with pytest.raises(UserError, match="stage pretrain of runs/small is in use by another"):
            folder.locked("pretrain").__enter__()
        with folder.locked():
            pass
        held.kill()
        held.wait()
        assert not Records(folder.path).held("pretrain")
        with folder.locked("pretrain"):
            pass


# SLURM


def submitted(fake: FakeSlurm, *arguments: str) -> int:
    return run("--launch", "slurm", *arguments)


def test_stages_are_submitted_at_once_and_evaluations_wait(
    place: Path, fake_slurm: FakeSlurm, capfd: pytest.CaptureFixture[str]
) -> None:
    resources = [
        "launch.nodes=2",
        "launch.gpus_per_node=4",
        "launch.memory=1.5",
        "launch.timeout=1-02:03:04",
        "launch.setup=[module load cuda]",
        "launch.sbatch={mail-user: me@example.org, exclusive: true}",
        "launch.stages.evaluations={nodes: 1, timeout: 5}",
        "launch.stages.clusters={gpus_per_node: 0, timeout: 30}",
    ]
    assert submitted(fake_slurm, *resources, "training.batch_size=16") == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert "small: pretrain submitted as job 101\n" in printed.out
    assert "small: clusters submitted as job 102, after job 101\n" in printed.out
    assert "  mmssl status runs/small\n" in printed.out

    first, second = fake_slurm.options("101"), fake_slurm.options("102")
    expected = {
        "job-name": "small.pretrain",
        "nodes": "2",
        "gpus-per-node": "4",
        "ntasks-per-node": "4",
        "cpus-per-task": "2",  # one loader process
        "mem": "1536M",
        "time": str((24 + 2) * 60 + 3 + 1),
        "mail-user": "me@example.org",
        "signal": "USR2@120",
    }
    assert {name: first.get(name) for name in expected} == expected
    assert {"exclusive", "requeue"} <= first.keys()
    assert not {"wckey", "partition", "dependency", "account", "error"} & first.keys()
    expected = {"nodes": "1", "ntasks-per-node": "1", "time": "30", "dependency": "afterok:101"}
    assert {name: second.get(name) for name in expected} == expected
    assert "gpus-per-node" not in second
    assert "module load cuda" in fake_slurm.scripts()["101"].splitlines()
    assert "module load cuda" in fake_slurm.scripts()["102"].splitlines()

    records = Records(place / "runs" / "small")
    job = records.job("clusters")
    assert job is not None
    assert (job.job, job.after, job.ranks) == ("102", "101", 1)
    pickles = list(Path(job.folder).glob("*.pkl"))
    assert [path.name for path in pickles] == ["102_submitted.pkl"]
    assert list(Path(job.folder).glob(".*")) == []


@pytest.mark.parametrize(
    ("queue", "accounts", "again", "cancelled"),
    [
        ({"101": "RUNNING", "102": "PENDING|Dependency"}, {}, [], []),
        ({"101": "PENDING", "102": "PENDING|Dependency"}, {}, [], []),
        (
            {"102": "PENDING|DependencyNeverSatisfied"},
            {"101": "CANCELLED by 0"},
            [("pretrain", None), ("clusters", "afterok:103")],
            ["102"],
        ),
        (
            {"101": "FAILED", "102": "PENDING|Dependency"},
            {},
            [("pretrain", None), ("clusters", "afterok:103")],
            ["102"],
        ),
        ({}, {}, [("pretrain", None), ("clusters", "afterok:103")], []),
        ({"101": "RUNNING", "102": "CANCELLED"}, {}, [("clusters", "afterok:101")], []),
        ("finished", {}, [("clusters", None)], []),
    ],
    ids=["running", "queued", "cancelled", "failed", "forgotten", "one cancelled", "finished"],
)
def test_what_lives_is_not_submitted_twice_and_what_died_is(
    queue: Any,
    accounts: dict[str, str],
    again: list[tuple[str, str | None]],
    cancelled: list[str],
    place: Path,
    fake_slurm: FakeSlurm,
) -> None:
    assert submitted(fake_slurm) == 0
    if queue == "finished":
        folder = RunFolder(load("recipe.yaml"))
        folder.finish("pretrain")
        queue = {"101": "COMPLETED", "102": "FAILED"}
    fake_slurm.queue(queue)
    fake_slurm.accounts(accounts)
    assert submitted(fake_slurm) == 0
    new = [fake_slurm.options(job) for job in fake_slurm.scripts() if int(job) > 102]
    found = [(o["job-name"].removeprefix("small."), o.get("dependency")) for o in new]
    assert found == again
    assert fake_slurm.calls("scancel") == cancelled


@pytest.mark.parametrize(
    ("code", "variables", "failed", "expected", "requeued"),
    [
        (0, {}, "", 0, False),
        (2, {}, "", 2, False),
        (1, {}, "", 1, False),
        (143, {}, "", 143, False),
        (137, {}, "", 137, True),
        (139, {"SLURM_RESTART_COUNT": "9"}, "", 139, True),  # preempted, which does not count
        (137, {}, "101_lost", 137, False),
        (137, {}, "101_failed", 137, False),
        (137, {"SLURM_ARRAY_JOB_ID": "90", "SLURM_ARRAY_TASK_ID": "4"}, "101_failed", 137, True),
        (137, {"SLURM_ARRAY_JOB_ID": "90", "SLURM_ARRAY_TASK_ID": "4"}, "90_4_failed", 137, False),
    ],
)
def test_the_script_starts_a_killed_job_again_and_no_failed_one(
    code: int,
    variables: dict[str, str],
    failed: str,
    expected: int,
    requeued: bool,
    place: Path,
    fake_slurm: FakeSlurm,
) -> None:
    assert submitted(fake_slurm, "launch.max_requeues=3", "evaluations=") == 0
    job = Records(place / "runs" / "small").job("pretrain")
    assert job is not None
    if failed:
        (Path(job.folder) / failed).write_text("3")
    env = {**os.environ, **variables, "FAKE_CODE": str(code), "SLURM_JOB_ID": "101"}
    done = subprocess.run(["bash", fake_slurm.folder / "101.sh"], env=env, timeout=60)
    assert done.returncode == expected, "afterok must see how srun ended"
    # The fake scontrol fails; the real one ends the script while it sleeps.
    # By its number in the array: the number of one member is that of the whole array.
    number = "90_4" if "SLURM_ARRAY_JOB_ID" in variables else "101"
    assert fake_slurm.calls("scontrol") == [f"requeue {number}"] * requeued
    words = (fake_slurm.folder / "srun.txt").read_text().splitlines()
    assert {"--kill-on-bad-exit=1", "--cpus-per-task=2"} <= set(words)
    assert words[-3:] == ["-m", "submitit.core._submit", job.folder]


def test_a_line_of_setup_that_fails_fails_the_job(place: Path, fake_slurm: FakeSlurm) -> None:
    assert submitted(fake_slurm, "launch.setup=['false']", "evaluations=") == 0
    done = subprocess.run(["bash", fake_slurm.folder / "101.sh"], timeout=60)
    assert done.returncode == 1
    assert fake_slurm.calls("srun") == []


HOSTILE = "a; touch {out} $(touch {out}) `touch {out}` | touch {out} '\"' && touch {out} #"


@pytest.mark.parametrize("field", ["partition", "constraint", "account", "sbatch.comment"])
def test_no_value_of_a_recipe_runs_in_the_shell(
    field: str, place: Path, fake_slurm: FakeSlurm
) -> None:
    out = place / "injected"
    value = HOSTILE.format(out=out)
    srun = json.dumps([f"--comment={value}", f"$(touch {out})\"'"])
    overrides = [f"launch.{field}={json.dumps(value)}", f"launch.srun={srun}", "evaluations="]
    assert submitted(fake_slurm, *overrides) == 0
    script = fake_slurm.folder / "101.sh"
    assert value.split("'")[0] in script.read_text()
    subprocess.run(["bash", script], check=True, timeout=60)
    assert not out.exists()
    words = (fake_slurm.folder / "srun.txt").read_text().splitlines()
    assert f"--comment={value}" in words
    prefix = f"#SBATCH --{field.removeprefix('sbatch.')}="
    (line,) = [x for x in script.read_text().splitlines() if x.startswith(prefix)]
    assert shlex.split(line.removeprefix(prefix)) == [value]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('launch.partition="a\\ntouch b"', "launch.partition: expected text on one line"),
        ('launch.sbatch={comment: "a\\ntouch b"}', "launch.sbatch.comment: expected"),
        ('launch.sbatch={"x y": 1}', "launch.sbatch.x y"),
        ("launch.stages={clusterz: {nodes: 1}}", "no such stage; did you mean 'clusters'?"),
        ("launch.stages={clusters: {node: 1}}", "unknown key; did you mean 'nodes'?"),
        ("launch.timeout=an hour", "launch.timeout: expected"),
        ("launch.nodes=0", "launch.nodes: expected a whole number > 0"),
        ("runs=50%", "runs: SLURM reads more into '%'"),
        ("launch.nodes=3", "training.batch_size: 8 samples are not equal parts for 3 ranks"),
    ],
)
def test_mistakes_in_the_launch_block(
    override: str,
    message: str,
    place: Path,
    fake_slurm: FakeSlurm,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert submitted(fake_slurm, override) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("mmssl: command line: ") or "recipe.yaml:" in line
    assert message in line
    assert fake_slurm.scripts() == {}


def test_what_the_cluster_refuses_is_told_in_its_words(
    place: Path, fake_slurm: FakeSlurm, capfd: pytest.CaptureFixture[str]
) -> None:
    fake_slurm.refuse("sbatch: error: invalid partition specified: x\nsbatch: error: Batch failed")
    assert submitted(fake_slurm, "launch.partition=x") == 2
    assert capfd.readouterr().err == (
        "mmssl: SLURM refuses the job of stage pretrain: invalid partition specified: x; Batch "
        "failed\n"
    )
    assert Records(place / "runs" / "small").job("pretrain") is None
    assert [path.name for path in place.glob("runs/small/jobs/pretrain/*")] == []
    assert leftovers(place / "runs" / "small") == []


def test_without_slurm_it_says_so(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "empty").mkdir()
    monkeypatch.setenv("PATH", str(place / "empty"))
    assert run("--launch", "slurm") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("mmssl: there is no sbatch on this machine: start the run on a login")
