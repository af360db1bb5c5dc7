"""AVID: its memory, negatives and NCE as loops, ranks, and runs that go on after a stop."""

import copy
import math
import os
import signal
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from safetensors.torch import load_file, load_model
from test_vatt_objective import DIMS, SOME, data, encoders
from torch import Tensor
from toy_runs import changed, exact, pretraining
from toys import Rows

from mmssl import UserError
from mmssl.contracts import Batch, Features, Losses, Round
from mmssl.data.draws import derive_seed
from mmssl.pretrained.weights import fill
from mmssl.training import distributed
from mmssl.training.encoders import save_weights
from mmssl.training.interruption import Interrupted
from mmssl.training.log import read_log
from mmssl_contrastive.avid import AVID, Memory, negatives

N = 30
ROWS = torch.tensor([3, 7, 11, 0, 29, 14, 5, 6, 8, 9, 20, 21])
PAIR = [("video", "audio")]


class Begun:
    """What a round says that begins with N samples."""

    def __init__(self, size: int = N, resumed: bool = False, seed: int = 5) -> None:
        self.sizes = {"train": size}
        self.resumed = resumed
        self.seed = seed


def built(begin: Begun | None = None, **fields: Any) -> AVID:
    torch.manual_seed(0)
    objective = AVID(**({"dim": 4, "hidden": 7, "negatives": 6, "pairs": PAIR} | fields))
    objective.build(encoders(DIMS))
    objective.begin_round(cast(Round, begin or Begun()))
    return objective


def batch_of(
    present: Tensor, rows: Any = slice(None), seed: int = 1
) -> tuple[Batch, dict[str, Features]]:
    batch, features = data(present, rows=rows, seed=seed)
    batch.index = ROWS[: len(present)][rows]
    return batch, features


def memories(objective: AVID) -> dict[str, list[list[float]]]:
    return {name: cast(Memory, m).rows.tolist() for name, m in objective.memories.items()}


