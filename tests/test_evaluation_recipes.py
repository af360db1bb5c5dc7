"""The protocols that come with mmssl, to be laid under any recipe, say what the papers say."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import RECIPE

from mmssl.pipeline import assembly
from mmssl.recipe import Recipe, load
from mmssl.recipe.model import Training

FOLDER = Path(__file__).parents[1] / "recipes" / "evaluations"
GRID = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01)

# Typed in from the papers: XDC's tables 11 and 12 and appendix B.
XDC = {
    "xdc_ucf101": (106_000, 32, GRID, 8, "video"),
    "xdc_hmdb51": (40_000, 32, GRID, 8, "video"),
    "xdc_esc50": (20_000, 32, GRID, 8, "audio"),
    "xdc_ucf101_fc": (106_000, 32, (*GRID, 0.02, 0.04), 8, "video"),
    "xdc_hmdb51_fc": (40_000, 32, (*GRID, 0.02, 0.04), 8, "video"),
    "xdc_esc50_fc": (20_000, 32, (*GRID, 0.02, 0.04), 8, "audio"),
    "xdc_ucf101_32frames": (106_000, 8, tuple(lr / 4 for lr in GRID), 32, "video"),
    "xdc_hmdb51_32frames": (40_000, 8, tuple(lr / 4 for lr in GRID), 32, "video"),
}
# VATT's B.5 to B.7: steps, of them warm-up, batch, learning rate, clips, crops, what is made of
# views; clips of video, 32 frames in 2.56 seconds, by B.1.
OTHERS = {
    "vatt_kinetics400": (100_000, 2_500, 64, 0.005, 4, 3, "logits"),
    "vatt_kinetics600": (100_000, 2_500, 64, 0.005, 4, 3, "logits"),
    "vatt_kinetics700": (100_000, 2_500, 64, 0.005, 4, 3, "logits"),
    "vatt_moments_in_time": (100_000, 2_500, 64, 0.005, 4, 3, "logits"),
    "vatt_audioset": (50_000, 5_000, 1024, 0.2, 4, 1, "probabilities"),
    "vatt_imagenet": (50 * 2_502, 0, 512, 0.08, 1, 1, "probabilities"),
}
FROZEN = ("vatt_ucf101", "vatt_hmdb51", "vatt_esc50")  # B.8
RETRIEVAL = ("vatt_youcook2", "vatt_msrvtt")  # B.9
# AVBert's A.3 and A.4: steps, of them warm-up, batch; by evaluation the networks, T of its clips,
# the learning rate of all that no group has, clips, crops, what is made of views.
UCF101 = (40_000, 2_400, 64)
SOUNDS = (24_000, 1_440, 32)
CHARADES = (40_000, 2_400, 8)
Measured = tuple[str, int, float, int, int, str]
AVBERT: dict[str, tuple[tuple[int, int, int], dict[str, Measured]]] = {
    "avbert_ucf101": (
        UCF101,
        {"ucf101": ("video_cnn", 2, 0.02, 10, 3, "probabilities")},
    ),
    "avbert_kinetics_sounds": (
        SOUNDS,
        {"kinetics_sounds": ("multimodal", 10, 0.001, 1, 3, "probabilities")},
    ),
    "avbert_kinetics_sounds_unimodal": (
        SOUNDS,
        {
            "kinetics_sounds_video": ("video_transformer", 10, 0.001, 1, 3, "probabilities"),
            "kinetics_sounds_audio": ("audio_transformer", 10, 0.001, 1, 1, "probabilities"),
        },
    ),
    "avbert_kinetics_sounds_cnn": (
        SOUNDS,
        {
            "kinetics_sounds_cnn": ("video_cnn audio_cnn", 1, 0.005, 10, 3, "probabilities"),
            "kinetics_sounds_cnn_joined": ("video_cnn audio_cnn", 1, 0.005, 10, 3, "probabilities"),
        },
    ),
    "avbert_charades": (
        CHARADES,
        {"charades": ("multimodal", 30, 1e-4, 1, 3, "maximum")},
    ),
    "avbert_charades_unimodal": (
        CHARADES,
        {
            "charades_video": ("video_transformer", 30, 1e-4, 1, 3, "maximum"),
            "charades_audio": ("audio_transformer", 30, 1e-4, 1, 1, "probabilities"),
        },
    ),
    "avbert_charades_cnn": (
        CHARADES,
        {
            "charades_cnn": ("video_cnn audio_cnn", 1, 0.001, 10, 3, "probabilities"),
            "charades_cnn_joined": ("video_cnn audio_cnn", 1, 0.001, 10, 3, "probabilities"),
        },
    ),
}
ALONE = ("avbert_ucf101_released", "avbert_esc50")  # each has a test of its own
NAMES = [*XDC, *OTHERS, *FROZEN, *RETRIEVAL, *AVBERT, *ALONE]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Folders of datasets; none is read."""
    names = ["UCF101", "HMDB51", "ESC50", "KINETICS", "AUDIOSET", "CHARADES", "KINETICS600"]
    names += ["KINETICS700", "MOMENTS_IN_TIME", "IMAGENET", "YOUCOOK2", "MSRVTT"]
    return {name: str(tmp_path) for name in names}


