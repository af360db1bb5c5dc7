"""Words of bash's command line, and replies as bash wants them.

Bash cuts the unfinished word at ``=`` and ``:``, and puts what it is told in place of the last part
alone. It quotes nothing.
"""

import re
from dataclasses import dataclass, replace

from mmssl.completion.line import Candidate

_SAFE = re.compile(r"[\w@%+=:,./^-]", re.ASCII)


@dataclass(frozen=True)
class Line:
    """What was typed up to the cursor.

    Attributes:
        words: after the program's name, without quotes; the last one is unfinished.
        quote: the quotation mark that is open, if one is.
        kept: of the unfinished word, so many letters stay whatever is replied.
    """

    words: list[str]
    quote: str
    kept: int

    def reply(self, candidate: Candidate) -> Candidate:
        """The part of a candidate that replaces what bash thinks is the word."""
        value = candidate.value[self.kept :]
        if candidate.kind != "files" and not self.quote:
            home = "~" if value.startswith("~") else ""
            value = home + "".join(_escaped(c) for c in value.removeprefix(home))
        return replace(candidate, value=value)


def _escaped(letter: str) -> str:
    return letter if _SAFE.match(letter) or not letter.isascii() else "\\" + letter


def split(line: str, breaks: str) -> Line:
    """Cut a command line as bash does.

    Args:
        line: the command up to the cursor, beginning with the program, perhaps after variables.
        breaks: ``COMP_WORDBREAKS``, letters that end a word for completion.
    """
    words: list[str] = []
    word, begun, quote, kept = "", False, "", 0
    letters = iter(line)
    for letter in letters:
        if quote == "'" or (quote and letter not in '"\\'):
            if letter == quote:
                quote = ""
            else:
                word += letter
        elif letter == "\\":
            following = next(letters, "")
            word += following if not quote or following in '$`"\\' else letter + following
            begun = True
        elif quote:
            quote = ""
        elif letter in "\"'":
            quote, begun, kept = letter, True, len(word)
        elif letter.isspace():
            if word or begun:
                words.append(word)
            word, begun, kept = "", False, 0
        else:
            word, begun = word + letter, True
            if letter in breaks:
                kept = len(word)
    words.append(word)
    while len(words) > 1 and re.match(r"[A-Za-z_]\w*=", words[0]):  # CUDA_VISIBLE_DEVICES=0 mmssl
        del words[0]
    return Line(words[1:] or [""], quote, kept)
