"""Writing encoders to a folder of their own, with a card that says all about them."""

import glob
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python
from safetensors.torch import save_file
from torch import nn

from mmssl import __version__, formats
from mmssl.errors import UserError
from mmssl.pipeline.records import PRETRAIN, Records, read_json
from mmssl.pretrained.checkpoint import (
    CARD,
    Pretrained,
    digest_of,
    open_pretrained,
    read_recipe,
    run_of,
    sha256,
)
from mmssl.pretrained.weights import identity
from mmssl.recipe.component import ComponentSpec
from mmssl.registry import discover
from mmssl.training.checkpoints import write_atomically
from mmssl.training.encoders import Encoders

# What a recipe says of training that is no matter of the machine it ran on.
_TRAINING = (
    "epoch_size",
    "epochs",
    "final_round",
    "batch_size",
    "optimizer",
    "schedule",
    "lr_batch",
)


def export(run: str | Path, folder: Path | None = None, *, objective: bool = False) -> Path:
    """Write a finished run's encoders and their card; the folder appears whole or not at all.

    Args:
        run: its folder, or its name under ``./runs``.
        folder: to make; by default ``export`` in the run's folder.
        objective: also the objective's weights, with which modalities are compared.

    Returns:
        The folder.

    Raises:
        UserError: the run has not finished, the folder exists, or the objective compares nothing
            or was not kept.
    """
    source = run_of(run)
    pretrained = open_pretrained(source)
    folder = source / "export" if folder is None else folder
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists already: delete it, or choose another folder (-o)")
    if objective and pretrained.objective_weights is None:
        missing = source / "checkpoints" / "objective.safetensors"
        raise UserError(f"this run kept no objective: {missing} is missing; leave --objective out")
    encoders = pretrained.build_encoders()
    heads = pretrained.build_objective(encoders) if objective else None
    if objective and heads is None:
        raise UserError(
            f"{pretrained.file}: objective: {pretrained.blocks['objective']['use']!r} has no "
            "embeddings in which modalities are compared; leave --objective out"
        )
    with _appearing(folder) as out:
        for key, backbone in encoders.backbones.items():
            _save(backbone, out / f"{key}.safetensors")
        if heads is not None:
            _save(heads, out / "objective.safetensors")
        blocks = _Blocks(pretrained, out, objective=heads is not None)
        card = {
            "format": formats.CARD.current,
            "name": pretrained.name,
            "mmssl": __version__,
            "plugins": blocks.plugins(),
            **blocks.plain,
            "classes": [] if heads is None else list(heads.class_names),
            "multilabel": heads is not None and heads.multilabel,
            "seed": pretrained.seed,
            "precision": pretrained.precision,
            "channels_last": pretrained.channels_last,
            "inputs": _inputs(pretrained, encoders),
            "pretraining": _pretraining(Records(source)),
            "evaluations": _evaluations(Records(source)),
            "weights": identity(encoders),
            "files": blocks.files,
            "sha256": {name: sha256(out / name) for name in _names(out)},
        }
        card["digest"] = digest_of(card)
        text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
        write_atomically(out / CARD, lambda path: path.write_text(text, encoding="utf-8"))
    return folder


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder under a temporary name, which gets its own when all is in it."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
            if not _alive(leftover.name.split(".")[-2]):  # it was killed
                shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        os.rename(temporary, folder)
        parent = os.open(folder.parent, os.O_RDONLY)
        try:
            os.fsync(parent)  # the name, too, must outlive a crash of the machine
        finally:
            os.close(parent)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _alive(process: str) -> bool:
    """May there be a process of this number?"""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, PermissionError):  # no number; somebody else's
        pass
    return True


def _save(module: nn.Module, path: Path) -> None:
    """All tensors under the module's own names, shared ones as often as they have names."""
    tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda to: save_file(tensors, to, metadata={"format": "pt"}))


def _names(folder: Path) -> list[str]:
    """All files below a folder, relative to it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)


class _Blocks:
    """Blocks of a recipe as a card has them: components with owners, and with their files."""

    def __init__(self, pretrained: Pretrained, folder: Path, *, objective: bool) -> None:
        self.files: list[str] = []
        self._folder = folder
        self._owners: Counter[str] = Counter()
        specs = pretrained.specs
        self.plain: dict[str, Any] = {
            "modalities": {key: self._plain(spec) for key, spec in specs.modalities.items()},
            "backbones": {
                key: {k: v for k, v in self._plain(spec).items() if k != "weights"}
                for key, spec in specs.backbones.items()
            },
            "objective": self._plain(pretrained.objective) if objective else None,
        }

    def plugins(self) -> dict[str, str]:
        """Those that own a component, with their versions."""
        return {p.name: p.version for p in discover().plugins if p.name in self._owners}

    def _plain(self, value: Any) -> Any:
        if isinstance(value, ComponentSpec):
            owner, name = value.registration.owner, value.registration.name
            self._owners[owner] += 1
            return {"use": f"{owner}/{name}", **self._plain(value.parameters)}
        if isinstance(value, Path):
            return self._taken_along(value)
        if isinstance(value, Mapping):
            return {key: self._plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._plain(item) for item in value]
        return to_jsonable_python(value)

    def _taken_along(self, file: Path) -> str:
        if not file.is_file():
            raise UserError(f"{file}: a component reads it, but only files go into an export")
        name = f"files/{len(self.files)}-{file.name}"
        (self._folder / "files").mkdir(exist_ok=True)
        write_atomically(self._folder / name, lambda to: shutil.copyfile(file, to))
        self.files.append(name)
        return name


def _inputs(pretrained: Pretrained, encoders: Encoders) -> dict[str, Any]:
    """What each network takes and gives."""
    return {
        name: {
            "kind": modality.kind,
            "shape": list(modality.shape),
            "dtype": str(modality.dtype).removeprefix("torch."),
            "seconds": modality.seconds,
            "dim": encoders.dims[name],
        }
        for name, modality in pretrained.build_modalities().items()
    }


def _pretraining(run: Records) -> dict[str, Any]:
    """Where the encoders come from."""
    recipe = read_recipe(run.path)
    starts = run.starts(PRETRAIN)
    last = starts[-1] if starts else {}
    steps = [record["step"] for record in run.log().values() if "step" in record]
    return _without_paths(
        {
            "description": recipe["description"],
            "objective": recipe["objective"],
            "data": {"train": recipe["data"]["train"], "limit": recipe["data"]["limit"]},
            "training": {key: recipe["training"][key] for key in _TRAINING},
            "steps": max(steps, default=0),
            "began": starts[0]["at"] if starts else None,
            "finished": (read_json(run.finish_file(PRETRAIN)) or {}).get("at"),
            "git": last.get("git"),
            "python": last.get("python"),
            "packages": last.get("packages", {}),
        }
    )


def _evaluations(run: Records) -> dict[str, Any]:
    """Metrics of finished evaluations, by name."""
    names = run.recipe.get("evaluations") or {}
    return {
        name: read_json(run.path / "evaluations" / name / "metrics.json")
        for name in names
        if run.finished(name)
    }


def _without_paths(value: Any) -> Any:
    """Paths of this machine mean nothing on another, but for their last part."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and os.path.isabs(value.removeprefix("file://")):
        return os.path.basename(value.rstrip("/"))
    return value
