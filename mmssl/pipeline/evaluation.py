"""An evaluation as a stage: what it lends the evaluator, and what is written of its findings.

::

    evaluations/<name>/
      metrics.json  tables.json  *.png    what was found
      skipped-N.jsonl                     what could not be read of the N-th dataset
      features-NN/                        features so far, while it is at work
      training-NN/                        a training's log, checkpoints and encoders
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model

from mmssl.contracts import (
    Dataset,
    Evaluation,
    Evaluator,
    LabelledFeatures,
    Modality,
    Objective,
    Read,
    Split,
    Weights,
)
from mmssl.data.loading import Views
from mmssl.data.skipped import Skipped
from mmssl.errors import UserError
from mmssl.pipeline import assembly
from mmssl.pipeline.records import STARTED
from mmssl.pipeline.run_folder import RunFolder
from mmssl.recipe import Recipe
from mmssl.recipe.model import Training
from mmssl.training import distributed
from mmssl.training.checkpoints import write_atomically
from mmssl.training.encoders import Encoders
from mmssl.training.features import FeatureStream, pooled
from mmssl.training.kept_features import OverViews, blocks, labelled, load
from mmssl.training.loop import Pretraining
from mmssl.training.progress import Progress

# Clips in a forward pass at most: one process may measure what many trained on together.
_LARGEST = 64


def evaluate(recipe: Recipe, name: str, folder: RunFolder, progress: Progress) -> None:
    """Run one evaluation on the finished encoders, or go on with it, and write what it found."""
    weights = folder.path / "checkpoints" / "encoders.safetensors"
    if not weights.is_file():
        raise UserError(f"{folder.path} holds no pretrained encoders yet: {weights} is missing")
    evaluator: Evaluator = recipe.evaluations[name].build()
    out = folder.evaluation(name)
    distributed.on_main(lambda: _begin(out, folder.fingerprint(name)))
    context = Context(
        recipe=recipe,
        run_folder=folder.path,
        folder=out,
        device=assembly.choose_device(recipe),
        components=assembly.measured_modalities(recipe, name),
        pretraining_data=distributed.main_first(lambda: assembly.build_datasets(recipe)[0]),
        title=name,
        progress=progress,
    )
    try:
        result = evaluator.evaluate(context)
    except UserError as error:
        raise recipe.error(("evaluations", name), str(error)) from error
    if distributed.is_main():
        if not isinstance(result, Evaluation):
            raise recipe.error(
                ("evaluations", name),
                f"evaluate of {type(evaluator).__name__} returned a {type(result).__name__}: "
                "return mmssl.Evaluation; what was trained is kept, and `mmssl run` goes on from "
                "there",
            )
        write_evaluation(out, result)


def tidy(folder: Path) -> None:
    """Remove what a finished evaluation needed to go on after a kill."""
    for kept in folder.glob("features-*"):
        shutil.rmtree(kept, ignore_errors=True)
    for state in folder.glob("training-*/checkpoints/step-*.pt"):
        state.unlink(missing_ok=True)


def _begin(folder: Path, fingerprint: str) -> None:
    """Keep what an interrupted start of the same evaluation left, and nothing else."""
    started = folder / STARTED
    if not started.is_file() or json.loads(started.read_text()) != fingerprint:
        _empty(folder)
        write_atomically(started, lambda path: path.write_text(json.dumps(fingerprint)))


def _empty(folder: Path) -> None:
    """Take a folder away whole, whatever can be deleted of it."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    try:
        if folder.exists():
            folder.rename(old)
    except OSError as error:
        raise UserError(f"{folder} cannot be emptied ({error.strerror}): delete it") from error
    shutil.rmtree(old, ignore_errors=True)


def write_evaluation(folder: Path, result: Evaluation) -> None:
    """``tables.json``, figures, and last ``metrics.json``."""
    tables = [
        {
            "title": table.title,
            "columns": list(table.columns),
            "rows": [list(r) for r in table.rows],
        }
        for table in result.tables
    ]
    metrics = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in result.metrics.items()
    }
    for name, figure in result.figures.items():
        write_atomically(
            folder / f"{name}.png",
            lambda path, figure=figure: figure.savefig(path, format="png", dpi=150),  # type: ignore[misc]
        )
    write_atomically(
        folder / "tables.json",
        lambda path: path.write_text(json.dumps(tables, indent=1, ensure_ascii=False)),
    )
    write_atomically(
        folder / "metrics.json", lambda path: path.write_text(json.dumps(metrics, indent=1))
    )


