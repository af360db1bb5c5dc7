"""Real shells in a terminal of their own: what is typed, TAB, and what then stands in the line."""

import contextlib
import fcntl
import os
import pty
import shutil
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import pytest

#: Ctrl-G saves the line that is being typed, in each shell's own way.
_SAVE = {
    "bash": """save() { printf '%s' "$READLINE_LINE" > line.new; mv line.new line; }
bind -x '"\\C-g": save'
""",
    "zsh": """save() { print -rn -- "$BUFFER" > line.new; mv line.new line; }
zle -N save; bindkey '^G' save; bindkey -e '^G' save
""",
    "fish": """function save; commandline > line.new; mv line.new line; end
bind \\cg save
""",
}

_START = {
    "bash": (".bashrc", ["bash", "-i"]),
    "zsh": (".zshrc", ["zsh", "-i"]),
    "fish": (".config/fish/config.fish", ["fish", "-i"]),
}


def need(shell: str) -> None:
    """A test of a shell is skipped where there is none, and fails in CI."""
    if shutil.which(shell) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"needs {shell}")
        pytest.skip(f"needs {shell}")


class Shell:
    """An interactive shell, at home in a folder, whose start files it reads.

    Args:
        name: "bash", "zsh" or "fish".
        home: its home and working directory.
        environ: its variables, but for ``HOME``.
    """

    def __init__(self, name: str, home: Path, environ: Mapping[str, str]) -> None:
        need(name)
        start, command = _START[name]
        (home / start).parent.mkdir(parents=True, exist_ok=True)
        with (home / start).open("a") as file:
            file.write(_SAVE[name])
        self._line = home / "line"
        self.printed = b""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x32\0\xc8\0\0\0\0\0")  # 50 rows of 200
        variables = {k: v for k, v in environ.items() if k not in ("ZDOTDIR", "BASH_ENV", "ENV")}
        self._process = subprocess.Popen(
            command,
            cwd=home,
            env={**variables, "HOME": str(home), "TERM": "xterm", "PS1": "> ", "HISTFILE": ""},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        threading.Thread(target=self._read, daemon=True).start()
        assert self.press("ready") == "ready"

    def press(self, keys: str) -> str:
        """The line after some keys on an empty one; ``\\t`` is TAB."""
        self._line.unlink(missing_ok=True)
        os.write(self._master, b"\x05\x15" + keys.encode() + b"\x07")
        end = time.monotonic() + 60
        while not self._line.exists():
            assert self._process.poll() is None, self.printed
            assert time.monotonic() < end, self.printed
            time.sleep(0.02)
        return self._line.read_text().removesuffix("\n")

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the terminal was closed
            while data := os.read(self._master, 4096):
                self.printed += data

    def __enter__(self) -> "Shell":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._master)
