"""What the conformance kit takes away so that a mistake shows, and what it forgives."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmssl.contracts import Batch
from mmssl.pipeline.plan import asks_for_data
from mmssl.testing import loops
from mmssl.training import distributed


def batch_of(index: Tensor) -> Batch:
    size = len(index)
    names = ("video", "audio", "text")
    return Batch(
        index=index,
        seeds=index,
        clips={name: torch.ones(size, 2) for name in names},
        present={name: torch.ones(size, dtype=torch.bool) for name in names},
        labels=index,
    )


def test_ranks_have_the_gaps_of_one_process_and_unequal_numbers_of_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two micro-batches of 8: rows 0-7 and 8-15, of which each rank has a consecutive half."""
    whole = loops._with_gaps(batch_of(torch.arange(16)), 2)
    parts = []
    for rank, rows in enumerate(([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        part = loops._with_gaps(batch_of(torch.tensor(rows)), 2)
        for name in whole.present:
            assert torch.equal(part.present[name], whole.present[name][rows])
            assert torch.equal(part.clips[name], whole.clips[name][rows])
        parts.append(part)
    for name, mask in whole.present.items():
        assert torch.equal(whole.clips[name].any(1), mask)
        assert int(parts[0].present[name].sum()) != int(parts[1].present[name].sum())


@pytest.mark.parametrize(
    "operation",
    [lambda x: x.max().item(), lambda x: bool(x.any()), lambda x: x[x > 0], lambda x: x.tolist()],
)
def test_a_network_that_looks_at_values_is_no_mistake(
    operation: Callable[[Tensor], object],
) -> None:
    with pytest.raises(RuntimeError) as raised:
        operation(torch.zeros(2, device="meta"))
    assert asks_for_data(raised.value)


def test_a_network_of_other_shapes_is_one() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.zeros(2, 3, device="meta") @ torch.zeros(2, 3, device="meta")
    assert not asks_for_data(raised.value)
