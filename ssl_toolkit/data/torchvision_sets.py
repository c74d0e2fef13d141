"""Data sets of torchvision, by name."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.decode import BadImage, decode_file, not_its_fault, to_array
from ssl_toolkit.data.sources import Source
from ssl_toolkit.errors import nearest
from ssl_toolkit.io.archives import BadArchive, guarded_unpacking


class _Splits(NamedTuple):
    """How a data set of torchvision names its parts.

    Attributes:
        argument: The argument that chooses the part; None if there is only one.
        train: Its value for training.
        test: Its value for testing; None if the data set has no test part.
        others: Further values.
    """

    argument: str | None
    train: str | bool
    test: str | bool | None
    others: tuple[str, ...] = ()


_FLAG = _Splits("train", True, False)
_NAMED = _Splits("split", "train", "test")
_VAL = _Splits("split", "train", "val")
_WHOLE = _Splits(None, "train", None)
_SETS = {
    "CIFAR10": _FLAG,
    "CIFAR100": _FLAG,
    "Caltech101": _WHOLE,
    "Caltech256": _WHOLE,
    "Country211": _Splits("split", "train", "test", ("valid",)),
    "DTD": _Splits("split", "train", "test", ("val",)),
    "EuroSAT": _WHOLE,
    "FGVCAircraft": _Splits("split", "trainval", "test", ("train", "val")),
    "FashionMNIST": _FLAG,
    "Flowers102": _Splits("split", "train", "test", ("val",)),
    "Food101": _NAMED,
    "GTSRB": _NAMED,
    "ImageNet": _VAL,
    "Imagenette": _VAL,
    "KMNIST": _FLAG,
    "MNIST": _FLAG,
    "OxfordIIITPet": _Splits("split", "trainval", "test"),
    "PCAM": _Splits("split", "train", "test", ("val",)),
    "RenderedSST2": _Splits("split", "train", "test", ("val",)),
    "STL10": _Splits("split", "train", "test", ("unlabeled", "train+unlabeled")),
    "SUN397": _WHOLE,
    "SVHN": _Splits("split", "train", "test", ("extra",)),
    "StanfordCars": _NAMED,
    "USPS": _FLAG,
}


def has_test_split(name: str) -> bool:
    """Whether a data set comes with a test split.

    Raises:
        ValueError: There is no such data set.
    """
    return _splits(name).test is not None


def _splits(name: str) -> _Splits:
    if name not in _SETS:
        raise ValueError(
            f"torchvision data set {name!r} is not known{nearest(name, _SETS)}; known are {', '.join(_SETS)}"
        )
    return _SETS[name]


class TorchvisionSource(Source):
    """One split of a data set of torchvision.

    Args:
        name: Its class, such as "CIFAR10".
        root: The folder where torchvision keeps its files.
        split: "train" or "test", mapped to what the data set itself calls them ("val" of ImageNet is our "test"), or
            another split that it has, such as "unlabeled" of STL10.
        download: Fetch the files if they are missing.
        image_size: Larger images are reduced to this short side in pixels; None keeps every pixel.
        channels: 3 for RGB, 1 for luminance.

    Raises:
        ValueError: No such data set or split; the files are missing and cannot be fetched.
    """

    def __init__(
        self,
        name: str,
        root: str | Path,
        split: str = "train",
        download: bool = False,
        image_size: int | None = None,
        channels: int = 3,
    ) -> None:
        self._title = f"{name}/{split}"
        self._image_size = image_size
        self._channels = channels
        self._data: Any = _open(name, Path(root).expanduser(), split, download, image_size, channels)
        self._labels = _labels(self._data)
        names = getattr(self._data, "classes", None) or range(int(self._labels.max(initial=-1)) + 1)
        # a class of ImageNet is a tuple of synonyms
        self.class_names = [entry[0] if isinstance(entry, tuple) else str(entry) for entry in names]

    def __len__(self) -> int:
        return len(self._data)

    def read(self, index: int) -> NDArray[np.uint8]:
        try:
            image = self._data[index][0]
            return image if isinstance(image, np.ndarray) else to_array(image, self._image_size, self._channels)
        except BadImage as error:
            raise BadImage(self.name(index), error.reason) from None
        except Exception as error:
            if not_its_fault(error):
                raise
            raise BadImage(self.name(index), " ".join(str(error).split())) from None

    def fingerprint(self) -> str:
        # the files of a published data set do not change under its name
        return f"torchvision {self._title} {len(self)}"

    def name(self, index: int) -> str:
        return f"{self._title}/{index}"

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def labels(self) -> NDArray[np.int64]:
        return self._labels


def _open(name: str, root: Path, split: str, download: bool, image_size: int | None, channels: int) -> Any:
    from torchvision import datasets

    splits = _splits(name)
    values: dict[str, str | bool] = {other: other for other in splits.others}
    values["train"] = splits.train
    if splits.test is not None:
        values["test"] = splits.test
    if split not in values:
        raise ValueError(f"{name} has no split {split!r}{nearest(split, values)}; it has {', '.join(sorted(values))}")
    make = getattr(datasets, name)
    parameters = inspect.signature(make).parameters
    arguments: dict[str, Any] = {} if splits.argument is None else {splits.argument: values[split]}
    if "download" in parameters:
        arguments["download"] = download
    if "loader" in parameters or name == "ImageNet":
        # files go through our own decoder, which is faster (it reduces while it decodes) and checks more
        arguments["loader"] = functools.partial(_load, image_size=image_size, channels=channels)
    try:
        with guarded_unpacking():
            return make(root, **arguments)
    except BadArchive as error:
        raise ValueError(f"cannot unpack torchvision's {name} ({split}): {error}; delete it") from error
    except (OSError, RuntimeError, ImportError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        advice = "check the network or copy its files there" if download else "set data.download: true to fetch it"
        advice = "" if "install" in reason else f"; {advice}"  # a missing package, which torchvision names
        raise ValueError(f"cannot open torchvision's {name} ({split}) in '{root}': {reason}{advice}") from error


def _load(path: str | Path, image_size: int | None, channels: int) -> NDArray[np.uint8]:
    return decode_file(path, str(path), image_size, channels, ranges={})  # one for all: that of their kind


def _labels(data: Any) -> NDArray[np.int64]:
    """The class numbers of a data set; torchvision has no one name for them."""
    for attribute in ("targets", "labels", "_labels", "y"):
        labels = getattr(data, attribute, None)
        if labels is not None:
            return np.asarray(labels, dtype=np.int64)
    samples = getattr(data, "_samples", None)
    if samples is not None:
        return np.array([label for _, label in samples], dtype=np.int64)
    return np.array([-1 if label is None else label for _, label in data], dtype=np.int64)
