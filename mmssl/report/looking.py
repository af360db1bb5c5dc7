"""What needs the run's data and encoders: clusters' members, the map of features, filters.

Each part is made as far as it can be. What cannot, since data are gone, encoders are not there yet
or a component is not installed, is said in the report.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from mmssl.contracts import IGNORE, Dataset
from mmssl.data.cores import cores
from mmssl.data.sampling import Permutation
from mmssl.data.skipped import read_ledger
from mmssl.errors import UserError
from mmssl.pipeline import assembly
from mmssl.pipeline.jobs import load_run
from mmssl.pipeline.records import Records
from mmssl.recipe import Recipe
from mmssl.report import clusters as clustering
from mmssl.report.contents import Contents, Excerpt, FeatureMap, FilterPicture, Labeling, Member
from mmssl.report.features_map import Found, features_of, nearest_first, project
from mmssl.report.filters import filter_figure, stem_convolutions
from mmssl.report.media_clips import excerpt
from mmssl.training import checkpoints
from mmssl.training.encoders import Encoders
from mmssl.training.features import FeatureStream
from mmssl.training.progress import Progress

# A report needs neither evaluations nor validation data, which may be elsewhere.
_UNNEEDED = ("evaluations=null", "data.validation=null", "training.early_stop=null")

# Encoders do not depend on the data: where these are gone, others take their place.
_OTHER_DATA = "data.train={use: synthetic}"

# Members of a cluster whose features are computed, among which are those nearest to its middle.
_CANDIDATES = 16


@dataclass(frozen=True)
class Amount:
    """How much a report shows.

    Attributes:
        clusters: of how many clusters of each labeling members are shown.
        clips: how many members of each, near its middle and as many at random.
        samples: of how many samples features are mapped; with 0 no features are computed.
        media: put clips into the page.
    """

    clusters: int = 24
    clips: int = 3
    samples: int = 1000
    media: bool = True


def look(folder: Path, contents: Contents, amount: Amount, progress: Progress) -> None:
    """Add to a report what the data and the encoders show.

    Args:
        folder: the run's.
        contents: of the report.
        amount: how much to show.
        progress: who watches.
    """
    modalities = list(Records(folder).recipe.get("modalities") or ())
    labels, trouble = clustering.last_labels(folder, modalities)
    for why in trouble:
        contents.lacks("clusters", why)
    if not labels:
        contents.lacks("clusters", "There are no clusters: the objective makes none, or not yet.")
    recipe, dataset = _load(folder, contents, progress)
    looked = _Looked(folder, recipe, dataset, contents, amount, progress, labels)
    looked.clusters()
    looked.map()
    looked.filters()


def _load(
    folder: Path, contents: Contents, progress: Progress
) -> tuple[Recipe | None, Dataset | None]:
    """The recipe, for finished encoders, and the training data: each if it is there."""
    recipe: Recipe | None = None
    dataset: Dataset | None = None
    trouble: Exception | None = None
    # Finished encoders need no weights to begin from, which may be gone as well.
    backbones = dict(Records(folder).recipe.get("backbones") or {}).items()
    begun = [key for key, spec in backbones if isinstance(spec, dict) and spec.get("weights")]
    unneeded = [*_UNNEEDED, *(f"backbones.{key}.weights=null" for key in begun)]
    try:
        recipe = load_run(folder, unneeded)
        dataset, _ = assembly.build_datasets(recipe)
        dataset.materialise(progress)
    except (UserError, OSError) as error:
        dataset, trouble = None, error
    if recipe is None:
        try:
            recipe = load_run(folder, [*unneeded, _OTHER_DATA])
        except UserError as error:
            for section in ("clusters", "map", "filters"):
                contents.lacks(section, f"The recipe cannot be put together here: {error}")
            return None, None
    if dataset is None:
        for section in ("clusters", "map"):
            contents.lacks(section, f"The training data are not there: {trouble}")
    return recipe, dataset


@dataclass
class _Looked:
    """One look at a run; features and excerpts are made once."""

    folder: Path
    recipe: Recipe | None
    dataset: Dataset | None
    contents: Contents
    amount: Amount
    progress: Progress
    labels: list[clustering.Labels]
    truth: np.ndarray | None = None
    drawn: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    found: Found | None = None
    uniform: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    excerpts: dict[int, Excerpt] = field(default_factory=dict)
    known_bad: dict[int, str] = field(default_factory=dict)

    def clusters(self) -> None:
        """Rank clusters, choose members, read them."""
        self._match_labels_with_data()
        if self.dataset is not None:
            self.truth = clustering.truth_of(self.dataset.labels(), self.dataset.classes)
            if self.truth is None and self.labels:
                self.contents.lacks(
                    "clusters", "The training data have no single class for each sample."
                )
        classes = list(self.dataset.classes) if self.dataset is not None else []
        labelings = [self._labeling(labels, classes) for labels in self.labels]
        self.contents.labelings = labelings
        if self.dataset is None or self.recipe is None:
            return
        self._draw_members(labelings)
        self._compute_features()
        self._show_members(labelings)

    def _match_labels_with_data(self) -> None:
        """Clusters are kept by row: of other data than these they tell nothing."""
        size = None if self.dataset is None else len(self.dataset)
        for labels in self.labels:
            if size is not None and len(labels.labels) != size:
                self.contents.lacks(
                    "clusters",
                    f"Clusters are of {len(labels.labels)} samples, but the data now have {size}: "
                    "they have changed, so no members are shown.",
                )
                self.dataset = None
                return

    def _labeling(self, labels: clustering.Labels, classes: Sequence[str]) -> Labeling:
        ranked, total = clustering.ranked(labels.labels, self.truth, classes)
        return Labeling(
            name=labels.name,
            round=labels.round,
            samples=len(labels.labels),
            labelled=int(np.count_nonzero(labels.labels != IGNORE)),
            clusters=ranked,
            total=total,
        )

    def _draw_members(self, labelings: Sequence[Labeling]) -> None:
        assert self.recipe is not None
        for labels, labeling in zip(self.labels, labelings, strict=True):
            ranked = range(len(labeling.clusters))
            for place in clustering.spread(ranked, self.amount.clusters):
                labeling.clusters[place].looked_at = True
            self.drawn[labels.name] = dict(
                clustering.members_in_random_order(
                    labels,
                    [c.index for c in labeling.clusters if c.looked_at],
                    most=max(_CANDIDATES, 4 * self.amount.clips),
                    seed=self.recipe.seed,
                )
            )

    def _compute_features(self) -> None:
        """Of the map's samples and of the clusters' candidates, in one pass."""
        recipe, dataset = self.recipe, self.dataset
        assert recipe is not None
        assert dataset is not None
        for record in read_ledger(self.folder / "skipped.jsonl"):
            if record.get("split") == "train":
                self.known_bad[int(record["row"])] = str(record["reason"])
        if not self.amount.samples or not len(dataset):
            self.contents.lacks("map", "No features were asked for (--samples 0).")
            return
        if self.encoders is None:
            return
        wanted = min(self.amount.samples, len(dataset))
        self.uniform = np.sort(Permutation(len(dataset), recipe.seed)(np.arange(wanted)))
        parts = [self.uniform, *(rows for by in self.drawn.values() for rows in by.values())]
        rows = np.unique(np.concatenate(parts))
        rows = rows[~np.isin(rows, list(self.known_bad))]
        try:
            self.found = features_of(_stream(recipe, self.encoders), dataset, rows, self.progress)
        except UserError as error:
            self.contents.lacks("map", f"Features could not be computed: {error}")
            return
        self.known_bad |= self.found.unreadable

    @cached_property
    def encoders(self) -> Encoders | None:
        """The finished encoders, or those of the newest checkpoint that can be read."""
        assert self.recipe is not None
        try:
            encoders = assembly.build_encoders(self.recipe)
        except UserError as error:
            for section in ("map", "filters"):
                self.contents.lacks(section, f"The encoders cannot be built here: {error}")
            return None
        folder = self.folder / "checkpoints"
        finished = folder / "encoders.safetensors"
        states = sorted(folder.glob("step-*.pt"), reverse=True)
        for path in [finished, *states] if finished.is_file() else states:
            try:
                if path == finished:
                    encoders.load(path)
                else:
                    encoders.load_state_dict(checkpoints.load(path)["encoders"])
            except Exception as error:  # what torch raises depends on which byte is damaged
                reason = str(error).partition("\n")[0]
                self.progress.say(f"{path} cannot be read and is passed over: {reason}")
                continue
            if path != finished:
                for section in ("map", "filters"):
                    self.contents.lacks(
                        section, f"Encoders are those of {path.name}: training has not ended."
                    )
            return encoders
        for section in ("map", "filters"):
            self.contents.lacks(section, "There are no encoders yet: no checkpoint can be read.")
        return None

    def _show_members(self, labelings: Sequence[Labeling]) -> None:
        shown = [(one, c) for one in labelings for c in one.clusters if c.looked_at]
        with self.progress.task("clips for the report", len(shown)) as advance:
            for labeling, cluster in shown:
                drawn = self.drawn[labeling.name][cluster.index]
                near = self._nearest(labeling.name, drawn)[: self.amount.clips]
                cluster.nearest = self._members(near)
                others = drawn[~np.isin(drawn, near)]
                cluster.drawn = self._members(others, self.amount.clips)
                advance()

    def _nearest(self, labeling: str, members: np.ndarray) -> np.ndarray:
        if self.found is None or not self.found.pooled:
            return members[:0]
        rows, features = self.found.of(labeling)
        return nearest_first(rows, features, members)

    def _members(self, rows: np.ndarray, most: int | None = None) -> list[Member]:
        """Members that can be read, in the order of ``rows``."""
        assert self.dataset is not None
        members: list[Member] = []
        for row in map(int, rows):
            if row in self.known_bad:
                continue
            if most is not None and len(members) == most:
                break
            sample = self.dataset.sample(row)
            if self.amount.media and row not in self.excerpts:
                assert self.recipe is not None
                self.excerpts[row] = excerpt(sample, limit=self.recipe.data.time_limit)
            members.append(Member(sample.id, self._class(row), self.excerpts.get(row)))
        return members

    def _class(self, row: int) -> str | None:
        if self.truth is None or self.dataset is None or self.truth[row] == IGNORE:
            return None
        return str(self.dataset.classes[self.truth[row]])

    def map(self) -> None:
        """A map for each modality, of samples drawn at random from all data."""
        if self.found is None or self.dataset is None or self.recipe is None:
            return
        maps = []
        for name in self.found.pooled:
            rows, features = self.found.of(name)
            use = np.isin(rows, self.uniform)
            rows, features = rows[use], features[use]
            if len(rows) < 3:
                self.contents.lacks("map", f"Too few samples have {name} to draw a map.")
                continue
            with self.progress.task(f"map of {name}", 1) as advance:
                points, method = project(features, self.recipe.seed)
                advance()
            groups = {}
            if self.truth is not None:
                groups["class"] = [self._class(int(row)) or "no class" for row in rows]
            for labels in self.labels:
                own = [int(labels.labels[row]) for row in rows]
                groups[f"{labels.name} cluster"] = [
                    "none" if label == IGNORE else str(label) for label in own
                ]
            maps.append(
                FeatureMap(
                    modality=name,
                    method=method,
                    points=[(float(x), float(y)) for x, y in points],
                    ids=[self.dataset.sample(int(row)).id for row in rows],
                    groups=groups,
                )
            )
        self.contents.maps = maps

    def filters(self) -> None:
        """The first convolutions of every backbone that has one."""
        if self.recipe is None or self.encoders is None:
            return
        before = self._untrained()
        pictures = []
        for key, backbone in self.encoders.backbones.items():
            if not stem_convolutions(backbone):
                self.contents.lacks("filters", f"{key} begins with no convolution over space.")
                continue
            figure = filter_figure(None if before is None else before.backbones[key], backbone)
            memory = io.BytesIO()
            figure.savefig(memory, format="png", dpi=130)
            names = ", ".join(name for name, _ in stem_convolutions(backbone))
            when = "on the left before training, on the right after it" if before else "trained"
            pictures.append(
                FilterPicture(
                    key, memory.getvalue(), f"Filters of {names} of the {key} backbone, {when}."
                )
            )
        self.contents.filters = pictures

    def _untrained(self) -> Encoders | None:
        """The encoders as training began with them, weights that they were given among it."""
        try:
            return assembly.build_encoders(load_run(self.folder, [*_UNNEEDED, _OTHER_DATA]))
        except UserError as error:
            self.contents.lacks("filters", f"Those before training cannot be shown: {error}")
            return None


def _stream(recipe: Recipe, encoders: Encoders) -> FeatureStream:
    """Features on what there is here: a run of a cluster is often looked at on a laptop."""
    try:
        device = assembly.choose_device(recipe)
    except UserError:
        device = torch.device("cpu")
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    training = recipe.training
    loader = assembly.loader_settings(recipe, device)
    if training.channels_last:
        assembly.to_memory_format(encoders)
    return FeatureStream(
        encoders=encoders.to(device),
        modalities=assembly.build_modalities(recipe),
        device=device,
        precision=training.precision if device.type == "cuda" else "fp32",
        batch_size=min(64, max(1, training.batch_size // training.accumulate)),
        settings=replace(loader, workers=min(loader.workers, cores())),
        seed=recipe.seed,
        unreadable=lambda split, failure: None,
        channels_last=training.channels_last,
    )
