"""Made-up videos whose class lies in the order of events over several seconds.

Three things are seen, A, B and C, and three are heard, a, b and c, each for a second at a time.
There are six orders of three; in this circle neighbours differ by two events that change places::

    ABC  ACB  CAB  CBA  BCA  BAC

What is heard has the order of what is seen or the next one in the circle, so there are twelve
classes. Sight runs through its order again and again, sound once, more slowly::

    class "see ABC, hear acb", 9 s      A B C A B C A B C
                                        a a a c c c b b b

Every class has the same nine pairs of a sight and a sound, once each. That decides, whatever the
networks, how much can be known of the class:

===================================  ==================  =============
from                                 classes left of 12  best accuracy
===================================  ==================  =============
any one second, seen and heard       12                  1/12
all seconds, but not their order     12                  1/12
the order of what is seen            2                   1/2
the order of what is heard           2                   1/2
both                                 1                   1
===================================  ==================  =============

Everything else, such as shades, place and speed, pitch, tempo and noise, is drawn anew for every
second. So what sight and sound of a video share is their order and nothing else: only two of six
orders of a sound fit what is seen. A second that is masked follows from those around it.

"Second" means from one whole second to the next: a clip that begins in between shows which event
follows which, and that tells something.
"""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from mmssl import Dataset, Sample
from mmssl.training.progress import Progress
from mmssl_media.synthetic import folder_of, write_missing
from mmssl_media.synthetic_clips import Array, Format, draw_frames, draw_sound, label_of, write

# Raise it when videos come to look or sound otherwise: old caches are then left alone.
_VERSION = 1

# Events are easy to tell apart, also by small networks, as it is their order that is to be learned.
# Of `synthetic_clips.CLASSES`: upright stripes seen through red glass, changing blocks through
# green, flashes through blue; a low buzz, chirps of middle height and high bursts of noise.
SIGHTS = (1, 6, 7)
SOUNDS = (5, 1, 4)
_GLASS = ((1.0, 0.3, 0.3), (0.3, 1.0, 0.3), (0.3, 0.3, 1.0))
_BANDS = ((0.0, 500.0), (500.0, 1300.0), (1300.0, 4000.0))  # Hz
_OUTSIDE = 0.1  # what is left of other frequencies

ORDERS = ((0, 1, 2), (0, 2, 1), (2, 0, 1), (2, 1, 0), (1, 2, 0), (1, 0, 2))

# A sound fades in and out within its second, so that none reaches into the next.
_FADE = 0.1

# Seconds of nothing that files begin with and samples do not: what coders and decoders make of a
# file's very first sounds would tell the first second from all others.
_LEAD = 1


def orders_of(label: int) -> tuple[int, int]:
    """Indices into `ORDERS`: the order of what is seen, and of what is heard."""
    seen, later = divmod(label, 2)
    return seen, (seen + later) % len(ORDERS)


