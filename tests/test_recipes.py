"""The recipes that come with mmssl: each one plans, and says what the paper's tables say."""

import math
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonschema import Draft202012Validator
from small_runs import mmssl
from tiny_benchmarks import benchmarks, make_benchmarks
from torch import nn

from mmssl.contracts import Backbone
from mmssl.errors import UserError
from mmssl.pipeline import assembly
from mmssl.pipeline.plan import make_plan
from mmssl.pipeline.sweeps import runs_of
from mmssl.recipe import Recipe, load
from mmssl.recipe.compose import shipped_tables
from mmssl.recipe.model import Training
from mmssl.recipe.schema import schema
from mmssl.recipe.yaml12 import Place, parse
from mmssl.training.encoders import Encoders
from mmssl.training.schedules import Place as At
from mmssl_backbones.audio_resnet import ResNet18Audio
from mmssl_backbones.video_resnet import r2plus1d_18_xdc

WEIGHTS = "runs/before/checkpoints/encoders.safetensors"
RECIPES = Path(__file__).parents[1] / "recipes"
FILES = {
    path.relative_to(RECIPES).with_suffix("").as_posix(): path
    for path in RECIPES.rglob("*.yaml")
    if path.parent.name != "tables"
}
PAPER = sorted(
    name
    for name, path in FILES.items()
    if name.startswith(("xdc/", "xdc_ig65m")) and not path.name.startswith("_")
)


def make_encoders() -> Encoders:
    """XDC's, at random."""
    return Encoders({"video": r2plus1d_18_xdc(), "audio": ResNet18Audio()}, ["video", "audio"])


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with datasets, and a finished run that is called ``before``."""
    folder = tmp_path_factory.mktemp("place")
    weights = folder / WEIGHTS
    weights.parent.mkdir(parents=True)
    make_encoders().save(weights)
    make_benchmarks(folder)
    return folder


@pytest.fixture
def environ(place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a shell there would have set; it is set."""
    own = {"PRETRAINED": "before", "XDC_WEIGHTS": str(place / WEIGHTS)}
    variables = {**benchmarks(place), **own}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(place)
    return variables


@pytest.fixture(scope="module")
def built() -> dict[str, Encoders]:
    return {}


