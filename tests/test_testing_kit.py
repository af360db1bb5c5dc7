"""The conformance kit itself: it passes what is good, and says of each defect what to change."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import SkipTest

import pytest
from kit_toys import KINDS
from small_runs import mmssl

from mmssl import UserError
from mmssl.registry import SINGULAR, discover
from mmssl.testing import Check, Nonconforming, conformance, crew

RECIPE = """\
name: toys
seed: 1
threads: 1
device: cpu
modalities: {a: vector, b: vector}
backbones: {a: net, b: net}
data:
  train: {use: rows, size: 24}
objective: agree
training:
  epoch_size: 24
  epochs: 1
  batch_size: 8
  optimizer: descend
  schedule: steady
evaluations:
  measure: {use: measure, data: rows}
trackers: [lines]
callbacks: [average]
"""

# How the recipe names another component of each kind instead.
PLACES = {
    "modalities": ("{a: vector,", "{{a: {0},"),
    "datasets": ("train: {use: rows, size: 24}", "train: {{use: {0}, size: 24}}"),
    "backbones": ("{a: net,", "{{a: {0},"),
    "objectives": ("objective: agree", "objective: {0}"),
    "evaluators": ("{use: measure,", "{{use: {0},"),
    "optimizers": ("optimizer: descend", "optimizer: {0}"),
    "schedules": ("schedule: steady", "schedule: {0}"),
    "trackers": ("[lines]", "[{0}]"),
    "callbacks": ("[average]", "[{0}]"),
}

Named = Callable[[str, str], list[Check]]


def _plugin() -> str:
    """The plugin's module: names alone, as a plugin's should be."""
    lines = ["from mmssl import hookimpl"]
    for kind, components in KINDS.items():
        lines += ["", "", "@hookimpl", f"def register_{kind}(register):"]
        for name, target in components.items():
            attribute = getattr(target, "__name__", name)
            lines.append(f'    register("{name}", "kit_toys:{attribute}")')
    return "\n".join(lines) + "\n"


def install(site: Path, name: str, text: str, requires: str = "mmssl>=0.1,<0.2") -> None:
    """Put a plugin of one module where Python looks, as an installer would."""
    site.mkdir(exist_ok=True)
    (site / f"{name}.py").write_text(text)
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    if requires:
        metadata += f"Requires-Dist: {requires}\n"
    (info / "METADATA").write_text(metadata)
    (info / "entry_points.txt").write_text(f"[mmssl]\n{name} = {name}\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The plugin of toys, installed for this module's tests."""
    site = tmp_path_factory.mktemp("site")
    install(site, "kit_toy", _plugin())
    sys.path.insert(0, str(site))
    discover.cache_clear()
    crew.dismiss()  # those of earlier tests know no toys
    yield site
    sys.path.remove(str(site))
    discover.cache_clear()
    crew.dismiss()


