"""The command ``export`` of a whole network: the graph computes what ``predict`` writes."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from ssl_toolkit.cli import main
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import save_backbone

SIDE = 32
OPTIONS = [
    "--data.source", "procedural", "--data.max_images", "60", "--data.image_size", str(SIDE), "--data.batch_size", "16",
    "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--tracker", "none", "--random_weights", "false",
]  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights with a normalisation of their own."""
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", kwargs={"channels": [8, 8, 16, 16]})
    backbone.set_normalization((0.2, 0.3, 0.4), (0.5, 0.6, 0.7))
    file = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_backbone(file, backbone, {})
    return file


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of the trained size, and their pixels."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (7, SIDE, SIDE, 3), dtype=np.uint8)
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(folder / f"{number}.png")
    return folder, pixels


def trained(weights, run, recipe, *options):
    arguments = ["transfer", "-c", recipe, *OPTIONS, "--model.weights", str(weights), "--out", str(run), *options]
    assert main(arguments) == 0
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("linear_probe", []),
        ("linear_probe", ["--model.freeze_backbone", "false", "--model.head", "mlp", "--model.hidden", "8"]),
        ("linear_probe", ["--model.head", "cosine"]),
        ("linear_probe", ["--model.head", "nearest_mean"]),
        ("ordinal", []),
        ("regression", ["--data.targets", "[x, size]"]),
        ("multi_label", ["--data.targets", "[animal, plant]"]),
    ],
)
def test_the_graph_predicts_as_the_command_does(tmp_path, weights, images, recipe, options):
    runtime = pytest.importorskip("onnxruntime")
    run = trained(weights, tmp_path / "run", recipe, *options)
    folder, pixels = images
    table = tmp_path / "table.parquet"
    assert main(["predict", str(run), "--data.path", str(folder), "--out", str(table), "--precision", "32"]) == 0
    rows = pyarrow.parquet.read_table(table)
    numbers = [name for name in rows.column_names if name.startswith(("p_", "predicted_"))]
    predicted = np.stack([rows[name].to_numpy() for name in numbers], axis=1)
    graph = tmp_path / "model.onnx"
    assert main(["export", "--weights", str(run / "model.safetensors"), "--format", "onnx", "--out", str(graph)]) == 0
    session = runtime.InferenceSession(graph)
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(uint8)", [SIDE, SIDE, 3])
    outputs, found = session.run(None, {"images": pixels})
    np.testing.assert_allclose(found, predicted, rtol=1e-4, atol=1e-4)
    one = session.run(None, {"images": pixels[:1]})
    np.testing.assert_allclose(one[0], outputs[:1], rtol=1e-4, atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    names = json.loads(about.get("class_names") or about["target_names"])
    assert found.shape == (7, len(names))
    assert json.loads(about["image_size"]) == SIDE


def test_what_cannot_be_exported(tmp_path, weights, capsys):
    run = trained(weights, tmp_path / "run", "linear_probe")
    model = str(run / "model.safetensors")
    for options, line in (
        (["--format", "timm", "--out", str(tmp_path / "a.safetensors")], "exports as onnx only, not as timm"),
        (["--format", "onnx", "--out", str(tmp_path / "a.pth")], "ends with .onnx, got a.pth"),
        (["--format", "onnx", "--out", str(run / "report.html")], "ends with .onnx, got report.html"),
    ):
        capsys.readouterr()
        assert main(["export", "--weights", model, *options]) == 2
        errors = capsys.readouterr().err.strip().splitlines()
        assert len(errors) == 1
        assert line in errors[0]
    other = run / "epoch-3.safetensors"
    other.write_bytes((run / "model.safetensors").read_bytes())
    capsys.readouterr()
    assert main(["export", "--weights", str(other), "--format", "onnx", "--out", str(tmp_path / "a.onnx")]) == 2
    assert "epoch-3.safetensors' is not called model.safetensors" in capsys.readouterr().err
    (tmp_path / "moved").mkdir()
    moved = (run / "model.safetensors").rename(tmp_path / "moved" / "model.safetensors")
    capsys.readouterr()
    assert main(["export", "--weights", str(moved), "--format", "onnx", "--out", str(tmp_path / "b.onnx")]) == 2
    assert "config.yaml" in capsys.readouterr().err
