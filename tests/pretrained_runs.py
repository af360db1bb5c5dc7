"""Finished runs and installed plugins, for tests of what is done with pretrained encoders."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from small_runs import RECIPE, make_videos

from mmssl.pipeline.jobs import run_here
from mmssl.pipeline.run_folder import RunFolder
from mmssl.recipe import load
from mmssl.registry import discover
from mmssl.training.progress import Silent

PLUGIN = """
from mmssl import hookimpl

@hookimpl
def register_modalities(register):
    register("words", "toy_text:Words")

@hookimpl
def register_backbones(register):
    register("bag", "toy_text:Bag")
    register("both", "toy_text:Both")

@hookimpl
def register_objectives(register):
    register("meeting", "toy_text:Meeting")
    register("sorting", "toy_text:Sorting")
"""

TEXTS = ["red ball", "blue ball", "red square", "blue square"]

# Of sight and sound; of sight and text.
SEEN_AND_HEARD = {
    "objective": "{use: xdc, rounds: 1, clusters: 2}",
    "training.epochs": "1",
    "training.epoch_size": "16",
    "data.workers": "0",
}
SEPARATE = "{video: {use: r3d_18, width: 0.125}, text: bag}"
SEEN_AND_READ = """\
name: spoken
seed: 2
threads: 1
device: cpu
modalities:
  video: {{use: video, frames: 2, fps: 4, short_side: 20, crop: 16}}
  text: {{use: words, vocabulary: {vocabulary}}}
backbones: {backbones}
data:
  train: {{use: manifest, path: {manifest}}}
  workers: 0
objective: meeting
training:
  epoch_size: 8
  epochs: 1
  batch_size: 4
  optimizer: {{use: adamw, lr: 0.002}}
  schedule: constant
"""


def finish(recipe: Path, overrides: list[str]) -> Path:
    """Run a recipe in this process; its folder."""
    loaded = load(recipe, overrides)
    folder = RunFolder(loaded)
    with folder.locked():
        folder.prepare()
    for stage in ("pretrain", *loaded.evaluations):
        run_here(loaded, folder, stage, ["test"], Silent())
    return folder.path


def seen_and_heard(folder: Path, *more: str) -> Path:
    """A finished run of sight and sound on eight videos in ``folder / "videos"``."""
    if not (folder / "videos").exists():
        make_videos(folder / "videos", 8)
    (folder / "small.yaml").write_text(RECIPE)
    data = f"data.train={{use: folder, path: {folder / 'videos'}}}"
    settings = [f"{key}={value}" for key, value in SEEN_AND_HEARD.items()]
    return finish(folder / "small.yaml", [data, *settings, f"runs={folder / 'runs'}", *more])


def seen_and_read(folder: Path, backbones: str = SEPARATE) -> Path:
    """A finished run of sight and text on eight videos; needs `installed`."""
    videos = make_videos(folder / "videos", 8)
    rows = [f"{path},v{i},{TEXTS[i % 4]}" for i, (path, _) in enumerate(videos)]
    (folder / "texts.csv").write_text("\n".join(["path,id,text", *rows, ""]))
    (folder / "vocabulary.txt").write_text("red\nblue\nball\nsquare\n")
    (folder / "spoken.yaml").write_text(
        SEEN_AND_READ.format(
            vocabulary=folder / "vocabulary.txt", manifest=folder / "texts.csv", backbones=backbones
        )
    )
    return finish(folder / "spoken.yaml", [f"runs={folder / 'runs'}"])


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """The plugin of text, as an installer would leave it, within the context."""
    info = folder / "toy_plugin-1.5.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (folder / "toy_plugin.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy_plugin\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text("[mmssl]\ntoy_plugin = toy_plugin\n")
    sys.path.insert(0, str(folder))
    discover.cache_clear()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("toy_plugin", None)
        discover.cache_clear()
