"""Rates as text."""

from __future__ import annotations


def rate_text(rate: float) -> str:
    """A rate with enough digits that a slow one is not shown as 0: ``1,834``, ``9.3``, ``0.42``.

    Args:
        rate: Such as images per second, from 0.
    """
    return f"{rate:,.0f}" if rate >= 9.95 else f"{rate:.2g}"
