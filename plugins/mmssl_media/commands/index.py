"""``mmssl data index``: make a manifest of a folder or a list."""

import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from mmssl.cli.terminal import Terminal
    from mmssl_media.journal import Journal

# So many files that were left out are named in the terminal.
_NAMED = 20


def index(
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder; or a list: a CSV, TSV or Parquet file with a column path, or a text "
            "file with a path a line, relative to the list's folder."
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The manifest to write, .csv or .tsv.")
    ],
    labels: Annotated[
        Literal["none", "folder"],
        typer.Option(help="folder: a file's class is the folder it is in, the first below SOURCE."),
    ] = "none",
    kinds: Annotated[
        str, typer.Option(help="Which files of a folder, by their endings.")
    ] = "video,audio,image",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default as many as there are cores.")
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=0.001, help="Seconds that one file may take.")
    ] = 60.0,
) -> int:
    """List media files in a manifest, with what their headers say.

    Files that cannot be probed are left out, and named with the reason in OUTPUT.bad.csv.
    Started again after a kill, or when files have changed, it probes what it does not know yet.

    Examples:
      mmssl data index ~/videos -o manifest.csv
      mmssl data index kinetics/train -o train.csv --labels folder
      mmssl data index annotations.csv -o manifest.csv
    """
    from mmssl.cli.terminal import Terminal
    from mmssl.data.cores import cores
    from mmssl_media.journal import clear_halves, open_journal

    job = _Job(source, output, labels == "folder", _kinds(kinds), Counter())
    job.refuse_mistakes()
    terminal = Terminal()
    journal_path = output.with_name(f".{output.name}.index.journal")
    try:
        with (
            open_journal(journal_path, "probe 1") as journal,
            TemporaryFile("w+b", dir=output.parent) as spool,
        ):
            clear_halves(output, job.left_out())
            listed, unknown = _list(job, journal, spool, terminal)
            if not listed:
                raise _nothing(job)
            failures = _probe(spool, unknown, journal, terminal, workers or cores(), time_limit)
            return _write(job, spool, listed, journal, failures, terminal)
    except KeyboardInterrupt:
        print(
            f"mmssl: interrupted; nothing is lost: run the same command to go on with {output}",
            file=sys.stderr,
        )
        return 130


@dataclass(frozen=True)
class _Job:
    """What is asked for.

    ``others`` counts what lies in the folder and is no media, by its ending.
    """

    source: Path
    output: Path
    label_folders: bool
    kinds: Any
    others: Counter[str]

    def refuse_mistakes(self) -> None:
        from mmssl.errors import UserError

        if self.output.suffix.lower() not in (".csv", ".tsv"):
            raise UserError(f"-o {self.output}: a manifest's name ends in .csv or .tsv")
        if not os.path.isdir(self.output.parent):
            raise UserError(f"-o {self.output}: there is no folder {self.output.parent}")
        # Not Path's own, which raise errors where a name is too long.
        if os.path.isdir(self.output):
            raise UserError(f"-o {self.output}: is a folder; name the manifest's file")
        if not os.path.exists(self.source):
            raise UserError(f"{self.source}: no such folder or list")
        if os.path.isdir(self.source):
            return
        if not os.path.isfile(self.source):
            raise UserError(f"{self.source}: is neither a folder nor a list")
        for written in (self.output, self.left_out()):
            if self.source.resolve() == written.resolve():
                what = "the list itself" if written == self.output else "written beside it"
                raise UserError(f"-o {self.output}: {written.name} is {what}; choose another name")
        if self.label_folders:
            raise UserError("--labels folder: is for a folder; a list has a column label")
        if not os.access(self.source, os.R_OK):
            raise UserError(f"{self.source}: may not be read")
        with open(self.text(), "rb") as file:
            if b"\0" in file.read(1024):
                raise UserError(f"{self.source}: is no text; give a folder, or a list of files")

    def left_out(self) -> Path:
        """The list of what is not in the manifest."""
        return self.output.with_name(f"{self.output.name}.bad.csv")

    def text(self) -> Path:
        """The list as text."""
        from mmssl_media.manifest import as_csv

        is_parquet = self.source.suffix.lower() in (".parquet", ".pq")
        return as_csv(self.source) if is_parquet else self.source

    def kept(self) -> list[str]:
        """The columns of the list that the manifest keeps."""
        from mmssl_media.listing import columns_of
        from mmssl_media.probe import COLUMNS

        if self.source.is_dir():
            return ["path", "label"] if self.label_folders else ["path"]
        return [name for name in columns_of(self.text()) if name not in COLUMNS]

    def rows(self) -> Iterator[dict[str, str]]:
        """What there is, by column; the path is one that can be opened."""
        from mmssl_media.listing import columns_of, rows_of, walk

        if self.source.is_dir():
            for path in walk(str(self.source), self.kinds, self.others):
                first, *below = os.path.relpath(path, self.source).split(os.sep)
                yield {"path": path, "label": first if below else ""}
            return
        names, root = columns_of(self.text()), str(self.source.parent)
        for values in rows_of(self.text()):
            row = dict(zip(names, values, strict=True))
            if row["path"] and "://" not in row["path"]:
                row["path"] = os.path.join(root, row["path"])
            yield row


