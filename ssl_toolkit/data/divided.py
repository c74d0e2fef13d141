"""`DividedData`: images that are divided into splits: what is known of them, and their loaders."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.data.copies import files_of
from ssl_toolkit.data.dataset import ImageSet
from ssl_toolkit.data.decode import BadImage
from ssl_toolkit.data.loader import BatchLoader
from ssl_toolkit.data.order import epoch_order, groups_of
from ssl_toolkit.data.splits import Division, SourceImages, Split
from ssl_toolkit.distributed.ranks import rank, world_size
from ssl_toolkit.errors import counted

_NAMES_SHOWN = 4


class DividedData(LightningDataModule):
    """Base class of `ImageData`: answers questions about the images of each split, and makes loaders of them.

    Attributes:
        loader_class: What makes the batches.
        noun: What the samples are called in messages.
        title: What to call all of them.
        of_photographs: Whether they may be photographs; False for the built-in drawings.
        batch_size: Samples in a batch of each process.
        seed: Of the order.
        max_bad: The largest fraction of the images that may be bad, from 0 to 1.
        class_balance: How far the classes of training are drawn equally often, from 0 to 1.
    """

    loader_class: ClassVar[type[BatchLoader]] = BatchLoader
    noun: ClassVar[str] = "images"
    title: str = ""
    of_photographs: bool = True
    batch_size: int
    seed: int
    max_bad: float
    class_balance: float = 0.0
    _division: Division | None = None

    @abstractmethod
    def _divided(self) -> Division:
        """The images, found, divided and decoded at the first call."""

    def loader(
        self,
        split: Split,
        *,
        shuffle: bool = False,
        batch_size: int | None = None,
        drop_last: bool = False,
        indices: Tensor | NDArray[np.int64] | None = None,
        by_all: bool = False,
        for_training: bool = False,
    ) -> BatchLoader:
        """A loader of a split.

        Args:
            split: "train", "val" or "test".
            shuffle: A new order in each epoch.
            batch_size: For each process; that of the training by default.
            drop_last: Only whole batches, which all processes share (pretraining); otherwise every image is delivered.
            indices: int64 numbers of images in the source, to use only these images of the split.
            for_training: Images are drawn and weighted as for a training: by `class_balance`, and by `weights`.
            by_all: Every process gets all images, in the global batches, instead of its part of each.

        Raises:
            ValueError: The split has no images, or not enough.
        """
        images, members = self._divided().split(split)
        if indices is not None:
            chosen = np.asarray(indices, dtype=np.int64)
            outside = chosen[~np.isin(chosen, members)]
            if len(outside):
                raise ValueError(f"image {outside[0]} is not in the {split} split of {len(members)} images")
            members = chosen
        if not len(members):
            advice = "" if split == "train" else f"; set data.{split}_fraction or data.{split}_path"
            raise ValueError(f"the {split} split has no images{advice}")
        size, groups, what = (
            batch_size or self.batch_size,
            images.source.groups() if shuffle else None,
            f"the {split} split",
        )
        options: dict[str, Any] = {
            "shuffle": shuffle,
            "drop_last": drop_last,
            "what": what,
            "groups": groups,
        }
        if for_training:
            options["class_balance"] = self.class_balance
            options["weights"] = self.weights()
        if by_all:
            size, options = size * world_size(), {**options, "rank": 0, "world_size": 1}
        return self._loader(images, members, size, **options)

    def bad_images(self, split: Split) -> dict[int, BadImage]:
        """The images of a split that could not be decoded, by their number in the source, as far as is known."""
        images, _ = self._divided().split(split)
        members = self._divided().all_of(split).indices
        found = images.store.bad.found
        return {number: found[number] for number in members[np.isin(members, list(found))].tolist()}

    def know_images(self, split: Split, good: NDArray[np.int64], bad: Mapping[int, BadImage]) -> None:
        """Notes which images of a split can be decoded, as if they had been read.

        Args:
            split: The split.
            good: int64 array: numbers in the source of those that can.
            bad: Those that cannot, by their numbers.

        Raises:
            ValueError: Too many are bad, or none may be.
        """
        noted = self._divided().split(split).images.store.bad
        for number in good.tolist():
            noted.saw(number)
        for number, error in bad.items():
            noted.saw(number, error)
        noted.check()

    def content_key(self, split: Split) -> str:
        """A text that changes whenever the decoded images of a split, their order or their labels may have changed."""
        images, members = self._divided().split(split)
        digest = hashlib.blake2b(images.content_key.encode(), digest_size=16)
        digest.update(np.ascontiguousarray(members, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(images.labels.numpy()[members], dtype="<i8").tobytes())
        return digest.hexdigest()

    def predict_dataloader(self) -> BatchLoader:
        """All images of the path, whatever their split: each once, in the order of the source, without bad ones."""
        images, members = self._divided().of_path()
        if not len(members):
            raise ValueError(f"{self.title}: there are no {self.noun} that can be decoded")
        return self._loader(images, members, self.batch_size, replace_bad=False, what=self.title)

    def sources(self, of_path: bool = False) -> list[SourceImages]:
        """All images, bad ones too, by their source; nothing is decoded for it, unless few labels are chosen.

        Args:
            of_path: Those of the path only, whatever their split.
        """
        if not of_path:
            return self._divided().sources()
        images = self._divided().of_path().images
        return [SourceImages(images, np.zeros(len(images.source), dtype=np.int8))]

    def source_loader(self, source: SourceImages, places: NDArray[np.int64]) -> BatchLoader:
        """Some images of a source, for this process alone: each once, in order, without bad ones.

        The batches depend on nothing but ``places`` and the size of a batch: not on the number of processes, nor on
        which images are known to be bad.

        Args:
            source: One of `sources`.
            places: Sorted int64 array of at least one place in it.
        """
        options: dict[str, Any] = {"rank": 0, "world_size": 1, "replace_bad": False, "what": self.title}
        return self._loader(source.images, places, self.batch_size, **options)

    def _loader(self, images: ImageSet, members: NDArray[np.int64], batch_size: int, **options: Any) -> BatchLoader:
        shared: dict[str, Any] = {"seed": self.seed, "rank": rank(), "world_size": world_size(), "device": self._gpu()}
        if images.targets is not None:
            shared["targets"] = images.targets
        if images.covariates is not None:
            shared["covariates"] = images.covariates
        return self.loader_class(images.store, images.labels, members, batch_size, **{**shared, **options})

    def choose(self, split: Split, most: int, seed: int) -> NDArray[np.int64]:
        """Sorted int64 array: some images of a split, chosen by chance; if reading them apart is slow, few shards'."""
        images, members = self._divided().split(split)
        groups = groups_of(images.source.groups(), members)
        return members[np.sort(epoch_order(seed, 0, len(members), groups)[:most])]

    def _gpu(self) -> torch.device | None:
        """Where the trainer wants the batches, if that is a GPU."""
        device = self.trainer.strategy.root_device if self.trainer is not None else None
        return device if device is not None and device.type == "cuda" else None

    def num_images(self, split: Split) -> int:
        """How many images a split has, without those known to be bad."""
        return len(self._divided().split(split).indices)

    def indices(self, split: Split) -> NDArray[np.int64]:
        """Sorted int64 array: the numbers in their source of the images of a split."""
        return self._divided().split(split).indices

    def labels(self, split: Split) -> Tensor:
        """int64 tensor: the labels of the images of a split, in the order of `indices`; -1 for none."""
        images, members = self._divided().split(split)
        return images.labels[members]

    def weights(self) -> Tensor | None:
        """How much each image counts in training: float32 tensor, a number for each image of the source, of mean 1 over
        those of the training split; None where all count alike.

        Raises:
            ValueError: They are all 0.
        """
        images, members = self._divided().split("train")
        if images.weights is None:
            return None
        mean = float(images.weights[members].double().mean())
        if not mean:
            raise ValueError(f"all {len(members):,} training {self.noun} have the weight 0, so that none counts")
        return images.weights / mean

    def targets(self, split: Split) -> Tensor:
        """float32 tensor of shape ``[images, targets]``: the numbers to predict of the images of a split, in the order
        of `indices`; NaN where one is not known."""
        images, members = self._divided().split(split)
        return images.targets[members] if images.targets is not None else torch.zeros(len(members), 0)

    def covariates(self, split: Split) -> Tensor:
        """float32 tensor of shape ``[images, covariates]``: the numbers that are given with the images of a split, in
        the order of `indices`; NaN where one is not known."""
        images, members = self._divided().split(split)
        return images.covariates[members] if images.covariates is not None else torch.zeros(len(members), 0)

    @property
    def covariate_names(self) -> list[str]:
        """The names of the numbers that are given with images; empty without any."""
        return list(self._divided().split("train").images.source.covariate_names)

    @property
    def target_names(self) -> list[str]:
        """The names of the numbers to predict; empty without any."""
        return list(self._divided().split("train").images.source.target_names)

    def files(self, split: Split) -> list[tuple[str, int]]:
        """Name and bytes (-1 for none) of each image of a split, bad ones too: nothing is decoded for it."""
        images, places = self._divided().all_of(split)
        sizes = images.source.sizes()[places].tolist()
        return [(images.source.name(place), size) for place, size in zip(places.tolist(), sizes, strict=True)]

    def paths(self, split: Split) -> dict[int, Path]:
        """The file of each image of a split by its number in its source, bad ones too; empty without files."""
        images, places = self._divided().all_of(split)
        files = files_of(images.source)
        return {place: files[place][0] for place in places.tolist()} if files else {}

    def name(self, split: Split, index: int) -> str:
        """The name of an image, such as its path in the folder, from its number in a `Batch` of this split."""
        return self._divided().split(split).images.source.name(index)

    def groups_of(self, split: Split, indices: Tensor) -> Tensor | None:
        """Groups that must be in one split: int64 tensor of shape ``[images]``; None without groups.

        Args:
            split: The split of the images.
            indices: Their numbers in its source.
        """
        groups = self._divided().split(split).images.source.split_groups()
        return None if groups is None else torch.from_numpy(groups)[indices.cpu()]

    @property
    def has_groups(self) -> bool:
        """Whether images have groups that must be in one split."""
        return self._divided().split("train").images.source.split_groups() is not None

    @property
    def class_names(self) -> list[str]:
        """The names of the classes in the order of their numbers; empty without labels."""
        return list(self._divided().split("train").images.source.class_names)

    @property
    def num_classes(self) -> int:
        """The number of classes, 0 without labels."""
        return len(self.class_names)

    @property
    def bad_files(self) -> list[BadImage]:
        """The images of all splits that could not be decoded; without a cache those met so far."""
        return self._division.bad_files() if self._division is not None else []

    def summary(self, of_path: bool = False, with_bad: bool = False) -> str:
        """One line: the images of each split, the classes, the bad files, those that are no images.

        Args:
            of_path: Tell of the images of the path instead, whatever their split and class.
            with_bad: Count bad images, too, since this process may not know all of them, and do not tell of them.
        """
        counts = ", ".join(f"{count} {split}" for split, count in self._divided().counts().items())
        names = ", ".join(self.class_names[:_NAMES_SHOWN])
        names += ", ..." if self.num_classes > _NAMES_SHOWN else ""
        classes = f" of {counted(self.num_classes, 'classes')} ({names})" if self.num_classes else ""
        what = f"{counts} {self.noun}{classes}"
        if of_path:
            images, good = self._divided().of_path()
            what = counted(len(images.source) if with_bad else len(good), self.noun)
        bad = f"; bad images left out: {len(self.bad_files)}" if self.bad_files and not with_bad else ""
        remarks = [*self._divided().survey.remarks(), *([self.not_read] if self.not_read else [])]
        if groups := self._divided().num_groups():
            counts = ", ".join(f"{count:,} {split}" for split, count in groups.items())
            remarks.append(
                f"{counts} groups, where intervals take each of the {self.noun} for independent of the others"
            )
        return "; ".join([f"{self.title}: {what}{bad}", *remarks])

    @property
    def ranges(self) -> dict[str, list[float]]:
        """The range of each kind of numbers of more than 8 bits that the training images hold."""
        survey = self._divided().survey
        return {kind: list(survey.ranges[kind]) for kind in survey.found}

    @property
    def not_read(self) -> str:
        """What is to be said of files that are no images, by what their names end in; empty if there are none."""
        return self._divided().not_read()
