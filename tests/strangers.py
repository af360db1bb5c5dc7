"""Distributions of strangers, as pip leaves them, in a folder for ``PYTHONPATH``."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path


def install_plugin(
    folder: Path, name: str, source: str, version: str = "1.0", requires: Sequence[str] = ()
) -> None:
    """One module with an entry point."""
    (folder / f"{name}.py").write_text(source)
    install_entry_points(folder, name, {name: name}, version, requires)


def install_package(folder: Path, name: str, files: Mapping[str, str]) -> None:
    """A package of some files with an entry point."""
    (folder / name).mkdir()
    for file, text in files.items():
        (folder / name / file).write_text(text)
    install_entry_points(folder, name, {name: name})


def install_entry_points(
    folder: Path,
    distribution: str,
    entries: Mapping[str, str],
    version: str = "1.0",
    requires: Sequence[str] = (),
) -> None:
    """A distribution with entry points alone: names and what they name.

    Args:
        folder: for ``PYTHONPATH``.
        distribution: its name.
        entries: by name, modules.
        version: its own.
        requires: other distributions, as metadata name them: ``mmssl>=0.1``.
    """
    info = folder / f"{distribution}-{version}.dist-info"
    info.mkdir()
    head = ["Metadata-Version: 2.1", f"Name: {distribution}", f"Version: {version}"]
    head += [f"Requires-Dist: {requirement}" for requirement in requires]
    (info / "METADATA").write_text("\n".join(head) + "\n")
    lines = [f"{name} = {target}\n" for name, target in entries.items()]
    (info / "entry_points.txt").write_text("[mmssl]\n" + "".join(lines))


def with_path(folder: Path, **variables: str) -> dict[str, str]:
    """This process's variables, with a folder that is looked through for modules first."""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **variables}
