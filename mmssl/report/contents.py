"""What a report shows, as plain values: `mmssl.report.page` needs nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmssl.contracts import Table


@dataclass(frozen=True)
class Series:
    """A line of a chart: values that are not finite are left out before."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """Lines over a common axis.

    Attributes:
        title: what is measured.
        axis: what x counts.
        series: one or more.
        marks: places on x where rounds begin.
        dots: draw a dot at every value, where there are few.
    """

    title: str
    axis: str
    series: Sequence[Series]
    marks: Sequence[float] = ()
    dots: bool = False


@dataclass(frozen=True)
class StageState:
    """How far a stage is: see `mmssl.pipeline.status.Status`."""

    name: str
    state: str
    described: str


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation left: its metrics, tables and figures.

    Attributes:
        name: the recipe's.
        state: ``"finished"``, or why there is nothing.
        metrics: figures by name; None is one that is no number.
        tables: as the evaluator made them.
        figures: PNG files by name.
        skipped: records of its ledgers.
    """

    name: str
    state: str
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    figures: Mapping[str, bytes] = field(default_factory=dict)
    skipped: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Excerpt:
    """A sample to look at and to listen to; each part is None where the sample has none.

    Attributes:
        clip: MP4 with H.264 and AAC, a few seconds.
        has_video: does the clip show anything, or is it sound alone?
        strip: WebP, a few frames side by side.
        sound: WebP, the spectrogram of the clip's sound: time to the right, pitch upwards.
        width: of the clip's frames, in pixels.
        height: of the clip's frames, in pixels.
        trouble: why it could not be read.
    """

    clip: bytes | None = None
    has_video: bool = False
    strip: bytes | None = None
    sound: bytes | None = None
    width: int = 0
    height: int = 0
    trouble: str = ""


@dataclass(frozen=True)
class Member:
    """A sample of a cluster.

    Attributes:
        id: the sample's.
        label: name of its class; None without.
        excerpt: what it looks and sounds like; None where no media were asked for.
    """

    id: str
    label: str | None
    excerpt: Excerpt | None = None


@dataclass
class Cluster:
    """One cluster of a labeling.

    Attributes:
        index: its number, the pseudo-label.
        size: how many samples it has.
        purity: share of its most frequent class among its labelled samples; None without labels.
        leading: its most frequent classes and their shares.
        nearest: members near its middle, the nearest first.
        drawn: members drawn at random.
        looked_at: were members looked for?
    """

    index: int
    size: int
    purity: float | None = None
    leading: Sequence[tuple[str, float]] = ()
    nearest: Sequence[Member] = ()
    drawn: Sequence[Member] = ()
    looked_at: bool = False


@dataclass(frozen=True)
class Labeling:
    """What one modality, or all together, were clustered into.

    Attributes:
        name: the labeling's.
        round: the round it is of.
        samples: how many samples the data have.
        labelled: how many of them have a cluster.
        clusters: in their order of purity, or of size without labels; the first ones of very many.
        total: how many clusters have members.
    """

    name: str
    round: int
    samples: int
    labelled: int
    clusters: Sequence[Cluster]
    total: int


@dataclass(frozen=True)
class FeatureMap:
    """Samples on a plane, near each other where their features are.

    Attributes:
        modality: whose features.
        method: how they were brought to the plane, in words.
        points: ``(x, y)`` of each sample, both between 0 and 1.
        ids: of each sample.
        groups: by what points may be coloured, such as ``"class"``: the group of each sample.
    """

    modality: str
    method: str
    points: Sequence[tuple[float, float]]
    ids: Sequence[str]
    groups: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class FilterPicture:
    """The first filters of a backbone before and after training.

    Attributes:
        backbone: its key in the recipe.
        png: the picture.
        description: what is seen, in a sentence.
    """

    backbone: str
    png: bytes
    description: str


@dataclass
class Contents:
    """All of a report.

    Attributes:
        name: the run's.
        description: the recipe's.
        folder: the run's.
        made: when the report was made.
        version: of mmssl.
        stages: in their order.
        facts: of the recipe: what was trained on what.
        figures: the main figures, by name.
        recipe: the resolved recipe's text.
        training: charts of steps.
        rounds: charts of rounds.
        round_table: the figures of each round.
        labelings: the clusters of the last round.
        maps: of features, by modality.
        filters: by backbone.
        evaluations: in the recipe's order.
        papers: tables of papers that this run measures a row of, with what runs beside it measured.
        skipped: records of the run's ledger.
        provenance: where and when processes began to work at the run.
        missing: by section, what it does not show and why.
        media: were clips asked for?
    """

    name: str
    description: str
    folder: str
    made: str
    version: str
    stages: Sequence[StageState] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, str] = field(default_factory=dict)
    recipe: str = ""
    training: Sequence[Chart] = ()
    rounds: Sequence[Chart] = ()
    round_table: Table | None = None
    labelings: Sequence[Labeling] = ()
    maps: Sequence[FeatureMap] = ()
    filters: Sequence[FilterPicture] = ()
    evaluations: Sequence[EvaluationResult] = ()
    papers: Sequence[Table] = ()
    skipped: Sequence[Mapping[str, Any]] = ()
    provenance: Sequence[Mapping[str, Any]] = ()
    missing: dict[str, list[str]] = field(default_factory=dict)
    media: bool = True

    def lacks(self, section: str, why: str) -> None:
        """Say in a section what it does not show."""
        self.missing.setdefault(section, []).append(why)
