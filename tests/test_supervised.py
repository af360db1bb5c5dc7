"""Training on labels, against torch's own losses, hand-made batches and scipy's Beta."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from ranks import on_ranks
from small_runs import RECIPE
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from toy_runs import changed, pretraining
from toys import Perceptron, Rows

from mmssl.contracts import IGNORE, Batch, Features, Losses
from mmssl.errors import UserError
from mmssl.pipeline import rehearsal
from mmssl.pipeline.plan import make_plan
from mmssl.pipeline.profiling import profile
from mmssl.recipe import load
from mmssl.training import distributed
from mmssl.training.checkpoints import load_newest
from mmssl.training.encoders import Encoders
from mmssl.training.progress import Silent
from mmssl.training.settings import Group
from mmssl_evaluators.supervised import Supervised

CLASSES, DIM = 5, 6


def built(
    *,
    multilabel: bool = False,
    classes: int = CLASSES,
    modalities: str = "a",
    grad: bool = False,
    **options: Any,
) -> Supervised:
    torch.manual_seed(0)
    objective = Supervised(**options)
    objective.class_names = [f"class {i}" for i in range(classes)]
    objective.multilabel = multilabel
    backbones = {name: Perceptron(8, DIM) for name in modalities}
    objective.build(Encoders(backbones, list(backbones)))
    return objective.eval().requires_grad_(grad)


def batch(labels: Any, present: dict[str, list[bool]] | None = None, offset: int = 0) -> Batch:
    labels = torch.as_tensor(labels)
    size = len(labels)
    mask = present or {"a": [True] * size}
    return Batch(
        index=torch.arange(size),
        seeds=torch.arange(offset, offset + size),
        clips={name: torch.zeros(size, 8) for name in mask},
        present={name: torch.tensor(rows) for name, rows in mask.items()},
        labels=labels,
    )


def features(size: int, modalities: str = "a", seed: int = 1) -> dict[str, Features]:
    generator = torch.Generator().manual_seed(seed)
    return {name: Features(torch.randn(size, DIM, generator=generator)) for name in modalities}


# Losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_softmax_with_smoothing_is_torchs(smoothing: float) -> None:
    objective = built(label_smoothing=smoothing)
    labels, given = torch.tensor([0, 3, 4, 1]), features(4)
    losses = objective.loss(batch(labels), given)
    logits = objective.logits(given)["a"]
    expected = cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(losses.total, expected)
    accuracy = (logits.argmax(1) == labels).float().mean()
    torch.testing.assert_close(losses.parts["a/accuracy"], accuracy)
    torch.testing.assert_close(objective.scores(logits), logits.softmax(1))


def test_sigmoid_is_summed_over_classes() -> None:
    objective = built(multilabel=True)
    targets = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]]).float()
    given = features(3)
    losses = objective.loss(batch(targets), given)
    logits = objective.logits(given)["a"]
    p = logits.double().sigmoid()
    each = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum(1)
    torch.testing.assert_close(losses.total, each.mean().float())
    assert "a/accuracy" not in losses.parts
    torch.testing.assert_close(objective.scores(logits), logits.sigmoid())


def test_sigmoid_of_single_classes() -> None:
    objective = built(loss="sigmoid")
    labels, given = torch.tensor([2, 0]), features(2)
    hot = torch.eye(CLASSES)[labels]
    logits = objective.logits(given)["a"]
    expected = binary_cross_entropy_with_logits(logits, hot, reduction="sum") / 2
    torch.testing.assert_close(objective.loss(batch(labels), given).total, expected)


def test_rows_without_label_or_modality_do_not_count() -> None:
    objective = built(modalities="ab", label_smoothing=0.1)
    labels = torch.tensor([0, IGNORE, 2, 3])
    present = {"a": [True] * 4, "b": [True, True, False, True]}
    given = features(4, "ab")
    losses = objective.loss(batch(labels, present), given)
    logits = objective.logits(given)
    a = cross_entropy(logits["a"], labels, ignore_index=IGNORE, label_smoothing=0.1)
    rows = torch.tensor([0, 3])
    b = cross_entropy(logits["b"][rows], labels[rows], label_smoothing=0.1)
    torch.testing.assert_close(losses.total, a + b)
    torch.testing.assert_close(losses.parts, losses.parts | {"a/loss": a, "b/loss": b})
    assert {name: int(n) for name, n in losses.counts.items() if "loss" in name} == {
        "a/loss": 3,
        "b/loss": 2,
    }


def joined_loss(
    objective: Supervised, given: dict[str, Features], labels: Tensor, rows: list[int]
) -> tuple[float, float]:
    """Loss and, of single classes, accuracy over some rows, by loops in double precision."""
    head = objective.heads["a+b"][-1]  # type: ignore[index]
    weight, bias = head.weight.double(), head.bias.double()
    losses, right = [], []
    for row in rows:
        inputs = [*given["a"].pooled[row].tolist(), *given["b"].pooled[row].tolist()]
        logits = [
            sum(float(w) * x for w, x in zip(weight[c], inputs, strict=True)) + float(bias[c])
            for c in range(CLASSES)
        ]
        if labels.ndim == 2:
            ps = [1 / (1 + math.exp(-z)) for z in logits]
            each = [math.log(p if y else 1 - p) for p, y in zip(ps, labels[row], strict=True)]
            losses.append(-sum(each))
        else:
            label = int(labels[row])
            losses.append(math.log(sum(math.exp(z) for z in logits)) - logits[label])
            right.append(max(range(CLASSES), key=logits.__getitem__) == label)
    return float(np.mean(losses)), float(np.mean(right)) if right else math.nan


@pytest.mark.parametrize("multilabel", [False, True])
def test_joined_classifier_by_loops(multilabel: bool) -> None:
    objective = built(joined=True, modalities="ab", multilabel=multilabel)
    assert list(objective.heads) == ["a+b"]
    assert objective.heads["a+b"][-1].weight.shape == (CLASSES, 2 * DIM)  # type: ignore[index]
    labels = torch.tensor([0, IGNORE, 2, 3, 1, 4])
    if multilabel:
        labels = (torch.rand(6, CLASSES, generator=torch.Generator().manual_seed(0)) < 0.4).float()
        labels[1] = IGNORE
    present = {"a": [True] * 5 + [False], "b": [True, True, False, True, True, True]}
    given = features(6, "ab")
    # As encoders may give them: in another order, zeros where absent.
    given = {n: Features(given[n].pooled * torch.tensor(present[n])[:, None]) for n in "ba"}
    losses = objective.loss(batch(labels, present), given)
    loss, accuracy = joined_loss(objective, given, labels, [0, 3, 4])
    assert float(losses.total) == pytest.approx(loss, rel=1e-5)
    assert float(losses.parts["a+b/loss"]) == pytest.approx(loss, rel=1e-5)
    assert set(losses.parts) == {"a+b/loss"} | (set() if multilabel else {"a+b/accuracy"})
    assert {int(n) for n in losses.counts.values()} == {3}
    if not multilabel:
        assert float(losses.parts["a+b/accuracy"]) == pytest.approx(accuracy)
    assert list(objective.logits(given)) == ["a+b"]


def test_only_samples_that_have_all_teach_a_joined_classifier() -> None:
    objective = built(joined=True, modalities="ab", grad=True)
    halves = {"a": [True, True, False, False], "b": [False, False, True, True]}
    given = features(4, "ab")
    for found in given.values():
        found.pooled.requires_grad_()
    losses = objective.loss(batch([0, 1, 2, 3], halves), given)
    losses.total.backward()
    assert losses.total == 0
    assert not any(found.pooled.grad.any() for found in given.values())  # type: ignore[union-attr]
    assert not any(p.grad.any() for p in objective.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("multilabel", [False, True])
def test_nothing_to_learn_from_is_no_loss(multilabel: bool) -> None:
    objective = built(multilabel=multilabel, inverse_frequency=multilabel, grad=True)
    labels = torch.full((3, CLASSES), float(IGNORE)) if multilabel else torch.full((3,), IGNORE)
    losses = objective.loss(batch(labels), features(3))
    losses.total.backward()
    assert losses.total == 0
    assert all(p.grad is None or not p.grad.any() for p in objective.parameters())


def test_inverse_frequency_by_hand() -> None:
    objective = built(multilabel=True, classes=3, inverse_frequency=True)
    # Class 0 three times, class 1 twice, class 2 once; the last row has no label.
    targets = torch.tensor(
        [[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0], [IGNORE, IGNORE, IGNORE]]
    ).float()
    weights = [(1 / 3 + 1 / 2) / 2, 1 / 3, (1 / 3 + 1 / 2 + 1) / 3, 0]
    given = features(5)
    logits = objective.logits(given)["a"][:4]
    each = binary_cross_entropy_with_logits(logits, targets[:4], reduction="none").sum(1)
    expected = (each * torch.tensor(weights)).sum() / 4
    torch.testing.assert_close(objective.loss(batch(targets), given).total, expected)


def test_inverse_frequency_counts_mixed_labels() -> None:
    objective = built(multilabel=True, classes=3, inverse_frequency=True)
    targets = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.5]])
    often = [1.25, 0.75, 0.5]
    first = (0.25 / often[0] + 0.75 / often[1]) / 1.0
    second = (1.0 / often[0] + 0.5 / often[2]) / 1.5
    given = features(2)
    each = binary_cross_entropy_with_logits(
        objective.logits(given)["a"], targets, reduction="none"
    ).sum(1)
    expected = (each[0] * first + each[1] * second) / 2
    torch.testing.assert_close(objective.loss(batch(targets), given).total, expected)


# Heads


def test_heads() -> None:
    plain = built(modalities="ab").heads
    assert list(plain) == ["a", "b"]
    assert [type(layer) for layer in plain["a"]] == [nn.Dropout, nn.Linear]  # type: ignore[union-attr]
    deep = built(hidden=16, dropout=0.5).heads["a"]
    assert [type(layer) for layer in deep] == [nn.Dropout, nn.Linear, nn.ReLU, nn.Linear]  # type: ignore[union-attr]
    assert deep[0].p == 0.5  # type: ignore[index]
    assert deep[1].weight.shape == (16, DIM)  # type: ignore[index]
    assert deep[3].weight.shape == (CLASSES, 16)  # type: ignore[index]


def test_sigmoid_begins_with_the_share_of_a_class() -> None:
    for objective in (built(multilabel=True), built(loss="sigmoid", hidden=4)):
        last = objective.heads["a"][-1]  # type: ignore[index]
        torch.testing.assert_close(last.bias, torch.full((CLASSES,), -math.log(CLASSES - 1)))
        assert last.bias.sigmoid()[0] == pytest.approx(1 / CLASSES)
    assert not torch.equal(*(built(modalities="ab").heads[n][-1].bias for n in "ab"))  # type: ignore[index]


def test_dropout_is_for_training_only() -> None:
    objective, given = built(dropout=0.5), features(4)
    logits = objective.logits(given)["a"]
    assert torch.equal(objective.logits(given)["a"], logits)
    objective.train()
    assert not torch.equal(objective.logits(given)["a"], logits)


# Mixing


def shares(alpha: float, count: int) -> np.ndarray:
    """The weights of ``count`` samples: clips are 1 and 0 in turn, and so are what they become."""
    objective = built(mixup=alpha)
    given = batch([0, 1] * (count // 2))
    clips = {"a": torch.tensor([1.0, 0.0] * (count // 2))[:, None]}
    _, mixed = objective.augment(given, clips)
    own = mixed["a"][:, 0].double()
    return torch.where(clips["a"][:, 0] == 1, own, 1 - own).numpy()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0, 40.0])
def test_weights_are_of_the_beta_distribution(alpha: float) -> None:
    count, beta = 40_000, scipy.stats.beta(alpha, alpha)
    found = shares(alpha, count)
    if alpha >= 1:
        assert scipy.stats.kstest(found, beta.cdf).pvalue > 0.01
    # Nearer to 1 than float32 can tell lies much of Beta(0.2, 0.2).
    places = np.linspace(0.001, 0.999, 999)
    below = (found[:, None] < places).mean(0)
    assert abs(below - beta.cdf(places)).max() < 1.63 / math.sqrt(count)  # as likely as 1 %
    assert found.min() >= 0
    assert found.max() <= 1
    assert abs(np.corrcoef(found[::2], found[1::2])[0, 1]) < 0.03  # each its own


@pytest.mark.parametrize("alpha", [1e-3, 1e4])
def test_extreme_weights_are_numbers(alpha: float) -> None:
    found = shares(alpha, 2000)
    assert np.isfinite(found).all()
    inner = ((found > 0.01) & (found < 0.99)).mean()
    assert inner < 0.05 if alpha < 1 else inner == 1
    assert found.mean() == pytest.approx(0.5, abs=0.05)


def test_the_quantiles_reach_from_0_to_1() -> None:
    table = built(mixup=5.0)._quantiles
    assert isinstance(table, Tensor)
    assert (table[0], table[-1]) == (0, 1)
    assert (table.diff() > 0).all()
    middle = scipy.stats.beta(5, 5).ppf(np.array([0.25, 0.5, 0.75]))
    np.testing.assert_allclose(table[[1024, 2048, 3072]], middle, rtol=1e-6)
    assert "_quantiles" not in built(mixup=5.0).state_dict()


@pytest.mark.parametrize("multilabel", [False, True])
def test_clips_and_labels_are_mixed_by_the_same_share(multilabel: bool) -> None:
    objective = built(mixup=5.0, modalities="ab", multilabel=multilabel)
    labels = torch.tensor([0, 1, 2, 3, 4])
    hot = torch.eye(CLASSES)[labels]
    both = {"a": [True] * 5, "b": [True] * 5}
    given = batch(hot if multilabel else labels, both)
    clips = {
        "a": torch.arange(5.0)[:, None, None].expand(5, 2, 3),
        "b": 10 * torch.arange(5.0)[:, None],
    }
    after, mixed = objective.augment(given, clips)
    for row, other in [(0, 1), (1, 0), (2, 3), (3, 2)]:
        share = after.labels[row, row]
        assert 0 < share < 1
        assert after.labels[row, other] == pytest.approx(float(1 - share))
        assert after.labels[row].sum() == pytest.approx(1.0)
        value = float(share * row + (1 - share) * other)
        torch.testing.assert_close(mixed["a"][row], torch.full((2, 3), value))
        torch.testing.assert_close(mixed["b"][row], torch.tensor([10 * value]))
    # The last has no neighbour.
    torch.testing.assert_close(after.labels[4], hot[4])
    torch.testing.assert_close(mixed["a"][4], clips["a"][4])
    losses = objective.loss(after, features(5, "ab"))
    assert losses.total.isfinite()


def test_what_does_not_fit_is_not_mixed() -> None:
    objective = built(mixup=5.0, modalities="ab")
    present = {"a": [True] * 8, "b": [True, False, True, True, False, False, True, True]}
    labels = torch.tensor([0, 1, IGNORE, 2, 3, 4, 0, 1])
    clips = {name: torch.randn(8, 3) for name in "ab"}
    after, mixed = objective.augment(batch(labels, present), clips)
    alone, pairs = [0, 1, 2, 3], [4, 5, 6, 7]  # sound of one only; one without label; both alike
    assert torch.equal(mixed["a"][alone], clips["a"][alone])
    assert torch.equal(mixed["b"][alone], clips["b"][alone])
    assert (mixed["a"][pairs] != clips["a"][pairs]).all()
    assert torch.equal(after.labels[[0, 1, 3]], torch.eye(CLASSES)[[0, 1, 2]])
    assert (after.labels[2] == IGNORE).all()
    losses = objective.loss(after, features(8, "ab"))
    assert int(losses.counts["a/loss"]) == 7


def test_without_mixup_nothing_changes() -> None:
    given, clips = batch([0, 1]), {"a": torch.randn(2, 3)}
    assert built().augment(given, clips) == (given, clips)


def test_tokens_cannot_be_mixed() -> None:
    with pytest.raises(UserError, match=r"objective.mixup: clips of a are whole numbers"):
        built(mixup=1.0).augment(batch([0, 1]), {"a": torch.zeros(2, 3, dtype=torch.int64)})


def of_rank(size: int) -> dict[str, Any]:
    """Mixed clips, labels and loss of this rank's share of a batch of 12."""
    objective = built(mixup=5.0, multilabel=True, inverse_frequency=True)
    rows = distributed.share(size)
    everything = torch.Generator().manual_seed(3)
    clips = torch.randn(size, 4, generator=everything)[rows.start : rows.stop]
    labels = (torch.rand(size, CLASSES, generator=everything) < 0.4).float()
    labels[5] = IGNORE
    one = batch(labels[rows.start : rows.stop], offset=rows.start)
    after, mixed = objective.augment(one, {"a": clips})
    pooled = features(size)["a"].pooled[rows.start : rows.stop]
    loss = objective.loss(after, {"a": Features(pooled)}).total.detach()
    return {"clips": mixed["a"], "labels": after.labels, "loss": loss}


