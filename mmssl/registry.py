"""Discovery of plugins: who brings which component, and what is broken.

Plugins are found through entry points in the group ``mmssl``. Loading one imports its module,
which is a few lines without torch; the components themselves are imported when first used.
"""

import difflib
import importlib
import importlib.metadata
import inspect
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.metadata import EntryPoint
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeGuard

import pluggy

from mmssl import hooks
from mmssl.errors import UserError, one_line, printable
from mmssl.guests import guest
from mmssl.hooks import KINDS, REGISTERED

SINGULAR = {
    "modalities": "modality",
    **{kind: kind[:-1] for kind in REGISTERED if kind != "modalities"},
}

# Seconds that loading a plugin may take before it is called slow.
_SLOW = 1.0

# What components, commands and plugins may be called: recipes and terminals show it as it is.
_is_name = re.compile(r"[^\W]([\w.+-]*\w)?").fullmatch
_is_target = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*").fullmatch


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
        except (Exception, SystemExit) as error:  # a stranger's module may raise anything
            raise UserError(
                f"{SINGULAR[self.kind]} {self.name!r} of plugin {self.owner!r} does not load from "
                f"{self.target!r}: {one_line(error)}"
            ) from error


@dataclass(frozen=True)
class Plugin:
    """A plugin that was found: its name, version, components, and why it is broken, if it is.

    Attributes:
        recipes: the folder of its package that recipes lie in, if there are any.
        seconds: how long it took to load, which every command waits for.
    """

    name: str
    version: str
    components: tuple[Registration, ...] = ()
    error: str | None = None
    recipes: Path | None = None
    seconds: float = 0.0

    @property
    def slow(self) -> str:
        """What its author should do where it is slow to load, else nothing."""
        if self.seconds < _SLOW:
            return ""
        return (
            f"slow: every command waits {self.seconds:.1f} s for its import: let it import torch "
            "and its like within functions"
        )


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
    for hook in dir(module):
        if hook.startswith("register_") and manager.parse_hookimpl_opts(module, hook) is None:
            raise ValueError(f"{hook} is not marked with @hookimpl, or is no function")
    others = [other for other in manager.get_plugins() if other is not module]
    components: dict[tuple[str, str], Registration] = {}
    for kind in REGISTERED:

        def register(name_: str, target: str, kind: str = kind) -> None:
            if not isinstance(target, str) or not _is_target(target):
                raise ValueError(f"target {target!r} is not of the form 'module:attribute'")
            words = name_.split(" ") if isinstance(name_, str) else []
            if kind == "commands" and len(words) != 2:
                raise ValueError(f"command {name_!r} is not of the form 'group verb'")
            if (
                not words
                or (kind != "commands" and len(words) != 1)
                or not all(map(_is_name, words))
            ):
                letters = "letters, digits, '_', '.', '+' and '-'"
                raise ValueError(f"{SINGULAR[kind]} {name_!r}: a name is of {letters}")
            if (kind, name_) in components:
                raise ValueError(f"{SINGULAR[kind]} {name_!r} is registered twice")
            components[kind, name_] = Registration(kind, name_, name, target)

        for given in manager.subset_hook_caller(f"register_{kind}", others)(register=register):
            if inspect.isgenerator(given) or inspect.iscoroutine(given):
                given.close()
                raise ValueError(f"register_{kind} is a generator or async: nothing would call it")
    return tuple(components.values())


