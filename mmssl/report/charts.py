"""Charts as geometry: from values to the points and ticks of an SVG, which the template draws."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mmssl.report.contents import Chart
from mmssl.report.numbers import shown

WIDTH, HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 12, 36

# A line is drawn through so many means at most.
_MOST = 240


@dataclass(frozen=True)
class Line:
    """One series, in the SVG's coordinates.

    Attributes:
        name: the series'.
        last: its last value, in words.
        points: of the polyline.
        band: a polygon from the least to the largest value around each point, or nothing.
        dots: places of dots.
        x: of the values that are shown, for reading them off.
        y: the values.
    """

    name: str
    last: str
    points: str
    band: str
    dots: Sequence[tuple[float, float]]
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Drawn:
    """A chart, ready to be written down.

    Attributes:
        title: the chart's.
        axis: what x counts.
        lines: one or more.
        x_ticks: places and words along the lower edge.
        y_ticks: places and words along the left edge.
        marks: places of vertical lines.
        summary: the chart in a sentence, for those who do not see it.
        frame: left, right, top and bottom of the plot.
        low: the values of x at its left and right.
    """

    title: str
    axis: str
    lines: Sequence[Line]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    marks: Sequence[float]
    summary: str
    frame: tuple[float, float, float, float]
    low: tuple[float, float]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers in ``[low, high]``, at steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def thinned(
    x: Sequence[float], y: Sequence[float], most: int = _MOST
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """At most ``most`` points: means of consecutive values, and the least and largest of each."""
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    if len(xs) <= most:
        return xs, ys, ys, ys
    edges = np.linspace(0, len(xs), most + 1).astype(int)[:-1]
    counts = np.diff(np.append(edges, len(xs)))
    means = [np.add.reduceat(values, edges) / counts for values in (xs, ys)]
    return (*means, np.minimum.reduceat(ys, edges), np.maximum.reduceat(ys, edges))  # type: ignore[return-value]


def draw(chart: Chart) -> Drawn:
    """Lay a chart out."""
    every = [thinned(s.x, s.y) for s in chart.series]
    x_low, x_high = _range([x for xs, *_ in every for x in xs], 0.0)
    y_low, y_high = _range([y for _, _, a, b in every for y in (*a, *b)], 0.06)
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM

    def place_x(value: float) -> float:
        return round(_LEFT + (value - x_low) / (x_high - x_low) * (right - _LEFT), 1)

    def place_y(value: float) -> float:
        return round(bottom - (value - y_low) / (y_high - y_low) * (bottom - _TOP), 1)

    def path(xs: Iterable[float], ys: Iterable[float]) -> str:
        return " ".join(f"{place_x(x)},{place_y(y)}" for x, y in zip(xs, ys, strict=True))

    lines = [
        Line(
            name=series.name,
            last=shown(float(series.y[-1])),
            points=path(xs, ys),
            band=path([*xs, *xs[::-1]], [*low, *high[::-1]]) if (low < high).any() else "",
            dots=[(place_x(x), place_y(y)) for x, y in zip(xs, ys, strict=True)]
            if chart.dots or len(xs) == 1
            else (),
            x=[float(f"{x:.6g}") for x in xs],
            y=[float(f"{y:.4g}") for y in ys],
        )
        for series, (xs, ys, low, high) in zip(chart.series, every, strict=True)
    ]
    whole = [t for t in ticks(x_low, x_high, 5) if float(t).is_integer()]
    return Drawn(
        title=chart.title,
        axis=chart.axis,
        lines=lines,
        x_ticks=[(place_x(t), _short(t)) for t in whole],
        y_ticks=[(place_y(t), _short(t)) for t in ticks(y_low, y_high, 5)],
        marks=[place_x(m) for m in chart.marks],
        summary=_summary(chart),
        frame=(_LEFT, right, _TOP, bottom),
        low=(x_low, x_high),
    )


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = float(min(values)), float(max(values))
    if low == high:
        # Of its own size: a learning rate of 0.001 that stays is no flat line at 0.
        around = abs(low) * margin or 0.5
        return low - around, high + around
    room = (high - low) * margin
    # A measure that begins at 0 keeps its 0 at the edge.
    return (0.0 if 0 <= low <= room else low - room), high + room


def _short(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    text = f"{value:g}"
    if len(text) <= 6:
        return text
    mantissa, _, power = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(power)}"


def _summary(chart: Chart) -> str:
    said = []
    for s in chart.series:
        name = "" if s.name == chart.title else f"{s.name} "
        begun = f"begins at {shown(float(s.y[0]))} and ends at {shown(float(s.y[-1]))}"
        said.append(f"{name}{begun}, lowest {shown(float(min(s.y)))}, highest {shown(max(s.y))}")
    return f"{chart.title} by {chart.axis}: {'; '.join(said)}."
