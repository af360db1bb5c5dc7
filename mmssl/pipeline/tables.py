"""A paper's table beside what runs here have measured (without torch).

::

    title: "XDC, table 1: methods"
    source: Alwassel et al., 2020
    columns:
      UCF101: {metric: "ucf101*/video/top1", scale: 100, digits: 1}
    rows:
      XDC:
        recipe: xdc/methods      # what to run
        run: xdc_methods.xdc     # its run; a pattern for several, such as seeds
        paper: {UCF101: 74.2}

A metric is ``evaluation/name``. Where a pattern fits several of a run, the best counts, as in the
papers, which report the best of a grid of learning rates; several runs give mean and deviation.
"""

import difflib
import fnmatch
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from mmssl.errors import UserError
from mmssl.pipeline.comparison import metrics_of
from mmssl.pipeline.records import Records
from mmssl.recipe.compose import report, shipped_recipes, shipped_tables
from mmssl.recipe.typed import Typed, validate
from mmssl.recipe.yaml12 import Place, parse


class Column(Typed):
    """A column: what is measured."""

    metric: str = Field(description="evaluation/metric, or a pattern of it.")
    scale: float = Field(default=100.0, description="From the metric to the paper's unit.")
    digits: int = Field(default=1, ge=0, le=6, description="Digits behind the point.")
    lowest: bool = Field(default=False, description="The lowest is the best.")


class Row(Typed):
    """A row: the paper's figures, and the run that measures it."""

    paper: dict[str, float | None] = Field(
        default_factory=dict, description="By column; a missing one is not in the paper."
    )
    recipe: str | None = Field(default=None, description="The recipe to run, if there is one.")
    run: str | dict[str, str] | None = Field(
        default=None, description="The run's name or a pattern; or by column, where they differ."
    )
    metric: dict[str, str] = Field(
        default_factory=dict,
        description="By column, where the row is a part of its run: instead of the column's.",
    )


class PaperTable(Typed):
    """A table's file."""

    title: str
    source: str = ""
    note: str = ""
    columns: dict[str, Column] = Field(min_length=1)
    rows: dict[str, Row] = Field(min_length=1)

    @property
    def runs(self) -> set[str]:
        """Names and patterns of all runs that measure something of it."""
        named = (row.run for row in self.rows.values() if row.run is not None)
        return {run for one in named for run in ([one] if isinstance(one, str) else one.values())}


@dataclass(frozen=True)
class Cell:
    """One figure, of the paper and measured, in the paper's unit.

    Attributes:
        paper: None where the paper has none.
        measured: the mean over runs, None where nothing was.
        deviation: the sample's standard deviation over runs, None for fewer than two.
        runs: how many runs it is the mean of.
        best_of: how many metrics the best was taken of, in each run.
    """

    paper: float | None
    measured: float | None = None
    deviation: float | None = None
    runs: int = 0
    best_of: int = 1


@dataclass(frozen=True)
class Collected:
    """A table with what was found."""

    table: PaperTable
    cells: Mapping[str, Mapping[str, Cell]]

    def incomplete(self) -> list[str]:
        """Figures that are of fewer runs, or of fewer metrics of each, than others of the table."""
        every = [
            (name, title, cell)
            for name, cells in self.cells.items()
            for title, cell in cells.items()
            if cell.measured is not None
        ]
        found = []
        for name, title, cell in every:
            runs = max(c.runs for n, _, c in every if n == name)
            best_of = max(c.best_of for _, t, c in every if t == title)
            missing = [f"{cell.runs} of {runs} runs"] * (cell.runs < runs)
            missing += [f"{cell.best_of} of {best_of} evaluations"] * (cell.best_of < best_of)
            if missing:
                found.append(f"{name}, {title}: {', '.join(missing)}")
        return found

    def not_run(self) -> list[tuple[str, str | None]]:
        """Rows of which nothing was measured though something could be, and their recipes."""
        return [
            (name, self.table.rows[name].recipe)
            for name, cells in self.cells.items()
            if self.table.rows[name].run is not None
            and all(cell.measured is None for cell in cells.values())
        ]


