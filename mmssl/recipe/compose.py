"""One tree from a recipe's file, what it extends, the command line and the environment."""

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import mmssl
from mmssl.errors import UserError
from mmssl.formats import RECIPE
from mmssl.recipe.yaml12 import COMMAND_LINE, MAX_DEPTH, Node, Place, located, parse, scalar
from mmssl.registry import discover

MAX_BYTES = 1 << 20
MAX_MESSAGES = 10

#: The variable that is no one's environment: ``${here}/words.txt`` lies beside the recipe.
HERE = "here"

#: They say what one file is, so `extends` does not pass them on: two recipes that extend a third
#: would otherwise share its run folder.
_OWN = ("name", "description", "sweep")

#: Under names that users choose, of which null takes one away.
_NAMED = ("modalities", "backbones", "evaluations")


def report(messages: Sequence[str]) -> UserError:
    """One error of several lines, each with its place."""
    lines = list(dict.fromkeys(messages))
    if len(lines) > MAX_MESSAGES:
        lines = [*lines[:MAX_MESSAGES], f"and {len(lines) - MAX_MESSAGES} more mistakes"]
    return UserError("\n".join(lines))


def shipped_recipes() -> list[tuple[str, Path]]:
    """Names and files of the recipes that come with mmssl and with plugins, sorted by name.

    Those of a plugin lie in ``recipes/`` in its package and are called ``<plugin>/<stem>``. A name
    that mmssl itself has means mmssl's.
    """
    found = {
        f"{plugin.name}/{name}": file
        for plugin in discover().plugins
        if plugin.recipes and plugin.name != "mmssl"
        for name, file in _within(plugin.recipes)
    }
    own = {name: file for name, file in _shipped() if not name.startswith("tables/")}
    return sorted((found | own).items())


def shipped_tables() -> list[tuple[str, Path]]:
    """Names and files of the papers' tables that come with mmssl, sorted by name."""
    found = ((name.removeprefix("tables/"), file) for name, file in _shipped())
    return [(name, file) for name, file in found if file.parent.name == "tables"]


def _shipped() -> list[tuple[str, Path]]:
    """They lie in the package where it was installed from a wheel, beside it in a clone."""
    package = Path(mmssl.__file__).parent
    folder = package / "recipes"
    if not folder.is_dir() and (package.parent / "pyproject.toml").is_file():
        folder = package.parent / "recipes"
    return _within(folder)


def _within(folder: Path) -> list[tuple[str, Path]]:
    files = sorted(folder.rglob("*.yaml")) if folder.is_dir() else []
    return [(file.relative_to(folder).with_suffix("").as_posix(), file) for file in files]


def resolve(
    source: str | os.PathLike[str],
    overrides: Sequence[str],
    environ: Mapping[str, str],
    variants: Sequence[Node] = (),
) -> Node:
    """The whole recipe as one tree, nothing checked yet, without its `sweep_of`.

    Args:
        source: a file, or the name of a recipe that mmssl or a plugin brings.
        overrides: ``a.b=value`` from the command line, laid over all else.
        environ: what ``${NAME}`` is replaced from.
        variants: what a run of a sweep lays over the file.

    Raises:
        UserError: a file is missing or not YAML, an override is malformed, a variable is unset or
            empty.
    """
    tree = written(source, overrides, variants)
    assert isinstance(tree.value, dict)
    tree = Node({key: n for key, n in tree.value.items() if key != "sweep"}, tree.place)
    return _substituted(tree, environ)


def written(
    source: str | os.PathLike[str], overrides: Sequence[str], variants: Sequence[Node] = ()
) -> Node:
    """The whole recipe as one tree with its ``${...}`` and its `sweep`; for `resolve`'s arguments.

    Raises:
        UserError: a file is missing or not YAML, an override is malformed.
    """
    tree = composed(source)
    for variant in variants:
        tree = merge(tree, variant)
    return laid_over(tree, overrides)


