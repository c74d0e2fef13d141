"""The course of any number over a run, by the curves of the learning rate."""

import math

import pytest

from ssl_toolkit.schedule import Constant, Linear, MultiStep, Progress, Scheduled, check_bounds, value_at


def at(scheduled, step, total=100, per_epoch=10.0):
    return value_at(scheduled, Progress(step, total, per_epoch))


def test_the_fraction_of_a_run():
    assert Progress().fraction == 0
    assert [Progress(step, 3).fraction for step in range(4)] == [0, 1 / 3, 2 / 3, 1]
    assert Progress(9, 3).fraction == 1


def test_byol_s_momentum():
    """Grill et al. 2020, section 3.1: tau = 1 - (1 - tau_base) (cos(pi k / K) + 1) / 2."""
    for step in (0, 1, 37, 99, 100):
        expected = 1 - (1 - 0.996) * (math.cos(math.pi * step / 100) + 1) / 2
        assert at(Scheduled(0.996, 1.0), step) == pytest.approx(expected, abs=1e-12)
    assert at(Scheduled(0.996, 1.0), 100) == 1


def test_dino_s_teacher_temperature():
    """Caron et al. 2021: a linear warm-up from 0.04 to 0.07 over the first epochs, then constant."""
    warm = Scheduled(0.07, 0.04, Constant(warmup_epochs=3))
    assert [at(warm, step) for step in (0, 15, 30, 100)] == pytest.approx([0.04, 0.055, 0.07, 0.07])


def test_the_units_and_curves_of_the_learning_rate():
    weight = Scheduled(2.0, schedule=Linear(warmup_percent=20))
    assert [at(weight, step) for step in (0, 10, 20, 60, 100)] == pytest.approx([0, 1, 2, 1, 0])
    steps = Scheduled(1.0, schedule=MultiStep(milestones=(0.5,), gamma=0.1))
    assert [at(steps, step) for step in (49, 50)] == pytest.approx([1, 0.1])


def test_a_plain_number_stays():
    assert value_at(0.3, Progress(5, 10)) == 0.3


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1.5, "model.x is 1.5, expected at least 0 and at most 1"),
        (Scheduled(0.9, 1.2), r"model.x is from 0.9 to 1.2, expected at least 0 and at most 1"),
        (Scheduled(-0.1, 1.0), "from -0.1 to 1.0"),
    ],
)
def test_numbers_out_of_their_bounds_are_refused(number, expected):
    with pytest.raises(ValueError, match=expected):
        check_bounds("model.x", number, 0, 1)
    check_bounds("model.x", Scheduled(1.0, 0.0), 0, 1)


def test_an_open_bound():
    with pytest.raises(ValueError, match=r"temperature is 0, expected above 0$"):
        check_bounds("temperature", 0, 0, math.inf, low_included=False)
    with pytest.raises(ValueError, match=r"from 0.2 to 0.0, expected above 0"):
        check_bounds("temperature", Scheduled(0.2), 0, math.inf, low_included=False)
