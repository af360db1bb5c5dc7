"""Clips per second from a folder of mp4 files to training batches, beside pytorchvideo's.

Both sides make the same tensors from the same files: 8 consecutive frames, short side 256, random
224 crop, random flip, normalised, ``[B, 3, 8, 224, 224]``; and the log-mel spectrogram of the 2 s
around them, ``[B, 1, 40, 100]``; float32, on the CPU of the main process. mmssl sends uint8 and
PCM from its loader processes and prepares batches in the main one; pytorchvideo's
`LabeledVideoDataset` transforms in the loader processes, as its documentation shows.

Rounds alternate, and the clock starts when the first batches have arrived::

    python benchmarks/loader.py --files 32 --clips 512 --repeats 5
"""

import argparse
import itertools
import logging
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from av.video.frame import VideoFrame
from loader_files import file_list
from pytorchvideo.data import LabeledVideoDataset
from pytorchvideo.data.clip_sampling import RandomClipSampler
from torch import Tensor
from torch.utils.data import DataLoader
from torchaudio.functional import resample
from torchaudio.transforms import MelSpectrogram

from mmssl import Media, Modality
from mmssl.data.loading import (
    Clip,
    ClipReader,
    LoaderSettings,
    Unreadable,
    collate,
    training_batches,
    training_window,
)
from mmssl.data.sampling import Sampler
from mmssl.training.features import prepare
from mmssl_media.audio import Audio
from mmssl_media.manifest import Manifest
from mmssl_media.video import Video

FRAMES, SIDE, CROP, SECONDS, RATE, NATIVE = 8, 256, 224, 2, 16_000, 44_100
MEAN = torch.tensor([110.201, 100.64, 95.9966]).view(3, 1, 1, 1)
STD = torch.tensor([58.1489, 56.4701, 55.3324]).view(3, 1, 1, 1)

Batches = Iterator[dict[str, Tensor]]


def mmssl_reader(listed: Path, modalities: dict[str, Modality]) -> ClipReader:
    dataset = Manifest(path=listed)
    return ClipReader(dataset, modalities, seed=0, sampler=Sampler(len(dataset), 0))


def mmssl_batches(listed: Path, *, count: int, batch: int, workers: int) -> Batches:
    """mmssl's way from files to batches, with the paper's defaults."""
    modalities: dict[str, Modality] = {"video": Video(), "audio": Audio()}
    loaded = training_batches(
        mmssl_reader(listed, modalities),
        start=0,
        batch_size=batch,
        count=count,
        settings=LoaderSettings(workers=workers),
    )
    for item in loaded:
        yield prepare(item.batch.clips, modalities, item.batch.seeds)