@pytest.mark.parametrize("ranks", [2, 3])
def test_mixing_and_weights_do_not_depend_on_ranks(ranks: int) -> None:
    alone, found = of_rank(12), on_ranks(ranks, of_rank, 12)
    assert torch.equal(torch.cat([f["clips"] for f in found]), alone["clips"])
    assert torch.equal(torch.cat([f["labels"] for f in found]), alone["labels"])
    losses = torch.stack([f["loss"] for f in found])
    torch.testing.assert_close(losses.mean(), alone["loss"])


def joined_of_rank(size: int) -> dict[str, Any]:
    """Loss and gradients of this rank's share of a batch; the first half has few complete rows."""
    objective = built(joined=True, modalities="ab", grad=True)
    rows = distributed.share(size)
    own = slice(rows.start, rows.stop)
    present = {"a": [i not in (0, 1, 7) for i in range(size)], "b": [i > 2 for i in range(size)]}
    labels = torch.arange(size) % CLASSES
    given = {n: Features(f.pooled[own]) for n, f in features(size, "ab").items()}
    losses = objective.loss(batch(labels[own], {n: m[own] for n, m in present.items()}), given)
    losses.total.backward()
    return {
        "loss": losses.total.detach(),
        "count": int(losses.counts["a+b/loss"]),
        "gradients": [p.grad for p in objective.parameters()],
    }


