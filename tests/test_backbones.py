"""Backbones beside torchvision, timm, and a slow reading of what VMZ describes."""

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models.video.resnet import (
    BasicBlock,
    Conv2Plus1D,
    R2Plus1dStem,
    VideoResNet,
)

import mmssl_backbones
from mmssl import Backbone, UserError
from mmssl.registry import load_plugins
from mmssl_backbones.audio_resnet import ResNet18Audio, ResNet18VMZ
from mmssl_backbones.timm_models import Timm
from mmssl_backbones.video_resnet import r2plus1d_18, r2plus1d_18_xdc, r3d_18
from mmssl_backbones.weights import load_weights

VIDEO = [r2plus1d_18, r2plus1d_18_xdc, r3d_18]
AUDIO = [ResNet18Audio, ResNet18VMZ]
Build = Callable[..., Backbone]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


class PerConvolution(Conv2Plus1D):
    """The released XDC network is torchvision's with this in place of its convolution."""

    def __init__(
        self, in_planes: int, out_planes: int, midplanes: int, stride: int = 1, padding: int = 1
    ) -> None:
        midplanes = (in_planes * out_planes * 27) // (in_planes * 9 + 3 * out_planes)
        super().__init__(in_planes, out_planes, midplanes, stride, padding)


def released_xdc() -> nn.Module:
    network = VideoResNet(BasicBlock, [PerConvolution] * 4, [2, 2, 2, 2], R2Plus1dStem)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = 1e-3
    return network


def one_channel_resnet18() -> nn.Module:
    network = torchvision.models.resnet18()
    network.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return network


REFERENCES: list[tuple[Build, Callable[[], nn.Module], tuple[int, ...]]] = [
    (r2plus1d_18, torchvision.models.video.r2plus1d_18, (3, 4, 32, 40)),
    (r2plus1d_18_xdc, released_xdc, (3, 4, 32, 40)),
    (r3d_18, torchvision.models.video.r3d_18, (3, 4, 32, 40)),
    (ResNet18Audio, one_channel_resnet18, (1, 40, 100)),
]


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (r2plus1d_18, 31_300_125),
        (r2plus1d_18_xdc, 33_165_639),
        (r3d_18, 33_166_272),
        (ResNet18Audio, 11_170_240),
        (ResNet18VMZ, 11_202_528),
    ],
)
def test_parameter_counts(build: Build, count: int) -> None:
    with torch.device("meta"):
        backbone = build()
    assert parameters(backbone) == count
    assert all(p.requires_grad for p in backbone.parameters())
    assert backbone.dim == 512


def test_parameter_counts_with_a_classifier_of_400_classes() -> None:
    with torch.device("meta"):
        heads = [parameters(nn.Sequential(b(), nn.Linear(512, 400))) for b in VIDEO]
    assert heads == [31_505_325, 33_370_839, 33_371_472]


def test_xdc_differs_from_torchvision_in_18_shapes() -> None:
    with torch.device("meta"):
        ours = shapes(r2plus1d_18_xdc())
        theirs = shapes(torchvision.models.video.r2plus1d_18())
    del theirs["fc.weight"], theirs["fc.bias"]
    assert ours.keys() == theirs.keys()
    assert len(ours) + 2 == 224
    suffixes = ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight")
    assert {name for name in ours if ours[name] != theirs[name]} == {
        f"layer{i}.0.conv2.0.{suffix}" for i in (2, 3, 4) for suffix in suffixes
    }
    middles = [(ours[k][0], theirs[k][0]) for k in ours if k.endswith(".0.conv2.0.0.weight")]
    assert middles == [(144, 144), (288, 230), (576, 460), (1152, 921)]


