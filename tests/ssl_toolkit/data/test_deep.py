"""Images of more than 8 bits: every level where it belongs, and true words about what is not read."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest

from ssl_toolkit.data.decode import BadImage, decode_file, look_at
from ssl_toolkit.data.deep import FULL
from tiff_files import tiff

RAMP = np.tile(np.linspace(0, 1, 256), (64, 1))
COLOURS = np.stack([RAMP, 1 - RAMP, np.roll(RAMP, 64, 1)])
BYTES = np.arange(256)


def png(numbers: np.ndarray, *chunks: tuple[bytes, bytes], bits: int = 16) -> io.BytesIO:
    """A PNG of ``[height, width]`` or ``[height, width, 3]`` numbers, by the specification."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = numbers.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, bits, 2 if numbers.ndim == 3 else 0, 0, 0, 0)
    if bits == 16:
        rows = [b"\0" + row.astype(">u2").tobytes() for row in numbers]
    else:
        # so many bits of each number, the first one in the highest
        shifts = np.arange(bits - 1, -1, -1)
        rows = [b"\0" + np.packbits(row[:, None] >> shifts & 1).tobytes() for row in numbers]
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def grey(numbers: np.ndarray, **options) -> io.BytesIO:
    return tiff(numbers[None], **options)


def levels(file: io.BytesIO) -> np.ndarray:
    """The first row, which must be that of all others."""
    array = decode_file(file, "image", channels=1)[..., 0]
    assert (array == array[0]).all()
    return array[0].astype(int)


@pytest.mark.guarantee("D5")
@pytest.mark.parametrize("white", [1023, 3000, 4095, 16383, 65535])
def test_as_many_bits_as_are_used_are_the_range(white):
    numbers = (RAMP * white).astype("u2")
    for file in (png(numbers), grey(numbers), grey(numbers, order=">"), grey(numbers, deflate=True)):
        assert np.abs(levels(file) - BYTES).max() <= 1


@pytest.mark.parametrize("white", [3000, 65535])
def test_three_channels_of_sixteen_bits_keep_their_low_bytes(white):
    numbers = (COLOURS * white).astype("u2")
    last = np.moveaxis(numbers, 0, -1)
    files = [png(last), tiff(numbers), tiff(numbers, order=">"), tiff(numbers, deflate=True)]
    files += [tiff(numbers, planar=True), tiff(numbers, planar=True, order=">"), tiff(numbers, big=True)]
    for file in files:
        found = decode_file(file, "image").astype(int)
        assert np.abs(found - np.moveaxis(COLOURS, 0, -1) * 255).max() <= 1
    # an opacity of 16 bits, which is laid on white
    opacity = np.full((1, 64, 256), 65535, dtype="u2")
    opacity[:, :32] = 0
    found = decode_file(tiff(np.concatenate([numbers, opacity]), extra=1, tags={338: ("H", [2])}), "image")
    assert (found[:32] == 255).all()
    assert np.abs(found[32:].astype(int) - np.moveaxis(COLOURS, 0, -1)[32:] * 255).max() <= 1


def test_bands_one_after_the_other_that_pillow_cannot_unpack_are_refused():
    numbers = (COLOURS * 65535).astype("u2")
    opaque = np.concatenate([numbers, numbers[:1]])
    for file in (tiff(numbers, planar=True, deflate=True), tiff(opaque, extra=1, tags={338: ("H", [2])}, planar=True)):
        with pytest.raises(BadImage, match="16-bit bands one after the other, compressed or of 4, are not read; save"):
            decode_file(file, "image")
    # of one band it means nothing
    assert np.abs(levels(tiff(numbers[:1], planar=True, deflate=True)) - BYTES).max() <= 1


@pytest.mark.parametrize("deflate", [False, True])
def test_the_least_number_may_be_white(deflate):
    for numbers in ((RAMP * 255).astype("u1"), (RAMP * 65535).astype("u2"), RAMP.astype("f4")):
        found = levels(grey(numbers, white_is_zero=True, deflate=deflate))
        assert np.abs(found - BYTES[::-1]).max() <= 1


