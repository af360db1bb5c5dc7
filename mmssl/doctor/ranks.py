"""Several processes: an all-reduce that two of them really do, over gloo and, on GPUs, NCCL."""

import os
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from mmssl.doctor import Doing, Finding

_WAIT = timedelta(seconds=10)


def look() -> Iterator[Finding | Doing]:
    """One line for each way."""
    yield Doing("import torch")
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        yield Finding("ranks", "warning", "torch has no distributed package", "train on one device")
        return
    yield Doing("an all-reduce of two processes over gloo")
    yield _all_reduce("gloo", 2)
    if torch.cuda.device_count() and dist.is_nccl_available():  # counting opens no device
        ranks = min(2, torch.cuda.device_count())
        yield Doing(f"an all-reduce of {ranks} GPUs over NCCL")
        yield _all_reduce("nccl", ranks)


def _all_reduce(backend: str, ranks: int) -> Finding:
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        children = {}
        for rank in range(ranks):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    code = _rank(backend, rank, ranks, Path(folder))
                finally:
                    os._exit(code)
            children[child] = rank
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        said = [file.read_text() for file in sorted(Path(folder).glob("error-*"))]
    if not any(codes):
        found = f"{ranks} process{'es' if ranks > 1 else ''} summed over {backend} in "
        return Finding(backend, "ok", found + f"{time.perf_counter() - begun:.1f} s")
    reason = said[0].partition("\n")[0] if said else f"exit codes {codes}"
    advice = (
        "does the host's name resolve (getent hosts $(hostname))? GLOO_SOCKET_IFNAME names the "
        "network interface; one process works without"
        if backend == "gloo"
        else "NCCL_DEBUG=INFO tells more; one GPU works without"
    )
    return Finding(backend, "problem", f"{ranks} processes do not sum: {reason}", advice)


def _rank(backend: str, rank: int, ranks: int, folder: Path) -> int:
    import torch
    import torch.distributed as dist

    try:
        dist.init_process_group(
            backend,
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=ranks,
            timeout=_WAIT,
        )
        device = f"cuda:{rank}" if backend == "nccl" else "cpu"
        total = torch.full((4,), rank + 1.0, device=device)
        dist.all_reduce(total)
        right = bool((total == ranks * (ranks + 1) / 2).all())
        if not right:
            raise RuntimeError(f"the sum is {total.tolist()}")
    except Exception as error:  # all that a rank can do is to say it
        (folder / f"error-{rank}").write_text(f"{type(error).__name__}: {error}")
        return 1
    return 0
