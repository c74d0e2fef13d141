"""The loader under a real Trainer: what it saves, and what it does after a resume."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from ssl_toolkit.data import ImageData

EPOCH = 4  # batches


class Recorder(LightningModule):
    """Notes the batches it is given."""

    def __init__(self, stepping_batches: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.stepping_batches = stepping_batches
        self.seen: list[tuple[int, list[int]]] = []
        self.validated: list[int] = []

    def training_step(self, batch, _):
        self.seen.append((batch.epoch, batch.indices.tolist()))
        return self.layer(batch.images.pixels.float().mean().reshape(1, 1)).sum()

    def validation_step(self, batch, _):
        self.validated += batch.indices.tolist()

    def configure_optimizers(self):
        if self.stepping_batches:
            assert self.trainer.estimated_stepping_batches == 2 * EPOCH
        return torch.optim.SGD(self.parameters(), lr=1e-6)


class SaveEveryStep(Callback):
    def __init__(self, folder) -> None:
        self.folder = folder
        self.states = []

    def on_train_batch_end(self, trainer, *_):
        self.states.append(trainer.train_dataloader.state_dict())
        trainer.save_checkpoint(self.folder / f"{len(self.states)}.ckpt", weights_only=False)


def fit(folder=None, ckpt_path=None, stepping_batches=False, data=None, callbacks=(), **options):
    model = Recorder(stepping_batches)
    arguments = {"max_images": 54, "image_size": 16, "batch_size": 10, "val_fraction": 0.25, **(data or {})}
    images = ImageData(source="procedural", **arguments)
    callback = SaveEveryStep(folder) if folder else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice about loggers, sanity checks and the like
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[*callbacks, *([callback] if callback else [])],
            **options,
        )
        trainer.fit(model, datamodule=images, ckpt_path=ckpt_path, weights_only=True)
    return model, callback


@pytest.mark.parametrize("options", [{}, {"stepping_batches": True}, {"accumulate_grad_batches": 2}])
def test_resume_at_every_step(tmp_path, options):
    whole, callback = fit(tmp_path, **options)
    assert [epoch for epoch, _ in whole.seen] == [0] * EPOCH + [1] * EPOCH
    assert callback.states[2] == {"epoch": 0, "batch": 3}
    assert callback.states[3] == {"epoch": 1, "batch": 0}
    for step in (2, 4) if options else (1, 3, 4, 5):
        resumed, _ = fit(ckpt_path=tmp_path / f"{step}.ckpt", **options)
        assert resumed.seen == whole.seen[step:]


@pytest.mark.parametrize("limit", [3, 0.75])
def test_resume_with_limited_batches(tmp_path, limit):
    whole, callback = fit(tmp_path, limit_train_batches=limit)
    assert [epoch for epoch, _ in whole.seen] == [0] * 3 + [1] * 3
    assert callback.states[2] == {"epoch": 1, "batch": 0}
    for step in (2, 3, 4):
        resumed, _ = fit(ckpt_path=tmp_path / f"{step}.ckpt", limit_train_batches=limit)
        assert resumed.seen == whole.seen[step:]


def test_reloading_keeps_the_epochs():
    whole, _ = fit()
    reloaded, _ = fit(reload_dataloaders_every_n_epochs=1)
    assert reloaded.seen == whole.seen


def test_validation_sees_every_image_once():
    model, _ = fit(num_sanity_val_steps=0, check_val_every_n_epoch=2)
    assert len(model.validated) == len(set(model.validated)) == 14


def test_no_validation_split():
    model, _ = fit(data={"val_fraction": 0.0}, limit_train_batches=2)
    assert model.validated == []
    assert len(model.seen) == 4


def test_overfit_batches_repeats_the_same_batches():
    model, _ = fit(overfit_batches=2)
    assert [indices for _, indices in model.seen[:2]] == [indices for _, indices in model.seen[2:4]]


class WriteSeen(Callback):
    """Leaves what each process was given in a file."""

    def __init__(self, folder) -> None:
        self.folder = folder

    def on_fit_end(self, trainer, model):
        text = json.dumps([[indices for _, indices in model.seen], model.validated])
        (self.folder / f"{trainer.global_rank}.json").write_text(text)


@pytest.mark.slow
def test_two_processes_share_the_batches(tmp_path):
    whole, _ = fit(num_sanity_val_steps=0, check_val_every_n_epoch=2)
    fit(
        num_sanity_val_steps=0,
        check_val_every_n_epoch=2,
        data={"batch_size": 5},
        callbacks=[WriteSeen(tmp_path)],
        devices=2,
        strategy="ddp_fork",
    )
    (first, first_val), (second, second_val) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)
    )
    assert [a + b for a, b in zip(first, second, strict=True)] == [indices for _, indices in whole.seen]
    assert sorted(first_val + second_val) == sorted(whole.validated)
