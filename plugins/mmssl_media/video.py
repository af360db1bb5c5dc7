"""Video: frames read and cropped in a loader process, augmented and normalised on the device."""

import math
import re
import threading
from collections.abc import Iterator
from itertools import chain, islice, takewhile
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from pydantic import Field
from torch import Tensor

from mmssl import Draws, Media, MissingModality, Modality, UserError, Window
from mmssl.data.media import damage_is_bad_media
from mmssl.data.timing import step
from mmssl_media.decode import GRACE, begins, frames_from, video_stream
from mmssl_media.framing import central_corner, random_part, scaled_size, shown_width

# A video may end, or begin, somewhat off its sound, as recorders leave it: a clip is moved by so
# many seconds at most to stay within its frames. Farther off, what is seen would have nothing to
# do with what is heard.
_FARTHEST = 1.0

# On the CPU, clips of so many bytes together are prepared at a time.
_PORTION = 2**20

# Limits of a part of the picture: of its area, and of its width to height.
Share = Annotated[float, Field(ge=0.01, le=1)]
Aspect = Annotated[float, Field(ge=0.1, le=10)]
_ASPECT = (0.5, 2.0)

# Hours, minutes and seconds.
_CLOCK = re.compile(r"(\d+):(\d+):(\d+(?:\.\d*)?)")

# The NTSC colour space: luma is the first row; hue and saturation are rotation and scale of
# the other two.
_YIQ = torch.tensor(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]],
    dtype=torch.float64,
)


