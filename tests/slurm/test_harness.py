"""The cluster does what tests rely on, as a real one does. Nothing here needs ``mmssl``."""

import socket
import sys
import time
from pathlib import Path

import pytest
from cluster import Cluster

# Tasks that say which signals reach them, and go on; from the second start on, they end at once.
STUBBORN = """\
import os, signal, time

for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: print(signal.Signals(number).name, flush=True))
print("start", os.environ.get("SLURM_RESTART_COUNT", "0"), flush=True)
while "SLURM_RESTART_COUNT" not in os.environ:
    time.sleep(0.1)
"""

ALL_REDUCE = """\
import os, sys
import torch
import torch.distributed as dist

rank, ranks = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
dist.init_process_group("gloo", init_method=sys.argv[1], rank=rank, world_size=ranks)
total = torch.tensor([2.0 ** rank])
dist.all_reduce(total)
print(os.environ["SLURMD_NODENAME"], rank, total.item())
dist.destroy_process_group()
"""


def batch(folder: Path, text: str) -> Path:
    path = folder / "job.sh"
    path.write_text(f"#!/bin/bash\nset -e\ncd {folder}\n{text}\n")
    return path


def stubborn(folder: Path) -> Path:
    (folder / "stubborn.py").write_text(STUBBORN)
    return batch(folder, f"srun {sys.executable} stubborn.py")


def wait_for(path: Path, text: str, seconds: float) -> None:
    """Until a job has written this."""
    deadline = time.monotonic() + seconds
    while not path.is_file() or text not in path.read_text():
        assert time.monotonic() < deadline, f"no {text!r} in {path}"
        time.sleep(0.1)


def accounted(cluster: Cluster, job: str, states: list[str]) -> None:
    """Accounting, which lags by some seconds, has these states, one for each start of the job."""
    deadline = time.monotonic() + 60
    found: list[str] = []
    while found != states:
        assert time.monotonic() < deadline, f"{found} and not {states}"
        found = cluster.run(
            *("sacct", "--allocations", "--duplicates", "--noheader", "--parsable2"),
            *("--format=State%-9", f"--jobs={job}"),
        ).splitlines()
        found = [state.split()[0] for state in found]  # "CANCELLED by 0"
        time.sleep(0.2)


def test_srun_over_two_nodes(cluster: Cluster) -> None:
    assert sorted(cluster.run("srun", "-N2", "printenv", "SLURMD_NODENAME").split()) == sorted(
        cluster.nodes
    )
    names = cluster.run("srun", "-N2", "hostname").split()
    assert sorted(names) == (["n1", "n2"] if cluster.namespaces else [socket.gethostname()] * 2)


def test_gpus_that_are_asked_for_are_named(cluster: Cluster) -> None:
    visible = ("printenv", "CUDA_VISIBLE_DEVICES")
    assert cluster.run("srun", "--gpus-per-node=2", *visible) == "0,1"
    assert cluster.run("srun", "-N2", "--gpus-per-node=1", *visible).split() == ["0", "0"]
    with pytest.raises(RuntimeError, match="Requested node configuration is not available"):
        cluster.run("srun", "--gpus-per-node=3", *visible)


def test_dependent_jobs_run_in_order(cluster: Cluster, tmp_path: Path) -> None:
    first = cluster.submit(batch(tmp_path, "sleep 1; echo first >> order"))
    second = cluster.submit(
        batch(tmp_path, "echo second >> order"), f"--dependency=afterok:{first}"
    )
    assert cluster.state(second) == "PENDING"
    cluster.wait_for_state(second, "COMPLETED", 60)
    assert (tmp_path / "order").read_text().split() == ["first", "second"]


def test_accounting_knows_how_jobs_ended(cluster: Cluster, tmp_path: Path) -> None:
    completed = cluster.submit(batch(tmp_path, "true"))
    failed = cluster.submit(batch(tmp_path, "exit 3"))
    cancelled = cluster.submit(batch(tmp_path, "sleep 1000"))
    # Jobs of two nodes overtake each other: the others have ended before what is left is cancelled.
    for job, state in ((completed, "COMPLETED"), (failed, "FAILED"), (cancelled, "RUNNING")):
        cluster.wait_for_state(job, state, 60)
    cluster.cancel_all()
    for job, state in ((completed, "COMPLETED"), (failed, "FAILED"), (cancelled, "CANCELLED")):
        assert cluster.state(job) == state
        accounted(cluster, job, [state])


