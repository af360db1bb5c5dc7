"""The first-party plugins keep to the contracts: what a stranger's plugin is held to, too."""

import os
from pathlib import Path
from unittest import SkipTest

import pytest
from PIL import Image
from small_runs import make_videos, mmssl, write_manifest
from tiny_benchmarks import make_benchmarks

from mmssl.testing import Check, Nonconforming, conformance
from mmssl_media.synthetic_clips import Format, draw_frames, draw_sound, write

RECIPES = Path(__file__).parent / "conformance"

# Each plugin's recipes, which name all of its components in small.
PLUGINS = {
    "mmssl": ["mmssl", "local", "slurm"],
    "mmssl_backbones": ["backbones"],
    "mmssl_avbert": ["avbert"],
    "mmssl_vatt": ["vatt"],
    "mmssl_contrastive": ["contrastive"],
    "mmssl_clustering": ["clustering"],
    "mmssl_evaluators": ["evaluators"],
}


def checks(plugin: str, recipes: list[str]) -> list[Check]:
    return conformance(plugin, [RECIPES / f"{name}.yaml" for name in recipes])


@pytest.mark.parametrize("check", [c for item in PLUGINS.items() for c in checks(*item)], ids=str)
def test_conformance(check: Check) -> None:
    check()


def _fill(folder: Path, video: Path, long: Path, picture: Path) -> None:
    """Put media where published datasets' tiny trees have empty files."""
    for file in folder.rglob("*"):
        if file.is_file() and file.stat().st_size == 0:
            is_long = any(part in ("youcook2", "howto100m") for part in file.parts)
            source = picture if file.suffix == ".JPEG" else long if is_long else video
            file.unlink()
            os.link(source, file)


def test_media(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = make_videos(tmp_path / "folder" / "one", 8)
    write_manifest(tmp_path / "list.csv", videos)
    done = mmssl("data", "shard", "list.csv", "-o", "shards", "--samples", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    form = Format(side=32, fps=8, seconds=21.0)
    write(tmp_path / "long.mp4", form, draw_frames(form, 0, 0, 0), draw_sound(form, 0, 0, 0))
    Image.new("RGB", (40, 30), "olive").save(tmp_path / "picture.jpg")
    for name, place in make_benchmarks(tmp_path / "published").items():
        monkeypatch.setenv(name, place)
    _fill(
        tmp_path / "published", Path(videos[0][0]), tmp_path / "long.mp4", tmp_path / "picture.jpg"
    )
    monkeypatch.setenv("MEDIA", str(tmp_path))
    failed, passed = [], 0
    for check in checks("mmssl_media", ["media"]):
        try:
            check()
            passed += 1
        except SkipTest:
            continue
        except Nonconforming as error:
            failed.append(f"{check}: {error}")
    assert not failed, "\n".join(failed)
    assert passed > 300
