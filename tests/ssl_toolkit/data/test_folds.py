"""Folds: every image is tested once, classes are spread evenly, and what belongs together stays together."""

from __future__ import annotations

import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ssl_toolkit.data import ImageData
from ssl_toolkit.data.folds import Fold, read_fold, split_by_fold


def write(folder, names, seed=0):
    generator = np.random.default_rng(seed)
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)


def folds_of(num, **arguments):
    """Of each fold the names of the images of each split."""
    found = []
    for fold in range(1, num + 1):
        data = ImageData(image_size=8, batch_size=4, cache="memory", fold=f"{fold}/{num}", **arguments)
        splits = ("train", "val", "test")
        found.append({split: [data.name(split, each) for each in data.indices(split).tolist()] for split in splits})
    return found


def is_partition(folds):
    everything = sorted(name for split in folds[0].values() for name in split)
    return sorted(name for fold in folds for name in fold["test"]) == everything and all(
        sorted(fold["train"] + fold["val"] + fold["test"]) == everything for fold in folds
    )


def test_every_image_is_tested_once_and_classes_are_spread(tmp_path):
    write(tmp_path, [f"ant/{number}.bmp" for number in range(20)] + [f"bee/{number}.bmp" for number in range(10)])
    folds = folds_of(5, path=str(tmp_path), labels="folder", val_fraction=0.25)
    assert is_partition(folds)
    assert [Counter(name[:3] for name in fold["test"]) for fold in folds] == [{"ant": 4, "bee": 2}] * 5
    assert [len(fold["val"]) for fold in folds] == [6] * 5
    again = folds_of(5, path=str(tmp_path), labels="folder", val_fraction=0.25, split_seed=1)
    assert is_partition(again)
    assert folds != again


def test_copies_are_tested_together(tmp_path):
    write(tmp_path, [f"ant/{number}.bmp" for number in range(12)])
    for number in range(12):
        for copy in range(number % 3):
            shutil.copy(tmp_path / f"ant/{number}.bmp", tmp_path / f"ant/copy-{number}-{copy}.bmp")
    folds = folds_of(3, path=str(tmp_path), labels="none", val_fraction=0.2)
    assert is_partition(folds)
    for fold in folds:
        pictures = [{(tmp_path / name).read_bytes() for name in names} for names in fold.values()]
        assert sum(map(len, pictures)) == len(set.union(*pictures)) == 12


def test_groups_are_tested_together(tmp_path):
    names = [f"{number:02}.bmp" for number in range(24)]
    write(tmp_path, names)
    rows = [f"{name},{'ab'[number % 2]},p{number // 3}" for number, name in enumerate(names)]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,group", *rows]))
    folds = folds_of(4, path=str(tmp_path), table=str(tmp_path / "table.csv"), val_fraction=0.2)
    assert is_partition(folds)
    for fold in folds:
        groups = [{int(name[:2]) // 3 for name in names} for names in fold.values()]
        assert [len(each) for each in groups][2] == 2
        assert sum(map(len, groups)) == len(set.union(*groups)) == 8


def test_images_without_classes_are_divided_too():
    labels, own = np.full(10, -1), np.arange(10)
    tested = [split_by_fold(labels, own, False, 0.0, Fold(fold, 3), 0)["test"] for fold in (1, 2, 3)]
    assert sorted(np.concatenate(tested).tolist()) == list(range(10))
    assert [len(each) for each in tested] == [4, 3, 3]


def test_the_remark_names_a_class_that_is_too_small(tmp_path, capsys):
    write(tmp_path, [f"ant/{number}.bmp" for number in range(8)] + ["bee/0.bmp"])
    folds_of(2, path=str(tmp_path), labels="folder", val_fraction=0.0)
    said = capsys.readouterr().err
    assert said.count("no image is tested of bee, which has too few images or groups") == 1
    assert said.count("no image is trained of bee") == 1


@pytest.mark.parametrize("text", ["", "0/5", "6/5", "1/1", "1", "a/b", "1/-2", "1.0/5"])
def test_a_fold_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="expected such as 2/5"):
        read_fold(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test_fraction": 0.2}, "but data.test_fraction is 0.2: set it to 0"),
        ({"test_path": "other"}, "so that data.test_path does not go with it"),
        ({"val_path": "other"}, "so that data.val_path does not go with it"),
        ({"splits": "run"}, "so that data.splits does not go with it"),
        ({"fold": "1/13"}, "12 images can be divided into 2 to 12 folds, got 13"),
        ({"table": "table.csv"}, "come with splits of their own"),
        ({"table": "groups.csv"}, "2 groups can be divided into 2 to 2 folds, got 3"),
        ({"fold": "1/12", "val_fraction": 0.99}, "leave none for training"),
    ],
)
def test_what_does_not_go_with_folds_is_refused_in_one_line(tmp_path, monkeypatch, arguments, message):
    names = [f"ant/{number}.bmp" for number in range(12)]
    write(tmp_path, names)
    monkeypatch.chdir(tmp_path)
    splits = [f"{name},{'test' if number < 3 else 'train'}" for number, name in enumerate(names)]
    (tmp_path / "table.csv").write_text("\n".join(["path,split", *splits]))
    (tmp_path / "groups.csv").write_text(
        "\n".join(["path,group", *(f"{name},{number % 2}" for number, name in enumerate(names))])
    )
    with pytest.raises(ValueError, match=message) as caught:
        ImageData(**{"path": str(tmp_path), "labels": "none", "image_size": 8, "fold": "1/3", **arguments}).setup()
    assert "\n" not in str(caught.value)
