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
# Steps, of them warm-up, batch, learning rate, clips, crops, what is made of views.
OTHERS = {
    "vatt_kinetics": (100_000, 2_500, 64, 0.005, 4, 3, "logits"),
    "vatt_audioset": (50_000, 5_000, 1024, 0.2, 4, 1, "probabilities"),
    "avbert_ucf101": (40_000, 2_400, 64, 0.02, 10, 3, "probabilities"),
    "avbert_charades": (40_000, 2_400, 8, 0.001, 10, 3, "maximum"),
    "avbert_kinetics_sounds": (24_000, 1_440, 32, 0.005, 10, 3, "probabilities"),
}


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Folders of datasets; none is read."""
    names = ("UCF101", "HMDB51", "ESC50", "KINETICS", "AUDIOSET", "CHARADES")
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
    assert {path.stem for path in FOLDER.glob("*.yaml")} == XDC.keys() | OTHERS.keys()


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
    assert curve[0] == 0
    assert max(curve) == pytest.approx(lr, rel=0.05)
    assert training.optimizer.parameters["lr"] == lr
    assert curve[-1] < 0.06 * lr
    assert (given["clips"], given["crops"], given["average"]) == (clips, crops, average)
    if name.startswith("vatt"):
        assert (training.optimizer.use, training.schedule.use) == ("sgd", "cosine")
        # From the end of the warm-up half a period, down to 0.
        at, begin = 40, warmup / settings.steps_per_epoch
        done = (at - begin) / (training.epochs - begin)
        assert curve[at] == pytest.approx(lr * (1 + math.cos(math.pi * done)) / 2)
    else:
        optimizer = training.optimizer
        betas = optimizer.parameters["beta1"], optimizer.parameters["beta2"]
        assert (optimizer.use, betas, optimizer.parameters["amsgrad"]) == (
            "adamw",
            (0.9, 0.98),
            True,
        )


def test_protocols_do_not_collide(tmp_path: Path, environ: dict[str, str]) -> None:
    """Several laid under one recipe are all there."""
    (tmp_path / "small.yaml").write_text(RECIPE)
    names = [name for name in sorted(XDC.keys() | OTHERS.keys()) if name != "avbert_ucf101"]
    parents = ", ".join(["small.yaml", *(f"evaluations/{name}" for name in names)])
    (tmp_path / "mine.yaml").write_text(f"extends: [{parents}]\n")
    recipe = load(tmp_path / "mine.yaml", environ=environ)
    expected = sum(len(row[2]) for row in XDC.values()) + len(OTHERS) - 1
    assert len(recipe.evaluations) == expected


@pytest.mark.parametrize("name", sorted(XDC.keys() | OTHERS.keys()))
def test_file_says_how_to_use_it(name: str, environ: dict[str, str]) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    (command,) = (line for line in text.splitlines() if line.startswith("#   "))
    *variables, mmssl, verb, _run, option, part = command.removeprefix("#").split()
    assert (mmssl, verb, option, part) == ("mmssl", "evaluate", "--with", f"evaluations/{name}")
    asked = {v for v in environ if "${" + v + "}" in text}
    assert {v.removesuffix("=...") for v in variables} == asked
    tree: dict[str, Any] = yaml.safe_load(text)
    assert tree.keys() == {"extends", "evaluations"}
    assert {e["use"] for e in tree["evaluations"].values()} == {"finetune"}
