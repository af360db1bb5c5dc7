"""What runs differ in and what they found, side by side (without torch)."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmssl.errors import UserError
from mmssl.pipeline.records import Records, read_json

# What every run has otherwise, and what decides no result.
_OWN = ("name", "description", "runs", "launch")


@dataclass(frozen=True)
class Row:
    """A run: its name, the fields in which recipes differ, its metrics."""

    run: str
    fields: dict[str, Any]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Several runs, in the order in which they are shown."""

    rows: list[Row]

    @property
    def _fields(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row.fields))

    @property
    def _metrics(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row.metrics))

    @property
    def columns(self) -> list[str]:
        """Their titles; a field's last words, as many as tell it from the others."""
        return ["run", *(_short(name, self._fields) for name in self._fields), *self._metrics]

    def cells(self, row: Row) -> list[Any]:
        """What stands in a row; a field is text, as it is written in a recipe."""
        fields = [_written(row.fields[n]) if n in row.fields else None for n in self._fields]
        return [Path(row.run).name, *fields, *(row.metrics.get(name) for name in self._metrics)]

    @staticmethod
    def record(row: Row) -> dict[str, Any]:
        """A row as plain data."""
        return {"run": row.run, "recipe": row.fields, "metrics": row.metrics}


def compare(runs: Sequence[Records], by: str | None = None, *, lowest: bool = False) -> Comparison:
    """The runs, sorted by a metric or as they were named.

    Args:
        runs: of which some may not be finished; they lack metrics then.
        by: a metric's name, or the end of it that no other has.
        lowest: the lowest comes first.

    Raises:
        UserError: there is no such metric.
    """
    recipes = [dict(_leaves(_without(run.recipe, _OWN))) for run in runs]
    names = list(dict.fromkeys(name for recipe in recipes for name in recipe))
    differ = [name for name in names if _differs(name, recipes, names)]
    rows = [
        Row(str(run.path), {n: recipe[n] for n in differ if n in recipe}, metrics_of(run))
        for run, recipe in zip(runs, recipes, strict=True)
    ]
    if by is not None:
        metric = _meant(by, list(dict.fromkeys(name for row in rows for name in row.metrics)))
        sign = 1 if lowest else -1

        def place(row: Row) -> tuple[bool, float]:
            value = row.metrics.get(metric)
            if not isinstance(value, int | float):
                return True, 0.0  # those without it come last
            return False, sign * value

        rows.sort(key=place)
    return Comparison(rows)


def _differs(name: str, recipes: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bool:
    """Do recipes differ in a field? Parameters that only one's component has say nothing more."""
    there = [recipe[name] for recipe in recipes if name in recipe]
    if any(value != there[0] for value in there):
        return True
    component, _, key = name.rpartition(".")
    return len(there) < len(recipes) and (key == "use" or f"{component}.use" not in names)


def metrics_of(run: Records) -> dict[str, Any]:
    """Losses, and what finished evaluations found: ``evaluation/metric``."""
    last = run.log()
    found = {
        name: last[kind]["loss"]
        for name, kind in (("loss", "step"), ("validation loss", "validation"))
        if "loss" in last.get(kind, {})
    }
    for stage in run.stages[1:]:
        metrics = read_json(run.path / "evaluations" / stage / "metrics.json")
        if metrics is not None and run.finished(stage):
            found.update({f"{stage}/{name}": value for name, value in metrics.items()})
    return found


def _meant(name: str, metrics: list[str]) -> str:
    ends = [metric for metric in metrics if metric == name or metric.endswith(f"/{name}")]
    if name in metrics or len(ends) == 1:
        return name if name in metrics else ends[0]
    if ends:
        raise UserError(f"--by {name}: it may be {' or '.join(ends)}")
    near = difflib.get_close_matches(name, metrics, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(metrics) or 'none'}"
    raise UserError(f"--by {name}: no run has such a metric; {hint}")


def _short(name: str, names: Sequence[str]) -> str:
    keys = name.split(".")
    ends = (".".join(keys[-count:]) for count in range(1, len(keys) + 1))
    return next(
        end for end in ends if end == name or sum(f".{n}".endswith(f".{end}") for n in names) == 1
    )


def _without(recipe: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in recipe.items() if name not in names}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """``training.optimizer.lr`` and what it is; lists are leaves."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path, value


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
