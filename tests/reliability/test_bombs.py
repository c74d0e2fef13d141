"""Small files that claim to be large: refused from their header, and what is allowed stays within bounds."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from damaged_files import in_child, originals
from peak_memory import forget_peak_memory, peak_memory
from ssl_toolkit.data import BadImage, decode_file
from ssl_toolkit.data.formats import FORMATS
from ssl_toolkit.data.pixel_budget import PixelBudget

ALLOWED = 8192  # the side of the largest square image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def zeros(num_bytes: int) -> bytes:
    """So many zeros, compressed without ever being in memory."""
    packer, block = zlib.compressobj(1), bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(num_bytes >> 20)]
    return b"".join([*parts, packer.compress(bytes(num_bytes & (1 << 20) - 1)), packer.flush()])


def png(width: int, height: int, depth: int, colour: int, data: bytes, *before: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *before, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in chunks)


def tiff(tags: dict[int, tuple[int, int, int]], data: bytes = b"") -> bytes:
    """A TIFF with one directory (tag: type, count, value), and data right behind its eight bytes of header."""
    entries = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def grey_tiff(width: int, height: int, data: bytes, compression: int, **tags: tuple[int, int, int]) -> bytes:
    both = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, compression), 262: (3, 1, 1)}
    both |= {273: (4, 1, 8), 277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, len(data))}
    if "tile" in tags:
        _, width, height = tags["tile"]
        both = {tag: both[tag] for tag in both if tag not in (273, 278, 279)}
        both |= {322: (4, 1, width), 323: (4, 1, height), 324: (4, 1, 8), 325: (4, 1, len(data))}
    return tiff(both, data)


def gif(screen: tuple[int, int], frame: tuple[int, int], frames: int = 1) -> bytes:
    one = b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(3) + b"\xff" * 3 + one * frames + b";"


def webp(kind: bytes, claim: bytes) -> bytes:
    body = b"WEBP" + kind + struct.pack("<I", len(claim) + 32) + claim + bytes(32)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg(width: int, height: int) -> bytes:
    """A sound JPEG of 16 x 16 pixels whose header says otherwise."""
    file = io.BytesIO()
    Image.new("L", (16, 16)).save(file, "JPEG")
    content = bytearray(file.getvalue())
    start = content.index(b"\xff\xc0")
    content[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def resized(kind: str, start: bytes, skip: int, *numbers: int, **options: bool) -> bytes:
    """A sound image of 16 x 16 pixels in which other numbers stand so many bytes behind a mark."""
    file = io.BytesIO()
    Image.new("L", (16, 16)).save(file, kind, **options)
    content = bytearray(file.getvalue())
    place = content.index(start) + len(start) + skip
    content[place : place + 4 * len(numbers)] = struct.pack(f">{len(numbers)}I", *numbers)
    return bytes(content)


def exif_tags(num_tags: int, size: int) -> bytes:
    """A directory every entry of which claims the same bytes."""
    entries = b"".join(struct.pack("<HHII", 700 + tag, 7, size, 8) for tag in range(num_tags))
    data = bytes(size)
    return b"II*\0" + struct.pack("<I", 8 + size) + data + struct.pack("<H", num_tags) + entries + bytes(4)


def jpeg_with_exif(exif: bytes) -> bytes:
    file = io.BytesIO()
    Image.new("L", (16, 16)).save(file, "JPEG")
    parts = [b"Exif\0\0" + exif[start : start + 65000] for start in range(0, len(exif), 65000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
    return file.getvalue()[:2] + segments + file.getvalue()[2:]


def too_large() -> Iterator[tuple[str, bytes]]:
    """Claims of more than 64 million pixels, most of them below the 179 million at which Pillow itself refuses."""
    yield "grey.png", png(12000, 12000, 8, 0, zeros(12000 * 12001))
    yield "16-bit.png", png(9000, 9000, 16, 0, zeros(9000 * 18001))
    yield "rgba-16-bit.png", png(65535, 65535, 16, 6, zeros(1 << 20))
    yield "grey.tif", grey_tiff(12000, 12000, zeros(12000 * 12000), 8)
    yield "plain.tif", grey_tiff(65535, 65535, bytes(64), 1)
    yield "screen.gif", gif((65535, 65535), (1, 1))
    yield "frame.gif", gif((1, 1), (12000, 12000))
    yield "canvas.webp", webp(b"VP8X", bytes(4) + (12999).to_bytes(3, "little") * 2)
    yield "lossless.webp", webp(b"VP8L", b"\x2f" + (12999 | 12999 << 14).to_bytes(4, "little"))
    yield "lossy.webp", webp(b"VP8 ", b"\x10\x02\x00\x9d\x01\x2a" + struct.pack("<HH", 12000, 12000))
    yield (
        "24-bit.bmp",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 58, 0, 0, 54, 40, 12000, -12000, 1, 24, *[0] * 6) + bytes(4),
    )
    yield (
        "rle.bmp",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 58, 0, 0, 58, 40, 9000, 9000, 1, 8, 1, *[0] * 3, 1, 0) + bytes(8),
    )
    yield "picture.avif", resized("AVIF", b"ispe", 4, 12000, 12000)
    yield "box.jp2", resized("JPEG2000", b"ihdr", 0, 12000, 12000)
    yield "bare.jp2", resized("JPEG2000", b"\xff\x51", 4, 12000, 12000, no_jp2=True)
    yield "grey.ppm", b"P5 12000 12000 255\n" + bytes(64)
    yield "16-bit.ppm", b"P6 9000 9000 65535\n" + bytes(64)
    yield "text.ppm", b"P3 9000 9000 255\n" + b"1 " * 64
    yield "float.ppm", b"Pf 9000 9000 -1.0\n" + bytes(64)
    yield "baseline.jpg", jpeg(12000, 12000)
    yield "largest.jpg", jpeg(65500, 65500)


def in_metadata() -> Iterator[tuple[str, bytes]]:
    """Few pixels, and much around them."""
    small = zlib.compress(bytes(17 * 16))
    text = zeros(400 << 20)
    yield "zTXt.png", png(16, 16, 8, 0, small, (b"zTXt", b"Comment\0\0" + text))
    yield "iTXt.png", png(16, 16, 8, 0, small, (b"iTXt", b"Comment\0\1\0\0\0" + text))
    yield "iCCP.png", png(16, 16, 8, 0, small, (b"iCCP", b"profile\0\0" + text))
    yield (
        "many-texts.png",
        png(16, 16, 8, 0, small, *[(b"zTXt", b"Comment %d\0\0" % n + zeros(1000 << 10)) for n in range(400)]),
    )
    yield "eXIf.png", png(16, 16, 8, 0, small, (b"eXIf", exif_tags(5000, 1 << 20)))
    yield "exif.jpg", jpeg_with_exif(exif_tags(5000, 1 << 20))
    tags = dict.fromkeys(range(700, 5700), (7, 1 << 20, 8))
    plain = {256: (4, 1, 16), 257: (4, 1, 16), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 8)}
    yield "tags.tif", tiff(tags | plain | {277: (3, 1, 1), 278: (4, 1, 16), 279: (4, 1, 256)}, bytes(1 << 20))
    yield "tile.tif", grey_tiff(16, 16, zeros(1 << 29), 8, tile=(0, 32768, 16384))
    yield "frames.gif", gif((1, 1), (1, 1), 100_000)
    # a reduced sequence header of AV1 with 16 bits for each side
    yield "picture.avif", resized("AVIF", b"mdat\x12\x00\x0a", 1, 0x1FFFCBB7, 0xCBB7C000)
    yield "tile.jp2", resized("JPEG2000", b"\xff\x51", 20, 32768, 32768, no_jp2=True)
    yield "tiles.jp2", resized("JPEG2000", b"\xff\x51", 4, 8000, 8000, 0, 0, 1, 1, no_jp2=True)
    yield "comment.ppm", b"P5 16 16\n#" + bytes(range(32, 127)) * 100_000 + b"\n255\n" + bytes(256)


def measured(action: Callable[[], object]) -> tuple[int, str]:
    """By how many kilobytes the most memory ever held grows in a process that does it, and how it ended."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        before = forget_peak_memory()
        try:
            outcome = str(action())
        except BadImage as error:
            outcome = f"bad: {error.reason}"
        except BaseException as error:
            outcome = f"died: {error!r}"
        grown = peak_memory() - before
        os.write(sender, f"{grown} {outcome}".encode())
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver) as pipe:
        grown, _, outcome = pipe.read().partition(" ")
    status = os.waitpid(child, 0)[1]
    return (int(grown), outcome) if status == 0 else (0, f"died: {status}")


