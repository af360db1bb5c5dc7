"""Pretrained encoders on disk: those of a run, or those that `mmssl export` wrote.

::

    exported/
      card.json               what they are, what they expect, how they came about
      video.safetensors       weights of the backbone `video`, under the network's own names
      audio.safetensors
      objective.safetensors   the objective's, where they were asked for
      files/                  what a modality or network reads when it is built
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from mmssl import formats
from mmssl.errors import UserError
from mmssl.pipeline.records import PRETRAIN, find_runs, read_json
from mmssl.recipe.component import ComponentSpec
from mmssl.recipe.model import BackboneKey, BackboneSpec, ModalityKey, ModalitySpec, ObjectiveSpec
from mmssl.recipe.typed import Typed, validate
from mmssl.registry import discover

if TYPE_CHECKING:
    from torch import Tensor

    from mmssl.contracts import Backbone, Modality, Objective
    from mmssl.training.encoders import Encoders

CARD = "card.json"


class Blocks(Typed):
    """The part of a recipe that encoders are made from."""

    modalities: dict[ModalityKey, ModalitySpec]
    backbones: dict[BackboneKey, BackboneSpec]


class Heads(Typed):
    """The part of a recipe that an objective is made from."""

    objective: ObjectiveSpec


_Model = TypeVar("_Model", bound=Typed)


@dataclass(frozen=True)
class Pretrained:
    """Finished encoders, and what is needed to build them anew.

    Attributes:
        path: the run's folder, or the exported one.
        file: the recipe or card, for messages.
        name: the run's.
        blocks: modalities, backbones and the objective as plain data; a backbone's ``weights``,
            which it began from, are left out.
        weights: of each backbone: its file, and the prefix of its tensors in there.
        objective_weights: None where they were not exported.
        plugins: with which versions it was made, by name.
        seed: the recipe's.
        precision: what the forward pass computes in.
        channels_last: memory layout of images and video.
        sums: SHA-256 of the files of an export, by name.
        labelled: class names and whether a sample may have several, as the objective was told.
    """

    path: Path
    file: Path
    name: str
    blocks: dict[str, Any]
    weights: dict[str, tuple[Path, str]]
    objective_weights: Path | None
    plugins: Mapping[str, str]
    seed: int
    precision: Any
    channels_last: bool
    sums: Mapping[str, str] = field(default_factory=dict)
    labelled: tuple[Sequence[str], bool] | None = None

    @property
    def modalities(self) -> list[str]:
        """Keys of the modalities, in the recipe's order."""
        return list(self.blocks["modalities"])

    @cached_property
    def specs(self) -> Blocks:
        """Modalities and backbones, checked.

        Raises:
            UserError: a plugin is missing, or a component does not take its parameters any more.
        """
        kinds = ("modalities", "backbones")
        checked = self._checked(Blocks, {kind: self.blocks[kind] for kind in kinds})
        for kind in kinds:
            for key, spec in getattr(checked, kind).items():
                spec.where = f"{self.file}: {kind}.{key}"
        return checked

    @cached_property
    def objective(self) -> ComponentSpec | None:
        """The objective, checked: its plugin is needed for comparing modalities only.

        Raises:
            UserError: as for `specs`.
        """
        if self.blocks.get("objective") is None:
            return None
        spec = self._checked(Heads, {"objective": self.blocks["objective"]}).objective
        spec.where = f"{self.file}: objective"
        return spec

    def only(self, modality: str) -> "Pretrained":
        """The encoder of one modality: what the others need is not looked at.

        Raises:
            UserError: there is none, or it shares its backbone with another modality.
        """
        if modality not in self.modalities:
            there = ", ".join(self.modalities)
            raise UserError(f"{self.file}: no modality {modality!r}; there are: {there}")
        key = next(key for key in self.weights if modality in key.split("+"))
        if key != modality:
            raise UserError(f"{self.file}: {modality!r} is encoded jointly: leave modality out")
        blocks = {kind: {key: self.blocks[kind][key]} for kind in ("modalities", "backbones")}
        return replace(self, blocks=blocks, weights={key: self.weights[key]})

    def build_modalities(self) -> "dict[str, Modality]":
        """How files are read and prepared, by modality."""
        return {name: spec.build() for name, spec in self.specs.modalities.items()}

    def build_encoders(self) -> "Encoders":
        """The encoders with their weights, on the CPU, in eval mode.

        Raises:
            UserError: the weights are damaged, or do not fit the networks.
        """
        import torch

        from mmssl.data.draws import derive_seed
        from mmssl.pipeline.assembly import to_memory_format
        from mmssl.pretrained.weights import fill
        from mmssl.training.encoders import Encoders

        backbones: dict[str, Backbone] = {}
        files: dict[Path, dict[str, Tensor]] = {}
        for key, spec in self.specs.backbones.items():
            with torch.random.fork_rng(devices=[]):
                # What a network draws and does not save must be what it was.
                torch.manual_seed(derive_seed(self.seed, "backbone", key))
                backbones[key] = spec.build()
            file, prefix = self.weights[key]
            if file not in files:
                files[file] = self._read(file)
            own = {
                n.removeprefix(prefix): t for n, t in files[file].items() if n.startswith(prefix)
            }
            fill(backbones[key], own, file)
        encoders = Encoders(backbones, self.modalities)
        if self.channels_last:
            to_memory_format(encoders)
        return encoders.eval()

    def build_objective(self, encoders: "Encoders") -> "Objective | None":
        """The objective as pretraining left it, where it makes modalities comparable.

        Args:
            encoders: those of `build_encoders`.

        Returns:
            On the CPU, in eval mode; None where it has no `Objective.embeddings`. A run's knows
            its class names only if the weights fit no objective without.
        """
        from mmssl.contracts import Objective

        if self.objective is None or self.objective_weights is None:
            return None
        if type(self.objective.build()).embeddings is Objective.embeddings:
            return None
        tensors = self._read(self.objective_weights)
        if self.labelled is not None:
            return self._filled_objective(encoders, tensors, *self.labelled)
        try:
            return self._filled_objective(encoders, tensors, (), False)
        except UserError:  # it is sized by classes, which a run's data know: they may be many
            return self._filled_objective(encoders, tensors, *self._labels_of_data())

    def _filled_objective(
        self,
        encoders: "Encoders",
        tensors: "dict[str, Tensor]",
        class_names: Sequence[str],
        multilabel: bool,
    ) -> "Objective":
        """The objective of some classes, with its weights."""
        import torch

        from mmssl.data.draws import derive_seed
        from mmssl.pretrained.weights import fill

        assert self.objective is not None
        assert self.objective_weights is not None
        objective: Objective = self.objective.build()
        objective.class_names, objective.multilabel = class_names, multilabel
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "objective"))
            objective.build(encoders)
        fill(objective, tensors, self.objective_weights)
        return objective.eval()

    def _labels_of_data(self) -> tuple[Sequence[str], bool]:
        """Classes of the data that a run was trained on; none where the data have gone.

        Heads that are sized by classes do not fit their weights then, which is noticed.
        """
        from mmssl.recipe.model import Data

        train = read_recipe(self.path)["data"]
        try:
            built = validate(Data, train, {"registry": discover()}).train.build()
        except (ValidationError, UserError):
            return (), False
        return tuple(built.classes), built.multilabel

    def _read(self, file: Path) -> "dict[str, Tensor]":
        from mmssl.pretrained.weights import read_tensors

        if self.sums:
            check_sum(file, self.sums.get(file.name))
        return read_tensors(file)

    def _checked(self, model: type[_Model], blocks: Mapping[str, Any]) -> _Model:
        try:
            return validate(model, blocks, {"registry": discover()})
        except ValidationError as error:
            there = {plugin.name for plugin in discover().plugins if plugin.error is None}
            gone = [
                f"{name} {version}" for name, version in self.plugins.items() if name not in there
            ]
            found = error.errors()[0]
            place = ".".join(map(str, found["loc"]))
            reason = " ".join(str(found["msg"]).split())
            if gone:
                reason += f"; made with a plugin that is not here: {', '.join(gone)}"
            raise UserError(f"{self.file}: {place}: {reason}") from None


