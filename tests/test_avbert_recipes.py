"""AVBert's recipes: each run plans, trains as the paper says, and is measured as it was read."""

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_runs import mmssl
from tiny_benchmarks import benchmarks, make_benchmarks
from torch import nn

from mmssl.contracts import Modality
from mmssl.errors import UserError
from mmssl.pipeline import assembly, plan
from mmssl.pipeline.plan import make_plan
from mmssl.pipeline.sweeps import runs_of
from mmssl.recipe import Recipe, load
from mmssl.recipe.compose import shipped_recipes
from mmssl.recipe.model import Training
from mmssl.training.encoders import Encoders
from mmssl.training.schedules import Place
from mmssl.training.settings import grouped
from mmssl_avbert.backbone import AVBert

FILES = {
    name: path
    for name, path in shipped_recipes()
    if name.startswith("avbert/") and name != "avbert/quickstart"
}
WHOLE = sorted(name for name, path in FILES.items() if not path.name.startswith("_"))

# Typed in: the runs of each recipe; steps, sequences of a batch, T.
RUNS: dict[str, list[str]] = {
    "avbert/kinetics700": [""],
    "avbert/audioset": [""],
    "avbert/released": [""],
    "avbert/fusion": [".early", ".mid", ".late", ".late_without_cpp"],
    "avbert/negatives": [".sequence", ".minibatch", ".cans_dissimilar", ".cans_similar"],
    "avbert/sharing": [".multi-2", ".layers", ".all", ".part", ".part_attention"],
    "avbert/visual": [".vis-2", ".vis-2_shared", ".vis-6", ".vis-6_shared"],
    "avbert/objectives": [
        *[".full", ".without_cpp", ".without_mep", ".without_multimodal_mep"],
        *[".without_positions", ".without_modality_embeddings", ".audio_first", ".visual_first"],
    ],
    "avbert/frames": [".abstract", ".table3"],
}
PRETRAINING = {
    "avbert/kinetics700": (220_000, 256, 30),
    "avbert/audioset": (220_000, 300, 10),
    "avbert/released": (220_000, 300, 10),
}
ABLATION = (80_000, 4, 30)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with datasets."""
    folder = tmp_path_factory.mktemp("place")
    make_benchmarks(folder)
    return folder


@pytest.fixture(autouse=True)
def environ(place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a shell there would have set; it is set."""
    variables = benchmarks(place)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(place)
    return variables


_built: dict[str, Encoders] = {}


def encoders_of(recipe: Recipe) -> Encoders:
    """A recipe's encoders without weights; equal ones are built once."""
    key = str([list(recipe.modalities), recipe.plain()["backbones"]])
    if key not in _built:
        with torch.device("meta"):
            networks = {name: spec.build() for name, spec in recipe.backbones.items()}
        _built[key] = Encoders(networks, list(recipe.modalities))
    return _built[key]


_checked: set[str] = set()


@pytest.fixture(autouse=True)
def _cheap_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks have no weights, and equal ones see the shape of equal clips once."""
    check = plan._check_features

    def once(
        recipe: Recipe,
        encoders: Encoders,
        modalities: dict[str, Modality],
        where: tuple[str, ...] = (),
    ) -> None:
        parts = recipe.evaluations[where[1]].parameters["subnetworks"] if where else None
        shapes = {name: modality.shape for name, modality in modalities.items()}
        key = str([recipe.plain()["backbones"], parts, shapes])
        if key not in _checked:
            check(recipe, encoders, modalities, where)
            _checked.add(key)

    monkeypatch.setattr(assembly, "build_encoders", encoders_of)
    monkeypatch.setattr(plan, "_check_features", once)


@cache
def _runs(name: str) -> tuple[Recipe, ...]:
    return tuple(runs_of(str(FILES[name]), [], []))


def run_of(label: str) -> Recipe:
    """A run by its name."""
    return next(run for name in WHOLE for run in _runs(name) if run.name == label)


def sizes(recipe: Recipe) -> tuple[int, int, int]:
    """Parameters of a recipe's Transformers, of its objective, and of all that it trains."""
    net = encoders_of(recipe).backbones["video+audio"]
    assert isinstance(net, AVBert)
    printed = {row[0]: row[4] for row in make_plan(recipe).tables[0].rows}
    transformers = sum(p.numel() for p in net.transformers.parameters())
    return transformers, printed["objective"], printed["video+audio"]


