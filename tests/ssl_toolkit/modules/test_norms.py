"""Replaced norm layers against timm's own networks and torch's layers; the laws of each norm; where a backbone goes."""

import re
from typing import Any

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, StdConv2d, StdConv2dSame
from torch import nn

from ssl_toolkit.distributed.sync_batchnorm import convert_sync_batchnorm
from ssl_toolkit.evaluation.random_weights import random_backbone
from ssl_toolkit.init import Constant, ZeroGamma
from ssl_toolkit.modules.activation_checkpointing import checkpoint_stages
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.modules.norms import (
    GroupNorm,
    ScaleAndShift,
    StandardizedConv2d,
    StandardizedConv2dSame,
    num_groups,
    replace_norms,
    standardize_weights,
    standardized,
)
from ssl_toolkit.modules.small_maps import SmallMapConv2d
from ssl_toolkit.weights import WeightsError, load_backbone, load_into, read_header, save_backbone
from ssl_toolkit.weights.export import export

NARROW = {"channels": [8, 16, 24, 32], "stem_width": 8}
NORMS = ["layer", "group", "none"]
# one of each way in which timm writes a norm: apart, fused, before the convolution, channels last, in a branch alone
FAMILIES = ["test_resnet", "test_efficientnet", "test_convnext", "test_mambaout", "regnety_002", "resnetv2_18", "dla34",
            "repvgg_a0", "tf_efficientnet_lite0"]  # fmt: skip


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def shake(module):
    """Scales and shifts other than 1 and 0, so that a forgotten one shows."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))


def shapes(module):
    return {name: parameter.shape for name, parameter in module.named_parameters()}


@pytest.mark.parametrize(("norm", "theirs"), [("group", "groupnorm"), ("layer", "groupnorm1")])
def test_resnet_equals_timms_resnet_of_that_norm(norm, theirs):
    backbone = Backbone("resnet18", norm=norm).eval()
    plain = timm.create_model("resnet18", num_classes=0, norm_layer=theirs).eval()
    shake(backbone)
    plain.load_state_dict(backbone.model.state_dict())  # the same keys
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(backbone(x), plain((x - backbone._mean) / backbone._std), rtol=1e-4, atol=1e-4)


def by_hand(x, groups, weight, bias):
    """Wu and He 2018, equations 1, 2, 6 and 7, with loops."""
    result = torch.empty_like(x)
    size = x.shape[1] // groups
    for i in range(len(x)):
        for start in range(0, x.shape[1], size):
            part = x[i, start : start + size]
            result[i, start : start + size] = (part - part.mean()) / (part.var(correction=0) + 1e-5).sqrt()
    shape = (1, -1, 1, 1)
    return result * weight.view(shape) + bias.view(shape)


def test_fused_layers_keep_their_dropout_and_activation_and_are_normalised_as_by_hand():
    source: Any = BatchNormAct2d(24, act_layer=nn.GELU, drop_layer=lambda: nn.Dropout(0.5), inplace=False)
    shake(source)
    x = 3 * torch.randn(3, 24, 5, 4) + 1
    for one_group, groups in ((True, 1), (False, 12)):
        layer = GroupNorm(source, one_group).eval()
        expected = nn.functional.gelu(by_hand(x, groups, source.weight, source.bias))
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
        assert (layer.train()(x) == 0).float().mean() > 0.4
        assert list(layer.state_dict()) == ["weight", "bias"]
        assert layer.weight is source.weight
    expected = nn.functional.gelu(x * source.weight.view(1, -1, 1, 1) + source.bias.view(1, -1, 1, 1))
    torch.testing.assert_close(ScaleAndShift(source).eval()(x), expected)


@pytest.mark.parametrize("affine", [True, False])
def test_channels_last_layers_are_normalised_over_the_same_axis(affine):
    source = nn.LayerNorm(12, elementwise_affine=affine)
    shake(source)
    x = torch.randn(2, 5, 4, 12)
    weight, bias = (source.weight, source.bias) if affine else (torch.ones(12), torch.zeros(12))
    expected = by_hand(x.permute(0, 3, 1, 2), 6, weight, bias).permute(0, 2, 3, 1)
    torch.testing.assert_close(GroupNorm(source)(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ScaleAndShift(source)(x), x * weight + bias)
    pooled = torch.randn(3, 12)
    expected = nn.functional.layer_norm(pooled, (12,), weight, bias)
    torch.testing.assert_close(GroupNorm(source, one_group=True)(pooled), expected, rtol=1e-5, atol=1e-5)


def test_an_activation_in_place_never_changes_the_input():
    x = torch.randn(2, 4, 3, 3)
    kept = x.clone()
    for affine in (True, False):
        for layer in (GroupNorm, ScaleAndShift):
            layer(BatchNormAct2d(4, affine=affine))(x)
            assert torch.equal(x, kept)


def test_groups_fit_any_width():
    expected = {1: 1, 2: 1, 3: 1, 4: 2, 7: 1, 8: 4, 16: 8, 24: 12, 32: 16, 48: 24, 64: 32, 96: 32, 144: 24, 2048: 32}
    assert {width: num_groups(width) for width in expected} == expected
    for width in range(2, 500):
        assert width % num_groups(width) == 0
        assert num_groups(width) <= min(32, width // 2)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_computes_and_learns_without_its_own_norms(name, norm):
    backbone = Backbone(name, norm=norm)
    assert shapes(backbone) == shapes(Backbone(name))
    assert not [each for each in backbone.modules() if isinstance(each, nn.BatchNorm2d | nn.LayerNorm)]
    x = torch.rand(2, 3, 64, 64)
    backbone(x).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in backbone.parameters() if parameter.grad is not None)
    assert list(backbone.feature_maps(x)) == backbone.stages


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["resnet10t", "test_efficientnet", "test_convnext"])
def test_the_features_of_an_image_do_not_depend_on_its_batch(name, norm):
    backbone = Backbone(name, norm=norm, kwargs=NARROW if name == "resnet10t" else {})  # in training mode
    shake(backbone)
    x = torch.rand(5, 3, 40, 40)
    whole = backbone(x)
    for part in (1, 2):
        together = torch.cat([backbone(each) for each in x.split(part)])
        torch.testing.assert_close(together, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "path"), [
    ("test_convnext", "head.norm"),  # after the global pooling
    ("test_mambaout", "head.norm"),  # the same, of [batch, channels]
    ("resnest14d", "layer1.0.conv2.bn1"),  # the attention to channels
])  # fmt: skip
@pytest.mark.parametrize("in_channels", [3, 1])
def test_what_has_one_place_only_is_one_group(name, path, in_channels):
    # two channels at one place leave their order alone: a vector of -1 and 1
    backbone = Backbone(name, norm="group", in_channels=in_channels).eval()
    layer: Any = backbone.model.get_submodule(path)
    seen: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone(torch.rand(2, in_channels, 64, 64))
    expected = nn.functional.layer_norm(seen[0].flatten(1), seen[0].shape[1:2], layer.weight, layer.bias)
    expected = layer.act(expected)
    torch.testing.assert_close(layer(seen[0]).flatten(1), expected, rtol=1e-4, atol=1e-5)
    others = [each for each in backbone.modules() if isinstance(each, GroupNorm) and each.num_groups > 1]
    assert len(others) > 3


def test_looking_for_what_has_one_place_leaves_no_trace():
    plain = Backbone("test_convnext")
    model = timm.create_model("test_convnext", num_classes=0)
    model.stages[0].eval()
    training = {name: each.training for name, each in model.named_modules()}
    assert len(set(training.values())) == 2
    replace_norms(model, "group")
    assert {name: model.get_submodule(name).training for name in training} == training
    assert not [each for each in model.modules() if each._forward_pre_hooks]
    assert shapes(model) == shapes(plain.model)


@pytest.mark.parametrize("norm", ["own", "group"])
@pytest.mark.parametrize(("name", "same"), [("resnet10t", False), ("tf_efficientnet_lite0", True)])
def test_standardised_convolutions_equal_timms(name, same, norm):
    backbone = Backbone(name, norm=norm, weight_standardization=True)
    plain = Backbone(name, norm=norm)
    assert shapes(backbone) == shapes(plain)
    plain.load_state_dict(backbone.state_dict())
    kinds = {type(each) for each in backbone.modules() if isinstance(each, nn.Conv2d)}
    assert kinds == ({StandardizedConv2d, StandardizedConv2dSame} if same else {StandardizedConv2d})
    for path, layer in list(plain.named_modules()):
        if isinstance(layer, nn.Conv2d):
            shape: Any = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride)
            if "Same" in type(layer).__name__:
                theirs = StdConv2dSame(*shape, groups=layer.groups)
            else:
                padding: Any = layer.padding
                theirs = StdConv2d(*shape, padding=padding, groups=layer.groups)
            theirs.load_state_dict(layer.state_dict())
            parent, _, child = path.rpartition(".")
            setattr(plain.get_submodule(parent), child, theirs)
    x = torch.rand(2, 3, 64, 64)
    expected = plain(x)
    torch.testing.assert_close(backbone(x), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_kernels_are_standardised_and_their_scale_and_mean_do_not_matter():
    weight = torch.randn(6, 4, 3, 3)
    result = standardized(weight)
    for one, kernel in zip(result, weight, strict=True):
        expected = (kernel - kernel.mean()) / (kernel.var(correction=0) + 1e-6).sqrt()
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(standardized(5 * weight + 3), result, rtol=1e-4, atol=1e-5)


def test_what_has_no_norm_after_it_is_not_standardised():
    squeeze = Backbone("regnety_002", weight_standardization=True)
    plain = [name for name, each in squeeze.named_modules() if type(each) is SmallMapConv2d]
    assert plain
    assert all(".se." in name for name in plain)
    depthwise = nn.Sequential(nn.Conv2d(4, 4, 1, groups=4, bias=False), nn.Conv2d(4, 8, 3))
    standardize_weights(depthwise)
    assert [type(each) for each in depthwise] == [nn.Conv2d, StandardizedConv2d]


@pytest.mark.parametrize("arguments", [{"norm": "layer"}, {"norm": "group", "weight_standardization": True},
                                       {"norm": "none"}, {"weight_standardization": True}])  # fmt: skip
@pytest.mark.parametrize("network", [("resnet10t", NARROW), ("test_efficientnet", {})])
def test_weights_travel_and_fit_no_other_norm(tmp_path, arguments, network):
    name, kwargs = network
    backbone = Backbone(name, kwargs=kwargs, stem="small", **arguments)
    shake(backbone)
    file = tmp_path / "backbone.safetensors"
    save_backbone(file, backbone, {})
    assert {key: read_header(file)["backbone"][key] for key in arguments} == arguments
    again = load_backbone(file)
    assert again.config() == backbone.config()
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.eval()(x), backbone.eval()(x))
    with pytest.raises(WeightsError, match=f"{next(iter(arguments))}: {next(iter(arguments.values()))}"):
        load_into(Backbone(name, kwargs=kwargs, stem="small"), file)
    # the same values again from the same seed
    assert all(map(torch.equal, random_backbone(backbone).parameters(), random_backbone(again).parameters()))
    formats: list[tuple[Any, str]] = [("timm", "safetensors"), ("torchvision", "pth")]
    for format, suffix in formats:
        with pytest.raises(ValueError, match=f"plain {format} has no {name} with norm=.* export it as onnx") as error:
            export(str(file), format, str(tmp_path / f"out.{suffix}"))
        assert "\n" not in str(error.value)


def test_files_from_before_these_arguments_still_load(tmp_path, monkeypatch):
    backbone = Backbone("test_resnet")
    old = {key: value for key, value in backbone.config().items() if key not in ("norm", "weight_standardization")}
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "config", lambda self: old)
        save_backbone(tmp_path / "old.safetensors", backbone, {})
    assert "norm" not in read_header(tmp_path / "old.safetensors")["backbone"]
    assert load_backbone(tmp_path / "old.safetensors").config() == backbone.config()
    assert load_into(Backbone("test_resnet"), tmp_path / "old.safetensors").num_loaded > 0
    with pytest.raises(WeightsError, match="norm: own"):
        load_into(Backbone("test_resnet", norm="group"), tmp_path / "old.safetensors")


@pytest.mark.parametrize("arguments", [{"norm": "group", "weight_standardization": True}, {"norm": "none"}])
def test_memory_format_autocast_and_gradient_checkpointing(arguments):
    backbone = Backbone("resnet10t", kwargs=NARROW, **arguments)
    shake(backbone)
    x = torch.rand(4, 3, 64, 64)
    expected = backbone(x)
    expected.sum().backward()
    gradients = [parameter.grad for parameter in backbone.parameters()]
    backbone.zero_grad()
    checkpoint_stages(backbone)
    backbone(x).sum().backward()
    for parameter, gradient in zip(backbone.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    with torch.autocast("cpu", torch.bfloat16):
        maps = backbone.feature_maps(x)
        half = backbone(x)
    assert {each.dtype for each in maps.values()} == {torch.bfloat16}
    assert (half.float() - expected).norm() < 0.05 * expected.norm()
    last = backbone.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_is_left_for_synchronised_statistics_and_initialisations_find_the_scales(norm):
    backbone = Backbone("resnet10t", kwargs=NARROW, norm=norm)
    convert_sync_batchnorm(backbone)
    assert not [each for each in backbone.modules() if "Batch" in type(each).__name__]
    assert not list(backbone.model.buffers())
    names = ZeroGamma("")(backbone)
    assert names == ZeroGamma("").names(Backbone("resnet10t", kwargs=NARROW))
    assert not any(backbone.get_parameter(name).any() for name in names)
    Constant(r"bn1\.weight", 0.5)(backbone)
    assert set(backbone.get_parameter("model.layer1.0.bn1.weight").tolist()) == {0.5}


def test_without_norm_a_residual_network_starts_as_its_shortcuts():
    # timm's zeros in the last scale of each block stay: SkipInit
    backbone = Backbone("resnet10t", kwargs=NARROW, norm="none").eval()
    x = torch.rand(1, 3, 64, 64)
    before = backbone(x)
    with torch.no_grad():
        backbone.model.layer1[0].conv2.weight.mul_(7)
    assert torch.equal(backbone(x), before)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{"norm": "group", "weight_standardization": True}, {"norm": "layer"},
                                       {"norm": "none"}])  # fmt: skip
@pytest.mark.parametrize("name", ["resnet10t", "test_convnext"])
def test_onnx(tmp_path, name, arguments):
    runtime = pytest.importorskip("onnxruntime")
    backbone = Backbone(name, **arguments).eval()
    shake(backbone)
    save_backbone(tmp_path / "w.safetensors", backbone, {})
    session = runtime.InferenceSession(export(str(tmp_path / "w.safetensors"), "onnx", str(tmp_path / "w.onnx")))
    for batch, height, width in ((1, 64, 64), (3, 70, 99)):
        x = torch.rand(batch, 3, height, width)
        (features,) = session.run(["features"], {"images": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(features), backbone(x).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "grup"}, "norm is 'own' (BatchNorm in most networks), 'layer', 'group' or 'none', got 'grup'; did"),
        ({"name": "test_nfnet", "norm": "group"}, "no normalisation layer to replace; use norm: own"),
        ({"name": "test_nfnet", "weight_standardization": True}, "has no convolution to standardise, or standardises"),
        ({"norm": "none", "weight_standardization": True}, "needs a normalisation after each convolution, got norm="),
        (
            {"norm": "group", "pretrained": True},
            "pretrained weights fit the network's own layers only, got norm='group'",
        ),
    ],
)
def test_wrong_arguments_are_named_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        Backbone(**arguments)
    assert "\n" not in str(error.value)
