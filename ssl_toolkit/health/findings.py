"""Results of checks: measured, expected, and a plain sentence for each thing that is wrong."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """Something that is wrong.

    Attributes:
        kind: A short name, such as ``initial loss``.
        what: What is wrong, a sentence.
        advice: What to try next, a sentence.
    """

    kind: str
    what: str
    advice: str

    def __str__(self) -> str:
        """Both sentences."""
        return f"{self.what} {self.advice}"


class Check(NamedTuple):
    """What came out of a check.

    Attributes:
        name: Of the check.
        measured: In words.
        expected: In words.
        findings: What is wrong; empty if all is well.
    """

    name: str
    measured: str
    expected: str
    findings: list[Finding]


def name_some(names: list[str], most: int = 3) -> str:
    """A few of the names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
