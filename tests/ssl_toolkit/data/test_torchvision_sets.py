"""Data sets in the layout of torchvision, written here; nothing is fetched."""

from __future__ import annotations

import hashlib
import pickle
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from ssl_toolkit.data import ImageData, TorchvisionSource
from ssl_toolkit.data.torchvision_sets import _SETS, _labels


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar(tmp_path, monkeypatch) -> np.ndarray:
    """Two training images and one test image of each of ten classes; returns the 20 training images."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 32, 32), dtype=np.uint8)
    lists = {"train_list": [], "test_list": []}
    for index in range(6):
        name = f"data_batch_{index + 1}" if index < 4 else f"test_batch_{index - 3}"
        part = slice(5 * index, 5 * index + 5)
        entry = {"data": images[part].reshape(5, -1), "labels": [label % 10 for label in range(30)][part]}
        (folder / name).write_bytes(pickle.dumps(entry))
        lists["train_list" if index < 4 else "test_list"].append([name, md5(folder / name)])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {label}" for label in range(10)]}))
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(folder / "batches.meta")}
    for attribute, value in {**lists, "meta": meta}.items():
        monkeypatch.setattr(datasets.CIFAR10, attribute, value)
    return images[:20].transpose(0, 2, 3, 1)


def test_cifar10(cifar, tmp_path):
    source = TorchvisionSource("CIFAR10", tmp_path)
    assert len(source) == 20
    assert all((source.read(index) == cifar[index]).all() for index in range(20))
    assert [source.label(index) for index in range(20)] == [*range(10), *range(10)]
    assert source.class_names[3] == "class 3"
    test = TorchvisionSource("CIFAR10", tmp_path, "test", channels=1)
    assert len(test) == 10
    assert test.read(0).shape == (32, 32, 1)
    assert source.fingerprint() != test.fingerprint()
    assert TorchvisionSource("CIFAR10", tmp_path, image_size=8).read(0).shape == (8, 8, 3)


def test_the_test_split_is_the_data_sets_own(cifar, tmp_path):
    data = ImageData(str(tmp_path), "torchvision:CIFAR10", val_fraction=0.5, batch_size=4)
    assert [data.num_images(split) for split in ("train", "val", "test")] == [10, 10, 10]
    assert data.num_classes == 10
    assert sorted(data.labels("val").tolist()) == list(range(10))
    assert "10 train, 10 val, 10 test images of 10 classes" in data.summary()
    assert next(iter(data.test_dataloader())).images.pixels.shape == (4, 3, 32, 32)
    data = ImageData(str(tmp_path), "torchvision:CIFAR10", val_fraction=0.5, test_fraction=0.1, batch_size=4)
    assert [data.num_images(split) for split in ("train", "val", "test")] == [10, 10, 10]


def test_files_are_decoded_by_our_own_decoder(tmp_path):
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            folder = tmp_path / "country211" / split / name
            folder.mkdir(parents=True)
            Image.fromarray(np.full((8, 8), 25700, dtype=np.uint16)).save(folder / "a.png")
            (folder / "b.png").write_bytes(b"damaged")
    source = TorchvisionSource("Country211", tmp_path)
    assert source.read(0)[0, 0].tolist() == [100] * 3  # 16 bits scaled, which torchvision's loader saturates
    assert [source.label(index) for index in range(4)] == [0, 0, 1, 1]
    assert str(source.read_many([1])[0]).startswith("Country211/train/1: not an image")


def test_names_and_splits_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"data set 'CIFAR01' is not known; did you mean 'CIFAR10'"):
        TorchvisionSource("CIFAR01", tmp_path)
    with pytest.raises(ValueError, match=r"STL10 has no split 'unlabelled'; did you mean 'unlabeled'"):
        TorchvisionSource("STL10", tmp_path, "unlabelled")
    with pytest.raises(ValueError, match=r"EuroSAT has no split 'test'"):
        TorchvisionSource("EuroSAT", tmp_path, "test")


def test_every_known_name_exists_and_takes_its_splits(tmp_path):
    for name, splits in _SETS.items():
        assert hasattr(datasets, name)
        for split in ("train", *splits.others, *(["test"] if splits.test is not None else [])):
            with pytest.raises(ValueError, match=f"cannot open torchvision's {name}") as caught:
                TorchvisionSource(name, tmp_path / "nothing", split)
            message = str(caught.value)
            assert "\n" not in message
            # the split itself was accepted
            assert "Unknown value" not in message
            assert "unexpected keyword" not in message


def test_missing_files_and_missing_network(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"cannot open torchvision's CIFAR10 .*set data.download: true to fetch it$"):
        TorchvisionSource("CIFAR10", tmp_path)

    def no_network(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(ValueError, match=r"no route to host.*; check the network") as caught:
        TorchvisionSource("CIFAR10", tmp_path, download=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        *((SimpleNamespace(**{name: [2, 0]}), [2, 0]) for name in ("targets", "labels", "_labels", "y")),
        (SimpleNamespace(_samples=[("a.png", 2), ("b.png", 0)]), [2, 0]),
        ([("a picture", 2), ("another", None)], [2, -1]),
    ],
)
def test_labels_are_found_wherever_torchvision_has_them(data, expected):
    assert _labels(data).tolist() == expected
    assert _labels(data).dtype == np.int64


def test_stl10_without_labels(tmp_path, monkeypatch):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 96, 96), dtype=np.uint8)
    (folder / "unlabeled_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())
    (folder / "class_names.txt").write_text("\n".join(f"c{index}" for index in range(10)))
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda _: True)
    source = TorchvisionSource("STL10", tmp_path, "unlabeled")
    assert [source.label(index) for index in range(6)] == [-1] * 6
    assert (source.read(2) == images[2].transpose(1, 2, 0)).all()
