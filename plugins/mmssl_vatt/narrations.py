"""Several texts of one clip: what MIL-NCE chooses its positives from."""

from dataclasses import dataclass

from torch import Tensor

from mmssl import Features


@dataclass(kw_only=True)
class Narrations(Features):
    """Features of clips that come with several texts; ``pooled`` is that of the first one.

    Attributes:
        candidates: ``[B, M, D]``, one vector for each of M texts; zeros where there is none.
        valid: ``[B, M]`` bool, on the device: which texts there are.
    """

    candidates: Tensor
    valid: Tensor
