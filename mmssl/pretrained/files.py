"""Media files, or samples, as a dataset."""

import os
from collections.abc import Sequence
from pathlib import Path

from mmssl.contracts import Dataset, Sample

Source = str | Path | Sample


class Files(Dataset):
    """Some files, each a sample, in the order given.

    Args:
        sources: paths or URLs; a `Sample` for what is no file, such as text.
        start: where in each file its sample begins, in seconds.
        end: where it ends; None for the end of the file.
    """

    def __init__(
        self, sources: Sequence[Source], *, start: float = 0.0, end: float | None = None
    ) -> None:
        self._samples = [
            source
            if isinstance(source, Sample)
            else Sample(os.fspath(source), os.fspath(source), start, end)
            for source in sources
        ]

    def __len__(self) -> int:
        return len(self._samples)

    def sample(self, index: int) -> Sample:
        """The sample of the file at ``index``."""
        return self._samples[index]
