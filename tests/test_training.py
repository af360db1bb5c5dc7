"""The loop: what it computes, and that a kill at any moment changes nothing of it."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_runs import changed, outcome, pretraining
from toys import Agreement, Rows, Vector

from mmssl.contracts import Batch, Features, Losses, Round
from mmssl.errors import UserError
from mmssl.training import checkpoints
from mmssl.training.encoders import Encoders
from mmssl.training.log import Log, read_log
from mmssl.training.loop import Pretraining
from mmssl.training.optimizers import adamw
from mmssl.training.schedules import step
from mmssl.training.settings import RoundPlan, State, saturated
from mmssl_clustering.objectives import SDC, XDC, DeepClustering
from mmssl_evaluators.supervised import Supervised


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], dict[str, list[int]]]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    pretraining(folder).run()
    return outcome(folder)


class Killed(BaseException):
    """Stands for kill -9: nothing in the code may catch it or act on it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, target: str, count: int) -> None:
    """Raise `Killed` at the ``count``-th call of a function."""
    import importlib

    module, _, name = target.rpartition(".")
    owner: Any
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:
        parent, _, attribute = module.rpartition(".")
        owner = getattr(importlib.import_module(parent), attribute)
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, dying)


# 3 rounds of 12 steps, a checkpoint every 4 steps.
@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("mmssl.training.loop.Pretraining.step", 1),
        ("mmssl.training.loop.Pretraining.step", 7),  # in the middle of an epoch
        ("mmssl.training.loop.Pretraining.step", 13),  # the first of round 2
        ("mmssl.training.loop.Pretraining.step", 30),
        ("mmssl.training.loop.Pretraining._begin_round", 2),  # between rounds
        ("mmssl.training.loop.Pretraining._log_step", 18),
        ("mmssl.training.checkpoints.save", 5),
        ("mmssl.training.checkpoints.save", 6),
        ("mmssl_clustering.relabel.fit", 3),  # in the middle of clustering
        ("mmssl_clustering.relabel.fit", 4),
        ("mmssl_clustering.relabel.assign", 4),
        ("mmssl_clustering.relabel._health", 2),
        ("mmssl_clustering.relabel._save_array", 5),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    where: str,
    count: int,
    tmp_path: Path,
    undisturbed: tuple[list[Any], dict[str, list[int]]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, where, count)
        with pytest.raises(Killed):
            pretraining(tmp_path / "run").run()
    pretraining(tmp_path / "run").run()
    records, labels = outcome(tmp_path / "run")
    assert records == undisturbed[0]
    assert labels == undisturbed[1]


def test_killed_again_and_again(
    tmp_path: Path, undisturbed: tuple[list[Any], dict[str, list[int]]]
) -> None:
    finished = False
    for _ in range(20):
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, "mmssl.training.loop.Pretraining.step", 6)
            try:
                pretraining(tmp_path / "run").run()
            except Killed:
                continue
        finished = True
        break
    assert finished
    assert outcome(tmp_path / "run") == undisturbed


def test_labelling_that_streams_is_resumed_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few points per centroid: centroids are fitted on a subsample, and labelling streams.
    def make(folder: Path) -> Pretraining:
        objective = XDC(rounds=1, clusters=3, points_per_centroid=5)
        return pretraining(folder, objective=objective, epochs=1)

    make(tmp_path / "whole").run()
    monkeypatch.setattr("mmssl_clustering.relabel._SMALLEST", 16)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, "mmssl_clustering.relabel.assign", 11)  # two modalities: in batch 6 of 8
        with pytest.raises(Killed):
            make(tmp_path / "run").run()
    blocks = tmp_path / "run" / "clusters" / "round-01" / "labelling"
    assert sorted(path.name for path in blocks.iterdir()) == [
        "000000000000.npy",
        "000000000016.npy",
    ]
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, "mmssl_clustering.relabel.assign", 9)  # 4 batches are left, not 8
        make(tmp_path / "run").run()
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert not blocks.exists()


def test_workers_change_no_loss(
    tmp_path: Path, undisturbed: tuple[list[Any], dict[str, list[int]]]
) -> None:
    pretraining(tmp_path / "run", workers=2).run()
    assert outcome(tmp_path / "run") == undisturbed


def test_a_finished_run_trains_nothing_more(tmp_path: Path) -> None:
    pretraining(tmp_path / "run").run()
    before = outcome(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, "mmssl.training.loop.Pretraining.step", 1)
        pretraining(tmp_path / "run").run()
    assert outcome(tmp_path / "run") == before


