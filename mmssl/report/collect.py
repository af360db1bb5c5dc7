"""What a run's folder says of it, read without its data and its encoders."""

import datetime
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import median
from typing import Any

from mmssl import __version__
from mmssl.contracts import Table
from mmssl.data.skipped import read_ledger
from mmssl.errors import UserError
from mmssl.pipeline.records import Records, read_json
from mmssl.pipeline.status import statuses
from mmssl.pipeline.tables import collect as collect_table
from mmssl.pipeline.tables import load_table
from mmssl.pipeline.tables import shown as shown_beside
from mmssl.recipe.compose import shipped_tables
from mmssl.report.contents import Chart, Contents, EvaluationResult, Series, StageState
from mmssl.report.numbers import shown
from mmssl.training.log import read_log

# Of a step's record, what says when it was, and what is no part of the loss.
_WHEN = ("kind", "step", "round", "epoch")
_SPEED = ("lr", "clips_per_second", "data_wait")

# What reading a record raises that is no JSON, or of other things than it should be.
_DAMAGED = (UserError, OSError, ValueError, KeyError, TypeError, AttributeError)

_TITLES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "clips_per_second": "Throughput, clips a second",
    "data_wait": "Waiting for data (share)",
    "accuracy": "Accuracy",
    "purity": "Purity of clusters",
    "nmi": "Mutual information (NMI)",
    "changed": "Changed cluster (share)",
    "used": "Clusters in use",
    "balance": "Balance of cluster sizes",
    "labelled": "Have a cluster (share)",
}


def collect(run: Records, *, media: bool = True) -> Contents:
    """Everything of the report that needs neither data nor encoders.

    Args:
        run: the run's folder.
        media: are clips wanted?

    Raises:
        UserError: no stage of the run ever began, or its recipe cannot be read.
    """
    log = read_log(run.path)
    provenance = _list(run.path / "provenance.json")
    if not log and not provenance:
        raise UserError(f"{run.path} holds a recipe, but the run has not begun: mmssl run it first")
    recipe = run.recipe
    contents = Contents(
        name=str(recipe.get("name") or run.path.resolve().name),
        description=str(recipe.get("description") or ""),
        folder=str(run.path.resolve()),
        made=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        stages=_stages(run),
        facts=_facts(recipe),
        recipe=(run.path / "recipe.yaml").read_text(),
        training=_training_charts(log),
        skipped=list(read_ledger(run.path / "skipped.jsonl")),
        provenance=provenance,
        media=media,
    )
    contents.evaluations = [_evaluation(run, stage) for stage in contents.stages[1:]]
    contents.papers = _papers(run, contents)
    rounds = _rounds(run.path, log)
    contents.rounds = _round_charts(rounds)
    contents.round_table = _round_table(rounds)
    contents.figures = _figures(run, contents, log, len(rounds))
    _say_what_is_missing(contents)
    return contents


def _say_what_is_missing(contents: Contents) -> None:
    pretrain = contents.stages[0]
    if pretrain.state != "finished":
        contents.lacks(
            "summary",
            f"Pretraining is not finished ({pretrain.described}): this is its state so far.",
        )
    if not contents.training:
        contents.lacks("training", "The log holds no steps yet.")
    if not contents.rounds:
        contents.lacks(
            "health", "No round reported figures: the objective does not cluster, or has not begun."
        )
    if not contents.evaluations:
        contents.lacks("evaluations", "The recipe names no evaluations.")


def _stages(run: Records) -> list[StageState]:
    try:
        return [StageState(s.stage, s.state, s.described) for s in statuses([run])[0]]
    except _DAMAGED as error:
        why = f"unknown: its records cannot be read ({error})"
        return [StageState(stage, "unknown", why) for stage in run.stages]


