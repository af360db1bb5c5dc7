"""YAML 1.2's core schema, places, and what is refused."""

import math
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmssl import UserError
from mmssl.recipe.yaml12 import Node, Place, dump, parse, quoted, scalar

FILE = Place("my.yaml", 1)


def read(text: str) -> Any:
    return parse(text, FILE).python()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # where YAML 1.1, and PyYAML with it, thinks otherwise
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("off", "off"),
        ("yes", "yes"),
        ("y", "y"),
        ("1:30:00", "1:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("0o17", 15),
        ("012", 12),
        ("09", 9),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("=", "="),
        # the rest of the schema
        ("0x1F", 31),
        ("-0x1F", "-0x1F"),
        ("+7", 7),
        ("-7", -7),
        (".5", 0.5),
        ("+1.", 1.0),
        ("-.5e+3", -500.0),
        (".", "."),
        ("e5", "e5"),
        ("1e", "1e"),
        (".inf", math.inf),
        ("+.INF", math.inf),
        ("-.Inf", -math.inf),
        ("-.nan", "-.nan"),
        (".iNf", ".iNf"),
        ("inf", "inf"),
        ("nan", "nan"),
        ("true", True),
        ("TRUE", True),
        ("False", False),
        ("tRue", "tRue"),
        ("null", None),
        ("Null", None),
        ("~", None),
        ("nULL", "nULL"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("|\n  1", "1"),
        ("!!str 1", "1"),
        ("! 1", "1"),
        ("!!float 1", 1.0),
        ("!!int '1'", 1),
        ("!!null ''", None),
        ("!!bool 'true'", True),
        ("!!seq [1]", [1]),
        ("!!map {a: 1}", {"a": 1}),
    ],
)
def test_scalars(text: str, value: object) -> None:
    found = read(f"a: {text}")["a"]
    assert found == value
    assert type(found) is type(value)


def test_not_a_number() -> None:
    assert all(math.isnan(read(f"a: {text}")["a"]) for text in (".nan", ".NaN", ".NAN"))


# The table of section 10.3.2, as it is printed there.
CORE = [
    (r"null|Null|NULL|~", type(None)),
    (r"", type(None)),
    (r"true|True|TRUE|false|False|FALSE", bool),
    (r"[-+]?[0-9]+", int),
    (r"0o[0-7]+", int),
    (r"0x[0-9a-fA-F]+", int),
    (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", float),
    (r"[-+]?(\.inf|\.Inf|\.INF)", float),
    (r"\.nan|\.NaN|\.NAN", float),
    (r"(?s:.*)", str),
]


@settings(deadline=None)
@given(
    st.text(st.sampled_from("0123456789abfxoeE+-._~:truefalsINnl\n"), max_size=8)
    | st.one_of([st.from_regex(pattern, fullmatch=True) for pattern, _ in CORE[:-1]])
)
def test_every_scalar_has_the_type_of_the_specification_s_table(text: str) -> None:
    expected = next(type_ for pattern, type_ in CORE if re.fullmatch(pattern, text, re.ASCII))
    try:
        value = scalar(text)
    except ValueError:
        assert len(text) > 1000
        return
    assert type(value) is expected
    if expected is float and text[-1] not in "fFnN":
        assert value == float(text)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text().filter("<<".__ne__), inner),
        max_leaves=8,
    )
    | st.sampled_from(["1e-4", "off", "012", "0o7", "~", "", ".nan", "1:30", "a: b", "- a", "#"])
)
def test_what_is_dumped_reads_back_the_same(value: object) -> None:
    text = dump({"a": value})
    assert read(text) == {"a": value}
    assert repr(read(text)) == repr({"a": value})  # and 1 is not 1.0, nor true


@given(st.text(max_size=300))
@example("a b " * 60)  # longer than a line that PyYAML would fold
def test_what_is_quoted_is_one_line_and_reads_back_the_same(text: str) -> None:
    written = quoted(text)
    assert len(written.splitlines()) == 1
    assert read(f"a:\n    b: {written}  # a comment\n") == {"a": {"b": text}}


def test_dump_writes_a_line_an_entry_in_their_order() -> None:
    value = {"b": 1, "a": ["off", "1e-4", 1e-4], "c": {}}
    assert dump(value) == "b: 1\na:\n- off\n- '1e-4'\n- 0.0001\nc: {}\n"


