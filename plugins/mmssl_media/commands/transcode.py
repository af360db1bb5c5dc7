"""``mmssl data transcode``: smaller copies of files, and a manifest of them."""

import csv
import errno
import hashlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mmssl import Sample
    from mmssl.cli.terminal import Terminal
    from mmssl_media.journal import Journal
    from mmssl_media.manifest import Listed
    from mmssl_media.transcode import Settings

# So many files that were left out are named in the terminal.
_NAMED = 20

# Files, and clips of each, by which the speed-up is measured.
_SAMPLED = 20
_CLIPS = 3

# The list of copies that the manifest does not name, beside it.
_UNUSED = "unused.txt"

# What is wrong with the place of the copies and not with a file.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


def transcode(
    source: Annotated[Path, typer.Argument(help="A manifest, or a folder.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The folder of the copies and their manifest.")
    ],
    short_side: Annotated[
        int, typer.Option(min=2, help="Pixels of the frames' short side; none is enlarged.")
    ] = 256,
    gop: Annotated[int, typer.Option(min=1, help="Frames from keyframe to keyframe.")] = 12,
    crf: Annotated[
        float, typer.Option(min=0, max=51, help="x264's quality: smaller is better and larger.")
    ] = 23,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default as many as there are cores.")
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=0.001, help="Seconds that one file may take.")
    ] = 3600.0,
) -> int:
    """Copy media files so that training reads them fast, and list the copies in a manifest.

    Ids, labels and times stay; sizes and codecs that the manifest tells become the copies'. Started
    again after a kill, it goes on; files that have changed are copied anew. Copies with other
    settings do not replace those that are there: what is not in the new manifest is listed in
    unused.txt. Files that cannot be copied are named and left out; the exit code is 1 then.

    Examples:
      mmssl data transcode manifest.csv -o small --short-side 256 --gop 12
      mmssl data transcode ~/videos -o small --short-side 128
      mmssl run xdc_small data.train.path=small/manifest.csv
    """
    from mmssl.cli.terminal import Terminal
    from mmssl.data.cores import cores
    from mmssl_media.journal import open_journal
    from mmssl_media.transcode import Settings

    data = _data(source, output, short_side)
    terminal = Terminal()
    data.materialise(terminal)
    len(data)  # finds mistakes in the list before anything is written
    _make_folder(output)
    settings = Settings(short_side, gop, crf)
    try:
        with open_journal(output / ".journal", "transcode 1") as journal:
            job = _Job(data, output, settings, journal)
            job.remove_leftovers()
            failures, spans = _copy(job, terminal, workers or cores(), time_limit)
            written = _write(job, failures, spans, terminal)
            if written.rows:
                _report(job, written, terminal)
            return 1 if written.bad or not written.rows else 0
    except KeyboardInterrupt:
        print(
            f"mmssl: interrupted; nothing is lost: run the same command to go on in {output}",
            file=sys.stderr,
        )
        return 130


def _data(source: Path, output: Path, short_side: int) -> "Listed":
    """What is to be copied."""
    from mmssl.errors import UserError
    from mmssl_media.folder import Folder
    from mmssl_media.manifest import Manifest

    if short_side % 2:
        raise UserError(f"--short-side {short_side}: must be even, as H.264's pictures are")
    if output.exists() and not output.is_dir():
        raise UserError(f"-o {output}: is a file; name a folder for the copies")
    if source.is_dir():
        if output.resolve().is_relative_to(source.resolve()):
            raise UserError(f"-o {output}: is in {source}; copies would be copied next time")
        return Folder(path=source)
    if not source.is_file():
        raise UserError(f"{source}: no such folder or manifest")
    if (output / "manifest.csv").resolve() == source.resolve():
        raise UserError(f"-o {output}: its manifest.csv is the source; choose another folder")
    return Manifest(path=source)


def _make_folder(output: Path) -> None:
    from mmssl.errors import UserError

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-o {output}: {error.strerror}") from None