def open_pretrained(path: str | Path) -> Pretrained:
    """What a run, or an exported folder, says of its encoders; nothing is built.

    Args:
        path: a run's folder, the name of a run under ``./runs``, or an exported folder.

    Raises:
        UserError: it is none of them, the run has not finished, or the card was changed.
    """
    if (Path(path) / CARD).is_file():
        return _exported(Path(path))
    return _of_run(run_of(path))


def run_of(path: str | Path) -> Path:
    """The folder of a run whose pretraining has finished."""
    try:
        (run,) = find_runs([str(path)])
    except ValueError:
        raise UserError(f"{path} names several runs: choose one") from None
    except UserError as error:
        raise UserError(f"{error}; an exported folder would hold {CARD}") from None
    if not (run.path / "checkpoints" / "encoders.safetensors").is_file() or not run.finished(
        PRETRAIN
    ):
        raise UserError(
            f"{run.path}: pretraining has not finished; mmssl run {run.path / 'recipe.yaml'} goes "
            "on with it"
        )
    return run.path


def read_recipe(folder: Path) -> dict[str, Any]:
    """A run's recipe as plain data, unchecked: its data need not be there any more."""
    (run,) = find_runs([str(folder)])
    return run.recipe


def _of_run(folder: Path) -> Pretrained:
    recipe = read_recipe(folder)
    starts = read_json(folder / "provenance.json") or []
    weights = folder / "checkpoints" / "encoders.safetensors"
    heads = folder / "checkpoints" / "objective.safetensors"
    return Pretrained(
        path=folder,
        file=folder / "recipe.yaml",
        name=folder.name,
        blocks={
            "modalities": recipe["modalities"],
            "backbones": {k: _without_beginning(b) for k, b in recipe["backbones"].items()},
            "objective": recipe["objective"],
        },
        weights={key: (weights, f"backbones.{key}.") for key in recipe["backbones"]},
        objective_weights=heads if heads.is_file() else None,
        plugins=starts[-1]["plugins"] if starts else {},
        seed=recipe["seed"],
        precision=recipe["training"]["precision"],
        channels_last=recipe["training"]["channels_last"],
    )


