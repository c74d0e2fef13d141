"""When checkpoints are worth their time: the first ones of a run come early if they cost next to nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ssl_toolkit.callbacks import checkpoint as module
from ssl_toolkit.callbacks.checkpoint import Checkpoint


class Clock:
    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def trainer_of(num_parameters, epoch=1, is_last_batch=False, step=0):
    network = SimpleNamespace(parameters=lambda: [torch.empty(num_parameters, device="meta")])
    return SimpleNamespace(
        lightning_module=network, current_epoch=epoch, is_last_batch=is_last_batch, global_step=step,
        is_global_zero=True,
    )  # fmt: skip


def started(trainer):
    callback = Checkpoint()
    callback.preemption = SimpleNamespace(listen=lambda: None)
    callback.on_train_start(trainer, None)
    return callback


def seconds_until_due(clock, trainer, callback):
    begin = clock.now
    while not callback._is_time(trainer):
        clock.now += 1
    return clock.now - begin


def test_the_first_comes_after_a_minute_if_it_is_quick_and_the_next_after_five(clock):
    trainer = trainer_of(1_000_000)
    callback = started(trainer)
    assert seconds_until_due(clock, trainer, callback) == pytest.approx(61, abs=1)
    callback._last_saved, callback._step_on_disk, callback._seconds = clock.now, 100, 0.05
    assert seconds_until_due(clock, trainer, callback) == pytest.approx(301, abs=1)


def test_one_that_takes_two_seconds_waits_for_two_hundred(clock):
    trainer = trainer_of(34_000_000)  # weights and two moments are 408 MB
    assert seconds_until_due(clock, trainer, started(trainer)) == pytest.approx(209, abs=2)


def test_one_that_takes_long_waits_for_its_time(clock):
    trainer = trainer_of(1_000_000_000)
    assert seconds_until_due(clock, trainer, started(trainer)) == pytest.approx(301, abs=1)


def test_the_end_of_the_first_epoch(clock):
    trainer = trainer_of(1_000_000, epoch=0, is_last_batch=True)
    callback = started(trainer)
    assert not callback._is_time(trainer)  # an epoch that takes less than a hundred saves
    clock.now += 12
    assert callback._is_time(trainer)
    trainer.is_last_batch = False
    assert not callback._is_time(trainer)
    trainer.current_epoch, trainer.is_last_batch = 1, True
    assert not callback._is_time(trainer)


def test_a_resumed_run_has_one_already(clock):
    trainer = trainer_of(1_000_000, step=500)
    assert seconds_until_due(clock, trainer, started(trainer)) == pytest.approx(301, abs=1)
