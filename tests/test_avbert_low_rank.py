"""Rotations against SciPy's exponential, low-rank maps against W = UΣVᵀ multiplied by hand."""

import copy
from typing import get_args

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

import mmssl_avbert.low_rank
from mmssl_avbert.low_rank import LowRankLinear, rotations
from mmssl_avbert.orthogonal import Method, orthogonal
from mmssl_avbert.transformer import Layer, Sharing, Transformer, transformers

METHODS: tuple[Method, ...] = get_args(Method)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def skewed(parameter: Tensor) -> np.ndarray:
    """The skew-symmetric matrix of a parameter, element by element."""
    n = len(parameter)
    parameter = parameter.detach()
    skew = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1, n):
            skew[i, j], skew[j, i] = float(parameter[i, j]), -float(parameter[i, j])
    return skew


def error(matrix: Tensor) -> float:
    """How far from orthogonal, the largest entry of ``|ΣΣᵀ - I|``."""
    matrix = matrix.detach().double()
    return float((matrix @ matrix.mT - torch.eye(matrix.shape[-1])).abs().max())


# Rotations


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("std", [0.0, 0.01, 0.1, 1.0])
def test_rotations_are_orthogonal(method: Method, std: float) -> None:
    parameter = torch.randn(2, 128, 128) * std
    matrix = orthogonal(parameter, method)
    assert matrix.dtype == torch.float32
    assert error(matrix) < 1e-4
    assert torch.linalg.slogdet(matrix.double()).sign.eq(1).all()


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("std", [0.0, 0.001, 0.3, 3.0, 30.0])
def test_exponentials_are_scipys(dtype: torch.dtype, near: float, std: float) -> None:
    # Matrices of one batch need different numbers of squarings.
    parameter = (
        torch.randn(3, 17, 17, dtype=dtype) * std * torch.tensor([0.1, 1, 0.01])[:, None, None]
    )
    right = np.stack([scipy.linalg.expm(skewed(one)) for one in parameter])
    for method in ("pade", "matrix_exp"):
        np.testing.assert_allclose(
            orthogonal(parameter, method).numpy(), right, atol=near * (1 + std)
        )


def test_cayleys_map_is_what_its_formula_says() -> None:
    parameter = torch.randn(9, 9, dtype=torch.float64)
    half = skewed(parameter) / 2
    right = np.linalg.inv(np.eye(9) - half) @ (np.eye(9) + half)
    np.testing.assert_allclose(orthogonal(parameter, "cayley").numpy(), right, atol=1e-12)


