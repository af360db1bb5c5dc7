"""A pretrained encoder together with its preprocessing."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.contracts import Features, Modality, Sample
from mmssl.data.loading import ClipReader, LoaderSettings, Unreadable, Views, collate
from mmssl.errors import BadMedia
from mmssl.pretrained.checkpoint import open_pretrained
from mmssl.pretrained.files import Files, Source
from mmssl.training.encoders import Encoders
from mmssl.training.features import FeatureStream, Precision, Streamed, prepare

# Clips that are encoded together when files are given: few enough for any memory.
_TOGETHER = 16


class Clips(dict[str, Tensor]):
    """Raw tensors ``[B, ...]`` by modality, as `Encoder.read` returns them.

    Attributes:
        present: by modality, ``[B]`` bool on the CPU: did the file have it? Clips are zeros where
            it did not.
    """

    def __init__(self, clips: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> None:
        super().__init__(clips)
        self.present = dict(present)


class Encoder(nn.Module):
    """From files to features, in eval mode as it comes; `mmssl.load_encoder` makes it.

    ::

        features = encoder("clip.mp4")              # files: no gradients
        features["video"]                           # [1, D]

        clips = encoder.read(["a.mp4", "b.mp4"])    # raw: uint8 frames, PCM
        inputs = encoder.prepare(clips)             # what networks take
        encoder.features(inputs)["video"].tokens    # with gradients, as any module

    Args:
        encoders: the networks.
        modalities: how files are read and prepared, by modality.
        precision: what networks compute in where files are given; elsewhere autocast is yours.
        channels_last: memory layout of prepared images and video.
        name: of the run.
    """

    def __init__(
        self,
        encoders: Encoders,
        modalities: Mapping[str, Modality],
        *,
        precision: Precision = "fp32",
        channels_last: bool = False,
        name: str = "",
    ) -> None:
        super().__init__()
        self.encoders = encoders
        self.modalities = dict(modalities)
        self.precision = precision
        self.channels_last = channels_last
        self.name = name
        self.training = encoders.training

    @property
    def dims(self) -> dict[str, int]:
        """D of the features, by modality."""
        return self.encoders.dims

    @property
    def backbones(self) -> nn.ModuleDict:
        """The bare networks: by modality, or by several joined by ``+``."""
        return self.encoders.backbones

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        tensor = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def read(
        self,
        files: Source | Sequence[Source],
        *,
        start: float = 0.0,
        end: float | None = None,
        clips: int = 1,
        crops: int = 1,
    ) -> Clips:
        """Raw clips of files, on the CPU.

        Args:
            files: a path or URL, or several; an `mmssl.Sample` for what is no file, such as text.
            start: where in each file to begin, in seconds.
            end: where to end; None for the end of the file.
            clips: clips per file, uniformly placed; a single one is central.
            crops: crops per clip, along the longer side of the picture.

        Returns:
            ``[B, ...]`` by modality, all views of the first file, then the next one's.

        Raises:
            BadMedia: a file cannot be read, or has none of the modalities; the message names it.
        """
        dataset, views = Files(_several(files), start=start, end=end), Views(clips, crops)
        reader = ClipReader(dataset, self.modalities, seed=0, views=views)
        loaded = collate([reader[i] for i in range(len(dataset) * len(views))], "train")
        for failure in loaded.unreadable:
            raise _bad(failure)
        return Clips(loaded.batch.clips, loaded.batch.present)

    def prepare(self, clips: Mapping[str, Tensor], seeds: Tensor | None = None) -> Clips:
        """Raw clips as the networks take them, on their device: scaled, normalised, spectra.

        Args:
            clips: as `read` returns them, of all modalities or some.
            seeds: ``[B]`` int64 for augmentation as in pretraining, each clip's a function of its
                seed; None for none.
        """
        present = _present(clips)
        moved = {name: clip.to(self.device) for name, clip in clips.items()}
        modalities = {name: self._modality(name) for name in clips}
        if seeds is not None:
            seeds = seeds.to(self.device)
        return Clips(prepare(moved, modalities, seeds, self.channels_last), present)

    def features(
        self, clips: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None
    ) -> dict[str, Features]:
        """Pooled features and tokens of prepared clips, with gradients where torch records them.

        Args:
            clips: ``[B, *modality.shape]`` by modality, all of them or some.
            present: ``[B]`` bool on the CPU by modality; by default what `read` found. Features
                of rows that are not present are zeros.
        """
        encoders = self.encoders
        if set(clips) != set(self.modalities):
            encoders = encoders.only(clips)
            encoders.training = self.encoders.training
        return encoders(dict(clips), dict(_present(clips) if present is None else present))

    def forward(
        self,
        source: Source | Sequence[Source] | Mapping[str, Tensor],
        *,
        start: float = 0.0,
        end: float | None = None,
        clips: int = 1,
        crops: int = 1,
    ) -> dict[str, Tensor]:
        """Pooled features by modality, ``[B, D]`` float32; rows of NaN where a file lacks it.

        Args:
            source: files as for `read`: each is a row, the mean over its views, in eval mode and
                without gradients. Or raw clips, as `read` returns them: then gradients flow.
            start: of each file, in seconds.
            end: of each file; None for the end of the file.
            clips: clips per file.
            crops: crops per clip.

        Raises:
            BadMedia: a file cannot be read, or has none of the modalities.
        """
        if isinstance(source, Mapping):
            raw = self.prepare(source)
            found = self.features(raw)
            return {name: _nan(f.pooled, raw.present[name]) for name, f in found.items()}
        views = Views(clips, crops)
        parts = list(self._stream(Files(_several(source), start=start, end=end), views))
        pooled = {}
        for name in self.modalities:
            values = torch.cat([part.pooled[name] for part in parts])
            there = torch.from_numpy(np.concatenate([part.present[name] for part in parts]))
            there = there.view(-1, len(views))
            summed = values.view(*there.shape, -1).sum(1)  # zeros where absent
            mean = summed / there.sum(1).clamp(min=1).to(summed)[:, None]
            pooled[name] = _nan(mean, there.any(1))
        return pooled

    def _stream(self, files: Files, views: Views) -> Iterator[Streamed]:
        def fail(split: str, failure: Unreadable) -> None:
            raise _bad(failure)

        return FeatureStream(
            encoders=self.encoders,
            modalities=self.modalities,
            device=self.device,
            precision=self.precision,
            batch_size=_TOGETHER,
            settings=LoaderSettings(),
            seed=0,
            unreadable=fail,
            channels_last=self.channels_last,
        )(files, range(len(files)), views=views)

    def _modality(self, name: str) -> Modality:
        if name not in self.modalities:
            raise KeyError(f"{name!r}: the encoder has {', '.join(self.modalities)}")
        return self.modalities[name]


def load_encoder(
    path: str | Path, modality: str | None = None, device: str | torch.device = "cpu"
) -> Encoder:
    """Pretrained encoders with their preprocessing, in eval mode.

    Args:
        path: a finished run's folder, its name under ``./runs``, or what `mmssl export` wrote.
        modality: of this one only; None for all.
        device: where to compute.

    Raises:
        UserError: nothing of the kind is there, it is damaged, or it needs a plugin that is not.
    """
    pretrained = open_pretrained(path)
    if modality is not None:
        pretrained = pretrained.only(modality)
    modalities = pretrained.build_modalities()
    return Encoder(
        pretrained.build_encoders(),
        modalities,
        precision=pretrained.precision,
        channels_last=pretrained.channels_last,
        name=pretrained.name,
    ).to(device)


def _several(files: Source | Sequence[Source]) -> Sequence[Source]:
    files = [files] if isinstance(files, str | Path | Sample) else files
    if not files:
        raise ValueError("no files were given")
    return files


def _present(clips: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(clips, Clips):
        return clips.present
    return {name: torch.ones(len(clip), dtype=torch.bool) for name, clip in clips.items()}


def _nan(pooled: Tensor, present: Tensor) -> Tensor:
    """Features that are no numbers where there was nothing to see: zeros would look like some."""
    if bool(present.all()):
        return pooled
    return pooled.masked_fill(~present.to(pooled.device)[:, None], torch.nan)


def _bad(failure: Unreadable) -> BadMedia:
    return BadMedia(f"{failure.id}: {failure.reason}")