def _kinds(text: str) -> list[str]:
    from mmssl.errors import UserError
    from mmssl_media.listing import KINDS

    kinds = [kind.strip() for kind in text.split(",")]
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"--kinds {text}: {kind!r} is none of {', '.join(KINDS)}")
    return kinds


def _nothing(job: _Job) -> Exception:
    from mmssl.errors import UserError

    if not job.source.is_dir():
        return UserError(f"{job.source}: lists no files")
    kinds = " or ".join(job.kinds)
    return UserError(f"{job.source}: no {kinds} files in it ({_others(job.others)})")


def _others(others: Counter[str]) -> str:
    if not others:
        return "it is empty"
    common = ", ".join(f"{name} {count:,}" for name, count in others.most_common(5))
    more = ", ..." if len(others) > 5 else ""
    return f"{others.total():,} others: {common}{more}"


def _list(job: _Job, journal: "Journal", spool: IO[bytes], terminal: "Terminal") -> tuple[int, int]:
    """Put all rows in their order into the spool; how many, and how many files to probe.

    A line of the spool: the manifest's row; the path to open; the journal's key, empty if there
    is nothing to probe; the file's size; is it to be probed; the reason why it is left out.
    """
    from mmssl_media.listing import Unfit

    kept, base = job.kept(), os.path.abspath(job.output.parent)
    rows = 0
    unknown: set[int] = set()  # hashes: keys would be some 200 bytes longer
    names: set[int] = set()
    with terminal.task("listing", total=None) as advance:
        for row in job.rows():
            key, size, reason = "", "", ""
            path, row["path"] = row["path"], _relative(row["path"], base)
            try:
                key, size = _state(path, row)
                if not job.source.is_dir():
                    name = hash(row.get("id") or (path, row.get("start"), row.get("end")))
                    if name in names:
                        raise Unfit("", "is listed a second time")
                    names.add(name)
            except Unfit as unfit:
                key, reason = "", unfit.reason
            # A list may name a file many times, with other seconds of it.
            first = bool(key) and key not in journal and hash(key) not in unknown
            if first:
                unknown.add(hash(key))
            rows += 1
            values = [row.get(name, "") for name in kept]
            spool.write(json.dumps([values, path, key, size, first, reason]).encode() + b"\n")
            advance()
    return rows, len(unknown)


def _relative(path: str, base: str) -> str:
    """As it stands in the manifest: relative to its folder where it is below, else absolute."""
    if not path or "://" in path:
        return path
    path = os.path.abspath(path)
    return path[len(base) :].lstrip(os.sep) if path.startswith(base.rstrip(os.sep) + "/") else path


def _state(path: str, row: dict[str, str]) -> tuple[str, str]:
    """The journal's key of a file, and its size where it has one."""
    from mmssl_media.listing import Unfit, look, refuse_bad_name

    if not path:
        if row.get("id"):
            return "", ""  # its modalities have files of their own
        raise Unfit("", "the row names neither a file nor an id")
    span = _span(row)
    if "://" in path:
        refuse_bad_name(path)
        return json.dumps([path, span]), str(span[1]) if span else ""
    state = look(path)
    key = [os.path.abspath(path), span, state.st_size, state.st_mtime_ns]
    return json.dumps(key), str(span[1] if span else state.st_size)


def _span(row: dict[str, str]) -> tuple[int, int] | None:
    """The bytes of an archive that the row is about, if it is."""
    from mmssl_media.listing import Unfit

    if not row.get("offset") or not row.get("size"):
        return None
    try:
        return int(row["offset"]), int(row["size"])
    except ValueError:
        raise Unfit("", f"offset {row['offset']!r} or size {row['size']!r} is no number") from None


