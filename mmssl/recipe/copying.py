"""A recipe's text for another place: it means the same there, and keeps its comments."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

import mmssl
from mmssl.errors import UserError, printable
from mmssl.recipe.compose import HERE, composed, find, read, shipped_recipes
from mmssl.recipe.model import RunName
from mmssl.recipe.yaml12 import Node, Place, is_text, parse, quoted

# ${here} and ${here:-x}, but not $${here}.
_HERE = re.compile(r"(?<!\$)\$\{" + HERE + r"(?::-[^{}]*)?\}")

# A variable without a default, which no other one's default holds.
_VARIABLE = re.compile(r"(?<![$-])\$\{([A-Za-z_]\w*)\}")

ENDINGS = (".yaml", ".yml")

# What needs no quotes, and no escapes between quotes.
_SIMPLE = re.compile(r"[A-Za-z0-9_./-]+")

# An anchor and a tag, which belong to a value.
_PROPERTIES = re.compile(r"(?:[&!]\S*\s+)*")

_Edit = tuple[int, int, str]


def default_file(source: str) -> Path:
    """What a copy is called where nobody says: ``my_vatt_quickstart.yaml`` of vatt/quickstart.

    Not as the recipe, whose runs would lie in the same folder. A file's copy lies here.
    """
    name = Path(source).stem if source.endswith(ENDINGS) else source
    return Path("my_" + re.sub(r"\W+", "_", name) + ".yaml")


def copied(source: str, file: Path) -> str:
    """The text of a recipe that is to lie elsewhere.

    What it extends is named so that it is found from there, ``${here}`` becomes the folder that it
    stands for, and `name` the new file's stem. Everything else is as it was written.

    Args:
        source: the name of a shipped recipe, or a file.
        file: where the copy is to lie.

    Raises:
        UserError: there is no such recipe, it cannot be composed, or the file's name is no recipe's
            or its stem no run's.
    """
    if file.suffix not in ENDINGS:
        raise UserError(f"{file}: a recipe's file ends in .yaml: name it {file}.yaml, say")
    try:
        TypeAdapter(RunName).validate_python(file.stem)
    except ValidationError:
        raise UserError(
            f"{file}: its stem is to name the run: at most 100 letters, digits, '.', '_' and '-', "
            "not beginning with '.' or '-'"
        ) from None
    composed(source)
    path = find(source, Path())
    text = read(path, str(path))
    edits = dict(sorted((edit[0], edit) for edit in _edits(text, path, file)))
    parts, end = [_heading(source, file, text)], 0
    for start, stop, new in edits.values():
        parts += [text[end:start], new]
        end = stop
    return "".join([*parts, text[end:]])


def _heading(source: str, file: Path, text: str) -> str:
    command = f"mmssl run {shlex.quote(str(file))}"
    heading = f"Copied from {source}, of mmssl {mmssl.__version__}; run it: {command}"
    heading = f"# {printable(heading)}\n"  # one line, whatever folders are called
    return heading + "#\n" if text.startswith("#") else heading


def _edits(text: str, path: Path, file: Path) -> Iterator[_Edit]:
    """What is to change, as beginning, end and new text."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert root is not None  # it was composed before
    for key, value in root.value:
        if key.value == "name":
            yield _replaced(text, value, _written(file.stem))
        elif key.value == "extends":
            items = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for item in items:
                parent = find(item.value, path.parent)
                yield _replaced(text, item, _written(_name_of(parent, file.parent)))
        else:
            yield from _here(text, value, os.path.abspath(path.parent))


def _name_of(recipe: Path, folder: Path) -> str:
    """What a recipe in ``folder`` calls another one: its shipped name, else a path."""
    for name, file in shipped_recipes():
        if file.resolve() == recipe.resolve() and not (folder / name).is_file():
            return name
    return os.path.relpath(recipe, folder)


def _here(text: str, node: yaml.Node, folder: str) -> Iterator[_Edit]:
    """Replace ``${here}`` in a value and all within it."""
    if isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from _here(text, value, folder)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _here(text, item, folder)
    elif _HERE.search(node.value):
        start, end = node.start_mark.index, node.end_mark.index
        if _SIMPLE.fullmatch(folder):
            yield start, end, _HERE.sub(folder, text[start:end])
        else:
            meant = folder.replace("${", "$${")
            yield _replaced(text, node, quoted(_HERE.sub(lambda _: meant, node.value)))


def _replaced(text: str, node: yaml.Node, new: str) -> _Edit:
    """Another scalar in place of one, with its anchor, and the line's end where it had that."""
    start, end = node.start_mark.index, node.end_mark.index
    properties = _PROPERTIES.match(text, start, end)
    line_end = "\n" if text[start:end].endswith("\n") else ""
    return (properties.end() if properties else start), end, new + line_end


def _written(text: str) -> str:
    bare = _SIMPLE.fullmatch(text) and is_text(text) and not text[0].isdigit()
    return text if bare else quoted(text)


def variables(tree: Node) -> list[str]:
    """The environment variables that a recipe cannot do without, in their order."""
    if isinstance(tree.value, dict | list):
        within = tree.value.values() if isinstance(tree.value, dict) else tree.value
        return list(dict.fromkeys(name for node in within for name in variables(node)))
    if not isinstance(tree.value, str):
        return []
    return [name for name in _VARIABLE.findall(tree.value) if name != HERE]


def summary(path: Path) -> str | None:
    """What a recipe says that it is, in a sentence; None of a part, that others extend.

    It is its `description`, or the beginning of its first comment. A part's name begins with
    ``_``, or it says ``extends: []``.

    Raises:
        UserError: it cannot be read, or is not YAML.
    """
    if path.name.startswith("_"):
        return None
    text = read(path, path.name)
    root = parse(text, Place(path.name, 1))
    entries = root.value if isinstance(root.value, dict) else {}
    if "extends" in entries and entries["extends"].value == []:
        return None
    description = entries["description"].value if "description" in entries else None
    comment = re.match(r"(?:#.*\n)*", text)
    lines = (comment[0] if comment else "").replace("#\n", "\n\n").replace("#", "")
    first = " ".join(lines.strip().split("\n\n")[0].split())
    said = description if isinstance(description, str) else re.split(r"(?<=\.)\s", first)[0]
    return " ".join(said.split())