def _list(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON file; none where it is missing or damaged."""
    try:
        found = read_json(path)
    except ValueError:
        return []
    return [x for x in found if isinstance(x, dict)] if isinstance(found, list) else []


def _facts(recipe: Mapping[str, Any]) -> dict[str, str]:
    """What is trained, in a few lines."""

    def use(spec: Any) -> str:
        return str(spec.get("use", "?")) if isinstance(spec, Mapping) else str(spec)

    def named(specs: Any) -> str:
        pairs = dict(specs or {}).items()
        return ", ".join(key if key == use(spec) else f"{key}: {use(spec)}" for key, spec in pairs)

    data, training = recipe.get("data") or {}, recipe.get("training") or {}
    objective = recipe.get("objective") or {}
    rounds = objective.get("rounds") if isinstance(objective, Mapping) else None
    rhythm = f"{training.get('epochs', '?')} epochs of {shown(training.get('epoch_size'))} clips"
    limit = data.get("limit")
    return {
        "Objective": use(objective) + (f", {rounds} rounds" if rounds else ""),
        "Modalities": named(recipe.get("modalities")),
        "Backbones": named(recipe.get("backbones")),
        "Data": use(data.get("train")) + (f", {shown(limit)} samples of it" if limit else ""),
        "Training": f"{rhythm}{' a round' if rounds else ''}, batch {training.get('batch_size')}, "
        f"{use(training.get('optimizer'))}, {training.get('precision', 'fp32')}",
        "Seed": str(recipe.get("seed", 0)),
    }


def _points(records: Sequence[Mapping[str, Any]], key: str, x: str) -> tuple[list[Any], list[Any]]:
    pairs = [(r.get(x), r.get(key)) for r in records]
    good = [(a, b) for a, b in pairs if _number(a) and _number(b)]
    return [a for a, _ in good], [b for _, b in good]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _series(records: Sequence[Mapping[str, Any]], key: str, x: str, name: str) -> list[Series]:
    xs, ys = _points(records, key, x)
    return [Series(name, xs, ys)] if xs else []


def _training_charts(log: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Loss, its parts, learning rate and throughput over steps."""
    steps = [r for r in log if r.get("kind") == "step"]
    validation = [r for r in log if r.get("kind") == "validation"]
    # The first step of each round but the first; of many rounds, marks would be all there is.
    first = {r.get("round"): r["step"] for r in reversed(steps) if _number(r.get("step"))}
    marks = sorted(first.values())[1:] if len(first) <= 40 else []

    def chart(title: str, series: list[Series]) -> list[Chart]:
        return [Chart(title, "step", series, marks)] if series else []

    loss = _series(steps, "loss", "step", "training")
    loss += _series(validation, "loss", "step", "validation")
    charts = chart("Loss", loss)
    parts = [k for k in _keys(steps) if k not in (*_WHEN, *_SPEED, "loss")]
    for title, members in _by_measure(parts).items():
        series = [s for key, name in members for s in _series(steps, key, "step", name)]
        charts += chart("Loss by part" if title == "Loss" else title, series)
    for key in _SPEED:
        charts += chart(_TITLES[key], _series(steps, key, "step", _TITLES[key]))
    return charts


def _keys(records: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for record in records for key in record))


