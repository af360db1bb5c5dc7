"""A component's parameters as they stand in its source.

`mmssl.recipe.signature` is the authority, but it imports the component, and that may import torch.
This reads the file instead, and where it cannot, of a class made by a function for instance, it
knows nothing.
"""

import ast
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mmssl.recipe.signature import arguments

_STEPS = 8  # imports and bases that lead from a name to where it is defined


@dataclass(frozen=True)
class Written:
    """One parameter: its name, its annotation, and what the docstring says of it."""

    name: str
    annotation: ast.expr
    description: str


@dataclass(frozen=True)
class _Module:
    """A module's source, parsed; `package` is what its relative imports begin from."""

    tree: ast.Module
    package: str


def written_parameters(target: str) -> list[Written]:
    """The keyword-only parameters of what ``module:attribute`` names, empty if unknown."""
    module, _, attribute = target.partition(":")
    return list(_parameters(module, attribute, _STEPS))


def _parameters(module: str, name: str, steps: int) -> Iterator[Written]:
    source = _module(module) if steps else None
    if source is None:
        return
    for statement in source.tree.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == name:
            yield from _of_function(statement, ast.get_docstring(statement))
        elif isinstance(statement, ast.ClassDef) and statement.name == name:
            yield from _of_class(statement, module, steps)
        elif isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    yield from _parameters(_absolute(statement, source), alias.name, steps - 1)


def _of_function(function: ast.FunctionDef, docstring: str | None) -> Iterator[Written]:
    described = arguments(docstring or "")
    for argument in function.args.kwonlyargs:
        if argument.annotation is not None:
            name = argument.arg
            yield Written(name, argument.annotation, described.get(name, ""))


def _of_class(definition: ast.ClassDef, module: str, steps: int) -> Iterator[Written]:
    docstring = ast.get_docstring(definition)
    own: list[Written] = []
    for statement in definition.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            own = list(_of_function(statement, docstring))
            yield from own
            if statement.args.kwarg is None:
                return
    if any("dataclass" in ast.unparse(decorator) for decorator in definition.decorator_list):
        described = arguments(docstring or "")
        for statement in definition.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                name = statement.target.id
                yield Written(name, statement.annotation, described.get(name, ""))
        return
    for base in definition.bases:
        if isinstance(base, ast.Name) and base.id != definition.name:
            found = list(_parameters(module, base.id, steps - 1))
            names = [parameter.name for parameter in own]
            yield from (parameter for parameter in found if parameter.name not in names)
            if found:
                return


def _absolute(statement: ast.ImportFrom, source: _Module) -> str:
    if not statement.level:
        return statement.module or ""
    package = source.package.split(".")
    parents = package[: len(package) - statement.level + 1]
    return ".".join([*parents, *filter(None, [statement.module])])


@cache
def _module(name: str) -> _Module | None:
    """A module's source, found without importing anything of its package."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    folders: Sequence[str] = spec.submodule_search_locations or ()
    file = Path(spec.origin) if spec.origin else None
    package = top if folders else ""
    for i, part in enumerate(rest):
        for folder in map(Path, folders):
            if (folder / part / "__init__.py").is_file():
                file, folders = folder / part / "__init__.py", [str(folder / part)]
                package = ".".join([top, *rest[: i + 1]])
                break
            if (folder / f"{part}.py").is_file():
                file, folders = folder / f"{part}.py", ()
                break
        else:
            return None
    try:
        return _Module(ast.parse(file.read_bytes()), package) if file else None
    except (OSError, SyntaxError, ValueError):  # a compiled module, or one that is no Python
        return None
