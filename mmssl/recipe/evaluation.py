"""What a recipe may set of every evaluation, beside the parameters of its evaluator."""

from dataclasses import dataclass

from mmssl.contracts import Modality


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Which networks an evaluation measures, and what of its datasets they see.

    Args:
        subnetworks: networks within the pretrained backbones that are measured in their place, by
            the modality that each encodes, or by several joined by '+': ``video: video_cnn``. The
            other modalities are left out. Empty: the backbones themselves.
        modalities: how clips of a modality are read, where other than in pretraining: with more
            frames, for instance.
    """

    subnetworks: dict[str, str]
    modalities: dict[str, Modality]
