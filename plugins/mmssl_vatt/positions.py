"""Where a token comes from: one learned table for each axis of the grid that a clip is cut into.

The vectors of an axis' buckets are summed over the axes, pass a LayerNorm and are added to the
tokens: 8 + 14 + 14 vectors stand for 8 x 14 x 14 patches. A clip that is cut into more or fewer
parts along an axis finds that table resized, by the spline that the released code uses, so that
gradients reach the table that is kept.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_EPS = 1e-6  # as released


class Positions(nn.Module):
    """Adds position embeddings to a grid of tokens and makes a sequence of it.

    Args:
        buckets: the length of each axis' table.
        dim: D.
        norm: a LayerNorm between the sum of the tables and the tokens.
        dropout: probability, of what comes out.
    """

    def __init__(
        self, buckets: Sequence[int], dim: int, *, norm: bool = True, dropout: float = 0.1
    ) -> None:
        super().__init__()
        std = dim**-0.5
        tables = [torch.empty(n, dim) for n in buckets]
        self.tables = nn.ParameterList(
            nn.init.trunc_normal_(table, std=std, a=-2 * std, b=2 * std) for table in tables
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS) if norm else nn.Identity()
        self.dropout = dropout

    def forward(self, grid: Tensor) -> Tensor:
        """Place tokens.

        Args:
            grid: ``[B, *axes, D]``.

        Returns:
            ``[B, N, D]``, the last axis varying fastest.
        """
        axes = grid.shape[1:-1]
        places: Tensor | None = None
        for axis, (size, table) in enumerate(zip(axes, self.tables, strict=True)):
            beyond = [1] * (len(axes) - axis - 1)
            vectors = resized(table, size).view(size, *beyond, -1)
            places = vectors if places is None else places + vectors
        return functional.dropout(
            (grid + self.norm(places)).flatten(1, -2), self.dropout, self.training
        )


def resized(table: Tensor, size: int) -> Tensor:
    """``[n, D]`` to ``[size, D]`` by cubic interpolation; the table itself where n is the size."""
    if len(table) == size:
        return table
    weights = torch.as_tensor(_spline(len(table), size), device=table.device)
    # In float64, which autocast leaves alone: as exact as tables that fit.
    return (weights @ table.double()).to(table.dtype)


@cache
def _spline(n: int, size: int) -> np.ndarray:
    """``[size, n]``: how much of each of n values is in each of those that replace them.

    Value i of n lies at i/n. Between them runs the natural cubic spline, beyond the last one the
    straight line that goes on from it. In a spline's piece of length 1 the values f and second
    derivatives M at its ends give at t, with s = 1 - t::

        s f_0 + t f_1 + ((s³ - s) M_0 + (t³ - t) M_1) / 6
    """
    values = np.eye(n)
    if n == 1:
        return np.ones((size, 1))
    bent = np.zeros((n, n))  # M of each value
    if n > 2:
        system = 4 * np.eye(n - 2) + np.eye(n - 2, k=1) + np.eye(n - 2, k=-1)
        bent[1:-1] = np.linalg.solve(system, 6 * (values[:-2] - 2 * values[1:-1] + values[2:]))
    at = np.arange(size) * n / size
    first = np.minimum(at.astype(int), n - 2)
    t = (at - first)[:, None]
    s = 1 - t
    # Beyond the end s is negative, M is 0, and the line has the slope that the piece ended with.
    curve = (np.maximum(s, 0) ** 3 - s) * bent[first] + (t**3 - t) * bent[first + 1]
    weights: np.ndarray = s * values[first] + t * values[first + 1] + curve / 6
    return weights