@pytest.fixture
def named(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Named:
    """The checks of the toy of a kind, in the recipe instead of the good one."""
    monkeypatch.chdir(tmp_path)

    def named(kind: str, name: str) -> list[Check]:
        before, after = PLACES[kind]
        assert before in RECIPE
        text = RECIPE.replace(before, after.format(name))
        if name in ("pair", "leaking"):
            text = RECIPE.replace("{a: net, b: net}", f"{{a+b: {name}}}")
        (tmp_path / "toys.yaml").write_text(text)
        return [
            check
            for check in conformance("kit_toy", ["toys.yaml"])
            if check.subject in (f"{SINGULAR[kind]} {name}", "recipe toys")
        ]

    return named


def failures(checks: list[Check]) -> dict[str, str]:
    found = {}
    for check in checks:
        try:
            check()
        except SkipTest:
            continue
        except Nonconforming as error:
            found[check.claim] = str(error)
    return found


GOOD = [
    ("modalities", "vector"), ("modalities", "beside"), ("datasets", "rows"),
    ("backbones", "net"), ("backbones", "pair"), ("objectives", "agree"),
    ("evaluators", "measure"), ("optimizers", "descend"), ("schedules", "steady"),
    ("trackers", "lines"), ("callbacks", "average"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), GOOD)
def test_good_ones_conform(kind: str, name: str, named: Named) -> None:
    checks = named(kind, name)
    assert len(checks) > 8
    assert failures(checks) == {}


# A toy's kind and name, the check that it fails, and what its author is told.
DEFECTS = [
    ("modalities", "listed", "kind, shape, dtype and seconds are set", "self.shape = (channels"),
    ("modalities", "ragged", "read gives every sample the shape and dtype of empty()", "padded"),
    ("modalities", "shrinking", "a sample shorter than a clip gives the same shape", "pad what"),
    ("modalities", "restless", "reading is a function of the sample", "draw from the rng"),
    ("modalities", "hashing", "reading in another process gives the same clips", "hash() of text"),
    ("modalities", "unpicklable", "reading in another process", "keep no lambda"),
    ("modalities", "crashing", "a sample without it is absent", "look up fields with .get"),
    ("modalities", "skipping", "a sample without it is absent", "raise mmssl.MissingModality"),
    ("modalities", "misshapen", "prepare gives [B, *shape] of dtype", "float32 [8, 4]"),
    ("modalities", "dividing", "prepare of an absent sample's zeros is finite", "epsilon"),
    ("modalities", "inplace", "prepare does not change its input", "return a new tensor"),
    ("modalities", "whitening", "prepare of a batch equals prepare of its parts", "each clip by"),
    ("modalities", "counting", "prepare is a function of the clips", "choose nothing"),
    ("datasets", "twins", "no two of its samples have the same id", "make ids unique"),
    ("datasets", "shuffled", "it is the same when it is built again", "shuffle nothing"),
    ("datasets", "handle", "it pickles, and is the same in another process", "open files when"),
    ("datasets", "mislabelled", "labels() are those of its samples", "sample(1).label is 1"),
    ("datasets", "unclassed", "labels() are those of its samples", "labels index classes"),
    ("datasets", "opening", "asking for samples opens no media", "a dataset only lists"),
    ("datasets", "misstored", "storage() covers its rows", "hold 40 rows of 24"),
    ("backbones", "undeclared", "modalities, dim and joint are set", "frozenset({'imu'})"),
    ("backbones", "narrow", "features are pooled [B, dim]", "float32 [8, 5]"),
    ("backbones", "scaling", "forward does not change the clips", "no operation in place"),
    ("backbones", "unseeded", "the same seed builds the same parameters", "not by numpy"),
    ("backbones", "dropping", "a clip's features are always the same", "self.training is true"),
    ("backbones", "mixing", "features of a batch equal those of its parts", "may mix rows"),
    ("backbones", "hidden", "its state dict holds all of it", "register_buffer"),
    ("backbones", "lambda", "a copy, and what is unpickled", "keep no lambda"),
    ("backbones", "idle", "every parameter that is to be trained", "spare.weight, spare.bias"),
    ("backbones", "coarse", "in bf16 its features are finite", "in float32"),
    ("backbones", "bound", "its shapes can be told without data", "register it as a buffer"),
    ("backbones", "leaking", "absent rows influence nothing", "mask it by present"),
    ("backbones", "parted", "its subnetworks are parts of it", "has parameters of its own"),
    ("backbones", "silent", "its docstring says what it is", "one sentence"),
    ("backbones", "positional", "its parameters are keyword-only and typed", "put a '*' before"),
    ("backbones", "undescribed", "described under args", "nothing is said of width"),
    ("backbones", "misdefaulted", "its defaults are values", "dim='six'"),
    ("backbones", "unannotated", "it is, or returns, what its kind's contract", "-> Backbone"),
    ("objectives", "attached", "the loss is a finite scalar", "carries a gradient"),
    ("objectives", "detached", "the loss is a finite scalar", "no encoder gets a gradient"),
    ("objectives", "renaming", "a missing modality leaves the loss finite", "the same ones"),
    ("objectives", "empty", "a missing modality leaves the loss finite", "at least 1"),
    ("objectives", "branching", "a missing modality leaves the loss finite", "no gradient"),
    ("objectives", "peeking", "what stands in absent rows", "by batch.present"),
    ("objectives", "careless", "what stands in absent rows", "features of rows without a change"),
    ("objectives", "rolling", "the same batch and generator give the same loss", "draw from Draws"),
    ("objectives", "remembering", "in validation it has a loss", "seen changes in validation"),
    ("objectives", "forgetting", "built anew from its checkpoint", "round.resumed"),
    ("objectives", "growing", "finished, it fits one that has not been trained", "finish()"),
    ("objectives", "overflowing", "in bf16 the loss and its gradients are finite", "under bf16"),
    ("objectives", "unequal", "embeddings of a space are [B, D] of one D", "[8, 6]"),
    ("objectives", "lonely", "loss and gradients of 1 and 2 ranks are equal", "gather where rows"),
    ("evaluators", "tensors", "it returns metrics by name", "float(x) of a tensor"),
    ("evaluators", "guessing", "asked again it finds the same", "context.seed"),
    ("evaluators", "alone", "on 2 ranks it comes to its end", "another metric"),
    ("optimizers", "flat", "it makes a torch optimizer of parameter groups", "as they are"),
    ("optimizers", "decaying", "its steps are finite and change what has", "whose grad is None"),
    ("optimizers", "amnesic", "its state dict holds all", "keep momentum"),
    ("schedules", "rising", "its factors are finite numbers between 0 and 1", "is the peak"),
    ("trackers", "strewing", "it writes into the run's folder alone", "lines.txt"),
    ("trackers", "adding", "it takes every kind of record", "NoneType"),
    ("trackers", "once", "it goes on after a kill", "File exists"),
    ("callbacks", "misspelt", "its methods on_... are moments", "meant 'on_step_end'?"),
    ("callbacks", "numpystate", "its state survives a checkpoint", "numpy.int64"),
    ("callbacks", "losing", "killed and gone on with", "state_dict() of callbacks"),
    ("callbacks", "drifting", "with it the encoders of 2 ranks end up equal", "sent from rank 0"),
]


@pytest.mark.parametrize(("kind", "name", "claim", "told"), DEFECTS, ids=lambda x: str(x)[:24])
def test_a_defect_is_found_and_told(
    kind: str, name: str, claim: str, told: str, named: Named
) -> None:
    checks = [c for c in named(kind, name) if claim.lower() in c.claim.lower()]
    assert len(checks) == 1, claim
    with pytest.raises(Nonconforming) as failed:
        checks[0]()
    assert told in str(failed.value)


def test_what_cannot_be_built_is_told_once(named: Named) -> None:
    checks = [c for c in named("modalities", "unfinished") if c.subject == "modality unfinished"]
    told = failures(checks)
    assert list(told) == ["it is, or returns, what its kind's contract says"]
    assert "Unfinished does not define empty" in told.popitem()[1]
    with pytest.raises(SkipTest, match="it cannot be tried: Unfinished does not define empty"):
        next(c for c in checks if c.claim.startswith("prepare"))()


NAMED_BY_A_RECIPE = "objective agree: a recipe names it"


def checks_of_plugin(name: str, subject: str = "") -> list[Check]:
    discover.cache_clear()
    return [check for check in conformance(name) if check.subject.startswith(subject)]


COMMAND = """\
import torch

def slow() -> None:
    \"\"\"Slow.\"\"\"
"""


def test_a_plugin_is_checked_as_a_whole(site: Path) -> None:
    heavy = "import numpy\nfrom mmssl import hookimpl\n"
    install(site, "kit_heavy", heavy, requires="")
    found = failures(checks_of_plugin("kit_heavy"))
    slow, versions = found.values()
    assert "imports numpy" in slow
    assert 'dependencies = ["mmssl>=0.1,<0.2"]' in versions

    install(site, "kit_open", "", requires="mmssl>=0.1")
    (told,) = failures(checks_of_plugin("kit_open")).values()
    assert "also on a mmssl that does not exist yet" in told

    assert failures(checks_of_plugin("kit_toy", "plugin")) == {}


def test_a_broken_plugin_says_why(site: Path) -> None:
    install(site, "kit_torn", "import kit_torn_dependency\n")
    (told,) = failures(checks_of_plugin("kit_torn")).values()
    assert "No module named 'kit_torn_dependency'" in told


def test_a_command_must_not_be_slow(site: Path) -> None:
    (site / "kit_slow_command.py").write_text(COMMAND)
    hook = "from mmssl import hookimpl\n\n@hookimpl\ndef register_commands(register):\n"
    install(site, "kit_slow", hook + '    register("kit wait", "kit_slow_command:slow")\n')
    found = failures(checks_of_plugin("kit_slow", "command"))
    assert list(found) == ["its help, and its group's, come without torch"]
    assert "import it within the function kit_slow_command:slow" in found.popitem()[1]


def test_what_no_recipe_names_fails(site: Path) -> None:
    found = failures(checks_of_plugin("kit_toy", "modality vector"))
    assert list(found) == ["a recipe names it"]
    assert "'modalities: {key: vector}'" in found.popitem()[1]


@pytest.mark.parametrize(
    ("name", "claim", "told"),
    [
        ("untyped", "its parameters are keyword-only and typed", "declared without a type"),
        ("stranger", "it is, or returns, what its kind's contract says", "subclass mmssl.Backbone"),
    ],
)
def test_what_no_recipe_could_name(site: Path, name: str, claim: str, told: str) -> None:
    found = failures(checks_of_plugin("kit_toy", f"backbone {name}"))
    assert told in found[claim]


def test_a_recipe_that_does_not_load_is_a_failure(site: Path, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(RECIPE.replace("objective: agree", "objective: agreed"))
    discover.cache_clear()
    found = failures([c for c in conformance("kit_toy", [file]) if c.subject.startswith("recipe")])
    assert list(found) == ["loads"]
    assert "did you mean 'agree'?" in found["loads"]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("epoch_size: 24", "epoch_syze: 24", "did you mean 'epoch_size'?"),
        ("objective: agree", "objective: {agree", "wrong.yaml:"),
    ],
)
def test_what_a_recipe_that_does_not_load_may_name(
    before: str, after: str, told: str, site: Path, tmp_path: Path
) -> None:
    """Another recipe is no help then, and is not asked for."""
    assert before in RECIPE
    file = tmp_path / "wrong.yaml"
    file.write_text(RECIPE.replace(before, after))
    discover.cache_clear()
    (check,) = [c for c in conformance("kit_toy", [file]) if str(c) == NAMED_BY_A_RECIPE]
    with pytest.raises(Nonconforming) as failed:
        check()
    said = str(failed.value)
    assert said.startswith("no recipe that loads names the objective 'agree'")
    assert f"{file} does not load: " in said
    assert told in said
    assert "Add a" not in said


