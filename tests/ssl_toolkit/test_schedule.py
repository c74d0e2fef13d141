"""Schedules against hand values."""

import math

import pytest

from ssl_toolkit.schedule import Constant, Cosine, Linear, MultiStep


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


def test_two_warmups_and_bad_milestones_are_refused():
    with pytest.raises(ValueError, match="give one of"):
        Cosine(warmup_steps=3, warmup_epochs=1)
    with pytest.raises(ValueError, match="rising shares"):
        MultiStep((0.8, 0.6))
