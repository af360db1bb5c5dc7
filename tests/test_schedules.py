"""Learning rates at the boundaries of the papers' tables."""

import math

import pytest

from mmssl.training.schedules import Place, constant, cosine, linear, step

STEPS = 100


def at(epoch: float, epochs: int, unscaled: float = 0.0) -> Place:
    return Place(round(epoch * STEPS), STEPS, epochs, unscaled)


# Rows of XDC's optimisation tables: warm-up / step / total, and where the decays fall.
@pytest.mark.parametrize(
    ("warmup", "every", "total", "decay_from", "decays"),
    [
        (10, 10, 45, "warmup_end", [20, 30, 40]),
        (10, 10, 45, "zero", [10, 20, 30, 40]),
        (10, 20, 45, "warmup_end", [30]),
        (10, 10, 30, "warmup_end", [20]),
        (10, 10, 30, "zero", [10, 20]),
        (1, 3, 10, "warmup_end", [4, 7]),
        (1, 3, 10, "zero", [3, 6, 9]),
        (0, 9, 30, "warmup_end", [9, 18, 27]),
        (2, 2, 8, "warmup_end", [4, 6]),
    ],
)
@pytest.mark.parametrize("gamma", [0.1, 0.01])
def test_step_decays_where_the_tables_say(
    warmup: int, every: int, total: int, decay_from: str, decays: list[int], gamma: float
) -> None:
    def factor(epoch: float) -> float:
        return step(
            at(epoch, total),
            step_epochs=every,
            gamma=gamma,
            warmup_epochs=warmup,
            warmup_from=0.0,
            decay_from=decay_from,  # type: ignore[arg-type]
        )

    seen = [
        i / STEPS
        for i in range(1, total * STEPS)
        if i / STEPS >= warmup and factor(i / STEPS) < factor((i - 1) / STEPS)
    ]
    assert seen == decays
    assert factor(total - 1 / STEPS) == pytest.approx(gamma ** len(decays))


def test_counting_from_zero_never_trains_at_the_peak() -> None:
    # Trap: 10/10/30 counted from epoch 0 decays in the moment in which warm-up ends.
    rates = [
        step(at(e / 10, 30), step_epochs=10, warmup_epochs=10, warmup_from=0.1, decay_from="zero")
        for e in range(300)
    ]
    assert max(rates) < 1.0
    assert step(at(10, 30), step_epochs=10, warmup_epochs=10, decay_from="zero") == 0.1


def test_warmup_goes_from_the_unscaled_rate_to_the_peak_step_by_step() -> None:
    # 64 GPUs of 32 clips: lr 0.01 -> 0.64.
    unscaled = 32 / 2048
    rates = [0.64 * constant(at(e, 30, unscaled), warmup_epochs=10) for e in (0, 5, 9.99, 10, 29)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[1] == pytest.approx((0.01 + 0.64) / 2)
    assert rates[2] < 0.64
    assert rates[3] == rates[4] == pytest.approx(0.64)


def test_cosines() -> None:
    half = [cosine(at(e, 10)) for e in (0, 5, 10)]
    assert half == pytest.approx([1.0, 0.5, 0.0])
    # 1e-4 to 5e-5: the quarter period is at 8.5355e-5 in mid-course, the half period at 7.5e-5.
    assert 1e-4 * cosine(at(5, 10), end=0.5, period="quarter") == pytest.approx(8.5355e-5, abs=1e-9)
    assert 1e-4 * cosine(at(5, 10), end=0.5, period="half") == pytest.approx(7.5e-5)
    quarter = [0.5e-4 * (1 + math.cos(math.pi / 2 * e / 10)) for e in range(11)]
    got = [1e-4 * cosine(at(e, 10), end=0.5, period="quarter") for e in range(11)]
    assert got == pytest.approx(quarter)


def test_linear_after_six_per_cent_of_warmup() -> None:
    # 220 000 steps as 100 epochs of 2 200: warm-up ends at step 13 200.
    def factor(s: int) -> float:
        return linear(Place(s, 2200, 100), warmup_epochs=6, warmup_from=0.0)

    assert factor(0) == 0.0
    assert factor(6600) == pytest.approx(0.5)
    assert factor(13_200) == 1.0
    assert factor((220_000 + 13_200) // 2) == pytest.approx(0.5)
    assert factor(220_000) == 0.0


@pytest.mark.parametrize("schedule", [constant, cosine, linear])
def test_a_warmup_as_long_as_the_round_divides_by_nothing(schedule: object) -> None:
    assert callable(schedule)
    assert schedule(at(2, 2), warmup_epochs=2) == 1.0