# Every recipe


def test_runs_are_those_of_the_tables() -> None:
    assert RUNS.keys() == set(WHOLE)
    for name, labels in RUNS.items():
        first = name.replace("/", "_")
        assert [run.name for run in _runs(name)] == [first + label for label in labels]


@pytest.mark.parametrize("name", WHOLE)
def test_plans(name: str) -> None:
    steps, batch, length = PRETRAINING.get(name, ABLATION)
    for recipe in _runs(name):
        summary = make_plan(recipe).summary
        assert f" {steps:,} steps" in summary, summary
        training = recipe.training
        assert training.batch_size == batch
        net = encoders_of(recipe).backbones["video+audio"]
        assert isinstance(net, AVBert)
        modalities = assembly.build_modalities(recipe)
        clips = {
            m: net.stream(m).clips(torch.empty(2, *modalities[m].shape, device="meta"))
            for m in ("video", "audio")
        }
        assert clips == {"video": length, "audio": length}
        assert net.pooled == "cnn"
        betas = {key: training.optimizer.parameters[key] for key in ("beta1", "beta2", "amsgrad")}
        assert betas == {"beta1": 0.9, "beta2": 0.98, "amsgrad": True}
        assert training.optimizer.parameters["weight_decay"] == 1e-4


def rates(training: Training, module: Mapping[str, nn.Module], step: int) -> dict[str, float]:
    """Each parameter's learning rate at a step of the round, as training sets it."""
    settings = assembly.training_settings(training, seed=0, max_bad=1.0)
    planned = assembly.round_plan(training, 1, 1)
    factor = planned.factor(Place(step, settings.steps_per_epoch, planned.epochs))
    optimizer = settings.make_optimizer(grouped(module, settings.groups))
    of = {id(p): g["lr"] * factor for g in optimizer.param_groups for p in g["params"]}
    return {f"{w}.{n}": of[id(p)] for w, m in module.items() for n, p in m.named_parameters()}


def orthogonal_and_others(found: Mapping[str, float]) -> tuple[set[float], set[float]]:
    """The learning rates of rotations, and those of all else."""
    turned = {rate for name, rate in found.items() if name.endswith(".skew")}
    return turned, {rate for name, rate in found.items() if not name.endswith(".skew")}


