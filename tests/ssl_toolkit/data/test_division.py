"""No image is on both sides of a split, and the split of an image can be kept."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from ssl_toolkit.data import ImageData, copies, split_file, split_indices
from ssl_toolkit.data.split_file import FILE, read_split_file, seen_in_pretraining
from tar_shards import write_shards

SPLITS = ("train", "val", "test")


def write(folder, names, seed=0):
    """An image of noise for each name, all of one size in bytes."""
    generator = np.random.default_rng(seed)
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    return folder


def names(num, classes=("ant", "bee")):
    return [f"{classes[number % len(classes)]}/{number:03}.bmp" for number in range(num)]


def data(folder, **arguments):
    defaults = {"labels": "folder", "image_size": 8, "batch_size": 4, "val_fraction": 0.2, "test_fraction": 0.2}
    return ImageData(str(folder), **{**defaults, "cache": "memory", **arguments})


def members(images, split):
    return {images.name(split, index) for index in images.indices(split).tolist()}


# ---- copies


@pytest.mark.guarantee("D6")
def test_copies_are_on_one_side_and_said(tmp_path, capsys):
    write(tmp_path, names(30))
    for number, name in enumerate(names(30)):
        for copy in range(3):
            shutil.copy(tmp_path / name, tmp_path / f"{name[:3]}/copy-{copy}-{number:03}.bmp")
    images = data(tmp_path)
    pictures = {split: {(tmp_path / name).read_bytes() for name in members(images, split)} for split in SPLITS}
    assert {split: len(each) for split, each in pictures.items()} == {"train": 18, "val": 6, "test": 6}
    assert sum(images.num_images(split) for split in SPLITS) == 120
    assert not pictures["train"] & pictures["test"]
    assert not pictures["train"] & pictures["val"]
    assert not pictures["val"] & pictures["test"]
    said = capsys.readouterr().err
    assert "identical to an earlier one: 90 of 120 images (" in said


def test_without_copies_the_split_is_that_of_the_numbers(tmp_path):
    write(tmp_path, names(40))
    images = data(tmp_path)
    labels = np.array([0] * 20 + [1] * 20)
    expected = split_indices(labels, 0.2, 0.2, 0)
    assert all((images.indices(split) == expected[split]).all() for split in SPLITS)


def test_files_that_only_look_alike_are_no_copies(tmp_path, capsys):
    """The same size and the same ends, and another middle."""
    folder = tmp_path / "ant"
    folder.mkdir()
    pixels = np.zeros((100, 100, 3), dtype=np.uint8)
    for number in range(20):
        pixels[50, 50] = number
        Image.fromarray(pixels).save(folder / f"{number}.bmp")
    data(tmp_path).setup()
    assert "identical" not in capsys.readouterr().err


def test_what_is_decoded_is_compared_by_its_pixels(capsys):
    images = ImageData(source="procedural", max_images=40, image_size=16, cache="memory", test_fraction=0.2)
    images.setup()
    assert "identical" not in capsys.readouterr().err
    store = images._divided().split("train").images.store
    store._data[: 16 * 16 * 3] = store._data[16 * 16 * 3 : 2 * 16 * 16 * 3]
    digests = store.digests(1 << 30)
    assert digests[0] == digests[1]
    assert len(set(digests.tolist())) == 39
    assert store.digests(100) is None


@pytest.mark.guarantee("D6")
def test_images_of_a_test_folder_are_left_out_of_training(tmp_path, capsys):
    write(tmp_path / "main", names(20))
    write(tmp_path / "other", names(6), seed=1)
    for name in names(4):
        shutil.copy(tmp_path / "main" / name, tmp_path / "other" / f"{name[:3]}/again-{name[4:]}")
    images = data(tmp_path / "main", test_path=str(tmp_path / "other"), val_fraction=0.0)
    assert images.num_images("test") == 10
    assert members(images, "train") == set(names(20)) - set(names(4))
    said = "left out of training, since the test split has the same: 4 images (ant/000.bmp)\n"
    assert said in capsys.readouterr().err


@pytest.mark.guarantee("D6")
def test_copies_are_found_over_three_folders(tmp_path, capsys):
    for seed, (name, num) in enumerate([("main", 20), ("val", 6), ("test", 8)]):
        write(tmp_path / name, names(num), seed=seed)
    shutil.copy(tmp_path / "main" / names(20)[0], tmp_path / "val/ant/again.bmp")
    shutil.copy(tmp_path / "main" / names(20)[1], tmp_path / "test/ant/again.bmp")
    images = data(tmp_path / "main", val_path=str(tmp_path / "val"), test_path=str(tmp_path / "test"))
    assert (images.num_images("val"), images.num_images("test")) == (7, 9)
    assert members(images, "train") == set(names(20)[2:])
    assert capsys.readouterr().err.count("left out of training") == 2


@pytest.mark.guarantee("D6")
@pytest.mark.parametrize("inside", ["", "ant"])
def test_overlapping_folders_are_refused(tmp_path, inside):
    write(tmp_path, names(20))
    images = data(tmp_path, test_path=str(tmp_path / inside))
    with pytest.raises(ValueError, match=r"data.test_path .* and data.path .* hold the same images") as error:
        images.setup()
    assert "\n" not in str(error.value)


def test_a_link_to_the_folder_is_seen_through(tmp_path):
    write(tmp_path / "main", names(20))
    (tmp_path / "link").symlink_to(tmp_path / "main")
    with pytest.raises(ValueError, match="hold the same images"):
        data(tmp_path / "main", val_path=str(tmp_path / "link")).setup()


@pytest.mark.guarantee("D6")
def test_folders_of_splits_are_no_classes(tmp_path):
    for split in ("train", "Val", "test"):
        write(tmp_path / split, names(6))
    with pytest.raises(ValueError, match=r"has no classes but the splits Val, test, train: give") as error:
        data(tmp_path).setup()
    command = f"--data.path {tmp_path}/train --data.val_path {tmp_path}/Val --data.test_path {tmp_path}/test"
    assert str(error.value).endswith(command)
    # a class may be called like that
    write(tmp_path / "apple", ["0.bmp"])
    assert data(tmp_path).num_classes == 4


# ---- the split file


@pytest.fixture
def run(tmp_path):
    """A folder of images, and the split file of a run with them."""
    write(tmp_path / "images", names(40))
    (tmp_path / "run").mkdir()
    data(tmp_path / "images").write_splits(tmp_path / "run")
    return tmp_path


def go_on(run, folder="images", **arguments):
    images = data(run / folder, **arguments)
    images.go_on_with(run / "run")
    images.setup()
    return images


def test_the_file_says_all_there_is(run):
    before = data(run / "images")
    found = read_split_file(run / "run")["train"]
    assert found.names == sorted(names(40))
    assert found.sizes.tolist() == [(run / "images" / name).stat().st_size for name in found.names]
    assert len(set(found.pixels.tolist())) == 40
    for split in SPLITS:
        named = {name for name, each in zip(found.names, found.splits, strict=True) if each == split}
        assert named == members(before, split)
    assert read_split_file(run / "run" / FILE)["train"].names == found.names


def test_the_same_images_elsewhere_go_on(run):
    before = data(run / "images")
    shutil.copytree(run / "images", run / "moved")
    after = go_on(run, "moved")
    assert all((after.indices(split) == before.indices(split)).all() for split in SPLITS)


def test_new_images_are_left_out_and_said(run, capsys):
    before = data(run / "images")
    before.setup()
    write(run / "images", ["ant/000a.bmp", "bee/zzz.bmp"], seed=7)
    after = go_on(run)
    assert all(members(after, split) == members(before, split) for split in SPLITS)
    assert all((after.indices(split) == before.indices(split)).all() for split in SPLITS)
    assert "new since the run was begun, and left out: 2 images; it goes on with its 40" in capsys.readouterr().err


def remove(images):
    (images / "ant/000.bmp").unlink()


def rename(images):
    (images / "ant/000.bmp").rename(images / "ant/aaa.bmp")


def edit(images):
    """The file has as many bytes as before."""
    file = images / "ant/000.bmp"
    before = file.stat().st_size
    write(images, ["ant/000.bmp"], seed=9)
    assert file.stat().st_size == before


def enlarge(images):
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(images / "ant/000.bmp")


@pytest.mark.guarantee("R16")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (remove, "gone since the run was begun: 1 of its 40 images, such as ant/000.bmp; bring back"),
        (rename, r"1 of its 40 images, such as ant/000.bmp \(new: 1; were files renamed\?\)"),
        (edit, "changed since the run was begun: 1 of its 40 images, such as ant/000.bmp; bring back"),
        (enlarge, "changed since the run was begun: 1 of its 40 images, such as ant/000.bmp; bring back"),
    ],
)
def test_what_has_changed_is_refused_and_named(run, change, said):
    change(run / "images")
    with pytest.raises(ValueError, match=said) as error:
        go_on(run)
    assert "\n" not in str(error.value)
    assert "--data.splits RUN" in str(error.value)


@pytest.mark.parametrize("change", [rename, enlarge, remove])
def test_of_too_many_images_to_name_a_change_is_noticed_too(run, change, monkeypatch):
    monkeypatch.setattr(split_file, "MOST_NAMED", 30)
    (run / "run" / FILE).unlink()
    data(run / "images").write_splits(run / "run")
    (run / "images").rename(run / "moved")
    go_on(run, "moved")
    (run / "moved").rename(run / "images")
    change(run / "images")
    words = (
        "was begun with 40 images, now there are 39"
        if change is remove
        else "names, sizes or classes of the 40 images have"
    )
    with pytest.raises(ValueError, match=words) as error:
        go_on(run)
    assert "\n" not in str(error.value)


def test_a_new_class_is_refused(run):
    write(run / "images", ["cat/000.bmp"])
    with pytest.raises(ValueError, match="begun with 2 classes, now there are 3"):
        go_on(run)


def test_the_images_that_were_chosen_stay_chosen(run, capsys):
    (run / "few").mkdir()
    before = data(run / "images", max_images=25)
    before.write_splits(run / "few")
    write(run / "images", ["ant/000a.bmp"], seed=7)
    after = data(run / "images", max_images=25)
    after.go_on_with(run / "few")
    assert all(members(after, split) == members(before, split) for split in SPLITS)
    assert "new" not in capsys.readouterr().err


@pytest.mark.guarantee("D6")
def test_a_new_run_keeps_the_splits_of_another(run, capsys):
    before = {split: members(data(run / "images"), split) for split in SPLITS}
    new = write(run / "images", [f"ant/new-{number:02}.bmp" for number in range(20)], seed=5)
    (new / "ant/000.bmp").unlink()
    after = data(new, splits=str(run / "run"))
    for split in SPLITS:
        assert {name for name in members(after, split) if "new" not in name} == before[split] - {"ant/000.bmp"}
    assert [sum("new" in name for name in members(after, split)) for split in SPLITS] == [12, 4, 4]
    said = "data.splits: 39 of 59 images keep their splits; new: 20; no longer there: 1"
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_a_copy_of_a_known_image_goes_where_it_is(run):
    test = sorted(members(data(run / "images"), "test"))[0]
    for number in range(10):
        shutil.copy(run / "images" / test, run / "images" / f"ant/new-{number}.bmp")
    after = data(run / "images", splits=str(run / "run"))
    assert {f"ant/new-{number}.bmp" for number in range(10)} < members(after, "test")


def test_one_new_image_is_for_training(run):
    write(run / "images", ["ant/new.bmp"], seed=5)
    assert "ant/new.bmp" in members(data(run / "images", splits=str(run / "run")), "train")


@pytest.mark.parametrize("content", [b"", b"PAR1 nothing PAR1", None])
def test_a_damaged_file_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    said = "is no split file of a run" if content is not None else "there is no split file"
    with pytest.raises(ValueError, match=said) as error:
        read_split_file(tmp_path)
    assert "\n" not in str(error.value)


def test_test_images_of_the_pretraining_are_counted(run, tmp_path):
    seen = members(data(run / "images"), "train")
    assert seen_in_pretraining(data(run / "images").files("test"), run / "run" / "backbone.safetensors") == 0
    below = data(run / "images" / "ant", labels="none", test_fraction=0.5, val_fraction=0)
    expected = sum(f"ant/{name}" in seen for name in members(below, "test"))
    assert expected > 0
    assert seen_in_pretraining(below.files("test"), run / "run" / "backbone.safetensors") == expected
    above = data(run, labels="none", test_fraction=0.5, val_fraction=0)
    expected = sum(name.removeprefix("images/") in seen for name in members(above, "test"))
    assert seen_in_pretraining(above.files("test"), run / "run" / "backbone.safetensors") == expected > 0
    assert seen_in_pretraining(below.files("test"), tmp_path / "elsewhere" / "backbone.safetensors") is None


def test_shards_go_on_too(tmp_path):
    shards = write_shards(tmp_path / "shards", shards=3, images=8)
    images = ImageData(str(shards), source="shards", image_size=16, batch_size=4, cache_dir=str(tmp_path / "cache"))
    (tmp_path / "run").mkdir()
    images.write_splits(tmp_path / "run")
    found = read_split_file(tmp_path / "run")["train"]
    assert len(found.names) == 24
    assert min(found.sizes) > 0
    again = ImageData(str(shards), source="shards", image_size=16, batch_size=4, cache_dir=str(tmp_path / "cache"))
    again.go_on_with(tmp_path / "run")
    assert all((again.indices(split) == images.indices(split)).all() for split in SPLITS)


def test_images_of_which_hardly_any_is_distinct_are_divided_and_it_is_said(tmp_path, capsys):
    write(tmp_path, ["ant/0.bmp"])
    for number in range(1, 10):
        shutil.copy(tmp_path / "ant/0.bmp", tmp_path / f"ant/{number}.bmp")
    images = data(tmp_path)
    assert [images.num_images(split) for split in SPLITS] == [6, 2, 2]
    assert "only 1 of 10 images are distinct: copies are in different splits" in capsys.readouterr().err


def test_a_test_folder_is_not_decoded_before_the_test(tmp_path):
    write(tmp_path / "main", names(20))
    write(tmp_path / "other", names(6), seed=1)
    images = data(tmp_path / "main", test_path=str(tmp_path / "other"), val_fraction=0.0)
    (tmp_path / "run").mkdir()
    images.write_splits(tmp_path / "run")
    assert len(images.files("test")) == 6
    assert not images._divided()._sets["test"].is_decoded
    again = data(tmp_path / "main", test_path=str(tmp_path / "other"), val_fraction=0.0)
    again.go_on_with(tmp_path / "run")
    again.setup()
    assert not again._divided()._sets["test"].is_decoded
    assert again.num_images("test") == 6


def test_copies_are_looked_for_once(tmp_path, monkeypatch):
    write(tmp_path / "main", names(20))
    shutil.copy(tmp_path / "main/ant/000.bmp", tmp_path / "main/bee/copy.bmp")
    monkeypatch.setattr(copies, "_FEWEST_KEPT", 0)
    looked, original = [], copies.first_files
    monkeypatch.setattr(copies, "first_files", lambda files: looked.append(len(files)) or original(files))
    first, again = (data(tmp_path / "main", cache_dir=str(tmp_path / "cache")) for _ in range(2))
    assert all((first.indices(split) == again.indices(split)).all() for split in SPLITS)
    assert looked == [21]
    # other files, or a damaged note, and it is looked for again
    write(tmp_path / "main", ["ant/new.bmp"], seed=3)
    assert sum(data(tmp_path / "main", cache_dir=str(tmp_path / "cache")).num_images(split) for split in SPLITS) == 22
    for note in (tmp_path / "cache").glob("*.copies"):
        note.write_bytes(note.read_bytes()[:-3])
    data(tmp_path / "main", cache_dir=str(tmp_path / "cache")).setup()
    assert looked == [21, 22, 22]
