"""What every task inherits: the schedule's steps, the groups, the penalties, the seeds."""

import copy

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from ssl_toolkit.data import ImageData
from ssl_toolkit.init import Keep, Normal, Zeros
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.random import sample_keys
from ssl_toolkit.regularization import L1
from ssl_toolkit.schedule import Constant, Linear
from ssl_toolkit.task import StepOutput, Task


class Brightness(Task):
    """Predicts the mean of an image: the smallest task there is."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(self.backbone.num_features, 1))
        self.seen, self.drawn = [], []

    def step(self, batch, keys, context):
        self.seen.append((batch.epoch, batch.indices, keys))
        self.drawn.append(torch.rand(()).item())
        images = batch.images.pixels / 255
        features = self.backbone(images)
        loss = (self.head(features)[:, 0] - images.mean(dim=(1, 2, 3))).square().mean()
        return StepOutput(loss, features, {"twice": 2 * loss.detach()})


class Record(Callback):
    def __init__(self):
        self.lrs, self.losses = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        self.lrs.append(trainer.optimizers[0].param_groups[0]["lr"])


def make_task(**arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", kwargs={"channels": (8, 8, 8, 8)})
    return Brightness(**{"backbone": backbone, "optimizer": SGD(lr=0.1), "schedule": Linear(), **arguments})


def fit(task, **arguments):
    data = ImageData(source="procedural", max_images=40, image_size=32, batch_size=6, cache="memory")
    record = Record()
    arguments = {"max_epochs": 2, **arguments}
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[record], **arguments,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    return record, trainer


def test_the_schedule_counts_optimizer_steps():
    record, trainer = fit(make_task())
    # 36 training images in batches of 6: six steps an epoch, twelve in the run; the rate after step k is for step k + 1
    assert trainer.global_step == 12
    assert record.lrs == pytest.approx([0.1 * (1 - step / 12) for step in range(1, 13)])


def test_accumulation_does_not_stretch_the_schedule():
    record, trainer = fit(make_task(), accumulate_grad_batches=2)
    assert trainer.global_step == 6
    assert record.lrs == pytest.approx([0.1 * (1 - (batch // 2) / 6) for batch in range(1, 13)])


def test_a_parameter_without_initialisation_is_an_error():
    with pytest.raises(ValueError, match=r"nothing is said of head\.1\.bias \(of one dimension"):
        fit(make_task(init=[Keep("^backbone"), Zeros(r"^head.*weight")]))


@pytest.mark.parametrize(("scaling", "expected"), [("none", 0.1), ("linear", 0.3), ("sqrt", 0.1 * 3**0.5)])
def test_the_rate_follows_the_batch_of_a_step(scaling, expected):
    """Batches of 6, two accumulated: 12 images a step, three times the reference of 4."""
    task = make_task(lr_scaling=scaling, reference_batch_size=4)
    record, _ = fit(task, accumulate_grad_batches=2)
    assert record.lrs[0] == pytest.approx(expected)
    assert task.optimizer_spec.lr == 0.1
    assert task.base_lr() == task.learning_rate(12) == pytest.approx(expected), "the same at each call"


def test_a_wrong_scaling_is_refused():
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        make_task(lr_scaling="liner")
    with pytest.raises(ValueError, match="reference_batch_size is 0"):
        make_task(reference_batch_size=0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(("algorithm", "order"), [("norm", 2), ("value", float("inf"))])
def test_gradients_are_clipped(algorithm, order, precision):
    """The step of plain gradient descent is the rate times the gradient, whose norm (or largest number) is bounded."""
    backbone = Backbone("resnet10t", stem="small", kwargs={"channels": (8, 8, 8, 8)})
    optimizer = SGD(lr=0.5, momentum=0.0, nesterov=False, weight_decay=0.0)

    def largest_step(limit):
        task = make_task(backbone=copy.deepcopy(backbone), optimizer=optimizer, schedule=Constant())
        before = torch.cat([each.detach().flatten() for each in task.parameters()])
        settings = {"gradient_clip_val": limit, "gradient_clip_algorithm": algorithm}
        fit(task, max_steps=1, max_epochs=-1, precision=precision, limit_val_batches=0, **settings)
        after = torch.cat([each.detach().flatten() for each in task.parameters()])
        return float(torch.linalg.vector_norm(after - before, order))

    assert largest_step(None) > 0.001
    assert largest_step(0.001) == pytest.approx(0.5 * 0.001, rel=1e-2)


def test_max_steps_sets_the_length():
    record, _ = fit(make_task(), max_steps=5, max_epochs=-1)
    assert record.lrs == pytest.approx([0.1 * (1 - step / 5) for step in range(1, 6)])


def test_a_run_without_an_end_is_an_error():
    with pytest.raises(ValueError, match=r"--trainer\.max_epochs"):
        fit(make_task(), max_epochs=-1, max_time="00:00:01:00")


def test_keys_come_from_seed_epoch_and_index():
    task = make_task(seed=7)
    fit(task, limit_val_batches=0)
    assert {epoch for epoch, _, _ in task.seen} == {0, 1}
    for epoch, indices, keys in task.seen:
        assert torch.equal(keys, sample_keys(7, epoch, indices))


@pytest.mark.slow
def test_what_the_model_draws_is_a_function_of_seed_and_step():
    first, again, other = make_task(seed=1), make_task(seed=1), make_task(seed=2)
    for task in (first, again, other):
        torch.rand(len(str(task.seed)) * 3)
        fit(task, limit_val_batches=0)
    assert first.drawn == again.drawn
    assert len(set(first.drawn)) == 12
    assert not set(first.drawn) & set(other.drawn)


def test_penalties_and_initialisations_are_applied():
    plain, _ = fit(make_task(), max_steps=1)
    penalised, _ = fit(make_task(regularizers=[L1(0.5, pattern=r"^head")], init=None), max_steps=1)
    weight = make_task().head[1].weight
    assert penalised.losses[0] - plain.losses[0] == pytest.approx(0.5 * weight.abs().sum().item(), rel=1e-4)

    task = make_task(
        init=[Keep(""), Normal(r"^head.*weight", std=2.0), Zeros(r"^head.*weight")], optimizer=SGD(lr=1e-9)
    )
    fit(task, max_steps=1)
    assert task.head[1].weight.abs().max() < 1e-6


def test_metrics_are_logged_for_both_stages():
    _, trainer = fit(make_task())
    logged = trainer.callback_metrics
    assert logged["val/twice"] == pytest.approx(2 * float(logged["val/loss"]))
    assert logged["train/twice"] == pytest.approx(2 * float(logged["train/loss"]))


def test_the_header_is_plain_data():
    task = make_task(seed=3)
    fit(task, max_steps=2)
    header = task.weights_header()
    assert header["step"] == 2
    assert header["seed"] == 3
    assert header["task"].endswith("Brightness")
