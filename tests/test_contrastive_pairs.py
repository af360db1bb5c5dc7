"""InfoNCE and SigLIP: loops over pairs, absent rows, fields, ranks, and a run to its retrieval."""

import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretrained_runs import SEEN_AND_READ, SEPARATE, TEXTS, finish, installed
from ranks import on_ranks
from small_runs import make_videos
from test_vatt_objective import DIMS, SOME, data, encoders
from torch import Tensor

from mmssl import UserError
from mmssl.contracts import Features
from mmssl.pretrained.checkpoint import open_pretrained
from mmssl.pretrained.dataset import named_dataset
from mmssl.pretrained.embed import embed
from mmssl.pretrained.features_file import FeaturesFile
from mmssl.pretrained.search import search
from mmssl.training import distributed
from mmssl.training.progress import Silent
from mmssl_contrastive.infonce import InfoNCE
from mmssl_contrastive.siglip import SigLIP

SIZES = {"dim": 4, "hidden": 7}
ALL_PAIRS = [("video", "audio"), ("video", "text"), ("audio", "text")]
OBJECTIVES = {"infonce": InfoNCE, "siglip": SigLIP}


def built(name: str, dims: dict[str, int] | None = None, **fields: Any) -> Any:
    torch.manual_seed(0)
    objective = OBJECTIVES[name](**(SIZES | fields))
    objective.build(encoders(dims or DIMS))
    return objective


