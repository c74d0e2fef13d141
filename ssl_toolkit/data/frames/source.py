"""Sequences as a source, and the frames of all of them as one long source of images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssl_toolkit.data import folders
from ssl_toolkit.data.decode import BadImage, decode_file, not_its_fault, to_array
from ssl_toolkit.data.deep import Range
from ssl_toolkit.data.frames.files import TENSOR_SUFFIXES, Frame, TensorFile, group_frames, natural_key
from ssl_toolkit.data.sources import LabelKind, Source

F = TypeVar("F")


class FrameSource(Source):
    """The frames of many sequences, one sequence after the other.

    Args:
        path: The folder of the data.
        frames: The frames in order.
        digest: A text that changes whenever a file changes.
        image_size: Larger frames are reduced to this short side in pixels.
        channels: 3 for RGB, 1 for luminance.
    """

    def __init__(self, path: Path, frames: Sequence[Frame], digest: str, image_size: int, channels: int) -> None:
        self._path = path
        self._frames = frames
        self._digest = digest
        self._image_size = image_size
        self._channels = channels

    def __len__(self) -> int:
        return len(self._frames)

    def read(self, index: int) -> NDArray[np.uint8]:
        file, place = self._frames[index]
        if place < 0:
            return decode_file(self._path / file, self.name(index), self._image_size, self._channels, self.ranges)
        try:
            frame = TensorFile(self._path / file).frame(place)
            image = Image.fromarray(frame[:, :, 0] if frame.shape[2] == 1 else frame)
            return to_array(image, self._image_size, self._channels)
        except Exception as error:
            if not_its_fault(error):
                raise
            # the three readers raise nearly everything on damaged files
            raise BadImage(self.name(index), " ".join(str(error).split()) or type(error).__name__) from None

    def file(self, index: int) -> Path | None:
        file, place = self._frames[index]
        return self._path / file if place < 0 else None

    def frame(self, index: int) -> Frame:
        """Where a frame is."""
        return self._frames[index]

    def fingerprint(self) -> str:
        return f"frames {self._digest}"

    def name(self, index: int) -> str:
        file, place = self._frames[index]
        printable = file.encode("utf-8", "replace").decode()
        return printable if place < 0 else f"{printable}[{place}]"


class SequenceSource(Source):
    """The sequences in a folder, in the natural order of their names. As an image, one is its middle frame.

    Args:
        path: The folder: ``class/sequence/frame.jpg`` and ``class/sequence.npy``, or one level less without labels.
        labels: "folder" makes the first-level sub-folder of a sequence its class, "none" reads no labels.
        image_size: Larger frames are reduced to this short side in pixels.
        channels: 3 for RGB, 1 for luminance.
        max_frames: Keep only so many frames of a longer sequence, evenly spaced; None keeps all.
        class_names: The classes in the order of their numbers, where another folder defines them.

    Attributes:
        frames: The frames of all sequences, each once.
        places: int64 array: the numbers among these of the frames of the first sequence, of the second, and so on.
        starts: int64 array of shape ``[num_sequences + 1]``: sequence ``i`` has the frames ``places[starts[i]]`` to
            ``places[starts[i + 1] - 1]``.
        numbers: int64 array beside ``places``: the number of each frame in its sequence, from 0, before any was left
            out for ``max_frames``.
        needs_all: Whether a sequence is of no use without one of its frames.
        frame_labels: As in `Source`, beside ``places``.

    Raises:
        ValueError: The path is not a folder with sequences, or the labels cannot be read from it.
    """

    frames: Source
    needs_all: bool = False

    def __init__(
        self,
        path: str | Path,
        labels: LabelKind = "none",
        image_size: int = 224,
        channels: int = 3,
        max_frames: int | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        root = Path(path).expanduser()
        files, self.left_out = folders.find_images(root, TENSOR_SUFFIXES)
        sequences = group_frames(root, [file.name for file in files], labels)
        self._hold(root, sequences, files, image_size, channels, max_frames)
        if labels == "folder":
            self.class_names, self._labels = folders.label_by_folder(root, self._names, class_names)

    def _hold(
        self,
        root: Path,
        sequences: Mapping[str, Sequence[Frame]],
        files: Sequence[folders.ImageFile],
        image_size: int,
        channels: int,
        max_frames: int | None,
        chosen: str = "",
    ) -> None:
        """Keeps sequences, each by its name; ``chosen`` tells which frames of the files they are, if not all."""
        digest = hashlib.blake2b(f"{max_frames}{chosen}".encode("utf-8", "surrogateescape"), digest_size=16)
        for file in files:
            digest.update(f"{file.name}\0{file.size}\0{file.modified}\n".encode("utf-8", "surrogateescape"))
        self._names = sorted(sequences, key=natural_key)
        size_of = {file.name: file.size for file in files}
        self._sizes = [sum(size_of[name] for name in {frame.file for frame in sequences[each]}) for each in self._names]
        self._labels: NDArray[np.int64] | None = None
        number: dict[Frame, int] = {}
        places: list[int] = []
        numbers: list[int] = []
        starts = [0]
        for name in self._names:
            kept = evenly(range(len(sequences[name])), max_frames)
            places += [number.setdefault(sequences[name][place], len(number)) for place in kept]
            numbers += kept
            starts.append(len(places))
        self.numbers = np.array(numbers, dtype=np.int64)
        self.places = np.array(places, dtype=np.int64)
        self.starts = np.array(starts, dtype=np.int64)
        self.frames = FrameSource(root, list(number), digest.hexdigest(), image_size, channels)

    def _used(self) -> list[Frame]:
        """The frames, beside ``places``."""
        assert isinstance(self.frames, FrameSource)
        return [self.frames.frame(place) for place in self.places.tolist()]

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.frames.read(self._middle(index))

    def file(self, index: int) -> Path | IO[bytes] | None:
        return self.frames.file(self._middle(index))

    def use_ranges(self, ranges: Mapping[str, Range]) -> None:
        super().use_ranges(ranges)
        self.frames.use_ranges(ranges)

    def _middle(self, index: int) -> int:
        return int(self.places[int(self.starts[index] + self.starts[index + 1]) // 2])

    def fingerprint(self) -> str:
        return f"sequences of {self.frames.fingerprint()}"

    def name(self, index: int) -> str:
        return self._names[index].encode("utf-8", "replace").decode()

    def frame_labels_of(self, places: NDArray[np.int64]) -> NDArray[np.int64] | None:
        if self.frame_labels is None:
            return None
        parts = [self.frame_labels[self.starts[place] : self.starts[place + 1]] for place in places.tolist()]
        return np.concatenate(parts) if parts else self.frame_labels[:0]

    def sizes(self) -> NDArray[np.int64]:
        return np.array(self._sizes, dtype=np.int64)

    def label(self, index: int) -> int:
        return -1 if self._labels is None else int(self._labels[index])

    def labels(self) -> NDArray[np.int64]:
        return np.full(len(self), -1, dtype=np.int64) if self._labels is None else self._labels


def evenly(frames: Sequence[F], max_frames: int | None) -> Sequence[F]:
    """At most so many frames: the middles of as many equal parts."""
    if max_frames is None or len(frames) <= max_frames:
        return frames
    return [frames[(2 * part + 1) * len(frames) // (2 * max_frames)] for part in range(max_frames)]