def test_signs_and_the_largest_numbers_do_not_wrap():
    assert levels(grey((np.tile(BYTES, (4, 1)) - 128).astype("i1"))).tolist() == BYTES.tolist()
    assert np.abs(levels(grey((RAMP * 4e9).astype("u4"))) - BYTES).max() <= 1
    assert np.abs(levels(grey((RAMP * 2000 - 1000).astype("i2"))) - BYTES).max() <= 1


@pytest.mark.guarantee("D5")
@pytest.mark.parametrize("value", [-9999.0, np.nan, np.inf, 256.0, -3.4e38, 1e9])
def test_one_pixel_does_not_decide(value):
    for numbers in ((RAMP * 250).astype("f4"), RAMP.astype("f4")):
        changed = numbers.copy()
        changed[0, 0] = value
        expected, found = (decode_file(grey(each), "image").astype(int) for each in (numbers, changed))
        assert (found.reshape(-1, 3)[1:] == expected.reshape(-1, 3)[1:]).all()
        assert found[0, 0, 0] == (255 if value in (256.0, 1e9) else 0)
    counts = (RAMP * 4000).astype("i4")
    changed = counts.copy()
    changed[0, 0] = -1
    assert (decode_file(grey(changed), "image") == decode_file(grey(counts), "image")).all()
    assert levels(grey(np.where(RAMP == 1, 1.0001, RAMP).astype("f4"))).tolist() == BYTES.tolist()


def test_no_data_may_cover_any_part():
    numbers = (RAMP * 250).astype("f4")
    expected = levels(grey(numbers))
    largest = np.finfo(np.float32).max
    for value, tags in ((-9999, {}), (77777, {42113: ("s", [b"77777 \0"])}), (largest, {}), (-largest, {})):
        part = numbers.copy()
        part[:32] = value
        found = decode_file(grey(part, tags=tags), "image", channels=1)[..., 0]
        assert (found[:32] == 0).all()
        assert (found[32:] == expected).all()


def test_all_numbers_of_a_kind_are_those_of_its_type():
    for kind, (low, high) in FULL.items():
        if kind != "float32":
            assert (low, high) == (np.iinfo(kind).min, np.iinfo(kind).max)


def test_what_the_file_says_comes_before_what_it_holds():
    dark = (RAMP * 1000).astype("u2")
    assert levels(grey(dark, tags={281: ("H", [4000])}))[-1] == round(255 / 4)
    assert (
        levels(grey(dark + 1000, tags={280: ("H", [1000]), 281: ("H", [2000])})).tolist() == levels(grey(dark)).tolist()
    )
    assert levels(grey(RAMP.astype("f4"), tags={340: ("f", [0.0]), 341: ("f", [2.0])}))[-1] == 128
    assert levels(grey(dark, tags={281: ("H", [65535])}))[-1] == 255  # all that there are: that says nothing
    # a PNG of 12 bits holds them as 16; some programs do not
    assert levels(png(dark, (b"sBIT", b"\x0c")))[-1] == round(1000 * 255 / 4095)
    assert levels(png(dark * 20, (b"sBIT", b"\x0c")))[-1] == round(20000 / 257)
    twelve = np.packbits((np.array([0, 1365, 2730, 4000])[:, None] >> np.arange(11, -1, -1)) & 1)
    file = tiff(np.frombuffer(twelve.tobytes(), "u1").reshape(1, 1, 6), bits=12, tags={256: ("I", [4])})
    assert levels(file).tolist() == [0, 85, 170, round(4000 * 255 / 4095)]