def embedded(objective: AVID, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of length 1, in the precision of the features."""
    found = objective.embeddings({name: Features(leaf) for name, leaf in x.items()})["joint"]
    return {name: e / e.norm(dim=1, keepdim=True) for name, e in found.items()}


def leaves_of(features: dict[str, Features]) -> dict[str, Tensor]:
    return {name: found.pooled for name, found in features.items()}


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


class Slow:
    """AVID row by row in float64, with the formulas as in the paper, N and all."""

    def __init__(self, objective: AVID, tau: float = 0.07, within: float = 0.0) -> None:
        self.objective, self.tau, self.within = copy.deepcopy(objective).double(), tau, within
        self.pairs = objective.pairs
        self.memory = {
            name: [torch.tensor(row).double() for row in rows]
            for name, rows in memories(objective).items()
        }
        self.z: float | None = None

    def step(self, batch: Batch, x: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        embeddings = embedded(self.objective, x)
        others = negatives(batch.seeds, N, 6, batch.index).tolist()
        asked = [(q, k, 0.5 / len(self.pairs)) for p in self.pairs for q, k in (p, p[::-1])]
        if self.within:
            asked += [(name, name, self.within / len(self.memory)) for name in self.memory]
        scores: dict[str, list[tuple[Tensor, list[Tensor]]]] = {}
        for query, key, _ in asked:
            found = scores[f"{query}->{key}"] = []
            for i, row in enumerate(batch.index.tolist()):
                if batch.present[query][i] and batch.present[key][i]:
                    e = [
                        (torch.dot(embeddings[query][i], self.memory[key][j]) / self.tau).exp()
                        for j in (row, *others[i])
                    ]
                    found.append((e[0], e[1:]))
        if self.z is None:
            every = [e.item() for found in scores.values() for _, wrong in found for e in wrong]
            self.z = sum(every) / len(every) * N
        total, parts = torch.zeros(()).double(), {}
        for query, key, weight in asked:
            found = scores[f"{query}->{key}"]
            noise, loss, right = 6 / N, torch.zeros(()).double(), 0
            for positive, wrong in found:
                p = positive / self.z
                loss = loss - (p / (p + noise)).log()
                loss = loss - sum((1 - e / self.z / (e / self.z + noise)).log() for e in wrong)
                right += positive.item() > max(wrong).item()
            loss = loss / max(1, len(found))
            parts[f"{query}->{key}/loss"] = loss.item()
            parts[f"{query}->{key}/accuracy"] = right / max(1, len(found))
            total = total + weight * loss
        for name, memory in self.memory.items():
            for i, row in enumerate(batch.index.tolist()):
                if batch.present[name][i]:
                    new = (memory[row] + embeddings[name][i].detach()) / 2
                    memory[row] = new / torch.dot(new, new).sqrt()
        return total / (1 + self.within), parts


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"temperature": 0.5}, {"within": 0.5},
        {"pairs": None}, {"pairs": None, "within": 0.5},
        {"pairs": [("text", "video"), ("audio", "text")]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("present", [SOME, torch.ones_like(SOME)], ids=["some", "all"])
def test_two_steps_are_those_of_loops(present: Tensor, fields: dict[str, Any]) -> None:
    objective = built(**fields)
    slow = Slow(objective, fields.get("temperature", 0.07), fields.get("within", 0.0))
    for seed in (1, 2):
        batch, features = batch_of(present, seed=seed)
        leaves = leaves_of(features)
        x = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
        expected, parts = slow.step(batch, x)
        losses = objective.loss(batch, features)
        assert losses.total.item() == pytest.approx(expected.item(), rel=1e-4)
        assert {n: float(v) for n, v in losses.parts.items()} == pytest.approx(parts, rel=1e-4)
        assert set(losses.counts) == set(losses.parts)
        for name, rows in memories(objective).items():
            torch.testing.assert_close(torch.tensor(rows), torch.stack(slow.memory[name]).float())
        losses.total.backward()
        expected.backward()
        for name in slow.memory:
            ours, theirs = leaves[name].grad, x[name].grad
            assert ours is not None
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-5)
    for mine, exact_one in zip(
        objective.parameters(), slow.objective.parameters(), strict=True
    ):  # both steps'
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad.double(), exact_one.grad, rtol=1e-3, atol=1e-5)
    assert objective.log_z.item() == pytest.approx(math.log(cast(float, slow.z) / N), rel=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.2}, {"momentum": 0.9}, {"negatives": 9}, {"within": 1.0},
        {"pairs": None}, {"depth": 1}, {"dim": 5}, {"hidden": 9},
    ],
)  # fmt: skip
def test_each_field_matters(fields: dict[str, Any]) -> None:
    found = []
    for one in (built(), built(**fields)):
        one.loss(*batch_of(SOME))
        found.append(one.loss(*batch_of(SOME, seed=2)).total.item())
    assert found[0] != pytest.approx(found[1], rel=1e-3)


# Negatives


@settings(deadline=None)
@given(st.integers(2, 50), st.integers(1, 20), st.integers(0, 2**40))
def test_negatives_are_others(size: int, number: int, seed: int) -> None:
    seeds = seed + torch.arange(8)
    rows = torch.arange(8) % size
    drawn = negatives(seeds, size, number, rows)
    assert drawn.shape == (8, number)
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < size
    assert not (drawn == rows[:, None]).any()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(negatives(seeds[order], size, number, rows[order]), drawn[order])


def test_every_other_row_is_drawn_as_often() -> None:
    drawn = negatives(torch.arange(2000), 5, 50, torch.full((2000,), 2))
    counts = torch.bincount(drawn.flatten(), minlength=5).double() / drawn.numel()
    assert counts.tolist() == pytest.approx([0.25, 0.25, 0, 0.25, 0.25], abs=0.01)
    alone = negatives(torch.arange(2000), 5, 50, None)
    counts = torch.bincount(alone.flatten(), minlength=5).double() / alone.numel()
    assert counts.tolist() == pytest.approx([0.2] * 5, abs=0.01)


def test_more_rows_than_a_draw_has_values_are_all_within_reach() -> None:
    drawn = negatives(torch.arange(200), 2**31, 50, None)
    assert (drawn % 2**7 != 0).any(), "24 bits would reach every 128th row only"
    assert len(drawn.unique()) > 9990


# Memory


def test_memories_begin_as_directions_by_the_seed() -> None:
    one, again, other = built(), built(), built(Begun(seed=6))
    for name, rows in memories(one).items():
        assert len(rows) == N
        assert [dot(row, row) for row in rows] == pytest.approx([1.0] * N, abs=1e-5)
        assert rows == memories(again)[name]
        assert rows != memories(other)[name]
    assert memories(one)["video"] != memories(one)["audio"]


def test_of_a_row_that_stands_in_a_batch_twice_the_last_is_remembered() -> None:
    memory = Memory(2)
    memory.begin(3, seed=0)
    before = memory.rows.clone()
    index, there = torch.tensor([1, 1, 1, 2]), torch.tensor([True, True, False, False])
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])
    memory.update(index, there, vectors, momentum=0.0)
    assert memory.rows[1].tolist() == [0, 1]
    assert torch.equal(memory.rows[[0, 2]], before[[0, 2]])


def test_measuring_changes_no_memory_and_no_normaliser() -> None:
    objective = built()
    objective.loss(*batch_of(SOME))
    state = copy.deepcopy(objective.state_dict())
    objective.eval().loss(*batch_of(SOME, seed=2))
    torch.testing.assert_close(objective.state_dict(), state, rtol=0, atol=0)


@torch.no_grad()
def test_validation_samples_are_told_from_memories_by_their_other_half() -> None:
    objective = built(within=0.5)
    objective.loss(*batch_of(SOME))
    objective.eval()
    batch, features = batch_of(torch.ones_like(SOME), seed=3)
    batch.split, batch.index = "validation", batch.index + 1000
    losses = objective.loss(batch, features)
    assert {name.partition("/")[0] for name in losses.parts} == {"video->audio", "audio->video"}
    z = {name: e.tolist() for name, e in embedded(objective, leaves_of(features)).items()}
    memory = memories(objective)
    others = negatives(batch.seeds, N, 6, None).tolist()
    mean, total = math.exp(objective.log_z), 0.0
    for query, key in (("video", "audio"), ("audio", "video")):
        for i in range(len(batch)):
            e = math.exp(dot(z[query][i], z[key][i]) / 0.07)
            loss = -math.log(e / (e + 6 * mean))
            for j in others[i]:
                e = math.exp(dot(z[query][i], memory[key][j]) / 0.07)
                loss -= math.log(6 * mean / (e + 6 * mean))
            total += loss / len(batch) / 2
    assert losses.total.item() == pytest.approx(total, rel=1e-4)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4))
def test_gradients_are_finite_for_any_presence(rows: list[list[bool]]) -> None:
    present = torch.tensor(rows)
    objective = built(pairs=None, within=1.0)
    for seed in (1, 2):
        batch, features = batch_of(present, seed=seed)
        losses = objective.loss(batch, features)
        losses.total.backward()
        assert losses.total.isfinite()
        for name in DIMS:
            gradient = features[name].pooled.grad
            assert gradient.isfinite().all()
            assert not gradient[~batch.present[name]].any()
    for memory in memories(objective).values():
        assert torch.tensor(memory).isfinite().all()
    # Unknown until a sample counts, which within modalities any does.
    assert objective.log_z.isnan().item() == (not present.any())


def test_samples_that_cannot_be_told_apart() -> None:
    with pytest.raises(UserError, match="avid tells samples apart, and there is 1"):
        built(Begun(1))


def test_the_plan_says_what_memories_take() -> None:
    (table,) = built().plan(samples=240_000, ranks=2)
    assert table.rows == [["video", 240_000, "3.7"], ["audio", 240_000, "3.7"]]


# State


def test_a_state_is_loaded_whatever_its_length(tmp_path: Path) -> None:
    objective = built()
    objective.loss(*batch_of(SOME))
    fresh = AVID(dim=4, hidden=7, negatives=6, pairs=PAIR)
    fresh.build(encoders(DIMS))
    fresh.load_state_dict(objective.state_dict())
    torch.testing.assert_close(fresh.state_dict(), objective.state_dict())
    fresh.begin_round(cast(Round, Begun(resumed=True)))
    assert memories(fresh) == memories(objective)
    # The first checkpoint of a run is from before its memories.
    empty = AVID(dim=4, hidden=7, negatives=6, pairs=PAIR)
    empty.build(encoders(DIMS))
    fresh.load_state_dict(empty.state_dict())
    assert memories(fresh) == {"video": [], "audio": []}
    other = AVID(dim=5, hidden=7, pairs=PAIR)
    other.build(encoders(DIMS))
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(objective.state_dict())


def test_what_is_kept_after_training_has_no_memories(tmp_path: Path) -> None:
    objective = built()
    batch, features = batch_of(SOME)
    objective.loss(batch, features)
    objective.finish()
    save_weights(objective, tmp_path / "objective.safetensors")
    tensors = load_file(tmp_path / "objective.safetensors")
    assert [t.shape for n, t in tensors.items() if "memories" in n] == [(0, 4), (0, 4)]
    for load in (
        lambda one: fill(one, tensors, tmp_path / "objective.safetensors"),
        lambda one: load_model(one, tmp_path / "objective.safetensors"),
    ):
        fresh = AVID(dim=4, hidden=7, negatives=6, pairs=PAIR)
        fresh.build(encoders(DIMS))
        load(fresh)
        x = leaves_of(features)
        torch.testing.assert_close(embedded(fresh, x), embedded(objective, x), rtol=0, atol=0)


# Ranks


def computed(present: Tensor, fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Two steps of this rank's part of a batch, gradients averaged as DDP does."""
    objective = built(**fields)
    found = []
    for seed in (1, 2):
        objective.zero_grad()
        batch, features = batch_of(present, [*distributed.share(len(present))], seed)
        losses = objective.loss(batch, features)
        losses.total.backward()
        found.append(
            {
                "total": distributed.mean(losses.total),
                "parts": {name: distributed.mean(part) for name, part in losses.parts.items()},
                "parameters": [distributed.mean(p.grad) for p in objective.parameters()],
                "memories": memories(objective),
                "log_z": objective.log_z.clone(),
            }
        )
    return found


HALF = SOME.clone()
HALF[:6, 1] = False


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("present", "fields"), [(SOME, {"within": 1.0}), (HALF, {})])
def test_ranks_compute_what_one_process_does(
    size: int, present: Tensor, fields: dict[str, Any]
) -> None:
    one = computed(present, fields)
    found = on_ranks(size, computed, present, fields)
    for f in found:
        torch.testing.assert_close(f, one, rtol=1e-4, atol=1e-6)
        assert f[1]["memories"] == found[0][1]["memories"], "to the last bit"


