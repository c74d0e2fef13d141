"""``Trainer.predict``: a row for each image of the path, in order, whatever its split."""

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image

from downstream.classification import Classification
from pretext.simclr import SimCLR
from ssl_toolkit.augment import CenterView, RandomView
from ssl_toolkit.data import ImageData
from ssl_toolkit.data.frames import FrameData
from ssl_toolkit.evaluation import extract_features
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.schedule import Cosine

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]

NUM = 13


def backbone():
    torch.manual_seed(0)
    return Backbone("resnet10t", kwargs={"channels": [8, 8, 16, 16]})


def arguments():
    return {"backbone": backbone(), "optimizer": AdamW(lr=1e-2), "schedule": Cosine()}


def trainer(**options):
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for number in range(NUM):
        (path / f"{number % 2}").mkdir(exist_ok=True)
        pixels = random.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{number % 2}" / f"{number:02d}.png")
    return path


def data(folder, **options):
    defaults = {"image_size": 24, "batch_size": 4, "cache": "memory", "val_fraction": 0.3, "test_fraction": 0.2}
    return ImageData(path=str(folder), **{**defaults, **options})


def whole(folder):
    """All images as one split, in the order of the source."""
    return data(folder, val_fraction=0.0, test_fraction=0.0)


def test_a_classifier_predicts_probabilities(folder):
    task = Classification(num_classes=2, **arguments())
    trainer(max_epochs=1).fit(task, datamodule=data(folder, labels="folder"))
    # the images to be predicted need no labels
    rows = torch.cat(trainer().predict(task, datamodule=data(folder)))
    assert rows.shape == (NUM, 2)
    features = extract_features(task.backbone, whole(folder).loader("train"), CenterView(24), precision="32")
    expected = task.head.eval()(features.features["pooled"]).softmax(dim=1)
    torch.testing.assert_close(rows, expected, atol=1e-6, rtol=1e-5)


def test_a_pretext_task_predicts_the_features_of_its_backbone(folder):
    task = SimCLR(view=RandomView(size=24), projector_widths=[16, 8], **arguments())
    images = data(folder)
    trainer(max_epochs=1).fit(task, datamodule=images)
    rows = torch.cat(trainer().predict(task, datamodule=images))
    expected = extract_features(task.backbone, whole(folder).loader("train"), CenterView(24), precision="32")
    assert rows.shape == (NUM, 16)
    torch.testing.assert_close(rows, expected.features["pooled"], atol=1e-5, rtol=1e-5)
    assert images.predict_dataloader().num_images == NUM


def test_a_plain_loader_is_predicted_as_it_is():
    task = SimCLR(view=RandomView(size=24), projector_widths=[16, 8], **arguments()).eval()
    images = torch.rand(7, 3, 20, 20)
    rows = trainer().predict(task, torch.utils.data.DataLoader(images, batch_size=3))
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(rows), task.backbone(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_no_image_stands_in_for_a_bad_one(folder, tmp_path, cache, batch_size):
    for file in folder.rglob("*.png"):
        (tmp_path / file.name).write_bytes(file.read_bytes() if file.name not in ("00.png", "05.png") else b"nothing")
    images = data(tmp_path, cache=cache, batch_size=batch_size, max_bad=0.5, val_fraction=0.0, test_fraction=0.0)
    indices = torch.cat([batch.indices for batch in images.predict_dataloader()])
    names = [images.name("train", index) for index in indices.tolist()]
    assert names == [f"{number:02d}.png" for number in range(NUM) if number not in (0, 5)]
    # a training goes on with others
    assert sum(len(batch.indices) for batch in images.loader("train")) in (NUM, NUM - 2)


def test_no_sequence_stands_in_for_a_bad_one(folder, tmp_path):
    for number, file in enumerate(sorted(folder.rglob("*.png"))):
        place = tmp_path / f"{number // 2}"
        place.mkdir(exist_ok=True)
        # the third sequence has no frame that can be decoded, the second one of two
        (place / file.name).write_bytes(file.read_bytes() if number not in (3, 4, 5) else b"nothing")
    for cache in ("memory", "none"):
        frames = FrameData(path=str(tmp_path), image_size=24, batch_size=1, cache=cache, max_bad=0.5, val_fraction=0.0)
        batches = list(frames.predict_dataloader())
        assert [batch.indices.tolist() for batch in batches] == [[0], [1], [3], [4], [5], [6]]
        assert [batch.lengths.tolist() for batch in batches] == [[2], [1], [2], [2], [2], [1]]
