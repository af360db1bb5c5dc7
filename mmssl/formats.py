"""What mmssl writes and reads again, by format: how older ones become the present one.

A format's number rises when what was written before would be misunderstood. A new field that has a
default raises none: `mmssl.pipeline.run_folder` sees to it that runs go on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmssl import __version__
from mmssl.errors import UserError

Content = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """Of one kind of file.

    Attributes:
        current: the number that is written now; the first was 1.
        migrations: from a number to what makes the next one of it. Where one is missing, older
            files are refused.
        refused: what to do about a file that is too old.
    """

    current: int
    migrations: Mapping[int, Callable[[Content], Content]]
    refused: str

    def migrated(self, content: Content, written: object, where: str) -> Content:
        """The content as the current format has it.

        Args:
            content: as it was read.
            written: the format's number in it.
            where: place for messages.

        Raises:
            UserError: a newer mmssl wrote it, or one that is too old.
        """
        if type(written) is not int or written < 1:
            known = f"a number from 1 to {self.current}"
            raise UserError(f"{where}: its format is {written!r}, not {known}")
        if written > self.current:
            raise UserError(
                f"{where}: was written by a newer mmssl than this one, which is {__version__} (its "
                f"format is {written}, formats up to {self.current} are read): pip install -U mmssl"
            )
        for number in range(written, self.current):
            if number not in self.migrations:
                raise UserError(
                    f"{where}: was written by an older mmssl, in format {number}, which "
                    f"{__version__} does not read any more: {self.refused}"
                )
            content = self.migrations[number](content)
        return content


def _without_states(checkpoint: Content) -> Content:
    """1 to 2: callbacks and trackers keep a state. There were no callbacks, and trackers begin."""
    return {**checkpoint, "callbacks": {}, "trackers": {}}


#: Top level of a recipe's file, as a mapping of nodes; one without number is of the current format.
RECIPE = Format(1, {}, "write it anew")

#: ``checkpoints/step-N.pt``.
CHECKPOINT = Format(
    2,
    {1: _without_states},
    "use the version of mmssl that wrote it, or start under another name",
)

#: ``card.json`` of an exported folder.
CARD = Format(1, {}, "export the run again")

#: What `mmssl embed` writes.
FEATURES = Format(1, {}, "embed the files again")