@pytest.mark.parametrize(("build", "reference", "shape"), REFERENCES)
def test_equals_the_reference_given_its_weights(
    build: Build, reference: Callable[[], nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = reference()
    for name, buffer in theirs.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    wrapped = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "released.pth")

    ours = build(weights=tmp_path / "released.pth")
    theirs.fc = nn.Identity()
    assert shapes(ours) == shapes(theirs)
    clip = torch.randn(2, *shape)
    for training in (False, True):
        ours.train(training)
        theirs.train(training)
        with torch.no_grad():
            features, expected = ours(clip), theirs(clip)
        torch.testing.assert_close(features.pooled, expected, rtol=1e-4, atol=1e-5)
        assert features.tokens is not None
        torch.testing.assert_close(features.tokens.mean(1), features.pooled)
    # Training moved the running statistics of both alike.
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.state_dict()[name], buffer, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "reference"),
    [(r2plus1d_18, torchvision.models.video.r2plus1d_18), (ResNet18Audio, one_channel_resnet18)],
)
def test_initialised_as_the_reference(build: Build, reference: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    ours, theirs = build(), reference()
    for name, tensor in theirs.named_parameters():
        if name.startswith("fc"):
            continue
        mine = ours.get_parameter(name)
        if name.endswith("weight") and tensor.ndim > 1:
            if name == "conv1.weight":  # replaced, so initialised as any new convolution
                fan_out = tensor.numel() / tensor.shape[1]
                expected = (2 / fan_out) ** 0.5
            else:
                expected = float(tensor.detach().std())
            few = 4 / (2 * tensor.numel()) ** 0.5  # four standard errors of each deviation
            assert float(mine.detach().std()) == pytest.approx(expected, rel=2 * few)
        else:
            assert torch.equal(mine, tensor), name


def vmz_reference(state: dict[str, Tensor], clip: Tensor) -> Tensor:
    """VMZ's acoustic ResNet-18 in eval mode, written out from its description."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-3).sqrt()
        return x * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    x = clip.permute(0, 1, 3, 2)  # channel × time × frequency
    x = F.conv2d(x, state["conv1.weight"], state["conv1.bias"], padding=1)
    for layer, blocks in enumerate((3, 2, 2, 2, 2)):
        for block in range(blocks):
            at = f"layer{layer}.{block}"
            stride = 2 if block == 0 else 1
            y = F.conv2d(x, state[f"{at}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(norm(y, f"{at}.bn1").relu(), state[f"{at}.conv2.weight"], padding=1)
            if block == 0:
                x = F.conv2d(x, state[f"{at}.downsample.0.weight"], stride=stride)
                x = norm(x, f"{at}.downsample.1")
            x = (norm(y, f"{at}.bn2") + x).relu()
    return F.max_pool2d(x, (4, 2), stride=1).flatten(1)


def test_vmz_equals_its_description() -> None:
    torch.manual_seed(0)
    network = ResNet18VMZ(width=0.25)
    clip = torch.randn(3, 1, 40, 100)
    network(clip)  # running statistics other than 0 and 1
    network.get_parameter("conv1.bias").data.normal_()
    network.eval()
    with torch.no_grad():
        pooled = network(clip).pooled
    expected = vmz_reference(network.state_dict(), clip)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)


def maps(backbone: Backbone, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes of the four layers' outputs for one clip, and of the tokens."""
    seen: list[tuple[int, ...]] = []
    for i in (1, 2, 3, 4):
        layer = backbone.get_submodule(f"layer{i}")
        layer.register_forward_hook(lambda _m, _i, output: seen.append(tuple(output.shape[1:])))
    features = backbone(torch.empty(2, *shape, device="meta"))
    assert features.pooled.shape == (2, backbone.dim)
    return [*seen, tuple(features.tokens.shape[1:])]


def test_feature_maps() -> None:
    with torch.device("meta"):
        xdc, audio, vmz = r2plus1d_18_xdc(), ResNet18Audio(), ResNet18VMZ()
    assert maps(audio, (1, 40, 100)) == [
        (64, 10, 25),
        (128, 5, 13),
        (256, 3, 7),
        (512, 2, 4),
        (8, 512),
    ]
    assert maps(vmz, (1, 40, 100))[3:] == [(512, 4, 2), (8, 512)]
    assert maps(xdc, (3, 8, 112, 112))[3:] == [(512, 1, 7, 7), (49, 512)]
    with torch.device("meta"):
        assert maps(r2plus1d_18_xdc(), (3, 32, 112, 112))[3:] == [(512, 4, 7, 7), (196, 512)]
        assert maps(r2plus1d_18_xdc(), (3, 8, 224, 224))[3:] == [(512, 1, 14, 14), (196, 512)]


@pytest.mark.parametrize("build", [*VIDEO, *AUDIO])
def test_tokens_are_positions_of_the_last_map(build: Build) -> None:
    torch.manual_seed(0)
    backbone = build(width=0.125).eval()
    last: list[Tensor] = []
    backbone.get_submodule("layer4").register_forward_hook(lambda _m, _i, out: last.append(out))
    shape = (3, 16, 40, 56) if build in VIDEO else (1, 40, 100)
    tokens = backbone(torch.randn(2, *shape)).tokens
    (feature_map,) = last
    assert tokens is not None
    for n, position in enumerate(torch.cartesian_prod(*map(torch.arange, feature_map.shape[2:]))):
        assert torch.equal(tokens[:, n], feature_map[:, :, *position.tolist()])
    assert n + 1 == tokens.shape[1]


@pytest.mark.parametrize("build", [*VIDEO, *AUDIO])
@pytest.mark.parametrize("size", ["small", "least"])
def test_small_inputs_reach_every_parameter(build: Build, size: str) -> None:
    torch.manual_seed(0)
    backbone = build(width=0.125)
    shape: tuple[int, ...]
    if build in VIDEO:
        shape = (3, 8, 32, 32) if size == "small" else (3, 1, 1, 1)
    else:
        shape = (1, 40, 100) if size == "small" else (1, 1, 1)
    features = backbone(torch.randn(4, *shape))
    assert features.pooled.shape == (4, 64)
    assert backbone.dim == 64
    if size == "small":
        features.pooled.square().sum().backward()
        for name, parameter in backbone.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


@pytest.mark.parametrize("build", [*VIDEO, *AUDIO])
def test_width_scales_all_channels(build: Build) -> None:
    with torch.device("meta"):
        full, half, least = build(), build(width=0.5), build(width=1e-3)
    for i, planes in zip((1, 2, 3, 4), (32, 64, 128, 256), strict=True):
        blocks = half.get_submodule(f"layer{i}")
        widths = {m.num_features for n, m in blocks.named_modules() if n in ("0.conv1.1", "1.bn2")}
        assert widths == {planes}
    assert (half.dim, least.dim) == (256, 8)
    assert 0.24 < parameters(half) / parameters(full) < 0.26
    norms = [m for m in least.modules() if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d))]
    assert min(m.num_features for m in norms) == 8


