"""VATT's pretraining as a whole: heads by formula, absent rows, fields, ranks, retrieval."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from test_vatt_losses import slow
from torch import Tensor
from toy_runs import changed, exact, pretraining
from toys import Rows

from mmssl import Backbone, UserError
from mmssl.contracts import Batch, Features
from mmssl.training import distributed
from mmssl.training.batch_norm import synchronise
from mmssl.training.encoders import Encoders
from mmssl.training.log import read_log
from mmssl_vatt.losses import Pairs
from mmssl_vatt.narrations import Narrations
from mmssl_vatt.objective import VATT

DIMS = {"video": 6, "audio": 4, "text": 5}
SIZES = {"fine_dim": 8, "coarse_dim": 3}
TEXTS = 5


class Sized(Backbone):
    """A backbone of which only the size matters."""

    modalities = "any"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim


def encoders(dims: dict[str, int]) -> Encoders:
    return Encoders({name: Sized(dim) for name, dim in dims.items()}, list(dims))


def built(dims: dict[str, int] | None = None, **fields: Any) -> VATT:
    torch.manual_seed(0)
    objective = VATT(**(SIZES | fields))
    objective.build(encoders(dims or DIMS))
    return objective


def data(
    present: Tensor, valid: Tensor | None = None, rows: Any = slice(None), seed: int = 1
) -> tuple[Batch, dict[str, Features]]:
    """A batch, and features that need gradients, of which absent rows are zeros.

    Args:
        present: ``[B, 3]`` bool, of video, audio and text.
        valid: ``[B, 5]`` bool, which narrations there are; None where text is a single vector.
        rows: which part of the batch is wanted.
        seed: of the features.
    """
    generator = torch.Generator().manual_seed(seed)
    there = dict(zip(DIMS, present.T, strict=True))
    features: dict[str, Features] = {}
    for name, dim in DIMS.items():
        shape = (len(present), TEXTS, dim) if name == "text" else (len(present), dim)
        x = torch.randn(shape, generator=generator)
        x = x * there[name].view(-1, *[1] * (x.ndim - 1))
        if name == "text" and valid is not None:
            x = (x * valid[..., None])[rows].requires_grad_()
            kept = (valid & there[name][:, None])[rows]
            features[name] = Narrations(pooled=x[:, 0], candidates=x, valid=kept)
        else:
            features[name] = Features((x[:, 0] if x.ndim == 3 else x)[rows].requires_grad_())
    index = torch.arange(len(present))[rows]
    masks = {name: mask[rows] for name, mask in there.items()}
    return Batch(index, index + 7, {}, masks, torch.full_like(index, -100)), features


def leaves_of(features: dict[str, Features]) -> dict[str, Tensor]:
    """What gradients arrive at."""
    text = features["text"]
    leaves = {name: found.pooled for name, found in features.items()}
    return leaves | ({"text": text.candidates} if isinstance(text, Narrations) else {})


ALL = torch.ones(6, 3, dtype=torch.bool)
SOME = torch.tensor(
    [[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1], [0, 0, 1], [1, 0, 0],
     [1, 1, 1], [0, 0, 0], [1, 1, 1], [1, 1, 0]], dtype=torch.bool,
)  # fmt: skip
NARRATED = torch.tensor(
    [[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0],
     [1, 1, 0, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0],
     [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool,
)  # fmt: skip


# Heads


@pytest.mark.parametrize(("dim", "count"), [(512, 657_920), (768, 788_992), (1024, 920_064)])
def test_heads_have_as_many_parameters_as_released(dim: int, count: int) -> None:
    objective = VATT()
    objective.build(encoders({"video": dim, "audio": 768, "text": 512}))
    video = [*objective.to_fine.parameters(), *objective.to_coarse.parameters()]
    assert sum(p.numel() for p in video if p.requires_grad) == count
    assert {n: [*map(tuple, (p.shape for p in h.parameters()))] for n, h in
            objective.heads.items()} == {"audio": [(512, 768), (512,)],
                                         "text": [(256, 512), (256,)]}  # fmt: skip
    norms = [m for m in objective.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert [(n.num_features, n.momentum, n.eps, n.affine) for n in norms] == [
        (512, 0.1, 1e-5, True),
        (512, 0.1, 1e-5, True),
        (256, 0.1, 1e-5, True),
    ]


def slow_norm(x: Tensor, there: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """Batch normalisation by the rows that are there, in float64."""
    kept = x[there]
    variance, mean = kept.var(0, correction=0), kept.mean(0)
    y = (x - mean) / (variance + 1e-5).sqrt()
    return y * state[f"{name}.weight"] + state[f"{name}.bias"]


def slow_loss(
    objective: VATT, batch: Batch, x: dict[str, Tensor], fields: dict[str, Any]
) -> tuple[Tensor, dict[str, float]]:
    """The objective by the formulas of its module, and what it logs.

    Args:
        objective: in float64.
        batch: which samples have what.
        x: features in float64, of text ``[B, M, D]``; narrations that are zeros are not there.
        fields: as the objective has been told.
    """
    state = dict(objective.named_parameters())
    there = batch.present["video"]

    def linear(y: Tensor, name: str) -> Tensor:
        y = y @ state[f"{name}.weight"].T
        return y + state[f"{name}.bias"] if f"{name}.bias" in state else y

    fine, coarse = "to_fine.backbones.video.layers", "to_coarse.backbones.video.layers"
    hidden = slow_norm(linear(x["video"], f"{fine}.0"), there, state, f"{fine}.1").clamp(min=0)
    z_va = slow_norm(linear(hidden, f"{fine}.3"), there, state, f"{fine}.4")
    z_vt = slow_norm(linear(z_va.clamp(min=0), f"{coarse}.1"), there, state, f"{coarse}.2")
    valid = x["text"].abs().sum(-1) > 0

    def length_one(y: Tensor) -> Tensor:
        return y / y.norm(dim=-1, keepdim=True)

    z_a = length_one(linear(x["audio"][:, None], "heads.audio"))
    z_t = length_one(linear(x["text"], "heads.text"))
    kind = "mil_nce" if z_t.shape[1] > 1 else "nce"
    weight = fields.get("coarse_weight", 1.0)
    total, parts = torch.zeros(()).double(), {}
    for name, w, pairs in (
        ("video-audio/nce", 1, Pairs(z_va, there, z_a, batch.present["audio"][:, None])),
        (f"video-text/{kind}", weight, Pairs(z_vt, there, z_t, valid)),
    ):
        pairs = Pairs(length_one(pairs.anchors), there, pairs.candidates, pairs.valid)
        losses, right = slow(pairs, fields.get("temperature", 0.07), fields.get("symmetric", False))
        count = max(1, int((pairs.anchored & pairs.valid.any(1)).sum()))
        term = sum(losses) / count
        parts[name] = term.item()
        parts[name.partition("/")[0] + "/accuracy"] = sum(right) / count
        total = total + w * term
    return total / (1 + weight if fields.get("total") == "mean" else 1), parts


FIELDS = [
    {},
    {"temperature": 0.5},
    {"coarse_weight": 0.3},
    {"symmetric": True},
    {"total": "mean"},
    {"total": "mean", "coarse_weight": 3.0, "symmetric": True, "temperature": 0.2},
]


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("narrated", [True, False])
@pytest.mark.parametrize("present", [ALL, SOME], ids=["all", "some"])
def test_it_is_the_formulas(fields: dict[str, Any], narrated: bool, present: Tensor) -> None:
    objective = built(**fields)
    with torch.no_grad():
        for parameter in objective.parameters():  # not only ones and zeros
            parameter.add_(0.3 * torch.randn_like(parameter))
    batch, features = data(present, NARRATED[: len(present)] if narrated else None)
    leaves = leaves_of(features)
    exact = copy.deepcopy(objective).double()
    x = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    text = x["text"] if narrated else x["text"][:, None]
    total, parts = slow_loss(exact, batch, x | {"text": text}, fields)
    losses = objective.loss(batch, features)
    assert losses.total.item() == pytest.approx(total.item(), rel=1e-4)
    assert {n: float(v) for n, v in losses.parts.items()} == pytest.approx(parts, rel=1e-4)
    assert set(losses.counts) == set(losses.parts)
    losses.total.backward()
    total.backward()
    for ours, theirs in (
        *((leaves[name], x[name]) for name in x),
        *zip(objective.parameters(), exact.parameters(), strict=True),
    ):
        assert ours.grad is not None
        assert theirs.grad is not None
        # Rounding of float32 is a share of the largest entries, from whose sums small ones come.
        atol = max(2e-5, 2e-3 * float(theirs.grad.abs().max()))
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=2e-3, atol=atol)


def test_each_field_matters() -> None:
    found = {
        tuple(fields.items()): built(**fields).loss(*data(SOME, NARRATED)).total.item()
        for fields in FIELDS
    }  # fmt: skip
    assert len({round(value, 4) for value in found.values()}) == len(FIELDS)


def test_the_mean_is_the_sum_over_its_weights() -> None:
    one, other = (
        built(total=total, coarse_weight=3.0).loss(*data(ALL)).total.item()
        for total in ("sum", "mean")
    )
    assert one == pytest.approx(4 * other)


# Absent rows


def test_absent_rows_enter_no_statistics() -> None:
    """What remains of a batch without them gives the same loss, gradients and statistics."""
    outcomes = []
    rows = SOME[:, 0]
    for kept in (torch.ones_like(rows), rows):
        objective = built()
        batch, features = data(SOME[kept], NARRATED[kept])
        x = torch.randn(12, 6, generator=torch.Generator().manual_seed(3))
        features["video"].pooled = torch.where(rows[:, None], x, 100.0)[kept]
        features["audio"].pooled = torch.zeros(12, 4)[kept]
        features["text"].candidates = torch.ones(12, TEXTS, 5)[kept]
        losses = objective.loss(batch, features)
        losses.total.backward()
        statistics = {n: b for n, b in objective.named_buffers() if "running" in n}
        gradients = [p.grad for p in objective.to_fine.parameters()]
        outcomes.append((statistics, gradients))
    torch.testing.assert_close(outcomes[0][0], outcomes[1][0])
    assert all(g.isfinite().all() for g in outcomes[0][1])


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 4).flatmap(
    lambda n: st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=n, max_size=n)
), st.booleans())  # fmt: skip
def test_losses_and_gradients_are_finite_for_any_presence(
    rows: list[list[bool]], symmetric: bool
) -> None:
    bits = torch.tensor(rows)
    objective = built(symmetric=symmetric)
    batch, features = data(bits[:, :3], bits[:, 3:])
    losses = objective.loss(batch, features)
    assert losses.total.isfinite()
    losses.total.backward()
    for x in (*leaves_of(features).values(), *objective.parameters()):
        assert x.grad is None or x.grad.isfinite().all()
    counts = {name: int(count) for name, count in losses.counts.items()}
    v, a, t = (bits[:, i] for i in range(3))
    assert counts["video-audio/nce"] == int((v & a).sum())
    assert counts["video-text/mil_nce"] == int((v & t & bits[:, 3:].any(1)).sum())
    for name, count in counts.items():
        assert count or float(losses.parts[name]) == 0


def test_a_batch_of_one_is_refused_in_training_alone() -> None:
    objective = built()
    with pytest.raises(UserError, match=r"larger training\.batch_size"):
        objective.loss(*data(ALL[:1]))
    losses = objective.eval().loss(*data(ALL[:1]))
    assert losses.total.item() == pytest.approx(2 * math.log(2))


def test_without_any_text_there_is_its_zero_and_no_gradient() -> None:
    present = ALL.clone()
    present[:, 2] = False
    objective = built()
    batch, features = data(present, torch.zeros(6, TEXTS, dtype=torch.bool))
    losses = objective.loss(batch, features)
    assert float(losses.parts["video-text/mil_nce"]) == 0
    losses.total.backward()
    for parameter in [*objective.to_coarse.parameters(), *objective.heads["text"].parameters()]:
        assert parameter.grad is None or not parameter.grad.any()
    assert objective.to_fine.backbones["video"].layers[0].weight.grad.any()


# Ranks


def computed(fields: dict[str, Any], present: Tensor, valid: Tensor | None) -> dict[str, Any]:
    """Loss, gradients and statistics of this rank's part of a batch, averaged as DDP does."""
    objective = built(**fields)
    for norm in objective.modules():
        if isinstance(norm, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(norm.bias)  # where a lonely row is, but for rounding
    if distributed.size() > 1:
        synchronise(objective)
    batch, features = data(present, valid, [*distributed.share(len(present))])
    losses = objective.loss(batch, features)
    losses.total.backward()
    leaves = leaves_of(features)
    return {
        "total": distributed.mean(losses.total),
        "parts": {name: distributed.mean(part) for name, part in losses.parts.items()},
        "counts": losses.counts,
        "parameters": [distributed.mean(p.grad) for p in objective.parameters()],
        "features": {name: x.grad / distributed.size() for name, x in leaves.items()},
        "state": dict(objective.named_buffers()),
    }


# Of 12 rows a rank has 6 or 4: the first rank has no video, then no text.
NO_VIDEO, NO_TEXT, LONELY = SOME.clone(), SOME.clone(), SOME.clone()
NO_VIDEO[:6, 0] = False
NO_TEXT[:6, 2] = False
LONELY[torch.arange(12) != 4, 0] = False


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    ("fields", "present", "narrated"),
    [
        ({}, SOME, True),
        ({"symmetric": True, "total": "mean"}, SOME, False),
        ({}, NO_VIDEO, True),
        ({"coarse_weight": 0.5}, NO_TEXT, True),
        ({}, LONELY, True),
        ({}, torch.zeros_like(SOME), True),
    ],
    ids=["some", "symmetric", "no video", "no text", "one video", "nothing"],
)
def test_ranks_compute_what_one_process_does(
    size: int, fields: dict[str, Any], present: Tensor, narrated: bool
) -> None:
    valid = NARRATED if narrated else None
    one = computed(fields, present, valid)
    found = on_ranks(size, computed, fields, present, valid)
    # A lonely row has no variance, and rounding errors are divided by sqrt(eps) in each norm, going
    # forth and back; how large they are is the processor's.
    atol, behind = (3e-4, 1e-2) if present is LONELY else (1e-5, 1e-5)
    for f in found:
        for key in ("total", "parts", "counts", "parameters", "state"):
            near = behind if key == "parameters" else atol
            torch.testing.assert_close(f[key], one[key], rtol=1e-4, atol=near)
    for name, gradient in one["features"].items():
        ours = torch.cat([f["features"][name] for f in found])
        torch.testing.assert_close(ours, gradient, rtol=1e-4, atol=behind)


