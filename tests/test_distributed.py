"""Several ranks compute what one process does: collectives, BatchNorm, gradients, whole runs."""

import json
import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import RankFailed, on_ranks
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from toy_runs import changed, pretraining, same_log
from toys import Agreement, Perceptron, Rows

from mmssl.contracts import Batch, Features, Losses, Objective
from mmssl.errors import UserError
from mmssl.training import checkpoints, distributed
from mmssl.training.batch_norm import synchronise, uncounted
from mmssl.training.distributed import Place, place
from mmssl.training.encoders import Encoders
from mmssl.training.interruption import Interrupted
from mmssl.training.log import read_log
from mmssl_clustering.objectives import CDC, MDC, SDC, XDC
from mmssl_evaluators.supervised import Supervised

SIZES = (2, 3)


# Where a process stands


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [n for n in os.environ if n.startswith(("SLURM_", "SUBMITIT_", "MASTER_"))]:
        monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def given(patch: pytest.MonkeyPatch, **variables: object) -> Place:
    for name, value in variables.items():
        patch.setenv(name, str(value))
    return place()


def test_a_process_alone(nowhere: pytest.MonkeyPatch) -> None:
    assert place() == Place(0, 1, 0, 1)


def test_under_torchrun(nowhere: pytest.MonkeyPatch) -> None:
    found = given(
        nowhere, RANK=5, WORLD_SIZE=8, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4, MASTER_ADDR="a",
        MASTER_PORT=29500,
    )  # fmt: skip
    assert found == Place(5, 8, 1, 4, "a", 29500)


def test_in_local_processes_of_submitit(nowhere: pytest.MonkeyPatch) -> None:
    found = given(
        nowhere, SUBMITIT_EXECUTOR="local", SUBMITIT_LOCAL_NTASKS=2, SUBMITIT_LOCAL_GLOBALID=1,
        MASTER_PORT=29501,
    )  # fmt: skip
    assert found == Place(1, 2, 1, 2, "127.0.0.1", 29501)


SRUN = {
    "SLURM_JOB_ID": 71,
    "SLURM_STEP_ID": 0,
    "SLURM_JOB_NODELIST": "gpu[01-05]",
    "SLURM_STEP_NODELIST": "gpu[03-05]",
    "SLURM_PROCID": 4,
    "SLURM_LOCALID": 0,
    "SLURM_NODEID": 2,
    "SLURM_STEP_NUM_TASKS": 5,
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
}


def test_in_a_step_of_srun(nowhere: pytest.MonkeyPatch) -> None:
    found = given(nowhere, **SRUN)
    assert (found.rank, found.size, found.local_rank, found.local_size) == (4, 5, 0, 1)
    assert found.address == "gpu03"
    assert 20_000 <= found.port < 32_000
    nowhere.setenv("SLURM_JOB_ID", "72")
    assert place().port != found.port, "two jobs that share a machine"


def test_a_batch_script_is_one_process_however_many_tasks_it_may_start(
    nowhere: pytest.MonkeyPatch,
) -> None:
    variables = {name: value for name, value in SRUN.items() if "STEP" not in name}
    assert given(nowhere, **variables, SLURM_NTASKS=5).size == 1


# What ranks tell each other


def collectives() -> dict[str, Any]:
    rank = distributed.rank()
    rows = np.arange(3 * rank, dtype=np.float32).reshape(rank, 3 if rank else 0) + 100 * rank
    order: list[str] = []
    return {
        "share": distributed.share(7),
        "maximum": distributed.maximum([rank, -rank, 5]),
        "total": distributed.total(torch.tensor([1.0, float(rank)])),
        "mean": distributed.mean(torch.tensor(float(rank))),
        "collect": distributed.collect(rows),
        "objects": distributed.share_objects({"rank": rank}),
        "on_main": distributed.on_main(lambda: f"from {distributed.rank()}"),
        "main_first": (
            distributed.main_first(lambda: order.append("called") or distributed.rank()),
            order,
        ),
    }


