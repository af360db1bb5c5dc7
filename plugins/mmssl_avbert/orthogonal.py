"""Rotations from unconstrained parameters, so that any optimizer keeps them orthogonal.

The upper triangle of a square matrix makes a skew-symmetric one, ``A = triu(P) - triu(P)ᵀ``, and
``exp(A)`` is a rotation (Lezcano-Casado and Martínez-Rubio, 2019). A diagonal Padé approximant of
a skew-symmetric matrix is orthogonal itself, however rough it is, and so is its square: rounding
is the only error of orthogonality.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

#: How a rotation is computed: the exponential as the Padé approximant of order 7 with scaling and
#: squaring, or as torch computes it (by a Taylor polynomial), or Cayley's map
#: ``(I - A/2)⁻¹ (I + A/2)``, which is the Padé approximant of order 1 and no exponential.
Method = Literal["pade", "matrix_exp", "cayley"]

# Of the numerator; the denominator has the same with alternating signs (Higham, 2005).
_PADE = (17297280.0, 8648640.0, 1995840.0, 277200.0, 25200.0, 1512.0, 56.0, 1.0)
# 1-norms up to which the approximant is as precise as the numbers are.
_PRECISE = {torch.float32: 3.925724783138660, torch.float64: 0.950417899616293}
# As many for every matrix, so that the device is not asked how many it takes. Enough for 1-norms
# up to 4000 (float64: 970); beyond, the result is a rotation still, but a rougher exponential.
_SQUARINGS = 10


def orthogonal(parameter: Tensor, method: Method = "pade") -> Tensor:
    """Orthogonal matrices of unconstrained ones, in float32 or better also under autocast.

    Args:
        parameter: ``[..., n, n]``, of which the part above the diagonal is used.
        method: how they are computed.

    Returns:
        ``[..., n, n]`` with determinant 1; float64 for a float64 parameter, else float32.
    """
    with _full_precision(parameter.device):
        upper = parameter.to(torch.promote_types(parameter.dtype, torch.float32)).triu(1)
        skew = upper - upper.mT
        if method == "pade":
            return _exponential(skew)
        if method == "matrix_exp":
            return torch.matrix_exp(skew)
        identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
        return torch.linalg.solve(identity - skew / 2, identity + skew / 2)


def _full_precision(device: torch.device) -> AbstractContextManager[object]:
    # Shapes without data know no autocast.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _exponential(skew: Tensor) -> Tensor:
    """``exp(A) = r(A / 2ˢ)`` squared s times, r being the Padé approximant and s small for small A.

    Args:
        skew: ``[..., n, n]``, skew-symmetric, float32 or float64.
    """
    with torch.no_grad():
        norm = skew.abs().sum(-2).amax(-1)[..., None, None]
        squarings = (norm / _PRECISE[skew.dtype]).log2().ceil().clamp(0, _SQUARINGS)
        scale = torch.exp2(-squarings)
    # Coefficients over the constant one: the numbers stay near 1.
    b = [coefficient / _PADE[0] for coefficient in _PADE]
    a = skew * scale
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    a2 = a @ a
    a4 = a2 @ a2
    a6 = a4 @ a2
    odd = a @ (b[7] * a6 + b[5] * a4 + b[3] * a2 + b[1] * identity)
    even = b[6] * a6 + b[4] * a4 + b[2] * a2 + identity
    result = torch.linalg.solve(even - odd, even + odd)
    for done in range(_SQUARINGS):
        result = torch.where(squarings > done, result @ result, result)
    return result
