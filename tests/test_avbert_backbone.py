"""The joint backbone against its formulas, row by row, for everything that may be absent."""

import itertools
import re
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from ranks import on_ranks
from tiny_avbert import NAMES, RECIPE, avbert, clips, present
from torch import Tensor, nn
from typer.testing import CliRunner

import mmssl_avbert.backbone
from mmssl import UserError
from mmssl.cli import app
from mmssl.pipeline.plan import make_plan
from mmssl.recipe import load
from mmssl.training import distributed
from mmssl.training.batch_norm import synchronise
from mmssl.training.encoders import Encoders
from mmssl.training.settings import Group, grouped
from mmssl_avbert.backbone import AVBert, Fusion, Pooled, SequenceFeatures
from mmssl_avbert.low_rank import rotations
from mmssl_avbert.transformer import Sharing

FUSIONS: tuple[Fusion, ...] = get_args(Fusion)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def close(found: Tensor, right: Tensor) -> None:
    near = 1e-10 if found.dtype == torch.float64 else 1e-4
    torch.testing.assert_close(found, right, rtol=near, atol=near)


# Formulas


def slow(net: AVBert, x: dict[str, Tensor], has: str) -> tuple[dict, dict]:
    """y and z of one sequence (the paper's equations 2 and 3); what is absent is left out."""
    turned = rotations(net.transformers)

    def normed(name: str, rows: list[Tensor]) -> Tensor:
        norm = net.places[name].norm
        return torch.stack(
            [(r - r.mean()) / r.std(correction=0) * norm.weight + norm.bias for r in rows]
        )

    def through(name: str, rows: Tensor) -> Tensor:
        everything = torch.ones(1, len(rows), dtype=torch.bool)
        return net.transformers[name](rows[None], everything, turned)[0]

    names = [name for name in net.names if name[0] in has]
    y = {name: [net.streams[name].bos, *x[name]] for name in names}
    unimodal, multimodal = {}, {}
    if net.names[0] in net.transformers:
        for name in names:
            u = [row + net.places[name].time[t] for t, row in enumerate(y[name])]
            unimodal[name] = y[name] = through(name, normed(name, u))
    if "multimodal" in net.transformers and names:
        w = [
            row + net.places["multimodal"].time[t] + net.modality[name]
            for name in names
            for t, row in enumerate(y[name])
        ]
        z = through("multimodal", normed("multimodal", w))
        length = len(y[names[0]])
        multimodal = {name: z[i * length : (i + 1) * length] for i, name in enumerate(names)}
    return unimodal, multimodal


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("sharing", get_args(Sharing))
@pytest.mark.parametrize("length", [1, 3])
def test_outputs_are_those_of_the_formulas(fusion: Fusion, sharing: Sharing, length: int) -> None:
    net = avbert(fusion=fusion, sharing=sharing).double()
    rows = ("va", "v", "a", "")
    x = {name: torch.randn(4, length, 12, dtype=torch.float64) for name in NAMES}
    out = net.contextualise(x, present(*rows))
    assert set(out.unimodal) == (set() if fusion == "early" else set(NAMES))
    assert set(out.multimodal) == (set() if fusion == "late" else set(NAMES))
    depth = {"early": [4], "mid": [2, 2, 2], "late": [4, 4]}[fusion]
    assert [transformer.depth for transformer in net.transformers.values()] == depth
    for i, row in enumerate(rows):
        right = slow(net, {name: x[name][i] for name in NAMES}, row)
        for found, expected in zip((out.unimodal, out.multimodal), right, strict=True):
            for name, y in found.items():
                assert y.shape == (4, 1 + length, 12)
                close(y[i], expected.get(name, torch.zeros_like(y[i])))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_masked_clips_are_replaced_in_both_modalities(fusion: Fusion) -> None:
    net = avbert(fusion=fusion)
    x = {name: torch.randn(2, 3, 12) for name in NAMES}
    masked = torch.tensor([[True, False, False], [False, True, True]])
    out = net.contextualise(x, present("va", "a"), masked)
    replaced = {name: x[name].clone() for name in NAMES}
    for name in NAMES:
        for i, t in masked.nonzero().tolist():
            replaced[name][i, t] = net.streams[name].mask.detach()
    right = net.contextualise(replaced, present("va", "a"))
    for name in NAMES:
        for found, expected in ((out.unimodal, right.unimodal), (out.multimodal, right.multimodal)):
            if found:
                close(found[name], expected[name])
    # What is masked is not seen, whatever it is.
    x["video"][0, 0] = 1e4
    again = net.contextualise(x, present("va", "a"), masked)
    for name, y in (again.multimodal or again.unimodal).items():
        assert torch.equal(y, (out.multimodal or out.unimodal)[name])