def _without_beginning(backbone: Any) -> Any:
    """A backbone that does not read the weights it began from: it gets others at once."""
    if isinstance(backbone, dict):
        return {key: value for key, value in backbone.items() if key != "weights"}
    return backbone


def _exported(folder: Path) -> Pretrained:
    file = folder / CARD
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    if not isinstance(card, dict):
        raise UserError(f"{file}: is not what mmssl export writes")
    intact = card.get("digest") == digest_of(card)
    card = formats.CARD.migrated(card, card.get("format"), str(file))
    if not intact:
        raise UserError(f"{file}: was changed since it was exported; export the run again")
    files = {name: str((folder / name).absolute()) for name in card["files"]}
    for name, path in files.items():
        if not Path(path).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{file}: names {name!r}, outside of its folder")
        check_sum(Path(path), card["sha256"].get(name))
    kinds = ("modalities", "backbones", "objective")
    heads = folder / "objective.safetensors"
    return Pretrained(
        path=folder,
        file=file,
        name=card["name"],
        blocks={kind: _located(card[kind], files) for kind in kinds},
        weights={key: (folder / f"{key}.safetensors", "") for key in card["backbones"]},
        objective_weights=None if card["objective"] is None else heads,
        plugins=card["plugins"],
        seed=card["seed"],
        precision=card["precision"],
        channels_last=card["channels_last"],
        sums=card["sha256"],
        labelled=(card["classes"], card["multilabel"]),
    )


def _located(value: Any, files: Mapping[str, str]) -> Any:
    """Blocks with the files of an export where they are now."""
    if isinstance(value, dict):
        return {key: _located(item, files) for key, item in value.items()}
    if isinstance(value, list):
        return [_located(item, files) for item in value]
    return files.get(value, value) if isinstance(value, str) else value


def digest_of(card: Mapping[str, Any]) -> str:
    """SHA-256 of a card without its own field ``digest``."""
    content = {key: value for key, value in card.items() if key != "digest"}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(file: Path) -> str:
    """Of a file's bytes, as ``sha256sum`` prints it.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error


def check_sum(file: Path, expected: str | None) -> None:
    """Refuse a file of an export that is another one by now.

    Raises:
        UserError: its SHA-256 is not the card's.
    """
    if sha256(file) != expected:
        raise UserError(
            f"{file}: is not what was exported (its SHA-256 differs from {CARD}'s): copy it again"
        )
