"""Several processes that train as one: who they are, and what they tell each other.

Every rank runs the same code on its share of each global batch. One rule makes N ranks compute
what one process would:

**the mean over ranks of a loss is the loss of the global batch.**

DDP averages gradients over ranks, so a plain mean over a rank's rows keeps the rule. A loss that
some rows do not take part in divides by their number over all ranks (`global_mean`), and one that
compares rows with each other gathers them first (`gather`). In a single process every function
here does nothing, or what is said of one rank.

Small things, numbers and rows on the CPU, travel by gloo; tensors on a GPU by NCCL.
"""

import datetime
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from mmssl.errors import UserError

T = TypeVar("T")

# How long ranks wait for each other: at the start, and for the slowest share of a pass.
_START = datetime.timedelta(minutes=10)
_WAIT = datetime.timedelta(hours=4)

# A cluster ends a job when one of its processes fails; rank 0 may be having it started again.
_LINGER = 3.0

# Seconds until a file that another machine wrote must be seen on a shared file system.
_SHOWN_AFTER = 120.0

_ERROR = "mmssl/error"


@dataclass(frozen=True)
class Place:
    """Where this process stands among those that train together.

    Attributes:
        rank: 0 for the main one, which writes and talks.
        size: the number of processes.
        local_rank: its number on this machine.
        local_size: processes on this machine.
        address: host of rank 0.
        port: where rank 0 listens.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0


def place() -> Place:
    """This process's place, as torchrun, submitit or srun say in the environment."""
    env = os.environ
    if env.get("WORLD_SIZE", "1") != "1" and "MASTER_PORT" in env and "RANK" in env:
        size = int(env["WORLD_SIZE"])
        local = int(env.get("LOCAL_RANK", "0")), int(env.get("LOCAL_WORLD_SIZE", "1"))
        return Place(int(env["RANK"]), size, *local, env["MASTER_ADDR"], int(env["MASTER_PORT"]))
    if env.get("SUBMITIT_EXECUTOR") == "local":
        size = int(env["SUBMITIT_LOCAL_NTASKS"])
        rank = int(env["SUBMITIT_LOCAL_GLOBALID"])
        port = int(env.get("MASTER_PORT", "0"))
        return Place(rank, size, rank, size, "127.0.0.1", port)
    # Only a step that srun began has its processes started; a batch script runs once.
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in env:
        from submitit.slurm.slurm import SlurmJobEnvironment

        class Step(SlurmJobEnvironment):  # a step may have some of its job's nodes only
            _env: ClassVar = {**SlurmJobEnvironment._env, "nodes": "SLURM_STEP_NODELIST"}

        size = int(env["SLURM_STEP_NUM_TASKS"])
        local_size = int(env.get("SLURM_NTASKS_PER_NODE") or _tasks_here(env, size))
        # Below the ports that systems hand out by themselves, and another one for each job.
        port = 20_000 + (int(env["SLURM_JOB_ID"]) * 7 + int(env.get("SLURM_STEP_ID", "0"))) % 12_000
        host = Step().hostnames[0]
        rank, local_rank = int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"])
        return Place(rank, size, local_rank, local_size, host, port)
    return Place()


def _tasks_here(env: "os._Environ[str]", size: int) -> int:
    """``2(x3),1`` tasks on the step's nodes: those of this node."""
    counts: list[int] = []
    for part in env.get("SLURM_STEP_TASKS_PER_NODE", str(size)).split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    node = int(env.get("SLURM_NODEID", "0"))
    return counts[node] if node < len(counts) else 1


@contextmanager
def joined(device_type: str) -> Iterator[Place]:
    """Join the other ranks, where there are any, for as long as the context lasts.

    Args:
        device_type: ``"cuda"`` or ``"cpu"``, where tensors will be.

    Raises:
        UserError: the others cannot be reached, or one of them ended; its own mistake, where it
            was one, is what rank 0 raises then.
    """
    here = place()
    if here.size == 1 or dist.is_initialized():
        yield here
        return
    os.environ |= {
        "RANK": str(here.rank),
        "WORLD_SIZE": str(here.size),
        "LOCAL_RANK": str(here.local_rank),
        "LOCAL_WORLD_SIZE": str(here.local_size),
        "MASTER_ADDR": here.address,
        "MASTER_PORT": str(here.port),
    }
    where = f"rank {here.rank} of {here.size}"
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=_START)))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=_WAIT,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{where} cannot reach rank 0 at {here.address}:{here.port}: {reason}; do the "
            "machines' names resolve, and is GLOO_SOCKET_IFNAME needed?"
        ) from error
    try:
        yield here
        dist.barrier()  # rank 0 keeps the store; it may go last only
    except UserError as error:
        if rank != 0:
            store.set(_ERROR, f"rank {rank}: {error}")
        raise
    except RuntimeError as error:
        if not is_lost(error):
            raise
        if rank != 0:
            time.sleep(_LINGER)
        raise UserError(_cause(store, where, error)) from error
    finally:
        dist.destroy_process_group()


