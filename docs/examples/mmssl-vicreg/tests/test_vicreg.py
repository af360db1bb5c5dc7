"""VICReg: the paper's formula in plain loops, absent rows, several processes, and a run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from mmssl import Backbone, Batch, Features, UserError
from mmssl.training import distributed
from mmssl.training.encoders import Encoders
from mmssl_vicreg.vicreg import VICReg, vicreg

MMSSL = str(Path(sys.executable).with_name("mmssl"))


def slow(a: np.ndarray, b: np.ndarray, epsilon: float) -> dict[str, float]:
    """The three terms, loop by loop, in float64."""
    n, d = a.shape
    s = sum(((a[i] - b[i]) ** 2).sum() for i in range(n)) / n / d
    v = c = 0.0
    for z in (a, b):
        mean = z.mean(0)
        for j in range(d):
            v += max(0.0, 1 - np.sqrt(z[:, j].var(ddof=1) + epsilon)) / d
            for k in range(d):
                if j != k:
                    covariance = ((z[:, j] - mean[j]) * (z[:, k] - mean[k])).sum() / (n - 1)
                    c += covariance**2 / d
    return {"invariance": s, "variance": v, "covariance": c}


def rows(seed: int, count: int = 12, dim: int = 5) -> Tensor:
    scale = torch.tensor([0.2, 0.6, 1.0, 1.4, 3.0])
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("epsilon", [1e-4, 0.5])
def test_terms_are_the_papers(epsilon: float) -> None:
    a, b = rows(0), rows(1)
    found = vicreg(a, b, torch.ones(12), epsilon)
    expected = slow(a.double().numpy(), b.double().numpy(), epsilon)
    assert {name: float(term) for name, term in found.items()} == pytest.approx(expected, rel=1e-5)


def test_absent_rows_change_nothing_and_learn_nothing() -> None:
    a, b = rows(0).requires_grad_(), rows(1).requires_grad_()
    counted = torch.tensor([1.0, 1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1])
    there = counted.bool()
    found = vicreg(a, b, counted, 1e-4)
    for name, term in vicreg(a[there], b[there], torch.ones(9), 1e-4).items():
        torch.testing.assert_close(found[name], term)
    sum(found.values()).backward()
    for z in (a, b):
        assert z.grad is not None
        assert (z.grad[~there] == 0).all()
        assert (z.grad[there] != 0).any()


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_rows_add_nothing(count: int) -> None:
    a = rows(0).requires_grad_()
    counted = (torch.arange(12) < count).float()
    total = sum(vicreg(a, rows(1), counted, 1e-4).values())
    total.backward()
    assert total == 0
    assert a.grad is not None
    assert (a.grad == 0).all()


def _on_a_rank(rank: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    own = slice(6 * rank, 6 * rank + 6)
    a, b = rows(0)[own].requires_grad_(), rows(1)[own].requires_grad_()
    counted = COUNTED[own]
    gathered = [distributed.gather(x) for x in (a, b, counted)]
    loss = sum(vicreg(*gathered, 1e-4).values())
    loss.backward()
    torch.save([loss.detach(), a.grad, b.grad], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


COUNTED = torch.tensor([1.0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1])


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """The mean over ranks, of the loss and of its gradients, is that of one process."""
    mp.spawn(_on_a_rank, (str(tmp_path),), nprocs=2)
    a, b = rows(0).requires_grad_(), rows(1).requires_grad_()
    loss = sum(vicreg(a, b, COUNTED, 1e-4).values())
    loss.backward()
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close((found[0][0] + found[1][0]) / 2, loss.detach())
    for number, whole in ((1, a.grad), (2, b.grad)):
        torch.testing.assert_close(torch.cat([part[number] for part in found]) / 2, whole)


class Line(Backbone):
    """A linear map of vectors."""

    modalities = "any"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.map = nn.Linear(4, dim)

    def forward(self, clip: Tensor) -> Features:
        return Features(self.map(clip))


def built(names: str = "abc", **fields: Any) -> VICReg:
    torch.manual_seed(0)
    objective = VICReg(**{"dim": 5, "hidden": 7} | fields)
    objective.build(Encoders({name: Line(3 + i) for i, name in enumerate(names)}, [*names]))
    return objective


def batch(present: dict[str, Tensor]) -> Batch:
    size = len(next(iter(present.values())))
    numbers = torch.arange(size)
    return Batch(numbers, numbers, {}, present, numbers)


def test_pairs_are_weighted_added_and_logged() -> None:
    objective = built(invariance=2.0, variance=3.0, covariance=5.0, pairs=[("a", "b"), ("c", "a")])
    objective.eval()
    features = {n: Features(torch.randn(6, 3 + i)) for i, n in enumerate("abc")}
    present = {n: torch.ones(6, dtype=torch.bool) for n in "abc"}
    present["b"][2] = False
    losses = objective.loss(batch(present), features)
    weights = {"invariance": 2.0, "variance": 3.0, "covariance": 5.0}
    space = objective.embeddings(features)["joint"]
    total = 0.0
    for one, other in (("a", "b"), ("c", "a")):
        both = present[one] & present[other]
        z = [space[name][both].double().detach().numpy() for name in (one, other)]
        for name, value in slow(*z, 1e-4).items():
            assert float(losses.parts[f"{one}-{other}/{name}"]) == pytest.approx(value, rel=1e-4)
            assert losses.counts[f"{one}-{other}/{name}"] == both.sum()
            total += weights[name] * value
    assert losses.total.item() == pytest.approx(total, rel=1e-4)
    assert len(losses.parts) == 6


@pytest.mark.parametrize(
    ("names", "pairs", "reason"),
    [
        ("a", None, "there is only"),
        ("ab", [("a", "x")], "not two of a, b"),
        ("ab", [("a", "a")], "not two of"),
        ("ab", [("a", "b"), ("b", "a")], "twice"),
    ],
)
def test_pairs_that_are_none(names: str, pairs: list | None, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        built(names, pairs=pairs)


def test_the_quickstart_learns(tmp_path: Path) -> None:
    """On unseen videos frozen encoders are better than untrained ones, and than chance."""
    command = [MMSSL, "run", "mmssl_vicreg/quickstart", f"runs={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "vicreg_quickstart/evaluations/linear_probe"
    found = json.loads((folder / "metrics.json").read_text())
    assert found["chance"] == 0.125
    for modality in ("video", "audio"):
        assert found[f"{modality}/top1"] > 0.5
        assert found[f"{modality}/gain"] > 0.1
