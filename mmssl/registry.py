"""Discovery of plugins: who brings which component, and what is broken.

Plugins are found through entry points in the group ``mmssl``. Loading one imports its module,
which is a few lines without torch; the components themselves are imported when first used.
"""

import difflib
import importlib
import importlib.metadata
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

import pluggy

from mmssl import hooks
from mmssl.errors import UserError
from mmssl.hooks import KINDS, REGISTERED

SINGULAR = {
    "modalities": "modality",
    **{kind: kind[:-1] for kind in REGISTERED if kind != "modalities"},
}


def which_kind(word: str) -> str:
    """The kind that a person means: "backbone" or "backbones".

    Raises:
        UserError: there is none; the message lists them.
    """
    for kind in KINDS:
        if word in (kind, SINGULAR[kind]):
            return kind
    near = difflib.get_close_matches(word, KINDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(KINDS)}"
    raise UserError(f"unknown kind {word!r}; {hint}")


@dataclass(frozen=True)
class Registration:
    """One component: its kind (plural, as in `KINDS`), name, owner and import target."""

    kind: str
    name: str
    owner: str
    target: str

    def load(self) -> Callable[..., Any]:
        """Import the component.

        Raises:
            UserError: the target does not import; the message names its owner and the reason.
        """
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise UserError(
                f"{SINGULAR[self.kind]} {self.name!r} of plugin {self.owner!r} does not load from "
                f"{self.target!r}: {type(error).__name__}: {error}"
            ) from error


@dataclass(frozen=True)
class Plugin:
    """A plugin that was found: its name, version, components, and why it is broken, if it is.

    Attributes:
        recipes: the folder of its package that recipes lie in, if there are any.
    """

    name: str
    version: str
    components: tuple[Registration, ...] = ()
    error: str | None = None
    recipes: Path | None = None


@dataclass
class Registry:
    """All plugins and components of this environment."""

    plugins: list[Plugin] = field(default_factory=list)

    def kinds(self) -> list[str]:
        """The kinds of which there are components, in the order of `KINDS`."""
        return [kind for kind in KINDS if self.components(kind)]

    def components(self, kind: str) -> list[Registration]:
        """The components of one kind, sorted by name, then owner."""
        found = [c for plugin in self.plugins for c in plugin.components if c.kind == kind]
        return sorted(found, key=lambda c: (c.name, c.owner))

    def resolve(self, kind: str, name: str) -> Registration:
        """The component that ``use: name`` means; ``name`` may be ``"plugin/name"``.

        Raises:
            UserError: nobody registered it (the message proposes a near name and names broken
                plugins, which might have brought it), or two plugins did.
        """
        owner, slash, bare = name.rpartition("/")
        candidates = self.components(kind)
        found = [c for c in candidates if c.name == bare and (not slash or c.owner == owner)]
        if len(found) == 1:
            return found[0]
        one = SINGULAR[kind]
        if found:
            owners = " and ".join(repr(c.owner) for c in found)
            choices = " or ".join(repr(f"{c.owner}/{c.name}") for c in found)
            raise UserError(f"{one} {name!r} is brought by {owners}: write {choices}")
        message = f"unknown {one} {name!r}"
        near = difflib.get_close_matches(bare, [c.name for c in candidates], n=1)
        if near:
            message += f"; did you mean {near[0]!r}?"
        else:
            message += f"; there are: {', '.join(c.name for c in candidates) or 'none'}"
        broken = [p for p in self.plugins if p.error]
        if broken:
            reasons = ", ".join(f"{p.name} ({p.error})" for p in broken)
            message += f" (broken plugins, which might have brought it: {reasons})"
        raise UserError(message)


def _collect(manager: pluggy.PluginManager, name: str, module: Any) -> tuple[Registration, ...]:
    """Call the register hooks of one plugin only, so that every component has an owner."""
    for hook in dir(module):
        if hook.startswith("register_") and hook.removeprefix("register_") not in REGISTERED:
            known = [f"register_{kind}" for kind in REGISTERED]
            near = difflib.get_close_matches(hook, known, n=1)
            raise ValueError(f"unknown hook {hook!r}" + (f", meant {near[0]!r}?" if near else ""))
    manager.register(module, name=name)
    manager.check_pending()
    others = [other for other in manager.get_plugins() if other is not module]
    components: dict[tuple[str, str], Registration] = {}
    for kind in REGISTERED:

        def register(name_: str, target: str, kind: str = kind) -> None:
            if ":" not in target:
                raise ValueError(f"target {target!r} is not of the form 'module:attribute'")
            if kind == "commands" and len(name_.split()) != 2:
                raise ValueError(f"command {name_!r} is not of the form 'group verb'")
            if (kind, name_) in components:
                raise ValueError(f"{SINGULAR[kind]} {name_!r} is registered twice")
            components[kind, name_] = Registration(kind, name_, name, target)

        manager.subset_hook_caller(f"register_{kind}", others)(register=register)
    return tuple(components.values())


