"""What a training step of VATT-Base on video costs, and how it compares with timm's blocks.

A clip of 32 x 224 x 224 is 8 x 14 x 14 patches, and AGG. DropToken and activation checkpointing
are switched on and off; beside each choice without checkpointing stands the same network with the
blocks of timm's VisionTransformer for its Transformer, as many, as wide, with the same dropout and
on the same tokens. Both call PyTorch's fused attention. A step is forward, backward and Adam's:
float32 on the CPU, bfloat16 autocast on a CUDA device.

Memory comes first, each network in a process of its own that makes two steps: on a CUDA device the
peak of what PyTorch allocated there, on the CPU by how much the process's peak of resident memory
grew since imports were done. Times are medians: all networks are trained in one process, where they
take turns, a step each, forwards and backwards through the list::

    python benchmarks/vatt_cost.py --batch 8
    python benchmarks/vatt_cost.py --frames 16 --side 112 --repeats 3
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mmssl_vatt.backbone import vatt
from mmssl_vatt.tokenizers import VideoPatches
from mmssl_vatt.transformer import SHAPES

PATCH = (4, 16, 16)
DROPOUT = 0.1
MIB = 2**20


class Choice(NamedTuple):
    blocks: str
    drop_token: float
    checkpointing: bool


CHOICES = [
    Choice("mmssl", 0.0, False),
    Choice("timm", 0.0, False),
    Choice("mmssl", 0.0, True),
    Choice("mmssl", 0.5, False),
    Choice("timm", 0.5, False),
    Choice("mmssl", 0.5, True),
]


class Clips(NamedTuple):
    batch: int
    frames: int
    side: int


class TimmBlocks(nn.Module):
    """Blocks of timm's VisionTransformer in the place of VATT's Transformer."""

    def __init__(self) -> None:
        super().__init__()
        layers, dim, hidden, heads = SHAPES["base"]
        norm = partial(nn.LayerNorm, eps=1e-6)
        made = {"qkv_bias": True, "proj_drop": DROPOUT, "attn_drop": DROPOUT, "norm_layer": norm}
        self.layers = nn.Sequential(
            *(Block(dim, heads, mlp_ratio=hidden / dim, **made) for _ in range(layers)), norm(dim)
        )

    def forward(self, x: Tensor, mask: None) -> Tensor:
        y: Tensor = self.layers(x)
        return y


def make(blocks: str, clips: Clips, device: torch.device) -> Callable[[Choice], int]:
    """A step as one of the choices with these blocks has it, which ends when the device has.

    It returns the number of tokens that the Transformer sees.
    """
    torch.manual_seed(0)
    shape = (clips.frames, clips.side, clips.side)
    buckets = tuple(size // patch for size, patch in zip(shape, PATCH, strict=True))
    tokenizer = VideoPatches(patch=PATCH, buckets=buckets, dropout=DROPOUT)
    net = vatt(tokenizer=tokenizer, size="base", dropout=DROPOUT)
    if blocks == "timm":
        net.transformer = TimmBlocks()  # type: ignore[assignment]
    net.to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    video = torch.rand(clips.batch, 3, *shape, device=device)
    weights = torch.randn(clips.batch, net.dim, device=device)

    def step(choice: Choice) -> int:
        net.drop_token = choice.drop_token
        net.transformer.checkpointing = choice.checkpointing
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            features = net(video)
        (features.pooled.float() * weights).mean().backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1 + features.tokens.shape[1]

    return step


def peak_memory(choice: Choice, clips: Clips, device: torch.device) -> float:
    """MiB, of the process that this has for itself."""

    def resident() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    # With its first step an optimizer imports a good part of PyTorch.
    vector = torch.zeros(1, requires_grad=True)
    vector.sum().backward()
    torch.optim.Adam([vector]).step()
    imports = resident()
    step = make(choice.blocks, clips, device)
    for _ in range(2):
        step(choice)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return resident() - imports


def alone(choice: Choice, clips: Clips, device: torch.device) -> float:
    """`peak_memory` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(peak_memory, choice, clips, device).result()


def main() -> None:
    there = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=1, help="clips in a step (1)")
    parser.add_argument("--frames", type=int, default=32, help="of a clip (32)")
    parser.add_argument("--side", type=int, default=224, help="of a frame (224)")
    parser.add_argument("--repeats", type=int, default=6, help="steps that count (6), after one")
    parser.add_argument("--device", type=torch.device, default=there, help=f"cpu or cuda ({there})")
    arguments = parser.parse_args()
    if arguments.frames < 4 or arguments.side < 16 or min(arguments.batch, arguments.repeats) < 1:
        parser.error(
            "a clip has 4 frames of 16 pixels or more, a batch a clip, and steps are counted"
        )
    device = arguments.device
    clips = Clips(arguments.batch, arguments.frames, arguments.side)

    where = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    print(
        f"torch {torch.__version__}, {where}: {clips.batch} clips of "
        f"{clips.frames}x{clips.side}x{clips.side}"
    )
    # A process begins with its parent's peak, so that this one stays small until then.
    memory = {choice: alone(choice, clips, device) for choice in CHOICES}
    steps = {blocks: make(blocks, clips, device) for blocks in ("mmssl", "timm")}
    tokens: dict[Choice, int] = {}
    seconds: dict[Choice, list[float]] = {choice: [] for choice in CHOICES}
    for turn in range(1 + arguments.repeats):
        # Who follows a large network finds memory that is mapped already: each goes first as often.
        for choice in CHOICES if turn % 2 else reversed(CHOICES):
            began = time.perf_counter()
            tokens[choice] = steps[choice.blocks](choice)
            seconds[choice].append(time.perf_counter() - began)
    counted = {choice: times[1:] for choice, times in seconds.items()}

    print(f"{'blocks':8}{'DropToken':>10}{'checkpoints':>13}{'tokens':>8}{'peak MiB':>10}{'ms':>9}")
    for choice in CHOICES:
        line = f"{choice.blocks:8}{choice.drop_token:10.0%}"
        line += (
            f"{'yes' if choice.checkpointing else 'no':>13}{tokens[choice]:8}{memory[choice]:10.0f}"
        )
        print(line + f"{1000 * statistics.median(counted[choice]):9.1f}")
    for drop in (0.0, 0.5):
        ours, timms = counted[Choice("mmssl", drop, False)], counted[Choice("timm", drop, False)]
        each = sorted(p / q for p, q in zip(ours, timms, strict=True))
        ratio = statistics.median(ours) / statistics.median(timms)
        print(
            f"time, mmssl / timm with DropToken {drop:.0%}: {ratio:.2f} "
            f"(in the rounds {each[0]:.2f} to {each[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
