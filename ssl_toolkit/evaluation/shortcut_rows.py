"""Result of the shortcut meter: plain data, and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ssl_toolkit.evaluation.intervals import Interval

if TYPE_CHECKING:
    from rich.table import Table

What = Literal["position", "aberration"]
Weights = Literal["given", "random"]


@dataclass(frozen=True)
class ShortcutRow:
    """A ridge regression from the features of patches.

    Attributes:
        what: What is told: the ``position`` of a patch, or the shift of red against blue by an ``aberration``.
        weights: ``given`` or ``random``.
        representation: ``pooled`` or the name of a stage.
        r2: Fraction of the variance that is explained on the test images, with its 95 % interval: 1 is exact, 0 as good
            as always naming the mean of the training patches; it may be negative.
        r2_down: Likewise of the row, or of the shift down, alone.
        r2_right: Likewise of the column, or of the shift to the right.
        rmse: Root mean square of the distance between what is told and what is so: in sides of the image for a
            position, in pixels for an aberration.
        chance_rmse: The same of always naming the mean of the training patches.
        r2_val: `r2` on the validation images.
        strength: Of the L2 penalty, the best on the validation images.
    """

    what: What
    weights: Weights
    representation: str
    r2: Interval
    r2_down: float
    r2_right: float
    rmse: float
    chance_rmse: float
    r2_val: float
    strength: float


@dataclass(frozen=True)
class ShortcutDifference:
    """R2 with the given weights minus that with random weights on the same test images, with its 95 % interval.

    Attributes:
        what: ``position`` or ``aberration``.
        representation: ``pooled`` or the name of a stage.
        r2: The difference.
    """

    what: What
    representation: str
    r2: Interval


@dataclass(frozen=True)
class Shortcuts:
    """What the shortcut meter has found.

    Attributes:
        image_size: Side in pixels of the images of which patches were cut.
        patch_size: Side of the patches.
        num_patches: Patches of each split.
        reach: By how many pixels red, and blue the other way, was shifted in the corners of the image, at most.
        rows: One for each representation, by what is told and by weights.
        differences: One for each of what is told; empty without random weights.
        words: What the figures say, sentences.
        seconds: Wall-clock time.
    """

    image_size: int
    patch_size: int
    num_patches: dict[str, int]
    reach: float
    rows: list[ShortcutRow]
    differences: list[ShortcutDifference]
    words: list[str]
    seconds: float

    def table(self) -> Table:
        """A rich table: R2 by stage, with the given and with random weights."""
        from rich import box
        from rich.table import Table

        patches = ", ".join(f"{num:,} {split}" for split, num in self.num_patches.items())
        table = Table(
            title=f"shortcuts: R2 of what patches of {self.patch_size} of {self.image_size} px tell (95 % interval)",
            caption=f"{patches} patches; R2 of the test ones: 0 as good as the mean, 1 exact; RMSE in sides of\n"
            f"the image and in pixels; {self.seconds:,.0f} s",
            box=box.SIMPLE,
            padding=(0, 1, 0, 0),
            show_edge=False,
        )
        table.add_column("features", no_wrap=True)
        for what in dict.fromkeys(row.what for row in self.rows):
            table.add_column(what, justify="right", no_wrap=True)
            table.add_column("RMSE/chance", justify="right", no_wrap=True)
        for name in dict.fromkeys(row.representation for row in self.rows):
            for weights in ("given", "random"):
                chosen = [row for row in self.rows if (row.representation, row.weights) == (name, weights)]
                cells = [
                    cell for row in chosen for cell in (interval_text(row.r2), f"{row.rmse:.3f}/{row.chance_rmse:.3f}")
                ]
                if cells:
                    table.add_row(name if weights == "given" else "  random", *cells)
        return table


def interval_text(interval: Interval) -> str:
    """Of an R2, or of a difference of two: value, low and high."""
    return f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"
