"""Clips per second from media files to training batches, beside others' ways to read them.

Every side makes the same batch from random places of the same files: float32 frames, short side
256, random 224 crop, random flip, normalised; and sound. Two kinds of clips:

- ``xdc``: 8 consecutive frames, and the 40 by 100 log-mel spectrogram of the 2 s around them;
- ``vatt``: 32 frames at 10 fps, and their 3.2 s of mono sound at 48 kHz.

Sides, with the given numbers of loader processes (0: the main one):

- ``mmssl``: loader processes send bytes and PCM, the main process prepares batches (on a GPU, where
  there is one; here on the CPU);
- ``encodedvideo``: `pytorchvideo.data.encoded_video.EncodedVideo`, a random clip of each file;
- ``labeledvideo``: pytorchvideo's `LabeledVideoDataset`, as its documentation shows;
- ``torchcodec``: `VideoDecoder` (approximate seeking, its fastest) and `AudioDecoder`, one thread.

And in one process, without making a batch:

- ``mmssl, reading``: `Modality.read` alone: scaled, cropped frames and resampled PCM;
- ``bare PyAV``: open, seek, decode the same frames to RGB and the same sound; nothing else;
- ``ffmpeg``: a command for each clip that does what ``mmssl, reading`` does, with ``-threads 1``.

Sides take turns, and the clock starts when the first batches have arrived::

    python benchmarks/loader.py --clips 64 --repeats 3
    python benchmarks/loader.py --kinds xdc --sizes 340x256 --gop 12 --workers 2
"""

import argparse
import itertools
import logging
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import torch
import torch.nn.functional as F
from loader_files import Scene, file_list
from pytorchvideo.data import LabeledVideoDataset
from pytorchvideo.data.clip_sampling import RandomClipSampler
from pytorchvideo.data.encoded_video import EncodedVideo
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchaudio.functional import resample
from torchaudio.transforms import MelSpectrogram

from mmssl import Draws, Media, Modality, Window
from mmssl.data.loading import ClipReader, LoaderSettings, training_batches, training_window
from mmssl.data.sampling import Sampler
from mmssl.training.features import prepare
from mmssl_media.audio import Audio
from mmssl_media.decode import pcm
from mmssl_media.manifest import Manifest
from mmssl_media.video import Video

SIDE, CROP, NATIVE, FPS, LENGTH = 256, 224, 44_100, 30, 10.0
MEAN = torch.tensor([110.201, 100.64, 95.9966]).view(3, 1, 1, 1)
STD = torch.tensor([58.1489, 56.4701, 55.3324]).view(3, 1, 1, 1)

Batches = Iterator[dict[str, Tensor]]


class Waveform(Modality):
    """Mono sound as it is."""

    kind = "waveform"

    def __init__(self, *, seconds: float, rate: int) -> None:
        self.seconds, self.rate = seconds, rate
        self.shape = (round(seconds * rate),)

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        start = window.centred(self.seconds).start
        return torch.from_numpy(pcm(media, start, self.shape[0], self.rate))

    def empty(self) -> Tensor:
        return torch.zeros(self.shape)

    def prepare(self, batch: Tensor, draws: Draws | None) -> Tensor:
        return batch


@dataclass(frozen=True)
class Kind:
    """What a clip holds.

    Attributes:
        frames: number.
        fps: of the clip; every third frame of the files is 10.
        seconds: of sound.
        rate: of sound, in Hz.
        mel: sound becomes a spectrogram.
    """

    name: str
    frames: int
    fps: int
    seconds: float
    rate: int
    mel: bool

    def modalities(self) -> dict[str, Modality]:
        video = Video(frames=self.frames, fps=None if self.fps == FPS else self.fps)
        audio = Audio() if self.mel else Waveform(seconds=self.seconds, rate=self.rate)
        return {"video": video, "audio": audio}

    @property
    def audio_shape(self) -> tuple[int, ...]:
        return (1, 40, 100) if self.mel else (round(self.seconds * self.rate),)

    @property
    def lead(self) -> float:
        """Seconds of sound before the first frame."""
        return (self.seconds - self.frames / self.fps) / 2

    def start(self, rng: np.random.Generator) -> float:
        return rng.uniform(0, LENGTH - self.seconds)


KINDS = {
    "xdc": Kind("xdc", 8, FPS, 2.0, 16_000, mel=True),
    "vatt": Kind("vatt", 32, 10, 3.2, 48_000, mel=False),
}


def paths_of(listed: Path) -> list[str]:
    dataset = Manifest(path=listed)
    return [str(dataset.sample(row).media) for row in range(len(dataset))]