def sweep_of(
    source: str | os.PathLike[str], overrides: Sequence[str], environ: Mapping[str, str]
) -> Node | None:
    """What a recipe says of the runs that it stands for, or None; see `mmssl.pipeline.sweeps`."""
    tree = written(source, overrides)
    assert isinstance(tree.value, dict)
    found = tree.value.get("sweep")
    return None if found is None else _substituted(found, environ)


def composed(source: str | os.PathLike[str]) -> Node:
    """A recipe's file and what it extends, with a name; nothing in it is replaced."""
    try:
        path = find(os.fspath(source), Path())
    except FileNotFoundError as error:
        raise UserError(str(error)) from None
    tree = _read(path, ())
    assert isinstance(tree.value, dict)
    if "name" in tree.value:
        return tree
    return Node({"name": Node(path.stem, tree.place), **tree.value}, tree.place)


def laid_over(tree: Node, overrides: Sequence[str]) -> Node:
    """``a.b=value`` from the command line, laid over a tree.

    Raises:
        UserError: one of them is malformed, or addresses an item that a list does not have.
    """
    if not overrides:
        return tree
    overlay = Node({}, COMMAND_LINE)
    for override in overrides:
        overlay = merge(overlay, _override(override))
    return _laid(tree, overlay)


def _substituted(tree: Node, environ: Mapping[str, str]) -> Node:
    messages: list[str] = []
    tree = _substitute(tree, (), environ, messages)
    if messages:
        raise report(messages)
    return tree


# Files


def find(name: str, folder: Path) -> Path:
    """The file that ``name`` means: a path from ``folder``, else a shipped recipe.

    Raises:
        FileNotFoundError: there is none; the message proposes a near name.
    """
    try:
        path = folder / name
        if path.is_file():
            return path
        shipped = dict(shipped_recipes())
        if name in shipped:
            return shipped[name]
        if path.is_dir():
            raise FileNotFoundError(f"{name!r} is a folder, not a recipe's file")
    except (OSError, ValueError) as error:  # a name of 10 000 letters, a null byte
        if isinstance(error, FileNotFoundError):
            raise
        raise FileNotFoundError(f"{name!r} cannot be a file: {error}") from None
    for plugin in discover().plugins:
        if plugin.error and name.startswith(f"{plugin.name}/"):
            reason = f"the plugin {plugin.name!r} is broken: {plugin.error}"
            raise FileNotFoundError(f"there is no recipe {name!r}: {reason}")
    message = f"there is no recipe {name!r}: no such file, and none of this name comes with mmssl"
    message += " or a plugin"
    whole = [other for other in shipped if "_" not in (other[0], Path(other).name[0])]
    near = difflib.get_close_matches(name, whole, n=1)
    raise FileNotFoundError(message + (f"; did you mean {near[0]!r}?" if near else ""))


def _read(path: Path, inside: tuple[Path, ...]) -> Node:
    """The mapping in a file, merged over what it extends."""
    shown = os.path.normpath(path)
    tree = parse(read(path, shown), Place(shown, 1))
    if tree.value is None:
        raise UserError(f"{shown}:1: the recipe is empty")
    if not isinstance(tree.value, dict):
        raise UserError(f"{shown}:1: a recipe is a mapping of 'key: value' lines")
    extends = tree.value.get("extends")
    own = Node(_of_today(tree.value), tree.place)
    if extends is None:
        return own
    items = extends.value if isinstance(extends.value, list) else [extends]
    inside = (*inside, path.resolve())
    below = Node({}, tree.place)
    for item in items:
        if not isinstance(item.value, str) or not item.value:
            message = "expected the path of a recipe, or a list of them"
            raise UserError(located(item.place, ("extends",), message))
        try:
            parent = find(item.value, path.parent)
        except FileNotFoundError as error:
            raise UserError(located(item.place, ("extends",), str(error))) from None
        if parent.resolve() in inside:
            circle = [*inside[inside.index(parent.resolve()) :], parent.resolve()]
            message = "recipes extend each other: " + " -> ".join(file.name for file in circle)
            raise UserError(located(item.place, ("extends",), message))
        inherited = _read(parent, inside)
        assert isinstance(inherited.value, dict)
        kept = {key: node for key, node in inherited.value.items() if key not in _OWN}
        below = merge(below, Node(kept, inherited.place))
    return _laid(below, own)


