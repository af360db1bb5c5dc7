"""Metrics of runs in MLflow: the tracker ``mlflow``."""

from mmssl import hookimpl
from mmssl.hooks import Register

__all__ = ["register_trackers"]


@hookimpl
def register_trackers(register: Register) -> None:
    """What a recipe names under ``trackers``."""
    register("mlflow", "mmssl_mlflow.tracker:MLflow")
