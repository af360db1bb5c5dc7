"""ImageNet: the pictures of ILSVRC 2012."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import DirectoryPath

from mmssl.errors import UserError
from mmssl_media.benchmarks.official import Official, Row, fail, in_folder, lines, within

_DEVKIT = "ILSVRC2012_devkit_t12/data"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
_WNID = re.compile(r"n\d{8}")


class ImageNet(Official):
    """ImageNet (ILSVRC 2012): 1,281,167 pictures of 1,000 classes, and 50,000 for validation.

    Read are the pictures, ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``. Where ``val`` has no
    folders but the pictures as they are in the archive, their classes are read from the
    development kit, ``ILSVRC2012_devkit_t12/data``. Classes are in the order of their wnids
    (``n01440764`` is the first), those of ``train`` if it is there. With ``words.txt`` or
    ``LOC_synset_mapping.txt`` in `path` a class's name has its words, too: ``n01440764 tench``.

    The modality `image` reads them; `video` makes of each a clip in which nothing moves.

    Args:
        path: the folder with ``train`` and ``val``.
        split: "train" or "val".
    """

    columns = ("label",)
    kinds = ("image",)

    def __init__(self, *, path: DirectoryPath, split: Literal["train", "val"]) -> None:
        self._folder = path
        media = within(path, split, source=f"{_ARCHIVES[split]} contains what belongs there")
        super().__init__(media, media)
        self.source = f"{_ARCHIVES[split]} contains them"
        self._kit = Path(path, _DEVKIT)
        self._is_flat = not _wnids(media)
        if self._is_flat:
            if split == "train":
                raise UserError(
                    f"{media}: has no folder of a class, such as n01440764; "
                    f"{_ARCHIVES[split]} contains a .tar for each"
                )
            for name in (_TRUTH, "meta.mat"):
                within(path, f"{_DEVKIT}/{name}", source="ILSVRC2012_devkit_t12.tar.gz contains it")

    @cached_property
    def _synsets(self) -> dict[int, str]:
        """The classes' wnids by their numbers in the development kit."""
        from scipy.io import loadmat

        file = self._kit / "meta.mat"
        try:
            synsets = loadmat(file, squeeze_me=True)["synsets"]
            fields = ("ILSVRC2012_ID", "WNID", "num_children")
            rows = zip(*(synsets[name].tolist() for name in fields), strict=True)
            return {int(number): str(wnid) for number, wnid, children in rows if children == 0}
        except Exception as error:  # scipy says in many ways that a file is none of MATLAB's
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise UserError(
                f"{file}: is not the table of classes of the development kit ({reason})"
            ) from error

    @cached_property
    def _names(self) -> dict[str, str]:
        """The classes' names by wnid, in the order of these."""
        if train := _wnids(self._folder / "train"):
            wnids = train
        else:
            wnids = list(self._synsets.values()) if self._is_flat else _wnids(Path(self.root))
        words = self._words()
        return {wnid: f"{wnid} {words.get(wnid, '')}".strip() for wnid in sorted(wnids)}

    def _words(self) -> dict[str, str]:
        """What classes are called: the first of their names."""
        for name in ("words.txt", "LOC_synset_mapping.txt"):
            if (file := self._folder / name).is_file():
                pairs = (line.split(maxsplit=1) for _, line in lines(file))
                return {wnid: " ".join(rest).partition(",")[0] for wnid, *rest in pairs}
        return {}

    def _class_names(self) -> Sequence[str]:
        return list(self._names.values())

    def _key(self, path: str) -> str:
        return in_folder(path)

    def _rows(self, files: Mapping[str, str]) -> Iterator[Row]:
        if self._is_flat:
            yield from self._flat()
            return
        empty = set(_wnids(Path(self.root)))
        for key in files:
            wnid = key.partition("/")[0]
            empty.discard(wnid)
            if wnid in self._names:
                yield key, [self._names[wnid]]
            elif _WNID.fullmatch(wnid):
                raise UserError(f"{self.root}: class {wnid} is not in {self._folder / 'train'}")
        if empty:
            raise UserError(
                f"{self.root}: {len(empty):,} folders of classes hold no picture, such as "
                f"{min(empty)}; {self.source}"
            )

    def _flat(self) -> Iterator[Row]:
        """The pictures of the validation, which are numbered, and their classes."""
        file = self._kit / _TRUTH
        for place, (number, line) in enumerate(lines(file), 1):
            wnid = self._synsets.get(int(line)) if line.isdigit() else None
            if wnid is None or wnid not in self._names:
                fail(file, number, f"{line!r} is no class's number in meta.mat")
            yield f"ILSVRC2012_val_{place:08d}", [self._names[wnid]]


def _wnids(folder: Path) -> list[str]:
    """Names of the classes' folders."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as found:
        return sorted(e.name for e in found if _WNID.fullmatch(e.name) and e.is_dir())