def test_every_value_knows_its_line() -> None:
    root = parse("a: 1\n\nb:\n  c: [1,\n    2]\n  d:\n  - x\nf: &x {g: 1}\nh: *x\n", FILE)

    def lines(node: Node, path: str = "") -> dict[str, int | None]:
        items = node.value.items() if isinstance(node.value, dict) else ()
        if isinstance(node.value, list):
            items = enumerate(node.value)  # type: ignore[assignment]
        found = {path: node.place.line}
        for key, item in items:
            found |= lines(item, f"{path}.{key}")
        return found

    assert lines(root) == {
        "": 1, ".a": 1, ".b": 3, ".b.c": 4, ".b.c.0": 4, ".b.c.1": 5, ".b.d": 6, ".b.d.0": 7,
        ".f": 8, ".f.g": 8, ".h": 9, ".h.g": 8,
    }  # fmt: skip


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 200))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "my.yaml:3: a: given twice, first on line 1"),
        ("t:\n  lr: 1\n  'lr': 2", "my.yaml:3: t.lr: given twice, first on line 2"),
        ("a: 1\n1: 2", "my.yaml:2: key '1' is not a string: put it in quotes"),
        ("a:\n  null: 2", "my.yaml:2: a: key 'null' is not a string: put it in quotes"),
        ("? [a]\n: 1", "my.yaml:1: a list or mapping cannot be a key"),
        ("a: &x {b: 1}\nc:\n  <<: *x",
         "my.yaml:3: c: merge keys ('<<') are not YAML 1.2: use 'extends', or repeat the lines"),
        ("a: !foo 1", "my.yaml:1: a: tag '!foo' is not supported: a recipe holds text, numbers, "
         "true, false, null, lists and mappings"),
        ("a: !!python/object/apply:os.system [x]",
         "my.yaml:1: a: tag '!!python/object/apply:os.system' is not supported"),
        ("a: !!binary aGk=", "my.yaml:1: a: tag '!!binary' is not supported"),
        ("a: !!int x", "my.yaml:1: a: 'x' is not what its tag !!int says"),
        ("a: !!set {x}", "my.yaml:1: a: tag '!!set' is not supported"),
        ("a: [1\nb: 2", "my.yaml:2: not valid YAML: while parsing a flow sequence (line 1), "
         "expected ',' or ']', but got ':'"),
        ("a:\n\t- 1", "my.yaml:2: not valid YAML: while scanning for the next token, found "
         "character '\\t' that cannot start any token; indent with spaces"),
        ("a: 'x", "my.yaml:1: not valid YAML: while scanning a quoted scalar"),
        ("a: [${X}]", "my.yaml:1: not valid YAML: "),
        ("a: *b", "my.yaml:1: not valid YAML: found undefined alias 'b'"),
        ("a: 1\n---\nb: 2", "my.yaml:2: not valid YAML: expected a single document in the stream "
         "(line 1), but found another document"),
        ("a: 1\nb: \x07", "my.yaml:2: not valid YAML: character U+0007 is not allowed"),
        ('a: "\\UFFFFFFFF"', "my.yaml:1: not valid YAML: "),
        ('a: 1\nb: "\\ud800"', "my.yaml:2: b: '\\ud800' is not valid Unicode"),
        ("a: &x [*x]", "my.yaml:1: a.0: an alias that contains itself"),
        (f"a: {'[' * 100_000}", "my.yaml:1: not valid YAML: more than 50 levels deep"),
        ("".join(f"{' ' * i}a:\n" for i in range(99)),
         "my.yaml:50: not valid YAML: more than 50 levels deep"),
        (CHAIN, "my.yaml:1: a49.0.0: more than 50 levels deep"),
        (LAUGHS, "my.yaml:1: a12.0.0.1"),
        ("a: " + "9" * 5000, "my.yaml:1: a: a number of 5000 characters"),
        ("a: 0x" + "f" * 5000, "my.yaml:1: a: a number of 5002 characters"),
    ],
    ids=range(27),
)  # fmt: skip
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(text)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_variables_in_flow_collections_are_explained() -> None:
    with pytest.raises(
        UserError,
        match=r"put \$\{\.\.\.\} in quotes if it is text; if it is a number, write it on a line",
    ):
        read("a: [${X}]")


@settings(deadline=None)
@given(st.text(st.sampled_from("ab:-[]{},&*!|>'\"%@`#?\n \t\\$1.~<"), max_size=40))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    message = ""
    try:
        read(text)
    except UserError as error:
        message = str(error)
    assert re.fullmatch(r"(my\.yaml:\d+: .+)?", message)
