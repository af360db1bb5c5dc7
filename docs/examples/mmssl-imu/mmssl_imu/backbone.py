"""A residual network over time."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import relu

from mmssl import Backbone, Features, UserError


class IMUResNet(Backbone):
    """ResNet-18 with convolutions over time: 3.8 million parameters at width 64, D = 8 · width.

    The first convolution and each stage but the first halve the rate, 16 in all.

    Args:
        channels: of the signals, as the modality has them.
        width: channels of the first stage; the other three have 2, 4 and 8 times as many.
    """

    modalities = frozenset({"imu"})

    def __init__(
        self,
        *,
        channels: Annotated[int, Field(gt=0)] = 6,
        width: Annotated[int, Field(gt=0)] = 64,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.dim = 8 * width
        self.stem = nn.Conv1d(channels, width, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm1d(width)
        blocks, inputs = [], width
        for stage in range(4):
            outputs = width * 2**stage
            blocks += [Block(inputs, outputs, 1 + (stage > 0)), Block(outputs, outputs, 1)]
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)

    def forward(self, clip: Tensor) -> Features:
        """Encode signals.

        Args:
            clip: ``[B, channels, T]``.

        Returns:
            ``pooled [B, D]``, the mean over time, and ``tokens [B, N, D]``, N = ⌈T / 16⌉.

        Raises:
            UserError: the signals have another number of channels.
        """
        if clip.shape[1] != self.channels:
            raise UserError(
                f"imu_resnet: signals have {clip.shape[1]} channels; write channels: "
                f"{clip.shape[1]} in the backbone, too"
            )
        tokens = self.blocks(relu(self.norm(self.stem(clip)))).transpose(1, 2)
        return Features(pooled=tokens.mean(1), tokens=tokens)


class Block(nn.Module):
    """Two convolutions and a shortcut, which is projected where its shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm1d(outputs)
        self.conv2 = nn.Conv1d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm1d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv1d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm1d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, T]`` to ``[B, outputs, ⌈T / stride⌉]``."""
        y = relu(self.norm1(self.conv1(x)))
        return relu(self.norm2(self.conv2(y)) + self.shortcut(x))
