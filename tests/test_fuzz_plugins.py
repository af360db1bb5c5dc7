"""Whatever a stranger's plugin does as it is loaded, the command line goes on and names it."""

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzzing import fuzz, outcome
from hypothesis import given
from hypothesis import strategies as st
from small_runs import MMSSL
from strangers import install_entry_points, install_plugin, with_path

from mmssl import guests, hookimpl, registry
from mmssl.errors import UserError, one_line
from mmssl.hooks import REGISTERED
from mmssl.registry import Registry, discover, load_plugins

# What a module may do before it is one. {n} is a number of its own.
BODIES = [
    "raise RuntimeError('two\\nlines \\x1b[31m red')",
    "raise SystemExit(3)",
    "raise SystemExit",
    "raise KeyboardInterrupt",
    "raise GeneratorExit",
    "raise BaseException('base')",
    "raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})()",
    "raise type('E', (BaseException,), {'__str__': lambda self: None})()",
    "raise type('\\x07bell', (Exception,), {})()",
    "raise ExceptionGroup('many', [ValueError(1), KeyError(2)])",
    "def f(): f()\nf()",
    "import no_such_module_{n}",
    "from mmssl import nothing",
    "1 / 0",
    "assert False",
    "def broken(:",
    "import sys; sys.exit('bye')",
    "print('hello'); import sys; sys.stdout.write('again')",
    "import sys; sys.stdout = None",
    "import os; os.chdir('/')",
    "import sys; sys.path.clear()",
    "import sys; sys.path[:] = [None, 3]; sys.path.insert(0, '/stranger')",
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
    "import signal; signal.signal(signal.SIGTERM, lambda *a: None)",
    "import signal; signal.alarm(0); signal.signal(signal.SIGALRM, signal.SIG_DFL)",
    "import warnings; warnings.simplefilter('error'); warnings.filters.insert(0, None)",
    "import warnings; warnings.warn('look', DeprecationWarning)",
    "__file__ = 5; __package__ = 'x'",
    "__path__ = None",
    "def __getattr__(name): raise RuntimeError(name)",
    "def __dir__(): return [1, None, 'register_objectives']",
    "register_objectives = 5",
    "register_anything = None",
    "class register_objectives: pass",
    "@hookimpl\ndef register_objectives(): pass",
    "@hookimpl\ndef register_objectives(register, more): pass",
    "@hookimpl\ndef register_objectives(registrar): pass",
    "@hookimpl\ndef register_objectives(register): raise SystemExit",
    "@hookimpl\ndef register_objectives(register): register()",
    "@hookimpl\ndef register_objectives(register): return register",
    "@hookimpl\nasync def register_objectives(register): register('a', 'm:A')",
    "@hookimpl\ndef register_objectives(register): yield register('never', 'm:A')",
    "@hookimpl(wrapper=True)\ndef register_objectives(register): yield; raise ValueError",
    "@hookimpl(tryfirst=True, specname='register_trackers')\n"
    "def register_objectives(register): register('a', 'm:A')",
    "",
]

# Those of them that have no mistake, or none that is seen as they are loaded.
_HARMLESS_BEGIN = (
    "print",
    "import os",
    "import signal",
    "import warnings",
    "__",
    "import sys; sys.stdout",
    "import sys; sys.path",
    "@hookimpl\ndef register_objectives():",
    "@hookimpl\ndef register_objectives(register): return",
    "@hookimpl(tryfirst",
)
HARMLESS = [body for body in BODIES if body == "" or body.startswith(_HARMLESS_BEGIN)]

ANYTHING = (
    st.none()
    | st.integers()
    | st.binary(max_size=4)
    | st.text(max_size=6)
    | st.sampled_from(
        ["a", "xdc", "a b", "a/b", "../x", "\n", "\x1b[2J", "é", "-x", "", "data index"]
    )
    | st.sampled_from(
        ["m:A", "m", ":", "m:", ":A", "a:b:c", "os:path", "no.such:A", "os.path:join"]
    )
    | st.lists(st.integers(), max_size=2)
)


