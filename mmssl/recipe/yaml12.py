"""YAML 1.2's core schema over PyYAML's parser, with the place of every value.

PyYAML reads YAML 1.1, where ``off`` is false, ``1e-4`` is a string and ``1:30:00`` a number. Its
scanner and parser are used here; what a scalar means is decided by `scalar`.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

from mmssl.errors import UserError

Scalar: TypeAlias = bool | int | float | str | None
Path: TypeAlias = tuple[str | int, ...]

MAX_DEPTH = 50
MAX_VALUES = 20_000  # aliases repeat what they name, and a few lines can name billions
MAX_DIGITS = 1_000  # Python converts longer ones slowly or refuses

_NULL = re.compile(r"(?:null|Null|NULL|~|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)
_BASES = {"0o": 8, "0x": 16}

_TAG = "tag:yaml.org,2002:"
_PLAIN = "plain"  # no tag and no quotes: the schema decides
_TYPES: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written: a line of a file, or, without a line, the command line."""

    file: str
    line: int | None = None

    def at(self, line: int) -> "Place":
        """Another line (from 1) of the same file."""
        return self if self.line is None else Place(self.file, line)

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


COMMAND_LINE = Place("command line")


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its place; that of a mapping's entry is the line of its key.

    Attributes:
        value: a scalar, a list of nodes, or a mapping from strings to nodes.
        place: where it was written.
        plain: a string without quotes, which may stand for another type once ``${...}`` in it
            is replaced.
    """

    value: "Scalar | list[Node] | dict[str, Node]"
    place: Place
    plain: bool = False

    def python(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.python() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.python() for node in self.value]
        return self.value


def dotted(path: Sequence[str | int]) -> str:
    """``("trackers", 0, "use")`` as ``trackers.0.use``."""
    return ".".join(key if str(key).isprintable() else repr(key) for key in map(str, path))


def located(place: Place, path: Sequence[str | int], message: str) -> str:
    """One line of an error: ``recipes/my.yaml:14: training.lr: message``."""
    return ": ".join(part for part in (str(place), dotted(path), message) if part)


def scalar(text: str) -> Scalar:
    """What an unquoted scalar means in YAML 1.2's core schema (section 10.3.2).

    Raises:
        ValueError: a number of unreasonable length.
    """
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text[0] in "tT"
    if (is_int := _INT.match(text)) or _FLOAT.match(text):
        if len(text) > MAX_DIGITS:
            raise ValueError(f"a number of {len(text)} characters")
        if is_int:
            base = _BASES.get(text[:2], 10)
            return int(text, base) if base == 10 else int(text[2:], base)
        return float(re.sub(r"\.(?=[iInN])", "", text))
    return text


class _Loader(yaml.SafeLoader):
    """PyYAML's loader up to the graph of nodes, without its notion of scalars."""

    depth = 0

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else _TAG + "str"
        return _TAG + ("map" if kind is yaml.MappingNode else "seq")

    def compose_scalar_node(self, anchor: Any) -> Any:
        event = self.peek_event()
        if event.tag == "!":  # "not plain", which PyYAML forgets
            event.tag = _TAG + "str"
        return super().compose_scalar_node(anchor)

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(None, None, f"more than {MAX_DEPTH} levels deep", mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def parse(text: str, place: Place, path: Path = ()) -> Node:
    """Read one YAML document.

    Args:
        text: the document.
        place: where its first line is.
        path: of the value within the recipe, for messages.

    Raises:
        UserError: the text is not YAML, or more than plain data: duplicate keys, keys that are
            not strings, tags, merge keys, endless or huge aliases.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = place.at(mark.line + 1 if mark else 1)
        raise UserError(located(where, path, _syntax(error, text, place))) from error
    except yaml.reader.ReaderError as error:
        where = place.at(text.count("\n", 0, error.position) + 1)
        code = f"character U+{error.character:04X}"
        raise UserError(located(where, path, f"not valid YAML: {code} is not allowed")) from error
    except (ValueError, OverflowError) as error:  # "\UFFFFFFFF"
        raise UserError(located(place, path, f"not valid YAML: {error}")) from error
    if root is None:
        return Node(None, place, plain=True)
    return _Converter(place).convert(root, place, path)


def _syntax(error: yaml.MarkedYAMLError, text: str, place: Place) -> str:
    context = error.context or ""
    if context and error.context_mark and place.line is not None:
        context += f" (line {error.context_mark.line + 1})"
    message = ", ".join(part for part in (context, error.problem) if part)
    lines = re.split("\r\n|[\n\r\x85\u2028\u2029]", text)  # as PyYAML counts them
    line = lines[error.problem_mark.line] if error.problem_mark else ""
    if "'\\t'" in message:
        message += "; indent with spaces"
    elif "${" in line and re.search(r"[\[{,]\s*\$\{|: *\$\{.*\}.*[\]}]", line):
        # Quotes make it text for good: only outside can it stand for a number.
        message += (
            "; within [ ] and { }, put ${...} in quotes if it is text; "
            "if it is a number, write it on a line of its own"
        )
    return f"not valid YAML: {message}"


class _Converter:
    """From PyYAML's graph of nodes, where aliases share, to a tree of `Node`."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.count = 0
        self.within: set[int] = set()

    def convert(self, node: yaml.Node, place: Place, path: Path) -> Node:
        self.count += 1
        if self.count > MAX_VALUES:
            raise UserError(located(place, path, f"more than {MAX_VALUES} values with its aliases"))
        if len(path) > MAX_DEPTH:
            raise UserError(located(place, path[:3], f"more than {MAX_DEPTH} levels deep"))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, place, path)
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            raise UserError(located(place, path, _unknown_tag(node.tag)))
        if id(node) in self.within:
            raise UserError(located(place, path, "an alias that contains itself"))
        self.within.add(id(node))
        value: list[Node] | dict[str, Node]
        if isinstance(node, yaml.SequenceNode):
            value = [
                self.convert(item, self._line(item), (*path, i))
                for i, item in enumerate(node.value)
            ]
        else:
            value = self._mapping(node, path)
        self.within.remove(id(node))
        return Node(value, place)

    def _line(self, node: yaml.Node) -> Place:
        return self.place.at(node.start_mark.line + 1)

    def _mapping(self, node: yaml.Node, path: Path) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            place = self._line(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(located(place, path, "a list or mapping cannot be a key"))
            key = self._scalar(key_node, place, path).value
            if not isinstance(key, str):
                hint = f"key {key_node.value!r} is not a string: put it in quotes"
                raise UserError(located(place, path, hint))
            if key == "<<":
                hint = "merge keys ('<<') are not YAML 1.2: use 'extends', or repeat the lines"
                raise UserError(located(place, path, hint))
            if key in entries:
                first = "" if place.line is None else f", first on line {lines[key]}"
                raise UserError(located(place, (*path, key), f"given twice{first}"))
            lines[key] = key_node.start_mark.line + 1
            entries[key] = self.convert(value_node, place, (*path, key))
        return entries

    def _scalar(self, node: yaml.ScalarNode, place: Place, path: Path) -> Node:
        text, tag = node.value, node.tag
        try:
            text.encode()
        except UnicodeEncodeError:
            message = f"{text!r} is not valid Unicode"
            raise UserError(located(place, path, message)) from None
        try:
            value = scalar(text) if tag != _TAG + "str" else text
        except ValueError as error:
            raise UserError(located(place, path, str(error))) from None
        if tag in (_PLAIN, _TAG + "str"):
            return Node(value, place, plain=tag == _PLAIN)
        types = _TYPES.get(tag.removeprefix(_TAG))
        if types is None:
            raise UserError(located(place, path, _unknown_tag(tag)))
        if type(value) not in types:
            name = tag.removeprefix(_TAG)
            raise UserError(located(place, path, f"{text!r} is not what its tag !!{name} says"))
        return Node(float(value) if types[0] is float else value, place)  # type: ignore[arg-type]


def _unknown_tag(tag: str) -> str:
    short = "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag
    return (
        f"tag {short!r} is not supported: a recipe holds text, numbers, true, false, null, "
        "lists and mappings"
    )


class _Dumper(yaml.SafeDumper):
    """Writes what `parse` reads: it quotes a string that looks like another YAML 1.2 type."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        if kind is not yaml.ScalarNode:
            return _TAG + ("map" if kind is yaml.MappingNode else "seq")
        if not implicit[0] or is_text(value):
            return _TAG + "str"
        meant = scalar(value)
        names = {type(None): "null", bool: "bool", int: "int", float: "float"}
        return _TAG + names[type(meant)]

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML folds these as line breaks, and escapes them only between double quotes.
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar(_TAG + "str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def is_text(text: str) -> bool:
    """Does an unquoted scalar mean itself, and not null, a boolean or a number?"""
    return not any(pattern.match(text) for pattern in (_NULL, _BOOL, _INT, _FLOAT))


def dump(value: Any) -> str:
    """YAML text of plain data, one line an entry, keys in their order."""
    return yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False
    )


def quoted(text: str) -> str:
    """The text as a scalar between double quotes, on one line."""
    return yaml.dump(
        text, Dumper=_Dumper, default_style='"', allow_unicode=True, width=math.inf
    ).rstrip("\n")
