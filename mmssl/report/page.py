"""The page: from `Contents` to one HTML file that needs nothing else."""

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mmssl.contracts import Table
from mmssl.report.charts import HEIGHT, WIDTH, Drawn, draw
from mmssl.report.contents import Cluster, Contents, FeatureMap
from mmssl.report.numbers import shown

# The colour scale has so many hues; what is beyond begins again.
HUES = 24

# So many unreadable samples are listed, and so many groups of a map named.
_LISTED, _NAMED = 200, 24

_NUMERIC = re.compile(r"[+\-−±]?[\d.,\u202f ]+([eE][+\-]?\d+)?( ?%)?|–|")


def render(contents: Contents) -> str:
    """The page.

    Whatever comes from files or recipes is escaped as text by the template engine. The page
    forbids itself everything but its own style and script, which it names by their hashes, and
    media that stand within it.

    Args:
        contents: of the report.
    """
    templates = Environment(
        loader=PackageLoader("mmssl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.policies["json.dumps_kwargs"] = {}  # groupings stay in their order
    templates.filters |= {"shown": shown, "percent": _percent}
    templates.globals |= {
        "data_uri": _data_uri,
        "numeric": _numeric,
        "raw": _raw,
        "search_text": _search_text,
        "key_and_rest": _key_and_rest,
        "short": _short,
    }
    style = _own("report.css") + _hues()
    script = _own("report.js")
    hue = _hue_of_classes(contents)
    training = [draw(chart) for chart in contents.training]
    rounds = [draw(chart) for chart in contents.rounds]
    page = templates.get_template("page.html.j2")
    return page.render(
        c=contents,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        training=training,
        rounds=rounds,
        chart_size=(WIDTH, HEIGHT),
        chart_values=[_values(chart) for chart in (*training, *rounds)],
        maps=[_map(found, hue) for found in contents.maps],
        hue=lambda name: hue.get(name, 0),
        bars=_bars,
        skipped=_skipped(contents),
        listed=_LISTED,
        named=_NAMED,
    )


def _own(name: str) -> str:
    return (files("mmssl.report") / "templates" / name).read_text(encoding="utf-8")


def _hues() -> str:
    """Classes ``k0``, ``k1``, ...: neighbours in number are far apart in hue and in lightness."""
    rules = []
    for i in range(HUES):
        hue = round(25 + i * 137.508) % 360
        light = f"var(--k{i % 2})"
        rules.append(f".k{i}{{--k:oklch({light} var(--kc) {hue})}}")
    return "\n".join(rules) + "\n"


def _policy(style: str, script: str) -> str:
    def source(text: str) -> str:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return f"'sha256-{digest}'"

    return (
        f"default-src 'none'; img-src data:; media-src data:; style-src {source(style)}; "
        f"script-src {source(script)}; base-uri 'none'; form-action 'none'"
    )


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.1f} %"


def _numeric(table: Table) -> list[bool]:
    """By column: does it hold numbers, also such as are written as text?"""

    def holds_numbers(column: int) -> bool:
        cells = (row[column] for row in table.rows if column < len(row))
        return all(isinstance(c, int | float | None) or _NUMERIC.fullmatch(str(c)) for c in cells)

    return [holds_numbers(column) for column in range(len(table.columns))]


def _raw(cell: Any) -> str:
    """What a cell is sorted by: its number, if it has one."""
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return repr(cell)
    text = str(cell or "").replace("−", "-").replace("\u202f", "").rstrip(" %")
    try:
        return repr(float(text))
    except ValueError:
        return "" if cell is None else str(cell)


def _search_text(labeling: str, cluster: Cluster) -> str:
    """What a filter looks for in a cluster: its name, its classes, its members."""
    members = [*cluster.nearest, *cluster.drawn]
    words = [f"{labeling} {cluster.index}", f"#{cluster.index}"]
    words += [name for name, _ in cluster.leading]
    words += [m.id for m in members] + [m.label for m in members if m.label]
    return "\n".join(words).lower()  # as the page does with what is looked for


def _key_and_rest(line: str) -> tuple[str, str, str]:
    """A line of the recipe: its indentation, its key, and the rest."""
    match = re.match(r"(\s*(?:- )*)([^\s:'\"#][^:'\"]*:)(?=\s|$)(.*)", line)
    return (match[1], match[2], match[3]) if match else ("", "", line)


def _short(id: str) -> str:
    """A sample's name where there is little room: of a long path, the file."""
    last = id.rstrip("/").rpartition("/")[2]
    return f"…/{last}" if len(id) > 32 and last and last != id else id


def _hue_of_classes(contents: Contents) -> dict[str, int]:
    """One colour for a class in all of the page."""
    names: set[str] = set()
    for labeling in contents.labelings:
        names.update(name for cluster in labeling.clusters for name, _ in cluster.leading)
        for cluster in labeling.clusters:
            names.update(m.label for m in (*cluster.nearest, *cluster.drawn) if m.label)
    for found in contents.maps:
        names.update(found.groups.get("class", ()))
    return {name: i % HUES for i, name in enumerate(sorted(names))}


def _values(chart: Drawn) -> dict[str, Any]:
    """What a chart's values are read off from, in the page's data."""
    return {
        "axis": chart.axis,
        "low": chart.low[0],
        "high": chart.low[1],
        "left": chart.frame[0],
        "right": chart.frame[1],
        "lines": [{"name": line.name, "x": line.x, "y": line.y} for line in chart.lines],
    }


def _bars(cluster: Cluster) -> list[tuple[float, float, str | None]]:
    """Leading classes side by side, in percent: left, width and name; the rest has none."""
    bars: list[tuple[float, float, str | None]] = []
    left = 0.0
    for name, share in cluster.leading:
        bars.append((round(left, 2), round(100 * share, 2), name))
        left += 100 * share
    if left < 99.9:
        bars.append((round(left, 2), round(100 - left, 2), None))
    return bars


def _map(found: FeatureMap, hue_of_class: Mapping[str, int]) -> dict[str, Any]:
    """A map's points with the colours of its first grouping, and all groupings as data."""
    groupings: dict[str, dict[str, Any]] = {}
    for grouping, members in found.groups.items():
        names = _by_number(set(members))
        hue = [hue_of_class.get(n, i) if grouping == "class" else i for i, n in enumerate(names)]
        place = {name: i for i, name in enumerate(names)}
        groupings[grouping] = {
            "names": names,
            "hues": [h % HUES for h in hue],
            "of": [place[member] for member in members],
        }
    first = next(iter(groupings), None)
    # The plane is as high as what is on it: t-SNE likes to make long shapes.
    ys = [y for _, y in found.points]
    height = max(160.0, 24 + 376 * (max(ys) - min(ys)))
    middle = (max(ys) + min(ys)) / 2
    of = groupings[first]["of"] if first else [0] * len(found.points)
    hues = groupings[first]["hues"] if first else [0]
    return {
        "modality": found.modality,
        "method": found.method,
        "height": round(height),
        "points": [
            (round(12 + 376 * x, 1), round(height / 2 - 376 * (y - middle), 1), hues[group])
            for (x, y), group in zip(found.points, of, strict=True)
        ],
        "ids": list(found.ids),
        "groupings": groupings,
        "first": first,
        "titles": [
            "; ".join([name, *(f"{g} {members[i]}" for g, members in found.groups.items())])
            for i, name in enumerate(found.ids)
        ],
    }


def _by_number(names: Iterable[str]) -> list[str]:
    """Clusters in the order of their numbers, classes in that of their names."""

    def place(name: str) -> tuple[bool, int, str]:
        number = name.isascii() and name.isdecimal()
        return not number, int(name) if number else 0, name

    return sorted(names, key=place)


def _skipped(contents: Contents) -> list[tuple[str, list[tuple[str, int]], Sequence[Any]]]:
    """By ledger: its name, reasons with their numbers, and its records."""
    ledgers = [("pretraining", contents.skipped)]
    ledgers += [(result.name, result.skipped) for result in contents.evaluations]
    return [
        (name, Counter(str(r.get("reason", "")) for r in records).most_common(12), records)
        for name, records in ledgers
        if records
    ]
