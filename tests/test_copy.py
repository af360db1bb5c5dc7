"""``mmssl copy``: what is copied means the same elsewhere."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import environment, mmssl

from mmssl import UserError
from mmssl.recipe import load, shipped_recipes
from mmssl.recipe.compose import resolve, sweep_of
from mmssl.recipe.copying import copied, default_file, summary

SHIPPED = dict(shipped_recipes())


class Anything(dict[str, str]):
    """An environment in which every variable is set, to its name."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__({name: name for text in texts for name in re.findall(r"\w+", text)})


@pytest.fixture(scope="module")
def environ() -> Mapping[str, str]:
    return Anything([path.read_text() for path in SHIPPED.values()])


def meaning(source: str, environ: Mapping[str, str]) -> tuple[Any, Any]:
    """What a recipe says, variables replaced, but for its name; and its sweep."""
    plain = resolve(source, (), environ).python()
    sweep = sweep_of(source, (), environ)
    return {k: v for k, v in plain.items() if k != "name"}, sweep and sweep.python()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_copy_means_what_the_recipe_means(
    name: str, environ: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "deep" / "er" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(copied(name, file))
    assert meaning(str(file), environ) == meaning(name, environ)
    assert resolve(file, (), environ).python()["name"] == "mine"


@pytest.mark.parametrize("name", SHIPPED)
def test_all_but_three_things_stays_as_it_was_written(name: str) -> None:
    """Comments, order and layout: `extends`, `name` and ``${here}`` alone are other ones."""
    before = SHIPPED[name].read_text().splitlines()
    after = copied(name, Path("mine.yaml")).splitlines()
    assert after[0].startswith(f"# Copied from {name}, of mmssl ")
    after = after[2:] if before[0].startswith("#") else after[1:]
    changed = [old for old, new in zip(before, after, strict=True) if old != new]
    for line in changed:
        assert re.search(r"^extends:|^name:|^  ?- \S+\.yaml$|\$\{here\}", line), line


def test_a_copied_quickstart_loads_and_has_a_folder_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(copied("quickstart", file))
    mine, original = load(file), load("quickstart")
    assert (mine.name, original.name) == ("mine", "quickstart")
    assert mine.plain() | {"name": ""} == original.plain() | {"name": ""}


def test_default_names_are_the_files_of_no_other_run() -> None:
    assert default_file("vatt/quickstart") == Path("my_vatt_quickstart.yaml")
    for source in ("recipes/a-b.yaml", "./a-b.yml", "/x/a-b.yaml"):
        assert default_file(source) == Path("my_a_b.yaml")
    names = [default_file(name).stem for name in SHIPPED]
    assert len(set(names)) == len(names)
    assert not {*names} & {yaml.safe_load(p.read_text()).get("name") for p in SHIPPED.values()}


def test_what_a_recipe_of_one_s_own_extends_is_found_from_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/base.yaml").write_text("x: 1\ny: ${here}\n")
    Path("mine/a.yaml").write_text(
        "extends:\n  - base.yaml  # mine\n  - quickstart\nz: ${here}/z\n"
    )
    Path("b.yaml").write_text(copied("mine/a.yaml", Path("b.yaml")))
    assert meaning("b.yaml", {}) == meaning("mine/a.yaml", {})
    assert "  - mine/base.yaml  # mine\n  - quickstart\n" in Path("b.yaml").read_text()
    # A file of this name would go before the shipped recipe.
    Path("quickstart").write_text("x: 2\n")
    assert meaning("b.yaml", {}) != meaning("mine/a.yaml", {})
    Path("b.yaml").write_text(copied("mine/a.yaml", Path("b.yaml")))
    assert meaning("b.yaml", {}) == meaning("mine/a.yaml", {})


WRITTEN = [
    "${here}/f", '"${here}/f"', "'${here}/f'", "&f ${here}/f", "!!str ${here}", "|\n  ${here}/f",
    ">-\n  ${here}\n  f", "[a, '${here}']", "{k: '${here}'}", "${VARIABLE:-${here}/f}",
    "$${here}", "'$$${here}'", "${here:-x}",
]  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from(WRITTEN), min_size=1, max_size=5, unique=True),
    st.text("ab c'\"\\{}$#:&é🦊\x85\n", min_size=1, max_size=12).filter(
        lambda s: s.strip() == s and "${" not in s and "}" not in s
    ),
)
def test_here_is_the_folder_of_the_original(
    tmp_path_factory: pytest.TempPathFactory, values: list[str], folder: str
) -> None:
    """However it is written, and whatever the folder is called."""
    there = tmp_path_factory.mktemp("there") / folder
    there.mkdir()
    lines = [f"k{i}: {value}\n" for i, value in enumerate(values)]
    (there / "a.yaml").write_text("# a comment\n" + "".join(lines) + "# the end\n")
    file = tmp_path_factory.mktemp("elsewhere") / "b.yaml"
    file.write_text(copied(str(there / "a.yaml"), file))
    environ = {"here": "never"}
    assert meaning(str(file), environ) == meaning(str(there / "a.yaml"), environ)
    assert file.read_text().endswith("# the end\n")


