"""Networks of textbooks: their sizes by hand, their sums written down, timm's ways with them, and what is refused."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models._manipulate import group_parameters
from torch.nn import functional

from ssl_toolkit.modules import Backbone
from ssl_toolkit.modules.layer_table import Field, layer_table
from ssl_toolkit.modules.textbook import AlexNetSmall, ConvStack, LeNet5

# the convolutions of the paper, of which its second layer sees all maps here: (5 * 5 * inputs + 1) * outputs
LENET = 6 * 26 + 16 * (25 * 6 + 1) + 120 * (25 * 16 + 1)
ALEXNET = sum((9 * given + 1) * width for given, width in [(3, 64), (64, 192), (192, 384), (384, 256), (256, 256)])
STACK = sum((9 * given + 1) * width for given, width in [(3, 32), (32, 64), (64, 128)])


@pytest.mark.parametrize(
    ("name", "channels", "number", "last"),
    [
        ("lenet5", 1, LENET, (120, 1, 1)),
        ("alexnet_small", 3, ALEXNET, (256, 4, 4)),
        ("conv_stack", 3, STACK, (128, 4, 4)),
    ],
)
def test_sizes(name, channels, number, last):
    backbone = Backbone(name, in_channels=channels)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == number
    features, final = backbone(torch.rand(2, channels, 32, 32), with_map=True)
    assert features.shape == (2, last[0])
    assert final.shape == (2, *last)
    model = backbone.model
    assert [info["reduction"] for info in model.feature_info][-1] == (4 if name == "lenet5" else 8)


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