def _of_today(content: dict[str, Node]) -> dict[str, Node]:
    """A file's own part in the present format; without number it is of that."""
    own = {key: node for key, node in content.items() if key not in ("extends", "format")}
    if "format" not in content:
        return own
    written = content["format"]
    return RECIPE.migrated(own, written.value, located(written.place, ("format",), ""))


def read(path: Path, shown: str) -> str:
    """A recipe's text.

    Args:
        path: its file.
        shown: what messages call it.

    Raises:
        UserError: it cannot be read, or is no text of reasonable size.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{shown}: cannot be read: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{shown}:{line}: not a recipe: the file is not UTF-8 text") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{shown}: not a recipe: larger than {MAX_BYTES >> 20} MiB")
    return text


# Merging


def merge(base: Node, over: Node, path: tuple[str | int, ...] = ()) -> Node:
    """``over`` laid on ``base``: mappings key by key, everything else replaced.

    A component whose ``use`` changes is replaced whole: the other one's parameters mean nothing to
    it. A string and a mapping meet as the component ``{use: string}``. A mapping whose keys are
    all numbers, laid on a list, addresses its items.
    """
    if isinstance(base.value, list) and _indexes(over):
        return _merge_items(base, over, path)
    if isinstance(base.value, str) and isinstance(over.value, dict):
        base = Node({"use": base}, base.place)
    elif isinstance(over.value, str) and isinstance(base.value, dict) and "use" in base.value:
        over = Node({"use": over}, over.place)
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    if "use" in base.value and "use" in over.value:
        before, after = base.value["use"].value, over.value["use"].value
        if before != after:
            return over
    merged = dict(base.value)
    for key, node in over.value.items():
        merged[key] = merge(merged[key], node, (*path, key)) if key in merged else node
    return Node(merged, base.place if over.place.line is None else over.place)


def _laid(below: Node, over: Node) -> Node:
    """Merged, where null takes away only what is there: a misspelt name would stay unnoticed."""
    for field in _NAMED:
        there, asked = _entries(below, field), _entries(over, field)
        for key, node in asked.items():
            if node.value is None and key not in there:
                near = difflib.get_close_matches(key, there, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                message = f"null takes away what is there, and there is no {key!r}{hint}"
                raise UserError(located(node.place, (field, key), message))
    return merge(below, over)


def _entries(tree: Node, field: str) -> dict[str, Node]:
    assert isinstance(tree.value, dict)
    node = tree.value.get(field)
    return node.value if node and isinstance(node.value, dict) else {}


def _indexes(node: Node) -> bool:
    if not isinstance(node.value, dict) or not node.value:
        return False
    return all(re.fullmatch("[0-9]{1,9}", key) for key in node.value)


def _merge_items(base: Node, over: Node, path: tuple[str | int, ...]) -> Node:
    assert isinstance(base.value, list)
    assert isinstance(over.value, dict)
    items = list(base.value)
    for key, node in over.value.items():
        if int(key) >= len(items):
            count = f"{len(items)} item" + ("" if len(items) == 1 else "s")
            raise UserError(located(node.place, (*path, key), f"the list has {count}, from 0"))
        items[int(key)] = merge(items[int(key)], node, (*path, int(key)))
    return Node(items, base.place)


def _override(text: str) -> Node:
    """The tree that ``a.b=value`` lays over the recipe. An empty value is null, as in YAML."""
    dotted, equals, value_text = text.partition("=")
    keys = tuple(dotted.strip().split("."))
    if not equals or not all(keys) or len(keys) > MAX_DEPTH:
        raise UserError(f"command line: {text!r}: write KEY=VALUE, such as training.epochs=10")
    node = parse(value_text, COMMAND_LINE, keys)
    if isinstance(node.value, dict | list) and value_text.lstrip()[:1] not in ("[", "{"):
        message = "write a list as [a, b], a mapping as {key: value}, and other text in quotes"
        raise UserError(located(COMMAND_LINE, keys, message))
    for key in reversed(keys):
        node = Node({key: node}, COMMAND_LINE)
    return node


# The environment


def _substitute(
    node: Node, path: tuple[str | int, ...], environ: Mapping[str, str], messages: list[str]
) -> Node:
    """The tree with ``${...}`` replaced in its strings; what fails is appended to messages."""
    if isinstance(node.value, dict):
        entries = node.value.items()
        value = {key: _substitute(n, (*path, key), environ, messages) for key, n in entries}
        return Node(value, node.place)
    if isinstance(node.value, list):
        items = enumerate(node.value)
        return Node([_substitute(n, (*path, i), environ, messages) for i, n in items], node.place)
    if not isinstance(node.value, str) or "${" not in node.value:
        return node
    try:
        text, is_variable = expand(node.value, {**environ, HERE: _folder(node.place)})
        return Node(scalar(text) if node.plain and is_variable else text, node.place)
    except (ValueError, RecursionError) as error:
        reason = "'${' nested too deep" if isinstance(error, RecursionError) else str(error)
        messages.append(located(node.place, path, reason))
        return node


def _folder(place: Place) -> str:
    """Of the file that a value was written in; of the command line's the working directory."""
    return os.path.abspath(os.curdir if place.line is None else os.path.dirname(place.file))


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def expand(text: str, environ: Mapping[str, str]) -> tuple[str, bool]:
    """Replace ``${NAME}`` and ``${NAME:-default}`` in a string; ``$${`` is a literal ``${``.

    As in a shell, the default also stands in for an empty value and may itself hold ``${...}``.
    Without one, an empty value is a mistake: it would silently be null or leave a hole in a path.
    What a variable holds is not looked through again.

    Returns:
        The new string, and whether the whole of the old one was a single ``${...}``.

    Raises:
        ValueError: a variable is not set or empty and has no default, or ``${`` is malformed.
    """

    def look_up(name: str, has_default: bool) -> str:
        value = environ.get(name)
        if not value and not has_default:
            state = "not set" if value is None else "set but empty"
            raise ValueError(
                f"the environment variable {name} is {state}: set it (export {name}=...), or "
                f"give a default (${{{name}:-default}})"
            )
        if value is not None and not value.isascii() and re.search("[\ud800-\udfff]", value):
            raise ValueError(f"the environment variable {name} holds invalid Unicode")
        return value or ""

    result, end = _expand(text, 0, look_up, closing=False)
    single = text.startswith("${") and _variable(text, 0, lambda *_: "x")[1] == end
    return result, single