class Video(Modality):
    """Frames of one clip: scaled, cropped, augmented alike, normalised.

    The defaults are XDC's: eight consecutive frames at the native rate, short side 256, random
    crop of 224, horizontal flip, the colour statistics of Facebook's VMZ (section 4.1 of the
    paper). In evaluation the crop is central and nothing is augmented. Frames are those shown
    at their times, so a rate that varies is no error; a video shorter than the clip goes on
    with its last frame. Pixels that are not square are scaled to be. Every augmentation is drawn
    once a clip and the same for all frames.

    With `area` training sees parts of the picture of many sizes and shapes, each scaled to the
    crop, as VATT and most networks for images do; evaluation still sees the central crop.

    Args:
        frames: number of frames T in a clip.
        stride: take every stride-th frame at the video's own rate; not together with `fps`.
        fps: frames per second of the clip: the frame shown at each instant k / fps. By default
            the video's own rate.
        short_side: pixels of the frame's short side after scaling, before cropping.
        crop: pixels of the square that is cut out, at most `short_side`.
        area: the smallest and the largest part of the picture's area that a training clip shows,
            [0.08, 1] in VATT. The part is drawn again where it does not fit into the picture; after
            ten times it is the largest of a permitted shape. By default the square is cut out of
            the picture as it is after scaling.
        aspect: width to height of that part, whose logarithm is uniform between these two.
        flip: probability of a horizontal flip.
        mean: of red, green and blue between 0 and 255, subtracted.
        std: of red, green and blue between 0 and 255, divided by.
        rotate: degrees; the angle is uniform in plus or minus this.
        scale: the clip is magnified by exp(x), x uniform in plus or minus this.
        shift: fraction of the crop's side; both offsets are uniform in plus or minus this.
        brightness: fraction of the full range; what is added is uniform in plus or minus this.
        contrast: the factor on the distance from the mean colour is uniform in 1 plus or minus
            this.
        saturation: the factor on colourfulness is uniform in 1 plus or minus this.
        hue: fraction of a full turn; the turn of the colours is uniform in plus or minus this.
        colour_probability: of clips whose colours are changed, by the four above.
    """

    kind = "video"

    def __init__(
        self,
        *,
        frames: Annotated[int, Field(gt=0)] = 8,
        stride: Annotated[int, Field(gt=0)] = 1,
        fps: Annotated[float, Field(gt=0)] | None = None,
        short_side: Annotated[int, Field(gt=0)] = 256,
        crop: Annotated[int, Field(gt=0)] = 224,
        area: tuple[Share, Share] | None = None,
        aspect: tuple[Aspect, Aspect] = _ASPECT,
        flip: Annotated[float, Field(ge=0, le=1)] = 0.5,
        mean: tuple[float, float, float] = (110.201, 100.64, 95.9966),
        std: tuple[float, float, float] = (58.1489, 56.4701, 55.3324),
        rotate: Annotated[float, Field(ge=0, le=180)] = 0.0,
        scale: Annotated[float, Field(ge=0, le=2)] = 0.0,
        shift: Annotated[float, Field(ge=0, le=1)] = 0.0,
        brightness: Annotated[float, Field(ge=0, le=1)] = 0.0,
        contrast: Annotated[float, Field(ge=0, le=1)] = 0.0,
        saturation: Annotated[float, Field(ge=0, le=1)] = 0.0,
        hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0,
        colour_probability: Annotated[float, Field(ge=0, le=1)] = 1.0,
    ) -> None:
        if crop > short_side:
            raise UserError(f"video: crop {crop} is larger than short_side {short_side}")
        if fps is not None and stride != 1:
            raise UserError("video: set fps or stride, not both")
        if min(std) <= 0:
            raise UserError(f"video: std must be positive, got {list(std)}")
        for name, limits in {"area": area or (0.0, 1.0), "aspect": aspect}.items():
            if limits[0] > limits[1]:
                raise UserError(f"video: {name} goes from the smaller to the larger value")
        if area is None and aspect != _ASPECT:
            raise UserError("video: aspect is the shape of parts of the picture: set area, too")
        self.frames = frames
        self.stride = stride
        self.fps = fps
        self.short_side = short_side
        self.crop = crop
        self.area = area
        self.aspect = aspect
        self.flip = flip
        self.mean = mean
        self.std = std
        self.rotate = rotate
        self.scale = scale
        self.shift = shift
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.colour_probability = colour_probability
        # The native rate is known only when a file is open: such a clip fits any window.
        self.seconds = 0.0 if fps is None else frames / fps
        self.shape = (3, frames, crop, crop)

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        """``[T, crop, crop, 3]`` uint8, RGB.

        Raises:
            MissingModality: no video stream, or it has no frame where the window is.
            BadMedia: it cannot be decoded.
        """
        clip = torch.empty((self.frames, self.crop, self.crop, 3), dtype=torch.uint8)
        out = clip.numpy()
        corner = None if rng is None else rng.random(2)
        previous, size, count = None, None, 0
        pixel = float(video_stream(media).sample_aspect_ratio or 1)
        for frame in self._frames(media, window):
            if frame is previous:
                out[count] = out[count - 1]
            else:
                # Frames may change size within a file; the first one's holds for the clip.
                size = size or self._size(frame, pixel, rng)
                if corner is None:
                    corner = central_corner(window.place, size, round(frame.rotation / 90) % 4)
                out[count] = self._pixels(frame, size, corner)
            previous, count = frame, count + 1
        out[count:] = out[count - 1]
        return clip

    def _frames(self, media: Media, window: Window) -> Iterator[VideoFrame]:
        """Between one and `frames` frames, within the sample and where the window is."""
        stream = video_stream(media)
        seconds = self.seconds or self.frames * self.stride / float(
            stream.average_rate or stream.guessed_rate or 25
        )
        start = _clip_start(media, stream, window, seconds)
        # What is shown at the start belongs to the clip, whenever it began.
        shown = takewhile(
            lambda found: found[0] < media.end - GRACE or found[0] <= start + GRACE,
            frames_from(media, start),
        )
        first = next(shown, None)
        if first is None or (window.seconds and first[0] > start + _FARTHEST):
            raise _nothing_between(start, min(start + seconds, media.end))
        clip = chain([first], shown)
        if self.fps is None:
            for _, frame in islice(clip, 0, self.frames * self.stride, self.stride):
                yield frame
        else:
            yield from _at(clip, [start + k / self.fps for k in range(self.frames)])

    def _size(
        self, frame: VideoFrame, pixel: float, rng: np.random.Generator | None
    ) -> tuple[int, int]:
        """Width and height to which a frame is scaled before the crop is cut out of it."""
        if self.area is None or rng is None:
            return scaled_size(frame.width, frame.height, pixel, self.short_side)
        shape = shown_width(frame.width, frame.height, pixel) / frame.height
        sideways = round(frame.rotation / 90) % 2 == 1
        part = random_part(1 / shape if sideways else shape, self.area, self.aspect, rng)
        across, down = part[::-1] if sideways else part
        return max(self.crop, round(self.crop / across)), max(self.crop, round(self.crop / down))

    def _pixels(self, frame: VideoFrame, size: tuple[int, int], corner: np.ndarray) -> np.ndarray:
        """``[crop, crop, 3]``: the frame scaled, cut at a relative corner, upright."""
        width, height = size
        with step("convert"), damage_is_bad_media():
            scaled = _reformatter().reformat(
                frame,
                width=width,
                height=height,
                format="rgb24",
                interpolation=Interpolation.BILINEAR,
                # The loader's processes are the parallelism; and threads of the scaler's own
                # would not live on in a process forked after it, which would wait for them.
                threads=1,
            )
        plane = scaled.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)  # type: ignore[call-overload]
        pixels = rows[:height, : 3 * width].reshape(height, width, 3)
        # Central without drawing: 0.5 falls into the middle of the choices.
        top, left = (
            min(int(place * (side - self.crop + 1)), side - self.crop)
            for place, side in zip(corner, (height, width), strict=True)
        )
        cut = pixels[top : top + self.crop, left : left + self.crop]
        return np.rot90(cut, round(frame.rotation / 90)) if frame.rotation else cut

    def empty(self) -> Tensor:
        """``[T, crop, crop, 3]`` uint8 zeros."""
        return torch.zeros((self.frames, self.crop, self.crop, 3), dtype=torch.uint8)

    def prepare(self, batch: Tensor, draws: Draws | None) -> Tensor:
        """``[B, T, H, W, 3]`` uint8 to ``[B, 3, T, H, W]`` float32."""
        clips = batch.permute(0, 4, 1, 2, 3)
        prepared = torch.empty(clips.shape, dtype=torch.float32, device=batch.device)
        mean = torch.tensor(self.mean, device=batch.device).view(3, 1, 1, 1)
        std = torch.tensor(self.std, device=batch.device).view(3, 1, 1, 1)
        flip = theta = colours = None
        if draws is not None:
            flip = draws.chance(self.flip)
            theta = self._draw_theta(draws, flip)
            colours = self._draw_colours(draws)
        for rows in _portions(batch):
            part, out = clips[rows], prepared[rows]
            if theta is not None:
                part = _resample(part, theta[rows])
            elif flip is not None:
                part = _mirror(part, flip[rows])
            if colours is None:
                out.copy_(part)
            else:
                _recolour(part, colours[rows], out)
            out.sub_(mean).div_(std)
        return prepared

    def _draw_theta(self, draws: Draws, flip: Tensor) -> Tensor | None:
        """``[B, 2, 3]``: flip, rotate, magnify and shift in one; None if clips only flip."""
        if not (self.rotate or self.scale or self.shift):
            return None
        angle = draws.uniform(low=-1, high=1) * math.radians(self.rotate)
        size = torch.exp(-draws.uniform(low=-1, high=1) * self.scale)
        # affine_grid measures from -1 to 1.
        offset = draws.uniform(2, low=-1, high=1) * 2 * self.shift
        mirror = 1.0 - 2.0 * flip
        cos, sin = torch.cos(angle) * size, torch.sin(angle) * size
        return torch.stack(
            [
                torch.stack([cos * mirror, -sin, offset[:, 0]], 1),
                torch.stack([sin * mirror, cos, offset[:, 1]], 1),
            ],
            1,
        )

    def _draw_colours(self, draws: Draws) -> Tensor | None:
        """Brightness, saturation, contrast and hue, in this order, in one; None if there is none.

        All are affine maps of a pixel's colour x, so they are one: brightness b, saturation S,
        contrast c around the clip's mean m, and hue H make it H S (c x + (1 - c) m + b).

        Returns:
            ``[B, 3, 5]``: the matrix H S, c and b.
        """
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            return None
        unit = draws.uniform(4, low=-1, high=1)
        brightness = 255.0 * self.brightness * unit[:, 0]
        contrast = 1.0 + self.contrast * unit[:, 1]
        saturation = 1.0 + self.saturation * unit[:, 2]
        hue = 2.0 * math.pi * self.hue * unit[:, 3]
        if self.colour_probability < 1:
            changed = draws.chance(self.colour_probability)
            brightness, hue = brightness * changed, hue * changed
            contrast = torch.where(changed, contrast, 1.0)
            saturation = torch.where(changed, saturation, 1.0)
        chroma = torch.zeros(len(unit), 3, 3, device=unit.device)
        chroma[:, 0, 0] = 1.0
        chroma[:, 1, 1] = chroma[:, 2, 2] = saturation * torch.cos(hue)
        chroma[:, 2, 1] = saturation * torch.sin(hue)
        chroma[:, 1, 2] = -chroma[:, 2, 1]
        to_yiq, to_rgb = (m.float().to(unit.device) for m in (_YIQ, torch.linalg.inv(_YIQ)))
        c_and_b = torch.stack([contrast, brightness], 1)[:, None].expand(-1, 3, -1)
        return torch.cat([to_rgb @ chroma @ to_yiq, c_and_b], 2)


