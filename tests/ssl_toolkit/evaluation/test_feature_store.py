"""The feature store: found again exactly when nothing that features depend on has changed."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from ssl_toolkit.augment import CenterView
from ssl_toolkit.cli import main
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation import evaluate, feature_store
from ssl_toolkit.evaluation.embed import embed
from ssl_toolkit.evaluation.feature_store import FeatureStore, fingerprint_of, stored_features
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import save_backbone

VIEW = CenterView(32)


@pytest.fixture
def folder(tmp_path):
    """Eight images of each of three classes."""
    random = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(8):
            pixels = random.integers(0, 256, (32, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return Backbone("resnet10t", kwargs={"channels": [8, 8, 16, 16]})


def data_of(folder, tmp_path, **settings):
    shared = {"labels": "folder", "image_size": 32, "batch_size": 5, "val_fraction": 0.2, "test_fraction": 0.3}
    data = ImageData(path=str(folder), cache_dir=str(tmp_path / "cache"), **{**shared, **settings})
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture
def calls(monkeypatch):
    """How often features were computed."""
    made = []

    def counted(*arguments, **keywords):
        made.append(1)
        return compute(*arguments, **keywords)

    compute = feature_store.extract_features
    monkeypatch.setattr(feature_store, "extract_features", counted)
    return made


def test_an_evaluation_finds_the_features_of_the_one_before(folder, tmp_path, backbone, calls):
    store = str(tmp_path / "store")

    def figures(**options):
        found = evaluate(backbone, data_of(folder, tmp_path), ks=(1, 3), stages=False, **options).to_json()
        return {name: each for name, each in found.items() if name != "seconds"}

    plain = figures()
    assert figures(feature_store=store) == plain
    num = len(calls)
    assert num == 12  # three splits of two sets of weights, twice
    assert figures(feature_store=store) == plain
    assert len(calls) == num
    # each of three splits of two sets of weights
    assert len(list((tmp_path / "store").iterdir())) == 6


def test_what_features_depend_on(folder, tmp_path, backbone, calls):
    store = FeatureStore(tmp_path / "store")

    def computed(backbone=backbone, view=VIEW, precision="32", split="test", **settings):
        before = len(calls)
        found = stored_features(
            store, backbone, data_of(folder, tmp_path, **settings), split, view, precision=precision
        )
        again = stored_features(
            store, backbone, data_of(folder, tmp_path, **settings), split, view, precision=precision
        )
        assert torch.equal(found.features["pooled"], again.features["pooled"])
        assert torch.equal(found.labels, again.labels)
        assert torch.equal(found.indices, again.indices)
        return len(calls) - before

    assert computed() == 1
    assert computed() == 0
    assert computed(split="train") == 1
    assert computed(precision="bf16") == 1
    assert computed(view=CenterView(24)) == 1
    assert computed(batch_size=4) == 1
    assert computed(split_seed=1) == 1
    assert computed(labels="none", split="test") == 1
    assert computed(image_size=40) == 1
    other = Backbone("resnet10t", kwargs={"channels": [8, 8, 16, 16]})
    other.load_state_dict(backbone.state_dict())
    assert computed(other) == 0  # the same weights
    other.set_normalization((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert computed(other) == 1
    with torch.no_grad():
        next(backbone.model.buffers()).add_(1)  # statistics of a batch norm
    assert computed() == 1
    image = next(folder.glob("*/*.png"))
    status = image.stat()
    content = bytearray(image.read_bytes())
    image.write_bytes(bytes(content[:-12]) + bytes(content[-12:]))
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))  # an edited file of the same size
    assert computed() == 1
    assert computed() == 0


def test_what_it_holds(folder, tmp_path, backbone):
    data, store = data_of(folder, tmp_path), FeatureStore(tmp_path / "store")
    fresh = stored_features(None, backbone, data, "train", VIEW, stages=True, precision="32")
    stored_features(store, backbone, data, "train", VIEW, stages=True, precision="32")
    (entry,) = store.folder.iterdir()
    rows = pyarrow.parquet.read_table(entry / "index.parquet").to_pylist()
    assert [row["name"] for row in rows] == [data.name("train", index) for index in fresh.indices.tolist()]
    assert [row["label"] for row in rows] == fresh.labels.tolist()
    assert {row["split"] for row in rows} == {"train"}
    for name, matrix in fresh.features.items():
        assert np.array_equal(np.load(entry / f"{name}.npy"), matrix.numpy())
    found = store.read(fingerprint_of(backbone, data, "train", VIEW, "32"), stages=True)
    assert found is not None
    found, bad = found
    assert bad == {}
    content = (entry / "pooled.npy").read_bytes()
    found.features["pooled"].zero_()  # what is done to it does not reach the file
    assert (entry / "pooled.npy").read_bytes() == content


def test_bad_images_are_told_each_time(folder, tmp_path, backbone, calls):
    for number in (1, 5):
        (folder / "a" / f"{number}.png").write_bytes(b"no image")
    store, seen = FeatureStore(tmp_path / "store"), []
    for _ in range(2):
        data = data_of(folder, tmp_path, cache="none", max_bad=0.5)
        for split in ("train", "val", "test"):
            stored_features(store, backbone, data, split, VIEW)
        seen.append(sorted((each.path, each.reason) for each in data.bad_files))
    assert len(calls) == 3
    assert [path for path, _ in seen[0]] == ["a/1.png", "a/5.png"]
    assert seen[0] == seen[1]
    strict = data_of(folder, tmp_path, cache="none", on_error="raise")
    splits = {"train", "val", "test"} - {split for split in ("train", "val", "test") if not data.bad_images(split)}
    with pytest.raises(ValueError, match="cannot decode the image a/"):
        stored_features(store, backbone, strict, min(splits), VIEW)


def test_more_representations_replace_fewer(folder, tmp_path, backbone, calls):
    data, store = data_of(folder, tmp_path), FeatureStore(tmp_path / "store")
    few = stored_features(store, backbone, data, "val", VIEW)
    assert set(few.features) == {"pooled"}
    all_of_them = stored_features(store, backbone, data, "val", VIEW, stages=True)
    assert len(all_of_them.features) > 1
    assert set(stored_features(store, backbone, data, "val", VIEW).features) == {"pooled"}
    assert len(calls) == 2
    assert len(list(store.folder.iterdir())) == 1


def test_what_is_left_of_a_killed_process_is_no_entry(folder, tmp_path, backbone, monkeypatch):
    data, store = data_of(folder, tmp_path), FeatureStore(tmp_path / "store")

    def killed(*arguments, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(feature_store, "write_atomically", killed)
        patch.setattr(shutil, "rmtree", lambda *arguments, **keywords: None)  # SIGKILL cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            stored_features(store, backbone, data, "val", VIEW)
    (left,) = store.folder.iterdir()
    assert left.name.startswith(".partial-")
    assert stored_features(store, backbone, data, "val", VIEW).seconds > 0
    assert stored_features(store, backbone, data, "val", VIEW).seconds == 0
    os.utime(left, (0, 0))
    stored_features(store, backbone, data, "test", VIEW)
    assert not left.exists()


@pytest.mark.parametrize("left", [0.5, 0.0])
@pytest.mark.parametrize("file", ["pooled.npy", "index.parquet", "about.json"])
def test_a_damaged_entry_is_refused(folder, tmp_path, backbone, file, left):
    data, store = data_of(folder, tmp_path), FeatureStore(tmp_path / "store")
    stored_features(store, backbone, data, "val", VIEW)
    (entry,) = store.folder.iterdir()
    content = (entry / file).read_bytes()
    (entry / file).write_bytes(content[: int(left * len(content))])
    with pytest.raises(ValueError, match=r"is damaged .*remove it") as caught:
        stored_features(store, backbone, data, "val", VIEW)
    assert "\n" not in str(caught.value)


def test_embed_takes_what_an_evaluation_has_kept(folder, tmp_path, backbone, calls, capsys):
    weights, store = tmp_path / "backbone.safetensors", tmp_path / "store"
    save_backbone(weights, backbone, {})
    common = [
        "--weights",
        str(weights),
        "--data.path",
        str(folder),
        "--data.image_size",
        "32",
        "--data.test_fraction",
        "0.2",
    ]
    common += ["--data.labels", "folder", "--data.cache_dir", str(tmp_path / "cache"), "--device", "cpu"]
    kept = ["--feature_store", str(store)]
    assert main(["evaluate", *common, *kept, "--random_weights", "false"]) == 0
    assert main(["embed", *common, "--out", str(tmp_path / "fresh.npz")]) == 0
    num = len(calls)
    assert main(["embed", *common, *kept, "--out", str(tmp_path / "found.npz")]) == 0
    assert len(calls) == num
    with np.load(tmp_path / "fresh.npz") as fresh, np.load(tmp_path / "found.npz") as found:
        for name in ("name", "split", "index", "label", "features"):
            assert np.array_equal(fresh[name], found[name])
    capsys.readouterr()
    assert main(["embed", *common, "--feature_store", str(weights), "--out", str(tmp_path / "x.npz")]) == 2
    assert "which is a file; give a folder" in capsys.readouterr().err
    assert main(["embed", *common, *kept, "--out", str(tmp_path / "parts")]) == 2
    assert "feature_store is not for part files" in capsys.readouterr().err


def test_embed_in_python(folder, tmp_path, backbone, calls):
    weights, store = tmp_path / "backbone.safetensors", str(tmp_path / "store")
    save_backbone(weights, backbone, {})
    for name in ("one.csv", "two.csv"):
        embed(weights, data_of(folder, tmp_path), tmp_path / name, feature_store=store)
    assert len(calls) == 3
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "two.csv").read_text()
