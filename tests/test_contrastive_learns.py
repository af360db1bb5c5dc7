"""Contrastive objectives learn: samples never seen before find their other halves."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_runs import changed
from toys import Perceptron, Rows

from mmssl.contracts import Modality, Objective, Window
from mmssl.data.draws import Draws
from mmssl.data.loading import LoaderSettings
from mmssl.data.media import Media
from mmssl.training.encoders import Encoders
from mmssl.training.loop import Pretraining
from mmssl.training.optimizers import adamw
from mmssl.training.progress import Silent
from mmssl.training.schedules import constant
from mmssl.training.settings import RoundPlan
from mmssl_contrastive.avid import AVID
from mmssl_contrastive.infonce import InfoNCE
from mmssl_contrastive.siglip import SigLIP
from mmssl_evaluators.retrieval import match_ranks
from mmssl_vatt.objective import VATT

LATENT, VALUES, UNSEEN = 4, 12, 100

# Which space to look in, the objective, and how many samples it sees how often. A memory tells more
# the more often its sample was seen.
OBJECTIVES: dict[str, tuple[str, Any, int, int]] = {
    "infonce": ("joint", lambda: InfoNCE(dim=8), 512, 15),
    "infonce of three": ("joint", lambda: InfoNCE(dim=8, temperature=0.1), 512, 15),
    "siglip": ("joint", lambda: SigLIP(dim=8), 512, 15),
    "avid": ("joint", lambda: AVID(dim=8, depth=1, negatives=64), 128, 60),
    "vatt": ("va", lambda: VATT(anchor="a", fine_dim=16), 512, 15),
}


@cache
def shown(salt: int, row: int) -> Tensor:
    """What a modality shows of a row's latent vector: mixed, squashed, and noisy."""
    mixing = np.random.default_rng([salt, 0]).normal(size=(VALUES, LATENT)) / LATENT**0.5
    latent = np.random.default_rng([0, row]).normal(size=LATENT)
    noise = np.random.default_rng([salt, 1, row]).normal(size=VALUES)
    return torch.from_numpy(np.tanh(mixing @ latent) + 0.05 * noise).float()


class View(Modality):
    """One view of a row."""

    kind = "vector"
    shape = (VALUES,)

    def __init__(self, name: str) -> None:
        self.salt = sum(name.encode())

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        return shown(self.salt, int(media.sample.fields["row"]))

    def empty(self) -> Tensor:
        return torch.zeros(self.shape)

    def prepare(self, batch: Tensor, draws: Draws | None) -> Tensor:
        return batch if draws is None else batch + 0.05 * draws.normal(*self.shape)


class Later(Rows):
    """Rows that training does not see."""

    def sample(self, index: int) -> Any:
        return super().sample(10_000 + index)


@torch.no_grad()
def found_first(
    encoders: Encoders, objective: Objective, views: dict[str, View], space: str
) -> list[float]:
    """Between each modality and the first one, both ways: how many unseen rows rank first."""
    rows = Later(UNSEEN)
    clips = {}
    for name, view in views.items():
        read = (view.read(Media(rows.sample(i)), Window(0.0, 1.0), None) for i in range(UNSEEN))
        clips[name] = torch.stack([*read])
    present = {name: torch.ones(UNSEEN, dtype=torch.bool) for name in views}
    encoders.eval()
    objective.eval()
    spaces = objective.embeddings(encoders(clips, present))[space]
    first, *others = views
    shares = []
    for other in others:
        for query, match in ((first, other), (other, first)):
            ranks = torch.cat([*match_ranks(spaces[query], spaces[match])])
            shares.append(float((ranks == 1).float().mean()))
    return shares


@pytest.mark.parametrize("name", OBJECTIVES)
def test_unseen_samples_find_their_other_halves(name: str, tmp_path: Path) -> None:
    """Chance is 1 of 100; what encoders and heads at random find is not much more."""
    space, make, size, epochs = OBJECTIVES[name]
    views = {key: View(key) for key in ("abc" if "three" in name else "ab")}
    torch.manual_seed(0)
    encoders = Encoders({key: Perceptron(VALUES, 16, dropout=0.0) for key in views}, [*views])
    objective = make()
    objective.build(encoders)
    before = found_first(encoders, objective, views, space)
    assert max(before) < 0.08
    Pretraining(
        folder=tmp_path,
        encoders=encoders,
        objective=objective,
        modalities=dict(views),
        train=Rows(size),
        validation=None,
        plan=lambda number: RoundPlan(epochs, constant),  # 120 steps
        settings=changed(
            epoch_size=size,
            batch_size=64,
            make_optimizer=lambda groups: adamw(groups, lr=0.01),
            log_every=100,
            checkpoint_steps=None,
        ),
        loader=LoaderSettings(workers=0),
        device=torch.device("cpu"),
        trackers={},
        progress=Silent(),
    ).run()
    after = found_first(encoders, objective, views, space)
    assert min(after) > 0.5