@pytest.fixture
def encoders_built_once(built: dict[str, Encoders], monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal encoders are built once for all recipes; no plan changes them."""
    build = assembly.build_encoders

    def lookup(recipe: Recipe) -> Encoders:
        key = str([recipe.seed, list(recipe.modalities), recipe.plain()["backbones"]])
        if key not in built:
            built[key] = build(recipe)
        return built[key]

    monkeypatch.setattr(assembly, "build_encoders", lookup)


def run_of(name: str) -> Recipe:
    """A shipped recipe; ``recipe#label`` is one of a sweep's."""
    name, _, label = name.partition("#")
    runs = runs_of(str(FILES[name]), [], [])
    return next(run for run in runs if run.name.endswith(label))


# Every recipe


@pytest.mark.usefixtures("encoders_built_once", "environ")
@pytest.mark.parametrize("name", PAPER)
def test_plans(name: str) -> None:
    for recipe in runs_of(str(FILES[name]), [], []):
        steps = re.search(r"([\d,]+) steps", make_plan(recipe).summary)
        assert steps is not None
        per_epoch = round(recipe.training.epoch_size / recipe.training.batch_size)
        final = recipe.training.final_round
        trained = recipe.objective.use != "scratch"
        rounds = recipe.objective.parameters.get("rounds", 1) if trained else 0
        epochs = rounds * recipe.training.epochs
        if final is not None and final.epochs is not None:
            epochs += final.epochs - recipe.training.epochs
        assert int(steps[1].replace(",", "")) == per_epoch * epochs


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(schema())


@pytest.mark.parametrize("name", sorted(FILES))
def test_an_editor_finds_no_mistake(name: str) -> None:
    """Files as they are written, those that are only extended too."""
    written = parse(FILES[name].read_text(), Place(name, 1)).python()
    mistakes = [f"{list(e.path)}: {e.message}" for e in _validator().iter_errors(written)]
    assert mistakes == []


def test_an_editor_would_find_one() -> None:
    written = parse(FILES["xdc/_training"].read_text(), Place("_training", 1)).python()
    written["training"]["optimizer"]["learning_rate"] = 0.1
    assert [list(e.path)[:2] for e in _validator().iter_errors(written)] == [
        ["training", "optimizer"]
    ]


@pytest.mark.parametrize("name", PAPER)
def test_comment_says_how_to_start(name: str, environ: dict[str, str]) -> None:
    """The command is the recipe's own. It needs every variable that is named, and no other."""
    text = FILES[name].read_text()
    (command,) = re.findall(r"^#   (.*\bmmssl run .*)$", text, re.MULTILINE)
    *variables, program, verb, recipe = command.split()
    assert (program, verb, recipe) == ("mmssl", "run", name)
    shell = {variable: environ[variable] for variable in (v.partition("=")[0] for v in variables)}
    load(FILES[name], environ=shell)
    for variable in shell:
        with pytest.raises(UserError, match=rf"environment variable {variable} is not set"):
            load(FILES[name], environ={k: v for k, v in shell.items() if k != variable})


@pytest.mark.parametrize("name", sorted(FILES))
def test_comments_name_recipes_and_tables_that_there_are(name: str) -> None:
    text = re.sub(r"\n# *", " ", FILES[name].read_text())
    tables = {table for table, _ in shipped_tables()}
    assert set(re.findall(r"mmssl table (\w+)", text)) <= tables
    named = re.findall(r"\b(?:xdc|avbert)/\w[\w./]*\w", text)
    assert {found.removesuffix(".yaml") for found in named} <= FILES.keys()


@pytest.mark.usefixtures("environ")
def test_runs_do_not_share_a_folder() -> None:
    names = [recipe.name for name in PAPER for recipe in runs_of(str(FILES[name]), [], [])]
    assert sorted(set(names)) == sorted(names)


def test_no_file_is_left_over() -> None:
    """Each part is extended by a recipe."""

    def read(path: Path) -> set[Path]:
        extends = yaml.safe_load(path.read_text()).get("extends", [])
        parents = [extends] if isinstance(extends, str) else extends
        found = [read((path.parent / parent).resolve()) for parent in parents]
        return {path.resolve()}.union(*found)

    used = set().union(*(read(FILES[name]) for name in PAPER))
    parts = {path.resolve() for name, path in FILES.items() if name.startswith("xdc/")}
    assert parts <= used


# The paper's tables 10 to 12, typed in from the paper: examples an epoch, batch and learning rate
# of a GPU, epochs of warm-up, of a step and in total, weight decay, early stopping.

Row = tuple[int, int, float, tuple[int, int, int], float, int | None]
PRETRAINING: dict[str, Row] = {
    "xdc/pretrain/supervised_kinetics": (1_000_000, 32, 0.01, (10, 10, 45), 1e-4, None),
    "xdc/pretrain/supervised_audioset": (2_000_000, 32, 0.04, (10, 20, 45), 1e-5, None),
    "xdc/pretrain/kinetics": (1_000_000, 32, 0.01, (10, 10, 30), 1e-4, 3),
    "xdc/pretrain/audioset": (2_000_000, 32, 0.01, (10, 10, 45), 1e-4, 3),
    "xdc/pretrain/ig65m": (10_000_000, 32, 0.01, (1, 3, 10), 1e-4, None),
    "xdc_ig65m": (10_000_000, 32, 0.01, (1, 3, 10), 1e-4, None),
}
LAST_ROUND_OF_IG65M = (0, 9, 30)
FINE_TUNING = {"hmdb51": 40_000, "ucf101": 106_000, "esc50": 20_000}
GRID = [0.001, 0.002, 0.004, 0.006, 0.008, 0.01]
FC_GRID = [*GRID, 0.02, 0.04]
GPUS = 64


def rates(training: Training, rounds: int = 1, number: int = 1) -> list[float]:
    """The learning rate at the beginning of every epoch of a round, as training sets it."""
    settings = assembly.training_settings(training, seed=0, max_bad=1.0)
    optimizer = settings.make_optimizer([{"params": [nn.Parameter(torch.zeros(1))]}])
    peak = optimizer.param_groups[0]["lr"] * settings.lr_scale
    plan = assembly.round_plan(training, number, rounds)
    steps = settings.steps_per_epoch
    return [
        peak * plan.factor(At(epoch * steps, steps, plan.epochs, 1 / settings.lr_scale))
        for epoch in range(plan.epochs)
    ]


def by_table(lr: float, epochs: tuple[int, int, int], gamma: float, gpus: int) -> list[float]:
    """The same from the table, with decays counted from the end of the warm-up."""
    warmup, step, total = epochs
    rising = [lr * (1 + (gpus - 1) * epoch / warmup) for epoch in range(warmup)]
    return rising + [lr * gpus * gamma ** (epoch // step) for epoch in range(total - warmup)]


def check_training(training: Training, row: Row, gpus: int) -> None:
    examples, batch, lr, _, weight_decay, early_stop = row
    assert training.epoch_size == examples
    assert (training.batch_size, training.lr_batch) == (batch * gpus, batch)
    assert training.optimizer.use == "sgd"
    assert training.optimizer.parameters == {
        "lr": pytest.approx(lr),
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": weight_decay,
    }
    assert training.early_stop == early_stop


@pytest.mark.usefixtures("environ")
@pytest.mark.parametrize("gamma", [0.1, 0.01])
@pytest.mark.parametrize(("name", "row"), PRETRAINING.items(), ids=list(PRETRAINING))
def test_row_of_table_10(name: str, row: Row, gamma: float) -> None:
    """As recommended, and with gamma as printed: by its recipe, or by the field."""
    last = LAST_ROUND_OF_IG65M if name == "xdc_ig65m" else row[3]
    if gamma == 0.1:
        recipe = load(FILES[name])
    elif name == "xdc_ig65m":
        recipe = load(FILES["xdc_ig65m_as_printed"])
    else:
        recipe = load(FILES[name], ["training.schedule.gamma=0.01"])
    check_training(recipe.training, row, GPUS)
    rounds = recipe.objective.parameters.get("rounds", 1)
    assert rates(recipe.training, rounds) == pytest.approx(by_table(row[2], row[3], gamma, GPUS))
    expected = by_table(row[2], last, gamma, GPUS)
    assert rates(recipe.training, rounds, rounds) == pytest.approx(expected)


def fine_tunings(recipe: Recipe, data: str, *, fc: bool = False) -> Iterator[tuple[Any, Training]]:
    """A recipe's fine-tunings on a dataset: their parameters, and how they train."""
    for spec in recipe.evaluations.values():
        if spec.use == "finetune" and spec.parameters["train"].use == data:
            training = spec.parameters["training"]
            if fc == (spec.parameters["fc_only"] or training.freeze_encoders):
                yield spec.parameters, training


@pytest.mark.usefixtures("environ")
@pytest.mark.parametrize("fc", [False, True], ids=["everything", "fc only"])
@pytest.mark.parametrize(("data", "examples"), FINE_TUNING.items(), ids=list(FINE_TUNING))
def test_row_of_tables_11_and_12(data: str, examples: int, fc: bool) -> None:
    grid = FC_GRID if fc else GRID
    found = list(fine_tunings(load(FILES["xdc_ig65m"]), data, fc=fc))
    assert sorted(t.optimizer.parameters["lr"] for _, t in found) == grid
    for parameters, training in found:
        lr = training.optimizer.parameters["lr"]
        check_training(training, (examples, 32, lr, (2, 2, 8), 0.005, None), 1)
        assert rates(training) == pytest.approx(by_table(lr, (2, 2, 8), 0.1, 1))
        assert list(parameters["only"]) == ["audio" if data == "esc50" else "video"]
        assert (parameters["clips"], parameters["crops"]) == (10, 1)
        for split in ("train", "test"):
            dataset = parameters[split].parameters
            assert (dataset["split"], dataset["fold"]) == (split, 1)


@pytest.mark.usefixtures("environ")
@pytest.mark.parametrize(("data", "examples"), list(FINE_TUNING.items())[:2])
def test_32_frames_take_a_quarter_of_batch_and_rate(data: str, examples: int) -> None:
    runs = runs_of(str(FILES["xdc/splits"]), [], [])
    assert [run.name for run in runs] == [f"before.split-{n}" for n in (1, 2, 3)]
    for number, run in enumerate(runs, 1):
        found = list(fine_tunings(run, data))
        grid = [lr / 4 for lr in GRID]
        assert sorted(t.optimizer.parameters["lr"] for _, t in found) == pytest.approx(grid)
        for parameters, training in found:
            lr = training.optimizer.parameters["lr"]
            check_training(training, (examples, 8, lr, (2, 2, 8), 0.005, None), 1)
            assert rates(training) == pytest.approx(by_table(lr, (2, 2, 8), 0.1, 1))
            assert parameters["modalities"]["video"].build().shape == (3, 32, 224, 224)
            folds = {parameters[split].parameters["fold"] for split in ("train", "test")}
            assert folds == {number}


@pytest.mark.usefixtures("environ")
def test_sound_is_measured_on_all_folds_and_on_dcase() -> None:
    runs = runs_of(str(FILES["xdc/folds"]), [], [])
    assert [run.name for run in runs] == [f"before.fold-{n}" for n in range(1, 6)]
    for number, run in enumerate(runs, 1):
        found = [parameters for parameters, _ in fine_tunings(run, "esc50")]
        assert len(found) == len(GRID)
        folds = {p[split].parameters["fold"] for p in found for split in ("train", "test")}
        assert folds == {number}
        rest = [spec for spec in run.evaluations.values() if spec.use != "finetune"]
        assert [spec.use for spec in rest] == (["svm"] if number == 1 else [])
        for spec in rest:
            assert spec.parameters["train"].use == "dcase2014"
            assert (spec.parameters["clips"], spec.parameters["fit_on"]) == (60, "clips")


@pytest.mark.usefixtures("environ")
def test_learning_rates_by_hand() -> None:
    def of(name: str, rounds: int = 1, number: int = 1) -> list[float]:
        found = rates(load(FILES[name]).training, rounds, number)
        return [float(f"{rate:.3g}") for rate in found]

    ig65m = of("xdc_ig65m", 4)
    assert ig65m == [0.01, *[0.64] * 3, *[0.064] * 3, *[0.0064] * 3]
    last = [*[0.64] * 9, *[0.064] * 9, *[0.0064] * 9, *[0.00064] * 3]
    assert of("xdc_ig65m", 4, 4) == last
    assert of("xdc/pretrain/ig65m_32frames") == [rate / 4 for rate in last]
    assert of("xdc_ig65m_as_printed", 4)[-1] == 6.4e-5
    kinetics = of("xdc/pretrain/kinetics")
    assert (kinetics[0], kinetics[5], kinetics[10]) == (0.01, 0.325, 0.64)
    assert (kinetics[19], kinetics[20], kinetics[29]) == (0.64, 0.064, 0.064)
    assert max(of("xdc/pretrain/kinetics_32frames")) == 0.16
    assert max(of("xdc/pretrain/supervised_audioset")) == 2.56


@pytest.mark.usefixtures("environ")
@pytest.mark.parametrize("name", ["xdc_ig65m", "xdc/pretrain/kinetics", "xdc/finetune"])
def test_clips_are_the_papers(name: str) -> None:
    modalities = assembly.build_modalities(load(FILES[name]))
    assert modalities["video"].shape == (3, 8, 224, 224)
    if "audio" in modalities:
        assert modalities["audio"].shape == (1, 40, 100)
        assert modalities["audio"].seconds == 2


# The studies: what a run changes of the recipe that it is a study of, and nothing else.


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {k: v for key in value for k, v in leaves(value[key], f"{path}.{key}").items()}


def changes(recipe: Recipe, base: Recipe) -> dict[str, Any]:
    """What differs, by path; of evaluations that one has not, their names alone."""
    (ours, theirs) = (
        leaves(x.model_copy(update={"evaluations": {}}).plain()) for x in (recipe, base)
    )
    different = {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)}
    found = {k.removeprefix("."): ours.get(k) for k in different - {".name"}}
    for name in recipe.evaluations.keys() ^ base.evaluations.keys():
        found[f"evaluations.{name}"] = name in recipe.evaluations
    for name in recipe.evaluations.keys() & base.evaluations.keys():
        one, other = (leaves(x.evaluations[name].plain()) for x in (recipe, base))
        for key in one.keys() | other.keys():
            if one.get(key) != other.get(key):
                found[f"evaluations.{name}{key}"] = one.get(key)
    return found


KINETICS, AUDIOSET = "xdc/pretrain/kinetics", "xdc/pretrain/audioset"
R3D: dict[str, Any] = {"backbones.video.use": "r3d_18", "backbones.video.bn_momentum": None}
LIMIT = {"data.limit": 240_000}
SUPERVISED_KINETICS = "xdc/pretrain/supervised_kinetics"

CELLS: list[tuple[str, str, dict[str, Any]]] = [
    ("xdc/methods#.xdc", KINETICS, {}),
    ("xdc/methods#.mdc", KINETICS, {"objective.routing": None, "objective.use": "mdc"}),
    ("xdc/methods#.cdc", KINETICS, {"objective.routing": None, "objective.use": "cdc"}),
    (
        "xdc/methods#.sdc",
        KINETICS,
        {"objective.routing": None, "objective.use": "sdc", "objective.balance": True},
    ),
    *(
        (
            f"xdc/clusters_{data}#.clusters-{k}",
            base,
            (LIMIT if "240k" in data else {}) | ({} if k == 256 else {"objective.clusters": k}),
        )
        for data, base in (
            ("kinetics", KINETICS),
            ("audioset_240k", AUDIOSET),
            ("audioset", AUDIOSET),
        )
        for k in (64, 128, 256, 512, 1024)
    ),
    ("xdc/pretrain/supervised_audioset_240k", "xdc/pretrain/supervised_audioset", LIMIT),
    ("xdc/backbone#.xdc", KINETICS, R3D),
    (
        "xdc/purity",
        KINETICS,
        {
            "objective.clusters": None,
            "objective.clusters.video": 64,
            "objective.clusters.audio": 128,
            "evaluations.clusters.top": 5,
        },
    ),
]


@pytest.mark.usefixtures("environ")
@pytest.mark.parametrize(("name", "base", "expected"), CELLS, ids=[cell[0] for cell in CELLS])
def test_study_changes_one_thing(name: str, base: str, expected: dict[str, Any]) -> None:
    found = changes(run_of(name), run_of(base))
    if name == "xdc/purity":  # nothing is fine-tuned
        found = {k: v for k, v in found.items() if v is not False}
    assert found == expected


@pytest.mark.usefixtures("environ")
def test_baselines_of_the_backbone_are_those_of_the_other() -> None:
    supervised = changes(run_of("xdc/backbone#.supervised"), run_of(SUPERVISED_KINETICS))
    measured = {k: v for k, v in supervised.items() if k.startswith("evaluations.")}
    assert {k: v for k, v in supervised.items() if k not in measured} == R3D
    assert measured
    assert not any(measured.values())  # without table 4
    assert run_of("xdc/backbone#.scratch").objective.use == "scratch"


@pytest.mark.usefixtures("environ")
def test_rounds_of_ig65m_are_alike_or_the_last_is_longer() -> None:
    found = changes(run_of("xdc/pretrain/ig65m"), run_of("xdc_ig65m"))
    assert all(key.startswith("training.final_round") for key in found)
    assert run_of("xdc/pretrain/ig65m").training.final_round is None


@pytest.mark.usefixtures("environ")
def test_as_printed_differs_in_gamma_only() -> None:
    assert changes(run_of("xdc_ig65m_as_printed"), run_of("xdc_ig65m")) == {
        "training.schedule.gamma": 0.01,
        "training.final_round.schedule.gamma": 0.01,
    }


@pytest.mark.usefixtures("environ")
@pytest.mark.parametrize("data", ["kinetics", "audioset", "ig65m"])
def test_32_frames_are_one_more_round(data: str) -> None:
    base = "xdc_ig65m" if data == "ig65m" else f"xdc/pretrain/{data}"
    recipe = run_of(f"xdc/pretrain/{data}_32frames")
    found = changes(recipe, run_of(base))
    weights = str(Path(WEIGHTS).absolute())
    rest = {k: v for k, v in found.items() if not k.startswith(("evaluations.", "training."))}
    assert rest == {
        "modalities.video.frames": 32,
        "backbones.video.weights": weights,
        "backbones.audio.weights": weights,
        "objective.rounds": 1,
    }
    assert (recipe.training.batch_size, recipe.training.lr_batch) == (8 * GPUS, 8)
    assert not recipe.evaluations
    assert recipe.training.epochs == {"kinetics": 30, "audioset": 45, "ig65m": 30}[data]


# From a run to fine-tuning, and the command itself


@pytest.mark.usefixtures("environ")
@pytest.mark.parametrize("name", ["xdc/splits#.split-2", "xdc/folds#.fold-1", "xdc/finetune"])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["of a run", "of a file"])
def test_measured_are_a_runs_encoders(
    name: str, elsewhere: bool, environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not elsewhere and name != "xdc/finetune":
        monkeypatch.delenv("XDC_WEIGHTS")
    recipe = run_of(name)
    assert recipe.objective.use == "scratch"
    ((modality, backbone),) = assembly.build_encoders(recipe).backbones.items()
    saved = make_encoders()
    saved.load(Path(environ["XDC_WEIGHTS"]))
    assert isinstance(backbone, Backbone)
    expected = saved.backbones[modality].state_dict()
    assert backbone.state_dict().keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in backbone.state_dict().items())


def test_dry_run_of_the_flagship(environ: Mapping[str, str], tmp_path: Path) -> None:
    done = mmssl("run", "xdc_ig65m", "--dry-run", cwd=tmp_path, env={**os.environ, **environ})
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    printed = done.stdout
    for figure in ("33,165,639", "11,170,240", "48,830", "146,490", "2,048", "0.64"):
        assert figure in printed, figure
    total = 33_165_639 + 11_170_240 + 2 * (512 + 1) * 2048
    assert f"{3 * 48_830 + 146_490:,} steps" in printed
    assert f"{total:,} parameters" in printed
    assert math.isclose(48_830 * 2048, 100e6, rel_tol=1e-4)  # a round is 100 M clips


def test_missing_dataset_is_one_line(tmp_path: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if k != "AUDIOSET"}
    overrides = ["data.validation=null", "evaluations=null", "training.early_stop=null"]
    done = mmssl("run", AUDIOSET, "--dry-run", *overrides, cwd=tmp_path, env=clean)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "_audioset.yaml:" in line
    assert "AUDIOSET is not set" in line
