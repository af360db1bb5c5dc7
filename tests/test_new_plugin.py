"""``mmssl new-plugin``: what it writes installs, passes its tests, runs and learns."""

import json
import keyword
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_env import author_environment
from small_runs import mmssl

from mmssl import UserError
from mmssl.new_plugin.names import check_free, names_of
from mmssl.new_plugin.write import CHOICES, version_range, write_plugin
from mmssl.registry import Registry, discover

ROOT = Path(__file__).parent.parent
LONGEST = "abcdefgh-abcdefgh-abcdefgh-abcde"
SETS: dict[str, Sequence[str]] = {**{choice: [choice] for choice in CHOICES}, "all": CHOICES}


def plugin(name: str, chosen: Sequence[str], folder: Path) -> Path:
    return write_plugin(name, chosen, folder / name, Registry()).folder


# Names


@settings(deadline=None)
@given(st.from_regex(r"(mmssl[-_])?[a-z0-9_-]{0,34}", fullmatch=True) | st.text(max_size=8))
def test_names_are_usable_or_refused(name: str) -> None:
    """What is accepted can be imported, be a class, be a recipe's key and be installed."""
    refused = None
    try:
        names = names_of(name)
    except UserError as error:
        refused = str(error)
    if refused is not None:
        proposed = re.search(r"such as '([^']+)'$", refused)
        assert proposed is not None
        assert names_of(proposed[1]).distribution == proposed[1]
        return
    assert names.package.isidentifier()
    assert not keyword.iskeyword(names.package)
    assert names.camel.isidentifier()
    assert re.fullmatch(r"[a-z][a-z0-9_]*", names.stem)  # a modality's key
    assert re.fullmatch(r"[a-z0-9]+([._-][a-z0-9]+)*", names.distribution)  # PEP 508
    assert names.package == names.distribution.replace("-", "_")


@pytest.mark.parametrize("name", ["thermal", "mmssl-thermal", "mmssl_thermal", "eye-gaze2"])
def test_what_follows_from_a_name(name: str) -> None:
    names = names_of(name)
    assert names.stem == ("eye_gaze2" if "eye" in name else "thermal")
    assert names.camel == ("EyeGaze2" if "eye" in name else "Thermal")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("class", "'class' is a keyword of Python, which cannot be imported: choose another name, "
         "such as 'mmssl-class'"),
        ("Mmssl Thermal!", "such as 'mmssl-thermal'"),
        ("mmssl-3d", "such as 'mmssl-d'"),
        ("mmssl-null", "in recipes, null is a value and no component's name; choose another one, "
         "such as 'mmssl-my-null'"),
        ("TRUE", "such as 'mmssl-my-true'"),
        ("mmssl", "a plugin 'mmssl' is installed already: choose another name"),
        ("../x", "such as 'mmssl-x'"),
        ("random", "there is a package 'random' already: choose another name, such as "
         "'mmssl-random'"),
        ("tests", "the plugin's tests lie in a folder tests/: choose another name, such as "
         "'mmssl-tests'"),
        ("mmssl-media", "a plugin 'mmssl_media' is installed already: choose another name"),
        ("mmssl-video", "there is a modality 'video' already, of 'mmssl_media': choose another "
         "name, as recipes would have to tell them apart"),
    ],
)  # fmt: skip
def test_names_that_are_taken(name: str, message: str, tmp_path: Path) -> None:
    done = mmssl("new-plugin", name, cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"mmssl: .*\n", done.stderr)
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_name_clashes_with_components_of_its_own_kinds_only() -> None:
    names = names_of("mmssl-video")
    check_free(names, [("evaluators", "video"), ("datasets", "synthetic_video")], discover())
    with pytest.raises(UserError, match="there is an objective 'xdc' already"):
        check_free(names_of("mmssl-xdc"), [("objectives", "xdc")], discover())


# Files


def test_without_a_flag_it_is_a_modality(tmp_path: Path) -> None:
    done = mmssl("new-plugin", "mmssl-thermal", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "mmssl-thermal"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "pyproject.toml", "README.md", ".gitignore", "mmssl_thermal/__init__.py",
        "mmssl_thermal/modality.py", "mmssl_thermal/synthetic.py", "mmssl_thermal/py.typed",
        "mmssl_thermal/recipes/quickstart.yaml", "tests/test_conformance.py",
        "tests/test_modality.py", "tests/test_synthetic.py",
    }  # fmt: skip
    for command in re.findall(r"^  (.+)$", done.stdout.partition("It runs")[2], re.MULTILINE):
        assert command.split()[0] in ("cd", "pip", "pytest", "mmssl", "grep")
    assert (tmp_path / "mmssl-thermal").exists()


def test_nothing_is_overwritten_and_nothing_is_left_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    done = mmssl("new-plugin", "mmssl-thermal", "-o", "there", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "mmssl: there is there already: name another folder with -o, or remove it\n",
    )
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        write_plugin("a", ["backbone"], tmp_path / "file" / "a", Registry())

    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_plugin("a", ["backbone"], tmp_path / "a", Registry())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize(
    ("version", "expected"),
    [("0.1.0", ">=0.1,<0.2"), ("0.9.3", ">=0.9,<0.10"), ("2.0.0rc1", ">=2.0,<2.1")],
)
def test_the_range_of_versions(version: str, expected: str) -> None:
    assert version_range(version) == expected


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A plugin of each kind, one of all, and one of all whose name is as long as can be."""
    folder = tmp_path_factory.mktemp("plugins")
    plugins = {key: plugin(f"mmssl-a-{key}", chosen, folder) for key, chosen in SETS.items()}
    return plugins | {"longest": plugin(LONGEST, CHOICES, folder)}


def tool(name: str) -> str:
    """A program of the ``check`` extra."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent)]))
    if found is None and os.environ.get("CI") != "true":
        pytest.skip(f"needs {name}: pip install -e '.[check]'")
    assert found, f"{name} is not installed"
    return found