@pytest.mark.parametrize("size", SIZES)
def test_collectives(size: int) -> None:
    found = on_ranks(size, collectives)
    assert [row for f in found for row in f["share"]] == list(range(7))
    expected = np.concatenate(
        [np.arange(3 * r, dtype=np.float32).reshape(r, 3) + 100 * r for r in range(1, size)]
    )
    np.testing.assert_array_equal(found[0]["collect"], expected)
    for rank, f in enumerate(found):
        assert f["maximum"] == [size - 1, 0, 5]
        assert f["total"].tolist() == [size, sum(range(size))]
        assert float(f["mean"]) == sum(range(size)) / size
        assert f["objects"] == [{"rank": r} for r in range(size)]
        assert f["on_main"] == "from 0"
        assert f["main_first"] == (rank, ["called"])
        assert rank == 0 or f["collect"] is None


def test_alone_they_do_nothing() -> None:
    found = collectives()
    assert found["share"] == range(7)
    assert found["maximum"] == [0, 0, 5]
    assert found["main_first"] == (0, ["called"])


def mistake_on(rank: int, through_main: bool) -> None:
    def mistaken() -> None:
        if distributed.rank() == rank:
            raise UserError("recipe.yaml:3: no such thing")

    if through_main:
        distributed.on_main(mistaken)
    mistaken()
    distributed.maximum([1])  # the others wait here


@pytest.mark.parametrize(("rank", "through_main"), [(0, True), (0, False), (1, False)])
def test_a_mistake_on_one_rank_is_told_by_rank_0(rank: int, through_main: bool) -> None:
    with pytest.raises(RankFailed) as raised:
        on_ranks(2, mistake_on, rank, through_main)
    assert "no such thing" in raised.value.errors[0]
    assert all(error.startswith("UserError") for error in raised.value.errors)


# Gradients through what was gathered


def info_nce(first: Tensor, second: Tensor, every: Tensor, offset: int) -> Tensor:
    """Each row of ``first`` finds its partner among all of ``every``."""
    logits = normalize(first, dim=1) @ normalize(every, dim=1).T / 0.1
    return cross_entropy(logits, offset + torch.arange(len(first)))


def contrast(rows: Tensor, weight: Tensor) -> tuple[float, Tensor]:
    """The loss and the gradient of a projection, from this rank's rows."""
    own = rows[[*distributed.share(len(rows))]]
    weight = weight.clone().requires_grad_()
    first, second = own[:, 0] @ weight, own[:, 1] @ weight
    every = distributed.gather(second)
    loss = info_nce(first, second, every, distributed.rank() * len(own))
    loss.backward()
    assert weight.grad is not None
    return float(distributed.mean(loss.detach())), distributed.mean(weight.grad)  # as DDP does


@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_a_contrastive_loss_are_those_of_one_process(size: int) -> None:
    torch.manual_seed(0)
    rows, weight = torch.randn(12, 2, 5), torch.randn(5, 4)
    loss, gradient = contrast(rows, weight)
    for found, theirs in on_ranks(size, contrast, rows, weight):
        assert found == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(theirs, gradient, rtol=1e-5, atol=1e-7)


# BatchNorm


class Activated(nn.BatchNorm2d):
    """A library's BatchNorm that does more than torch's."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


KINDS = {
    "1d": (nn.BatchNorm1d, (4,)),
    "1d, in time": (nn.BatchNorm1d, (4, 6)),
    "2d": (nn.BatchNorm2d, (4, 3, 5)),
    "3d": (nn.BatchNorm3d, (4, 2, 3, 3)),
    "subclass": (Activated, (4, 3, 5)),
    "no parameters": (partial(nn.BatchNorm2d, affine=False), (4, 3, 5)),
    "mean of all steps": (partial(nn.BatchNorm2d, momentum=None), (4, 3, 5)),
}


def normalised(kind: str, lengths: tuple[int, ...], whole: bool) -> dict[str, Any]:
    """Two steps of a BatchNorm on this rank's rows, or on all of them in one process."""
    make, shape = KINDS[kind]
    torch.manual_seed(1)
    layer = make(4)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 1.0, 0.5)
    rows = 3.0 + 2.0 * torch.randn(sum(lengths), *shape)
    weights = torch.randn(sum(lengths), *shape)
    keys = list(layer.state_dict())
    if not whole:
        synchronise(layer)
    assert list(layer.state_dict()) == keys
    start = sum(lengths[: distributed.rank()])
    own = slice(None) if whole else slice(start, start + lengths[distributed.rank()])
    x = rows[own].clone().requires_grad_()
    for _ in range(2):
        layer.zero_grad()
        x.grad = None
        if len(x):
            y = layer(x)
            (y * weights[own]).sum().backward()
        else:
            with uncounted():
                y = layer(torch.zeros(1, *shape, requires_grad=True))
            (y * 0).sum().backward()
    gradients = [distributed.total(p.grad) for p in layer.parameters() if p.grad is not None]
    return {
        "y": y.detach()[: len(x)],
        "gradient": torch.zeros(0, *shape) if x.grad is None else x.grad,
        "parameters": gradients,
        "state": layer.state_dict(),
        "eval": layer.eval()(rows).detach(),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(4, 4), (5, 1, 2), (0, 6)])
