"""The three errors that have a meaning of their own. Everything else is a defect."""


class UserError(Exception):
    """A mistake that its user can mend: the command line prints it in one line and exits with 2.

    The message says where the mistake is and what to do about it, for instance
    ``recipes/my.yaml:14: objective.clusterz: unknown key; did you mean 'clusters'?``
    """


class BadMedia(Exception):
    """A sample cannot be read. It is skipped, counted, and named with this reason."""


class MissingModality(Exception):
    """A sample is sound but lacks the modality asked for: its presence mask becomes false."""


def one_line(said: object) -> str:
    """Somebody else's text, as a line that any terminal can show; an exception's with its name."""
    try:
        text = str(said)
    except Exception as error:  # an exception whose own text fails
        text = f"its text cannot be shown: {type(error).__name__}"
    if isinstance(said, BaseException) and not isinstance(said, UserError):
        text = f"{type(said).__name__}: {text}".removesuffix(": ")
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """The text with escapes for what would steer a terminal or cannot be seen."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
