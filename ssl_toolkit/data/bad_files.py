"""Bad files: images that cannot be decoded are counted and named; too many stop the run."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Literal

import numpy as np

from ssl_toolkit.data.console import say
from ssl_toolkit.data.decode import BadImage
from ssl_toolkit.errors import counted, printable
from ssl_toolkit.io.atomic import write_atomically

OnError = Literal["skip", "raise"]

_MAX_NAMED = 100  # messages about bad files on the screen


class BadFiles:
    """Bad files of a source: the unreadable images, and the rules about them.

    Args:
        num_images: How many images the source holds.
        on_error: "skip" notes and names a bad file, "raise" stops at the first one.
        max_bad: Largest fraction of bad files that is tolerated, from 0 to 1.
        announce: Whether to name bad files on the screen.
        listing: Where all of them are listed when they are too many.
    """

    def __init__(
        self,
        num_images: int,
        on_error: OnError = "skip",
        max_bad: float = 0.1,
        announce: bool = True,
        listing: Path | None = None,
    ) -> None:
        self._found: dict[int, BadImage] = {}
        self._seen = np.zeros(num_images, dtype=bool)
        self._num_seen = 0
        self._on_error = on_error
        self._max_bad = max_bad
        self._announce = announce
        self._listing = listing
        # the batches of training and those of an evaluation beside it are made in different threads
        self._lock = threading.Lock()

    def saw(self, index: int, error: BadImage | None = None) -> None:
        """Notes that an image was read, well or not.

        Raises:
            ValueError: It was not, and ``on_error`` is "raise".
        """
        with self._lock:
            self._saw(index, error)

    def saw_all(self, start: int, end: int) -> None:
        """Notes that all images from one to before another were read well."""
        with self._lock:
            self._seen[start:end] = True
            self._num_seen = int(self._seen.sum())

    def _saw(self, index: int, error: BadImage | None) -> None:
        if not self._seen[index]:
            self._seen[index] = True
            self._num_seen += 1
        if error is None or index in self._found:
            return
        if self._on_error == "raise":
            raise ValueError(f"cannot decode the image {error}; remove it or set data.on_error: skip")
        self._found[index] = error
        if self._announce and len(self._found) <= _MAX_NAMED:
            say(f"skipping the bad image {error}")
        if self._announce and len(self._found) == _MAX_NAMED:
            say("further bad images are counted, but not named here")

    def check(self) -> None:
        """Raises a ValueError if too large a fraction of the images is bad.

        While only some have been read, they are taken for a sample: a fraction that chance alone could make of one that
        is tolerated does not stop a run.
        """
        num_bad, num_seen, fraction = len(self._found), self._num_seen, self._max_bad
        # five standard deviations of a binomial count, and five for where that is not normal
        chance = 5 * math.sqrt(num_seen * fraction * (1 - fraction)) + 5
        if num_bad <= fraction * len(self._seen) and num_bad <= fraction * num_seen + chance:
            return
        first = ", ".join(str(error) for _, error in sorted(self._found.items())[:3])
        raise ValueError(
            f"{num_bad} of {counted(num_seen, 'images')} cannot be decoded, more than data.max_bad = "
            f"{fraction:g} allows "
            f"({first}{', ...' if num_bad > 3 else ''}); remove them{self._list()} or raise data.max_bad"
        )

    def _list(self) -> str:
        """Writes the list, and says where it is."""
        if self._listing is None:
            return ""
        lines = [f"{printable(error.path)}\t{error.reason}\n" for _, error in sorted(self._found.items())]
        try:
            write_atomically(self._listing, "".join(lines))
        except OSError:
            return ""
        return f" (all are listed in '{self._listing}')"

    @property
    def num_images(self) -> int:
        """How many images the source holds."""
        return len(self._seen)

    @property
    def found(self) -> dict[int, BadImage]:
        """The bad images by their number in the source."""
        return self._found