def load_plugins(
    entries: Iterable[tuple[str, str, Callable[[], Any]]],
    packages: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> Registry:
    """Load plugins from ``(name, version, import function)``.

    A plugin that fails in any way, from a missing import to ``sys.exit``, is recorded as broken
    and stops no other.

    Args:
        entries: the plugins.
        packages: by a plugin's name, the top-level packages that are its own: the import of any
            other is not interrupted where the plugin takes too long.
    """
    manager = pluggy.PluginManager("mmssl")
    manager.add_hookspecs(hooks)
    registry = Registry()
    for called, version, load in entries:
        name, module, begun = one_line(called), None, time.monotonic()
        try:
            if not _is_name(called):
                raise ValueError("its entry point's name has other letters than a name may have")
            with guest(name, packages.get(called, ())):
                module = load()
                if manager.is_registered(module) or manager.has_plugin(name):
                    raise ValueError("a plugin of this name or module is loaded already")
                components = _collect(manager, name, module)
            plugin = Plugin(name, version, components, None, _recipes(module))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a stranger's module may raise anything, SystemExit too
            if module is not None and manager.get_plugin(name) is module:
                manager.unregister(name=name)
            plugin = Plugin(name, version, error=_reason(error))
        registry.plugins.append(replace(plugin, seconds=time.monotonic() - begun))
    return registry


# Whose frames lie between the registry and a plugin's own.
_BETWEEN = {
    "mmssl", "importlib", "_frozen_importlib", "_frozen_importlib_external", "pluggy", "contextlib",
    "functools", "",
}  # fmt: skip


def _reason(error: BaseException) -> str:
    """Why a plugin does not load, and where, in a line."""
    place = _place(error)
    said = one_line(error)
    if place and _is_syntax(error) and isinstance(error.msg, str):
        # Its own text has the file without its folder, and every plugin has an __init__.py.
        said = f"{type(error).__name__}: {one_line(error.msg)}"
    return f"{said} ({printable(place)})" if place else said


def _place(error: BaseException) -> str:
    """``file:line`` of what cannot be parsed, or of the last line of the plugin's own that ran."""
    if _is_syntax(error) and error.lineno is not None and isinstance(error.filename, str):
        return f"{error.filename}:{error.lineno}"
    own, place, trace = None, "", error.__traceback__
    while trace is not None:
        code, module = trace.tb_frame.f_code, trace.tb_frame.f_globals.get("__name__")
        package = module.partition(".")[0] if isinstance(module, str) else ""
        if own is None and package not in _BETWEEN:
            own = package  # the first stranger is the plugin; whom it calls is not
        if package == own:
            place = f"{code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _is_syntax(error: BaseException) -> TypeGuard[SyntaxError]:
    """Python's own, not one that a stranger made of it."""
    return type(error) in (SyntaxError, IndentationError, TabError)


def _recipes(module: Any) -> Path | None:
    """``recipes/`` in the package that a plugin's module is or belongs to."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not getattr(module, "__package__", None):
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
        version = one_line(metadata["Version"] or "")
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


def _entry_points() -> tuple[list[EntryPoint], list[Plugin]]:
    """All of the group, and distributions whose entry points cannot be read, as broken plugins."""
    try:
        return list(importlib.metadata.entry_points(group="mmssl")), []
    except Exception:  # one broken file takes all others with it: each by itself, which is slower
        entries: dict[str, list[EntryPoint]] = {}
        broken = []
    for distribution in importlib.metadata.distributions():
        name, version = _name_and_version(distribution)
        if name in entries:  # the first of a name counts, as in importlib
            continue
        try:
            entries[name] = [e for e in distribution.entry_points if e.group == "mmssl"]
        except Exception as error:  # what importlib raises here differs between versions
            entries[name] = []
            reason = f"its entry_points.txt cannot be read: {one_line(error)}"
            broken.append(Plugin(name, version, error=reason))
    return [entry for some in entries.values() for entry in some], broken


def _name_and_version(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    try:
        metadata = distribution.metadata
        return one_line(metadata["Name"]), one_line(metadata["Version"])
    except Exception:  # it has no metadata, or they are not text
        return "a distribution without metadata", ""


def _load(entry: EntryPoint) -> Any:
    """Import what an entry point names."""
    if not re.fullmatch(r"\w+(\.\w+)*(\s*:\s*\w+(\.\w+)*)?(\s*\[.*\])?", entry.value):
        raise UserError(f"its entry point names {one_line(entry.value)!r}, which is no module")
    try:
        return entry.load()
    except (ModuleNotFoundError, AttributeError) as error:
        if _place(error):
            raise
        # No line of its own has run: what is missing is what the entry point names.
        named = one_line(f"{entry.name} = {entry.value}")
        raise UserError(f"{one_line(error)}; its entry point is {named}") from error


@cache
def discover() -> Registry:
    """The registry of this environment: the core's own components, then all entry points."""
    entries: list[tuple[str, str, Callable[[], Any]]] = [
        ("mmssl", "", lambda: importlib.import_module("mmssl.builtin"))
    ]
    found: dict[int, tuple[str, str | None]] = {}
    packages: dict[str, set[str]] = {}
    found_entries, broken = _entry_points()
    for entry in sorted(found_entries, key=lambda entry: entry.name):
        if id(entry.dist) not in found:  # a distribution may have several, and is read once
            found[id(entry.dist)] = _version_and_needs(entry.dist)
        version, needs = found[id(entry.dist)]
        own = partial(_load, entry)
        load = own if needs is None else partial(_refuse, entry.name, version, needs)
        entries.append((entry.name, version, load))
        packages.setdefault(entry.name, set()).add(re.split(r"\W", entry.value, maxsplit=1)[0])
    registry = load_plugins(entries, packages)
    registry.plugins[0] = replace(registry.plugins[0], version=sys.modules["mmssl"].__version__)
    registry.plugins += broken
    return registry
