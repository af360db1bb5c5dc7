"""Deep clustering of several modalities: SDC, MDC, CDC and XDC (Alwassel et al., 2020).

Each round clusters features, and a classifier on every encoder learns to predict the clusters.
The four methods differ in one thing only: whose clusters an encoder predicts.

====  ==============================  =======================================
name  what is clustered               what the encoder of modality m predicts
====  ==============================  =======================================
sdc   each modality                   the clusters of m
mdc   each modality                   the clusters of m, and those of the others
cdc   all modalities, concatenated    the joint clusters
xdc   each modality                   the clusters of the others
====  ==============================  =======================================

With two modalities there is one way to predict the other's clusters. With more there are several,
which are routings of xdc: each of the others', the next one's, or those of the others together.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmssl.contracts import IGNORE, Batch, Features, Losses, Objective, Round, Split, Table
from mmssl.errors import UserError
from mmssl.training import distributed
from mmssl.training.encoders import Encoders
from mmssl_clustering import costs
from mmssl_clustering.kmeans import Mode
from mmssl_clustering.relabel import Clustering, Method, labels_path, relabel

Count = Annotated[int, Field(gt=0)]
Routing = Literal["others", "ring", "concatenated"]


class DeepClustering(Objective, ABC):
    """What the four methods share.

    Args:
        rounds: rounds of clustering and training; the paper does not say how many it used.
        clusters: number of clusters, for all labellings or by name: a modality, "joint", or
            modalities joined by "+", where they are clustered together.
        normalize: what is done to features before k-means. "none" as the paper, which names
            nothing; "standardize_l2" where data are few: each dimension gets mean 0 and standard
            deviation 1, then each vector length 1.
        pca: whiten so many principal components before k-means (DeepCluster: 256, with "l2").
        kmeans_iterations: steps of Lloyd's algorithm.
        spherical: cluster directions: centroids have length 1.
        kmeans_restarts: k-means begins so often with other centroids, and the best result is
            kept; with little data a single beginning may end far from it.
        split_empty: a cluster that runs empty in k-means takes half of a large one (DeepCluster);
            if not, it stays empty.
        points_per_centroid: centroids are fitted on at most so many samples per cluster.
        balance: draw training samples uniformly over clusters instead of over samples, as
            DeepCluster does; where there are several labellings they take turns.
        on_collapse: what happens when a labelling has collapsed: a warning, or the run stops
            before it trains on it.
        collapse_below: a labelling has collapsed when its effective number of clusters (exp of
            the entropy of their sizes) is less than this.
    """

    def __init__(
        self,
        *,
        rounds: Count = 4,
        clusters: Count | dict[str, Count] = 256,
        normalize: Mode = "none",
        pca: Count | None = None,
        kmeans_iterations: Count = 25,
        spherical: bool = False,
        kmeans_restarts: Count = 1,
        points_per_centroid: Count = 256,
        balance: bool = False,
        split_empty: bool = True,
        on_collapse: Literal["warn", "stop"] = "stop",
        collapse_below: Annotated[float, Field(ge=1)] = 1.5,
    ) -> None:
        super().__init__()
        self.rounds = rounds
        self._clusters = clusters
        self._balance = balance
        self._method = Method(
            normalize=normalize,
            pca=pca,
            iterations=kmeans_iterations,
            spherical=spherical,
            restarts=kmeans_restarts,
            split_empty=split_empty,
            points_per_centroid=points_per_centroid,
            on_collapse=on_collapse,
            collapse_below=collapse_below,
        )
        self._labels: dict[Split, dict[str, np.ndarray]] = {}
        self.heads = nn.ModuleDict()

    @abstractmethod
    def clustered(self, modalities: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The modalities that each labelling is made of, by its name."""

    @abstractmethod
    def predicted(self, modality: str, modalities: Sequence[str]) -> list[str]:
        """The labellings that the encoder of a modality predicts."""

    def build(self, encoders: Encoders) -> None:
        """One linear classifier for each modality and labelling that it predicts."""
        dims = encoders.dims
        modalities = list(dims)
        clustered = self.clustered(modalities)
        if isinstance(self._clusters, dict) and set(self._clusters) != set(clustered):
            raise UserError(
                f"objective.clusters: give a number for each of {', '.join(clustered)}, "
                f"not for {', '.join(self._clusters) or 'none'}"
            )
        self.clusterings = [
            Clustering(
                name,
                sources,
                self._clusters[name] if isinstance(self._clusters, dict) else self._clusters,
            )
            for name, sources in clustered.items()
        ]
        k = {c.name: c.k for c in self.clusterings}
        self.heads = nn.ModuleDict(
            {
                modality: nn.ModuleDict(
                    {name: nn.Linear(dim, k[name]) for name in self.predicted(modality, modalities)}
                )
                for modality, dim in dims.items()
            }
        )

    def begin_round(self, round: Round) -> Iterable[nn.Parameter]:
        """Cluster, relabel, and begin with new classifiers; encoders are kept."""
        relabel(round, self.clusterings, self._method)
        self._labels = {
            split: {
                c.name: np.load(
                    distributed.shown(labels_path(round.folder, c.name, split)), mmap_mode="r"
                )
                for c in self.clusterings
            }
            for split in round.sizes
        }
        if not round.resumed:
            self._reset_heads(round.seed)
        return self.heads.parameters()

    def _reset_heads(self, seed: int) -> None:
        """New classifiers as in DeepCluster: weights N(0, 0.01), biases 0."""
        generator = torch.Generator().manual_seed(seed)
        for layer in self.heads.modules():
            if isinstance(layer, nn.Linear):
                weight = torch.empty(layer.weight.shape).normal_(0, 0.01, generator=generator)
                with torch.no_grad():
                    layer.weight.copy_(weight)
                    layer.bias.zero_()

    def balanced_over(self) -> Sequence[np.ndarray]:
        """The labellings of this round, if ``balance`` is set."""
        return list(self._labels["train"].values()) if self._balance else ()

    def plan(self, *, samples: int, ranks: int) -> Sequence[Table]:
        """What clustering costs in each round."""
        dims = {
            modality: next(iter(heads.values())).in_features  # type: ignore[operator]
            for modality, heads in self.heads.items()
        }
        return costs.tables(
            self.clusterings,
            self._method,
            dims=dims,
            samples=samples,
            ranks=ranks,
            rounds=self.rounds,
            balance=self._balance,
        )

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        """Cross-entropy of every classifier, summed over modalities and labellings.

        A sample without a pseudo-label, or that lacks the modality, counts in no mean.
        """
        total = torch.zeros((), device=batch.seeds.device)
        parts: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for modality, heads in self.heads.items():
            pooled = features[modality].pooled
            for name, head in heads.items():  # type: ignore[operator]  # a ModuleDict
                target = self._targets(batch, modality, name).to(pooled.device)
                logits = head(pooled)
                summed = cross_entropy(logits.float(), target, ignore_index=IGNORE, reduction="sum")
                count = distributed.total((target != IGNORE).sum())
                loss = distributed.global_mean(summed, count)
                right = distributed.global_mean((logits.argmax(1) == target).sum(), count)
                total = total + loss
                label = f"{modality}" if len(heads) == 1 else f"{modality}<-{name}"  # type: ignore[arg-type]
                parts[f"{label}/loss"] = loss.detach()
                parts[f"{label}/accuracy"] = right
                counts |= {f"{label}/loss": count, f"{label}/accuracy": count}
        return Losses(total, parts, counts)

    def _targets(self, batch: Batch, modality: str, name: str) -> Tensor:
        """``[B]`` int64 pseudo-labels of the batch's samples, looked up on the CPU by row."""
        labels = self._labels[batch.split][name][batch.index.numpy()].astype(np.int64)
        return torch.where(batch.present[modality], torch.from_numpy(labels), IGNORE)