def test_clips_are_consecutive_parts_of_a_sequence() -> None:
    """Each clip through its CNN alone, then Linear and LayerNorm."""
    net = avbert().eval()
    whole = clips(2)
    x = net.embed(whole, present("va", "va"))
    for i, t in itertools.product(range(2), range(3)):
        video = whole["video"][i : i + 1, :, 2 * t : 2 * t + 2]
        audio = whole["audio"][i : i + 1, :, :, 8 * t : 8 * t + 8]
        for name, clip in (("video", video), ("audio", audio)):
            linear, norm = net.streams[name].glue
            pooled = net.cnns.backbones[name](clip).pooled
            y = pooled @ linear.weight.T + linear.bias
            y = (y - y.mean()) / y.var(correction=0).sqrt() * norm.weight + norm.bias
            close(x[name][i, t], y[0])
    features = net(whole, present("va", "va"))
    for name in NAMES:
        assert isinstance(features[name], SequenceFeatures)
        close(features[name].embeddings, x[name])


@pytest.mark.parametrize(
    ("frames", "starts"),
    [(24, [0, 8, 16]), (22, [0, 7, 14]), (23, [0, 8, 15]), (27, [0, 10, 19]), (8, [0]), (11, [0])],
)
def test_clips_of_sound_begin_at_equal_distances(
    frames: int, starts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = avbert().eval()
    seen: dict[str, Tensor] = {}
    cnns = net.cnns.forward

    def looked(cut: dict[str, Tensor], masks: dict[str, Tensor]) -> Any:
        seen.update(cut)
        return cnns(cut, masks)

    monkeypatch.setattr(net.cnns, "forward", looked)
    whole = clips(2, len(starts))
    whole["audio"] = torch.randn(2, 1, 8, frames)
    net(whole, present("va", "va"))
    right = [whole["audio"][i, :, :, start : start + 8] for i in range(2) for start in starts]
    assert torch.equal(seen["audio"], torch.stack(right))


@pytest.mark.parametrize("frames", [7, 12, 28, 29])
def test_sound_of_another_length(frames: int) -> None:
    whole = clips(2) | {"audio": torch.randn(2, 1, 8, frames)}
    with pytest.raises(ValueError, match="of audio"):
        avbert()(whole, present("va", "va"))


@pytest.mark.parametrize(
    ("pooled", "fusion", "stage"),
    [
        (None, "early", "multimodal"),
        (None, "mid", "multimodal"),
        (None, "late", "unimodal"),
        ("unimodal", "mid", "unimodal"),
        ("cnn", "mid", "cnn"),
    ],
)
def test_what_stands_for_a_sequence(pooled: Pooled | None, fusion: Fusion, stage: str) -> None:
    net = avbert(pooled=pooled, fusion=fusion).eval()
    rows = present("va", "v")
    whole = clips(2)
    features = net(whole, rows)
    x = net.embed(whole, rows)
    out = net.contextualise(x, rows)
    for name in NAMES:
        if stage == "cnn":
            summary, tokens = x[name].sum(1) / 3, x[name]
        else:
            y = getattr(out, stage)[name]
            summary, tokens = y[:, 0], y[:, 1:]
        assert features[name].pooled.shape == (2, net.dim)
        assert features[name].tokens.shape == (2, 3, net.dim)
        close(features[name].pooled, summary)
        close(features[name].tokens, tokens)


def test_the_papers_numbers_of_parameters() -> None:
    with torch.device("meta"):
        net = avbert(length=30, dim=768, layers=6, heads=12, hidden=3072, rank=128)
    assert sum(p.numel() for p in net.transformers.parameters()) == 3_843_840
    vectors = [*net.places.parameters(), *net.modality.parameters()]
    vectors += [stream.bos for stream in net.streams.values()]
    assert sum(p.numel() for p in vectors) == 79_104


# Absent modalities


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("amp", [False, True])
def test_any_presence_is_finite(fusion: Fusion, training: bool, amp: bool) -> None:
    net = avbert(fusion=fusion, dropout=0.1).train(training)
    whole = clips(2)
    for rows in itertools.product(["va", "v", "a", ""], repeat=2):
        masks = present(*rows)
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            features = net(whole, masks)
        total = sum(
            f.pooled.float().sum() + f.tokens.float().square().sum() for f in features.values()
        )
        total.backward()
        for name, found in features.items():
            for values in (found.pooled, found.tokens, found.embeddings):
                assert values.isfinite().all()
                assert values[~masks[name]].eq(0).all()
                assert values[masks[name]].ne(0).any() == masks[name].any()
        for name, parameter in net.named_parameters():
            # On CPUs torch leaves parts of a bfloat16 kernel's gradient unwritten where the kernel
            # is larger than its map.
            if parameter.grad is not None and not (amp and name.startswith("cnns.")):
                assert parameter.grad.isfinite().all(), (rows, name)


@pytest.mark.parametrize("training", [False, True])
def test_what_is_absent_changes_nothing(training: bool) -> None:
    net = avbert().train(training)
    whole, rows = clips(4), present("va", "v", "a", "va")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first = net(whole, rows)
    after = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(before)
    whole["audio"][1] = 1e4
    whole["video"][2] = -1e4
    second = net(whole, rows)
    for name in NAMES:
        assert torch.equal(first[name].pooled, second[name].pooled)
        assert torch.equal(first[name].embeddings, second[name].embeddings)
    for name, value in net.state_dict().items():
        assert torch.equal(value, after[name]), name
        if not training:
            assert torch.equal(value, before[name]), name


def trained(rows: list[str]) -> dict[str, Any]:
    """A step's outputs, gradients and statistics, of this rank's part of the rows."""
    torch.manual_seed(3)
    encoders = Encoders({"video+audio": avbert()}, list(NAMES)).double()
    if distributed.size() > 1:
        synchronise(encoders)
    whole = {name: clip.double() for name, clip in clips(len(rows)).items()}
    weights = torch.randn(len(rows), 12)
    own = [*distributed.share(len(rows))]
    features = encoders(
        {name: clip[own] for name, clip in whole.items()}, present(*(rows[i] for i in own))
    )
    sum((f.pooled * weights[own]).sum() for f in features.values()).backward()
    gradients = {n: p.grad for n, p in encoders.named_parameters() if not n.endswith(".mask")}
    assert all(gradient is not None for gradient in gradients.values())
    return {
        "pooled": {name: f.pooled.detach() for name, f in features.items()},
        "gradients": {name: distributed.total(g) for name, g in gradients.items()},
        "buffers": dict(encoders.named_buffers()),
    }


def test_ranks_train_alike_where_one_of_them_has_no_sound() -> None:
    rows = ["va", "a", "va", "v", "v", "v"]
    one = trained(rows)
    found = on_ranks(2, trained, rows)
    same = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-8)
    for name in NAMES:
        same(torch.cat([f["pooled"][name] for f in found]), one["pooled"][name])
    for f in found:
        same(f["buffers"], one["buffers"])
        same(f["gradients"], one["gradients"])