def test_beyond_the_squarings_a_rotation_is_left() -> None:
    matrix = orthogonal(torch.randn(32, 32, dtype=torch.float64) * 1e4)
    assert error(matrix) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_rotations(method: Method) -> None:
    parameter = torch.randn(2, 4, 4, dtype=torch.float64) * torch.tensor([0.5, 4.0])[:, None, None]
    parameter.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: orthogonal(p, method), parameter)
    orthogonal(parameter, method)[0, 0].sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.tril().eq(0).all()  # the part below the diagonal counts for nothing


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("amp", [False, True])
def test_rotations_stay_orthogonal_in_training(method: Method, amp: bool) -> None:
    linear = LowRankLinear(24, 20, 16, method=method)
    began = linear.skew.detach().clone()
    optimizer = torch.optim.SGD(linear.parameters(), lr=3.0, momentum=0.9)
    x, target = torch.randn(64, 24), torch.randn(64, 20)
    losses = []
    for _ in range(50):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            turned = rotations(linear)
            loss = (linear(x, turned).float() - target).square().mean()
        assert turned[linear].dtype == torch.float32
        assert error(turned[linear]) < 1e-5
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert (linear.skew - began).abs().max() > 0.1
    other = LowRankLinear(24, 20, 16, method=method)
    other.load_state_dict(linear.state_dict())
    assert torch.equal(rotations(other)[other], rotations(linear)[linear])
    assert torch.equal(other(x), linear(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rotations(other)[other], rotations(linear)[linear])


def test_rotations_begin_as_small_turns_of_pairs() -> None:
    linear = LowRankLinear(3, 3, 7)
    skew = linear.skew.detach()
    turns = skew.diagonal(1)[::2]
    assert len(turns) == 3
    assert ((turns > 0) & (turns < 1)).all()
    assert int(skew.count_nonzero()) == 3


# Low-rank maps


@pytest.mark.parametrize("rank", [1, 2, 5, 9])
def test_a_map_is_the_product_over_the_length_in_between(rank: int) -> None:
    """y = W x / |Vᵀx| + b, W = U Σ Vᵀ being a dense matrix of the rank O."""
    linear = LowRankLinear(6, 8, rank).double()
    nn.init.normal_(linear.skew)
    u, b = linear.up.weight.detach().numpy(), linear.up.bias.detach().numpy()
    vt = linear.down.weight.detach().numpy()
    w = u @ scipy.linalg.expm(skewed(linear.skew)) @ vt
    assert w.shape == (8, 6)
    assert np.linalg.matrix_rank(w) == min(rank, 6)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    right = np.empty((2, 3, 8))
    for i in range(2):
        for j in range(3):
            one = x[i, j].numpy()
            right[i, j] = w @ one / np.linalg.norm(vt @ one) + b
    np.testing.assert_allclose(linear(x).detach().numpy(), right, atol=1e-12)
    np.testing.assert_allclose(linear(5 * x).detach().numpy(), right, atol=1e-12)


def test_gradients_of_a_map() -> None:
    linear = LowRankLinear(4, 3, 3).double()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    parameters = dict(linear.named_parameters())

    def mapped(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(linear, dict(zip(parameters, values, strict=True)), (x,))

    values = [p.detach().clone().requires_grad_() for p in parameters.values()]
    assert torch.autograd.gradcheck(mapped, (x, *values))


def test_a_vector_of_zeros_gives_the_bias() -> None:
    linear = LowRankLinear(4, 3, 3)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            y = linear(torch.zeros(1, 4))
        assert torch.equal(y.float()[0], linear.up.bias.to(dtype).float())


def test_a_map_in_bfloat16_is_rounded_only() -> None:
    linear, x = LowRankLinear(16, 12, 8), torch.randn(5, 16)
    right = linear(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = linear(x)
    whole = linear.bfloat16()(x.bfloat16())
    for found in (mixed, whole):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), right, rtol=0.02, atol=0.02)


def test_shapes_that_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="U is 3x2, not 4x2"):
        LowRankLinear(5, 4, 2, up=LowRankLinear(5, 3, 2).up)


# Sharing between Transformers


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("sharing", "depths", "parameters"),
    [
        ("none", [6, 6, 6], 127_581_696),
        ("layers", [6, 6, 6], 21_263_616),
        ("all", [6, 6, 6], 7_087_872),
        ("part", [6, 6, 6], 3_843_840),
        ("part_attention", [6, 6, 6], 15_942_912),
        ("none", [2], 14_175_744),
        ("layers", [2], 7_087_872),
        ("none", [6], 42_527_232),
        ("layers", [6], 7_087_872),
        ("none", [12], 85_054_464),
        ("none", [12, 12], 170_108_928),
    ],
)
def test_the_papers_numbers_of_parameters(
    sharing: Sharing, depths: list[int], parameters: int
) -> None:
    with torch.device("meta"):
        made = transformers(
            {str(i): depth for i, depth in enumerate(depths)}, 768, 12, 3072, sharing=sharing
        )
    assert count(made) == parameters
    assert [transformer.depth for transformer in made.values()] == depths


def test_the_papers_small_model() -> None:
    with torch.device("meta"):
        made = transformers(dict.fromkeys("vah", 2), 320, 5, 1280, sharing="none")
    assert count(made) == 7_397_760


SHARED: dict[str, set[str]] = {
    "none": set(),
    "layers": set(),
    "all": {"*"},
    "part": {"up.weight", "up.bias", "norm.weight", "norm.bias"},
    "part_attention": {"up.weight", "up.bias", "norm.weight", "norm.bias"},
}


