"""AVBert's visual CNNs beside pytorchvideo's own, its Table 3, and what each pathway sees."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorchvideo.models import create_resnet, create_slowfast
from torch import Tensor, nn

import mmssl_backbones
from mmssl import Backbone, UserError
from mmssl.pipeline.plan import make_plan
from mmssl.recipe import load
from mmssl.registry import load_plugins
from mmssl_backbones.slowfast import SlowFastR50, SlowR50AVBert


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def stir(network: nn.Module) -> None:
    """Batch norms as after training: residual branches that are not zero, moved statistics."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)


def tiny(**settings: Any) -> SlowFastR50:
    torch.manual_seed(0)
    network = SlowFastR50(width=0.125, **settings)
    stir(network)
    return network.eval()


def watch(module: nn.Module) -> list[tuple[Any, Any]]:
    """The inputs and outputs of a module, as they come."""
    seen: list[tuple[Any, Any]] = []
    module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    return seen


def stem(network: SlowFastR50, pathway: int) -> nn.Module:
    return network.get_submodule(f"blocks.0.multipathway_blocks.{pathway}")


# Sizes


@pytest.mark.parametrize(
    ("build", "settings", "count", "dim"),
    [
        (SlowFastR50, {}, 33_644_488, 2304),
        (SlowFastR50, {"fusion_kernel": 5}, 33_558_216, 2304),
        (SlowFastR50, {"alpha": 4}, 33_644_488, 2304),
        (SlowR50AVBert, {}, 31_672_128, 2048),
    ],
)
def test_parameter_counts(
    build: Callable[..., Backbone], settings: dict[str, Any], count: int, dim: int
) -> None:
    with torch.device("meta"):
        backbone = build(**settings)
    assert parameters(backbone) == count
    assert all(p.requires_grad for p in backbone.parameters())
    assert backbone.dim == dim
    assert backbone.modalities == {"video"}


def test_parameter_counts_with_a_classifier_and_of_the_fusions() -> None:
    with torch.device("meta"):
        backbone = SlowFastR50()
        assert parameters(backbone) + parameters(nn.Linear(2304, 400)) == 34_566_488
    fusions = [backbone.get_submodule(f"blocks.{i}.multipathway_fusion") for i in range(5)]
    assert sum(map(parameters, fusions)) == 302_880
    assert parameters(fusions[-1]) == 0


#: AVBert's Table 3 by pathway: the stem's kernel and channels; of each stage, frames that the
#: first convolution of a block spans, channels within and after a block, blocks.
TABLE_3 = [
    ((1, 7, 7), 64, [(1, 64, 256, 3), (1, 128, 512, 4), (3, 256, 1024, 6), (3, 512, 2048, 3)]),
    ((5, 7, 7), 8, [(3, 8, 32, 3), (3, 16, 64, 4), (3, 32, 128, 6), (3, 64, 256, 3)]),
]


@pytest.mark.parametrize("pathway", [0, 1])
def test_the_pathways_are_table_3(pathway: int) -> None:
    kernel, channels, stages = TABLE_3[pathway]
    with torch.device("meta"):
        backbone = SlowFastR50()
    first = backbone.get_submodule(f"blocks.0.multipathway_blocks.{pathway}.conv")
    assert isinstance(first, nn.Conv3d)
    assert (first.kernel_size, first.stride, first.out_channels) == (kernel, (1, 2, 2), channels)
    pool = backbone.get_submodule(f"blocks.0.multipathway_blocks.{pathway}.pool")
    assert isinstance(pool, nn.MaxPool3d)
    assert (pool.kernel_size, pool.stride) == ((1, 3, 3), (1, 2, 2))
    for number, (frames, within, after, blocks) in enumerate(stages, start=1):
        stage = backbone.get_submodule(f"blocks.{number}.multipathway_blocks.{pathway}")
        main = [m for n, m in stage.named_modules() if re.search(r"branch2\.conv_[abc]$", n)]
        found = [(m.kernel_size, m.out_channels) for m in main if isinstance(m, nn.Conv3d)]
        block = [((frames, 1, 1), within), ((1, 3, 3), within), ((1, 1, 1), after)]
        assert found == block * blocks
        strides = {m.stride for m in stage.modules() if isinstance(m, nn.Conv3d)}
        assert strides == ({(1, 1, 1)} if number == 1 else {(1, 1, 1), (1, 2, 2)})


def test_the_released_network_strides_time_once() -> None:
    with torch.device("meta"):
        backbone = SlowR50AVBert()
    strided = {n: m for n, m in backbone.named_modules() if isinstance(m, nn.Conv3d)}
    strided = {n: m for n, m in strided.items() if m.stride[0] != 1}
    (conv,) = strided.values()
    assert strided.keys() == {"blocks.0.conv"}
    assert (conv.kernel_size, conv.stride, conv.padding) == ((5, 7, 7), (2, 2, 2), (2, 3, 3))


