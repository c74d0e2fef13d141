"""The features of the frames of sequences, read back from each format."""

import csv

import numpy as np
import pyarrow.dataset
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from ssl_toolkit.cli import main
from ssl_toolkit.data import ImageData
from ssl_toolkit.data.frames import FrameData
from ssl_toolkit.evaluation.embed import embed
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import save_backbone

LENGTHS = {"run/a": 3, "run/b": 5, "walk/c": 2, "walk/d": 4}
FILES = [f"{name}/{number:02d}.png" for name, length in LENGTHS.items() for number in range(length)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "clips"
    generator = np.random.default_rng(0)
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(folder / name)
    (folder / "run/b/02.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    torch.manual_seed(0)
    save_backbone(path, Backbone("resnet18", stem="small", kwargs={"channels": [4, 8, 12, 16]}))
    return path


SETTINGS = {"image_size": 16, "batch_size": 4, "num_threads": 1, "cache": "memory", "max_bad": 0.5}


def frame_data(folder, **arguments):
    return FrameData(str(folder), labels="folder", **{**SETTINGS, "val_fraction": 0.0, **arguments})


@pytest.fixture(scope="module")
def as_images(folder, weights, tmp_path_factory):
    """The same files as single images, one split: features by name."""
    data = ImageData(str(folder), labels="folder", val_fraction=0.0, **SETTINGS)
    out = embed(weights, data, tmp_path_factory.mktemp("images") / "features.npz", device="cpu", precision="32")
    with np.load(out) as table:
        return dict(zip(table["name"].tolist(), table["features"], strict=True))


@pytest.mark.parametrize("out", ["frames.parquet", "frames.npz", "frames.csv", "parts"])
def test_each_frame_has_the_features_of_a_single_image(out, folder, weights, as_images, tmp_path):
    settings = {"per_frame": True, "device": "cpu", "precision": "32"}
    file = embed(
        weights, frame_data(folder), tmp_path / out, **settings, **({"part_size": 5} if out == "parts" else {})
    )
    if file.suffix == ".npz":
        with np.load(file) as table:
            rows = {name: table[name].tolist() for name in ("name", "sequence", "frame", "label", "features")}
    elif file.suffix == ".csv":
        with file.open(newline="") as opened:
            lines = list(csv.DictReader(opened))
        rows = {name: [line[name] for line in lines] for name in ("name", "sequence")}
        rows |= {name: [int(line[name]) for line in lines] for name in ("frame", "label")}
        rows["features"] = [[float(line[f"f{number}"]) for number in range(16)] for line in lines]
    else:
        rows = pyarrow.dataset.dataset(file).to_table().to_pydict()
    good = [name for name in FILES if name != "run/b/02.png"]
    assert rows["name"] == good
    assert rows["sequence"] == [name.rpartition("/")[0] for name in good]
    assert rows["frame"] == [int(name[-6:-4]) for name in good]
    assert rows["label"] == [int(name.startswith("walk")) for name in good]
    np.testing.assert_allclose(rows["features"], [as_images[name] for name in good], rtol=0, atol=1e-6)


def test_a_frame_is_in_the_split_of_its_sequence(folder, weights, tmp_path):
    data = frame_data(folder, val_fraction=0.25, test_fraction=0.25, max_frames=2)
    out = embed(weights, data, tmp_path / "frames.parquet", per_frame=True, device="cpu")
    rows = pyarrow.parquet.read_table(out).to_pylist()
    split_of = {data.name(split, place): split for split in ("train", "val", "test") for place in data.indices(split)}
    assert len(set(split_of.values())) == 3
    assert {row["sequence"]: row["split"] for row in rows} == split_of
    assert all(row["split"] == split_of[row["sequence"]] for row in rows)
    # two of each sequence, evenly spaced
    assert [row["name"] for row in rows if row["sequence"] == "walk/d"] == ["walk/d/01.png", "walk/d/03.png"]
    assert [row["frame"] for row in rows if row["sequence"] == "walk/d"] == [0, 1]


def test_a_frame_of_two_parts_has_a_row_in_each(folder, weights, as_images, tmp_path):
    table = tmp_path / "parts.csv"
    table.write_text("path,from,to\nwalk/d,0,3\nwalk/d,1,4\nrun/a,0,2\n")
    columns = {"start": "from", "end": "to"}
    data = FrameData(str(folder), table=str(table), columns=columns, val_fraction=0.0, **SETTINGS)
    out = embed(weights, data, tmp_path / "frames.parquet", per_frame=True, device="cpu", precision="32")
    rows = pyarrow.parquet.read_table(out).to_pylist()
    expected = [("run/a[0:2]", place, f"run/a/{place:02d}.png") for place in range(2)]
    expected += [(f"walk/d[{s}:{s + 3}]", place, f"walk/d/{s + place:02d}.png") for s in (0, 1) for place in range(3)]
    assert [(row["sequence"], row["frame"], row["name"]) for row in rows] == expected
    for row in rows:
        np.testing.assert_allclose(row["features"], as_images[row["name"]], rtol=0, atol=1e-6)


def test_the_store_has_the_frames(folder, weights, tmp_path, monkeypatch):
    settings = {"per_frame": True, "device": "cpu", "feature_store": str(tmp_path / "store")}
    first = embed(weights, frame_data(folder), tmp_path / "first.parquet", **settings)
    (entry,) = (tmp_path / "store").iterdir()
    index = pyarrow.parquet.read_table(entry / "index.parquet").to_pydict()
    assert index["sequence"][:2] == ["run/a", "run/a"]
    assert index["frame"][:5] == [0, 1, 2, 0, 1]
    monkeypatch.setattr(Backbone, "forward", lambda self, x: pytest.fail("computed again"))
    second = embed(weights, frame_data(folder), tmp_path / "second.parquet", **settings)
    assert pyarrow.parquet.read_table(first) == pyarrow.parquet.read_table(second)


def test_what_is_no_sequence_is_refused(folder, weights, tmp_path):
    with pytest.raises(ValueError, match="the data are sequences: give per_frame"):
        embed(weights, frame_data(folder), tmp_path / "frames.npz")
    with pytest.raises(ValueError, match="per_frame is for sequences, and the data are images"):
        embed(weights, ImageData(str(folder)), tmp_path / "frames.npz", per_frame=True)


def test_a_config_file_may_say_it(folder, weights, tmp_path):
    config = tmp_path / "embed.yaml"
    config.write_text(f"per_frame: true\nweights: {weights}\ndevice: cpu\ndata:\n  path: {folder}\n  max_frames: 2\n")
    assert main(["embed", "-c", str(config), "--out", str(tmp_path / "frames.parquet")]) == 0
    assert set(pyarrow.parquet.read_table(tmp_path / "frames.parquet")["frame"].to_pylist()) == {0, 1}