# Whole runs, of which rows 20 to 24 have no sound and row 11 is damaged

RUN = changed(batch_size=12, epoch_size=48, accumulate=2, log_every=1, checkpoint_steps=3)


def run(folder: Path, stop_at: int | None = None) -> dict[str, Any]:
    """A run on this rank, or until a signal comes to its last rank before a step."""
    one = pretraining(
        folder,
        settings=RUN,
        objective=AVID(dim=6, hidden=8, negatives=5, within=0.5),
        data=Rows(61, bad=[11], without={"b": [20, 21, 22, 23, 24]}),
        validation=Rows(17, bad=[3], without={"a": [5]}),
        epochs=2,
        dropout=0.0,
    )
    step, last = one.step, distributed.size() - 1

    def stepping(batch: Batch, factor: float) -> Losses:
        if one.state.global_step == stop_at and distributed.rank() == last:
            os.kill(os.getpid(), signal.SIGUSR2)
        return step(batch, factor)

    one.step = stepping  # type: ignore[method-assign]
    try:
        one.run()
        stopped = False
    except Interrupted:
        stopped = True
    return {"stopped": stopped, "encoders": one.encoders.state_dict()}


def saved(folder: Path) -> dict[str, Tensor]:
    """The objective in a run's last checkpoint."""
    newest = max((folder / "checkpoints").glob("step-*.pt"))
    return dict(torch.load(newest, weights_only=True)["objective"])