def slow_infonce(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Mean over both directions of the cross-entropy of each row, with nothing absent."""
    loss = torch.zeros(()).double()
    for one, other in ((a, b), (b, a)):
        for i, query in enumerate(one):
            e = [(scale * torch.dot(query, key)).exp() for key in other]
            loss = loss - (e[i] / sum(e)).log() / 2
    return loss / max(1, len(a))


def slow_siglip(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    loss = torch.zeros(()).double()
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            z = 1 if i == j else -1
            loss = loss - (1 / (1 + (-z * (scale * torch.dot(x, y) + bias)).exp())).log()
    return loss / max(1, len(a))


def nearest(a: Tensor, b: Tensor) -> float:
    best = [max(range(len(b)), key=lambda j: torch.dot(x, b[j]).item()) for x in a]
    return sum(j == i for i, j in enumerate(best)) / max(1, len(a))


def check(name: str, present: Tensor, pairs: Any, **fields: Any) -> None:
    """All is as in loops over the samples that have both, in float64, gradients as well."""
    objective = built(name, pairs=pairs, **fields)
    exact = copy.deepcopy(objective).double()
    batch, features = data(present)
    x = {n: f.pooled.detach().double().requires_grad_() for n, f in features.items()}
    losses = objective.loss(batch, features)
    embedded = exact.embeddings({n: Features(leaf) for n, leaf in x.items()})["joint"]
    z = {n: e / e.norm(dim=1, keepdim=True) for n, e in embedded.items()}
    total = sum(leaf.sum() * 0 for leaf in x.values())
    for number, (one, other) in enumerate(pairs or ALL_PAIRS):
        rows = (batch.present[one] & batch.present[other]).nonzero().flatten()
        a, b = z[one][rows], z[other][rows]
        label = f"{one}-{other}"
        if name == "infonce":
            scale = torch.tensor(1 / fields.get("temperature", 0.07)).double()
            if fields.get("learn_temperature"):
                scale = exact.log_scale[number].exp()
            expected = slow_infonce(a, b, scale)
            right = (nearest(a, b) + nearest(b, a)) / 2
        else:
            expected = slow_siglip(a, b, exact.log_scale[number].exp(), exact.bias[number])
            right = nearest(a, b)
        assert losses.parts[f"{label}/loss"].item() == pytest.approx(expected.item(), rel=1e-4)
        assert losses.parts[f"{label}/accuracy"].item() == pytest.approx(right)
        assert int(losses.counts[f"{label}/loss"]) == len(rows)
        total = total + expected
    assert losses.total.item() == pytest.approx(total.item(), rel=1e-4)
    losses.total.backward()
    total.backward()
    for ours, theirs in (
        *((features[n].pooled, x[n]) for n in x),
        *zip(objective.parameters(), exact.parameters(), strict=True),
    ):
        # Where there is nothing at all, a loop makes no gradient and a masked sum zeros.
        found = torch.zeros_like(ours) if ours.grad is None else ours.grad
        wanted = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("pairs", [None, [("text", "video")], [("audio", "video")]])
@pytest.mark.parametrize("present", [SOME, torch.ones_like(SOME), SOME[8:9], SOME[9:10]])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_are_those_of_loops(name: str, present: Tensor, pairs: Any) -> None:
    check(name, present, pairs)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("infonce", {"temperature": 0.5}),
        ("infonce", {"temperature": 0.2, "learn_temperature": True, "depth": 1}),
        ("infonce", {"depth": 3}),
        ("siglip", {"scale": 3.0}),
        ("siglip", {"bias": -1.0, "depth": 2}),
    ],
)
def test_losses_follow_the_fields(name: str, fields: dict[str, Any]) -> None:
    check(name, SOME, None, **fields)
    plain, other = built(name), built(name, **fields)
    batch, features = data(SOME)
    assert plain.loss(batch, features).total.item() != other.loss(batch, features).total.item()
    depth = fields.get("depth", 2 if name == "infonce" else 1)
    layers = [m for m in other.heads["audio"].modules() if isinstance(m, torch.nn.Linear)]
    sizes = [DIMS["audio"], *[7] * (depth - 1), 4]
    assert [(m.in_features, m.out_features) for m in layers] == [*pairwise(sizes)]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4))
def test_gradients_are_finite_for_any_presence(rows: list[list[bool]]) -> None:
    present = torch.tensor(rows)
    for name in OBJECTIVES:
        objective = built(name)
        batch, features = data(present)
        losses = objective.loss(batch, features)
        losses.total.backward()
        assert losses.total.isfinite()
        for x in (*(f.pooled for f in features.values()), *objective.parameters()):
            assert x.grad is None or x.grad.isfinite().all()
        for i, modality in enumerate(DIMS):
            absent = features[modality].pooled.grad[~present[:, i]]
            assert not absent.any(), "what is not there learns nothing"


def test_a_learned_temperature_learns_and_stays_above_a_hundredth() -> None:
    objective = built("infonce", learn_temperature=True, temperature=0.011, pairs=ALL_PAIRS[:1])
    batch, features = data(torch.ones_like(SOME))
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.0)
    objective.log_scale.data.fill_(9.0)
    losses = objective.loss(batch, features)
    assert float(losses.parts["video-audio/temperature"]) == pytest.approx(0.01)
    losses.total.backward()
    assert objective.log_scale.grad.any(), "at the limit it can still become softer"
    optimizer.step()
    objective.log_scale.data.fill_(9.0)
    objective.eval().loss(batch, features)
    assert objective.log_scale.item() == 9.0, "measuring changes nothing"


def test_siglip_learns_scale_and_bias_of_each_pair() -> None:
    objective = built("siglip")
    assert objective.log_scale.tolist() == pytest.approx([math.log(10)] * 3)
    assert objective.bias.tolist() == [-10.0] * 3
    losses = objective.loss(*data(SOME))
    losses.total.backward()
    assert objective.log_scale.grad.all()
    assert objective.bias.grad.all()
    assert float(losses.parts["video-text/scale"]) == pytest.approx(10)
    assert float(losses.parts["video-text/bias"]) == -10


# Ranks


def computed(name: str, present: Tensor, fields: dict[str, Any]) -> dict[str, Any]:
    """Loss and gradients of this rank's part of a batch, averaged as DDP does."""
    objective = built(name, **fields)
    batch, features = data(present, rows=[*distributed.share(len(present))])
    losses = objective.loss(batch, features)
    losses.total.backward()
    return {
        "total": distributed.mean(losses.total),
        "parts": {name: distributed.mean(part) for name, part in losses.parts.items()},
        "counts": losses.counts,
        "parameters": [distributed.mean(p.grad) for p in objective.parameters()],
        "features": {n: f.pooled.grad / distributed.size() for n, f in features.items()},
    }


HALF = SOME.clone()
HALF[:6, 1] = False


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    ("name", "present", "fields"),
    [("infonce", SOME, {"learn_temperature": True}), ("siglip", SOME, {}), ("infonce", HALF, {})],
)
def test_ranks_compute_what_one_process_does(
    size: int, name: str, present: Tensor, fields: dict[str, Any]
) -> None:
    one = computed(name, present, fields)
    found = on_ranks(size, computed, name, present, fields)
    for f in found:
        for key in ("total", "parts", "counts", "parameters"):
            torch.testing.assert_close(f[key], one[key], rtol=1e-4, atol=1e-6)
    for modality, gradient in one["features"].items():
        ours = torch.cat([f["features"][modality] for f in found])
        torch.testing.assert_close(ours, gradient, rtol=1e-4, atol=1e-6)


