"""Fine-tuning of toys: what it learns, what it leaves alone, and that a kill changes nothing."""

import io
import json
import math
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from ranks import on_ranks
from toys import Perceptron, Rows, Vector

from mmssl import hookimpl
from mmssl.contracts import (
    Backbone,
    Batch,
    Callback,
    Dataset,
    Evaluation,
    Features,
    Losses,
    Objective,
    RunContext,
    Sample,
)
from mmssl.errors import UserError
from mmssl.pipeline import assembly
from mmssl.pipeline.evaluation import Context, evaluate
from mmssl.pipeline.plan import make_plan
from mmssl.pipeline.run_folder import RunFolder
from mmssl.pipeline.stages import pretrain, run_stage
from mmssl.recipe import Recipe, load
from mmssl.recipe.schema import schema
from mmssl.registry import Registry, load_plugins
from mmssl.training import distributed
from mmssl.training.checkpoints import load_newest
from mmssl.training.log import read_log
from mmssl.training.loop import Pretraining
from mmssl.training.progress import Silent
from mmssl_evaluators.finetune import Finetune


class ToyRows(Rows):
    """Rows, of which the test set has others than the training set.

    Args:
        size: how many.
        classes: of as many classes.
        first: the number of the first one.
        bad: rows that cannot be read.
        without_b: rows that lack the modality b.
    """

    def __init__(
        self,
        *,
        size: int = 48,
        classes: int = 3,
        first: int = 0,
        bad: tuple[int, ...] = (),
        without_b: tuple[int, ...] = (),
    ) -> None:
        super().__init__(size, classes, bad, {"b": without_b})
        self.first = first

    def sample(self, index: int) -> Sample:
        sample = super().sample(index)
        fields = {**sample.fields, "row": str(self.first + index)}
        return Sample(f"{self.first + index}", None, 0.0, 10.0, sample.label, fields)


class Tagged(ToyRows):
    """Rows of several classes: what a row's vector says, and class 0 for every second row.

    Args:
        size: how many.
        first: the number of the first one.
        unlabelled: rows without labels.
    """

    multilabel = True

    def __init__(self, *, size: int = 48, first: int = 0, unlabelled: tuple[int, ...] = ()) -> None:
        super().__init__(size=size, first=first)
        self.unlabelled = unlabelled

    def sample(self, index: int) -> Sample:
        own = super().sample(index)
        assert own.label is not None
        several = tuple(sorted({own.label} | ({0} if index % 2 else set())))
        labels = None if index in self.unlabelled else several
        return Sample(own.id, None, 0.0, 10.0, own.label, own.fields, labels=labels)

    def labels(self) -> np.ndarray:
        return np.full(len(self), -100, np.int32)


def vector(*, name: str, noise: float = 0.5) -> Vector:
    """A vector.

    Args:
        name: its word.
        noise: about its class's mean.
    """
    return Vector(name, noise=noise)


def perceptron(*, dropout: float = 0.1) -> Perceptron:
    """Two layers.

    Args:
        dropout: between them.
    """
    return Perceptron(dropout=dropout)


class Nearer(Objective):
    """Features of both modalities come nearer; of one alone, become small."""

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        pooled = [f.pooled for f in features.values()]
        return Losses((pooled[0] - pooled[-1]).pow(2).mean())


class Noting(Callback):
    """Says of each step that it was there."""

    def on_step_end(self, run: RunContext, losses: Losses) -> None:
        run.report({"noted": 1.0})


def registry() -> Registry:
    plugin = types.ModuleType("toy")
    for kind, components in {
        "modalities": {"vector": "vector"},
        "datasets": {"rows": "ToyRows", "tagged": "Tagged"},
        "backbones": {"perceptron": "perceptron"},
        "objectives": {"nearer": "Nearer"},
        "callbacks": {"noting": "Noting"},
    }.items():

        def hook(register: Any, components: dict[str, str] = components) -> None:
            for name, attribute in components.items():
                register(name, f"{__name__}:{attribute}")

        hook.__name__ = f"register_{kind}"
        setattr(plugin, hook.__name__, hookimpl(hook))
    import mmssl.builtin
    import mmssl_evaluators

    sources = {"toy": plugin, "builtin": mmssl.builtin, "evaluators": mmssl_evaluators}
    found = load_plugins([(n, "1", lambda m=m: m) for n, m in sources.items()])  # type: ignore[misc]
    assert not [plugin.error for plugin in found.plugins if plugin.error]
    return found