@pytest.mark.parametrize("name", WHOLE)
def test_pretraining_warms_up_for_6_percent_and_falls_to_0(name: str) -> None:
    for recipe in _runs(name):
        steps = PRETRAINING.get(name, ABLATION)[0]
        steps //= 2 if recipe.name.endswith("_first") else 1  # two rounds
        warmup = steps * 6 // 100
        assert (steps, warmup) in [(220_000, 13_200), (80_000, 4_800), (40_000, 2_400)]
        module = {"encoders": encoders_of(recipe)}
        has_rotations = any(n.endswith(".skew") for n, _ in module["encoders"].named_parameters())
        points = {0: 0.0, warmup // 2: 0.5, warmup: 1.0, (warmup + steps) // 2: 0.5, steps: 0.0}
        for step, factor in points.items():
            turned, others = orthogonal_and_others(rates(recipe.training, module, step))
            assert list(others) == pytest.approx([1e-4 * factor])
            assert list(turned) == pytest.approx([1e-5 * factor] * has_rotations)


@pytest.mark.parametrize("name", WHOLE)
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


def test_long_clips_may_lie_elsewhere(environ: dict[str, str], tmp_path: Path) -> None:
    """Kinetics-Sounds has the official clips of 10 seconds, pretraining longer ones."""
    recipe = load(FILES["avbert/kinetics700"], environ=environ | {"KINETICS_30S": str(tmp_path)})
    assert recipe.data.train.parameters["path"] == tmp_path
    measured = recipe.evaluations["kinetics_sounds"].parameters["train"].parameters["path"]
    assert measured == Path(environ["KINETICS"])


def test_no_file_is_left_over() -> None:
    """Each part is extended by a recipe."""

    def read(path: Path) -> set[Path]:
        extends = yaml.safe_load(path.read_text()).get("extends", [])
        parents = [extends] if isinstance(extends, str) else extends
        found = [read((path.parent / parent).resolve()) for parent in parents]
        return {path.resolve()}.union(*found)

    used = set().union(*(read(FILES[name]) for name in WHOLE))
    assert {path.resolve() for path in FILES.values()} <= used


# Networks, by what the plan prints

CNNS_AND_THE_REST = 46_020_008 - 3_843_840


@pytest.mark.parametrize(
    ("sharing", "transformers"),
    [
        ("none", 127_581_696),
        ("layers", 21_263_616),
        ("all", 7_087_872),
        ("part", 3_843_840),
        ("part_attention", 15_942_912),
    ],
)
def test_parameters_of_table_1c(sharing: str, transformers: int) -> None:
    overrides = [f"backbones.video+audio.sharing={sharing}", "evaluations=null"]
    if not sharing.startswith("part"):
        overrides.append("training.groups=[]")
    found = sizes(load(FILES["avbert/kinetics700"], overrides))
    # Two CNNs, the maps behind them, learned vectors and the norms behind these.
    cnns, glue, vectors = 33_644_488 + 5_890_528, 2_560_512, 80_640
    assert cnns + glue + vectors == CNNS_AND_THE_REST
    assert found[0] == transformers
    assert found[2] == CNNS_AND_THE_REST + transformers


@pytest.mark.parametrize(
    ("label", "transformers"),
    [
        ("sharing.multi-2", 7_397_760),
        ("sharing.layers", 21_263_616),
        ("sharing.all", 7_087_872),
        ("sharing.part", 3_843_840),
        ("sharing.part_attention", 15_942_912),
        # Two of each: the audio one learns beside what is measured.
        ("visual.vis-2", 2 * 14_175_744),
        ("visual.vis-2_shared", 2 * 7_087_872),
        ("visual.vis-6", 2 * 42_527_232),
        ("visual.vis-6_shared", 2 * 7_087_872),
        ("fusion.early", 7_087_872),
        ("fusion.mid", 21_263_616),
        ("fusion.late", 2 * 7_087_872),
    ],
)
def test_transformers_of_a_run(label: str, transformers: int) -> None:
    assert sizes(run_of(f"avbert_{label}"))[0] == transformers


def test_depths_of_table_1a_and_1d() -> None:
    """Early and late have 2L layers; Vis-2 has 2, Vis-6 has 6."""
    expected = {
        "fusion.early": {"multimodal": 12},
        "fusion.mid": {"video": 6, "audio": 6, "multimodal": 6},
        "fusion.late": {"video": 12, "audio": 12},
        "visual.vis-2": {"video": 2, "audio": 2},
        "visual.vis-6_shared": {"video": 6, "audio": 6},
    }
    for label, depths in expected.items():
        net = encoders_of(run_of(f"avbert_{label}")).backbones["video+audio"]
        assert isinstance(net, AVBert)
        assert {name: t.depth for name, t in net.transformers.items()} == depths


def test_released_networks_have_as_many_parameters_as_were_released() -> None:
    net = encoders_of(run_of("avbert_released")).backbones["video+audio"]
    assert isinstance(net, AVBert)
    counted = {m: sum(p.numel() for p in cnn.parameters()) for m, cnn in net.cnns.backbones.items()}
    assert counted == {"video": 31_672_128, "audio": 5_839_840}
    assert run_of("avbert_released").modalities["audio"].parameters["mels"] == 80


def test_visual_network_learns_what_it_would_learn_alone() -> None:
    """It shares no parameter with the audio network, and no term joins the two."""
    for recipe in _runs("avbert/visual"):
        net = encoders_of(recipe).backbones["video+audio"]
        assert isinstance(net, AVBert)
        parts = [net.subnetworks()[f"{name}_transformer"] for name in ("video", "audio")]
        seen, heard = ({id(p) for p in part.parameters()} for part in parts)
        assert not seen & heard
        assert "multimodal" not in net.transformers
        assert recipe.objective.parameters["cpp"] is False
        assert recipe.training.clip_norm is None


# The studies: what a run changes of another, and nothing else.


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {k: v for key in value for k, v in leaves(value[key], f"{path}.{key}").items()}


def changes(recipe: Recipe, base: Recipe) -> dict[str, Any]:
    """What differs but the name, by path; sets are by their keys."""
    ours, theirs = (leaves(x.plain()) for x in (recipe, base))
    different = {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)}
    return {k.removeprefix("."): ours.get(k) for k in different - {".name"}}