def events_of(label: int, seconds: int) -> tuple[list[int], list[int]]:
    """What is seen and what is heard in each second, 0 to 2, in a video of a multiple of 9."""
    seen, heard = (ORDERS[order] for order in orders_of(label))
    held = seconds // 3
    return [seen[t % 3] for t in range(seconds)], [heard[t // held] for t in range(seconds)]


def draw_sight(form: Format, seed: int, number: int, event: int) -> Array:
    """``[T, H, W, 3]`` uint8, one of the three things that are seen."""
    frames = draw_frames(form, seed, number, SIGHTS[event])
    return np.round(frames * np.array(_GLASS[event])).astype(np.uint8)


def draw_heard(form: Format, seed: int, number: int, event: int) -> Array:
    """``[samples]`` float32, one of the three things that are heard."""
    sound = draw_sound(form, seed, number, SOUNDS[event])
    low, high = _BANDS[event]
    frequency = np.fft.rfftfreq(len(sound), 1 / form.rate)
    gain = np.where((frequency >= low) & (frequency < high), 1.0, _OUTSIDE)
    within = np.fft.irfft(gain * np.fft.rfft(sound), len(sound))
    ends = np.arange(len(sound)) + 0.5
    fade = np.minimum(1.0, np.minimum(ends, ends[::-1]) / (_FADE * form.rate))
    # As loud as it was.
    return (fade * within * np.abs(sound).max() / np.abs(within).max()).astype(np.float32)


class SyntheticSequences(Dataset):
    """Mp4 files (H.264 and AAC) of twelve classes, which differ in the order of events alone.

    Three events are seen and three are heard, a second each. No single second tells anything of
    the class, nor do all seconds without their order. The order of what is seen leaves two
    classes, so does that of what is heard; both together tell the class. Files are written once,
    to ``$MMSSL_CACHE`` or ``~/.cache/mmssl``.

    Args:
        videos: number of videos; a second of work for about fifty of the default size.
        split: "train" and "test" have no video in common.
        seed: what all videos are drawn from.
        side: height and width in pixels, even.
        fps: frames per second.
        seconds: length of a video, a multiple of 9.
        rate: samples of sound per second.
    """

    def __init__(
        self,
        *,
        videos: Annotated[int, Field(gt=0)] = 1200,
        split: Literal["train", "test"] = "train",
        seed: Annotated[int, Field(ge=0)] = 0,
        side: Annotated[int, Field(ge=16, le=1024, multiple_of=2)] = 16,
        fps: Annotated[int, Field(gt=0, le=120)] = 4,
        seconds: Annotated[int, Field(ge=9, le=594, multiple_of=9)] = 9,
        rate: Annotated[int, Field(ge=8000, le=96_000)] = 8000,
    ) -> None:
        self.classes = [_name(label) for label in range(2 * len(ORDERS))]
        self._videos = videos
        self._seconds = seconds
        self._format = Format(side, fps, 1.0, rate)
        # Streams of random numbers of the two splits are far apart.
        self._seed = 2 * seed + (split == "test")
        drawn_from = [_VERSION, self._seed, side, fps, seconds, rate]
        self.folder = folder_of("synthetic_sequences", split, drawn_from)

    def __len__(self) -> int:
        return self._videos

    def sample(self, index: int) -> Sample:
        """The video at ``index``."""
        path = self._path(index)
        return Sample(
            id=path.name,
            media=str(path),
            start=_LEAD,
            end=_LEAD + self._seconds,
            label=self._label(index),
        )

    def materialise(self, progress: Progress) -> None:
        """Write the videos that are missing, on all cores."""
        write_missing([self._path(i) for i in range(len(self))], self._write, progress)

    def draw(self, index: int) -> tuple[Array, Array]:
        """Frames ``[T, H, W, 3]`` uint8 and sound ``[samples]`` float32, before they are coded."""
        seen, heard = events_of(self._label(index), self._seconds)
        frames, sound = [], []
        for second in range(self._seconds):
            # A clip of its own, drawn from a stream of its own.
            number = index * self._seconds + second
            frames.append(draw_sight(self._format, self._seed, number, seen[second]))
            sound.append(draw_heard(self._format, self._seed, number, heard[second]))
        return np.concatenate(frames), np.concatenate(sound)

    def _label(self, index: int) -> int:
        return label_of(self._seed, index, len(self.classes))

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.mp4"

    def _write(self, index: int) -> None:
        frames, sound = self.draw(index)
        frames = np.pad(frames, ((_LEAD * self._format.fps, 0), (0, 0), (0, 0), (0, 0)))
        sound = np.pad(sound, (_LEAD * self._format.rate, 0))
        write(self._path(index), self._format, frames, sound)


def _name(label: int) -> str:
    seen, heard = (ORDERS[order] for order in orders_of(label))
    return f"see {''.join('ABC'[i] for i in seen)}, hear {''.join('abc'[i] for i in heard)}"
