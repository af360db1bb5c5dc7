"""The signature is the schema: a component's parameters from its annotations and docstring.

What a recipe may set are the keyword-only parameters; those before the ``*`` are what the core
passes itself. A parameter annotated with a contract (``train: Dataset``) is a nested component.
A class whose ``__init__`` ends in ``**others`` hands them on: it has its base's parameters, too.
"""

import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, Field, GetCoreSchemaHandler, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from mmssl.errors import UserError
from mmssl.recipe.component import ComponentSpec, blame, check_class
from mmssl.recipe.typed import Expects, Typed, failure, keys, phrase, shown, validate
from mmssl.registry import SINGULAR, Registry

#: The contract of each kind that a parameter may nest.
CONTRACTS = {
    "Modality": "modalities",
    "Dataset": "datasets",
    "Backbone": "backbones",
    "Objective": "objectives",
    "Evaluator": "evaluators",
    "Tracker": "trackers",
    "Callback": "callbacks",
}


class _Required(Enum):
    REQUIRED = "required"

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Final = _Required.REQUIRED


@dataclass(frozen=True)
class Parameter:
    """One parameter of a component.

    Attributes:
        name: the key in a recipe.
        annotation: its type, as the component's author wrote it.
        default: its default, or `REQUIRED`.
        description: from the docstring's ``Args:``; empty where it says nothing.
    """

    name: str
    annotation: Any
    default: Any
    description: str

    @property
    def required(self) -> bool:
        """Must a recipe set it?"""
        return self.default is REQUIRED

    @property
    def expects(self) -> str:
        """Its type in words: "a whole number > 0", "'sum' or 'mean'", "a dataset"."""
        return phrase(_translate(self.annotation)) or inspect.formatannotation(self.annotation)

    @property
    def written_default(self) -> str:
        """Its default as a recipe would write it; empty where it has none."""
        return "" if self.required else json.dumps(self.default, default=str)


def parameters(target: Callable[..., Any], kind: str = "") -> list[Parameter]:
    """What a recipe may set of a component, in the order of its signature.

    Args:
        target: the component.
        kind: plural; of evaluators a recipe may also set what it may of every evaluation.

    Raises:
        UserError: a parameter has no annotation, or one that cannot be resolved.
    """
    own = _own_parameters(target)
    if kind != "evaluators":
        return own
    from mmssl.recipe.evaluation import Measured

    common = _own_parameters(Measured)
    for parameter in common:
        if parameter.name in {p.name for p in own}:
            raise UserError(
                f"a parameter cannot be called {parameter.name!r}: every evaluation has this key "
                "(mmssl.recipe.evaluation)"
            )
    return [*own, *common]


def _own_parameters(target: Callable[..., Any]) -> list[Parameter]:
    described = _described(target)
    result: dict[str, Parameter] = {}
    for function, signature in _signatures(target):
        found = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
        hints = _hints(function, [p.name for p in found])
        for parameter in found:
            name = parameter.name
            if name not in hints:
                raise UserError(f"parameter {name!r} is declared without a type")
            if name == "use":
                raise UserError(
                    "a parameter cannot be called 'use': recipes name components with it"
                )
            default = REQUIRED if parameter.default is parameter.empty else parameter.default
            description = described.get(name, "")
            result.setdefault(name, Parameter(name, hints[name], default, description))
    return list(result.values())


def _signatures(target: Callable[..., Any]) -> Iterator[tuple[Any, inspect.Signature]]:
    """The functions whose parameters a component takes: its own, then those it hands others to."""
    if not isinstance(target, type):
        yield target, inspect.signature(target)
        return
    signature = inspect.signature(target)
    yield target.__init__, signature  # type: ignore[misc]
    owners = [base for base in target.__mro__ if "__init__" in base.__dict__]
    for base in owners[1:]:
        if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            return
        function: Any = base.__dict__["__init__"]
        signature = inspect.signature(function)
        yield function, signature


def _positional(target: Callable[..., Any]) -> set[str]:
    """The parameters before the ``*``."""
    found = inspect.signature(target).parameters.values()
    return {p.name for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)}


def _hints(function: Any, names: list[str]) -> dict[str, Any]:
    """The resolved annotations of some parameters, whatever the others' may need."""
    function = inspect.unwrap(function)
    written = getattr(function, "__annotations__", {})
    shim = types.SimpleNamespace(__annotations__={n: written[n] for n in names if n in written})
    try:
        return typing.get_type_hints(
            shim, globalns=getattr(function, "__globals__", {}), include_extras=True
        )
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise UserError(f"a parameter's type cannot be resolved: {error}") from error


def summary(target: Callable[..., Any]) -> str:
    """The first paragraph of a component's docstring, as one line."""
    return " ".join((inspect.getdoc(target) or "").partition("\n\n")[0].split())


def prose(target: Callable[..., Any]) -> str:
    """A component's docstring up to its ``Args:``, empty where it has none."""
    return (inspect.getdoc(target) or "").partition("\nArgs:")[0].strip()


def _described(target: Callable[..., Any]) -> dict[str, str]:
    """Descriptions of parameters; a subclass's docstring goes before its bases'."""
    described: dict[str, str] = {}
    sources: list[Any] = [target]
    if isinstance(target, type):
        bases = [base for base in target.__mro__ if base is not object]
        sources = [source for base in bases for source in (base, base.__dict__.get("__init__"))]
    for source in sources:
        for name, text in arguments(getattr(source, "__doc__", None) or "").items():
            described.setdefault(name, text)
    return described


