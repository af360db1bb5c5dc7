"""A stage as a job: what a launcher's processes run, here, on this machine or on a cluster.

What is pickled for them is a `Stage`: a folder and a name. All else is read in the job, so that a
job that is started again, perhaps days later on another node, goes on with what it finds there.
Nothing heavy is imported before `Stage` is called: submitit can only handle a signal afterwards.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from mmssl.errors import UserError

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

    from mmssl.pipeline.run_folder import RunFolder
    from mmssl.recipe import Recipe
    from mmssl.recipe.yaml12 import Node
    from mmssl.training.progress import Progress

#: The GPUs that a local job may use: submitit hides them unless it is told their numbers.
GPUS = "MMSSL_VISIBLE_GPUS"

INTERRUPTED = 130

# How long a job that was told to end waits for the end: the state is saved, and a cluster may
# still say that the job is to be started again. Then it ends as one ended by SIGTERM does.
_GRACE = 600.0
_TERMINATED = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Stage:
    """One stage of a run, as every rank of a job calls it.

    Args:
        folder: absolute, the run's.
        name: of the stage.
    """

    folder: str
    name: str

    def checkpoint(self) -> "DelayedSubmission":
        """What a job that is started again calls; called on one rank only, in a signal handler."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def __call__(self) -> None:
        """Run the stage, or what is left of it. The exit code tells those who wait for the job."""
        start_again = signal.getsignal(signal.SIGUSR2)
        local = os.environ.get("SUBMITIT_EXECUTOR") == "local"
        if local:
            _use_gpus()
            signal.signal(signal.SIGTERM, _stop_at_once)  # also where nothing can be saved
        from mmssl.training.interruption import Interrupted

        try:
            self._run()
        except UserError as error:
            print(f"mmssl: {error}", file=sys.stderr)
            _leave(2)
        except KeyboardInterrupt:
            _leave(INTERRUPTED)
        except Interrupted as stop:
            if not callable(start_again):  # nobody's job: whoever started the process hears of it
                _leave(INTERRUPTED)
            if stop.again:
                self._start_again(start_again)
            if local:
                _leave(INTERRUPTED)
            _wait_for_the_end()

    def _run(self) -> None:
        from mmssl.cli.terminal import Terminal
        from mmssl.pipeline import assembly
        from mmssl.pipeline.run_folder import RunFolder
        from mmssl.training import distributed
        from mmssl.training.progress import Silent

        try:
            recipe = load_run(Path(self.folder))
            folder = RunFolder(recipe)
            device = assembly.choose_device(recipe)
        except UserError as error:
            _tell(Path(self.folder), self.name, error)
            raise
        job = folder.records.job(self.name)
        command = job.command if job else sys.argv
        with distributed.joined(device.type) as here:
            progress = Terminal() if here.rank == 0 else Silent()
            run_here(recipe, folder, self.name, command, progress)

    def _start_again(self, handler: Any) -> NoReturn:
        """What submitit does when a job's time is up: rank 0 requeues the job and ends with it."""
        from submitit.core.utils import UncompletedJobError

        try:
            handler(signal.SIGUSR2, None)
        except (UncompletedJobError, subprocess.SubprocessError) as error:
            _tell(Path(self.folder), self.name, error)
            print(f"mmssl: {error}", file=sys.stderr)
            _leave(2)
        _leave(0)  # the other ranks, where the handler only returns


def load_run(
    folder: Path, overrides: Sequence[str] = (), variants: "Sequence[Node]" = ()
) -> "Recipe":
    """The recipe that a run's folder keeps, wherever the folder is by now.

    Args:
        folder: the run's.
        overrides: laid over it, as ``a.b=value``.
        variants: laid over it before that, as trees.

    Raises:
        UserError: there is none, or it does not fit this version's components.
    """
    import json

    from mmssl.recipe import load

    def text(value: str) -> str:
        return json.dumps(value, ensure_ascii=False).replace("${", "$${")

    places = [f"runs={text(str(folder.parent))}", f"name={text(folder.name)}"]
    return load(folder / "recipe.yaml", [*overrides, *places], variants=variants)


def run_here(
    recipe: "Recipe", folder: "RunFolder", stage: str, command: list[str], progress: "Progress"
) -> None:
    """Run one stage in this process, which has joined the other ranks; leave word of how it ended.

    Args:
        recipe: the run's.
        folder: the run's.
        stage: its name; nothing is done where it is finished.
        command: what was typed.
        progress: who watches.

    Raises:
        UserError: as the stage does, or another process is at work at it.
        Interrupted: a signal came; the state is saved.
    """
    from mmssl.pipeline.run_folder import end_stage
    from mmssl.pipeline.stages import run_stage, stage_names
    from mmssl.training import distributed
    from mmssl.training.interruption import Interrupted

    with ExitStack() as held:

        def begin() -> bool:
            if stage not in stage_names(recipe):
                raise UserError(f"{folder.path / 'recipe.yaml'} has no stage {stage!r} any more")
            held.enter_context(folder.locked(stage))
            if folder.finished(stage):
                return False
            folder.begin(stage, command)
            return True

        if not distributed.on_main(begin):
            progress.say(f"stage {stage} is finished; nothing to do")
            return
        try:
            run_stage(recipe, stage, progress)
        except (Interrupted, KeyboardInterrupt):
            if distributed.is_main():
                end_stage(folder.path, stage, "interrupted", "stopped by a signal")
            raise
        except Exception as error:
            # A rank that lost another one knows nothing of the cause.
            if not (isinstance(error, RuntimeError) and distributed.is_lost(error)):
                _tell(folder.path, stage, error)
            raise


def _tell(folder: Path, stage: str, error: Exception) -> None:
    """Leave word, in the folder and where the job's script looks, that trying again is no use."""
    from mmssl.pipeline.run_folder import end_stage

    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    end_stage(folder, stage, "failed", " ".join(reason.split()))
    if "SUBMITIT_FOLDER" in os.environ:
        from submitit import JobEnvironment

        (Path(os.environ["SUBMITIT_FOLDER"]) / f"{JobEnvironment().job_id}_failed").touch()


def _use_gpus() -> None:
    """All the GPUs that the submitting process had."""
    visible = os.environ.pop(GPUS, None)
    if visible == "all":
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    elif visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _wait_for_the_end() -> NoReturn:
    deadline = time.monotonic() + _GRACE
    while time.monotonic() < deadline:
        time.sleep(1)  # submitit's handlers are in place again, and may requeue the job
    _leave(_TERMINATED)


def _leave(code: int) -> NoReturn:
    """End at once: taking down an interpreter with torch in it costs seconds of a grace time."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