def run(folder: Path) -> list[dict[str, Any]]:
    """Four steps of the real loop, with sound as the anchor's fine-grained other."""
    objective = VATT(anchor="b", fine=["a"], coarse=[], fine_dim=8)
    pretraining(
        folder,
        settings=changed(batch_size=12),
        objective=objective,
        data=Rows(60, bad=[11], without={"b": [*range(20, 40)]}),
        validation=Rows(18, without={"a": [5]}),
        epochs=1,
        dropout=0.0,
    ).run()
    return [exact(record) for record in read_log(folder)]


def test_runs_on_ranks_have_the_log_of_one(tmp_path: Path) -> None:
    one = run(tmp_path / "one")
    assert [r["kind"] for r in one] == ["step"] * 4 + ["validation"]
    assert set(one[0]) > {"b-a/nce", "b-a/accuracy"}
    for ours, theirs in zip(on_ranks(2, run, tmp_path / "two")[0], one, strict=True):
        assert ours.pop("kind") == theirs.pop("kind")
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


# Modalities


@pytest.mark.parametrize(
    ("dims", "fields", "terms", "spaces"),
    [
        ("video audio", {}, ["video-audio"], {"va": ["video", "audio"]}),
        ("video text", {}, ["video-text"], {"vt": ["video", "text"]}),
        (
            "video audio imu text",
            {},
            ["video-audio", "video-imu", "video-text"],
            {"va": ["video", "audio", "imu"], "vt": ["video", "text"]},
        ),
        ("video audio imu", {"fine": ["imu"]}, ["video-imu"], {"va": ["video", "imu"]}),
        (
            "audio imu text",
            {"anchor": "audio", "fine": [], "coarse": ["imu", "text"]},
            ["audio-imu", "audio-text"],
            {"vt": ["audio", "imu", "text"]},
        ),
    ],
)
def test_any_modalities(
    dims: str, fields: dict[str, Any], terms: list[str], spaces: dict[str, list[str]]
) -> None:
    sizes = {name: 4 + i for i, name in enumerate(dims.split())}
    objective = built(sizes, **fields)
    present = {name: torch.tensor([True, True, True, False]) for name in sizes}
    features = {name: Features(torch.randn(4, dim)) for name, dim in sizes.items()}
    batch = Batch(torch.arange(4), torch.arange(4), {}, present, torch.full((4,), -100))
    losses = objective.loss(batch, features)
    assert [name.removesuffix("/nce") for name in losses.parts if "nce" in name] == terms
    expected = sum(float(losses.parts[f"{term}/nce"]) for term in terms)
    assert losses.total.item() == pytest.approx(expected)
    objective.eval()
    found = objective.embeddings(features)
    assert {space: list(members) for space, members in found.items()} == spaces
    for members in found.values():
        assert len({x.shape for x in members.values()}) == 1


