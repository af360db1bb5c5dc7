"""The recipes that come with mmssl: each one plans, and says what the paper's tables say."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonschema import Draft202012Validator
from torch import nn

from mmssl.contracts import Backbone
from mmssl.pipeline import assembly
from mmssl.pipeline.plan import make_plan
from mmssl.recipe import Recipe, load
from mmssl.recipe.schema import schema
from mmssl.recipe.yaml12 import Place, parse
from mmssl.training.encoders import Encoders
from mmssl.training.schedules import Place as At
from mmssl_backbones.audio_resnet import ResNet18Audio
from mmssl_backbones.video_resnet import r2plus1d_18_xdc, r3d_18

RECIPES = Path(__file__).parents[1] / "recipes"
FILES = {p.relative_to(RECIPES).with_suffix("").as_posix(): p for p in RECIPES.rglob("*.yaml")}
RUNNABLE = sorted(name for name, path in FILES.items() if not path.name.startswith("_"))
PAPER = [name for name in RUNNABLE if name not in ("quickstart", "xdc_small")]

CLASSES = {
    "KINETICS_TRAIN": 400,
    "KINETICS_VAL": 400,
    "AUDIOSET_TRAIN": 527,
    "AUDIOSET_240K": 527,
    "AUDIOSET_VAL": 527,
    "IG65M_TRAIN": 0,
    "UCF101_TRAIN": 101,
    "UCF101_TEST": 101,
    "HMDB51_TRAIN": 51,
    "HMDB51_TEST": 51,
    "ESC50_TRAIN": 50,
    "ESC50_TEST": 50,
    "VIDEOS": 0,
}


@pytest.fixture(scope="session")
def lists(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Datasets' variables: lists of a sample a class, of files that need not be there."""
    folder = tmp_path_factory.mktemp("lists")
    for name, classes in CLASSES.items():
        rows = [f"{i}.mp4,{i}" for i in range(classes)] or ["a.mp4,", "b.mp4,"]
        (folder / f"{name}.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    return {name: str(folder / f"{name}.csv") for name in CLASSES}


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encoders]:
    """By the file that a pretraining run leaves, the encoders in it."""
    folder = tmp_path_factory.mktemp("weights")
    saved = {}
    for name, make in {"xdc": r2plus1d_18_xdc, "r3d": r3d_18}.items():
        encoders = Encoders({"video": make(), "audio": ResNet18Audio()}, ["video", "audio"])
        encoders.save(folder / f"{name}.safetensors")
        saved[str(folder / f"{name}.safetensors")] = encoders
    return saved


class Environment(dict[str, str]):
    """Variables that remember who was asked for."""

    def __init__(self, *values: Mapping[str, str]) -> None:
        super().__init__({k: v for mapping in values for k, v in mapping.items()})
        self.asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)


@pytest.fixture
def environ(lists: dict[str, str], weights: dict[str, Encoders], request: Any) -> Environment:
    """What a shell would have set; recipes of the other backbone get its weights."""
    kind = "r3d" if "/backbone/" in request.node.name else "xdc"
    path = next(path for path in weights if Path(path).stem == kind)
    return Environment(lists, {"XDC_WEIGHTS": path})


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


# Every recipe


@pytest.mark.usefixtures("encoders_built_once")
@pytest.mark.parametrize("name", RUNNABLE)
def test_plans(name: str, environ: Environment) -> None:
    recipe = load(FILES[name], environ=environ)
    plan = make_plan(recipe)
    steps = re.search(r"([\d,]+) steps", plan.summary)
    assert steps is not None
    per_epoch = round(recipe.training.epoch_size / recipe.training.batch_size)
    final = recipe.training.final_round
    rounds = recipe.objective.parameters.get("rounds", 1)
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
    written = parse(FILES["xdc/_pretrain"].read_text(), Place("_pretrain", 1)).python()
    written["training"]["optimizer"]["learning_rate"] = 0.1
    assert [list(e.path)[:2] for e in _validator().iter_errors(written)] == [
        ["training", "optimizer"]
    ]


