"""Deep clustering: k-means over streamed features, and the objectives SDC, MDC, CDC and XDC.

Other plugins may use the measures of clusterings that are listed in ``__all__``; they are
imported when first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmssl.hooks import Register, hookimpl

if TYPE_CHECKING:
    from mmssl_clustering.measures import (
        PurityRow,
        ami,
        ari,
        class_entropy,
        matched_accuracy,
        mean_class_entropy,
        mean_purity,
        nmi,
        purity,
        purity_table,
        used,
    )

__all__ = [
    "PurityRow",
    "ami",
    "ari",
    "class_entropy",
    "matched_accuracy",
    "mean_class_entropy",
    "mean_purity",
    "nmi",
    "purity",
    "purity_table",
    "used",
]


@hookimpl
def register_objectives(register: Register) -> None:
    """One algorithm of rounds, four ways to send cluster labels to encoders."""
    register("sdc", "mmssl_clustering.objectives:SDC")
    register("mdc", "mmssl_clustering.objectives:MDC")
    register("cdc", "mmssl_clustering.objectives:CDC")
    register("xdc", "mmssl_clustering.objectives:XDC")


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("mmssl_clustering.measures"), name)
    raise AttributeError(f"module 'mmssl_clustering' has no attribute {name!r}")
