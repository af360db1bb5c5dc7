"""Two 18-layer ResNets for log-mel spectrograms, ``[B, 1, F, T]``.

XDC's paper says "ResNet-18" and 40 filters by 100 frames, no more. `ResNet18Audio` is the
common reading. `ResNet18VMZ` is the acoustic network of VMZ, the framework that XDC's authors
point to, whose strides take 100×40 to exactly the 4×2 that its last pooling expects.
"""

from collections.abc import Callable
from functools import partial

from pydantic import FilePath
from torch import Tensor, nn

from mmssl import Backbone, Features
from mmssl_backbones.resnet import Width, as_tokens, initialise, scaled
from mmssl_backbones.weights import load_weights

Norm = Callable[[int], nn.Module]


class AudioBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, which is projected where its shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = norm(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = norm(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, outputs, H/stride, W/stride]``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


def _layer(inputs: int, outputs: int, stride: int, norm: Norm, blocks: int = 2) -> nn.Sequential:
    following = [AudioBlock(outputs, outputs, 1, norm) for _ in range(blocks - 1)]
    return nn.Sequential(AudioBlock(inputs, outputs, stride, norm), *following)


class ResNet18Audio(Backbone):
    """ResNet-18 with one input channel: 11 170 240 parameters, D = 512.

    Tensors have torchvision's names.

    Args:
        width: factor on all channel counts, which are rounded and at least 8; D = 512·width.
        weights: state dict (.pt, .pth, .safetensors) of a one-channel ResNet-18 with
            torchvision's tensor names; a classifier in it is left out.
    """

    modalities = frozenset({"audio"})

    def __init__(self, *, width: Width = 1.0, weights: FilePath | None = None) -> None:
        super().__init__()
        planes = [scaled(channels, width) for channels in (64, 128, 256, 512)]
        norm = nn.BatchNorm2d
        self.conv1 = nn.Conv2d(1, planes[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(planes[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _layer(planes[0], planes[0], 1, norm)
        self.layer2 = _layer(planes[0], planes[1], 2, norm)
        self.layer3 = _layer(planes[1], planes[2], 2, norm)
        self.layer4 = _layer(planes[2], planes[3], 2, norm)
        self.dim = planes[3]
        initialise(self)
        if weights is not None:
            load_weights(self, weights)

    def forward(self, clip: Tensor) -> Features:
        """Encode log-mel spectrograms.

        Args:
            clip: ``[B, 1, F, T]``, F mel filters by T frames, such as 40×100.

        Returns:
            ``pooled [B, D]``, the mean of the last feature map, and ``tokens [B, N, D]``, that
            map (2×4 for 40×100), frequency before time.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(clip))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        tokens = as_tokens(x)
        return Features(pooled=tokens.mean(1), tokens=tokens)


class ResNet18VMZ(Backbone):
    """VMZ's acoustic ResNet-18: 11 202 528 parameters, D = 512.

    A 3×3 convolution with bias to 16 channels, three residual blocks at 32, then the four
    layers of a ResNet-18, each of which halves the map. Batch norms have epsilon 1e-3. The last
    map is pooled by its maximum.

    Args:
        width: factor on all channel counts, which are rounded and at least 8; D = 512·width.
        weights: state dict (.pt, .pth, .safetensors) of this network.
    """

    modalities = frozenset({"audio"})

    def __init__(self, *, width: Width = 1.0, weights: FilePath | None = None) -> None:
        super().__init__()
        planes = [scaled(channels, width) for channels in (16, 32, 64, 128, 256, 512)]
        norm = partial(nn.BatchNorm2d, eps=1e-3)
        # Neither batch norm nor ReLU follows: the first block takes the convolution as it is.
        self.conv1 = nn.Conv2d(1, planes[0], 3, padding=1)
        self.layer0 = _layer(planes[0], planes[1], 2, norm, blocks=3)
        self.layer1 = _layer(planes[1], planes[2], 2, norm)
        self.layer2 = _layer(planes[2], planes[3], 2, norm)
        self.layer3 = _layer(planes[3], planes[4], 2, norm)
        self.layer4 = _layer(planes[4], planes[5], 2, norm)
        self.dim = planes[5]
        initialise(self)
        if weights is not None:
            load_weights(self, weights)

    def forward(self, clip: Tensor) -> Features:
        """Encode log-mel spectrograms.

        Args:
            clip: ``[B, 1, F, T]``, F mel filters by T frames, such as 40×100. VMZ's own order is
                time by frequency; the transposition happens here.

        Returns:
            ``pooled [B, D]``, the maximum over the last feature map (for 40×100 the original's
            4×2 pooling), and ``tokens [B, N, D]``, that map, time before frequency.
        """
        x = self.layer0(self.conv1(clip.transpose(2, 3)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        tokens = as_tokens(x)
        return Features(pooled=tokens.amax(1), tokens=tokens)
