"""What a Transformer sees of a clip: patches of video and sound, words of text, each in its place.

Tokenizers are backbones: ``tokens [B, N, D]`` have their position embeddings, ``pooled`` is their
mean. Any other backbone with tokens can stand in their place, and so a further modality joins.

=========================  ==================  =============================================
name                       clip                tokens of the paper's clips
=========================  ==================  =============================================
``video_patches``          [B, 3, T, H, W]     32 x 224 x 224 by 4 x 16 x 16: 8 x 14 x 14
``waveform_patches``       [B, S]              153 600 samples by 128: 1200
``spectrogram_patches``    [B, 1, F, T]        150 frames x 80 filters by 16 x 5: 9 x 16
``word_embeddings``        [B, M, L] word ids  M texts of L words
=========================  ==================  =============================================
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import safetensors
import torch
from pydantic import Field, FilePath
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from mmssl import Backbone, Features, UserError
from mmssl_vatt.positions import Positions
from mmssl_vatt.transformer import linear

Positive = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]

PADDING = 0  # a word's id


@dataclass(kw_only=True)
class Words(Features):
    """Tokens of which some are padding.

    Attributes:
        valid: ``[B, N]`` bool, which tokens there are; or ``[B, M, L]``, where the N = ML tokens
            are M sequences that do not see each other.
    """

    valid: Tensor


class Patches(Backbone):
    """Cuts a clip into patches, projects each, and adds its place.

    Trailing values that fill no patch are dropped.

    Args:
        channels: of a clip.
        patch: size along each axis.
        buckets: position embeddings along each axis; they are resized to clips of another size.
        dim: D of tokens.
        bias: has the projection one?
        dense: a further map of D dimensions with GELU before the positions, as VATT-MA has it.
        position_norm: a LayerNorm on position embeddings, as released; the paper counts none.
        dropout: probability, of tokens.
    """

    def __init__(
        self,
        channels: int,
        patch: Sequence[int],
        buckets: Sequence[int],
        *,
        dim: Positive,
        bias: bool,
        dense: bool,
        position_norm: bool,
        dropout: Probability,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.patch = tuple(patch)
        self.project = linear(channels * math.prod(patch), dim, bias=bias)
        self.dense = linear(dim, dim) if dense else None
        self.positions = Positions(buckets, dim, norm=position_norm, dropout=dropout)

    def forward(self, clip: Tensor) -> Features:
        """Tokens of clips.

        Args:
            clip: ``[B, channels, *axes]``.

        Returns:
            ``tokens [B, N, D]``, the last axis varying fastest, and their mean.

        Raises:
            ValueError: a clip is smaller than a patch.
        """
        grid = self.project(cut(clip, self.patch))
        if self.dense is not None:
            grid = functional.gelu(self.dense(grid))
        tokens = self.positions(grid)
        return Features(tokens.mean(1), tokens)


def cut(clip: Tensor, patch: Sequence[int]) -> Tensor:
    """``[B, C, *axes]`` into ``[B, *grid, C * prod(patch)]``, without what fills no patch.

    Raises:
        ValueError: there is not a whole patch.
    """
    for axis, size in enumerate(patch, 2):
        whole = clip.shape[axis] // size
        if whole == 0:
            got, asked = ("x".join(map(str, sizes)) for sizes in (clip.shape[2:], patch))
            raise ValueError(f"a clip of {got} holds no patch of {asked} (patch)")
        clip = clip.narrow(axis, 0, whole * size)
    for axis, size in reversed([*enumerate(patch, 2)]):
        clip = clip.unflatten(axis, (-1, size))
    count = len(patch)
    grid, within = range(2, 2 + 2 * count, 2), range(3, 3 + 2 * count, 2)
    return clip.permute(0, *grid, 1, *within).flatten(1 + count)


class VideoPatches(Patches):
    """Patches of video, as VATT's Transformers see it.

    Args:
        patch: frames, height and width of a patch.
        buckets: position embeddings along time, height and width; they are resized to clips of
            another size.
        dim: D of tokens.
        bias: has the projection one?
        dense: a further map of D dimensions with GELU before the positions, as VATT-MA has it.
        position_norm: a LayerNorm on position embeddings, as released; the paper counts none.
        dropout: probability, of tokens.
    """

    modalities = frozenset({"video"})

    def __init__(
        self,
        *,
        patch: tuple[Positive, Positive, Positive] = (4, 16, 16),
        buckets: tuple[Positive, Positive, Positive] = (8, 14, 14),
        dim: Positive = 768,
        bias: bool = True,
        dense: bool = False,
        position_norm: bool = True,
        dropout: Probability = 0.1,
    ) -> None:
        super().__init__(
            3,
            patch,
            buckets,
            dim=dim,
            bias=bias,
            dense=dense,
            position_norm=position_norm,
            dropout=dropout,
        )


class WaveformPatches(Patches):
    """Patches of a waveform, as VATT's Transformers hear it.

    Args:
        patch: samples of a patch.
        buckets: position embeddings; they are resized to clips of another length.
        dim: D of tokens.
        bias: has the projection one?
        dense: a further map of D dimensions with GELU before the positions, as VATT-MA has it.
        position_norm: a LayerNorm on position embeddings, as released; the paper counts none.
        dropout: probability, of tokens.
    """

    modalities = frozenset({"waveform"})

    def __init__(
        self,
        *,
        patch: Positive = 128,
        buckets: Positive = 1200,
        dim: Positive = 768,
        bias: bool = True,
        dense: bool = False,
        position_norm: bool = True,
        dropout: Probability = 0.1,
    ) -> None:
        super().__init__(
            1,
            (patch,),
            (buckets,),
            dim=dim,
            bias=bias,
            dense=dense,
            position_norm=position_norm,
            dropout=dropout,
        )

    def forward(self, clip: Tensor) -> Features:
        """Tokens of waveforms.

        Args:
            clip: ``[B, S]`` or ``[B, 1, S]``, between -1 and 1.

        Returns:
            ``tokens [B, N, D]`` and their mean.

        Raises:
            ValueError: a waveform is shorter than a patch.
        """
        return super().forward(clip[:, None] if clip.ndim == 2 else clip)


class SpectrogramPatches(Patches):
    """Patches of a log-mel spectrogram.

    Args:
        patch: frames and filters of a patch.
        buckets: position embeddings along time and frequency; they are resized to clips of another
            size.
        dim: D of tokens.
        bias: has the projection one?
        dense: a further map of D dimensions with GELU before the positions, as VATT-MA has it.
        position_norm: a LayerNorm on position embeddings, as released; the paper counts none.
        dropout: probability, of tokens.
    """

    modalities = frozenset({"audio"})

    def __init__(
        self,
        *,
        patch: tuple[Positive, Positive] = (16, 5),
        buckets: tuple[Positive, Positive] = (9, 16),
        dim: Positive = 768,
        bias: bool = True,
        dense: bool = False,
        position_norm: bool = True,
        dropout: Probability = 0.1,
    ) -> None:
        super().__init__(
            1,
            patch,
            buckets,
            dim=dim,
            bias=bias,
            dense=dense,
            position_norm=position_norm,
            dropout=dropout,
        )

    def forward(self, clip: Tensor) -> Features:
        """Tokens of spectrograms.

        Args:
            clip: ``[B, 1, F, T]``.

        Returns:
            ``tokens [B, N, D]``, frequency varying fastest, and their mean.

        Raises:
            ValueError: a spectrogram is smaller than a patch.
        """
        return super().forward(clip.transpose(2, 3))


class WordEmbeddings(Backbone):
    """Vectors of words, such as word2vec's; a word's id is its row, and id 0 is padding.

    Args:
        size: numbers there are, with that of padding; as of the modality text.
        width: of a word's vector.
        embeddings: where vectors come from: a .npy file, or a .safetensors file of one tensor,
            ``[size, width]``. Without one they are drawn at random.
        frozen: are vectors kept as they are? By default if they come from a file.
        dim: D of tokens: a further map with GELU makes it of a word's vector, as VATT-MA has it.
            By default tokens are the vectors themselves.
        buckets: position embeddings, 16 in VATT-MA; they are resized to texts of another length.
            By default words have no place.
        dropout: probability, of tokens with a place.
    """

    modalities = frozenset({"text"})

    def __init__(
        self,
        *,
        size: Positive = 2**16,
        width: Positive = 300,
        embeddings: FilePath | None = None,
        frozen: bool | None = None,
        dim: Positive | None = None,
        buckets: Positive | None = None,
        dropout: Probability = 0.1,
    ) -> None:
        super().__init__()
        self.dim = dim or width
        self.vectors = nn.Embedding(size, width)
        nn.init.uniform_(self.vectors.weight, -0.05, 0.05)  # as released, where there is no file
        if embeddings is not None:
            with torch.no_grad():
                self.vectors.weight.copy_(read_vectors(embeddings, size, width))
        if frozen is None:
            frozen = embeddings is not None
        self.vectors.weight.requires_grad_(not frozen)
        self.dense = None if dim is None else linear(width, dim)
        self.positions = (
            None if buckets is None else Positions([buckets], self.dim, dropout=dropout)
        )

    def forward(self, clip: Tensor) -> Words:
        """Tokens of texts.

        Args:
            clip: ``[B, M, L]`` int64, ids of the L words of M texts.

        Returns:
            ``tokens [B, ML, D]``, text by text; the mean of those that are no padding, zeros where
            all are; ``valid [B, M, L]``.

        Raises:
            UserError: an id is beyond the vectors, as far as that is seen without a wait for a GPU.
        """
        ids = clip.flatten(0, 1)
        size = self.vectors.num_embeddings
        seen = ids.device.type == "cpu" and not torch.compiler.is_compiling()
        if seen and ids.numel() and int(ids.max()) >= size:
            raise UserError(
                f"word {int(ids.max())} is beyond the {size} vectors of word_embeddings: give size "
                "there and in the modality text the same value"
            )
        tokens = self.vectors(ids)
        if self.dense is not None:
            tokens = functional.gelu(self.dense(tokens))
        if self.positions is not None:
            tokens = self.positions(tokens)
        tokens = tokens.unflatten(0, clip.shape[:2]).flatten(1, 2)
        valid = clip != PADDING
        weights = valid.flatten(1)[..., None].to(tokens.dtype)
        pooled = (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)
        return Words(pooled=pooled, tokens=tokens, valid=valid)


def read_vectors(path: Path, size: int, width: int) -> Tensor:
    """``[size, width]`` of a file.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    if path.suffix not in {".npy", ".safetensors"}:
        raise UserError(f"{path}: embeddings are read from .npy and .safetensors files")
    try:
        if path.suffix == ".npy":
            found = [torch.from_numpy(np.load(path, allow_pickle=False))]
        else:
            found = [*load_file(path).values()]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (ValueError, TypeError, EOFError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: no {path.suffix} file of vectors, or a damaged one") from error
    if len(found) != 1:
        raise UserError(f"{path}: holds {len(found)} tensors: save the word vectors alone")
    if found[0].shape != (size, width):
        shape = "x".join(map(str, found[0].shape)) or "a number"
        raise UserError(
            f"{path}: holds {shape}, not {size}x{width}: set size and width to what there is"
        )
    return found[0]