@torch.no_grad()
def test_embeddings_are_what_the_loss_compares() -> None:
    objective = built().eval()
    batch, features = data(ALL, NARRATED[:6])
    found = objective.embeddings(features)
    assert found["va"]["video"].shape == found["va"]["audio"].shape == (6, 8)
    assert found["vt"]["video"].shape == found["vt"]["text"].shape == (6, 3)
    text = features["text"]
    assert isinstance(text, Narrations)
    first = Narrations(
        pooled=text.pooled, candidates=text.candidates[:, :1], valid=NARRATED[:6, :1]
    )
    parts = objective.loss(batch, features | {"text": first}).parts
    kept = NARRATED[:6, 0]
    for space, other, mask in (("va", "audio", torch.ones(6).bool()), ("vt", "text", kept)):
        v, x = (torch.nn.functional.normalize(found[space][n], dim=1) for n in ("video", other))
        logits = (v @ x.T / 0.07).double()
        loss = 0.0
        for i in mask.nonzero().flatten().tolist():
            everything = [*logits[i, mask].tolist(), *logits[:, i].tolist()]
            loss += math.log(sum(map(math.exp, everything))) - float(logits[i, i])
        assert float(parts[f"video-{other}/nce"]) == pytest.approx(loss / int(mask.sum()), rel=1e-4)
    alone = objective.embeddings({"text": text})
    torch.testing.assert_close(alone["vt"]["text"], found["vt"]["text"])


