"""What holds of a component of any kind: it is found, typed, documented, and kept to its contract.

A recipe's author sees of a component what its signature and docstring say, in `mmssl describe`, in
the editor and in messages. So both must say all of it.
"""

import inspect
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from mmssl.errors import UserError
from mmssl.recipe.component import contract
from mmssl.recipe.signature import parameter_model, parameters, summary
from mmssl.registry import SINGULAR, Registration, discover
from mmssl.testing.check import fail, require

# How many arguments the core passes by position.
_POSITIONAL = {"optimizers": 1, "schedules": 1}

# How a recipe names one.
_FIELDS = {
    "modalities": "'modalities: {{key: {}}}'",
    "datasets": "'data: {{train: {}}}'",
    "backbones": "'backbones: {{key: {}}}'",
    "objectives": "'objective: {}'",
    "evaluators": "'evaluations: {{key: {}}}'",
    "optimizers": "'training: {{optimizer: {}}}'",
    "schedules": "'training: {{schedule: {}}}'",
    "launchers": "'launch: {}'",
    "trackers": "'trackers: [{}]'",
    "callbacks": "'callbacks: [{}]'",
}


@dataclass(frozen=True)
class Component:
    """A component of the plugin under test.

    Attributes:
        registration: what the plugin registered.
        recipes: names of the recipes that name it.
        looked_at: names of all that were looked at.
        unread: of those that do not load, which might have named it, the names and why.
    """

    registration: Registration
    recipes: tuple[str, ...]
    looked_at: tuple[str, ...]
    unread: tuple[tuple[str, str], ...] = ()

    @property
    def subject(self) -> str:
        """``modality imu``."""
        return f"{SINGULAR[self.registration.kind]} {self.registration.name}"

    @property
    def contract(self) -> type | None:
        """The class that one of its kind is, or returns; None where it is a function."""
        return contract(self.registration.kind)


def loads(case: Component) -> None:
    """Its target imports."""
    case.registration.load()


def is_documented(case: Component) -> None:
    """Its docstring says what it is."""
    target = case.registration.load()
    own = vars(target).get("__doc__") if isinstance(target, type) else target.__doc__
    require(
        bool(own) and bool(summary(target)),
        f"{case.registration.target} has no docstring of its own: begin it with one sentence that "
        f"says what this {SINGULAR[case.registration.kind]} is; `mmssl ls` and `mmssl describe` "
        "show it",
    )


def takes_keywords(case: Component) -> None:
    """Its parameters are keyword-only and typed."""
    target = case.registration.load()
    allowed = _POSITIONAL.get(case.registration.kind, 0)
    found = [*inspect.signature(target).parameters.values()]
    positional = [p for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) > allowed:
        what = positional[allowed].name
        fail(
            f"a recipe cannot set {what!r}, which may be passed by position: put a '*' before it "
            f"in the signature of {case.registration.target}"
        )
    require(
        len(positional) == allowed,
        f"the core passes {allowed} argument by position, and {case.registration.target} takes "
        f"{len(positional)}",
    )
    own = not isinstance(target, type) or "__init__" in vars(target)
    for parameter in found:
        # A class's **others are its base's parameters, which `mmssl describe` shows with its own.
        passed_on = isinstance(target, type) and parameter.kind is parameter.VAR_KEYWORD
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if own and variadic and not passed_on:
            fail(
                f"'{parameter}' in the signature of {case.registration.target} would take what no "
                "recipe may say: name each parameter"
            )
    try:
        parameter_model(target, case.registration.kind)
    except UserError as error:
        fail(f"{case.registration.target}: {error}")


def documents_parameters(case: Component) -> None:
    """Each of its parameters is described under Args:."""
    target = case.registration.load()
    silent = [p.name for p in parameters(target, case.registration.kind) if not p.description]
    if silent:
        fail(
            f"nothing is said of {', '.join(silent)}: add a line such as '{silent[0]}: what it is, "
            f"its unit and range.' to the section 'Args:' in the docstring of "
            f"{case.registration.target}"
        )


def has_valid_defaults(case: Component) -> None:
    """Its defaults are values that a recipe could set."""
    target = case.registration.load()
    for parameter in parameters(target, case.registration.kind):
        if parameter.required:
            continue
        field = _field(target, case.registration.kind, parameter.name)
        annotated: Any = Annotated[(field.annotation, Field(), *field.metadata)]
        adapter = TypeAdapter(annotated)
        try:
            adapter.validate_python(parameter.default, context={"registry": discover()})
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            fail(
                f"its default {parameter.name}={parameter.default!r} is none that a recipe could "
                f"set ({parameter.expects}): {reason}; change the default or the annotation"
            )


def _field(target: Any, kind: str, name: str) -> FieldInfo:
    fields = parameter_model(target, kind).model_fields
    return next(field for key, field in fields.items() if name in (key, field.alias))


def keeps_contract(case: Component) -> None:
    """It is, or returns, what its kind's contract says."""
    target, contract = case.registration.load(), case.contract
    if contract is None:
        require(callable(target), f"{case.registration.target} is no function")
        return
    name = f"mmssl.{contract.__name__}"
    if isinstance(target, type):
        require(
            issubclass(target, contract), f"the class {target.__qualname__} must subclass {name}"
        )
        missing = sorted(getattr(target, "__abstractmethods__", ()))
        if missing:
            fail(f"{target.__qualname__} does not define {', '.join(missing)}: see {name}")
        return
    require(callable(target), f"{case.registration.target} is neither a class nor a function")
    made = _returned(target)
    require(
        isinstance(made, type) and issubclass(made, contract),
        f"the function {case.registration.target} must say what it returns: annotate it with "
        f"'-> {contract.__name__}', or with the subclass that it makes",
    )


def _returned(function: Any) -> Any:
    try:
        return get_type_hints(function).get("return")
    except (NameError, AttributeError, TypeError):  # names that only a type checker imports
        return None


def is_named(case: Component) -> None:
    """A recipe names it."""
    if case.recipes:
        return
    one, name = SINGULAR[case.registration.kind], case.registration.name
    if case.unread:
        reasons = "; ".join(f"{recipe} does not load: {why}" for recipe, why in case.unread)
        fail(
            f"no recipe that loads names the {one} {name!r}, so nothing else of it can be checked; "
            f"{reasons}"
        )
    looked_at = ", ".join(case.looked_at)
    looked_at = looked_at or f"there is none in the folder recipes/ of {case.registration.owner}"
    field = _FIELDS[case.registration.kind].format(name)
    fail(
        f"no recipe names the {one} {name!r}, so nothing else of it can be checked (recipes: "
        f"{looked_at}). Add a small recipe to recipes/ in the package that has {field}, or make it "
        "a run of a recipe that is there, by 'sweep:'"
    )


TESTS = (
    loads,
    is_documented,
    takes_keywords,
    documents_parameters,
    has_valid_defaults,
    keeps_contract,
    is_named,
)

# A command is typer's, which has types of its own.
COMMAND_TESTS = (loads, is_documented)
