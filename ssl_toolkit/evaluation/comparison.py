"""Results of a comparison of several weights: as JSON, as a table, and in words."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_toolkit.errors import counted
from ssl_toolkit.evaluation.intervals import Interval
from ssl_toolkit.io.atomic import write_atomically

if TYPE_CHECKING:
    from rich.table import Table

# the chance of any false claim among all tests of a table
LEVEL = 0.05


@dataclass(frozen=True)
class Entry:
    """One set of weights on one data set by one protocol.

    Attributes:
        data: The data set.
        protocol: ``knn``, ``linear``, ``few-label`` or ``finetune``.
        weights: A letter, or ``random``.
        image_size: Side in pixels of what the network saw.
        num_images: Test images.
        top1: Test accuracy with its 95 % interval, which is about the choice of the test images alone. Of several
            few-label draws it is the mean.
    """

    data: str
    protocol: str
    weights: str
    image_size: int
    num_images: int
    top1: Interval


@dataclass(frozen=True)
class PairedTest:
    """A paired test of two sets of weights on the same test images.

    Attributes:
        data: The data set.
        protocol: The protocol.
        first: One of both.
        second: The other one.
        difference: Accuracy of the first minus that of the second, with its paired 95 % interval (not corrected for
            the number of tests).
        p_value: Of the test alone.
        adjusted: The same after Holm's correction over all tests of the comparison.
    """

    data: str
    protocol: str
    first: str
    second: str
    difference: Interval
    p_value: float
    adjusted: float

    @property
    def is_significant(self) -> bool:
        """Whether the difference can be claimed beside all others."""
        return self.adjusted <= LEVEL


@dataclass(frozen=True)
class Comparison:
    """The result of `ssl_toolkit.evaluation.compare.compare`.

    Attributes:
        weights: The file of each letter, and what the random weights are.
        entries: The accuracies.
        tests: Of each pair of weights, and of each with random weights of its architecture.
        labels_per_class: Of each few-label draw.
        num_draws: Few-label draws, the same for all weights.
        seed: Of draws, random weights, trainings and bootstrap.
        remarks: What a reader has to know, sentences.
        seconds: Wall-clock time.
    """

    weights: dict[str, str]
    entries: list[Entry]
    tests: list[PairedTest]
    labels_per_class: int
    num_draws: int
    seed: int
    remarks: list[str]
    seconds: float

    def words(self) -> list[str]:
        """The differences that can be claimed, and what the tests are about, as lines of text."""
        claims = [each for each in self.tests if each.is_significant]
        lines = [f"{each.data}, {each.protocol}: {_claim(each)}" for each in claims]
        rest = len(self.tests) - len(claims)
        if rest:
            lines.append(
                f"not shown by these test images: {counted(rest, 'differences')} of {len(self.tests)} (Holm's "
                f"correction over all {len(self.tests)} tests, p above {LEVEL})"
            )
        lines.append(
            "the tests are about the choice of the test images: of these weights as they are, not of their methods. "
            "Another seed of the pretraining, or of a fine-tuning, may turn a small difference round"
        )
        return [*lines, *self.remarks]

    def table(self) -> Table:
        """A rich table: a row for each data set, protocol and set of weights."""
        from rich import box
        from rich.table import Table

        legend = "\n".join(f"{letter}: {name}" for letter, name in self.weights.items())
        table = Table(
            title="top-1 in % of the test images (95 % interval)",
            caption=f"{legend}\nbetter than: after Holm's correction over all {len(self.tests)} tests; "
            f"{self.seconds:,.0f} s",
            box=box.SIMPLE,
            padding=(0, 1, 0, 0),
            show_edge=False,
            caption_justify="left",
        )
        table.add_column("data", overflow="fold")
        for name in ("protocol", "weights", "px", "top-1", "better than"):
            table.add_column(name, justify="right" if name in ("px", "top-1") else "left", no_wrap=True)
        before = None
        for place, each in enumerate(self.entries):
            here = (each.data, each.protocol)
            is_last = place + 1 == len(self.entries) or here != (
                self.entries[place + 1].data, self.entries[place + 1].protocol,
            )  # fmt: skip
            value, low, high = (100 * number for number in each.top1)
            table.add_row(
                each.data if before is None or before[0] != each.data else "",
                each.protocol if before != here else "",
                each.weights,
                str(each.image_size),
                f"{value:.1f} ({low:.1f}-{high:.1f})",
                ", ".join(self._beaten(each)),
                end_section=is_last,
            )
            before = here
        return table

    def _beaten(self, entry: Entry) -> list[str]:
        found = []
        for test in self.tests:
            if test.is_significant and (test.data, test.protocol) == (entry.data, entry.protocol):
                better, worse = (test.first, test.second) if test.difference.value > 0 else (test.second, test.first)
                found += [worse] if better == entry.weights else []
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, strings and numbers, with the words; intervals as value, low and high."""
        values = asdict(self)
        for row, each in [*zip(values["entries"], self.entries, strict=True)]:
            row["top1"] = each.top1._asdict()
        for row, each in [*zip(values["tests"], self.tests, strict=True)]:
            row["difference"] = each.difference._asdict()
        return {**values, "words": self.words()}

    def save(self, path: str | Path) -> None:
        """Writes `to_json` to a file, which appears whole or not at all; an older one is replaced."""
        write_atomically(path, json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Reads what `save` has written.

        Raises:
            ValueError: The file is something else.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            del values["words"]
            entries = [Entry(**{**each, "top1": Interval(**each["top1"])}) for each in values.pop("entries")]
            tests = [
                PairedTest(**{**each, "difference": Interval(**each["difference"])}) for each in values.pop("tests")
            ]
            return cls(entries=entries, tests=tests, **values)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is no comparison that ssl-toolkit compare has written ({error})") from None


def _claim(test: PairedTest) -> str:
    first, second, ends = test.first, test.second, test.difference
    if ends.value < 0:
        first, second, ends = second, first, Interval(-ends.value, -ends.high, -ends.low)
    return (
        f"{first} is better than {second} by {100 * ends.value:.1f} points (95 % interval {100 * ends.low:+.1f} to "
        f"{100 * ends.high:+.1f}, p = {test.adjusted:.2g} after correction)"
    )
