"""``pseudo-label``: the table that the next run trains on, in which no validation or test image is for training."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ssl_toolkit.cli import main
from ssl_toolkit.cli.predict import open_trained, trained_task
from ssl_toolkit.cli.pseudo_label import Row, choose, copies_of, remarks
from ssl_toolkit.data import ImageData
from ssl_toolkit.tracking.metrics_csv import last_values

RECIPE = {
    "model": {
        "class_path": "downstream.classification.Classification",
        "init_args": {
            "backbone": {"name": "resnet10t", "kwargs": {"channels": [8, 8, 16, 16]}},
            "freeze_backbone": True, "head": "nearest_mean",
            "optimizer": {"class_path": "ssl_toolkit.optim.AdamW"},
            "schedule": {"class_path": "ssl_toolkit.schedule.Cosine"},
        },
    },
    "data": {"labels": "folder", "image_size": 16, "val_fraction": 0.2, "test_fraction": 0.2},
    "trainer": {"accelerator": "cpu", "max_epochs": 1},
    "random_weights": False,
    "tracker": "none",
}  # fmt: skip


def draw(file, kind, generator):
    """Dark or bright noise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = generator.integers(0, 100, (16, 16, 3)) + 150 * kind
    Image.fromarray(pixels.astype(np.uint8)).save(file)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on twenty images of two kinds, and a folder of others, with links to and copies of those of the run."""
    folder = tmp_path_factory.mktemp("pseudo")
    generator = np.random.default_rng(0)
    for number in range(20):
        draw(folder / "own" / f"{['dark', 'light'][number % 2]}/{number}.png", number % 2, generator)
    for number in range(8):
        draw(folder / "others" / f"{number}.png", number % 2, generator)
    for number, file in enumerate(sorted((folder / "own").rglob("*.png"))):
        if number % 2:
            shutil.copy(file, folder / "others" / f"copy-{file.name}")
        else:
            (folder / "others" / f"link-{file.name}").symlink_to(file)
    command = ["transfer", "-c", yaml.safe_dump(RECIPE), "--data.path", str(folder / "own")]
    assert main([*command, "--data.labels_per_class", "3", "--out", str(folder / "run")]) == 0
    return folder


def label(folder, out, *options):
    command = ["pseudo-label", str(folder / "run"), "--data.path", str(folder / "others"), "--out", str(out)]
    return main([*command, "--device", "cpu", "--precision", "32", *options])


def read(file):
    with file.open() as opened:
        return [Row(**row) for row in csv.DictReader(opened)]


def test_the_table_has_what_the_run_is_sure_of_and_no_image_that_it_tests(trained, tmp_path, capsys):
    out = tmp_path / "table.csv"
    assert label(trained, out, "--threshold", "0.5") == 0
    said = capsys.readouterr().out
    rows = read(out)
    data = ImageData(str(trained / "own"), labels_per_class=3, **RECIPE["data"])
    for split in ("train", "val", "test"):
        names = {str(trained / "own" / data.name(split, each)) for each in data.indices(split).tolist()}
        assert {row.path for row in rows if row.split == split and row.origin == "labelled"} == names
        assert all(row.label == row.path.split("/")[-2] for row in rows if row.origin == "labelled")
    held_out = {(trained / "own" / row.path).read_bytes() for row in rows if row.origin == "labelled"}
    pseudo = [row for row in rows if row.origin == "pseudo"]
    assert all(row.split == "train" and Path(row.path).read_bytes() not in held_out for row in pseudo)
    # eight new ones, and those of the twenty that the run left out of its six labelled training images
    assert len(pseudo) == 8 + 20 - len(held_out)
    assert "left out, since the run's test split has them: 4 images" in said
    # what predict says of them
    task, header = trained_task(open_trained(str(trained / "run")))
    images = ImageData(str(trained / "others"), image_size=16, val_fraction=0.0)
    for batch in images.loader("train"):
        classes = task.predict(batch).argmax(dim=1).tolist()
        for index, each in zip(batch.indices.tolist(), classes, strict=True):
            path = str((trained / "others" / images.name("train", index)).resolve())
            assert {row.label for row in pseudo if row.path == path} <= {header["class_names"][each]}


def test_the_next_run_takes_the_table_and_tests_the_same_images(trained, tmp_path, capsys):
    out = tmp_path / "table.csv"
    assert label(trained, out, "--threshold", "0.5", "--max_per_class", "2") == 0
    following = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next:"))
    assert [row.label for row in read(out) if row.origin == "pseudo"].count("dark") == 2
    command = following.split()[2:]
    assert main([*command[:-1], str(tmp_path / "next")]) == 0
    assert "10 train, 4 val, 4 test images of 2 classes" in capsys.readouterr().out
    assert "test/top1" in last_values(tmp_path / "next")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "1.5"], "--threshold is 1.5, expected a probability"),
        (["--max_per_class", "0"], "--max_per_class is 0, expected at least 1"),
        (["--data.path", "nowhere"], "nowhere"),
        (["--data.source", "procedural"], "but a table names files"),
        (["--data.labels", "folder"], "leave it out"),
        (["--out", "table.txt"], "pseudo-label writes .csv"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_table(trained, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert label(trained, tmp_path / "table.csv", *options) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("ssl-toolkit: error") == 1
    assert not (tmp_path / "table.csv").exists()


def test_images_that_the_run_tests_are_all_left_out(trained, tmp_path, capsys):
    data = ImageData(str(trained / "own"), **RECIPE["data"])
    (tmp_path / "tested").mkdir()
    for place in data.indices("test").tolist():
        shutil.copy(trained / "own" / data.name("test", place), tmp_path / "tested" / f"{place}.png")
    out = tmp_path / "table.csv"
    assert label(trained, out, "--threshold", "0.5", "--data.path", str(tmp_path / "tested")) == 2
    assert "whose class is sure, in its own splits: give other images" in capsys.readouterr().err
    assert not out.exists()


def test_without_a_run_the_command_says_what_is_missing(tmp_path, capsys):
    assert main(["pseudo-label", "--out", str(tmp_path / "a.csv")]) == 2
    assert "missing: the folder of a run of transfer" in capsys.readouterr().err


def test_a_class_gives_its_most_probable_images():
    sure = np.array([0.9, 0.99, 0.6, 0.95, 0.99])
    probabilities = np.stack([sure, 1 - sure], axis=1)
    probabilities[3] = probabilities[3, ::-1]
    assert choose(probabilities, 0.9, None).tolist() == [0, 1, 3, 4]
    assert choose(probabilities, 0.9, 1).tolist() == [1, 3]
    assert choose(probabilities, 0.995, 1).tolist() == []


def test_copies_are_found_by_their_bytes(tmp_path):
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1"), ("d", b"3"), ("e", b"22")):
        (tmp_path / name).write_bytes(content)
    known = {"train": [tmp_path / "a"], "val": [], "test": [tmp_path / "b", tmp_path / "gone"]}
    assert copies_of([tmp_path / "c", tmp_path / "d", tmp_path / "e", tmp_path / "b"], known) == [
        "train",
        None,
        None,
        "test",
    ]


def test_a_class_that_is_most_is_said():
    rows = [Row(str(number), "ab"[number % 10 == 0], "train", "pseudo") for number in range(20)]
    assert remarks(rows, ["a", "b"], [])[-1].startswith("90 % of what was taken is a: ")
    assert len(remarks(rows[:4], ["a", "b", "c"], [None, "val"])) == 5
    even = [Row("x", name, "train", "pseudo") for name in "ab"]
    assert len(remarks(even, ["a", "b"], [])) == 2