_ENTRY = re.compile(r"\*{0,2}(\w+)(?: *\([^)]*\))?: *(.*)")


def arguments(docstring: str) -> dict[str, str]:
    """The entries of a Google-style ``Args:`` section."""
    lines = iter(inspect.cleandoc(docstring).split("\n"))
    if not any(line.strip() in ("Args:", "Arguments:") for line in lines):  # consumes up to it
        return {}
    found: dict[str, list[str]] = {}
    indent, name = 0, ""
    for line in lines:
        text = line.strip()
        if not text:
            continue
        depth = len(line) - len(line.lstrip())
        if depth == 0:
            break
        indent = indent or depth
        entry = _ENTRY.fullmatch(text)
        if depth <= indent and entry:
            name = entry[1]
            found[name] = [entry[2]]
        elif name:
            found[name].append(text)
    return {name: " ".join(texts).strip() for name, texts in found.items()}


# Models


@cache
def parameter_model(target: Callable[..., Any], kind: str = "") -> type[BaseModel]:
    """The strict, frozen pydantic model of the parameters of a component of a kind.

    Raises:
        UserError: the signature does not say what a recipe may set.
    """
    fields: dict[str, Any] = {}
    for parameter in parameters(target, kind):
        options: dict[str, Any] = {}
        if not parameter.required:
            options["default"] = parameter.default
        if parameter.description:
            options["description"] = parameter.description
        name = parameter.name
        if name.startswith("_") or hasattr(BaseModel, name):  # such as "copy" or "json"
            name, options["alias"] = f"{name.lstrip('_')}_", name
        fields[name] = (_translate(parameter.annotation), Field(**options))
    name = getattr(target, "__name__", type(target).__name__)
    try:
        return create_model(name, __base__=Typed, __doc__=summary(target), **fields)
    except (PydanticUserError, TypeError) as error:
        reason = " ".join(str(error).partition("\n")[0].split())
        raise UserError(f"a parameter's type is not supported: {reason}") from error


def _translate(annotation: Any) -> Any:
    """The annotation with contracts replaced by components of their kind."""
    # A signature can only name contracts once they are imported; they need torch.
    contracts = sys.modules.get("mmssl.contracts")
    if contracts and isinstance(annotation, type):
        for name, kind in CONTRACTS.items():
            if issubclass(annotation, getattr(contracts, name)):
                return component(kind)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return Annotated[(_translate(arguments[0]), *arguments[1:])]
    if origin in (Union, types.UnionType):
        return Union[tuple(_translate(a) for a in arguments)]  # noqa: UP007
    if origin in (list, dict, tuple, set, frozenset):
        return origin[tuple(a if a is Ellipsis else _translate(a) for a in arguments)]
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return Mapping[tuple(_translate(a) for a in arguments)]  # type: ignore[misc]
    return annotation


def component(kind: str) -> Any:
    """The annotation of a recipe's field that holds a component."""
    one = SINGULAR[kind]
    article = "an" if one[0] in "aeiou" else "a"
    return Annotated[ComponentSpec, Kind(kind), Expects(f"{article} {one}")]


@dataclass(frozen=True)
class Kind:
    """How pydantic makes a `ComponentSpec` of a mapping with ``use``, or of a bare name.

    The registry is taken from the validation's context, ``{"registry": Registry}``.
    """

    kind: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value: value.plain() if isinstance(value, ComponentSpec) else value
            ),
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> JsonSchemaValue:
        return {"x-component": self.kind}  # mmssl.recipe.schema replaces it by a reference

    def _validate(self, value: Any, info: core_schema.ValidationInfo) -> ComponentSpec:
        one = SINGULAR[self.kind]
        if isinstance(value, str):
            value = {"use": value}
        if not isinstance(value, dict):
            raise _error(
                f"expected {'an' if one[0] in 'aeiou' else 'a'} {one} (its name, or a mapping with "
                f"'use' and its parameters), got {shown(value)}"
            )
        if "use" not in value:
            raise _error(f"'use' is missing: it names the {one}")
        use = value["use"]
        if not isinstance(use, str) or not use:
            raise _error(f"expected the name of a registered {one}, got {shown(use)}", "use")
        assert info.context is not None
        registry: Registry = info.context["registry"]
        try:
            registration = registry.resolve(self.kind, use)
            target = registration.load()
            check_class(target, registration)
        except UserError as error:
            raise _error(str(error), "use") from None
        try:
            model = parameter_model(target, self.kind)
        except UserError as error:
            raise _error(f"{blame(registration)}: {error}", "use") from None
        given = {key: item for key, item in value.items() if key != "use"}
        if fixed := sorted(given.keys() & _positional(target) - set(keys(model))):
            raise _error(
                f"{blame(registration)} takes {fixed[0]!r}, but not from recipes: they set what is "
                "keyword-only (after '*' in the signature)",
                fixed[0],
            )
        return ComponentSpec(self.kind, use, registration, validate(model, given, info.context))


def _error(message: str, *path: str) -> ValidationError:
    return ValidationError.from_exception_data("component", [failure(message, None, *path)])
