"""A dataset that is a folder of media files."""

import csv
import io
import os
from collections import Counter
from functools import cached_property
from typing import Literal

from pydantic import DirectoryPath

from mmssl.errors import UserError
from mmssl.training.progress import Progress
from mmssl_media.listing import KINDS, printable, walk
from mmssl_media.manifest import Listed

# So many files that no list can name are named.
_NAMED = 5


class Folder(Listed):
    """Every media file below a folder: video, sound and pictures, by their endings.

    A file's class is the folder it is in, the first below `path`; files that lie directly in
    `path` have none. A sample's id is its file's path relative to the folder, so that it is the
    same in a manifest of the folder and in shards made of it. What is hidden is passed over, as
    are links to folders. The folder is listed once, when first used; a manifest made by `mmssl
    data index` needs no listing and knows which files are sound.

    Args:
        path: the folder.
        labels: "folder" for classes; "none" where folders are none.
        classes: names of all classes in order, so that folders that lack some of them agree.
    """

    def __init__(
        self,
        *,
        path: DirectoryPath,
        labels: Literal["folder", "none"] = "folder",
        classes: list[str] | None = None,
    ) -> None:
        root = os.path.abspath(path)
        super().__init__(root, root=root, classes=classes, buffer=1)
        self._labels = labels
        self._unlisted: list[str] = []

    @cached_property
    def _text(self) -> bytes:
        others: Counter[str] = Counter()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", "label"] if self._labels == "folder" else ["path"])
        before = text.tell()
        for path in walk(self.root, KINDS, others):
            if not nameable(path):
                self._unlisted.append(printable(path))
                continue
            name = os.path.relpath(path, self.root)
            first, *below = name.split(os.sep)
            writer.writerow([name, first if below else ""][: 1 + (self._labels == "folder")])
        if text.tell() == before:
            found = ", ".join(f"{ending} {count:,}" for ending, count in others.most_common(5))
            hint = "; for tar files: use: shards" if ".tar" in others else ""
            raise UserError(f"{self.path}: no media files in it ({found or 'it is empty'}){hint}")
        return text.getvalue().encode()

    def _place(self, line: int) -> str:
        return self.root

    def materialise(self, progress: Progress) -> None:
        """List the folder, and say which files no list can name."""
        len(self)
        for name in self._unlisted[:_NAMED]:
            progress.say(f"left out, as no list can name it: {name}")
        if len(self._unlisted) > _NAMED:
            progress.say(f"... and {len(self._unlisted) - _NAMED:,} more")


def nameable(path: str) -> bool:
    """Can a list name the path?"""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return "\n" not in path and "\r" not in path
