"""Python, and the packages that mmssl needs: there, of a version that fits, and loading."""

import importlib
import importlib.metadata
import platform
import sys
from collections.abc import Iterator

from packaging.requirements import Requirement

from mmssl import __version__
from mmssl.doctor import Doing, Finding

# Packages that load a library of C, which may not fit another one; by the module that does.
_LOADED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "torchaudio": "torchaudio",
    "av": "av",
    "faiss-gpu": "faiss",
    "faiss-cpu": "faiss",
}

_QUIET = {"pluggy", "pyyaml", "typer", "rich", "jinja2", "pillow", "fsspec", "tensorboard"}


def look() -> Iterator[Finding | Doing]:
    """Versions, and whether what is compiled can be loaded."""
    system = f"{platform.system()} {platform.machine()}"
    yield Finding("python", "ok", f"{platform.python_version()} ({sys.executable}), {system}")
    yield Finding("mmssl", "ok", __version__)
    try:
        needed = importlib.metadata.requires("mmssl") or []
    except importlib.metadata.PackageNotFoundError:
        advice = "pip install -e . in the clone, so that versions can be compared"
        yield Finding("mmssl's requirements", "warning", "mmssl is not installed", advice)
        return
    fine = []
    for text in needed:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = requirement.name
        finding = _version(requirement)
        if finding.status == "ok" and name in _LOADED:
            yield Doing(f"import {_LOADED[name]}")
            finding = _loaded(name, finding)
        if finding.status == "ok" and name in _QUIET:
            fine.append(f"{name} {finding.found}")
        else:
            yield finding
    yield Finding("and", "ok", ", ".join(fine))


def _version(requirement: Requirement) -> Finding:
    name = requirement.name
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "problem", "not installed", f"pip install '{requirement}'")
    if not requirement.specifier.contains(version, prereleases=True):
        found = f"{version}, which mmssl was not made for"
        return Finding(name, "problem", found, f"pip install '{requirement}'")
    return Finding(name, "ok", version)


def _loaded(name: str, finding: Finding) -> Finding:
    """Import it: torchvision, for one, may be built for another torch."""
    module = _LOADED[name]
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # whatever a library of C fails with
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        advice = "reinstall it together with torch: pip install --force-reinstall mmssl"
        if module in ("faiss", "av"):
            advice = f"reinstall it: pip install --force-reinstall {name}"
        return Finding(name, "problem", f"{finding.found} does not load: {reason}", advice)
    if module == "av":
        library = f", FFmpeg {getattr(imported, 'ffmpeg_version_info', '')}"
        return Finding(name, "ok", finding.found + library)
    return Finding(name, "ok", getattr(imported, "__version__", finding.found))
