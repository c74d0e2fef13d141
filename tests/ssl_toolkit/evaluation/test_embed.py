"""The table of features, read back from each format."""

import csv
import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_toolkit.augment import CenterView
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation import extract_features
from ssl_toolkit.evaluation.embed import embed
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import load_backbone, save_backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "images"
    generator = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(6):
            pixels = generator.integers(0, 256, (16, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    torch.manual_seed(0)
    save_backbone(path, Backbone("resnet18", stem="small", kwargs={"channels": [4, 8, 12, 16]}))
    return path


def image_data(path, **arguments):
    defaults = {"image_size": 16, "val_fraction": 0.25, "test_fraction": 0.25, "cache": "memory"}
    return ImageData(path=str(path), batch_size=4, num_threads=1, **{**defaults, **arguments})


def expected_features(folder, weights):
    """All images as one split."""
    data = image_data(folder, val_fraction=0.0, test_fraction=0.0)
    extracted = extract_features(load_backbone(weights), data.loader("train"), CenterView(16), stages=True)
    return {name: features.numpy() for name, features in extracted.features.items()}


NAMES = [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(6)]


def test_parquet_holds_every_image_in_the_order_of_the_source(folder, weights, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    data = image_data(folder, labels="folder")
    out = embed(weights, data, tmp_path / "new" / "features.parquet", device="cpu")
    assert [file.name for file in out.parent.iterdir()] == ["features.parquet"]
    table = parquet.read_table(out)
    assert table.column_names == ["name", "split", "index", "label", "features"]
    assert table["name"].to_pylist() == NAMES
    assert table["index"].to_pylist() == list(range(12))
    assert table["label"].to_pylist() == [0] * 6 + [1] * 6
    splits = np.array(table["split"].to_pylist())
    for split in ("train", "val", "test"):
        assert np.flatnonzero(splits == split).tolist() == data.indices(split).tolist()
    assert str(table.schema.field("features").type) == "fixed_size_list<element: float>[16]"
    features = np.array(table["features"].to_pylist(), dtype=np.float32)
    assert np.allclose(features, expected_features(folder, weights)["pooled"], atol=0.02, rtol=0.02)
    about = json.loads(table.schema.metadata[b"ssl_toolkit"])
    assert about["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert about["backbone"] == load_backbone(weights).config()
    assert (about["image_size"], about["class_names"]) == (16, ["cat", "dog"])


def test_npz_and_csv_hold_the_same(folder, weights, tmp_path):
    arguments = {"device": "cpu", "precision": "32", "representation": "layer2"}
    npz = np.load(embed(weights, image_data(folder), tmp_path / "features.npz", **arguments))
    assert set(npz.files) == {"name", "split", "index", "features", "ssl_toolkit"}, "no label without labels"
    assert npz["name"].tolist() == NAMES
    assert npz["features"].dtype == np.float32
    assert np.allclose(npz["features"], expected_features(folder, weights)["layer2"], atol=0.02, rtol=0.02)
    assert json.loads(str(npz["ssl_toolkit"]))["representation"] == "layer2"
    with embed(weights, image_data(folder), tmp_path / "features.csv", **arguments).open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["name", "split", "index", *(f"f{number}" for number in range(8))]
    assert [row[0] for row in rows] == NAMES
    assert np.array_equal(np.array([row[3:] for row in rows], dtype=np.float32), npz["features"])


def test_where_some_images_have_labels_all_formats_tell_which(folder, weights, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    data = image_data(folder, labels="folder")
    # as shards whose .cls files do not name all samples
    data._divided().split("train").images.labels[[0, 7]] = -1
    expected = [-1, *[0] * 5, 1, -1, *[1] * 4]
    files = [
        embed(weights, data, tmp_path / f"features.{ending}", device="cpu") for ending in ("parquet", "npz", "csv")
    ]
    assert [-1 if each is None else each for each in parquet.read_table(files[0])["label"].to_pylist()] == expected
    assert np.load(files[1])["label"].tolist() == expected
    with files[2].open(newline="") as file:
        assert [int(row["label"] or -1) for row in csv.DictReader(file)] == expected


def test_splits_of_different_folders_come_one_after_the_other(folder, weights, tmp_path):
    data = image_data(folder / "cat", val_path=str(folder / "dog"), val_fraction=0.0, test_fraction=0.0)
    table = np.load(embed(weights, data, tmp_path / "features.npz"))
    assert table["split"].tolist() == ["train"] * 6 + ["val"] * 6
    assert table["name"].tolist() == [f"{number}.png" for number in range(6)] * 2


def test_bad_images_are_left_out(folder, weights, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number, name in enumerate(NAMES[:6]):
        (images / f"{number}.png").write_bytes((folder / name).read_bytes())
    (images / "3.png").write_bytes(b"not an image")
    for cache in ("memory", "none"):
        data = image_data(images, val_fraction=0.0, test_fraction=0.0, max_bad=0.5, cache=cache)
        table = np.load(embed(weights, data, tmp_path / f"{cache}.npz"))
        assert table["name"].tolist() == ["0.png", "1.png", "2.png", "4.png", "5.png"]


def test_nothing_is_overwritten_and_nothing_is_left_after_an_error(folder, weights, tmp_path, monkeypatch):
    out = tmp_path / "features.npz"
    out.write_text("precious")
    with pytest.raises(ValueError, match=r"features\.npz' exists already and is not overwritten"):
        embed(weights, image_data(folder), out)
    assert out.read_text() == "precious"

    def full_disk(file, **columns):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="no space left"):
        embed(weights, image_data(folder), tmp_path / "other.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["features.npz"]


def test_errors_name_the_nearest(folder, weights, tmp_path):
    with pytest.raises(
        ValueError, match=r"\.parquet, \.npz, \.csv or a folder .*, got 'f\.parq'; did you mean '\.parquet'"
    ):
        embed(weights, image_data(folder), tmp_path / "f.parq")
    with pytest.raises(ValueError, match="got 'layer_3'; did you mean 'layer3'"):
        embed(weights, image_data(folder), tmp_path / "f.npz", representation="layer_3")
    with pytest.raises(ValueError, match=r"missing\.safetensors"):
        embed(tmp_path / "missing.safetensors", image_data(folder), tmp_path / "f.npz")


def test_no_name_in_a_csv_file_is_a_formula_of_a_spreadsheet(weights, tmp_path):
    names = ["=1+1.png", "+1.png", "-1.png", "@sum.png", "\tplain.png", "plain.png"]
    for name in names:
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(tmp_path / "images" / name)
    data = ImageData(path=str(tmp_path / "images"), labels="none", image_size=16, batch_size=3, cache="memory")
    with embed(weights, data, tmp_path / "features.csv", device="cpu").open(newline="") as file:
        found = {row[0] for row in list(csv.reader(file))[1:]}
    assert found == {f"'{name}" for name in names[:5]} | {"plain.png"}