def _portions(batch: Tensor) -> Iterator[slice]:
    """Rows that are prepared together: all on a GPU, on the CPU as many as its caches hold."""
    size = len(batch)
    if batch.device.type == "cpu":
        size = _PORTION // math.prod(batch.shape[1:])
    for start in range(0, len(batch), max(1, size)):
        yield slice(start, start + max(1, size))


def _mirror(clips: Tensor, flip: Tensor) -> Tensor:
    """Clips, ``[b, ...]`` uint8, and those flipped where ``flip``, ``[b]`` bool, says so."""
    if len(flip) == 1 and flip.device.type == "cpu":
        return clips.flip(-1) if flip else clips
    # As torch.where would choose, but that takes bytes one by one.
    chosen = (flip.to(torch.uint8) * 255).view(-1, 1, 1, 1, 1)
    return clips.flip(-1).bitwise_xor_(clips).bitwise_and_(chosen).bitwise_xor_(clips)


def _resample(clips: Tensor, theta: Tensor) -> Tensor:
    """Clips, ``[b, 3, T, H, W]``, moved by ``theta``, ``[b, 2, 3]``; float32."""
    count, _, frames, height, width = clips.shape
    planes = clips.to(torch.float32, memory_format=torch.contiguous_format)
    planes = planes.view(count, 3 * frames, height, width)
    grid = F.affine_grid(theta, list(planes.shape), align_corners=False)
    moved = F.grid_sample(planes, grid, padding_mode="reflection", align_corners=False)
    return moved.view(clips.shape)