@dataclass
class Context:
    """What a stage lends an evaluator: see `mmssl.contracts.EvaluationContext`."""

    recipe: Recipe
    run_folder: Path
    folder: Path
    device: torch.device
    components: dict[str, Modality]
    pretraining_data: Dataset
    title: str
    progress: Progress
    _ledgers: list[tuple[Dataset, Skipped]] = field(default_factory=list)
    _asked: int = 0
    _trained: int = 0

    @property
    def modalities(self) -> list[str]:
        """The modalities that are measured, in the recipe's order."""
        return list(self.components)

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return self.recipe.seed

    def encoders(self, weights: Weights = "pretrained") -> Encoders:
        """The encoders, pretrained or as they were before."""
        encoders = assembly.build_encoders(self.recipe)
        if weights == "pretrained":
            encoders.load(self.run_folder / "checkpoints" / "encoders.safetensors")
        encoders = assembly.measured_encoders(self.recipe, self.title, encoders)
        if self.recipe.training.channels_last:
            assembly.to_memory_format(encoders)
        return encoders.to(self.device)

    def objective(self) -> Objective:
        """The objective as pretraining left it."""
        weights = self.run_folder / "checkpoints" / "objective.safetensors"
        if not weights.is_file():
            raise UserError(f"this run kept no objective: {weights} is missing")
        encoders = assembly.build_encoders(self.recipe)
        measured = assembly.measured_encoders(self.recipe, self.title, encoders).dims
        for name, dim in measured.items():
            if dim != encoders.dims[name]:
                raise UserError(
                    f"subnetworks: features of {name} have {dim} dimensions, but the objective "
                    f"learned to compare {encoders.dims[name]}: leave them out"
                )
        objective = assembly.build_objective(self.recipe, encoders, self.pretraining_data)
        load_model(objective, weights)
        return objective.to(self.device).eval()

    def features(
        self,
        dataset: Dataset,
        *,
        weights: Weights | Encoders = "pretrained",
        read: Read | None = None,
        modalities: Mapping[str, Modality] | None = None,
        clips: int = 1,
        crops: int = 1,
        over_views: OverViews = "mean",
        unlabelled: bool = False,
        training: Training | None = None,
    ) -> dict[str, LabelledFeatures]:
        """Features by modality of a dataset's clips."""
        training = training or self.recipe.training
        distributed.main_first(partial(dataset.materialise, self.progress))
        components = self.components if modalities is None else dict(modalities)
        own = isinstance(weights, Encoders)
        encoders = weights if isinstance(weights, Encoders) else self.encoders(weights)
        if list(components) != encoders.modalities:
            encoders = encoders.only(components)
        ledger = self._ledger(dataset)
        stream = FeatureStream(
            encoders=encoders,
            modalities=components,
            device=self.device,
            precision=training.precision,
            batch_size=_batch_size(training),
            settings=assembly.loader_settings(self.recipe, self.device),
            seed=self.recipe.seed,
            unreadable=ledger,
            channels_last=training.channels_last,
        )
        self._asked += 1
        folder = self.folder / f"features-{self._asked:02d}"
        # Rows of other data are no beginning to go on from.
        distributed.on_main(lambda: _begin(folder, dataset.digest()))
        files = blocks(
            folder,
            dataset,
            stream,
            views=Views(clips, crops),
            read=read or pooled,
            over_views=over_views,
            progress=self.progress,
            title=f"{self.title}: features of {'trained' if own else weights} encoders",
        )
        for file in files:
            for failure in load(file).unreadable:
                ledger.learn("train", failure)
        ledger.pending = []
        return labelled(files, unlabelled=unlabelled)

    def train(
        self,
        dataset: Dataset,
        *,
        objective: Objective,
        training: Training,
        validation: Dataset | None = None,
        weights: Weights = "pretrained",
        modalities: Mapping[str, Modality] | None = None,
    ) -> Encoders:
        """Train encoders further, in a folder of the evaluation's own."""
        for data in (dataset, validation):
            if data is not None:
                distributed.main_first(partial(data.materialise, self.progress))
        components = self.components if modalities is None else dict(modalities)
        encoders = self.encoders(weights)
        if list(components) != encoders.modalities:
            encoders = encoders.only(components)
        assembly.build_heads(objective, encoders, dataset, self.recipe.seed)
        if training.channels_last:
            assembly.to_memory_format(encoders)
        if training.compile:
            for backbone in encoders.backbones.values():
                backbone.compile()
        self._trained += 1
        folder = self.folder / f"training-{self._trained:02d}"
        distributed.on_main(lambda: folder.mkdir(parents=True, exist_ok=True))
        Pretraining(
            folder=folder,
            encoders=encoders,
            objective=objective,
            modalities=components,
            train=dataset,
            validation=validation,
            plan=lambda number: assembly.round_plan(training, number, objective.rounds),
            settings=assembly.training_settings(
                training, seed=self.recipe.seed, max_bad=self.recipe.data.max_bad
            ),
            loader=assembly.loader_settings(self.recipe, self.device),
            device=self.device,
            trackers=assembly.build_named(self.recipe.trackers),
            progress=self.progress,
        ).run()
        objective.eval()
        return encoders.requires_grad_(False).eval()

    def _ledger(self, dataset: Dataset) -> Skipped:
        """``skipped-N.jsonl`` of the N-th dataset: rows of two must not be counted together."""
        for known, ledger in self._ledgers:
            if known is dataset:
                return ledger
        path = self.folder / f"skipped-{len(self._ledgers) + 1}.jsonl"
        sizes: dict[Split, int] = {"train": len(dataset)}
        writes = distributed.is_main()
        ledger = Skipped(path, sizes, self.recipe.data.max_bad, writes=writes)
        self._ledgers.append((dataset, ledger))
        return ledger


def _batch_size(training: Training) -> int:
    """Clips in a forward pass: as many as a rank trains on at a time, within what one can hold."""
    return max(1, min(_LARGEST, training.batch_size // training.accumulate // distributed.size()))


def read_results(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Metrics and tables of every finished evaluation, by name."""
    results = {}
    for name in folder.recipe.evaluations:
        out = folder.evaluation(name)
        if (out / "metrics.json").is_file():
            results[name] = {
                "metrics": json.loads((out / "metrics.json").read_text()),
                "tables": json.loads((out / "tables.json").read_text()),
                "figures": sorted(path.name for path in out.glob("*.png")),
            }
    return results