# Training


def test_gradients_in_float64() -> None:
    net = avbert(dim=4, heads=2, hidden=4, rank=3, layers=1).double()
    masks = present("va", "v")
    layer = "transformers.video.layers.0"
    streams = ("streams.audio.bos", "streams.video.mask")
    vectors = (*streams, "places.multimodal.time", "modality.video")
    chosen = (f"{layer}.value.skew", f"{layer}.merge.up.weight", *vectors)
    parameters = {name: net.get_parameter(name) for name in chosen}
    masked = torch.tensor([[True, False], [False, False]])

    def outputs(video: Tensor, audio: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        return torch.func.functional_call(
            Contextualising(net), {f"net.{n}": v for n, v in zip(chosen, values, strict=True)},
            ({"video": video, "audio": audio}, masks, masked),
        )  # fmt: skip

    x = [torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True) for _ in NAMES]
    values = [p.detach().clone().requires_grad_() for p in parameters.values()]
    assert torch.autograd.gradcheck(outputs, (*x, *values), atol=1e-6)


class Contextualising(nn.Module):
    """A forward pass of the Transformers alone."""

    def __init__(self, net: AVBert) -> None:
        super().__init__()
        self.net = net

    def forward(self, *args: Any) -> tuple[Tensor, ...]:
        out = self.net.contextualise(*args)
        return (*out.unimodal.values(), *out.multimodal.values())


