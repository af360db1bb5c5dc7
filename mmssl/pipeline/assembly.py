"""Building what a recipe names."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from mmssl.contracts import Backbone, Dataset, Modality, Objective
from mmssl.data.draws import derive_seed
from mmssl.data.limited import Limited
from mmssl.data.loading import LoaderSettings
from mmssl.errors import UserError
from mmssl.recipe import ComponentSpec, Recipe
from mmssl.recipe.model import Training
from mmssl.recipe.typed import suggest
from mmssl.training import distributed
from mmssl.training.encoders import Encoders
from mmssl.training.settings import Group, RoundPlan, Settings


def build_modalities(recipe: Recipe) -> dict[str, Modality]:
    """The recipe's modalities, in its order."""
    return {name: spec.build() for name, spec in recipe.modalities.items()}


def build_encoders(recipe: Recipe) -> Encoders:
    """Encoders as they are before training: a function of the seed and of each backbone's key."""
    backbones: dict[str, Backbone] = {}
    for key, spec in recipe.backbones.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(recipe.seed, "backbone", key))
            backbones[key] = spec.build()
    return Encoders(backbones, list(recipe.modalities))


def measured_encoders(recipe: Recipe, name: str, encoders: Encoders) -> Encoders:
    """The networks that an evaluation measures: the recipe's, or some within them.

    Args:
        recipe: the run's.
        name: the evaluation's.
        encoders: all of the recipe's.

    Raises:
        UserError: the evaluation asks for what they do not have.
    """
    asked = recipe.evaluations[name].build_measured().networks
    if not asked:
        return encoders
    try:
        return encoders.subnetworks(asked)
    except UserError as error:
        path, _, reason = str(error).partition(": ")
        raise recipe.error(("evaluations", name, *path.split(".")), reason) from error


def measured_modalities(recipe: Recipe, name: str) -> dict[str, Modality]:
    """How clips are read for an evaluation, of the modalities that it measures.

    Raises:
        UserError: it says so of one that it does not measure.
    """
    asked = recipe.evaluations[name].build_measured()
    readers = asked.modalities or {}
    encoded = [key for keys in asked.networks for key in keys.split("+")]
    keys = [key for key in recipe.modalities if not encoded or key in encoded]
    for key in readers:
        if key not in keys:
            message = f"this modality is not measured{suggest(key, keys)}"
            raise recipe.error(("evaluations", name, "modalities", key), message)
    return {key: readers.get(key) or recipe.modalities[key].build() for key in keys}


def build_objective(recipe: Recipe, encoders: Encoders, train: Dataset) -> Objective:
    """The objective, built for the encoders' dimensions and the classes of the data.

    Raises:
        UserError: it does not fit them, or the recipe plans a last round for an objective that
            has only one.
    """
    objective: Objective = recipe.objective.build()
    try:
        build_heads(objective, encoders, train, recipe.seed)
    except UserError as error:
        raise recipe.error(("objective",), str(error).removeprefix("objective: ")) from error
    if recipe.training.final_round is not None and objective.rounds == 1:
        raise recipe.error(
            ("training", "final_round"),
            "this objective has a single round: set epochs and schedule",
        )
    return objective


def build_heads(objective: Objective, encoders: Encoders, train: Dataset, seed: int) -> None:
    """Let an objective make its modules: a function of the seed.

    Raises:
        UserError: it is to train, and has no loss.
    """
    if objective.rounds and type(objective).loss is Objective.loss:
        raise UserError(f"objective: {type(objective).__name__} does not define loss")
    objective.class_names, objective.multilabel = tuple(train.classes), train.multilabel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "objective"))
        objective.build(encoders)


def build_named(specs: Sequence[ComponentSpec]) -> dict[str, Any]:
    """Components of a list, by names that tell a later process whose state is whose.

    ``plugin/name``, and of several of one name ``plugin/name#2`` for the second.
    """
    built: dict[str, Any] = {}
    for number, spec in enumerate(specs):
        name = spec.identity
        nth = 1 + sum(other.identity == name for other in specs[:number])
        built[name if nth == 1 else f"{name}#{nth}"] = spec.build()
    return built