def test_batch_norm_over_ranks_is_that_of_one_process(kind: str, lengths: tuple[int, ...]) -> None:
    one = normalised(kind, lengths, whole=True)
    found = on_ranks(len(lengths), normalised, kind, lengths, False)
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    close(torch.cat([f["y"] for f in found]), one["y"])
    close(torch.cat([f["gradient"] for f in found]), one["gradient"])
    for f in found:
        close(f["state"], one["state"])
        close(f["eval"], one["eval"])
        close(f["parameters"], one["parameters"])


def without_rows(rows: int) -> dict[str, Any]:
    """Rank 1 has rows, rank 0 has none, and both go through a BatchNorm all the same."""
    torch.manual_seed(3)
    layer = nn.BatchNorm2d(3)
    synchronise(layer)
    x = torch.randn(rows, 3, 4, 4)[: rows * distributed.rank()].requires_grad_()
    y = layer(x)
    (y**3).sum().backward()
    return {"y": y.detach(), "gradient": x.grad, "mean": layer.running_mean}


def test_batch_norm_where_a_rank_has_no_row() -> None:
    torch.manual_seed(3)
    layer = nn.BatchNorm2d(3)
    x = torch.randn(5, 3, 4, 4).requires_grad_()
    y = layer(x)
    (y**3).sum().backward()
    empty, full = on_ranks(2, without_rows, 5)
    assert len(empty["y"]) == len(empty["gradient"]) == 0
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    close(full["y"], y.detach())
    close(full["gradient"], x.grad)
    close(empty["mean"], layer.running_mean)


def measured(rows: int) -> int:
    layer = nn.BatchNorm2d(3, track_running_stats=False)
    synchronise(layer)
    layer.eval()
    for _ in range(2 + distributed.rank()):  # ranks measure different numbers of batches
        layer(torch.randn(rows, 3, 4, 4))
    return distributed.maximum([distributed.rank()])[0]


def test_batch_norm_in_eval_meets_nobody() -> None:
    assert on_ranks(2, measured, 4) == [1, 1]


# Encoders where modalities are missing


def encoded(masks: list[list[bool]]) -> dict[str, Any]:
    torch.manual_seed(2)
    encoders = Encoders({"a": Perceptron(dropout=0.0), "b": Perceptron(dropout=0.0)}, ["a", "b"])
    for layer in encoders.modules():
        if isinstance(layer, nn.BatchNorm1d):
            nn.init.normal_(layer.bias)  # a lonely row is exactly at it, where a ReLU may bend
    if distributed.size() > 1:
        synchronise(encoders)
    mask = torch.tensor(masks).T  # [modality, row]
    clips = {name: torch.randn(mask.shape[1], 8) for name in ("a", "b")}
    weights = torch.randn(mask.shape[1], 16)
    own = [*distributed.share(mask.shape[1])]
    present = {"a": mask[0, own], "b": mask[1, own]}
    for name in clips:
        clips[name] = torch.where(mask["ab".index(name)][:, None], clips[name], 0.0)[own]
    features = encoders(clips, present)
    sum((f.pooled * weights[own]).sum() for f in features.values()).backward()
    return {
        "pooled": {name: f.pooled.detach() for name, f in features.items()},
        "gradients": [distributed.total(p.grad) for p in encoders.parameters()],
        "state": encoders.state_dict(),
    }