@pytest.mark.parametrize("name", PAPER)
def test_comment_says_how_to_start(name: str, environ: Environment) -> None:
    """The command is the recipe's own, with exactly the variables that it reads."""
    load(FILES[name], environ=environ)
    comment = [line for line in FILES[name].read_text().splitlines() if line.startswith("#")]
    (command,) = (line for line in comment if line.startswith("#   "))
    *variables, mmssl, run, recipe = command.removeprefix("#").split()
    assert (mmssl, run, recipe) == ("mmssl", "run", name)
    assert {v.removesuffix("=...") for v in variables} == environ.asked


def test_runs_do_not_share_a_folder(lists: dict[str, str], weights: dict[str, Encoders]) -> None:
    environ = {**lists, "XDC_WEIGHTS": next(iter(weights))}
    names = [load(FILES[name], environ=environ).name for name in RUNNABLE]
    assert len(set(names)) == len(names)


def test_no_file_is_left_over() -> None:
    """Each part is extended by a recipe."""

    def read(path: Path) -> set[Path]:
        extends = yaml.safe_load(path.read_text()).get("extends", [])
        parents = [extends] if isinstance(extends, str) else extends
        found = [read((path.parent / parent).resolve()) for parent in parents]
        return {path.resolve()}.union(*found)

    used = set().union(*(read(FILES[name]) for name in RUNNABLE))
    assert used == {path.resolve() for path in FILES.values()}


# The paper's tables 10 and 11, typed in from the paper: examples an epoch, batch and learning rate
# of a GPU, epochs of warm-up, of a step and in total, weight decay, early stopping.

PRETRAINING = {
    "xdc/pretrain/supervised_kinetics": (1_000_000, 32, 0.01, (10, 10, 45), 1e-4, None),
    "xdc/pretrain/supervised_audioset": (2_000_000, 32, 0.04, (10, 20, 45), 1e-5, None),
    "xdc/pretrain/kinetics": (1_000_000, 32, 0.01, (10, 10, 30), 1e-4, 3),
    "xdc/pretrain/audioset": (2_000_000, 32, 0.01, (10, 10, 45), 1e-4, 3),
    "xdc/pretrain/ig65m": (10_000_000, 32, 0.01, (1, 3, 10), 1e-4, None),
    "xdc_ig65m": (10_000_000, 32, 0.01, (1, 3, 10), 1e-4, None),
}
LAST_ROUND_OF_IG65M = (0, 9, 30)
FINE_TUNING = {
    "xdc/finetune/hmdb51": (40_000, 32, 0.01, (2, 2, 8), 0.005, None),
    "xdc/finetune/ucf101": (106_000, 32, 0.01, (2, 2, 8), 0.005, None),
    "xdc/finetune/esc50": (20_000, 32, 0.01, (2, 2, 8), 0.005, None),
}
ROWS = [
    (name + suffix, row, gamma, gpus)
    for table, gpus in ((PRETRAINING, 64), (FINE_TUNING, 1))
    for name, row in table.items()
    for suffix, gamma in (("", 0.1), ("_as_printed", 0.01))
]


def rates(recipe: Recipe, number: int) -> list[float]:
    """The learning rate at the beginning of every epoch of a round, as training sets it."""
    settings = assembly.training_settings(recipe.training, seed=0, max_bad=1.0)
    optimizer = settings.make_optimizer([{"params": [nn.Parameter(torch.zeros(1))]}])
    peak = optimizer.param_groups[0]["lr"] * settings.lr_scale
    rounds = recipe.objective.parameters.get("rounds", 1)
    plan = assembly.round_plan(recipe.training, number, rounds)
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


