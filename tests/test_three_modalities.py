"""Every objective with three modalities, whatever a sample lacks: gradients, resuming, two ranks.

What each loss is, is held against formulas beside the objective's other tests: clustering in
test_xdc_routing, AVBert in test_avbert_modalities.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import on_ranks
from test_vatt_objective import Sized
from torch.nn.functional import cross_entropy
from toy_runs import changed, outcome, pretraining, same_log
from toys import Rows

from mmssl.contracts import Batch, Features, Losses, Objective
from mmssl.training.encoders import Encoders
from mmssl.training.log import read_log
from mmssl_clustering.objectives import CDC, MDC, SDC
from mmssl_contrastive.avid import AVID
from mmssl_contrastive.infonce import InfoNCE
from mmssl_contrastive.siglip import SigLIP
from mmssl_evaluators.supervised import Supervised
from mmssl_vatt.objective import VATT

# XDC and its routings are in test_xdc_routing.
OBJECTIVES: dict[str, Any] = {
    "sdc": lambda: SDC(rounds=2, clusters=4),
    "mdc": lambda: MDC(rounds=2, clusters={"a": 4, "b": 3, "c": 5}, balance=True),
    "cdc": lambda: CDC(rounds=2, clusters=4),
    "infonce": lambda: InfoNCE(dim=4, learn_temperature=True),
    "siglip": lambda: SigLIP(dim=4),
    "avid": lambda: AVID(dim=4, negatives=8, within=0.5),
    "vatt": lambda: VATT(anchor="b", fine=["a", "c"], coarse=[], fine_dim=8),
    "vatt coarse": lambda: VATT(anchor="c", fine=["a"], coarse=["b"], fine_dim=8, coarse_dim=6),
    "supervised": lambda: Supervised(classes=3, mixup=2.0),
    "supervised joined": lambda: Supervised(classes=3, joined=True),
}

# Rows lack one, two and all of the modalities; one cannot be read.
DATA = Rows(
    47, bad=[11], without={"a": [5, 6, 20, 33], "b": [20, 21, 33], "c": [20, 30, 31, 33, 40]}
)
RUN = changed(batch_size=16, epoch_size=48, accumulate=2, lr_batch=None, checkpoint_steps=2)


class Killed(Exception):
    """As a kill, it leaves no chance to save anything."""


def run(folder: Path, name: str, stop_at: int | None = None) -> Encoders:
    one = pretraining(
        folder,
        settings=RUN,
        data=DATA,
        dropout=0.0,
        epochs=1,
        names="abc",
        objective=OBJECTIVES[name](),
    )
    step = one.step

    def stepping(batch: Batch, factor: float) -> Any:
        if one.state.global_step == stop_at:
            raise Killed
        return step(batch, factor)

    one.step = stepping  # type: ignore[method-assign]
    try:
        one.run()
    except Killed:
        assert stop_at is not None
    return one.encoders


def run_all(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {name: run(folder / name, name).state_dict() for name in OBJECTIVES}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_reach_all_and_resuming_changes_nothing(tmp_path: Path, name: str) -> None:
    one = run(tmp_path / "one", name)
    for modality, backbone in one.backbones.items():
        weights = [p for n, p in backbone.named_parameters() if n.endswith("4.weight")]
        assert weights, modality
        assert all(p.grad is not None and p.grad.any() for p in weights), modality
    run(tmp_path / "resumed", name, stop_at=2)
    resumed = run(tmp_path / "resumed", name)
    assert outcome(tmp_path / "resumed") == outcome(tmp_path / "one")
    for ours, theirs in zip(resumed.parameters(), one.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for record in read_log(tmp_path / "one"):
        assert np.isfinite(record.get("loss", 0.0))


def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    """The first step to rounding; BatchNorm of few rows, in chains, makes more of it later."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    one = run_all(tmp_path / "one")
    for found in on_ranks(2, run_all, tmp_path / "two"):
        for name in OBJECTIVES:
            torch.testing.assert_close(found[name], one[name], rtol=1e-2, atol=2e-3)
    for name in OBJECTIVES:
        logs = [read_log(tmp_path / folder / name) for folder in ("two", "one")]
        first, right = ([r for r in log if r["kind"] == "step"][:1] for log in logs)
        same_log(first, right)
        assert [r["kind"] for r in logs[0]] == [r["kind"] for r in logs[1]]


