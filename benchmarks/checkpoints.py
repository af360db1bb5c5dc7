"""Time of a checkpoint and of a resume against the size of the model, beside plain torch.

A checkpoint holds a model of 64 layers and the momentum of SGD: 8 bytes a parameter. Saving ends
when the file is safely on the disk under its name (`mmssl.training.checkpoints.save`); beside it
`torch.save` to a new file that replaces the one before, without ``fsync`` and with it. Resuming is
`load_newest` and ``load_state_dict`` of model and optimizer; beside it `torch.load` of the same
state and the same ``load_state_dict``. What was just written is read from the page cache. All take
turns, and medians are printed::

    python benchmarks/checkpoints.py
    python benchmarks/checkpoints.py --millions 1 10 --folder /where/runs/are
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmssl.training import checkpoints

LAYERS = 64


def make(millions: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model of about so many million parameters, and SGD that has momentum for each."""
    side = max(1, round((millions * 1e6 / LAYERS) ** 0.5))
    model = nn.Sequential(*(nn.Linear(side, side, bias=False) for _ in range(LAYERS)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def save_plainly(state: dict[str, Any], path: Path, *, flush: bool) -> None:
    """To a new file, and only then drop the one before, which is the least that a run must do."""
    new = path.with_suffix(".new")
    torch.save(state, new)
    if flush:
        with open(new, "rb") as file:
            os.fsync(file.fileno())
    os.replace(new, path)


def compare(millions: float, folder: Path, repeats: int) -> None:
    """One line of the table."""
    model, optimizer = make(millions)
    state = {"encoders": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 0}
    plain, seconds = folder / "plain.pt", dict[str, list[float]]()

    def timed(name: str, function: Callable[[], object]) -> None:
        began = time.perf_counter()
        function()
        seconds.setdefault(name, []).append(time.perf_counter() - began)

    def resume(load: Callable[[], dict[str, Any] | None]) -> None:
        loaded = load()
        assert loaded is not None
        model.load_state_dict(loaded["encoders"])
        optimizer.load_state_dict(loaded["optimizer"])

    for _ in range(1 + repeats):
        timed("save", lambda: checkpoints.save(folder, state, step=1, keep=1))
        timed("torch.save", lambda: save_plainly(state, plain, flush=False))
        timed("torch.save, fsync", lambda: save_plainly(state, plain, flush=True))
        timed("resume", lambda: resume(lambda: checkpoints.load_newest(folder)))
        timed("torch.load", lambda: resume(lambda: torch.load(plain, weights_only=True)))
    megabytes = plain.stat().st_size / 1e6
    plain.unlink()
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    count = sum(p.numel() for p in model.parameters()) / 1e6
    cells = "".join(f"{s:>10.3f} s {megabytes / s:>5.0f} MB/s" for s in medians.values())
    ratios = [
        medians["save"] / medians["torch.save"],
        medians["save"] / medians["torch.save, fsync"],
        medians["resume"] / medians["torch.load"],
    ]
    print(f"{count:>7.1f} M{cells}" + "".join(f"{ratio:>12.2f}" for ratio in ratios), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--millions", type=float, nargs="+", default=[1, 10, 50, 100], help="of parameters"
    )
    parser.add_argument("--repeats", type=int, default=5, help="after a first round (5)")
    parser.add_argument("--folder", help="on the disk in question (the system's for temporaries)")
    arguments = parser.parse_args()
    names = ("mmssl save", "torch.save", "torch.save, fsync", "mmssl resume", "torch.load")
    ratios = ("save/plain", "save/fsync", "resume/load")
    print(f"{'':>9}" + "".join(f"{n:>22}" for n in names) + "".join(f"{n:>12}" for n in ratios))
    for millions in arguments.millions:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            compare(millions, Path(folder), arguments.repeats)


if __name__ == "__main__":
    main()
