"""Files behind a URL, and parts of them, as seekable files."""

import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

import fsspec

from mmssl.contracts import Sample
from mmssl.errors import BadMedia, UserError

T = TypeVar("T")

# Bytes that are fetched at a time: a request to a distant store takes as long as so many do.
_BLOCK = 1 << 20

# So many of them are kept while a file is open: a container's index lies at its beginning or
# end, and sound and pictures side by side between.
_KEPT = 16

# How file systems call what changes with a file: HTTP's is "Last-Modified".
_MARKS = ("mtime", "ETag", "etag", "LastModified", "last_modified", "Last-Modified", "updated")

# Seconds to wait before asking once more: a busy network is no reason to skip a sample.
_PAUSES = (0.2, 1.0)


@contextmanager
def open_url(url: str, span: tuple[int, int] | None) -> Iterator[Any]:
    """Open what an fsspec URL names; only what is read of it is fetched.

    Args:
        url: such as ``s3://bucket/shard-00000.tar`` or ``https://host/a.mp4``.
        span: first byte and number of bytes; None for the whole file.

    Raises:
        OSError: it is not there, or cannot be reached.
        ValueError: there is no such protocol.
        ImportError: the protocol's package is not installed.
    """
    # Found anew in every process: connections do not survive a fork.
    system, path = fsspec.core.url_to_fs(url)
    if span is None:
        size = persistently(lambda: system.size(path), url)
        if size is None:
            raise OSError(f"{url}: the server does not say how long it is")
        span = 0, int(size)
    with RemotePart(system, path, *span) as part:
        yield part


@contextmanager
def open_bytes(sample: Sample) -> Iterator[tuple[Any, int]]:
    """A sample's bytes, and no others, as a seekable file, and how many there are.

    Args:
        sample: with a media file: local or remote, whole or a part of an archive.

    Raises:
        OSError: it is not there, cannot be reached, or ends before the sample does.
    """
    path, span = sample.media or "", sample.span
    with open_url(path, span) if "://" in path else open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if "://" in path or span is None:
            yield file, size
            return
        first, count = span
        if first + count > size:
            raise OSError(f"{path} ends at byte {size}, before the sample does")
        yield Part(file, first, count), count


def check_protocol(url: str) -> None:
    """Refuse a URL that nothing here can open.

    Raises:
        UserError: there is no such protocol, or its package is not installed.
    """
    for link in url.split("::"):
        protocol = link.partition("://")[0]
        try:
            fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            package = getattr(error.__cause__, "name", None) or protocol
            raise UserError(f"{url}: cannot be opened ({error}): pip install {package}") from None
        except ValueError:
            raise UserError(f"{url}: there is no protocol {protocol!r}") from None


def check_parts(url: str) -> None:
    """Refuse a web server that sends whole files whatever is asked for; it is not made to send one.

    Raises:
        UserError: it does, or does not answer.
    """
    system, path = fsspec.core.url_to_fs(url)
    if "http" not in system.protocol:
        return  # the protocols of other stores know parts of files

    def ask() -> bool:
        with system.open(path, cache_type="none") as file:
            try:
                file.seek(1)
                file.read(1)
            except ValueError:  # the answer is not read on
                return False
        return True

    try:
        gives = persistently(ask, url)
    except OSError as error:
        raise UserError(str(error)) from None
    if not gives:
        raise UserError(
            f"{url}: the server does not give parts of files (Range requests), so every sample "
            "would fetch a whole shard; use another server, or copy the shards"
        )


class Part(io.RawIOBase):
    """Some consecutive bytes of a file, as a file of their own.

    Args:
        file: seekable.
        first: its byte that is the part's first.
        count: bytes in the part.
    """

    def __init__(self, file: BinaryIO, first: int, count: int) -> None:
        self._file = file
        self._first = first
        self._count = count
        self._position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a byte of the part."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._count}[whence]
        if base + offset < 0:
            raise ValueError(f"byte {base + offset} is before the beginning")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The byte of the part that is read next."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """At most so many bytes; all that are left for -1."""
        left = max(0, self._count - self._position)
        self._file.seek(self._first + self._position)
        data = self._file.read(left if size < 0 else min(size, left))
        self._position += len(data)
        return data


class RemotePart(Part):
    """The same of a remote file: whole blocks are fetched, and nothing outside of the part.

    Args:
        system: the fsspec file system.
        path: the file's name in it.
        first: its byte that is the part's first.
        count: bytes in the part.
        block: bytes that are fetched at a time.
    """

    def __init__(self, system: Any, path: str, first: int, count: int, block: int = _BLOCK) -> None:
        super().__init__(system, first, count)
        self._path = path
        self._block = block
        self._blocks: dict[int, bytes] = {}

    def read(self, size: int = -1) -> bytes:
        """So many bytes, or as many as are left; all that are left for -1.

        Raises:
            OSError: they cannot be fetched.
        """
        left = max(0, self._count - self._position)
        end = self._position + (left if size < 0 else min(size, left))
        parts = []
        while self._position < end:
            number, skip = divmod(self._position, self._block)
            part = self._fetched(number)[skip : skip + end - self._position]
            parts.append(part)
            self._position += len(part)
        return b"".join(parts)

    def _fetched(self, number: int) -> bytes:
        data = self._blocks.pop(number, None)
        if data is None:
            start = number * self._block
            length = min(self._block, self._count - start)
            data = fetch(self._file, self._path, self._first + start, length)
            if len(self._blocks) == _KEPT:
                del self._blocks[next(iter(self._blocks))]
        self._blocks[number] = data  # the one used last stands last
        return data


def state_of(url: str) -> list[str]:
    """What tells whether a remote file is the same as before: its size, and what dates it.

    Empty where it cannot be asked for.
    """
    try:
        system, path = fsspec.core.url_to_fs(url)
        return version_of(system.info(path))
    except BadMedia:  # out of time
        raise
    except Exception:  # each store's package has errors of its own; reading will say what is wrong
        return []


def version_of(info: dict[str, Any]) -> list[str]:
    """The same, from what an fsspec file system says of a file."""
    return [str(info.get("size", "")), *(str(info.get(mark, "")) for mark in _MARKS)]


def fetch(system: Any, path: str, first: int, count: int) -> bytes:
    """So many bytes of a remote file.

    Raises:
        OSError: they cannot be fetched, or the file ends before.
    """
    data = persistently(lambda: system.cat_file(path, start=first, end=first + count), path)
    if len(data) > count:
        raise OSError(f"{path}: the server does not give parts of files")
    if len(data) < count:
        raise OSError(f"{path} ends at byte {first + len(data)}")
    return data


def persistently(ask: Callable[[], T], path: str) -> T:
    """What a remote file system answers, asked up to three times.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it does not answer; with the reason.
    """
    for pause in (*_PAUSES, None):
        try:
            return ask()
        except BadMedia:  # out of time
            raise
        # Each store's package has errors of its own, which are no OSError.
        except Exception as error:
            # HTTP's says of whatever went wrong that there is no such file.
            found = error.__cause__ or error
            missing = isinstance(found, FileNotFoundError) or getattr(found, "status", 0) == 404
            if missing or isinstance(found, PermissionError):
                raise
            if pause is None:
                reason = str(found) or type(found).__name__
                raise OSError(f"{path}: {reason}") from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")