_LookUp = Callable[[str, bool], str]


def _expand(text: str, position: int, look_up: _LookUp, *, closing: bool) -> tuple[str, int]:
    """Expand up to the end of the text or, if ``closing``, up to and with the next ``}``."""
    parts: list[str] = []
    while position < len(text):
        if text.startswith("$${", position):
            parts.append("${")
            position += 3
        elif text.startswith("${", position):
            value, position = _variable(text, position, look_up)
            parts.append(value)
        elif closing and text[position] == "}":
            return "".join(parts), position + 1
        else:
            parts.append(text[position])
            position += 1
    if closing:
        raise ValueError(f"'${{' without '}}' in {text!r}; a literal '${{' is written '$${{'")
    return "".join(parts), position


def _variable(text: str, position: int, look_up: _LookUp) -> tuple[str, int]:
    """The value of the ``${...}`` that begins at ``position``, and where it ends."""
    name = _NAME.match(text, position + 2)
    if name and text.startswith("}", name.end()):
        return look_up(name[0], False), name.end() + 1
    if name and text.startswith(":-", name.end()):
        value = look_up(name[0], True)
        # A default that is not needed may name variables that are not set.
        inner: _LookUp = (lambda *_: "") if value else look_up
        default, end = _expand(text, name.end() + 2, inner, closing=True)
        return value or default, end
    raise ValueError(
        f"malformed '${{' in {text!r}: write ${{NAME}} or ${{NAME:-default}}, "
        "and '$${' for a literal '${'"
    )
