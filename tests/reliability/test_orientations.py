"""Every mode of Pillow in every orientation: upright, and with the values that are in the file."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ssl_toolkit.data import decode_file

HEIGHT, WIDTH = 3, 4

# where the pixel in row r and column c of the upright picture lies in the file, by the EXIF orientation (CIPA DC-008,
# section 4.6.4.A: what the 0th row and the 0th column of the file are); h and w are the size in the file
PLACES = {
    1: lambda r, c, h, w: (r, c),
    2: lambda r, c, h, w: (r, w - 1 - c),
    3: lambda r, c, h, w: (h - 1 - r, w - 1 - c),
    4: lambda r, c, h, w: (h - 1 - r, c),
    5: lambda r, c, h, w: (c, r),
    6: lambda r, c, h, w: (h - 1 - c, r),
    7: lambda r, c, h, w: (h - 1 - c, w - 1 - r),
    8: lambda r, c, h, w: (c, w - 1 - r),
}


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    h, w = values.shape[:2]
    shape = (w, h) if orientation >= 5 else (h, w)
    place = PLACES[orientation]
    return np.array([[values[place(r, c, h, w)] for c in range(shape[1])] for r in range(shape[0])])


def ramp(channels: int, low: int = 0, high: int = 255) -> np.ndarray:
    """Different values at every place."""
    count = HEIGHT * WIDTH * channels
    return np.linspace(low, high, count).round().astype(int).reshape(HEIGHT, WIDTH, channels)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.reshape(HEIGHT, WIDTH, 1), 3, axis=2)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    fraction = alpha / 255
    return colour * fraction + 255 * (1 - fraction)


def srgb_of_lab(lab: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b* (D50, as ICC profiles have it) to sRGB (IEC 61966-2-1), by the formulas."""
    lightness, a, b = lab[..., 0] * 100 / 255, lab[..., 1], lab[..., 2]
    fy = (lightness + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1.0, 0.8249]
    # XYZ under D50 to linear sRGB, Bradford-adapted (Lindbloom)
    linear = xyz @ np.array(
        [[3.1338561, -0.9787684, 0.0719453], [-1.6168667, 1.9161415, -0.2289914], [-0.4906146, 0.0334540, 1.4052427]]
    )
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def cases():
    """Name: an image, what its pixels are as RGB (float), the formats that hold it, and how far off they may be."""
    colour, level = ramp(3), ramp(1)
    indices = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
    entries = ramp(3).reshape(-1, 3)
    palette = Image.fromarray(indices)
    palette.putpalette(entries.astype(np.uint8).tobytes())
    bilevel = indices % 3 == 0
    alpha = ramp(1)[::-1, ::-1].copy()
    inks = ramp(4)[::-1].copy()
    lab = np.stack([np.linspace(20, 230, 12), np.linspace(-40, 40, 12), np.linspace(30, -30, 12)], axis=-1)
    lab = lab.round().reshape(HEIGHT, WIDTH, 3)
    deep = ramp(1, 0, 65535)
    lossless = ("PNG", "TIFF", "WEBP lossless")

    def image(values: np.ndarray, mode: str) -> Image.Image:
        bands = [Image.fromarray(values[..., band].astype(np.uint8)) for band in range(values.shape[2])]
        return Image.merge(mode, bands) if len(bands) > 1 else bands[0]

    yield "1", Image.fromarray(bilevel), grey(255 * bilevel), ("PNG", "TIFF"), 0
    yield "L", image(level, "L"), grey(level), ("PNG", "TIFF"), 0
    yield "L jpeg", image(level, "L"), grey(level), ("JPEG",), 12
    yield "RGB", image(colour, "RGB"), colour, lossless, 0
    yield "LA", image(np.concatenate([level, alpha], -1), "LA"), on_white(grey(level), alpha), ("PNG", "TIFF"), 1
    yield "RGBA", image(np.concatenate([colour, alpha], -1), "RGBA"), on_white(colour, alpha), lossless, 1
    yield "P", palette, entries[indices], ("PNG", "TIFF"), 0
    yield "PA", _with_alpha(palette, alpha), on_white(entries[indices], alpha), ("TIFF",), 1
    see_through = alpha.reshape(-1).astype(np.uint8)
    yield (
        "P and tRNS", palette, on_white(entries[indices], see_through[indices][..., None]),
        (("PNG", {"transparency": see_through.tobytes()}),), 1,
    )  # fmt: skip
    # ink on paper: what is left of the light, times what black leaves
    paper = (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255
    yield "CMYK", image(inks, "CMYK"), paper, ("TIFF",), 1
    # ITU-R BT.601, full range (JFIF 1.02)
    luma, blue, red = ramp(1, 60, 190)[..., 0], ramp(1, 100, 150)[..., 0], ramp(1, 110, 160)[..., 0]
    rgb = np.stack(
        [
            luma + 1.402 * (red - 128),
            luma - 0.344136 * (blue - 128) - 0.714136 * (red - 128),
            luma + 1.772 * (blue - 128),
        ],
        axis=-1,
    )
    yield "YCbCr", image(np.stack([luma, blue, red], axis=-1), "YCbCr"), rgb, ("TIFF",), 2
    yield "I;16", Image.fromarray(deep[..., 0].astype(np.uint16)), grey(deep * (255 / 65535)), ("PNG", "TIFF"), 0.5
    big = Image.frombytes("I;16B", (WIDTH, HEIGHT), deep.astype(">u2").tobytes())
    yield "I;16B", big, grey(deep * (255 / 65535)), ("TIFF",), 0.5
    yield "I", Image.fromarray(deep[..., 0].astype(np.int32)), grey(deep * (255 / 65535)), ("TIFF",), 0.5
    wide = ramp(1, -70_000, 70_000)
    yield (
        "I wide",
        Image.fromarray(wide[..., 0].astype(np.int32)),
        grey((wide + 70_000) * (255 / 140_000)),
        ("TIFF",),
        0.5,
    )
    unit = ramp(1)[..., 0] / 255
    yield "F", Image.fromarray(unit.astype(np.float32)), grey(unit * 255), ("TIFF",), 0.5
    flat = np.full((HEIGHT, WIDTH), -3.0, np.float32)
    yield "F flat", Image.fromarray(flat), grey(np.zeros_like(flat)), ("TIFF",), 0
    stored = lab + np.array([0, 128, 128])  # as Pillow and littlecms keep it
    yield "LAB", image(stored, "LAB"), srgb_of_lab(lab), ("TIFF",), 4


def _with_alpha(image: Image.Image, alpha: np.ndarray) -> Image.Image:
    image = image.convert("PA")
    image.putalpha(Image.fromarray(alpha[..., 0].astype(np.uint8)))
    return image


@pytest.mark.guarantee("D3")
def test_every_mode_in_every_orientation(reached):
    tried, furthest, modes = 0, {}, set()
    for name, image, values, kinds, off in cases():
        for kind in kinds:
            kind, options = kind if isinstance(kind, tuple) else (kind, {})
            if kind.startswith("WEBP"):
                kind, options = "WEBP", {"lossless": True, "exact": True}
            if kind == "JPEG":
                options = {"quality": 100}
            for orientation in range(1, 9):
                exif = Image.Exif()
                exif[0x0112] = orientation
                file = io.BytesIO()
                image.save(file, kind, exif=exif, **options)
                file.seek(0)
                with Image.open(file) as opened:
                    modes.add(opened.mode)
                file.seek(0)
                found = decode_file(file, name).astype(float)
                expected = upright(values, orientation)
                assert found.shape == expected.shape, (name, kind, orientation)
                furthest[name] = max(furthest.get(name, 0.0), float(np.abs(found - expected).max()))
                assert furthest[name] <= off, (name, kind, orientation)
                # grey is the luma of the same colours (ITU-R BT.601)
                file.seek(0)
                luma = decode_file(file, name, channels=1)[..., 0].astype(float)
                assert np.abs(luma - found @ [0.299, 0.587, 0.114]).max() <= 1, (name, kind, orientation)
                tried += 1
    assert {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "LAB"} <= modes
    exact = sum(value == 0 for value in furthest.values())
    reached(
        f"{tried} files in {len(modes)} modes ({' '.join(sorted(modes))}) and 8 orientations upright; {exact} of "
        f"{len(furthest)} kinds exact, the others within "
        f"{max(value for name, value in furthest.items() if name not in ('LAB', 'L jpeg')):.1f} of 255 of the formulas "
        f"(LAB {furthest['LAB']:.1f}, lossy JPEG {furthest['L jpeg']:.0f})"
    )


def test_large_images_are_converted_in_strips_to_the_same(monkeypatch):
    from ssl_toolkit.data import pixels

    draw = np.random.default_rng(0)
    rgba = Image.fromarray(draw.integers(0, 256, (37, 23, 4), dtype=np.uint8))
    palette = Image.fromarray(draw.integers(0, 256, (37, 23, 3), dtype=np.uint8)).quantize(16)
    palette.info["transparency"] = bytes(range(0, 256, 16))
    deep = Image.fromarray(draw.integers(0, 65536, (37, 23), dtype=np.uint16))
    big = Image.frombytes("I;16B", (23, 37), draw.integers(0, 65536, (37, 23)).astype(">u2").tobytes())
    floats = Image.fromarray(draw.normal(size=(37, 23)).astype(np.float32))
    for image in (rgba, palette, deep, big, floats, rgba.convert("LA")):
        for mode in ("RGB", "L"):
            whole = np.asarray(pixels.eight_bit(image, mode))
            monkeypatch.setattr(pixels, "_STRIP", 5 * 23 + 1)
            in_strips = np.asarray(pixels.eight_bit(image, mode))
            monkeypatch.undo()
            assert np.array_equal(whole, in_strips)
