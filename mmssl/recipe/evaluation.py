"""What a recipe may set of every evaluation, beside the parameters of its evaluator."""

from dataclasses import dataclass

from mmssl.contracts import Modality


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Which networks an evaluation measures, and what of its datasets they see.

    Args:
        subnetworks: networks within the pretrained backbones that are measured in their place, by
            the modality that each encodes, or by several joined by '+': ``video: video_cnn``. The
            other modalities are left out. Without any: the backbones themselves. null takes one
            away that this recipe extends.
        modalities: how clips of a modality are read, where other than in pretraining: with more
            frames, for instance.
    """

    subnetworks: dict[str, str | None] | None = None
    modalities: dict[str, Modality] | None = None

    @property
    def networks(self) -> dict[str, str]:
        """`subnetworks` that are asked for."""
        return {key: name for key, name in (self.subnetworks or {}).items() if name is not None}
