"""``mmssl completion``: TAB completion of a shell."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

# Read by the shell as it starts, where it does not find completions by itself.
_STARTS = {"bash": "~/.bashrc", "zsh": "~/.zshrc"}


def completion(
    shell: Annotated[
        Literal["bash", "zsh", "fish"] | None,
        typer.Argument(help="The shell; without it the one that $SHELL names."),
    ] = None,
    install: Annotated[
        bool, typer.Option("--install", help="Write the script to its place in your home.")
    ] = False,
) -> None:
    """Print the script that makes TAB complete mmssl, or install it.

    TAB then knows verbs, options, recipes, their fields and values, components, runs and tables.

    Examples:
      mmssl completion --install
      mmssl completion zsh > ~/.zfunc/_mmssl
    """
    from mmssl.completion import SHELLS, script
    from mmssl.errors import UserError

    name = shell or Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        raise UserError(f"which shell? name one: mmssl completion {'|'.join(SHELLS)}")
    if not install:
        print(script(name), end="")
        return
    try:
        for done in _install(name, script(name)):
            print(done)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written: {error.strerror}") from error


def _install(shell: str, text: str) -> list[str]:
    """Write the script where the shell finds it, or where its start then reads it."""
    if shell == "fish":
        config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
        path = Path(config, "fish/completions/mmssl.fish").expanduser()
        _write(path, text)
        return [f"wrote {path}; new shells complete mmssl"]
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    path = Path(data, f"mmssl/completion.{shell}").expanduser()
    _write(path, text)
    start = Path(_STARTS[shell])
    if shell == "zsh" and os.environ.get("ZDOTDIR"):
        start = Path(os.environ["ZDOTDIR"], ".zshrc")
    start = start.expanduser()
    before = start.read_text() if start.exists() else ""
    if str(path) in before:
        return [f"wrote {path}, which {start} reads; new shells complete mmssl"]
    lines = [f"[ -f '{path}' ] && . '{path}'"]
    if shell == "zsh":
        lines.insert(0, "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }")
    if before and not before.endswith("\n"):
        lines[0] = "\n" + lines[0]
    with start.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)
    return [f"wrote {path}", f"added {len(lines)} lines to {start}; new shells complete mmssl"]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
