from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_toolkit.data import BadImage, FolderSource, ImageData, SubsetSource
from ssl_toolkit.data.formats import not_read


def save(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6, 3), value, dtype=np.uint8)).save(path)


def names(source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def test_finds_nested_images_in_sorted_order(tmp_path):
    for name in ("b/2.PNG", "b/1.jpg", "a.jpeg", "b/c/d/x.Tiff", "z.webp", "b.bmp", "k.gif", "t.tif"):
        save(tmp_path / name)
    for name in (".hidden.png", ".folder/x.png", "b/._1.jpg"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    source = FolderSource(tmp_path)
    expected = ["a.jpeg", "b.bmp", "b/1.jpg", "b/2.PNG", "b/c/d/x.Tiff", "k.gif", "t.tif", "z.webp"]
    assert names(source) == expected == sorted(expected)
    assert source.read(0).shape == (4, 6, 3)
    assert source.label(0) == -1
    assert list(source.class_names) == []


def test_the_first_bytes_decide_where_the_ending_does_not(tmp_path):
    kinds = {"x.jfif": "JPEG", "x.jpe": "JPEG", "x.ppm": "PPM", "x.avif": "AVIF", "x.jp2": "JPEG2000", "x": "PNG"}
    kinds |= {"x.img": "TIFF", "x.2021": "BMP", "x.dat": "GIF", "x.data": "WEBP", "bare.image": "JPEG2000"}
    for name, kind in kinds.items():
        options = {"no_jp2": True} if name == "bare.image" else {}
        Image.fromarray(np.full((8, 8, 3), 200, dtype=np.uint8)).save(tmp_path / name, kind, **options)
    Image.new("RGB", (4, 4)).save(tmp_path / "x.tga")
    texts = {
        "a.heic": b"\0\0\0\x18ftypheic\0\0\0\0heicmif1",
        "b.heic": b"",
        "P6.readme": b"P6 is a format",
        "BM": b"BMs",
    }
    for name, content in (texts | {"notes.txt": b"\xff\xd8\xff"}).items():
        (tmp_path / name).write_bytes(content)
    source = FolderSource(tmp_path)
    assert names(source) == sorted(kinds)
    assert all(abs(source.read(index).astype(int) - 200).max() < 4 for index in range(len(source)))
    assert source.left_out == {".heic": 2, ".tga": 1, ".readme": 1, "without ending": 1, ".txt": 1}
    assert not_read(source.left_out, most=1) == "not read: 2 .heic, 4 others (convert what is an image to PNG or TIFF)"
    data = ImageData(str(tmp_path), image_size=8, batch_size=2)
    assert "; not read: 2 .heic, 1 " in data.summary()
    assert SubsetSource(source, np.arange(2)).left_out == source.left_out


def test_links_are_followed_and_loops_end(tmp_path):
    save(tmp_path / "images" / "one" / "a.png", 1)
    save(tmp_path / "elsewhere" / "b.png", 2)
    images = tmp_path / "images"
    (images / "one" / "up").symlink_to(images)
    (images / "a-link").symlink_to(images / "one")
    (images / "far").symlink_to(tmp_path / "elsewhere")
    (images / "file.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    (images / "broken.png").symlink_to(tmp_path / "nowhere.png")
    # a folder counts once, under its own name
    source = FolderSource(images)
    assert names(source) == ["broken.png", "far/b.png", "file.png", "one/a.png"]
    assert source.read(1)[0, 0].tolist() == [2, 2, 2]
    with pytest.raises(BadImage, match=r"broken.png: No such file"):
        source.read(0)


def test_labels_are_first_level_folders(tmp_path):
    for name in ("cat/1.png", "ant/deep/2.png", "cat/deep/ant/3.png"):
        save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("")
    source = FolderSource(tmp_path, "folder")
    assert source.class_names == ["ant", "cat"]
    assert {source.name(index): source.label(index) for index in range(3)} == {
        "ant/deep/2.png": 0,
        "cat/1.png": 1,
        "cat/deep/ant/3.png": 1,
    }


def test_labels_of_a_second_folder_follow_the_first(tmp_path):
    save(tmp_path / "val" / "cat" / "1.png")
    source = FolderSource(tmp_path / "val", "folder", class_names=["ant", "bee", "cat"])
    assert source.label(0) == 2
    assert len(source.class_names) == 3
    with pytest.raises(ValueError, match=r"sub-folder 'cat' .* none of the 2 classes .*did you mean 'cats'"):
        FolderSource(tmp_path / "val", "folder", class_names=["ant", "cats"])


def test_errors_are_one_helpful_line(tmp_path):
    save(tmp_path / "birds" / "a.png")
    save(tmp_path / "birds" / "wren" / "b.png")
    (tmp_path / "empty").mkdir()
    texts = tmp_path / "texts"
    texts.mkdir()
    for index in range(12):
        (texts / f"{index}.txt").write_text("")
    cases = {
        "brids": r"'.*brids' does not exist; did you mean '.*/birds'\?",
        "birds/a.png": r"a.png' is a file, but a folder of images is needed",
        "empty": r"is empty; images end in",
        "texts": r"holds 12 files, none is an image \(\.txt 12\)",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            FolderSource(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"but 1 image of 2 lies directly in .*\(such as a.png\)") as caught:
        FolderSource(tmp_path / "birds", "folder")
    # SupCon refuses it
    assert "a task that needs no labels also takes --data.labels none" in str(caught.value)


def test_fingerprint_notices_changes_and_ignores_the_place(tmp_path):
    save(tmp_path / "one" / "a.png")
    save(tmp_path / "one" / "b.png")
    before = FolderSource(tmp_path / "one").fingerprint()
    assert FolderSource(tmp_path / "one").fingerprint() == before
    (tmp_path / "one").rename(tmp_path / "two")
    assert FolderSource(tmp_path / "two").fingerprint() == before
    os.utime(tmp_path / "two" / "a.png", (1, 1))
    touched = FolderSource(tmp_path / "two").fingerprint()
    (tmp_path / "two" / "a.png").rename(tmp_path / "two" / "c.png")
    renamed = FolderSource(tmp_path / "two").fingerprint()
    assert len({before, touched, renamed}) == 3


def test_names_that_are_not_utf8(tmp_path):
    save(tmp_path / "a.png")
    try:
        (tmp_path / "a.png").rename(os.fsdecode(bytes(tmp_path) + b"/\xff\xfe.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    source = FolderSource(tmp_path)
    assert source.name(0).encode()
    assert source.read(0).shape == (4, 6, 3)
    assert source.fingerprint()


def test_subset(tmp_path):
    for index in range(5):
        save(tmp_path / "c" / f"{index}.png", index)
    source = FolderSource(tmp_path, "folder")
    subset = SubsetSource(source, np.array([1, 4]))
    assert names(subset) == ["c/1.png", "c/4.png"]
    assert [subset.read(1)[0, 0, 0], *[image[0, 0, 0] for image in subset.read_many([0, 1])]] == [4, 1, 4]
    assert subset.label(0) == 0
    assert subset.class_names == ["c"]
    assert subset.fingerprint() != SubsetSource(source, np.array([1, 3])).fingerprint()