@pytest.mark.parametrize(
    "absent",
    [{"b": [0, 1, 2]}, {"b": [0, 1, 2, 4, 5]}, {"a": [3], "b": [0, 1, 2, 3, 4, 5]}],
    ids=["on a whole rank", "all but one row", "everywhere"],
)
def test_encoders_train_alike_whatever_is_missing_where(absent: dict[str, list[int]]) -> None:
    masks = [[row not in absent.get(name, []) for name in "ab"] for row in range(6)]
    one = encoded(masks)
    for size in SIZES:
        found = on_ranks(size, encoded, masks)
        close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
        for name in "ab":
            close(torch.cat([f["pooled"][name] for f in found]), one["pooled"][name])
        for f in found:
            # A lonely row has no variance, and rounding errors are divided by sqrt(eps).
            torch.testing.assert_close(f["gradients"], one["gradients"], rtol=1e-4, atol=3e-4)
            close(f["state"], one["state"])


# Whole runs

OBJECTIVES = {
    "sdc": lambda: SDC(rounds=2, clusters=4, normalize="standardize_l2", balance=True),
    "mdc": lambda: MDC(rounds=2, clusters=4, points_per_centroid=5),
    "cdc": lambda: CDC(rounds=2, clusters=4, points_per_centroid=5),
    "xdc": lambda: XDC(rounds=2, clusters={"a": 4, "b": 3}, kmeans_restarts=2),
    "supervised": lambda: Supervised(classes=3, label_smoothing=0.1),
    "agreement": Agreement,
}

# 61 rows, which neither 2 nor 3 divides; row 11 is damaged; rows 20 to 24 have no sound.
DATA = Rows(61, bad=[11], without={"b": [20, 21, 22, 23, 24]})
VALIDATION = Rows(17, bad=[3], without={"a": [5]})
# Rows that are compared with each other must meet the same others on any number of ranks.
SHARED_VALIDATION = Rows(18, bad=[3], without={"a": [5]})
RUN = changed(
    batch_size=12, epoch_size=48, accumulate=2, lr_batch=None, log_every=1, checkpoint_steps=3
)


def run(folder: Path, objective: str, stop_at: int | None = None, **options: Any) -> dict[str, Any]:
    """A run on this rank, or until a signal comes to its last rank before a step."""
    one = pretraining(
        folder, settings=RUN, objective=OBJECTIVES[objective](), data=DATA, dropout=0.0, epochs=1,
        validation=SHARED_VALIDATION if objective == "contrast" else VALIDATION, **options,
    )  # fmt: skip
    step, last = one.step, distributed.size() - 1

    def stepping(batch: Batch, factor: float) -> Losses:
        if one.state.global_step == stop_at and distributed.rank() == last:
            os.kill(os.getpid(), signal.SIGUSR2)
        return step(batch, factor)

    one.step = stepping  # type: ignore[method-assign]
    interrupted = None
    try:
        one.run()
    except Interrupted as stopped:
        interrupted = one.state.global_step, stopped.again
    gradients = [p.grad.clone() for p in one.encoders.parameters() if p.grad is not None]
    return {
        "interrupted": interrupted,
        "encoders": one.encoders.state_dict(),
        "gradients": gradients,
        "skipped": len(one.skipped),
        "position": one.state.position,
    }


def named(folder: Path) -> list[str]:
    """The samples in a run's ledger."""
    lines = (folder / "skipped.jsonl").read_text().splitlines()
    return sorted(json.loads(line)["id"] for line in lines)


def clusters(folder: Path) -> dict[str, np.ndarray]:
    return {
        str(path.relative_to(folder)): np.load(path)
        for path in sorted(folder.glob("clusters/*/*.npy"))
    }


