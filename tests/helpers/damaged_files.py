"""Damaged and hostile files for tests, made from a seed, and a child process to meet them in."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]


def in_child(function: Callable[..., Any], *arguments: Any, timeout: float = 240) -> Any:
    """Calls a function of a test module in a separate process, and returns what it returned (plain data).

    Whatever the function does to its process, even its end by a signal, is an error of the test and not of pytest.
    """
    # the server that `gloo_processes.run_processes` uses, too: it has imported what takes long, once
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm", "lightning"])
    with tempfile.TemporaryDirectory() as folder:
        texts = [str(each) if isinstance(each, Path) else each for each in arguments]
        child = context.Process(target=_call, args=(function, texts, folder), daemon=True)
        child.start()
        child.join(timeout)
        alive = child.is_alive()
        if alive:
            child.kill()
            child.join()
        said = Path(folder, "said").read_text(errors="replace")[-3000:] if Path(folder, "said").exists() else ""
        assert not alive, f"still running after {timeout} s: {said}"
        assert child.exitcode == 0, f"ended with {child.exitcode}: {said}"
        return json.loads(Path(folder, "result").read_text())


def _call(function: Callable[..., Any], arguments: list[Any], folder: str) -> None:
    torch.set_num_threads(1)
    # what the decoders' own libraries print of damaged files, they print past Python
    os.dup2(os.open(f"{folder}/said", os.O_WRONLY | os.O_CREAT), 2)
    Path(folder, "result").write_text(json.dumps(function(*arguments)))


def originals() -> Iterator[tuple[str, bytes]]:
    """Sound images in all formats that are read, in most of the ways in which each is written: suffix and content."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:20, :28]
    smooth = np.stack([x * 9, y * 12, (x + y) * 5], axis=-1)
    colour = Image.fromarray((smooth + draw.integers(0, 20, smooth.shape)).clip(0, 255).astype(np.uint8))
    grey, palette, alpha = colour.convert("L"), colour.quantize(16), colour.convert("RGBA")
    alpha.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    for image, options in (
        (colour, {"exif": exif}),
        (colour, {"progressive": True, "subsampling": 0}),
        (grey, {"restart_marker_blocks": 2}),
        (colour.convert("CMYK"), {"optimize": True}),
    ):
        yield ".jpg", _encoded(image, "JPEG", options)
    for image, options in (
        (colour, {"exif": exif}),
        (alpha, {}),
        (palette, {"transparency": 3}),
        (deep, {}),
        (grey.convert("1"), {}),
        (grey.convert("LA"), {"compress_level": 0}),
    ):
        yield ".png", _encoded(image, "PNG", options)
    for image, options in (
        (colour, {"quality": 60}),
        (alpha, {"lossless": True, "exif": exif}),
        (colour, {"save_all": True, "append_images": [colour.rotate(9)]}),
    ):
        yield ".webp", _encoded(image, "WEBP", options)
    for image in (colour, palette, grey.convert("1"), alpha):
        yield ".bmp", _encoded(image, "BMP", {})
    for image, options in (
        (colour, {}),
        (colour, {"compression": "tiff_lzw"}),
        (colour, {"compression": "jpeg"}),
        (alpha, {"compression": "tiff_adobe_deflate", "exif": exif}),
        (deep, {}),
        (grey.convert("1"), {"compression": "group4"}),
        (grey.convert("F"), {}),
        (colour.convert("LAB"), {}),
    ):
        yield ".tif", _encoded(image, "TIFF", options)
    for image, options in (
        (palette, {"transparency": 2}),
        (grey, {"interlace": 1}),
        (palette, {"save_all": True, "append_images": [palette.rotate(90)]}),
    ):
        yield ".gif", _encoded(image, "GIF", options)
    for image, options in ((colour, {"quality": 60, "exif": exif}), (alpha, {}), (grey, {"subsampling": "4:0:0"})):
        yield ".avif", _encoded(image, "AVIF", options)
    for image, options in ((colour, {}), (alpha, {}), (deep, {"no_jp2": True}), (grey, {"tile_size": (16, 16)})):
        yield ".jp2", _encoded(image, "JPEG2000", options)
    for image in (colour, grey, deep, grey.convert("1"), grey.convert("F")):
        yield ".ppm", _encoded(image, "PPM", {})
    yield ".ppm", b"P3\n# plain\n2 2 255\n" + b" 1 2 3" * 4


def _encoded(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def mutate(content: bytes, other: bytes, draw: random.Random) -> bytes:
    """The content with one to three of: flipped bits, an end too early, a piece of the other, zeros, a wrong number."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if not changed:
            break
        start = draw.randrange(len(changed))
        # half of the places near the beginning, where the headers are
        start = start if draw.random() < 0.5 else start % 64
        length = draw.choice((1, 2, 4, 8, 16, 64, 200))
        how = draw.randrange(7)
        if how == 0:
            for _ in range(draw.randint(1, 8)):
                changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        elif how == 1:
            del changed[draw.randrange(len(changed)) :]
        elif how == 2:
            cut = draw.randrange(max(1, len(other)))
            changed[start : start + length] = other[cut : cut + length]
        elif how == 3:
            changed[start : start + length] = bytes(len(changed[start : start + length]))
        elif how == 4:
            extreme = draw.choice((b"\xff", b"\xff\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x80"))
            changed[start : start + len(extreme)] = extreme
        elif how == 5:
            del changed[start : start + length]
        else:
            changed[start:start] = changed[start : start + length]
    return bytes(changed)


def mutations(contents: list[bytes], number: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """So many mutated contents, each with the place in the list of what it was made from; equal for equal seeds."""
    draw = random.Random(seed)
    for index in range(number):
        place = index % len(contents)
        changed = contents[place]
        while changed == contents[place]:
            changed = mutate(contents[place], draw.choice(contents), draw)
        yield place, changed