def test_batch_norm_constants() -> None:
    def constants(backbone: nn.Module) -> set[tuple[float, float | None]]:
        kinds = (nn.BatchNorm2d, nn.BatchNorm3d)
        return {(m.eps, m.momentum) for m in backbone.modules() if isinstance(m, kinds)}

    with torch.device("meta"):
        assert constants(r2plus1d_18()) == {(1e-5, 0.1)}
        assert constants(r3d_18()) == {(1e-5, 0.1)}
        assert constants(ResNet18Audio()) == {(1e-5, 0.1)}
        assert constants(ResNet18VMZ()) == {(1e-3, 0.1)}
        assert constants(r2plus1d_18_xdc()) == {(1e-3, 0.1)}
        assert constants(r2plus1d_18_xdc(bn_momentum=0.9)) == {(1e-3, 0.9)}


# Weights


def tiny() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def equal(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


@given(st.lists(st.sampled_from(["module", "state_dict", "encoder", "0", "model"]), max_size=4))
def test_weights_are_found_under_any_prefix(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("weights") / "a.safetensors"
    source, target = tiny(), tiny()
    prefix = "".join(f"{part}." for part in parts)
    tensors = {f"{prefix}{name}": tensor for name, tensor in source.state_dict().items()}
    tensors |= {f"{prefix}fc.weight": torch.zeros(3), f"{prefix}fc.bias": torch.zeros(1)}
    if parts:
        tensors["elsewhere.weight"] = torch.zeros(3)
    safetensors.torch.save_file(tensors, path)
    assert not equal(source, target)
    load_weights(target, path)
    assert equal(source, target)


def test_weights_may_be_nested_and_lack_counters(tmp_path: Path) -> None:
    source, target = tiny(), tiny()
    state = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"model": {"net": state}, "optimizer": optimizer, "step": 7}, tmp_path / "a.pt")
    load_weights(target, tmp_path / "a.pt")
    assert equal(source, target)