RECIPE = """\
name: toy
runs: RUNS
device: cpu
seed: 5
modalities:
  a: {use: vector, name: a}
  b: {use: vector, name: b}
backbones: {a: perceptron, b: perceptron}
data: {train: {use: rows, size: 60}, workers: 0, max_bad: 0.5}
objective: nearer
training:
  epoch_size: 32
  epochs: 1
  batch_size: 8
  optimizer: {use: sgd, lr: 0.001}
  schedule: constant
trackers: []
evaluations:
  ft:
    use: finetune
    train: {use: rows, size: 48, bad: [3], without_b: [5, 6]}
    test: {use: rows, size: 30, first: 100, without_b: [1, 2]}
    clips: 3
    training:
      epoch_size: 48
      epochs: 3
      batch_size: 8
      optimizer: {use: sgd, lr: 0.02, weight_decay: 1e-4}
      schedule: cosine
      groups: [{parameters: objective.*, lr: 0.2}]
      log_every: 1
      checkpoint: {steps: 4}
"""


def recipe_in(folder: Path, *overrides: str) -> Recipe:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "toy.yaml"
    if not path.exists():  # ranks read what was written before they began
        path.write_text(RECIPE.replace("RUNS", str(folder / "runs")))
    return load(path, list(overrides), registry=registry())


def run(folder: Path, *overrides: str) -> Path:
    """Pretrain and evaluate; the evaluation's folder."""
    recipe = recipe_in(folder, *overrides)
    where = RunFolder(recipe)
    where.path.mkdir(parents=True, exist_ok=True)
    if not (where.path / "checkpoints" / "encoders.safetensors").exists():
        pretrain(recipe, where, Silent())
    evaluate(recipe, "ft", where, Silent())
    return where.evaluation("ft")


def metrics(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "metrics.json").read_text())
    return found


def encoders(folder: Path) -> bytes:
    return (folder / "training-01" / "checkpoints" / "encoders.safetensors").read_bytes()


def heads(folder: Path) -> bytes:
    return (folder / "training-01" / "checkpoints" / "objective.safetensors").read_bytes()


def before(folder: Path) -> bytes:
    return (folder.parents[1] / "checkpoints" / "encoders.safetensors").read_bytes()


# What it learns


def test_it_learns_the_classes(tmp_path: Path) -> None:
    out = run(tmp_path)
    found = metrics(out)
    assert found["chance"] == pytest.approx(1 / 3)
    assert found["train_samples"] == 48
    for name, samples in (("a", 30), ("b", 28)):
        assert found[f"{name}/top1"] > 0.9
        assert found[f"{name}/mean_class_accuracy"] > 0.9
        assert found[f"{name}/test_samples"] == samples
        assert f"{name}/top5" not in found
    assert encoders(out) != before(out)
    table, *confusions = json.loads((out / "tables.json").read_text())
    assert table["title"] == "Fine-tuning of pretrained encoders: test set, 3 views a sample"
    assert table["columns"] == ["modality", "top-1", "mean of classes", "test samples"]
    assert [row[0] for row in table["rows"]] == ["a", "b"]
    assert [c["title"] for c in confusions] == [f"Most frequent confusions of {m}" for m in "ab"]
    assert (out / "finetune.png").read_bytes().startswith(b"\x89PNG")


def test_callbacks_of_pretraining_take_no_part(tmp_path: Path) -> None:
    out = run(tmp_path, "callbacks=[noting]", "evaluations.ft.training.epochs=1")
    kinds = [
        [r["kind"] for r in read_log(folder)] for folder in (out.parents[1], out / "training-01")
    ]
    assert kinds[0].count("callback") == 4
    assert (kinds[1].count("step"), kinds[1].count("callback")) == (6, 0)
    saved = load_newest(out / "training-01" / "checkpoints")
    assert saved is not None
    assert saved["callbacks"] == {}


def test_the_last_layer_alone(tmp_path: Path) -> None:
    out = run(tmp_path, "evaluations.ft.fc_only=true", "evaluations.ft.training.groups=[]")
    found = metrics(out)
    assert found["a/top1"] > 0.5
    assert encoders(out) == before(out), "weights and BatchNorm's statistics"
    other = run(tmp_path / "other", "evaluations.ft.training.freeze_encoders=true",
                "evaluations.ft.training.groups=[]")  # fmt: skip
    assert metrics(other) == found
    assert "The last layer of pretrained" in (out / "tables.json").read_text()


