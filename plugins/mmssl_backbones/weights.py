"""Reading a state dict that somebody else saved.

Files differ in what surrounds the tensors: ``{"state_dict": ...}``, ``{"model": ..., "optimizer":
...}``, the prefix ``module.`` of data-parallel training, a classifier. Nested dicts are read as
dotted names, so all of these are one question: after which prefix do the network's names come?
What has another prefix belongs to something else (a head, an optimizer) and is left out.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mmssl import UserError

#: How many tensors of one kind an error names before it says "and N more".
NAMED = 3


def load_weights(network: nn.Module, path: Path, *, classifiers: Sequence[str] = ("fc",)) -> None:
    """Load every parameter and buffer of a network from a file.

    Batch norms' counters of batches may be missing, as in files from before torch had them.

    Args:
        network: what to load into.
        path: a ``.pt`` or ``.pth`` file, read with ``weights_only=True``, or ``.safetensors``.
        classifiers: names of modules that the file may have and the network has not.

    Raises:
        UserError: the file cannot be read, or a tensor is missing, unexpected or of another
            shape; the message names the tensors.
    """
    tensors = _read(path)
    wanted = network.state_dict()
    prefix = _prefix(tensors, wanted, path)
    found = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    for classifier in classifiers:
        found = {k: v for k, v in found.items() if not f"{k}.".startswith(f"{classifier}.")}

    missing = [n for n in wanted if n not in found and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in found if n not in wanted]
    shapes = [
        f"{n} is {_shape(found[n])} in the file, {_shape(tensor)} in the network"
        for n, tensor in wanted.items()
        if n in found and found[n].shape != tensor.shape
    ]
    complaints = [
        _listed(f"of another shape: {len(shapes)} of {len(wanted)}", shapes),
        _listed(f"missing: {len(missing)} of {len(wanted)}", missing),
        _listed(f"unexpected: {len(unexpected)}", unexpected),
    ]
    if any(complaints):
        raise UserError(
            f"{path}: the weights do not fit the network; tensors "
            f"{'; '.join(c for c in complaints if c)}. "
            "Choose the backbone, width and input channels that the file was saved from"
        )
    for name, tensor in found.items():
        wanted[name].copy_(tensor)


def _read(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by dotted name."""
    if path.suffix not in {".pt", ".pth", ".safetensors"}:
        raise UserError(
            f"{path}: weights are read from .pt, .pth and .safetensors files, "
            f"not from {path.suffix or 'a file without ending'}"
        )
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: no safetensors file, or a damaged one ({error})") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes run into
        raise UserError(
            f"{path}: torch cannot read it as weights ({type(error).__name__}). Either it is "
            "damaged or no torch file, or it pickles more than tensors: then save its state dict "
            "alone"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__} instead of a state dict")
    return dict(_flattened(content))


def _flattened(content: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield f"{before}{name}", value
        elif isinstance(value, Mapping):
            yield from _flattened(value, f"{before}{name}.")


def _prefix(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> str:
    """The prefix under which most of the network's tensors are in the file."""
    names: Counter[str] = Counter()
    shapes: Counter[str] = Counter()
    for name, tensor in tensors.items():
        parts = name.split(".")
        for i in range(len(parts)):
            rest = ".".join(parts[i:])
            if rest in wanted and not rest.endswith("num_batches_tracked"):
                prefix = name.removesuffix(rest)
                names[prefix] += 1
                shapes[prefix] += wanted[rest].shape == tensor.shape
    if not names:
        some = _listed("it has others", list(tensors)) or "it is empty"
        raise UserError(f"{path}: holds no tensor of the network; {some}")
    best = max(names, key=lambda prefix: (names[prefix], shapes[prefix]))
    whole = sum(not name.endswith("num_batches_tracked") for name in wanted)
    rivals = [prefix for prefix in shapes if shapes[prefix] == whole]
    if len(rivals) > 1:
        raise UserError(
            f"{path}: holds the network more than once, under "
            f"{' and '.join(repr(prefix) for prefix in sorted(rivals))}; "
            "save the state dict of the one that you mean alone"
        )
    return best


def _shape(tensor: Tensor) -> str:
    return "×".join(str(size) for size in tensor.shape) or "a scalar"


def _listed(title: str, items: Sequence[str]) -> str:
    """``"title (a, b, c and 4 more)"``; empty without items."""
    if not items:
        return ""
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return f"{title} ({', '.join(items[:NAMED])}{more})"
