"""SupCon: it asks for labels, reads those of the training images, and says so wherever its weights go."""

import json

import pytest
import torch
import yaml
from PIL import Image

import methods
from pretext.supcon import SupCon
from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.cli.remarks import seen_remarks
from ssl_toolkit.cli.train import train
from ssl_toolkit.data import ImageData
from ssl_toolkit.losses import supcon
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.schedule import Constant
from ssl_toolkit.weights import read_header


def write_recipe(folder, **data):
    recipe = methods.recipe("SupCon", folder, max_epochs=1)
    recipe["data"] |= data
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return ["-c", str(file), "--out", str(folder / "run")]


def write_images(folder, classes=("a", "b")):
    for number in range(24):
        file = folder / classes[number % len(classes)] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (10 * number, 250 - 10 * number, 7 * (number % 5))).save(file)
    return folder


def test_images_without_labels_are_refused_and_say_what_to_do(tmp_path):
    images = write_images(tmp_path / "images")
    command = write_recipe(tmp_path, source="folder", path=str(images))
    expected = r"^SupCon needs labels, and no training image has one; set data\.labels: folder and put each class into"
    with pytest.raises(ValueError, match=expected):
        train("pretrain", command)


def test_its_weights_say_that_labels_were_read_and_so_does_whoever_tests_on_the_same_images(tmp_path):
    images = write_images(tmp_path / "images")
    said = {}
    for name in ("SupCon", "SimCLR"):
        folder = tmp_path / name
        folder.mkdir()
        recipe = methods.recipe(name, folder, max_epochs=1)
        recipe["data"] |= {"source": "folder", "path": str(images), "labels": "folder"}
        (folder / "recipe.yaml").write_text(json.dumps(recipe))
        run = train("pretrain", ["-c", str(folder / "recipe.yaml"), "--out", str(folder / "run")], quietly=True)
        weights = run / "backbone.safetensors"
        said[name] = read_header(weights)["labels"], seen_remarks(other_division(images), weights)
    assert said["SupCon"][0] is True
    assert said["SimCLR"][0] is False
    assert "it knew their labels, so that figures on them say nothing of new ones" in said["SupCon"][1][0]
    assert "figures on them may be better than on new ones" in said["SimCLR"][1][0]


def other_division(images):
    """The same images, divided by chance otherwise than in the pretraining."""
    data = ImageData(path=images, labels="folder", test_fraction=0.5, val_fraction=0.2, split_seed=7, image_size=24)
    data.setup("fit")
    return data


@pytest.mark.parametrize("labels", [[0] * 8, [0, 1] * 4, [0, 0, 1, -1, -1, 2, 2, 2]])
def test_the_least_loss_of_a_batch_is_approached_and_not_passed(labels):
    recipe = methods.table()["SupCon"].arguments
    task = SupCon(
        backbone=Backbone(**methods.BACKBONE), optimizer=SGD(), schedule=Constant(), projector_widths=(16, 8),
        view=RandomView(**recipe["view"]),
    )  # fmt: skip
    labels = torch.tensor(labels)
    images = Images(torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.full((8, 2), 8))
    least = task.least_loss_of(Batch(images, torch.arange(8), labels, 0))
    views = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = torch.optim.Adam([views], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss = supcon(*views, labels, 0.1)[0]
        loss.backward()
        optimizer.step()
    assert least - 1e-4 <= loss.item() < least + 0.1
