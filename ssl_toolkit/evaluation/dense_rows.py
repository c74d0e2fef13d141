"""Results of the dense probe: as plain data, as a table and as lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ssl_toolkit.evaluation.intervals import Interval

if TYPE_CHECKING:
    from rich.table import Table

_WORST = 5


@dataclass(frozen=True)
class DenseRow:
    """The dense probe of the map of one stage with one set of weights. Figures are fractions in ``[0, 1]``.

    Attributes:
        weights: ``given`` or ``random``.
        stage: Name of the stage.
        map_side: Side of its map, in places.
        num_features: Channels of its map.
        miou: Mean intersection over union over the test images, with its 95 % bootstrap interval over images.
        pixel_accuracy: Share of pixels that are predicted rightly, likewise.
        miou_val: mIoU of the sampled pixels of the validation images, by which penalty and best stage are chosen.
        strength: Of the L2 penalty.
    """

    weights: Literal["given", "random"]
    stage: str
    map_side: int
    num_features: int
    miou: Interval
    pixel_accuracy: Interval
    miou_val: float
    strength: float


@dataclass(frozen=True)
class DenseDifference:
    """The given weights minus random ones at the same stage, on the same test images, with 95 % intervals.

    Attributes:
        stage: Name of the stage.
        miou: Of mIoU.
    """

    stage: str
    miou: Interval


@dataclass(frozen=True)
class DenseClass:
    """One class, with the given weights at their best stage.

    Attributes:
        name: Of the class.
        iou: Its intersection over union on the test images; None if they have no pixel of it.
        share: Of the counted test pixels that are of it.
    """

    name: str
    iou: float | None
    share: float


@dataclass(frozen=True)
class DenseProbe:
    """Segmentation masks predicted by a linear classifier of each place of a frozen map.

    Attributes:
        masks: Where the masks come from.
        image_size: Side in pixels of what the backbone sees, and of the masks.
        num_images: Images with a mask, of each split.
        num_pixels: Pixels that were drawn from training and validation images, and all that count of the test images.
        trivial_class: The largest class of the training images.
        trivial_miou: mIoU of naming it everywhere.
        trivial_accuracy: Pixel accuracy of that.
        rows: One for each stage with the given weights, then with random weights.
        differences: One for each stage; empty without random weights.
        best_difference: Of mIoU at the best stage of the given weights and at that of the random ones, each the best on
            the validation images; None without random weights.
        classes: With the given weights at their best stage.
        confusion: Counts above 0 of the same: true class, predicted class, pixels.
        remarks: What was said of the masks.
        seconds: Wall-clock time.
    """

    masks: str
    image_size: int
    num_images: dict[str, int]
    num_pixels: dict[str, int]
    trivial_class: str
    trivial_miou: float
    trivial_accuracy: float
    rows: list[DenseRow]
    differences: list[DenseDifference]
    best_difference: Interval | None
    classes: list[DenseClass]
    confusion: list[tuple[int, int, int]]
    remarks: list[str]
    seconds: float

    def best_row(self, weights: Literal["given", "random"] = "given") -> DenseRow:
        """The stage that is the best on the validation images; of equals the deepest.

        Raises:
            KeyError: There are no such weights.
        """
        rows = [row for row in self.rows if row.weights == weights]
        if not rows:
            raise KeyError(f"{weights} weights")
        return max(reversed(rows), key=lambda row: row.miou_val)

    def verdict(self) -> str:
        """One sentence on the best stages."""
        row = self.best_row()
        said = f"dense probe: mIoU {_worded(row.miou)} at {row.stage}"
        if self.best_difference is None:
            return f"{said}; random weights were not measured{self._over_trivial()}"
        other, difference = self.best_row("random"), self.best_difference
        shown = difference.low > 0 or difference.high < 0
        doubt = "" if shown else "; no difference that the test images can show"
        return (
            f"{said}, {_points(difference)} over random weights ({_worded(other.miou)} at {other.stage}){doubt}"
            f"{self._over_trivial()}"
        )

    def _over_trivial(self) -> str:
        if self.best_row().miou.low > self.trivial_miou:
            return ""
        return f"; it is not shown to be better than naming {self.trivial_class} everywhere"

    def words(self) -> list[str]:
        """What was found, as lines of text."""
        lines = [self.verdict()]
        known = [each for each in self.classes if each.iou is not None]
        worst = sorted(known, key=lambda each: each.iou or 0.0)[:_WORST]
        shown = ", ".join(f"{each.name} {100 * (each.iou or 0):.1f} %" for each in worst)
        absent = len(self.classes) - len(known)
        without = f"; {absent} of {len(self.classes)} classes have no test pixel and do not count" if absent else ""
        return [*lines, f"  lowest IoU of {len(known)} classes, {self.best_row().stage}: {shown}{without}"]

    def table(self) -> Table:
        """A rich table, 80 columns wide as a rule: each stage with the given and with random weights."""
        from rich import box
        from rich.table import Table

        images = ", ".join(f"{num:,} {split}" for split, num in self.num_images.items())
        table = Table(
            title=f"dense probe, mIoU in % of the test images (95 % interval): {images} images of {self.image_size} "
            f"px, {len(self.classes)} classes",
            caption=self._caption(),
            box=box.SIMPLE,
            padding=(0, 1, 0, 0),
            show_edge=False,
        )
        table.add_column("stage", no_wrap=True)
        for name in ("map", "mIoU", "pixels right", "difference"):
            table.add_column(name, justify="right", no_wrap=True)
        differences = {each.stage: each.miou for each in self.differences}
        for stage in dict.fromkeys(row.stage for row in self.rows):
            pair = [row for row in self.rows if row.stage == stage]
            for row in pair:
                is_given = row.weights == "given"
                side = f"{row.map_side}x{row.map_side}"
                difference = differences.get(stage) if is_given else None
                table.add_row(
                    stage if is_given else "  random",
                    side if is_given else "",
                    _percent(row.miou),
                    f"{100 * row.pixel_accuracy.value:.1f}",
                    "" if difference is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * x for x in difference)),
                    end_section=row is pair[-1],
                )
        trivial = (f"{100 * self.trivial_miou:.1f}", f"{100 * self.trivial_accuracy:.1f}")
        table.add_row(f"all {self.trivial_class}", "", *trivial, "")
        return table

    def _caption(self) -> str:
        pixels = ", ".join(f"{num:,} {split}" for split, num in self.num_pixels.items())
        return (
            f"pixels: {pixels} (equally many drawn of each training and validation image); penalty and stage by the "
            f"mIoU of the validation pixels; intervals by a bootstrap over test images; {self.seconds:,.0f} s"
        )


def _percent(interval: Interval) -> str:
    value, low, high = (100 * each for each in interval)
    return f"{value:.1f} ({low:.1f}-{high:.1f})"


def _worded(interval: Interval) -> str:
    value, low, high = (100 * each for each in interval)
    return f"{value:.1f} % ({low:.1f}-{high:.1f})"


def _points(interval: Interval) -> str:
    value, low, high = (100 * each for each in interval)
    return f"{value:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"
