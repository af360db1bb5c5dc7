"""VATT's recipes: each one plans, and says what the paper and the released code say."""

import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_benchmarks import benchmarks, make_benchmarks
from torch import nn

from mmssl.contracts import Backbone
from mmssl.data.draws import derive_seed
from mmssl.errors import UserError
from mmssl.pipeline import assembly
from mmssl.pipeline.plan import Plan, make_plan
from mmssl.pipeline.sweeps import runs_of
from mmssl.pipeline.tables import load_table
from mmssl.recipe import Recipe, load
from mmssl.recipe.compose import shipped_tables
from mmssl.recipe.model import Training
from mmssl.training.encoders import Encoders

FOLDER = Path(__file__).parents[1] / "recipes" / "vatt"
NAMES = sorted(
    path.stem
    for path in FOLDER.glob("*.yaml")
    if not path.name.startswith("_") and not path.stem.startswith("quickstart")
)
PARTS = sorted(path.stem for path in FOLDER.glob("_*.yaml"))


@pytest.fixture(scope="module")
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
    monkeypatch.setenv("MMSSL_CACHE", str(place / "cache"))
    monkeypatch.chdir(place)
    return variables


@pytest.fixture(scope="module")
def networks() -> dict[str, Backbone]:
    return {}


@pytest.fixture(autouse=True)
def without_weights(networks: dict[str, Backbone], monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks have shapes and no weights, and equal ones are built once for all recipes."""

    def build(recipe: Recipe) -> Encoders:
        found = {}
        for key, spec in recipe.backbones.items():
            text = f"{key} {spec.plain()}"
            if text not in networks:
                torch.manual_seed(derive_seed(recipe.seed, "backbone", key))
                with torch.device("meta"):
                    networks[text] = spec.build()
            found[key] = networks[text]
        return Encoders(found, list(recipe.modalities))

    monkeypatch.setattr(assembly, "build_encoders", build)


@cache
def runs(name: str) -> dict[str, Recipe]:
    """A recipe's runs, by what a sweep calls them; the recipe alone is the run ``""``."""
    return {
        run.name.partition(".")[2]: run for run in runs_of(str(FOLDER / f"{name}.yaml"), [], [])
    }


@cache
def plans(name: str) -> dict[str, Plan]:
    return {label: make_plan(recipe) for label, recipe in runs(name).items()}


def every_run() -> Iterator[Recipe]:
    for name in NAMES:
        yield from runs(name).values()


def encoders_of(recipe: Recipe) -> Encoders:
    return assembly.build_encoders(recipe)


# Every recipe


def test_all_are_looked_at() -> None:
    assert set(NAMES) == {
        *("bbs", "mbs", "lbs", "ma", "spectrogram"),
        *("released", "ma_released", "frames", "waveform"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_plans(name: str) -> None:
    """500 k steps, whichever the batch; and the parameters that are shown are the networks'."""
    for label, plan in plans(name).items():
        recipe = runs(name)[label]
        assert re.search(r"([\d,]+) steps", plan.summary)[1] == "500,000"  # type: ignore[index]
        rows = {row[0]: row for row in plan.tables[0].rows}
        encoders = encoders_of(recipe)
        assert list(encoders.modalities) == ["video", "audio", "text"]
        for key, backbone in encoders.backbones.items():
            assert rows[key][4] == count(backbone)
        shown = {row[0] for table in plan.tables for row in table.rows}
        assert recipe.evaluations.keys() <= shown


def test_runs_do_not_share_a_folder() -> None:
    names = [run.name for run in every_run()]
    assert len(names) == 6 + 1 + 1 + 1 + 1 + 1 + 3 + 5 + 1
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", NAMES)
def test_comment_says_how_to_start(name: str, environ: dict[str, str]) -> None:
    """The command is the recipe's own. It needs every variable that is named, and no other."""
    text = (FOLDER / f"{name}.yaml").read_text().replace(" \\\n#  ", "")
    (command,) = re.findall(r"^#   (.*\bmmssl run .*)$", text, re.MULTILINE)
    *variables, program, verb, recipe = command.split()
    assert (program, verb, recipe) == ("mmssl", "run", f"vatt/{name}")
    shell = {variable: environ[variable] for variable in (v.partition("=")[0] for v in variables)}
    load(FOLDER / f"{name}.yaml", environ=shell)
    for variable in shell:
        with pytest.raises(UserError, match=rf"environment variable {variable} is not set"):
            load(FOLDER / f"{name}.yaml", environ={k: v for k, v in shell.items() if k != variable})


@pytest.mark.parametrize("name", [*NAMES, *PARTS])
def test_comments_name_recipes_and_tables_that_there_are(name: str) -> None:
    text = re.sub(r"\n# *", " ", (FOLDER / f"{name}.yaml").read_text())
    tables = {table for table, _ in shipped_tables()}
    assert set(re.findall(r"mmssl table (\w+)", text)) <= tables
    for folder in ("vatt", "evaluations"):
        there = {path.stem for path in (FOLDER.parent / folder).glob("*.yaml")}
        assert set(re.findall(rf"\b{folder}/(\w+)", text)) <= there


def test_no_part_is_left_over() -> None:
    def read(path: Path) -> set[Path]:
        extends = yaml.safe_load(path.read_text()).get("extends", [])
        parents = [extends] if isinstance(extends, str) else extends
        return {path.resolve()}.union(*(read((path.parent / p).resolve()) for p in parents))

    quickstarts = FOLDER.glob("quickstart*.yaml")
    used = set().union(*(read(p) for p in [*quickstarts, *(FOLDER / f"{n}.yaml" for n in NAMES)]))
    assert {(FOLDER / f"{part}.yaml").resolve() for part in PARTS} <= used


# Pretraining, typed in from the appendix, B.1 to B.4, and from the released code


def course(training: Training) -> dict[int, float]:
    """The learning rate by step, at some steps."""
    settings = assembly.training_settings(training, seed=0, max_bad=1.0)
    plan = assembly.round_plan(training, 1, 1)
    (group,) = settings.make_optimizer([{"params": [nn.Parameter(torch.zeros(1))]}]).param_groups
    peak = group["lr"] * settings.lr_scale
    steps = (0, 2_500, 5_000, 10_000, 252_500, 255_000, 377_500, 499_999)
    return {step: peak * plan.factor(settings.place(step, plan.epochs)) for step in steps}


@pytest.mark.parametrize("name", NAMES)
def test_pretraining(name: str) -> None:
    for recipe in runs(name).values():
        training = recipe.training
        explored = name in ("frames", "waveform")
        assert training.batch_size == (512 if explored else 2048)
        assert (training.epoch_size // training.batch_size, training.epochs) == (1000, 500)
        assert training.optimizer.use == "adam"
        assert training.optimizer.parameters == {
            "lr": 1e-4,
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-7,
            "weight_decay": 0,
            "amsgrad": False,
        }
        assert (training.clip_norm, training.groups, training.lr_batch) == (None, [], None)
        objective = recipe.objective
        assert objective.use == "vatt"
        given = objective.parameters
        assert (given["fine_dim"], given["coarse_dim"]) == (512, 256)
        assert (given["temperature"], given["coarse_weight"]) == (0.07, 1)
        assert given["symmetric"] is False


@pytest.mark.parametrize("name", NAMES)
def test_learning_rate_total_and_noise(name: str) -> None:
    """A quarter of a cosine behind 10 k steps of warm-up; or, as released, a half behind 5 k."""
    for recipe in runs(name).values():
        found = course(recipe.training)
        total, noise = recipe.objective.parameters["total"], recipe.modalities["audio"]
        if "released" in name:
            expected = {0: 0, 2_500: 5e-5, 5_000: 1e-4, 252_500: 7.5e-5, 499_999: 5e-5}
            assert (total, noise.parameters["noise"]) == ("mean", 0.01)
        else:
            expected = {0: 0, 5_000: 5e-5, 10_000: 1e-4, 255_000: 8.5355e-5, 499_999: 5e-5}
            expected[377_500] = 5e-5 * (1 + math.cos(math.pi / 2 * 0.75))
            assert (total, noise.parameters.get("noise", 0)) == ("sum", 0)
        assert {step: found[step] for step in expected} == pytest.approx(expected, rel=1e-4)


CLIPS = {  # frames and side, where not 32 and 224
    "vatt_frames.32x200_5x16": (32, 200),
    "vatt_frames.64x224_5x16": (64, 224),
}


@pytest.mark.parametrize("name", NAMES)
def test_clips(name: str) -> None:
    for recipe in runs(name).values():
        built = assembly.build_modalities(recipe)
        frames, side = CLIPS.get(recipe.name, (32, 224))
        spectrogram = "spectrogram" in recipe.name
        assert built["video"].shape == (3, frames, side, side)
        assert built["video"].seconds == pytest.approx(frames / 10)
        assert built["audio"].shape == ((1, 80, 150) if spectrogram else (153_600,))
        assert (built["audio"].seconds, recipe.modalities["audio"].parameters["rate"]) == (
            pytest.approx(3.2),
            48_000,
        )
        assert built["text"].shape == (5, 16)
        assert recipe.modalities["text"].parameters["size"] == 2**16
        video = recipe.modalities["video"].parameters
        assert (video["area"], video["aspect"], video["flip"]) == ((0.08, 1), (0.5, 2), 0.5)
        assert video["brightness"] == pytest.approx(32 / 255, abs=1e-5)
        assert [video[c] for c in ("saturation", "contrast", "hue")] == [0.4, 0.4, 0.2]
        assert (video["mean"], video["std"]) == ((127.5,) * 3, (127.5,) * 3)


@pytest.mark.parametrize("name", NAMES)
def test_data(name: str) -> None:
    """Half of each dataset; AudioSet's clips have 12.5 frames a second and the others' shape."""
    for recipe in runs(name).values():
        data, _ = assembly.build_datasets(recipe)
        video: Any = assembly.build_modalities(recipe)["video"]
        parts: dict[str, int] = {}
        for row in range(len(data)):
            sample = data.sample(row)
            part = re.split(r"[./]", sample.id)[0]
            parts[part] = parts.get(part, 0) + 1
            reader: Any = sample.readers.get("video")
            assert (reader is not None) == (part == "audioset")
            if reader is not None:
                assert reader.shape == video.shape
                assert reader.seconds == pytest.approx(video.shape[1] / 12.5)
                assert (reader.area, reader.aspect) == (video.area, video.aspect)
            assert ("texts" in sample.fields) == (part == "howto100m")
        assert parts == {"howto100m": 6, "audioset": 6}


# Networks: the paper's sizes (table 1), and its numbers of tokens

SIZES = {  # layers, dimensions, of the MLP, heads
    "small": (6, 512, 2048, 8),
    "base": (12, 768, 3072, 12),
    "medium": (12, 1024, 4096, 16),
    "large": (24, 1024, 4096, 16),
}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def by_formula(size: str, patch: int, places: int) -> int:
    """Of a Transformer without biases, its AGG, and a tokenizer without bias and norm."""
    layers, dim, hidden, _ = SIZES[size]
    weights, norms = 4 * dim * dim + 2 * dim * hidden, 4 * dim
    return layers * (weights + norms) + 2 * dim + dim * (patch + places + 1)


TOWERS = {  # of recipes by the paper: video's size, values and places of its patches
    "bbs": ("base", 4 * 16 * 16 * 3, 8 + 14 + 14),
    "mbs": ("medium", 4 * 16 * 16 * 3, 8 + 14 + 14),
    "lbs": ("large", 4 * 16 * 16 * 3, 8 + 14 + 14),
}


@pytest.mark.parametrize("name", TOWERS)
def test_networks_of_the_paper(name: str) -> None:
    (recipe,) = runs(name).values()
    encoders = encoders_of(recipe)
    found = {key: count(backbone) for key, backbone in encoders.backbones.items()}
    size, patch, places = TOWERS[name]
    assert found == {
        "video": by_formula(size, patch, places),
        "audio": by_formula("base", 128, 1200),
        "text": 19_038_252,
    }
    assert encoders.dims == {"video": SIZES[size][1], "audio": 768, "text": 512}


@pytest.mark.parametrize(("name", "published"), [("bbs", 87.9), ("mbs", 155.0), ("lbs", 306.1)])
def test_numbers_of_table_1(name: str, published: float) -> None:
    """They are of patches of 5 frames; AGG, which they may not count, makes no difference."""
    five = ["backbones.video.tokenizer.patch=[5, 16, 16]"]
    five += ["backbones.video.tokenizer.buckets=[6, 14, 14]"]
    recipe = load(FOLDER / f"{name}.yaml", five)
    assert round(count(encoders_of(recipe).backbones["video"]) / 1e6, 1) == published


def test_five_frames_are_in_a_study() -> None:
    recipe = runs("frames")["32x224_5x16"]
    assert count(encoders_of(recipe).backbones["video"]) == 87_948_288 + 768  # and AGG


@pytest.mark.parametrize(
    ("name", "expected"),
    [("bbs", 87_446_016), ("mbs", 154_343_424), ("lbs", 305_498_112)],
)
def test_released_networks(name: str, expected: int) -> None:
    encoders = encoders_of(runs("released")[name])
    found = {key: count(backbone) for key, backbone in encoders.backbones.items()}
    assert found == {"video": expected, "audio": 86_078_976, "text": 19_038_252}


def test_one_network_for_all() -> None:
    paper, released = (runs(name)[""] for name in ("ma", "ma_released"))
    found = [encoders_of(recipe).backbones["video+audio+text"] for recipe in (paper, released)]
    assert count(found[1]) == 161_283_072
    # Without: the Transformer's biases, those of two tokenizers, and their norms of positions.
    biases = 151_156_736 - 151_046_144 + 2 * 1024 + 2 * 2048
    assert count(found[0]) == 161_283_072 - biases
    assert encoders_of(paper).dims == dict.fromkeys(("video", "audio", "text"), 1024)
    for net in found:
        assert {tower.drop_token for tower in net.towers.backbones.values()} == {0.5}  # type: ignore[operator, union-attr]


def test_heads_of_the_objective() -> None:
    """Of video as released; one linear map with a bias of the others."""
    video = {"bbs": 788_992, "mbs": 920_064, "lbs": 920_064, "ma": 920_064}
    for name, expected in video.items():
        (plan,) = plans(name).values()
        rows = {row[0]: row for row in plan.tables[0].rows}
        sound, text = (1024, 1024) if name == "ma" else (768, 512)
        assert rows["objective"][4] == expected + (sound + 1) * 512 + (text + 1) * 256


TOKENS = {
    "vatt_bbs": {"video": 1568, "audio": 1200},
    "vatt_mbs": {"video": 1568, "audio": 1200},
    "vatt_lbs": {"video": 1568, "audio": 1200},
    "vatt_spectrogram": {"video": 1568, "audio": 9 * 16},
    "vatt_frames.32x224_4x16": {"video": 1568},
    "vatt_frames.32x200_5x16": {"video": 6 * 12 * 12},
    "vatt_frames.32x224_5x16": {"video": 6 * 14 * 14},
    "vatt_frames.64x224_5x16": {"video": 12 * 14 * 14},
    "vatt_frames.32x224_8x16": {"video": 4 * 14 * 14},
    "vatt_frames.32x224_8x32": {"video": 4 * 7 * 7},
    "vatt_waveform.waveform_128": {"audio": 1200},
    "vatt_waveform.waveform_256": {"audio": 600},
    "vatt_waveform.waveform_512": {"audio": 300},
    "vatt_waveform.waveform_1024": {"audio": 150},
    "vatt_waveform.spectrogram_16x5": {"audio": 9 * 16},
}


@pytest.mark.parametrize("name", ["bbs", "mbs", "lbs", "spectrogram", "frames", "waveform"])
def test_tokens(name: str) -> None:
    """One position for each token of pretraining, half of the tokens dropped in it."""
    for recipe in runs(name).values():
        backbones = encoders_of(recipe).backbones
        modalities = assembly.build_modalities(recipe)
        for key, expected in TOKENS[recipe.name].items():
            net: Any = backbones[key]
            clip = torch.zeros(1, *modalities[key].shape, device="meta")
            assert net.tokenizer(clip).tokens.shape[1] == expected
            places = [len(table) for table in net.tokenizer.positions.tables]
            assert math.prod(places) == expected
            whole = key == "audio" and "spectrogram" in recipe.name
            assert net.drop_token == (0 if whole else 0.5)


# What a recipe changes of the one that it is a variant of


@cache
def _leaves(text: str) -> dict[str, Any]:
    def read(value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            return {path: value}
        return {k: v for key in value for k, v in read(value[key], f"{path}.{key}").items()}

    return read(yaml.safe_load(text), "")


def changed(recipe: Recipe, base: Recipe) -> dict[str, Any]:
    """What a run has otherwise, by path, evaluations left out."""
    ours, theirs = (_leaves(yaml.safe_dump(x.plain())) for x in (recipe, base))
    return {
        key.removeprefix("."): ours.get(key)
        for key in ours.keys() | theirs.keys()
        if ours.get(key) != theirs.get(key) and not key.startswith((".name", ".evaluations"))
    }


MEDIUM = {"backbones.video.size": "medium", "backbones.video.tokenizer.dim": 1024}
LARGE = {**MEDIUM, "backbones.video.size": "large"}
EXPLORED = {"training.batch_size": 512, "training.epoch_size": 512_000}
BIASED = {
    f"backbones.{key}.{field}": True
    for key in ("video", "audio")
    for field in ("bias", "tokenizer.bias", "tokenizer.position_norm")
}
RELEASED = {
    "modalities.audio.noise": 0.01,
    "objective.total": "mean",
    "training.schedule.period": "half",
    "training.schedule.warmup_epochs": 5.0,
}


@pytest.mark.parametrize(
    ("name", "label", "expected"),
    [
        ("mbs", "", MEDIUM),
        ("lbs", "", LARGE),
        ("frames", "32x224_4x16", EXPLORED),
        ("waveform", "waveform_128", EXPLORED),
        ("released", "bbs", {**RELEASED, **BIASED}),
        ("released", "mbs", {**RELEASED, **BIASED, **MEDIUM}),
        ("released", "lbs", {**RELEASED, **BIASED, **LARGE}),
        (
            "waveform",
            "waveform_1024",
            EXPLORED
            | {
                "backbones.audio.tokenizer.patch": 1024,
                "backbones.audio.tokenizer.buckets": 150,
            },
        ),
        (
            "frames",
            "64x224_5x16",
            EXPLORED
            | {
                "modalities.video.frames": 64,
                "data.train.modalities.audioset.video.frames": 64,
                "backbones.video.tokenizer.patch": [5, 16, 16],
                "backbones.video.tokenizer.buckets": [12, 14, 14],
            },
        ),
    ],
)
def test_variant_of_bbs(name: str, label: str, expected: dict[str, Any]) -> None:
    assert changed(runs(name)[label], runs("bbs")[""]) == expected


def test_released_variant_of_ma() -> None:
    key = "backbones.video+audio+text"
    fields = [f"{key}.tokenizers.{m}.{f}" for m in ("video", "audio") for f in ("bias",)]
    fields += [f"{key}.tokenizers.{m}.position_norm" for m in ("video", "audio")]
    expected = RELEASED | dict.fromkeys([f"{key}.bias", *fields], True)
    assert changed(runs("ma_released")[""], runs("ma")[""]) == expected


def test_spectrograms_are_the_same_in_both_recipes() -> None:
    explored = runs("waveform")["spectrogram_16x5"]
    assert changed(explored, runs("spectrogram")[""]) == EXPLORED


# What is measured


def test_frozen_encoders_are_measured_and_videos_retrieved() -> None:
    names = {"ucf101", "hmdb51", "esc50"}
    for name in ("bbs", "mbs", "lbs", "ma", "spectrogram", "frames", "waveform"):
        for recipe in runs(name).values():
            used = {key: spec.use for key, spec in recipe.evaluations.items()}
            assert used == {
                **{f"{n}_lrc": "low_rank" for n in names},
                **{f"{n}_svm": "svm" for n in names},
                **dict.fromkeys(("youcook2", "msrvtt"), "retrieval"),
            }


def test_rows_of_table_2_are_of_their_classifiers() -> None:
    table = load_table("vatt_2")
    measured = {title: row for title, row in table.rows.items() if row.run is not None}
    assert len(measured) == 3
    for title, row in measured.items():
        assert row.recipe is not None
        (recipe,) = runs(row.recipe.removeprefix("vatt/")).values()
        for column, found in table.columns.items():
            name = row.metric.get(column, found.metric).partition("/")[0]
            expected = {"SVM": "svm", "LRC": "low_rank"}[title.rpartition(" ")[2]]
            assert recipe.evaluations[name].use == expected


def test_clips_of_the_study_of_frames_are_measured() -> None:
    sides = {(32, 224): 4, (32, 200): 1, (64, 224): 1}
    found: dict[tuple[int, int], int] = {}
    for recipe in runs("frames").values():
        shapes = {
            assembly.measured_modalities(recipe, name)["video"].shape
            for name in recipe.evaluations
            if not name.startswith("esc50")
        }
        (shape,) = shapes
        assert shape == assembly.build_modalities(recipe)["video"].shape
        found[shape[1], shape[2]] = found.get((shape[1], shape[2]), 0) + 1
    assert found == sides


def test_released_encoders_are_fine_tuned() -> None:
    kinetics = {"kinetics400", "kinetics600", "kinetics700"}
    for recipe in [*runs("released").values(), *runs("ma_released").values()]:
        assert recipe.evaluations.keys() == {*kinetics, "moments_in_time", "audioset"}
        for name, spec in recipe.evaluations.items():
            training: Training = spec.parameters["training"]
            video = name != "audioset"
            dropout = spec.parameters["objective"].parameters["dropout"]
            assert (dropout, training.clip_norm) == ((0.5, 0.75) if video else (0, None))
            steps = {"moments_in_time": 150, "audioset": 50}.get(name, 100)
            assert training.epochs == steps


@pytest.mark.parametrize("name", ["ma", "ma_released"])
def test_of_one_network_for_all_a_path_is_measured(name: str) -> None:
    (recipe,) = runs(name).values()
    for key, spec in recipe.evaluations.items():
        expected = ["video", "text"] if spec.use == "retrieval" else spec.parameters["only"]
        expected = expected or [*spec.parameters["subnetworks"]]
        encoders = assembly.measured_encoders(recipe, key, encoders_of(recipe))
        assert list(encoders.modalities) == [*expected]
        assert list(encoders.backbones) == [*expected]
