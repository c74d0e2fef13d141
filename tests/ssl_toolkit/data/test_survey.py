"""What is seen of the training images before they are decoded."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ssl_toolkit.data import ImageData
from ssl_toolkit.data.frames import FrameData
from tar_shards import png, write_tar

RAMP = np.linspace(0, 1, 256).reshape(16, 16)


def save(file, white: float, kind: str = "u2") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((RAMP * white).astype(kind)).save(file)


def open_data(path, **options) -> ImageData:
    defaults = {"image_size": 16, "batch_size": 2, "val_fraction": 0.2, "cache_dir": str(path) + "-cache"}
    return ImageData(str(path), **(defaults | options))


def whites(data: ImageData) -> list[int]:
    """The largest byte of each training image, in the order of the source."""
    return [int(pixels.max()) for batch in data.loader("train", batch_size=1) for pixels in batch.images.pixels]


@pytest.mark.guarantee("D5")
@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_one_range_for_all_files(tmp_path, cache):
    for number in range(10):
        save(tmp_path / "images" / f"{number}.png", 100 * (number + 1))
    data = open_data(tmp_path / "images", val_fraction=0.0, cache=cache)
    assert whites(data) == [round((number + 1) * 25.5) for number in range(10)]
    assert data.ranges == {"uint16": [0, 1000]}
    assert "; uint16, 10 bits used: range 0 to 1,000" in data.summary()


@pytest.mark.guarantee("D5")
def test_validation_and_test_images_have_the_range_of_the_training_images(tmp_path):
    for number in range(4):
        save(tmp_path / "train" / f"{number}.png", 4095)
        save(tmp_path / "val" / f"{number}.png", 2000)
    data = open_data(tmp_path / "train", val_path=str(tmp_path / "val"))
    assert max(int(batch.images.pixels.max()) for batch in data.loader("val")) == round(2000 * 255 / 4095)
    assert max(whites(data)) == 255


@pytest.mark.parametrize(
    ("option", "white", "ranges"),
    [
        ("auto", 255, {"uint16": [0, 1000]}),
        ("full", 4, {"uint16": [0, 65535]}),
        ("header", 4, {"uint16": [0, 65535]}),  # which says nothing
        ([0, 2000], 128, {"uint16": [0, 2000]}),
        ({"uint16": [0, 4000], "float32": [0, 1]}, 64, {"uint16": [0, 4000]}),
        ({"float32": [0, 1]}, 255, {"uint16": [0, 1000]}),
    ],
)
def test_options_each_with_a_cache_of_its_own(tmp_path, option, white, ranges):
    for number in range(4):
        save(tmp_path / "images" / f"{number}.png", 1000)
    for again in ("auto", option):  # what was decoded for another range is not used
        data = open_data(tmp_path / "images", cache="disk", range=again)
        found = max(whites(data))
    assert found == white
    assert data.ranges == ranges


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("atuo", "data.range must be auto, full, header or .low, high., got 'atuo'; did you mean 'auto'"),
        ([5, 5], "data.range must be .low, high. with low below high, got .5, 5."),
        ({"unit16": [0, 1]}, "data.range names 'unit16', which is none of .*; did you mean 'uint16'"),
        ({"uint16": [0, float("inf")]}, "data.range must be .low, high. with low below high"),
    ],
)
def test_ranges_that_are_none_are_refused(option, words):
    with pytest.raises(ValueError, match=words):
        ImageData("images", range=option)


def test_a_range_in_a_hostile_header_is_refused(tmp_path):
    data = ImageData(str(tmp_path))
    for header in (None, {}, {"config": 3}, {"config": {"data": []}}, {"config": {"data": {"range": "auto"}}}):
        data.range_from(header)
    for found in ([1, 0], {"uint16": 3}, 7, None, ["a", "b"], {"uint16": ["a", "b"]}, [[1], [2]]):
        with pytest.raises(ValueError, match=r"data\.range"):
            data.range_from({"config": {"data": {"range": found}}})


@pytest.mark.parametrize(("asked", "white"), [("auto", 204), ([0, 400], 102), ("full", 1)])
def test_the_range_of_a_header_is_taken_where_none_is_asked_for(tmp_path, asked, white):
    for number in range(4):
        save(tmp_path / "images" / f"{number}.png", 160)
    data = open_data(tmp_path / "images", range=asked, val_fraction=0.0, cache="memory")
    data.range_from({"config": {"data": {"range": [0, 200]}}})
    assert whites(data) == [white] * 4


def test_kinds_of_numbers_have_a_range_each_and_bytes_none(tmp_path):
    for number in range(4):
        save(tmp_path / "images" / f"{number}.png", 255, "u1")
        save(tmp_path / "images" / f"{number}.tif", 4095)
        save(tmp_path / "images" / f"{number}.tiff", 250, "f4")
    data = open_data(tmp_path / "images", val_fraction=0.0)
    assert data.ranges == {"float32": [0, 250], "uint16": [0, 4095]}
    assert whites(data) == [255] * 12
    assert "; float32: range 0 to 250; uint16, 12 bits used: range 0 to 4,095" in data.summary()


def test_pages_after_the_first_are_counted(tmp_path):
    pages = [Image.fromarray((RAMP * white).astype(np.uint8)) for white in (0, 255, 255, 255)]
    for kind in ("tif", "gif", "webp"):
        file = tmp_path / "images" / f"pages.{kind}"
        file.parent.mkdir(exist_ok=True)
        pages[0].save(file, save_all=True, append_images=[pages[1], pages[0], pages[1]], duration=40)
    save(tmp_path / "images" / "one.png", 255, "u1")
    data = open_data(tmp_path / "images", val_fraction=0.0)
    assert data.summary().endswith("; not read: 9 pages after the first, in 3 of 4 files looked at")


def test_shards_and_frames_too(tmp_path):
    for number in range(6):
        save(tmp_path / "frames" / f"s{number}" / "0.png", 4095)
    files = [(f"{number}.png", (tmp_path / f"frames/s{number}/0.png").read_bytes()) for number in range(6)]
    write_tar(tmp_path / "one.tar", files)
    shards = open_data(tmp_path / "one.tar", source="shards", max_images=5)
    frames = FrameData(str(tmp_path / "frames"), image_size=16, batch_size=2, cache_dir=str(tmp_path / "cache"))
    for data in (shards, frames):
        assert data.ranges == {"uint16": [0, 4095]}
    assert max(whites(shards)) == 255
    assert max(int(batch.frames.pixels.max()) for batch in frames.loader("train")) == 255
    # bytes have no range
    assert (
        open_data(write_tar(tmp_path / "8.tar", [(f"{n}.png", png(n)) for n in range(6)]), source="shards").ranges == {}
    )


def test_what_was_seen_of_images_that_lie_together_is_kept(tmp_path, monkeypatch):
    save(tmp_path / "image.png", 4095)
    content = (tmp_path / "image.png").read_bytes()
    write_tar(tmp_path / "one.tar", [(f"{number}.png", content) for number in range(6)])
    options = {"source": "shards", "shard_window": 2}
    assert open_data(tmp_path / "one.tar", **options).ranges == {"uint16": [0, 4095]}
    monkeypatch.setattr("ssl_toolkit.data.survey.look_at", None)
    assert open_data(tmp_path / "one.tar", **options).ranges == {"uint16": [0, 4095]}
    (kept,) = (tmp_path / "one.tar-cache").glob("*.survey")
    kept.write_text("[[3, 4]]")
    monkeypatch.undo()
    assert open_data(tmp_path / "one.tar", **options).ranges == {"uint16": [0, 4095]}