@pytest.mark.parametrize(
    ("beta", "width", "channels"),
    [(1, 1e-3, (8, 8)), (0.25, 0.5, (32, 8)), (0.125, 0.2, (16, 2)), (1 / 64, 1e-3, (64, 1))],
)
def test_width_and_beta(beta: float, width: float, channels: tuple[int, int]) -> None:
    with torch.device("meta"):
        backbone = SlowFastR50(beta=beta, width=width)
        features = backbone(torch.empty(2, 3, 9, 20, 20))
    stems = [backbone.get_submodule(f"blocks.0.multipathway_blocks.{i}.conv") for i in (0, 1)]
    assert tuple(conv.out_channels for conv in stems if isinstance(conv, nn.Conv3d)) == channels
    assert backbone.dim == 32 * sum(channels)
    assert features.pooled.shape == (2, backbone.dim)
    with torch.device("meta"):
        slow = SlowR50AVBert(width=width)
    assert slow.dim == 32 * max(8, round(64 * width))


@pytest.mark.parametrize("beta", [1 / 3, 0.3, 0.75])
def test_a_beta_whose_channels_are_not_whole(beta: float) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=r"^beta: 0\.\d+ is none of 1, 1/2"):
        SlowFastR50(beta=beta)


# What each pathway sees


def clip(frames: int, side: int = 32) -> Tensor:
    return torch.randn(2, 3, frames, side, side, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize(("alpha", "frames"), [(8, 32), (8, 16), (8, 11), (4, 9), (3, 2), (1, 3)])
def test_pathways_see_every_alphath_frame_and_all(alpha: int, frames: int) -> None:
    network = tiny(alpha=alpha)
    seen = [watch(stem(network, i)) for i in (0, 1)]
    frames_of = clip(frames)
    kept = frames_of.clone()
    network(frames_of)
    assert torch.equal(frames_of, kept)
    (slow, _), (fast, _) = seen[0][0], seen[1][0]
    assert torch.equal(slow, torch.stack([kept[:, :, i] for i in range(0, frames, alpha)], 2))
    assert torch.equal(fast, kept)


@pytest.mark.parametrize("changed", [0, 1, 7, 8, 15])
def test_other_frames_change_the_fast_pathway_alone(changed: int) -> None:
    network = tiny()
    apart = tiny()
    for i in range(4):  # without what comes from the fast pathway, the slow one is on its own
        nn.init.zeros_(apart.get_parameter(f"blocks.{i}.multipathway_fusion.norm.weight"))
    before = clip(16)
    after = before.clone()
    after[:, :, changed] += 1

    with torch.no_grad():
        old, new = apart(before).pooled, apart(after).pooled
    assert torch.equal(old[:, :256], new[:, :256]) == (changed % 8 != 0)
    assert not torch.isclose(old[:, 256:], new[:, 256:]).all()
    with torch.no_grad():  # the fusions bring every frame to the slow pathway
        assert not torch.isclose(network(before).pooled, network(after).pooled)[:, :256].all()


@pytest.mark.parametrize("alpha", [8, 3])
def test_a_fusion_brings_frames_to_the_slow_one_at_their_centre(alpha: int) -> None:
    """Frame i·α and the kernel's reach around it, and no other, arrive at slow step i."""
    network = tiny(alpha=alpha)
    fuse = network.get_submodule("blocks.0.multipathway_fusion")
    fast = torch.randn(1, 1, 3 * alpha, 4, 4, requires_grad=True)
    slow = torch.zeros(1, 8, 3, 4, 4)
    joined, _ = fuse([slow, fast])
    assert joined.shape == (1, 8 + 2, 3, 4, 4)
    fuse.get_submodule("norm").eval()
    response = fuse.get_submodule("conv_fast_to_slow")(fast)
    for step in range(3):
        (gradient,) = torch.autograd.grad(response[:, :, step].sum(), fast, retain_graph=True)
        reached = gradient.abs().sum((0, 1, 3, 4)).nonzero().flatten().tolist()
        centre = step * alpha
        reach = [i for i in range(centre - 3, centre + 4) if 0 <= i < 3 * alpha]
        assert reached == reach


# Features


@pytest.mark.parametrize(
    ("alpha", "shape"), [(8, (16, 64, 33)), (8, (19, 33, 70)), (2, (3, 40, 9))]
)
def test_features_by_position(alpha: int, shape: tuple[int, int, int]) -> None:
    network = tiny(alpha=alpha)
    last = watch(network.get_submodule("blocks.4"))
    with torch.no_grad():
        features = network(torch.randn(2, 3, *shape))
    ((_, (slow, fast)),) = last
    frames, height, width = shape
    steps, rows, columns = -(-frames // alpha), -(-height // 32), -(-width // 32)
    assert slow.shape == (2, 256, steps, rows, columns)
    assert fast.shape == (2, 32, frames, rows, columns)
    means = [slow.flatten(2).mean(2), fast.flatten(2).mean(2)]
    torch.testing.assert_close(features.pooled, torch.cat(means, 1))
    assert features.tokens is not None
    assert features.tokens.shape == (2, steps * rows * columns, 288)
    n = 0
    for t in range(steps):
        own = fast[:, :, t * alpha : (t + 1) * alpha]
        for y in range(rows):
            for x in range(columns):
                expected = torch.cat([slow[:, :, t, y, x], own[..., y, x].mean(2)], 1)
                torch.testing.assert_close(features.tokens[:, n], expected)
                n += 1
    if frames % alpha == 0:
        torch.testing.assert_close(features.tokens.mean(1), features.pooled)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 5), (9, 33, 17)])