@dataclass(frozen=True)
class _Job:
    """What is asked for.

    The journal knows by file (path and bytes of it) in which state and with which settings it
    was copied, where to, and what the copy's header says; or why it cannot be copied.
    """

    data: "Listed"
    output: Path
    settings: "Settings"
    journal: "Journal"

    def samples(self) -> Iterator["Sample"]:
        for row in range(len(self.data)):
            yield self.data.sample(row)

    def state(self, sample: "Sample") -> list[Any]:
        """Another state of the file, or other settings, make another copy.

        Raises:
            Unfit: there is no such file.
        """
        from mmssl.data.remote import state_of
        from mmssl_media.listing import look

        assert sample.media is not None
        if "://" in sample.media:
            state: list[Any] = [state_of(sample.media)]
        else:
            found = look(sample.media)
            state = [found.st_size, found.st_mtime_ns]
        return [*state, asdict(self.settings)]

    def known(self, sample: "Sample") -> dict[str, Any] | None:
        """What the journal says of the file, if that still holds.

        Of a URL it is what was true when it was asked for last: here nothing is asked for.

        Raises:
            Unfit: there is no such file.
        """
        assert sample.media is not None
        entry: dict[str, Any] | None = self.journal.get(_key(sample), None)
        if "://" not in sample.media:
            state = self.state(sample)
            if entry is None or entry["state"] != state:
                return None
            if "bad" in entry:
                return entry
        elif entry is None or "bad" in entry or entry["state"][-1] != asdict(self.settings):
            return None
        copy = self.output / entry["path"]
        if not copy.is_file() or copy.stat().st_size != entry["bytes"]:
            return None
        return entry

    def remove_leftovers(self) -> None:
        """What processes that were killed had begun to write."""
        for leftover in (self.output / "files").glob("*/.*.tmp"):
            leftover.unlink(missing_ok=True)
        # Soon it is not true any more, and somebody may remove what it names.
        (self.output / _UNUSED).unlink(missing_ok=True)


def _key(sample: "Sample") -> str:
    return json.dumps([sample.media, sample.span])


def _name(sample: "Sample", settings: "Settings") -> str:
    """Folder and name of a copy, without ending: short, legible, and no other copy's.

    Copies with other settings have other names: the manifest that is there stays true until it is
    replaced.
    """
    key = json.dumps([_key(sample), asdict(settings)])
    digest = hashlib.blake2b(key.encode(), digest_size=8)
    stem = re.sub(r"[^\w.-]+", "_", Path(sample.media or "").stem)
    stem = stem.encode("utf-8", "ignore")[:100].decode("utf-8", "ignore")
    name = digest.hexdigest()
    return f"files/{name[:2]}/{stem}-{name[2:]}"


def _copy(
    job: _Job, terminal: "Terminal", workers: int, seconds: float
) -> tuple[dict[str, str], bool]:
    """Make the copies that are missing.

    Returns:
        Why some failed that are not in the journal: they took too long, ended their process, or
        lie behind a URL. That may be the machine's fault, or the network's, so that the next
        start tries them again. And whether any sample is a part of its file.
    """
    from mmssl.errors import UserError
    from mmssl_media.listing import Unfit
    from mmssl_media.parallel import Failed, in_processes

    failures: dict[str, str] = {}
    spans = False
    bad = 0

    def items() -> Iterator[_Item]:
        nonlocal spans
        seen: set[int] = set()  # hashes: keys would be some 200 bytes longer
        for sample in job.samples():
            spans = spans or bool(sample.start or sample.end)
            key = _key(sample)
            if sample.media is not None and hash(key) not in seen:
                seen.add(hash(key))
                try:
                    entry = job.known(sample)
                    if "://" in sample.media:  # the network is slow: processes ask side by side
                        yield sample, None, entry
                        continue
                    if entry is None:
                        yield sample, job.state(sample), None
                        continue
                except Unfit:
                    pass
            advance()

    def work(item: _Item) -> dict[str, Any]:
        sample, state, entry = item
        if state is None:
            state = job.state(sample)
            if entry is not None and entry["state"] == state:
                return entry
        return {"state": state, **_copy_one(job, sample)}

    with terminal.task("copying", total=len(job.data)) as advance:
        results = in_processes(work, items(), workers=workers, seconds=seconds)
        with closing(results):
            for (sample, state, entry), found in results:
                key = _key(sample)
                if not isinstance(found, Failed):
                    if "disk" in found:
                        raise UserError(f"{job.output}: cannot be written: {found['disk']}")
                    if found != entry:
                        job.journal.add(key, found)
                elif found.cause == "media" and state is not None:
                    job.journal.add(key, {"state": state, "bad": found.reason})
                else:
                    failures[key] = found.reason
                bad += isinstance(found, Failed)
                advance(bad=f"{bad:,}")
    return failures, spans


