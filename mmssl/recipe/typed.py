"""Strict validation, and pydantic's findings in a user's words.

Values are checked in pydantic's strict mode for JSON, which suits YAML: ``"8"`` is no number and
``true`` no integer, but text becomes a path and a list becomes a tuple.
"""

import difflib
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic.types import PathType
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError


@dataclass(frozen=True)
class Expects:
    """Metadata of an annotation: what to call its values where the type alone says too little."""

    phrase: str


class Typed(BaseModel):
    """A mapping of a recipe: known keys only, nothing converted silently, numbers finite.

    A component that means infinity says so: ``Annotated[float, Field(allow_inf_nan=True)]``.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


Model = TypeVar("Model", bound=BaseModel)

_OURS = "recipe"  # the type of an error whose message is final


def failure(message: str, value: Any = None, *path: str | int) -> InitErrorDetails:
    """An error of our own wording, at ``path`` below the value that is validated."""
    error = PydanticCustomError(_OURS, "{message}", {"message": message})
    return InitErrorDetails(type=error, loc=path, input=value)


def validate(model: type[Model], data: Mapping[str, Any], context: Any = None) -> Model:
    """Validate plain data, with every error worded by this module.

    Raises:
        ValidationError: its errors' messages are ready to be shown.
    """
    try:
        return model.model_validate_json(json.dumps(data), strict=True, context=context)
    except ValidationError as error:
        errors = _deepest(data, error.errors())
        # A misspelt key is one mistake, not an unknown key and a missing one.
        meant = {_meant(model, e) for e in errors if e["type"] == "extra_forbidden"}
        errors = [e for e in errors if e["type"] != "missing" or e["loc"] not in meant]
        worded = [failure(_word(model, e), e["input"], *e["loc"]) for e in errors]
        raise ValidationError.from_exception_data(model.__name__, worded) from None


def _deepest(data: Any, errors: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Without a union's complaint that a mapping is no number, where its mapping has an error."""
    reached = [_reached(data, error["loc"]) for error in errors]
    return [
        error
        for error, path in zip(errors, reached, strict=True)
        if len(path) == len(error["loc"])
        or error["type"] in ("missing", _OURS)
        or not any(len(path) < len(other) and other[: len(path)] == path for other in reached)
    ]


def _reached(data: Any, loc: Sequence[str | int]) -> tuple[str | int, ...]:
    """The keys of an error's location that are in the data; the rest name a union's branches."""
    path = []
    for key in loc:
        is_item = isinstance(data, list) and isinstance(key, int) and key < len(data)
        if is_item or (isinstance(data, dict) and key in data):
            data = data[key]
            path.append(key)
    return tuple(path)