# mmssl ----------------------------------------------------------------------------------------


def mmssl_batches(kind: Kind, listed: Path, *, count: int, batch: int, workers: int) -> Batches:
    dataset, modalities = Manifest(path=listed), kind.modalities()
    reader = ClipReader(dataset, modalities, seed=0, sampler=Sampler(len(dataset), 0))
    settings = LoaderSettings(workers=workers)
    loaded = training_batches(reader, start=0, batch_size=batch, count=count, settings=settings)
    for item in loaded:
        yield prepare(item.batch.clips, modalities, item.batch.seeds)


# The others: frames [T, H, W, 3] or [3, T, H, W] and native sound, then a transform in the loader


class Transform:
    """Frames ``[3, T, H, W]`` and sound ``[samples]`` at the native rate to what is trained on."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.mel = MelSpectrogram(kind.rate, n_fft=256, hop_length=320, n_mels=40, center=False)

    def __call__(self, clip: Tensor, sound: Tensor, rate: int) -> dict[str, Tensor]:
        clip = clip.float()
        height, width = clip.shape[2:]
        if min(height, width) != SIDE:
            factor = SIDE / min(height, width)
            clip = F.interpolate(
                clip, (round(height * factor), round(width * factor)), mode="bilinear"
            )
            height, width = clip.shape[2:]
        top = int(torch.randint(height - CROP + 1, ()))
        left = int(torch.randint(width - CROP + 1, ()))
        clip = clip[:, :, top : top + CROP, left : left + CROP]
        if torch.rand(()) < 0.5:
            clip = clip.flip(-1)
        if rate != self.kind.rate:
            sound = resample(sound, rate, self.kind.rate)
        samples = round(self.kind.seconds * self.kind.rate)
        sound = F.pad(sound, (0, max(0, samples - len(sound))))[:samples]
        if self.kind.mel:
            sound = (self.mel(sound) + 1e-6).log()[None]
        return {"video": (clip - MEAN) / STD, "audio": sound}

    def of_seconds(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """From what pytorchvideo gives: all frames and the sound of the clip's seconds."""
        step, frames = FPS // self.kind.fps, sample["video"]
        first = max(0, (frames.shape[1] - self.kind.frames * step) // 2)
        chosen = frames[:, first : first + self.kind.frames * step : step]
        short = self.kind.frames - chosen.shape[1]
        if short > 0:  # the last clip of a file may lack a frame
            chosen = torch.cat([chosen, chosen[:, -1:].expand(-1, short, -1, -1)], 1)
        return self(chosen, sample["audio"], NATIVE)


class Random(Dataset[dict[str, Tensor]]):
    """Clips at random places of random files."""

    def __init__(
        self,
        paths: list[str],
        count: int,
        kind: Kind,
        read: Callable[[Kind, Transform, str, float], dict[str, Tensor]],
    ) -> None:
        self.paths, self.count, self.kind, self.read = paths, count, kind, read
        self.transform = Transform(kind)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng(index)
        path = self.paths[rng.integers(len(self.paths))]
        return self.read(self.kind, self.transform, path, self.kind.start(rng))


def encodedvideo(kind: Kind, transform: Transform, path: str, start: float) -> dict[str, Tensor]:
    video = EncodedVideo.from_path(path)
    sample = video.get_clip(Fraction(start), Fraction(start) + Fraction(kind.seconds))
    video.close()
    return transform.of_seconds(sample)


def torchcodec(kind: Kind, transform: Transform, path: str, start: float) -> dict[str, Tensor]:
    from torchcodec.decoders import AudioDecoder, VideoDecoder

    video = VideoDecoder(path, num_ffmpeg_threads=1, seek_mode="approximate")
    first = round((start + kind.lead) * FPS)
    step = FPS // kind.fps
    wanted = np.minimum(first + np.arange(kind.frames) * step, len(video) - 1)
    frames = video.get_frames_at(wanted.tolist()).data
    audio = AudioDecoder(path, sample_rate=kind.rate, num_channels=1)
    sound = audio.get_samples_played_in_range(start, start + kind.seconds).data[0]
    return transform(frames.transpose(0, 1), sound, kind.rate)


def loader_batches(
    read: Callable[..., dict[str, Tensor]],
    kind: Kind,
    listed: Path,
    *,
    count: int,
    batch: int,
    workers: int,
) -> Batches:
    clips = Random(paths_of(listed), count * batch, kind, read)
    prefetch = 4 if workers else None
    return iter(DataLoader(clips, batch, num_workers=workers, prefetch_factor=prefetch))


def labeledvideo_batches(
    kind: Kind, listed: Path, *, count: int, batch: int, workers: int
) -> Batches:
    # It ends after one clip a file, so files are listed as often as clips are wanted; and each
    # process has its part of them, which may end in less than a batch.
    paths = itertools.islice(itertools.cycle(paths_of(listed)), (count + workers) * batch)
    clips = LabeledVideoDataset(
        [(path, {}) for path in paths],
        RandomClipSampler(kind.seconds),
        transform=Transform(kind).of_seconds,
        decoder="pyav",
    )
    prefetch = 4 if workers else None
    return iter(DataLoader(clips, batch, num_workers=workers, prefetch_factor=prefetch))


# In one process, without a batch ---------------------------------------------------------------


class Reading:
    """`Modality.read` of both modalities."""

    def __init__(self, kind: Kind, paths: list[str], listed: Path) -> None:
        self.dataset, self.modalities = Manifest(path=listed), kind.modalities()

    def __call__(self, row: int, start: float, rng: np.random.Generator) -> None:
        with Media(self.dataset.sample(row)) as media:
            seconds = self.modalities["audio"].seconds
            window = training_window(start, min(media.end, start + seconds), seconds, rng)
            for modality in self.modalities.values():
                modality.read(media, window, rng)


class Bare:
    """The least that PyAV does for the same frames and sound."""

    def __init__(self, kind: Kind, paths: list[str], listed: Path) -> None:
        self.kind, self.paths = kind, paths

    def __call__(self, row: int, start: float, rng: np.random.Generator) -> None:
        kind = self.kind
        with av.open(self.paths[row]) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            video.codec_context.thread_count = audio.codec_context.thread_count = 1
            first, step, seen = start + kind.lead, FPS // kind.fps, 0
            container.seek(int(first / video.time_base), stream=video)
            for frame in container.decode(video):
                if frame.time < first - 0.5 / FPS:
                    continue
                if seen % step == 0:
                    frame.to_ndarray(format="rgb24")
                seen += 1
                if seen == kind.frames * step - step + 1:
                    break
            container.seek(int(start / audio.time_base), stream=audio)
            for frame in container.decode(audio):
                frame.to_ndarray()
                if frame.time > start + kind.seconds:
                    break


class Command:
    """One ``ffmpeg`` for each clip."""

    def __init__(self, kind: Kind, paths: list[str], listed: Path) -> None:
        self.kind, self.paths = kind, paths

    def __call__(self, row: int, start: float, rng: np.random.Generator) -> None:
        kind, path = self.kind, self.paths[row]
        scale = f"fps={kind.fps}," * (kind.fps != FPS)
        scale += f"scale=-2:{SIDE},crop={CROP}:{CROP}"
        frames = ["-ss", f"{start + kind.lead:.3f}", "-i", path]
        sound = ["-ss", f"{start:.3f}", "-t", f"{kind.seconds}", "-i", path]
        pictures = ["-map", "0:v", "-frames:v", f"{kind.frames}", "-vf", scale]
        pictures += ["-pix_fmt", "rgb24", "-f", "rawvideo", "-threads", "1", "-"]
        samples = ["-map", "1:a", "-ac", "1", "-ar", f"{kind.rate}", "-f", "f32le", "/dev/null"]
        command = ["ffmpeg", "-nostdin", "-v", "error", "-threads", "1", "-y", *frames]
        command += ["-threads", "1", *sound, *pictures, *samples]
        done = subprocess.run(command, capture_output=True, check=True)
        assert len(done.stdout) == kind.frames * CROP * CROP * 3


# Measuring -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """Of one round: clips per second, and CPU seconds of all processes per clip."""

    clips: float
    cpu: float


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def of_batches(
    make: Callable[..., Batches], kind: Kind, listed: Path, *, clips: int, batch: int, workers: int
) -> Speed:
    """Time ``clips`` clips, after as many batches as fill every process once."""
    warm, count = max(1, 2 * workers), clips // batch
    cpu = _cpu_seconds()
    batches = make(kind, listed, count=warm + count, batch=batch, workers=workers)
    for _ in range(warm):
        next(batches)
    began, seen = time.perf_counter(), 0
    for tensors in itertools.islice(batches, count):
        assert tensors["video"].shape == (batch, 3, kind.frames, CROP, CROP)
        assert tensors["audio"].shape == (batch, *kind.audio_shape)
        assert tensors["video"].dtype == tensors["audio"].dtype == torch.float32
        seen += 1
    spent = time.perf_counter() - began
    assert seen == count
    del batches  # the loader's processes end, and their times are added to this one's
    return Speed(count * batch / spent, (_cpu_seconds() - cpu) / ((warm + count) * batch))


def of_clips(
    make: Callable[..., Any], kind: Kind, listed: Path, *, clips: int, batch: int, workers: int
) -> Speed:
    """Time ``clips`` clips at the same places for every side."""
    paths = paths_of(listed)
    read = make(kind, paths, listed)
    read(0, 0.0, np.random.default_rng(0))
    cpu, began = _cpu_seconds(), time.perf_counter()
    for number in range(clips):
        rng = np.random.default_rng(number)
        read(int(rng.integers(len(paths))), kind.start(rng), rng)
    spent = time.perf_counter() - began
    return Speed(clips / spent, (_cpu_seconds() - cpu) / clips)


SIDES: dict[str, Callable[..., Speed]] = {
    "mmssl": partial(of_batches, mmssl_batches),
    "encodedvideo": partial(of_batches, partial(loader_batches, encodedvideo)),
    "labeledvideo": partial(of_batches, labeledvideo_batches),
    "torchcodec": partial(of_batches, partial(loader_batches, torchcodec)),
    "mmssl, reading": partial(of_clips, Reading),
    "bare PyAV": partial(of_clips, Bare),
    "ffmpeg": partial(of_clips, Command),
}
ONE_PROCESS = ("mmssl, reading", "bare PyAV", "ffmpeg")


def available() -> list[str]:
    sides = list(SIDES)
    try:
        import torchcodec.decoders  # noqa: F401 - may be there without FFmpeg
    except (ImportError, RuntimeError, OSError) as error:
        print(f"without torchcodec: {str(error).splitlines()[0]}")
        sides.remove("torchcodec")
    if shutil.which("ffmpeg") is None:
        print("without ffmpeg: no such command")
        sides.remove("ffmpeg")
    return sides


def compare(
    kind: Kind,
    listed: Path,
    sides: list[str],
    *,
    clips: int,
    batch: int,
    workers: int,
    repeats: int,
) -> None:
    names = [name for name in sides if not workers or name not in ONE_PROCESS]
    rounds: dict[str, list[Speed]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            speed = SIDES[name](kind, listed, clips=clips, batch=batch, workers=workers)
            rounds[name].append(speed)
    ours = {"batches": "mmssl", "clips": "mmssl, reading"}
    clips_per_second = {
        name: statistics.median(speed.clips for speed in speeds) for name, speeds in rounds.items()
    }
    for name, speeds in rounds.items():
        cpu = statistics.median(speed.cpu for speed in speeds)
        peer = ours["clips" if name in ONE_PROCESS else "batches"]
        each = ", ".join(f"{speed.clips:.1f}" for speed in speeds)
        ratio = clips_per_second[peer] / clips_per_second[name]
        print(
            f"{name:>16}: {clips_per_second[name]:6.1f} clips/s ({each}), "
            f"{1000 * cpu:6.1f} ms CPU a clip; {peer} is {ratio:.2f} times as fast"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--sizes", nargs="+", default=["340x256", "640x480"], help="of the files")
    parser.add_argument("--scenes", nargs="+", choices=get_args(Scene), default=["pan", "still"])
    parser.add_argument("--gop", type=int, nargs="+", default=[12, 250], help="frames a keyframe")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="processes (0 2)")
    parser.add_argument("--files", type=int, default=16, help="files to read from (16)")
    parser.add_argument("--clips", type=int, default=64, help="clips in a timed round (64)")
    parser.add_argument("--batch", type=int, default=8, help="clips in a batch (8)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each side (3)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="which (all that there are)")
    arguments = parser.parse_args()
    logging.getLogger("pytorchvideo").setLevel(logging.WARNING)
    sides = arguments.sides or available()
    torch.set_num_threads(1)
    for name, scene, size, gop in itertools.product(
        arguments.kinds, arguments.scenes, arguments.sizes, arguments.gop
    ):
        width, height = map(int, size.split("x"))
        listed = file_list(count=arguments.files, gop=gop, size=(width, height), scene=scene)
        for workers in arguments.workers:
            title = f"{name} from {size}, {scene}, keyframe every {gop}, {workers} workers"
            print(f"\n{title}", flush=True)
            compare(
                KINDS[name],
                listed,
                sides,
                clips=arguments.clips,
                batch=arguments.batch,
                workers=workers,
                repeats=arguments.repeats,
            )


if __name__ == "__main__":
    main()