def laid_under(name: str, folder: Path, environ: dict[str, str]) -> Recipe:
    """A recipe of video and audio, with a protocol's evaluations."""
    (folder / "small.yaml").write_text(RECIPE)
    (folder / "mine.yaml").write_text(f"extends: [small.yaml, evaluations/{name}]\n")
    return load(folder / "mine.yaml", environ=environ)


def rates(training: Training) -> list[float]:
    """The learning rate at the beginning of every epoch."""
    settings = assembly.training_settings(training, seed=0, max_bad=1.0)
    plan = assembly.round_plan(training, 1, 1)
    peak = training.optimizer.parameters["lr"] * settings.lr_scale
    steps = settings.steps_per_epoch
    places = (settings.place(epoch * steps, plan.epochs) for epoch in range(plan.epochs))
    return [peak * plan.factor(place) for place in places]


def test_every_protocol_is_looked_at() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(NAMES)


@pytest.mark.parametrize("name", XDC)
def test_grid_of_xdc(name: str, tmp_path: Path, environ: dict[str, str]) -> None:
    examples, batch, grid, frames, modality = XDC[name]
    recipe = laid_under(name, tmp_path, environ)
    assert len(recipe.evaluations) == len(grid)
    for (key, spec), lr in zip(recipe.evaluations.items(), grid, strict=True):
        given = spec.parameters
        training = given["training"]
        assert float(key.rpartition("_lr_")[2].replace("p", ".")) == lr
        assert training.optimizer.parameters == {
            "lr": lr, "momentum": 0.9, "nesterov": True, "weight_decay": 0.005,
        }  # fmt: skip
        assert (training.epoch_size, training.batch_size) == (examples, batch)
        assert training.lr_batch == batch
        # On one GPU the warm-up, to the learning rate of all GPUs, has nothing to climb.
        expected = [*[lr] * 4, *[lr / 10] * 2, *[lr / 100] * 2]
        assert rates(training) == pytest.approx(expected)
        assert given["only"] == (modality,)
        assert given["fc_only"] == ("_fc" in name)
        assert (given["clips"], given["crops"], given["average"]) == (10, 1, "probabilities")
        assert [given[split].parameters["split"] for split in ("train", "test")] == [
            "train",
            "test",
        ]
        assert given["train"].parameters["fold"] == given["test"].parameters["fold"] == 1
        other = given["modalities"] or None
        assert (other is not None) == (frames == 32)
        if other is not None:
            assert other["video"].build().shape == (3, 32, 224, 224)


@pytest.mark.parametrize("name", OTHERS)
def test_protocol(name: str, tmp_path: Path, environ: dict[str, str]) -> None:
    steps, warmup, batch, lr, clips, crops, average = OTHERS[name]
    (spec,) = laid_under(name, tmp_path, environ).evaluations.values()
    given = spec.parameters
    training: Training = given["training"]
    settings = assembly.training_settings(training, seed=0, max_bad=1.0)
    assert settings.steps_per_epoch * training.epochs == steps
    assert round(training.schedule.parameters["warmup_epochs"] * settings.steps_per_epoch) == warmup
    assert training.batch_size == batch
    curve = rates(training)
    assert curve[0] == (0 if warmup else lr)
    assert max(curve) == pytest.approx(lr, rel=0.05)
    assert training.optimizer.parameters["lr"] == lr
    assert curve[-1] < 0.06 * lr
    assert (given["clips"], given["crops"], given["average"]) == (clips, crops, average)
    assert training.optimizer.use == "sgd"
    rest = {"momentum": 0.9, "nesterov": False, "weight_decay": 0}
    assert training.optimizer.parameters == {"lr": lr, **rest}
    assert (training.schedule.use, training.lr_batch) == ("cosine", None)
    # From the end of the warm-up half a period, down to 0.
    at, begin = 40, warmup / settings.steps_per_epoch
    done = (at - begin) / (training.epochs - begin)
    assert curve[at] == pytest.approx(lr * (1 + math.cos(math.pi * done)) / 2)


