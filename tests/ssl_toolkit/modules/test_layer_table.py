"""The layer table against formulas, torch's own counter and the gradient: what a place of a map really depends on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ssl_toolkit.modules import Backbone
from ssl_toolkit.modules.layer_table import Field, layer_table

NETWORKS = ("resnet10t", "convnext_atto", "mobilenetv3_small_050", "regnetx_002", "densenet121")


def dependent(network, side, place):
    """Rows and columns of the image on which a place of the output depends, by the gradient."""
    image = torch.zeros(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    network.double()(image)[0, :, place, place].sum().backward()
    assert image.grad is not None
    touched = (image.grad[0, 0] != 0).nonzero()
    down, right = (touched.max(dim=0).values - touched.min(dim=0).values + 1).tolist()  # a dilated kernel has gaps
    return down, right


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(1, 2, 3)],
        [nn.Conv2d(1, 2, 5, stride=2, padding=2), nn.Conv2d(2, 2, 3, padding=1)],
        [nn.Conv2d(1, 2, 3, dilation=2), nn.Conv2d(2, 2, (1, 3), padding=(0, 1))],
        [nn.Conv2d(1, 2, 3, stride=2), nn.AvgPool2d(3, stride=2, padding=1), nn.Conv2d(2, 2, 3)],
        [nn.Conv2d(1, 2, 7, stride=3), nn.Conv2d(2, 4, 3, groups=2), nn.Conv2d(4, 1, 1)],
    ],
)
def test_receptive_fields_are_those_of_the_gradient(layers):
    for each in layers:
        if isinstance(each, nn.Conv2d):
            nn.init.constant_(each.weight, 1.0)
    network = nn.Sequential(*layers)
    side = 65
    with torch.no_grad():
        middle = network(torch.zeros(1, 1, side, side)).shape[-1] // 2
    expected = dependent(network, side, middle)
    field = layer_table(network, (1, side, side)).layers[-1].field
    assert field is not None
    assert (field.height, field.width) == expected


class Branches(nn.Module):
    """A short and a long path that meet, as in a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.long, self.short = nn.Conv2d(1, 1, 5, padding=2), nn.Conv2d(1, 1, 1)
        self.last = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return self.last(self.long(x).relu() + self.short(x))


def test_where_paths_meet_the_largest_counts():
    fields = {layer.name: layer.field for layer in layer_table(Branches(), (1, 32, 32)).layers}
    assert fields == {"long": Field(5, 5, 1, 1), "short": Field(1, 1, 1, 1), "last": Field(7, 7, 1, 1)}


def test_what_is_pooled_over_all_places_depends_on_the_image():
    class Squeeze(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.after = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 3)

        def forward(self, x):
            return self.after(x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid())

    assert [layer.field for layer in layer_table(Squeeze(), (1, 16, 16)).layers] == [None, None]


@pytest.mark.parametrize("name", NETWORKS)
def test_sums_are_those_of_torch(name):
    model = Backbone(name).model
    parameters = sum(each.numel() for each in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = model.eval()(torch.zeros(1, 3, 64, 64))
    table = layer_table(model, (3, 64, 64))
    assert table.parameters == parameters
    assert 2 * table.multiply_adds == counter.get_total_flops()
    assert sum(layer.multiply_adds for layer in table.layers) == table.multiply_adds
    assert table.output == tuple(output.shape[1:])


def test_convolutions_have_the_rows_of_the_formula():
    model = Backbone("resnet10t", stem="small").model.eval()
    convolutions = {name: each for name, each in model.named_modules() if isinstance(each, nn.Conv2d)}
    given = {}
    for name, each in convolutions.items():
        each.register_forward_pre_hook(lambda _, inputs, name=name: given.update({name: inputs[0].shape[2]}))
    with torch.no_grad():
        model(torch.zeros(1, 3, 33, 33))
    layers = [layer for layer in layer_table(model, (3, 33, 33)).layers if layer.name in convolutions]
    assert len(layers) == len(convolutions)
    for layer in layers:
        conv = convolutions[layer.name]
        (kernel, _), (stride, _), (padding, _) = conv.kernel_size, conv.stride, conv.padding
        assert layer.output[1] == math.floor((given[layer.name] + 2 * padding - kernel) / stride) + 1, layer.name
        assert layer.parameters == conv.weight.numel()


def test_published_receptive_fields():
    """DenseNet-121 by Araujo, Norris and Sim 2019, table 1; ResNet-50 with strides in its 3x3 layers by hand."""
    for name, side in (("densenet121", 2071), ("resnet50", 427)):
        field = layer_table(Backbone(name).model, (3, 224, 224)).layers[-1].field
        assert field == Field(side, side, 32, 32)


def test_an_in_place_layer_keeps_nothing():
    plain, own = (nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(inplace=each)) for each in (True, False))
    assert layer_table(plain, (1, 8, 8)).activation_bytes == 4 * 4 * 64
    assert layer_table(own, (1, 8, 8)).activation_bytes == 2 * 4 * 4 * 64


def test_images_that_are_too_small_are_refused_in_one_line():
    with pytest.raises(ValueError, match="does not take images of 3x8x8") as caught:
        layer_table(Backbone("vgg11").model, (3, 8, 8))
    assert "\n" not in str(caught.value)