def build_datasets(recipe: Recipe) -> tuple[Dataset, Dataset | None]:
    """The datasets of training and, where there is one, of validation.

    Raises:
        UserError: both have classes, but not the same.
    """
    train: Dataset = recipe.data.train.build()
    with recipe.at("data", "train"):
        if recipe.data.limit is not None and recipe.data.limit < len(train):
            train = Limited(train, recipe.data.limit)
    if recipe.data.validation is None:
        return train, None
    validation: Dataset = recipe.data.validation.build()
    with recipe.at("data", "train"):
        ours = list(train.classes)
    with recipe.at("data", "validation"):
        theirs = list(validation.classes)
    if ours and theirs and ours != theirs:
        other = next((x for x in (*ours, *theirs) if (x in ours) != (x in theirs)), None)
        what = f"{other!r} is in one of them only" if other else "their order differs"
        raise recipe.error(
            ("data", "validation"),
            f"its {len(theirs)} classes are not the {len(ours)} of data.train: {what}; name them "
            "in the same order in both (classes: [...])",
        )
    return train, validation


def choose_device(recipe: Recipe) -> torch.device:
    """The recipe's device; ``auto`` is CUDA where there is one. Each rank has a GPU of its own.

    Raises:
        UserError: CUDA is asked for and not available.
    """
    name = recipe.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or (device.index or 0) >= count:
            raise recipe.error(
                ("device",), f"{name} is not available ({count} CUDA devices); use auto or cpu"
            )
        here = distributed.place()
        if device.index is None and here.size > 1:
            # A cluster may show each task its own GPU only.
            device = torch.device("cuda", here.local_rank % count)
            torch.cuda.set_device(device)
    return device


def loader_settings(recipe: Recipe, device: torch.device) -> LoaderSettings:
    """How batches are loaded on this machine."""
    data = recipe.data
    pin = device.type == "cuda"
    return LoaderSettings(data.workers, data.prefetch, pin=pin, time_limit=data.time_limit)


def training_settings(training: Training, *, seed: int, max_bad: float) -> Settings:
    """A training block, in the loop's terms.

    Args:
        training: the recipe's, or an evaluation's.
        seed: the recipe's.
        max_bad: the largest tolerated share of unreadable samples.
    """
    return Settings(
        seed=seed,
        epoch_size=training.epoch_size,
        batch_size=training.batch_size,
        accumulate=training.accumulate,
        make_optimizer=training.optimizer.build,
        lr_batch=training.lr_batch,
        restart_optimizer=training.restart_optimizer,
        early_stop=training.early_stop,
        freeze_encoders=training.freeze_encoders,
        precision=training.precision,
        sync_batch_norm=training.sync_batch_norm,
        channels_last=training.channels_last,
        log_every=training.log_every,
        checkpoint_steps=training.checkpoint.steps,
        checkpoint_minutes=training.checkpoint.minutes,
        keep=training.checkpoint.keep,
        max_bad=max_bad,
        clip_norm=training.clip_norm,
        groups=[
            Group(
                group.parameters,
                group.model_dump(include={"lr", "weight_decay"}, exclude_none=True),
            )
            for group in training.groups
        ],
    )


def round_plan(training: Training, number: int, rounds: int) -> RoundPlan:
    """Epochs and schedule of a round; the last may have its own."""
    epochs, schedule = training.epochs, training.schedule
    final = training.final_round
    if final is not None and number == rounds:
        epochs = epochs if final.epochs is None else final.epochs
        schedule = schedule if final.schedule is None else final.schedule
    # Called at every step, so the component is loaded once and not built anew each time.
    return RoundPlan(epochs, partial(schedule.registration.load(), **schedule.parameters))


def to_memory_format(encoders: Encoders) -> None:
    """Lay out convolutions' weights with the channel last, as tensor cores want them."""
    for parameter in encoders.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        elif parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