def _by_measure(keys: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Keys such as ``video/purity`` by what they measure: ``(key, "video")`` under "Purity"."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for key in keys:
        thing, _, measure = key.rpartition("/")
        title = _TITLES.get(measure, measure.replace("_", " ").capitalize())
        groups.setdefault(title, []).append((key, thing or measure))
    return groups


def _rounds(folder: Path, log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The figures of each round, from the log or, where it has none, from the rounds' folders."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted((folder / "clusters").glob("round-*/health.json")):
        number = path.parent.name.removeprefix("round-")
        try:
            figures = json.loads(path.read_text())
        except ValueError:
            continue
        if number.isdecimal() and isinstance(figures, dict):
            found[int(number)] = {"round": int(number), **figures}
    for record in log:
        if record.get("kind") == "round" and isinstance(record.get("round"), int):
            figures = {k: v for k, v in record.items() if k not in ("kind", "step")}
            if len(figures) > 1:
                found[record["round"]] = figures
    return [found[number] for number in sorted(found)]


def _round_charts(rounds: Sequence[Mapping[str, Any]]) -> list[Chart]:
    charts = []
    for title, members in _by_measure([k for k in _keys(rounds) if k not in _WHEN]).items():
        series = [s for key, name in members for s in _series(rounds, key, "round", name)]
        if series:
            charts.append(Chart(title, "round", series, dots=len(rounds) <= 40))
    return charts


def _round_table(rounds: Sequence[Mapping[str, Any]]) -> Table | None:
    keys = [k for k in _keys(rounds) if k not in _WHEN]
    if not keys:
        return None
    rows = [[r["round"], *(r.get(key) for key in keys)] for r in rounds]
    return Table("Figures of every round", ["round", *keys], rows)


def _evaluation(run: Records, stage: StageState) -> EvaluationResult:
    folder = run.path / "evaluations" / stage.name
    skipped = [r for path in sorted(folder.glob("skipped-*.jsonl")) for r in read_ledger(path)]
    try:
        metrics = dict(json.loads((folder / "metrics.json").read_text()))
        tables = json.loads((folder / "tables.json").read_text())
        tables = [Table(t["title"], t["columns"], t["rows"]) for t in tables]
    except FileNotFoundError:
        return EvaluationResult(stage.name, stage.described, skipped=skipped)
    except (ValueError, KeyError, TypeError) as error:
        why = f"{stage.described}, but its results cannot be read ({error})"
        return EvaluationResult(stage.name, why, skipped=skipped)
    return EvaluationResult(
        name=stage.name,
        state=stage.described,
        metrics=metrics,
        tables=tables,
        figures={path.stem: path.read_bytes() for path in sorted(folder.glob("*.png"))},
        skipped=skipped,
    )


def _papers(run: Records, contents: Contents) -> list[Table]:
    """The papers' tables with a row that this run measures, and what was measured of all rows."""
    path = run.path.resolve()
    found = []
    for name, _ in shipped_tables():
        table = load_table(name)
        if any(fnmatchcase(path.name, pattern) for pattern in table.runs):
            try:
                titles, rows = shown_beside(collect_table(table, path.parent))
            except _DAMAGED as error:
                contents.lacks(
                    "evaluations",
                    f"{table.title}: a record of this run or of one beside it cannot be read "
                    f"({type(error).__name__}: {error})",
                )
                continue
            source = f"{table.title} ({table.source})".removesuffix(" ()")
            found.append(Table(source, titles, rows))
    return found


def _figures(
    run: Records, contents: Contents, log: Sequence[Mapping[str, Any]], rounds: int
) -> dict[str, str]:
    """What a reader wants to know first."""
    steps = [r for r in log if r.get("kind") == "step"]
    figures = {}
    if steps:
        last = steps[-1]
        figures["last loss"] = shown(last.get("loss"))
        done, total = last.get("step", 0), run.steps()
        finished = contents.stages[0].state == "finished"
        figures["steps"] = shown(done) if finished else f"{shown(done)} of {shown(total)}"
        _, speeds = _points(steps, "clips_per_second", "step")
        if speeds:
            figures["clips a second, median"] = shown(float(f"{median(speeds):.3g}"))
    if rounds:
        figures["rounds"] = shown(rounds)
    for name, value in _headlines(contents.evaluations):
        figures[name] = value
    bad = len(contents.skipped)
    figures["unreadable samples"] = shown(bad)
    return figures


def _headlines(evaluations: Sequence[EvaluationResult], most: int = 6) -> list[tuple[str, str]]:
    """Of each evaluation the top-1 accuracies where it has some, else its first figures."""

    def chosen(metrics: Mapping[str, float | None]) -> Iterator[str]:
        leading = [k for k in metrics if k.rpartition("/")[2] in ("top1", "accuracy", "map")]
        yield from leading or [k for k in metrics if k.endswith("/nmi")][:2]

    found = [
        (f"{result.name} · {key}", shown(result.metrics[key]))
        for result in evaluations
        for key in chosen(result.metrics)
    ]
    return found[:most]