def test_joined_gradients_do_not_depend_on_ranks() -> None:
    alone, found = joined_of_rank(12), on_ranks(3, joined_of_rank, 12)
    assert {alone["count"]} == {f["count"] for f in found} == {8}
    torch.testing.assert_close(torch.stack([f["loss"] for f in found]).mean(), alone["loss"])
    for number, gradient in enumerate(alone["gradients"]):
        mean = torch.stack([f["gradients"][number] for f in found]).mean(0)
        torch.testing.assert_close(mean, gradient)


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, "needs a dataset with labels"),
        ({"multilabel": True, "loss": "softmax"}, "loss: softmax needs samples of one class"),
        ({"multilabel": True, "label_smoothing": 0.1}, "label_smoothing needs samples of one"),
        ({"loss": "sigmoid", "label_smoothing": 0.1}, "label_smoothing: is for softmax"),
        ({"joined": True}, "objective.joined: there is nothing to put beside 'a': take a second"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        built(**options)


def test_classes_that_are_not_the_datas() -> None:
    objective = Supervised(classes=4)
    objective.class_names, objective.multilabel = ["x", "y", "z"], True
    with pytest.raises(UserError, match="several of 3 classes, which are not 4"):
        objective.build(Encoders({"a": Perceptron(8, DIM)}, ["a"]))


# Parameter groups


def trained(folder: Path, groups: list[Group], **settings: Any) -> tuple[Any, dict[str, Tensor]]:
    """A run of toys, and its parameters before it."""
    one = pretraining(
        folder,
        settings=changed(groups=groups, **settings),
        objective=Supervised(classes=3),
        data=Rows(48),
        epochs=1,
        dropout=0.0,
    )
    before = {name: p.detach().clone() for name, p in named(one)}
    one.run()
    return one, before


def named(one: Any) -> list[tuple[str, nn.Parameter]]:
    modules = {"encoders": one.encoders, "objective": one.objective}
    return [
        (f"{word}.{name}", p)
        for word, module in modules.items()
        for name, p in module.named_parameters()
    ]


def test_a_head_learns_ten_times_as_fast(tmp_path: Path) -> None:
    """One step of SGD without momentum: every change is its learning rate times the gradient."""
    sgd = {"make_optimizer": PLAIN, "epoch_size": 8}
    plain, before = trained(tmp_path / "plain", [], **sgd)
    fast, same = trained(tmp_path / "fast", [Group("objective.*", {"lr": 0.5})], **sgd)
    for (name, p), (_, q) in zip(named(plain), named(fast), strict=True):
        assert torch.equal(before[name], same[name])
        factor = 10 if name.startswith("objective.") else 1
        torch.testing.assert_close(q - same[name], factor * (p - before[name]))
        assert name.endswith("bias") or (p != before[name]).any()


def _plain(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.05)


def _decaying(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.05, weight_decay=0.5)


PLAIN, DECAYING = _plain, _decaying


def test_batch_norm_is_not_decayed(tmp_path: Path) -> None:
    """One step with and without weight decay: what BatchNorm has is the same in both."""
    groups = [Group("encoders.backbones.*.layers.1.*", {"weight_decay": 0.0})]
    plain, before = trained(tmp_path / "plain", [], make_optimizer=PLAIN, epoch_size=8)
    decayed, _ = trained(tmp_path / "decayed", groups, make_optimizer=DECAYING, epoch_size=8)
    for (name, p), (_, q) in zip(named(plain), named(decayed), strict=True):
        decay = 0.0 if ".layers.1." in name else 0.05 * 0.5
        torch.testing.assert_close(q, p - decay * before[name])


def test_groups_are_restored(tmp_path: Path) -> None:
    """A run that stops within an epoch and goes on is one that never stopped, momentum and all."""
    groups = [
        Group("objective.*", {"lr": 0.5}),
        Group("*.layers.1.*", {"weight_decay": 0.0}),
    ]
    whole, _ = trained(tmp_path / "whole", groups)
    half = pretraining(
        tmp_path / "half",
        settings=changed(groups=groups),
        objective=Supervised(classes=3),
        data=Rows(48),
        epochs=1,
        dropout=0.0,
    )
    step = half.step

    def stepping(batch: Batch, factor: float) -> Losses:
        if half.state.global_step == 5:
            raise KeyboardInterrupt
        return step(batch, factor)

    half.step = stepping  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        half.run()
    saved = load_newest(tmp_path / "half" / "checkpoints")
    assert saved is not None
    assert [g["peak_lr"] for g in saved["optimizer"]["param_groups"]] == [0.05, 0.5, 0.05]
    again, _ = trained(tmp_path / "half", groups)
    for (name, p), (_, q) in zip(named(whole), named(again), strict=True):
        assert torch.equal(p, q), name


def test_a_pattern_that_fits_nothing_has_a_place(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        RECIPE + "  groups:\n    - {parameters: objective.*, lr: 0.1}\n    - {parameters: head.*}\n"
    )
    with pytest.raises(UserError) as raised:
        make_plan(load(tmp_path / "a.yaml"))
    line = str(raised.value)
    place = f"{tmp_path / 'a.yaml'}:{len(RECIPE.splitlines()) + 3}: training.groups.1: "
    assert line.startswith(place + "no parameter that is trained")
    assert "called 'head.*'; some that there are: encoders.backbones.video" in line
    assert "\n" not in line
    frozen = ["training.groups=[{parameters: encoders.*}]", "training.freeze_encoders=true"]
    recipe = load(tmp_path / "a.yaml", frozen)
    with pytest.raises(UserError, match=r"training.groups.0: .* called 'encoders.\*'.* objective."):
        make_plan(recipe)


# One word on the command line


@pytest.mark.parametrize(
    ("word", "says"), [("supervised", "1 round, 50 steps"), ("scratch", "0 rounds, 0 steps")]
)
def test_baselines_by_one_word(word: str, says: str) -> None:
    summary = make_plan(load("quickstart", [f"objective={word}"])).summary
    assert f"{word} of video and audio" in summary
    assert says in summary


def test_there_is_nothing_to_try_of_scratch(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(RECIPE)
    recipe = load(tmp_path / "a.yaml", ["objective=scratch"])
    with pytest.raises(UserError, match="objective: trains nothing: there are no steps to measure"):
        profile(recipe, 3, Silent())
    with pytest.raises(UserError, match="objective: trains nothing: there is nothing to rehearse"):
        rehearsal.settings(recipe, ranks=1, samples=8)