# A sample, the state of its file (None of a URL, which is not known yet), and what the journal
# says of a URL.
_Item = tuple["Sample", list[Any] | None, dict[str, Any] | None]


def _copy_one(job: _Job, sample: "Sample") -> dict[str, Any]:
    """In a process of its own."""
    import av

    from mmssl import BadMedia, Sample
    from mmssl_media.probe import probe
    from mmssl_media.transcode import transcode

    folder, name = os.path.split(_name(sample, job.settings))
    try:
        file = transcode(sample, job.output / folder, name, job.settings)
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or str(error)
        if error.errno in _DISK:
            return {"disk": reason}
        raise BadMedia(reason) from error
    path = os.path.join(folder, file)
    copy = str(job.output / path)
    size = sample.span[1] if sample.span else _size(sample)
    return {
        "path": path,
        "before": size,
        "bytes": os.path.getsize(copy),
        "header": probe(Sample(copy, copy)),
    }


def _size(sample: "Sample") -> int:
    assert sample.media is not None
    return 0 if "://" in sample.media else os.path.getsize(sample.media)


@dataclass
class _Written:
    """What stands in the manifest, counted while it is written.

    Attributes:
        rows: in the manifest.
        bad: rows that are not.
        before: bytes of the originals, as far as their size is known.
        after: bytes of the copies.
        names: hashes of the copies' paths.
        pairs: some originals and their copies.
    """

    rows: int = 0
    bad: int = 0
    before: int = 0
    after: int = 0
    names: set[int] = field(default_factory=set)
    pairs: list[tuple["Sample", "Sample"]] = field(default_factory=list)


class _NothingToList(Exception):
    """No row could be copied: the manifest that may be there is kept."""


