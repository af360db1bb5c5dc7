"""Pictures: a modality of one frame a sample."""

from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor

from mmssl import Draws, Media, Modality, Window
from mmssl_media.video import Aspect, Share, Video


class Image(Modality):
    """One picture a sample: an image file, or a frame of a video, for networks for images.

    It is scaled, cropped, augmented and normalised as `video` does it; by default with the
    colour statistics of ImageNet. Of a video it is the frame shown in the middle of the window
    that other modalities are read from; where there is none, a random frame in training and the
    middle one in evaluation.

    Args:
        short_side: pixels of the picture's short side after scaling, before cropping.
        crop: pixels of the square that is cut out, at most `short_side`.
        area: the smallest and the largest part of the picture's area that is shown in training,
            scaled to the crop; see `video`. By default the square is cut out of the picture as it
            is after scaling.
        aspect: width to height of that part, whose logarithm is uniform between these two.
        flip: probability of a horizontal flip.
        mean: of red, green and blue between 0 and 255, subtracted.
        std: of red, green and blue between 0 and 255, divided by.
        rotate: degrees; the angle is uniform in plus or minus this.
        scale: the picture is magnified by exp(x), x uniform in plus or minus this.
        shift: fraction of the crop's side; both offsets are uniform in plus or minus this.
        brightness: fraction of the full range; what is added is uniform in plus or minus this.
        contrast: the factor on the distance from the mean colour is uniform in 1 plus or minus
            this.
        saturation: the factor on colourfulness is uniform in 1 plus or minus this.
        hue: fraction of a full turn; the turn of the colours is uniform in plus or minus this.
        colour_probability: of pictures whose colours are changed, by the four above.
    """

    kind = "image"

    def __init__(
        self,
        *,
        short_side: Annotated[int, Field(gt=0)] = 256,
        crop: Annotated[int, Field(gt=0)] = 224,
        area: tuple[Share, Share] | None = None,
        aspect: tuple[Aspect, Aspect] = (0.5, 2.0),
        flip: Annotated[float, Field(ge=0, le=1)] = 0.5,
        mean: tuple[float, float, float] = (123.675, 116.28, 103.53),
        std: tuple[float, float, float] = (58.395, 57.12, 57.375),
        rotate: Annotated[float, Field(ge=0, le=180)] = 0.0,
        scale: Annotated[float, Field(ge=0, le=2)] = 0.0,
        shift: Annotated[float, Field(ge=0, le=1)] = 0.0,
        brightness: Annotated[float, Field(ge=0, le=1)] = 0.0,
        contrast: Annotated[float, Field(ge=0, le=1)] = 0.0,
        saturation: Annotated[float, Field(ge=0, le=1)] = 0.0,
        hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0,
        colour_probability: Annotated[float, Field(ge=0, le=1)] = 1.0,
    ) -> None:
        self._video = Video(
            frames=1,
            short_side=short_side,
            crop=crop,
            area=area,
            aspect=aspect,
            flip=flip,
            mean=mean,
            std=std,
            rotate=rotate,
            scale=scale,
            shift=shift,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            colour_probability=colour_probability,
        )
        self.shape = (3, crop, crop)

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        """``[crop, crop, 3]`` uint8, RGB.

        Raises:
            MissingModality: no picture, or no frame where the window is.
            BadMedia: it cannot be decoded.
        """
        return self._video.read(media, window, rng)[0]

    def empty(self) -> Tensor:
        """``[crop, crop, 3]`` uint8 zeros."""
        return self._video.empty()[0]

    def prepare(self, batch: Tensor, draws: Draws | None) -> Tensor:
        """``[B, H, W, 3]`` uint8 to ``[B, 3, H, W]`` float32."""
        return self._video.prepare(batch[:, None], draws)[:, :, 0]