def test_odd_sizes_of_the_released_network(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    network = SlowR50AVBert(width=0.125).eval()
    with torch.no_grad():
        features = network(torch.randn(2, 3, *shape))
    steps, rows, columns = -(-shape[0] // 2), -(-shape[1] // 32), -(-shape[2] // 32)
    assert features.tokens.shape == (2, steps * rows * columns, 256)
    torch.testing.assert_close(features.tokens.mean(1), features.pooled)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 5), (9, 33, 17)])
def test_odd_sizes(shape: tuple[int, int, int]) -> None:
    with torch.no_grad():
        assert tiny()(torch.randn(2, 3, *shape)).pooled.isfinite().all()


def test_sizes_of_the_paper() -> None:
    with torch.device("meta"):
        slowfast, released = SlowFastR50(), SlowR50AVBert()
        for frames, side, positions in [(32, 112, 4 * 16), (16, 112, 2 * 16), (64, 128, 8 * 16)]:
            features = slowfast(torch.empty(2, 3, frames, side, side))
            assert features.pooled.shape == (2, 2304)
            assert features.tokens.shape == (2, positions, 2304)
        features = released(torch.empty(2, 3, 32, 112, 112))
    assert features.pooled.shape == (2, 2048)
    assert features.tokens.shape == (2, 16 * 16, 2048)


# Beside pytorchvideo's networks, whose weights are read


def their_slowfast(alpha: int, pools: tuple[tuple[int, int, int], tuple[int, int, int]]) -> Any:
    """pytorchvideo's SlowFast with a head for one size of clips, 16 channels and 8."""
    return create_slowfast(
        slowfast_channel_reduction_ratio=(2,),
        slowfast_fusion_conv_kernel_size=(5, 1, 1),
        slowfast_fusion_conv_stride=(alpha, 1, 1),
        stem_dim_outs=(16, 8),
        head_pool_kernel_sizes=pools,
        model_num_class=5,
    )


def settled(theirs: nn.Module) -> dict[str, Tensor]:
    stir(theirs)
    return {f"module.{name}": tensor.clone() for name, tensor in theirs.state_dict().items()}


