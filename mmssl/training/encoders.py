"""The recipe's backbones, by modality."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_file
from torch import Tensor, nn

from mmssl.contracts import Backbone, Features
from mmssl.errors import UserError
from mmssl.training import distributed
from mmssl.training.batch_norm import uncounted
from mmssl.training.checkpoints import write_atomically


class Encoders(nn.Module):
    """From clips to features, each modality through the backbone that serves it.

    Args:
        backbones: by recipe key, a modality or several joined by ``+``.
        modalities: all modalities, in the recipe's order.
    """

    def __init__(self, backbones: Mapping[str, Backbone], modalities: list[str]) -> None:
        super().__init__()
        self.backbones = nn.ModuleDict(backbones)
        self.modalities = list(modalities)
        #: Do the ranks train as one network, with common statistics, or each for itself?
        self.together = True

    @property
    def dims(self) -> dict[str, int]:
        """D by modality, in the recipe's order."""
        by_modality = {
            modality: int(backbone.dim)  # type: ignore[arg-type]
            for key, backbone in self.backbones.items()
            for modality in key.split("+")
        }
        return {modality: by_modality[modality] for modality in self.modalities}

    def forward(self, clips: dict[str, Tensor], present: dict[str, Tensor]) -> dict[str, Features]:
        """Features by modality; rows of absent modalities are zeros.

        Args:
            clips: prepared clips, ``[B, ...]`` by modality.
            present: ``[B]`` bool by modality, on the CPU.

        Raises:
            UserError: a backbone returns something else than its contract says.
        """
        everywhere = self._rows_everywhere(present)
        features: dict[str, Features] = {}
        for key, backbone in self.backbones.items():
            names = key.split("+")
            if len(names) > 1:
                found = backbone(
                    {name: clips[name] for name in names}, {name: present[name] for name in names}
                )
                _require(key, backbone, found, len(clips[names[0]]))
                features |= found
            elif self.training and backbone.training:  # not where it is frozen
                ranks = distributed.size() if self.together else 1
                features[key] = _train(
                    key, backbone, clips[key], present[key], everywhere[key], ranks
                )
            else:
                features[key] = _measure(key, backbone, clips[key], present[key])
        return features

    def _rows_everywhere(self, present: dict[str, Tensor]) -> dict[str, int]:
        """How many rows have each modality, over the ranks that train together."""
        counts = torch.stack([mask.sum() for mask in present.values()])
        if self.training and self.together:  # elsewhere no rank needs to know of the others
            counts = distributed.total(counts)
        return {name: int(count) for name, count in zip(present, counts, strict=True)}

    def only(self, modalities: Iterable[str]) -> "Encoders":
        """The same backbones, of some modalities.

        Raises:
            UserError: a modality has none, or shares its backbone with one that is left out.
        """
        wanted = list(modalities)
        for name in wanted:
            if name not in self.modalities:
                raise UserError(f"there is no encoder of {name!r}, only of {self.modalities}")
        kept = {}
        for key, backbone in self.backbones.items():
            names = key.split("+")
            left_out = [name for name in names if name not in wanted]
            if len(left_out) < len(names):
                if left_out:
                    parts = ", ".join(backbone.subnetworks())  # type: ignore[operator]
                    way = f"; or measure a part of it: subnetworks ({parts})" if parts else ""
                    raise UserError(f"the backbone {key!r} needs {left_out[0]!r}, too{way}")
                kept[key] = backbone
        return Encoders(kept, wanted)  # type: ignore[arg-type]

    def subnetworks(self, chosen: Mapping[str, str]) -> "Encoders":
        """Networks within the backbones, which share their parameters.

        Args:
            chosen: the names of `Backbone.subnetworks` by modality, or by several joined by ``+``.

        Raises:
            UserError: their backbone has none of the name, it encodes something else, or a
                modality stands twice.
        """
        networks: dict[str, Backbone] = {}
        taken: list[str] = []
        for key, name in chosen.items():
            names = key.split("+")
            # Of the backbone that serves them, as those of others may have the same name.
            serving = (k for k in self.backbones if set(names) <= set(k.split("+")))
            whole = next(serving, None)
            if whole is None:
                there = ", ".join(self.backbones)
                raise UserError(f"subnetworks.{key}: no backbone serves {key}; there are: {there}")
            offered: Mapping[str, Backbone] = self.backbones[whole].subnetworks()  # type: ignore[operator]
            network = offered.get(name)
            if network is None:
                there = f"; there are: {', '.join(offered)}" if offered else ""
                raise UserError(f"subnetworks.{key}: {whole} has no subnetwork {name!r}{there}")
            if (len(names) > 1) != network.joint:
                raise UserError(f"subnetworks.{key}: {name!r} of {whole} does not encode {key}")
            if twice := set(names) & set(taken):
                raise UserError(f"subnetworks.{key}: {twice.pop()!r} is encoded by two of them")
            networks[key], taken = network, [*taken, *names]
        return Encoders(networks, [name for name in self.modalities if name in taken])

    def save(self, path: Path) -> None:
        """Write all weights as safetensors, atomically."""
        save_weights(self, path)

    def load(self, path: Path) -> None:
        """Read what `save` wrote."""
        load_model(self, path)