def test_unreadable_and_missing_samples_have_no_label(
    undisturbed: tuple[list[Any], dict[str, list[int]]],
) -> None:
    labels = undisturbed[1]["clusters/round-01/a.labels.npy"]
    assert [row for row, label in enumerate(labels) if label == -100] == [11]
    labels = undisturbed[1]["clusters/round-01/b.labels.npy"]
    assert [row for row, label in enumerate(labels) if label == -100] == [11, 20, 21]


def test_lost_labels_of_a_begun_round_are_an_error(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, "mmssl.training.loop.Pretraining.step", 7)
        with pytest.raises(Killed):
            pretraining(tmp_path / "run").run()
    (tmp_path / "run" / "clusters" / "round-01" / "a.labels.npy").unlink()
    with pytest.raises(UserError, match="lacks labels of a round whose training has begun"):
        pretraining(tmp_path / "run").run()


def test_accumulation_gives_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    # Without BatchNorm and dropout the mean over two halves is the mean over the whole.
    weights = []
    for accumulate in (1, 2):
        job = pretraining(
            tmp_path / str(accumulate),
            settings=changed(accumulate=accumulate),
            objective=Agreement(),
            data=Rows(60),
            dropout=0.0,
        )
        for backbone in job.encoders.backbones.values():
            backbone.layers[1] = torch.nn.Identity()
        job.optimizer = job._new_optimizer()
        job.run()
        weights.append(torch.cat([p.detach().flatten() for p in job.encoders.parameters()]))
    assert torch.allclose(weights[0], weights[1], atol=1e-6)


def test_the_learning_rate_follows_batch_and_schedule(tmp_path: Path) -> None:
    job = pretraining(
        tmp_path / "run", settings=changed(lr_batch=2), objective=Agreement(), epochs=3
    )
    schedule = partial(step, step_epochs=1, gamma=0.5, warmup_epochs=1)
    job.plan = lambda number: RoundPlan(3, schedule)
    job.run()
    rates = [record["lr"] for record in read_log(tmp_path / "run") if record["kind"] == "step"]
    # lr 0.05 for 2 clips: 0.2 for 8, from 0.05 up over the 6 steps of an epoch, then halved.
    warm = [0.05 + 0.15 * i / 6 for i in range(6)]
    assert rates == pytest.approx([*warm, *[0.2] * 6, *[0.1] * 6])


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    class Broken(Agreement):
        def loss(self, batch: Any, features: Any) -> Any:
            losses = super().loss(batch, features)
            losses.total = losses.total * float("nan")
            return losses

    job = pretraining(tmp_path / "run", objective=Broken())
    with pytest.raises(UserError, match=r"the loss is nan at round 1, step 1:.*lr"):
        job.run()
    state = checkpoints.load_newest(tmp_path / "run" / "checkpoints")
    assert state is not None
    assert all(value.isfinite().all() for value in state["encoders"].values())


def test_too_many_unreadable_samples_stop_the_run(tmp_path: Path) -> None:
    job = pretraining(tmp_path / "run", data=Rows(60, bad=range(0, 60, 3)))
    with pytest.raises(UserError, match=r"of 60 train samples cannot be read.*data.max_bad"):
        job.run()


def test_saturation_needs_consecutive_increases() -> None:
    assert not saturated([1.0, 2.0, 3.0], 3)
    assert saturated([1.0, 2.0, 3.0, 4.0], 3)
    assert not saturated([1.0, 2.0, 1.5, 2.0, 3.0], 3)
    assert saturated([9.0, 1.0, 2.0, 1.5, 2.0, 3.0, 4.0], 3)
    assert not saturated([1.0, 2.0, 2.0, 3.0], 3)


class Scripted(Agreement):
    """Two rounds whose validation losses are given."""

    rounds = 2

    def __init__(self, losses: list[list[float]]) -> None:
        super().__init__()
        self.losses = losses
        self.current: list[float] = []

    def begin_round(self, round: Round) -> Iterable[torch.nn.Parameter]:
        self.current = list(self.losses[round.number - 1])
        return ()

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        if self.training:
            return super().loss(batch, features)
        assert batch.split == "validation"
        return Losses(torch.tensor(self.current.pop(0)))


