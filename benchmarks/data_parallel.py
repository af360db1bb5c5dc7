"""What a second process brings on one machine: the quickstart's networks on one and on two ranks.

Networks, frames and batch of ``recipes/quickstart.yaml``, clips in memory, one thread of torch in
each process, gloo. The global batch is the same on one rank and on two, which then have half of it
each. Beside `Pretraining.run` a bare loop of PyTorch does the same with its
`DistributedDataParallel`; in every process the two take turns, one step each.

A rank of the bare loop normalises over its own rows only. mmssl's BatchNorm does as one process
would and normalises over the rows of all, which takes two collective calls a layer;
``--synchronised`` gives the bare loop the same BatchNorm, to tell what that costs.

Efficiency is the rate of two ranks over twice that of one. It says something only where as many
cores are idle::

    python benchmarks/data_parallel.py
    python benchmarks/data_parallel.py --synchronised
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from in_memory import BLOCK, ByHand, Network, Taking, make_clips, make_pretraining
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmssl.training import distributed
from mmssl.training.batch_norm import synchronise

FRAMES, SIZE, WIDTH = 6, 32, 0.125  # as the quickstart


@dataclass(frozen=True)
class Rates:
    """Clips per second of all ranks together."""

    mmssl: float
    bare: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def train(rank: int, size: int, port: int, batch: int, blocks: int, synchronised: bool) -> Rates:
    """What one rank does, and the only one where ``size`` is 1."""
    names = ("RANK", "LOCAL_RANK"), ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
    os.environ |= dict.fromkeys(names[0], str(rank)) | dict.fromkeys(names[1], str(size))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    clips = make_clips(FRAMES, SIZE)
    with distributed.joined("cpu"), tempfile.TemporaryDirectory() as folder:
        network: nn.Module = Network(WIDTH)
        if size > 1:
            if synchronised:
                synchronise(network)
            network = DistributedDataParallel(network)
        taking = Taking(ByHand(network, clips, batch=batch // size, seed=rank))
        pretraining = make_pretraining(
            Path(folder), clips, width=WIDTH, batch=batch, steps=(1 + blocks) * BLOCK
        )
        pretraining.progress = taking
        pretraining.run()
    sides = zip(*taking.turns.blocks(), strict=True)
    return Rates(*(BLOCK * batch / statistics.median(seconds) for seconds in sides))


def on_ranks(size: int, batch: int, blocks: int, synchronised: bool) -> Rates:
    """The figures of the slowest rank; each is a process of its own."""
    context, port = multiprocessing.get_context("spawn"), free_port()
    processes = [ProcessPoolExecutor(1, mp_context=context) for _ in range(size)]
    try:
        futures = [
            process.submit(train, rank, size, port, batch, blocks, synchronised)
            for rank, process in enumerate(processes)
        ]
        return min((future.result() for future in futures), key=lambda rates: rates.mmssl)
    finally:
        for process in processes:
            process.shutdown()


def main() -> None:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of the ranks, as the command line does
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32, help="clips in a step of all ranks (32)")
    parser.add_argument("--blocks", type=int, default=5, help=f"of {BLOCK} steps (5)")
    parser.add_argument("--repeats", type=int, default=3, help="of one rank, then two (3)")
    parser.add_argument(
        "--synchronised", action="store_true", help="mmssl's BatchNorm in the bare loop, too"
    )
    arguments = parser.parse_args()
    if arguments.batch % 2:
        parser.error("--batch: two ranks share it, so it must be even")
    print(
        f"torch {torch.__version__}, {os.cpu_count()} cores, one thread a process: "
        f"batches of {arguments.batch}, {FRAMES} frames at {SIZE}², networks {WIDTH:g} wide"
    )
    found: dict[int, list[Rates]] = {1: [], 2: []}
    for _ in range(arguments.repeats):
        for size, rates in found.items():
            rates.append(on_ranks(size, arguments.batch, arguments.blocks, arguments.synchronised))
    for side in ("mmssl", "bare"):
        one, two = (statistics.median(getattr(r, side) for r in found[size]) for size in (1, 2))
        each = [
            getattr(b, side) / getattr(a, side) / 2 for a, b in zip(*found.values(), strict=True)
        ]
        print(
            f"{side:>6}: {one:6.1f} clips/s on one rank, {two:6.1f} on two: efficiency "
            f"{statistics.median(each):.2f} ({', '.join(f'{x:.2f}' for x in each)})"
        )


if __name__ == "__main__":
    main()