@pytest.mark.parametrize("name", OTHERS)
def test_clips_and_labels_of_vatt(name: str, tmp_path: Path, environ: dict[str, str]) -> None:
    (spec,) = laid_under(name, tmp_path, environ).evaluations.values()
    ((modality, network),) = spec.parameters["subnetworks"].items()
    assert network == "all_tokens"
    clip = spec.parameters["modalities"][modality].build()
    given = spec.parameters["objective"].parameters
    sound = name == "vatt_audioset"
    assert (given["mixup"], given["inverse_frequency"]) == ((5, True) if sound else (0, False))
    assert given["label_smoothing"] == (0 if sound else 0.1)
    assert (given["dropout"], given["hidden"]) == (0, None)
    if sound:
        assert (clip.shape, clip.seconds, clip.rate) == ((153_600,), 6.4, 24_000)
    else:
        frames, side = (4, 384) if name == "vatt_imagenet" else (32, 320)
        assert clip.shape == (3, frames, side, side)
        assert clip.seconds == (0 if name == "vatt_imagenet" else 2.56)
        # "With similar video augmentation during pre-training"
        assert (clip.area, clip.aspect, clip.flip) == ((0.08, 1), (0.5, 2), 0.5)
        assert clip.brightness == pytest.approx(32 / 255, abs=1e-5)
        assert (clip.saturation, clip.contrast, clip.hue) == (0.4, 0.4, 0.2)
        assert (clip.mean, clip.std) == ((127.5,) * 3, (127.5,) * 3)


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_encoders_of_vatt(name: str, tmp_path: Path, environ: dict[str, str]) -> None:
    data = name.removeprefix("vatt_")
    low_rank, svm = laid_under(name, tmp_path, environ).evaluations.values()
    assert (low_rank.use, svm.use) == ("low_rank", "svm")
    given = low_rank.parameters
    assert (given["components"], given["keep"], given["l2"]) == (128, 0.1, 0)
    assert (given["lr"], given["batch_size"], given["steps"]) == (5e-4, 64, 50_000)
    for parameters in (given, svm.parameters):
        assert (parameters["clips"], parameters["crops"]) == (4, 1)
        assert list(parameters["only"]) == ["audio" if data == "esc50" else "video"]
        for split in ("train", "test"):
            dataset = parameters[split]
            assert (dataset.use, dataset.parameters["split"]) == (data, split)
            assert dataset.parameters["fold"] == 1
        if data == "esc50":
            assert parameters["modalities"] is None  # sound as in pretraining
        else:
            clip = parameters["modalities"]["video"].build()
            assert (clip.shape, clip.seconds) == ((3, 32, 320, 320), 2.56)


@pytest.mark.parametrize("name", RETRIEVAL)
def test_retrieval_of_vatt(name: str, tmp_path: Path, environ: dict[str, str]) -> None:
    (spec,) = laid_under(name, tmp_path, environ).evaluations.values()
    given = spec.parameters
    assert (spec.use, given["data"].use) == ("retrieval", name.removeprefix("vatt_"))
    assert (given["pair"], given["clips"], given["crops"]) == (("video", "text"), 4, 1)
    assert {1, 5, 10} <= set(given["first"])
    clip = given["modalities"]["video"].build()
    assert (clip.shape, clip.short_side, clip.seconds) == ((3, 32, 224, 224), 224, 2.56)