def _probe(
    spool: IO[bytes],
    unknown: int,
    journal: "Journal",
    terminal: "Terminal",
    workers: int,
    seconds: float,
) -> dict[str, str]:
    """Fill the journal; return why files failed that are not in it, by key.

    Those took too long or ended their process. That may be the machine's fault, so that the next
    start tries them again.
    """
    from mmssl_media.parallel import Failed, in_processes

    def files() -> Iterator[tuple[str, str, Any]]:
        spool.seek(0)
        for line in spool:
            _, path, key, _, first, _ = json.loads(line)
            if first:
                yield key, path, json.loads(key)[1]

    failures: dict[str, str] = {}
    bad = 0
    results = in_processes(_probe_file, files(), workers=workers, seconds=seconds)
    with closing(results), terminal.task("probing", total=unknown) as advance:
        for (key, _, _), found in results:
            if not isinstance(found, Failed):
                journal.add(key, found)
            elif found.cause == "media":
                journal.add(key, {"bad": found.reason})
            else:
                failures[key] = found.reason
            bad += isinstance(found, Failed)
            advance(bad=f"{bad:,}")
    return failures


def _probe_file(item: tuple[str, str, Any]) -> dict[str, str]:
    """In a process of its own."""
    from mmssl import BadMedia, Sample
    from mmssl_media.probe import probe
    from mmssl_media.structure import why_not_media

    _, path, span = item
    sample = Sample(path, path, span=tuple(span) if span else None)
    try:
        return probe(sample)
    except BadMedia as error:
        _, reason = why_not_media(sample, str(error))
        raise BadMedia(reason) from error


def _write(
    job: _Job,
    spool: IO[bytes],
    listed: int,
    journal: "Journal",
    failures: dict[str, str],
    terminal: "Terminal",
) -> int:
    """The manifest, and the list of what is not in it."""
    from mmssl.training.checkpoints import write_atomically
    from mmssl_media.listing import printable
    from mmssl_media.probe import COLUMNS

    bad_path, base = job.left_out(), os.path.abspath(job.output.parent)
    delimiter = "\t" if job.output.suffix.lower() == ".tsv" else ","
    good = bad = 0
    seconds = 0.0
    named: list[str] = []

    def write(manifest: Path, left_out: Path) -> None:
        nonlocal good, bad, seconds
        with (
            open(manifest, "w", encoding="utf-8", newline="") as good_file,
            open(left_out, "w", encoding="utf-8", newline="") as bad_file,
            terminal.task("writing", total=listed) as advance,
        ):
            rows = csv.writer(good_file, delimiter=delimiter, lineterminator="\n")
            reasons = csv.writer(bad_file, lineterminator="\n")
            rows.writerow([*job.kept(), *COLUMNS])
            reasons.writerow(["path", "reason"])
            spool.seek(0)
            for line in spool:
                values, path, key, size, _, reason = json.loads(line)
                found: dict[str, str] = journal.get(key, {})
                reason = reason or failures.get(key) or found.get("bad")
                if not reason:
                    found["bytes"] = size
                    rows.writerow([*values, *(found.get(name, "") for name in COLUMNS)])
                    good += 1
                    seconds += float(found.get("duration") or 0)
                else:
                    reason = printable(reason)
                    reasons.writerow([printable(_relative(path, base)), reason])
                    bad += 1
                    if bad <= _NAMED:
                        named.append(f"{printable(path)}: {reason}")
                advance()

    write_atomically(
        job.output,
        lambda manifest: write_atomically(bad_path, lambda left_out: write(manifest, left_out)),
    )
    if not bad:
        bad_path.unlink()
    for name in named:
        print(f"left out: {name}", file=sys.stderr)
    if bad > len(named):
        print(f"... and {bad - len(named):,} more: {bad_path}", file=sys.stderr)
    if job.others:
        terminal.say(f"no media: {_others(job.others)}")
    if not good:
        job.output.unlink()
        terminal.say(f"none of {bad:,} files can be read; the reasons are in {bad_path}")
        return 1
    out = f"; {bad:,} left out, with reasons in {bad_path}" if bad else ""
    terminal.say(f"{good:,} rows, {seconds / 3600:,.2f} hours of media, in {job.output}{out}")
    return 0
