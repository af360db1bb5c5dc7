"""Tensors of a file, and networks that take them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmssl.errors import UserError


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return load_file(file)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(f"{file}: is damaged ({error})") from error


def identity(module: nn.Module) -> str:
    """Of all weights and their names: the same for a run and for what was exported of it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fill(module: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Load every parameter and buffer; one that shares its memory may be there under one name.

    Raises:
        UserError: they do not fit.
    """
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in tensors]
    given = {wanted[name].data_ptr() for name in wanted if name in tensors}
    missing = [name for name in missing if wanted[name].data_ptr() not in given]
    extra = [name for name in tensors if name not in wanted]
    shapes = [n for n, t in tensors.items() if n in wanted and wanted[n].shape != t.shape]
    for what, names in (
        ("lacks", missing),
        ("has too much:", extra),
        ("has other shapes:", shapes),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"{file}: does not fit the network of this version: it {what} "
                f"{', '.join(names[:3])}{more}"
            )
    for name, tensor in tensors.items():
        wanted[name].copy_(tensor)