@pytest.mark.parametrize("training", [False, True])
def test_slowfast_equals_pytorchvideos(training: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = their_slowfast(4, ((2, 2, 2), (8, 2, 2)))
    torch.save({"model_state": settled(theirs)}, tmp_path / "theirs.pth")
    ours = SlowFastR50(
        alpha=4, beta=0.5, fusion_kernel=5, width=0.25, weights=tmp_path / "theirs.pth"
    )
    head = theirs.blocks[6]
    head.dropout, head.proj = nn.Identity(), nn.Identity()
    ours.train(training)
    theirs.train(training)
    frames = torch.randn(2, 3, 8, 40, 64)
    with torch.no_grad():
        features = ours(frames)
        expected = theirs([frames[:, :, [0, 4]], frames])
    torch.testing.assert_close(features.pooled, expected, rtol=1e-4, atol=1e-5)
    for name, buffer in ours.named_buffers():  # training moves the statistics of both alike
        torch.testing.assert_close(buffer, theirs.get_buffer(name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_the_released_network_equals_pytorchvideos(training: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = create_resnet(
        stem_dim_out=8,
        stem_conv_kernel_size=(5, 7, 7),
        stem_conv_stride=(2, 2, 2),
        head_pool_kernel_size=(3, 2, 1),
        model_num_class=5,
    )
    torch.save({"model_state": settled(theirs)}, tmp_path / "theirs.pth")
    ours = SlowR50AVBert(width=0.125, weights=tmp_path / "theirs.pth").train(training)
    theirs.blocks[5].dropout, theirs.blocks[5].proj = nn.Identity(), nn.Identity()
    theirs.train(training)
    frames = torch.randn(2, 3, 5, 40, 24)
    with torch.no_grad():
        torch.testing.assert_close(ours(frames).pooled, theirs(frames), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [SlowFastR50, SlowR50AVBert])
def test_weights_come_back(build: Callable[..., Backbone], tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = build(width=0.125)
    stir(source)
    torch.save({"encoder": source.state_dict(), "fc.weight": torch.zeros(1)}, tmp_path / "a.pt")
    target = build(width=0.125, weights=tmp_path / "a.pt").eval()
    frames = clip(9)
    with torch.no_grad():
        assert torch.equal(target(frames).pooled, source.eval()(frames).pooled)


def test_weights_of_another_fusion_kernel(tmp_path: Path) -> None:
    torch.save(SlowFastR50(width=0.125).state_dict(), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"of another shape: 4 of .*conv_fast_to_slow"):
        SlowFastR50(width=0.125, fusion_kernel=5, weights=tmp_path / "a.pt")


# Training


@pytest.mark.parametrize("build", [SlowFastR50, SlowR50AVBert])
def test_training_reaches_every_parameter(build: Callable[..., Backbone]) -> None:
    torch.manual_seed(0)
    network = build(width=0.125)
    blocks = [m for n, m in network.named_modules() if n.endswith("branch2.norm_c")]
    assert len(blocks) == (32 if build is SlowFastR50 else 16)
    assert not any(m.weight.any() for m in blocks if isinstance(m, nn.BatchNorm3d))
    stir(network)
    network(torch.randn(4, 3, 8, 64, 64)).pooled.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_evaluation_is_by_clip() -> None:
    network = tiny()
    frames = clip(8)
    with torch.no_grad():
        alone = torch.cat([network(one).pooled for one in frames.split(1)])
        torch.testing.assert_close(network(frames).pooled, alone, rtol=1e-4, atol=1e-5)
        trained = network.train()(frames).pooled
    assert not torch.isclose(trained, alone, rtol=1e-2).all()


# In recipes

RECIPE = """\
name: avbert
device: cpu
modalities:
  video: {use: video, frames: 11, fps: 8, short_side: 40, crop: 33}
  audio: {use: audio, seconds: 0.5, mels: 17}
backbones:
  video: {use: VIDEO, width: 0.125}
  audio: {use: resnet50_half_audio, width: 0.125, strides: [1, 2, 2, 2]}
data:
  train: {use: synthetic, videos: 16, side: 32, fps: 8, seconds: 1}
objective: {use: xdc, rounds: 1, clusters: 4}
training:
  epoch_size: 8
  epochs: 1
  batch_size: 4
  optimizer: {use: adamw, lr: 0.002}
  schedule: cosine
"""


@pytest.mark.parametrize(
    ("name", "settings", "dim"),
    [("slowfast_r50", {"alpha": 4, "beta": 0.25}, 320), ("slow_r50_avbert", {}, 256)],
)
def test_a_recipe_is_planned(
    name: str,
    settings: dict[str, float],
    dim: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path))
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("VIDEO", name))
    overrides = [f"backbones.video.{key}={value}" for key, value in settings.items()]
    plan = make_plan(load(str(tmp_path / "recipe.yaml"), overrides))
    rows = {row[0]: row for row in plan.tables[0].rows}
    assert rows["video"][2:4] == ("3x11x33x33", dim)
    assert rows["audio"][3] == 128


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbones.video.beta=0.3", "beta: 0.3 is none of 1, 1/2, 1/4, 1/8, 1/16, 1/32 and 1/64"),
        ("backbones.video.fusion_kernel=3", "fusion_kernel"),
        ("backbones.video.alpha=0", "alpha"),
        ("backbones.audio.strides=[2, 2, 2]", "strides"),
    ],
)
def test_mistakes_are_told(override: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("VIDEO", "slowfast_r50"))
    with pytest.raises(UserError) as raised:
        make_plan(load(str(tmp_path / "recipe.yaml"), [override]))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_registered() -> None:
    (plugin,) = load_plugins([("mmssl_backbones", "", lambda: mmssl_backbones)]).plugins
    components = {c.name: c for c in plugin.components}
    assert components["slowfast_r50"].load() is SlowFastR50
    assert components["slow_r50_avbert"].load() is SlowR50AVBert


def test_a_network_is_built_without_a_warning() -> None:
    """What pytorchvideo imports warns of nothing that a user of recipes could mend."""
    code = "from mmssl_backbones.slowfast import SlowFastR50; SlowFastR50(width=0.125)"
    command = [sys.executable, "-W", "error::FutureWarning", "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