class Evil:
    """An object that answers nothing."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("no")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    __hash__ = None  # type: ignore[assignment]


def module_of(source: str, number: int) -> types.ModuleType:
    module = types.ModuleType(f"stranger_{number}")
    module.__dict__["hookimpl"] = hookimpl
    exec(compile(source.replace("{n}", str(number)), module.__name__, "exec"), module.__dict__)
    return module


def registering(kind: str, pairs: list[tuple[Any, Any]]) -> types.ModuleType:
    def hook(register: Any) -> None:
        for name, target in pairs:
            register(name, target)

    module = types.ModuleType("registering")
    setattr(module, f"register_{kind}", hookimpl(hook))
    return module


STRANGERS = st.one_of(
    st.builds(
        lambda source, n: lambda: module_of(source, n), st.sampled_from(BODIES), st.integers()
    ),
    st.builds(
        lambda kind, pairs: lambda: registering(kind, pairs),
        st.sampled_from(REGISTERED),
        st.lists(st.tuples(ANYTHING, ANYTHING), max_size=3),
    ),
    st.builds(lambda thing: lambda: thing, ANYTHING),
    st.sampled_from([lambda: Evil(), lambda: Evil, lambda: discover, lambda: sys, dict]),
)


def state() -> Any:
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    return os.getcwd(), handlers, list(warnings.filters), sys.stdout


@fuzz(150)
@given(st.lists(st.tuples(ANYTHING.filter(lambda x: isinstance(x, str)), STRANGERS), max_size=4))
def test_a_stranger_is_loaded_or_broken_and_disturbs_nobody(
    strangers: list[tuple[str, Any]],
) -> None:
    before, path = state(), list(sys.path)
    first = registering("objectives", [("first_one", "m:A")])
    last = registering("objectives", [("last_one", "n:B")])
    try:
        found = load_plugins(
            [
                ("first", "1", lambda: first),
                *((name, "1", load) for name, load in strangers),
                ("last", "1", lambda: last),
            ]
        )
        assert state() == before
        assert sys.path[: len(path)] == path
    finally:
        sys.path[:] = path
    assert [p.error for p in (found.plugins[0], found.plugins[-1])] == [None, None]
    assert len(found.plugins) == len(strangers) + 2
    assert found.resolve("objectives", "first/first_one").target == "m:A"
    for plugin in found.plugins:
        assert plugin.name.isprintable()
        assert plugin.error is None or (plugin.error and plugin.error.isprintable())
        assert plugin.error is None or not plugin.components
    shown_whole(found)


def shown_whole(found: Registry) -> None:
    """The verbs that list plugins and components show all, whatever it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "discover", lambda: found)
        for words in (["ls"], ["plugins"]):
            code, out, err = outcome(*words)
            assert (code, err) == (0, "")
            assert out.replace("\n", "").isprintable()
        for plugin in found.plugins:
            for component in plugin.components:
                if component.kind != "commands":
                    name = f"{component.owner}/{component.name}"
                    code, _, err = outcome("describe", component.kind, name)
                    assert code in (0, 2), err
                    assert code == 0 or (err.startswith("mmssl: ") and err.count("\n") == 1)


@pytest.mark.parametrize("body", BODIES)
def test_every_body_is_told_or_harmless(body: str) -> None:
    path = list(sys.path)
    try:
        (plugin,) = load_plugins([("stranger", "1", lambda: module_of(body, 0))]).plugins
    finally:
        sys.path[:] = path
    assert (plugin.error is None) == (body in HARMLESS), plugin.error


# A slow one


def test_a_slow_plugin_is_named_and_a_too_slow_one_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "_SLOW", 0.2)

    def stubborn() -> Any:
        """It catches the first that is raised in it, as a careless loop does."""
        with contextlib.suppress(Exception):
            time.sleep(60)
        time.sleep(60)

    def slow() -> Any:
        time.sleep(0.3)
        return types.ModuleType("slow")

    handler = signal.getsignal(signal.SIGALRM)
    with limits(monkeypatch, 0.6, 60):
        monkeypatch.setattr(guests, "PATIENCE", 0.1)
        found = load_plugins([("stubborn", "", stubborn), ("slow", "", slow)]).plugins
        assert signal.getsignal(signal.SIGALRM) is handler
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert str(found[0].error).startswith(
        "its import took longer than 0.6 s and was given up: import what is slow, torch above all, "
        f"where it is used, not where the plugin is loaded ({__file__}:"
    )
    assert found[1].error is None
    assert found[1].slow.startswith("slow: every command waits 0.3 s")
    assert "slow takes long to import" in capsys.readouterr().err


