"""Whatever a recipe or a command line says, it runs or is one line a mistake, with its place."""

import copy
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import fuzz, outcome
from hypothesis import given
from hypothesis import strategies as st
from small_runs import RECIPE

from mmssl.errors import UserError
from mmssl.pipeline.sweeps import runs_of
from mmssl.recipe import shipped_recipes
from mmssl.recipe.compose import MAX_MESSAGES, written
from mmssl.registry import discover


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of this user is seen, and absurd sizes find an end of memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (6 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# What is done to a recipe

_NAMES = sorted({c.name for kind in discover().kinds() for c in discover().components(kind)})


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


# fmt: off
_ODD = [
    None, True, False, 0, 1, -1, 2, 3, 7, 10**12, 10**30, -(10**30), 2**63, 2**64, 1 << 4000,
    0.0, 0.5, -0.5, 1.5, 1e308, 1e-308, float("nan"), float("inf"), float("-inf"),
    "", " ", "x", "1", "null", "true", "~", ".", "..", "/", "/dev/null", "*", "a b", "a/b",
    "${", "${}", "${HOME}", "${NOT_SET}", "${NOT_SET:-3}", "${NOT_SET:-${", "$${x}", "${here}",
    "é", "\u202e", "\x1b[31m", "\0", "\ud800", "line\nline", "9" * 2000, "x" * 10_000,
    "2026-01-01", "1:30:00", "0x1F", "1e-4", "!!python/object", "&a", "<<",
]
_KEYS = [
    "use", "extends", "sweep", "name", "runs", "0", "", "a.b", "video+audio", "<<",
    "video+video", "+", "video+", "train", "é", "\n", "-1", "null", "1e3",
]
_FIELDS = [
    "seed", "name", "training.lr", "training.epochs", "objective", "objective.use", "data.train",
    "modalities.video", "modalities.video.frames", "trackers.0", "trackers.0.use", "launch.use",
    "trackers.5", "evaluations.x", "backbones.video+audio", "", ".", "a..b", "extends", "sweep",
]
_PIECES = [
    b"\t", b"\n", b": ", b"- ", b"{", b"[", b"'", b'"', b"&a ", b"*a", b"!!x ", b"${", b"\xff",
    b"\0", b"\xef\xbb\xbf", b"%YAML 9\n---\n", b"...\n", b"? ", b"|\n", b"#",
]
# fmt: on
SCALARS = (
    st.sampled_from(_ODD)
    | st.sampled_from(_NAMES)
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
)
KEYS = st.sampled_from(_KEYS) | st.text(max_size=6)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
) | st.sampled_from([_deep(20), _deep(60), [[[[]]]], {"use": None}, {"use": ["xdc"]}, {"use": {}}])


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner: Any = value.items() if isinstance(value, dict) else ()
    for key, item in enumerate(value) if isinstance(value, list) else inner:
        yield from _places(item, (*path, key))


@st.composite
def changed(draw: st.DrawFn, tree: Any) -> Any:
    """A recipe with one to three things wrong with it, or right after all."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        paths = [path for path in _places(tree) if path]
        if not paths:
            return tree
        *above, key = draw(st.sampled_from(paths))
        holder = tree
        for step in above:
            holder = holder[step]
        match draw(st.integers(0, 8)):
            case 0:
                del holder[key]
            case 1:  # another value
                holder[key] = copy.deepcopy(draw(VALUES))
            case 2:  # one from elsewhere in the recipe
                value: Any = tree
                for step in draw(st.sampled_from(paths)):
                    value = value[step]
                holder[key] = copy.deepcopy(value)
            case 3 if isinstance(holder, dict):  # a misspelt key
                name = str(key)
                at = draw(st.integers(0, len(name)))
                holder[name[:at] + draw(st.text(max_size=2)) + name[at + 1 :]] = holder.pop(key)
            case 4 if isinstance(holder, dict):  # one more
                holder[draw(KEYS)] = copy.deepcopy(draw(VALUES))
            case 5:  # a list for a mapping, a mapping for a text
                holder[key] = [holder[key]]
            case 6:
                holder[key] = {draw(KEYS): holder[key]}
            case 7:  # a component of any kind
                holder[key] = {"use": draw(st.sampled_from(_NAMES))}
            case _:  # what one file says of others
                tree[draw(st.sampled_from(["extends", "sweep"]))] = copy.deepcopy(draw(VALUES))
        if len(str(tree)) > 200_000:
            return tree
    return tree


def written_out(tree: Any) -> str:
    """As YAML: PyYAML's, which writes surrogates that it does not read, and is read by ours."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=False, default_flow_style=None)


