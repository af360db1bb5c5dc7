"""Text: captions and narrations as the numbers of their words."""

import json
import re
import unicodedata
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, FilePath
from torch import Tensor

from mmssl import BadMedia, Draws, Media, MissingModality, Modality, Sample, UserError, Window

# Signs that a script writes around its letters, such as vowels in Devanagari.
_MARKS = "".join(chr(c) for c in range(0x300, 0x20000) if unicodedata.category(chr(c))[0] == "M")
_LETTERS = rf"(?:[^\W_][{re.escape(_MARKS)}]*)+"
# Letters and digits, and apostrophes between them.
_WORD = re.compile(rf"{_LETTERS}(?:'{_LETTERS})*")


def words_of(text: str) -> list[str]:
    """The words of a text, in order.

    The text is lower-cased and composed (NFC), and typographic apostrophes become plain ones.
    Then a word is a longest run of letters, with their marks, and digits of any script, with
    single apostrophes between them: ``Don't pre-heat at 350°F`` has the words don't, pre, heat, at,
    350 and f.
    """
    text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").lower()
    return _WORD.findall(unicodedata.normalize("NFC", text))


def caption_texts(sample: Sample) -> list[str]:
    """A sample's texts, its own first: the field ``texts``, a JSON list, or else ``text``.

    Raises:
        BadMedia: ``texts`` is no JSON list of texts.
    """
    several = sample.fields.get("texts", "")
    if not several.strip():
        own = sample.fields.get("text", "")
        return [own] if own.strip() else []
    try:
        texts = json.loads(several)
    except (ValueError, RecursionError):
        texts = None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadMedia("its field texts is no JSON list of texts")
    return texts


class Text(Modality):
    """Captions, such as what is said around a clip, as numbers of words.

    A sample's texts are its field ``texts``, a JSON list with the nearest caption first, or else
    its field ``text``. Words are lower-cased runs of letters and digits, with apostrophes between
    them. A word's number is 1 plus the number of its line in the vocabulary, counted from 0, so
    that 0 is padding; a word that stands there twice has the first one's. Of a text that is longer
    the first words are taken. A sample lacks the modality where it has no caption, or where its
    first one has no known word; further texts without any are passed over, and where there are
    too few, rows of zeros follow.

    The defaults are VATT's: 16 words of 2^16, and five narrations to choose from (`texts: 1` where
    there is one caption to a video).

    Args:
        vocabulary: a text file in UTF-8 with a word a line, the most frequent first, as `mmssl
            data vocabulary` writes it and word2vec orders its own. Lines are taken as they are: one
            with capitals matches no word.
        size: numbers there are, with that of padding: lines beyond are not used.
        words: words of each text.
        texts: texts of each sample.
        unknown: "drop" passes over words that are not in the vocabulary; "token" gives them all
            the last number, size - 1, which no line has then.
    """

    kind = "text"
    dtype = torch.int64

    def __init__(
        self,
        *,
        vocabulary: FilePath,
        size: Annotated[int, Field(ge=3, le=2**31)] = 2**16,
        words: Annotated[int, Field(gt=0)] = 16,
        texts: Annotated[int, Field(gt=0)] = 5,
        unknown: Literal["drop", "token"] = "drop",
    ) -> None:
        self.size = size
        self.words = words
        self.texts = texts
        self.shape = (texts, words)
        self._unknown = size - 1 if unknown == "token" else 0
        self._numbers = _numbers(vocabulary, size - 2 if self._unknown else size - 1)

    def ids(self, text: str) -> list[int]:
        """The numbers of a text's first words, at most `words`; empty where none is known."""
        found = (self._numbers.get(word, self._unknown) for word in words_of(text))
        numbers = list(islice(filter(None, found), self.words))
        return numbers if any(number != self._unknown for number in numbers) else []

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        """``[texts, words]`` int64, zeros behind the last word and the last text.

        Raises:
            MissingModality: there is no caption, or no known word in the first.
            BadMedia: the field ``texts`` is no JSON list of texts.
        """
        texts = caption_texts(media.sample)
        if not texts:
            raise MissingModality("no caption")
        if not self.ids(texts[0]):
            raise MissingModality("no word of its caption is in the vocabulary")
        numbers = self.empty()
        for row, ids in enumerate(islice(self._known(texts), self.texts)):
            numbers[row, : len(ids)] = torch.tensor(ids)
        return numbers

    def _known(self, texts: list[str]) -> Iterator[list[int]]:
        """Of each text with known words, their numbers."""
        return filter(None, map(self.ids, texts))

    def empty(self) -> Tensor:
        """``[texts, words]`` int64 zeros."""
        return torch.zeros(self.shape, dtype=torch.int64)

    def prepare(self, batch: Tensor, draws: Draws | None) -> Tensor:
        """``[B, texts, words]`` int64, as it was read."""
        return batch


def _numbers(vocabulary: Path, most: int) -> dict[str, int]:
    """The numbers of the words on the first lines of a file, at most so many."""
    numbers: dict[str, int] = {}
    try:
        with open(vocabulary, encoding="utf-8-sig") as lines:
            for number, line in enumerate(islice(lines, most), start=1):
                numbers.setdefault(line.rstrip("\n"), number)
    except UnicodeDecodeError:
        raise UserError(f"{vocabulary}: is no text in UTF-8; write a word a line") from None
    if not any(words_of(word) == [word] for word in numbers):
        raise UserError(
            f"{vocabulary}: no line is a word in small letters; `mmssl data vocabulary` makes such "
            "a file of a dataset's captions"
        )
    return numbers
