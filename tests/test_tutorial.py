"""The tutorial, as it stands: its files are written, its commands run, their output compared."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from plugin_env import author_environment

TUTORIAL = Path(__file__).parents[1] / "docs/tutorials/write_a_modality.md"

_BLOCK = re.compile(r"^```(\w+)(?: title=\"(.+?)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(console: str) -> Iterator[tuple[str, list[str]]]:
    """Of a block: each line after ``$``, and what is shown below it."""
    for part in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        command, *shown = part.rstrip("\n").split("\n")
        yield command, shown


def as_shown(printed: str, shown: list[str]) -> bool:
    """Is that what was printed? ``...`` stands for any lines, or for anything within a line."""
    pattern = "".join(
        "(?:.*\n)*?" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + " *\n"
        for line in shown
    )
    return re.fullmatch(pattern, printed) is not None


def test_output_is_compared() -> None:
    printed = "one\ntwo 2.5 s\nthree\nfour\n"
    for shown in (
        ["one", "two 2.5 s", "three", "four"],
        ["one", "..."],
        ["...", "two ... s", "...", "four"],
        ["..."],
    ):
        assert as_shown(printed, shown)
    for shown in (["one"], ["two", "..."], ["...", "five"], ["...", "two ...", "four"], []):
        assert not as_shown(printed, shown)


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    environment = author_environment(tmp_path)
    folder = tmp_path / "mmssl-depth"
    folder.mkdir()
    blocks = _BLOCK.findall(TUTORIAL.read_text())
    assert len(blocks) > 10
    for language, title, content in blocks:
        if title:
            (folder / title).parent.mkdir(parents=True, exist_ok=True)
            (folder / title).write_text(content)
            continue
        assert language == "console", f"a block without title:\n{content}"
        for command, shown in commands(content):
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            fails = bool(shown) and shown[0].startswith("mmssl: ")
            assert done.returncode == (2 if fails else 0), f"$ {command}\n{done.stdout}"
            shows = "\n".join(shown)
            assert as_shown(done.stdout, shown), f"$ {command}\n{done.stdout}\nis not\n{shows}"
