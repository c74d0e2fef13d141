"""Targets of a table and of the built-in images: read, delivered with their images, refused where they are wrong."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ssl_toolkit.batch import as_batch
from ssl_toolkit.data import ImageData
from ssl_toolkit.data.procedural import TARGETS, ProceduralSource
from ssl_toolkit.data.procedural.objects import OBJECTS
from ssl_toolkit.data.procedural.pen import Pen
from ssl_toolkit.data.table import read_table

NUM = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that can be told apart by their pixels, with a table of numbers."""
    path = tmp_path_factory.mktemp("images")
    lines = ["path,age,male,note"]
    for number in range(NUM):
        Image.fromarray(np.full((8, 8, 3), 10 * number, dtype=np.uint8)).save(path / f"{number:02d}.png")
        age = "" if number == 3 else f"{number + 0.5}"
        lines.append(f"{number:02d}.png,{age},{'yes' if number % 2 else 'No'},x")
    # the order of the rows plays no role
    (path / "table.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n", encoding="utf-8")
    return path


def data_of(folder: Path, **options: object) -> ImageData:
    given = {"targets": ["age", "male"], "val_fraction": 0.2, "batch_size": 4, "image_size": 8, "cache": "memory"}
    data = ImageData(f"{folder}", **{"table": f"{folder / 'table.csv'}", **given, **options})  # pyright: ignore[reportArgumentType]
    data.setup()
    return data


def table_with(folder: Path, tmp_path: Path, cell: str) -> Path:
    file = tmp_path / "table.csv"
    file.write_text(f"path,age\n00.png,1\n01.png,{cell}\n", encoding="utf-8")
    return file


# ---- the table


def test_numbers_and_words_are_read(folder: Path) -> None:
    table = read_table(folder / "table.csv", targets=["age", "male"])
    assert table.targets.dtype == np.float32
    assert table.targets[0].tolist() == [19.5, 1]
    assert table.targets[1].tolist() == [18.5, 0]
    assert np.isnan(table.targets).sum() == 1


def test_parquet_has_the_same(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"path": ["a", "b", "c"], "n": [1.5, None, 3.0], "t": [True, False, None]}), tmp_path / "t.pq"
    )
    found = read_table(tmp_path / "t.pq", targets=["n", "t"]).targets
    np.testing.assert_array_equal(found, [[1.5, 1], [np.nan, 0], [3, np.nan]])


@pytest.mark.parametrize("cell", ["1,5", "old", "inf", "1e60"])
def test_what_is_no_number_is_refused_with_its_row(folder: Path, tmp_path: Path, cell: str) -> None:
    quoted = f'"{cell}"'
    with pytest.raises(ValueError, match=f"'{cell}' in the column 'age' of data.targets in row 3, expected a number"):
        read_table(table_with(folder, tmp_path, quoted), targets=["age"])


