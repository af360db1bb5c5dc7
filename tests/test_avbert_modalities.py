"""AVBert of three modalities, and of two others than video and audio."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from ranks import on_ranks
from test_avbert_backbone import close, slow
from test_avbert_objective import batch_of as batch_of_names
from test_avbert_objective import built as built_of
from test_avbert_objective import one_step, slow_mep, spied
from tiny_avbert import RECIPE, avbert, clips, present
from torch import Tensor, nn
from torch.nn.functional import softplus

from mmssl import Backbone, UserError
from mmssl.contracts import Batch, Features
from mmssl.data.draws import Draws
from mmssl.pipeline.plan import make_plan
from mmssl.recipe import load
from mmssl.training.encoders import Encoders
from mmssl_avbert.backbone import AVBert, Fusion
from mmssl_avbert.objective import AVBertPretraining
from mmssl_avbert.pairing import partners

NAMES = ("video", "audio", "imu")
PAIRS = [("video", "audio"), ("video", "imu"), ("audio", "imu")]
ROWS = ("vai", "va", "vai", "i", "ai", "vi", "", "vai", "v")
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)


class Motion(Backbone):
    """Of ``[n, 2, frames]``, as of two axes of an accelerometer."""

    modalities = frozenset({"imu"})
    dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(2, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU())

    def forward(self, clip: Tensor) -> Features:
        return Features(self.layers(clip).mean(2))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def three(**changed: Any) -> AVBert:
    """Clips of 2, 8 and 5 frames."""
    return avbert(**({"further": {"imu": Motion()}, "further_frames": {"imu": 5}} | changed))


def three_clips(rows: int, length: int = 3) -> dict[str, Tensor]:
    return clips(rows, length) | {"imu": torch.randn(rows, 2, 5 * length)}


def masks(*rows: str) -> dict[str, Tensor]:
    return present(*rows, names=NAMES)


def built(net: AVBert | None = None, **changed: Any) -> tuple[AVBertPretraining, Encoders, AVBert]:
    return built_of(net or three(pooled="cnn"), **changed)


batch_of = partial(batch_of_names, names=NAMES)


# The backbone


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("sharing", ["none", "part"])
def test_outputs_are_those_of_the_formulas(fusion: Fusion, sharing: Any) -> None:
    net = three(fusion=fusion, sharing=sharing).double()
    rows = ["".join(row) for n in range(4) for row in itertools.combinations("vai", n)]
    x = {name: torch.randn(8, 3, 12, dtype=torch.float64) for name in NAMES}
    out = net.contextualise(x, masks(*rows))
    assert list(out.unimodal) == ([] if fusion == "early" else list(NAMES))
    assert list(out.multimodal) == ([] if fusion == "late" else list(NAMES))
    depth = {"early": [4], "mid": [2] * 4, "late": [4] * 3}[fusion]
    assert [transformer.depth for transformer in net.transformers.values()] == depth
    for i, row in enumerate(rows):
        right = slow(net, {name: x[name][i] for name in NAMES}, row)
        for found, expected in zip((out.unimodal, out.multimodal), right, strict=True):
            for name, y in found.items():
                close(y[i], expected.get(name, torch.zeros_like(y[i])))


def test_parameters_of_two_modalities_keep_their_names_and_shapes() -> None:
    two = {name: p.shape for name, p in avbert().state_dict().items()}
    more = {name: p.shape for name, p in three().state_dict().items()}
    assert {name: more[name] for name in two} == two
    assert all("imu" in name for name in set(more) - set(two))


def test_a_further_transformer_of_the_papers_size() -> None:
    """U, biases and norms are shared; V and six rotations are its own."""
    with torch.device("meta"):
        net = three(length=30, dim=768, layers=6, heads=12, hidden=3072, rank=128)
    found = sum(p.numel() for p in net.transformers.parameters())
    assert found == 3_843_840 + 128 * (5 * 768 + 3072) + 6 * 128 * 128


@pytest.mark.parametrize("training", [False, True])
def test_what_is_absent_changes_nothing_and_is_zero(training: bool) -> None:
    net = three().train(training)
    whole, there = three_clips(len(ROWS)), masks(*ROWS)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    first = net(whole, there)
    net.load_state_dict(state)
    for name, clip in whole.items():
        clip[~there[name]] = 1e4
    second = net(whole, there)
    for name in NAMES:
        assert torch.equal(first[name].pooled, second[name].pooled)
        assert first[name].pooled[~there[name]].eq(0).all()
        assert first[name].pooled[there[name]].any(1).all()


def test_frames_follow_each_other_along_the_axis_that_is_said() -> None:
    net = three().eval()
    turned = three(further_axes={"imu": 1}).eval()
    turned.load_state_dict(net.state_dict())
    whole = three_clips(2)
    right = net(whole, masks("vai", "vi"))
    layers = turned.cnns.backbones["imu"]
    forward = layers.forward
    layers.forward = lambda clip: forward(clip.transpose(1, 2))  # type: ignore[method-assign]
    found = turned(whole | {"imu": whole["imu"].transpose(1, 2)}, masks("vai", "vi"))
    for name in NAMES:
        close(found[name].pooled, right[name].pooled)


@pytest.mark.parametrize("kept", ["video", "audio"])
def test_two_modalities_of_which_one_is_another(kept: str) -> None:
    net = three(**{f"{'audio' if kept == 'video' else 'video'}_cnn": None}, pooled="cnn")
    assert net.names == (kept, "imu")
    assert net.modalities == {kept, "imu"}
    objective, encoders, _ = built(net)
    rows = ("vai", "vi", "ai", "i", "va")
    batch = batch_of(*rows)
    whole = {name: clip for name, clip in three_clips(5).items() if name in net.names}
    losses = objective.loss(batch, encoders(whole, {n: batch.present[n] for n in net.names}))
    assert {name.rpartition("_")[0] or name for name in losses.parts} == {
        f"{kept}/mep", "imu/mep", "multimodal/mep", "unimodal/cpp", "multimodal/cpp"
    }  # fmt: skip
    assert int(losses.counts["unimodal/cpp"]) == sum(kept[0] in row and "i" in row for row in rows)


def test_parts_stand_alone() -> None:
    net = three().eval()
    offered = net.subnetworks()
    assert list(offered) == [
        *(f"{name}_{part}" for name in NAMES for part in ("cnn", "transformer")),
        "cnn", "unimodal", "multimodal",
    ]  # fmt: skip
    whole, there = three_clips(2), masks("vai", "vai")
    alone = offered["imu_transformer"](whole["imu"])
    together = offered["unimodal"](whole, there)["imu"]
    close(alone.pooled, together.pooled)
    assert offered["imu_transformer"].modalities == {"imu"}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"further_frames": {}}, "further_frames: says nothing of imu"),
        ({"further_frames": {"imu": 5, "imo": 5}}, "further_frames.imo: further has no CNN"),
        ({"further_axes": {"depth": 1}}, "further_axes.depth: further has no CNN"),
        ({"further": {"audio": Motion()}}, "further.audio: has a field of its own, audio_cnn"),
        ({"further": {"multimodal": Motion()}}, "further.multimodal: this is what Transformers"),
        ({"further": {"imu": three()}}, "further.imu: AVBert is no network for imu alone"),
        (
            {"video_cnn": None, "further": None, "further_frames": None},
            "has the CNN of audio alone: it takes two modalities or more",
        ),
    ],
)
def test_modalities_that_do_not_fit(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as raised:
        three(**changed)
    assert str(raised.value).startswith(says)


def test_clips_that_do_not_fit() -> None:
    net, there = three(), masks("vai", "va")
    with pytest.raises(ValueError, match="of video there are 3 clips, of audio 3, of imu 2"):
        net(three_clips(2) | {"imu": torch.randn(2, 2, 10)}, there)
    with pytest.raises(ValueError, match=r"4 frames of imu are not 1 to 3 .* \(further_frames.imu"):
        net(three_clips(2) | {"imu": torch.randn(2, 2, 4)}, there)
    with pytest.raises(ValueError, match="takes the modalities video, audio and imu, not video an"):
        net(clips(2), there)
    with pytest.raises(ValueError, match=r"shape \[2, 15\] and no dimension 3 \(further_axes"):
        three(further_axes={"imu": 3})(three_clips(2), there)


# The objective


def slow_cpp(
    net: AVBert,
    batch: Batch,
    x: dict[str, Tensor],
    masked: Tensor,
    outputs: dict[str, Tensor],
    classifier: nn.Module,
    pair: tuple[str, str],
    inputs: bool,
) -> tuple[float, float]:
    """The term and accuracy of one classifier and pair of modalities, sample by sample."""
    one, other = pair
    both = [i for i in range(len(batch)) if batch.present[one][i] and batch.present[other][i]]
    draws = Draws(batch.seeds, "pairs")
    whole = torch.tensor([i in both for i in range(len(batch))])
    partner = partners(draws.uniform(), whole).tolist()
    where = 1 + (draws.uniform(3) * masked.shape[1]).long()
    s_at, t_at = where[:, NAMES.index(one)], where[:, NAMES.index(other)]
    summed, correct, pairs = 0.0, 0, 0
    for i in both if len(both) > 1 else []:
        j = partner[i]
        assert j in both
        assert j != i
        for place in (0, 1):
            left = outputs[one][i, int(s_at[i]) * place]
            right = outputs[other][i, int(t_at[i]) * place]
            wrong = outputs[other][j, int(t_at[j]) * place]
            left_wrong = left
            if inputs:  # the other's sequence comes from j, all else from i
                strange = {n: (x[n][j] if n == other else x[n][i])[None] for n in NAMES}
                there = {n: batch.present[n][i, None] for n in NAMES}
                z = net.contextualise(strange, there, masked[i, None]).multimodal
                left_wrong = z[one][0, int(s_at[i]) * place]
                wrong = z[other][0, int(t_at[i]) * place]
            true = classifier(torch.cat([left, right]))[0]
            false = classifier(torch.cat([left_wrong, wrong]))[0]
            summed += float(softplus(-true) + softplus(false)) / 2
            correct += int(true > 0) + int(false <= 0)
            pairs += 2
    return summed / max(1, len(both)), correct / max(1, pairs)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("wrong_pairs", ["outputs", "inputs"])
@torch.no_grad()
def test_terms_are_those_of_the_formulas(fusion: Fusion, wrong_pairs: Any) -> None:
    batch = batch_of(*ROWS)
    objective, _, net = built(
        three(fusion=fusion, pooled="cnn"), negatives="minibatch", alpha=0.7,
        wrong_pairs=wrong_pairs,
    )  # fmt: skip
    features = net.eval()(three_clips(len(ROWS)), batch.present)
    x = {name: found.embeddings for name, found in features.items()}  # type: ignore[attr-defined]
    losses, masked, outputs = spied(objective, batch, features)
    right: dict[str, float] = {}
    for name, score in objective.scores.items():
        y = outputs.multimodal if name == "multimodal" else {name: outputs.unimodal[name]}
        term, accuracy = slow_mep(objective, batch, x, masked, y, score, "minibatch")
        right |= {f"{name}/mep": term, f"{name}/mep_accuracy": accuracy}
    kinds = {"early": ["multimodal"], "late": ["unimodal"]}.get(fusion, ["unimodal", "multimodal"])
    for kind, pair in itertools.product(kinds, PAIRS):
        name = f"{kind}/{pair[0]}-{pair[1]}"
        inputs = wrong_pairs == "inputs" and kind == "multimodal"
        term, accuracy = slow_cpp(
            net, batch, x, masked, getattr(outputs, kind), objective.classifiers[name], pair, inputs
        )
        right |= {f"{name}/cpp": term, f"{name}/cpp_accuracy": accuracy}
    assert list(losses.parts) == list(right)
    assert {name: float(v) for name, v in losses.parts.items()} == pytest.approx(right, abs=1e-4)
    weights = {"mep": 1, "cpp": 0.7 / 2}  # each modality stands in two pairs
    total = sum(weights.get(name.rpartition("/")[2], 0) * value for name, value in right.items())
    assert float(losses.total) == pytest.approx(total, abs=1e-4)
    assert int(losses.counts[f"{kinds[0]}/audio-imu/cpp"]) == 4  # who has sound and motion


@pytest.mark.parametrize("rows", [ROWS, ("vai", "va"), ("v", "i"), ("", "")])
def test_gradients_reach_all_that_is_there(rows: tuple[str, ...]) -> None:
    batch = batch_of(*rows)
    objective, encoders, net = built(number_of_negatives=5)
    losses = objective.loss(batch, encoders(three_clips(len(rows)), batch.present))
    losses.total.backward()
    for name, p in (*objective.named_parameters(), *encoders.named_parameters()):
        assert p.grad is None or p.grad.isfinite().all(), name
    for name in NAMES:
        taught = [p.grad is not None and bool(p.grad.any()) for p in net.streams[name].parameters()]
        assert any(taught) == bool(batch.present[name].any())
    if rows == ROWS:
        assert all(p.grad.any() for p in objective.parameters())
        trained = [(n, p) for n, p in net.named_parameters() if "layers.0.bias" not in n]
        assert all(p.grad is not None and p.grad.any() for n, p in trained if "conv" not in n)


def trained(rows: list[str]) -> dict[str, Any]:
    """A step's losses and gradients, of this rank's part of the rows."""
    torch.manual_seed(3)
    objective, encoders, _ = built(pool="global", number_of_negatives=3, wrong_pairs="inputs")
    return one_step(objective, encoders, rows, three_clips(len(rows)))


def test_ranks_together_are_one_process() -> None:
    rows = ["vai", "ai", "vai", "va", "v", "vai"]
    one = trained(rows)
    for found in on_ranks(2, trained, rows):
        torch.testing.assert_close(found["counts"], one["counts"])
        torch.testing.assert_close(found["parts"], one["parts"], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found["gradients"], one["gradients"], rtol=1e-2, atol=1e-3)


def test_a_further_modality_first() -> None:
    assert built(first="imu")[0].rounds == 2
    with pytest.raises(
        UserError, match=r"objective.first: there is no modality 'text', only video"
    ):
        built(first="text")
    with pytest.raises(UserError, match=r"objective.first: with sharing all"):
        built(three(sharing="all", pooled="cnn"), first="imu")


# Recipes: a second kind of sound is the third modality.

THREE = (
    RECIPE.replace(
        "backbones:\n", "  low: {use: audio, seconds: 0.96, mels: 4, hop_ms: 60}\nbackbones:\n"
    )
    .replace("video+audio:", "video+audio+low:")
    .replace("    length: 3\n", "    length: 3\n    further: {low: resnet18_audio}\n")
    .replace("    rank: 4\n", "    rank: 4\n    further_frames: {low: 5}\n")
)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("backbones.video+audio+low.further=null", "further_frames.low: further has no CNN"),
        ("backbones.video+audio+low.further_frames.low=9", "of audio 3, of low 2"),
        ("backbones.video+audio+low.further.low=r3d_18", "low [1, 4, 16]: "),
        ("backbones.video+audio+low.video_cnn=null", "has a network for audio, not for video"),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path: Path, change: str, says: str) -> None:
    (tmp_path / "a.yaml").write_text(THREE)
    with pytest.raises(UserError) as raised:
        make_plan(load(tmp_path / "a.yaml", [change]))
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_recipe_is_planned(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(THREE.replace("{use: xdc, rounds: 1, clusters: 4}", "avbert"))
    networks = make_plan(load(tmp_path / "a.yaml")).tables[0]
    assert networks.rows[0][0] == "video+audio+low"
    assert networks.rows[0][2] == "3x6x16x16, 1x8x24, 1x4x16"
