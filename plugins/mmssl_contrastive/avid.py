"""AVID: instances are told apart with a memory of all of them (Morgado et al., CVPR 2021).

A memory keeps an embedding m_i of length 1 for each training sample and modality, a running mean
of what its head said. The embedding of one modality is to find the sample's memory of the other
among K memories of others, by noise-contrastive estimation (NCE) with uniform noise::

    P(i | z) = exp(zᵀm_i / τ) / (N Z)         D(i) = P(i | z) / (P(i | z) + K / N)
    L = -log D(i) - Σ_{j in K others} log(1 - D(j))

N Z normalises P. As released, Z is the mean of exp(zᵀm_j / τ) over the negatives of the first
batch that is trained on, and stays.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from mmssl import Batch, Draws, Features, Losses, Objective, Round, Table, UserError
from mmssl.data.draws import derive_seed
from mmssl.training import distributed
from mmssl.training.encoders import Encoders
from mmssl_contrastive.pairs import SPACE, Pair, both, chosen, projected, projections, unit

Size = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class AVID(Objective):
    """Cross-modal instance discrimination, of any pairs of modalities.

    Memories of samples that were not seen yet, or that lack the modality, are random directions.
    After each batch the memories of its samples move towards their embeddings, on all ranks alike;
    of a sample that stands in a batch twice, towards the last. Memories are in every checkpoint,
    and are dropped when training ends: they take 4 · dim bytes for a sample and modality.

    A validation sample has no memory. There the other modality's own embedding stands for it, all
    memories may be negatives, and terms within a modality are left out.

    A pair takes the samples that have both modalities. All meet in the space ``joint``. Of several
    narrations the first stands for the text.

    Logs ``video->audio/loss`` and ``video->audio/accuracy``, the share of samples whose own memory
    is nearer than their negatives; and so for the other direction, and within modalities.

    Args:
        pairs: of modalities; null for all.
        within: weight of telling instances apart within each modality, beside 1 for telling them
            apart across modalities; the loss is the weighted mean of both. 0, Cross-AVID, is the
            paper's best; 1 is Joint-AVID.
        negatives: K, drawn for each sample from all others, with replacement.
        momentum: how much of a memory is kept when its sample comes again.
        temperature: τ.
        dim: dimensions of the space.
        depth: linear maps of each modality's head.
        hidden: dimensions between them; with one map there is nothing between.
    """

    log_z: Tensor

    def __init__(
        self,
        *,
        pairs: list[Pair] | None = None,
        within: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0,
        negatives: Size = 1024,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        temperature: Positive = 0.07,
        dim: Size = 128,
        depth: Size = 3,
        hidden: Size = 512,
    ) -> None:
        super().__init__()
        self._pairs = pairs
        self._within = within
        self._negatives = negatives
        self._momentum = momentum
        self._temperature = temperature
        self._sizes = {"dim": dim, "depth": depth, "hidden": hidden}
        self.heads = nn.ModuleDict()
        self.memories = nn.ModuleDict()
        self.register_buffer("log_z", torch.tensor(math.nan))  # not yet known

    def build(self, encoders: Encoders) -> None:
        """A head and a memory for each modality; memories are empty until training begins.

        Raises:
            UserError: the recipe lacks a modality of the pairs.
        """
        self.pairs = chosen(self._pairs, list(encoders.dims))
        self.heads = projections(encoders.dims, self.pairs, **self._sizes)
        self.memories = nn.ModuleDict({name: Memory(self._sizes["dim"]) for name in self.heads})

    def begin_round(self, round: Round) -> Iterable[nn.Parameter]:
        """Fill the memories with random directions; those of a checkpoint are kept.

        Raises:
            UserError: there is but one sample.
        """
        size = round.sizes["train"]
        if size < 2:
            raise UserError(f"data.train: avid tells samples apart, and there is {size}")
        if not round.resumed:
            for name, memory in self.memories.items():
                assert isinstance(memory, Memory)
                memory.begin(size, derive_seed(round.seed, "memory", name))
        return ()

    def finish(self) -> None:
        """Drop the memories, which only training needs."""
        for memory in self.memories.values():
            assert isinstance(memory, Memory)
            memory.drop()

    def plan(self, *, samples: int, ranks: int) -> Sequence[Table]:
        """What memories take."""
        size = samples * self._sizes["dim"] * 4
        rows = [[name, samples, f"{size / 2**20:.1f}"] for name in self.memories]
        title = "Memories, on every rank and in every checkpoint"
        return [Table(title, ["modality", "rows", "MiB"], rows)]

    def embeddings(self, features: dict[str, Features]) -> dict[str, dict[str, Tensor]]:
        """All modalities in one space."""
        return {SPACE: projected(self.heads, features)}

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        """The mean of the cross-modal terms, and of those within modalities by their weight.

        A term is 0 where no sample has what it compares.
        """
        device = batch.seeds.device
        z = unit(projected(self.heads, features))
        remembered = batch.split == "train"
        rows = batch.index.to(device) if remembered else None
        memory = {name: self._rows(name) for name in z}
        others = negatives(batch.seeds, len(memory[self.pairs[0][0]]), self._negatives, rows)
        right = {name: z[name].detach() if rows is None else memory[name][rows] for name in z}
        wrong = {name: memory[name][others] for name in z}
        # From which modality to which, which samples, and what it counts in the total.
        asked = []
        for one, other in self.pairs:
            there, weight = both(batch, (one, other), device), 0.5 / len(self.pairs)
            asked += [(one, other, there, weight), (other, one, there, weight)]
        if self._within and remembered:
            weight = self._within / len(z)
            asked += [(n, n, batch.present[n].to(device), weight) for n in z]
        scored = []
        for query, key, there, weight in asked:
            with torch.autocast(device.type, enabled=False):
                positive = (z[query] * right[key]).sum(1) / self._temperature
                negative = (wrong[key] @ z[query][:, :, None]).squeeze(2) / self._temperature
            scored.append((f"{query}->{key}", positive, negative, there, weight))
        log_z = self._normaliser([(negative, there) for _, _, negative, there, _ in scored])
        losses = Losses(torch.zeros((), device=device))
        for name, positive, negative, there, weight in scored:
            count = distributed.total(there.sum())
            each = torch.where(there, nce(positive, negative, log_z), 0.0)
            term = distributed.global_mean(each.sum(), count)
            losses.total = losses.total + weight * term
            nearest = (positive > negative.amax(1)) & there
            losses.parts[f"{name}/loss"] = term.detach()
            losses.parts[f"{name}/accuracy"] = distributed.global_mean(nearest.sum(), count)
            losses.counts |= {f"{name}/loss": count, f"{name}/accuracy": count}
        if remembered:
            losses.total = losses.total / (1 + self._within)
        if self.training and remembered:
            for name, kept in self.memories.items():
                assert isinstance(kept, Memory)
                kept.update(batch.index, batch.present[name], z[name].detach(), self._momentum)
        return losses

    def _rows(self, name: str) -> Tensor:
        """``[N, dim]``, a modality's memory."""
        memory = self.memories[name]
        assert isinstance(memory, Memory)
        return memory.rows

    @torch.no_grad()
    def _normaliser(self, scores: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """log Z: what it was, or else the mean over all terms' negatives of this batch."""
        # In float64, where a small temperature's exponentials are finite, too.
        means = [(s.double().exp().mean(1) * there).sum() for s, there in scores]
        summed = torch.stack(means).sum()
        count = torch.stack([there.sum() for _, there in scores]).sum()
        summed, count = distributed.total(summed), distributed.total(count)
        found = torch.where(count > 0, (summed / count.clamp(min=1)).log(), math.nan)
        log_z = torch.where(self.log_z.isnan(), found.float(), self.log_z)
        if self.training:
            self.log_z.copy_(log_z)
        return log_z.nan_to_num()  # no sample counts, and nothing does


class Memory(nn.Module):
    """An embedding of each training sample.

    The number of samples is known when training begins, so a state dict's memory is taken as it
    is, whatever its length.

    Attributes:
        rows: ``[N, D]`` float32, of length 1; ``[0, D]`` before training and after it.
    """

    rows: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.empty(0, dim))

    def begin(self, size: int, seed: int) -> None:
        """Random directions, the same on any device and rank."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(size, self.rows.shape[1], generator=generator)
        self.rows = normalize(rows, dim=1).to(self.rows.device)

    def drop(self) -> None:
        """Forget everything."""
        self.rows = self.rows[:0].clone()

    @torch.no_grad()
    def update(self, index: Tensor, present: Tensor, vectors: Tensor, momentum: float) -> None:
        """Move the memories of a batch's samples, of all ranks, on every rank.

        Args:
            index: ``[B]`` int64 on the CPU, rows of the dataset.
            present: ``[B]`` bool on the CPU; others' memories stay.
            vectors: ``[B, D]``, of length 1.
            momentum: how much of a memory is kept.
        """
        index = distributed.gather(index)
        there = distributed.gather(present.to(torch.int64)).bool()
        vectors = distributed.gather(vectors)
        # What a row that stands there twice is given must not depend on which copy is faster.
        last = {row: place for place, row in enumerate(index.tolist()) if there[place]}
        rows = torch.tensor([*last.keys()], dtype=torch.int64).to(vectors.device)
        places = torch.tensor([*last.values()], dtype=torch.int64).to(vectors.device)
        kept, new = self.rows[rows], vectors[places]
        self.rows[rows] = normalize(momentum * kept + (1 - momentum) * new, dim=1)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        saved = state_dict.get(f"{prefix}rows")
        if saved is not None and saved.shape[1:] == self.rows.shape[1:]:
            self.rows = self.rows.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def negatives(seeds: Tensor, size: int, number: int, rows: Tensor | None) -> Tensor:
    """Rows of the memory to tell each sample from, a function of its seed.

    Args:
        seeds: ``[B]`` int64.
        size: N, rows of the memory.
        number: K.
        rows: ``[B]`` int64, each sample's own row, which is not drawn; None if it has none.

    Returns:
        ``[B, K]`` int64.
    """
    draws = Draws(seeds, "negatives")
    # A draw has 24 bits; a dataset may have more rows than that.
    unit = draws.uniform(number).double() + 2.0**-24 * draws.uniform(number).double()
    drawn = (unit * (size if rows is None else size - 1)).long()
    return drawn if rows is None else drawn + (drawn >= rows[:, None])


def nce(positive: Tensor, negative: Tensor, log_z: Tensor) -> Tensor:
    """-log D(i) - Σ log(1 - D(j)) of each sample.

    Args:
        positive: ``[B]``, zᵀm_i / τ.
        negative: ``[B, K]``, zᵀm_j / τ.
        log_z: scalar, log Z.

    Returns:
        ``[B]``.
    """
    noise = log_z + math.log(negative.shape[1])
    return softplus(noise - positive) + softplus(negative - noise).sum(1)