@pytest.mark.parametrize("sharing", get_args(Sharing))
def test_shared_tensors_are_one(sharing: Sharing) -> None:
    made = transformers(dict.fromkeys("vah", 3), 8, 2, 12, sharing=sharing, rank=3)
    v, a, h = (dict(t.named_parameters(remove_duplicate=False)) for t in made.values())
    assert v.keys() == a.keys() == h.keys()
    assert len({name.split(".")[1] for name in v}) == (3 if sharing == "none" else 1)
    for name in v:
        one = v[name] is a[name] and v[name] is h[name]
        assert one or len({id(p[name]) for p in (v, a, h)}) == 3
        expected = any(name.endswith(end) or end == "*" for end in SHARED[sharing])
        assert one == expected, name
    # Copies, such as those that measure shapes, share as the original does.
    copied = copy.deepcopy(made)
    assert count(copied) == count(made)
    assert len(copied.state_dict()) == 3 * len(v)


def run(made: nn.ModuleDict, x: Tensor, attended: Tensor) -> Tensor:
    turned = rotations(made)
    return torch.stack([transformer(x, attended, turned) for transformer in made.values()])


def test_the_gradient_of_what_is_shared_sums_all_paths() -> None:
    made = transformers(dict.fromkeys("vah", 2), 8, 2, 12, sharing="part", rank=3).double()
    # The same values, but each Transformer, and each of its layers, with tensors of its own.
    apart = nn.ModuleDict(
        {
            name: Transformer([copy.deepcopy(transformer.layers[0]) for _ in range(2)], 2)
            for name, transformer in made.items()
        }
    )
    assert len(list(apart.parameters())) == 6 * len(list(made["v"].parameters()))
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    attended = torch.ones(2, 5, dtype=torch.bool)
    weights = torch.randn(3, 2, 5, 8, dtype=torch.float64)
    for network in (made, apart):
        (run(network, x, attended) * weights).sum().backward()
    torch.testing.assert_close(run(made, x, attended), run(apart, x, attended))
    for name, parameter in made["v"].layers[0].named_parameters():
        paths = [
            layer.get_parameter(name).grad
            for transformer in apart.values()
            for layer in transformer.layers
        ]
        shared = name.endswith(("up.weight", "up.bias", "norm.weight", "norm.bias"))
        torch.testing.assert_close(parameter.grad, sum(paths if shared else paths[:2]))
        assert all(path.abs().max() > 0 for path in paths)


def test_rotations_are_computed_once_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []

    def counted(parameter: Tensor, method: Method) -> Tensor:
        calls.append(tuple(parameter.shape))
        return orthogonal(parameter, method)

    monkeypatch.setattr(mmssl_avbert.low_rank, "orthogonal", counted)
    made = transformers(dict.fromkeys("vah", 4), 8, 2, 12, sharing="part", rank=3)
    x, attended = torch.randn(1, 2, 8), torch.ones(1, 2, dtype=torch.bool)
    first = run(made, x, attended)
    assert calls == [(18, 3, 3)]
    # Nothing of a pass is left for the next one.
    with torch.no_grad():
        for layer in made["a"].modules():
            if isinstance(layer, LowRankLinear):
                layer.skew.normal_()
    second = run(made, x, attended)
    assert calls == [(18, 3, 3)] * 2
    assert torch.equal(first[0], second[0])
    assert not torch.allclose(first[1], second[1])
    dense = transformers(dict.fromkeys("vah", 4), 8, 2, 12, sharing="all")
    assert rotations(dense) == {}


def test_rotations_of_several_kinds() -> None:
    maps = nn.ModuleList(
        [
            LowRankLinear(5, 4, 3),
            LowRankLinear(5, 4, 2),
            LowRankLinear(4, 5, 3, method="cayley"),
            LowRankLinear(4, 5, 3),
        ]
    )
    turned = rotations(maps)
    for linear in maps:
        assert isinstance(linear, LowRankLinear)
        right = orthogonal(linear.skew, linear.method)
        torch.testing.assert_close(turned[linear], right, rtol=0, atol=1e-6)


