"""Ways to run the stages of a recipe."""

from mmssl.contracts import Launcher
from mmssl.pipeline.stages import run_stage
from mmssl.recipe import Recipe
from mmssl.training.progress import Progress


class Inline(Launcher):
    """Runs every stage in this process, one after the other."""

    def launch(self, recipe: Recipe, stages: list[str], progress: Progress) -> None:
        """Run ``stages``, which are in an order that satisfies what each needs."""
        for stage in stages:
            progress.say(f"stage: {stage}")
            run_stage(recipe, stage, progress)