def log(folder: Path) -> list[dict[str, Any]]:
    return [exact(record) for record in read_log(folder)]


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    assert not run(tmp_path / "whole")["stopped"]
    assert run(tmp_path / "cut", stop_at=0)["stopped"]
    assert run(tmp_path / "cut", stop_at=4)["stopped"]
    run(tmp_path / "cut")
    assert log(tmp_path / "cut") == log(tmp_path / "whole")
    state = saved(tmp_path / "whole")
    torch.testing.assert_close(saved(tmp_path / "cut"), state, rtol=0, atol=0)
    # After 96 of 61 samples all have been seen, but for those without sound and the damaged one.
    for name, unseen in (("a", {11}), ("b", {11, 20, 21, 22, 23, 24})):
        began = Memory(6)
        began.begin(61, derive_seed(derive_seed(RUN.seed, "round", 1), "memory", name))
        same = (state[f"memories.{name}.rows"] == began.rows).all(1)
        assert set(same.nonzero().flatten().tolist()) == unseen


def test_runs_on_ranks_have_the_log_of_one(tmp_path: Path) -> None:
    one = run(tmp_path / "one")
    assert all(f["stopped"] for f in on_ranks(2, run, tmp_path / "ranks", 3))
    for f in on_ranks(3, run, tmp_path / "ranks"):
        torch.testing.assert_close(f["encoders"], one["encoders"], rtol=1e-3, atol=1e-4)
    states = [saved(tmp_path / name) for name in ("ranks", "one")]
    torch.testing.assert_close(states[0], states[1], rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(log(tmp_path / "ranks"), log(tmp_path / "one"), strict=True):
        assert ours.pop("kind") == theirs.pop("kind")
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


def test_it_learns_which_sound_is_whose() -> None:
    """A few dozen passes over twelve samples: memories are told apart."""
    objective = built(Begun(len(SOME)), dim=16, hidden=32)
    batch, features = batch_of(torch.ones_like(SOME))
    batch.index = torch.arange(len(batch))
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.01)
    totals = []
    for step in range(120):
        batch.seeds = batch.index + 100 * step
        optimizer.zero_grad()
        losses = objective.loss(batch, features)
        losses.total.backward()
        optimizer.step()
        totals.append(losses.total.item())
    assert totals[-1] < 0.2 * totals[0]
    assert losses.parts["video->audio/accuracy"].item() > 0.9


def test_a_finished_run_keeps_no_memories(tmp_path: Path) -> None:
    run(tmp_path / "run")
    tensors = load_file(tmp_path / "run" / "checkpoints" / "objective.safetensors")
    assert {t.shape for n, t in tensors.items() if "memories" in n} == {(0, 6)}
    assert saved(tmp_path / "run")["memories.a.rows"].shape == (61, 6)
    before = log(tmp_path / "run")
    run(tmp_path / "run")  # again, from its last checkpoint, with nothing left to do
    assert log(tmp_path / "run") == before
