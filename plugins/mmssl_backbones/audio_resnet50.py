"""The audio CNN of AVBert (Lee et al., ICLR 2021): ResNet-50 of half the width, without a pool.

Table 3 of the paper has a 9×9 convolution to 32 channels with stride 1 instead of a ResNet-50's
stem, so that frequency and time stay resolved in the early stages. It gives no strides for the
stages. The encoder that the authors released has convolutions of one axis at a time in its stem
and its first two stages, and halves the map in every stage.
"""

from typing import Annotated

from pydantic import Field, FilePath
from torch import Tensor, nn

from mmssl import Backbone, Features
from mmssl_backbones.resnet import Width, as_tokens, initialise, scaled
from mmssl_backbones.weights import load_weights

Stride = Annotated[int, Field(ge=1)]

#: Output channels of a bottleneck for one of its 3×3 convolution.
EXPANSION = 4


def _conv(inputs: int, outputs: int, kernel: int, stride: int, separable: bool) -> nn.Module:
    """A square convolution, or one over frequency and one over time, each striding its axis."""
    pad = kernel // 2
    if not separable:
        return nn.Conv2d(inputs, outputs, kernel, stride, pad, bias=False)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, (kernel, 1), (stride, 1), (pad, 0), bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, (1, kernel), (1, stride), (0, pad), bias=False),
    )


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a shortcut, projected where its shape changes."""

    def __init__(self, inputs: int, planes: int, stride: int, separable: bool) -> None:
        super().__init__()
        outputs = EXPANSION * planes
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3, stride, separable)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, 4·planes, H/stride, W/stride]``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet50HalfAudio(Backbone):
    """AVBert's audio CNN, half of a ResNet-50 without its pool: 5 890 528 parameters, D = 1024.

    Tensors have torchvision's names. The last batch norm of each bottleneck begins at zero, as
    in AVBert's released code, so that the bottleneck begins as its shortcut.

    Args:
        strides: of the four stages, on their first 3×3 convolution and shortcut, in frequency
            and time alike. The paper does not give them; the released code has 2 four times.
            A ResNet-50 has 1, 2, 2, 2, which quadruples the map and most of the work.
        separable: the 9×9 convolution and the 3×3 ones of the first two stages are one over
            frequency, batch norm, ReLU, and one over time: 5 839 840 parameters, as many as the
            released encoder has. Its number of parameters tells which convolutions are separable
            and that each has a batch norm within; that frequency comes first and that a ReLU
            stands between is assumed.
        width: factor on all channel counts, which are rounded and at least 8; D = 1024·width.
        weights: state dict (.pt, .pth, .safetensors) of this network; a classifier in it is left
            out.
    """

    modalities = frozenset({"audio"})

    def __init__(
        self,
        *,
        strides: tuple[Stride, Stride, Stride, Stride] = (2, 2, 2, 2),
        separable: bool = False,
        width: Width = 1.0,
        weights: FilePath | None = None,
    ) -> None:
        super().__init__()
        planes = [scaled(channels, width) for channels in (32, 64, 128, 256)]
        self.conv1 = _conv(1, planes[0], 9, 1, separable)
        self.bn1 = nn.BatchNorm2d(planes[0])
        self.relu = nn.ReLU(inplace=True)

        def layer(number: int, inputs: int, blocks: int) -> nn.Sequential:
            own, apart = planes[number - 1], separable and number <= 2
            first = Bottleneck(inputs, own, strides[number - 1], apart)
            following = [Bottleneck(EXPANSION * own, own, 1, apart) for _ in range(blocks - 1)]
            return nn.Sequential(first, *following)

        self.layer1 = layer(1, planes[0], 3)
        self.layer2 = layer(2, EXPANSION * planes[0], 4)
        self.layer3 = layer(3, EXPANSION * planes[1], 6)
        self.layer4 = layer(4, EXPANSION * planes[2], 3)
        self.dim = EXPANSION * planes[3]
        initialise(self)
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
        if weights is not None:
            load_weights(self, weights)

    def forward(self, clip: Tensor) -> Features:
        """Encode log-mel spectrograms.

        Args:
            clip: ``[B, 1, F, T]``, F mel filters by T frames, such as 128×220 for AVBert's second
                of sound; any F, T from 1 upwards.

        Returns:
            ``pooled [B, D]``, the mean of the last feature map, and ``tokens [B, N, D]``, that
            map (8×14 for 128×220 with the default strides), frequency before time.
        """
        x = self.relu(self.bn1(self.conv1(clip)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        tokens = as_tokens(x)
        return Features(pooled=tokens.mean(1), tokens=tokens)