def _known(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """The keys that the mapping around the value at ``loc`` may have."""
    owner, _ = _walk(model, (), loc[:-1])
    models = [a for a in (owner, *get_args(owner)) if isinstance(a, type)]
    return [key for m in models if issubclass(m, BaseModel) for key in keys(m)]


def _meant(model: type[BaseModel], error: ErrorDetails) -> tuple[str | int, ...] | None:
    *path, key = error["loc"]
    near = difflib.get_close_matches(str(key), _known(model, error["loc"]), n=1)
    return (*path, near[0]) if near else None


def _word(model: type[BaseModel], error: ErrorDetails) -> str:
    kind, value, loc = error["type"], error["input"], error["loc"]
    context = error.get("ctx", {})
    if kind == _OURS:
        return str(error["msg"])
    if kind == "missing" and isinstance(loc[-1], int):  # of a list of so many values
        loc = loc[:-1]
    elif kind == "missing":
        return f"{loc[-1]!r} is missing"
    if kind == "extra_forbidden":
        return "unknown key" + suggest(str(loc[-1]), _known(model, loc))
    if kind in ("value_error", "assertion_error") and "error" in context:
        return " ".join(str(context["error"]).split())
    if kind in ("path_not_file", "path_not_directory"):
        return f"no such {'file' if kind == 'path_not_file' else 'folder'}: {value}"
    expected = phrase(*_walk(model, (), loc))
    if expected is None:
        message = str(error["msg"])
        return f"{message[:1].lower()}{message[1:]}, got {shown(value)}"
    choices = [str(c) for c in context.get("expected", "").split("'")[1::2]]
    return f"expected {expected}, got {shown(value)}{_hint(kind, value, choices)}"


def _hint(kind: str, value: Any, choices: Sequence[str]) -> str:
    if kind == "string_type" and isinstance(value, bool | int | float):
        return ": put it in quotes"
    if kind == "finite_number":
        return ": write a finite number"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f": write {int(value)}"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        try:
            number = int(value, 0) if kind == "int_type" else float(value)
        except ValueError:
            return ""
        return f": write {number} without quotes or underscores"
    if isinstance(value, str) and (near := difflib.get_close_matches(value, choices, n=1)):
        return f"; did you mean {near[0]!r}?"
    return ""


def keys(model: type[BaseModel]) -> list[str]:
    """The keys that a model knows, as a recipe writes them."""
    return [field.alias or name for name, field in model.model_fields.items()]


def suggest(word: str, words: Sequence[str]) -> str:
    """``; did you mean 'clusters'?``, or what there is."""
    if near := difflib.get_close_matches(word, words, n=1):
        return f"; did you mean {near[0]!r}?"
    return f"; there are: {', '.join(words)}" if words else "; there are none here"


def shown(value: Any) -> str:
    """A value in a message: as YAML would have it, and short."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:70]}...{text[-1]}"


# Annotations in words

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    Path: "a path",
}


def phrase(annotation: Any, metadata: Sequence[Any] = ()) -> str | None:
    """What values an annotation allows: "a whole number > 0", "'sum' or 'mean'".

    Returns:
        None for a type that this module has no words for.
    """
    flat = list(_flatten(metadata))
    if expects := next((m.phrase for m in flat if isinstance(m, Expects)), None):
        return expects
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return phrase(inner, [*more, *metadata])
    if any(isinstance(m, PathType) for m in flat):
        return "the path of a " + next(
            {"file": "file", "dir": "folder", "new": "new file"}.get(m.path_type, "file")
            for m in flat
            if isinstance(m, PathType)
        )
    words = _words(annotation)
    if words is None:
        return None
    limits = [limit for m in flat for limit in _limits(m)]
    return f"{words} {' and '.join(limits)}" if limits else words


def _words(annotation: Any) -> str | None:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _WORDS:
        return _WORDS[annotation]
    if origin in (Union, types.UnionType):
        parts = [phrase(argument) for argument in arguments]
        return None if None in parts else " or ".join(part for part in parts if part)
    if origin is Literal:
        return _either([repr(a) if isinstance(a, str) else shown(a) for a in arguments])
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _either([repr(member.value) for member in annotation])
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)} values"
    outer = origin or annotation
    if outer in (list, tuple, set, frozenset, Sequence):
        return "a list"
    if outer in (dict, Mapping) or (isinstance(outer, type) and issubclass(outer, BaseModel)):
        return "a mapping"
    return None


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _flatten(metadata: Sequence[Any]) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _flatten(item.metadata)
        elif isinstance(item, annotated_types.GroupedMetadata):
            yield from _flatten(list(item))
        else:
            yield item


def _limits(item: Any) -> Iterator[str]:
    if isinstance(item, annotated_types.Gt):
        yield f"> {item.gt}"
    elif isinstance(item, annotated_types.Ge):
        yield f">= {item.ge}"
    elif isinstance(item, annotated_types.Lt):
        yield f"< {item.lt}"
    elif isinstance(item, annotated_types.Le):
        yield f"<= {item.le}"
    elif isinstance(item, annotated_types.MultipleOf):
        yield f"divisible by {item.multiple_of}"
    elif isinstance(item, annotated_types.MinLen):
        yield f"of length >= {item.min_length}"
    elif isinstance(item, annotated_types.MaxLen):
        yield f"of length <= {item.max_length}"


def _walk(
    annotation: Any, metadata: Sequence[Any], loc: Sequence[str | int]
) -> tuple[Any, Sequence[Any]]:
    """The annotation at ``loc``, as far as it leads: the rest names branches of a union."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _walk(inner, [*more, *metadata], loc)
    if not loc:
        return annotation, metadata
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            if loc[0] == (field.alias or name):
                return _walk(field.annotation, field.metadata, loc[1:])
    elif origin in (Union, types.UnionType):
        some = [argument for argument in arguments if argument is not type(None)]
        rest = loc if len(some) == 1 else loc[1:]  # without the name of the branch
        for branch in some if rest else ():
            if (found := _walk(branch, (), rest))[0] is not _walk(branch, (), ())[0]:
                return found
    elif origin in (dict, Mapping) and len(arguments) == 2:
        return _walk(arguments[loc[-1] != "[key]"], (), () if loc[-1] == "[key]" else loc[1:])
    elif origin in (list, Sequence, set, frozenset) and isinstance(loc[0], int):
        return _walk(arguments[0], (), loc[1:])
    elif origin is tuple and isinstance(loc[0], int):
        item = arguments[0] if Ellipsis in arguments else arguments[loc[0] % len(arguments)]
        return _walk(item, (), loc[1:])
    return annotation, metadata
