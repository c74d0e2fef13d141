"""`Source`: a numbered list of decoded images, with labels where there are some.

A new kind of source is one class: how many images, how to read one of them, and what its label is.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data import folders
from ssl_toolkit.data.decode import BadImage, decode_file, not_its_fault
from ssl_toolkit.data.decode_pool import reading
from ssl_toolkit.data.deep import Range
from ssl_toolkit.data.order import Groups
from ssl_toolkit.errors import RunFailed

LabelKind = Literal["folder", "none"]


class Source(ABC):
    """A numbered list of images.

    Attributes:
        class_names: The names of the classes in the order of their numbers; empty without labels.
        left_out: How many files beside the images are not read, by what their names end in.
        ranges: As `decode_file` takes them.
        labels_may_change: Whether the class of an image may change while its name and file stay.
        frame_labels: int64 array: the class of each frame of sequences, -1 where it is not known; None where frames
            have none of their own.
        target_names: The names of the numbers that `targets` gives; empty without any.
        covariate_names: Those of the numbers that `covariates` gives.
    """

    class_names: Sequence[str] = ()
    left_out: Counter[str] = Counter()  # noqa: RUF012 (never changed)
    ranges: Mapping[str, Range] | None = None
    labels_may_change: bool = False
    frame_labels: NDArray[np.int64] | None = None
    target_names: Sequence[str] = ()
    covariate_names: Sequence[str] = ()

    @abstractmethod
    def __len__(self) -> int:
        """The number of images, readable or not."""

    @abstractmethod
    def read(self, index: int) -> NDArray[np.uint8]:
        """Decodes one image; called from several threads at once.

        Args:
            index: The image, from 0 to ``len(self) - 1``.

        Returns:
            uint8 array of shape ``[height, width, channels]``.

        Raises:
            BadImage: The image cannot be decoded.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A text that changes whenever any image may have changed: the key of the decoded cache."""

    def name(self, index: int) -> str:
        """A short name of the image for messages and tables, such as its path in the folder."""
        return str(index)

    def sizes(self) -> NDArray[np.int64]:
        """The bytes of each image's file: int64 array of shape ``[num]``, -1 where it has none of its own."""
        return np.full(len(self), -1, dtype=np.int64)

    def file(self, index: int) -> Path | IO[bytes] | None:
        """The encoded file of an image; None where there is none to look at.

        Raises:
            BadImage: It cannot be read.
        """
        return None

    def use_ranges(self, ranges: Mapping[str, Range]) -> None:
        """Sets the range of numbers of more than 8 bits, before the first image is read."""
        self.ranges = ranges

    def label(self, index: int) -> int:
        """The class number of the image, -1 if it has none."""
        return -1

    def labels(self) -> NDArray[np.int64]:
        """The class numbers of all images: int64 array of shape ``[num]``."""
        return np.fromiter((self.label(index) for index in range(len(self))), dtype=np.int64, count=len(self))

    def targets(self) -> NDArray[np.float32] | None:
        """Numbers for each image, beside its class or instead of it: what is to be predicted.

        Returns:
            float32 array of shape ``[num, targets]``, NaN where one is not known; None without any.
        """
        return None

    def weights(self) -> NDArray[np.float32] | None:
        """How much each image counts in the loss of a transfer: float32 array ``[num]``, at least 0; None for alike."""
        return None

    def covariates(self) -> NDArray[np.float32] | None:
        """Numbers that are given with each image, for a head to read beside its features.

        Returns:
            float32 array of shape ``[num, covariates]``, NaN where one is not known; None without any.
        """
        return None

    def frame_labels_of(self, places: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The class of each frame of some sequences, one sequence after the other; None without `frame_labels`."""
        return None

    def given_splits(self) -> NDArray[np.str_] | None:
        """The split that each image comes with: array of ``train``, ``val`` and ``test``; None where none is given."""
        return None

    def split_groups(self) -> NDArray[np.int64] | None:
        """A number for each image, equal for those that must be in one split (a patient's); None without groups."""
        return None

    def examples(self, num: int) -> list[int]:
        """At most so many images from which the size of all may be estimated."""
        return np.linspace(0, len(self) - 1, min(num, len(self))).astype(int).tolist()

    def groups(self) -> Groups | None:
        """Which images lie together, if an order that respects it is worth it; None where any order is as fast."""
        return None

    def ahead(self, batches: Iterator[NDArray[np.int64]]) -> Generator[None, None, None]:
        """Prepares what is read soon; to be asked for its next value before each batch, and closed at the end.

        Args:
            batches: For each batch, int64 array of its images; taken from as far ahead as is of use.
        """
        yield from ()

    def read_many(self, indices: Sequence[int]) -> list[NDArray[np.uint8] | BadImage]:
        """Several images at once: what `read` returns or raises for each of them.

        A source that makes many images faster together than one by one overrides it.

        Raises:
            RunFailed: The machine has no memory for an image, or no more files may be open.
        """
        return [self._read_or_report(index) for index in indices]

    def _read_or_report(self, index: int) -> NDArray[np.uint8] | BadImage:
        reading(self, index)
        try:
            return self.read(index)
        except BadImage as error:
            return error
        except RunFailed:
            raise
        except Exception as error:
            what = str(error).strip() or "no memory"
            if not_its_fault(error):
                raise RunFailed(
                    f"reading the image {self.name(index)} failed for want of the machine's means ({what}), which is "
                    "not its own fault; fewer data.num_threads need less; resume the run"
                ) from error
            kind = ValueError if isinstance(error, ValueError) else RuntimeError
            raise kind(f"reading the image {self.name(index)} failed: {type(error).__name__}: {what}") from error


class FolderSource(Source):
    """The images in a folder and all folders below it, in the order of their relative paths.

    Hidden files and folders are left out. Links are followed; a folder that is reached twice counts once.

    Args:
        path: The folder.
        labels: "folder" makes the first-level sub-folder of an image its class, "none" reads no labels.
        image_size: Larger images are reduced to this short side in pixels; None keeps every pixel.
        channels: 3 for RGB, 1 for luminance.
        class_names: The classes in the order of their numbers, where another folder defines them; the sorted names of
            the sub-folders that hold images by default.

    Raises:
        ValueError: The path is not a folder with images, or the labels cannot be read from it.
    """

    def __init__(
        self,
        path: str | Path,
        labels: LabelKind = "none",
        image_size: int | None = None,
        channels: int = 3,
        class_names: Sequence[str] | None = None,
    ) -> None:
        files, left_out = folders.find_images(Path(path).expanduser())
        self._hold(Path(path).expanduser(), files, image_size, channels)
        self.left_out = left_out
        if labels == "folder":
            self.class_names, self._labels = folders.label_by_folder(self.path, self._names, class_names)

    def _hold(self, path: Path, files: Sequence[folders.ImageFile], image_size: int | None, channels: int) -> None:
        self.path = path
        self._image_size = image_size
        self._channels = channels
        self._names = [file.name for file in files]
        self._sizes = np.array([file.size for file in files], dtype=np.int64)
        digest = hashlib.blake2b(digest_size=16)
        for file in files:
            digest.update(f"{file.name}\0{file.size}\0{file.modified}\n".encode("utf-8", "surrogateescape"))
        self._fingerprint = f"folder {digest.hexdigest()}"
        self._labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> NDArray[np.uint8]:
        return decode_file(self.file(index), self.name(index), self._image_size, self._channels, self.ranges)

    def file(self, index: int) -> Path:
        return self.path / self._names[index]

    def fingerprint(self) -> str:
        return self._fingerprint

    def name(self, index: int) -> str:
        # a name that is not valid UTF-8 must still be printable
        return self._names[index].encode("utf-8", "replace").decode()

    def sizes(self) -> NDArray[np.int64]:
        return self._sizes

    def files(self) -> list[tuple[Path, int]]:
        """The path and the bytes of each image."""
        return [(self.path / name, size) for name, size in zip(self._names, self._sizes.tolist(), strict=True)]

    def label(self, index: int) -> int:
        return -1 if self._labels is None else int(self._labels[index])

    def labels(self) -> NDArray[np.int64]:
        return np.full(len(self), -1, dtype=np.int64) if self._labels is None else self._labels


class SubsetSource(Source):
    """Some images of another source, renumbered from 0.

    Args:
        source: The other source.
        indices: int64 array of places in it.

    Attributes:
        places: These.
    """

    def __init__(self, source: Source, indices: NDArray[np.int64]) -> None:
        self.source = source
        self.class_names = source.class_names
        self.left_out = source.left_out
        self.labels_may_change = source.labels_may_change
        self.target_names = source.target_names
        self.covariate_names = source.covariate_names
        self.places = indices

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.source.read(int(self.places[index]))

    def file(self, index: int) -> Path | IO[bytes] | None:
        return self.source.file(int(self.places[index]))

    def use_ranges(self, ranges: Mapping[str, Range]) -> None:
        super().use_ranges(ranges)
        self.source.use_ranges(ranges)

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(self.places.astype("<i8").tobytes(), digest_size=16)
        return f"subset {digest.hexdigest()} of {self.source.fingerprint()}"

    def name(self, index: int) -> str:
        return self.source.name(int(self.places[index]))

    def sizes(self) -> NDArray[np.int64]:
        return self.source.sizes()[self.places]

    def label(self, index: int) -> int:
        return self.source.label(int(self.places[index]))

    def labels(self) -> NDArray[np.int64]:
        return self.source.labels()[self.places]

    def targets(self) -> NDArray[np.float32] | None:
        targets = self.source.targets()
        return None if targets is None else targets[self.places]

    def weights(self) -> NDArray[np.float32] | None:
        weights = self.source.weights()
        return None if weights is None else weights[self.places]

    def covariates(self) -> NDArray[np.float32] | None:
        covariates = self.source.covariates()
        return None if covariates is None else covariates[self.places]

    def given_splits(self) -> NDArray[np.str_] | None:
        splits = self.source.given_splits()
        return None if splits is None else splits[self.places]

    def split_groups(self) -> NDArray[np.int64] | None:
        groups = self.source.split_groups()
        return None if groups is None else groups[self.places]

    def examples(self, num: int) -> list[int]:
        if self.source.groups() is None:
            return super().examples(num)
        return list(range(min(num, len(self))))  # neighbours lie together

    def groups(self) -> Groups | None:
        groups = self.source.groups()
        return None if groups is None else Groups(groups.of[self.places], groups.window)

    def ahead(self, batches: Iterator[NDArray[np.int64]]) -> Generator[None, None, None]:
        yield from self.source.ahead(self.places[batch] for batch in batches)

    def read_many(self, indices: Sequence[int]) -> list[NDArray[np.uint8] | BadImage]:
        return self.source.read_many([int(self.places[index]) for index in indices])
