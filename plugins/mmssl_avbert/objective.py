"""Pretraining of AVBert: masked embeddings, and correct pairs (Lee et al., ICLR 2021, 2.1).

MEP, masked embedding prediction, masks the same clips of video and sound and asks each
Transformer which embedding was there. CPP, correct pair prediction, asks of outputs of video and
sound whether they belong together::

    L = L_NCE(x_a, y_a) + L_NCE(x_v, y_v) + L_NCE([x_a; x_v], z) + alpha L_CPP      (6, 7)

What the paper leaves open, and how it is read here: a Transformer has one scoring function, also
h_AV for both modalities; negatives are of the positive's modality, the same for y and z; CPP sees
the outputs of the masked sequences, for which Transformers run once; its classifiers have a hidden
layer, since a linear one is a sum over the two halves of a pair and could not tell which belong
together. Whether a wrong pair of h_AV has been seen together by it is ``wrong_pairs``.

With M modalities, which the paper has not, there are M + 1 terms of MEP and a classifier of CPP for
each pair of them. A modality stands in M - 1 pairs, by which their terms are divided.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmssl.contracts import Batch, Features, Losses, Objective, Round
from mmssl.data.draws import Draws
from mmssl.errors import UserError
from mmssl.training import distributed
from mmssl.training.encoders import Encoders
from mmssl_avbert.backbone import AVBert, SequenceFeatures
from mmssl_avbert.masked import Compatibility, info_nce, masked_positions, nearest
from mmssl_avbert.negatives import Interval, drawn, weights
from mmssl_avbert.pairing import pair_loss, partners
from mmssl_avbert.streams import MULTIMODAL, UNIMODAL

Negatives = Literal["sequence", "minibatch", "cans_similar", "cans_dissimilar"]
Pool = Literal["rank", "global"]
Wrong = Literal["outputs", "inputs"]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Pair = tuple[str, str]


class AVBertPretraining(Objective):
    """MEP and CPP for the backbone avbert, with content-aware negatives (CANS).

    Transformers that a backbone's fusion lacks have no terms: with early only the multimodal one
    is trained, with late only the unimodal ones. A sample counts in the terms whose modalities it
    has: CPP and the derangement take those that have both, and need two of them. Of more than two
    modalities all pairs are predicted.

    The backbone's features are those of unmasked clips, which no term uses: with its
    ``pooled: cnn`` Transformers run once in a step and not twice.

    Logs the terms: ``video/mep``, ``audio/mep`` and ``multimodal/mep``, of a sequence the sum over
    its masked clips, ``unimodal/cpp`` and ``multimodal/cpp``, each the sum over summaries and
    positions; of more than two modalities ``unimodal/video-audio/cpp`` and so on. Of each term also
    the ``accuracy``: the share of masked clips whose own embedding has a higher score than any
    negative, and of pairs that are judged rightly, half of which belong together.

    Args:
        masking: share of a sequence's clips that are masked, at least one; not in the paper.
        negatives: what a masked clip's embedding is told from: all others of its sequence
            (sequence) or of the batch (minibatch), or a draw from the batch that favours near
            (cans_similar) or distant ones (cans_dissimilar). The paper's table 1b compares them.
        number_of_negatives: how many CANS draws; not in the paper, where a sequence has 29 others.
        interval: which distances CANS draws from: mean ± 1.96 standard deviations (std), or
            between the quantiles 0.025 and 0.975 (quantile).
        pool: what a batch is to negatives and wrong pairs: the rows of a rank, or of all ranks;
            with global the number of ranks changes nothing.
        stop_gradient: embeddings are no targets to learn by, only inputs.
        mep: train masked embedding prediction (without it: 64.6 where all have 67.5 %).
        mep_multimodal: its third term, of the multimodal Transformer (without it: 66.7 %).
        cpp: train correct pair prediction (without it: 65.9 %).
        cpp_positions: also of outputs at two random positions, not of summaries alone (without
            it: 66.9 %).
        wrong_pairs: of the multimodal Transformer, which sees both halves of a pair: its outputs
            for two right sequences, a half of each (outputs), or those for video with another's
            sound, for which Transformers run once more, for each pair (inputs). The paper
            exchanges "the input mini-batch", and classifies pairs of outputs.
        alpha: weight of CPP.
        hidden: dimensions between the two layers of scoring functions and classifiers.
        projection: P, dimensions in which scoring functions compare.
        first: a modality whose CNN and Transformer are trained alone in a first round, on their
            term of MEP, and stay as they are in a second one, which trains the rest (audio: 62.8,
            video: 63.1, where all are trained together 67.5 %, B.6). What Transformers share of
            their parameters stays as it is with them.
        init_std: standard deviation of what linear maps begin with.
    """

    def __init__(
        self,
        *,
        masking: Share = 0.15,
        negatives: Negatives = "cans_similar",
        number_of_negatives: Positive = 29,
        interval: Interval = "std",
        pool: Pool = "rank",
        stop_gradient: bool = False,
        mep: bool = True,
        mep_multimodal: bool = True,
        cpp: bool = True,
        cpp_positions: bool = True,
        wrong_pairs: Wrong = "outputs",
        alpha: Weight = 1.0,
        hidden: Positive = 768,
        projection: Positive = 256,
        first: str | None = None,
        init_std: Weight = 0.01,
    ) -> None:
        super().__init__()
        if not mep and not cpp:
            raise UserError("objective: mep and cpp are both off, and nothing is left to train")
        if first is not None and not mep:
            raise UserError("objective.first: one modality alone has only mep to train on")
        self._masking = masking
        self._negatives = negatives
        self._number = number_of_negatives
        self._interval: Interval = interval
        self._global = pool == "global"
        self._stop_gradient = stop_gradient
        self._mep = mep
        self._mep_multimodal = mep_multimodal
        self._cpp = cpp
        self._cpp_positions = cpp_positions
        self._exchange_inputs = wrong_pairs == "inputs"
        self._alpha = alpha
        self._hidden = hidden
        self._projection = projection
        self._first = first
        self._alone = False
        self.rounds = 1 if first is None else 2
        self._init_std = init_std
        self.scores = nn.ModuleDict()
        self.classifiers = nn.ModuleDict()

    def build(self, encoders: Encoders) -> None:
        """A scoring function for each Transformer, and a classifier for each pair of modalities.

        Raises:
            UserError: the backbone is another, or has no Transformer that would be trained.
        """
        backbone = next((b for b in encoders.backbones.values() if isinstance(b, AVBert)), None)
        if backbone is None:
            raise UserError("objective: avbert trains the backbone avbert, of video+audio")
        self._backbone = (backbone,)  # a tuple: its parameters are the encoders'
        dim, hidden = backbone.dim, self._hidden
        self._names = backbone.names
        names = list(backbone.transformers)
        if self._first is not None and self._first not in self._names:
            there = ", ".join(self._names)
            raise UserError(f"objective.first: there is no modality {self._first!r}, only {there}")
        if self._first is not None and self._first not in names:
            raise UserError(
                "objective.first: this backbone's fusion has no Transformer of one modality"
            )
        layers = {n: set(net.layers) for n, net in backbone.transformers.items()}  # type: ignore[arg-type]
        first = layers.pop(self._first) if self._first is not None else set()
        if any(first & others for others in layers.values()):
            raise UserError(
                "objective.first: with sharing all one modality's Transformer is every other's, "
                "too, and a second round would have none to train"
            )
        scored = [n for n in names if self._mep and (n != MULTIMODAL or self._mep_multimodal)]
        kinds = dict.fromkeys(MULTIMODAL if n == MULTIMODAL else UNIMODAL for n in names)
        #: By classifier whose outputs it is told, and of which modalities.
        self._judged = _judged(kinds, self._names) if self._cpp else {}
        if not scored and not self._judged:
            raise UserError(
                "objective: this backbone's fusion has the multimodal Transformer alone: "
                "mep_multimodal must be on, or cpp"
            )
        self.scores = nn.ModuleDict(
            {name: Compatibility(dim, hidden, self._projection) for name in scored}
        )
        self.classifiers = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(2 * dim, hidden), nn.GELU(), nn.Linear(hidden, 1))
                for name in self._judged
            }
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, self._init_std)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def begin_round(self, round: Round) -> Iterable[nn.Parameter]:
        """Freeze what `first` says: all but its modality, and in the second round its modality."""
        if self._first is not None:
            net = self._backbone[0]
            own = [
                net.cnns.backbones[self._first],
                net.streams[self._first],
                net.places[self._first],
                net.transformers[self._first],
            ]
            self._alone = round.number == 1
            if self._alone:  # Transformers share parameters: what is left is no list of modules
                trained = {id(p) for part in own for p in part.parameters()}
                trained |= {id(p) for p in self.scores[self._first].parameters()}
                others = (*net.parameters(), *self.parameters())
                cnns = (cnn for name, cnn in net.cnns.backbones.items() if name != self._first)
                self.frozen = [*cnns, *(p for p in others if id(p) not in trained)]
            else:
                self.frozen = own
        return ()

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        """The terms of MEP plus alpha times those of CPP.

        Masks, negatives, circles and positions are drawn from the samples' seeds. A term is 0
        where no sample has what it needs, CPP also where fewer than two do.

        Raises:
            UserError: training in batches of one sample, which never have wrong pairs.
        """
        together = len(batch) * (distributed.size() if self._global else 1)
        if self.training and self.classifiers and not self._alone and together < 2:
            raise UserError(
                "objective.cpp: a batch of 1 has no wrong pairs: give each rank 2 samples or more "
                "(training.batch_size), or set pool: global, or cpp: false"
            )
        embeddings = {}
        for name in self._names:
            found = features[name]
            assert isinstance(found, SequenceFeatures)
            embeddings[name] = found.embeddings.float()
        device = batch.seeds.device
        present = {name: batch.present[name].to(device) for name in self._names}
        length = embeddings[self._names[0]].shape[1]
        positions = masked_positions(Draws(batch.seeds, "mask").uniform(length), self._masking)
        masked = torch.zeros(len(batch), length, dtype=torch.bool, device=device)
        if self._mep:
            masked = masked.scatter(1, positions, True)
        outputs = self._backbone[0].contextualise(embeddings, batch.present, masked)
        losses = Losses(torch.zeros((), device=device))
        if self.scores:
            by_transformer = {name: {name: y} for name, y in outputs.unimodal.items()}
            by_transformer[MULTIMODAL] = outputs.multimodal
            self._mep_terms(losses, batch.seeds, embeddings, present, positions, by_transformer)
        if self.classifiers and not self._alone:
            by_kind = {UNIMODAL: outputs.unimodal, MULTIMODAL: outputs.multimodal}
            self._cpp_terms(losses, batch.seeds, embeddings, present, masked, by_kind)
        return losses

    def _mep_terms(
        self,
        losses: Losses,
        seeds: Tensor,
        embeddings: dict[str, Tensor],
        present: dict[str, Tensor],
        positions: Tensor,
        outputs: dict[str, dict[str, Tensor]],
    ) -> None:
        """Add InfoNCE of each Transformer's outputs at masked positions."""
        targets, negatives = {}, {}
        for name, x in embeddings.items():
            pool = self._gather(x.detach() if self._stop_gradient else x)
            there = self._gather(present[name].float()) > 0
            targets[name] = pool.flatten(0, 1)
            negatives[name] = self._drawn(name, seeds, pool.detach(), there, positions)
        length = embeddings[self._names[0]].shape[1]
        positive = self._rows(seeds)[:, None] * length + positions
        for transformer, score in self.scores.items():
            if self._alone and transformer != self._first:
                continue
            summed = torch.zeros((), device=seeds.device)
            found, clips = torch.zeros_like(summed), torch.zeros_like(summed)
            rows = torch.zeros(len(seeds), dtype=torch.bool, device=seeds.device)
            for name, y in outputs[transformer].items():
                here = present[name]
                scores = score(_at(y[:, 1:], positions), targets[name])
                each = info_nce(scores, positive, negatives[name]).sum(1)
                summed = summed + (each * here).sum()
                right = nearest(scores.detach(), positive, negatives[name]).sum(1)
                found = found + (right * here).sum()
                clips = clips + here.sum() * positions.shape[1]
                rows = rows | here
            self._add(losses, f"{transformer}/mep", summed, rows)
            self._tell(losses, f"{transformer}/mep_accuracy", found, distributed.total(clips))

    def _drawn(
        self, name: str, seeds: Tensor, pool: Tensor, there: Tensor, positions: Tensor
    ) -> Tensor:
        """Which clips of the pool are negatives of each masked one.

        Args:
            name: the modality.
            seeds: ``[B]``.
            pool: ``[P, T, D]``, embeddings without gradients.
            there: ``[P]`` bool, which of them are.
            positions: ``[B, n]``, masked clips.

        Returns:
            ``[B, n, P·T]`` bool.
        """
        size, length, _ = pool.shape
        row = self._rows(seeds)
        own = row[:, None] * length + positions
        clip = torch.arange(size * length, device=seeds.device)
        candidates = there.repeat_interleave(length) & (clip != own[..., None])
        if self._negatives == "sequence":
            return candidates & (clip // length == row[:, None, None])
        if self._negatives == "minibatch":
            return candidates
        everything = pool.flatten(0, 1)
        with torch.autocast(pool.device.type, enabled=False):
            distances = torch.cdist(  # by differences: products lose what is near
                everything[own.flatten()],
                everything,
                compute_mode="donot_use_mm_for_euclid_dist",
            )
        weight = weights(
            distances.unflatten(0, own.shape),
            candidates,
            similar=self._negatives == "cans_similar",
            interval=self._interval,
        )
        noise = Draws(seeds, f"negatives {name}").uniform(*weight.shape[1:])
        return drawn(weight, noise, self._number)

    def _cpp_terms(
        self,
        losses: Losses,
        seeds: Tensor,
        embeddings: dict[str, Tensor],
        present: dict[str, Tensor],
        masked: Tensor,
        outputs: dict[str, dict[str, Tensor]],
    ) -> None:
        """Add the classifiers' loss on right and wrong pairs."""
        draws = Draws(seeds, "pairs")
        circle = self._gather(draws.uniform())
        length = masked.shape[1]
        places = 1 + (draws.uniform(len(self._names)) * length).long().clamp(max=length - 1)
        positions = dict(zip(self._names, places.split(1, 1), strict=True))
        own = self._rows(seeds)
        for name, classifier in self.classifiers.items():
            kind, pair = self._judged[name]
            one, other = pair
            whole = self._gather((present[one] & present[other]).float()) > 0
            partner = partners(circle, whole)[own]
            used = whole[own] & (partner != own)
            pairs = self._pairs(outputs[kind], pair, positions)
            if kind == MULTIMODAL and self._exchange_inputs:
                strange = self._gather(embeddings[other])[partner]
                there = self._gather(present[other].float())[partner] > 0
                strangers = self._backbone[0].contextualise(
                    embeddings | {other: strange}, present | {other: there}, masked
                )
                others = self._pairs(strangers.multimodal, pair, positions)
            else:
                others = [(left, self._gather(right)[partner]) for left, right in pairs]
            summed = torch.zeros((), device=seeds.device)
            correct = torch.zeros((), device=seeds.device)
            for right, wrong in zip(pairs, others, strict=True):
                true, false = _judge(classifier, *right), _judge(classifier, *wrong)
                summed = summed + (pair_loss(true, false) * used).sum()
                correct = correct + (((true > 0).float() + (false <= 0).float()) * used).sum()
            self._add(losses, f"{name}/cpp", summed, used, self._alpha / (len(self._names) - 1))
            count = losses.counts[f"{name}/cpp"]
            self._tell(losses, f"{name}/cpp_accuracy", correct / (2 * len(pairs)), count)

    def _pairs(
        self, outputs: dict[str, Tensor], pair: Pair, positions: dict[str, Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Of two modalities the summaries ``[B, D]``, and those at their ``positions [B, 1]``."""
        left, right = (outputs[name].float() for name in pair)
        pairs = [(left[:, 0], right[:, 0])]
        if self._cpp_positions:
            at = [_at(outputs[name].float(), positions[name]).squeeze(1) for name in pair]
            pairs.append((at[0], at[1]))
        return pairs

    def _add(
        self, losses: Losses, name: str, summed: Tensor, rows: Tensor, weight: float = 1.0
    ) -> None:
        """Add the mean over all ranks' rows that count."""
        count = distributed.total(rows.sum())
        term = distributed.global_mean(summed, count)
        losses.total = losses.total + weight * term
        losses.parts[name] = term.detach()
        losses.counts[name] = count

    def _tell(self, losses: Losses, name: str, summed: Tensor, count: Tensor) -> None:
        """Log a mean over ``count``, of all ranks."""
        losses.parts[name] = distributed.global_mean(summed, count)
        losses.counts[name] = count

    def _gather(self, rows: Tensor) -> Tensor:
        """The rows that count as one batch, ``[P, ...]``."""
        return distributed.gather(rows) if self._global else rows

    def _rows(self, seeds: Tensor) -> Tensor:
        """``[B]``, where this rank's rows lie among those."""
        first = distributed.rank() * len(seeds) if self._global else 0
        return first + torch.arange(len(seeds), device=seeds.device)


def _judged(kinds: Iterable[str], names: Sequence[str]) -> dict[str, tuple[str, Pair]]:
    """Of each pair of modalities, by kind: ``unimodal``; of several pairs ``unimodal/a-b``."""
    pairs = list(combinations(names, 2))
    return {
        kind if len(pairs) == 1 else f"{kind}/{one}-{other}": (kind, (one, other))
        for kind in kinds
        for one, other in pairs
    }


def _at(rows: Tensor, positions: Tensor) -> Tensor:
    """``rows [B, N, D]`` at ``positions [B, n]``: ``[B, n, D]``."""
    return rows.gather(1, positions[..., None].expand(-1, -1, rows.shape[2]))


def _judge(classifier: nn.Module, left: Tensor, right: Tensor) -> Tensor:
    """``[B]`` float32 logits of belonging together, also under autocast."""
    with torch.autocast(left.device.type, enabled=False):
        logits: Tensor = classifier(torch.cat([left, right], 1))
        return logits.squeeze(1)
