"""TAB: in real shells, and what they are told."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shells import Shell, need
from small_runs import MMSSL, RECIPE, mmssl
from strangers import install_plugin, with_path

from mmssl.completion import SHELLS, bash
from mmssl.completion.parameters import written_parameters
from mmssl.errors import UserError
from mmssl.hooks import KINDS
from mmssl.recipe.signature import parameters
from mmssl.registry import discover


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and a run."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "my small.yaml").write_text(RECIPE)
    (folder / "notes.txt").touch()
    (folder / "runs/first/evaluations/probe").mkdir(parents=True)
    (folder / "runs/first/recipe.yaml").write_text(RECIPE)
    (folder / "runs/no_run").mkdir()
    return folder


def asked(*words: str, cwd: Path, shell: str = "fish") -> list[str]:
    """Candidates for the last of the words."""
    done = subprocess.run(
        [MMSSL, *words],
        cwd=cwd,
        env={**os.environ, "_MMSSL_COMPLETE": shell},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split("\t")[1] for line in done.stdout.splitlines()]


# In the shells themselves

LINES = {
    "mmssl ru": "mmssl run ",
    "mmssl run quicks": "mmssl run quickstart ",
    "mmssl run quickstart obj": "mmssl run quickstart objective.",
    "mmssl run quickstart objective.u": "mmssl run quickstart objective.use=",
    "mmssl run quickstart objective.use=xd": "mmssl run quickstart objective.use=xdc ",
    "mmssl run quickstart objective.clus": "mmssl run quickstart objective.clusters=",
    "mmssl run quickstart training.precision=bf": "mmssl run quickstart training.precision=bf16 ",
    "mmssl check-plugin mmssl_ev": "mmssl check-plugin mmssl_evaluators ",
    "mmssl run quickstart --launch sl": "mmssl run quickstart --launch slurm ",
    "mmssl run --launch=sl": "mmssl run --launch=slurm ",
    "mmssl run my": "mmssl run my\\ small.yaml ",
    "mmssl run my\\ small.yaml backbones.vid": "mmssl run my\\ small.yaml backbones.video.",
    "mmssl status fi": "mmssl status first ",
    "mmssl data trans": "mmssl data transcode ",
    "mmssl data index no": "mmssl data index notes.txt ",
    "mmssl run quickstart runs=no": "mmssl run quickstart runs=notes.txt ",
    "mmssl describe objective xd": "mmssl describe objective xdc ",
    "mmssl nonsense x": "mmssl nonsense x",
}


@pytest.mark.parametrize("name", SHELLS)
def test_a_real_shell_completes(name: str, home: Path, tmp_path: Path) -> None:
    need(name)
    variables = {k: v for k, v in os.environ.items() if not k.startswith("XDG_")}
    installed = mmssl(
        "completion", name, "--install", cwd=home, env={**variables, "HOME": str(home)}
    )
    assert (installed.returncode, installed.stderr) == (0, "")
    variables["PATH"] = f"{Path(MMSSL).parent}:{variables['PATH']}"
    with Shell(name, home, variables) as shell:
        found = {line: shell.press(line + "\t") for line in LINES}
    assert found == LINES


def test_bash_completes_within_quotes_and_after_variables(home: Path) -> None:
    need("bash")
    code = 'source "$1"; COMP_LINE=$2; COMP_POINT=${#2}; _mmssl mmssl; printf "%s\\n" "$COMPREPLY"'
    script = Path(bash.__file__).with_name("mmssl.bash")
    for line, reply in (
        ('mmssl run quickstart "objective.use=xd', "objective.use=xdc"),
        ("mmssl run 'my sm", "my small.yaml"),
        ("CUDA_VISIBLE_DEVICES=0 X= mmssl run quicks", "quickstart"),
    ):
        done = subprocess.run(
            ["bash", "-c", code, "bash", str(script), line],
            cwd=home,
            env={**os.environ, "PATH": f"{Path(MMSSL).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
        )
        assert done.stdout.splitlines() == [reply], line


# What they are told


@pytest.mark.parametrize(
    ("line", "some", "never"),
    [
        ("run ", ["quickstart", "xdc/", "my small.yaml", "runs/"], ["xdc/ucf101", "notes.txt"]),
        ("run avbert/", ["avbert/quickstart"], ["quickstart", "avbert/avbert/quickstart"]),
        ("run runs/first/", ["runs/first/recipe.yaml"], ["runs/first/recipe"]),
        ("run quickstart ", ["objective.", "seed=", "training."], ["extends=", "--dry-run"]),
        ("run quickstart --", ["--dry-run", "--launch", "--sweep", "--help"], []),
        ("run quickstart --dry-run --", ["--launch"], ["--dry-run"]),
        ("run quickstart objective.use=", ["objective.use=xdc"], ["objective.use=knn"]),
        ("run quickstart objective=", ["objective=xdc"], ["objective=adam"]),
        ("run quickstart objective.", ["objective.clusters="], ["objective.temperature="]),
        ("run quickstart objective=infonce objective.", ["objective.temperature="], []),
        ("run quickstart objective.balance=", ["objective.balance=true"], []),
        ("run quickstart training.compile=", ["training.compile=false"], []),
        ("run quickstart training.final_round.", ["training.final_round.epochs="], []),
        ("run quickstart data.validation=", ["data.validation=null"], []),
        ("run quickstart backbones.", ["backbones.video.", "backbones.audio."], []),
        (
            "run quickstart evaluations.linear_probe.train.",
            ["evaluations.linear_probe.train.videos="],
            [],
        ),
        ("run quickstart --launch slurm launch.", ["launch.partition="], []),
        ("run quickstart launch.", ["launch.use="], ["launch.partition="]),
        ("run quickstart device=", ["device=auto", "device=cuda"], []),
        ("run quickstart --sweep training.precision=fp32,", ["training.precision=fp32,bf16"], []),
        ("run no_such_recipe training.prec", ["training.precision="], []),
        ("run quickstart broken[ training.prec", ["training.precision="], []),
        ("ls ", ["backbones", "launchers"], ["commands"]),
        ("describe ", ["backbone", "objective"], ["backbones"]),
        ("describe backbone r3", ["r3d_18"], ["xdc"]),
        ("status ", ["first"], ["no_run", "runs/"]),
        ("logs first ", ["pretrain", "probe"], []),
        ("table xdc_1", ["xdc_1_methods"], []),
        ("evaluate first --with ", ["knn", "quickstart"], ["xdc"]),
        ("evaluate first --with knn ", ["train.", "test.", "k="], []),
        ("evaluate first --with knn train.use=", ["train.use=ucf101"], []),
        ("embed first fields", [], []),
        ("data ", ["index", "shard"], []),
        ("data index --labels ", ["folder", "none"], []),
        ("comp", ["compare", "completion"], ["run"]),
        ("--v", ["--version"], []),
    ],
)
def test_candidates(line: str, some: list[str], never: list[str], home: Path) -> None:
    words = line.split(" ")
    found = asked(*words, cwd=home)
    assert set(some) <= set(found), found
    assert not set(never) & set(found)
    assert all(value.startswith(words[-1]) for value in found if value)


def test_nothing_heavy_is_imported(home: Path) -> None:
    code = (
        "import os, sys; os.environ['_MMSSL_COMPLETE'] = 'fish'\n"
        "from mmssl.cli import main; sys.argv = ['mmssl', *sys.argv[1:]]; main()\n"
        "print([m for m in ('torch', 'numpy', 'av') if m in sys.modules], file=sys.__stderr__)"
    )
    for line in ("run quickstart objective.", "evaluate first --with knn k=5 ", "data index -"):
        done = subprocess.run(
            [sys.executable, "-c", code, *line.split(" ")],
            cwd=home,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.count("\n") > 2
        assert done.stderr.splitlines()[-1] == "[]"


def test_parameters_read_from_source_are_those_of_the_signature() -> None:
    """Every component of this environment: what is known without importing it is right."""
    unknown = []
    for kind in KINDS:
        for component in discover().components(kind):
            try:
                there = [p.name for p in parameters(component.load())]
            except UserError:
                continue
            found = [p.name for p in written_parameters(component.target)]
            if found != there:
                unknown.append((component.name, found, there))
    assert unknown == []


def test_a_broken_and_a_talking_plugin_say_nothing_to_the_shell(tmp_path: Path) -> None:
    install_plugin(tmp_path, "torn", "raise RuntimeError('torn')")
    install_plugin(
        tmp_path,
        "talker",
        "import os, sys\nprint('done\\tTALK', flush=True)\n"
        "os.write(1, b'done\\tTALK2\\n')\n"
        "from mmssl import hookimpl\n"
        "@hookimpl\ndef register_objectives(register):\n"
        "    register('talk', 'talker:x')\n",
    )
    install_plugin(
        tmp_path,
        "odd",
        "from mmssl import hookimpl\n"
        "@hookimpl\ndef register_objectives(register):\n    register('spoken\\nline', 'odd:x')\n",
    )
    env = with_path(tmp_path, _MMSSL_COMPLETE="fish")
    done = subprocess.run(
        [MMSSL, "describe", "objective", ""], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0
    values = [line.split("\t")[1] for line in done.stdout.splitlines()]
    assert {"talk", "xdc"} <= set(values)
    assert not any("TALK" in value or "spoken" in value for value in values)


def test_a_library_that_a_plugin_imports_is_not_waited_for(tmp_path: Path) -> None:
    install_plugin(tmp_path, "hangs", "import never_ready")
    (tmp_path / "never_ready.py").write_text("import time\ntime.sleep(600)")
    env = with_path(tmp_path, _MMSSL_COMPLETE="fish")
    words = [MMSSL, "describe", "objective", "xd"]
    done = subprocess.run(
        words, env=env, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("done\txdc\t")


# Bash's words


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r"), min_size=1), min_size=1
    ),
    st.text("ab= :'\"\\$é", max_size=6),
)
def test_bash_words_are_cut_as_a_posix_shell_does(words: list[str], last: str) -> None:
    line = " ".join(["mmssl", *map(shlex.quote, words), shlex.quote(last)])
    assert shlex.split(line)[1:] == [*words, last]  # an independent reading
    assert bash.split(line, "").words == [*words, last]


@pytest.mark.parametrize(
    ("line", "words", "quote", "kept"),
    [
        ("mmssl ", [""], "", 0),
        ("mmssl run a=b:c", ["run", "a=b:c"], "", 4),
        ("mmssl run 'a=b", ["run", "a=b"], "'", 0),
        ('mmssl run x="a b', ["run", "x=a b"], '"', 2),
        ("mmssl run a\\ b", ["run", "a b"], "", 0),
    ],
)
def test_where_bash_goes_on(line: str, words: list[str], quote: str, kept: int) -> None:
    found = bash.split(line, "\"'><=;|&(:")
    assert (found.words, found.quote, found.kept) == (words, quote, kept)


# Installing


def test_the_script_is_printed_and_a_shell_without_name_is_a_mistake(tmp_path: Path) -> None:
    done = mmssl("completion", "zsh", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("#compdef mmssl\n")
    done = mmssl("completion", cwd=tmp_path, env={**os.environ, "SHELL": "/bin/ksh"})
    assert (done.returncode, done.stdout) == (2, "")
    assert "mmssl completion bash|zsh|fish" in done.stderr


def test_installing_twice_changes_a_start_file_once(tmp_path: Path) -> None:
    (tmp_path / ".bashrc").write_text("alias m=mmssl")
    env = {**os.environ, "HOME": str(tmp_path), "SHELL": "/usr/bin/bash"}
    env.pop("XDG_DATA_HOME", None)
    for _ in range(2):
        done = mmssl("completion", "--install", cwd=tmp_path, env=env)
        assert (done.returncode, done.stderr) == (0, "")
    script = tmp_path / ".local/share/mmssl/completion.bash"
    lines = (tmp_path / ".bashrc").read_text().splitlines()
    assert lines == ["alias m=mmssl", f"[ -f '{script}' ] && . '{script}'"]
