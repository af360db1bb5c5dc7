"""Tokenizers against convolutions and sums written out, resized positions against other splines."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.interpolate import CubicSpline
from torch import Tensor
from torch.nn import functional

from mmssl import Backbone, UserError
from mmssl.training.settings import grouped
from mmssl_vatt.positions import Positions, resized
from mmssl_vatt.tokenizers import (
    SpectrogramPatches,
    VideoPatches,
    WaveformPatches,
    WordEmbeddings,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


close = torch.testing.assert_close


def normed(x: Tensor, norm: torch.nn.Module) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias
    )


def small(kind: type[Backbone], **changed: Any) -> Backbone:
    sizes: dict[Any, dict[str, Any]] = {
        VideoPatches: {"patch": (2, 3, 4), "buckets": (2, 3, 2)},
        WaveformPatches: {"patch": 5, "buckets": 4},
        SpectrogramPatches: {"patch": (3, 2), "buckets": (2, 4)},
    }
    net = kind(**(sizes[kind] | {"dim": 6} | changed))
    for parameter in net.parameters():  # biases begin with zeros, norms with ones
        torch.nn.init.normal_(parameter)
    return net


CLIPS = {
    VideoPatches: (2, 3, 5, 9, 11),
    WaveformPatches: (2, 24),
    SpectrogramPatches: (2, 1, 9, 8),
}
CONVOLUTIONS: dict[Any, Callable[..., Tensor]] = {
    VideoPatches: functional.conv3d,
    WaveformPatches: functional.conv1d,
    SpectrogramPatches: functional.conv2d,
}


@pytest.mark.parametrize("kind", list(CLIPS))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("position_norm", [True, False])
def test_tokens_are_those_of_a_strided_convolution_in_their_places(
    kind: type[Backbone], bias: bool, dense: bool, position_norm: bool
) -> None:
    net = small(kind, bias=bias, dense=dense, position_norm=position_norm).eval()
    clip = torch.randn(CLIPS[kind])
    features = net(clip)
    axes = clip
    if kind is WaveformPatches:
        axes = clip[:, None]
    elif kind is SpectrogramPatches:
        axes = clip.transpose(2, 3)
    kernel = net.project.weight.view(6, axes.shape[1], *net.patch)
    map_ = CONVOLUTIONS[kind](axes, kernel, net.project.bias, stride=net.patch)
    assert (net.project.bias is not None) == bias
    grid = map_.movedim(1, -1)
    if dense:
        y = grid @ net.dense.weight.T + net.dense.bias
        grid = y * 0.5 * (1 + torch.erf(y / 2**0.5))
    right = []
    for place in itertools.product(*(range(n) for n in grid.shape[1:-1])):
        where = sum(table[i] for table, i in zip(net.positions.tables, place, strict=True))
        assert isinstance(where, Tensor)
        right.append(
            grid[:, *place] + (normed(where, net.positions.norm) if position_norm else where)
        )
    close(features.tokens, torch.stack(right, 1))
    close(features.pooled, sum(right) / len(right))


@pytest.mark.parametrize(
    ("net", "clip", "tokens"),
    [
        (VideoPatches(dim=8), (3, 32, 224, 224), 8 * 14 * 14),
        (VideoPatches(dim=8), (3, 32, 320, 320), 8 * 20 * 20),
        (VideoPatches(dim=8, patch=(5, 16, 16)), (3, 32, 224, 224), 6 * 14 * 14),
        (VideoPatches(dim=8, patch=(5, 16, 16)), (3, 32, 200, 200), 6 * 12 * 12),
        (VideoPatches(dim=8, patch=(8, 32, 32)), (3, 32, 224, 224), 4 * 7 * 7),
        (WaveformPatches(dim=8), (153_600,), 1200),
        (WaveformPatches(dim=8, patch=1024), (153_600,), 150),
        (SpectrogramPatches(dim=8), (1, 80, 150), 9 * 16),
    ],
)
def test_the_papers_clips(net: Backbone, clip: tuple[int, ...], tokens: int) -> None:
    features = net.to("meta")(torch.empty(2, *clip, device="meta"))
    assert features.tokens.shape == (2, tokens, 8)
    assert features.pooled.shape == (2, 8)


def test_what_fills_no_patch_is_not_seen() -> None:
    net = small(VideoPatches).eval()
    clip = torch.randn(1, 3, 5, 8, 11)
    tokens = net(clip).tokens
    assert tokens.shape[1] == 2 * 2 * 2
    clip[:, :, 4:], clip[..., 6:, :], clip[..., 8:] = 9.0, 9.0, 9.0
    assert torch.equal(net(clip).tokens, tokens)
    clip[:, :, 3, 5, 7] += 1
    assert not torch.equal(net(clip).tokens, tokens)


def test_a_waveform_may_have_a_channel() -> None:
    net = small(WaveformPatches).eval()
    clip = torch.randn(2, 24)
    assert torch.equal(net(clip).tokens, net(clip[:, None]).tokens)


def test_a_clip_without_a_patch_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("a clip of 4x9x3 holds no patch of 2x3x4")):
        small(VideoPatches)(torch.zeros(1, 3, 4, 9, 3))


# Positions


def test_tables_begin_as_released() -> None:
    """A normal distribution of standard deviation D^-0.5, cut at two of them."""
    tables = Positions([4000, 3], 16).tables
    assert [tuple(table.shape) for table in tables] == [(4000, 16), (3, 16)]
    assert tables[0].abs().max() <= 2 * 0.25
    assert tables[0].abs().max() > 1.99 * 0.25
    assert tables[0].std().item() == pytest.approx(0.25 * 0.8796, rel=0.02)


def test_dropout_in_training_alone() -> None:
    places = Positions([50, 20], 10, dropout=0.1)
    grid = torch.ones(2, 50, 20, 10) * 100
    assert places(grid).eq(0).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert places.eval()(grid).ne(0).all()


SIZES = [(14, 20), (8, 4), (14, 12), (1200, 600), (4, 9), (3, 7), (2, 5), (1, 4), (5, 1)]


@pytest.mark.parametrize(("n", "size"), SIZES)
def test_resized_as_the_natural_spline_goes(n: int, size: int) -> None:
    table = torch.randn(n, 3, dtype=torch.float64)
    at = np.arange(size) * n / size
    if n < 3:  # a constant, or a straight line
        slope = table[-1] - table[0]
        right = (table[:1] + torch.from_numpy(at)[:, None] * slope).numpy()
    else:
        spline = CubicSpline(np.arange(n), table.numpy(), bc_type="natural")
        beyond = np.maximum(at - (n - 1), 0)[:, None]
        right = spline(np.minimum(at, n - 1)) + beyond * spline(n - 1, nu=1)
    close(resized(table, size), torch.from_numpy(right))


@pytest.mark.parametrize(("n", "size"), [(14, 20), (8, 4), (8, 11), (3, 7)])
def test_resized_as_released(n: int, size: int) -> None:
    """Polyharmonic splines of order 3: sums of cubed distances, and a line besides."""
    table = torch.randn(n, 3, dtype=torch.float64)
    knots, queries = np.arange(n) / n, np.arange(size) / size

    def line(x: np.ndarray) -> np.ndarray:
        return np.stack([x, np.ones_like(x)], 1)

    def cubes(x: np.ndarray) -> np.ndarray:
        return np.abs(x[:, None] - knots) ** 3

    system = np.block([[cubes(knots), line(knots)], [line(knots).T, np.zeros((2, 2))]])
    weights = np.linalg.solve(system, np.concatenate([table.numpy(), np.zeros((2, 3))]))
    right = np.concatenate([cubes(queries), line(queries)], 1) @ weights
    close(resized(table, size), torch.from_numpy(right), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("n", "size"), SIZES)
def test_constants_stay_constant(n: int, size: int) -> None:
    close(resized(torch.full((n, 2), 3.0), size), torch.full((size, 2), 3.0))


def test_nothing_is_resized_that_fits() -> None:
    table = torch.randn(8, 4)
    assert resized(table, 8) is table


def test_gradients_reach_the_table() -> None:
    table = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: resized(t, 8), table)
    net = small(VideoPatches)
    net(torch.randn(1, 3, 8, 6, 12)).tokens.square().sum().backward()
    for table in net.positions.tables:
        assert table.grad.ne(0).all()


# Words


def test_words_are_their_vectors() -> None:
    net = WordEmbeddings(size=7, width=4)
    ids = torch.tensor([[[3, 5, 0], [6, 0, 0]], [[0, 0, 0], [0, 0, 0]]])
    found = net(ids)
    assert (net.dim, found.tokens.shape) == (4, (2, 6, 4))
    rows = net.vectors.weight
    for place, word in enumerate([3, 5, 0, 6, 0, 0]):
        assert torch.equal(found.tokens[0, place], rows[word])
    assert torch.equal(found.valid, ids != 0)
    close(found.pooled, torch.stack([(rows[3] + rows[5] + rows[6]) / 3, torch.zeros(4)]))


def test_words_in_their_places() -> None:
    """VATT-MA's: a map with GELU, then positions, which begin anew with each text."""
    net = WordEmbeddings(size=7, width=4, dim=6, buckets=3).eval()
    ids = torch.tensor([[[3, 5, 1], [5, 3, 0]]])
    y = net.vectors.weight[ids] @ net.dense.weight.T + net.dense.bias
    right = y * 0.5 * (1 + torch.erf(y / 2**0.5))
    right = right + normed(net.positions.tables[0], net.positions.norm)
    assert net.dim == 6
    close(net(ids).tokens, right.flatten(1, 2))


