"""Write a new plugin's files: a folder that appears whole, or not at all."""

import os
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

import mmssl
from mmssl.errors import UserError
from mmssl.hooks import KINDS
from mmssl.new_plugin.names import Names, check_free, names_of, with_article
from mmssl.registry import SINGULAR, Registry

#: By template, in the order in which they are listed: kind, what is before and behind the stem of
#: its name, and in words what it is.
_COMPONENTS = {
    "modality": ("modalities", "", "Modality", "signals of several channels, in `.npy` files"),
    "synthetic": ("datasets", "synthetic_", "", "made-up signals beside the videos of another one"),
    "dataset": ("datasets", "", "Dataset", "some classes of another one"),
    "backbone": ("backbones", "", "Backbone", "a small convolutional network"),
    "objective": ("objectives", "", "Objective", "modalities agree, and their dimensions do not"),
    "evaluator": ("evaluators", "", "Evaluator", "the nearest mean of a class"),
}

#: What may be asked for. A modality brings made-up data to try it with.
CHOICES = tuple(name for name in _COMPONENTS if name != "synthetic")


@dataclass(frozen=True)
class Component:
    """One component of the new plugin.

    Attributes:
        module: its template, and the module that it becomes.
        kind: plural.
        name: what recipes call it.
        target: ``module:class``.
        what: a few words.
    """

    module: str
    kind: str
    name: str
    target: str
    what: str

    @property
    def one(self) -> str:
        """Its kind, singular."""
        return SINGULAR[self.kind]


@dataclass(frozen=True)
class Written:
    """A plugin that was written: its names, folder, and the components that it brings."""

    names: Names
    folder: Path
    components: list[Component]


def write_plugin(
    name: str, chosen: Collection[str], folder: Path | None, registry: Registry
) -> Written:
    """Write a plugin as an installable package, with tests and a recipe.

    Args:
        name: of the distribution: ``mmssl-thermal``.
        chosen: which of `CHOICES` it brings.
        folder: where; by default one with the plugin's name, here.
        registry: whose names are taken.

    Raises:
        UserError: the name is taken or none, the folder is there already or cannot be written.
    """
    names = names_of(name)
    components = _components(names, chosen)
    check_free(names, [(c.kind, c.name) for c in components], registry)
    target = folder or Path(name)
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} is there already: name another folder with -o, or remove it")
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        for file, text in render(names, components).items():
            path = unfinished / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        unfinished.rename(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Written(names, target, components)


def render(names: Names, components: list[Component]) -> dict[str, str]:
    """The files of a plugin: their texts, by path within its folder."""
    environment = Environment(
        loader=PackageLoader("mmssl.new_plugin"),
        autoescape=False,  # what is written is Python, TOML and Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    modules = [component.module for component in components]
    hooks = {kind: [c for c in components if c.kind == kind] for kind in KINDS}
    kind = names.stem if "modality" in modules else "audio"
    values = {
        **asdict(names),
        **{choice: choice in modules for choice in CHOICES},
        "name": names.distribution,
        "range": version_range(mmssl.__version__),
        "components": components,
        "hooks": {kind: found for kind, found in hooks.items() if found},
        "brings": _sentence([with_article(m) for m in modules if m in CHOICES]),
        "second": kind,  # the recipe's modality beside video
        "call": _call,
    }
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        ".gitignore": "gitignore",
        f"{names.package}/__init__.py": "package/__init__.py",
        **{f"{names.package}/{m}.py": f"package/{m}.py" for m in modules},
        f"{names.package}/recipes/quickstart.yaml": "package/recipes/quickstart.yaml",
        "tests/test_conformance.py": "tests/test_conformance.py",
        **{f"tests/test_{m}.py": f"tests/test_{m}.py" for m in modules},
    }
    texts = {
        file: environment.get_template(f"{template}.j2").render(values)
        for file, template in files.items()
    }
    return {**texts, f"{names.package}/py.typed": ""}


def version_range(version: str) -> str:
    """The versions that a plugin written for this one fits: ``>=0.1,<0.2`` for ``0.1.3``."""
    major, minor = version.split(".")[:2]
    return f">={major}.{minor},<{major}.{int(minor) + 1}"


def _components(names: Names, chosen: Collection[str]) -> list[Component]:
    wanted = [*chosen, "synthetic"] if "modality" in chosen else chosen
    return [
        Component(
            module,
            kind,
            f"{before}{names.stem}",
            f"{names.package}.{module}:{before.title().rstrip('_')}{names.camel}{behind}",
            what,
        )
        for module, (kind, before, behind, what) in _COMPONENTS.items()
        if module in wanted
    ]


def _sentence(parts: list[str]) -> str:
    """``A modality, a backbone and an objective``."""
    *first, last = parts
    text = f"{', '.join(first)} and {last}" if first else last
    return text.capitalize()


def _call(function: str, *arguments: str) -> str:
    """A call within a function, on as many lines as ruff would give it."""
    written = [f'"{argument}"' for argument in arguments]
    line = f"    {function}({', '.join(written)})"
    if len(line) <= 100:
        return line
    within = f"        {', '.join(written)}"
    if len(within) <= 100:
        return f"    {function}(\n{within}\n    )"
    items = "\n".join(f"        {argument}," for argument in written)
    return f"    {function}(\n{items}\n    )"
