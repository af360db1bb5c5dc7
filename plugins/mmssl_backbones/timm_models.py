"""Any network of timm as a backbone."""

import difflib
from typing import Annotated, Any, cast

import timm
from pydantic import Field, FilePath
from torch import Tensor

from mmssl import Backbone, Features, UserError
from mmssl_backbones.resnet import as_tokens
from mmssl_backbones.weights import load_weights

Size = Annotated[int, Field(gt=0)]


class Timm(Backbone):
    """A network of timm without its classifier, for images or spectrograms.

    Nothing is downloaded: without ``weights`` the network is initialised as timm does it.

    Args:
        model: timm's name of the network, such as ``resnet18`` or ``vit_tiny_patch16_224``.
        in_chans: input channels: 3 for images, 1 for log-mel spectrograms.
        img_size: height and width of the clips in pixels (mel filters and frames), for networks
            such as ViTs that are built for one size; the network's own size where it is not set.
        weights: state dict (.pt, .pth, .safetensors) with timm's tensor names; a classifier in
            it is left out.
    """

    modalities = frozenset({"image", "audio"})

    def __init__(
        self,
        *,
        model: str,
        in_chans: Annotated[int, Field(gt=0)] = 3,
        img_size: tuple[Size, Size] | None = None,
        weights: FilePath | None = None,
    ) -> None:
        super().__init__()
        if not timm.is_model(model):
            near = difflib.get_close_matches(model, timm.list_models(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "timm.list_models() lists them"
            raise UserError(f"timm has no model {model!r}; {hint}")
        try:
            net = timm.create_model(
                model, pretrained=False, num_classes=0, in_chans=in_chans, img_size=img_size
            )
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise UserError(f"timm does not build {model!r} so: {error}") from error
        # timm's networks share methods and attributes, but no class that declares them.
        self.net = cast(Any, net)
        self.dim = getattr(self.net, "head_hidden_size", self.net.num_features)
        if weights is not None:
            classifier = self.net.default_cfg.get("classifier") or ()
            names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
            load_weights(self.net, weights, classifiers=names)

    def forward(self, clip: Tensor) -> Features:
        """Encode images or spectrograms.

        Args:
            clip: ``[B, in_chans, H, W]``.

        Returns:
            ``pooled [B, D]``, what timm's classifier would see, and ``tokens [B, N, D]``, the
            patches of a ViT (without class and register tokens) or the positions of the last
            feature map, row by row; None where they have another size than ``pooled``.
        """
        features = self.net.forward_features(clip)
        pooled = self.net.forward_head(features, pre_logits=True)
        return Features(pooled=pooled, tokens=self._tokens(features))

    def _tokens(self, features: Tensor) -> Tensor | None:
        if not isinstance(features, Tensor):  # some networks return the maps of several stages
            return None
        if features.ndim == 3:
            tokens = features[:, getattr(self.net, "num_prefix_tokens", 0) :]
        elif getattr(self.net, "output_fmt", "NCHW") == "NHWC":
            tokens = features.flatten(1, 2)
        else:
            tokens = as_tokens(features)
        return tokens if tokens.shape[-1] == self.dim else None
