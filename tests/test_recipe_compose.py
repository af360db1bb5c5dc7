"""Extending, overriding and the environment."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_components import RECIPE, registry

from mmssl import UserError
from mmssl.recipe import compose as compose_module
from mmssl.recipe import load, shipped_recipes
from mmssl.recipe.compose import expand, resolve
from mmssl.recipe.yaml12 import dump, scalar
from mmssl.registry import Registry

Files = Any


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Write files by name, compose the first."""
    monkeypatch.chdir(tmp_path)

    def compose_files(
        texts: dict[str, str | bytes], *overrides: str, environ: Mapping[str, str] | None = None
    ) -> Any:
        for name, text in texts.items():
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return resolve(next(iter(texts)), overrides, environ or {}).python()

    return compose_files


def refused(files: Files, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        files(*args, **kwargs)
    return str(caught.value)


# extends


def test_mappings_are_merged_and_everything_else_replaced(files: Files) -> None:
    found = files(
        {
            "child.yaml": "extends: sub/base.yaml\na: {x: 2, z: 3}\nl: [3]\nn: null\n",
            "sub/base.yaml": "a: {x: 1, y: {k: 1}}\nl: [1, 2]\nn: {k: 1}\nkept: 1\n",
        }
    )
    assert found == {
        "name": "child", "a": {"x": 2, "y": {"k": 1}, "z": 3}, "l": [3], "n": None, "kept": 1,
    }  # fmt: skip


def test_a_changed_use_replaces_the_component_whole(files: Files) -> None:
    base = "a: {use: x, k: 1}\nb: {use: x, k: 1}\nc: {use: x, k: 1}\nd: x\ne: {use: x, k: 1}\n"
    found = files(
        {
            "child.yaml": "extends: base.yaml\na: {use: y}\nb: {use: x, l: 2}\nc: y\nd: {k: 2}\n"
            "e: x\n",
            "base.yaml": base,
        }
    )
    assert found["a"] == {"use": "y"}
    assert found["b"] == {"use": "x", "k": 1, "l": 2}
    # a bare name is the same as {use: name}
    assert found["c"] == {"use": "y"}
    assert found["d"] == {"use": "x", "k": 2}
    assert found["e"] == {"use": "x", "k": 1}


def test_later_recipes_win_and_paths_are_relative_to_each_file(files: Files) -> None:
    found = files(
        {
            "a.yaml": "extends: [sub/b.yaml, c.yaml]\nw: a\n",
            "sub/b.yaml": "extends: ../d.yaml\nx: b\ny: b\nw: b\n",
            "c.yaml": "y: c\n",
            "d.yaml": "x: d\nz: d\n",
        }
    )
    assert {k: found[k] for k in "wxyz"} == {"w": "a", "x": "b", "y": "c", "z": "d"}


def test_names_are_not_inherited_and_the_file_s_name_stands_in(files: Files) -> None:
    texts = {"child.yaml": "extends: base.yaml\n", "base.yaml": "name: b\ndescription: d\nx: 1\n"}
    assert files(texts) == {"name": "child", "x": 1}
    assert files({"child.yaml": "extends: base.yaml\nname: own\n"})["name"] == "own"
    assert files({"base.yaml": texts["base.yaml"]})["name"] == "b"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"a.yaml": "x: 1\nextends: b.yaml\n"}, "a.yaml:2: extends: there is no recipe 'b.yaml': "
         "no such file, and none of this name comes with mmssl"),
        ({"a.yaml": "extends:\n- b.yaml\n- sub\n", "b.yaml": "x: 1", "sub/c.yaml": ""},
         "a.yaml:3: extends: 'sub' is a folder, not a recipe's file"),
        ({"a.yaml": "extends: a.yaml\n"},
         "a.yaml:1: extends: recipes extend each other: a.yaml -> a.yaml"),
        ({"a.yaml": "extends: b.yaml", "b.yaml": "\nextends: [sub/c.yaml]",
          "sub/c.yaml": "x: 1\nextends: ../b.yaml"},
         "sub/c.yaml:2: extends: recipes extend each other: b.yaml -> c.yaml -> b.yaml"),
        ({"a.yaml": "extends: 3"}, "a.yaml:1: extends: expected the path of a recipe, or a list"),
        ({"a.yaml": "extends: {x: 3}"}, "a.yaml:1: extends: expected the path of a recipe, or "),
        ({"a.yaml": "extends: ''"}, "a.yaml:1: extends: expected the path of a recipe, or a list"),
        ({"a.yaml": 'extends: "\\0"'}, "a.yaml:1: extends: there is no recipe '\\x00'"),
        ({"a.yaml": f"extends: {'x' * 5000}"}, "a.yaml:1: extends: 'xxx"),
        ({"a.yaml": "extends: b.yaml", "b.yaml": "x: [\n"}, "b.yaml:2: not valid YAML: "),
        ({"a.yaml": ""}, "a.yaml:1: the recipe is empty"),
        ({"a.yaml": "# nothing\n"}, "a.yaml:1: the recipe is empty"),
        ({"a.yaml": "- x"}, "a.yaml:1: a recipe is a mapping of 'key: value' lines"),
        ({"a.yaml": "just text"}, "a.yaml:1: a recipe is a mapping of 'key: value' lines"),
        ({"a.yaml": b"x: 1\ny: \xff"}, "a.yaml:2: not a recipe: the file is not UTF-8 text"),
        ({"a.yaml": b"x: 1\n" * (1 << 18)}, "a.yaml: not a recipe: larger than 1 MiB"),
    ],
    ids=range(16),
)  # fmt: skip
def test_what_is_wrong_with_files(files: Files, texts: Any, message: str) -> None:
    assert refused(files, texts).startswith(message)