def test_what_is_written_is_as_mmssl_s_own_code(written: Mapping[str, Path]) -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    rules = ["--select", ",".join(lint["select"]), "--ignore", ",".join(lint["ignore"])]
    rules += [f"--per-file-ignores={glob}:D1" for glob in lint["per-file-ignores"]]
    for folder in written.values():
        for command in (["check", *rules], ["format", "--check"]):
            done = subprocess.run(
                [tool("ruff"), *command, "."], cwd=folder, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr


def test_the_type_checker_finds_nothing(written: Mapping[str, Path]) -> None:
    packages = [str(written[key] / f"mmssl_a_{key}") for key in SETS]
    path = os.pathsep.join(map(str, written.values()))
    done = subprocess.run(
        [tool("mypy"), *packages],
        cwd=ROOT,  # where its settings are, and what it knows of mmssl already
        env={**os.environ, "MYPYPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_places_to_change_are_marked_in_every_module(written: Mapping[str, Path]) -> None:
    for choice in CHOICES:
        package = written[choice] / f"mmssl_a_{choice}"
        for file in (package / f"{choice}.py", package / "recipes" / "quickstart.yaml"):
            assert "CHANGE: " in file.read_text(), file


def test_wheels_carry_templates_and_recipes(written: Mapping[str, Path], tmp_path: Path) -> None:
    def wheel(project: Path) -> set[str]:
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
            cwd=project, check=True, capture_output=True,
        )  # fmt: skip
        (file,) = tmp_path.glob("*.whl")
        names = set(zipfile.ZipFile(file).namelist())
        file.unlink()
        return names

    templates = (ROOT / "mmssl" / "new_plugin" / "templates").rglob("*.j2")
    assert {path.relative_to(ROOT).as_posix() for path in templates} < wheel(ROOT)
    found = wheel(written["modality"])
    assert "mmssl_a_modality/recipes/quickstart.yaml" in found
    assert not any(name.startswith("tests/") for name in found)


# Installed


@pytest.fixture(scope="module")
def installed(
    written: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., str]:
    """Run a program where these plugins are installed; what it printed."""
    env = author_environment(tmp_path_factory.mktemp("installed"))

    def program(*command: str | Path, cwd: Path) -> str:
        done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
        return done.stdout

    editable = (argument for key in SETS for argument in ("-e", written[key]))
    program("pip", "install", "--quiet", *editable, cwd=ROOT)
    return program


def test_installed_plugins_are_found_with_their_recipes(
    installed: Callable[..., str], tmp_path: Path
) -> None:
    listed = installed("mmssl", "plugins", cwd=tmp_path)
    assert listed.count("\nmmssl_a_") == len(SETS)
    assert "broken" not in listed
    recipes = installed("mmssl", "copy", cwd=tmp_path)
    for key in SETS:
        assert re.search(rf"^mmssl_a_{key}/quickstart  +A", recipes, re.MULTILINE)


def test_their_own_tests_pass(
    installed: Callable[..., str], written: Mapping[str, Path], tmp_path: Path
) -> None:
    tests = [written[key] / "tests" for key in ("modality", "all")]
    options = ["--import-mode=importlib", "-q", "-p", "no:cacheprovider"]
    passed = re.search(
        r"(\d+) passed", installed("python", "-m", "pytest", *options, *tests, cwd=tmp_path)
    )
    assert passed is not None
    assert int(passed[1]) > 80


@pytest.mark.slow
def test_the_recipe_of_all_components_runs_and_learns(
    installed: Callable[..., str], tmp_path: Path
) -> None:
    installed("mmssl", "run", "mmssl_a_all/quickstart", cwd=tmp_path)
    file = "runs/mmssl_a_all_quickstart/evaluations/nearest/metrics.json"
    found = json.loads((tmp_path / file).read_text())
    assert found["a_all/top1"] > found["a_all/top1_untrained"] + 0.1
    assert found["a_all/top1"] > 0.7


def test_the_recipes_of_single_components_run(
    installed: Callable[..., str], tmp_path: Path
) -> None:
    """In short, and in one process, as importing torch takes longest."""
    for key in CHOICES:
        (tmp_path / f"{key}.yaml").write_text(
            f"extends: mmssl_a_{key}/quickstart\n"
            "training: {epoch_size: 32, epochs: 1}\n"
            "data: {limit: 64, workers: 0}\n"
            "trackers: []\n" + ("" if key == "objective" else "objective: {rounds: 1}\n")
        )
    code = (
        "import sys; from mmssl.cli import app\n"
        "for key in sys.argv[1:]: app(['run', f'{key}.yaml'], standalone_mode=False)"
    )
    installed("python", "-c", code, *CHOICES, cwd=tmp_path)
    for key in CHOICES:
        (metrics,) = (tmp_path / "runs" / key).glob("evaluations/*/metrics.json")
        found = json.loads(metrics.read_text())
        assert any("untrained" in name and 0 <= value <= 1 for name, value in found.items())