# Modalities


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    ("dims", "pairs", "message"),
    [
        ("video", None, "there is only video"),
        ("video audio", [("video", "text")], "no modality 'text', only video, audio"),
        ("video audio", [("audio", "audio")], "two modalities, not 'audio' twice"),
        ("video audio", [("video", "audio"), ("audio", "video")], "the same two modalities"),
        ("video audio", [], "objective.pairs: is empty"),
    ],
)
def test_pairs_that_do_not_fit(name: str, dims: str, pairs: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        built(name, dict.fromkeys(dims.split(), 4), pairs=pairs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_modalities_of_the_pairs_have_heads(name: str) -> None:
    objective = built(name, pairs=[("text", "audio")])
    batch, features = data(SOME)
    assert set(objective.heads) == {"text", "audio"}
    objective.loss(batch, features).total.backward()
    assert features["video"].pooled.grad is None
    assert set(objective.embeddings({"text": features["text"]})["joint"]) == {"text"}


# A whole run

RUNS = {
    "infonce": "{use: infonce, dim: 6, hidden: 8}",
    "siglip": "{use: siglip, dim: 6}",
    "vatt": "{use: vatt, fine_dim: 8, coarse_dim: 6}",
}


def spoken(folder: Path, objective: str) -> Path:
    """A finished run of sight and text on eight videos; needs `installed`."""
    videos = make_videos(folder / "videos", 8)
    rows = [f"{path},v{i},{TEXTS[i % 4]}" for i, (path, _) in enumerate(videos)]
    (folder / "texts.csv").write_text("\n".join(["path,id,text", *rows, ""]))
    (folder / "vocabulary.txt").write_text("red\nblue\nball\nsquare\n")
    recipe = SEEN_AND_READ.format(
        vocabulary=folder / "vocabulary.txt", manifest=folder / "texts.csv", backbones=SEPARATE
    )
    (folder / "spoken.yaml").write_text(recipe)
    return finish(folder / "spoken.yaml", [f"runs={folder / 'runs'}", f"objective={objective}"])


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_searched_by_words(name: str, tmp_path: Path) -> None:
    with installed(tmp_path / "site"):
        run = spoken(tmp_path, RUNS[name])
        embed(
            open_pretrained(run),
            named_dataset([str(tmp_path / "texts.csv")]),
            tmp_path / "f.npz",
            clips=1,
            workers=0,
            device=torch.device("cpu"),
            progress=Silent(),
        )
        space = "vt" if name == "vatt" else "joint"
        found = search(FeaturesFile(tmp_path / "f.npz"), "red ball", k=8, device="cpu")
        file = np.load(tmp_path / "f.npz")
    near = found[f"embeddings/{space}/video"]
    assert sorted(n.id for n in near) == [f"v{i}" for i in range(8)]
    # The words are those of row 0, whose embedding the query must have.
    row = file[f"embeddings/{space}/text"][0].astype(np.float64)
    seen = file[f"embeddings/{space}/video"].astype(np.float64)
    scores = seen @ row / np.linalg.norm(seen, axis=1) / np.linalg.norm(row)
    assert [n.score for n in near] == pytest.approx(np.sort(scores)[::-1].tolist(), abs=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_learns_what_belongs_together(name: str) -> None:
    """A few dozen steps on one batch: nearly every other half is found."""
    objective = built(name, pairs=[("video", "audio")])
    batch, features = data(torch.ones_like(SOME))
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.02)
    losses = [objective.loss(batch, features)]
    for _ in range(150):
        optimizer.zero_grad()
        losses.append(objective.loss(batch, features))
        losses[-1].total.backward()
        optimizer.step()
    assert float(losses[-1].parts["video-audio/accuracy"]) > 0.9
    assert losses[-1].total.item() < 0.5 * losses[0].total.item()
