"""The sizes of coded pictures, against the encoder's own files and headers written bit by bit."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from ssl_toolkit.data.avif import coded_sizes
from ssl_toolkit.data.decode import BadImage, decode_file


def encoded(size: tuple[int, int], mode: str = "RGB", **options) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, file = Image.fromarray(noise).convert(mode), io.BytesIO()
    if options.get("save_all"):
        options["append_images"] = [image.rotate(180)]
    image.save(file, "AVIF", **options)
    return file.getvalue()


def text(*fields: tuple[int, int]) -> bytes:
    """Numbers of so many bits each, one after the other."""
    bits = "".join(f"{value:0{count}b}" for value, count in fields)
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def with_header(header: bytes) -> bytes:
    """A sound file of 16 x 16 pixels with another sequence header, which is at most as long."""
    content = bytearray(encoded((16, 16)))
    place = content.index(b"mdat\x12\x00\x0a") + 8
    assert len(header) <= content[place - 1]
    content[place : place + len(header)] = header
    return bytes(content)


REDUCED = ((0, 3), (1, 1), (1, 1), (31, 5))
SIZE = ((15, 4), (15, 4), (11999, 16), (8999, 16))


@pytest.mark.parametrize("size", [(16, 16), (1, 1), (333, 517)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("options", [{}, {"quality": 100, "subsampling": "4:4:4"}, {"save_all": True}])
def test_the_sizes_in_files_of_the_encoder(size, mode, options):
    content = encoded(size, mode, **options)
    found = list(coded_sizes(io.BytesIO(content)))
    assert found
    assert set(found) == {size}
    assert decode_file(io.BytesIO(content), "image").shape == (size[1], size[0], 3)


def test_a_large_picture_in_a_small_image_is_refused():
    content = with_header(text(*REDUCED, *SIZE))
    assert list(coded_sizes(io.BytesIO(content))) == [(12000, 9000)]
    with pytest.raises(BadImage, match="a picture of 12000 x 9000 pixels for 16 x 16"):
        decode_file(io.BytesIO(content), "image")


@pytest.mark.parametrize(
    "fields",
    [
        [(0, 1), (0, 1), (0, 5), (0, 12), (3, 5)],
        [(0, 1), (1, 1), (1, 5), (0, 12), (9, 5), (1, 1), (1, 1), (5, 4), (7, 12), (3, 5), (0, 1)],
        [(1, 1), (1, 32), (1, 32), (0, 1), (0, 1), (0, 1), (0, 5), (0, 12), (3, 5)],
        # with equal intervals of pictures (1 is 010), and delays of 3 bits
        [(1, 1), (1, 64), (1, 1), (2, 3), (1, 1), (2, 5), (1, 42), (0, 1), (0, 5), (0, 12), (3, 5), (1, 1), (1, 7)],
    ],
)
def test_headers_that_are_not_reduced(fields):
    header = text((0, 3), (0, 1), (0, 1), *fields, *SIZE)
    stream = b"\x12\x00" + b"\x0a" + bytes([len(header)]) + header
    # one item of one extent, right behind the boxes: meta (12), iloc (8), what stands before and in the extent (22)
    items = struct.pack(">IBBHHHHII", 0, 0x44, 0, 1, 1, 0, 1, 12 + 8 + 22, len(stream))
    boxes = struct.pack(">I4sII4s", 12 + 8 + len(items), b"meta", 0, 8 + len(items), b"iloc") + items
    content = boxes + stream
    assert list(coded_sizes(io.BytesIO(content))) == [(12000, 9000)]


def test_damage_ends_the_search():
    sound = encoded((16, 16), "RGBA", save_all=True)
    draw = np.random.default_rng(0)
    for _ in range(300):
        content = bytearray(sound)
        for place in draw.integers(0, len(content), 4):
            content[place] = draw.integers(0, 256)
        assert len(list(coded_sizes(io.BytesIO(bytes(content[: draw.integers(1, len(content))]))))) < 1000
