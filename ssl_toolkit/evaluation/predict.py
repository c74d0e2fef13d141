"""Prediction export: the class of every image and its probabilities, or its predicted numbers, as a table on disk."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

import numpy as np
import torch
from lightning import LightningModule
from lightning.fabric.utilities.apply_func import move_data_to_device
from numpy.typing import NDArray

from ssl_toolkit.data import ImageData
from ssl_toolkit.data.loader import BatchLoader
from ssl_toolkit.data.splits import SourceImages
from ssl_toolkit.errors import counted
from ssl_toolkit.evaluation.features import Precision, chosen_device, computes_in_bf16, evaluation_mode
from ssl_toolkit.evaluation.parts import PartFolder, device_of
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.evaluation.tables import as_text, check_table, no_formula
from ssl_toolkit.io.atomic import atomic_file

if TYPE_CHECKING:
    import pyarrow as pa


Columns = dict[str, Sequence[str] | NDArray[np.float32] | NDArray[np.int64]]


def predict(
    task: LightningModule,
    class_names: Sequence[str],
    data: ImageData,
    out: str | Path,
    *,
    precision: Precision = "auto",
    device: str | None = None,
    about: Mapping[str, Any] | None = None,
    say: Callable[[str], None] | None = None,
    part_size: int | None = None,
) -> Path:
    """Writes the class of every image to a table, and the probabilities of all classes.

    All images of the data's path, whatever their split. One row for each, in the order of the source, with ``name``
    (path in the folder), ``class`` (name of the most probable one), ``probability`` (of that one) and, in the order of
    the classes, ``p_CLASS`` (the probability of each; they sum to 1). Probabilities are float32. Images that cannot be
    decoded have no row. In csv an apostrophe stands before a name or a class that begins with ``=``, ``+``, ``-`` or
    ``@``, which a spreadsheet would compute. Parquet holds in its schema metadata, under ``ssl_toolkit``, one JSON text
    with what made the predictions: ``about``, the class names, the range of numbers of more than 8 bits, and the
    precision.

    A name without a suffix is a folder of part files (`ssl_toolkit.evaluation.parts`), Parquet with the same columns:
    any number of processes share the work, and a command that was killed goes on where it was.

    Args:
        task: The trained task, one that names classes.
        class_names: Of all its classes, in their order.
        data: The images; labels are not needed.
        out: The file to write, ``.parquet`` or ``.csv``, with the columns name, class, probability, and p_CLASS for
            each class. It must not exist, and appears whole or not at all. Or, without a suffix, a folder of part
            files; the same command goes on with it.
        precision: ``32``; ``bf16`` (autocast); or ``auto``: bf16 where the device computes in it natively, else 32.
        device: Where to run; None for the GPU if there is one.
        about: What made the predictions, plain data.
        say: Called with a line on how far it is, at least every 20 seconds.
        part_size: Images in a part of a folder; None for 10,000.

    Returns:
        The file written, or the folder.

    Raises:
        ValueError: If the file exists, its suffix is unknown, the folder holds something else, there are no images, or
            a probability is no number.
    """

    def columns(names: list[str], values: NDArray[np.float32]) -> Columns:
        return _class_columns(names, values, class_names)

    facts = {**(about or {}), "class_names": list(class_names)}
    table = _Table("classes", len(class_names), columns, facts)
    return _predict(task, data, Path(out), table, precision, device, say, part_size)


def predict_targets(
    task: LightningModule,
    target_names: Sequence[str],
    data: ImageData,
    out: str | Path,
    *,
    precision: Precision = "auto",
    device: str | None = None,
    about: Mapping[str, Any] | None = None,
    say: Callable[[str], None] | None = None,
    part_size: int | None = None,
) -> Path:
    """Writes the predicted targets of every image to a table: a column ``predicted_TARGET`` for each.

    Numbers of a regression are in the unit of its training images; of labels it is the probability. Everything else is
    as in `predict`.

    Args:
        task: The trained task, one that predicts targets.
        target_names: Of all its targets, in their order.
        data: As for `predict`.
        out: As for `predict`, with the columns name, and predicted_TARGET for each target.
        precision: As for `predict`.
        device: As for `predict`.
        about: As for `predict`.
        say: As for `predict`.
        part_size: As for `predict`.

    Returns:
        The file written, or the folder.

    Raises:
        ValueError: As for `predict`.
    """

    def columns(names: list[str], values: NDArray[np.float32]) -> Columns:
        return {"name": names, **{f"predicted_{name}": each for name, each in zip(target_names, values.T, strict=True)}}

    facts = {**(about or {}), "target_names": list(target_names)}
    table = _Table("targets", len(target_names), columns, facts)
    return _predict(task, data, Path(out), table, precision, device, say, part_size)


def predict_frames(
    task: LightningModule,
    class_names: Sequence[str],
    data: ImageData,
    out: str | Path,
    *,
    precision: Precision = "auto",
    device: str | None = None,
    about: Mapping[str, Any] | None = None,
    say: Callable[[str], None] | None = None,
    part_size: int | None = None,
) -> Path:
    """Writes the class of every frame of every sequence to a table, and the probabilities of all classes.

    A row for each frame, in order, with the columns of `predict`, of which ``name`` is the sequence's, and before the
    class ``frame``: the number of the frame in its sequence, from 0. Frames that cannot be decoded have no row.

    Args:
        task: The trained task, one that names the classes of frames.
        class_names: Of all its classes, in their order.
        data: The sequences; labels are not needed.
        out: As for `predict`; a folder has parts of whole sequences.
        precision: As for `predict`.
        device: As for `predict`.
        about: As for `predict`.
        say: As for `predict`.
        part_size: Sequences in a part of a folder; None for 10,000.

    Returns:
        The file written, or the folder.

    Raises:
        ValueError: As for `predict`.
    """

    def columns(names: list[str], values: NDArray[np.float32]) -> Columns:
        found = _class_columns(names, values, class_names)
        # their numbers come later
        return {"name": found.pop("name"), "frame": np.zeros(len(names), dtype=np.int64), **found}

    facts = {**(about or {}), "class_names": list(class_names)}
    table = _Table("classes of the frames", len(class_names), columns, facts)
    return _predict(task, data, Path(out), table, precision, device, say, part_size)


def _class_columns(names: list[str], values: NDArray[np.float32], class_names: Sequence[str]) -> Columns:
    most_probable: list[int] = values.argmax(axis=1).tolist()
    return {
        "name": names,
        "class": [class_names[place] for place in most_probable],
        "probability": values.max(axis=1),
        # a prefix that none of the other columns has: a class may be called as one of them
        **{f"p_{name}": each for name, each in zip(class_names, values.T, strict=True)},
    }


class Predicted(NamedTuple):
    """Of every image that can be decoded its name and float32 numbers ``[num_images, num]``."""

    names: list[str]
    values: NDArray[np.float32]


def predicted(
    task: LightningModule,
    data: ImageData,
    num: int,
    what: str,
    *,
    precision: Precision = "auto",
    device: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Predicted:
    """Predicts all images, into memory.

    Args:
        task: The trained task.
        data: As for `predict`.
        num: Of the numbers that the task predicts of an image.
        what: Is predicted, for the lines on how far it is.
        precision: As for `predict`.
        device: As for `predict`.
        say: As for `predict`.

    Raises:
        ValueError: There are no images, or a prediction is no number.
    """
    task.to(chosen_device(device))
    bf16 = computes_in_bf16(precision, task.device)
    with Steps(say) as steps:
        steps.begin(f"reading the {data.noun}")
        data.prepare_data()
        data.setup("predict")
        loader = data.predict_dataloader()
        steps.begin(f"{what} of the {data.noun}", loader.num_images)
        indices, values, _, _ = _computed(task, loader, num, bf16, steps)
    if not len(indices):
        raise ValueError(f"{data.title}: there are no {data.noun} that can be decoded")
    names = [data.name("train", index) for index in indices.tolist()]
    _check_finite(names, values, data.noun)
    return Predicted(names, values)


class _Table(NamedTuple):
    """What a table holds.

    Attributes:
        what: Is predicted, for the lines on how far it is.
        num: Of the numbers that the task predicts.
        columns: Made of names and of these numbers, float32 ``[rows, num]``.
        about: What made it.
    """

    what: str
    num: int
    columns: Callable[[list[str], NDArray[np.float32]], Columns]
    about: dict[str, Any]

    def schema(self) -> pa.Schema:
        """Of its columns, for parts that have no rows."""
        import pyarrow as pa

        columns = self.columns([], np.zeros((0, self.num), dtype=np.float32))
        numbers = {name: each.dtype for name, each in columns.items() if isinstance(each, np.ndarray)}
        return pa.schema([(name, pa.from_numpy_dtype(numbers.get(name, "str"))) for name in columns])


def _predict(
    task: LightningModule,
    data: ImageData,
    out: Path,
    table: _Table,
    precision: Precision,
    device: str | None,
    say: Callable[[str], None] | None,
    part_size: int | None,
) -> Path:
    """Predicts all images, into one file or into part files."""
    in_parts = check_table(out, _WRITERS, "predict", part_size)
    task.to(device_of(device) if in_parts else chosen_device(device))
    bf16 = computes_in_bf16(precision, task.device)
    with Steps(say) as steps:
        steps.begin(f"reading the {data.noun}")
        if in_parts:
            data.read_once()
        data.prepare_data()
        data.setup("predict")
        about = {**table.about, "ranges": data.ranges, "precision": "bf16" if bf16 else "32"}
        sources = data.sources(of_path=True)
        if (covariates := sources[0].images.covariates) is not None:
            about["covariates_sha256"] = hashlib.sha256(covariates.numpy().astype("<f4").tobytes()).hexdigest()

        def rows(source: SourceImages, loader: BatchLoader) -> tuple[Columns, NDArray[np.int64]]:
            indices, values, counts, places = _computed(task, loader, table.num, bf16, steps)
            owners = np.repeat(indices, counts)
            names = [source.images.source.name(index) for index in owners.tolist()]
            _check_finite(names, values, data.noun)
            columns = table.columns(names, values)
            if places is not None:
                sequences: Any = source.images.source
                columns["frame"] = sequences.numbers[places]
            return columns, indices

        if in_parts:
            folder = PartFolder(out, data, sources, table.schema(), {"command": "predict", **about}, part_size)
            folder.write(lambda source, places: rows(source, data.source_loader(source, places)), table.what, steps)
            return out
        loader = data.predict_dataloader()
        steps.begin(f"{table.what} of the {data.noun}", loader.num_images)
        columns, indices = rows(sources[0], loader)
    if not len(indices):
        raise ValueError(f"{data.title}: there are no {data.noun} that can be decoded")
    with atomic_file(out) as file:
        _WRITERS[out.suffix](file, columns, json.dumps(about))
    return out


def _check_finite(names: list[str], values: NDArray[np.float32], noun: str) -> None:
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(wrong):
        raise ValueError(
            f"the predictions of {counted(len(wrong), noun)} are no numbers, the first is {names[wrong[0]]}; "
            "try --precision 32"
        )


def _computed(
    task: LightningModule, loader: BatchLoader, num: int, bf16: bool, steps: Steps
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64] | None]:
    """The number in the source of each image; what is predicted, float32 array ``[rows, num]``; rows of each image; of
    frames, the place of each row among those of the source."""
    device, predictor = task.device, cast(Any, task)  # the type of a task does not tell that it predicts
    indices, values = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, num)]
    counts, places = list(indices), list(indices)
    of_frames = getattr(predictor, "predicts_frames", False)
    batch: Any
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)
    with evaluation_mode(task), torch.inference_mode(), autocast:
        for batch in loader:
            values.append(predictor.predict(move_data_to_device(batch, device)).float().cpu())
            indices.append(batch.indices.cpu())
            counts.append(batch.lengths.cpu() if of_frames else torch.ones_like(indices[-1]))
            places.append(batch.places.cpu() if of_frames else indices[-1][:0])
            steps.advance(len(batch.indices))
    numbers = [torch.cat(each).numpy() for each in (indices, counts, places)]
    return numbers[0], torch.cat(values).numpy(), numbers[1], numbers[2] if of_frames else None


def _write_parquet(file: BinaryIO, columns: Columns, about: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata({"ssl_toolkit": about}), file)


def _write_csv(file: BinaryIO, columns: Columns, about: str) -> None:
    with as_text(file) as text:
        writer = csv.writer(text)
        writer.writerow(list(columns))
        for row in zip(*columns.values(), strict=True):
            writer.writerow([no_formula(cell) if isinstance(cell, str) else cell for cell in row])


_WRITERS: dict[str, Callable[[BinaryIO, Columns, str], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
}
