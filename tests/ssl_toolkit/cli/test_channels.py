"""Grey and coloured images: what does not fit is said once, with all that is to be set, before an image is read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_toolkit.cli import main
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import load_backbone, save_backbone

NARROW = ["--model.backbone.name", "resnet10t", "--model.backbone.kwargs", "{channels: [8, 8, 16, 16]}"]
SMALL = ["--data.image_size", "32", "--data.batch_size", "8", "--trainer.accelerator", "cpu", "--tracker", "none"]
ONCE = ["--trainer.max_epochs", "1", "--trainer.precision", "32-true"]
VIEWS = {
    "simclr": ["--model.view.size=24", "--model.backbone.stem=small"],
    "byol": ["--model.views.first.size=24", "--model.views.second.size=24", "--model.backbone.stem=small"],
    "jigsaw": ["--model.view.size=48", "--model.patch_size=12", "--model.jitter=1", "--model.num_permutations=4",
               "--model.colour=projection", "--model.backbone.stem=small"],
}  # fmt: skip


@pytest.fixture
def images(tmp_path):
    """Grey files in two folders."""
    for index in range(24):
        file = tmp_path / "images" / f"class{index % 2}" / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (32, 32), dtype=np.uint8)).save(file)
    return str(tmp_path / "images")


@pytest.fixture(params=[1, 3])
def weights(request, tmp_path):
    """A weights file, and how many channels it takes."""
    file = tmp_path / "backbone.safetensors"
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", in_channels=request.param, kwargs={"channels": (8, 8, 16, 16)})
    save_backbone(file, backbone)
    return file, request.param


def refusal(capsys, *arguments):
    assert main([*map(str, arguments)]) == 2
    return [line for line in capsys.readouterr().err.splitlines() if "error: " in line][-1].partition("error: ")[2]


@pytest.mark.parametrize("recipe", VIEWS)
def test_two_settings_make_a_recipe_grey(recipe, images, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["-c", recipe, "--data.path", images, *NARROW, *SMALL, *ONCE, *VIEWS[recipe], "--out", run]
    said = refusal(capsys, "pretrain", *options, "--data.channels", "1")
    advice = "--model.backbone.in_channels 1"
    assert said == (
        f"data.channels is 1, but the backbone takes images with 3: set {advice} for grey images, or --data.channels 3"
    )
    assert main(["pretrain", *map(str, options), "--data.channels", "1", *advice.split()]) == 0
    assert load_backbone(run / "backbone.safetensors").in_channels == 1


def test_a_grey_backbone_and_coloured_images(images, capsys):
    options = ["-c", "simclr", "--data.path", images, *NARROW, *SMALL]
    assert refusal(capsys, "diagnose", "pretrain", *options, "--model.backbone.in_channels", "1") == (
        "data.channels is 3, but the backbone takes images with 1: set --model.backbone.in_channels 3 for RGB images, "
        "or --data.channels 1"
    )


@pytest.mark.parametrize("command", ["transfer", "evaluate", "embed"])
def test_weights_for_other_images_name_the_option(command, weights, tmp_path, capsys):
    file, channels = weights
    other = 4 - channels
    # what is there is no image: the refusal comes before any is read
    images = tmp_path / "unread"
    images.mkdir()
    (images / "a.png").write_text("no image")
    options = {
        "transfer": ["-c", "linear_probe", *SMALL, "--model.weights", file, "--out", tmp_path / "run"],
        "evaluate": ["--weights", file, "--device", "cpu"],
        "embed": ["--weights", file, "--device", "cpu", "--out", tmp_path / "features.csv"],
    }
    said = refusal(capsys, command, *options[command], "--data.path", images, "--data.channels", other)
    assert said == (
        f"data.channels is {other}, but {file} is a backbone for images with {channels}: set --data.channels {channels}"
    )
    assert not Path(tmp_path / "run").exists()