def test_rotations_are_computed_once_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(network: nn.Module) -> Any:
        calls.append(network)
        return rotations(network)

    monkeypatch.setattr(mmssl_avbert.backbone, "rotations", counted)
    net = avbert()
    net(clips(2), present("va", "va"))
    assert calls == [net.transformers]


def test_rotations_learn_at_a_rate_of_their_own() -> None:
    encoders = Encoders({"video+audio": avbert()}, list(NAMES))
    rest, rotated = grouped({"encoders": encoders}, [Group("*.skew", {"lr": 1e-5})])
    assert rotated["lr"] == 1e-5
    assert [p.shape for p in rotated["params"]] == [(5, 5)] * 18
    assert len(rest["params"]) + 18 == len(list(encoders.parameters()))


def test_saved_and_loaded_with_shared_tensors(tmp_path: Path) -> None:
    first = Encoders({"video+audio": avbert()}, list(NAMES)).eval()
    first.save(tmp_path / "encoders.safetensors")
    torch.manual_seed(9)
    second = Encoders({"video+audio": avbert()}, list(NAMES)).eval()
    second.load(tmp_path / "encoders.safetensors")
    whole, rows = clips(2), present("va", "v")
    for name, found in second(whole, rows).items():
        assert torch.equal(found.pooled, first(whole, rows)[name].pooled)
    one = second.backbones["video+audio"].transformers
    assert one["video"].layers[0].query.up.weight is one["multimodal"].layers[0].query.up.weight


def test_transformers_compile_as_one_graph() -> None:
    net = avbert().eval()
    x, rows = {name: torch.randn(2, 3, 12) for name in NAMES}, present("va", "v")
    right = net.contextualise(x, rows)
    found = torch.compile(net.contextualise, backend="eager", fullgraph=True)(x, rows)
    for name in NAMES:
        close(found.multimodal[name], right.multimodal[name])


# Recipes


def test_a_recipe_is_planned(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(RECIPE)
    plan = make_plan(load(tmp_path / "a.yaml"))
    networks = next(table for table in plan.tables if table.title == "networks")
    key, component, clip, dim, parameters = networks.rows[0]
    assert (key, dim) == ("video+audio", 12)
    assert component.startswith("avbert video_cnn=r3d_18 audio_cnn=resnet18_audio")
    assert clip == "3x6x16x16, 1x8x24"
    assert parameters == sum(p.numel() for p in avbert(rank=4).parameters())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("backbones.video+audio.length=2", "6 frames of video are not 1 to 2 clips (length) of 2"),
        ("backbones.video+audio.video_frames=4", "6 frames of video are not 1 to 3 clips"),
        ("backbones.video+audio.video_frames=3", "of video there are 2 clips, of audio 3"),
        ("backbones.video+audio.heads=5", "5 do not divide 12 dimensions"),
        ("backbones.video+audio.rank=0", "rank"),
        ("backbones.video+audio.audio_cnn=r3d_18", "VideoResNet is no network for audio alone"),
        (
            "backbones.video+audio={fusion: late, pooled: multimodal}",
            "fusion late has no multimodal Transformer",
        ),
        (
            "backbones.video+audio={fusion: early, pooled: unimodal}",
            "fusion early has no unimodal Transformer",
        ),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path: Path, change: str, says: str) -> None:
    (tmp_path / "a.yaml").write_text(RECIPE)
    with pytest.raises(UserError) as raised:
        make_plan(load(tmp_path / "a.yaml", [change]))
    message = str(raised.value)
    assert says in message
    assert "\n" not in message


def test_other_modalities_are_refused() -> None:
    with pytest.raises(ValueError, match="takes the modalities video and audio, not video and imu"):
        avbert().embed({"video": torch.zeros(1), "imu": torch.zeros(1)}, {})


def test_it_is_described() -> None:
    result = CliRunner().invoke(app, ["describe", "backbone", "avbert"])
    assert result.exit_code == 0
    assert "backbone avbert, from mmssl_avbert" in result.stdout
    names = re.findall(r"^  (\w+): ", result.stdout, re.MULTILINE)
    assert names[:5] == ["video_cnn", "audio_cnn", "video_frames", "audio_frames", "length"]
    assert "sharing: 'none', 'layers', 'all', 'part' or 'part_attention'" in result.stdout