def test_a_byte_order_mark_and_dos_lines_are_accepted(files: Files) -> None:
    assert files({"a.yaml": b"\xef\xbb\xbfx: 1\r\ny:\r\n  z: 2\r\n"})["y"] == {"z": 2}


def test_shipped_recipes_are_found_by_name_wherever_one_is(
    files: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "site" / "mmssl"
    (package / "recipes" / "xdc").mkdir(parents=True)
    (package / "recipes" / "quickstart.yaml").write_text("x: 1\n")
    (package / "recipes" / "xdc" / "full.yaml").write_text("extends: ../quickstart.yaml\ny: 2\n")
    monkeypatch.setattr(compose_module.mmssl, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(compose_module, "discover", Registry)
    assert [name for name, _ in shipped_recipes()] == ["quickstart", "xdc/full"]
    assert resolve("xdc/full", (), {}).python() == {"name": "full", "x": 1, "y": 2}
    assert files({"a.yaml": "extends: xdc/full\nx: 3"}) == {"name": "a", "x": 3, "y": 2}
    # a file goes before a name
    Path("quickstart").write_text("x: mine\n")
    assert resolve("quickstart", (), {}).python()["x"] == "mine"
    with pytest.raises(UserError) as caught:
        resolve("xdc/ful", (), {})
    assert str(caught.value) == (
        "there is no recipe 'xdc/ful': no such file, and none of this name comes with mmssl or a "
        "plugin; did you mean 'xdc/full'?"
    )


def test_the_repository_s_recipes_are_shipped() -> None:
    folder = Path(compose_module.mmssl.__file__).parent.parent / "recipes"
    recipes = {path for path in folder.rglob("*.yaml") if path.parent.name != "tables"}
    shipped = {path for _, path in shipped_recipes()}
    assert {path for path in shipped if folder in path.parents} == recipes


# The command line

BASE = {"a.yaml": "o: {use: x, k: 1}\nl: [{use: p, q: 1}, {use: r}]\ns: name\nv+w: {d: 1}\n"}


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["n=1e-3"], "n", 1e-3),
        (["n=off"], "n", "off"),
        (["n='1'"], "n", "1"),
        (["n=a=b"], "n", "a=b"),
        (["n="], "n", None),
        (["n=null"], "n", None),
        (["n=[1, {a: b}]"], "n", [1, {"a": "b"}]),
        (["n={}"], "n", {}),
        (["n.m.k=1", "n.m.l=2"], "n", {"m": {"k": 1, "l": 2}}),
        (["n=1", "n=2"], "n", 2),
        (["v+w.d=2"], "v+w", {"d": 2}),
        (["o.k=2"], "o", {"use": "x", "k": 2}),
        (["o={m: 2}"], "o", {"use": "x", "k": 1, "m": 2}),
        (["o.use=y"], "o", {"use": "y"}),
        (["o=y"], "o", {"use": "y"}),
        (["o={use: y, m: 2}"], "o", {"use": "y", "m": 2}),
        (["o.use=y", "o.m=2"], "o", {"use": "y", "m": 2}),
        (["o.m=2", "o.use=y"], "o", {"use": "y", "m": 2}),
        (["s.k=2"], "s", {"use": "name", "k": 2}),
        (["l.0.q=2"], "l", [{"use": "p", "q": 2}, {"use": "r"}]),
        (["l.1.use=s", "l.1.t=1"], "l", [{"use": "p", "q": 1}, {"use": "s", "t": 1}]),
        (["l=[]"], "l", []),
    ],
    ids=str,
)
def test_overrides(files: Files, overrides: list[str], key: str, value: object) -> None:
    assert files(BASE, *overrides)[key] == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("n", "command line: 'n': write KEY=VALUE, such as training.epochs=10"),
        ("=1", "command line: '=1': write KEY=VALUE, such as training.epochs=10"),
        ("a..b=1", "command line: 'a..b=1': write KEY=VALUE, such as training.epochs=10"),
        ("n.k=[1", "command line: n.k: not valid YAML: while parsing a flow sequence, expected "),
        ("n=@x", "command line: n: not valid YAML: while scanning for the next token, found "),
        ("n={a: 1, a: 2}", "command line: n.a: given twice"),
        ("n=!x 1", "command line: n: tag '!x' is not supported"),
        ("n=a: b", "command line: n: write a list as [a, b], a mapping as {key: value}, and other"),
        ("n=- b", "command line: n: write a list as [a, b], a mapping as {key: value}, and other"),
        ("l.2.q=1", "command line: l.2: the list has 2 items, from 0"),
        ("n=${X}", "command line: n: the environment variable X is not set"),
        ("n.k=\ud800", "command line: n.k: not valid YAML: character U+D800 is not allowed"),
        (".".join("a" * 60) + "=1", "command line: 'a.a.a"),
    ],
    ids=range(13),
)
def test_what_is_wrong_with_overrides(files: Files, override: str, message: str) -> None:
    assert refused(files, BASE, override).startswith(message)


