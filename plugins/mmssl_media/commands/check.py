"""``mmssl data check``: say what is wrong with media files before they are trained on."""

import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mmssl import Sample
    from mmssl.cli.terminal import Terminal
    from mmssl.contracts import Dataset
    from mmssl_media.journal import Journal

# So many files with problems are named in the terminal, and so many as examples of each problem.
_NAMED = 50
_EXAMPLES = 2


def check(
    source: Annotated[Path, typer.Argument(help="A manifest, or a folder.")],
    report: Annotated[
        Path | None, typer.Option("--json", help="Write everything that was found to this file.")
    ] = None,
    good: Annotated[
        Path | None, typer.Option(help="Write a manifest of the rows that have no problem.")
    ] = None,
    allow: Annotated[
        str, typer.Option(help="Problems that are none here, such as silent,no-audio.")
    ] = "",
    clips: Annotated[
        int, typer.Option(min=1, help="Places at which a second of each row is decoded.")
    ] = 3,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default as many as there are cores.")
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=0.001, help="Seconds that one row may take.")
    ] = 60.0,
) -> int:
    """Decode samples of every file and report each problem by name, with its reason.

    The exit code is 1 when something is wrong. With --json or --good, what was found is kept
    beside them: started again, only files that are new or have changed are decoded.

    Examples:
      mmssl data check manifest.csv --json report.json --good good.csv
      mmssl data check ~/videos
      mmssl data check sounds.csv --allow no-video,silent
    """
    from mmssl.cli.terminal import Terminal
    from mmssl.data.cores import cores
    from mmssl_media.journal import clear_halves, open_journal

    allowed = _allowed(allow)
    _refuse_mistakes(source, report, good)
    terminal = Terminal()
    outputs = [path for path in (report, good) if path is not None]
    try:
        data = _data(source, terminal)
        with ExitStack() as held:
            # One for each output, so that no other check writes it; the first one is filled.
            journals = [
                held.enter_context(open_journal(_journal_of(output), "check 1"))
                for output in outputs
            ]
            clear_halves(*outputs)
            journal = journals[0] if journals else None
            verdict = _check(
                data, clips, journal, terminal, workers or cores(), time_limit, allowed
            )
            if good is not None:
                _write_good(source, good, data, verdict)
            if report is not None:
                _write_report(source, report, verdict)
    except KeyboardInterrupt:
        lost = "" if not outputs else "; nothing is lost: run the same command to go on"
        print(f"mmssl: interrupted{lost}", file=sys.stderr)
        return 130
    _show(terminal, verdict, report)
    return 1 if verdict.bad else 0


def _journal_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.check.journal")


@dataclass(frozen=True)
class _Bad:
    """A row with problems: their names with reasons."""

    row: int
    id: str
    path: str
    problems: list[tuple[str, str]]


@dataclass
class _Verdict:
    """``good``: a byte for each row, 1 if it has no problem. ``bad``: all others, in order."""

    good: bytearray
    bad: list[_Bad] = field(default_factory=list)

    def counts(self) -> Counter[str]:
        """How many rows have each problem."""
        return Counter(name for bad in self.bad for name in {name for name, _ in bad.problems})


def _allowed(text: str) -> frozenset[str]:
    from mmssl.errors import UserError
    from mmssl_media.inspection import PROBLEMS

    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    for name in sorted(names - set(PROBLEMS)):
        raise UserError(f"--allow {name}: is no problem's name; there are: {', '.join(PROBLEMS)}")
    return names


def _refuse_mistakes(source: Path, report: Path | None, good: Path | None) -> None:
    from mmssl.errors import UserError

    # Not Path's own, which raise errors where a name is too long.
    if not os.path.exists(source):
        raise UserError(f"{source}: no such manifest or folder")
    for option, path in (("--json", report), ("--good", good)):
        if path is None:
            continue
        if not os.path.isdir(path.parent):
            raise UserError(f"{option} {path}: there is no folder {path.parent}")
        if os.path.isdir(path):
            raise UserError(f"{option} {path}: is a folder; name a file")
        if path.resolve() == source.resolve():
            raise UserError(f"{option} {path}: is the manifest itself; choose another name")
    endings: tuple[str, ...] = (source.suffix,)
    if source.is_dir():
        endings = (".csv", ".tsv")
    elif source.suffix.lower() in (".parquet", ".pq"):
        endings = (".csv",)
    if good is not None and good.suffix not in endings:
        raise UserError(f"--good {good}: its name must end in {' or '.join(endings)}")
    if good is not None and report is not None and good.resolve() == report.resolve():
        raise UserError(f"--good {good}: is the report's file")


