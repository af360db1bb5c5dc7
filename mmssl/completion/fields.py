"""``KEY=VALUE``: fields of a recipe and of the components that it names, and their values."""

import ast
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel

from mmssl.completion.names import FILES, components
from mmssl.completion.parameters import written_parameters
from mmssl.errors import UserError
from mmssl.recipe.component import ComponentSpec
from mmssl.recipe.compose import laid_over, written
from mmssl.recipe.model import Device, Folder, Recipe
from mmssl.recipe.signature import CONTRACTS, Kind
from mmssl.recipe.typed import Expects
from mmssl.recipe.yaml12 import COMMAND_LINE, Node
from mmssl.registry import discover

Answer = list[tuple[str, str]]

_DEVICE, _FOLDER = (
    next(m for m in get_args(each) if isinstance(m, Expects)) for each in (Device, Folder)
)


@dataclass
class _Place:
    """What may stand somewhere in a recipe.

    Attributes:
        help: what it is.
        values: words that it may be.
        children: keys below it, where it may be a mapping or a list.
        text: may it be a path?
    """

    help: str = ""
    values: Answer = field(default_factory=list)
    children: "dict[str, _Lazy]" = field(default_factory=dict)
    text: bool = False


@dataclass(frozen=True)
class _Lazy:
    """A place that is looked at when somebody goes there.

    Attributes:
        annotation: a type, or the source of one.
        node: what the recipe says there.
        default: what it is if the recipe says nothing.
        help: what it is.
    """

    annotation: Any
    node: Node | None
    default: Any = None
    help: str = ""


def of_recipe(ctx: typer.Context, incomplete: str) -> Answer:
    """Overrides of the recipe that was named before."""
    return _complete(_Lazy(Recipe, _recipe(ctx)), incomplete)


def swept(ctx: typer.Context, incomplete: str) -> Answer:
    """``KEY=A,B,C``: the last of the values."""
    done, comma, last = incomplete.rpartition(",")
    key = done.partition("=")[0]
    if not comma:
        return of_recipe(ctx, incomplete)
    found = of_recipe(ctx, f"{key}={last}")
    return [(f"{done},{value.removeprefix(f'{key}=')}", help_) for value, help_ in found]


def of_evaluator(ctx: typer.Context, incomplete: str) -> Answer:
    """Parameters of the evaluator that ``--with`` names; of a recipe's, the recipe's."""
    name = ctx.params.get("evaluator") or ""
    tree = _overridden({"use": name}, ctx.params.get("parameters") or [])
    try:
        discover().resolve("evaluators", name)
    except UserError:
        return _complete(_Lazy(Recipe, None), incomplete)
    return _complete(_Lazy(Annotated[ComponentSpec, Kind("evaluators")], tree), incomplete)


def of_dataset(ctx: typer.Context, incomplete: str) -> Answer:
    """A path, or parameters of a dataset, a manifest if no other is named."""
    if not incomplete or "/" in incomplete.partition("=")[0]:
        return [(incomplete + FILES, "")]
    tree = _overridden({"use": "manifest"}, ctx.params.get("data") or [])
    found = _complete(_Lazy(Annotated[ComponentSpec, Kind("datasets")], tree), incomplete)
    return found or [(incomplete + FILES, "")]


def _recipe(ctx: typer.Context) -> Node | None:
    """The recipe as far as it can be read: with a mistake in it, there are its fields still."""
    launch = ctx.params.get("launch")
    overrides = [f"launch.use={launch}"] if launch else []
    overrides += ctx.params.get("overrides") or []
    for some in (overrides, []):
        try:
            return written(ctx.params.get("recipe") or "", some)
        except UserError:
            continue
    return None


def _overridden(fields: dict[str, str], overrides: list[str]) -> Node | None:
    tree = Node({key: Node(value, COMMAND_LINE) for key, value in fields.items()}, COMMAND_LINE)
    try:
        return laid_over(tree, [each for each in overrides if "=" in each])
    except UserError:
        return tree


def _complete(root: _Lazy, incomplete: str) -> Answer:
    key, equals, _ = incomplete.partition("=")
    path = key.split(".")
    place = _look(root)
    for part in path if equals else path[:-1]:
        if part not in place.children:
            return []
        place = _look(place.children[part])
    if equals:
        found = [(f"{key}={word}", help_) for word, help_ in place.values]
        return found or ([(f"{incomplete}{FILES}", "")] if place.text else [])
    above = "".join(f"{part}." for part in path[:-1])
    answer = []
    for name, child in place.children.items():
        below = _look(child).children if name.startswith(path[-1]) else {}
        answer.append((f"{above}{name}{'.' if below else '='}", child.help))
    return answer