# Four modalities: what terms there are

FOUR = {"video": 6, "audio": 4, "imu": 3, "text": 5}
PAIRS = list(itertools.combinations(FOUR, 2))


def losses_of(objective: Objective) -> tuple[Losses, Batch, dict[str, Features]]:
    """Of nine samples, some of which lack something; parameters of a name are always the same."""
    objective.class_names = ["x", "y"]
    objective.build(Encoders({name: Sized(d) for name, d in FOUR.items()}, list(FOUR)))
    for name, parameter in objective.named_parameters():
        generator = torch.Generator().manual_seed(sum(name.encode()))
        with torch.no_grad():
            if name in ("log_scale", "bias"):  # one for each pair
                parameter.fill_(0.3)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    generator = torch.Generator().manual_seed(3)
    present, features = {}, {}
    for i, (name, d) in enumerate(FOUR.items()):
        present[name] = torch.arange(9) % (i + 3) != 1
        x = torch.randn(9, d, generator=generator) * present[name][:, None]
        features[name] = Features(x.requires_grad_())
    batch = Batch(torch.arange(9), torch.arange(9) + 7, {}, present, torch.arange(9) % 2)
    losses = objective.loss(batch, features)
    losses.total.backward()  # type: ignore[no-untyped-call]
    return losses, batch, features


def taught(batch: Batch, features: dict[str, Features]) -> list[str]:
    """The modalities whose features learn; no absent one does."""
    found = {name: f.pooled.grad for name, f in features.items() if f.pooled.grad is not None}
    for name, gradient in found.items():
        assert not gradient[~batch.present[name]].any(), name
    return [name for name, gradient in found.items() if gradient.any()]


def test_vatt_adds_the_terms_of_each_modality() -> None:
    sizes: dict[str, Any] = {"fine_dim": 8, "coarse_dim": 3, "coarse_weight": 0.5}
    losses, *rest = losses_of(VATT(**sizes))
    weights = {"video-audio/nce": 1.0, "video-imu/nce": 1.0, "video-text/nce": 0.5}
    assert [name for name in losses.parts if "accuracy" not in name] == list(weights)
    assert taught(*rest) == list(FOUR)
    for name in ("audio", "imu"):  # a term knows nothing of the others
        alone, *rest = losses_of(VATT(fine=[name], coarse=[], **sizes))
        assert alone.total.item() == pytest.approx(losses.parts[f"video-{name}/nce"].item())
        assert taught(*rest) == ["video", name]
    total = sum(weight * losses.parts[name].item() for name, weight in weights.items())
    assert losses.total.item() == pytest.approx(total)
    assert losses_of(VATT(total="mean", **sizes))[0].total.item() == pytest.approx(total / 2.5)


@pytest.mark.parametrize("objective", [InfoNCE, SigLIP])
def test_all_pairs_are_added(objective: Any) -> None:
    losses, *rest = losses_of(objective(dim=4))
    assert taught(*rest) == list(FOUR)
    alone = [losses_of(objective(dim=4, pairs=[pair]))[0].total.item() for pair in PAIRS]
    found = [losses.parts[f"{one}-{other}/loss"].item() for one, other in PAIRS]
    assert found == pytest.approx(alone, rel=1e-4)
    assert losses.total.item() == pytest.approx(sum(alone), rel=1e-4)


@pytest.mark.parametrize("joined", [False, True])
def test_supervised_is_the_cross_entropy_of_samples_that_have_what_it_sees(joined: bool) -> None:
    objective = Supervised(joined=joined)
    losses, batch, features = losses_of(objective)
    assert taught(batch, features) == list(FOUR)
    total = 0.0
    for names in [list(FOUR)] if joined else [[name] for name in FOUR]:
        rows = [i for i in range(9) if all(batch.present[name][i] for name in names)]
        x = torch.cat([features[name].pooled for name in names], 1)[rows].detach()
        right = cross_entropy(objective.heads["+".join(names)](x), batch.labels[rows])
        part = "+".join(names) + "/loss"
        assert losses.parts[part].item() == pytest.approx(right.item(), rel=1e-5)
        assert int(losses.counts[part]) == len(rows)
        total += right.item()
    assert losses.total.item() == pytest.approx(total, rel=1e-5)