def is_lost(error: RuntimeError) -> bool:
    """Does an error say that another rank has gone?"""
    text = str(error)
    return isinstance(error, dist.DistError) or "gloo" in text or "Connection closed" in text


def _cause(store: Store, where: str, error: RuntimeError) -> str:
    """What the rank that ended said of it, if it said anything."""
    try:
        if store.check([_ERROR]):
            return store.get(_ERROR).decode()
    except RuntimeError:
        pass  # rank 0 has gone, and with it what anybody said
    reason = str(error).partition("\n")[0]
    return f"{where}: another process of this run has ended, its own log tells why ({reason})"


_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """Within it this rank computes as if there were no others."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def rank() -> int:
    """0 for the main rank."""
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


def size() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def is_main() -> bool:
    """Is this the rank that writes and talks?"""
    return rank() == 0


def share(count: int) -> range:
    """This rank's consecutive part of ``range(count)``; parts differ by one at most."""
    return range(rank() * count // size(), (rank() + 1) * count // size())


def maximum(values: Sequence[int]) -> list[int]:
    """The largest of each value over all ranks: what ranks decide together."""
    if size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return [int(value) for value in tensor]


def total(values: Tensor) -> Tensor:
    """The sum over all ranks, without gradients, in a new tensor on the same device."""
    if size() == 1:
        return values.detach()
    summed = values.detach().clone()
    dist.all_reduce(summed)
    return summed


def mean(values: Tensor) -> Tensor:
    """The mean over all ranks, without gradients."""
    return total(values) / size()


def from_main(tensors: Iterable[Tensor]) -> None:
    """Give every rank the values of rank 0, in place."""
    if size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def global_mean(summed: Tensor, count: Tensor) -> Tensor:
    """A mean over some rows of the global batch, of which each rank has its share.

    Args:
        summed: scalar, the sum over this rank's rows that count; with gradients.
        count: scalar, the `total` number of such rows, over all ranks.

    Returns:
        A scalar whose mean over ranks is the mean over all rows that count, 0 where none does.
    """
    return summed * size() / count.clamp(min=1)


class _Gather(torch.autograd.Function):
    """All ranks' rows forwards; backwards, the sum of all ranks' gradients of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.length = len(rows)
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)  # gloo cannot scatter what it reduces
        return summed[rank() * ctx.length : (rank() + 1) * ctx.length]


def gather(rows: Tensor) -> Tensor:
    """The rows of all ranks, in the order of ranks, with gradients to each of them.

    A rank's own rows begin at ``rank() * B``. If every rank takes the mean of a loss over its own
    rows, each against the rows of all, then the mean over ranks is the loss of the global batch
    and its gradients are those of one process.

    Args:
        rows: ``[B, ...]``, of the same shape on every rank.

    Returns:
        ``[size() * B, ...]``.
    """
    return rows if size() == 1 else _Gather.apply(rows)


def collect(rows: np.ndarray) -> np.ndarray | None:
    """The rows of all ranks on rank 0, in the order of ranks; None on the others.

    Args:
        rows: ``[n, ...]``; n may differ between ranks, and be 0.
    """
    if size() == 1:
        return rows
    rows = np.ascontiguousarray(rows)
    shapes = share_objects(rows.shape)
    lengths = [shape[0] for shape in shapes]
    # A rank without rows may not know how wide they are.
    width = next((shape[1:] for shape in shapes if shape[0]), rows.shape[1:])
    if not is_main():
        if len(rows):
            dist.send(_bytes(rows), dst=0)
        return None
    everything = np.empty((sum(lengths), *width), rows.dtype)
    if lengths[0]:
        everything[: lengths[0]] = rows
    done = lengths[0]
    for source, length in enumerate(lengths[1:], start=1):
        if length:
            dist.recv(_bytes(everything[done : done + length]), src=source)
        done += length
    return everything


def _bytes(rows: np.ndarray) -> Tensor:
    """The memory of contiguous rows, whatever their dtype."""
    return torch.from_numpy(rows.reshape(-1).view(np.uint8))


def share_objects(value: T) -> list[T]:
    """Every rank's value, in the order of ranks. Small things only: they are pickled."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def on_main(function: Callable[[], T]) -> T:
    """What a function returns on rank 0, for all ranks; only rank 0 calls it.

    Raises:
        UserError: as the function does, on every rank.
    """
    if size() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome = [function(), None]
        except UserError as error:
            outcome = [None, str(error)]
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise UserError(outcome[1])
    return outcome[0]


def shown(path: Path) -> Path:
    """The path of a file that another rank wrote, once this one sees it.

    Raises:
        UserError: it does not within two minutes.
    """
    deadline = time.monotonic() + _SHOWN_AFTER
    while not path.is_file():
        if size() == 1 or time.monotonic() > deadline:
            raise UserError(f"{path} is missing; is its folder shared by all nodes?")
        time.sleep(0.2)
    return path


def main_first(function: Callable[[], T]) -> T:
    """What a function returns, called on rank 0 before the others: they find what it made."""
    if size() == 1:
        return function()
    result: Any = None

    def first() -> None:
        nonlocal result
        result = function()

    on_main(first)
    return result if is_main() else function()
