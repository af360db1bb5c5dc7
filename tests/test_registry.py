"""Plugins: owners, clashes, and strangers that misbehave."""

import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from strangers import install_plugin, with_path

from mmssl import hookimpl
from mmssl.errors import UserError
from mmssl.hooks import KINDS
from mmssl.registry import Registry, discover, load_plugins, which_kind


def plugin(name: str, **hooks: Callable[..., None]) -> types.ModuleType:
    module = types.ModuleType(name)
    for hook, function in hooks.items():
        setattr(module, hook, hookimpl(function))
    return module


def registering(*pairs: tuple[str, str]) -> Callable[..., None]:
    def hook(register: Any) -> None:
        for name, target in pairs:
            register(name, target)

    return hook


def registry_of(**modules: Any) -> Registry:
    def importing(module: Any) -> Callable[[], Any]:
        def load() -> Any:
            if isinstance(module, BaseException):
                raise module
            return module

        return load

    return load_plugins([(name, "1.0", importing(module)) for name, module in modules.items()])


def test_every_component_has_an_owner() -> None:
    registry = registry_of(
        first=plugin("first", register_objectives=registering(("a", "m:A"), ("b", "m:B"))),
        second=plugin("second", register_objectives=registering(("c", "n:C"))),
    )
    found = [(c.name, c.owner, c.target) for c in registry.components("objectives")]
    assert found == [("a", "first", "m:A"), ("b", "first", "m:B"), ("c", "second", "n:C")]
    assert registry.resolve("objectives", "second/c").owner == "second"


def test_a_clash_names_both_owners_and_the_way_out() -> None:
    registry = registry_of(
        first=plugin("first", register_backbones=registering(("net", "m:A"))),
        second=plugin("second", register_backbones=registering(("net", "n:B"))),
    )
    with pytest.raises(UserError) as caught:
        registry.resolve("backbones", "net")
    assert str(caught.value) == (
        "backbone 'net' is brought by 'first' and 'second': write 'first/net' or 'second/net'"
    )
    assert registry.resolve("backbones", "second/net").target == "n:B"


def test_a_missing_component_proposes_a_near_one_and_names_broken_plugins() -> None:
    registry = registry_of(
        good=plugin("good", register_objectives=registering(("vicreg", "m:A"))),
        torn=ImportError("No module named 'torn_dependency'"),
    )
    with pytest.raises(UserError) as caught:
        registry.resolve("objectives", "vicrek")
    reason = f"ImportError: No module named 'torn_dependency' ({__file__}:"
    assert str(registry.plugins[1].error).startswith(reason)
    assert str(caught.value) == (
        "unknown objective 'vicrek'; did you mean 'vicreg'? (broken plugins, which might have "
        f"brought it: torn ({registry.plugins[1].error}))"
    )


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (SystemExit("leaving"), "SystemExit: leaving"),
        (RuntimeError("two\nlines"), "RuntimeError: two lines"),
        (
            plugin("x", register_objektives=registering(("a", "m:A"))),
            "unknown hook 'register_objektives', meant 'register_objectives'?",
        ),
        (plugin("x", register_objectives=registering(("a", "nowhere"))), "module:attribute"),
        (
            plugin("x", register_objectives=registering(("a", "m:A"), ("a", "m:B"))),
            "objective 'a' is registered twice",
        ),
        (plugin("x", register_objectives=lambda registrar: None), "registrar"),
    ],
)
def test_a_broken_plugin_is_listed_and_stops_no_other(broken: Any, reason: str) -> None:
    registry = registry_of(
        broken=broken,
        good=plugin("good", register_objectives=registering(("fine", "m:A"))),
    )
    bad, good = registry.plugins
    assert bad.error is not None
    assert reason in bad.error
    assert bad.components == ()
    assert good.error is None
    assert registry.resolve("objectives", "fine").owner == "good"


HOOK = "from mmssl import hookimpl\n@hookimpl\ndef register_objectives(register):\n    "


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\ndef (\n", "SyntaxError: invalid syntax (FILE:2)"),
        ("if x:\ny", "IndentationError: expected an indented block after 'if' statement on line 1"),
        ("if x:\ny", "(FILE:2)"),
        (f"{HOOK}1 / 0\n", "ZeroDivisionError: division by zero (FILE:4)"),
        (f"{HOOK}register('a', 'nowhere')\n", "is not of the form 'module:attribute' (FILE:4)"),
        ("import json\njson.loads('')\n", "Expecting value: line 1 column 1 (char 0) (FILE:2)"),
        ("import placed.no_such\n", "No module named 'placed.no_such' (FILE:1)"),
        ("from . import part\n", "(PART:1)"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3 (FILE:2)"),
    ],
)
def test_a_broken_plugin_is_named_with_its_place(
    text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "placed"
    folder.mkdir()
    file, part = folder / "__init__.py", folder / "part.py"
    file.write_text(text)
    part.write_text("undefined\n")
    assert reason.replace("FILE", str(file)).replace("PART", str(part)) in error_of(
        "placed = placed", tmp_path, monkeypatch
    )


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("placed = plased", "ModuleNotFoundError: No module named 'plased'"),
        ("placed = placed.hooks", "ModuleNotFoundError: No module named 'placed.hooks'"),
        ("placed = placed:hooks", "AttributeError: module 'placed' has no attribute 'hooks'"),
    ],
)
def test_an_entry_point_that_names_nothing_is_shown(
    entry: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "placed").mkdir()
    (tmp_path / "placed/__init__.py").write_text("")
    found = error_of(entry, tmp_path, monkeypatch)
    assert found == f"{reason}; its entry point is {entry}"