@pytest.mark.parametrize("cell", ["", "NaN", "n/a", "null"])
def test_unknown_has_many_words(folder: Path, tmp_path: Path, cell: str) -> None:
    found = read_table(table_with(folder, tmp_path, cell), targets=["age"]).targets
    assert found[0].tolist() == [1]
    assert math.isnan(found[1, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["agee"]}, "no column 'agee' of data.targets.*did you mean 'age'"),
        ({"targets": ["age", "age"]}, "'age' twice"),
        ({"targets": ["note"]}, "'x' in the column 'note'"),
        ({"targets": ["age"], "table": None}, "data.targets are columns of data.table, but there is none"),
    ],
)
def test_mistakes_are_one_line(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        data_of(folder, **options)
    assert "\n" not in str(caught.value)


def test_a_column_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,age\na.png,\nb.png,nan\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no number in the column 'age'"):
        read_table(tmp_path / "t.csv", targets=["age"])


# ---- the batches


@pytest.mark.parametrize("max_images", [None, 12])
def test_each_image_comes_with_its_own_numbers(folder: Path, max_images: int | None) -> None:
    data = data_of(folder, max_images=max_images)
    assert data.target_names == ["age", "male"]
    seen = 0
    for split in ("train", "val"):
        for batch in data.loader(split, shuffle=True):
            numbers = batch.images.pixels[:, 0, 0, 0] // 10
            expected = torch.stack([numbers + 0.5, numbers % 2], dim=1)
            expected[numbers == 3, 0] = math.nan
            torch.testing.assert_close(batch.targets, expected.float(), equal_nan=True, rtol=0, atol=0)
            assert (batch.labels == -1).all()
            seen += len(numbers)
        assert data.targets(split).shape == (data.num_images(split), 2)
    assert seen == (max_images or NUM)


def test_without_targets_there_are_none(folder: Path) -> None:
    data = data_of(folder, targets=None)
    assert data.target_names == []
    assert data.targets("train").shape == (data.num_images("train"), 0)
    assert next(iter(data.loader("train"))).targets is None


def test_a_loader_of_one_s_own_may_have_them() -> None:
    images, targets = torch.zeros(3, 3, 4, 4, dtype=torch.uint8), torch.rand(3, 2)
    batch = as_batch((images, targets), 0, 0)
    assert torch.equal(batch.targets, targets)
    assert batch.labels.tolist() == [-1] * 3
    with pytest.raises(ValueError, match=r"the labels of the batch are torch\.float32 of shape"):
        as_batch((images, targets[:2]), 0, 0)


def test_a_resumed_run_wants_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    data = data_of(folder)
    data.write_splits(tmp_path)
    again = ImageData(f"{folder}", table=f"{folder / 'table.csv'}", targets=["age", "male"], image_size=8)
    again.go_on_with(tmp_path)
    again.setup()
    assert torch.equal(again.targets("val").nan_to_num(-1), data.targets("val").nan_to_num(-1))
    other = tmp_path / "other.csv"
    other.write_text((folder / "table.csv").read_text().replace("05.png,5.5", "05.png,5.6"), encoding="utf-8")
    changed = ImageData(f"{folder}", table=f"{other}", targets=["age", "male"], image_size=8)
    changed.go_on_with(tmp_path)
    with pytest.raises(
        ValueError, match="targets, weights or covariates of the 20 images have changed since the run was begun"
    ):
        changed.setup()


# ---- the built-in images


def test_places_and_sizes_are_those_of_the_drawing() -> None:
    source = ProceduralSource(60, image_size=128, targets=["x", "y", "size", "angle"])
    found = source.targets()
    assert found is not None
    for index in range(0, 60, 10):  # of one kind of object each time, and its own frame of u and v
        keys = source._keys(torch.tensor([index]))
        planes = [np.zeros((1, 128, 128), np.float32) for _ in range(3)]
        pen = Pen(planes, keys, [planes] * 4)
        middle = np.argmin(np.hypot(pen.u[0], pen.v[0]))
        down, right = np.unravel_index(middle, (128, 128))
        assert [(right + 0.5) / 128, (down + 0.5) / 128] == pytest.approx(found[index, :2].tolist(), abs=1 / 128)
        # u and v are stretched against each other, which leaves a pixel's area in units as it is
        area = np.gradient(pen.u[0], axis=1)[64, 64] * np.gradient(pen.v[0], axis=0)[64, 64]
        area -= np.gradient(pen.u[0], axis=0)[64, 64] * np.gradient(pen.v[0], axis=1)[64, 64]
        assert 2 / (128 * math.sqrt(area)) == pytest.approx(found[index, 2], rel=1e-3)
        # the object's upward axis, -v, leans to the right by the angle
        lean = math.degrees(math.atan2(np.gradient(pen.u[0], axis=0)[64, 64], np.gradient(pen.v[0], axis=0)[64, 64]))
        assert lean == pytest.approx(found[index, 3], abs=2.5)  # stretched, too


def test_facts_are_those_of_the_class() -> None:
    source = ProceduralSource(len(OBJECTS), targets=["animal", "vehicle", "plant", "left"])
    found = source.targets()
    assert found is not None
    named = [{name for name, each in zip(source.class_names, column, strict=True) if each} for column in found.T[:3]]
    assert named == [{"bird", "fish"}, {"boat", "car"}, {"flower", "tree"}]


def test_light_and_dark_are_exchanged_in_negatives() -> None:
    source = ProceduralSource(400, image_size=16, targets=["negative"])
    found = source.targets()
    assert found is not None
    assert 0.12 < found.mean() < 0.28
    images = source.render(range(400)).mean(axis=(1, 2, 3))
    # backgrounds are lighter than the middle, and their negatives darker
    assert images[found[:, 0] == 1].mean() < images[found[:, 0] == 0].mean() - 8


def test_a_number_does_not_depend_on_how_many_images_there_are() -> None:
    few, many = (ProceduralSource(num, targets=list(TARGETS)).targets() for num in (5, 50))
    assert few is not None
    assert many is not None
    np.testing.assert_array_equal(few, many[:5])


@pytest.mark.parametrize(("targets", "message"), [(["sise"], "did you mean 'size'"), (["x", "x"], "'x' twice")])
def test_an_unknown_target_is_refused(targets: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProceduralSource(10, targets=targets)