def test_from_scratch_begins_with_other_weights(tmp_path: Path) -> None:
    frozen = ["evaluations.ft.fc_only=true", "evaluations.ft.training.groups=[]"]
    out = run(tmp_path, *frozen, "evaluations.ft.weights=initial")
    assert encoders(out) != before(out)
    initial = assembly.build_encoders(recipe_in(tmp_path))
    initial.save(tmp_path / "initial.safetensors")
    assert encoders(out) == (tmp_path / "initial.safetensors").read_bytes()


def test_pretrained_encoders_are_worth_more_than_chance_of_noise(tmp_path: Path) -> None:
    """Nothing is there to learn: fine-tuning must not find anything on the test set."""
    noisy = [f"modalities.{name}.noise=1000" for name in "ab"]
    found = metrics(run(tmp_path, *noisy))
    assert found["a/top1"] < 0.65


def test_modalities_share_nothing(tmp_path: Path) -> None:
    """What the clips of one are changes nothing for the other, to the last bit."""
    noise = "evaluations.ft.modalities={a: {use: vector, name: a, noise: 1000}}"
    whole, noisy = run(tmp_path / "whole"), run(tmp_path / "noisy", noise)
    found = metrics(noisy)
    assert found["a/top1"] < 0.65
    assert {k: v for k, v in metrics(whole).items() if k[0] == "b"} == {
        k: v for k, v in found.items() if k[0] == "b"
    }
    losses = [
        [(r["a/loss"], r["b/loss"]) for r in read_log(out / "training-01")]
        for out in (whole, noisy)
    ]
    for (a, b), (other_a, other_b) in zip(*losses, strict=True):
        assert a != other_a
        assert b == other_b


def test_one_modality_only(tmp_path: Path) -> None:
    out = run(tmp_path, "evaluations.ft.only=[b]")
    found = metrics(out)
    assert found["b/top1"] > 0.9
    assert not [name for name in found if name.startswith("a/")]
    assert all("a/loss" not in record for record in read_log(out / "training-01"))


JOINED = "evaluations.ft.objective={use: supervised, joined: true}"


def test_all_modalities_together(tmp_path: Path) -> None:
    """The classifier sees both: noise in the place of one takes nothing away, of both all."""
    out = run(tmp_path, JOINED)
    found = metrics(out)
    assert set(found) == {"chance", "train_samples"} | {
        f"a+b/{figure}" for figure in ("top1", "mean_class_accuracy", "test_samples")
    }
    assert found["a+b/top1"] > 0.9
    assert found["a+b/test_samples"] == 28  # two rows have a alone
    log = read_log(out / "training-01")
    assert all({"a+b/loss", "a+b/accuracy"} <= set(record) for record in log)
    assert not [key for record in log for key in record if key.startswith(("a/", "b/"))]
    table, confusions = json.loads((out / "tables.json").read_text())
    assert [row[0] for row in table["rows"]] == ["a+b"]
    assert confusions["title"] == "Most frequent confusions of a+b"

    for noisy, low, high in (("a", 0.9, 1.01), ("b", 0.9, 1.01), ("ab", 0.0, 0.7)):
        noise = [
            f"evaluations.ft.modalities.{name}={{use: vector, name: {name}, noise: 1000}}"
            for name in noisy
        ]
        top1 = metrics(run(tmp_path / noisy, JOINED, *noise))["a+b/top1"]
        assert low <= top1 < high, noisy


def test_a_single_modality_cannot_be_joined(tmp_path: Path) -> None:
    """Found by a dry run, before anything is trained."""
    with pytest.raises(UserError, match=r"toy.yaml:19: .*ft: objective.joined: .* beside 'b'"):
        make_plan(recipe_in(tmp_path, JOINED, "evaluations.ft.only=[b]"))
    probe = "evaluations.p={use: linear_probe, train: rows, test: rows, joined: true, only: [a]}"
    with pytest.raises(UserError, match=r"evaluations.p: joined: there is nothing .* beside 'a'"):
        make_plan(recipe_in(tmp_path, probe))


# Without dropout, whose draws are others on every rank.
WHOLE = ("backbones.a={use: perceptron, dropout: 0}", "backbones.b={use: perceptron, dropout: 0}")


# Views