def _write(job: _Job, failures: dict[str, str], spans: bool, terminal: "Terminal") -> _Written:
    """Replace the manifest, unless nothing could be copied."""
    from mmssl import Sample
    from mmssl.training.checkpoints import write_atomically
    from mmssl_media.listing import printable
    from mmssl_media.probe import COLUMNS

    fields = list(job.data.sample(0).fields)
    labelled = bool(job.data.classes)
    header = ["id", "path", *["label"] * labelled, *["start", "end"] * spans, *fields]
    every = max(1, len(job.data) // _SAMPLED)
    written = _Written()
    named: list[str] = []

    def count(row: int, sample: "Sample", entry: dict[str, Any]) -> None:
        if not entry["path"] or hash(entry["path"]) in written.names:
            return
        written.names.add(hash(entry["path"]))
        written.before += entry["before"]
        written.after += entry["bytes"]
        if len(written.pairs) < _SAMPLED and row >= len(written.pairs) * every:
            copy = Sample(sample.id, str(job.output / entry["path"]), sample.start, sample.end)
            written.pairs.append((sample, copy))

    def write(path: Path) -> None:
        with (
            open(path, "w", encoding="utf-8", newline="") as file,
            terminal.task("writing", total=len(job.data)) as advance,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            for row, sample in enumerate(job.samples()):
                advance()
                entry = _outcome(job, sample, failures)
                if "bad" in entry:
                    written.bad += 1
                    if written.bad <= _NAMED:
                        named.append(f"{printable(sample.id)}: {printable(entry['bad'])}")
                    continue
                written.rows += 1
                count(row, sample, entry)
                values = [sample.id, entry["path"]]
                if labelled:
                    values.append("" if sample.label is None else job.data.classes[sample.label])
                if spans:
                    values.append(f"{sample.start!r}" if sample.start else "")
                    values.append("" if sample.end is None else f"{sample.end!r}")
                said = {**sample.fields}
                if entry["path"]:
                    now = {**entry["header"], "bytes": str(entry["bytes"])}
                    said |= {name: now.get(name, "") for name in COLUMNS if name in said}
                writer.writerow([*values, *(said[name] for name in fields)])
        if not written.rows:
            raise _NothingToList

    manifest = job.output / "manifest.csv"
    with suppress(_NothingToList):
        write_atomically(manifest, write)
    for line in named:
        print(f"left out: {line}", file=sys.stderr)
    if written.bad > len(named):
        print(f"... and {written.bad - len(named):,} more", file=sys.stderr)
    out = f"; {written.bad:,} left out" if written.bad else ""
    if written.rows:
        terminal.say(f"{written.rows:,} rows in {manifest}{out}")
    else:
        kept = f"; {manifest} is as it was before" if manifest.exists() else ""
        terminal.say(f"none of {written.bad:,} rows could be copied{kept}")
    return written


def _outcome(job: _Job, sample: "Sample", failures: dict[str, str]) -> dict[str, Any]:
    from mmssl_media.listing import Unfit

    if sample.media is None:
        return {"path": ""}  # a row for modalities with files of their own
    if (reason := failures.get(_key(sample))) is not None:
        return {"bad": reason}
    try:
        return job.known(sample) or {"bad": "it changed while it was copied"}
    except Unfit as unfit:
        return {"bad": unfit.reason}


def _report(job: _Job, written: _Written, terminal: "Terminal") -> None:
    """What is not used any more, sizes before and after, and how fast some files are read."""
    _list_unused(job, written, terminal)
    if not (pairs := written.pairs):
        return
    share = f" ({written.after / written.before:.0%})" if written.before else ""
    terminal.say(
        f"{written.before / 1e6:,.1f} MB before, {written.after / 1e6:,.1f} MB after{share}"
    )
    slow, fast = _speeds(pairs, job.settings.short_side, terminal)
    if slow and fast:
        terminal.say(
            f"one process reads {slow:.1f} clips/s of the originals, {fast:.1f} of the copies: "
            f"{fast / slow:.1f} times as many (8 frames and 2 s of sound, {_CLIPS} clips of each "
            f"of {len(pairs)} files, from memory where the machine keeps them)"
        )


def _list_unused(job: _Job, written: _Written, terminal: "Terminal") -> None:
    """Name the copies that the manifest does not name; a run may still be reading them."""
    from mmssl.training.checkpoints import write_atomically

    unused = size = 0

    def write(path: Path) -> None:
        nonlocal unused, size
        with (
            open(path, "w", encoding="utf-8") as out,
            terminal.task("looking for copies that are not used", total=None) as advance,
        ):
            for folder in sorted((job.output / "files").glob("??")):
                for file in sorted(folder.iterdir()):
                    name = str(file.relative_to(job.output))
                    if hash(name) not in written.names:
                        unused, size = unused + 1, size + file.stat().st_size
                        out.write(f"{name}\n")
                    advance()

    listed = job.output / _UNUSED
    write_atomically(listed, write)
    if not unused:
        listed.unlink()
        return
    remove = f"(cd {shlex.quote(str(job.output))} && xargs -d '\\n' rm -- < {_UNUSED})"
    terminal.say(
        f"{unused:,} older copies ({size / 1e6:,.1f} MB) are not in the manifest; when no run "
        f"reads them any more: {remove}"
    )


def _speeds(
    pairs: list[tuple["Sample", "Sample"]], short_side: int, terminal: "Terminal"
) -> tuple[float, float]:
    """Clips per second of originals and of copies, read in turns."""
    import numpy as np

    from mmssl import BadMedia, MissingModality
    from mmssl.data.loading import training_window
    from mmssl.data.media import Media
    from mmssl_media.audio import Audio
    from mmssl_media.video import Video

    modalities = [Video(short_side=short_side, crop=short_side * 7 // 8), Audio()]
    seconds = max(modality.seconds for modality in modalities)
    spent, clips = [0.0, 0.0], [0, 0]
    with terminal.task("measuring", total=_CLIPS * len(pairs)) as advance:
        for number in range(-1, _CLIPS):  # the first time to bring files into memory
            for place, pair in enumerate(pairs):
                for side, sample in enumerate(pair):
                    rng = np.random.default_rng([max(0, number), place])
                    began = time.perf_counter()
                    read = 0
                    try:
                        with Media(sample) as media:
                            window = training_window(media.start, media.end, seconds, rng)
                            for modality in modalities:
                                try:
                                    modality.read(media, window, rng)
                                    read = 1
                                except MissingModality:
                                    continue
                    except BadMedia:
                        read = 0
                    if number >= 0:
                        spent[side] += time.perf_counter() - began
                        clips[side] += read
                if number >= 0:
                    advance()
    return clips[0] / spent[0], clips[1] / spent[1]
