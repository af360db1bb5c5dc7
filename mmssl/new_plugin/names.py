"""The names of a new plugin: all of them follow from its own, which is checked."""

import keyword
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec

from mmssl.errors import UserError
from mmssl.registry import SINGULAR, Registry

# With longer ones, lines of the generated code would not fit in 100 columns.
_MOST = 32
_VALUES = ("null", "true", "false")  # of YAML
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")


@dataclass(frozen=True)
class Names:
    """Names of a plugin.

    Attributes:
        distribution: what pip installs: ``mmssl-eye-gaze``.
        package: what Python imports, and what mmssl calls the plugin: ``mmssl_eye_gaze``.
        stem: what recipes call its components: ``eye_gaze``.
        camel: how its classes begin: ``EyeGaze``.
    """

    distribution: str
    package: str
    stem: str
    camel: str


def names_of(distribution: str) -> Names:
    """What follows from a plugin's name.

    Args:
        distribution: small letters and digits, words joined by ``-`` or ``_``. A leading
            ``mmssl-`` stays out of components' names.

    Raises:
        UserError: it is no such name; the message proposes one.
    """
    package = distribution.replace("-", "_")
    stem = package.removeprefix("mmssl_")
    if not _NAME.fullmatch(distribution) or not _NAME.fullmatch(stem) or len(distribution) > _MOST:
        raise UserError(
            f"{distribution!r} cannot name a plugin: write at most {_MOST} small letters and "
            "digits, the first of them a letter, also behind 'mmssl-', and '-' between words, "
            f"such as {_proposed(distribution)!r}"
        )
    if keyword.iskeyword(package):
        raise UserError(
            f"{distribution!r} is a keyword of Python, which cannot be imported: choose another "
            f"name, such as {'mmssl-' + distribution!r}"
        )
    if stem in _VALUES:
        raise UserError(
            f"{distribution!r} cannot name a plugin: in recipes, {stem} is a value and no "
            f"component's name; choose another one, such as {_proposed(distribution)!r}"
        )
    return Names(distribution, package, stem, "".join(map(str.title, stem.split("_"))))


def _proposed(name: str) -> str:
    """The nearest name that would do."""
    words = [word for word in re.findall("[a-z0-9]+", name.lower()) if word != "mmssl"]
    text = re.sub("^[0-9-]+", "", "-".join(words))[: _MOST - len("mmssl-")].strip("-")
    if text in _VALUES:
        text = f"my-{text}"
    return f"mmssl-{text or 'thermal'}"


def check_free(names: Names, components: Iterable[tuple[str, str]], registry: Registry) -> None:
    """Refuse names that something else in this environment has.

    Args:
        names: the new plugin's.
        components: kind, plural, and name of each that it is to bring.
        registry: those that there are.

    Raises:
        UserError: a package, a plugin or a component is called so already.
    """
    free = f"mmssl-{names.stem}"
    way_out = "choose another name"
    if not names.package.startswith("mmssl") and find_spec(free.replace("-", "_")) is None:
        way_out += f", such as {free!r}"
    if names.package == "tests":
        raise UserError(f"the plugin's tests lie in a folder tests/: {way_out}")
    if any(plugin.name == names.package for plugin in registry.plugins):
        raise UserError(f"a plugin {names.package!r} is installed already: {way_out}")
    if find_spec(names.package) is not None:
        raise UserError(f"there is a package {names.package!r} already: {way_out}")
    for kind, name in components:
        for other in registry.components(kind):
            if other.name == name:
                raise UserError(
                    f"there is {with_article(SINGULAR[kind])} {name!r} already, of "
                    f"{other.owner!r}: choose another name, as recipes would have to tell them "
                    "apart"
                )


def with_article(word: str) -> str:
    """``a modality``, ``an objective``."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"
