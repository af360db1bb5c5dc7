"""What a recipe would do: built and checked before anything is read, written or trained."""

import copy
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import nn

from mmssl.contracts import Backbone, Evaluator, Launcher, Modality, Objective, Table
from mmssl.errors import UserError
from mmssl.pipeline import assembly
from mmssl.recipe import Recipe
from mmssl.recipe.component import ComponentSpec
from mmssl.recipe.model import Training
from mmssl.training.encoders import Encoders, breach
from mmssl.training.settings import Settings, grouped


@dataclass(frozen=True)
class Plan:
    """A recipe's plan.

    Attributes:
        summary: one line.
        tables: components with shapes and parameters, data, rounds, what the objective costs
            besides, evaluations.
    """

    summary: str
    tables: list[Table]


def make_plan(recipe: Recipe) -> Plan:
    """Build every component of a recipe and check that they fit, without reading media.

    Raises:
        UserError: something does not fit; the message names its place in the recipe.
    """
    launcher: Launcher = recipe.launch.build()
    device = assembly.choose_device(recipe) if launcher.here else recipe.device
    modalities = assembly.build_modalities(recipe)
    encoders = assembly.build_encoders(recipe)
    _check_features(recipe, encoders, modalities)
    train, validation = assembly.build_datasets(recipe)
    # Some read nothing until they are asked.
    with recipe.at("data", "train"):
        data = [("train", _short(recipe.data.train), len(train), len(train.classes))]
    if validation is not None and recipe.data.validation is not None:
        with recipe.at("data", "validation"):
            row = _short(recipe.data.validation), len(validation), len(validation.classes)
        data.append(("validation", *row))
    objective = assembly.build_objective(recipe, encoders, train)
    for spec in (*recipe.trackers, *recipe.callbacks):
        spec.build()
    for name, spec in recipe.evaluations.items():
        evaluator: Evaluator = spec.build()
        _check_measured(recipe, name, evaluator, encoders)
    _check_batch(recipe, launcher)
    _check_groups(recipe, encoders, objective)
    heads = _count(objective)
    steps = _total_steps(recipe, objective.rounds)
    summary = (
        f"{recipe.name}: {recipe.objective.use} of {_listed(list(modalities))} on {device}, "
        f"{objective.rounds} round{'s' * (objective.rounds != 1)}, {steps:,} steps, "
        f"{_count(encoders) + heads:,} parameters"
    )
    networks: list[tuple[str, str, str, Any, int]] = [
        (
            key,
            _short(recipe.backbones[key]),
            ", ".join("x".join(map(str, modalities[name].shape)) for name in key.split("+")),
            backbone.dim,
            _count(backbone),
        )
        for key, backbone in encoders.backbones.items()
    ]
    networks.append(("objective", _short(recipe.objective), "", None, heads))
    stages = [(name, _short(spec)) for name, spec in recipe.evaluations.items()]
    return Plan(
        summary,
        [
            Table("networks", ("key", "component", "clip", "features", "parameters"), networks),
            Table("data", ("split", "component", "samples", "classes"), data),
            _training(recipe, modalities, launcher.ranks),
            _rounds(recipe, objective.rounds, len(train)),
            *objective.plan(samples=len(train), ranks=launcher.ranks),
            *([Table("evaluations", ("name", "component"), stages)] if stages else []),
        ],
    )


def _listed(names: list[str]) -> str:
    """``video``, ``video and audio``, or ``video, audio and imu``."""
    return " and ".join([", ".join(names[:-1]), *names[-1:]] if names[1:] else names)


def quantity(value: float, unit: str) -> str:
    """Three digits with a decimal prefix: ``133 GB``, ``1.10 TFLOP``."""
    prefixes = iter("kMGTPE")
    prefix = ""
    while value >= 999.5 and prefix != "E":
        value /= 1000
        prefix = next(prefixes)
    return f"{value:#.3g}".rstrip(".") + f" {prefix}{unit}" if prefix else f"{value:.0f} {unit}"


def _short(spec: ComponentSpec) -> str:
    """A component and those of its parameters that are not at their defaults, on one line."""
    fields = type(spec.values).model_fields
    plain = spec.plain()
    shown = [spec.use]
    for name, field in fields.items():
        key = field.alias or name
        value = plain[key]
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        if value != default:
            if isinstance(spec.parameters[key], Training):
                value = f"({value['epochs']} epochs of {value['epoch_size']:,})"
            shown.append(f"{key}={_named(value)}")
    return " ".join(shown)


def _named(value: Any) -> Any:
    """A component's name in place of its parameters, also of those in a mapping."""
    if isinstance(value, dict) and "use" in value:
        return value["use"]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_named(one)}" for key, one in value.items()) + "}"
    return value