def test_transparent_levels():
    numbers = np.array([[0, 300, 60000, 65535]])
    key = (b"tRNS", struct.pack(">H", 300))
    assert decode_file(png(numbers, key), "image")[0, :, 0].tolist() == [0, 255, round(60000 / 257), 255]
    colours = np.array([[[1000, 2000, 3000], [1000, 2000, 3001], [65535, 0, 0]]])
    found = decode_file(png(colours, (b"tRNS", struct.pack(">HHH", 1000, 2000, 3000))), "image")
    assert found[0].tolist() == [[255, 255, 255], [4, 8, 12], [255, 0, 0]]
    for bits in (1, 2, 4):
        numbers = np.arange(2**bits)[None].repeat(8 // bits, 1)
        found = decode_file(png(numbers, (b"tRNS", struct.pack(">H", 1)), bits=bits), "image", channels=1)[0, :, 0]
        expected = np.where(numbers[0] == 1, 255, numbers[0] * 255 // (2**bits - 1))
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (
            tiff(np.zeros((4, 8, 8), "u1")),
            "a TIFF of 4 bands of 8 bits (unsigned integers), which is not read; save it",
        ),
        (tiff(np.zeros((13, 8, 8), "u2")), "a TIFF of 13 bands of 16 bits (unsigned"),
        (tiff(np.zeros((13, 8, 8), "u2"), big=True), "a TIFF of 13 bands of 16 bits (unsigned"),
        (tiff(np.zeros((3, 8, 8), "f4")), "a TIFF of 3 bands of 32 bits (floating point)"),
        (tiff(np.zeros((1, 8, 8), "f8")), "a TIFF of 1 band of 64 bits (floating point)"),
        (tiff(np.zeros((1, 8, 8), "u1"), bits=10), "a TIFF of 1 band of 10 bits (unsigned"),
        (io.BytesIO(b"II*\0" + bytes(8)), "a TIFF without"),
        (io.BytesIO(b""), "empty file"),
        (io.BytesIO(b"<html>404"), "not an image in one of the formats JPEG"),
    ],
)
def test_true_words_about_what_is_not_read(file, words):
    with pytest.raises(BadImage) as error:
        decode_file(file, "image")
    assert error.value.reason.startswith(words)
    assert len(error.value.reason) <= 140


def test_libtiff_prints_nothing_of_its_own(capfd):
    noise = np.random.default_rng(0).integers(0, 65536, (1, 99, 99)).astype("u2")
    content = tiff(noise, deflate=True).getvalue()
    with pytest.raises(BadImage):
        decode_file(io.BytesIO(content[:1000] + bytes(500) + content[1500:]), "image")
    os.write(2, b"only this")
    assert capfd.readouterr().err == "only this"


def test_large_images_by_a_table_are_as_small_ones_by_arithmetic():
    numbers = np.random.default_rng(0).integers(0, 65536, (400, 300)).astype("u2")
    options = {"tags": {42113: ("s", [b"7\0"])}, "white_is_zero": True}
    numbers[::2, ::2] = 7
    whole = decode_file(grey(numbers, **options), "image", ranges={"uint16": (100, 50000)})
    for part in (slice(0, 200), slice(200, 400)):
        found = decode_file(grey(numbers[part], **options), "image", ranges={"uint16": (100, 50000)})
        assert (found == whole[part]).all()


def test_what_is_measured():
    assert look_at(png(np.zeros((4, 4), "u1"), bits=2), "image") == (None, 0)
    found = look_at(grey((RAMP * 4095).astype("u2")), "image").extremes
    assert found is not None
    assert (found.kind, found.header, found.low, found.high) == ("uint16", None, 0, 4095)
    nothing = look_at(grey(np.full((4, 4), np.nan, "f4")), "image").extremes
    assert nothing is not None
    assert nothing.low > nothing.high
    # one range for all: the narrower files do not fill it
    dark = decode_file(grey((RAMP * 1000).astype("u2")), "image", ranges={"uint16": (0, 4000)})
    assert dark.max() == round(1000 * 255 / 4000)
    assert decode_file(grey((RAMP * 1000).astype("u2")), "image", ranges={}).max() == round(1000 / 257)
