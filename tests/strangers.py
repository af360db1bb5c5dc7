"""Distributions of strangers, as pip leaves them, in a folder for ``PYTHONPATH``."""

import os
from collections.abc import Mapping
from pathlib import Path


def install_plugin(folder: Path, name: str, source: str) -> None:
    """One module with an entry point."""
    (folder / f"{name}.py").write_text(source)
    install_entry_points(folder, name, {name: name})


def install_entry_points(folder: Path, distribution: str, entries: Mapping[str, str]) -> None:
    """A distribution with entry points alone: names and what they name."""
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{name} = {target}\n" for name, target in entries.items()]
    (info / "entry_points.txt").write_text("[mmssl]\n" + "".join(lines))


def with_path(folder: Path, **variables: str) -> dict[str, str]:
    """This process's variables, with a folder that is looked through for modules first."""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **variables}
