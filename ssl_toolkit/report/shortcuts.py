"""Shortcut meter's part of a run's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssl_toolkit.io.schema import COUNT, NUMBER, TEXT, Each
from ssl_toolkit.report.page import Piece, Table, Text

_ROW = {"what": TEXT, "weights": TEXT, "representation": TEXT, "r2": Each(NUMBER), "r2_down": NUMBER,
        "r2_right": NUMBER, "rmse": NUMBER, "chance_rmse": NUMBER}  # fmt: skip
SCHEMA = {"rows": [_ROW], "words": [TEXT], "num_patches": Each(COUNT), "image_size": COUNT, "patch_size": COUNT,
          "reach": NUMBER}  # fmt: skip


def shortcut_pieces(found: Mapping[str, Any]) -> list[Piece]:
    """Sentences and a table.

    Args:
        found: ``shortcuts`` of an ``evaluation.json``; it fits `SCHEMA`.
    """
    rows = [
        [
            row["what"],
            row["representation"],
            row["weights"],
            "{value:.2f} ({low:.2f} to {high:.2f})".format(**row["r2"]),
            f"{row['r2_down']:.2f}",
            f"{row['r2_right']:.2f}",
            f"{row['rmse']:.3f}",
            f"{row['chance_rmse']:.3f}",
        ]
        for row in found["rows"]
    ]
    patches = ", ".join(f"{num:,} {split}" for split, num in found["num_patches"].items())
    caption = (
        f"What the features of patches of {found['patch_size']} px of images of {found['image_size']} px tell "
        f"({patches} patches), on the test images: R2 with its 95 % interval (0 is as good as always naming the mean, "
        "1 is exact), that of rows and of columns alone, and the root mean square error beside that of chance, in "
        "sides of the image for a position and in pixels for an aberration, which shifts red and blue by up to "
        f"{found['reach']:g} px each in the corners of the image."
    )
    headers = ["told", "features", "weights", "R2", "rows", "columns", "RMSE", "chance"]
    return [*map(Text, found["words"]), Table(headers, rows, caption)]
