"""One training step of XDC at full size: clips per second from memory and from disk, peak memory.

R(2+1)D-18 on ``[32, 3, 8, 224, 224]`` and ResNet-18 on ``[32, 1, 40, 100]``, 2048 clusters each,
bf16 and channels-last: the recipe ``xdc_ig65m`` and the training loop's own step (prepare, forward,
backward, optimizer), eager and compiled. From memory, one batch of random frames and sound lies on
the device already; from disk, every batch comes through the loader. Pseudo-labels are random::

    python benchmarks/xdc_step.py --workers 12
    python benchmarks/xdc_step.py --device cpu --batch 2 --size 64 --steps 3  # does it run?
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from loader_files import file_list

from mmssl.contracts import Batch
from mmssl.data.draws import derive_seed
from mmssl.data.loading import ClipReader, training_batches
from mmssl.data.sampling import Sampler
from mmssl.pipeline import assembly
from mmssl.recipe import Recipe, load
from mmssl.training.loop import Pretraining
from mmssl.training.progress import Silent
from mmssl_clustering.objectives import XDC


def make_recipe(listed: Path, arguments: argparse.Namespace, *, compiled: bool) -> Recipe:
    return load(
        "xdc_ig65m",
        [
            f"device={arguments.device}",
            f"data.workers={arguments.workers}",
            f"modalities.video.crop={arguments.size}",
            f"modalities.video.short_side={round(arguments.size * 256 / 224)}",
            f"training.batch_size={arguments.batch}",
            f"training.precision={arguments.precision}",
            f"training.compile={str(compiled).lower()}",
            "training.channels_last=true",
            "evaluations=null",
        ],
        environ={**os.environ, "IG65M_TRAIN": str(listed)},
    )


def make_pretraining(recipe: Recipe, folder: Path) -> Pretraining:
    """The loop as a run has it, past the clustering: pseudo-labels are random."""
    device = assembly.choose_device(recipe)
    encoders = assembly.build_encoders(recipe)
    train, _ = assembly.build_datasets(recipe)
    objective = assembly.build_objective(recipe, encoders, train)
    assert isinstance(objective, XDC)
    rng = np.random.default_rng(0)
    objective._labels = {
        "train": {
            c.name: rng.integers(c.k, size=len(train), dtype=np.int32)
            for c in objective.clusterings
        }
    }
    assembly.to_memory_format(encoders)
    if recipe.training.compile:
        for backbone in encoders.backbones.values():
            backbone.compile()
    pretraining = Pretraining(
        folder=folder,
        encoders=encoders,
        objective=objective,
        modalities=assembly.build_modalities(recipe),
        train=train,
        validation=None,
        plan=lambda number: assembly.round_plan(recipe.training, number, objective.rounds),
        settings=assembly.training_settings(recipe.training, seed=recipe.seed, max_bad=1.0),
        loader=assembly.loader_settings(recipe, device),
        device=device,
        trackers={},
        progress=Silent(),
    )
    pretraining.train_mode()
    return pretraining


def from_memory(pretraining: Pretraining) -> Iterator[Batch]:
    """The same batch again and again, as `Modality.read` gives it, on the device."""
    count, device = pretraining.settings.batch_size, pretraining.device
    empty = {name: modality.empty() for name, modality in pretraining.modalities.items()}
    batch = Batch(
        index=torch.arange(count) % len(pretraining.datasets["train"]),
        seeds=torch.arange(count),
        clips={
            "video": torch.randint(256, (count, *empty["video"].shape), dtype=torch.uint8),
            "audio": 0.1 * torch.randn(count, *empty["audio"].shape),
        },
        present={name: torch.ones(count, dtype=torch.bool) for name in empty},
        labels=torch.zeros(count, dtype=torch.int64),
    ).to(device)
    while True:
        yield batch


def from_disk(pretraining: Pretraining, steps: int) -> Iterator[Batch]:
    """Batches through the loader."""
    train, seed = pretraining.datasets["train"], pretraining.settings.seed
    sampler = Sampler(len(train), derive_seed(seed, "sampling"))
    loaded = training_batches(
        ClipReader(train, pretraining.modalities, seed=seed, sampler=sampler),
        start=0,
        batch_size=pretraining.settings.batch_size,
        count=steps,
        settings=pretraining.loader,
    )
    for item in loaded:
        yield item.batch


def clips_per_second(
    pretraining: Pretraining, batches: Iterator[Batch], *, warm: int, steps: int
) -> float:
    """Of ``steps`` steps after ``warm`` others; the device is waited for at both ends."""
    for _ in range(warm):
        pretraining.step(next(batches), 1.0)
    _synchronize(pretraining.device)
    began = time.perf_counter()
    for _ in range(steps):
        losses = pretraining.step(next(batches), 1.0)
    _synchronize(pretraining.device)
    spent = time.perf_counter() - began
    if not torch.isfinite(losses.total):
        raise SystemExit(f"the loss is {float(losses.total)}: these figures mean nothing")
    return steps * pretraining.settings.batch_size / spent


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    parser.add_argument("--batch", type=int, default=32, help="clips in a step (32)")
    parser.add_argument("--size", type=int, default=224, help="pixels of the crop's side (224)")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="bf16")
    parser.add_argument("--steps", type=int, default=50, help="timed steps (50)")
    parser.add_argument("--warm", type=int, default=10, help="steps before the clock starts (10)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2, help="loader processes")
    parser.add_argument("--files", type=int, default=32, help="files to read from (32)")
    parser.add_argument("--gop", type=int, default=12, help="frames from keyframe to keyframe (12)")
    arguments = parser.parse_args()
    listed = file_list(count=arguments.files, gop=arguments.gop)
    device = assembly.choose_device(make_recipe(listed, arguments, compiled=False))
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else "cpu"
    print(
        f"{name}, torch {torch.__version__}: batches of {arguments.batch}, 8 frames at "
        f"{arguments.size}², {arguments.precision}, channels-last, {arguments.workers} workers"
    )
    print(f"{'':>10}{'from memory':>14}{'from disk':>14}{'peak memory':>14}")
    warm, steps = arguments.warm, arguments.steps
    for compiled in (False, True):
        torch.compiler.reset()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        with tempfile.TemporaryDirectory() as folder:
            recipe = make_recipe(listed, arguments, compiled=compiled)
            pretraining = make_pretraining(recipe, Path(folder))
            memory = clips_per_second(pretraining, from_memory(pretraining), warm=warm, steps=steps)
            # What the loader's processes made ready while the network warmed up is no speed.
            ready = recipe.data.prefetch * arguments.workers
            batches = from_disk(pretraining, warm + ready + steps)
            disk = clips_per_second(pretraining, batches, warm=warm + ready, steps=steps)
        peak = f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB" if cuda else "-"
        title = "compiled" if compiled else "eager"
        print(f"{title:>10}{memory:>8.1f} cl/s {disk:>8.1f} cl/s{peak:>14}", flush=True)
        del pretraining, batches


if __name__ == "__main__":
    main()
