"""docs/compatibility.md names what there is, and all of it."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

import mmssl
from mmssl import formats

PAGE = (Path(__file__).parent.parent / "docs" / "compatibility.md").read_text()


def part(title: str) -> str:
    found = re.search(rf"<!-- {title} -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    assert found, title
    return found[1]


def test_the_page_names_all_of_mmssl_and_nothing_else() -> None:
    assert re.findall(r"`(\w+)`", part("names of mmssl")) == mmssl.__all__
    assert all(getattr(mmssl, name).__doc__ for name in mmssl.__all__ if name != "hookimpl")


MODULES = re.findall(r"^\| `([\w.]+)` \| (.*) \|$", part("further names"), re.MULTILINE)


@pytest.mark.parametrize(("module", "names"), MODULES, ids=[name for name, _ in MODULES])
def test_what_it_names_of_a_module_is_there(module: str, names: str) -> None:
    found = import_module(module)
    head, _, attributes = names.partition(": ")
    public = re.findall(r"`(\w+)`", head if attributes else names)
    assert public
    for name in public:
        if name != "mmssl":
            assert hasattr(found, name), name
    if attributes:  # of a class, the class's own; what an instance has is annotated or a property
        (cls,) = public
        source = Path(str(found.__file__)).read_text()
        for name in re.findall(r"`(\w+)`", attributes):
            assert hasattr(getattr(found, cls), name) or f"self.{name} =" in source, name


def test_imports_of_the_example_plugins_are_public() -> None:
    """What the examples, which are written as strangers would, import is promised."""
    promised = {module: set(re.findall(r"`(\w+)`", names)) for module, names in MODULES}
    promised["mmssl"] = set(mmssl.__all__)
    promised["mmssl.contracts"] |= promised["mmssl"]
    examples = Path(__file__).parent.parent / "docs" / "examples"
    files = list(examples.glob("*/mmssl_*/**/*.py"))
    assert len(files) > 8
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mmssl":
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    known = alias.name in promised.get(str(node.module), ())
                    assert known or whole in promised, f"{path.name}: {whole}"


def test_formats_are_those_that_are_read() -> None:
    rows = re.findall(r"^\| ([\w ]+) \| (\d+) \| ([\d, ]+) \|$", part("formats"), re.MULTILINE)
    known = {
        "recipe": formats.RECIPE,
        "checkpoint": formats.CHECKPOINT,
        "card of an export": formats.CARD,
        "file of features": formats.FEATURES,
    }
    assert [name for name, *_ in rows] == list(known)
    for name, current, read in rows:
        assert int(current) == known[name].current
        readable = [known[name].current]
        while readable[0] - 1 in known[name].migrations:
            readable.insert(0, readable[0] - 1)
        assert [int(number) for number in read.split(",")] == readable