def decode_all(folder: str, image_size: int) -> dict[str, list]:
    return {
        file.name: measured(lambda file=file: decode_file(file, file.name, image_size).shape)
        for file in sorted(Path(folder).iterdir())
    }


@pytest.mark.guarantee("D2")
@pytest.mark.slow
def test_bombs_are_refused_before_they_take_memory(tmp_path, reached):
    for folder, bombs in (("large", too_large()), ("meta", in_metadata())):
        (tmp_path / folder).mkdir()
        for name, content in bombs:
            (tmp_path / folder / name).write_bytes(content)
    large = in_child(decode_all, tmp_path / "large", 32)
    assert {Path(name).suffix for name in large} == {suffix for suffix, _ in originals()}
    for name, (_, outcome) in large.items():
        assert outcome.startswith("bad: "), (name, outcome)
        assert "pixels" in outcome or "decompression bomb" in outcome, (name, outcome)
    meta = in_child(decode_all, tmp_path / "meta", 32)
    for name, (_, outcome) in meta.items():
        assert outcome.startswith(("bad: ", "(")), (name, outcome)
    most = max(grown for grown, _ in (*large.values(), *meta.values()))
    assert most < 300_000, (large, meta)
    kilobytes = sum(file.stat().st_size for file in tmp_path.glob("*/*")) / 1000
    reached(
        f"{len(large)} files that claim more than 64 million pixels and {len(meta)} with bombs in metadata, tiles and "
        f"frames ({kilobytes:,.0f} kB in all): at most {most / 1000:.0f} MB more memory for any of them"
    )