def test_a_recipe_that_does_not_run_is_a_failure(site: Path, tmp_path: Path) -> None:
    file = tmp_path / "wild.yaml"
    wild = RECIPE.replace("optimizer: descend", "optimizer: {use: descend, lr: 1e30}")
    file.write_text(wild)
    discover.cache_clear()
    (check,) = [c for c in conformance("kit_toy", [file]) if "runs to its end" in c.claim]
    with pytest.raises(Nonconforming, match="the loss is nan"):
        check()


def test_there_must_be_such_a_plugin() -> None:
    with pytest.raises(UserError, match="did you mean 'mmssl_media'"):
        conformance("mmssl_medai")


def test_the_command_line(site: Path, tmp_path: Path) -> None:
    places = [str(site), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    (tmp_path / "toys.yaml").write_text(RECIPE)

    def check(*words: str) -> subprocess.CompletedProcess[str]:
        return mmssl("check-plugin", *words, cwd=tmp_path, env=env)

    good = check("kit_toy", "--recipe", "toys.yaml", "--only", "modality vector: prepare")
    assert (good.returncode, good.stderr) == (0, "")
    assert "  ok      prepare of a batch equals prepare of its parts" in good.stdout
    assert good.stdout.splitlines()[-1] == "kit_toy: 5 ok, 0 failed, 1 not applicable"

    bad = check("kit_toy", "--recipe", "toys.yaml", "--only", "backbone silent: its docstring")
    assert bad.returncode == 1
    assert "  FAILED  its docstring says what it is" in bad.stdout
    assert bad.stdout.splitlines()[-1] == "kit_toy: 0 ok, 1 failed, 0 not applicable"

    install(site, "kit_broken", "1 / 0\n")
    broken = check("kit_broken", "--only", "modality imu")
    assert broken.returncode == 1
    assert f"division by zero ({site / 'kit_broken.py'}:1)" in broken.stdout

    unknown = check("kit_toi")
    assert unknown.returncode == 2
    assert "did you mean 'kit_toy'?" in unknown.stderr
    assert "Traceback" not in unknown.stderr
