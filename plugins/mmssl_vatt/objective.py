"""Pretraining of VATT: contrast in a space for sound and in one for text (Akbari et al., 2021).

What is seen is compared with sound in a fine-grained space of 512 dimensions, and with text, which
says less of it, in a coarse-grained one of 256 that is reached through the first::

    z_va = g_v→va(v)       z_a = g_a→va(a)       g_v→va: Dense, BN, ReLU, Dense, BN
    z_vt = g_v→vt(z_va)    z_t = g_t→vt(t)       g_v→vt: ReLU, Dense, BN

    L = NCE(z_va, z_a) + λ MIL-NCE(z_vt, z_t)

Dense layers of v have no bias, those of a and t are all there is to g. The paper gives sizes and
losses; the heads are the released code's.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmssl import Backbone, Batch, Features, Losses, Objective, UserError
from mmssl.training import distributed
from mmssl.training.encoders import Encoders
from mmssl_vatt.losses import Pairs, mil_nce, unit
from mmssl_vatt.narrations import Narrations

Size = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

FINE, COARSE = "va", "vt"


class VATT(Objective):
    """NCE of one modality with others, and MIL-NCE with text.

    Every modality may be absent from any sample: it is then nobody's negative, and the term has
    the samples that are left. Where text comes as several narrations of a clip, any of them may
    be the right one. Batch statistics and negatives are those of all ranks.

    Embeddings for retrieval are in the spaces ``va``, fine-grained, and ``vt``, coarse-grained; of
    several narrations the first stands for the text.

    Logs each term, ``video-audio/nce`` and ``video-text/mil_nce``, and ``video-audio/accuracy``:
    how many of the samples' own other halves are nearest in the batch.

    Args:
        anchor: the modality that all others are compared with.
        fine: those compared in the fine-grained space; null for all that are not coarse.
        coarse: those compared in the coarse-grained space; null for ``text``, where there is such.
        fine_dim: dimensions of the fine-grained space.
        coarse_dim: dimensions of the coarse-grained space.
        temperature: τ, by which cosines are divided.
        coarse_weight: λ.
        symmetric: a denominator for each direction, and both losses added; by default one
            denominator for both, as released.
        total: the weighted terms' sum, as in the paper, or their weighted mean, as released.
    """

    def __init__(
        self,
        *,
        anchor: str = "video",
        fine: list[str] | None = None,
        coarse: list[str] | None = None,
        fine_dim: Size = 512,
        coarse_dim: Size = 256,
        temperature: Positive = 0.07,
        coarse_weight: Positive = 1.0,
        symmetric: bool = False,
        total: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__()
        self._anchor = anchor
        self._fine = fine
        self._coarse = coarse
        self._fine_dim = fine_dim
        self._coarse_dim = coarse_dim
        self._temperature = temperature
        self._coarse_weight = coarse_weight
        self._symmetric = symmetric
        self._mean = total == "mean"
        self.heads = nn.ModuleDict()

    def build(self, encoders: Encoders) -> None:
        """A head for each modality, and the anchor's second one where there is a coarse space.

        Raises:
            UserError: the recipe lacks a modality, or one stands twice.
        """
        dims, anchor = encoders.dims, self._anchor
        others = [name for name in dims if name != anchor]
        coarse = [n for n in others if n == "text"] if self._coarse is None else self._coarse
        fine = [n for n in others if n not in coarse] if self._fine is None else self._fine
        _check(anchor, fine, coarse, list(dims))
        self._weights = dict.fromkeys(fine, 1.0) | dict.fromkeys(coarse, self._coarse_weight)
        self._spaces = {FINE: fine, COARSE: coarse}
        # Encoders, since they keep absent rows away from batch statistics, on all ranks.
        self.to_fine = Encoders({anchor: _to_fine(dims[anchor], self._fine_dim)}, [anchor])
        self.to_coarse = None
        if coarse:
            head = _to_coarse(self._fine_dim, self._coarse_dim)
            self.to_coarse = Encoders({anchor: head}, [anchor])
        size = dict.fromkeys(fine, self._fine_dim) | dict.fromkeys(coarse, self._coarse_dim)
        self.heads = nn.ModuleDict({name: nn.Linear(dims[name], d) for name, d in size.items()})

    def embeddings(self, features: dict[str, Features]) -> dict[str, dict[str, Tensor]]:
        """``va`` with the anchor and the fine modalities, ``vt`` with the coarse ones.

        Those without features are left out.
        """
        spaces: dict[str, dict[str, Tensor]] = {}
        heads = {FINE: self.to_fine, COARSE: self.to_coarse}
        found = features.get(self._anchor)
        z = None if found is None else found.pooled
        for space, names in self._spaces.items():
            members: dict[str, Tensor] = {}
            head = heads[space]
            if z is not None and head is not None:
                z = head.backbones[self._anchor](z).pooled
                members[self._anchor] = z
            for name in names:
                if name in features:
                    members[name] = self.heads[name](features[name].pooled)
            if names:
                spaces[space] = members
        return spaces

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        """The terms, each over the samples of all ranks that have what it compares.

        A term is 0, without gradient, where no sample has.

        Raises:
            UserError: training in batches of one sample, which has no spread to normalise by.
        """
        anchor, device = self._anchor, batch.seeds.device
        if self.training and len(batch) * (distributed.size() if self.to_fine.together else 1) < 2:
            raise UserError(
                "objective: vatt normalises over the batch and has no use for one sample: set a "
                "larger training.batch_size, or a smaller training.accumulate"
            )
        present = {n: batch.present[n].to(device) for n in (anchor, *self._weights)}
        mask = {anchor: batch.present[anchor]}
        z = self.to_fine({anchor: features[anchor].pooled}, mask)[anchor].pooled
        anchors = {FINE: z}
        if self.to_coarse is not None:
            anchors[COARSE] = self.to_coarse({anchor: z}, mask)[anchor].pooled
        losses = Losses(torch.zeros((), device=device))
        for space, names in self._spaces.items():
            for name in names:
                candidates, valid = self._candidates(name, features[name], present[name])
                own = Pairs(unit(anchors[space]), present[anchor], unit(candidates), valid)
                kind = "nce" if candidates.shape[1] == 1 else "mil_nce"
                self._add(losses, own, f"{anchor}-{name}", kind, self._weights[name])
        if self._mean:
            losses.total = losses.total / sum(self._weights.values())
        return losses

    def _candidates(self, name: str, found: Features, present: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, M, D]`` and ``[B, M]``: all narrations, or the one vector that there is."""
        if isinstance(found, Narrations):
            return self.heads[name](found.candidates), found.valid & present[:, None]
        return self.heads[name](found.pooled[:, None]), present[:, None]

    def _add(self, losses: Losses, own: Pairs, pair: str, kind: str, weight: float) -> None:
        """Add a term, its samples against those of all ranks."""
        every = Pairs(
            distributed.gather(own.anchors),
            distributed.gather(own.anchored.float()) > 0,
            distributed.gather(own.candidates),
            distributed.gather(own.valid.float()) > 0,
        )
        each, nearest = mil_nce(
            own,
            every,
            first=distributed.rank() * len(own.anchors),
            temperature=self._temperature,
            symmetric=self._symmetric,
        )
        count = distributed.total(own.counted.sum())
        term = distributed.global_mean(each.sum(), count)
        losses.total = losses.total + weight * term
        losses.parts[f"{pair}/{kind}"] = term.detach()
        losses.parts[f"{pair}/accuracy"] = distributed.global_mean(nearest.sum(), count)
        losses.counts |= {f"{pair}/{kind}": count, f"{pair}/accuracy": count}