def load_table(source: str) -> PaperTable:
    """A table by its file, or by the name of one that comes with mmssl.

    Raises:
        UserError: there is none, or its file is wrong.
    """
    shipped = dict(shipped_tables())
    path = Path(source) if Path(source).is_file() else shipped.get(source)
    if path is None:
        near = difflib.get_close_matches(source, shipped, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "mmssl table lists them"
        raise UserError(f"there is no table {source!r}: no such file, and none is shipped; {hint}")
    tree = parse(path.read_text(encoding="utf-8"), Place(str(path), 1))
    plain = tree.python()
    if not isinstance(plain, dict):
        raise UserError(f"{path}:1: a table is a mapping of 'key: value' lines")
    try:
        table = validate(PaperTable, plain)
    except ValidationError as error:
        found = error.errors()
        raise report(
            [f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in found]
        ) from None
    known = dict(shipped_recipes())
    for name, row in table.rows.items():
        columns = [*row.paper, *(row.run if isinstance(row.run, dict) else {}), *row.metric]
        for column in columns:
            if column not in table.columns:
                raise UserError(f"{path}: rows.{name}: there is no column {column!r}")
        if row.recipe and row.recipe not in known and not Path(row.recipe).is_file():
            raise UserError(f"{path}: rows.{name}.recipe: there is no recipe {row.recipe!r}")
    return table


def collect(table: PaperTable, folder: Path) -> Collected:
    """The table with what the runs in a folder measured.

    Args:
        table: the paper's.
        folder: that holds runs' folders.
    """
    there = [path.parent for path in sorted(folder.glob("*/recipe.yaml"))]
    metrics: dict[Path, dict[str, Any]] = {}

    def measured(pattern: str, column: Column) -> Cell:
        values, most = [], 1
        for run in there:
            if fnmatch.fnmatchcase(run.name, pattern):
                if run not in metrics:
                    metrics[run] = metrics_of(Records(run))
                found = [
                    value * column.scale
                    for name, value in metrics[run].items()
                    if fnmatch.fnmatchcase(name, column.metric) and isinstance(value, int | float)
                ]
                if found:
                    values.append(min(found) if column.lowest else max(found))
                    most = max(most, len(found))
        if not values:
            return Cell(None)
        spread = statistics.stdev(values) if len(values) > 1 else None
        return Cell(None, statistics.fmean(values), spread, len(values), most)

    cells: dict[str, dict[str, Cell]] = {}
    for name, row in table.rows.items():
        cells[name] = {}
        for title, column in table.columns.items():
            pattern = row.run.get(title) if isinstance(row.run, dict) else row.run
            if title in row.metric:
                column = column.model_copy(update={"metric": row.metric[title]})
            found = Cell(None) if pattern is None else measured(pattern, column)
            cells[name][title] = Cell(
                row.paper.get(title), found.measured, found.deviation, found.runs, found.best_of
            )
    return Collected(table, cells)


def shown(collected: Collected) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of text: for each column the paper's figure and the measured one."""
    table = collected.table
    from_paper = [
        title
        for title in table.columns
        if any(cells[title].paper is not None for cells in collected.cells.values())
    ]
    titles = [""]
    for title in table.columns:
        titles += [f"{title} paper", f"{title} measured"] if title in from_paper else [title]
    rows = []
    for name, cells in collected.cells.items():
        row = [name]
        for title, column in table.columns.items():
            cell = cells[title]
            if title in from_paper:
                row.append(_number(cell.paper, column.digits))
            run = table.rows[name].run
            runnable = run is not None and (isinstance(run, str) or title in run)
            row.append(_measured(cell, column.digits) if runnable else "")
        rows.append(row)
    return titles, rows


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as a table of Markdown."""
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _measured(cell: Cell, digits: int) -> str:
    if cell.measured is None:
        return "not run"
    text = _number(cell.measured, digits)
    if cell.deviation is not None:
        text += f" ± {_number(cell.deviation, digits)}"
    return text