def save_weights(module: nn.Module, path: Path) -> None:
    """Write all parameters and buffers as safetensors, atomically; `load_model` reads them.

    What several names share is written once, under the first: `save_model` would note the others
    in an order that differs from process to process.
    """
    tensors: dict[str, Tensor] = {}
    written: set[tuple[object, ...]] = set()
    for name, tensor in module.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in written:
            continue
        written.add(place)
        tensors[name] = tensor.contiguous()
    write_atomically(path, lambda temporary: save_file(tensors, temporary))


def breach(backbone: nn.Module, names: Sequence[str], found: Any, size: int) -> str:
    """What is not as a backbone's contract says, for its author; nothing where all is.

    Args:
        backbone: whose features they are.
        names: the modalities that it was given.
        found: what stands for features, by modality.
        size: the number of clips.
    """
    who = type(backbone).__name__
    if not isinstance(found, Mapping):
        what = f"a {type(found).__name__}"
        return f"forward of {who} returned {what}: return a dict of mmssl.Features by modality"
    if not set(names) <= set(found):
        return f"forward of {who} gave features of {sorted(found)}, and takes {sorted(names)}"
    for name in names:
        features = found[name]
        if not isinstance(features, Features):
            what = f"a {type(features).__name__}" + f" for {name}" * (len(names) > 1)
            return f"forward of {who} returned {what}: return mmssl.Features"
        # Heads were built for what `dim` declares: another width would show far from here.
        shape, declared = tuple(getattr(features.pooled, "shape", ())), (size, backbone.dim)
        if shape != declared:
            return (
                f"pooled features of {name} are of shape {shape}, where dim of {who} declares "
                f"{declared}: correct one of them; `mmssl check-plugin` tries more of a backbone "
                "than this"
            )
    return ""


def _require(key: str, backbone: nn.Module, found: Any, size: int) -> None:
    if told := breach(backbone, key.split("+"), found, size):
        raise UserError(f"backbones.{key}: {told}")


def _encode(key: str, backbone: nn.Module, clip: Tensor) -> Features:
    features: Features = backbone(clip)
    _require(key, backbone, {key: features}, len(clip))
    return features


def _measure(key: str, backbone: nn.Module, clip: Tensor, present: Tensor) -> Features:
    """Features of all rows, zeros where they are absent."""
    features = _encode(key, backbone, clip)
    if bool(present.all()):
        return features
    mask = present.to(clip.device)
    return features.map(lambda x: x * mask.view(-1, *[1] * (x.ndim - 1)))


def _train(
    key: str, backbone: nn.Module, clip: Tensor, present: Tensor, everywhere: int, ranks: int
) -> Features:
    """Keep absent rows away from a network in training, whose BatchNorm would learn from zeros.

    All ranks take part in what normalises over all of them, or they would wait for each other.

    Args:
        key: the modality.
        backbone: its own, in training mode.
        clip: ``[B, ...]``.
        present: ``[B]`` bool, on the CPU.
        everywhere: rows that have the modality, over all ranks that train together.
        ranks: their number.
    """
    if everywhere == len(present) * ranks:
        return _encode(key, backbone, clip)
    if everywhere == 0:
        # Nothing to learn from: eval mode tells the features' shapes and touches no statistics.
        training = [part for part in backbone.modules() if part.training]  # not what is frozen
        backbone.eval()
        features = _measure(key, backbone, clip, present)
        for part in training:
            part.training = True
        return features
    rows = present.nonzero().squeeze(1).to(clip.device)
    if len(rows) == 0:
        with uncounted():
            some = _encode(key, backbone, clip[:1])
    else:
        # BatchNorm refuses a single value per channel: a lonely row stands twice.
        some = _encode(key, backbone, clip[rows if everywhere > 1 else rows.repeat(2)])
    return some.map(lambda x: _spread(x[: len(rows)], rows, len(clip)))


def _spread(values: Tensor, rows: Tensor, size: int) -> Tensor:
    """``values`` at ``rows`` of a tensor of ``size`` rows, zeros elsewhere."""
    return values.new_zeros(size, *values.shape[1:]).index_copy(0, rows, values)
