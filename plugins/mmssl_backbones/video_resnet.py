"""R(2+1)D-18 and ResNet3D-18 (Tran et al., "A closer look at spatiotemporal convolutions", 2018).

A (2+1)D convolution is a 1×3×3 one to M middle planes, batch norm, ReLU, and a 3×1×1 one. M is
chosen so that it has as many weights as the 3×3×3 convolution that it stands for. Two versions
of the network differ in what M is computed from:

- torchvision computes it once for each residual block, from the block's input and output planes;
- VMZ, and with it the released XDC encoder, computes it for each convolution.

So the second convolutions of the first blocks of layers 2 to 4 have 230, 460 and 921 middle
planes in one and 288, 576 and 1152 in the other. Tensors have the same 224 names in both, those
of torchvision; 18 shapes differ.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

from pydantic import Field, FilePath
from torch import Tensor, nn

from mmssl import Backbone, Features
from mmssl_backbones.resnet import Width, as_tokens, initialise, scaled
from mmssl_backbones.weights import load_weights

Norm = Callable[[int], nn.Module]

#: How convolutions are factorised: not at all, or with middle planes computed once for a
#: residual block, or for each of its convolutions.
Factorised = Literal["no", "per_block", "per_convolution"]


def middle_planes(inputs: int, outputs: int) -> int:
    """M of a (2+1)D convolution, rounded down (Tran et al., section 3.5, with t = d = 3)."""
    return 27 * inputs * outputs // (9 * inputs + 3 * outputs)


def _conv(inputs: int, outputs: int, stride: int, middle: int | None, norm: Norm) -> nn.Module:
    """A 3×3×3 convolution, or a (2+1)D one with ``middle`` planes, strided in time and space."""
    if middle is None:
        return nn.Conv3d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(
        nn.Conv3d(inputs, middle, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
        norm(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, outputs, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
    )


class VideoBlock(nn.Module):
    """Two convolutions and a shortcut, which is projected where its shape changes."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, factorised: Factorised, norm: Norm
    ) -> None:
        super().__init__()
        first = second = None
        if factorised != "no":
            first = middle_planes(inputs, outputs)
            per_block = factorised == "per_block"
            second = first if per_block else middle_planes(outputs, outputs)
        self.conv1 = nn.Sequential(
            _conv(inputs, outputs, stride, first, norm), norm(outputs), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(_conv(outputs, outputs, 1, second, norm), norm(outputs))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, stride, bias=False), norm(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, T, H, W]`` to ``[B, outputs, T/stride, H/stride, W/stride]``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv2(self.conv1(x)) + shortcut)


class VideoResNet(Backbone):
    """An 18-layer residual network over space and time, without a classifier.

    Args:
        factorised: how convolutions are factorised.
        width: factor on all channel counts.
        bn_eps: epsilon of the batch norms.
        bn_momentum: weight of the newest batch in the batch norms' running statistics.
        weights: file with a state dict.
    """

    modalities = frozenset({"video"})

    def __init__(
        self,
        *,
        factorised: Factorised,
        width: float = 1.0,
        bn_eps: float = 1e-5,
        bn_momentum: float = 0.1,
        weights: FilePath | None = None,
    ) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm3d, eps=bn_eps, momentum=bn_momentum)
        planes = [scaled(channels, width) for channels in (64, 128, 256, 512)]
        stem: list[nn.Module]
        if factorised == "no":
            stem = [nn.Conv3d(3, planes[0], (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)]
        else:
            # 45 is the paper's choice; the rule for the other layers would give 83.
            middle = scaled(45, width)
            stem = [
                nn.Conv3d(3, middle, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
                norm(middle),
                nn.ReLU(inplace=True),
                nn.Conv3d(middle, planes[0], (3, 1, 1), 1, (1, 0, 0), bias=False),
            ]
        self.stem = nn.Sequential(*stem, norm(planes[0]), nn.ReLU(inplace=True))

        def layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                VideoBlock(inputs, outputs, stride, factorised, norm),
                VideoBlock(outputs, outputs, 1, factorised, norm),
            )

        self.layer1 = layer(planes[0], planes[0], 1)
        self.layer2 = layer(planes[0], planes[1], 2)
        self.layer3 = layer(planes[1], planes[2], 2)
        self.layer4 = layer(planes[2], planes[3], 2)
        self.dim = planes[3]
        initialise(self)
        if weights is not None:
            load_weights(self, weights)

    def forward(self, clip: Tensor) -> Features:
        """Encode clips.

        Args:
            clip: ``[B, 3, T, H, W]``, normalised frames; any T, H, W from 1 upwards.

        Returns:
            ``pooled [B, D]``, the mean over time and space of the last feature map, and
            ``tokens [B, ⌈T/8⌉·⌈H/16⌉·⌈W/16⌉, D]``, that map, time before rows before columns.
        """
        x = self.stem(clip)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        tokens = as_tokens(x)
        return Features(pooled=tokens.mean(1), tokens=tokens)


def r2plus1d_18(*, width: Width = 1.0, weights: FilePath | None = None) -> VideoResNet:
    """R(2+1)D-18 as torchvision builds it: 31 300 125 parameters, D = 512.

    For the network of XDC's paper see ``r2plus1d_18_xdc``.

    Args:
        width: factor on all channel counts, which are rounded and at least 8; D = 512·width.
        weights: state dict (.pt, .pth, .safetensors) with torchvision's tensor names, such as
            torchvision's own weights; a classifier in it is left out.
    """
    return VideoResNet(factorised="per_block", width=width, weights=weights)


def r2plus1d_18_xdc(
    *,
    width: Width = 1.0,
    bn_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1,
    weights: FilePath | None = None,
) -> VideoResNet:
    """R(2+1)D-18 as XDC and VMZ build it: 33 165 639 parameters, D = 512.

    Middle planes are computed for each convolution and the batch norms' epsilon is 1e-3. The
    released XDC encoders load into it.

    Args:
        width: factor on all channel counts, which are rounded and at least 8; D = 512·width.
        bn_momentum: weight of the newest batch in the batch norms' running statistics. The
            released PyTorch code has 0.9, which in Caffe2, where the networks were trained,
            is the weight of the old statistics and so means 0.1 here.
        weights: state dict (.pt, .pth, .safetensors), such as a released XDC encoder; a
            classifier in it is left out.
    """
    return VideoResNet(
        factorised="per_convolution",
        width=width,
        bn_eps=1e-3,
        bn_momentum=bn_momentum,
        weights=weights,
    )


def r3d_18(*, width: Width = 1.0, weights: FilePath | None = None) -> VideoResNet:
    """ResNet3D-18 with full 3×3×3 convolutions: 33 166 272 parameters, D = 512.

    Args:
        width: factor on all channel counts, which are rounded and at least 8; D = 512·width.
        weights: state dict (.pt, .pth, .safetensors) with torchvision's tensor names, such as
            torchvision's own weights; a classifier in it is left out.
    """
    return VideoResNet(factorised="no", width=width, weights=weights)