def test_overrides_are_named_in_messages_about_values(files: Files) -> None:
    Path("my.yaml").write_text(RECIPE)
    with pytest.raises(UserError) as caught:
        load("my.yaml", ["training.optimizer.lr=fast", "sed=3"], environ={}, registry=registry())
    assert str(caught.value).split("\n") == [
        "command line: training.optimizer.lr: expected a number > 0, got 'fast'",
        "command line: sed: unknown key; did you mean 'seed'?",
    ]
    # what is missing is missing from the file
    with pytest.raises(UserError) as caught:
        load("my.yaml", ["objective.clusters=", "training.optimizer.use=tiny/sgd"],
             environ={}, registry=registry())  # fmt: skip
    assert str(caught.value).split("\n") == [
        "command line: objective.clusters: expected a whole number > 0 or a mapping, got null",
        "command line: training.optimizer: 'lr' is missing",
    ]


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text("abcxyz", min_size=1, max_size=3).filter("use".__ne__), inner, max_size=3
        )
    ),
    max_leaves=5,
)


@settings(deadline=None, max_examples=60)
@given(
    keys=st.lists(
        st.text("abc+_9", min_size=1, max_size=3).filter(lambda k: k != "9"), min_size=1, max_size=4
    ),
    value=plain_values,
)
def test_an_override_sets_its_key_to_any_json(
    keys: list[str], value: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "override.yaml"
    file.write_text("name: x\n")
    text = json.dumps(value, ensure_ascii=False).replace("${", "$${")  # JSON is YAML
    found: Any = resolve(file, [f"{'.'.join(['k', *keys])}={text}"], {}).python()
    for key in ["k", *keys]:
        found = found[key]
    assert repr(found) == repr(value)


# The environment

ENVIRON = {"A": "1", "S": "a b", "E": "", "B": "${A}", "Y": "[1, 2]", "F": "1e-3", "T": "true"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${A}", 1),
        ("'${A}'", "1"),
        ("!!str ${A}", "1"),
        ("${A}${A}", "11"),
        ("${F}", 1e-3),
        ("${T}", True),
        ("x${A}", "x1"),
        ("${S}/c", "a b/c"),
        ("${N:-4}", 4),
        ("'${N:-4}'", "4"),
        ("${N:-}", None),
        ("'${N:-}'", ""),
        ("${E:-}", None),  # null on purpose
        ("${E:-7}", 7),
        ("${N:-${A}}", 1),
        ("${N:-${M:-x}/y}", "x/y"),
        ("${A:-${M}}", 1),  # a default that is not needed is not looked up
        ("$${A}", "${A}"),
        ("$$${A}", "$${A}"),
        ("$A", "$A"),
        ("5$", "5$"),
        ("${B}", "${A}"),  # what a variable holds is not looked through again
        ("${Y}", "[1, 2]"),  # nor can it bring structure
    ],
)
def test_variables(files: Files, text: str, value: object) -> None:
    found = files({"a.yaml": f"x: {text}\n"}, environ=ENVIRON)["x"]
    assert found == value
    assert type(found) is type(value)


