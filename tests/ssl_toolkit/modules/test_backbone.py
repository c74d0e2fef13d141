from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from jsonargparse import ArgumentParser
from safetensors.torch import save_file
from torch import nn

from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.modules.timm_network import CNN_FAMILIES

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# one small network of each way in which timm builds a stem, a pyramid or a head
FAMILIES = [
    "test_resnet",
    "test_convnext",
    "test_efficientnet",
    "test_byobnet",
    "test_nfnet",
    "test_mambaout",
    "resnet18",
    "resnet10t",
    "convnext_atto",
    "regnety_002",
    "mobilenetv3_small_050",
    "ghostnet_050",
    "repghostnet_050",
    "resnetv2_18",
    "repvgg_a0",
    "starnet_s1",
    "resnet9",
    "conv_stack",
]
LARGE_FAMILIES = [
    "resnet50",
    "convnext_tiny",
    "efficientnet_b0",
    "regnety_008",
    "mobilenetv3_large_100",
    "densenet121",
    "vgg11_bn",
    "dla34",
    "hgnetv2_b0",
    "hrnet_w18_small",
    "inception_v3",
    "nf_regnet_b0",
    "rexnet_100",
    "selecsls42",
    "xception41",
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def check_outputs(name):
    backbone = Backbone(name).eval()
    x = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        features, maps, by_stage = backbone(x), backbone.feature_maps(x), backbone.stage_features(x)
    assert features.shape == (1, backbone.num_features)
    assert list(maps) == backbone.stages
    assert [stage.shape[1] for stage in maps.values()] == backbone.stage_channels
    sizes = [stage.shape[2] for stage in maps.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]
    assert list(by_stage) == [*backbone.stages, "pooled"]
    assert torch.equal(by_stage["pooled"], features)
    with torch.no_grad():
        together, last_map = backbone(x, with_map=True)
        with_all, all_maps = backbone(x, with_maps=True)
    assert torch.equal(with_all, features)
    assert list(all_maps) == backbone.stages
    assert all(torch.equal(all_maps[stage], each) for stage, each in maps.items())
    assert torch.equal(together, features)
    assert torch.equal(last_map, maps[backbone.stages[-1]])
    last = backbone.stages[-1]
    torch.testing.assert_close(by_stage[last], maps[last].flatten(2).mean(2))


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_of_small_networks(name):
    check_outputs(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE_FAMILIES)
def test_outputs_of_large_networks(name):
    check_outputs(name)


def test_sides_of_the_maps_are_told_and_nothing_is_changed():
    backbone = Backbone("resnet10t", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    before = copy.deepcopy(backbone.state_dict())
    sides = backbone.map_sides(65)
    assert sides == {stage: maps.shape[3] for stage, maps in backbone.feature_maps(torch.rand(2, 3, 65, 65)).items()}
    assert list(sides.values()) == [33, 17, 9, 5, 3]
    assert backbone.training
    backbone.load_state_dict(before)
    backbone.map_sides(64)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_every_listed_family_is_in_timm():
    assert set(CNN_FAMILIES) <= set(timm.list_modules())


def test_normalises_once_with_the_networks_own_mean_and_std():
    backbone = Backbone("test_resnet").eval()
    assert backbone.mean == backbone.model.pretrained_cfg["mean"]
    plain = timm.create_model("test_resnet", num_classes=0).eval()
    plain.load_state_dict(backbone.model.state_dict())
    x = torch.rand(2, 3, 40, 40)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (backbone.mean, backbone.std))
    torch.testing.assert_close(backbone(x), plain((x - mean) / std))
    assert (Backbone("resnet18").mean, Backbone("resnet18").std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_mean_and_std_follow_the_module_and_stay_out_of_the_weights():
    backbone = Backbone("test_resnet").double().eval()
    assert backbone(torch.rand(1, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64
    assert all(key.startswith("model.") for key in backbone.state_dict())
    backbone.set_normalization((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert backbone.mean == (0.1, 0.2, 0.3)
    assert backbone(torch.rand(1, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(ValueError, match="3 numbers each"):
        backbone.set_normalization((0.1,), (1.0,))


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_other_channel_counts(channels):
    backbone = Backbone("resnet10t", in_channels=channels).eval()
    assert backbone.mean == pytest.approx([sum(IMAGENET_MEAN) / 3] * channels)
    assert backbone.std == pytest.approx([sum(IMAGENET_STD) / 3] * channels)
    assert backbone(torch.rand(1, channels, 32, 32)).shape == (1, 512)


def test_small_stem_of_a_resnet_is_that_of_simclr():
    backbone = Backbone("resnet18", stem="small").eval()
    # Chen et al. 2020, appendix B.9, written down independently
    plain = timm.create_model("resnet18", num_classes=0).eval()
    plain.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    plain.maxpool = nn.Identity()
    plain.load_state_dict(backbone.model.state_dict())
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(backbone(x), plain((x - mean) / std))
    assert [stage.shape[-1] for stage in backbone.feature_maps(x).values()] == [32, 32, 16, 8, 4]
    # scaled so that the activations keep their size: std = sqrt(2 / fan_out)
    assert backbone.model.conv1.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("name", "kwargs", "sizes"),
    [
        ("resnet18", {"channels": [4, 4, 8, 8]}, [16, 16, 8, 4, 2]),
        ("test_resnet", {}, [16, 16, 8, 4, 2]),
        pytest.param("resnetv2_50x1_bit", {}, [16, 16, 8, 4, 2], marks=pytest.mark.slow),
        ("densenet121", {"block_config": [1, 1, 1, 1]}, [16, 16, 8, 4, 2]),
        ("test_convnext", {}, [16, 8, 4, 2]),  # from patches of 4x4
    ],
)
def test_middle_stem(name, kwargs, sizes):
    backbone = Backbone(name, stem="middle", kwargs=kwargs).eval()
    with torch.no_grad():
        maps = backbone.feature_maps(torch.rand(1, 3, 32, 32))
    assert [stage.shape[-1] for stage in maps.values()] == sizes
    assert Backbone(**backbone.config()).map_sides(32) == backbone.map_sides(32)


def test_middle_stem_of_a_resnet_written_down():
    backbone = Backbone("resnet18", stem="middle", kwargs={"channels": [4, 4, 8, 8]}).eval()
    plain = timm.create_model("resnet18", num_classes=0, channels=[4, 4, 8, 8]).eval()
    plain.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=2, padding=1, bias=False)
    plain.maxpool = nn.Identity()
    plain.load_state_dict(backbone.model.state_dict())
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(backbone(x), plain((x - mean) / std))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("test_efficientnet", "stride 2 with no pooling after it"),
        ("hgnetv2_b0", "stride 2 with no pooling after it"),
        ("vgg11", "stride 1 already"),
        ("resnet9", "stride 1 already"),
    ],
)
def test_middle_stem_where_there_is_none(name, reason):
    with torch.device("meta"), pytest.raises(ValueError, match=f"'{name}' has no middle stem: .* {reason}; use stem"):
        Backbone(name, stem="middle")


@pytest.mark.parametrize(
    ("name", "kwargs", "sizes"),
    [
        ("test_resnet", {}, [32, 32, 16, 8, 4]),  # first kernel 3x3 already, in a deep stem
        # a padding belongs to the pooling
        pytest.param("resnetv2_50x1_bit", {}, [32, 32, 16, 8, 4], marks=pytest.mark.slow),
        ("densenet121", {"block_config": [1, 1, 1, 1]}, [32, 32, 16, 8, 4]),
        ("test_convnext", {}, [32, 16, 8, 4]),  # from patches of 4x4
        ("test_efficientnet", {}, [32, 16, 8, 4, 2]),  # no pooling
        ("mobileone_s0", {}, [32, 16, 8, 4, 2]),  # parallel branches
        ("hgnetv2_b0", {}, [16, 8, 4, 2]),  # a pool of stride 1 stays
    ],
)
def test_small_stem_of_other_families(name, kwargs, sizes):
    backbone = Backbone(name, stem="small", kwargs=kwargs).eval()
    with torch.no_grad():
        maps = backbone.feature_maps(torch.rand(1, 3, 32, 32))
    assert [stage.shape[-1] for stage in maps.values()] == sizes
    assert [stage.shape[1] for stage in maps.values()] == backbone.stage_channels


@pytest.mark.parametrize("name", ["vgg11", "dla34", "darknet17"])
def test_small_stem_where_there_is_none(name):
    with torch.device("meta"), pytest.raises(ValueError, match=f"'{name}' has no small stem: .* use stem: standard"):
        Backbone(name, stem="small")


def test_config_builds_the_same_backbone_again():
    kwargs = {"channels": (8, 16, 24, 32), "drop_path_rate": 0.1}
    backbone = Backbone("resnet18", stem="small", in_channels=2, kwargs=kwargs)
    assert backbone.num_features == 32
    assert backbone.stage_channels == [64, 8, 16, 24, 32]
    again = Backbone(**backbone.config())
    assert again.config() == backbone.config()
    again.load_state_dict(backbone.state_dict())
    x = torch.rand(2, 2, 32, 32)
    assert torch.equal(again.eval()(x), backbone.eval()(x))


def test_batch_of_one_bfloat16_and_channels_last():
    backbone = Backbone("test_resnet").eval().to(memory_format=torch.channels_last)
    x = torch.rand(1, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    expected = backbone(x)
    with torch.autocast("cpu", torch.bfloat16):
        features = backbone(x)
    assert features.dtype == torch.bfloat16
    torch.testing.assert_close(features.float(), expected, rtol=0.1, atol=0.05)
    inputs = []
    backbone.model.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    backbone(torch.rand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    assert inputs[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "x", [torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, 1, 32, 32), torch.zeros(3, 32, 32)]
)
def test_input_of_another_kind(x, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # the tests' own check would come first
    with pytest.raises(ValueError, match=r"floats in \[0, 1\] of shape \[batch, 3, height, width\], got"):
        Backbone("test_resnet")(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet81"}, "timm knows no network 'resnet81'; did you mean 'resnet18'"),
        ({"name": "efficientnetb0"}, "did you mean 'efficientnet_b0'"),
        ({"name": "microsoft/resnet-50"}, "timm knows no network 'microsoft/resnet-50'"),
        ({"name": "vit_tiny_patch16_224"}, "'vit_tiny_patch16_224' is not a convolutional network"),
        ({"name": "swin_tiny_patch4_window7_224"}, "is not a convolutional network"),
        ({"name": "resnet18.a1_in2k"}, "no weights 'a1_in2k' for 'resnet18'.*did you mean 'a1_in1k'"),
        ({"stem": "smal"}, "stem is one of standard, middle, small, got 'smal'; did you mean 'small'"),
        ({"name": "resnet9", "pretrained": True}, "timm has no pretrained weights of 'resnet9'; set pretrained to"),
        ({"name": "resnet9", "kwargs": {"channels": [8, 8]}}, "resnet9 takes four channels"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"kwargs": {"num_classes": 10}}, "may not hold 'num_classes'"),
        ({"kwargs": {"checkpoint_path": "x.pth"}}, "may not hold 'checkpoint_path'"),
        ({"kwargs": {"act_layer": nn.ReLU}}, "must be numbers, strings, lists and dicts"),
        ({"kwargs": {"drop_pth_rate": 0.1}}, "could not build 'resnet18'.*drop_pth_rate"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        Backbone(**arguments)
    assert "\n" not in str(error.value)


def test_pretrained_weights_that_cannot_be_had(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("cannot reach the hub\nand a long explanation")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(ValueError, match="could not get the pretrained weights of 'resnet10t'") as error:
        Backbone("resnet10t", pretrained=True)
    assert "OSError: cannot reach the hub)" in str(error.value)
    assert "\n" not in str(error.value)


class Hub:
    """In the place of the hub's client: answers, or does not; counts how often it is asked."""

    def __init__(self, answers):
        self.answers, self.asked = answers, 0

    def head(self, *_, **__):
        self.asked += 1
        if not self.answers:
            raise ConnectionError("no route to the hub\nand a long explanation")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch, tmp_path, capfd):
    hub = Hub(answers=False)
    monkeypatch.setattr("ssl_toolkit.modules.timm_network.get_session", lambda: hub)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="could not get") as error:
        Backbone("resnet10t", pretrained=True)
    assert "(the hub does not answer: ConnectionError: no route to the hub); check the network" in str(error.value)
    assert hub.asked == 1
    assert "".join(capfd.readouterr()) == ""
    assert not constants.HF_HUB_OFFLINE
    # what was downloaded before is found
    supervised = timm.create_model("resnet10t", num_classes=1000).state_dict()
    cached = tmp_path / "models--timm--resnet10t.c3_in1k"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(supervised, cached / "snapshots" / ("0" * 40) / "model.safetensors")
    backbone = Backbone("resnet10t", pretrained=True)
    assert torch.equal(backbone.model.layer4[0].conv1.weight, supervised["layer4.0.conv1.weight"])


def test_a_hub_that_answers_is_used(monkeypatch):
    seen = []
    supervised = timm.create_model("resnet10t", num_classes=1000).state_dict()

    def download(*_, **__):
        seen.append(constants.HF_HUB_OFFLINE)
        return dict(supervised)

    monkeypatch.setattr("ssl_toolkit.modules.timm_network.get_session", lambda: Hub(answers=True))
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", download)
    Backbone("resnet10t", pretrained=True)
    assert seen == [False]


def test_pretrained_is_no_file():
    arguments: Any = {"pretrained": "weights.pth"}
    with pytest.raises(ValueError, match=r"pretrained is 'weights.pth', expected true or .* \(--model.weights FILE\)"):
        Backbone("resnet10t", **arguments)


def test_pretrained_weights_are_loaded(monkeypatch):
    supervised = timm.create_model("resnet10t", num_classes=1000).state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *args, **kwargs: dict(supervised))
    backbone = Backbone("resnet10t", pretrained=True)
    assert torch.equal(backbone.model.layer4[0].conv1.weight, supervised["layer4.0.conv1.weight"])
    # a small stem keeps the first kernel where it is 3x3
    backbone = Backbone("resnet10t", pretrained=True, stem="small")
    assert torch.equal(backbone.model.conv1[0].weight, supervised["conv1.0.weight"])


def test_yaml_and_command_line():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--backbone", type=Backbone)
    parser.add_argument("--config", action="config")
    config = parser.parse_args(
        [
            "--config={backbone: {name: test_resnet, stem: small, kwargs: {drop_path_rate: 0.1}}}",
            "--backbone.in_channels=1",
        ]
    )
    backbone = parser.instantiate(config).backbone
    expected = {"name": "test_resnet", "pretrained": False, "stem": "small", "in_channels": 1}
    rest = {"kwargs": {"drop_path_rate": 0.1}, "norm": "own", "weight_standardization": False}
    assert backbone.config() == {**expected, **rest}