class Transform:
    """The same tensors from what `LabeledVideoDataset` gives: 2 s of frames and of sound."""

    def __init__(self) -> None:
        self.mel = MelSpectrogram(RATE, n_fft=256, hop_length=320, n_mels=40, center=False)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        frames = sample["video"]
        first = max(0, (frames.shape[1] - FRAMES) // 2)
        clip = frames[:, first : first + FRAMES]
        height, width = clip.shape[2:]
        if min(height, width) != SIDE:
            factor = SIDE / min(height, width)
            size = (round(height * factor), round(width * factor))
            clip = F.interpolate(clip, size, mode="bilinear")
            height, width = size
        top = int(torch.randint(height - CROP + 1, ()))
        left = int(torch.randint(width - CROP + 1, ()))
        clip = clip[:, :, top : top + CROP, left : left + CROP]
        if torch.rand(()) < 0.5:
            clip = clip.flip(-1)
        sound = resample(sample["audio"], NATIVE, RATE)
        sound = F.pad(sound, (0, max(0, SECONDS * RATE - len(sound))))[: SECONDS * RATE]
        spectrogram = (self.mel(sound) + 1e-6).log()
        return {"video": (clip - MEAN) / STD, "audio": spectrogram[None]}


def pytorchvideo_batches(listed: Path, *, count: int, batch: int, workers: int) -> Batches:
    """`LabeledVideoDataset` in a torch loader, PyAV decoding, random clips of 2 s."""
    dataset = Manifest(path=listed)
    files = [str(dataset.sample(row).media) for row in range(len(dataset))]
    # It ends after one clip a file, so files are listed as often as clips are wanted.
    paths = itertools.islice(itertools.cycle(files), count * batch)
    clips = LabeledVideoDataset(
        [(path, {}) for path in paths],
        RandomClipSampler(SECONDS),
        transform=Transform(),
        decoder="pyav",
    )
    return iter(DataLoader(clips, batch_size=batch, num_workers=workers, prefetch_factor=4))


@dataclass(frozen=True)
class Speed:
    """Of one round: clips per second, and CPU seconds of all processes per clip."""

    clips: float
    cpu: float


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(
    make: Callable[..., Batches], listed: Path, *, clips: int, batch: int, workers: int
) -> Speed:
    """Time ``clips`` clips, after as many batches as fill both workers once."""
    warm, count = 2 * workers, clips // batch
    cpu = _cpu_seconds()
    batches = make(listed, count=warm + count, batch=batch, workers=workers)
    for _ in range(warm):
        next(batches)
    began, seen = time.perf_counter(), 0
    for tensors in batches:
        assert tensors["video"].shape == (batch, 3, FRAMES, CROP, CROP)
        assert tensors["audio"].shape == (batch, 1, 40, 100)
        assert tensors["video"].dtype == tensors["audio"].dtype == torch.float32
        seen += 1
    spent = time.perf_counter() - began
    assert seen == count
    del batches  # the loader's processes end, and their times are added to this one's
    return Speed(count * batch / spent, (_cpu_seconds() - cpu) / ((warm + count) * batch))


class TimedVideo(Video):
    """Video that adds up the time of scaling and cutting."""

    scaling = 0.0

    def _pixels(self, frame: VideoFrame, size: tuple[int, int], corner: np.ndarray) -> np.ndarray:
        began = time.process_time()
        cut = super()._pixels(frame, size, corner)
        self.scaling += time.process_time() - began
        return cut


def where_time_goes(listed: Path, *, clips: int, batch: int) -> dict[str, float]:
    """CPU milliseconds per clip of each step of mmssl's way, in one process."""
    video, audio = TimedVideo(), Audio()
    modalities: dict[str, Modality] = {"video": video, "audio": audio}
    reader = mmssl_reader(listed, modalities)
    steps = dict.fromkeys(("open", "video", "audio", "collate", "transport", "prepare"), 0.0)
    mark = 0.0

    def lap(step: str) -> None:
        nonlocal mark
        now = time.process_time()
        steps[step] += now - mark
        mark = now

    rng = np.random.default_rng(0)
    for _ in range(clips // batch):
        read: list[tuple[Clip, list[Unreadable]]] = []
        for row in rng.integers(len(reader.dataset), size=batch):
            mark = time.process_time()
            with Media(reader.dataset.sample(int(row))) as media:
                window = training_window(media.start, media.end, reader.seconds, rng)
                lap("open")
                tensors = {"video": video.read(media, window, rng)}
                lap("video")
                tensors["audio"] = audio.read(media, window, rng)
                lap("audio")
            read.append((Clip(int(row), 0, 0, tensors, dict.fromkeys(tensors, True)), []))
        mark = time.process_time()
        loaded = collate(read, "train")
        lap("collate")
        for clip in loaded.batch.clips.values():
            clip.share_memory_()
        lap("transport")
        prepare(loaded.batch.clips, modalities, loaded.batch.seeds)
        lap("prepare")
    milliseconds = {name: 1000 * spent / clips for name, spent in steps.items()}
    scaling = 1000 * video.scaling / clips
    return {
        "open": milliseconds["open"],
        "seek and decode video": milliseconds["video"] - scaling,
        "convert, scale and cut frames": scaling,
        "decode and resample audio": milliseconds["audio"],
        "collate": milliseconds["collate"],
        "copy to shared memory": milliseconds["transport"],
        "prepare": milliseconds["prepare"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=32, help="files to read from (32)")
    parser.add_argument("--clips", type=int, default=256, help="clips in a timed round (256)")
    parser.add_argument(
        "--gop", type=int, nargs="+", default=[12, 250], help="frames from keyframe to keyframe"
    )
    parser.add_argument("--batch", type=int, default=16, help="clips in a batch (16)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes (2)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each side (3)")
    arguments = parser.parse_args()
    batch, workers = arguments.batch, arguments.workers
    logging.getLogger("pytorchvideo").setLevel(logging.WARNING)
    sides = {"mmssl": mmssl_batches, "pytorchvideo": pytorchvideo_batches}
    for gop in arguments.gop:
        listed = file_list(count=arguments.files, gop=gop)
        print(f"\nGOP {gop}: {arguments.files} files, batches of {batch}, {workers} workers")
        rounds: dict[str, list[Speed]] = {name: [] for name in sides}
        for _ in range(arguments.repeats):
            for name, make in sides.items():
                speed = measure(make, listed, clips=arguments.clips, batch=batch, workers=workers)
                rounds[name].append(speed)
        medians = {}
        for name, speeds in rounds.items():
            clips = statistics.median(speed.clips for speed in speeds)
            cpu = statistics.median(speed.cpu for speed in speeds)
            medians[name] = Speed(clips, cpu)
            each = ", ".join(f"{speed.clips:.1f}" for speed in speeds)
            print(f"{name:>14}: {clips:6.1f} clips/s ({each}); {1000 * cpu:.1f} ms CPU a clip")
        ours, theirs = medians["mmssl"], medians["pytorchvideo"]
        print(
            f"{'ratio':>14}: {ours.clips / theirs.clips:.2f} in clips/s, "
            f"{theirs.cpu / ours.cpu:.2f} in CPU time"
        )
        print("mmssl, ms CPU a clip in one process:")
        steps = where_time_goes(listed, clips=arguments.clips, batch=batch)
        for name, spent in {**steps, "sum": sum(steps.values())}.items():
            print(f"{spent:8.2f}  {name}")


if __name__ == "__main__":
    main()