def test_weights_of_another_network_name_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "torchvision.pth"
    torch.save(torchvision.models.video.r2plus1d_18().state_dict(), path)
    with torch.device("meta"), pytest.raises(UserError) as raised:
        r2plus1d_18_xdc(weights=path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert "of another shape: 18 of 222" in message
    first = "layer2.0.conv2.0.0.weight is 230×128×1×3×3 in the file, 288×128×1×3×3 in the network"
    assert first in message
    assert "and 15 more" in message
    assert "missing" not in message
    assert "unexpected" not in message
    assert "\n" not in message


def test_three_input_channels_are_not_made_one(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "rgb.pth")
    with (
        torch.device("meta"),
        pytest.raises(UserError, match=r"conv1\.weight is 64×3×7×7 .* 64×1×7×7"),
    ):
        ResNet18Audio(weights=tmp_path / "rgb.pth")


def test_missing_and_unexpected_tensors_are_named(tmp_path: Path) -> None:
    target = tiny()
    before = [tensor.clone() for tensor in target.state_dict().values()]
    state = tiny().state_dict()
    del state["1.running_mean"]
    state |= {"2.weight": torch.zeros(1), "fcn.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UserError) as raised:
        load_weights(target, tmp_path / "a.pt")
    assert "missing: 1 of 7 (1.running_mean)" in str(raised.value)
    assert "unexpected: 2 (2.weight, fcn.weight)" in str(raised.value)
    assert all(map(torch.equal, before, target.state_dict().values()))


def test_two_networks_in_a_file_are_refused(tmp_path: Path) -> None:
    state = tiny().state_dict()
    torch.save({"student": state, "teacher": state}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"more than once, under 'student\.' and 'teacher\.'"):
        load_weights(tiny(), tmp_path / "a.pt")


def test_of_two_networks_with_the_same_names_the_fitting_one_is_read(tmp_path: Path) -> None:
    source, target = tiny(), tiny()
    other = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5))
    torch.save({"a": other.state_dict(), "b": source.state_dict()}, tmp_path / "a.pt")
    load_weights(target, tmp_path / "a.pt")
    assert equal(source, target)


