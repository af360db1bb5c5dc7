"""What AVBert does to each modality before its Transformers see it, and which modalities fit."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmssl import Backbone
from mmssl.errors import UserError

#: Those of the paper, whose CNNs and frames are fields of their own.
MODALITIES = ("video", "audio")

#: What Transformers are called that are not one modality's.
MULTIMODAL = "multimodal"
UNIMODAL = "unimodal"

#: The dimension of ``[B, ...]`` along which frames follow each other.
TIME_AXIS = {"video": 2, "audio": 3}

_NORM_EPS = 1e-12  # as released


class Stream(nn.Module):
    """What AVBert does to one modality before any Transformer.

    Args:
        modality: its name.
        dim: of what its CNN gives.
        model_dim: D.
        frames: of a clip.
        length: clips of the longest sequence.
        init_std: standard deviation of what learned vectors begin with.
        axis: the dimension of ``[B, ...]`` along which frames follow each other; None for the last.
    """

    def __init__(
        self,
        modality: str,
        dim: int,
        model_dim: int,
        frames: int,
        length: int,
        init_std: float,
        axis: int | None = None,
    ) -> None:
        super().__init__()
        self.modality = modality
        self.axis = axis
        self.frames = frames
        self.length = length
        self.glue = nn.Sequential(nn.Linear(dim, model_dim), nn.LayerNorm(model_dim, eps=_NORM_EPS))
        self.bos = nn.Parameter(torch.empty(model_dim).normal_(0, init_std))
        self.mask = nn.Parameter(torch.empty(model_dim).normal_(0, init_std))

    def clips(self, sequence: Tensor) -> int:
        """T of sequences; the nearest but for video, as hops seldom divide a clip.

        Raises:
            ValueError: they are no whole clips, or too long.
        """
        axis = self._axis(sequence)
        if not axis < sequence.ndim:
            shape = list(sequence.shape[1:])
            raise ValueError(
                f"clips of {self.modality} have the shape {shape} and no dimension {axis} "
                "(further_axes, 1 for the first)"
            )
        frames, size = sequence.shape[axis], self.frames
        video = self.modality == "video"
        length = frames // size if video else round(frames / size)
        whole = frames == length * size if video else frames >= size
        if not whole or not 1 <= length <= self.length:
            named = self.modality in MODALITIES
            field = f"{self.modality}_frames" if named else f"further_frames.{self.modality}"
            raise ValueError(
                f"{frames} frames of {self.modality} are not 1 to {self.length} clips (length) of "
                f"{size} ({field})"
            )
        return length

    def _axis(self, sequence: Tensor) -> int:
        return sequence.ndim - 1 if self.axis is None else self.axis

    def cut(self, sequence: Tensor, length: int) -> Tensor:
        """``[B, ...]`` to ``[B·T, ...]``, clips that begin at equal distances."""
        axis = self._axis(sequence)
        last = sequence.shape[axis] - self.frames
        starts = [round(last * t / max(1, length - 1)) for t in range(length)]
        clips = [sequence.narrow(axis, start, self.frames) for start in starts]
        return torch.stack(clips, 1).flatten(0, 1)

    def begun(self, x: Tensor, masked: Tensor | None = None) -> Tensor:
        """``[B, T, D]`` with masked clips replaced, behind BOS: ``[B, 1 + T, D]``."""
        if masked is not None:
            x = torch.where(masked[..., None], self.mask.to(x.dtype), x)
        return torch.cat([self.bos.to(x.dtype).expand(len(x), 1, -1), x], 1)


class Places(nn.Module):
    """``LayerNorm(x + p)`` with a Transformer's time embeddings p.

    Args:
        length: clips of the longest sequence.
        dim: D.
        dropout: probability.
        init_std: standard deviation of what p begins with.
    """

    def __init__(self, length: int, dim: int, dropout: float, init_std: float) -> None:
        super().__init__()
        self.time = nn.Parameter(torch.empty(1 + length, dim).normal_(0, init_std))
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, 1 + T, D]``, and the same of it."""
        y = self.norm(x + self.time[: x.shape[1]])
        return functional.dropout(y, self.dropout, self.training)


def check_further(
    cnns: Mapping[str, Backbone], frames: Mapping[str, int], axes: Mapping[str, int]
) -> None:
    """Refuse further modalities that do not fit, or of which too little or too much is said."""
    for name, cnn in cnns.items():
        if name in MODALITIES:
            raise UserError(f"further.{name}: has a field of its own, {name}_cnn")
        if name in (UNIMODAL, MULTIMODAL):
            raise UserError(f"further.{name}: this is what Transformers are called; rename it")
        if cnn.joint:
            raise UserError(f"further.{name}: {type(cnn).__name__} is no network for {name} alone")
        if name not in frames:
            raise UserError(f"further_frames: says nothing of {name}: how many has a clip of it?")
    for field, given in (("further_frames", frames), ("further_axes", axes)):
        for name in given:
            if name not in cnns:
                raise UserError(f"{field}.{name}: further has no CNN of this modality")