def _check_measured(recipe: Recipe, name: str, evaluator: Evaluator, encoders: Encoders) -> None:
    """The networks that an evaluation measures are there, and take the clips that it reads."""
    parameters = recipe.evaluations[name].parameters
    asked = [key for key in ("subnetworks", "modalities") if parameters[key]]
    if asked and not evaluator.encodes:
        use = recipe.evaluations[name].use
        raise recipe.error(("evaluations", name, asked[0]), f"{use} encodes no clips: leave it out")
    measured = assembly.measured_encoders(recipe, name, encoders)
    components = assembly.measured_modalities(recipe, name)
    if asked:
        _check_features(recipe, measured, components, ("evaluations", name))
    only = parameters.get("only") or list(components)  # as evaluators call it that measure some
    try:
        evaluator.check(list(components))
        measured.only(only)
    except UserError as error:
        raise recipe.error(("evaluations", name), str(error)) from error
    for key in parameters["modalities"] or ():
        if key not in only:
            path = ("evaluations", name, "modalities", key)
            raise recipe.error(path, "this modality is not measured: only leaves it out")


def _check_batch(recipe: Recipe, launcher: Launcher) -> None:
    """Every rank gets an equal part of every micro-batch."""
    for path, training in recipe.trainings():
        ranks = launcher.ranks_of(str(path[1]) if path[0] == "evaluations" else "pretrain")
        parts = training.accumulate * ranks
        if training.batch_size % parts == 0:
            continue
        below = training.batch_size // parts * parts
        fitting = [str(size) for size in (below, below + parts) if size]
        cut = f"{ranks} ranks"
        if training.accumulate > 1:
            cut += f" of {training.accumulate} micro-batches each"
        raise recipe.error(
            (*path, "batch_size"),
            f"{training.batch_size} samples are not equal parts for {cut}: take "
            f"{' or '.join(fitting)}, or another number of ranks",
        )


def _check_groups(recipe: Recipe, encoders: Encoders, objective: Objective) -> None:
    """Each of the training's groups holds parameters that are trained."""
    modules: dict[str, nn.Module] = {"encoders": encoders, "objective": objective}
    if recipe.training.freeze_encoders:
        del modules["encoders"]
    try:
        grouped(modules, _settings(recipe).groups)
    except UserError as error:
        path, _, reason = str(error).partition(": ")
        keys = [int(key) if key.isdecimal() else key for key in path.split(".")]
        raise recipe.error(keys, reason) from error


