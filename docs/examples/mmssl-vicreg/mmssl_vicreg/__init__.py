"""VICReg between modalities."""

from mmssl import hookimpl
from mmssl.hooks import Register


@hookimpl
def register_objectives(register: Register) -> None:
    """Variance, invariance, covariance."""
    register("vicreg", "mmssl_vicreg.vicreg:VICReg")