def test_views_are_averaged_as_asked(tmp_path: Path) -> None:
    """Scores of every view by hand, from the trained encoders and heads."""
    recipe = recipe_in(tmp_path)
    folder = RunFolder(recipe)
    folder.path.mkdir(parents=True)
    pretrain(recipe, folder, Silent())
    spec = recipe.evaluations["ft"]
    seen: dict[str, Any] = {}
    for how in ("probabilities", "logits", "maximum"):
        evaluator: Finetune = spec.build()
        evaluator.average = how  # type: ignore[assignment]
        context = lent(recipe, folder, tmp_path / how)
        features = context.features

        def noted(
            dataset: Dataset,
            how: str = how,
            features: Any = features,
            classifier: Any = evaluator.objective,
            **options: Any,
        ) -> Any:
            seen[how] = features(dataset, **options)
            whole = {"over_views": "none", "read": lambda f: classifier.logits(f)}
            seen[how, "views"] = features(dataset, **{**options, **whole})
            return seen[how]

        context.features = noted  # type: ignore[method-assign]
        evaluator.evaluate(context)
    views = seen["logits", "views"]["a"]
    logits = torch.from_numpy(views.pooled.reshape(30, 3, -1)).double()
    for how, expected in {
        "logits": logits.mean(1),
        "probabilities": logits.softmax(2).mean(1),
        "maximum": logits.softmax(2).amax(1),
    }.items():
        assert np.array_equal(seen[how, "views"]["a"].pooled, views.pooled)
        np.testing.assert_allclose(seen[how]["a"].pooled, expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(logits[:, 0], logits[:, 1]), "views differ"


def lent(recipe: Recipe, folder: RunFolder, out: Path) -> Context:
    out.mkdir()
    return Context(
        recipe=recipe,
        run_folder=folder.path,
        folder=out,
        device=torch.device("cpu"),
        components=assembly.build_modalities(recipe),
        pretraining_data=assembly.build_datasets(recipe)[0],
        title="ft",
        progress=Silent(),
    )


# Several classes a sample


def test_several_classes_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Any] = {}
    measure = Finetune._measure

    def noted(self: Finetune, found: Any) -> dict[str, float]:
        kept[str(len(kept))] = found
        return measure(self, found)

    monkeypatch.setattr(Finetune, "_measure", noted)
    out = run(
        tmp_path,
        "evaluations.ft.train={use: tagged, size: 48, unlabelled: [1, 30]}",
        "evaluations.ft.test={use: tagged, size: 30, first: 100}",
    )
    found, scores = metrics(out), kept["0"]
    assert scores.labels.shape == (30, 3)
    assert found["train_samples"] == 46
    expected = sklearn.metrics.average_precision_score(scores.labels, scores.pooled)
    assert found["a/map"] == pytest.approx(expected)
    areas = sklearn.metrics.roc_auc_score(scores.labels, scores.pooled, average=None)
    assert found["a/auc"] == pytest.approx(areas.mean())
    assert found["a/auc"] > 0.7
    quantiles = scipy.stats.norm.ppf(areas.clip(1e-6, 1 - 1e-6))
    assert found["a/d_prime"] == pytest.approx(math.sqrt(2) * quantiles.mean())
    assert not [name for name in found if "top1" in name or name == "chance"]
    assert "d'" in (out / "tables.json").read_text()
    assert (out / "finetune.png").read_bytes().startswith(b"\x89PNG")


# A kill


class Killed(Exception):
    """As abrupt as an exception can be: nothing is saved."""


@pytest.mark.parametrize("at", [2, 9, 17])
def test_a_kill_changes_nothing(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole")
    step, done = Pretraining.step, []

    def stepping(self: Pretraining, batch: Batch, factor: float) -> Losses:
        if "training-01" in str(self.folder):
            if len(done) == at:
                raise Killed
            done.append(self.state.global_step)
        return step(self, batch, factor)

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "step", stepping)
        with pytest.raises(Killed):
            run(tmp_path / "killed")
    resumed: list[int] = []

    def counting(self: Pretraining, batch: Batch, factor: float) -> Losses:
        resumed.append(self.state.global_step)
        return step(self, batch, factor)

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "step", counting)
        again = run(tmp_path / "killed")
    assert resumed[0] == at // 4 * 4, "from the newest checkpoint, not from the beginning"
    assert len(resumed) == 18 - at // 4 * 4
    assert metrics(again) == metrics(whole)
    assert encoders(again) == encoders(whole)
    assert heads(again) == heads(whole)
    tables = [(out / "tables.json").read_text() for out in (again, whole)]
    assert tables[0] == tables[1]


