"""Measures of pretrained encoders: what a linear classifier reads from them, and their clusters."""

from mmssl.hooks import Register, hookimpl


@hookimpl
def register_evaluators(register: Register) -> None:
    """Frozen encoders only; nothing here trains them."""
    register("linear_probe", "mmssl_evaluators.linear_probe:LinearProbe")
    register("clusters", "mmssl_evaluators.clusters:Clusters")


@hookimpl
def register_objectives(register: Register) -> None:
    """The baselines that evaluators compare with."""
    register("supervised", "mmssl_evaluators.supervised:Supervised")
    register("scratch", "mmssl_evaluators.scratch:Scratch")
