"""Credentials: passwords have no place in what a run writes down."""

from __future__ import annotations

import re
from typing import Any

_PASSWORD = re.compile(r"\b([a-z][a-z0-9+.-]*://[^/?#\s:@]*):[^/?#\s@]+@", re.IGNORECASE)


def check_no_password(value: Any, name: str = "") -> None:
    """Looks for addresses with a password in them: what a run is told is written into its folder and sent to trackers.

    Args:
        value: Plain data: a configuration, or the words of a command line.
        name: What to call it in the message.

    Raises:
        ValueError: There is one; the message does not repeat it.
    """
    if isinstance(value, dict):
        for key, each in value.items():
            check_no_password(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for each in value:
            check_no_password(each, name)
    elif isinstance(value, str) and (found := _PASSWORD.search(value)):
        raise ValueError(
            f"{name} holds an address with a password ({found[1].partition(':')[0]}://USER:PASSWORD@...), which would "
            "be written into the run's folder; give it by the environment (AWS_SECRET_ACCESS_KEY, say) or by a file "
            "such as ~/.netrc"
        )
