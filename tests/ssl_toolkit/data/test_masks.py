"""Masks: where they come from, and that each lies on its image as the view shows it."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_toolkit.augment import CenterView
from ssl_toolkit.batch import Images
from ssl_toolkit.data import ImageData, decode_file
from ssl_toolkit.data.decode import BadImage
from ssl_toolkit.data.masks import FolderMasks, open_masks
from ssl_toolkit.data.masks.files import decoded_places, read_mask, stored_as
from ssl_toolkit.data.procedural import ProceduralSource
from ssl_toolkit.data.procedural.objects import OBJECTS
from ssl_toolkit.data.procedural.pen import Pen
from ssl_toolkit.data.procedural.scene import background

GENERATOR = np.random.default_rng(0)


def write(path, values, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, dtype=np.uint8))
    if mode == "P":
        image = Image.new("P", image.size)
        image.putpalette(GENERATOR.integers(0, 256, 768).tolist())
        image.putdata(np.asarray(values).ravel().tolist())
    elif mode is not None:
        image = image.convert(mode)
    image.save(path, **options)
    return path


def write_grey_png(path, values, bits):
    """A PNG of so many bits a pixel, which Pillow does not write."""
    rows = b"".join(
        b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, -bits:].ravel()).tobytes() for row in values
    )
    height, width = values.shape

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


# of the built-in images


def test_the_mask_of_a_drawing_is_what_its_object_has_painted():
    source = ProceduralSource(20, 48, seed=5)
    masks, keys = source.masks(range(20)), source._keys(torch.arange(20))
    assert (masks.shape, masks.dtype) == ((20, 48, 48), np.uint8)
    objects = list(OBJECTS.values())
    for place in range(20):
        planes, _ = background(keys[place : place + 1], 48)
        before = [plane.copy() for plane in planes]
        far = [np.full((1, 1, 1), 9.0, np.float32)] * 3  # a colour that shows how much of a pixel is painted over
        pen = Pen(planes, keys[place : place + 1], [far] * 4)
        objects[place % 10](pen)
        painted = np.maximum.reduce([(a - b)[0] / (9 - b[0]) for a, b in zip(planes, before, strict=True)])
        is_object = masks[place] > 0
        assert set(np.unique(masks[place])) == {0, place % 10 + 1}
        # parts beside each other may cover together what neither covers by half
        assert painted[is_object].min() >= 0.499
        assert (painted[~is_object] < 0.75 + 1e-6).all()
        assert (painted[~is_object] > 0).mean() < 0.25, "only edges"


def test_masks_depend_on_seed_and_index_only_and_lie_where_the_targets_say():
    source = ProceduralSource(400, 64, seed=1, targets=["x", "y"])
    order = np.random.default_rng(0).permutation(400)[:150]
    masks = source.masks(order)
    assert np.array_equal(masks, ProceduralSource(1000, 64, seed=1).masks(range(400))[order])
    rows, columns = np.mgrid[:64, :64]
    centres = np.array([[columns[mask > 0].mean(), rows[mask > 0].mean()] for mask in masks]) / 64
    correlation = np.corrcoef(np.hstack([centres, source.targets()[order]]).T)
    assert min(correlation[0, 2], correlation[1, 3]) > 0.9


def test_built_in_masks_are_for_built_in_images(tmp_path):
    data = ImageData(source="procedural", max_images=60, image_size=24, test_fraction=0.3, num_threads=1)
    data.setup()
    masks, both = open_masks("procedural", data, 24), open_masks("procedural:object", data, 24)
    assert (len(masks.class_names), masks.class_names[1]) == (11, "bird")
    assert both.class_names == ["background", "object"]
    chosen = masks.members("test")[:3]
    assert np.array_equal(masks.members("test"), data.indices("test"))
    sizes, places = np.full((3, 2), 24), np.tile(np.arange(24), (3, 1))
    read = masks.read("test", chosen, sizes, places, places[:, ::-1])
    assert np.array_equal(read, ProceduralSource(60, 24).masks(chosen)[:, :, ::-1])
    assert np.array_equal(both.read("test", chosen, sizes, places, places[:, ::-1]), read > 0)
    with pytest.raises(ValueError, match="--mask_classes is for a folder of masks"):
        open_masks("procedural", data, 24, 11)
    data, _ = folder_data(tmp_path)
    with pytest.raises(ValueError, match=r"--masks procedural are those of the built-in images .* give the folder"):
        open_masks("procedural", data, 24)


# geometry


@pytest.mark.parametrize("size", [5, 8, 13, 32])
def test_places_are_the_pixels_nearest_to_the_centres_of_the_view(size):
    sizes = torch.tensor([[16, 16], [9, 31], [40, 13], [5, 5]])
    for fraction in (1.0, 0.875):
        rows, columns = CenterView(size, fraction).places(sizes)
        for image, (height, width) in enumerate(sizes.tolist()):
            side = max(1, round(min(height, width) * fraction))
            for found, length in ((rows, height), (columns, width)):
                start = (length - side) // 2
                naive = [int(start + (place + 0.5) * side / size) for place in range(size)]
                assert found[image].tolist() == naive


def test_an_image_that_is_its_own_mask_lies_where_the_view_shows_it():
    """Without a resize exactly; with one as the antialiased view does, which a shift by one pixel would not."""
    squares = GENERATOR.integers(0, 2, (2, 9, 12)).repeat(8, axis=1).repeat(8, axis=2)
    images = Images(torch.from_numpy(255 * squares.astype(np.uint8))[:, None], torch.tensor([[72, 96], [70, 91]]))
    for size in (72, 70):
        view = CenterView(size)
        rows, columns = view.places(images.sizes)
        masks = squares[np.arange(2)[:, None, None], rows[:, :, None], columns[:, None]]
        place = 0 if size == 72 else 1
        assert np.array_equal(view(images, torch.zeros(2, dtype=torch.int64))[place, 0].numpy(), masks[place])
    view = CenterView(50)
    rows, columns = view.places(images.sizes)
    masks = squares[np.arange(2)[:, None, None], rows[:, :, None], columns[:, None]]
    seen = view(images, torch.zeros(2, dtype=torch.int64))[:, 0].numpy()
    assert (np.abs(seen - 0.5) > 0.01).mean() > 0.9
    wrong = (seen > 0.5) != masks
    assert wrong.mean() < 0.02
    for axis in (1, 2):
        for step in (-1, 1):
            assert ((seen > 0.5) != np.roll(masks, step, axis)).mean() > 3 * wrong.mean()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_places_of_a_decoded_image_are_those_of_the_decoder(tmp_path, orientation):
    """What is cut off without a resize is known pixel by pixel, whatever the orientation, odd sizes too."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for width, height in ((7, 21), (20, 9), (9, 9), (25, 8), (8, 25)):
        path = write(tmp_path / "image.png", GENERATOR.integers(0, 256, (height, width, 3)), exif=exif)
        whole, image = decode_file(path, "image"), decode_file(path, "image", min(width, height))
        stored = stored_as(path, "image")
        assert stored.upright == whole.shape[:2]
        rows, columns = decoded_places(stored, min(width, height), *image.shape[:2])
        assert np.array_equal(whole[rows][:, columns], image)
        values = GENERATOR.integers(0, 12, (height, width))
        path = write(tmp_path / "mask.png", values, exif=exif)
        assert np.array_equal(read_mask(path, "mask"), decode_file(path, "mask", channels=1)[:, :, 0])


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff"])
def test_places_of_a_reduced_image_follow_it(tmp_path, suffix):
    blocks = GENERATOR.integers(0, 2, (10, 15)).repeat(30, axis=0).repeat(31, axis=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = write(tmp_path / f"image.{suffix}", 255 * blocks, "L", exif=exif)
    upright = decode_file(path, "image", channels=1)[:, :, 0]
    image = decode_file(path, "image", 57, channels=1)[:, :, 0]
    rows, columns = decoded_places(stored_as(path, "image"), 57, *image.shape)
    nearest = upright[rows][:, columns] > 127
    wrong = nearest != (image > 127)
    assert wrong.mean() < 0.015
    assert min(((image > 127) != np.roll(nearest, step, axis)).mean() for step in (-1, 1) for axis in (0, 1)) > 0.05
    with pytest.raises(ValueError, match="has the file changed"):
        decoded_places(stored_as(path, "image"), 57, 40, 57)


# files


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_values_are_read_as_they_are(tmp_path, bits):
    values = GENERATOR.integers(0, 2**bits, (5, 7), dtype=np.uint8)
    assert np.array_equal(read_mask(write(tmp_path / "p.png", values, "P", bits=bits), "p"), values), "not colours"
    write_grey_png(tmp_path / "grey.png", values, bits)
    with Image.open(tmp_path / "grey.png") as image:
        assert (image.mode, image.size) == ("1" if bits == 1 else "L", (7, 5))
    assert np.array_equal(read_mask(tmp_path / "grey.png", "grey"), values), "not spread up to 255"


def test_what_is_no_mask_is_refused(tmp_path):
    values = GENERATOR.integers(0, 3, (6, 6))
    for mode in ("RGB", "RGBA", "LA"):
        with pytest.raises(BadImage, match=rf"^m: it has the channels {mode}, but a mask has one channel"):
            read_mask(write(tmp_path / "m.png", values, mode), "m")
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(BadImage, match="16 bits a pixel"):
        read_mask(tmp_path / "deep.png", "deep")
    with pytest.raises(BadImage, match="a JPEG file, but masks are PNG"):
        read_mask(write(tmp_path / "m.png", values, format="JPEG"), "m")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(BadImage, match=r"^text: "):
        read_mask(tmp_path / "text.png", "text")


# folders


def folder_data(folder, num=18, side=20, values=(0, 1, 2), **options):
    for number in range(num):
        write(folder / "images" / "a" / f"{number:02}.jpg", GENERATOR.integers(0, 256, (side, side + 5, 3)))
        write(folder / "masks" / "a" / f"{number:02}.png", GENERATOR.choice(values, (side, side + 5)))
    data = ImageData(
        path=str(folder / "images"), image_size=16, val_fraction=0.3, test_fraction=0.3, num_threads=1, **options
    )
    data.setup()
    return data, folder / "masks"


def test_a_folder_is_read_and_what_is_missing_is_told(tmp_path):
    data, folder = folder_data(tmp_path, values=(0, 1, 2, 3, 7, 255))
    absent = data.name("train", int(data.indices("train")[0]))
    (folder / absent).with_suffix(".png").unlink()
    write(folder / "b" / "other.png", np.zeros((3, 3)))
    present = data.name("train", int(data.indices("train")[1]))
    write((folder / present).with_suffix(".tif"), np.zeros((3, 3)))
    masks = open_masks(str(folder), data, 16)
    members = masks.members("train")
    assert np.array_equal(members, data.indices("train")[1:])
    assert masks.class_names == [f"class {number}" for number in range(8)]
    said = "\n".join(masks.remarks)
    assert "17 of 18 images have one (7 train, 5 val, 5 test)" in said
    assert "1 image without one left out" in said
    assert "2 files in" in said
    assert "the values 0 to 3, 7, and 255 for pixels that do not count" in said
    sizes, places = np.array([[16, 20]]), np.arange(16)[None]
    read = masks.read("train", members[:1], sizes, places, places + 2)
    whole = read_mask((folder / data.name("train", int(members[0]))).with_suffix(".png"), "m")
    nearest = ((np.arange(16) + 0.5) * 20 / 16).astype(int)
    assert np.array_equal(read[0], whole[nearest][:, ((np.arange(2, 18) + 0.5) * 25 / 20).astype(int)])
    assert open_masks(str(folder), data, 16, 9).class_names[-1] == "class 8"


def test_masks_that_do_not_fit_are_refused_by_name(tmp_path):
    data, folder = folder_data(tmp_path)
    name = data.name("val", int(data.indices("val")[0]))
    mask = (folder / name).with_suffix(".png")
    good = mask.read_bytes()

    def refused(match, where=folder, num_classes=None):
        with pytest.raises(ValueError, match=match) as caught:
            FolderMasks(where, data, 16, num_classes)
        assert "\n" not in str(caught.value)

    write(mask, np.zeros((25, 20)))
    refused(f"the mask .*{mask.name} has 20 x 25 pixels, its image .*{name} 25 x 20")
    write(mask, np.zeros((20, 25, 3)))
    refused(f"the mask .*{mask.name}: it has the channels RGB")
    mask.write_text("text")
    refused(f"the mask .*{mask.name}: ")
    write(mask, np.full((20, 25), 9))
    refused(f"the mask .*{mask.name} has the value 9, but --mask_classes 3 makes the classes 0 to 2", num_classes=3)
    mask.write_bytes(good)
    refused("the folder '.*mask' does not exist; did you mean '.*masks'", folder.with_name("mask"))
    refused("is read as an image of the train split; give folders that lie apart", tmp_path)
    for index in data.indices("test").tolist():
        (folder / data.name("test", index)).with_suffix(".png").unlink()
    refused(r"none of the \d+ images of the test split has a mask in .*ending in .png")


@pytest.mark.parametrize(
    ("values", "match"),
    [((0, 255), "all pixels .* are of class 0 or 255, which .* 255 should be 1"), ((255,), "means that none counts")],
)
def test_masks_of_one_class_are_refused(tmp_path, values, match):
    data, folder = folder_data(tmp_path, values=values)
    with pytest.raises(ValueError, match=match):
        FolderMasks(folder, data, 16)


def test_two_images_do_not_share_a_mask(tmp_path):
    _, folder = folder_data(tmp_path / "one")
    folder_data(tmp_path / "two")
    data = ImageData(
        path=str(tmp_path / "one" / "images"), test_path=str(tmp_path / "two" / "images"), image_size=16,
        val_fraction=0.3, num_threads=1,
    )  # fmt: skip
    data.setup()
    with pytest.raises(ValueError, match=r"two images, .* and .*, would have the same mask 'a/"):
        FolderMasks(folder, data, 16)


def test_images_without_files_have_no_masks_in_a_folder(tmp_path):
    data = ImageData(source="procedural", max_images=30, image_size=16, test_fraction=0.3, num_threads=1)
    data.setup()
    with pytest.raises(ValueError, match="--masks needs images in a folder, but they are procedural"):
        FolderMasks(tmp_path, data, 16)
    with pytest.raises(ValueError, match="--mask_classes is 1, expected 2 to 255"):
        open_masks(str(tmp_path), data, 16, 1)
