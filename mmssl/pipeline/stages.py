"""The stages of a run: pretraining, then each evaluation. A finished stage is not run again."""

from functools import partial
from pathlib import Path

import torch

from mmssl.data.cores import cores
from mmssl.errors import UserError
from mmssl.pipeline import assembly
from mmssl.pipeline.evaluation import evaluate, tidy
from mmssl.pipeline.run_folder import RunFolder
from mmssl.recipe import Recipe
from mmssl.training import distributed
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
        if stage != "pretrain":
            tidy(folder.evaluation(stage))


def pretrain(recipe: Recipe, folder: RunFolder, progress: Progress) -> None:
    """Train the encoders of a recipe in its run folder."""
    try:
        pretraining(recipe, folder.path, progress).run()
    except UserError as error:
        raise placed(recipe, error) from error


def pretraining(
    recipe: Recipe, folder: Path, progress: Progress, loop: type[Pretraining] = Pretraining
) -> Pretraining:
    """A recipe's training in a folder, before its first step; its data are there.

    Args:
        recipe: the run's.
        folder: where it is trained.
        progress: who watches.
        loop: the class of the training, which checks watch through a subclass.
    """
    device = assembly.choose_device(recipe)
    modalities = assembly.build_modalities(recipe)
    encoders = assembly.build_encoders(recipe)
    train, validation = distributed.main_first(lambda: assembly.build_datasets(recipe))
    objective = assembly.build_objective(recipe, encoders, train)
    for split, dataset in (("train", train), ("validation", validation)):
        if dataset is not None:
            with recipe.at("data", split):
                distributed.main_first(partial(dataset.materialise, progress))
    if recipe.training.channels_last:
        assembly.to_memory_format(encoders)
    if recipe.training.compile:
        for backbone in encoders.backbones.values():
            backbone.compile()
    return loop(
        folder=folder,
        encoders=encoders,
        objective=objective,
        modalities=modalities,
        train=train,
        validation=validation,
        plan=lambda number: assembly.round_plan(recipe.training, number, objective.rounds),
        settings=assembly.training_settings(
            recipe.training, seed=recipe.seed, max_bad=recipe.data.max_bad
        ),
        loader=assembly.loader_settings(recipe, device),
        device=device,
        trackers=assembly.build_named(recipe.trackers),
        progress=progress,
        callbacks=assembly.build_named(recipe.callbacks),
    )


def placed(recipe: Recipe, error: UserError) -> UserError:
    """The file and line of the field that a message begins with, put before it."""
    field_path, colon, reason = str(error).partition(": ")
    keys = [int(key) if key.isdecimal() else key for key in field_path.split(".")]
    return recipe.error(keys, reason) if colon and keys[0] in Recipe.model_fields else error