@dataclass(frozen=True)
class _Folder:
    """The files of a folder, as rows."""

    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def sample(self, index: int) -> "Sample":
        from mmssl import Sample

        path = self.paths[index]
        return Sample(path, path)


def _data(source: Path, terminal: "Terminal") -> "Dataset | _Folder":
    from mmssl.errors import UserError
    from mmssl_media.listing import KINDS, walk
    from mmssl_media.manifest import Manifest

    if not source.is_dir():
        data = Manifest(path=source)
        try:
            with terminal.task("reading the list", total=None):
                len(data)
        except UserError as error:
            if source.suffix.lower() in (".csv", ".tsv", ".parquet", ".pq"):
                raise
            way_out = f"if it lists a file a line: mmssl data index {source} -o manifest.csv"
            raise UserError(f"{error}; {way_out}") from None
        return data
    others: Counter[str] = Counter()
    paths = []
    with terminal.task("listing", total=None) as advance:
        for path in walk(str(source), KINDS, others):
            paths.append(path)
            advance()
    folder = _Folder(paths)
    if not folder.paths:
        raise UserError(f"{source}: no media files in it; {others.total()} others")
    return folder


def _check(
    data: Any,
    clips: int,
    journal: "Journal | None",
    terminal: "Terminal",
    workers: int,
    seconds: float,
    allowed: frozenset[str],
) -> _Verdict:
    """Look at every row, at those that need decoding in processes."""
    from mmssl_media.listing import printable
    from mmssl_media.parallel import Failed, in_processes

    verdict = _Verdict(bytearray(len(data)))
    with terminal.task("checking", total=len(data)) as advance:

        def settle(row: int, sample: "Sample", found: Any) -> None:
            problems = [(name, printable(why)) for name, why in found if name not in allowed]
            if problems:
                path = printable(sample.media or "")
                verdict.bad.append(_Bad(row, printable(sample.id), path, problems))
            else:
                verdict.good[row] = 1
            advance(bad=f"{len(verdict.bad):,}")

        def to_decode() -> Iterator[tuple[int, "Sample", int, str]]:
            for row in range(len(data)):
                sample = data.sample(row)
                if sample.media is None:  # its modalities have files of their own
                    settle(row, sample, [])
                    continue
                problem, key = _state(sample, sample.media, clips)
                known = None if journal is None or not key else journal.get(key, None)
                if problem is not None or known is not None:
                    settle(row, sample, known if problem is None else [problem])
                else:
                    yield row, sample, clips, key

        results = in_processes(_inspect, to_decode(), workers=workers, seconds=seconds)
        with closing(results):
            for (row, sample, _, key), found in results:
                if isinstance(found, Failed):
                    # Not kept: it may be the machine's fault, so the next start tries again.
                    name = {"media": "corrupt", "time": "too-slow"}.get(found.cause, "kills-reader")
                    found = [(name, found.reason)]
                elif journal is not None and key:
                    journal.add(key, found)
                settle(row, sample, found)
    verdict.bad.sort(key=lambda bad: bad.row)
    return verdict


def _state(sample: "Sample", media: str, clips: int) -> tuple[tuple[str, str] | None, str]:
    """What is wrong with a file before it is opened, and the journal's key of the row."""
    from mmssl_media.listing import Unfit, look

    about = [media, sample.span, sample.start, sample.end, clips]
    if "://" in media:
        return None, json.dumps(about)
    try:
        state = look(media)
    except Unfit as unfit:
        return (unfit.problem, unfit.reason), ""
    return None, json.dumps([*about, state.st_size, state.st_mtime_ns])