def test_variables_are_replaced_after_merging_and_not_in_keys(files: Files) -> None:
    texts = {"a.yaml": "extends: b.yaml\nx: 1\n'${K}': [{k: '${A}'}]\n", "b.yaml": "x: ${UNSET}\n"}
    found = files(texts, environ=ENVIRON)
    assert found == {"name": "a", "x": 1, "${K}": [{"k": "1"}]}
    assert files(texts, "x=${A}", environ=ENVIRON)["x"] == 1


def test_here_is_the_folder_of_the_file_that_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {
        "a.yaml": "extends: parts/b.yaml\ny: ${here}/y",
        "parts/b.yaml": "x: ${here}/x",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    tree = resolve("../a.yaml", ["z=${here}/z"], {"here": "nowhere"})
    assert {key: node.value for key, node in tree.value.items()} == {
        "name": "a",
        "x": str(tmp_path / "parts" / "x"),
        "y": str(tmp_path / "y"),
        "z": str(elsewhere / "z"),
    }


def test_all_unset_variables_are_named_with_their_lines(files: Files) -> None:
    text = "a: 1\nb:\n  c: ${ONE}/x\nd: [1, '${TWO}']\n"
    hint = "is not set: set it (export {0}=...), or give a default (${{{0}:-default}})"
    assert refused(files, {"my.yaml": text}).split("\n") == [
        "my.yaml:3: b.c: the environment variable ONE " + hint.format("ONE"),
        "my.yaml:4: d.1: the environment variable TWO " + hint.format("TWO"),
    ]


@pytest.mark.parametrize("text", ["${E}", "'${E}'", "x/${E}", "${N:-${E}}"])
def test_an_empty_variable_is_no_silent_null(files: Files, text: str) -> None:
    assert refused(files, {"my.yaml": f"a: 1\nx: {text}\n"}, environ=ENVIRON) == (
        "my.yaml:2: x: the environment variable E is set but empty: set it (export E=...), or give "
        "a default (${E:-default})"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${A", "malformed '${' in '${A': write ${NAME} or ${NAME:-default}, and '$${' for a "),
        ("${1}", "malformed '${' in '${1}'"),
        ("${}", "malformed '${' in '${}'"),
        ("${A-x}", "malformed '${' in '${A-x}'"),
        ("${A:-x", "'${' without '}' in '${A:-x'; a literal '${' is written '$${'"),
        ("x${A:-${B}", "'${' without '}' in"),
        ("${N:-" * 3000 + "x" + "}" * 3000, "'${' nested too deep"),
        ("${BAD}", "the environment variable BAD holds invalid Unicode"),
    ],
    ids=range(8),
)
def test_what_is_wrong_with_variables(files: Files, text: str, message: str) -> None:
    found = refused(files, {"a.yaml": f"x: '{text}'\n"}, environ={**ENVIRON, "BAD": "\udcff"})
    assert found.startswith(f"a.yaml:1: x: {message}")


@settings(deadline=None)
@given(st.text(st.sampled_from("$${}{:-AN x"), max_size=30))
def test_escaping_protects_any_text(text: str) -> None:
    assert expand(text.replace("${", "$${"), {}) == (text, False)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["A", "S", "E", "N"]), st.sampled_from([None, "", "d", "$"]))
        | st.text(st.sampled_from("$ab}-:"), max_size=4)
    )
)
def test_expansion_agrees_with_a_regular_expression(parts: list[Any]) -> None:
    texts = [
        p if isinstance(p, str) else f"${{{p[0]}{'' if p[1] is None else ':-' + p[1]}}}"
        for p in parts
    ]
    text = "".join(texts)
    if "$${" in text or any(p in (("N", None), ("E", None)) for p in parts):
        return
    by_hand = re.sub(
        r"\$\{(\w+)(?::-([^}]*))?\}", lambda m: ENVIRON.get(m[1], "") or m[2] or "", text
    )
    assert expand(text, ENVIRON)[0] == by_hand


def test_values_are_plain_data_that_dump_writes_back(files: Files) -> None:
    found = files(BASE)
    Path("b.yaml").write_text(dump(found))
    assert resolve("b.yaml", (), {}).python() == found
    assert scalar("x") == "x"
