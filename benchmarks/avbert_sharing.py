"""What sharing parameters between AVBert's Transformers costs and saves.

The Transformers alone, at the paper's sizes: sequences of 30 clips, 6 layers of 768 dimensions. The
CNNs are left out: `AVBert.contextualise` gets numbers drawn at random instead of their embeddings.
A step is forward, backward and AdamW's (AMSGrad, rotations at a tenth of the learning rate), in
float32 with dropout, without masked clips.

Memory comes first, each sharing in a process of its own that makes two steps: on a CUDA device the
peak of what PyTorch allocated there, on the CPU by how much the process's peak of resident memory
grew since imports were done. Times are medians: all sharings are trained in one process, where they
take turns, a step each::

    python benchmarks/avbert_sharing.py
    python benchmarks/avbert_sharing.py --device cuda --batch 64 --repeats 50
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import get_args

import torch

from mmssl import Backbone
from mmssl_avbert.backbone import MODALITIES, AVBert
from mmssl_avbert.transformer import Sharing

DIM, LAYERS, HEADS, HIDDEN, RANK = 768, 6, 12, 3072, 128
LENGTH = 30
MIB = 2**20


class NoCNN(Backbone):
    """Stands where a CNN would, without parameters; it is never called."""

    modalities = frozenset(MODALITIES)
    dim = 1


def make(sharing: Sharing, batch: int, device: torch.device) -> tuple[int, Callable[[], None]]:
    """The number of the Transformers' parameters, and a step that ends when the device has."""
    torch.manual_seed(0)
    net = AVBert(
        video_cnn=NoCNN(),
        audio_cnn=NoCNN(),
        length=LENGTH,
        dim=DIM,
        layers=LAYERS,
        heads=HEADS,
        hidden=HIDDEN,
        sharing=sharing,
        rank=RANK,
    ).to(device)
    rotated = [p for name, p in net.named_parameters() if name.endswith(".skew")]
    rest = [p for name, p in net.named_parameters() if not name.endswith(".skew")]
    groups = [{"params": rest, "lr": 1e-4}, {"params": rotated, "lr": 1e-5}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=1e-4, amsgrad=True)
    # Gradients of embeddings are what a CNN would be trained with.
    shape = (batch, LENGTH, DIM)
    embeddings = {m: torch.randn(shape, device=device, requires_grad=True) for m in MODALITIES}
    # Not the outputs' squares: behind a LayerNorm their sum is constant.
    weights = {m: torch.randn(batch, 1 + LENGTH, DIM, device=device) for m in MODALITIES}
    present = dict.fromkeys(MODALITIES, torch.ones(batch, dtype=torch.bool))

    def step() -> None:
        optimizer.zero_grad()
        for x in embeddings.values():
            x.grad = None
        out = net.contextualise(embeddings, present)
        outputs = (out.unimodal, out.multimodal)
        loss = torch.stack([(y[m] * weights[m]).mean() for y in outputs for m in MODALITIES]).sum()
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return sum(p.numel() for p in net.transformers.parameters()), step


def peak_memory(sharing: Sharing, batch: int, device: torch.device) -> float:
    """MiB, of the process that this has for itself."""

    def resident() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    # With its first step an optimizer imports a good part of PyTorch.
    vector = torch.zeros(1, requires_grad=True)
    vector.sum().backward()
    torch.optim.AdamW([vector]).step()
    imports = resident()
    _, step = make(sharing, batch, device)
    for _ in range(2):
        step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return resident() - imports


def alone(sharing: Sharing, batch: int, device: torch.device) -> float:
    """`peak_memory` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(peak_memory, sharing, batch, device).result()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=4, help="sequences in a step (4)")
    parser.add_argument("--repeats", type=int, default=7, help="steps that count (7), after one")
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu (default) or cuda")
    arguments = parser.parse_args()
    batch, device = arguments.batch, arguments.device

    where = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    print(f"torch {torch.__version__}, {where}: {batch} sequences of {LENGTH} clips, {DIM=}")
    names: tuple[Sharing, ...] = get_args(Sharing)
    # A process begins with its parent's peak, so that this one stays small until then.
    memory = {name: alone(name, batch, device) for name in names}
    made = {name: make(name, batch, device) for name in names}
    seconds: dict[Sharing, list[float]] = {name: [] for name in names}
    for _ in range(1 + arguments.repeats):
        for name, (_, step) in made.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    counted = {name: times[1:] for name, times in seconds.items()}

    print(f"{'sharing':15}{'parameters':>12}{'of none':>9}{'peak MiB':>10}{'ms a step':>11}")
    for name, (parameters, _) in made.items():
        line = f"{name:15}{parameters:12}{parameters / made['none'][0]:9.1%}{memory[name]:10.0f}"
        print(line + f"{1000 * statistics.median(counted[name]):11.1f}")
    each = sorted(p / q for p, q in zip(counted["part"], counted["layers"], strict=True))
    ratio = statistics.median(counted["part"]) / statistics.median(counted["layers"])
    print(f"time, part / layers: {ratio:.2f} (in the rounds {each[0]:.2f} to {each[-1]:.2f})")
    print(f"parameters, none to part: {made['part'][0] / made['none'][0] - 1:.1%}")


if __name__ == "__main__":
    main()