def _training(recipe: Recipe, modalities: dict[str, Modality], ranks: int) -> Table:
    """How steps are taken, beside what the table of rounds says."""
    training = recipe.training
    rows = [("optimizer", _short(training.optimizer)), ("schedule", _short(training.schedule))]
    if training.final_round is not None and training.final_round.schedule is not None:
        rows.append(("schedule of the last round", _short(training.final_round.schedule)))
    steps = _settings(recipe).steps_per_epoch
    rows.append(("an epoch", f"{steps:,} steps"))
    rows.append(("precision", training.precision + ", compiled" * training.compile))
    if training.accumulate > 1:
        size = training.batch_size // training.accumulate
        rows.append(("a batch", f"{training.accumulate} micro-batches of {size}"))
    if ranks > 1:
        rows.append(("ranks", f"{ranks:,}"))
        rows.append(("clips of a step, a rank", f"{training.batch_size // ranks:,}"))
    clips = {name: modality.empty().nbytes for name, modality in modalities.items()}

    def decoded(count: int) -> str:
        return ", ".join(f"{name} {quantity(count * n, 'B')}" for name, n in clips.items())

    rows.append(("decoded clips of a step", decoded(training.batch_size)))
    if ranks > 1:
        rows.append(("decoded clips of a step, a rank", decoded(training.batch_size // ranks)))
    if training.early_stop:
        rows.append(("early stop", f"when the validation loss rose {training.early_stop} times"))
    if training.freeze_encoders:
        rows.append(("encoders", "frozen"))
    if recipe.callbacks:
        rows.append(("callbacks", ", ".join(map(_short, recipe.callbacks))))
    return Table("training", ("", ""), rows)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _check_features(
    recipe: Recipe,
    encoders: Encoders,
    modalities: dict[str, Modality],
    place: tuple[str, ...] = (),
) -> None:
    """Send shapes without data through every backbone.

    Args:
        recipe: the run's.
        encoders: what is checked.
        modalities: what clips they see.
        place: of the evaluation that they belong to, for messages.
    """
    for name, modality in modalities.items():
        if told := _undeclared_clips(modality):
            raise recipe.error((*place, "modalities", name), told)
    for key, backbone in encoders.backbones.items():
        assert isinstance(backbone, Backbone)
        if told := _undeclared_features(backbone):
            raise recipe.error(place or ("backbones", key), told)
        for name in key.split("+"):
            serves, kind = backbone.modalities, modalities[name].kind
            if serves != "any" and kind not in serves:
                there = " and ".join(sorted(serves))
                raise recipe.error(
                    place or ("backbones", key), f"{key} has a network for {there}, not for {kind}"
                )
        ghost = copy.deepcopy(backbone).to("meta").eval()
        names = key.split("+")
        clips = {
            n: torch.zeros(2, *modalities[n].shape, dtype=modalities[n].dtype, device="meta")
            for n in names
        }
        try:
            with torch.no_grad():
                if len(names) > 1:
                    present = {n: torch.ones(2, dtype=torch.bool) for n in names}
                    features: Any = ghost(clips, present)
                else:
                    features = {key: ghost(clips[key])}
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            if asks_for_data(error):
                continue
            shapes = ", ".join(f"{n} {list(modalities[n].shape)}" for n in names)
            reason = (str(error) or type(error).__name__).splitlines()[0]
            who = f"{key} " if place else ""
            raise recipe.error(
                place or ("backbones", key), f"{who}does not take clips of shape {shapes}: {reason}"
            ) from error
        if told := breach(backbone, names, features, 2):
            raise recipe.error(place or ("backbones", key), told)


def _undeclared_clips(modality: Modality) -> str:
    """What a modality leaves unsaid of its clips, for its author; nothing where all is said."""
    kind, shape = (getattr(modality, name, None) for name in ("kind", "shape"))
    for name, value, kept, example in (
        ("kind", kind, isinstance(kind, str) and bool(kind), "kind = 'imu'"),
        ("shape", shape, isinstance(shape, Iterable), "self.shape = (channels, steps)"),
    ):
        if not kept:
            return f"{name} is {value!r}: set it in the class or in __init__, as {example}"
    if not all(_is_size(size) for size in modality.shape):
        return f"shape is {shape}: it must hold whole numbers > 0, without the batch's size"
    return ""


def _undeclared_features(backbone: Backbone) -> str:
    """What a backbone leaves unsaid of what it takes and gives, for its author."""
    serves, dim = (getattr(backbone, name, None) for name in ("modalities", "dim"))
    if serves != "any" and (isinstance(serves, str) or not isinstance(serves, Collection)):
        return (
            f"modalities is {serves!r}: set it in the class to the kinds that it serves, such as "
            "frozenset({'imu'}), or to 'any'"
        )
    return "" if _is_size(dim) else f"dim is {dim!r}: set it to D of its features"


def _is_size(value: Any) -> bool:
    return isinstance(value, Integral) and int(value) > 0


def asks_for_data(error: Exception) -> bool:
    """Did a network on the device ``meta`` fail as it looked at values, such as ``x.max().item()``?

    Torch has an error of its own for some operations, and a mere text for ``item``.
    """
    return isinstance(error, NotImplementedError) or "on meta tensors" in str(error)


def _settings(recipe: Recipe) -> Settings:
    return assembly.training_settings(
        recipe.training, seed=recipe.seed, max_bad=recipe.data.max_bad
    )


def _total_steps(recipe: Recipe, rounds: int) -> int:
    settings = _settings(recipe)
    plans = (
        assembly.round_plan(recipe.training, number, rounds) for number in range(1, rounds + 1)
    )
    return sum(settings.steps_per_epoch * plan.epochs for plan in plans)


def _rounds(recipe: Recipe, rounds: int, samples: int) -> Table:
    """Steps, batch and learning rate of each round; equal rounds share a row."""
    settings = _settings(recipe)
    base = settings.make_optimizer([{"params": [nn.Parameter(torch.zeros(1))]}])
    peak = base.param_groups[0]["lr"] * settings.lr_scale
    rows = []
    first = 1
    has_own_last = recipe.training.final_round is not None and rounds > 1
    for last in sorted({rounds - 1, rounds} if has_own_last else {rounds} - {0}):
        plan = assembly.round_plan(recipe.training, last, rounds)
        steps = settings.steps_per_epoch * plan.epochs
        looks = sorted({steps * i // 1000 for i in range(1000)} | {max(0, steps - 1)})
        rates = [peak * plan.factor(settings.place(step, plan.epochs)) for step in looks]
        rows.append(
            (
                str(last) if first == last else f"{first} to {last}",
                plan.epochs,
                steps,
                settings.batch_size,
                steps * settings.batch_size,
                f"{steps * settings.batch_size / max(1, samples):.2f}",
                f"{rates[0]:.3g}",
                f"{max(rates):.3g}",
                f"{rates[-1]:.3g}",
            )
        )
        first = last + 1
    columns = (
        "round", "epochs", "steps", "batch", "clips", "passes", "lr first", "lr highest", "lr last",
    )  # fmt: skip
    title = "each round, at most" if settings.early_stop else "each round"
    return Table(title, columns, rows)