NET, TASK = "backbones.video+audio", "objective"
CELLS: list[tuple[str, str, dict[str, Any]]] = [
    ("negatives.cans_similar", "sharing.part", {}),
    ("objectives.full", "sharing.part", {}),
    ("frames.table3", "sharing.part", {}),
    ("negatives.sequence", "sharing.part", {f"{TASK}.negatives": "sequence"}),
    ("negatives.minibatch", "sharing.part", {f"{TASK}.negatives": "minibatch"}),
    ("negatives.cans_dissimilar", "sharing.part", {f"{TASK}.negatives": "cans_dissimilar"}),
    ("sharing.part_attention", "sharing.part", {f"{NET}.sharing": "part_attention"}),
    ("sharing.all", "sharing.layers", {f"{NET}.sharing": "all"}),
    ("objectives.without_cpp", "objectives.full", {f"{TASK}.cpp": False}),
    ("objectives.without_mep", "objectives.full", {f"{TASK}.mep": False}),
    ("objectives.without_multimodal_mep", "objectives.full", {f"{TASK}.mep_multimodal": False}),
    ("objectives.without_positions", "objectives.full", {f"{TASK}.cpp_positions": False}),
    (
        "objectives.without_modality_embeddings",
        "objectives.full",
        {f"{NET}.modality_embeddings": False},
    ),
    ("objectives.visual_first", "objectives.audio_first", {f"{TASK}.first": "video"}),
    (
        "objectives.audio_first",
        "objectives.full",
        {
            f"{TASK}.first": "audio",
            "training.epochs": 40,
            "training.schedule.warmup_epochs": 2.4,
        },
    ),
    ("visual.vis-2_shared", "visual.vis-2", {f"{NET}.sharing": "layers"}),
    ("visual.vis-6", "visual.vis-2", {f"{NET}.layers": 3}),
    ("fusion.late_without_cpp", "fusion.late", {f"{TASK}.cpp": False}),
    (
        "fusion.late",
        "fusion.mid",
        {
            f"{NET}.fusion": "late",
            "evaluations.kinetics_sounds.subnetworks.video+audio": "unimodal",
        },
    ),
    (
        "frames.abstract",
        "frames.table3",
        {
            "modalities.video.frames": 480,
            "modalities.video.fps": 16,
            f"{NET}.video_frames": 16,
            "evaluations.kinetics_sounds.modalities.video.frames": 160,
            "evaluations.kinetics_sounds.modalities.video.fps": 16,
        },
    ),
]


@pytest.mark.parametrize(("label", "base", "expected"), CELLS, ids=[cell[0] for cell in CELLS])
def test_study_changes_one_thing(label: str, base: str, expected: dict[str, Any]) -> None:
    assert changes(run_of(f"avbert_{label}"), run_of(f"avbert_{base}")) == expected


def test_mid_of_the_fusion_study_is_layers_of_the_sharing_study() -> None:
    """As their rows in the paper; the one is measured by single modalities, too."""
    found = changes(run_of("avbert_fusion.mid"), run_of("avbert_sharing.layers"))
    alone = ("evaluations.kinetics_sounds_video", "evaluations.kinetics_sounds_audio")
    assert found
    assert all(key.startswith(alone) for key in found)


