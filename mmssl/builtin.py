"""The components that the core itself brings: optimizers, schedules, trackers, launchers."""

from mmssl.hooks import Register, hookimpl


@hookimpl
def register_optimizers(register: Register) -> None:
    """Optimizers of torch."""
    register("sgd", "mmssl.training.optimizers:sgd")
    register("adam", "mmssl.training.optimizers:adam")
    register("adamw", "mmssl.training.optimizers:adamw")


@hookimpl
def register_schedules(register: Register) -> None:
    """Learning-rate schedules."""
    register("constant", "mmssl.training.schedules:constant")
    register("step", "mmssl.training.schedules:step")
    register("cosine", "mmssl.training.schedules:cosine")
    register("linear", "mmssl.training.schedules:linear")


@hookimpl
def register_trackers(register: Register) -> None:
    """TensorBoard; ``log.jsonl`` is always written."""
    register("tensorboard", "mmssl.training.trackers:TensorBoard")


@hookimpl
def register_launchers(register: Register) -> None:
    """This process, others on this machine, and clusters."""
    register("inline", "mmssl.pipeline.launchers:Inline")
    register("local", "mmssl.pipeline.launchers:Local")
    register("slurm", "mmssl.pipeline.slurm:Slurm")