def write_allowed(folder: Path) -> None:
    rows = {"grey.png": (8, 0, 1), "rgb.png": (8, 2, 3), "rgba.png": (8, 6, 4), "16-bit.png": (16, 0, 2)}
    for name, (depth, colour, num_bytes) in rows.items():
        data = zeros(ALLOWED * (num_bytes * ALLOWED + 1))
        (folder / name).write_bytes(png(ALLOWED, ALLOWED, depth, colour, data))


def decode_in_threads(file: str, num: int) -> tuple[int, str]:
    def decode() -> int:
        threads = [threading.Thread(target=decode_file, args=(file, "image", 32)) for _ in range(num)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return num

    return measured(decode)


@pytest.mark.slow
@pytest.mark.guarantee("D2")
def test_the_largest_allowed_image_and_eight_of_them_at_once(tmp_path, reached):
    write_allowed(tmp_path)
    alone = in_child(decode_all, tmp_path, 32)
    assert all(outcome == "(32, 32, 3)" for _, outcome in alone.values()), alone
    assert max(grown for grown, _ in alone.values()) < 700_000, alone
    together, _ = in_child(decode_in_threads, tmp_path / "rgba.png", 8)
    # two of eight are in work at any time
    assert together < 3 * alone["rgba.png"][0], (together, alone)
    reached(
        "an image of 64 million pixels, the most that is allowed, takes "
        + ", ".join(f"{grown / 1000:.0f} MB ({name})" for name, (grown, _) in sorted(alone.items()))
        + f"; eight threads with rgba.png at once {together / 1000:.0f} MB"
    )


def test_the_budget_of_pixels_is_never_exceeded():
    budget = PixelBudget(most=100, small=5)
    held, most, lock = 0, 0, threading.Lock()

    def work(amount: int) -> None:
        nonlocal held, most
        with budget.held(amount):
            with lock:
                held += amount
                most = max(most, held)
            time.sleep(0.001)
            with lock:
                held -= amount

    threads = [threading.Thread(target=work, args=(amount,)) for amount in (60, 30, 50, 90, 10, 70, 40) * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert 60 <= most <= 100
    with budget.held(90), budget.held(5):  # small ones need not ask
        pass
    with budget.held(1000):  # one always may
        pass


@pytest.mark.guarantee("D2")
def test_the_content_decides_and_not_the_name(tmp_path, reached):
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    allowed, others = 0, 0
    for kind in FORMATS:
        for suffix in (".jpg", ".png", ".gif"):
            image.save(tmp_path / f"image{suffix}", kind)
            assert decode_file(tmp_path / f"image{suffix}", "image").shape == (4, 4, 3)
            allowed += 1
    for kind in ("TGA", "PCX", "ICO", "EPS", "PDF", "SGI", "DDS", "QOI", "ICNS", "IM", "MSP", "XBM"):
        file = tmp_path / "image.jpg"
        try:
            (image.convert("1") if kind in ("MSP", "XBM") else image).save(file, kind)
        except (OSError, KeyError):  # not in this build of Pillow
            continue
        with pytest.raises(BadImage, match="not an image in one of the formats"):
            decode_file(file, "image")
        others += 1
    assert others >= 10
    reached(f"{allowed} of {allowed} pairs of an allowed format and a name read; {others} other formats refused")
