"""Checks of the arguments of `ImageData`, each with an error of one line."""

from __future__ import annotations

from collections.abc import Sequence

from ssl_toolkit.errors import nearest


def check_below_one(name: str, value: float) -> None:
    """Raises a ValueError unless ``0 <= value < 1``."""
    if not 0 <= value < 1:
        raise ValueError(f"data.{name} must be at least 0 and below 1, got {value}")


def check_at_least_one(**counts: int | None) -> None:
    """Raises a ValueError if a count that is given is less than 1."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"data.{name} must be at least 1, got {count}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises a ValueError with the nearest choice if the value is none of them."""
    if value not in choices:
        raise ValueError(f"data.{name} must be one of {', '.join(choices)}, got {value!r}{nearest(value, choices)}")
