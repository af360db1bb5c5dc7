"""The stages of a run: pretraining, then each evaluation. A finished stage is not run again."""

import json
import math
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mmssl.contracts import Dataset, Evaluation, Evaluator, LabelledFeatures, Modality, Split
from mmssl.data.cores import cores
from mmssl.data.skipped import Skipped
from mmssl.errors import UserError
from mmssl.pipeline import assembly
from mmssl.pipeline.run_folder import RunFolder
from mmssl.recipe import Recipe
from mmssl.training import distributed
from mmssl.training.checkpoints import write_atomically
from mmssl.training.encoders import Encoders
from mmssl.training.features import FeatureStream
from mmssl.training.loop import Pretraining
from mmssl.training.progress import Progress


def stage_names(recipe: Recipe) -> list[str]:
    """All stages in their order: "pretrain", then the evaluations by name."""
    return ["pretrain", *recipe.evaluations]


def run_stage(recipe: Recipe, stage: str, progress: Progress) -> None:
    """Run one stage to its end, or from where it was left; every rank calls it.

    Args:
        recipe: the run's.
        stage: one of `stage_names`.
        progress: who watches.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    elif distributed.place().local_size > 1:  # they share the machine's cores
        torch.set_num_threads(max(1, cores() // distributed.place().local_size))
    folder = RunFolder(recipe)
    if stage == "pretrain":
        pretrain(recipe, folder, progress)
    else:
        evaluate(recipe, stage, folder, progress)
    if distributed.is_main():
        folder.finish(stage)


def pretrain(recipe: Recipe, folder: RunFolder, progress: Progress) -> None:
    """Train the encoders of a recipe in its run folder."""
    training = pretraining(recipe, folder.path, progress)
    try:
        training.run()
    except UserError as error:
        raise placed(recipe, error) from error


def pretraining(recipe: Recipe, folder: Path, progress: Progress) -> Pretraining:
    """A recipe's training in a folder, before its first step; its data are there."""
    device = assembly.choose_device(recipe)
    modalities = assembly.build_modalities(recipe)
    encoders = assembly.build_encoders(recipe)
    objective = assembly.build_objective(recipe, encoders)
    train, validation = distributed.main_first(lambda: assembly.build_datasets(recipe))
    for dataset in (train, validation):
        if dataset is not None:
            distributed.main_first(partial(dataset.materialise, progress))
    if recipe.training.channels_last:
        assembly.to_memory_format(encoders)
    if recipe.training.compile:
        for backbone in encoders.backbones.values():
            backbone.compile()
    return Pretraining(
        folder=folder,
        encoders=encoders,
        objective=objective,
        modalities=modalities,
        train=train,
        validation=validation,
        plan=lambda number: assembly.round_plan(recipe, number, objective.rounds),
        settings=assembly.training_settings(recipe),
        loader=assembly.loader_settings(recipe, device),
        device=device,
        trackers=[spec.build() for spec in recipe.trackers],
        progress=progress,
    )


def placed(recipe: Recipe, error: UserError) -> UserError:
    """The file and line of the field that a message begins with, put before it."""
    field_path, colon, reason = str(error).partition(": ")
    keys = field_path.split(".")
    return recipe.error(keys, reason) if colon and keys[0] in Recipe.model_fields else error


