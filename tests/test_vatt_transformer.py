"""Layers against their formulas, number by number; tokens dropped, activations computed anew."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from mmssl_vatt.text_tower import distance_buckets
from mmssl_vatt.transformer import (
    SHAPES,
    Layer,
    Size,
    Transformer,
    aggregator,
    attended,
    behind,
    drop_tokens,
    linear,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randomised(net: nn.Module) -> nn.Module:
    """In float64, also biases and norms away from what they begin with."""
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.double()


def close(found: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)


# Formulas


def normed(x: Tensor, norm: nn.Module) -> Tensor:
    if isinstance(norm, nn.RMSNorm):
        return x / torch.sqrt((x * x).mean() + 1e-6) * norm.weight
    centred = x - x.mean()
    return centred / torch.sqrt((centred * centred).mean() + 1e-6) * norm.weight + norm.bias


def mapped(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = torch.stack([(row * x).sum() for row in weight])
    return y if bias is None else y + bias


def slow_layer(layer: Layer, x: Tensor, added: Tensor, scale: float) -> Tensor:
    """One sequence ``[N, D]``; ``added [heads, N, N]`` to the scores."""
    size, heads = x.shape[1], layer.heads
    width = size // heads
    joined = [mapped(normed(row, layer.attention_norm), *both(layer.query_key_value)) for row in x]
    query, key, value = (
        torch.stack([row[i * size : (i + 1) * size] for row in joined]) for i in range(3)
    )
    mixed = torch.zeros_like(x)
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        for i in range(len(x)):
            scores = [
                (query[i, part] * key[j, part]).sum() * scale + added[h, i, j]
                for j in range(len(x))
            ]
            powers = [torch.exp(score) for score in scores]
            weighted = [p * value[j, part] for j, p in enumerate(powers)]
            mixed[i, part] = sum(weighted) / sum(powers)
    x = torch.stack([row + mapped(m, *both(layer.merge)) for row, m in zip(x, mixed, strict=True)])
    out = []
    for row in x:
        wide = mapped(normed(row, layer.feed_forward_norm), *both(layer.widen))
        below = [0.5 * (1 + math.erf(v / math.sqrt(2))) for v in wide.tolist()]
        wide = wide * torch.tensor(below, dtype=wide.dtype)
        out.append(row + mapped(wide, *both(layer.narrow)))
    return torch.stack(out)


def both(module: nn.Linear) -> tuple[Tensor, Tensor | None]:
    return module.weight, module.bias


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_a_layer(bias: bool, masked: bool) -> None:
    layer = randomised(Layer(8, 6, 2, bias=bias, dropout=0.3)).eval()
    assert all((m.bias is not None) == bias for m in layer.modules() if isinstance(m, nn.Linear))
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    valid = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4])
    y = layer(x, attended(valid) if masked else None)
    for row in range(3):
        added = torch.zeros(2, 5, 5, dtype=torch.float64)
        if masked:
            added[:, :, 1:][:, :, ~valid[row]] = -math.inf
        close(y[row], slow_layer(layer, x[row], added, scale=1 / math.sqrt(4)))


@torch.no_grad()
def test_a_layer_of_t5() -> None:
    layer = randomised(Layer(8, 6, 2, bias=False, t5=True)).eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    added = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    added[0, :, :, 3] = -math.inf
    y = layer(x, added)
    assert isinstance(layer.attention_norm, nn.RMSNorm)
    assert isinstance(layer.feed_forward_norm, nn.LayerNorm)
    for row in range(2):
        close(y[row], slow_layer(layer, x[row], added[row], scale=1.0))


@pytest.mark.parametrize("t5", [True, False])
@torch.no_grad()
def test_a_transformer_is_layers_and_a_norm(t5: bool) -> None:
    net = randomised(Transformer("tiny", bias=not t5, t5=t5)).eval()
    x = torch.randn(2, 3, 128, dtype=torch.float64)
    y = net.layers[1](net.layers[0](x))
    right = [normed(row, net.norm) for row in y.flatten(0, 1)]
    close(net(x).flatten(0, 1), torch.stack(right))


@pytest.mark.parametrize(
    ("size", "with_biases", "without"),
    [
        ("small", 18_915_328, 18_887_680),
        ("base", 85_056_000, 84_973_056),
        ("medium", 151_156_736, 151_046_144),
        ("large", 302_311_424, 302_090_240),
    ],
)
def test_numbers_of_parameters(size: Size, with_biases: int, without: int) -> None:
    with torch.device("meta"):
        nets = [Transformer(size), Transformer(size, bias=False)]
    assert [sum(p.numel() for p in net.parameters()) for net in nets] == [with_biases, without]


def test_heads_have_64_dimensions() -> None:
    assert set(SHAPES) == set(get_args(Size))
    assert {shape.dim / shape.heads for shape in SHAPES.values()} == {64}


def test_heads_divide_the_dimensions() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide 8"):
        Layer(8, 6, 3)


# Dropout and how training begins


def test_dropout_is_where_the_released_code_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of attention weights, hidden and residual values, and of what comes out."""
    rates = []
    attention = nn.functional.scaled_dot_product_attention

    def dropped(x: Tensor, p: float, training: bool) -> Tensor:
        rates.append((tuple(x.shape), p * training))
        return x

    def attending(*args: Tensor, dropout_p: float, **more: object) -> Tensor:
        rates.append(("attention", dropout_p))
        return attention(*args, **more)

    monkeypatch.setattr(nn.functional, "dropout", dropped)
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", attending)
    net = Transformer("tiny", dropout=0.2)
    for rate in (0.2, 0.0):
        rates.clear()
        net(torch.randn(1, 3, 128))
        layer = ["attention", (1, 3, 128), (1, 3, 256), (1, 3, 128)]
        assert rates == [(what, rate) for what in [*layer, *layer, (1, 3, 128)]]
        net.eval()


