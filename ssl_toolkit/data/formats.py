"""Image formats: which are read, how a file is known to be one of them, and what is said of the files that are none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM")
"""Pillow's names of the formats that are tried; all of them begin with a signature."""
SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2", ".j2k"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    }
)
HEAD_BYTES = 32
"""How much of a file `is_image` looks at."""

_NO_IMAGES = frozenset(
    {
        *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".md", ".html", ".log", ".pdf"),
        *(".py", ".ipynb", ".zip", ".gz", ".tar", ".db", ".mp4", ".avi", ".mov"),
        *(".cls", ".npy", ".npz", ".pt", ".pth", ".ckpt", ".safetensors", ".parquet", ".h5", ".hdf5", ".mat"),
    }
)
"""What is not opened to see whether it is an image."""
_SIGNATURES = re.compile(
    rb"\xff\xd8\xff"
    rb"|\x89PNG\r\n\x1a\n"
    rb"|RIFF....WEBP"
    rb"|BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3}"  # the size of one of the headers that there are
    rb"|II[*+]\0|MM\0[*+]"
    rb"|GIF8[79]a"
    rb"|.{4}ftyp(?:avi[fs]|(?:mif1|msf1).{4}(?:.{4})*?avi[fs])"
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"
    rb"|P[1-6fF]\s+[#\d]",
    re.DOTALL,
)


def is_image(head: bytes) -> bool:
    """Whether a file that begins like this is in one of the formats."""
    return _SIGNATURES.match(head) is not None


def ending(name: str) -> str:
    """What the name of a file ends in, in lower case: ``.png``; empty if there is no ending."""
    base, _, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if base else ""


def named_like_image(name: str, read_head: Callable[[], bytes]) -> bool:
    """Whether a file counts as an image: by its ending, or by its first bytes if the ending does not tell.

    Args:
        name: Of the file.
        read_head: Gives its first `HEAD_BYTES`; called only if they decide.
    """
    suffix = ending(name)
    return suffix in SUFFIXES or (suffix not in _NO_IMAGES and is_image(read_head()))


def not_read(left_out: Counter[str], most: int = 5) -> str:
    """What is to be said of files that are no images, such as ``not read: 125 .heic, ...``; empty if there are none.

    Args:
        left_out: How many there are, by what their names end in.
        most: Of so many endings the number is given.
    """
    if not left_out:
        return ""
    counts = [f"{number:,} {kind}" for kind, number in left_out.most_common(most)]
    rest = left_out.total() - sum(number for _, number in left_out.most_common(most))
    others = f", {rest:,} others" if rest else ""
    return f"not read: {', '.join(counts)}{others} (convert what is an image to PNG or TIFF)"