def test_a_kill_after_training_only_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Finetune, "_measure", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(tmp_path)
    out = RunFolder(recipe_in(tmp_path)).evaluation("ft")
    assert list(out.glob("features-01/*.npz")), "what was read is kept, too"
    monkeypatch.setattr(Pretraining, "step", lambda *_: pytest.fail("trained again"))
    run(tmp_path)
    assert metrics(out)["a/top1"] > 0.9


# Several ranks


def of_rank(folder: Path) -> dict[str, Any]:
    recipe = recipe_in(folder / str(distributed.size()), *WHOLE)
    run_stage(recipe, "pretrain", Silent())
    distributed.share_objects(None)  # as `mmssl run` waits between stages
    run_stage(recipe, "ft", Silent())
    out = RunFolder(recipe).evaluation("ft")
    return metrics(out) if distributed.is_main() else {}


def test_ranks_find_the_same(tmp_path: Path) -> None:
    for size in (1, 2):
        recipe = recipe_in(tmp_path / str(size))
        RunFolder(recipe).path.mkdir(parents=True)
    alone, found = of_rank(tmp_path), on_ranks(2, of_rank, tmp_path)
    assert found[0] == pytest.approx(alone, abs=1.01 / 28)  # a score may lie on the boundary
    logs = [
        [r["loss"] for r in read_log(tmp_path / n / "runs/toy/evaluations/ft/training-01")]
        for n in "12"
    ]
    assert logs[1] == pytest.approx(logs[0], rel=1e-3)


# Learning rates


def test_groups_reach_the_optimizer(tmp_path: Path) -> None:
    out = run(tmp_path, "evaluations.ft.training.schedule=constant")
    saved = load_newest(out / "training-01" / "checkpoints")
    assert saved is not None
    assert [g["lr"] for g in saved["optimizer"]["param_groups"]] == [0.02, 0.2]
    with pytest.raises(UserError, match=r"toy.yaml:19: evaluations.ft: training.groups.0: no par"):
        run(tmp_path, "evaluations.ft.training.groups=[{parameters: head.*}]")


def test_validation_stops_training_and_draws_its_curve(tmp_path: Path) -> None:
    out = run(
        tmp_path,
        "evaluations.ft.validation={use: rows, size: 12, first: 300}",
        "evaluations.ft.training.early_stop=1",
        "evaluations.ft.training.epochs=12",
        "evaluations.ft.training.optimizer.lr=0.7",
        "evaluations.ft.training.schedule=constant",
    )
    log = read_log(out / "training-01")
    losses = [r["loss"] for r in log if r["kind"] == "validation"]
    assert len(losses) < 12
    assert losses[-1] > losses[-2]
    assert (out / "metrics.json").is_file(), "of where it stopped"