def _inspect(item: tuple[int, "Sample", int, str]) -> list[tuple[str, str]]:
    """In a process of its own."""
    from mmssl_media.inspection import inspect

    _, sample, clips, _ = item
    return inspect(sample, clips)


def _write_good(source: Path, good: Path, data: Any, verdict: _Verdict) -> None:
    """The manifest without its bad rows; other lines as they are, byte by byte.

    In another folder relative paths would name other files: there they become absolute.
    """
    from mmssl.training.checkpoints import write_atomically

    same_folder = os.path.abspath(good.parent) == os.path.abspath(source.parent)

    def write(path: Path) -> None:
        if source.is_dir():
            _write_folder(path, good, data, verdict)
        elif same_folder:
            with open(_text(source), "rb") as lines, open(path, "wb") as out:
                row = -1  # the header
                for line in lines:
                    if line.strip(b"\r\n"):
                        if row < 0 or verdict.good[row]:
                            out.write(line if line.endswith(b"\n") else line + b"\n")
                        row += 1
        else:
            _write_elsewhere(source, path, data, verdict)

    write_atomically(good, write)


def _text(source: Path) -> Path:
    """A manifest as lines of text."""
    from mmssl_media.manifest import as_csv

    return as_csv(source) if source.suffix.lower() in (".parquet", ".pq") else source


def _write_folder(path: Path, good: Path, data: Any, verdict: _Verdict) -> None:
    base = os.path.abspath(good.parent) + os.sep
    delimiter = "\t" if good.suffix == ".tsv" else ","
    with open(path, "w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out, delimiter=delimiter, lineterminator="\n")
        rows.writerow(["path"])
        for row, kept in enumerate(verdict.good):
            if kept:
                rows.writerow([os.path.abspath(data.sample(row).media).removeprefix(base)])


def _write_elsewhere(source: Path, path: Path, data: Any, verdict: _Verdict) -> None:
    from mmssl_media.listing import columns_of, rows_of

    text = _text(source)
    header = columns_of(text)
    place = header.index("path")
    delimiter = "\t" if text.suffix.lower() == ".tsv" else ","
    with open(path, "w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out, delimiter=delimiter, lineterminator="\n")
        rows.writerow(header)
        for row, values in enumerate(rows_of(text)):
            if verdict.good[row]:
                media = data.sample(row).media or ""
                values[place] = os.path.abspath(media) if media and "://" not in media else media
                rows.writerow(values)


def _write_report(source: Path, report: Path, verdict: _Verdict) -> None:
    from mmssl.training.checkpoints import write_atomically

    content = {
        "source": str(source),
        "checked": len(verdict.good),
        "good": sum(verdict.good),
        "problems": dict(verdict.counts().most_common()),
        "files": [
            {
                "id": bad.id,
                "path": bad.path,
                "problems": [{"problem": name, "reason": why} for name, why in bad.problems],
            }
            for bad in verdict.bad
        ],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    write_atomically(report, lambda path: path.write_text(text + "\n", encoding="utf-8"))


def _show(terminal: "Terminal", verdict: _Verdict, report: Path | None) -> None:
    total = len(verdict.good)
    if not verdict.bad:
        terminal.say(f"all {total:,} are good")
        return
    examples: dict[str, list[str]] = {}
    for bad in verdict.bad:
        for name, _ in bad.problems:
            if len(named := examples.setdefault(name, [])) < _EXAMPLES:
                named.append(os.path.basename(bad.path))
    rows = [
        (name, count, ", ".join(examples[name])) for name, count in verdict.counts().most_common()
    ]
    terminal.table("Problems", ["problem", "files", "such as"], rows)
    for bad in verdict.bad[:_NAMED]:
        for name, why in bad.problems:
            terminal.say(f"{bad.id}: {name}: {why}")
    if len(verdict.bad) > _NAMED:
        where = f"see {report}" if report is not None else "use --json"
        terminal.say(f"... and {len(verdict.bad) - _NAMED:,} more: {where}")
    terminal.say(f"{sum(verdict.good):,} of {total:,} are good, {len(verdict.bad):,} are not")
