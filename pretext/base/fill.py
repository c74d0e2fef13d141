"""Refusal of views with filled places, for tasks of which the answer would show in them."""

from __future__ import annotations

from collections.abc import Iterable

from ssl_toolkit.augment import RandomView


def check_no_fill(view: RandomView, names: Iterable[str], tells: str) -> None:
    """Refuses what fills places of a view that the image does not reach: of pure noise it gives the answer away.

    Args:
        view: The view.
        names: Its arguments that may not be in use, among ``rotation``, ``erase`` and ``policy``.
        tells: What the filled places would tell, for the message.

    Raises:
        ValueError: One of them is in use.
    """
    for name in names:
        if getattr(view, name):
            raise ValueError(
                f"model.view.{name} leaves places filled with grey, and where they lie tells {tells} without a look at "
                "the image; leave it out"
            )