def test_requeued_job_runs_again(cluster: Cluster, tmp_path: Path) -> None:
    text = (
        'echo start ${SLURM_RESTART_COUNT:-0} >> starts; [ "$SLURM_RESTART_COUNT" ] || sleep 1000'
    )
    job = cluster.submit(batch(tmp_path, text))
    starts = tmp_path / "starts"
    wait_for(starts, "start 0", 60)
    cluster.requeue(job)
    cluster.wait_for_state(job, "COMPLETED", 60)
    assert starts.read_text().splitlines() == ["start 0", "start 1"]
    assert cluster.restarts(job) == 1
    accounted(cluster, job, ["REQUEUED", "COMPLETED"])


def test_jobs_of_high_preempt_those_of_low(cluster: Cluster, tmp_path: Path) -> None:
    """Tasks get SIGTERM at once; those still there at the end of the grace time are killed."""
    both = ("-N2", "--exclusive")
    low = cluster.submit(stubborn(tmp_path), "--partition=low", "--open-mode=append", *both)
    output = tmp_path / f"{low}.out"
    wait_for(output, "start 0\nstart 0", 60)
    (tmp_path / "high").mkdir()
    high = cluster.submit(batch(tmp_path / "high", "true"), "--partition=high", *both)
    wait_for(output, "SIGTERM", 60)
    assert cluster.state(high) == "PENDING"
    assert cluster.state(low) == "RUNNING"
    cluster.wait_for_state(high, "COMPLETED", 60)
    cluster.wait_for_state(low, "COMPLETED", 60)
    assert cluster.restarts(low) == 1
    accounted(cluster, low, ["PREEMPTED", "COMPLETED"])


@pytest.mark.slow
def test_node_is_lost_and_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    """Meanwhile the other node goes on: a job there gets its signal before its time limit.

    SLURM looks at time limits every half minute, and may send a signal a minute too early.
    """
    for name in ("limited", "again", "fails"):
        (tmp_path / name).mkdir()
    kept, lost = (f"--nodelist={node}" for node in cluster.nodes)
    limits = ("--time=1", "--signal=USR1@55")
    limited = cluster.submit(stubborn(tmp_path / "limited"), kept, *limits)
    again = cluster.submit(stubborn(tmp_path / "again"), lost, "--open-mode=append")
    fails = cluster.submit(stubborn(tmp_path / "fails"), "-N2", "--no-requeue")
    wait_for(tmp_path / "again" / f"{again}.out", "start 0", 60)
    wait_for(tmp_path / "fails" / f"{fails}.out", "start 0\nstart 0", 60)

    cluster.take_node_down(cluster.nodes[1])
    cluster.wait_for_state(fails, "NODE_FAIL", 60)
    cluster.wait_for_state(again, "PENDING", 60)
    wait_for(tmp_path / "limited" / f"{limited}.out", "start 0\nSIGUSR1", 60)
    assert cluster.state(limited) == "RUNNING"

    cluster.bring_node_up(cluster.nodes[1])
    cluster.wait_for_state(again, "COMPLETED", 60)
    output = (tmp_path / "again" / f"{again}.out").read_text()
    assert output.splitlines() == ["start 0", "start 1"]
    accounted(cluster, again, ["NODE_FAIL", "COMPLETED"])
    accounted(cluster, fails, ["NODE_FAIL"])


def test_torch_distributed_over_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "all_reduce.py").write_text(ALL_REDUCE)
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = f"tcp://{cluster.nodes[0]}:{free.getsockname()[1]}"
    command = ("srun", "-N2", sys.executable, str(tmp_path / "all_reduce.py"), place)
    lines = sorted(cluster.run(*command, seconds=120).splitlines())
    assert lines == [f"{node} {rank} 3.0" for rank, node in enumerate(cluster.nodes)]
