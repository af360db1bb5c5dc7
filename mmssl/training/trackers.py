"""TensorBoard. ``log.jsonl`` is the run's own record and always written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from mmssl.contracts import Tracker


class TensorBoard(Tracker):
    """Writes every figure of the log to ``tensorboard/`` in the run folder."""

    def open(self, folder: Path, step: int) -> None:
        """Go on after ``step``; TensorBoard hides what an earlier process wrote beyond it."""
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def track(self, record: Mapping[str, Any]) -> None:
        """One scalar for each number in the record, named after its kind."""
        for name, value in record.items():
            if isinstance(value, int | float) and name not in ("step", "round"):
                self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()