# Mistakes


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochz=3", r"ft.training.epochz: unknown key; did you mean 'epochs'\?"),
        ("training.optimizer.lr=fast", r"ft.training.optimizer.lr: expected a number > 0, got 'f"),
        ("training.schedule=cosin", r"ft.training.schedule: unknown schedule 'cosin'; did you m"),
        ("training.groups=[{lr: 1}]", r"ft.training.groups.0: 'parameters' is missing"),
        ("training=null", r"ft.training: expected a mapping, got null"),
        ("training.accumulate=3", r"ft.training.accumulate: 3 does not divide the batch size 8"),
        ("training.epoch_size=4", r"ft.training.epoch_size: an epoch of 4 samples holds no batch"),
        ("training.early_stop=3", r"ft: training.early_stop: needs .* add 'validation'"),
        ("training.final_round={epochs: 3}", r"ft: training.final_round: there is one round"),
        ("objective=nearer", r"ft: objective: Nearer is no classifier, .* take supervised"),
        ("objective=scratch", r"ft: objective: Scratch is no classifier"),
        ("clips=0", r"ft.clips: expected a whole number >= 1, got 0"),
        ("only=[]", r"ft.only: expected a list of length >= 1"),
        ("modalities.c={use: vector, name: b}", r"ft.modalities.c: this modality is not measured"),
    ],
)
def test_mistakes_that_a_dry_run_finds(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        make_plan(recipe_in(tmp_path, f"evaluations.ft.{override}"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("only=[a, c]", r"ft: only: the recipe has no modality 'c', only 'a', 'b'"),
        ("test.classes=4", r"ft: train and test must have the same classes in the same order"),
        ("test.size=2", r"ft: test has no sample of 'class 2', which train has"),
        ("train.size=2", r"ft: train has no sample of 'class 2', which test has"),
        ("train.classes=0", r"ft: train: the dataset has no labels to fine-tune on"),
        ("test.use=tagged", r"ft: samples of train and test must alike have one class, or sev"),
        ("validation={use: rows, classes: 4}", r"ft: train and validation must have the same"),
        ("objective={use: supervised, classes: 2}", r"ft: objective.classes: the dataset has a la"),
    ],
)
def test_mistakes_that_only_the_data_show(override: str, message: str, tmp_path: Path) -> None:
    other = "evaluations.ft.modalities={b: {use: vector, name: b}}"
    with pytest.raises(UserError, match=message) as raised:
        run(tmp_path, other, f"evaluations.ft.{override}")
    assert "toy.yaml:19: evaluations." in str(raised.value)


def test_a_test_set_that_cannot_be_read(tmp_path: Path) -> None:
    lost = "evaluations.ft.test={use: rows, size: 30, first: 100, without_b: ["
    lost += ", ".join(map(str, range(30))) + "]}"
    found = metrics(run(tmp_path / "b", lost))
    assert {k: v for k, v in found.items() if k.startswith("b/")} == {"b/test_samples": 0}
    assert found["a/top1"] > 0.9
    with pytest.raises(UserError, match="no labelled test sample with b could be read"):
        run(tmp_path / "all", lost, "evaluations.ft.only=[b]", "data.max_bad=1.0")


def test_batches_that_ranks_cannot_share(tmp_path: Path) -> None:
    message = r"evaluations.ft.training.batch_size: 9 samples are not equal parts for 2 ranks"
    with pytest.raises(UserError, match=message):
        make_plan(
            recipe_in(
                tmp_path,
                "launch={use: local, processes: 2}",
                "evaluations.ft.training.batch_size=9",
            )
        )


# As a component


def test_the_plan_and_the_schema_know_its_training(tmp_path: Path) -> None:
    plan = make_plan(recipe_in(tmp_path))
    (evaluations,) = (t for t in plan.tables if t.title == "evaluations")
    assert "training=(3 epochs of 48)" in evaluations.rows[0][1]
    known = schema(registry())["$defs"]["evaluators.evaluators.finetune"]["properties"]
    assert known["training"]["$ref"] == "#/$defs/Training"
    assert known["average"]["anyOf"][0]["enum"] == ["probabilities", "logits", "maximum"]


def test_a_dumped_recipe_is_the_same(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, "evaluations.ft.objective={use: supervised, mixup: 5}")
    (tmp_path / "again.yaml").write_text(recipe.dump())
    again = load(tmp_path / "again.yaml", registry=registry())
    assert again.plain()["evaluations"] == recipe.plain()["evaluations"]
    built: Finetune = again.evaluations["ft"].build()
    assert built.training.optimizer.parameters["lr"] == 0.02
    assert isinstance(perceptron(), Backbone)


def test_curves_draw_what_was_logged(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, "evaluations.ft.validation={use: rows, size: 12, first: 300}")
    folder = RunFolder(recipe)
    folder.path.mkdir(parents=True)
    pretrain(recipe, folder, Silent())
    context = lent(recipe, folder, tmp_path / "ft")
    found: Evaluation = recipe.evaluations["ft"].build().evaluate(context)
    figure = found.figures["finetune"]
    lines = [{line.get_label(): line.get_xydata() for line in axes.lines} for axes in figure.axes]
    log = [r for r in read_log(tmp_path / "ft" / "training-01") if r["kind"] == "step"]
    for measure, drawn in zip(("loss", "accuracy"), lines, strict=True):
        expected = [np.mean([r[f"a/{measure}"] for r in log[6 * e : 6 * e + 6]]) for e in range(3)]
        np.testing.assert_allclose(drawn["a, train"], np.stack([[1, 2, 3], expected], 1))
        assert drawn["a, validation"][:, 0].tolist() == [1, 2, 3]
    test = f"a, test ({100 * found.metrics['a/top1']:.1f} %)"
    assert lines[1][test][0][1] == found.metrics["a/top1"]
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")