class _Head(Backbone):
    """Layers from one vector to another."""

    modalities = "any"

    def __init__(self, dim: int, *layers: nn.Module) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Features:
        return Features(self.layers(x))


def _to_fine(inputs: int, dim: int) -> _Head:
    return _Head(
        dim,
        nn.Linear(inputs, dim, bias=False),
        nn.BatchNorm1d(dim),
        nn.ReLU(),
        nn.Linear(dim, dim, bias=False),
        nn.BatchNorm1d(dim),
    )


def _to_coarse(inputs: int, dim: int) -> _Head:
    return _Head(dim, nn.ReLU(), nn.Linear(inputs, dim, bias=False), nn.BatchNorm1d(dim))


def _check(anchor: str, fine: Sequence[str], coarse: Sequence[str], modalities: list[str]) -> None:
    """Refuse what cannot be compared."""
    there = ", ".join(modalities)
    for field, names in (("anchor", [anchor]), ("fine", fine), ("coarse", coarse)):
        for name in names:
            if name not in modalities:
                raise UserError(
                    f"objective.{field}: the recipe has no modality {name!r}, only {there}"
                )
    everyone = [anchor, *fine, *coarse]
    for name in everyone:
        if everyone.count(name) > 1:
            raise UserError(
                f"objective: {name!r} stands twice in anchor, fine and coarse; once is enough"
            )
    if not fine and not coarse:
        raise UserError(
            f"objective: vatt compares {anchor} with another modality, and fine and coarse name "
            f"none (the recipe has {there})"
        )
