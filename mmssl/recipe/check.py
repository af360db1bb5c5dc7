"""What no single field can know: that the parts of a recipe fit each other."""

from collections.abc import Iterator, Sequence
from typing import Any, get_type_hints

from mmssl.recipe.component import ComponentSpec
from mmssl.recipe.model import Recipe
from mmssl.recipe.typed import suggest

Finding = tuple[tuple[str | int, ...], str]


def findings(recipe: Recipe) -> Iterator[Finding]:
    """All mistakes, each with the path of the value that is to be changed."""
    yield from _keys(recipe)
    yield from _backbones(recipe)
    yield from _readers(recipe)
    yield from _training(recipe)
    if "pretrain" in recipe.evaluations:
        yield ("evaluations", "pretrain"), "this is the name of the first stage: choose another"
    yield from _twice("trackers", recipe.trackers, "everything would be written twice")
    yield from _twice("callbacks", recipe.callbacks, "all that it does would be done twice")


def _twice(field: str, specs: Sequence[ComponentSpec], why: str) -> Iterator[Finding]:
    for i, spec in enumerate(specs):
        for j, other in enumerate(specs[:i]):
            if (other.identity, other.values) == (spec.identity, spec.values):
                yield (field, i), f"the same as {field}.{j}: {why}"
                break


def _keys(recipe: Recipe) -> Iterator[Finding]:
    """Networks are kept under these keys, where torch has names of its own."""
    from torch import nn

    names = nn.ModuleDict()
    for field, keys in (("modalities", recipe.modalities), ("backbones", recipe.backbones)):
        for key in keys:
            if hasattr(names, key):
                yield (field, key), f"torch's modules have a {key!r} already: choose another key"


def _backbones(recipe: Recipe) -> Iterator[Finding]:
    served: dict[str, str] = {}
    for key, backbone in recipe.backbones.items():
        for name in key.split("+"):
            if name not in recipe.modalities:
                if taken := recipe.taken_away("modalities", name):
                    there = f": {taken} takes it away: take this, too: backbones.{key}: null"
                else:
                    there = suggest(name, list(recipe.modalities))
                yield ("backbones", key), f"there is no modality {name!r}{there}"
                continue
            if served.get(name) == key:
                yield ("backbones", key), f"names the modality {name!r} twice"
            elif name in served:
                other = served[name]
                yield (
                    ("backbones", key),
                    f"the modality {name!r} has the backbone {other!r} already",
                )
            else:
                served[name] = key
                yield from _fit(key, backbone, name, recipe.modalities[name])
        yield from _arity(key, backbone)
    for name in recipe.modalities:
        if name not in served:
            message = f"no backbone serves this modality: add {name!r} under 'backbones'"
            if taken := recipe.taken_away("backbones", name):
                message += f"; {taken} takes it away: take this, too: modalities.{name}: null"
            yield ("modalities", name), message


def _readers(recipe: Recipe) -> Iterator[Finding]:
    """Datasets may say how a modality of theirs is read: one that the recipe has."""
    for path, spec in recipe.components():
        of_data = path[0] == "data" or (path[0] == "evaluations" and len(path) > 4)
        if of_data and spec.kind == "modalities" and path[-1] not in recipe.modalities:
            name = str(path[-1])
            yield path, f"there is no modality {name!r}{suggest(name, list(recipe.modalities))}"


def _fit(
    key: str, backbone: ComponentSpec, name: str, modality: ComponentSpec
) -> Iterator[Finding]:
    """Compare class attributes; what an instance decides is checked when it is built."""
    serves = getattr(_made_by(backbone), "modalities", None)
    kind = getattr(_made_by(modality), "kind", None)
    if isinstance(serves, frozenset | set) and isinstance(kind, str) and kind not in serves:
        there = " and ".join(sorted(serves)) or "nothing"
        what = f"{name!r}" if name == kind else f"{name!r}, which is of the kind {kind!r}"
        yield ("backbones", key), f"{backbone.use!r} serves {there}, not {what}"


def _arity(key: str, backbone: ComponentSpec) -> Iterator[Finding]:
    from mmssl.contracts import Backbone  # needs torch, as the backbone's own class did

    made = _made_by(backbone)
    # "-> Backbone" says nothing about the network that a function returns.
    if not isinstance(made, type) or not issubclass(made, Backbone) or made is Backbone:
        return
    if "+" in key and not made.joint:
        message = f"{backbone.use!r} takes one modality: give each of them a backbone of its own"
        yield ("backbones", key), message
    elif "+" not in key and made.joint:
        message = (
            f"{backbone.use!r} takes several modalities at once: join their keys by '+', such as "
            "video+audio"
        )
        yield ("backbones", key), message


def _made_by(spec: ComponentSpec) -> Any:
    """The class of what a component builds, or None where only building it would tell."""
    target = spec.registration.load()
    if isinstance(target, type):
        return target
    try:
        return get_type_hints(target).get("return")
    except (NameError, AttributeError, TypeError):  # names that only a type checker imports
        return None


def _training(recipe: Recipe) -> Iterator[Finding]:
    for path, training in recipe.trainings():
        size = training.batch_size
        if size % training.accumulate:
            message = f"{training.accumulate} does not divide the batch size {size}"
            yield (*path, "accumulate"), message
        if training.epoch_size < size:
            message = (
                f"an epoch of {training.epoch_size} samples holds no batch of {size}: "
                "lower batch_size or raise epoch_size"
            )
            yield (*path, "epoch_size"), message
    if recipe.training.early_stop is not None and recipe.data.validation is None:
        yield ("training", "early_stop"), "needs a validation loss: add 'data.validation'"