@contextlib.contextmanager
def limits(monkeypatch: pytest.MonkeyPatch, plugin: float, library: float) -> Iterator[None]:
    """Both, in seconds, with the alarm that is pytest-timeout's otherwise."""
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    monkeypatch.setattr(guests, "TIME_LIMIT", plugin)
    monkeypatch.setattr(guests, "LIBRARY_LIMIT", library)
    monkeypatch.setattr(guests, "PATIENCE", plugin / 2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)


def slow_library(folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> str:
    """The name of a package whose submodule takes that long to import."""
    monkeypatch.syspath_prepend(folder)
    name = f"slow_{folder.name}"
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("from . import part\nwhole = True\n")
    (folder / name / "part.py").write_text(f"import time\ntime.sleep({seconds})\n")
    return name


def test_a_plugin_that_is_given_up_leaves_libraries_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of torch, or of what its optimizers import, cannot be imported again."""
    library = slow_library(tmp_path, monkeypatch, 1.2)
    (tmp_path / "heavy.py").write_text(f"import {library}\nimport time\ntime.sleep(60)\n")
    with limits(monkeypatch, 0.2, 60):
        entries = [("heavy", "", lambda: importlib.import_module("heavy"))]
        (found,) = load_plugins(entries, {"heavy": {"heavy"}}).plugins
    assert found.error is not None
    assert "given up" in found.error
    assert sys.modules[library].whole
    assert "heavy" not in sys.modules
    assert f"heavy takes long to import: it is waited for as it imports {library}" in (
        capsys.readouterr().err
    )


def test_torch_is_waited_for_even_beyond_the_limit_of_libraries(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An exception in the midst of it has aborted the process."""
    library = slow_library(tmp_path, monkeypatch, 1.2)
    monkeypatch.setattr(guests, "_FRAGILE", {library})
    with limits(monkeypatch, 0.2, 0.4):
        (found,) = load_plugins([("heavy", "", lambda: importlib.import_module(library))]).plugins
    assert found.error is None


def test_a_plugin_is_given_up_within_its_own_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever loads plugins may be imported meanwhile: that is not theirs to wait for."""
    plugin = slow_library(tmp_path, monkeypatch, 60)
    source = (
        "from mmssl.registry import load_plugins\n"
        "import importlib\n"
        f"entries = [('own', '', lambda: importlib.import_module({plugin!r}))]\n"
        f"(found,) = load_plugins(entries, {{'own': {{{plugin!r}}}}}).plugins\n"
    )
    (tmp_path / "looks_for_plugins.py").write_text(source)
    begun = time.monotonic()
    with limits(monkeypatch, 0.2, 60):
        found = importlib.import_module("looks_for_plugins").found
    assert "given up" in found.error
    assert time.monotonic() - begun < 20


def test_a_library_that_never_ends_is_given_up_in_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = slow_library(tmp_path, monkeypatch, 60)
    with limits(monkeypatch, 0.2, 0.6):
        (found,) = load_plugins([("hangs", "", lambda: importlib.import_module(library))]).plugins
    assert found.error is not None
    assert f"import what is slow, {library}, where it is used" in found.error


def test_ctrl_c_while_a_plugin_loads_is_the_users(tmp_path: Path) -> None:
    install_plugin(
        tmp_path, "waits", "import pathlib, time\npathlib.Path('began').touch()\ntime.sleep(600)"
    )
    with subprocess.Popen(
        [MMSSL, "ls"], cwd=tmp_path, env=with_path(tmp_path), stderr=subprocess.PIPE, text=True
    ) as process:
        end = time.monotonic() + 60
        while not (tmp_path / "began").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


# Real distributions, all at once

GOOD = """
from mmssl import hookimpl
@hookimpl
def register_objectives(register):
    register({name!r}, "{module}:x")
"""


def test_the_command_line_goes_on_among_broken_distributions(tmp_path: Path) -> None:
    bodies = {
        f"body{i:02}": f"from mmssl import hookimpl\n{body.replace('{n}', str(i))}\n"
        for i, body in enumerate(BODIES)
        if not body.startswith("__file__")  # inspect, and torch with it, trips over such a module
    }
    for name, source in bodies.items():
        install_plugin(tmp_path, name, source)
    install_plugin(tmp_path, "cycle_a", "import cycle_b\nx = cycle_b.y")
    install_plugin(tmp_path, "cycle_b", "import cycle_a\ny = cycle_a.x")
    install_plugin(tmp_path, "sleeper", "import time\ntime.sleep(600)")
    install_plugin(tmp_path, "good", GOOD.format(name="good_one", module="nowhere"))
    install_entry_points(
        tmp_path,
        "odd",
        {
            "with space": "good",
            "sl/ash": "good",
            "\x1b[31mred": "good",
            "no_module": "...",
            "no_attribute": "good:nothing.at.all",
            "a_function": "os.path:join",
            "mmssl": "good",
            "mmssl_media": "good",
        },
    )
    for name, entries, metadata in (
        ("no_equals", b"[mmssl]\njust a line\n", b"Name: no_equals\nVersion: 1\n"),
        ("bytes", b"[mmssl]\nx\xff = good\n", b"\xff\xfe\0"),
        ("no_section", b"a = b\n[mmssl\n", b""),
        ("no_metadata", b"[mmssl]\nlonely = good:register_objectives\n", None),
    ):
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_bytes(entries)
        if metadata is not None:
            (info / "METADATA").write_bytes(metadata)
    # The limit of a plugin, shortened: Python runs this as it starts.
    (tmp_path / "sitecustomize.py").write_text("import mmssl.guests as g\ng.TIME_LIMIT = 1.0\n")
    work = tmp_path / "work"
    work.mkdir()

    def run(*words: str) -> tuple[str, str]:
        done = subprocess.run(
            [MMSSL, *words], cwd=work, env=with_path(tmp_path), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr

    assert "quickstart" in run("run", "--help")[0]
    listed, _ = run("plugins")
    assert listed.replace("\n", "").isprintable()
    reasons = _reasons(listed)
    assert "SystemExit: 3" in reasons["body01"]
    assert "nobody pressed Ctrl-C" in reasons["body03"]
    assert "SyntaxError" in reasons[f"body{BODIES.index('def broken(:'):02}"]
    assert "took longer than 1 s" in reasons["sleeper"]
    assert "partially initialized module" in reasons["cycle_a"]
    assert "other letters" in reasons["with space"]
    assert "\\x1b[31mred" in reasons
    assert "is no module" in reasons["no_module"]
    assert "loaded already" in reasons["mmssl_media"]
    assert "entry_points.txt cannot be read" in reasons["no_equals"]
    assert "good" not in reasons
    names, _ = run("ls", "objectives")
    assert "good_one" in names
    assert "xdc" in names
    assert "broken plugins: " in names
    # Where importlib cannot read a list of entry points, torch and pydantic do not load, either.
    for name in ("no_equals", "bytes", "no_section"):
        shutil.rmtree(tmp_path / f"{name}-1.dist-info")
    assert run("describe", "objective", "xdc")[0].startswith("objective xdc, from mmssl_clustering")
    assert "xdc of video and audio" in run("run", "quickstart", "--dry-run")[0]


def _reasons(listed: str) -> dict[str, str]:
    """Why plugins are broken, by name, from what ``mmssl plugins`` prints."""
    found, name = {}, ""
    for line in listed.splitlines():
        if line.startswith("  broken: "):
            found[name] = line.removeprefix("  broken: ")
        elif not line.startswith(" "):
            name = line.removesuffix(" 1.0").removesuffix(" 1")
    return found


# Commands and components of strangers


def test_a_command_that_is_none_is_told_where_it_is_asked_for(tmp_path: Path) -> None:
    install_plugin(
        tmp_path,
        "commands_of_mine",
        "from mmssl import hookimpl\n"
        "number = 5\n"
        "@hookimpl\ndef register_commands(register):\n"
        "    register('mine number', 'commands_of_mine:number')\n"
        "    register('mine missing', 'commands_of_mine:missing')\n"
        "    register('mine leaves', 'leaves:at_once')\n",
    )
    (tmp_path / "leaves.py").write_text("raise SystemExit(4)")
    done = subprocess.run(
        [MMSSL, "mine", "--help"],
        cwd=tmp_path,
        env=with_path(tmp_path),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Broken") == 3
    for verb in ("number", "missing", "leaves"):
        done = subprocess.run(
            [MMSSL, "mine", verb],
            cwd=tmp_path,
            env=with_path(tmp_path),
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("mmssl: command 'mine ")
        assert done.stderr.count("\n") == 1


@given(st.text() | st.binary() | st.integers())
def test_any_text_becomes_one_line(said: Any) -> None:
    assert one_line(said).isprintable()
    assert one_line(UserError(said)).isprintable()
