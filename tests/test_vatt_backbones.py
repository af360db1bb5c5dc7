"""VATT's networks: the papers' counts, text by text and clip by clip, and a fourth modality."""

import itertools
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor, nn
from torch.nn import functional
from typer.testing import CliRunner

from mmssl import Backbone, Features, UserError
from mmssl.cli import app
from mmssl.pipeline.plan import make_plan
from mmssl.recipe import load
from mmssl.training import distributed
from mmssl.training.encoders import Encoders
from mmssl_vatt.backbone import VattAgnostic, vatt
from mmssl_vatt.narrations import Narrations
from mmssl_vatt.text_tower import VattText, distance_buckets
from mmssl_vatt.tokenizers import (
    SpectrogramPatches,
    VideoPatches,
    WaveformPatches,
    WordEmbeddings,
)
from mmssl_vatt.transformer import SHAPES, Size, behind


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def close(found: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


def count(net: nn.Module, trained: bool | None = None) -> int:
    chosen = [p for p in net.parameters() if trained is None or p.requires_grad == trained]
    return sum(p.numel() for p in chosen)


def video(**changed: Any) -> VideoPatches:
    return VideoPatches(**({"patch": (2, 4, 4), "buckets": (2, 2, 2), "dim": 128} | changed))


def words(**changed: Any) -> WordEmbeddings:
    return WordEmbeddings(**({"size": 20, "width": 12} | changed))


class Readings(Backbone):
    """A stranger's tokenizer of a fourth modality: one token for each instant."""

    modalities = frozenset({"imu"})
    dim = 128

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.project = nn.Linear(6, 128)
        self.place = nn.Parameter(torch.randn(5, 128))

    def forward(self, clip: Tensor) -> Features:
        tokens = self.project(self.norm(clip.transpose(1, 2)).transpose(1, 2)) + self.place
        return Features(tokens.mean(1), tokens)


# The papers' counts


@pytest.mark.parametrize(
    ("size", "paper", "published", "released"),
    [
        ("small", 20_871_168, 20.9, 20_508_672),
        ("base", 87_948_288, 87.9, 87_446_016),
        ("medium", 155_013_120, 155.0, 154_343_424),
        ("large", 306_057_216, 306.1, 305_498_112),
    ],
)
def test_video_transformers(size: Size, paper: int, published: float, released: int) -> None:
    """Table 1's are of patches of 5 frames and maps without biases, and do not count AGG."""
    dim = SHAPES[size].dim
    with torch.device("meta"):
        bare = VideoPatches(
            patch=(5, 16, 16), buckets=(6, 14, 14), dim=dim, bias=False, position_norm=False
        )
        printed = vatt(tokenizer=bare, size=size, bias=False)
        ours = vatt(tokenizer=VideoPatches(dim=dim), size=size)
    assert count(printed) - printed.agg.numel() == paper
    assert round(count(printed) / 1e6, 1) == published
    assert count(ours) == released
    assert ours.dim == dim


def test_other_released_networks() -> None:
    with torch.device("meta"):
        waveform = vatt(tokenizer=WaveformPatches(), size="base")
        text = VattText(tokenizer=WordEmbeddings(frozen=True))
        tokenizers: dict[str, Backbone] = {
            "video": VideoPatches(dim=1024, dense=True),
            "audio": WaveformPatches(dim=1024, dense=True),
            "text": WordEmbeddings(dim=1024, buckets=16, frozen=True),
        }
        agnostic = VattAgnostic(tokenizers=tokenizers)
    assert count(waveform) == 86_078_976
    assert (count(text, True), count(text, False)) == (19_038_252, 19_660_800)
    assert (count(agnostic, True), count(agnostic, False)) == (161_283_072, 19_660_800)


# One modality


def test_a_tower_is_its_parts() -> None:
    tower = vatt(tokenizer=video(), size="tiny").eval()
    clip = torch.randn(3, 3, 4, 8, 8)
    tokens = tower.tokenizer(clip).tokens
    outputs = tower.transformer(torch.cat([tower.agg.expand(3, 1, -1), tokens], 1))
    features = tower(clip)
    assert tower.modalities == {"video"}
    assert type(features) is Features
    close(features.pooled, outputs[:, 0])
    close(features.tokens, outputs[:, 1:])


@pytest.mark.parametrize(
    "tokenizer",
    [
        video(),
        WaveformPatches(patch=4, buckets=8, dim=128),
        SpectrogramPatches(patch=(2, 2), buckets=(2, 4), dim=128),
        Readings(),
    ],
)
def test_tokens_are_dropped_in_training_alone(tokenizer: Backbone) -> None:
    clip = {
        "video": torch.randn(2, 3, 4, 8, 8),
        "waveform": torch.randn(2, 32),
        "audio": torch.randn(2, 1, 8, 4),
        "imu": torch.randn(2, 5, 6),
    }[min(tokenizer.modalities)]
    tower = vatt(tokenizer=tokenizer, size="tiny")
    size = 5 if isinstance(tokenizer, Readings) else 8
    assert tower(clip).tokens.shape[1] == size // 2
    assert tower.eval()(clip).tokens.shape[1] == size
    tower.train().drop_token = 0.0
    assert tower(clip).tokens.shape[1] == size


def test_what_is_dropped_is_the_same_in_all_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = vatt(tokenizer=video(dropout=0), size="tiny", dropout=0.0)
    clip = torch.randn(1, 3, 4, 8, 8).expand(3, -1, -1, -1, -1)
    seen = []
    tower.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tower(clip)
    (x,) = seen
    whole = tower.tokenizer(clip).tokens
    close(x[:, 0], tower.agg.expand(3, -1))
    assert x.shape[1] == 5
    for row in x[:, 1:]:
        near = torch.cdist(row, whole[0]).argmin(1)
        close(row, whole[0][near])
        assert len(set(near.tolist())) == 4
    assert (x == x[:1]).all()


def test_text_through_the_same_transformer() -> None:
    """Of text nothing is dropped, and padding is not seen: a shorter text gives the same."""
    tower = vatt(tokenizer=words(dim=128, buckets=4, dropout=0), size="tiny", dropout=0.0)
    ids = torch.tensor([[[3, 5, 0, 0], [6, 7, 8, 9]], [[0, 0, 0, 0], [4, 0, 0, 0]]])
    found = tower(ids)
    assert isinstance(found, Narrations)
    assert found.tokens.shape == (2, 8, 128)
    assert found.tokens[0, :2].ne(0).all()
    assert found.tokens[0, 2:4].eq(0).all()
    assert found.valid.tolist() == [[True, True], [False, True]]
    assert torch.equal(found.pooled, found.candidates[:, 0])
    assert found.candidates[1, 0].eq(0).all()
    for clip, text in ((0, 0), (0, 1), (1, 1)):
        close(tower(ids[clip, text][None, None]).pooled[0], found.candidates[clip, text])
    length = 2
    tokens = tower.tokenizer(ids[:1, :1]).tokens[:, :length]
    close(tower.transformer(behind(tower.agg, tokens))[0, 0], found.candidates[0, 0])


class Padded(Backbone):
    """Tokens of which some are padding, of one sequence a clip."""

    modalities = frozenset({"imu"})
    dim = 128

    def forward(self, clip: Tensor) -> Features:
        found = Features(clip.mean(1), clip)
        found.valid = clip[..., 0] != 0  # type: ignore[attr-defined]
        return found


def test_one_sequence_with_padding() -> None:
    tower = vatt(tokenizer=Padded(), size="tiny", dropout=0.0)
    clip = torch.randn(2, 6, 128)
    clip[0, 4:] = 0
    found = tower(clip)
    assert type(found) is Features
    close(found.pooled[0], tower(clip[:1, :4]).pooled[0])
    assert found.tokens[0, 4:].eq(0).all()
    assert found.tokens[1].ne(0).all()


class Pooled(Backbone):
    """No tokens."""

    modalities: Any = "any"
    dim = 128

    def forward(self, clip: Tensor) -> Features:
        return Features(clip)


def test_networks_that_are_no_tokenizers() -> None:
    with pytest.raises(UserError, match="VideoPatches gives tokens of 768 dimensions, but the Tr"):
        vatt(tokenizer=VideoPatches(), size="small")
    agnostic = VattAgnostic(tokenizers={"video": video()}, size="tiny")
    with pytest.raises(UserError, match="VattAgnostic takes several modalities at once"):
        vatt(tokenizer=agnostic, size="tiny")
    with pytest.raises(ValueError, match="Pooled gives no tokens"):
        vatt(tokenizer=Pooled(), size="tiny")(torch.zeros(1, 128))
    with pytest.raises(UserError, match="VideoPatches is no network for text"):
        VattText(tokenizer=video())
    with pytest.raises(ValueError, match="Pooled does not tell texts and padding"):
        VattText(tokenizer=Pooled())(torch.zeros(1, 128))
    with pytest.raises(UserError, match=re.escape("tokenizers.sight: VideoPatches gives tokens")):
        VattAgnostic(tokenizers={"sight": video(dim=12)}, size="tiny")


# The text tower


def text_tower(**changed: Any) -> VattText:
    tower = VattText(**({"tokenizer": words(), "size": "tiny", "dropout": 0.0} | changed))
    nn.init.normal_(tower.distance_bias.weight)
    return tower


def test_each_text_by_itself_and_without_padding() -> None:
    tower = text_tower()
    ids = torch.zeros(2, 3, 6, dtype=torch.int64)
    lengths = [[6, 2, 0], [1, 0, 4]]
    for clip, text in itertools.product(range(2), range(3)):
        length = lengths[clip][text]
        ids[clip, text, :length] = torch.randint(1, 20, (length,))
    found = tower(ids)
    assert found.valid.tolist() == [[True, True, False], [True, False, True]]
    assert found.tokens.shape == (2, 18, 128)
    assert torch.equal(found.pooled, found.candidates[:, 0])
    for clip, text in itertools.product(range(2), range(3)):
        length = lengths[clip][text]
        tokens = found.tokens[clip, text * 6 : (text + 1) * 6]
        right = torch.zeros(1 + length, 128)
        if length:
            vectors = tower.tokenizer.vectors.weight[ids[clip, text, :length]]
            x = torch.cat([tower.agg[None], vectors]) @ tower.project.weight.T
            x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
            bias = tower.distance_bias.weight[distance_buckets(1 + length)]
            right = tower.transformer(x[None], bias.permute(2, 0, 1)[None])[0]
        close(found.candidates[clip, text], right[0])
        close(tokens[:length], right[1:])
        assert tokens[length:].eq(0).all()


def test_the_order_of_words_matters() -> None:
    tower = text_tower()
    found = tower(torch.tensor([[[3, 5, 7], [7, 5, 3]]])).candidates[0]
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    nn.init.zeros_(tower.distance_bias.weight)
    found = tower(torch.tensor([[[3, 5, 7], [7, 5, 3]]])).candidates[0]
    close(found[0], found[1])


@pytest.mark.parametrize("amp", [False, True])
def test_clips_without_text_give_no_gradient(amp: bool) -> None:
    tower = text_tower(dropout=0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        found = tower(torch.zeros(2, 2, 4, dtype=torch.int64))
    for values in (found.pooled, found.tokens, found.candidates, found.valid):
        assert values.eq(0).all()
    (found.candidates.float().exp().sum() + found.tokens.float().sum()).backward()
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.eq(0).all(), name


# All modalities


SIZES: dict[str, tuple[int, ...]] = {
    "video": (3, 4, 8, 8),
    "audio": (1, 8, 4),
    "imu": (5, 6),
}
NAMES = ("video", "audio", "text", "imu")


def agnostic(**changed: Any) -> VattAgnostic:
    tokenizers = {
        "video": video(dense=True),
        "audio": SpectrogramPatches(patch=(2, 2), buckets=(2, 4), dim=128, dense=True),
        "text": words(dim=128, buckets=4),
        "imu": Readings(),
    }
    return VattAgnostic(**({"tokenizers": tokenizers, "size": "tiny", "dim": 10} | changed))


def clips(rows: int) -> dict[str, Tensor]:
    made = {name: torch.randn(rows, *size) for name, size in SIZES.items()}
    made["text"] = torch.randint(1, 20, (rows, 2, 4))
    made["text"][:, 1, 2:] = 0
    return {name: made[name] for name in NAMES}


def present(*rows: str) -> dict[str, Tensor]:
    """Masks of rows such as "va", "t" and the empty one."""
    return {name: torch.tensor([name[0] in row for row in rows]) for name in NAMES}


def test_modalities_meet_in_one_transformer() -> None:
    net = agnostic().eval()
    whole = clips(2)
    found = net(whole, present("vati", "vati"))
    transformers = {id(tower.transformer) for tower in net.towers.backbones.values()}
    assert (list(found), len(transformers), net.dim) == ([*NAMES], 1, 10)
    assert isinstance(found["text"], Narrations)
    for name in ("video", "audio", "imu"):
        tower = net.towers.backbones[name]
        tokens = tower.tokenizer(whole[name]).tokens
        y = tower.transformer(behind(tower.agg, tokens))
        y = functional.gelu(y @ tower.project.weight.T + tower.project.bias)
        close(found[name].pooled, y[:, 0])
        close(found[name].tokens, y[:, 1:])
    tower = net.towers.backbones["text"]
    tokens = tower.tokenizer(whole["text"]).tokens
    for row in range(2):
        y = tower.transformer(behind(tower.agg, tokens[row : row + 1, 4:6]))
        y = functional.gelu(y @ tower.project.weight.T + tower.project.bias)
        close(found["text"].candidates[row, 1], y[0, 0])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("amp", [False, True])
def test_any_presence_is_finite(training: bool, amp: bool) -> None:
    net = agnostic().train(training)
    whole = clips(2)
    for rows in itertools.product(["vati", "va", "t", "i", ""], repeat=2):
        masks = present(*rows)
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            features = net(whole, masks)
        total = torch.zeros(())
        for name, found in features.items():
            for values in (found.pooled, found.tokens):
                assert values.isfinite().all()
                assert values[~masks[name]].eq(0).all()
                assert values[masks[name]].ne(0).any() == masks[name].any()
                total = total + values.float().square().sum()
        total.backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), (rows, name)


@pytest.mark.parametrize("training", [False, True])
def test_what_is_absent_changes_nothing(training: bool) -> None:
    net = agnostic(dropout=0.0, drop_token=0.0).train(training)
    for part in net.modules():
        if hasattr(part, "dropout"):
            part.dropout = 0.0
    whole, rows = clips(4), present("vati", "va", "ti", "vi")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first = net(whole, rows)
    after = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(before)
    for name in ("video", "audio", "imu"):
        whole[name][~rows[name]] = 1e4
    whole["text"][~rows["text"]] = 7
    second = net(whole, rows)
    for name in NAMES:
        assert torch.equal(first[name].pooled, second[name].pooled)
        assert torch.equal(first[name].tokens, second[name].tokens)
    assert torch.equal(first["text"].valid, second["text"].valid)
    assert first["text"].valid.any(1).tolist() == rows["text"].tolist()
    for name, value in net.state_dict().items():
        assert torch.equal(value, after[name]), name
        assert torch.equal(value, before[name]) or (training and ".norm." in name), name


def trained(rows: list[str]) -> dict[str, Any]:
    """A step's outputs and gradients, of this rank's part of the rows."""
    torch.manual_seed(3)
    net = agnostic(dropout=0.0, drop_token=0.0)
    for part in net.modules():
        if hasattr(part, "dropout"):
            part.dropout = 0.0
    net.towers.backbones["imu"].tokenizer.norm = nn.Identity()
    whole, weights = clips(len(rows)), torch.randn(len(rows), 10)
    own = [*distributed.share(len(rows))]
    features = net({n: clip[own] for n, clip in whole.items()}, present(*(rows[i] for i in own)))
    sum((f.pooled * weights[own]).sum() for f in features.values()).backward()
    gradients = {n: p.grad for n, p in net.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    return {
        "pooled": {name: f.pooled.detach() for name, f in features.items()},
        "gradients": {name: distributed.total(g) for name, g in gradients.items()},
    }


def test_ranks_train_alike_where_one_of_them_has_no_text() -> None:
    rows = ["vati", "at", "vi", "v"]
    one = trained(rows)
    found = on_ranks(2, trained, rows)
    same = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4)
    for name in NAMES:
        same(torch.cat([f["pooled"][name] for f in found]), one["pooled"][name])
    for f in found:
        same(f["gradients"], one["gradients"])


def test_saved_and_loaded(tmp_path: Path) -> None:
    key = "+".join(NAMES)
    first = Encoders({key: agnostic()}, [*NAMES]).eval()
    first.save(tmp_path / "encoders.safetensors")
    torch.manual_seed(9)
    second = Encoders({key: agnostic()}, [*NAMES]).eval()
    second.load(tmp_path / "encoders.safetensors")
    third = Encoders({key: agnostic()}, [*NAMES]).eval()
    third.load_state_dict(first.state_dict())
    whole, rows = clips(2), present("vati", "vt")
    right = first(whole, rows)
    for other in (second, third):
        found = other(whole, rows)
        for name in NAMES:
            assert torch.equal(found[name].pooled, right[name].pooled)
        towers = other.backbones[key].towers.backbones
        assert towers["text"].transformer is towers["video"].transformer


def test_a_modality_alone() -> None:
    """What is measured of video alone is the path that its clips take among others."""
    net = agnostic().eval()
    whole = clips(2)
    encoders = Encoders({"+".join(NAMES): net}, [*NAMES])
    alone = encoders.subnetworks({"video": "video"})
    found = alone({"video": whole["video"]}, {"video": torch.ones(2, dtype=torch.bool)})
    close(found["video"].pooled, net(whole, present("vati", "vati"))["video"].pooled)
    assert {id(p) for p in alone.parameters()} < {id(p) for p in encoders.parameters()}


@pytest.mark.parametrize("key", ["video", "+".join(NAMES)])
def test_fine_tuning_may_see_all_tokens(key: str) -> None:
    """Fields of the paper: none are dropped in fine-tuning (B.5)."""
    net = (
        agnostic(drop_token=0.5)
        if "+" in key
        else agnostic(drop_token=0.5).towers.backbones["video"]
    )
    encoders = Encoders({key: net}, key.split("+"))
    whole = encoders.subnetworks({"video": "video" if "+" in key else "all_tokens"}).train()
    clip, there = {"video": clips(2)["video"]}, {"video": torch.ones(2, dtype=torch.bool)}
    kept = (
        net.train()(clips(2), present("vati", "vati"))["video"]
        if "+" in key
        else net(clip["video"])
    )
    found = whole(clip, there)["video"]
    assert kept.tokens.shape[1] < found.tokens.shape[1]
    assert found.tokens.shape[1] == whole.eval()(clip, there)["video"].tokens.shape[1]
    assert {id(p) for p in whole.parameters()} <= {id(p) for p in net.parameters()}


def test_other_modalities_are_refused() -> None:
    with pytest.raises(ValueError, match="has tokenizers of video, audio, text, imu, not of video"):
        agnostic()({"video": torch.zeros(1)}, {})


def test_checkpointing_changes_no_gradient() -> None:
    nets = [agnostic(checkpointing=c) for c in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    whole, gradients = clips(2), []
    for net in nets:
        torch.manual_seed(5)
        features = net(whole, present("vati", "vi"))
        sum(f.pooled.square().sum() for f in features.values()).backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("kind", [video, words])
def test_a_tower_compiles_as_one_graph(kind: Any) -> None:
    net = vatt(tokenizer=video(), size="tiny") if kind is video else text_tower()
    clip = clips(2)["video" if kind is video else "text"]
    right = net.eval()(clip)
    found = torch.compile(net, backend="eager", fullgraph=True)(clip)
    close(found.pooled, right.pooled)


def test_dropped_tokens_are_a_function_of_the_seed() -> None:
    net = agnostic()
    whole, rows = clips(2), present("vati", "vati")
    found = []
    for seed in (4, 4, 5):
        torch.manual_seed(seed)
        found.append(net(whole, rows)["video"].pooled)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


# Recipes

RECIPE = """\
name: vatt
seed: 1
device: cpu
modalities:
  video: {use: video, frames: 6, fps: 6, short_side: 20, crop: 16}
  audio: {use: audio, seconds: 0.96, mels: 8, hop_ms: 40, window_ms: 40}
  wave: {use: waveform, seconds: 0.5, rate: 1600}
backbones:
  video+audio:
    use: vatt_agnostic
    size: tiny
    dim: 12
    tokenizers:
      video: {use: video_patches, patch: [2, 8, 8], buckets: [3, 2, 2], dim: 128}
      audio: {use: spectrogram_patches, patch: [4, 4], buckets: [5, 2], dim: 128}
  wave:
    use: vatt
    size: tiny
    tokenizer: {use: waveform_patches, patch: 100, buckets: 8, dim: 128}
data:
  train: {use: synthetic, videos: 16, side: 32, fps: 8, seconds: 1}
objective: {use: xdc, rounds: 1, clusters: 4}
training:
  epoch_size: 16
  epochs: 1
  batch_size: 8
  optimizer: {use: adamw, lr: 0.0001}
  schedule: cosine
"""


def test_a_recipe_is_planned(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(RECIPE)
    plan = make_plan(load(tmp_path / "a.yaml", ["objective={use: mdc, clusters: 4}"]))
    networks = next(table for table in plan.tables if table.title == "networks")
    shapes = [(row[0], row[2], row[3]) for row in networks.rows[:2]]
    assert shapes == [("video+audio", "3x6x16x16, 1x8x24", 12), ("wave", "800", 128)]


AGNOSTIC = "backbones.video+audio."


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (AGNOSTIC + "size=small", "tokenizers.video: VideoPatches gives tokens of 128 dimensions"),
        (AGNOSTIC + "tokenizers.audio=null", "audio"),
        (AGNOSTIC + "tokenizers.audio.patch=[25, 4]", "a clip of 24x8 holds no patch of 25x4"),
        (
            AGNOSTIC + "tokenizers.sound={use: spectrogram_patches, dim: 128}",
            "has tokenizers of video, audio, sound, not of video, audio",
        ),
        ("backbones.wave.tokenizer=video_patches", "gives tokens of 768 dimensions"),
        (
            "backbones.wave.tokenizer={use: video_patches, dim: 128}",
            "wave has a network for video, not for waveform",
        ),
        (AGNOSTIC + "drop_token=1", "drop_token"),
        ("backbones.wave.tokenizer.patch=0", "patch"),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path: Path, change: str, says: str) -> None:
    (tmp_path / "a.yaml").write_text(RECIPE)
    with pytest.raises(UserError) as raised:
        make_plan(load(tmp_path / "a.yaml", [change]))
    message = str(raised.value)
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["vatt", "vatt_agnostic", "vatt_text", "word_embeddings"])
def test_they_are_described(name: str) -> None:
    result = CliRunner().invoke(app, ["describe", "backbone", name])
    assert result.exit_code == 0
    assert f"backbone {name}, from mmssl_vatt" in result.stdout
    entries = re.findall(r"^  (\w+): .*\n      \S", result.stdout, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^  \w+: ", result.stdout, re.MULTILINE))
