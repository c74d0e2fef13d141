"""Covariates of a table and of the built-in images: read, delivered with their images, refused where they are wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from pretext.rotation import Rotation
from ssl_toolkit.augment import RandomView
from ssl_toolkit.data import ImageData
from ssl_toolkit.data.procedural import ProceduralSource
from ssl_toolkit.data.table import read_table
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.schedule import Cosine

NUM = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    lines = ["path,label,age,male,site"]
    for number in range(NUM):
        Image.fromarray(np.full((8, 8, 3), 10 * number, dtype=np.uint8)).save(path / f"{number:02d}.png")
        age = "" if number == 3 else f"{number + 0.5}"
        lines.append(f"{number:02d}.png,{number % 2},{age},{'yes' if number % 3 else 'No'},x")
    # the order of the rows plays no role
    (path / "table.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n", encoding="utf-8")
    return path


def data_of(folder, **options):
    given = {"covariates": ["male", "age"], "val_fraction": 0.2, "batch_size": 4, "image_size": 8, "cache": "memory"}
    data = ImageData(f"{folder}", **{"table": f"{folder / 'table.csv'}", **given, **options})
    data.setup()
    return data


def expected(number):
    return [float(bool(number % 3)), math.nan if number == 3 else number + 0.5]


@pytest.mark.parametrize("max_images", [None, 12])
def test_each_image_comes_with_its_own(folder, max_images):
    data, seen = data_of(folder, max_images=max_images), set()
    assert data.covariate_names == ["male", "age"]
    for split in ("train", "val"):
        for batch in data.loader(split, shuffle=split == "train"):
            assert batch.covariates is not None
            assert batch.covariates.dtype == torch.float32
            for image, row in zip(batch.images.pixels, batch.covariates.tolist(), strict=True):
                number = int(image[0, 0, 0]) // 10
                seen.add(number)
                np.testing.assert_array_equal(row, expected(number))
        names = [int(data.name(split, index).removesuffix(".png")) for index in data.indices(split)]
        np.testing.assert_array_equal(data.covariates(split).numpy(), [expected(number) for number in names])
    assert len(seen) == (max_images or NUM)


def test_without_any_there_are_none(folder):
    data = data_of(folder, covariates=None)
    assert next(iter(data.loader("train"))).covariates is None
    assert (data.covariate_names, data.covariates("train").shape) == ([], (16, 0))


def test_the_built_in_images_have_those_that_are_no_targets():
    source = ProceduralSource(30, targets=["x"], covariates=["size", "left"])
    other = ProceduralSource(30, targets=["size", "left"])
    np.testing.assert_array_equal(source.covariates(), other.targets())
    assert other.covariates() is None
    with pytest.raises(ValueError, match=r"'x' is in data.covariates and in data.targets"):
        ProceduralSource(30, targets=["x"], covariates=["x"])
    with pytest.raises(ValueError, match=r"data.covariates has 'sise'; the built-in .* did you mean 'size'"):
        ProceduralSource(30, covariates=["sise"])


def test_for_a_prediction_other_columns_are_not_read(folder, tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("path,label,split,group,age\n00.png,,nonsense,,1\n01.png,,,,2\n")
    assert read_table(file, covariates=["age"], roles=("path",)).values.keys() == {"path"}
    data = ImageData(f"{folder}", table=f"{file}", covariates=["age"], image_size=8, val_fraction=0.0)
    data.read_columns("path")
    found = [batch.covariates for batch in data.predict_dataloader()]
    assert torch.cat([each for each in found if each is not None]).tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"covariates": ["age", "age"]}, "data.covariates has the column 'age' twice"),
        ({"covariates": ["ages"]}, "no column 'ages' of data.covariates; .* did you mean 'age'"),
        ({"covariates": ["age"], "targets": ["age"]}, "'age' is in data.covariates and in data.targets"),
        ({"covariates": ["label"]}, "'label' of data.covariates is the column of the labels"),
        ({"covariates": ["site"]}, "has 'x' in the column 'site' of data.covariates in row 2, expected a number"),
        ({"table": None}, "data.covariates are columns of data.table, but there is none"),
    ],
)
def test_what_is_no_covariate_is_refused(folder, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        data_of(folder, **options)
    assert "\n" not in str(caught.value)


def test_a_pretext_task_reads_none(folder):
    task = Rotation(backbone=Backbone("resnet10t"), optimizer=AdamW(), schedule=Cosine(), view=RandomView(32))
    with pytest.raises(ValueError, match=r"data.covariates are for the head of a transfer, and Rotation reads none"):
        task.check_data(data_of(folder))