@pytest.mark.parametrize(
    ("dims", "fields", "message"),
    [
        ("audio text", {}, "objective.anchor: the recipe has no modality 'video', only audio"),
        ("video audio", {"fine": ["sound"]}, "objective.fine: the recipe has no modality 'sound'"),
        ("video audio", {"coarse": ["text"]}, "objective.coarse: the recipe has no modality 'te"),
        ("video audio", {"fine": ["audio"], "coarse": ["audio"]}, "'audio' stands twice"),
        ("video audio", {"fine": ["video"]}, "'video' stands twice"),
        ("video", {}, "vatt compares video with another modality"),
        ("video audio", {"fine": []}, "fine and coarse name none"),
    ],
)
def test_modalities_that_do_not_fit(dims: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        built(dict.fromkeys(dims.split(), 4), **fields)
    assert "\n" not in str(error.value)


def test_it_learns_what_belongs_together() -> None:
    """A few dozen steps on one batch: nearly every other half is found."""
    objective = built()
    batch, features = data(torch.ones_like(SOME), NARRATED | True)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.02)
    for _ in range(120):
        optimizer.zero_grad()
        losses = objective.loss(batch, features)
        losses.total.backward()
        optimizer.step()
    assert losses.parts["video-audio/accuracy"].item() > 0.9
    assert losses.parts["video-text/accuracy"].item() > 0.9
    assert losses.parts["video-audio/nce"].item() < math.log(2) + 0.3


def each_for_itself(folder: Path) -> dict[str, Tensor]:
    """A run whose ranks normalise each for itself, on three rows each of which few have sound."""
    one = pretraining(
        folder,
        settings=changed(batch_size=6, sync_batch_norm=False),
        objective=VATT(anchor="b", fine=["a"], coarse=[], fine_dim=8),
        data=Rows(60, without={"b": [i for i in range(60) if i % 3]}),
        epochs=2,
        dropout=0.0,
    )
    one.run()
    return {**one.encoders.state_dict(), **one.objective.state_dict()}


def test_ranks_that_normalise_each_for_itself(tmp_path: Path) -> None:
    found = on_ranks(2, each_for_itself, tmp_path / "run")
    torch.testing.assert_close(found[0], found[1])