def same_clusters(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        if array.dtype == np.int32:
            np.testing.assert_array_equal(found[name], array, err_msg=name)
        else:
            np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ranks_train_as_one_process(tmp_path: Path, objective: str) -> None:
    one = run(tmp_path / "one", objective)
    for size in SIZES:
        folder = tmp_path / str(size)
        found = on_ranks(size, run, folder, objective)
        same_log(read_log(folder), read_log(tmp_path / "one"))
        same_clusters(clusters(folder), clusters(tmp_path / "one"))
        for f in found:  # every rank holds the same parameters, and those of one process
            torch.testing.assert_close(f["encoders"], one["encoders"], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(f["gradients"], one["gradients"], rtol=1e-3, atol=1e-5)
        assert {f["skipped"] for f in found} == {one["skipped"]}
        assert named(folder) == named(tmp_path / "one"), "each once"
        assert "row3" in named(folder)
        assert not [*folder.rglob(".*"), *folder.rglob("labelling")]


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    one = run(whole, "xdc")
    folder = tmp_path / "run"
    stopped = on_ranks(2, run, folder, "xdc", 2)
    assert [s["interrupted"] for s in stopped] == [(3, True), (3, True)]
    # From 2 ranks to 3, and stopped again in the second round, then to 1.
    stopped = on_ranks(3, run, folder, "xdc", 5)
    assert [s["interrupted"] for s in stopped] == [(6, True)] * 3
    last = run(folder, "xdc")
    same_log(read_log(folder), read_log(whole))
    same_clusters(clusters(folder), clusters(whole))
    assert last["position"] == one["position"]
    torch.testing.assert_close(last["encoders"], one["encoders"], rtol=1e-3, atol=1e-4)


def signalled_while_waiting(folder: Path) -> tuple[int, bool] | None:
    """A signal comes to rank 0 while it waits for the others' word at the end of a step."""
    maximum, calls = distributed.maximum, 0

    def waiting(values: Sequence[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 3 and distributed.rank() == 0:
            os.kill(os.getpid(), signal.SIGUSR2)  # its own word is given already
        return maximum(values)

    distributed.maximum = waiting
    return run(folder, "agreement")["interrupted"]


def test_a_signal_while_ranks_decide_is_not_lost(tmp_path: Path) -> None:
    assert on_ranks(2, signalled_while_waiting, tmp_path / "run") == [(4, True), (4, True)]


def resumed_from(folder: Path, hidden: str) -> int:
    """A run whose rank 1 does not see the newest checkpoint yet, as on a shared file system."""
    one = pretraining(folder, settings=RUN, objective=OBJECTIVES["agreement"](), data=DATA)
    if distributed.rank() == 1:
        listing = checkpoints._numbered
        checkpoints._numbered = lambda path: [f for f in listing(path) if f[1].name != hidden]
    steps: list[int] = []
    step = one.step
    one.step = lambda *a: steps.append(one.state.global_step) or step(*a)  # type: ignore
    one.run()
    return steps[0]


def test_all_ranks_resume_from_the_checkpoint_of_rank_0(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run_on_one(folder, stop_at=6) == (7, True)
    newest = sorted((folder / "checkpoints").glob("step-*.pt"))[-1].name
    assert on_ranks(2, resumed_from, folder, newest) == [7, 7]


def run_on_one(folder: Path, stop_at: int) -> tuple[int, bool] | None:
    one = pretraining(folder, settings=RUN, objective=OBJECTIVES["agreement"](), data=DATA)
    step = one.step

    def stepping(batch: Batch, factor: float) -> Losses:
        if one.state.global_step == stop_at:
            os.kill(os.getpid(), signal.SIGUSR2)
        return step(batch, factor)

    one.step = stepping  # type: ignore[method-assign]
    try:
        one.run()
    except Interrupted as stopped:
        return one.state.global_step, stopped.again
    return None


def stepped(folder: Path, halves: bool) -> dict[str, Any]:
    """Gradients of a step; in one process as the mean over halves of the batch, one by one."""
    one = pretraining(
        folder,
        settings=changed(batch_size=12, sync_batch_norm=False),
        objective=Agreement(),
        data=Rows(48, without={"b": [*range(0, 48, 3), 1, 2]}),
        epochs=1,
        dropout=0.0,
    )
    if halves:
        (loaded,) = one.batches(1, ())
        one.train_mode()
        for half in loaded.batch.chunk(2):
            (one._forward(half, augment=True).total / 2).backward()
        return {"gradients": [p.grad for p in one.encoders.parameters()]}
    gradients = []
    step = one.step

    def first(batch: Batch, factor: float) -> Losses:
        losses = step(batch, factor)
        gradients.append([p.grad.clone() for p in one.encoders.parameters()])
        return losses

    one.step = first  # type: ignore[method-assign]
    one.run()
    return {"gradients": gradients[0], "weights": one.encoders.state_dict()}


def test_ranks_that_normalise_each_for_itself(tmp_path: Path) -> None:
    expected = stepped(tmp_path / "halves", True)["gradients"]
    found = on_ranks(2, stepped, tmp_path / "run", False)
    torch.testing.assert_close(found[0]["gradients"], expected, rtol=1e-4, atol=1e-6)
    # Also the statistics, with which ranks go on together: they are those of rank 0.
    torch.testing.assert_close(found[0]["weights"], found[1]["weights"])


class Contrast(Objective):
    """An objective whose rows all meet: what the helper that gathers is for."""

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        a, b = features["a"].pooled, features["b"].pooled
        every = distributed.gather(b)
        return Losses(info_nce(a, b, every, distributed.rank() * len(a)))


class Picky(Objective):
    """A loss that leaves a modality out where few rows have it."""

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        total = features["a"].pooled.square().mean()
        if distributed.rank() == 0:
            total = total + features["b"].pooled.square().mean()
        return Losses(total)


OBJECTIVES["contrast"] = Contrast


def picked(folder: Path) -> int:
    one = pretraining(folder, settings=changed(batch_size=12), objective=Picky(), data=Rows(48))
    one.run()
    return one.state.global_step


def test_a_loss_may_leave_a_modality_out_on_a_rank(tmp_path: Path) -> None:
    assert on_ranks(2, picked, tmp_path / "run") == [8, 8]


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [({"freeze_encoders": True}, 1e-3), ({"precision": "bf16"}, 0.05)],
    ids=["frozen", "bf16"],
)
def test_settings_of_training_on_ranks(
    tmp_path: Path, settings: dict[str, Any], tolerance: float
) -> None:
    set_up(tmp_path / "one", settings)
    found = on_ranks(2, set_up, tmp_path / "two", settings)
    torch.testing.assert_close(found[0], found[1])
    for ours, theirs in zip(read_log(tmp_path / "two"), read_log(tmp_path / "one"), strict=True):
        if ours["kind"] == "step":
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=tolerance)


def set_up(folder: Path, settings: dict[str, Any]) -> dict[str, Tensor]:
    one = pretraining(
        folder,
        settings=changed(batch_size=12, **settings),
        objective=Supervised(classes=3),
        data=Rows(48),
        epochs=1,
        dropout=0.0,
    )
    one.run()
    return one.encoders.state_dict()


def early(folder: Path) -> int:
    """A run whose learning rate is so high that the validation loss soon rises."""
    one = pretraining(
        folder,
        settings=changed(early_stop=1, batch_size=12, make_optimizer=RISING),
        objective=Supervised(classes=3),
        data=Rows(48),
        validation=Rows(17),
        epochs=8,
        dropout=0.0,
    )
    one.run()
    return len([r for r in read_log(folder) if r["kind"] == "step"])


def _rising(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.7)


RISING = _rising


def test_ranks_stop_early_together(tmp_path: Path) -> None:
    steps = early(tmp_path / "one")
    assert steps < 8 * 4
    assert on_ranks(2, early, tmp_path / "two") == [steps, steps]


def unreadable(folder: Path) -> None:
    pretraining(folder, settings=changed(batch_size=12), data=Rows(48, bad=range(20, 48))).run()


def test_too_many_unreadable_samples_stop_every_rank(tmp_path: Path) -> None:
    with pytest.raises(RankFailed) as raised:
        on_ranks(2, unreadable, tmp_path / "run")
    assert "samples cannot be read, more than data.max_bad" in raised.value.errors[0]


def collapsed(folder: Path) -> None:
    objective = XDC(rounds=1, clusters=4, collapse_below=10.0)  # which 4 clusters never reach
    pretraining(folder, settings=changed(batch_size=12), objective=objective, data=Rows(48)).run()


def test_clusters_that_collapsed_stop_every_rank(tmp_path: Path) -> None:
    with pytest.raises(RankFailed) as raised:
        on_ranks(2, collapsed, tmp_path / "run")
    assert all("have collapsed in round 1" in error for error in raised.value.errors)
    assert not read_log(tmp_path / "run"), "no step was taken"
