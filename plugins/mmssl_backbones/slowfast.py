"""The visual CNNs of AVBert (Lee et al., ICLR 2021): SlowFast-R50, and the one that was released.

AVBert's paper has SlowFast (Feichtenhofer et al., 2019): a slow pathway sees every α-th frame, a
fast pathway sees all of them with β times the channels, and its maps are joined to the slow
pathway's after the stem and after each residual stage but the last. The weights that AVBert's
authors released belong to another network: a slow pathway alone, whose first convolution also
spans and strides time.

The networks are pytorchvideo's, without heads, and tensors have its names.
"""

import warnings
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, FilePath
from torch import Tensor, nn

from mmssl import Backbone, Features, UserError
from mmssl_backbones.resnet import FEWEST_CHANNELS, Width, as_tokens, scaled
from mmssl_backbones.weights import load_weights

#: Channels of the slow pathway's first convolution; what its last stage has is 32 times that.
STEM_CHANNELS = 64


def _pytorchvideo(builder: str) -> Callable[..., Any]:
    """A function of ``pytorchvideo.models``, which is imported once a network is built."""
    with warnings.catch_warnings():
        # fvcore, which pytorchvideo imports, scripts a loss that is not used here.
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
        from pytorchvideo import models
    return getattr(models, builder)


def _joined(maps: list[Tensor]) -> Tensor:
    """The channels of the slow pathway, then those of the fast one."""
    return torch.cat(maps, 1)


class SlowFastR50(Backbone):
    """SlowFast-R50 as in AVBert's Table 3: 33 644 488 parameters, D = 2304.

    The clip is what the fast pathway sees. AVBert's paper has two numbers of frames: its Table 3
    32 of them, so that the slow pathway sees 4, and its text 16, so that it sees 2.

    The last batch norm of each residual block begins at zero, so that the block begins as its
    shortcut.

    Args:
        alpha: the slow pathway sees the frames 0, α, 2α, …
        beta: channels of the fast pathway for one of the slow pathway: 1, 1/2, 1/4, … 1/64,
            written as a decimal.
        fusion_kernel: frames that the convolutions from the fast to the slow pathway span.
            AVBert's paper does not tell. 7 is pytorchvideo's choice; 5, with 33 558 216
            parameters, is the choice of the SlowFast paper.
        width: factor on all channel counts. The slow pathway's first convolution has 64·width
            channels, rounded to a multiple of 1/β and at least 8; D is 32·(1 + β) times that.
        weights: state dict (.pt, .pth, .safetensors) with pytorchvideo's tensor names; a
            classifier in it is left out.

    Raises:
        UserError: 1/β is not a power of two up to 64, or the weights do not fit.
    """

    modalities = frozenset({"video"})

    def __init__(
        self,
        *,
        alpha: Annotated[int, Field(ge=1)] = 8,
        beta: Annotated[float, Field(ge=1 / 64, le=1)] = 0.125,
        fusion_kernel: Literal[5, 7] = 7,
        width: Width = 1.0,
        weights: FilePath | None = None,
    ) -> None:
        super().__init__()
        ratio = round(1 / beta)
        if ratio * beta != 1 or STEM_CHANNELS % ratio:
            # With others pytorchvideo rounds the two ends of a fusion differently.
            raise UserError(f"beta: {beta:g} is none of 1, 1/2, 1/4, 1/8, 1/16, 1/32 and 1/64")
        slow = max(ratio * round(STEM_CHANNELS * width / ratio), ratio, FEWEST_CHANNELS)
        fast = slow // ratio
        self.alpha = alpha
        net = _pytorchvideo("create_slowfast")(
            slowfast_channel_reduction_ratio=ratio,
            slowfast_fusion_conv_kernel_size=(fusion_kernel, 1, 1),
            # As many steps come out of the fusions as the slow pathway has.
            slowfast_fusion_conv_stride=(alpha, 1, 1),
            stem_dim_outs=(slow, fast),
            head=None,
            head_pool=None,
        )
        # The sixth would join the two pathways, which `forward` does.
        self.blocks: nn.ModuleList = net.blocks[:5]
        self.dim = 32 * (slow + fast)
        if weights is not None:
            load_weights(self, weights, classifiers=("blocks.6",))

    def forward(self, clip: Tensor) -> Features:
        """Encode clips.

        Args:
            clip: ``[B, 3, T, H, W]``, normalised frames of the fast pathway; any T, H, W from 1
                upwards. The slow pathway takes ⌈T/α⌉ of them.

        Returns:
            ``pooled [B, D]``, the means over time and space of the slow pathway's last map (2048
            channels) and of the fast pathway's (256), and ``tokens [B, ⌈T/α⌉·⌈H/32⌉·⌈W/32⌉, D]``,
            the positions of the slow map, time before rows before columns, each with the fast
            map's mean over the α frames from the slow one on (fewer at the end where α does not
            divide T; otherwise the mean of the tokens is ``pooled``).
        """
        pathways = [clip[:, :, :: self.alpha], clip]
        for block in self.blocks:
            pathways = block(pathways)
        slow, fast = pathways
        pooled = [feature_map.mean((2, 3, 4)) for feature_map in pathways]
        steps = torch.stack([frames.mean(2) for frames in fast.split(self.alpha, 2)], 2)
        return Features(pooled=_joined(pooled), tokens=as_tokens(_joined([slow, steps])))


class SlowR50AVBert(Backbone):
    """The visual CNN that AVBert's authors released: 31 672 128 parameters, D = 2048.

    A slow pathway of 50 layers alone, whose first convolution is 5×7×7 with stride 2 in time and
    space. The last batch norm of each residual block begins at zero.

    Args:
        width: factor on all channel counts, which are rounded and at least 8; D = 2048·width.
        weights: state dict (.pt, .pth, .safetensors) with pytorchvideo's tensor names; a
            classifier in it is left out. The released file may have other names: it was not
            tried.
    """

    modalities = frozenset({"video"})

    def __init__(self, *, width: Width = 1.0, weights: FilePath | None = None) -> None:
        super().__init__()
        channels = scaled(STEM_CHANNELS, width)
        net = _pytorchvideo("create_resnet")(
            stem_dim_out=channels,
            stem_conv_kernel_size=(5, 7, 7),
            stem_conv_stride=(2, 2, 2),
            head=None,
        )
        self.blocks: nn.ModuleList = net.blocks
        self.dim = 32 * channels
        if weights is not None:
            load_weights(self, weights, classifiers=("blocks.5",))

    def forward(self, clip: Tensor) -> Features:
        """Encode clips.

        Args:
            clip: ``[B, 3, T, H, W]``, normalised frames; any T, H, W from 1 upwards.

        Returns:
            ``pooled [B, D]``, the mean over time and space of the last feature map, and
            ``tokens [B, ⌈T/2⌉·⌈H/32⌉·⌈W/32⌉, D]``, that map, time before rows before columns.
        """
        x = clip
        for block in self.blocks:
            x = block(x)
        tokens = as_tokens(x)
        return Features(pooled=tokens.mean(1), tokens=tokens)
