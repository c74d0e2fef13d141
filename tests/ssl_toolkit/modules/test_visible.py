"""Networks that see some patches of an image: against the whole network, against plain loops, and outside of a pass."""

import copy
import math

import jaxtyping
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssl_toolkit.distributed.ranks import rank, world_size
from ssl_toolkit.distributed.sync_batchnorm import SyncBatchNorm, convert_sync_batchnorm
from ssl_toolkit.modules import Backbone, checkpoint_stages
from ssl_toolkit.modules.visible import VisiblePlaces, active, confine, only_visible, see_visible_only

PATCH = 32
SE = {"block_args": {"attn_layer": "se"}}
NETWORKS = [
    ("resnet10t", {"stem_width": 8, "channels": [8, 8, 16, 16]}, "own"),  # average pooling, a deep stem
    ("resnet10t", {"stem_width": 8, "channels": [8, 8, 16, 16], **SE}, "own"),
    ("resnetblur18", {"channels": [8, 8, 16, 16]}, "own"),
    ("resnet26", {"channels": [8, 8, 16, 16]}, "own"),  # bottlenecks, maximum pooling
    ("resnet10t", {"stem_width": 8, "channels": [8, 8, 16, 16]}, "group"),
    ("resnet10t", {"stem_width": 8, "channels": [8, 8, 16, 16]}, "none"),
    ("test_convnext", {}, "own"),  # linear layers on maps with the channels last
    ("test_convnext", {}, "layer"),
    ("test_convnext2", {"conv_mlp": True, "use_grn": True, "ls_init_value": None}, "own"),
    ("convnextv2_atto", {"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}, "own"),
    ("convnext_zepto_rms_ols", {"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}, "own"),
]


def make_backbone(name, kwargs, norm="own", stem="standard"):
    torch.manual_seed(0)
    backbone = Backbone(name, kwargs=kwargs, norm=norm, stem=stem).double()
    with torch.no_grad():
        for parameter in backbone.parameters():  # scales of blocks that begin with 0, too
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    return backbone


def make_places(visible, grid, patch_size=PATCH):
    return VisiblePlaces(torch.tensor(visible), grid, patch_size)


def is_visible(places, width):
    """By plain loops: bool tensor of shape [batch, width, width]."""
    side = width // places.grid
    found = torch.zeros(places.batch, width, width, dtype=torch.bool)
    for image in range(places.batch):
        for row in range(width):
            for column in range(width):
                found[image, row, column] = places.visible[image, row // side, column // side]
    return found


def test_places_of_all_resolutions():
    places = make_places([[0, 5], [7, 3]], 3, 12)
    assert places.visible.flatten(1).nonzero().tolist() == [[0, 0], [0, 5], [1, 3], [1, 7]]
    for side in (12, 6, 3):  # an odd side is the last
        width = 3 * side
        expected = is_visible(places, width)
        assert torch.equal(places.mask(width)[:, 0], expected)
        maps = torch.randn(2, 5, width, width, dtype=torch.float64, requires_grad=True)
        taken = places.take(maps)
        assert taken.shape == (2, 5, 2 * side**2, 1)
        for image in range(2):
            kept = {tuple(column) for column in taken[image, :, :, 0].T.tolist()}
            assert kept == {tuple(row) for row in maps.movedim(1, 3)[image][expected[image]].tolist()}
        for found in (places.put(taken), places.hide(maps)):
            assert torch.equal(found, maps * expected[:, None])
        last = places.take(maps.movedim(1, 3), channels=3)
        assert torch.equal(last.movedim(3, 1), taken)
        assert torch.equal(places.put(last, channels=3), places.put(taken).movedim(1, 3))
        if side == 3:
            assert torch.autograd.gradcheck(places.take, (maps,))
            assert torch.autograd.gradcheck(places.put, (taken,))
    for width in (37, 9 // 2, 72):
        with pytest.raises(ValueError, match=rf"^a map of {width}x{width} places cannot be divided into 3x3 patches; "):
            places.mask(width)


@pytest.mark.parametrize(("name", "kwargs", "norm"), NETWORKS)
def test_where_all_is_visible_it_is_the_whole_network(name, kwargs, norm):
    plain = make_backbone(name, kwargs, norm)
    prepared = copy.deepcopy(plain)
    for _ in range(2):  # a second time changes nothing
        see_visible_only(prepared.model, name)
    assert list(prepared.state_dict()) == list(plain.state_dict())
    images = torch.rand(3, 3, 64, 64, dtype=torch.float64)
    everything = make_places([[0, 1, 2, 3]] * 3, 2)
    features, maps = plain(images, with_maps=True)
    with only_visible(everything):
        found, found_maps = prepared(images, with_maps=True)
    torch.testing.assert_close(found, features)
    for stage, each in maps.items():
        torch.testing.assert_close(found_maps[stage], each)
    for each in (features, found):
        each.square().sum().backward()
    for (key, expected), tensor in zip(plain.state_dict().items(), prepared.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, expected, msg=key)  # running statistics
    for (key, expected), tensor in zip(plain.named_parameters(), prepared.named_parameters(), strict=True):
        torch.testing.assert_close(tensor[1].grad, expected.grad, msg=key, rtol=1e-5, atol=1e-9)
    # outside of the pass nothing is hidden, to the last bit
    assert active() is None
    plain.load_state_dict(prepared.state_dict())
    assert torch.equal(prepared.eval()(images), plain.eval()(images))


@pytest.mark.parametrize(("name", "kwargs", "norm"), NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_what_is_hidden_changes_nothing(name, kwargs, norm, training):
    backbone = make_backbone(name, kwargs, norm).train(training)
    see_visible_only(backbone.model, name)
    places = make_places([[0, 3, 4], [5, 7, 8]], 3)
    images = torch.rand(2, 3, 96, 96, dtype=torch.float64)
    pixels = is_visible(places, 96)[:, None]
    others = torch.where(pixels, images, torch.rand_like(images) * 50)
    outcomes = []
    for each in (images, others):
        network, given = copy.deepcopy(backbone), each.clone().requires_grad_()
        with only_visible(places):
            features, maps = network(given, with_maps=True)
        (features.square().sum() + sum(each.square().sum() for each in maps.values())).backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        buffers = [buffer.clone() for buffer in network.buffers()]
        outcomes.append([features, *maps.values(), given.grad, *gradients, *buffers])
        for each in maps.values():
            hidden = ~is_visible(places, each.shape[-1])[:, None]
            assert not (each * hidden).any()
        assert not given.grad[~pixels.expand_as(images)].any()
        assert (given.grad[pixels.expand_as(images)] != 0).double().mean() > 0.9
    for one, other in zip(*outcomes, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_pooled_features_are_those_of_visible_places():
    backbone = make_backbone("resnet10t", {"stem_width": 8, "channels": [8, 8, 16, 16]})
    see_visible_only(backbone.model, "resnet10t")
    places = make_places([[1, 2], [0, 1]], 2)
    with only_visible(places):
        features, maps = backbone(torch.rand(2, 3, 64, 64, dtype=torch.float64), with_maps=True)
    for image, numbers in enumerate([[1, 2], [0, 1]]):
        seen = [maps["layer4"][image, :, number // 2, number % 2] for number in numbers]
        torch.testing.assert_close(features[image], sum(seen) / 2)


@pytest.mark.parametrize("synchronised", [False, True])
def test_batchnorm_has_the_statistics_of_visible_places(synchronised):
    """A running mean and variance, and what is normalised with, a number at a time."""
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(2, momentum=0.3).double()
    confine(layer)
    if synchronised:
        layer = convert_sync_batchnorm(layer)
        assert isinstance(layer, SyncBatchNorm)
    places = make_places([[0, 3], [1, 2], [2, 3]], 2, 2)
    maps = torch.randn(3, 2, 4, 4, dtype=torch.float64) * 3 + 1
    visible = is_visible(places, 4).tolist()
    with only_visible(places):
        found = layer(maps)
    for channel in range(2):
        numbers = [
            maps[image, channel, row, column].item()
            for image in range(3)
            for row in range(4)
            for column in range(4)
            if visible[image][row][column]
        ]
        assert len(numbers) == 24
        mean = sum(numbers) / 24
        squares = sum((number - mean) ** 2 for number in numbers)
        assert layer.running_mean[channel].item() == pytest.approx(0.3 * mean)
        assert layer.running_var[channel].item() == pytest.approx(0.7 + 0.3 * squares / 23)
        for image in range(3):
            for row in range(4):
                for column in range(4):
                    expected = (maps[image, channel, row, column].item() - mean) / math.sqrt(squares / 24 + 1e-5)
                    expected *= visible[image][row][column]
                    assert found[image, channel, row, column].item() == pytest.approx(expected, abs=1e-9)
    assert layer.num_batches_tracked == 1


def visible_step():
    """This process's part of a step of a batch normalisation that sees two patches of each of four images."""
    torch.manual_seed(0)
    layer = convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(2)).double())
    confine(layer[0])
    maps, weights = torch.randn(2, 4, 2, 4, 4, dtype=torch.float64) * 3
    visible = torch.tensor([[0, 3], [1, 2], [2, 3], [0, 1]])
    maps, weights, visible = (each.chunk(world_size())[rank()] for each in (maps, weights, visible))
    maps.requires_grad_()
    with only_visible(VisiblePlaces(visible, 2, 2)):
        output = layer(maps)
    (weights * output).sum().backward()
    return output.detach(), maps.grad, dict(layer.named_buffers())


def test_two_processes_share_the_statistics_of_visible_places(run_processes):
    alone, (first, second) = visible_step(), run_processes(visible_step, 2)
    for number in range(2):
        torch.testing.assert_close(torch.cat([first[number], second[number]]), alone[number])
    for buffers in (first[2], second[2]):
        for name, expected in alone[2].items():
            torch.testing.assert_close(buffers[name], expected, msg=name)


def by_hand(model, images, places):
    """The stem and the first block of a ResNet-18: masks, and statistics of the places that they choose."""

    def mask(x):
        return is_visible(places, x.shape[-1])[:, None].to(x.dtype)

    def norm(layer, x):
        seen = x.movedim(1, -1)[is_visible(places, x.shape[-1])]
        variance, mean = torch.var_mean(seen, dim=0, correction=0)
        normalized = (x - mean[:, None, None]) / (variance[:, None, None] + layer.eps).sqrt()
        return (normalized * layer.weight[:, None, None] + layer.bias[:, None, None]) * mask(x)

    x = F.conv2d(images * mask(images), model.conv1.weight, stride=2, padding=3)
    x = F.max_pool2d(norm(model.bn1, x).relu(), 3, stride=2, padding=1)
    x = x * mask(x)
    block = model.layer1[0]
    inner = norm(block.bn1, F.conv2d(x, block.conv1.weight, padding=1)).relu()
    return (norm(block.bn2, F.conv2d(inner, block.conv2.weight, padding=1)) + x).relu()


def test_a_network_equals_one_that_is_written_with_masks():
    backbone = make_backbone("resnet18", {"channels": [64, 8, 8, 8]})
    see_visible_only(backbone.model, "resnet18")
    places = make_places([[0, 2], [1, 2]], 2)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    found = []
    backbone.model.layer1[0].register_forward_hook(lambda _, inputs, output: found.append(output))
    with only_visible(places):
        backbone(images)
    expected = by_hand(backbone.model, backbone._normalize(images), places)
    torch.testing.assert_close(found[0], expected)


def test_activation_checkpointing_computes_the_same_again():
    plain = make_backbone("resnet10t", {"stem_width": 8, "channels": [8, 8, 16, 16]})
    see_visible_only(plain.model, "resnet10t")
    checkpointed = copy.deepcopy(plain)
    checkpoint_stages(checkpointed)
    places = make_places([[0, 3, 4], [5, 7, 8]], 3)
    images = torch.rand(2, 3, 96, 96, dtype=torch.float64)
    for backbone in (plain, checkpointed):
        with only_visible(places):
            features, maps = backbone(images, with_maps=True)
        (features.sum() + maps["layer2"].square().sum()).backward()
    assert active() is None
    for (key, expected), found in zip(plain.state_dict().items(), checkpointed.state_dict().values(), strict=True):
        assert torch.equal(expected, found), key
    for (key, expected), found in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=key)


@pytest.mark.slow  # seconds for each network that is traced
def test_a_compiled_network_sees_what_is_visible_and_then_all(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks of shapes cannot be traced
    plain = make_backbone("resnet10t", {"stem_width": 8, "channels": [8, 8, 16, 16]}).eval()
    see_visible_only(plain.model, "resnet10t")
    compiled = copy.deepcopy(plain)
    compiled.compile(backend="eager", fullgraph=True)
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    for places in (None, make_places([[0, 3], [1, 2]], 2), make_places([[2, 3], [0, 1]], 2), None):
        with only_visible(places):
            torch.testing.assert_close(compiled(images), plain(images))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layouts_and_precisions_agree(memory_format):
    backbone = make_backbone("resnet10t", {"stem_width": 8, "channels": [8, 8, 16, 16]}).float()
    see_visible_only(backbone.model, "resnet10t")
    images = torch.rand(2, 3, 96, 96)
    with only_visible(make_places([[0, 3, 4], [5, 7, 8]], 3)):
        expected = backbone(images)
        backbone.to(memory_format=memory_format)
        torch.testing.assert_close(backbone(images.contiguous(memory_format=memory_format)), expected)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = backbone(images)
    assert F.cosine_similarity(rounded.float(), expected).min() > 0.98


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("efficientnet_b0", {}, "^masked convolutions are there for ResNets and ConvNeXts, got 'efficientnet_b0'; "),
        ("resnet18", {"block_args": {"attn_layer": "cbam"}}, r"^resnet18 cannot be masked: .* layer1\.0\.se \(Cbam"),
        ("resnet18", {"act_layer": "sigmoid"}, r"^resnet18 cannot be masked: .* its layer act1 \(Sigmoid\)"),
    ],
)
def test_what_cannot_be_masked_is_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message) as refused:
        see_visible_only(Backbone(name, kwargs=kwargs).model, name)
    assert "\n" not in str(refused.value)


def test_a_pass_that_fails_hides_nothing_afterwards():
    with pytest.raises(RuntimeError), only_visible(make_places([[0]], 2)):
        raise RuntimeError
    assert active() is None