@pytest.mark.parametrize(("name", "row", "gamma", "gpus"), ROWS, ids=[row[0] for row in ROWS])
def test_row_of_the_paper(
    name: str, row: tuple[Any, ...], gamma: float, gpus: int, environ: Environment
) -> None:
    examples, batch, lr, epochs, weight_decay, early_stop = row
    recipe = load(FILES[name], environ=environ)
    training = recipe.training
    assert training.epoch_size == examples
    assert (training.batch_size, training.lr_batch) == (batch * gpus, batch)
    assert training.optimizer.use == "sgd"
    assert training.optimizer.parameters == {
        "lr": lr,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": weight_decay,
    }
    assert training.early_stop == early_stop
    assert rates(recipe, 1) == pytest.approx(by_table(lr, epochs, gamma, gpus))
    last = recipe.objective.parameters.get("rounds", 1)
    if name.startswith("xdc_ig65m"):
        epochs = LAST_ROUND_OF_IG65M
    assert rates(recipe, last) == pytest.approx(by_table(lr, epochs, gamma, gpus))


def test_learning_rates_by_hand(environ: Environment) -> None:
    def of(name: str, number: int = 1) -> list[float]:
        return [float(f"{rate:.3g}") for rate in rates(load(FILES[name], environ=environ), number)]

    ig65m = of("xdc_ig65m")
    assert ig65m == [0.01, *[0.64] * 3, *[0.064] * 3, *[0.0064] * 3]
    assert of("xdc_ig65m", 4) == [*[0.64] * 9, *[0.064] * 9, *[0.0064] * 9, *[0.00064] * 3]
    assert of("xdc_ig65m_as_printed")[-1] == 6.4e-5
    kinetics = of("xdc/pretrain/kinetics")
    assert (kinetics[0], kinetics[5], kinetics[10]) == (0.01, 0.325, 0.64)
    assert (kinetics[19], kinetics[20], kinetics[29]) == (0.64, 0.064, 0.064)
    assert max(of("xdc/pretrain/supervised_audioset")) == 2.56
    assert of("xdc/finetune/ucf101") == [*[0.01] * 4, *[0.001] * 2, *[0.0001] * 2]
    assert of("xdc/finetune/ucf101_32frames") == [*[0.0025] * 4, *[0.00025] * 2, *[2.5e-5] * 2]


@pytest.mark.parametrize("name", ["xdc_ig65m", "xdc/pretrain/kinetics", "xdc/finetune/ucf101"])
def test_clips_are_the_papers(name: str, environ: Environment) -> None:
    modalities = assembly.build_modalities(load(FILES[name], environ=environ))
    assert modalities["video"].shape == (3, 8, 224, 224)
    if "audio" in modalities:
        assert modalities["audio"].shape == (1, 40, 100)
        assert modalities["audio"].seconds == 2


# The studies: what a cell changes of the recipe that it is a study of, and nothing else.


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {k: v for key in value for k, v in leaves(value[key], f"{path}.{key}").items()}


def changes(name: str, base: str, environ: Environment) -> dict[str, Any]:
    recipe, other = (leaves(load(FILES[n], environ=environ).plain()) for n in (name, base))
    different = {k for k in recipe.keys() | other.keys() if recipe.get(k) != other.get(k)}
    return {k.removeprefix("."): recipe.get(k) for k in different - {".name"}}


KINETICS = "xdc/pretrain/kinetics"
R3D: dict[str, Any] = {"backbones.video.use": "r3d_18", "backbones.video.bn_momentum": None}

