"""Which parameter of which verb the unfinished word of a command line is, and what fits it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmssl.completion.names import FILES

_OPEN = ("=", ".", "/")


@dataclass(frozen=True)
class Candidate:
    """What the unfinished word may become; `kind` is explained in `mmssl.completion`."""

    value: str
    help: str = ""
    kind: Literal["done", "open", "files"] = "done"


def candidates(root: Any, words: Sequence[str]) -> list[Candidate]:
    """What the last of the words may become.

    Args:
        root: typer's group of all verbs.
        words: what was typed after the program's name; the last one is unfinished, perhaps empty.
    """
    *before, unfinished = words
    command, rest = root, list(before)
    while hasattr(command, "commands"):
        names = [i for i, word in enumerate(rest) if not word.startswith("-")]
        if not names:
            return _sorted(_verbs(command, unfinished))
        name = rest[names[0]]
        if name not in command.commands:
            return []
        command, rest = command.commands[name], rest[names[0] + 1 :]
    return _sorted(_of_verb(command, rest, unfinished))


def _sorted(found: Iterator[Candidate]) -> list[Candidate]:
    return sorted(dict.fromkeys(found), key=lambda each: each.value)


def _verbs(group: Any, unfinished: str) -> Iterator[Candidate]:
    if unfinished.startswith("-"):
        yield from _options(group, [], unfinished)
        return
    for name, command in group.commands.items():
        if name.startswith(unfinished) and not command.hidden:
            yield Candidate(name, command.get_short_help_str(70))


def _of_verb(command: Any, before: Sequence[str], unfinished: str) -> Iterator[Candidate]:
    options = {
        name: parameter
        for parameter in command.params
        if parameter.param_type_name == "option"
        for name in [*parameter.opts, *parameter.secondary_opts]
    }
    waiting: Any = None  # the option whose value comes next
    only_arguments = False
    position = 0
    for word in before:
        if waiting is not None:
            waiting = None
        elif word == "--":
            only_arguments = True
        elif only_arguments or not word.startswith("-"):
            position += 1
        elif word in options and not options[word].is_flag:
            waiting = options[word]
    context = command.make_context(command.name, list(before), resilient_parsing=True)
    if waiting is not None:
        yield from _values(waiting, context, "", unfinished)
        return
    if unfinished.startswith("-") and not only_arguments:
        name, equals, value = unfinished.partition("=")
        if equals and name in options:
            yield from _values(options[name], context, f"{name}=", value)
        else:
            yield from _options(command, before, unfinished)
        return
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    if arguments and (position < len(arguments) or arguments[-1].nargs == -1):
        argument = arguments[min(position, len(arguments) - 1)]
        yield from _values(argument, context, "", unfinished)
    elif not unfinished:
        yield from _options(command, before, "-")


def _options(command: Any, before: Sequence[str], unfinished: str) -> Iterator[Candidate]:
    """Options that fit, without those that were given and are given once."""
    for parameter in command.params:
        if parameter.param_type_name != "option" or parameter.hidden:
            continue
        names = [*parameter.opts, *parameter.secondary_opts]
        if not parameter.multiple and any(word.partition("=")[0] in names for word in before):
            continue
        for name in names:
            if name.startswith(unfinished):
                yield Candidate(name, parameter.help or "")
    if "--help".startswith(unfinished):
        yield Candidate("--help", "Show this message and exit.")


def _values(parameter: Any, context: Any, prefix: str, unfinished: str) -> Iterator[Candidate]:
    items = parameter.shell_complete(context, unfinished)
    if not items and re.search("path|file|directory", parameter.display_type(context).lower()):
        yield Candidate(prefix, kind="files")
    for item in items:
        value = prefix + item.value
        if value.endswith(FILES):
            key = re.match(r"[\w.+-]+=|", value)
            yield Candidate(key[0] if key else "", kind="files")
        else:
            kind: Literal["done", "open"] = "open" if value.endswith(_OPEN) else "done"
            yield Candidate(value, item.help or "", kind)
