"""Pretraining of toys, as tests of the loop run it in one process or on several ranks."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from toys import Perceptron, Rows, Vector

from mmssl.contracts import Callback, Dataset, Objective, Tracker
from mmssl.data.loading import LoaderSettings
from mmssl.training.encoders import Encoders
from mmssl.training.log import read_log
from mmssl.training.loop import Pretraining
from mmssl.training.optimizers import sgd
from mmssl.training.progress import Silent
from mmssl.training.schedules import constant
from mmssl.training.settings import RoundPlan, Settings
from mmssl_clustering.objectives import XDC

SETTINGS = Settings(
    seed=3,
    epoch_size=48,
    batch_size=8,
    accumulate=1,
    make_optimizer=partial(sgd, lr=0.05),
    lr_batch=None,
    restart_optimizer=True,
    early_stop=None,
    freeze_encoders=False,
    precision="fp32",
    sync_batch_norm=True,
    channels_last=False,
    log_every=1,
    checkpoint_steps=4,
    checkpoint_minutes=None,
    keep=2,
    max_bad=0.2,
)


def changed(**fields: Any) -> Settings:
    return Settings(**{**SETTINGS.__dict__, **fields})


def pretraining(
    folder: Path,
    *,
    settings: Settings = SETTINGS,
    objective: Objective | None = None,
    data: Dataset | None = None,
    validation: Dataset | None = None,
    epochs: int = 2,
    workers: int = 0,
    dropout: float = 0.1,
    names: Sequence[str] = ("a", "b"),
    noise: float = 0.5,
    trackers: Mapping[str, Tracker] = MappingProxyType({}),
    callbacks: Mapping[str, Callback] = MappingProxyType({}),
) -> Pretraining:
    modalities = {name: Vector(name, noise=noise) for name in names}
    torch.manual_seed(0)
    encoders = Encoders({name: Perceptron(dropout=dropout) for name in names}, names)
    objective = objective or XDC(rounds=3, clusters=5, balance=True, normalize="standardize_l2")
    objective.build(encoders)
    folder.mkdir(exist_ok=True)
    return Pretraining(
        folder=folder,
        encoders=encoders,
        objective=objective,
        modalities=modalities,
        train=data or Rows(60, bad=[11], without={"b": [20, 21]}),
        validation=validation,
        plan=lambda number: RoundPlan(epochs, constant),
        settings=settings,
        loader=LoaderSettings(workers=workers),
        device=torch.device("cpu"),
        trackers=trackers,
        progress=Silent(),
        callbacks=callbacks,
    )


def exact(record: Mapping[str, Any]) -> dict[str, Any]:
    """A log record without what the clock decides."""
    return {k: v for k, v in record.items() if k not in ("clips_per_second", "data_wait")}


def same_log(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Logs of runs that round differently, such as on one rank and on two."""
    assert [r["kind"] for r in found] == [r["kind"] for r in expected]
    for ours, theirs in zip(map(exact, found), map(exact, expected), strict=True):
        assert ours.pop("kind") == theirs.pop("kind")
        assert ours == pytest.approx(theirs, rel=2e-4, abs=2e-5, nan_ok=True)


def outcome(folder: Path) -> tuple[list[Any], dict[str, list[int]]]:
    labels = {
        str(path.relative_to(folder)): np.load(path).tolist()
        for path in sorted(folder.glob("clusters/*/*.labels.npy"))
    }
    return [exact(record) for record in read_log(folder)], labels
