"""Pictures of a backbone's first convolutions, trained beside untrained."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Convolution = nn.Conv2d | nn.Conv3d

# So many filters of a convolution are shown.
_MOST = 64

# About so many weights stand side by side.
_BROAD = 130


def stem_convolutions(backbone: nn.Module) -> list[tuple[str, Convolution]]:
    """The convolutions that see the backbone's input, and what belongs to them.

    Those are the first convolution, all others with the same one to four input channels (a second
    pathway's, for instance), and after a convolution over space alone the one over time alone
    that completes it, as in R(2+1)D.

    Args:
        backbone: any network.

    Returns:
        Names of modules and the modules, in the network's order; none where there is no
        convolution over one or two dimensions of space.
    """
    convolutions = [
        (name, module)
        for name, module in backbone.named_modules()
        if isinstance(module, Convolution)
    ]
    if not convolutions:
        return []
    first = convolutions[0][1]
    channels = first.in_channels if first.in_channels <= 4 else 0
    stem = []
    for i, (name, module) in enumerate(convolutions):
        if module is first or module.in_channels == channels:
            stem.append((name, module))
            if _spatial(module) and i + 1 < len(convolutions) and _temporal(convolutions[i + 1][1]):
                stem.append(convolutions[i + 1])
    return stem


def _spatial(module: Convolution) -> bool:
    return isinstance(module, nn.Conv3d) and module.kernel_size[0] == 1


def _temporal(module: Convolution) -> bool:
    return (
        isinstance(module, nn.Conv3d)
        and module.kernel_size[0] > 1
        and module.kernel_size[1:] == (1, 1)
    )


def filter_figure(
    before: nn.Module | None,
    after: nn.Module,
    titles: Sequence[str] = ("before training", "after training"),
) -> "Figure":
    """The first filters of a backbone, as XDC's figure 2 shows those of R(2+1)D.

    A filter over three channels is a colour picture, one over another number is in shades, the
    mean over its channels; filters over space and time show their frames side by side. Each is
    stretched to its own range. A filter over time alone (R(2+1)D's second half, ``[64, 45, 3, 1,
    1]``) is a field of its own with time downwards and the spatial filters that it weighs to the
    right, red where it adds and blue where it subtracts.

    Args:
        before: the same network before training; None to show ``after`` alone.
        after: a network with an `nn.Conv2d` or `nn.Conv3d`.
        titles: of the two columns, the last one for ``after``.

    Raises:
        ValueError: it has no such convolution.
    """
    from matplotlib.figure import Figure

    networks = [after] if before is None else [before, after]
    found = [stem_convolutions(network) for network in networks]
    if not found[0] or len({len(stem) for stem in found}) > 1:
        raise ValueError("no convolution over space is the first of this network")
    tiles = [[_tiles(module) for _, module in stem] for stem in found]
    heights = [0.45 + 5.0 * t.shape[0] / t.shape[1] for t in tiles[0]]
    figure = Figure(figsize=(5.2 * len(networks), sum(heights) + 0.3), layout="constrained")
    parts = figure.subfigures(1, len(networks), squeeze=False)[0]
    for part, title, stem, pictures in zip(
        parts, titles[-len(networks) :], found, tiles, strict=True
    ):
        _column(part, title, stem, pictures, heights)
    return figure


def _column(
    part: "SubFigure",
    title: str,
    stem: Sequence[tuple[str, Convolution]],
    pictures: Sequence[np.ndarray],
    heights: Sequence[float],
) -> None:
    part.suptitle(title, fontsize="medium")
    axes: np.ndarray = part.subplots(len(stem), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (name, module), picture in zip(axes, stem, pictures, strict=True):
        shape = _weight(module).shape
        part_of = f", the first {_MOST}" if shape[0] > _MOST else ""
        _panel(panel, f"{name}  {'×'.join(map(str, shape))}{part_of}", picture)


def _panel(axes: "Axes", title: str, picture: np.ndarray) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(title, fontsize="x-small", loc="left", color="0.35")
    axes.set_axis_off()


def _weight(module: Convolution) -> np.ndarray:
    return module.weight.detach().float().cpu().numpy()


def _tiles(module: Convolution) -> np.ndarray:
    """All filters of a convolution in one picture, ``[h, w, 3]`` between 0 and 1, white between."""
    weight = _weight(module)[:_MOST]
    if weight.ndim == 4:
        weight = weight[:, :, None]
    if _temporal(module):
        pictures = [_diverging(w[:, :, 0, 0].T) for w in weight]
    else:
        pictures = [_frames(w) for w in weight]
    return _grid(pictures)


def _frames(weight: np.ndarray) -> np.ndarray:
    """``[C, T, h, w]`` to ``[h, T·w, 3]``: the frames of a filter side by side."""
    if weight.shape[0] != 3:
        weight = weight.mean(axis=0, keepdims=True).repeat(3, axis=0)
    low, high = weight.min(), weight.max()
    scaled = (weight - low) / (high - low) if high > low else np.full_like(weight, 0.5)
    return np.concatenate(list(scaled.transpose(1, 2, 3, 0)), axis=1)


def _diverging(weight: np.ndarray) -> np.ndarray:
    """``[T, middle]`` to colours: red above zero, white at it, blue below; to its own range."""
    scaled = weight / max(float(np.abs(weight).max()), 1e-12)
    up, down = np.clip(scaled, 0, 1)[..., None], np.clip(-scaled, 0, 1)[..., None]
    red, blue = np.array([0.70, 0.09, 0.17]), np.array([0.13, 0.40, 0.67])
    return 1 - up * (1 - red) - down * (1 - blue)


def _grid(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one size in rows, a white line between."""
    height, width, _ = pictures[0].shape
    columns = min(len(pictures), max(1, round(_BROAD / (width + 1))))
    rows = -(-len(pictures) // columns)
    whole = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, 3))
    for i, picture in enumerate(pictures):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        whole[top : top + height, left : left + width] = picture
    return whole
