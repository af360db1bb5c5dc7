"""What to change, computed from where the time goes."""

import math
import os
import shlex
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch

from mmssl.contracts import Dataset
from mmssl.data.media import Media
from mmssl.errors import BadMedia, MissingModality
from mmssl.pipeline.profiling import OTHER_READING, Profile
from mmssl.recipe import Recipe

# A part is worth a word from this share of its side's time on.
_WORTH = 0.25

# The loader is the bound when training waits for it for more than this share of its time.
_WAITS = 0.1

# Keyframes as close as this cost hardly more to reach than the frames that are wanted.
_CLOSE = 16

_SAMPLED = 16


@dataclass(frozen=True)
class Source:
    """What some of the dataset's files are, in the middle.

    Attributes:
        short_side: pixels of the frames' short side, 0 where there is no video.
        keyframes: frames from keyframe to keyframe, 0 where the container does not say.
    """

    short_side: int
    keyframes: int


def look_at(dataset: Dataset) -> Source:
    """Open some of a dataset's files; what cannot be opened is passed over."""
    size = len(dataset)
    sides, gaps = [], []
    for row in sorted({size * i // _SAMPLED for i in range(_SAMPLED)}):
        try:
            with Media(dataset.sample(row)) as media:
                for stream in media.container.streams.video[:1]:
                    sides.append(min(stream.codec_context.width, stream.codec_context.height))
                    keys = [i for i, e in enumerate(stream.index_entries) if e.is_keyframe]
                    # A container may index its keyframes alone, which says nothing of others.
                    if len(stream.index_entries) > len(keys):
                        last = len(stream.index_entries)
                        gaps.append(median(b - a for a, b in pairwise([*keys, last])))
        except (BadMedia, MissingModality):
            continue
    return Source(int(median(sides)) if sides else 0, int(median(gaps)) if gaps else 0)


def advice(
    found: Profile,
    recipe: Recipe,
    *,
    device: str,
    dataset: Dataset,
    source: Source,
    available: int,
) -> list[str]:
    """Lines to read: what bounds the run, then what to change.

    Args:
        found: what was measured.
        recipe: that it was measured of.
        device: ``"cpu"`` or ``"cuda"``.
        dataset: the recipe's training data.
        source: what `look_at` found in it.
        available: cores.
    """
    waits = found.waiting / found.wall
    if waits <= _WAITS and found.too_short:
        return [
            f"too few steps to tell: training took {1 / found.wall:.1f} clips/s, some of which lay "
            f"ready, as the loader reads {found.loader_rate:.1f}; take --steps {4 * found.steps}"
        ]
    if waits <= _WAITS:
        lines = [
            f"bound by training: it waits for data for {waits:.0%} of its time; a faster loader "
            f"would bring at most {found.device_rate:.1f} clips/s"
        ]
        return lines + _for_training(found, recipe, device)
    lines = [
        f"bound by the loader: without waiting, training would take {found.device_rate:.1f} "
        f"clips/s instead of {1 / found.wall:.1f}"
    ]
    lines += _for_workers(found, device, available)
    return lines + _for_reading(found, recipe, dataset, source)


def _for_workers(found: Profile, device: str, available: int) -> list[str]:
    if found.workers == 0:
        return [f"data.workers={max(1, available - 1)}: nothing is read while training computes"]
    per_clip = sum(found.loader.values())
    needed = math.ceil(found.device_rate * per_clip)
    computing = torch.get_num_threads() if device == "cpu" else 1
    free = available - found.workers - computing
    if free <= 0:
        return [
            f"more workers will not help: workers ({found.workers}) and training's threads "
            f"({computing}) share {available} cores; each clip must cost less, or cores be added"
        ]
    workers = min(needed, found.workers + free)
    if workers <= found.workers:
        return []
    reach = min(workers / per_clip, found.device_rate)
    return [f"data.workers={workers}: {free} cores are free; about {reach:.1f} clips/s"]


def _for_reading(found: Profile, recipe: Recipe, dataset: Dataset, source: Source) -> list[str]:
    """What makes a clip cheaper to read, the dearest part first."""
    whole = sum(found.loader.values())
    share = {part: seconds / whole for part, seconds in found.loader.items()}
    train = recipe.data.train
    listed = _listed(train.use, str(train.parameters.get("path", "")))
    if train.parameters.get("root"):  # the commands cannot be told where a list's files are
        listed = ""
    sides = [
        int(spec.parameters["short_side"])
        for spec in recipe.modalities.values()
        if "short_side" in spec.parameters
    ]
    lines: list[tuple[float, str]] = []
    decoding = share["seek"] + share["decode video"] + share["convert"]
    large = bool(sides) and source.short_side > max(sides)
    far = source.keyframes > _CLOSE
    if decoding > _WORTH and (large or far):
        side = max(sides) if sides else source.short_side
        what = [f"frames of {source.short_side} pixels scaled to {side}"] * large
        what += [f"keyframes {source.keyframes} frames apart"] * far
        lines.append(
            (
                decoding,
                _command(
                    f"mmssl data transcode {listed} -o DIR --short-side {side + side % 2} --gop 12",
                    "{use: manifest, path: DIR/manifest.csv}",
                    listed,
                )
                + f"{decoding:.0%} of reading is seeking, decoding and converting, of "
                f"{' and '.join(what)}",
            )
        )
    elif decoding > _WORTH:
        lines.append(
            (
                decoding,
                f"{decoding:.0%} of reading is seeking, decoding and converting, of files that are "
                "small already: fewer frames a clip, or a smaller short_side",
            )
        )
    if share["open"] > _WORTH and dataset.storage() is None:
        lines.append(
            (
                share["open"],
                _command(f"mmssl data shard {listed} -o DIR", "{use: shards, path: DIR}", listed)
                + f"{share['open']:.0%} of reading is opening files; shards are read in order",
            )
        )
    if share["audio"] > _WORTH:
        lines.append(
            (share["audio"], f"{share['audio']:.0%} of reading is sound: fewer seconds of it")
        )
    if share["collate"] > _WORTH:
        lines.append(
            (share["collate"], f"{share['collate']:.0%} of reading is collating: smaller crops")
        )
    if share[OTHER_READING] > _WORTH:
        lines.append(
            (
                share[OTHER_READING],
                f"{share[OTHER_READING]:.0%} of reading is neither decoding nor opening: look at "
                "what the recipe's modalities and dataset do in `read` and `sample`",
            )
        )
    return [text for _, text in sorted(lines, reverse=True)]


def _listed(use: str, path: str) -> str:
    """What the data commands take for a dataset's files; empty where there is no such thing."""
    if use == "shards":  # those that others wrote have no list
        path = os.path.join(path, "index.csv")
    return shlex.quote(path) if os.path.exists(path) else ""


def _command(line: str, dataset: str, listed: str) -> str:
    """A command, and how the recipe then names what it made."""
    return f"{line}, then data.train={shlex.quote(dataset)}: " if listed else ""


def _for_training(found: Profile, recipe: Recipe, device: str) -> list[str]:
    """What makes a step cheaper."""
    training, whole = recipe.training, sum(found.device.values())
    share = {part: seconds / whole for part, seconds in found.device.items()}
    network = share["forward"] + share["backward"]
    lines = []
    if network > _WORTH and device == "cpu":
        lines.append(
            f"{network:.0%} of a step is the network on the CPU: a GPU, a narrower network, or "
            "smaller clips (frames, crop)"
        )
    elif network > _WORTH:
        if training.precision == "fp32":
            lines.append("training.precision=bf16: the network computes in float32")
        if not training.compile:
            lines.append("training.compile=true: the network is not compiled")
        if not training.channels_last:
            lines.append("training.channels_last=true: convolutions want channels last")
        lines.append(
            f"{network:.0%} of a step is the network: smaller clips (frames, crop) or a narrower "
            "one"
        )
    if share["prepare"] > _WORTH:
        lines.append(
            f"{share['prepare']:.0%} of a step is preparing clips: rotation, scale and shift, and "
            "colours, cost most; or smaller crops"
        )
    if share["transfer"] > _WORTH:
        lines.append(f"{share['transfer']:.0%} of a step is the copy to the device: smaller crops")
    if found.loader_rate > 2 * found.device_rate and found.workers > 1:
        enough = max(1, math.ceil(1.25 * found.workers * found.device_rate / found.loader_rate))
        if enough < found.workers:
            lines.append(f"data.workers={enough} would be enough")
    return lines
