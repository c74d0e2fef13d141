"""Networks of textbooks: their sizes by hand, their sums written down, timm's ways with them, and what is refused."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models._manipulate import group_parameters
from torch.nn import functional

from ssl_toolkit.modules import Backbone
from ssl_toolkit.modules.layer_table import Field, layer_table
from ssl_toolkit.modules.textbook import AlexNetSmall, ConvStack, LeNet5, PixelMLP

# the convolutions of the paper, of which its second layer sees all maps here: (5 * 5 * inputs + 1) * outputs
LENET = 6 * 26 + 16 * (25 * 6 + 1) + 120 * (25 * 16 + 1)
ALEXNET = sum((9 * given + 1) * width for given, width in [(3, 64), (64, 192), (192, 384), (384, 256), (256, 256)])
MLP = (32 * 32 * 3 + 1) * 512 + (512 + 1) * 256
STACK = sum((9 * given + 1) * width for given, width in [(3, 32), (32, 64), (64, 128)])


@pytest.mark.parametrize(
    ("name", "channels", "number", "last"),
    [
        ("lenet5", 1, LENET, (120, 1, 1)),
        ("alexnet_small", 3, ALEXNET, (256, 4, 4)),
        ("conv_stack", 3, STACK, (128, 4, 4)),
        ("mlp", 3, MLP, (256, 1, 1)),
    ],
)
def test_sizes(name, channels, number, last):
    backbone = Backbone(name, in_channels=channels)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == number
    features, final = backbone(torch.rand(2, channels, 32, 32), with_map=True)
    assert features.shape == (2, last[0])
    assert final.shape == (2, *last)
    model = backbone.model
    assert [info["reduction"] for info in model.feature_info][-1] == {"lenet5": 4, "mlp": 32}.get(name, 8)


def test_lenet_is_the_paper_s_written_down():
    torch.manual_seed(0)
    model = LeNet5(num_classes=3, in_chans=1).double()
    state, x = model.state_dict(), torch.rand(2, 1, 32, 32, dtype=torch.float64)
    y = x
    for layer in ("layer1.0", "layer2.0", "layer3.0"):
        y = functional.conv2d(y, state[f"{layer}.weight"], state[f"{layer}.bias"]).tanh()
        if layer != "layer3.0":
            y = y.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(model(x), y.flatten(1) @ state["fc.weight"].T + state["fc.bias"])


def test_a_place_of_lenet_s_last_layer_sees_the_whole_digit():
    assert layer_table(Backbone("lenet5", in_channels=1).model, (1, 32, 32)).layers[-1].field == Field(32, 32, 4, 4)


@pytest.mark.parametrize("cls", [LeNet5, AlexNetSmall, ConvStack])
def test_timm_s_ways(cls):
    name = {"LeNet5": "lenet5", "AlexNetSmall": "alexnet_small", "ConvStack": "conv_stack"}[cls.__name__]
    model = timm.create_model(name, num_classes=0, in_chans=1).eval()
    assert isinstance(model, cls)
    x = torch.rand(2, 1, 40, 40)
    last, maps = model.forward_intermediates(x)
    first = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
    assert torch.equal(first[0], maps[0])
    assert torch.equal(last, maps[-1])
    torch.testing.assert_close(model(x), last.mean(dim=(2, 3)))
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    groups = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert [groups[f"layer{number}.0.weight"] for number in (1, 2, 3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("alexnet_small", {"channels": [8, 8]}, "alexnet_small takes five channels, got .8, 8."),
        ("conv_stack", {"channels": []}, "conv_stack takes 1 to 8 channels and an odd kernel_size"),
        ("conv_stack", {"kernel_size": 4}, "an odd kernel_size, got .32, 64, 128. and 4"),
        ("mlp", {"widths": []}, "mlp takes a size of at least 1 and 1 to 8 widths"),
        ("lenet5", {"channels": [8]}, "could not build 'lenet5'"),
    ],
)
def test_what_is_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        Backbone(name, kwargs=kwargs)


def test_small_images_are_refused_by_their_size():
    with pytest.raises(ValueError, match="images of 28 px are too small for lenet5, which takes 32 px or more"):
        Backbone("lenet5").check_size(28)


def test_a_norm_where_there_is_none_is_refused():
    with pytest.raises(ValueError, match="the network has no normalisation layer to replace"):
        Backbone("lenet5", norm="group")


# ---- the perceptron


def test_the_perceptron_is_linear_layers_on_all_pixels():
    torch.manual_seed(0)
    model = PixelMLP(num_classes=3, in_chans=2, size=6, widths=[5, 4, 7], drop_rate=0.5).double().eval()
    state, x = model.state_dict(), torch.rand(8, 2, 6, 6, dtype=torch.float64)
    y = x.flatten(1)
    for number in (1, 2, 3):
        y = functional.linear(y, state[f"layer{number}.0.weight"].flatten(1), state[f"layer{number}.0.bias"]).relu()
    torch.testing.assert_close(model(x), functional.linear(y, state["fc.weight"], state["fc.bias"]))


def test_the_perceptron_s_dropout_is_as_asked_for():
    model = PixelMLP(num_classes=0, in_chans=1, size=2, widths=[4000], drop_rate=0.3)
    dropped = (model.layer1(torch.rand(1, 1, 2, 2)) == 0).float().mean()
    plain = (model.eval().layer1(torch.rand(1, 1, 2, 2)) == 0).float().mean()
    assert dropped - plain == pytest.approx(0.3 * (1 - float(plain)), abs=0.08)


@pytest.mark.parametrize(
    ("side", "message"),
    [(40, "mlp takes images of 32 px and no others, got 40 x 40: set .*size: 40"), (28, "got 28 x 28: set .*size: 28")],
)
def test_the_perceptron_takes_images_of_one_size(side, message):
    with pytest.raises(ValueError, match=message) as caught:
        Backbone("mlp").check_size(side)
    assert "\n" not in str(caught.value)


def test_the_perceptron_says_that_it_takes_other_sizes_when_it_meets_them():
    backbone = Backbone("mlp", kwargs={"size": 8})
    assert backbone(torch.rand(1, 3, 8, 8)).shape == (1, 256)
    with pytest.raises(ValueError, match="got 9 x 8"):
        backbone(torch.rand(1, 3, 9, 8))


def test_the_perceptron_is_described(capsys):
    from ssl_toolkit.cli import main

    assert main(["describe", "mlp"]) == 0
    assert "layer2.0" in capsys.readouterr().out


def test_no_pretext_task_takes_the_perceptron(tmp_path, capsys):
    from ssl_toolkit.cli import main

    command = ["pretrain", "-c", "simclr", "--data.source", "procedural", "--model.backbone.name", "mlp"]
    assert main([*command, "--tracker", "none", "--out", str(tmp_path / "run")]) == 2
    assert "mlp is a baseline for transfer and no backbone" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
