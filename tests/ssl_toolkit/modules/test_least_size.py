"""Images that are too small for a network end in one line that says the size it needs."""

import pytest
import torch

from ssl_toolkit.cli import main
from ssl_toolkit.modules.backbone import Backbone

SMALL = ["--data.source", "procedural", "--data.max_images", "40", "--data.batch_size", "8", "--tracker", "none"]


def works(backbone, side):
    try:
        with torch.no_grad():
            backbone.eval().model(torch.zeros(1, backbone.in_channels, side, side))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "kwargs"), [("vgg11", {}), ("convnext_atto", {}), ("inception_v3", {}), ("densenet121", {})]
)
@pytest.mark.slow
def test_the_size_that_is_named_works_and_one_pixel_less_does_not(name, kwargs):
    backbone = Backbone(name, kwargs=kwargs, in_channels=1).train()
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=f"too small for {name}, which takes") as refused:
        backbone.check_size(1)
    least = int(str(refused.value).split("which takes ")[1].split()[0])
    assert all(module.training for module in backbone.modules())
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    assert works(backbone, least)
    assert not works(backbone, least - 1)


def test_a_network_that_takes_everything():
    Backbone("resnet10t").check_size(1)


@pytest.mark.slow
@pytest.mark.parametrize("call", ["forward", "feature_maps", "stage_features"])
def test_where_it_is_computed(call):
    backbone = Backbone("vgg11").eval()
    with pytest.raises(ValueError, match="images of 16 px are too small for vgg11, which takes 32 px or more"):
        getattr(backbone, call)(torch.zeros(2, 3, 16, 40))
    with pytest.raises(RuntimeError, match="not finite"):
        backbone._run(fail, torch.zeros(2, 3, 16, 40))


def fail(x):
    raise RuntimeError("not finite")


@pytest.mark.parametrize("command", ["pretrain", "transfer", "lr-find"])
@pytest.mark.slow
def test_before_the_run_begins(command, tmp_path, capsys):
    recipe = {"transfer": "finetune"}.get(command, "simclr")
    options = ["-c", recipe, *SMALL, "--model.backbone.name", "inception_v3", "--out", str(tmp_path / "run")]
    options += ["--data.image_size", "32"] if command == "transfer" else ["--model.view.size", "32"]
    options += ["--model.augmentation.size", "32"] if command == "transfer" else []
    assert main([command, *(["pretrain"] if command == "lr-find" else []), *options]) == 2
    assert capsys.readouterr().err.strip() == (
        "ssl-toolkit: error: images of 32 px are too small for inception_v3, which takes 75 px or more: make views and "
        "images larger (model.view.size, data.image_size), or choose another backbone"
    )
    assert not (tmp_path / "run").exists()
