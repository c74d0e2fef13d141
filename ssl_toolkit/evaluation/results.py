"""Results of an evaluation: as JSON, as a table, and as one sentence."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ssl_toolkit.evaluation.classes import Classes
from ssl_toolkit.evaluation.dense_rows import DenseProbe
from ssl_toolkit.evaluation.intervals import Interval
from ssl_toolkit.evaluation.invariance import Invariance
from ssl_toolkit.evaluation.label_curve import LabelCurve
from ssl_toolkit.evaluation.robustness import Robustness
from ssl_toolkit.evaluation.rows import Difference, EnsembleRow, FoldsRow, Row, best_representation
from ssl_toolkit.evaluation.shortcut_rows import Shortcuts
from ssl_toolkit.evaluation.unlabelled_rows import Clustering, Retrieval, unlabelled_words
from ssl_toolkit.io.atomic import write_atomically

if TYPE_CHECKING:
    from rich.table import Table

# parts that are left out of the file where they were not measured
_OPTIONAL = ("shortcuts", "classes", "label_curve", "retrieval", "clustering", "invariance", "robustness", "dense")


@dataclass(frozen=True)
class Evaluation:
    """The result of `ssl_toolkit.evaluation.evaluate`.

    Attributes:
        weights: The weights file, or ``in memory``.
        backbone: The arguments of the backbone.
        image_size: Side of the images that the backbone saw, in pixels.
        num_images: Images of each split.
        num_classes: Number of classes.
        seed: Of the random weights and of the bootstrap.
        rows: One for each representation with the given weights, then with random weights.
        differences: One for each representation; empty without random weights.
        best_difference: Of the linear probes at the best representation of the given weights and at that of the random
            weights, which may be another one; None without random weights.
        seconds: Wall-clock time of all of it.
        ensembles: One for the given and one for the random weights, if they were asked for.
        folds: Likewise.
        majority: Test accuracy of naming the largest class of the training images always.
        shortcuts: What the shortcut meter found, if it was asked for.
        classes: The linear probe of the best representation of the given weights, class by class.
        label_curve: The linear probe by the number of labelled images of a class, if it was asked for.
        retrieval: Retrieval among the test images, if it was asked for.
        clustering: K-means on the test images, if it was asked for.
        invariance: Pooled features of random views of test images, if they were asked for.
        robustness: The linear probe on corrupted test images, if it was asked for.
        dense: Masks predicted from the map of each stage, if they were asked for. Without a label on any image nothing
            else is there: ``rows`` is empty.
    """

    weights: str
    backbone: dict[str, Any]
    image_size: int
    num_images: dict[str, int]
    num_classes: int
    seed: int
    rows: list[Row]
    differences: list[Difference]
    best_difference: Interval | None
    seconds: float
    ensembles: list[EnsembleRow] = field(default_factory=list)
    folds: list[FoldsRow] = field(default_factory=list)
    majority: float | None = None
    shortcuts: Shortcuts | None = None
    classes: Classes | None = None
    label_curve: LabelCurve | None = None
    retrieval: Retrieval | None = None
    clustering: Clustering | None = None
    invariance: Invariance | None = None
    robustness: Robustness | None = None
    dense: DenseProbe | None = None

    def row(self, representation: str = "pooled", weights: Literal["given", "random"] = "given") -> Row:
        """The row of a representation.

        Raises:
            KeyError: If there is none.
        """
        for row in self.rows:
            if (row.representation, row.weights) == (representation, weights):
                return row
        raise KeyError(f"{representation} with {weights} weights")

    def best_representation(self, weights: Literal["given", "random"] = "given") -> str:
        """The representation with the best linear probe on the validation images; often not the last stage."""
        return best_representation([row for row in self.rows if row.weights == weights])

    def verdict(self) -> str:
        """One sentence on the linear probe of the pooled features, and on that of the best stages if they differ; on
        the dense probe if there is no other."""
        if not self.rows and self.dense is not None:
            return self.dense.verdict()
        for difference in self.differences:
            if difference.representation == "pooled":
                return _sentence(difference.linear) + self._best_stages() + self._over_majority()
        top1 = self.row().linear
        return (
            f"linear probe on pooled features: {_percent(top1.value)} % (95 % interval {_percent(top1.low)} to "
            f"{_percent(top1.high)}); random weights were not measured{self._over_majority()}"
        )

    def _over_majority(self) -> str:
        """What to add where the pooled features are no better than no features."""
        if self.majority is None or self.row().linear.low > self.majority:
            return ""
        return (
            f"; a probe of the pooled features ({_percent(self.row().linear.value)} %) is not shown to be better than "
            f"always naming the largest class ({_percent(self.majority)} %)"
        )

    def baselines(self) -> str:
        """One line on the largest class alone, and on accuracies in which every class counts the same; may be empty."""
        if self.majority is None:
            return ""
        row = self.row()
        means = [
            f"{name} {_percent(value)} %"
            for name, value in (("kNN", row.knn_mean_class), ("linear probe", row.linear_mean_class))
            if value is not None
        ]
        mean_class = f"; mean-class accuracy of pooled: {', '.join(means)}" if means else ""
        return f"always naming the largest class: {_percent(self.majority)} %{mean_class}"

    def words(self) -> list[str]:
        """What stands below the table: the classes one by one, calibration, and what else was asked for, in lines."""
        lines = [] if self.classes is None else self.classes.words()
        if self.rows and (ece := self.row().linear_ece) is not None:
            lines.append(f"expected calibration error of the linear probe of pooled: {_percent(ece)} % (15 bins)")
        lines += [] if self.label_curve is None else self.label_curve.words()
        lines += unlabelled_words(self.retrieval, self.clustering)
        lines += [] if self.invariance is None else self.invariance.words()
        return lines if self.dense is None else [*lines, *self.dense.words()]

    def _best_stages(self) -> str:
        """What to add where random weights, or the given ones, have better features than the pooled ones."""
        given, random = self.best_representation("given"), self.best_representation("random")
        if self.best_difference is None or (given == random == "pooled"):
            return ""
        return f"; the best of each, {given} against {random} of the random weights: {_signed(self.best_difference)}"

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, strings and numbers, with verdict and words; intervals as value, low and high."""
        values = asdict(self)
        for name in _OPTIONAL:
            if values[name] is None:
                del values[name]
        return _plain(
            {
                **values,
                "best_representation": self.best_representation() if self.rows else None,
                "verdict": self.verdict(),
                "baselines": self.baselines(),
                "words": self.words(),
            }
        )

    def save(self, path: str | Path) -> None:
        """Writes `to_json` to a file, which appears whole or not at all; an older one is replaced."""
        write_atomically(path, json.dumps(self.to_json(), indent=2) + "\n")

    def table(self) -> Table:
        """A rich table, 80 columns wide as a rule: each representation with the given and with random weights; that of
        the dense probe if there is nothing else."""
        from rich import box
        from rich.table import Table

        if not self.rows and self.dense is not None:
            return self.dense.table()
        images = ", ".join(f"{num:,} {split}" for split, num in self.num_images.items())
        below = f"{baselines}\n" if (baselines := self.baselines()) else ""
        table = Table(
            title=f"top-1 in % of the test images (95 % interval): {images} images, {self.num_classes} classes",
            caption=f"k and the penalty were chosen on the validation images, on which the linear probe is best for "
            f"{self.best_representation()}; {self.seconds:,.0f} s\n"
            "intervals: the choice of the test images alone; other seeds of the weights vary on top of that\n"
            f"{below}{self.verdict()}{self._ensemble_verdict()}",
            box=box.SIMPLE,
            padding=(0, 1, 0, 0),
            show_edge=False,
        )
        table.add_column("features", no_wrap=True)
        for name in ("kNN", "k", "linear probe", "difference"):
            table.add_column(name, justify="right", no_wrap=True)
        differences = {difference.representation: difference.linear for difference in self.differences}
        for name in dict.fromkeys(row.representation for row in self.rows):
            pair = [row for row in self.rows if row.representation == name]
            for row in pair:
                given = row.weights == "given"
                table.add_row(
                    name if given else "  random",
                    _with_interval(row.knn),
                    str(row.knn_k),
                    _with_interval(row.linear),
                    "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * fraction for fraction in differences[name]))
                    if given and name in differences
                    else "",
                    end_section=row is pair[-1],
                )
        for each in self.ensembles:
            name = {"bagging": "bagged", "boosting": "boosted"}[each.kind]
            name = f"{each.num_members} {name}" if each.weights == "given" else "  random"
            table.add_row(name, "", "", _with_interval(each.top1), "", end_section=each is self.ensembles[-1])
        for each in self.folds:
            name = f"{len(each.values)} folds" if each.weights == "given" else "  random"
            table.add_row(name, "", "", f"{_percent(each.mean)} ± {_percent(each.std)}", "")
        return table

    def _ensemble_verdict(self) -> str:
        """What to add on the ensemble of the given weights."""
        given = [row for row in self.ensembles if row.weights == "given"]
        return "".join(f"\n{row.kind} over one linear probe: {_signed(row.over_probe)}" for row in given)


def _sentence(difference: Interval) -> str:
    """One sentence on the difference between pretrained and random weights: a claim only if the interval excludes 0."""
    points = f"{_percent(abs(difference.value))} points"
    ends = sorted((abs(difference.low), abs(difference.high)))
    interval = f"(95 % interval {_percent(ends[0])} to {_percent(ends[1])})"
    if difference.low > 0:
        return f"pretrained features beat random weights by {points} {interval}"
    if difference.high < 0:
        return f"pretrained features are worse than random weights by {points} {interval}"
    return f"no difference to random weights that the test images can show: {_signed(difference)}"


def _signed(difference: Interval) -> str:
    value, low, high = (f"{100 * fraction:+.1f}" for fraction in difference)
    return f"{value} points (95 % interval {low} to {high})"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _with_interval(interval: Interval) -> str:
    return f"{_percent(interval.value)} ({_percent(interval.low)}-{_percent(interval.high)})"


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return value._asdict()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
