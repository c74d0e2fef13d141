"""`ImageData`: the images of a run, their splits and their loaders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from ssl_toolkit.data.bad_files import OnError
from ssl_toolkit.data.cache import CacheKind
from ssl_toolkit.data.checks import check_at_least_one, check_below_one, check_choice, check_same_in_all_processes
from ssl_toolkit.data.class_balance import check_class_balance
from ssl_toolkit.data.console import say
from ssl_toolkit.data.dataset import ImageSet, ReadOptions
from ssl_toolkit.data.decode_pool import READ_TIMEOUT
from ssl_toolkit.data.divided import DividedData
from ssl_toolkit.data.division import divide, divide_as_before
from ssl_toolkit.data.folds import read_fold
from ssl_toolkit.data.loader import BatchLoader
from ssl_toolkit.data.shards import ShardOptions
from ssl_toolkit.data.source_factory import Origin, open_sets
from ssl_toolkit.data.sources import LabelKind
from ssl_toolkit.data.split_file import FILE as SPLIT_FILE
from ssl_toolkit.data.split_file import Assignment, read_split_file, write_split_file
from ssl_toolkit.data.splits import Division, Fractions
from ssl_toolkit.data.store import DecodedStore
from ssl_toolkit.data.survey import RangeOption, check_range, range_in
from ssl_toolkit.distributed.ranks import is_rank_zero, num_cores, world_size
from ssl_toolkit.errors import counted


class ImageData(DividedData):
    """Images for pretraining, transfer and evaluation.

    Args:
        path: The folder of images; with "shards" tar archives: one, a folder of them, "train-{000..146}.tar", "*.tar",
            a text file with one on each line, or such an address (https://, s3://, gs://, ...); with a data set of
            torchvision the folder where torchvision keeps its files.
        source: "folder", "shards", "procedural" (built-in drawings of ten classes, no files needed), or
            "torchvision:NAME", such as "torchvision:CIFAR10"; "torchvision:STL10:unlabeled" trains on another split of
            the data set.
        val_path: A second folder, or other shards, whose images are the validation split; a fraction of `path` by
            default.
        test_path: A folder, or shards, whose images are the test split; a fraction of `path` (or the data set's own
            test split) by default.
        labels: "folder": the first-level sub-folder of an image is its class; "none": a folder has no labels. Other
            sources bring their labels along: shards those in .cls files, unless it is "folder".
        download: Fetch the files of a data set of torchvision if they are missing.
        image_size: Larger images are reduced to this short side in pixels, and their long side is cropped to at most
            twice that; smaller ones stay as they are.
        channels: 3 for RGB, 1 for grey.
        batch_size: Images in a batch of each process.
        val_fraction: Fraction of the images for validation, from 0 to 1 (excluded), unless there is a `val_path`.
        test_fraction: Fraction of the images for testing, from 0 to 1 (excluded), unless there is a `test_path` or the
            data set comes with a test split.
        label_fraction: Fraction of the images of each class that stays in the training split (at least one image): the
            few-label setting.
        labels_per_class: Number of images of each class that stay in the training split instead.
        max_images: Use only so many images of `path`, chosen by chance, every class in proportion; the number of
            images of the procedural source.
        on_error: "skip" leaves out images that cannot be decoded and names them, "raise" stops at the first.
        max_bad: Stop if a larger fraction of the images cannot be decoded, from 0 to 1.
        cache: Where decoded images are kept: "memory", "disk", "none" (decode them every time) or "auto" (by size).
        cache_dir: Folder of the files of the "disk" cache; ~/.cache/ssl-toolkit by default.
        index: Folder in which the index of shards is kept; that of the cache by default.
        shard_window: Images of so many shards are shuffled together. By default those of all shards, if they are on
            this machine, and of 16, if they are remote. Resuming needs the same.
        shard_cache: GB (10^9 bytes) that copies of remote shards may take on this machine.
        num_threads: Threads that decode; as many as there are cores, at most 8, by default. No result depends on it.
        read_timeout: Seconds that reading one image may take. A disk that has not answered by then ends the run, which
            names the image and can be resumed.
        range: Which numbers become black and white in images of more than 8 bits: "auto" takes what the files say, or
            else what the training images hold (measured on 64 of them, one range for all files), "header" takes what
            the files say, or else all numbers of their kind, "full" takes all; or [low, high], or such a pair for each
            kind, as {uint16: [0, 4095]}.
        seed: Of the order of the images and of the choice of the few labelled ones.
        split_seed: Of what runs with different seeds must share to be comparable: which images are in the test,
            validation and training splits, which are chosen by `max_images`, and the procedural images themselves.
        splits: A run, or the splits.parquet of one: its images keep their splits, and only new ones are divided.
        fold: The test images are one of several folds, such as "2/5": the second of five, with the same fraction of
            each class in each (groups and identical images together); `val_fraction` is then of the other folds. For
            all of them one after the other there is ``ssl-toolkit transfer --folds 5``.
        table: A CSV, TSV or Parquet file that names the images of `path` (of its own folder, if there is none; or of
            shards), a row each: a column "path", and where they are there "label" (the class), "split" (train, val or
            test; if none is val, or test, these are drawn from the training rows) and "group": images of one patient,
            video or writer, which are never in two splits.
        columns: The names of these columns, where they are others, as {label: diagnosis, group: patient}. {weight:
            NAME} names a column of numbers of at least 0: how much each image counts in the loss of a transfer, of mean
            1 over the training images; figures of validation and test count all images alike.
        targets: Columns of the table that hold numbers to predict: yes and no, or 1 and 0, for multi-label
            classification, any numbers for regression; a cell may be empty. The built-in images have
            `ssl_toolkit.data.procedural.TARGETS`.
        covariates: Columns of the table that hold numbers that are given with each image, such as an age or a dose, for
            the head of a transfer to read beside the image's features (`model.covariates`): any numbers, yes and no; a
            cell may be empty. The built-in images have those that are no `targets`.
        class_balance: From 0 to 1: training images are drawn so that small classes come more often. A class of n images
            has a share of an epoch in proportion to n^(1 - class_balance): its own at 0, the same for all at 1. An
            epoch has as many images as before: those of a small class come several times, augmented in different ways,
            those of a large one not all. Needs a class for each training image.

    Attributes:
        max_bad: As given.
        weighted: Whether `columns` names one of weights.
        has_covariates: Whether `covariates` names some.
        whole_batches: Leave images that do not fill a batch out of an epoch of training; None for what the task needs.

    Raises:
        ValueError: An argument is out of its range, or the images cannot be found.
    """

    def __init__(
        self,
        path: str | None = None,
        source: str = "folder",
        val_path: str | None = None,
        test_path: str | None = None,
        labels: LabelKind = "none",
        download: bool = False,
        image_size: int = 224,
        channels: int = 3,
        batch_size: int = 256,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        label_fraction: float = 1.0,
        labels_per_class: int | None = None,
        max_images: int | None = None,
        on_error: OnError = "skip",
        max_bad: float = 0.1,
        cache: CacheKind = "auto",
        cache_dir: str | None = None,
        index: str | None = None,
        shard_window: int | None = None,
        shard_cache: float = 100.0,
        num_threads: int | None = None,
        read_timeout: float = READ_TIMEOUT,
        range: RangeOption = "auto",
        seed: int = 0,
        split_seed: int = 0,
        splits: str | None = None,
        fold: str | None = None,
        table: str | None = None,
        columns: dict[str, str] | None = None,
        targets: list[str] | None = None,
        class_balance: float = 0.0,
        covariates: list[str] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= class_balance <= 1:
            raise ValueError(f"data.class_balance is {class_balance}, expected 0 (as they are) to 1 (equally often)")
        if class_balance and targets:
            raise ValueError("data.class_balance is for classes, and data.targets are numbers: leave one out")
        check_below_one("val_fraction", val_fraction)
        check_below_one("test_fraction", test_fraction)
        check_below_one("max_bad", max_bad)
        check_at_least_one(image_size=image_size, batch_size=batch_size, labels_per_class=labels_per_class)
        check_at_least_one(max_images=max_images, num_threads=num_threads, shard_window=shard_window)
        check_choice("labels", labels, get_args(LabelKind))
        check_choice("on_error", on_error, get_args(OnError))
        check_choice("cache", cache, get_args(CacheKind))
        if not read_timeout > 0:
            raise ValueError(f"data.read_timeout must be above 0 seconds, got {read_timeout}")
        check_range(range)
        if not 0 < label_fraction <= 1:
            raise ValueError(f"data.label_fraction must be above 0 and at most 1, got {label_fraction}")
        if labels_per_class is not None and label_fraction != 1:
            raise ValueError("data.label_fraction and data.labels_per_class exclude each other; give one of them")
        if not shard_cache > 0:
            raise ValueError(f"data.shard_cache must be above 0 GB, got {shard_cache}")
        if channels not in (1, 3):
            raise ValueError(f"data.channels must be 3 (RGB) or 1 (grey), got {channels}")
        self._fold = read_fold(fold, test_fraction, splits=splits, val_path=val_path, test_path=test_path)
        self.batch_size = batch_size
        self.image_size = image_size
        self.channels = channels
        self.max_bad = max_bad
        self.class_balance = class_balance
        self.weighted = "weight" in (columns or {})
        self.has_covariates = bool(covariates)
        self.seed = seed
        shards = ShardOptions(Path(index).expanduser() if index else None, shard_window, shard_cache)
        self._origin = Origin(
            path,
            source,
            val_path,
            test_path,
            labels,
            download,
            max_images,
            split_seed,
            shards,
            table,
            tuple((columns or {}).items()),
            tuple(targets or ()),
            tuple(covariates or ()),
        )
        self.title = self._origin.title
        self.of_photographs = source != "procedural"
        self._fractions = Fractions(val_fraction, test_fraction, label_fraction, labels_per_class, seed)
        self._options = ReadOptions(
            image_size,
            channels,
            on_error,
            max_bad,
            cache,
            Path(cache_dir).expanduser() if cache_dir else None,
            num_threads or min(8, num_cores()),
            read_timeout,
            range,
        )
        self._train_loader: BatchLoader | None = None
        self._resumed: dict[str, int] = {}
        self._division: Division | None = None
        self.whole_batches: bool | None = None
        self._splits = splits
        self._before: dict[str, Assignment] = {}

    def go_on_with(self, run: Path) -> None:
        """Has the images of a run that is resumed stay in their splits, and refuses others; to be called first.

        Args:
            run: The folder of the run; one without a split file, of an earlier version, changes nothing.

        Raises:
            ValueError: In one line, if the file is damaged; and at `setup`, if an image is gone or has changed.
        """
        if (run / SPLIT_FILE).is_file():
            self._before = read_split_file(run)

    def write_splits(self, run: Path) -> None:
        """Writes the split of each image into the folder of a run, unless it is there."""
        if not (run / SPLIT_FILE).exists():
            write_split_file(run / SPLIT_FILE, self._divided().assignments())

    def prepare_data(self) -> None:
        """Lets rank zero download and build the disk cache while the others wait for it."""
        if world_size() > 1:
            self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Finds and decodes the images and divides them; a second call does nothing."""
        self._divided()

    def train_dataloader(self) -> BatchLoader:
        """The training split in a new order in each epoch; goes on where a checkpoint was taken."""
        trainer = self.trainer
        # Lightning's overfit_batches means the same few batches in every epoch
        shuffle = not getattr(trainer, "overfit_batches", 0)
        check_same_in_all_processes(self.indices("train"), self.labels("train"), self.noun)
        loader = self.loader("train", shuffle=shuffle, drop_last=self._has_whole_batches(), for_training=True)
        if trainer is not None and trainer.limit_train_batches is not None:
            loader.follow(trainer.current_epoch, trainer.limit_train_batches)
        if self._resumed:
            try:
                loader.load_state_dict(self._resumed)
            except ValueError as error:
                raise ValueError(f"{getattr(trainer, 'ckpt_path', None) or 'the checkpoint'}: {error}") from None
        self._resumed, self._train_loader = {}, loader
        return loader

    def _has_whole_batches(self) -> bool:
        if self.whole_batches is not None:
            return self.whole_batches
        return getattr(getattr(self.trainer, "lightning_module", None), "whole_batches", True)

    def state_dict(self) -> dict[str, int]:
        """The state of the training loader, for a checkpoint, and the size of the batches that it counts.

        Lightning saves that of the loader itself, too, but does not restore it if ``estimated_stepping_batches`` was
        asked for (Lightning issue 20550) or if the checkpoint was taken at the end of an epoch.
        """
        if self._train_loader is None:
            return {}
        facts = {"global_batch": self.batch_size * world_size(), "whole_batches": self._has_whole_batches()}
        return {**self._train_loader.state_dict(), **facts}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Makes the next `train_dataloader` go on at this state.

        Raises:
            ValueError: The batches of all processes together have another size now, so the place in the epoch, which is
                a number of batches, would be another one.
        """
        now, num = self.batch_size * world_size(), world_size()
        if (before := state_dict.get("global_batch", now)) != now:
            what = getattr(self.trainer, "ckpt_path", None) or "the checkpoint"
            raise ValueError(
                f"{what} is of a run whose batches have {before:,} {self.noun} in all processes together, but "
                f"data.batch_size {self.batch_size:,} in {counted(num, 'processes')} makes {now:,}; "
                + (f"set it to {before // num:,}" if before % num == 0 else f"use a number that divides {before:,}")
            )
        # earlier versions left out what did not fill a batch, of downstream tasks, too
        self.whole_batches = bool(state_dict.get("whole_batches", True))
        self._resumed = state_dict

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """The validation split in order; an empty list (no validation for Lightning) if it has no images."""
        return self.loader("val") if self.num_images("val") else []

    def test_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """The test split in order; an empty list if it has no images."""
        return self.loader("test") if self.num_images("test") else []

    def range_from(self, header: Mapping[str, Any] | None) -> None:
        """Takes the range of the run that a weights file comes from, unless another one is asked for.

        Raises:
            ValueError: It is none.
        """
        if self._options.range == "auto" and self._division is None:
            self._options = self._options._replace(range=range_in(header))

    def read_once(self) -> None:
        """Keeps no decoded images unless a kind of cache is named: to be called where each image is read just once."""
        fractions = self._fractions
        # copies of images without files are found by their pixels, and decide on splits
        by_files = self._origin.source == "folder" or not (fractions.val_fraction or fractions.test_fraction)
        if self._options.cache == "auto" and self._division is None and by_files:
            self._options = self._options._replace(cache="none")

    def read_columns(self, *roles: str) -> None:
        """Reads of a table no other columns than those of these roles, and covariates: to be called at first."""
        self._origin = self._origin._replace(roles=roles)

    def _divided(self) -> Division:
        if self._division is None:
            self._division = self._divide()
            check_class_balance(self.class_balance, self.labels("train").numpy(), self.noun)
            stays = isinstance(self._division.split("train").images.store, DecodedStore)
            if self._origin.is_remote and self._division.shares_source and not stays and is_rank_zero():
                say(
                    "validation and test images lie in every remote shard, so each pass over them fetches all shards; "
                    "give data.val_path (data.test_path) shards of their own"
                )
        return self._division

    def _divide(self) -> Division:
        limited = self._origin.max_images is not None
        if self._before:
            return divide_as_before(self._open_sets(), self._before, self._fractions, limited, self.noun)
        known = None if self._splits is None else read_split_file(self._splits)["train"]
        return divide(self._open_sets(), self._fractions, self._origin.split_seed, known, self.noun, self._fold)

    def _open_sets(self) -> dict[str, ImageSet]:
        origin = self._origin
        if self._before and origin.source != "procedural":
            origin = origin._replace(max_images=None)  # those that were chosen are known by their names
        return open_sets(origin, self._options)