class SDC(DeepClustering):
    """Single-modality deep clustering: every encoder predicts its own modality's clusters."""

    def clustered(self, modalities: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Each modality by itself."""
        return {modality: (modality,) for modality in modalities}

    def predicted(self, modality: str, modalities: Sequence[str]) -> list[str]:
        """Its own."""
        return [modality]


class MDC(DeepClustering):
    """Multi-head deep clustering: every encoder predicts its own and the others' clusters."""

    def clustered(self, modalities: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Each modality by itself."""
        return {modality: (modality,) for modality in _several(modalities, "mdc")}

    def predicted(self, modality: str, modalities: Sequence[str]) -> list[str]:
        """All; the losses of the heads are summed with equal weights."""
        return list(modalities)


class CDC(DeepClustering):
    """Concatenation deep clustering: every encoder predicts clusters of all modalities' features.

    The features of each modality are l2-normalised before they are concatenated.
    """

    def clustered(self, modalities: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """All modalities together."""
        return {"joint": tuple(_several(modalities, "cdc"))}

    def predicted(self, modality: str, modalities: Sequence[str]) -> list[str]:
        """The joint clusters."""
        return ["joint"]


class XDC(DeepClustering):
    """Cross-modal deep clustering: every encoder predicts the other modalities' clusters.

    Args:
        routing: whose clusters an encoder predicts where there are three modalities or more. With
            two they are the other's in any case. others: those of each other modality, a
            classifier each, losses summed; ring: those of the next modality in the recipe's
            order, and the last one those of the first; concatenated: those of all others
            together, whose features are l2-normalised and concatenated, as cdc does with all.
            Labellings of several modalities are called by them, such as ``audio+imu``; a sample
            that lacks one of these has no pseudo-label there.
    """

    def __init__(self, *, routing: Routing = "others", **others: Any) -> None:
        super().__init__(**others)
        self._routing = routing

    def clustered(self, modalities: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Each modality by itself, or all but each together."""
        several = _several(modalities, "xdc")
        size = len(several) - 1 if self._routing == "concatenated" else 1
        return {"+".join(sources): sources for sources in combinations(several, size)}

    def predicted(self, modality: str, modalities: Sequence[str]) -> list[str]:
        """Those of every other modality, of the next, or of the others together."""
        others = [other for other in modalities if other != modality]
        if self._routing == "others":
            return others
        if self._routing == "concatenated":
            return ["+".join(others)]
        return [modalities[(modalities.index(modality) + 1) % len(modalities)]]


def _several(modalities: Sequence[str], method: str) -> Sequence[str]:
    if len(modalities) < 2:
        raise UserError(f"objective: {method} needs two modalities or more; sdc works with one")
    return modalities