@pytest.mark.parametrize("name", AVBERT)
def test_protocol_of_avbert(name: str, tmp_path: Path, environ: dict[str, str]) -> None:
    (steps, warmup, batch), rows = AVBERT[name]
    found = laid_under(name, tmp_path, environ).evaluations
    assert list(found) == list(rows)
    for key, (networks, seconds, lr, clips, crops, average) in rows.items():
        given = found[key].parameters
        training: Training = given["training"]
        settings = assembly.training_settings(training, seed=0, max_bad=1.0)
        per_epoch = settings.steps_per_epoch
        assert (per_epoch * training.epochs, training.batch_size) == (steps, batch)
        assert training.schedule.use == "linear"
        plan = assembly.round_plan(training, 1, 1)
        points = {0: 0, warmup: 1, (warmup + steps) // 2: 0.5, steps: 0}
        factors = [plan.factor(settings.place(step, plan.epochs)) for step in points]
        assert factors == pytest.approx(list(points.values()))
        assert (training.optimizer.use, training.optimizer.parameters) == (
            "adamw",
            {
                "lr": lr, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "weight_decay": 1e-4,
                "amsgrad": True,
            },
        )  # fmt: skip
        assert " ".join(given["subnetworks"].values()) == networks
        assert (given["clips"], given["crops"], given["average"]) == (clips, crops, average)
        read = {m: spec.build() for m, spec in given["modalities"].items()}
        assert "+".join(read) == "+".join(given["subnetworks"])
        assert all(modality.seconds == seconds for modality in read.values())
        if "video" in read:
            assert read["video"].shape == (3, 32 * seconds, 112, 112)
        objective = given["objective"]
        joined = networks == "multimodal" or key.endswith("joined")
        if name == "avbert_ucf101":
            assert objective is None  # a linear layer
        else:
            assert objective.parameters["hidden"] is not None
            assert objective.parameters["joined"] == joined
        # Classifier, CNNs, rotations; CNNs alone have one learning rate.
        fast, slow = (0.001, 1e-5) if steps == CHARADES[0] else (0.005, 1e-4)
        expected = [] if "cnn" in networks else [fast, fast, slow]
        assert [group.lr for group in training.groups] == expected


def test_avbert_on_esc50_is_an_svm(tmp_path: Path, environ: dict[str, str]) -> None:
    (spec,) = laid_under("avbert_esc50", tmp_path, environ).evaluations.values()
    given = spec.parameters
    assert (spec.use, given["subnetworks"]) == ("svm", {"audio": "audio_cnn"})
    assert (given["clips"], given["fit_on"]) == (10, "clips")
    audio = given["modalities"]["audio"].build()
    assert (audio.seconds, audio.rate, audio.shape[1]) == (2, 44_100, 128)
    assert audio.shape[2] == pytest.approx(440, rel=0.02)  # the paper's Ta


def test_avbert_as_released(tmp_path: Path, environ: dict[str, str]) -> None:
    (spec,) = laid_under("avbert_ucf101_released", tmp_path, environ).evaluations.values()
    given = spec.parameters
    training: Training = given["training"]
    assert (training.epochs, training.batch_size, training.schedule.use) == (20, 32, "cosine")
    assert training.optimizer.use == "adam"
    assert training.optimizer.parameters == {
        "lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 5e-6,
        "amsgrad": False,
    }  # fmt: skip
    assert [(g.lr, g.weight_decay) for g in training.groups] == [(0.03, None), (None, 0)]
    video = given["modalities"]["video"].build()
    assert (video.frames, video.fps) == (32, 15)
    assert (given["clips"], given["crops"], given["average"]) == (10, 3, "probabilities")


def test_protocols_do_not_collide(tmp_path: Path, environ: dict[str, str]) -> None:
    """Several laid under one recipe are all there."""
    (tmp_path / "small.yaml").write_text(RECIPE)
    parents = ", ".join(["small.yaml", *(f"evaluations/{name}" for name in NAMES)])
    (tmp_path / "mine.yaml").write_text(f"extends: [{parents}]\n")
    recipe = load(tmp_path / "mine.yaml", environ=environ)
    expected = sum(len(row[2]) for row in XDC.values()) + len(OTHERS) + len(ALONE)
    expected += 2 * len(FROZEN) + len(RETRIEVAL)
    assert len(recipe.evaluations) == expected + sum(len(rows) for _, rows in AVBERT.values())


@pytest.mark.parametrize("name", sorted(NAMES))
def test_file_says_how_to_use_it(name: str, environ: dict[str, str]) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    (command,) = (line for line in text.splitlines() if line.startswith("#   "))
    *variables, mmssl, verb, _run, option, part = command.removeprefix("#").split()
    assert (mmssl, verb, option, part) == ("mmssl", "evaluate", "--with", f"evaluations/{name}")
    asked = {v for v in environ if "${" + v + "}" in text}
    assert {v.removesuffix("=...") for v in variables} == asked
    tree: dict[str, Any] = yaml.safe_load(text)
    assert tree.keys() == {"extends", "evaluations"}
    used = {"avbert_esc50": ["svm"]}
    used |= {n: ["low_rank", "svm"] for n in FROZEN} | {n: ["retrieval"] for n in RETRIEVAL}
    found = {e["use"] for e in tree["evaluations"].values()}
    assert sorted(found) == used.get(name, ["finetune"])
