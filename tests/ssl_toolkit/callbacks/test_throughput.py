from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.callbacks.throughput import Throughput, num_images


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Module:
    """Keeps what was logged last."""

    def __init__(self) -> None:
        self.logged: dict[str, float] = {}

    def log(self, name: str, value: float, **options: Any) -> None:
        self.logged[name] = value


def run(callback: Throughput, clock: Clock, trainer: Any, steps: list[tuple[float, float]], images: int = 4) -> Module:
    """Makes steps of (seconds of waiting, seconds of work); a loader that keeps an account is told of the former."""
    module, batch = Module(), torch.zeros(images, 3)
    callback.on_train_epoch_start(trainer, module)  # pyright: ignore[reportArgumentType]
    for wait, work in steps:
        clock.now += wait
        if hasattr(trainer.train_dataloader, "wait_seconds"):
            trainer.train_dataloader.wait_seconds += wait
        callback.on_train_batch_start(trainer, module, batch, 0)  # pyright: ignore[reportArgumentType]
        clock.now += work
        callback.on_train_batch_end(trainer, module, None, batch, 0)  # pyright: ignore[reportArgumentType]
    return module


@pytest.fixture(params=["account", "no account"])
def trainer(request: pytest.FixtureRequest) -> Any:
    loader = SimpleNamespace(wait_seconds=7.0) if request.param == "account" else SimpleNamespace()
    return SimpleNamespace(world_size=1, train_dataloader=loader)


def start(window: int, trainer: Any) -> tuple[Throughput, Clock]:
    clock = Clock()
    callback = Throughput(window=window, clock=clock)
    callback.on_train_start(trainer, None)  # pyright: ignore[reportArgumentType]
    return callback, clock


def test_rate_and_share_of_waiting(trainer: Any) -> None:
    callback, clock = start(10, trainer)
    module = run(callback, clock, trainer, [(0.5, 1.5), (0.0, 1.0), (0.25, 0.75)])
    assert module.logged == pytest.approx({"train/images_per_second": 12 / 4, "train/data_wait": 0.75 / 4})


def test_only_the_window_counts(trainer: Any) -> None:
    callback, clock = start(2, trainer)
    module = run(callback, clock, trainer, [(100.0, 100.0), (0.5, 0.5), (0.0, 1.0)])
    assert module.logged == pytest.approx({"train/images_per_second": 8 / 2, "train/data_wait": 0.25})


def test_what_lies_between_epochs_does_not_count(trainer: Any) -> None:
    callback, clock = start(10, trainer)
    run(callback, clock, trainer, [(0.5, 0.5)])
    clock.now += 1000.0  # an evaluation, which may wait for the same loader
    if hasattr(trainer.train_dataloader, "wait_seconds"):
        trainer.train_dataloader.wait_seconds += 300.0
    module = run(callback, clock, trainer, [(0.5, 0.5)])
    assert module.logged == pytest.approx({"train/images_per_second": 4.0, "train/data_wait": 0.5})


def test_all_processes_count(trainer: Any) -> None:
    trainer.world_size = 3
    callback, clock = start(10, trainer)
    assert run(callback, clock, trainer, [(0.0, 1.0)]).logged["train/images_per_second"] == 12.0


def test_share_stays_in_its_range_whatever_the_loader_says() -> None:
    trainer = SimpleNamespace(world_size=1, train_dataloader=SimpleNamespace(wait_seconds=0.0))
    callback, clock = start(10, trainer)
    module = Module()
    callback.on_train_epoch_start(trainer, module)  # pyright: ignore[reportArgumentType]
    trainer.train_dataloader.wait_seconds = 50.0
    callback.on_train_batch_start(trainer, module, None, 0)  # pyright: ignore[reportArgumentType]
    clock.now += 1.0
    callback.on_train_batch_end(trainer, module, None, torch.zeros(4), 0)  # pyright: ignore[reportArgumentType]
    assert module.logged["train/data_wait"] == 1.0


def test_num_images() -> None:
    images = Images(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), torch.zeros(5, 2, dtype=torch.int64))
    assert num_images(Batch(images, torch.arange(5), torch.zeros(5), 0)) == 5
    assert num_images(torch.zeros(3, 2)) == 3
    assert num_images([torch.zeros(3, 2), torch.zeros(3)]) == 3
    assert num_images({"x": [torch.zeros(2, 2)]}) == 2
    assert num_images((7, {})) == 0


def test_refuses_an_empty_window() -> None:
    with pytest.raises(ValueError, match="window is 0, expected at least 1"):
        Throughput(window=0)


def test_a_run_that_is_resumed_amid_an_epoch_counts_from_its_start(trainer: Any) -> None:
    """Lightning calls no ``on_train_epoch_start`` there."""
    callback, clock = start(10, trainer)
    module, batch = Module(), torch.zeros(4, 3)
    clock.now += 1.0
    callback.on_train_batch_start(trainer, module, batch, 5)  # pyright: ignore[reportArgumentType]
    clock.now += 1.0
    callback.on_train_batch_end(trainer, module, None, batch, 5)  # pyright: ignore[reportArgumentType]
    assert module.logged["train/images_per_second"] == pytest.approx(4 / 2)
    assert module.logged["train/data_wait"] == pytest.approx(
        0.0 if hasattr(trainer.train_dataloader, "wait_seconds") else 0.5
    )
