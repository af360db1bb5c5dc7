"""A whole run of a recipe at tiny size, through the stages that a real one has."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mmssl.pipeline.jobs import run_here
from mmssl.pipeline.run_folder import RunFolder
from mmssl.pipeline.stages import pretraining
from mmssl.recipe import Recipe
from mmssl.testing.loops import tiny
from mmssl.testing.material import reloaded, seed_everything
from mmssl.training.progress import Silent


class TinyRun:
    """A run in a temporary folder; what one check made of it, others go on with.

    Args:
        recipe: of any size.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._place = TemporaryDirectory(prefix="mmssl-check-")  # gone with the run
        small = tiny(recipe, keep_evaluations=True)
        self.recipe = reloaded(small.dump(), [f"runs={quoted(Path(self._place.name))}"])
        self.folder = RunFolder(self.recipe)

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.folder.path

    def stage(self, name: str) -> Path:
        """Run a stage, unless it is finished, and all that it needs.

        Returns:
            The run's folder.
        """
        with threads_of(self.recipe), self.folder.locked():
            for stage in dict.fromkeys(["pretrain", name]):
                if not self.folder.finished(stage):
                    seed_everything(0)
                    self.folder.prepare()
                    run_here(self.recipe, self.folder, stage, ["mmssl"], Silent())
        return self.path


def quoted(path: Path) -> str:
    """A path that means itself in an override."""
    import json

    return json.dumps(str(path), ensure_ascii=False).replace("${", "$${")


@contextlib.contextmanager
def threads_of(recipe: Recipe) -> Iterator[None]:
    """As many threads as a recipe's run has; sums of others may differ in the last bit."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(recipe.threads or before)
        yield
    finally:
        torch.set_num_threads(before)


def whole_run(text: str, folder: str) -> str:
    """Pretrain on this rank, and tell what became of the encoders there.

    Args:
        text: the recipe, as `Recipe.dump` writes it.
        folder: of the run, the same on all ranks.
    """
    loop = pretraining(reloaded(text), Path(folder), Silent())
    loop.run()
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in loop.encoders.named_parameters():
        digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()
