"""What a person sees while a run goes on: bars where there is a terminal, lines where not."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from mmssl.training.progress import Advance

if TYPE_CHECKING:
    from mmssl.pipeline.plan import Plan

# Seconds between two lines of a task's progress where there is no terminal to draw a bar on.
_LINE_EVERY = 30.0

# So many unreadable samples are named on the terminal; the run's folder names all.
_NAMED = 10


class Terminal:
    """Implements `mmssl.training.progress.Progress` on the standard output."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, emoji=False)
        if not self.console.is_terminal:
            self.console.width = 100

    @contextmanager
    def task(self, title: str, total: int | None, done: int = 0) -> Iterator[Advance]:
        """A bar with the task's figures; without a terminal a line now and then.

        ``total`` is None where nobody knows how much there is.
        """
        if not self.console.is_terminal:
            yield _Lines(self.console, title, total, done)
            return
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        ) as bars:
            task = bars.add_task(title, total=total, completed=done, figures="")

            def advance(count: int = 1, **figures: str) -> None:
                bars.advance(task, count)
                if figures:
                    bars.update(task, figures=_inline(figures))

            yield advance

    def say(self, text: str) -> None:
        """A line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def round(self, number: int, total: int, figures: Mapping[str, Any]) -> None:
        """A few lines: one for each thing that the figures speak of."""
        groups: dict[str, dict[str, Any]] = {}
        for name, value in figures.items():
            thing, _, figure = name.rpartition("/")
            groups.setdefault(thing, {})[figure] = value
        lead = f"round {number:>2}/{total}"
        for thing, values in groups.items():
            shown = "  ".join(f"{name} {_short(value):>5}" for name, value in values.items())
            self.say(f"{lead}  {thing:<12} {shown}")
            lead = " " * len(lead)

    def plan(self, plan: "Plan") -> None:
        """The tables of a dry run."""
        self.say(plan.summary)
        for table in plan.tables:
            self.table(table.title, table.columns, table.rows)

    def table(self, title: str, columns: Any, rows: Any) -> None:
        """A table of strings and numbers; numbers stand to the right."""
        drawn = Table(
            title=title, title_justify="left", title_style="bold", show_header=any(columns)
        )
        rows = [list(row) for row in rows]
        for i, column in enumerate(columns):
            numeric = all(isinstance(row[i], int | float | None) for row in rows)
            drawn.add_column(str(column), justify="right" if numeric else "left")
        for row in rows:
            drawn.add_row(*(_short(cell) for cell in row))
        self.console.print(drawn, markup=False)


class _Lines:
    """Progress where nothing can be redrawn: a log file, a pipe."""

    def __init__(self, console: Console, title: str, total: int | None, done: int) -> None:
        self._console, self._title, self._total, self._done = console, title, total, done
        self._begun = self._shown = time.monotonic()
        self._first = done
        self._figures = ""

    def __call__(self, count: int = 1, **figures: str) -> None:
        self._done += count
        self._figures = _inline(figures) if figures else self._figures
        now = time.monotonic()
        if now - self._shown < _LINE_EVERY:
            return
        self._shown = now
        line = f"{self._title}  {self._done}  {self._figures}"
        if self._total is not None:
            rate = (self._done - self._first) / (now - self._begun)
            left = (self._total - self._done) / rate if rate else 0.0
            line = f"{self._title}  {self._done}/{self._total}  {self._figures}  {left:.0f} s left"
        self._console.print(line, markup=False, soft_wrap=True)


def _inline(figures: Mapping[str, str]) -> str:
    return "  ".join(f"{name} {value}" for name, value in figures.items())


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) > 1 else f"{value:.3f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def show_results(
    terminal: Terminal,
    results: Mapping[str, Any],
    folder: Path,
    skipped: Sequence[Mapping[str, Any]],
) -> None:
    """The tables of every evaluation, what could not be read, and where everything is."""
    for result in results.values():
        for table in result["tables"]:
            terminal.table(table["title"], table["columns"], table["rows"])
    if skipped:
        samples = "sample" if len(skipped) == 1 else "samples"
        terminal.say(f"{len(skipped)} {samples} could not be read: {folder / 'skipped.jsonl'}")
        for record in skipped[:_NAMED]:
            terminal.say(f"  {record['id']}: {record['reason']}")
        if len(skipped) > _NAMED:
            terminal.say(f"  and {len(skipped) - _NAMED} more")
    terminal.say(f"run folder: {folder}")
