"""A component as a recipe names it: checked parameters, and building it from them."""

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from mmssl.errors import UserError
from mmssl.registry import SINGULAR, Registration

if TYPE_CHECKING:
    from mmssl.recipe.evaluation import Measured


#: Keys that a recipe gives a component and the core heeds: see `mmssl.recipe.evaluation`.
_CORES_OWN = {"evaluators": ("subnetworks", "modalities")}


@dataclass
class ComponentSpec:
    """What stands after ``use:`` in a recipe, with validated parameters.

    Attributes:
        kind: plural, as in `mmssl.hooks.KINDS`.
        use: the name as written, perhaps ``plugin/name``.
        registration: what the name means.
        values: the parameters, as an instance of the component's `parameter_model`.
        where: place and path in the recipe, ``recipes/my.yaml:14: objective``, for messages.
    """

    kind: str
    use: str
    registration: Registration = field(repr=False)
    values: BaseModel
    where: str = field(default="", compare=False, repr=False)

    @property
    def identity(self) -> str:
        """``plugin/name``, however a recipe writes it."""
        return f"{self.registration.owner}/{self.registration.name}"

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters by name, defaults included; nested components are `ComponentSpec`."""
        fields = type(self.values).model_fields
        return {f.alias or name: getattr(self.values, name) for name, f in fields.items()}

    def plain(self) -> dict[str, Any]:
        """``use`` and all parameters as JSON-able values, paths absolute."""
        values = _absolute(self.values.model_dump(by_alias=True))
        return {"use": self.use, **to_jsonable_python(values)}

    def build(self, *args: Any, **context: Any) -> Any:
        """Call the component with its parameters, nested components built first.

        Args:
            args: what the core passes by position, such as an optimizer's parameter groups.
            context: what the core passes by name.

        Raises:
            UserError: the component does not load or refuses its parameters; the message names
                the place in the recipe.
        """
        own = _CORES_OWN.get(self.kind, ())
        parameters = {n: _build(value) for n, value in self.parameters.items() if n not in own}
        try:
            target = self.registration.load()
            _check_call(target, self.registration, args, {**parameters, **context})
            return _made(target, self.registration, args, {**parameters, **context})
        except (ValueError, OverflowError, UserError) as error:
            reason = " ".join(str(error).split())
            message = f"{self.where}: {reason}" if self.where else reason
            raise UserError(message) from error

    def build_measured(self) -> "Measured":
        """What an evaluation measures: the keys that are not its evaluator's."""
        from mmssl.recipe.evaluation import Measured

        return Measured(**{name: _build(self.parameters[name]) for name in _CORES_OWN[self.kind]})


def blame(registration: Registration) -> str:
    """``objective 'xdc' of plugin 'mmssl_clustering'``: whose author a message is for."""
    return f"{SINGULAR[registration.kind]} {registration.name!r} of plugin {registration.owner!r}"


def _check_call(target: Any, registration: Registration, args: Any, kwargs: Any) -> None:
    """A component that cannot be called this way is its author's mistake, told from a TypeError
    within it, which keeps its traceback."""
    if missing := sorted(getattr(target, "__abstractmethods__", ())):
        name = target.__qualname__
        raise UserError(f"{blame(registration)}: {name} does not define {', '.join(missing)}")
    try:
        inspect.signature(target).bind(*args, **kwargs)
    except TypeError as error:
        message = (
            f"{blame(registration)} cannot be called: {error}; what a recipe sets must be "
            "keyword-only (after '*' in the signature)"
        )
        raise UserError(message) from error


def _made(target: Any, registration: Registration, args: Any, kwargs: Any) -> Any:
    """Call a component; what it makes keeps to its kind's contract."""
    from torch import nn

    try:
        made = target(*args, **kwargs)
    except AttributeError as error:
        if "before Module.__init__() call" not in str(error):
            raise
        raise UserError(f"{blame(registration)}: {error}: {_INIT}") from error
    if isinstance(made, nn.Module) and "_modules" not in vars(made):
        raise UserError(f"{blame(registration)}: {type(made).__name__} is no module yet: {_INIT}")
    expected = contract(registration.kind)
    if expected and not isinstance(made, expected):
        what = f"a {type(made).__name__}: return mmssl.{expected.__name__}"
        raise UserError(f"{blame(registration)} returned {what}")
    if registration.kind == "backbones" and type(made).forward is nn.Module.forward:
        raise UserError(f"{blame(registration)}: {type(made).__name__} does not define forward")
    return made


_INIT = "call super().__init__() first in its __init__"


def contract(kind: str) -> type | None:
    """The class of what a kind's components make; None for optimizers, schedules and commands."""
    from mmssl import contracts  # needs torch, as nearly all that is loaded does

    found: type | None = getattr(contracts, SINGULAR[kind].capitalize(), None)
    return found


def check_class(target: Any, registration: Registration) -> None:
    """A class keeps to its kind's contract; of a function only what it makes tells."""
    expected = contract(registration.kind) if isinstance(target, type) else None
    if expected and not issubclass(target, expected):
        raise UserError(
            f"{blame(registration)}: the class {target.__qualname__} must subclass "
            f"mmssl.{expected.__name__}"
        )


def _absolute(value: Any) -> Any:
    """Paths keep their meaning where a dumped recipe is loaded from another working directory."""
    if isinstance(value, Path):
        return value.absolute()
    if isinstance(value, dict):
        return {key: _absolute(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_absolute(item) for item in value]
    return value


def _build(value: Any) -> Any:
    if isinstance(value, ComponentSpec):
        return value.build()
    if isinstance(value, dict):
        return {key: _build(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and any(isinstance(v, ComponentSpec) for v in value):
        return type(value)(_build(item) for item in value)
    return value
