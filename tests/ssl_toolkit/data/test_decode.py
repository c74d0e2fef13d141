"""Decoding against Pillow's own functions and values worked out by hand."""

from __future__ import annotations

import copy
import io
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ssl_toolkit.data.decode import BadImage, decode_file, to_array


def encoded(image: Image.Image, suffix: str = "PNG", **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, suffix, **options)
    file.seek(0)
    return file


def decoded(image: Image.Image, suffix: str = "PNG", channels: int = 3, **options) -> np.ndarray:
    return decode_file(encoded(image, suffix, **options), "image", channels=channels)


def photo(width: int = 40, height: int = 30) -> Image.Image:
    """A smooth picture without symmetries."""
    y, x = np.mgrid[:height, :width]
    planes = [x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def test_rgb_and_grey_come_through_unchanged():
    array = np.array(photo())
    assert (decoded(photo()) == array).all()
    grey = photo().convert("L")
    assert (decoded(grey) == np.array(grey)[:, :, None]).all()
    assert decoded(grey).shape == (30, 40, 3)
    assert (decoded(photo(), channels=1)[:, :, 0] == np.array(grey)).all()


def test_bilevel_is_black_and_white():
    image = Image.fromarray(np.array([[True, False, True]]))
    assert image.mode == "1"
    assert decoded(image)[0].tolist() == [[255] * 3, [0] * 3, [255] * 3]


def test_palette():
    image = photo().convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    assert (decoded(image) == np.array(image.convert("RGB"))).all()


@pytest.mark.parametrize("suffix", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_laid_on_white(suffix):
    image = Image.new("RGBA", (3, 1))
    image.putpixel((0, 0), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    image.putpixel((2, 0), (0, 100, 200, 51))  # a fifth of the colour, four fifths of white
    options = {"lossless": True, "exact": True} if suffix == "WEBP" else {}
    assert decoded(image, suffix, **options)[0].tolist() == [[10, 20, 30], [255, 255, 255], [204, 224, 244]]


def test_grey_with_alpha_and_transparent_palette_and_key_colour():
    image = Image.new("LA", (2, 1))
    image.putpixel((0, 0), (7, 255))
    image.putpixel((1, 0), (7, 0))
    assert decoded(image, channels=1)[0].tolist() == [[7], [255]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([1, 2, 3, 4, 5, 6])
    palette.putpixel((1, 0), 1)
    for transparency in (0, b"\x00\xff"):
        assert decoded(palette, transparency=transparency)[0].tolist() == [[255] * 3, [4, 5, 6]]
    key = Image.new("RGB", (2, 1), (9, 9, 9))
    key.putpixel((1, 0), (1, 2, 3))
    assert decoded(key, transparency=(9, 9, 9))[0].tolist() == [[255] * 3, [1, 2, 3]]


def test_palette_with_alpha():
    image = Image.new("PA", (2, 1))
    image.putpalette([1, 2, 3, 4, 5, 6])
    image.putpixel((0, 0), (1, 255))
    image.putpixel((1, 0), (1, 0))
    assert to_array(image)[0].tolist() == [[4, 5, 6], [255] * 3]


def test_cmyk_inks():
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    red, green, blue = decoded(image, "JPEG", quality=100)[8, 8]
    assert red < 5
    assert green > 250
    assert blue > 250
    assert decoded(Image.new("CMYK", (2, 2), (0, 255, 0, 128)), "TIFF")[0, 0].tolist() == [127, 0, 127]


@pytest.mark.parametrize("suffix", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_saturated(suffix):
    values = np.array([[0, 128, 257, 25700, 32768, 65535]], dtype=np.uint16)
    assert decoded(Image.fromarray(values), suffix, channels=1)[0, :, 0].tolist() == [0, 0, 1, 100, 128, 255]


def test_big_endian_and_32_bit_integers():
    values = np.array([[0, 25700, 65535]])
    big = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    assert decoded(big, "TIFF")[0, :, 0].tolist() == [0, 100, 255]
    assert decoded(Image.fromarray(values.astype(np.int32)), "TIFF")[0, :, 0].tolist() == [0, 100, 255]
    wide = np.array([[-1000, 0, 1000, 70000]], dtype=np.int32)
    assert decoded(Image.fromarray(wide), "TIFF")[0, :, 0].tolist() == [0, 4, 7, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 25700.0, 65535.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
    ],
)
def test_floating_point(values, expected):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert decoded(image, "TIFF")[0, :, 0].tolist() == expected


def test_floating_point_must_hold_a_number():
    image = Image.fromarray(np.array([[0.0, np.nan, 1.0]], dtype=np.float32))
    assert decoded(image, "TIFF")[0, :, 0].tolist() == [0, 0, 255]
    with pytest.raises(BadImage, match="no pixel holds a number"):
        decoded(Image.fromarray(np.full((2, 2), np.nan, dtype=np.float32)), "TIFF")


MODES = {
    "JPEG": ["RGB", "L", "CMYK"],
    "PNG": ["RGB", "L", "LA", "RGBA", "P", "I;16"],
    "TIFF": ["RGB", "L", "LA", "RGBA", "P", "CMYK", "I;16"],
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in MODES.items() for mode in modes])
def test_exif_orientation(orientation, suffix, mode):
    if mode == "I;16":
        image = Image.fromarray(np.array(photo().convert("L")).astype(np.uint16) * 257)
    else:
        image = photo().convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if suffix == "JPEG" else {}
    plain = decoded(image, suffix, **options)
    expected = np.array(ImageOps.exif_transpose(_with_orientation(plain, orientation)))
    assert (decoded(image, suffix, exif=exif, **options) == expected).all()
    assert expected.shape == ((30, 40, 3) if orientation < 5 else (40, 30, 3))


def _with_orientation(array: np.ndarray, orientation: int) -> Image.Image:
    image = Image.fromarray(array)
    image.getexif()[0x0112] = orientation
    return image


def test_orientation_by_hand():
    image = Image.fromarray(np.array([[1, 2], [3, 4]], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first row of the file is the right-hand column of the picture
    assert decoded(image, channels=1, exif=exif)[:, :, 0].tolist() == [[3, 1], [4, 2]]


def test_damaged_exif_does_not_spoil_the_pixels():
    image = photo()
    assert (decoded(image, exif=b"Exif\0\0nonsense") == np.array(image)).all()


@pytest.mark.parametrize(
    ("size", "image_size", "expected"),
    [
        ((40, 30), 100, (40, 30)),  # (width, height); never enlarged
        ((40, 30), 15, (20, 15)),
        ((300, 30), 15, (30, 15)),  # the long side is cropped to twice the short one
        ((30, 300), 15, (15, 30)),
        ((100, 10), 20, (40, 10)),  # cropped, but not reduced
        ((1000, 1), 8, (16, 1)),
        ((33, 77), 32, (32, 64)),
    ],
)
def test_bounded_size(size, image_size, expected):
    for suffix in ("PNG", "JPEG"):
        array = decode_file(encoded(photo(*size), suffix), "image", image_size)
        assert array.shape == (expected[1], expected[0], 3)


def test_crop_is_central():
    image = photo(100, 10)
    assert (decode_file(encoded(image), "image", 20) == np.array(image)[:, 30:70]).all()
    # a reduction and a crop together: the same as one after the other, up to the sub-pixel place of the crop
    array = decode_file(encoded(photo(400, 40)), "image", 20).astype(int)
    reference = np.array(photo(400, 40).resize((200, 20), Image.Resampling.BICUBIC))[:, 80:120]
    assert np.abs(array - reference).max() <= 2


def test_reduction_is_antialiased():
    stripes = Image.fromarray(np.tile(np.array([[0, 255]], dtype=np.uint8), (64, 32)))
    array = decode_file(encoded(stripes), "image", 16, channels=1)
    assert np.abs(array[:, 1:-1].astype(int) - 127).max() <= 3


def test_draft_mode_of_jpeg_stays_close_to_the_full_decoding():
    image = photo(1600, 1200)
    array = decode_file(encoded(image, "JPEG", quality=95), "image", 60).astype(int)
    reference = np.array(image.resize((80, 60), Image.Resampling.BICUBIC))
    assert np.abs(array - reference).mean() < 2


@pytest.mark.parametrize(("suffix", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {})])
def test_truncated_files_are_bad(suffix, options):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), suffix, **options).getvalue()
    for fraction in (0.0, 0.05, 0.3, 0.6, 0.9, 0.98):
        for image_size in (None, 8):
            with pytest.raises(BadImage):
                decode_file(io.BytesIO(data[: int(len(data) * fraction)]), "cut", image_size)


def test_truncated_files_name_themselves(tmp_path):
    path = tmp_path / "cut.jpg"
    data = encoded(photo(400, 300), "JPEG", quality=95).getvalue()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadImage, match=r"^a/cut.jpg: .*truncated") as caught:
        decode_file(path, "a/cut.jpg")
    assert caught.value.path == "a/cut.jpg"
    assert "truncated" in caught.value.reason


def test_not_an_image(tmp_path):
    path = tmp_path / "text.jpg"
    path.write_text("no image")
    with pytest.raises(BadImage, match=r"text.jpg: not an image in one of the formats JPEG PNG"):
        decode_file(path, "text.jpg")
    with pytest.raises(BadImage, match="No such file"):
        decode_file(tmp_path / "missing.jpg", "missing.jpg")
    with pytest.raises(BadImage, match="not an image"):
        decode_file(encoded(photo(), "TGA"), "a format that Pillow knows, but we do not allow")


def test_bombs_are_refused_from_the_header():
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (8193, 12_000, 20_000):  # below and above the sizes at which Pillow itself warns and raises
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with pytest.raises(BadImage, match=r"pixels"):
                decode_file(io.BytesIO(data), "bomb")
        assert not caught


def test_mutated_files_are_decoded_or_bad():
    images = [(photo(24, 16), kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")]
    images.append((photo(24, 16).convert("P"), "PNG"))
    draw = random.Random(0)
    reasons = []
    for image, kind in images:
        data = encoded(image, kind).getvalue()
        for _ in range(60):
            mutated = bytearray(data)
            for _ in range(draw.randint(1, 8)):
                mutated[draw.randrange(len(mutated))] = draw.randrange(256)
            try:
                assert decode_file(io.BytesIO(bytes(mutated)), "mutated", 8).shape[2] == 3
            except BadImage as error:
                reasons.append(error.reason)
    assert len(reasons) > 50
    assert all(0 < len(reason) <= 120 and "\n" not in reason for reason in reasons)


def test_animated_gif_gives_its_first_frame(tmp_path: Path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode_file(tmp_path / "a.gif", "a.gif")[0, 0].tolist() == [255, 0, 0]


def test_a_bad_image_can_be_copied():
    error = copy.copy(BadImage("a.jpg", "broken"))
    assert (error.path, error.reason, str(error)) == ("a.jpg", "broken", "a.jpg: broken")
