"""What the training loop costs beside one written by hand, on the CPU.

Both sides train R(2+1)D-18 and ResNet-18, an eighth as wide, with a linear classifier each, on
random clips in memory, with the same batch, loss and AdamW. They take turns, one step each:

* ``run``: `Pretraining.run` as a recipe runs it (rows drawn by the sampler, clips read one by one
  and collated, seeds, presence masks, accuracies, the log), without loader processes, beside
  indexing the tensors, forward, backward and step;
* ``step``: `Pretraining.step` alone, on a batch that is given to both.

Overhead is the median, over blocks of ten steps, of how much longer mmssl's took. With ``--same``
both sides are the loop by hand, which tells how far such a figure can be trusted::

    python benchmarks/loop.py
    python benchmarks/loop.py --frames 2 --size 16 --batch 4   # steps so short that it shows
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from in_memory import BLOCK, ByHand, Network, Taking, Turns, in_turns, make_clips, make_pretraining

from mmssl.contracts import Batch


def given_batch(clips: dict[str, torch.Tensor], labels: torch.Tensor, count: int) -> Batch:
    """The first clips, as the loader gives them."""
    return Batch(
        index=torch.arange(count),
        seeds=torch.arange(count),
        clips={name: rows[:count] for name, rows in clips.items()},
        present={name: torch.ones(count, dtype=torch.bool) for name in clips},
        labels=labels[:count],
    )


def show(title: str, turns: Turns) -> None:
    """Steps per second of both, and what one of ours costs more."""
    blocks = turns.blocks()
    mine, peer = (statistics.median(side) / BLOCK for side in zip(*blocks, strict=True))
    more = [a / b - 1 for a, b in blocks]
    low, middle, high = statistics.quantiles(more, n=4)
    print(
        f"{title:>5}: mmssl {1 / mine:6.2f} steps/s, by hand {1 / peer:6.2f} steps/s "
        f"({1000 * peer:.1f} ms a step); overhead {middle:+.1%} "
        f"(half of the blocks between {low:+.1%} and {high:+.1%})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16, help="clips in a step (16)")
    parser.add_argument("--frames", type=int, default=8, help="of a clip (8)")
    parser.add_argument("--size", type=int, default=32, help="pixels of a frame's side (32)")
    parser.add_argument("--width", type=float, default=0.125, help="of the networks (0.125)")
    parser.add_argument("--blocks", type=int, default=10, help=f"of {BLOCK} steps (10)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (1)")
    parser.add_argument("--same", action="store_true", help="the loop by hand beside itself")
    arguments = parser.parse_args()
    if arguments.blocks < 2:
        parser.error("--blocks: two at least, or there is no spread")
    torch.set_num_threads(arguments.threads)
    clips = make_clips(arguments.frames, arguments.size)
    batch, width = arguments.batch, arguments.width
    steps = (1 + arguments.blocks) * BLOCK
    print(
        f"torch {torch.__version__}, {arguments.threads} threads: batches of {batch}, "
        f"{arguments.frames} frames at {arguments.size}², networks {width:g} wide"
    )
    by_hand = ByHand(Network(width), clips, batch=batch)
    if arguments.same:
        other = ByHand(Network(width), clips, batch=batch)
        show("same", in_turns(other, by_hand, steps))
        return
    with tempfile.TemporaryDirectory() as folder:
        pretraining = make_pretraining(Path(folder), clips, width=width, batch=batch, steps=steps)
        taking = pretraining.progress = Taking(by_hand)
        pretraining.run()
        show("run", taking.turns)
        pretraining.train_mode()
        given = given_batch(clips, by_hand.labels, batch)
        turns = in_turns(
            lambda: pretraining.step(given, 1.0),
            lambda: by_hand.step(given.clips, given.labels),
            steps,
        )
        show("step", turns)


if __name__ == "__main__":
    main()