def evaluate(recipe: Recipe, name: str, folder: RunFolder, progress: Progress) -> None:
    """Run one evaluation on the finished encoders and write what it found."""
    weights = folder.path / "checkpoints" / "encoders.safetensors"
    if not weights.is_file():
        raise UserError(f"{folder.path} holds no pretrained encoders yet: {weights} is missing")
    spec = recipe.evaluations[name]
    evaluator: Evaluator = spec.build()
    out = folder.evaluation(name)

    def begin() -> None:
        shutil.rmtree(out, ignore_errors=True)  # of another recipe's evaluation, or left half done
        out.mkdir(parents=True)

    distributed.on_main(begin)
    context = Context(
        recipe=recipe,
        run_folder=folder.path,
        folder=out,
        weights=weights,
        device=assembly.choose_device(recipe),
        components=assembly.build_modalities(recipe),
        pretraining_data=distributed.main_first(lambda: assembly.build_datasets(recipe)[0]),
        title=name,
        progress=progress,
    )
    try:
        result = evaluator.evaluate(context)
    except UserError as error:
        raise recipe.error(("evaluations", name), str(error)) from error
    if distributed.is_main():
        write_evaluation(out, result)


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
    weights: Path
    device: torch.device
    components: dict[str, Modality]
    pretraining_data: Dataset
    title: str
    progress: Progress
    _ledgers: list[tuple[Dataset, Skipped]] = field(default_factory=list)

    @property
    def modalities(self) -> list[str]:
        """The recipe's modalities, in its order."""
        return list(self.components)

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return self.recipe.seed

    def features(
        self,
        dataset: Dataset,
        *,
        weights: Literal["pretrained", "initial"] = "pretrained",
        views: int = 1,
    ) -> dict[str, LabelledFeatures]:
        """Features by modality of a labelled dataset's clips."""
        distributed.main_first(partial(dataset.materialise, self.progress))
        encoders = self._encoders(weights)
        ledger = self._ledger(dataset)
        stream = FeatureStream(
            encoders=encoders,
            modalities=self.components,
            device=self.device,
            precision=self.recipe.training.precision,
            batch_size=self._batch_size(),
            settings=assembly.loader_settings(self.recipe, self.device),
            seed=self.recipe.seed,
            unreadable=ledger,
            channels_last=self.recipe.training.channels_last,
        )
        collected: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {
            name: [] for name in self.modalities
        }
        title = f"{self.title}: features of {weights} encoders"
        own = distributed.share(len(dataset))
        with self.progress.task(title, len(own) * views) as advance:
            for batch in stream(dataset, np.arange(own.start, own.stop), views=views):
                for name, rows in collected.items():
                    use = batch.present[name] & (batch.labels >= 0)
                    pooled = batch.pooled[name].cpu().numpy()
                    rows.append((batch.index[use], pooled[use], batch.labels[use]))
                advance(len(batch.index))
        for found in distributed.share_objects(ledger.pending):
            for split, unreadable in found:
                ledger.learn(split, unreadable)
        ledger.pending = []
        return {name: _from_all_ranks(_mean_over_views(rows)) for name, rows in collected.items()}

    def _batch_size(self) -> int:
        """Clips in a forward pass: as many as a rank trains on at a time."""
        training = self.recipe.training
        return max(1, training.batch_size // training.accumulate // distributed.size())

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

    def _encoders(self, weights: Literal["pretrained", "initial"]) -> Encoders:
        encoders = assembly.build_encoders(self.recipe)
        if weights == "pretrained":
            encoders.load(self.weights)
        if self.recipe.training.channels_last:
            assembly.to_memory_format(encoders)
        return encoders.to(self.device)


def _mean_over_views(
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> LabelledFeatures:
    """Clips of one sample stand next to each other; average them."""
    if not rows:  # a rank without rows
        return LabelledFeatures(np.empty(0, int), np.empty((0, 0), np.float32), np.empty(0, int))
    index, pooled, labels = (np.concatenate(part) for part in zip(*rows, strict=True))
    unique, first, counts = np.unique(index, return_index=True, return_counts=True)
    if len(unique) != len(index):
        pooled = np.add.reduceat(pooled, first, axis=0) / counts[:, None].astype(np.float32)
    return LabelledFeatures(unique, pooled, labels[first])


def _from_all_ranks(own: LabelledFeatures) -> LabelledFeatures:
    """The features of every rank's share, on every rank: a labelled dataset's are not large."""
    if distributed.size() == 1:
        return own
    found = [part for part in distributed.share_objects(own) if len(part.index)]
    if not found:
        return own
    return LabelledFeatures(
        np.concatenate([part.index for part in found]),
        np.concatenate([part.pooled for part in found]),
        np.concatenate([part.labels for part in found]),
    )


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