def test_a_folder_may_be_called_as_a_variable_is(tmp_path: Path) -> None:
    there = tmp_path / "a${b}"
    there.mkdir()
    values = [value for value in WRITTEN if "VARIABLE" not in value]
    (there / "a.yaml").write_text("".join(f"k{i}: {value}\n" for i, value in enumerate(values)))
    file = tmp_path / "b.yaml"
    file.write_text(copied(str(there / "a.yaml"), file))
    assert meaning(str(file), {}) == meaning(str(there / "a.yaml"), {})


@pytest.mark.parametrize("stem", ["true", "null", "1", "1e3", "0x1F"])
def test_a_copy_s_name_is_text(stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(f"{stem}.yaml").write_text(copied("quickstart", Path(f"{stem}.yaml")))
    assert load(f"{stem}.yaml").name == stem


@pytest.mark.parametrize("stem", ["-x", ".5", "a b", "é", "x" * 101])
def test_a_file_that_cannot_name_a_run_is_refused(stem: str) -> None:
    with pytest.raises(UserError, match="its stem is to name the run: at most 100 letters"):
        copied("quickstart", Path(f"{stem}.yaml"))


@pytest.mark.parametrize("file", ["d/", "xdc_small", "a.json"])
def test_a_recipe_s_file_has_its_ending(file: str) -> None:
    """Without, it would go before the shipped recipe of that name."""
    with pytest.raises(UserError, match=r"ends in \.yaml: name it "):
        copied("quickstart", Path(file))


def test_every_recipe_but_the_parts_says_what_it_is() -> None:
    for name, path in SHIPPED.items():
        said = summary(path)
        if path.name.startswith("_") or name.startswith("evaluations/"):
            assert said is None, name
        else:
            assert said, name
            assert len(said) > 10, name


def test_the_command(tmp_path: Path) -> None:
    # What reads a terminal, as Python's readline does, may have told its width to all that follows.
    listed = mmssl("copy", cwd=tmp_path, env=environment(tmp_path, COLUMNS="100"))
    assert listed.returncode == 0
    assert re.search(r"^quickstart +XDC on made-up videos, in a few minutes", listed.stdout, re.M)
    assert "_pretrain" not in listed.stdout
    done = mmssl("copy", "xdc/methods", "new/methods.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "KINETICS=... UCF101=... HMDB51=... ESC50=... mmssl run new/methods.yaml" in done.stdout
    before = (tmp_path / "new/methods.yaml").read_text()
    again = mmssl("copy", "quickstart", "new/methods.yaml", cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr == (
        "mmssl: new/methods.yaml is there already: name another file, mmssl copy quickstart FILE\n"
    )
    assert (tmp_path / "new/methods.yaml").read_text() == before
    near = mmssl("copy", "xdc/metods", cwd=tmp_path)
    assert near.returncode == 2
    assert near.stderr.endswith("did you mean 'xdc/methods'?\n")
    planned = mmssl("copy", "quickstart", cwd=tmp_path)
    assert re.search(r"^  objective    my_quickstart.yaml:\d+$", planned.stdout, re.M)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"a: [\n", "a.yaml:2: not valid YAML: "),
        (b"- a\n", ""),
        (b"just text\n", ""),
        (b"[a, b]: 1\n", "a.yaml:1: "),
        (b"description: [a]\n", ""),
        (b"# A study.\ndescription: \xff\n", "a.yaml:2: not a recipe: "),
    ],
)
def test_a_plugin_s_bad_recipe_leaves_the_others_in_the_list(
    written: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site" / "stranger" / "recipes"
    folder.mkdir(parents=True)
    (folder / "a.yaml").write_bytes(written)
    (folder.parent / "__init__.py").touch()
    info = tmp_path / "site" / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmssl]\nstranger = stranger\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    monkeypatch.setenv("COLUMNS", "200")
    listed = mmssl("copy", cwd=tmp_path)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert re.search(r"^quickstart +XDC on made-up videos", listed.stdout, re.M)
    (line,) = re.findall(r"^stranger/a *(.*)$", listed.stdout, re.M)
    assert line.startswith(said)
    assert bool(line) == bool(said)


def test_copying_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['mmssl', 'copy', 'quickstart']\n"
        "from mmssl.cli import main\n"
        "try: main()\n"
        "except SystemExit as done: assert done.code == 0\n"
        "print([m for m in ('torch', 'numpy', 'av') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ, capture_output=True, text=True
    )
    assert done.stdout.endswith("[]\n"), done.stderr
