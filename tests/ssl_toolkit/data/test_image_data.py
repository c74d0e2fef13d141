from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_toolkit.data import BatchLoader, ImageData


def save(path: Path, value: int = 0, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """60 images of three classes, of different sizes and modes; the value of a pixel is the image's number."""
    root = tmp_path / "images"
    for number in range(60):
        name = ("ant", "bee", "cat")[number // 20]
        mode = ("RGB", "L", "RGBA")[number % 3]
        save(root / name / f"{number:02d}.png", number, (4 + number % 5, 9 - number % 4), mode)
    return root


def test_folder_with_labels(folder):
    data = ImageData(str(folder), labels="folder", val_fraction=0.2, test_fraction=0.1, batch_size=7)
    data.setup("fit")
    data.setup("test")
    assert data.class_names == ["ant", "bee", "cat"]
    assert data.num_classes == 3
    assert [data.num_images(split) for split in ("train", "val", "test")] == [42, 12, 6]
    assert sorted(np.concatenate([data.indices(split) for split in ("train", "val", "test")])) == list(range(60))
    assert torch.bincount(data.labels("val")).tolist() == [4, 4, 4]
    assert data.bad_files == []
    assert data.summary() == f"{folder}: 42 train, 12 val, 6 test images of 3 classes (ant, bee, cat)"
    assert data.name("train", 21) == "bee/21.png"
    for batch in data.train_dataloader():
        assert batch.images.pixels.shape[:2] == (7, 3)
        assert batch.images.pixels[:, :, 0, 0].tolist() == [[index] * 3 for index in batch.indices.tolist()]
        assert batch.labels.tolist() == (batch.indices // 20).tolist()
        assert batch.images.sizes.tolist() == [[9 - index % 4, 4 + index % 5] for index in batch.indices.tolist()]


def test_loaders_for_training_and_evaluation(folder):
    data = ImageData(str(folder), val_fraction=0.1, batch_size=10, seed=3)
    loader = data.train_dataloader()
    first, second = ([batch.indices.tolist() for batch in loader] for _ in range(2))
    assert len(first) == len(loader) == 5
    assert first != second
    assert [
        batch.indices.tolist() for batch in ImageData(str(folder), batch_size=10, seed=3).train_dataloader()
    ] == first
    validation = data.val_dataloader()
    assert isinstance(validation, BatchLoader)
    assert [len(batch.indices) for batch in validation] == [6]
    assert data.test_dataloader() == []
    assert (data.labels("train") == -1).all()
    assert data.num_classes == 0


def test_channels_and_size(folder):
    batch = next(iter(ImageData(str(folder), channels=1, image_size=2, val_fraction=0).loader("train")))
    assert batch.images.pixels.shape[1] == 1
    assert batch.images.sizes.amin(dim=1).unique().tolist() == [2]
    assert batch.images.sizes.amax() <= 4


def test_splits_do_not_depend_on_the_seed_but_few_labels_do(folder):
    def indices(split, **arguments):
        return ImageData(str(folder), labels="folder", **arguments).indices(split).tolist()

    for split in ("train", "val"):
        assert indices(split, seed=0) == indices(split, seed=1)
        assert indices(split, split_seed=1) != indices(split)
    few = [indices("train", labels_per_class=2, seed=seed) for seed in (0, 1, 1)]
    assert few[0] != few[1] == few[2]
    assert np.bincount(np.array(few[0]) // 20).tolist() == [2, 2, 2]
    assert set(few[0]) < set(indices("train"))
    assert indices("val", labels_per_class=2) == indices("val")
    assert len(indices("train", label_fraction=0.1)) == 6  # 18 of each class


def test_separate_folders(folder, tmp_path):
    save(tmp_path / "val" / "cat" / "1.png", 200)
    for number in range(3):
        save(tmp_path / "test" / "bee" / f"{number}.png", number)
    paths = {"val_path": str(tmp_path / "val"), "test_path": str(tmp_path / "test")}
    data = ImageData(str(folder), labels="folder", **paths)
    assert [data.num_images(split) for split in ("train", "val", "test")] == [60, 1, 3]
    (batch,) = data.loader("val")
    assert batch.labels.tolist() == [2]
    assert batch.images.pixels.flatten().unique().tolist() == [200]
    assert data.labels("test").tolist() == [1, 1, 1]
    for split, names in (("val", ["cat/1.png"]), ("test", ["bee/0.png", "bee/1.png", "bee/2.png"])):
        assert [data.name(split, index) for index in data.indices(split)] == names
        assert [name for name, _ in data.files(split)] == names
    assert data.name("train", 0) == "ant/00.png"
    data = ImageData(str(folder), labels="folder", val_fraction=0.5, test_fraction=0.5, **paths)
    assert [data.num_images(split) for split in ("train", "val", "test")] == [60, 1, 3]
    with pytest.raises(ValueError, match=r"data.val_path needs data.source: folder"):
        ImageData(source="procedural", val_path=paths["val_path"]).setup()


def test_max_images(folder):
    data = ImageData(str(folder), labels="folder", max_images=12, val_fraction=0.25)
    assert (data.num_images("train"), data.num_images("val")) == (9, 3)
    assert torch.bincount(torch.cat([data.labels("train"), data.labels("val")])).tolist() == [4, 4, 4]
    names = [data.name("train", index) for index in data.indices("train")]
    assert names == sorted(names)


def test_procedural():
    data = ImageData(source="procedural", max_images=50, image_size=16, batch_size=20, val_fraction=0.2)
    assert data.num_classes == 10
    assert data.summary() == "procedural: 40 train, 10 val, 0 test images of 10 classes (bird, boat, car, cup, ...)"
    batch = next(iter(data.train_dataloader()))
    assert batch.images.pixels.shape == (20, 3, 16, 16)
    other = ImageData(source="procedural", max_images=50, image_size=16, batch_size=20, val_fraction=0.2, seed=1)
    chosen = batch.indices[:1]
    assert torch.equal(next(iter(other.loader("train", indices=chosen))).images.pixels[0], batch.images.pixels[0])


@pytest.mark.parametrize("cache", ["memory", "disk", "auto"])
def test_bad_files_are_left_out_of_all_splits(folder, tmp_path, cache, capsys):
    for name in ("ant/05.png", "cat/50.png"):
        (folder / name).write_bytes(b"broken")
    data = ImageData(str(folder), labels="folder", cache=cache, cache_dir=str(tmp_path / "cache"), val_fraction=0.2)
    assert data.num_images("train") + data.num_images("val") == 58
    assert [file.path for file in data.bad_files] == ["ant/05.png", "cat/50.png"]
    assert "; bad images left out: 2" in data.summary()
    assert capsys.readouterr().err.count("05.png") == 1
    delivered = [
        index for split in ("train", "val") for batch in data.loader(split) for index in batch.indices.tolist()
    ]
    assert sorted(delivered) == sorted(set(range(60)) - {5, 50})
    # a bad file moves no other image to another split
    whole = ImageData(str(folder), labels="folder", cache="none", val_fraction=0.2)
    assert set(data.indices("val")) == set(whole.indices("val")) - {5, 50}


def test_bad_files_without_a_cache(folder):
    (folder / "ant/05.png").write_bytes(b"broken")
    data = ImageData(str(folder), cache="none", val_fraction=0)
    assert data.num_images("train") == 60
    delivered = [index for batch in data.loader("train") for index in batch.indices.tolist()]
    assert delivered == [*range(5), *range(6, 60)]
    assert [file.path for file in data.bad_files] == ["ant/05.png"]


def test_every_cache_gives_the_same_batches(folder, tmp_path):
    def batches(cache, threads):
        arguments = {"cache": cache, "cache_dir": str(tmp_path / "cache"), "num_threads": threads, "batch_size": 8}
        data = ImageData(str(folder), labels="folder", image_size=5, **arguments)
        loader = data.train_dataloader()
        return [batch for _ in range(2) for batch in loader]

    reference = batches("none", 1)
    for cache, threads in (("none", 4), ("memory", 1), ("memory", 2), ("disk", 2), ("disk", 4), ("auto", 1)):
        for ours, theirs in zip(batches(cache, threads), reference, strict=True):
            assert torch.equal(ours.images.pixels, theirs.images.pixels)
            assert torch.equal(ours.images.sizes, theirs.images.sizes)
            assert torch.equal(ours.indices, theirs.indices)
            assert torch.equal(ours.labels, theirs.labels)
            assert ours.epoch == theirs.epoch


def test_a_cache_of_other_settings_is_not_taken(folder, tmp_path):
    """All that decoded pixels depend on, changed one at a time with one cache folder."""

    def pixels(cache, **arguments):
        arguments = {"image_size": 4, "val_fraction": 0, "cache_dir": str(tmp_path / "cache"), **arguments}
        (batch,) = ImageData(str(folder), batch_size=60, cache=cache, **arguments).loader("train")
        return batch.images

    assert pixels("disk").sizes.amin(dim=1).eq(4).all()
    deep = np.arange(20, dtype=np.uint16).reshape(4, 5) * 100
    Image.fromarray(deep).save(folder / "ant" / "00.png")
    for change in ({}, {"image_size": 3}, {"channels": 1}, {"range": (0.0, 4000.0)}, {"range": (0.0, 3000.0)}):
        cached, decoded = pixels("disk", **change), pixels("none", **change)
        assert torch.equal(cached.sizes, decoded.sizes), change
        assert torch.equal(cached.pixels, decoded.pixels), change


def test_chosen_indices(folder):
    data = ImageData(str(folder), val_fraction=0.1)
    chosen = data.indices("train")[[5, 2]]
    (batch,) = data.loader("train", indices=torch.from_numpy(chosen))
    assert batch.indices.tolist() == chosen.tolist()
    with pytest.raises(ValueError, match=r"is not in the train split of 54 images"):
        data.loader("train", indices=data.indices("val"))


def test_very_few_images(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.png", number)
    data = ImageData(str(tmp_path), batch_size=2)
    assert (data.num_images("train"), data.num_images("val")) == (2, 1)
    assert len(list(data.train_dataloader())) == 1
    with pytest.raises(ValueError, match=r"^the train split has 2 images, fewer than one batch of 256; set data.batch"):
        ImageData(str(tmp_path)).train_dataloader()
    with pytest.raises(ValueError, match=r"the test split has no images; set data.test_fraction or data.test_path"):
        data.loader("test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "foldr"}, r"data.source must be .* did you mean 'folder'"),
        ({"source": "torchvision:CIFAR11"}, r"did you mean 'CIFAR10"),
        ({}, r"data.path is missing"),
        ({"path": "/nowhere/at all"}, r"does not exist"),
        ({"val_fraction": 1.0}, r"data.val_fraction must be at least 0 and below 1, got 1.0"),
        ({"test_fraction": -0.1}, r"data.test_fraction"),
        ({"label_fraction": 0.0}, r"data.label_fraction must be above 0"),
        ({"label_fraction": 0.5, "labels_per_class": 3}, r"exclude each other"),
        ({"labels_per_class": 0}, r"data.labels_per_class must be at least 1, got 0"),
        ({"batch_size": 0}, r"data.batch_size must be at least 1"),
        ({"channels": 4}, r"data.channels must be 3 \(RGB\) or 1"),
        ({"labels": "folders"}, r"data.labels must be one of folder, none, got 'folders'; did you mean 'folder'"),
        ({"cache": "ram"}, r"data.cache must be one of"),
        ({"on_error": "skp"}, r"did you mean 'skip'"),
    ],
)
def test_errors_are_one_helpful_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        ImageData(**arguments).setup()
    assert "\n" not in str(caught.value)


def test_few_labels_need_labels(folder):
    with pytest.raises(ValueError, match="needs images with labels"):
        ImageData(str(folder), labels_per_class=1).setup()
    with pytest.raises(ValueError, match=r"there is no split 'valid'; did you mean 'val'\?"):
        ImageData(str(folder)).num_images("valid")
