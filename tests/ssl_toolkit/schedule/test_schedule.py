"""Schedules against hand values and torch's own."""

import math
import warnings

import pytest
import torch
from torch.optim import lr_scheduler

from ssl_toolkit.schedule import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    MultiStep,
    OneCycle,
    Polynomial,
    Step,
)


def factors(schedule, steps, total=100, steps_per_epoch=10):
    return [schedule.factor(step, total, steps_per_epoch) for step in steps]


def test_warmup_rises_from_zero_in_each_unit():
    for warmup in ({"warmup_steps": 20}, {"warmup_epochs": 2}, {"warmup_percent": 20}):
        assert factors(Constant(**warmup), [0, 5, 10, 20, 99]) == [0, 0.25, 0.5, 1, 1]


def test_cosine_at_its_quarter_points():
    expected = [1.0, 0.5 + math.sqrt(0.5) / 2, 0.5, 0.5 - math.sqrt(0.5) / 2, 0.0]
    assert factors(Cosine(), [0, 25, 50, 75, 100]) == pytest.approx(expected)
    assert factors(Cosine(final_factor=0.2, warmup_steps=20), [20, 60, 100]) == pytest.approx([1, 0.6, 0.2])


def test_linear_and_multistep():
    assert factors(Linear(warmup_steps=20), [10, 20, 60, 100]) == pytest.approx([0.5, 1, 0.5, 0])
    assert factors(MultiStep((0.5, 0.75)), [0, 49, 50, 74, 75, 99]) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_steps_beyond_the_end_keep_the_last_factor():
    assert factors(Linear(), [150]) == [0]


def test_the_shapes_at_hand_values():
    assert factors(Linear(final_factor=0.2), [0, 50, 100]) == pytest.approx([1, 0.6, 0.2])
    assert factors(Polynomial(power=3, final_factor=0.1), [0, 50, 100]) == pytest.approx([1, 0.1 + 0.9 / 8, 0.1])
    assert factors(Exponential(0.01), [0, 50, 100]) == pytest.approx([1, 0.1, 0.01])
    assert factors(Step(0.3, 0.5), [0, 29, 30, 59, 60, 89, 90, 100]) == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    assert factors(InverseSqrt(0.25), [0, 25, 75]) == pytest.approx([1, math.sqrt(0.5), 0.5])


def test_restarts_at_hand_values():
    # cycles of 10, 30 and 60 % make no geometric row: 1 + 2 + 4 = 7 parts do
    schedule = Cosine(final_factor=0.2, num_cycles=3, cycle_growth=2, restart_factor=0.5)
    found = factors(schedule, [0, 50, 99.999999, 100, 200, 300, 500, 700], total=700)
    assert found == pytest.approx([1, 0.6, 0.2, 0.5, 0.35, 0.25, 0.225, 0.2], abs=1e-6)


def test_inverse_sqrt_is_that_of_the_transformer():
    """Vaswani et al. 2017, equation 3: min(step^-0.5, step * warmup^-1.5), here over its peak."""
    warmup, total = 20, 100
    steps = range(1, total)
    expected = [min(step**-0.5, step * warmup**-1.5) * warmup**0.5 for step in steps]
    fraction = warmup / total
    assert factors(InverseSqrt(fraction / (1 - fraction), warmup_percent=20), steps) == pytest.approx(expected)


def torchs(make, num_steps):
    """The rates of one of torch's schedulers on an optimizer with a rate of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = make(optimizer)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Cosine(0.1), lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 60, eta_min=0.1)),
        (
            Cosine(num_cycles=2, cycle_growth=2),
            lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 20, T_mult=2),
        ),
        (Polynomial(2.5), lambda optimizer: lr_scheduler.PolynomialLR(optimizer, 60, 2.5)),
        (Exponential(0.01), lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / 60))),
        (Step(0.25, 0.3), lambda optimizer: lr_scheduler.StepLR(optimizer, 15, 0.3)),
        (MultiStep((0.5, 0.75), 0.2), lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [30, 45], 0.2)),
        (Linear(0.25), lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, 0.25, 60)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_shapes_of_torch(ours, theirs):
    assert factors(ours, range(60), total=60) == pytest.approx(torchs(theirs, 60), abs=1e-9)


def test_one_cycle_is_torchs():
    # torch's cycle ends one step before the run does
    expected = torchs(
        lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=61, cycle_momentum=False), 61
    )
    found = factors(OneCycle((0.3 * 61 - 1) / 60), range(61), total=60)
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(final_factor=2), "schedule.final_factor is 2"),
        (lambda: Cosine(num_cycles=0), "schedule.num_cycles is 0"),
        (lambda: Polynomial(power=0), "schedule.power is 0"),
        (lambda: Exponential(0), "never reaches"),
        (lambda: Step(every=0), "schedule.every is 0"),
        (lambda: Step(gamma=-1), "schedule.gamma is -1"),
        (lambda: InverseSqrt(0), "schedule.timescale is 0"),
        (lambda: OneCycle(peak=1), "schedule.peak is 1"),
    ],
)
def test_bad_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_two_warmups_and_bad_milestones_are_refused():
    with pytest.raises(ValueError, match="give one of"):
        Cosine(warmup_steps=3, warmup_epochs=1)
    with pytest.raises(ValueError, match="rising shares"):
        MultiStep((0.8, 0.6))


def test_more_than_all_of_the_run_is_no_warmup():
    assert Constant(warmup_percent=100).warmup(50, 5) == 50
    with pytest.raises(ValueError, match=r"schedule.warmup_percent is 150, expected 0 to 100 percent"):
        Constant(warmup_percent=150)