def load_plugins(entries: Iterable[tuple[str, str, Callable[[], Any]]]) -> Registry:
    """Load plugins from ``(name, version, import function)``.

    A plugin that fails in any way, from a missing import to ``sys.exit``, is recorded as broken
    and stops no other.
    """
    manager = pluggy.PluginManager("mmssl")
    manager.add_hookspecs(hooks)
    registry = Registry()
    for name, version, load in entries:
        module = None
        try:
            module = load()
            if manager.is_registered(module) or manager.has_plugin(name):
                raise ValueError("a plugin of this name or module is loaded already")
            components = _collect(manager, name, module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a stranger's module may raise anything, SystemExit too
            if module is not None and manager.get_name(module) == name:
                manager.unregister(module)
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            reason = " ".join(f"{kind}{error}".split())
            registry.plugins.append(Plugin(name, version, error=reason))
        else:
            registry.plugins.append(Plugin(name, version, components, recipes=_recipes(module)))
    return registry


def _recipes(module: Any) -> Path | None:
    """``recipes/`` in the package that a plugin's module is or belongs to."""
    file = getattr(module, "__file__", None)
    if not file or not getattr(module, "__package__", None):
        return None
    folder = Path(file).parent / "recipes"
    return folder if folder.is_dir() else None


def _version_and_needs(
    distribution: importlib.metadata.Distribution | None,
) -> tuple[str, str | None]:
    """Its version, and which mmssl it needs where that is not this one: ``>=0.2,<0.3``.

    What cannot be read says nothing: metadata are for installers to refuse.
    """
    try:
        metadata = distribution.metadata if distribution else None
        if metadata is None:
            return "", None
        version = metadata["Version"] or ""
        if metadata["Name"] == "mmssl":  # as every first-party plugin's
            return version, None
        wanted = [line for line in metadata.get_all("Requires-Dist") or () if _OF_MMSSL(line)]
    except Exception:  # a stranger's file, read by importlib, which differs between versions
        return "", None
    return version, next(filter(None, map(_unmet, wanted)), None)


# "mmssl>=0.1", "mmssl[s3] (>=0.1)", but not "mmssl-imu".
_OF_MMSSL = re.compile(r"\s*mmssl\s*($|[<>=!~\[(;@])", re.IGNORECASE).match


def _unmet(requirement: str) -> str | None:
    """The range that a requirement on mmssl asks for, if this version is not within it."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = Requirement(requirement)
        applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
    except (InvalidRequirement, ValueError):
        return None
    here = sys.modules["mmssl"].__version__
    if not applies or wanted.specifier.contains(here, prereleases=True):
        return None
    # As people write them: the lower end first.
    parts = sorted(wanted.specifier, key=lambda part: part.operator, reverse=True)
    return ",".join(map(str, parts))


def _refuse(name: str, version: str, needs: str) -> NoReturn:
    here = sys.modules["mmssl"].__version__
    raise UserError(
        f"{name} {version} needs mmssl {needs}, and this is {here}: install a version of it that "
        f"fits, or pip install 'mmssl{needs}'"
    )


@cache
def discover() -> Registry:
    """The registry of this environment: the core's own components, then all entry points."""
    entries: list[tuple[str, str, Callable[[], Any]]] = [
        ("mmssl", "", lambda: importlib.import_module("mmssl.builtin"))
    ]
    found: dict[int, tuple[str, str | None]] = {}
    for entry in sorted(importlib.metadata.entry_points(group="mmssl"), key=lambda e: e.name):
        if id(entry.dist) not in found:  # a distribution may have several, and is read once
            found[id(entry.dist)] = _version_and_needs(entry.dist)
        version, needs = found[id(entry.dist)]
        load = entry.load if needs is None else partial(_refuse, entry.name, version, needs)
        entries.append((entry.name, version, load))
    registry = load_plugins(entries)
    core = registry.plugins[0]
    version = sys.modules["mmssl"].__version__
    registry.plugins[0] = Plugin(core.name, version, core.components, core.error)
    return registry
