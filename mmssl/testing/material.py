"""What a recipe builds, made once in this process and shared by the checks of its components."""

import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmssl.contracts import Dataset, Modality, Sample
from mmssl.data.loading import Clip, ClipReader
from mmssl.data.sampling import Sampler
from mmssl.pipeline import assembly
from mmssl.recipe import Recipe, load
from mmssl.testing.check import fail
from mmssl.training.features import prepare
from mmssl.training.progress import Silent

if TYPE_CHECKING:
    from mmssl.testing.runs import TinyRun

#: Clips in a batch of the kit: a power of 2, which ranks share.
CLIPS = 8

# So many samples are looked at for some that have a modality.
_LOOKED_AT = 64


class Material:
    """A recipe, and what it builds.

    Args:
        recipe: the plugin's own.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._read: dict[str, Tensor] = {}

    @cached_property
    def train(self) -> Dataset:
        """The training data, with all that they read from."""
        dataset, _ = assembly.build_datasets(self.recipe)
        dataset.materialise(Silent())
        return dataset

    @cached_property
    def modalities(self) -> dict[str, Modality]:
        """By key, in the recipe's order."""
        return assembly.build_modalities(self.recipe)

    @cached_property
    def run(self) -> "TinyRun":
        """The recipe's run at tiny size, in a temporary folder; not begun yet."""
        from mmssl.testing.runs import TinyRun

        return TinyRun(self.recipe)

    def rows(self, count: int) -> list[int]:
        """Some rows of the training data, spread over all."""
        size = len(self.train)
        return sorted({size * i // count for i in range(count)}) if size else []

    def reader(self, modalities: dict[str, Modality], *, training: bool = False) -> ClipReader:
        """The core's own reader of clips, at rows or, in training, at positions."""
        sampler = Sampler(len(self.train), self.recipe.seed) if training else None
        return ClipReader(self.train, modalities, seed=self.recipe.seed, sampler=sampler)

    def clips(self, key: str, modality: Modality) -> list[Clip]:
        """Central clips of up to eight samples that have a modality, as the loader reads them."""
        reader = self.reader({key: modality})
        found, reasons = [], []
        for row in self.rows(_LOOKED_AT):
            clip, failures = reader[row]
            if clip.present[key]:
                found.append(clip)
            reasons += [f"{failure.id}: {failure.reason}" for failure in failures]
            if len(found) == CLIPS:
                break
        if len(found) < 2:
            why = f"; the last one that was read: {reasons[-1]}" if reasons else ""
            fail(
                f"{len(found)} of the {len(self.rows(_LOOKED_AT))} samples of {self.recipe.name!r} "
                f"that were looked at have {key}, and the checks need 2 at least{why}. Let the "
                "recipe name data that have it"
            )
        return found

    def raw(self, key: str) -> Tensor:
        """A batch of these clips, ``[B, *read's shape]``."""
        if key not in self._read:
            clips = self.clips(key, self.modalities[key])
            self._read[key] = torch.stack([clip.tensors[key] for clip in clips])
        return self._read[key].clone()

    def prepared(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Clips of some modalities as backbones take them in evaluation, equally many of each."""
        raw = {key: self.raw(key) for key in keys}
        size = min(len(clips) for clips in raw.values())
        raw = {key: clips[:size] for key, clips in raw.items()}
        return prepare(raw, {key: self.modalities[key] for key in keys}, None)


class Few(Dataset):
    """Some samples, chosen or made by a check."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = list(samples)

    def __len__(self) -> int:
        return len(self._samples)

    def sample(self, index: int) -> Sample:
        """The sample at a row."""
        return self._samples[index]


def altered(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The same recipe with some fields set, as ``a.b=value``."""
    return reloaded(recipe.dump(), overrides)


def reloaded(text: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from what `Recipe.dump` wrote of it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(text)
        return load(file, list(overrides))


def seed_everything(seed: int) -> None:
    """The generators that a component must not draw from, in a known state."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)


def state_of_generators() -> tuple[Any, ...]:
    """Changes when somebody draws from torch's or numpy's global generator."""
    kind, keys, position, *_ = np.random.get_state()
    return bytes(torch.get_rng_state().numpy()), kind, bytes(np.asarray(keys)), position