def test_a_round_stops_at_the_second_increase_and_the_next_one_begins(tmp_path: Path) -> None:
    script = [[3.0, 2.0, 2.5, 2.6, 2.7], [1.0, 2.0, 1.0, 2.0, 3.0, 4.0]]
    job = pretraining(
        tmp_path / "run",
        settings=changed(early_stop=2),
        objective=Scripted(script),
        validation=Rows(5),  # one batch
        epochs=30,
    )
    job.run()
    records = read_log(tmp_path / "run")
    for number, stopped_after in ((1, 4), (2, 5)):
        mine = [r for r in records if r["round"] == number]
        losses = [r["loss"] for r in mine if r["kind"] == "validation"]
        assert losses == pytest.approx(script[number - 1][:stopped_after])
        assert max(r["epoch"] for r in mine if r["kind"] == "step") == stopped_after
    assert job.state.finished
    assert job.state.position == (4 + 5) * 48


def test_validation_loss_is_that_of_central_clips_in_eval_mode(tmp_path: Path) -> None:
    validation = Rows(13)  # not a multiple of the batch
    job = pretraining(tmp_path / "run", objective=Agreement(), validation=validation, epochs=1)
    job.run()
    (record,) = [r for r in read_log(tmp_path / "run") if r["kind"] == "validation"]
    job.encoders.eval()
    features = [b.pooled for b in job.stream(validation, np.arange(13))]
    a, b = (torch.cat([f[name] for f in features]) for name in ("a", "b"))
    assert record["loss"] == pytest.approx(float(((a - b) ** 2).mean()), rel=1e-5)


def test_frozen_encoders_stay_as_they_are(tmp_path: Path) -> None:
    job = pretraining(
        tmp_path / "run",
        settings=changed(freeze_encoders=True),
        objective=Supervised(classes=3),
        validation=Rows(9),
        epochs=8,
    )
    before = {name: value.clone() for name, value in job.encoders.state_dict().items()}
    job.run()
    after = job.encoders.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    records = [r for r in read_log(tmp_path / "run") if r["kind"] == "validation"]
    assert records[-1]["loss"] < records[0]["loss"]
    assert 0 <= records[-1]["a/accuracy"] <= 1


class Turns(Agreement):
    """In each round another of the encoders stays as it is, and one parameter of the other."""

    rounds = 2

    def build(self, encoders: Encoders) -> None:
        self._encoders = (encoders,)

    def begin_round(self, round: Round) -> tuple[()]:
        a, b = (self._encoders[0].backbones[name] for name in "ab")
        self.frozen = [a, b.layers[0].bias] if round.number == 1 else [b]  # type: ignore[union-attr, index]
        return ()


