"""The hook after each optimizer step: once a step, before any callback, not for a skipped one, in order of samples."""

import warnings

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from ssl_toolkit.callbacks import NonFinite
from ssl_toolkit.data import ImageData
from ssl_toolkit.distributed.ranks import rank, world_size
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import SGD, AdamW
from ssl_toolkit.random import sample_order
from ssl_toolkit.regularization import SAM, LabelSmoothing, MixUp
from ssl_toolkit.schedule import Constant
from ssl_toolkit.task import StepOutput, Task

NUM, BATCH = 45, 4


class Followed(Task):
    """Notes what it is told after each step."""

    takes_soft_targets = True
    bad_steps = ()

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = nn.Linear(self.backbone.num_features, 1)
        self.told, self.weights, self.computed = [], [], 0

    def step(self, batch, keys, context):
        self.computed += 1
        images = batch.images.pixels / 255
        features = self.backbone(images)
        loss = self.head(features).float().square().mean()
        if context.training and self.global_step in self.bad_steps:
            loss = loss * float("nan")
        return StepOutput(loss, features, {}, {"indices": batch.indices, "pairs": batch.indices[:, None].repeat(1, 2)})

    def after_optimizer_step(self, progress, kept):
        assert not torch.is_grad_enabled()
        self.told.append((progress, kept["indices"].tolist(), kept["pairs"].shape))
        self.weights.append(self.head.weight.clone())


class Witness(Callback):
    """How often the hook had been called when a callback was."""

    def __init__(self):
        self.calls = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.calls.append((trainer.global_step, len(pl_module.told)))
        if pl_module.weights:
            assert torch.equal(pl_module.weights[-1], pl_module.head.weight)


def make_task(optimizer=None, **arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", stem="small", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    return Followed(backbone=backbone, optimizer=optimizer or SGD(lr=0.01), schedule=Constant(), **arguments)


def make_data(batch_size=BATCH):
    return ImageData(
        source="procedural", max_images=NUM, image_size=16, batch_size=batch_size, val_fraction=0, cache="memory"
    )


def fit(task, *callbacks, **arguments):
    arguments = {"max_epochs": 2, **arguments}
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0, callbacks=list(callbacks),
        **arguments,
    )  # fmt: skip
    trainer.fit(task, datamodule=make_data(BATCH // world_size()))
    return trainer


def expected_order(accumulated=1):
    """The samples of each step, from the order of the epochs."""
    steps = []
    for epoch in range(2):
        order = sample_order(0, epoch, NUM).tolist()
        batches = [order[start : start + BATCH] for start in range(0, NUM - NUM % BATCH, BATCH)]
        for start in range(0, len(batches), accumulated):
            steps.append([index for batch in batches[start : start + accumulated] for index in batch])
    return steps


@pytest.mark.parametrize("accumulated", [1, 2, 3])
def test_it_is_called_once_a_step_before_any_callback_and_reaches_exactly_one(accumulated):
    task, witness = make_task(), Witness()
    trainer = fit(task, witness, accumulate_grad_batches=accumulated)
    total = 2 * -(-11 // accumulated)
    assert trainer.global_step == len(task.told) == total
    assert all(finished == called for finished, called in witness.calls)
    assert [progress.step for progress, *_ in task.told] == list(range(1, total + 1))
    assert [progress.fraction for progress, *_ in task.told] == [step / total for step in range(1, total + 1)]
    assert task.told[-1][0].fraction == 1
    # all micro-batches, also where fewer are left at the end of an epoch
    assert [indices for _, indices, _ in task.told] == expected_order(accumulated)
    assert task.told[0][2] == (accumulated * BATCH, 2)


def told_in_each_process():
    import os

    os.environ["LOCAL_RANK"] = str(rank())
    task = make_task()
    fit(task, devices=world_size(), strategy="ddp", accumulate_grad_batches=2)
    return [(progress.fraction, indices) for progress, indices, _ in task.told]


@pytest.mark.slow
def test_several_processes_are_told_of_all_samples_in_their_order(run_processes):
    first, second = run_processes(told_in_each_process, 2)
    assert first == second
    assert [indices for _, indices in first] == expected_order(2)
    assert first[-1][0] == 1


@pytest.mark.parametrize("sam_first", [True, False])
def test_under_sam_it_is_called_once_a_step(sam_first):
    others = [MixUp(1.0), LabelSmoothing(0.1)]
    task = make_task(regularizers=[SAM(), *others] if sam_first else [*others, SAM()])
    fit(task)
    assert task.computed == 2 * 22
    assert [indices for _, indices, _ in task.told] == expected_order()


def test_a_step_that_is_left_out_is_not_followed():
    task = make_task()
    task.bad_steps = (2, 5)
    trainer = fit(task, NonFinite(skip=2))
    assert trainer.global_step == 22
    assert [progress.step for progress, *_ in task.told] == [step for step in range(1, 23) if step - 1 not in (2, 5)]
    order = expected_order()
    assert [indices for _, indices, _ in task.told] == [order[step] for step in range(22) if step not in (2, 5)]


@pytest.mark.parametrize("optimizer", [SGD(lr=0.01), AdamW(lr=0.01)])
def test_nor_is_one_that_the_gradient_scaler_skips(optimizer):
    """float16 is for GPUs; its scaler works on a CPU, too."""
    task = make_task(optimizer)
    task.bad_steps = (2, 5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says of float16 on a CPU
        trainer = fit(task, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    assert trainer.precision == "16-mixed"
    assert not any(group.get("fused") for group in trainer.optimizers[0].param_groups)
    assert [progress.step for progress, *_ in task.told] == [step for step in range(1, 23) if step - 1 not in (2, 5)]
    assert all(parameter.isfinite().all() for parameter in task.parameters())


def test_what_a_broken_training_has_left_is_forgotten():
    task = make_task()
    task._kept = [{"indices": torch.tensor([99]), "pairs": torch.tensor([[99, 99]])}]
    fit(task, max_epochs=1)
    assert task.told[0][1] == expected_order()[0]


def test_progress_is_kept_for_what_is_computed_without_training():
    task = make_task()
    fit(task, max_epochs=1)
    checkpoint = {}
    task.on_save_checkpoint(checkpoint)
    other = make_task()
    other.on_load_checkpoint(checkpoint)
    assert other.progress == task.progress
    assert (other.progress.step, other.progress.fraction) == (11, 1.0)
    other.on_load_checkpoint({})  # of a version that did not write it
    assert other.progress.fraction == 0