def error_of(entry: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Why the plugin of an entry point is broken."""
    info = site / "placed-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: placed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mmssl]\n{entry}\n")
    monkeypatch.syspath_prepend(str(site))
    discover.cache_clear()
    try:
        (plugin,) = [plugin for plugin in discover().plugins if plugin.name == "placed"]
    finally:
        discover.cache_clear()
        for name in ("placed", "placed.part"):
            sys.modules.pop(name, None)
    return str(plugin.error)


def test_commands_are_brought_by_plugins_and_no_component_of_recipes() -> None:
    registry = registry_of(
        mine=plugin("mine", register_commands=registering(("data count", "m:count")))
    )
    (command,) = registry.components("commands")
    assert (command.name, command.owner, command.target) == ("data count", "mine", "m:count")
    assert registry.kinds() == []
    with pytest.raises(UserError, match="unknown kind 'commands'"):
        which_kind("commands")


def test_a_target_that_does_not_import_names_its_owner() -> None:
    registry = registry_of(
        mine=plugin("mine", register_objectives=registering(("a", "no_such_module:A")))
    )
    with pytest.raises(UserError, match=r"objective 'a' of plugin 'mine' does not load from"):
        registry.resolve("objectives", "a").load()


def test_every_first_party_component_loads() -> None:
    registry = discover()
    assert [plugin.error for plugin in registry.plugins] == [None] * len(registry.plugins)
    for kind in KINDS:
        # What happens beside training is for others to say.
        assert registry.components(kind) or kind == "callbacks", f"nothing registers {kind}"
        for component in registry.components(kind):
            assert callable(component.load())


def listed(folder: Path) -> dict[str, Any]:
    """Plugins as another process finds them, with their errors."""
    code = (
        "import json; from mmssl.registry import discover; "
        "print(json.dumps({p.name: [p.version, p.error] for p in discover().plugins}))"
    )
    command, env = [sys.executable, "-c", code], with_path(folder)
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


HOOKS = """\
from mmssl import hookimpl

@hookimpl
def register_trackers(register):
    register("mine", "nowhere:Mine")
"""


def test_a_plugin_is_for_a_range_of_versions(tmp_path: Path) -> None:
    ranges = {
        "fits": ["torch>=2", "mmssl>=0.1,<0.2"],
        "any_version": ["mmssl"],
        "says_nothing": [],
        "of_another": ["mmssl-imu>=7", "mmssl.x>=7", "mmssl_y>=7"],
        "only_with_an_extra": ['mmssl>=7; extra == "new"'],
        "with_an_extra": ["mmssl[s3] <0.2,>=0.1"],
        "too_new": ["mmssl<0.3,>=0.2"],
        "too_old": ["numpy", "MMSSL (<0.1)"],
        "malformed": ["mmssl >=>1", "mmssl>=0.1; nonsense == 3"],
        "one_of_two": ["mmssl>=>1", "mmssl>=0.0", "mmssl==0.1.7"],
    }
    for name, requires in ranges.items():
        install_plugin(tmp_path, name, HOOKS, "0.3", requires)
    (tmp_path / "says_nothing-0.3.dist-info" / "METADATA").unlink()
    found = listed(tmp_path)
    errors = {name: error for name, (_, error) in found.items() if error}
    assert errors == {
        name: f"{name} 0.3 needs mmssl {needs}, and this is 0.1.0: install a version of it that "
        f"fits, or pip install 'mmssl{needs}'"
        for name, needs in {
            "too_new": ">=0.2,<0.3",
            "too_old": "<0.1",
            "one_of_two": "==0.1.7",
        }.items()
    }
    assert found["fits"][0] == "0.3"
    assert set(ranges) <= set(found)


def test_a_range_that_does_not_fit_is_told_where_it_is_missed(tmp_path: Path) -> None:
    def load() -> types.ModuleType:
        raise UserError("new 0.3 needs mmssl >=0.2, and this is 0.1.0: install ...")

    registry = load_plugins([("new", "0.3", load)])
    with pytest.raises(UserError, match=r"brought it: new \(new 0.3 needs mmssl >=0.2, and this"):
        registry.resolve("objectives", "a")


def test_kinds_in_both_numbers() -> None:
    assert which_kind("backbone") == which_kind("backbones") == "backbones"
    assert which_kind("modality") == "modalities"
    with pytest.raises(UserError, match="unknown kind 'backbon'; did you mean 'backbones'"):
        which_kind("backbon")


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys; from mmssl.registry import discover; discover(); import mmssl.cli; "
        "print([m for m in ('torch', 'numpy', 'av', 'pydantic', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_imports_run_one_way() -> None:
    """The core imports no plugin; a plugin imports another only through its ``__init__``."""
    import ast

    root = Path(__file__).parent.parent
    plugins = {path.name for path in (root / "plugins").iterdir() if path.is_dir()}
    wrong = []
    for path in [*root.glob("mmssl/**/*.py"), *root.glob("plugins/**/*.py")]:
        relative = path.relative_to(root)
        home = relative.parts[1] if relative.parts[0] == "plugins" else "mmssl"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top, _, inside = name.partition(".")
                if top in plugins and top != home and (home == "mmssl" or inside):
                    wrong.append(f"{relative}: {name}")
    assert wrong == []