def test_recomputed_activations_and_compiled_graphs_know_the_rotations() -> None:
    made = transformers(dict.fromkeys("va", 2), 8, 2, 12, sharing="part", rank=3)
    x, attended = torch.randn(2, 4, 8), torch.ones(2, 4, dtype=torch.bool)
    run(made, x, attended).square().sum().backward()
    plain = [p.grad for p in made.parameters()]
    made.zero_grad()
    turned = rotations(made)
    checkpointed = [
        torch.utils.checkpoint.checkpoint(t, x, attended, turned, use_reentrant=False)
        for t in made.values()
    ]
    torch.stack(checkpointed).square().sum().backward()
    for parameter, right in zip(made.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, right)
    made.zero_grad()
    compiled = torch.compile(run, backend="eager", fullgraph=True)
    compiled(made, x, attended).square().sum().backward()
    for parameter, right in zip(made.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, right)


# Layers


def slow_layer(layer: Layer, x: Tensor, attended: list[bool]) -> Tensor:
    """One sequence through one layer, head by head and token by token (the paper's equation 1)."""
    heads, size = layer.heads, x.shape[1] // layer.heads
    q, k, v = layer.query(x), layer.key(x), layer.value(x)
    mixed = torch.zeros_like(x)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(x)):
            seen = [j for j in range(len(x)) if attended[j]]
            scores = torch.stack([torch.exp(q[i, part] @ k[j, part] / size**0.5) for j in seen])
            for score, j in zip(scores / scores.sum(), seen, strict=True):
                mixed[i, part] += score * v[j, part]

    def norm(module: nn.LayerNorm, y: Tensor) -> Tensor:
        centred = y - y.mean(1, keepdim=True)
        return centred / centred.square().mean(1, keepdim=True).sqrt() * module.weight + module.bias

    x = norm(layer.attention_norm, x + layer.merge(mixed))
    wide = layer.widen(x)
    wide = wide * 0.5 * (1 + torch.erf(wide / 2**0.5))
    return norm(layer.feed_forward_norm, x + layer.narrow(wide))


@pytest.mark.parametrize("sharing", get_args(Sharing))
def test_layers_are_what_a_slow_loop_computes(sharing: Sharing) -> None:
    made = transformers({"v": 2, "a": 2}, 6, 3, 8, sharing=sharing, rank=4, dropout=0.5).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    made.eval()
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    attended = torch.tensor([[True] * 4, [True, False, True, False], [False, True, False, False]])
    out = run(made, x, attended)
    for t, transformer in enumerate(made.values()):
        for row in range(3):
            y = x[row]
            for i in range(2):
                y = slow_layer(
                    transformer.layers[i % len(transformer.layers)], y, attended[row].tolist()
                )
            torch.testing.assert_close(out[t, row], y)


def test_a_sequence_that_nothing_attends_to_stays_finite() -> None:
    made = transformers({"v": 2}, 6, 3, 8, rank=4)
    x = torch.randn(2, 4, 6, requires_grad=True)
    out = run(made, x, torch.tensor([[False] * 4, [True] * 4]))
    out.sum().backward()
    torch.testing.assert_close(out, run(made, x, torch.ones(2, 4, dtype=torch.bool)))
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_dropout_in_training_alone() -> None:
    made = transformers({"v": 1}, 6, 3, 8, rank=4, dropout=0.5)
    x, attended = torch.randn(2, 4, 6), torch.ones(2, 4, dtype=torch.bool)
    assert not torch.equal(run(made, x, attended), run(made, x, attended))
    made.eval()
    assert torch.equal(run(made, x, attended), run(made, x, attended))


def test_heads_divide_the_dimensions() -> None:
    with pytest.raises(ValueError, match="4 heads do not divide 6 dimensions"):
        Layer(6, 4, 8)
