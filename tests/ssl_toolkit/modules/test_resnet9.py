from __future__ import annotations

import timm
import torch
from timm.models._manipulate import group_parameters
from torch import nn
from torch.nn import functional

from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.modules.resnet9 import ResNet9


def step(state, name, x):
    """A convolution without bias, BatchNorm with the statistics of the batch, and ReLU, from their weights."""
    x = functional.conv2d(x, state[f"{name}.0.weight"], padding=1)
    mean, variance = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), keepdim=True, unbiased=False)
    scale, shift = (state[f"{name}.1.{each}"].view(1, -1, 1, 1) for each in ("weight", "bias"))
    return ((x - mean) / (variance + 1e-5).sqrt() * scale + shift).clamp(min=0)


def renamed(state):
    """Each convolution with its norm by the number of its place, in the order of Page's network."""
    convolutions = [name for name, value in state.items() if value.ndim == 4]
    norms = [name.removesuffix(".running_mean") for name in state if name.endswith("running_mean")]
    found = {}
    for number, (convolution, norm) in enumerate(zip(convolutions, norms, strict=True)):
        found[f"{number}.0.weight"] = state[convolution]
        found |= {f"{number}.1.{each}": state[f"{norm}.{each}"] for each in ("weight", "bias")}
    return found


def test_it_is_pages_network_written_down():
    torch.manual_seed(0)
    model = ResNet9(num_classes=5, channels=(4, 6, 8, 10)).double().train()
    state = model.state_dict()
    for value in state.values():
        if value.is_floating_point() and value.ndim == 1:
            nn.init.uniform_(value, 0.5, 1.5)
    x = torch.rand(3, 3, 16, 24, dtype=torch.float64)
    by_place = renamed(state)
    y = step(by_place, "0", x)
    y = functional.max_pool2d(step(by_place, "1", y), 2)
    y = y + step(by_place, "3", step(by_place, "2", y))
    y = functional.max_pool2d(step(by_place, "4", y), 2)
    y = functional.max_pool2d(step(by_place, "5", y), 2)
    y = y + step(by_place, "7", step(by_place, "6", y))
    logits = y.mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    torch.testing.assert_close(model(x), logits)


def test_its_size():
    model = ResNet9(num_classes=10)
    kernels = 9 * (3 * 64 + 64 * 128 + 2 * 128**2 + 128 * 256 + 256 * 512 + 2 * 512**2)
    norms = 2 * (64 + 3 * 128 + 256 + 3 * 512)
    assert sum(parameter.numel() for parameter in model.parameters()) == kernels + norms + 512 * 10 + 10
    assert [info["reduction"] for info in model.feature_info] == [1, 2, 4, 8]


def test_timm_makes_it_by_its_name():
    model = timm.create_model("resnet9", num_classes=0, in_chans=1)
    assert isinstance(model, ResNet9)
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 512)
    model.reset_classifier(7)
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 7)


def test_maps_that_are_asked_for():
    model = timm.create_model("resnet9", num_classes=0, channels=(4, 6, 8, 10)).eval()
    x = torch.rand(2, 3, 32, 32)
    last, maps = model.forward_intermediates(x)
    first = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    assert len(first) == 1
    assert torch.equal(first[0], maps[1])
    assert torch.equal(last, maps[-1])


def test_stages_are_as_deep_as_they_are_far_from_the_head():
    model = Backbone("resnet9").model
    groups = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    names = ("stem.0.weight", "layer1.0.weight", "layer2.1.bias", "layer3.4.0.weight")
    assert [groups[name] for name in names] == [0, 1, 2, 3]
    assert set(groups) == {name for name, _ in model.named_parameters()}
