"""What holds of a recipe: it is sound, it runs, and a kill changes nothing.

These are also the checks of what only acts within a run: callbacks, trackers, evaluators.
"""

from functools import cached_property

from mmssl.errors import UserError
from mmssl.pipeline.plan import make_plan
from mmssl.pipeline.rehearsal import differences
from mmssl.pipeline.stages import pretraining
from mmssl.testing.check import fail, not_applicable, require
from mmssl.testing.loops import STEPS, Dying, Reached, temporary_folder
from mmssl.testing.material import Material, reloaded
from mmssl.testing.runs import TinyRun, quoted, threads_of
from mmssl.training.progress import Silent


class Case:
    """A recipe that was loaded.

    Args:
        material: what it builds.
    """

    def __init__(self, material: Material) -> None:
        self.material = material

    @cached_property
    def run(self) -> TinyRun:
        """Of it at tiny size; not begun yet."""
        return self.material.run


def plans(case: Case) -> None:
    """Its dry run says what it would do"""
    plan = make_plan(case.material.recipe)
    for table in plan.tables:
        for row in table.rows:
            require(
                len(row) == len(table.columns),
                f"a row of the table {table.title!r} has {len(row)} cells for "
                f"{len(table.columns)} columns",
            )


def resolves(case: Case) -> None:
    """What a run keeps of it is the same recipe"""
    recipe = case.material.recipe
    try:
        again = reloaded(recipe.dump())
    except UserError as error:
        fail(f"its resolved form, which a run's folder keeps, does not load: {error}")
    if again != recipe:
        keys = [key for key, value in recipe.plain().items() if again.plain()[key] != value]
        fail(
            f"resolved and loaded again it differs in {', '.join(keys)}: a component's parameter "
            "does not survive YAML; use plain types, and paths for files"
        )


def runs(case: Case) -> None:
    """At tiny size it runs to its end, with its evaluations"""
    for stage in ("pretrain", *case.run.recipe.evaluations):
        try:
            case.run.stage(stage)
        except UserError as error:
            fail(
                f"at tiny size (a few steps, {case.run.recipe.data.limit} samples at most) the "
                f"stage {stage} fails: {error}"
            )


def survives(case: Case) -> None:
    """Killed and gone on with, it gives the same to the last bit"""
    run = case.run
    if run.recipe.objective.build().rounds == 0:
        not_applicable("it trains nothing")
    undisturbed = run.stage("pretrain")
    with temporary_folder() as folder, threads_of(run.recipe):
        recipe = reloaded(run.recipe.dump(), [f"runs={quoted(folder)}"])
        path = folder / recipe.name
        path.mkdir()
        for last in (STEPS - 1, STEPS + 1):
            loop = pretraining(recipe, path, Silent(), Dying)
            assert isinstance(loop, Dying)
            loop.last = last
            try:
                loop.run()
            except Reached:
                continue
            break  # it was over before
        else:
            pretraining(recipe, path, Silent()).run()
        for found in differences(undisturbed, path):
            fail(
                f"killed and gone on with, it is not what it was when left alone: {found}. All "
                "that a step depends on must be in the state dict (parameters, buffers, "
                "state_dict() of callbacks), in files of the round, or follow from the seed"
            )


TESTS = (plans, resolves, runs, survives)
