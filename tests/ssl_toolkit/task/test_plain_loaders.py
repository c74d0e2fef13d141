"""Tasks in Lightning's Trainer take a plain DataLoader of images, or of images and labels."""

import copy

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader, TensorDataset

from downstream.classification import Classification
from pretext.simclr import SimCLR
from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Batch, as_batch
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.schedule import Cosine

IMAGES = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3


def parts():
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", kwargs={"channels": [8, 8, 16, 16]})
    return {"backbone": backbone, "optimizer": AdamW(lr=1e-3), "schedule": Cosine()}


def simclr(cls=SimCLR):
    return cls(view=RandomView(24), projector_widths=(16, 8), **parts())


class Noting(SimCLR):
    """Keeps the batches and the views that it has seen."""

    def on_fit_start(self):
        self.seen = []

    def step(self, batch, keys, context):
        self.seen.append((self.training, batch, keys, self.make_views(batch.images, keys)))
        return super().step(batch, keys, context)


def fit(task, *tensors, epochs=2, batch_size=4, resumed=None, **arguments):
    data = TensorDataset(*tensors) if len(tensors) > 1 else tensors[0]
    loader = DataLoader(data, batch_size=batch_size)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **arguments,
    )  # fmt: skip
    trainer.fit(task, loader, loader, ckpt_path=resumed, weights_only=True)
    return task


@pytest.mark.parametrize("tensors", [(IMAGES,), (IMAGES, LABELS)], ids=["images", "pairs"])
def test_every_image_of_every_epoch_draws_its_own_numbers(tensors):
    task = fit(simclr(Noting), *tensors)
    trained = [each for each in task.seen if each[0]]
    assert [batch.epoch for _, batch, *_ in trained] == [0, 0, 0, 1, 1, 1]
    keys = torch.cat([keys for _, _, keys, _ in trained])
    assert len(set(keys.tolist())) == 24
    first = [views for _, batch, _, views in trained if batch.epoch == 0]
    second = [views for _, batch, _, views in trained if batch.epoch == 1]
    assert not any(torch.equal(one[0], other[0]) for one, other in zip(first, second, strict=True))
    # validation draws the same in every epoch
    measured = [keys for is_training, _, keys, _ in task.seen if not is_training]
    assert all(torch.equal(one, other) for one, other in zip(measured[:3], measured[3:], strict=True))
    assert len(set(torch.cat(measured[:3]).tolist())) == 12


def test_bytes_and_floats_are_the_same_and_repeat_to_the_bit():
    tasks = [fit(simclr(), images) for images in (IMAGES, IMAGES.float() / 255, IMAGES)]
    weights = [task.backbone.model.conv1[0].weight for task in tasks]
    torch.testing.assert_close(weights[0], weights[1], atol=1e-4, rtol=0)
    assert torch.equal(weights[0], weights[2])


class SaveAt(Callback):
    """Saves a checkpoint after so many steps."""

    def __init__(self, steps, file):
        self.steps, self.file = steps, file

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(self.file)


@pytest.mark.parametrize("steps", [2, 4])
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_resumed_run_draws_what_the_whole_one_draws(tmp_path, steps):
    whole = drawn(fit(simclr(Noting), IMAGES, callbacks=[SaveAt(steps, tmp_path / "begun.ckpt")]))
    resumed = drawn(fit(simclr(Noting), IMAGES, resumed=tmp_path / "begun.ckpt"))
    assert resumed[0] == whole[steps]
    # at which image a loader goes on within an epoch is up to the loader; none is drawn for as before
    assert not {key for keys in resumed for key in keys} & {key for keys in whole[:steps] for key in keys}


def drawn(task):
    return [keys.tolist() for is_training, _, keys, _ in task.seen if is_training]


def test_indices_that_are_given_key_an_image_wherever_it_comes():
    order = torch.tensor([5, 3, 11, 0, 1, 2, 4, 6, 7, 8, 9, 10])
    keys = []
    for each in (torch.arange(12), order):
        task = fit(simclr(Noting), IMAGES[each], LABELS[each], each, epochs=1)
        seen = [(batch.indices, keys) for is_training, batch, keys, _ in task.seen if is_training]
        keys.append(dict(zip(*(torch.cat(part).tolist() for part in zip(*seen, strict=True)), strict=True)))
    assert keys[0] == keys[1]


def test_a_classifier_trains_and_is_tested():
    task = fit(Classification(num_classes=3, image_size=32, **parts()), IMAGES, LABELS)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    (figures,) = trainer.test(task, DataLoader(TensorDataset(IMAGES, LABELS), batch_size=5), verbose=False)
    with torch.no_grad():
        logits = task.eval().logits(task.backbone(IMAGES.float() / 255))
    assert figures["test/top1"] == pytest.approx((logits.argmax(1) == LABELS).float().mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ((IMAGES.float() / 127.5 - 1,), r"values from -1 to 1, expected uint8, .*leave out the normalisation"),
        ((IMAGES.float(),), "values from 0 to 255, expected"),
        ((IMAGES.permute(0, 2, 3, 1)[:, 0],), r"are torch.uint8 of shape \[4, 32, 3\], expected uint8, or floats"),
        ((IMAGES.long(),), "are torch.int64 of shape"),
        ((IMAGES, LABELS.float()), r"the labels of the batch are torch.float32 of shape \[4\], expected integers"),
        ((IMAGES, LABELS, LABELS, LABELS), "the batch is a list of Tensor, Tensor, Tensor, Tensor; expected images, "),
    ],
)
def test_what_is_refused(tensors, message):
    with pytest.raises(ValueError, match=message) as refused:
        fit(simclr(), *tensors)
    assert "\n" not in str(refused.value)


def test_what_a_task_needs():
    with pytest.raises(ValueError, match="Classification needs a label from 0 for each image"):
        fit(Classification(num_classes=3, image_size=32, **parts()), IMAGES)
    with pytest.raises(ValueError, match="learns nothing from batches of one image"):
        fit(simclr(), IMAGES[:5])
    with pytest.raises(ValueError, match="the batch is a dict; expected images"):
        as_batch({"image": IMAGES}, 0, 0)


def test_our_own_batches_stay_as_they_are():
    batch = as_batch(IMAGES, 3, 7)
    assert batch.epoch == 3
    assert batch.indices.tolist() == list(range(7, 19))
    assert simclr().batch_of(batch) is batch
    assert isinstance(copy.copy(batch), Batch)