def _recolour(clips: Tensor, changes: Tensor, out: Tensor) -> None:
    """Write clips with other colours to ``out``, with one clamp at the end.

    Args:
        clips: ``[b, 3, T, H, W]``.
        changes: ``[b, 3, 5]``, as `Video._draw_colours` gives them.
        out: ``[b, 3, T, H, W]`` float32, contiguous.
    """
    colours, contrast, brightness = changes.split([3, 1, 1], dim=2)
    pixels = clips.to(torch.float32, memory_format=torch.contiguous_format).flatten(2)
    mean = pixels.mean(2, keepdim=True)
    constant = torch.bmm(colours, (1.0 - contrast) * mean + brightness)
    torch.baddbmm(constant, contrast * colours, pixels, out=out.view(pixels.shape))
    out.clamp_(0.0, 255.0)


_local = threading.local()


def _reformatter() -> VideoReformatter:
    """One for each thread: it keeps its tables, which take longer to make than a clip to scale."""
    if not hasattr(_local, "reformatter"):
        _local.reformatter = VideoReformatter()
    return _local.reformatter


def _clip_start(media: Media, stream: VideoStream, window: Window, seconds: float) -> float:
    """Where a clip of so many seconds starts: where the window is, within the video's frames.

    A clip that the window holds is in its middle. One that is longer has the relative position
    in its sample that the window has, so that evenly placed windows give evenly placed clips.

    Raises:
        MissingModality: the video's frames are too far from the window.
    """
    begin, end = _span(media, stream)
    room = media.end - media.start - window.seconds
    share = min(1.0, max(0.0, (window.start - media.start) / room)) if room else 0.5
    if window.seconds == 0:
        # A point has no seconds that another modality shows: the clip may be anywhere.
        return begin + share * max(0.0, end - begin - seconds)
    if window.seconds < seconds:
        wanted = media.start + share * (media.end - media.start - seconds)
    else:
        wanted = window.centred(seconds).start
    wanted = max(media.start, min(wanted, media.end - seconds))
    start = max(begin, min(wanted, end - seconds))
    if abs(start - wanted) > _FARTHEST:
        raise _nothing_between(wanted, min(wanted + seconds, media.end))
    return start


def _span(media: Media, stream: VideoStream) -> tuple[float, float]:
    """Seconds between which the sample has frames, as far as the container knows."""
    begin = begins(media, stream) or 0.0
    end = _end(media, stream, begin)
    return max(media.start, min(begin, media.end)), max(media.start, min(end, media.end))


def _end(media: Media, stream: VideoStream, begin: float) -> float:
    if stream.duration is not None:
        return begin + float(stream.duration * (stream.time_base or 0))
    # Matroska keeps when a stream ends among its tags.
    tag = _CLOCK.fullmatch(stream.metadata.get("DURATION", ""))
    if tag is None:
        return media.end
    hours, minutes, seconds = (float(part) for part in tag.groups())
    return 3600 * hours + 60 * minutes + seconds - media.origin


def _nothing_between(start: float, end: float) -> MissingModality:
    return MissingModality(f"no video between {start:.2f} and {end:.2f} s")


def _at(shown: Iterator[tuple[float, VideoFrame]], times: list[float]) -> Iterator[VideoFrame]:
    """The frame shown at each of ascending times; the last frame goes on being shown."""
    _, frame = next(shown)
    following = next(shown, None)
    for time in times:
        while following is not None and following[0] <= time + GRACE:
            frame, following = following[1], next(shown, None)
        yield frame