def test_what_an_objective_freezes_stays_as_it_is(tmp_path: Path) -> None:
    def make(folder: Path) -> Pretraining:
        weights = changed(make_optimizer=partial(adamw, lr=0.01, weight_decay=0.5))
        return pretraining(folder, settings=weights, objective=Turns())

    def moved(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
        return {name for name in before if not torch.equal(before[name], after[name])}

    job = make(tmp_path / "run")
    begun = {name: value.clone() for name, value in job.encoders.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, "mmssl.training.loop.Pretraining.step", 17)  # the 5th step of round 2
        with pytest.raises(Killed):
            job.run()
    halfway = checkpoints.load(checkpoints.path_of(tmp_path / "run" / "checkpoints", 12))
    first = moved(begun, halfway["encoders"])
    assert {n for n in first if n.startswith("backbones.a.")} == set()
    assert "backbones.b.layers.0.bias" not in first
    assert "backbones.b.layers.0.weight" in first
    job = make(tmp_path / "run")
    job.run()
    second = moved(halfway["encoders"], job.encoders.state_dict())
    assert {n for n in second if n.startswith("backbones.b.")} == set()
    assert "backbones.a.layers.0.bias" in second
    assert "backbones.a.layers.1.running_mean" in second
    make(tmp_path / "whole").run()
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_long_gradients_are_scaled_down(precision: str, tmp_path: Path) -> None:
    """Also where fp16 scales the loss, and so the gradients."""

    def gradients(folder: str, clip_norm: float | None) -> torch.Tensor:
        settings = changed(clip_norm=clip_norm, precision=precision)
        job = pretraining(tmp_path / folder, settings=settings, epochs=1)
        job.scaler = torch.amp.GradScaler("cpu", 64.0, enabled=precision == "fp16")
        batch = next(job.batches(1, ())).batch
        job.objective.begin_round = lambda round: ()  # type: ignore[method-assign]
        job.objective = Agreement()
        job._network.objective = job.objective
        job.train_mode()
        job.step(batch, 0.0)
        return torch.cat([p.grad.flatten() for p in job.encoders.parameters()])  # type: ignore[union-attr]

    free = gradients("free", None)
    norm = float(free.norm())
    clipped = gradients("clipped", norm / 4)
    torch.testing.assert_close(clipped, free / 4, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(gradients("short", 2 * norm), free, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(tmp_path: Path, precision: str) -> None:
    job = pretraining(
        tmp_path / "run",
        settings=changed(precision=precision),
        objective=Agreement(),
        epochs=6,
    )
    job.run()
    losses = [r["loss"] for r in read_log(tmp_path / "run") if r["kind"] == "step"]
    assert np.mean(losses[-6:]) < 0.5 * np.mean(losses[:6])
    assert all(p.dtype == torch.float32 for p in job.encoders.parameters())


def test_the_log_is_cut_at_the_checkpoint(tmp_path: Path) -> None:
    log = Log(tmp_path, {})
    log.write({"kind": "step", "step": 1, "loss": 0.5})
    length = log.length()
    log.write({"kind": "step", "step": 2, "loss": float("nan")})
    log.close()
    assert read_log(tmp_path)[1]["loss"] is None
    log = Log(tmp_path, {}, length=length, step=1)
    log.write({"kind": "step", "step": 2, "loss": 0.25})
    log.close()
    assert [r.get("loss") for r in read_log(tmp_path)] == [0.5, 0.25]


def test_state_moves_from_round_to_round() -> None:
    state = State(round=1, begun=True, step=5, validation=[1.0])
    state.next_round(2)
    assert (state.round, state.begun, state.step, state.validation) == (2, False, 0, [])
    state.next_round(2)
    assert state.finished


def weak_modality_purity(folder: Path, method: type[DeepClustering], seed: int) -> list[float]:
    """The purity of modality a's clusters by round, where a is much noisier than b."""
    job = pretraining(
        folder,
        settings=changed(
            seed=seed,
            epoch_size=320,
            batch_size=32,
            make_optimizer=partial(adamw, lr=0.005),
            checkpoint_steps=None,
            log_every=30,
        ),
        objective=method(rounds=6, clusters=12, balance=True, normalize="standardize_l2"),
        data=Rows(400, 4),
        epochs=3,
        dropout=0.0,
    )
    for modality in job.modalities.values():
        assert isinstance(modality, Vector)
        modality.noise, modality.augment = 1.6, 0.3
    job.run()
    return [r["a/purity"] for r in read_log(folder) if r["kind"] == "round"]


@pytest.mark.parametrize("seed", [3, 4])
def test_xdc_learns_from_the_other_modality_what_sdc_cannot(tmp_path: Path, seed: int) -> None:
    # Chance is 1/4 for one cluster and about 0.4 for twelve of this size.
    cross = weak_modality_purity(tmp_path / "xdc", XDC, seed)
    single = weak_modality_purity(tmp_path / "sdc", SDC, seed)
    assert cross[0] == single[0]  # the same untrained features
    assert cross[-1] > cross[0] + 0.1
    assert cross[-1] > single[-1] + 0.1


def test_data_that_changed_since_the_run_began_are_refused(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, "mmssl.training.loop.Pretraining.step", 7)
        with pytest.raises(Killed):
            pretraining(tmp_path / "run").run()
    with pytest.raises(UserError, match=r"the data of .* have changed since it began"):
        pretraining(tmp_path / "run", data=Rows(59, bad=[11], without={"b": [20, 21]})).run()
    renamed = Rows(60, bad=[11], without={"b": [20, 21]})
    original = renamed.sample
    renamed.sample = lambda i: original(59 - i)  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"the data of .* have changed since it began"):
        pretraining(tmp_path / "run", data=renamed).run()


def test_validation_means_are_over_the_samples_that_count(tmp_path: Path) -> None:
    # 13 samples in batches of 8 and 5; in the second one only two have modality a.
    validation = Rows(13, without={"a": [8, 9, 10]})
    job = pretraining(
        tmp_path / "run", objective=Supervised(classes=3), validation=validation, epochs=1
    )
    job.run()
    (record,) = [r for r in read_log(tmp_path / "run") if r["kind"] == "validation"]
    job.encoders.eval()
    job.objective.eval()
    correct = 0
    for batch in job.stream(validation, np.arange(13)):
        logits = job.objective.heads["a"](batch.pooled["a"])
        hit = logits.argmax(1).detach().numpy() == batch.labels
        correct += int((hit & batch.present["a"]).sum())
    assert record["a/accuracy"] == pytest.approx(correct / 10)
