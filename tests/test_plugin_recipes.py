"""Recipes that plugins bring: found by name, from anywhere."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from recipe_components import RECIPE, registry

from mmssl import UserError
from mmssl.recipe import load, shipped_recipes
from mmssl.recipe.compose import resolve
from mmssl.registry import discover, load_plugins

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a plugin as pip does: a package, and metadata beside it."""
    site = tmp_path / "site-packages"
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def install(name: str, files: dict[str, str], module: str | None = None) -> Path:
        for file, text in files.items():
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).write_text(text)
        metadata = site / f"{name}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[mmssl]\n{name} = {module or name}\n")
        discover.cache_clear()
        return site

    yield install
    discover.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("stranger"):
            del sys.modules[name]


def names() -> list[str]:
    return [name for name, _ in shipped_recipes() if name.startswith("stranger")]


def test_a_recipe_of_a_plugin_is_found_by_name(install: Install) -> None:
    site = install(
        "stranger",
        {
            "stranger/__init__.py": "",
            "stranger/recipes/quickstart.yaml": "extends: parts/_base.yaml\nx: 1\n",
            "stranger/recipes/parts/_base.yaml": "y: ${here}\nz: 1\n",
        },
    )
    assert names() == ["stranger/parts/_base", "stranger/quickstart"]
    found = resolve("stranger/quickstart", ["z=2"], {}).python()
    folder = site / "stranger" / "recipes"
    assert found == {"name": "quickstart", "x": 1, "y": str(folder / "parts"), "z": 2}
    assert [name for name, _ in shipped_recipes()] == sorted(name for name, _ in shipped_recipes())


def test_a_recipe_extends_one_of_a_plugin(install: Install, tmp_path: Path) -> None:
    install("stranger", {"stranger/__init__.py": "", "stranger/recipes/base.yaml": RECIPE})
    (tmp_path / "mine.yaml").write_text("extends: stranger/base\nseed: 7\n")
    recipe = load("mine.yaml", registry=registry())
    assert (recipe.name, recipe.seed) == ("mine", 7)


def test_the_module_of_a_plugin_may_lie_within_its_package(install: Install) -> None:
    install(
        "stranger",
        {
            "stranger_inside/__init__.py": "",
            "stranger_inside/plugin.py": "",
            "stranger_inside/recipes/a.yaml": "x: 1\n",
        },
        module="stranger_inside.plugin",
    )
    assert names() == ["stranger/a"]


def test_a_plugin_of_one_file_has_no_recipes(install: Install) -> None:
    install("stranger", {"stranger.py": "", "recipes/quickstart.yaml": "x: 1\n"})
    assert names() == []


def test_a_near_name_of_a_plugin_s_recipe_is_proposed_and_no_part(install: Install) -> None:
    files = {"quickstart": "x: 1\n", "_quickstart": "x: 1\n"}
    texts = {f"stranger/recipes/{name}.yaml": text for name, text in files.items()}
    install("stranger", {"stranger/__init__.py": "", **texts})
    for wrong in ("stranger/quikstart", "strange/quickstart", "stranger/_quikstart"):
        with pytest.raises(UserError) as caught:
            resolve(wrong, (), {})
        assert str(caught.value).endswith("did you mean 'stranger/quickstart'?")


def test_mmssl_s_own_recipe_goes_before_a_plugin_s(install: Install) -> None:
    own = dict(shipped_recipes())["vatt/quickstart"]
    install(
        "stranger",
        {"stranger/__init__.py": "", "stranger/recipes/quickstart.yaml": "x: 1\n"},
    )
    metadata = Path("site-packages/stranger-1.0.dist-info/entry_points.txt")
    metadata.write_text("[mmssl]\nvatt = stranger\n")
    discover.cache_clear()
    assert dict(shipped_recipes())["vatt/quickstart"] == own


def test_a_broken_plugin_s_recipe_names_why_it_is_broken(install: Install, tmp_path: Path) -> None:
    install(
        "stranger",
        {
            "stranger/__init__.py": "import no_such_module\n",
            "stranger/recipes/quickstart.yaml": "x: 1\n",
        },
    )
    reason = (
        "there is no recipe 'stranger/quickstart': the plugin 'stranger' is broken: "
        "ModuleNotFoundError: No module named 'no_such_module' "
        f"({Path('site-packages').resolve() / 'stranger/__init__.py'}:1)"
    )
    with pytest.raises(UserError) as caught:
        resolve("stranger/quickstart", (), {})
    assert str(caught.value) == reason
    (tmp_path / "mine.yaml").write_text("x: 1\nextends: stranger/quickstart\n")
    with pytest.raises(UserError) as caught:
        resolve("mine.yaml", (), {})
    assert str(caught.value) == f"mine.yaml:2: extends: {reason}"


def test_what_is_no_module_has_no_recipes() -> None:
    """An entry point may name any object that has hooks."""
    (plugin,) = load_plugins([("object", "1.0", object)]).plugins
    assert (plugin.error, plugin.recipes) == (None, None)