@pytest.mark.parametrize(
    ("frozen", "file", "trained"),
    [(None, False, True), (None, True, False), (False, True, True), (True, False, False)],
)
def test_which_vectors_are_trained(
    frozen: bool | None, file: bool, trained: bool, tmp_path: Path
) -> None:
    np.save(tmp_path / "words.npy", np.ones((7, 4), np.float32))
    path = tmp_path / "words.npy" if file else None
    net = WordEmbeddings(size=7, width=4, dim=3, embeddings=path, frozen=frozen)
    (group,) = grouped({"encoders": net}, [])
    assert any(p is net.vectors.weight for p in group["params"]) == trained
    assert any(p is net.dense.weight for p in group["params"])


@pytest.mark.parametrize("ending", ["npy", "safetensors"])
def test_vectors_from_a_file(ending: str, tmp_path: Path) -> None:
    vectors = torch.randn(7, 4)
    path = tmp_path / f"words.{ending}"
    if ending == "npy":
        np.save(path, vectors.double().numpy())
    else:
        save_file({"any.name": vectors}, path)
    net = WordEmbeddings(size=7, width=4, embeddings=path)
    assert torch.equal(net(torch.tensor([[[6, 2]]])).tokens[0], vectors[[6, 2]])


def write(path: Path) -> Path:
    """A file that `path`'s name tells what is wrong with."""
    match path.name:
        case "shape.npy":
            np.save(path, np.zeros((6, 4)))
        case "objects.npy":
            np.save(path, np.array([{}], dtype=object))
        case "two.safetensors":
            save_file({"a": torch.zeros(7, 4), "b": torch.zeros(7, 4)}, path)
        case _:
            path.write_bytes(b"not vectors")
    return path


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("shape.npy", "holds 6x4, not 7x4: set size and width to what there is"),
        ("objects.npy", "no .npy file of vectors"),
        ("damaged.npy", "no .npy file of vectors"),
        ("damaged.safetensors", "no .safetensors file of vectors"),
        ("two.safetensors", "holds 2 tensors: save the word vectors alone"),
        ("words.txt", "embeddings are read from .npy and .safetensors files"),
    ],
)
def test_files_that_hold_no_vectors(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        WordEmbeddings(size=7, width=4, embeddings=write(tmp_path / name))
    assert says in str(raised.value)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_resized_tables_are_exact_under_autocast() -> None:
    table = torch.randn(14, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = resized(table, 20)
    assert found.dtype == torch.float32
    assert torch.equal(found, resized(table, 20))
