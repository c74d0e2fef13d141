from __future__ import annotations

import importlib.util
import json

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import save_backbone
from ssl_toolkit.weights.export import TORCHVISION_NETWORKS, export

NARROW = {"channels": [8, 8, 16, 16]}


def save(folder, *arguments, **keywords):
    """A weights file, and the backbone in it with batch-norm statistics that are not those of a new network."""
    torch.manual_seed(0)
    backbone = Backbone(*arguments, **keywords)
    with torch.no_grad():
        backbone(torch.rand(4, backbone.in_channels, 48, 48))
    file = folder / "backbone.safetensors"
    save_backbone(file, backbone, {})
    return str(file), backbone.eval()


def normalized(backbone, x):
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (backbone.mean, backbone.std))
    return (x - mean) / std


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_timm(tmp_path, images):
    weights, backbone = save(tmp_path, "resnet10t", kwargs=NARROW)
    out = tmp_path / "exported.safetensors"
    assert export(weights, "timm", str(out)) == out
    description = json.loads(out.with_suffix(".json").read_text())
    assert description["architecture"] == "resnet10t"
    assert description["pretrained_cfg"]["mean"] == pytest.approx(backbone.mean)
    plain = timm.create_model(
        description["architecture"], num_classes=0, checkpoint_path=str(out), **description["model_args"]
    ).eval()
    torch.testing.assert_close(plain(normalized(backbone, images)), backbone(images))
    by_hand = timm.create_model("resnet10t", num_classes=0, **NARROW).eval()
    by_hand.load_state_dict(safetensors.torch.load_file(out))
    torch.testing.assert_close(by_hand(normalized(backbone, images)), backbone(images))


def test_timm_as_a_folder(tmp_path, images):
    weights, backbone = save(tmp_path, "test_resnet")
    out = export(weights, "timm", str(tmp_path / "model.safetensors"))
    out.with_suffix(".json").rename(tmp_path / "config.json")
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert tuple(plain.pretrained_cfg["mean"]) == backbone.mean
    torch.testing.assert_close(plain(normalized(backbone, images)), backbone(images))


@pytest.mark.parametrize(
    ("name", "suffix"), [("resnet18", "pth"), pytest.param("resnet50", "safetensors", marks=pytest.mark.slow)]
)
def test_torchvision(tmp_path, images, name, suffix):
    weights, backbone = save(tmp_path, name)
    out = export(weights, "torchvision", str(tmp_path / f"exported.{suffix}"))
    model = getattr(torchvision.models, name)()
    model.fc = nn.Identity()
    model.load_state_dict(
        torch.load(out, weights_only=True) if suffix == "pth" else safetensors.torch.load_file(out), strict=True
    )
    torch.testing.assert_close(model.eval()(normalized(backbone, images)), backbone(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("stem", "stride"), [("small", 1), ("middle", 2)])
def test_torchvision_with_another_stem(tmp_path, images, stem, stride):
    weights, backbone = save(tmp_path, "resnet18", stem=stem)
    out = export(weights, "torchvision", str(tmp_path / "exported.pth"))
    model = torchvision.models.resnet18()
    model.conv1, model.maxpool, model.fc = nn.Conv2d(3, 64, 3, stride, 1, bias=False), nn.Identity(), nn.Identity()
    model.load_state_dict(torch.load(out, weights_only=True))
    torch.testing.assert_close(model.eval()(normalized(backbone, images)), backbone(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TORCHVISION_NETWORKS)
def test_torchvision_networks_have_timms_tensors(name):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).state_dict()
        ours = Backbone(name).model.state_dict()
    assert {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")} == {
        key: value.shape for key, value in ours.items()
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "test_resnet"}, "no network with the layers of timm's 'test_resnet', only of resnet18, resnet34"),
        ({"name": "resnet18", "kwargs": NARROW}, "this resnet18 is not torchvision's: .* arguments {'channels'"),
        ({"name": "resnet18", "in_channels": 1}, "in_channels=1 or its arguments"),
        ({"name": "resnet18", "in_channels": 1, "stem": "small"}, "in_channels=1 or its arguments"),
    ],
)
def test_torchvision_refuses_other_networks(tmp_path, arguments, message):
    weights, _ = save(tmp_path, **arguments)
    with pytest.raises(ValueError, match=message) as error:
        export(weights, "torchvision", str(tmp_path / "exported.pth"))
    assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["backbone.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stem", "in_channels"),
    [
        ("resnet18", "standard", 3),
        ("test_efficientnet", "small", 3),
        ("test_convnext", "standard", 1),
        ("resnet9", "standard", 3),
    ],
)
def test_onnx(tmp_path, name, stem, in_channels):
    runtime = pytest.importorskip("onnxruntime")
    weights, backbone = save(tmp_path, name, stem=stem, in_channels=in_channels)
    out = export(weights, "onnx", str(tmp_path / "exported.onnx"))
    session = runtime.InferenceSession(out)
    for batch, height, width in ((1, 64, 64), (5, 33, 50), (3, 96, 128)):
        x = torch.rand(batch, in_channels, height, width)
        (features,) = session.run(["features"], {"images": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(features), backbone(x).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("format", "suffix"), [("timm", "safetensors"), ("torchvision", "pth")])
def test_what_only_this_project_knows_is_refused(tmp_path, format, suffix):
    weights, _ = save(tmp_path, "resnet9", kwargs={"channels": [4, 4, 8, 8]})
    with pytest.raises(ValueError, match=f"plain {format} cannot load 'resnet9'.*export it as onnx") as error:
        export(weights, format, str(tmp_path / f"exported.{suffix}"))
    assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["backbone.safetensors"]


def test_onnx_without_its_packages(tmp_path, monkeypatch):
    weights, _ = save(tmp_path, "test_resnet")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs onnx and onnxscript: pip install ssl-toolkit\[onnx\]"):
        export(weights, "onnx", str(tmp_path / "exported.onnx"))


def test_refuses_to_overwrite(tmp_path):
    weights, _ = save(tmp_path, "test_resnet")
    for existing, out, format in (
        ("a.pth", "a.pth", "torchvision"),
        ("b.safetensors", "b.safetensors", "timm"),
        ("c.json", "c.safetensors", "timm"),
        ("d.onnx", "d.onnx", "onnx"),
    ):
        (tmp_path / existing).write_text("kept")
        with pytest.raises(ValueError, match=f"{existing} exists and is not overwritten"):
            export(weights, format, str(tmp_path / out))
        assert (tmp_path / existing).read_text() == "kept"


def test_wrong_arguments(tmp_path):
    weights, _ = save(tmp_path, "test_resnet")
    with pytest.raises(ValueError, match=r"no export format 'torchvison'.*did you mean 'torchvision'"):
        export(weights, "torchvison", str(tmp_path / "x.pth"))
    with pytest.raises(ValueError, match=r"onnx writes a file that ends with \.onnx, got x\.pth"):
        export(weights, "onnx", str(tmp_path / "x.pth"))
    with pytest.raises(ValueError, match=r"there is no file .*did you mean 'backbone\.safetensors'"):
        export(str(tmp_path / "backbon.safetensors"), "onnx", str(tmp_path / "x.onnx"))
