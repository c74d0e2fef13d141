"""Labels of shards: from class names or numbers to class numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.folders import class_numbers
from ssl_toolkit.data.shards.index_file import Index
from ssl_toolkit.data.sources import LabelKind

_MOST_CLASSES = 1_000_000


class Labels(NamedTuple):
    """The class numbers of images.

    Attributes:
        class_names: In the order of their numbers; empty without labels.
        places: int32 array ``[num]``: for each image a place in the table, -1 for none.
        table: int64 array: class numbers; -1 at its end.
    """

    class_names: list[str]
    places: NDArray[np.int32]
    table: NDArray[np.int64]

    def number(self, image: int) -> int:
        """The class number of an image, -1 for none."""
        return int(self.table[self.places[image]])

    def numbers(self) -> NDArray[np.int64]:
        """int64 array ``[num]``: those of all images."""
        return self.table[self.places]


def number_labels(index: Index, labels: LabelKind, path: str, class_names: Sequence[str] | None = None) -> Labels:
    """The class numbers of all images.

    Numbers in ``.cls`` files are class numbers; if one of them is no number, all are names, and sorted.

    Args:
        index: The images.
        labels: "folder" for the first folder in an image's name, "none" for what is in ``.cls`` files.
        path: Of the shards, for messages.
        class_names: The classes in order, if other shards define them.

    Raises:
        ValueError: An image lies in no folder, or a class is none of these.
    """
    if labels == "folder":
        places, texts = index.columns["folders"][:], index.folder_texts
        loose = np.flatnonzero(places < 0)
        if len(loose):
            raise ValueError(
                f"labels: folder takes the class of an image from the first folder of its name in the shard, but "
                f"{len(loose):,} of the {len(places):,} images in '{path}' lie in none (such as "
                f"{index.name(int(loose[0]))!r}); make the shards from a folder with one sub-folder for each class, "
                "add .cls files, or set labels: none"
            )
    else:
        places, texts = index.columns["classes"][:], index.class_texts
    # a folder's name that is not UTF-8 must still be printable
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    if class_names is not None:
        names = list(class_names) if texts else []
    elif labels != "folder" and texts and all(text.isascii() and text.isdigit() for text in texts):
        largest = max(int(text) for text in texts)
        if largest >= _MOST_CLASSES:
            raise ValueError(f"a .cls file in '{path}' holds the class number {largest}; at most {_MOST_CLASSES:,} do")
        names = [str(number) for number in range(largest + 1)]
    else:
        names = sorted(set(texts))
    number = class_numbers(names, texts, f"the class '{{}}' in '{path}'")
    return Labels(names, places, np.array([*(number[text] for text in texts), -1], dtype=np.int64))