class Custom:
    pass


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pt", b"", "cannot read it as weights"),
        ("a.pth", b"\x80\x02 no pickle", "cannot read it as weights"),
        ("a.pth", {"model": Custom()}, "more than tensors"),
        ("a.pth", torch.zeros(3), "holds a Tensor instead of a state dict"),
        ("a.pth", {}, "holds no tensor of the network; it is empty"),
        ("a.pth", {"x": torch.zeros(3)}, r"it has others \(x\)"),
        ("a.safetensors", b"\xff" * 20, "no safetensors file"),
        ("a.safetensors", {"x": torch.zeros(3)}, "no safetensors file"),
        ("a.onnx", b"", r"not from \.onnx"),
        ("a", b"", "not from a file without ending"),
        ("none.pth", None, "No such file"),
        ("none.safetensors", None, "No such file"),
    ],
)
def test_unreadable_weights(tmp_path: Path, name: str, content: object, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as raised:
        load_weights(tiny(), path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


# timm


def test_timm_convolutional_network_with_one_channel(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("resnet10t", num_classes=10, in_chans=1).eval()
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    ours = Timm(model="resnet10t", in_chans=1, weights=tmp_path / "a.pth").eval()
    clip = torch.randn(2, 1, 40, 100)
    features = ours(clip)
    theirs.reset_classifier(0)
    torch.testing.assert_close(features.pooled, theirs(clip))
    assert ours.dim == 512
    assert features.tokens is not None
    assert features.tokens.shape == (2, 2 * 4, 512)
    torch.testing.assert_close(features.tokens.mean(1), features.pooled)
    features.pooled.sum().backward()
    assert all(p.grad is not None for p in ours.parameters())


@pytest.mark.parametrize(
    ("model", "prefix"), [("vit_tiny_patch16_224", 1), ("vit_dwee_patch16_reg1_gap_256", 1)]
)
def test_timm_vision_transformer(model: str, prefix: int) -> None:
    ours = Timm(model=model, in_chans=1, img_size=(32, 48)).eval()
    clip = torch.randn(2, 1, 32, 48)
    features = ours(clip)
    assert features.pooled.shape == (2, ours.dim)
    torch.testing.assert_close(features.pooled, ours.net(clip))
    everything = ours.net.forward_features(clip)
    assert everything.shape[1] == prefix + 2 * 3
    torch.testing.assert_close(features.tokens, everything[:, prefix:])


def test_timm_channels_last_and_expanding_heads() -> None:
    swin = Timm(model="swin_tiny_patch4_window7_224", img_size=(64, 32)).eval()
    features = swin(torch.randn(1, 3, 64, 32))
    assert features.tokens is not None
    assert features.tokens.shape == (1, 2 * 1, 768)
    torch.testing.assert_close(features.tokens.mean(1), features.pooled)

    mobile = Timm(model="mobilenetv3_small_050").eval()
    features = mobile(torch.randn(1, 3, 32, 32))
    assert features.pooled.shape == (1, mobile.dim)
    assert features.tokens is None  # 288 channels before the head, 1024 after it


def test_timm_errors() -> None:
    with pytest.raises(UserError, match=r"no model 'resnet_10t'; did you mean 'resnet10t'\?"):
        Timm(model="resnet_10t")
    with pytest.raises(UserError, match="no model 'zzzzzzzz'"):
        Timm(model="zzzzzzzz")
    with pytest.raises(UserError, match="img_size"):
        Timm(model="resnet10t", img_size=(40, 100))
    with pytest.raises(UserError, match="tag"):
        Timm(model="resnet10t.no_such_tag")


# The plugin


def test_plugin_registers_components_with_keyword_only_parameters() -> None:
    (plugin,) = load_plugins([("mmssl_backbones", "", lambda: mmssl_backbones)]).plugins
    assert plugin.error is None
    kinds = {"r2plus1d_18": "video", "r2plus1d_18_xdc": "video", "r3d_18": "video"}
    kinds |= {"resnet18_audio": "audio", "resnet18_vmz": "audio", "timm": "audio image"}
    kinds |= {"slowfast_r50": "video", "slow_r50_avbert": "video"}
    kinds |= {"resnet50_half_audio": "audio"}
    assert {c.name for c in plugin.components} == kinds.keys()
    for component in plugin.components:
        build = component.load()
        signature = inspect.signature(build)
        assert all(p.kind is p.KEYWORD_ONLY for p in signature.parameters.values())
        assert all(f"{name}: " in (build.__doc__ or "") for name in signature.parameters)
        with torch.device("meta"):
            backbone = build(model="resnet10t") if component.name == "timm" else build()
        assert isinstance(backbone, Backbone)
        assert backbone.modalities == set(kinds[component.name].split())


def test_importing_the_plugin_imports_no_torch() -> None:
    code = "import sys, mmssl_backbones; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
