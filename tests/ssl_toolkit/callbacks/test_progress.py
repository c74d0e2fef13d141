from __future__ import annotations

import io
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from ssl_toolkit.callbacks.progress import ProgressBar, seconds_left, training_status

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]


class Tiny(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss)
        self.log("train/images_per_second", 1834.4)
        self.log("train/data_wait", 0.021)
        if batch_idx == 3 and getattr(self, "broken", False):
            raise RuntimeError("broken")
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/knn_top1", 0.4125)

    def test_step(self, batch: Tensor, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(terminal: bool, every_seconds: float = 1e-9, broken: bool = False, **options: Any) -> str:
    """Trains two epochs of five steps; returns what was printed."""
    file = io.StringIO()
    bar = ProgressBar(every_seconds, Console(file=file, force_terminal=terminal, width=160))
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[bar],
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        **options,
    )
    task, loader = Tiny(), DataLoader(torch.randn(10, 3), batch_size=2)
    task.broken = broken  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    if broken:
        with pytest.raises(RuntimeError, match="broken"):
            trainer.fit(task, loader, loader)
    else:
        trainer.fit(task, loader, loader)
        trainer.test(task, loader, verbose=False)
    return file.getvalue()


def test_lines_of_text_where_there_is_no_terminal() -> None:
    lines = run(terminal=False, max_epochs=2).splitlines()
    first = next(line for line in lines if line.startswith("epoch 1/2 · step 1/10 · loss "))
    assert " · 1,834 images/s · data wait 2 % · 0:00:" in first
    assert first.endswith(" left")
    assert "kNN" not in first
    second = next(line for line in lines if line.startswith("epoch 2/2 · step 6/10 · loss "))
    assert " · kNN 41.2 % · " in second
    assert lines[-1] == "test · step 5/5"
    assert not any("\x1b" in line for line in lines)


def test_lines_come_now_and_then() -> None:
    lines = run(terminal=False, every_seconds=1000.0, max_epochs=2).splitlines()
    # the first step, and the end
    assert [line.partition(" · loss")[0] for line in lines] == ["epoch 1/2 · step 1/10", "epoch 2/2 · step 10/10"]


def test_a_bar_in_a_terminal() -> None:
    text = run(terminal=True, max_epochs=2)
    assert "epoch 2/2" in text
    assert "10/10 · loss " in text
    assert "\x1b[?25h" in text, "the cursor is back"


def test_number_of_epochs_unknown() -> None:
    def lines(steps: int) -> list[str]:
        shown = run(terminal=False, max_steps=steps, max_epochs=-1).splitlines()
        return [line for line in shown if line.startswith("epoch")]

    assert lines(7)[0].startswith("epoch 1 · step 1/7 · ")
    assert lines(7)[-1].startswith("epoch 2 · step 7/7 · ")
    # the last step is that of its epoch, not of one that does not come
    assert lines(10)[-1].startswith("epoch 2 · step 10/10 · ")


def test_error_ends_the_bar() -> None:
    assert run(terminal=True, broken=True, max_epochs=2).rstrip().endswith("\x1b[?25h")


def test_disabled_shows_nothing() -> None:
    bar = ProgressBar(console=Console(file=io.StringIO(), force_terminal=True))
    bar.disable()
    bar.on_train_start(SimpleNamespace(global_step=0), None)  # pyright: ignore[reportArgumentType]
    assert bar._progress is None
    bar.enable()
    assert bar._due(force=False)


def test_status() -> None:
    metrics = {
        "train/loss": torch.tensor(3.21449),
        "val/knn_top1": 0.4125,
        "val/top1": 1.0,
        "train/images_per_second": 1834.4,
        "train/data_wait": 0.021,
        "train/lr": 0.1,
    }
    expected = [
        "loss 3.214",
        "kNN 41.2 %",
        "top-1 100.0 %",
        "1,834 images/s",
        "data wait 2 %",
        "3 bad files",
        "0:12:30 left",
    ]
    assert training_status(metrics, 3, 750.2) == expected
    assert training_status({}, 1, None) == ["1 bad file"]
    # one slow step
    assert training_status({"train/images_per_second": 0.42}, 0, None) == ["0.42 images/s"]


def test_seconds_left() -> None:
    assert seconds_left(10.0, 5, 20) == 40.0
    assert seconds_left(10.0, 0, 20) is None
    assert seconds_left(10.0, 5, math.inf) is None
    assert seconds_left(10.0, 5, 20, [Timer(duration={"seconds": 30})]) == pytest.approx(30.0, abs=0.5)
    assert seconds_left(10.0, 5, 20, [Timer(duration={"hours": 1})]) == 40.0


def test_refuses_no_interval() -> None:
    with pytest.raises(ValueError, match="every_seconds is 0, expected a number above 0"):
        ProgressBar(every_seconds=0)


def test_what_a_run_prints_can_be_piped_without_its_progress():
    assert ProgressBar().console.stderr