# What then happens


_PLACED = re.compile(r"(recipe\.yaml(:\d+)?|command line|/\S+\.yaml:\d+): \S")


def is_clear(message: str) -> None:
    """A line for each mistake, each with its place, in letters that a terminal can show."""
    lines = message.removesuffix("\n").split("\n")
    assert 1 <= len(lines) <= MAX_MESSAGES + 1
    for i, line in enumerate(lines):
        assert line.isprintable(), line
        more = i == MAX_MESSAGES and re.fullmatch(r"and \d+ more mistakes", line)
        assert more or _PLACED.match(line), line
        assert "Traceback" not in line


def planned(text: str | bytes, *arguments: str) -> None:
    """Run a recipe dry."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    Path("recipe.yaml").write_bytes(data)
    code, _, err = outcome("run", "recipe.yaml", "--dry-run", *arguments)
    assert code in (0, 2), err
    if code == 2:
        assert err.startswith("mmssl: ")
        is_clear(err.removeprefix("mmssl: "))


SMALL = yaml.safe_load(RECIPE) | {
    "evaluations": {
        "clusters": {"use": "clusters"},
        "probe": {
            "use": "linear_probe",
            "train": {"use": "synthetic", "videos": 48, "side": 32, "fps": 8, "seconds": 1},
            "test": {"use": "synthetic", "videos": 16, "side": 32, "split": "test"},
        },
    },
    "trackers": [{"use": "tensorboard"}],
    "launch": {"use": "local", "processes": 2},
}


@fuzz(150)
@given(changed(SMALL))
def test_a_small_recipe_is_planned_or_its_mistakes_are_told(tree: Any) -> None:
    planned(written_out(tree))


@fuzz(150)
@given(st.data())
def test_shipped_recipes_with_changes_load_or_tell(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([name for name, _ in shipped_recipes()]))
    tree = data.draw(changed(written(name, []).python()))
    Path("recipe.yaml").write_text(written_out(tree))
    try:
        runs_of("recipe.yaml", [], [])
    except UserError as error:
        is_clear(str(error))


@fuzz(100)
@given(st.data())
def test_any_bytes_are_a_recipe_or_not(data: st.DataObject) -> None:
    text = RECIPE.encode()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        until = min(len(text), at + data.draw(st.integers(0, 6)))
        new = data.draw(st.sampled_from(_PIECES) | st.binary(max_size=4))
        text = text[:at] + new + text[until:]
    planned(text)


_PAIRS = st.tuples(
    st.sampled_from(_FIELDS) | st.text(max_size=5), st.text(max_size=6) | VALUES.map(repr)
)


@fuzz(100)
@given(st.lists(_PAIRS, max_size=3), st.booleans())
def test_any_override_is_one_or_a_mistake(pairs: list[tuple[str, str]], sweep: bool) -> None:
    words = [f"{key}={value}" for key, value in pairs]
    if any("\0" in word or re.search("[\ud800-\udfff]", word) for word in words):
        return  # no shell can pass them
    if sweep:
        words = [part for word in words for part in ("--sweep", word)]
    elif any(word.startswith("-") for word in words):
        words = ["--", *words]
    Path("recipe.yaml").write_text(RECIPE)
    code, _, err = outcome("run", "recipe.yaml", "--dry-run", *words)
    assert code in (0, 2), err
    if code == 2:
        assert err.startswith("mmssl: ")
        is_clear(err.removeprefix("mmssl: "))


@fuzz(60)
@given(
    st.lists(
        st.text(max_size=10) | st.sampled_from(["run", "ls", "data", "--help", "-", "--"]),
        max_size=4,
    )
)
def test_any_words_are_a_command_or_a_mistake(words: list[str]) -> None:
    if words[:1] in (["completion"],):
        return
    code, _, err = outcome(*words)
    assert code in (0, 2), err
    assert len(err.splitlines()) <= 1 + MAX_MESSAGES
    assert err.replace("\n", "").isprintable(), err