def test_training_is_random_and_measuring_is_not() -> None:
    net, x = Transformer("tiny"), torch.randn(2, 4, 128)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_linear_maps_begin_as_released() -> None:
    made = linear(60, 3 * 60, maps=3)
    assert made.bias.eq(0).all()
    assert made.weight.abs().max() <= math.sqrt(6 / 120)
    assert made.weight.abs().max() > 0.99 * math.sqrt(6 / 120)
    layer = Layer(60, 20, 2)
    assert layer.query_key_value.weight.abs().max() > 0.99 * math.sqrt(6 / 120)
    assert math.sqrt(6 / 80) >= layer.widen.weight.abs().max() > 0.99 * math.sqrt(6 / 80)


def test_agg_begins_glorot_normal() -> None:
    agg = aggregator(40_000)
    assert agg.std().item() == pytest.approx(40_000**-0.5, rel=0.02)
    tokens = torch.randn(2, 3, 40_000)
    joined = behind(agg, tokens)
    assert torch.equal(joined[:, 1:], tokens)
    assert torch.equal(joined[:, 0], agg.expand(2, -1))


# DropToken


@pytest.mark.parametrize(
    ("size", "rate", "kept"),
    [
        (1568, 0.5, 784),
        (1200, 0.5, 600),
        (7, 0.5, 3),
        (8, 0.25, 6),
        (5, 0.0, 5),
        (3, 0.9, 1),
        (1200, 0.8, 240),
        (100, 0.9, 10),
    ],
)
def test_the_same_tokens_are_dropped_of_all_rows(size: int, rate: float, kept: int) -> None:
    places = torch.arange(size).expand(4, -1)
    tokens = torch.stack([places, torch.arange(4)[:, None].expand_as(places)], 2).float()
    chosen = drop_tokens(tokens, rate)
    assert chosen.shape == (4, kept, 2)
    assert (chosen[..., 0] == chosen[0, :, 0]).all()
    assert (chosen[..., 1] == torch.arange(4)[:, None]).all()
    assert (chosen[0, 1:, 0] > chosen[0, :-1, 0]).all()  # in their order, none twice


def test_which_tokens_are_dropped_is_drawn_anew() -> None:
    tokens = torch.arange(10.0)[None, :, None]
    seen = torch.zeros(10)
    for _ in range(1000):
        seen[drop_tokens(tokens, 0.3).flatten().long()] += 1
    assert (seen / 1000).sub(0.7).abs().max() < 0.06
    torch.manual_seed(3)
    first = drop_tokens(tokens, 0.5)
    torch.manual_seed(3)
    assert torch.equal(drop_tokens(tokens, 0.5), first)


# Activations


@pytest.mark.parametrize("masked", [True, False])
def test_checkpointing_changes_no_gradient(masked: bool) -> None:
    """Dropout draws the same again."""
    torch.manual_seed(1)
    nets = [Transformer("tiny", dropout=0.2, checkpointing=c) for c in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    valid = torch.tensor([[True, True, False], [True, False, False]])
    gradients = []
    for net in nets:
        torch.manual_seed(2)
        x = torch.randn(2, 4, 128, requires_grad=True)
        y = net(x, attended(valid) if masked else None)
        (y * torch.randn(2, 4, 128)).sum().backward()
        gradients.append([y, x.grad, *(p.grad for p in net.parameters())])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
    assert gradients[0][1].ne(0).any()


def test_checkpointing_computes_layers_again() -> None:
    for checkpointing, calls in ((False, 2), (True, 4)):
        net, seen = Transformer("tiny", checkpointing=checkpointing), []
        for layer in net.layers:
            layer.widen.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        net(torch.randn(1, 3, 128)).sum().backward()
        assert len(seen) == calls


@pytest.mark.parametrize("t5", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_bfloat16_is_finite_and_near(t5: bool, masked: bool) -> None:
    net = Transformer("tiny", bias=not t5, dropout=0.0, t5=t5)
    x = torch.randn(2, 4, 128)
    mask = attended(torch.tensor([[True, True, False], [False] * 3])) if masked else None
    if t5:
        bias = torch.randn(1, 2, 4, 4)
        mask = bias if mask is None else torch.where(mask, bias, -math.inf)
    right = net(x, mask)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x, mask)
    torch.testing.assert_close(y, right, rtol=0.05, atol=0.1, check_dtype=False)
    y.float().square().sum().backward()
    for parameter in net.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


# Distances


def slow_bucket(distance: int) -> int:
    """T5's rule for 32 buckets and a largest distance of 64: 16 on either side, 8 of them exact."""
    near = abs(distance)
    bucket = near
    if near >= 8:
        bucket = 8 + math.floor(math.log(near / 8) / math.log(64 / 8) * 8)
    return min(bucket, 15) + (16 if distance > 0 else 0)


def test_buckets_of_distances() -> None:
    found = distance_buckets(150)
    for row in range(0, 150, 7):
        right = [slow_bucket(column - row) for column in range(150)]
        assert found[row].tolist() == right
    assert found.dtype == torch.int64
    assert found[0, :10].tolist() == [0, 17, 18, 19, 20, 21, 22, 23, 24, 24]
    assert found[140, 0] == 15
    assert found[0, 140] == 31