# What runs are measured by


def measured() -> Iterator[tuple[Recipe, str, Any]]:
    for recipe in itertools.chain.from_iterable(_runs(name) for name in WHOLE):
        for name, spec in recipe.evaluations.items():
            yield recipe, name, spec


def test_groups_of_fine_tuning_hold_what_they_should() -> None:
    """A.4: classifier and CNNs, rotations, the rest, whatever the network has of them."""
    printed = {  # fine-tuning, at the peak
        "kinetics_sounds": (5e-3, 1e-4, 1e-3),
        "charades": (1e-3, 1e-5, 1e-4),
    }
    looked_at = set()
    for recipe, name, spec in measured():
        dataset = spec.parameters["train"].use
        if spec.use != "finetune" or dataset not in printed:
            continue
        fast, slow, rest = printed[dataset]
        encoders = assembly.measured_encoders(recipe, name, encoders_of(recipe))
        training = spec.parameters["training"]
        warmup = {"kinetics_sounds": 1_440, "charades": 2_400}[dataset]
        found = rates(training, {"encoders": encoders, "objective": nn.Linear(1, 1)}, warmup)
        cnns = {
            id(p)
            for network in ("video_cnn", "audio_cnn")
            for p in encoders_of(recipe).subnetworks({network[:5]: network}).parameters()
        }
        for key, parameter in encoders.named_parameters():
            expected = fast if id(parameter) in cnns else slow if key.endswith(".skew") else rest
            assert found[f"encoders.{key}"] == pytest.approx(expected), (recipe.name, name, key)
        assert found["objective.weight"] == pytest.approx(fast)
        looked_at.add((dataset, tuple(spec.parameters["subnetworks"].values())))
    networks = [("video_cnn", "audio_cnn"), ("video_transformer",), ("audio_transformer",)]
    expected_ = {(d, n) for d in printed for n in [*networks, ("multimodal",)]}
    assert looked_at == expected_ | {("kinetics_sounds", ("unimodal",))}


def test_released_fine_tuning_has_groups_for_the_classifier_and_for_norms() -> None:
    recipe = run_of("avbert_released")
    spec = recipe.evaluations["ucf101_released"]
    encoders = assembly.measured_encoders(recipe, "ucf101_released", encoders_of(recipe))
    settings = assembly.training_settings(spec.parameters["training"], seed=0, max_bad=1.0)
    norms = {
        id(p) for m in encoders.modules() if isinstance(m, nn.BatchNorm3d) for p in m.parameters()
    }
    modules = {"encoders": encoders, "objective": nn.Linear(1, 1)}
    _, head, spared = grouped(modules, settings.groups)
    assert {id(p) for p in spared["params"]} == norms
    assert (head["lr"], spared["weight_decay"]) == (0.03, 0)


def test_clips_are_measured_as_they_were_read() -> None:
    """Frames a second, crop, colours and filters are those of pretraining."""
    for recipe, name, spec in measured():
        for modality, other in spec.parameters["modalities"].items():
            ours, own = other.parameters, recipe.modalities[modality].parameters
            lengths = {"frames", "seconds"}
            if name == "ucf101_released":
                lengths |= {"fps"}
            if name in ("esc50", "ucf101"):  # nothing is trained; two seconds
                lengths |= {"time_mask", "frequency_mask"}
            assert {k: v for k, v in ours.items() if k not in lengths} == {
                k: v for k, v in own.items() if k not in lengths
            }, (recipe.name, name)


def test_dry_run_of_the_papers_pretraining(place: Path, environ: dict[str, str]) -> None:
    arguments = ["avbert/kinetics700", "--dry-run", "evaluations=null"]
    done = mmssl("run", *arguments, cwd=place, env={**os.environ, **environ})
    assert done.returncode == 0, done.stderr
    for figure in ("46,020,008", "220,000", "256", "0.0001", "3x960x112x112", "1x128x6576"):
        assert figure in done.stdout, figure
    assert not (place / "runs").exists()