def _look(lazy: _Lazy) -> _Place:
    place = _Place(lazy.help)
    if isinstance(lazy.annotation, ast.expr):
        _read_source(lazy.annotation, lazy, place)
    else:
        _read_type(lazy.annotation, (), lazy, place)
    place.values = list(dict.fromkeys(place.values))
    return place


def _read_type(annotation: Any, metadata: tuple[Any, ...], lazy: _Lazy, place: _Place) -> None:
    """Add what a type of `mmssl.recipe.model` says."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        _read_type(inner[0], inner[1:], lazy, place)
    elif origin in (Union, types.UnionType):
        for branch in inner:
            _read_type(branch, (), lazy, place)
    elif annotation is ComponentSpec:
        _read_component(next(m.kind for m in metadata if isinstance(m, Kind)), lazy, place)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, info in annotation.model_fields.items():
            typed = Annotated[(info.annotation, *info.metadata)] if info.metadata else None
            below = _below(lazy.node, name)
            place.children[name] = _Lazy(
                typed or info.annotation, below, info.default, info.description or ""
            )
    elif origin in (dict, list):
        for name in _keys(lazy.node):
            place.children[name] = _Lazy(inner[-1], _below(lazy.node, name))
    elif origin is Literal:
        place.values += [(str(word), "") for word in inner]
    elif annotation is bool:
        place.values += [("true", ""), ("false", "")]
    elif annotation is type(None):
        place.values.append(("null", ""))
    elif _DEVICE in metadata:
        place.values += [(name, "") for name in ("auto", "cpu", "cuda")]
    elif _FOLDER in metadata:
        place.text = True


def _read_component(kind: str, lazy: _Lazy, place: _Place) -> None:
    """Add the names of a kind, and the parameters of the component that is chosen."""
    place.values += components(kind)
    names = Literal[tuple(name for name, _ in place.values)]  # type: ignore[valid-type]
    place.children["use"] = _Lazy(names, None, help=f"which of the {kind}")
    node = lazy.node
    use: Any = node.value if node is not None else lazy.default
    if isinstance(use, dict):
        use = use.get("use")
    name = use.value if isinstance(use, Node) else use
    if not isinstance(name, str):
        return
    try:
        target = discover().resolve(kind, name).target
    except UserError:
        return
    found = written_parameters(target)
    if kind == "evaluators":
        found += written_parameters("mmssl.recipe.evaluation:Measured")
    for parameter in found:
        below = _below(node, parameter.name)
        place.children[parameter.name] = _Lazy(
            parameter.annotation, below, None, parameter.description
        )


def _read_source(annotation: ast.expr, lazy: _Lazy, place: _Place) -> None:
    """Add what an annotation says that stands in a component's source."""
    if isinstance(annotation, ast.BinOp):
        _read_source(annotation.left, lazy, place)
        _read_source(annotation.right, lazy, place)
        return
    if isinstance(annotation, ast.Constant):
        if annotation.value is None:
            place.values.append(("null", ""))
        elif isinstance(annotation.value, str):
            _read_source(ast.parse(annotation.value, mode="eval").body, lazy, place)
        return
    if isinstance(annotation, ast.Subscript):
        outer = _last_name(annotation.value)
        inner = annotation.slice
        items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        if outer == "Literal":
            constants = [item.value for item in items if isinstance(item, ast.Constant)]
            place.values += [(str(word), "") for word in constants]
        elif outer in ("Annotated", "Optional"):
            _read_source(items[0], lazy, place)
        elif outer in ("dict", "Mapping", "list", "Sequence", "tuple"):
            item = items[-1] if outer in ("dict", "Mapping") else items[0]
            for name in _keys(lazy.node):
                place.children[name] = _Lazy(item, _below(lazy.node, name))
        return
    name = _last_name(annotation)
    if name == "bool":
        place.values += [("true", ""), ("false", "")]
    elif name == "Training":
        _read_type(Recipe.model_fields["training"].annotation, (), lazy, place)
    elif name in CONTRACTS:
        _read_component(CONTRACTS[name], lazy, place)
    elif name not in ("int", "float"):
        place.text = True


def _last_name(annotation: ast.expr) -> str:
    return ast.unparse(annotation).rpartition(".")[2]


def _keys(node: Node | None) -> Iterator[str]:
    value = None if node is None else node.value
    if isinstance(value, dict):
        yield from value
    elif isinstance(value, list):
        yield from map(str, range(len(value)))


def _below(node: Node | None, key: str) -> Node | None:
    value = None if node is None else node.value
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
        return value[int(key)]
    return None
