"""Files behind a URL, and parts of them, as seekable files."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import fsspec


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
    with fsspec.open(url, "rb") as file:
        yield file if span is None else Part(file, *span)


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