CELLS: list[tuple[str, str, dict[str, Any]]] = [
    ("xdc/studies/methods/xdc", KINETICS, {}),
    ("xdc/studies/methods/mdc", KINETICS, {"objective.use": "mdc"}),
    ("xdc/studies/methods/cdc", KINETICS, {"objective.use": "cdc"}),
    (
        "xdc/studies/methods/sdc",
        KINETICS,
        {"objective.use": "sdc", "objective.balance": True},
    ),
    *(
        (
            f"xdc/studies/clusters/{data}_{k}",
            f"xdc/pretrain/{data}",
            {} if k == best else {"objective.clusters": k},
        )
        for data, best in (("kinetics", 256), ("audioset_240k", 64), ("audioset", 256))
        for k in (64, 128, 256, 512, 1024)
    ),
    *(
        (f"xdc/studies/data/{data}", f"xdc/pretrain/{data}", {})
        for data in (
            "kinetics",
            "audioset",
            "audioset_240k",
            "supervised_kinetics",
            "supervised_audioset",
        )
    ),
    ("xdc/studies/data/ig65m", "xdc_ig65m", {}),
    (
        "xdc/studies/data/supervised_audioset_240k",
        "xdc/pretrain/supervised_audioset",
        {"data.train.path": "AUDIOSET_240K"},
    ),
    *(
        (
            f"xdc/studies/fc_only/{start}{data}_{mode}",
            f"xdc/finetune/{data}",
            ({"training.freeze_encoders": True} if mode == "fc" else {})
            | ({f"backbones.{modality}.weights": None} if start else {}),
        )
        for data, modality in (("ucf101", "video"), ("hmdb51", "video"), ("esc50", "audio"))
        for mode in ("fc", "all")
        for start in ("", "random_")
    ),
    ("xdc/studies/backbone/xdc", KINETICS, R3D),
    ("xdc/studies/backbone/supervised", "xdc/pretrain/supervised_kinetics", R3D),
    *(
        (f"xdc/studies/backbone/{start}_{data}", f"xdc/finetune/{data}", R3D | scratch)
        for data in ("ucf101", "hmdb51")
        for start, scratch in (
            ("finetune", {}),
            ("scratch", {"backbones.video.weights": None}),
        )
    ),
    (
        "xdc/studies/purity/kinetics",
        KINETICS,
        {
            "objective.clusters": None,
            "objective.clusters.video": 64,
            "objective.clusters.audio": 128,
            "evaluations.clusters.top": 5,
        },
    ),
]


def test_every_cell_is_looked_at() -> None:
    studies = [name for name in RUNNABLE if "/studies/" in name]
    assert sorted(name for name, _, _ in CELLS) == studies


@pytest.mark.parametrize(("name", "base", "expected"), CELLS, ids=[cell[0] for cell in CELLS])
def test_study_changes_one_thing(
    name: str, base: str, expected: dict[str, Any], environ: Environment
) -> None:
    expected = {key: environ.get(str(value), value) for key, value in expected.items()}
    assert changes(name, base, environ) == expected


def test_presets_differ_in_gamma_only(environ: Environment) -> None:
    names = [name for name in RUNNABLE if name.endswith("_as_printed")]
    assert len(names) == 9
    for name in names:
        recommended = name.removesuffix("_as_printed")
        expected = {"training.schedule.gamma": 0.01}
        if name == "xdc_ig65m_as_printed":
            expected["training.final_round.schedule.gamma"] = 0.01
        assert changes(name, recommended, environ) == expected


# From a run to fine-tuning, and the command itself


@pytest.mark.parametrize("name", ["xdc/finetune/ucf101", "xdc/finetune/esc50"])
def test_fine_tuning_begins_with_a_runs_encoders(
    name: str, environ: Environment, weights: dict[str, Encoders]
) -> None:
    encoders = assembly.build_encoders(load(FILES[name], environ=environ))
    ((modality, backbone),) = encoders.backbones.items()
    saved = weights[environ["XDC_WEIGHTS"]].backbones[modality]
    assert isinstance(backbone, Backbone)
    assert isinstance(saved, Backbone)
    expected = saved.state_dict()
    assert backbone.state_dict().keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in backbone.state_dict().items())


def test_dry_run_of_the_flagship(lists: dict[str, str], tmp_path: Path) -> None:
    code = "from mmssl.cli import main; main()"
    command = [sys.executable, "-c", code, "run", "xdc_ig65m", "--dry-run"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **lists}, capture_output=True, text=True
    )
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
    code = "from mmssl.cli import main; main()"
    clean = {k: v for k, v in os.environ.items() if k not in CLASSES}
    command = [sys.executable, "-c", code, "run", "xdc/pretrain/audioset", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [re.search(r"AUDIOSET_(TRAIN|VAL)", line) is not None for line in lines] == [True, True]
    assert "_audioset.yaml:" in lines[0]
