"""AVBert's audio CNN: its Table 3, its sizes to the last parameter, and torchvision's ResNet."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck as TheirBottleneck

import mmssl_backbones
from mmssl import UserError
from mmssl.registry import load_plugins
from mmssl_backbones.audio_resnet50 import Bottleneck, ResNet50HalfAudio


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def stir(network: nn.Module) -> None:
    """Batch norms as after training: residual branches that are not zero, moved statistics."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)


def tiny(**settings: Any) -> ResNet50HalfAudio:
    torch.manual_seed(0)
    network = ResNet50HalfAudio(width=0.25, **settings)
    stir(network)
    return network.eval()


# Sizes


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 5_890_528),
        ({"strides": (1, 2, 2, 2)}, 5_890_528),
        ({"separable": True}, 5_839_840),
    ],
)
def test_parameter_counts(settings: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        backbone = ResNet50HalfAudio(**settings)
    assert parameters(backbone) == count
    assert all(p.requires_grad for p in backbone.parameters())
    assert backbone.dim == 1024
    assert backbone.modalities == {"audio"}


#: AVBert's Table 3: of each stage, channels within and after a bottleneck, bottlenecks.
TABLE_3 = [(32, 128, 3), (64, 256, 4), (128, 512, 6), (256, 1024, 3)]


def test_the_stages_are_table_3() -> None:
    with torch.device("meta"):
        backbone = ResNet50HalfAudio()
    first = backbone.get_submodule("conv1")
    assert isinstance(first, nn.Conv2d)
    assert (first.kernel_size, first.stride, first.out_channels) == ((9, 9), (1, 1), 32)
    for number, (within, after, count) in enumerate(TABLE_3, start=1):
        main = [
            (module.kernel_size, module.out_channels)
            for name, module in backbone.get_submodule(f"layer{number}").named_modules()
            if isinstance(module, nn.Conv2d) and "downsample" not in name
        ]
        assert main == [((1, 1), within), ((3, 3), within), ((1, 1), after)] * count
    assert not [m for m in backbone.modules() if isinstance(m, nn.MaxPool2d)]


def test_what_is_separable() -> None:
    """The difference of the two networks' parameters, reckoned by hand."""
    saved = 81 * 32 - (9 * 32 + 64 + 9 * 32 * 32)  # the stem, which grows
    for channels, count in [(32, 3), (64, 4)]:
        saved += count * (9 * channels**2 - (2 * 3 * channels**2 + 2 * channels))
    assert saved == 5_890_528 - 5_839_840
    with torch.device("meta"):
        backbone = ResNet50HalfAudio(separable=True, strides=(1, 2, 2, 2))
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    lines = [m for m in convs if m.kernel_size[0] != m.kernel_size[1]]
    assert [m.kernel_size for m in lines] == [(9, 1), (1, 9)] + [(3, 1), (1, 3)] * 7
    assert [m.stride for m in lines if m.stride != (1, 1)] == [(2, 1), (1, 2)]
    for layer in ("layer3", "layer4"):
        square = [m for m in backbone.get_submodule(layer).modules() if m in lines]
        assert not square


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize(
    ("strides", "shape", "positions"),
    [
        ((2, 2, 2, 2), (128, 220), (8, 14)),
        ((2, 2, 2, 2), (128, 440), (8, 28)),
        ((1, 2, 2, 2), (128, 220), (16, 28)),
        ((2, 2, 2, 2), (80, 128), (5, 8)),
        ((2, 1, 3, 1), (41, 100), (7, 17)),
        ((2, 2, 2, 2), (1, 1), (1, 1)),
    ],
)
def test_feature_maps(
    separable: bool,
    strides: tuple[int, int, int, int],
    shape: tuple[int, int],
    positions: tuple[int, int],
) -> None:
    with torch.device("meta"):
        backbone = ResNet50HalfAudio(strides=strides, separable=separable)
    seen: list[torch.Size] = []
    for name in ("bn1", "layer4"):
        backbone.get_submodule(name).register_forward_hook(lambda _m, _i, o: seen.append(o.shape))
    features = backbone(torch.empty(2, 1, *shape, device="meta"))
    assert seen == [(2, 32, *shape), (2, 1024, *positions)]
    assert features.pooled.shape == (2, 1024)
    assert features.tokens.shape == (2, positions[0] * positions[1], 1024)


def test_width_scales_all_channels() -> None:
    with torch.device("meta"):
        half, least = ResNet50HalfAudio(width=0.5), ResNet50HalfAudio(width=1e-3, separable=True)
    assert (half.dim, least.dim) == (512, 32)
    for number, (within, after, _) in enumerate(TABLE_3, start=1):
        norms = list(half.get_submodule(f"layer{number}").modules())
        widths = {m.num_features for m in norms if isinstance(m, nn.BatchNorm2d)}
        assert widths == {within // 2, after // 2}
    norms = [m for m in least.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.num_features for m in norms} == {8, 32}


# Beside references


class TheirResNet(nn.Module):
    """AVBert's Table 3 from torchvision's bottlenecks, at a quarter of its width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 9, padding=4, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        inputs = 8
        for number, (_, after, count) in enumerate(TABLE_3, start=1):
            outputs = after // 4
            blocks = []
            for block in range(count):
                projection = None
                if block == 0:
                    conv = nn.Conv2d(inputs, outputs, 1, 2, bias=False)
                    projection = nn.Sequential(conv, nn.BatchNorm2d(outputs))
                stride = 2 if block == 0 else 1
                blocks.append(TheirBottleneck(inputs, outputs // 4, stride, projection))
                inputs = outputs
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.fc = nn.Linear(256, 50)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        for number in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{number}")(x)
        return x.mean((2, 3))


@pytest.mark.parametrize("training", [False, True])
def test_equals_torchvisions_bottlenecks(training: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = TheirResNet()
    stir(theirs)
    state = {f"module.{name}": tensor.clone() for name, tensor in theirs.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "theirs.pth")
    ours = ResNet50HalfAudio(width=0.25, weights=tmp_path / "theirs.pth").train(training)
    theirs.train(training)
    clip = torch.randn(2, 1, 37, 50)
    with torch.no_grad():
        features = ours(clip)
        torch.testing.assert_close(features.pooled, theirs(clip), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.tokens.mean(1), features.pooled)
    for name, buffer in ours.named_buffers():  # training moves the statistics of both alike
        torch.testing.assert_close(buffer, theirs.get_buffer(name), rtol=1e-4, atol=1e-5)


def separable_reference(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The separable network in eval mode and its default strides, written out."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return x * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    def apart(x: Tensor, name: str, pad: int, stride: int) -> Tensor:
        x = F.conv2d(x, state[f"{name}.0.weight"], stride=(stride, 1), padding=(pad, 0))
        x = norm(x, f"{name}.1").relu()
        return F.conv2d(x, state[f"{name}.3.weight"], stride=(1, stride), padding=(0, pad))

    x = norm(apart(x, "conv1", 4, 1), "bn1").relu()
    for layer, (_, _, count) in enumerate(TABLE_3, start=1):
        for block in range(count):
            at = f"layer{layer}.{block}"
            stride = 2 if block == 0 else 1
            y = norm(F.conv2d(x, state[f"{at}.conv1.weight"]), f"{at}.bn1").relu()
            if layer <= 2:
                y = apart(y, f"{at}.conv2", 1, stride)
            else:
                y = F.conv2d(y, state[f"{at}.conv2.weight"], stride=stride, padding=1)
            y = F.conv2d(norm(y, f"{at}.bn2").relu(), state[f"{at}.conv3.weight"])
            if block == 0:
                x = F.conv2d(x, state[f"{at}.downsample.0.weight"], stride=stride)
                x = norm(x, f"{at}.downsample.1")
            x = (norm(y, f"{at}.bn3") + x).relu()
    return x


def test_separable_equals_its_description() -> None:
    network = tiny(separable=True)
    clip = torch.randn(2, 1, 35, 50)
    with torch.no_grad():
        features = network(clip)
        expected = separable_reference(network.state_dict(), clip)
    assert expected.shape == (2, 256, 3, 4)
    assert features.tokens is not None
    for n, (row, column) in enumerate(torch.cartesian_prod(torch.arange(3), torch.arange(4))):
        of_place = expected[:, :, row, column]
        torch.testing.assert_close(features.tokens[:, n], of_place, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.pooled, expected.mean((2, 3)), rtol=1e-4, atol=1e-5)


# Weights and training


@pytest.mark.parametrize("separable", [False, True])
def test_weights_come_back(separable: bool, tmp_path: Path) -> None:
    source = tiny(separable=separable)
    torch.save({"encoder": source.state_dict()}, tmp_path / "a.pt")
    target = ResNet50HalfAudio(width=0.25, separable=separable, weights=tmp_path / "a.pt").eval()
    clip = torch.randn(2, 1, 20, 31)
    with torch.no_grad():
        assert torch.equal(target(clip).pooled, source(clip).pooled)
    with pytest.raises(UserError, match=r"missing: .* \(conv1\."):
        ResNet50HalfAudio(width=0.25, separable=not separable, weights=tmp_path / "a.pt")


def test_bottlenecks_begin_as_their_shortcuts() -> None:
    torch.manual_seed(0)
    network = ResNet50HalfAudio(width=0.25)
    blocks = [m for m in network.modules() if isinstance(m, Bottleneck)]
    assert len(blocks) == 16
    for block in blocks:
        assert block.bn3.weight.eq(0).all()
        assert block.bn2.weight.eq(1).all()
    x = torch.rand(2, 32, 5, 6)  # no negative values, so that the last ReLU changes nothing
    assert torch.equal(network.layer1[1](x), x)
    # He et al.: the standard deviation is the root of two by the fan-out.
    deviation = float(network.get_parameter("layer4.1.conv2.weight").detach().std())
    assert deviation == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("separable", [False, True])
def test_training_reaches_every_parameter(separable: bool) -> None:
    network = tiny(separable=separable).train()
    network(torch.randn(4, 1, 40, 50)).pooled.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_evaluation_is_by_clip() -> None:
    network = tiny()
    clips = torch.randn(3, 1, 21, 34)
    with torch.no_grad():
        alone = torch.cat([network(one).pooled for one in clips.split(1)])
        torch.testing.assert_close(network(clips).pooled, alone, rtol=1e-4, atol=1e-5)
        trained = network.train()(clips).pooled
    assert not torch.isclose(trained, alone, rtol=1e-2).all()


def test_registered() -> None:
    (plugin,) = load_plugins([("mmssl_backbones", "", lambda: mmssl_backbones)]).plugins
    components = {c.name: c for c in plugin.components}
    assert components["resnet50_half_audio"].load() is ResNet50HalfAudio
