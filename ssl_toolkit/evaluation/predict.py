"""Prediction export: the class of every image and its probabilities, or its predicted numbers, as a table on disk."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import torch
from lightning import LightningModule
from lightning.fabric.utilities.apply_func import move_data_to_device
from numpy.typing import NDArray

from ssl_toolkit.data import ImageData
from ssl_toolkit.errors import counted
from ssl_toolkit.evaluation.features import Precision, chosen_device, computes_in_bf16, evaluation_mode
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.evaluation.tables import as_text, check_new_table, no_formula
from ssl_toolkit.io.atomic import atomic_file


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
) -> Path:
    """Writes the class of every image to a table, and the probabilities of all classes.

    All images of the data's path, whatever their split. One row for each, in the order of the source, with ``name``
    (path in the folder), ``class`` (name of the most probable one), ``probability`` (of that one) and, in the order of
    the classes, ``p_CLASS`` (the probability of each; they sum to 1). Probabilities are float32. Images that cannot be
    decoded have no row. In csv an apostrophe stands before a name or a class that begins with ``=``, ``+``, ``-`` or
    ``@``, which a spreadsheet would compute. Parquet holds in its schema metadata, under ``ssl_toolkit``, one JSON text
    with what made the predictions: ``about``, the class names, the range of numbers of more than 8 bits, and the
    precision.

    Args:
        task: The trained task, one that names classes.
        class_names: Of all its classes, in their order.
        data: The images; labels are not needed.
        out: The file to write, ``.parquet`` or ``.csv``, with the columns name, class, probability, and p_CLASS for
            each class. It must not exist, and appears whole or not at all.
        precision: ``32``; ``bf16`` (autocast); or ``auto``: bf16 where the device computes in it natively, else 32.
        device: Where to run; None for the GPU if there is one.
        about: What made the predictions, plain data.
        say: Called with a line on how far it is, at least every 20 seconds.

    Returns:
        The file written.

    Raises:
        ValueError: If the file exists, its suffix is unknown, there are no images, or a probability is no number.
    """
    out = Path(out)
    check_new_table(out, _WRITERS, "predict")
    found = _predicted(task, data, "classes", precision, device, say)
    most_probable: list[int] = found.values.argmax(axis=1).tolist()
    columns: _Columns = {
        "name": found.names,
        "class": [class_names[place] for place in most_probable],
        "probability": found.values.max(axis=1),
        # a prefix that none of the other columns has: a class may be called as one of them
        **{f"p_{name}": values for name, values in zip(class_names, found.values.T, strict=True)},
    }
    return _write(out, columns, {**(about or {}), "class_names": list(class_names), **found.settings})


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

    Returns:
        The file written.

    Raises:
        ValueError: As for `predict`.
    """
    out = Path(out)
    check_new_table(out, _WRITERS, "predict")
    found = _predicted(task, data, "targets", precision, device, say)
    columns: _Columns = {"name": found.names}
    columns |= {f"predicted_{name}": values for name, values in zip(target_names, found.values.T, strict=True)}
    return _write(out, columns, {**(about or {}), "target_names": list(target_names), **found.settings})


class _Predicted(NamedTuple):
    """Of every image its name and float32 numbers ``[num_images, num]``, and how they were computed."""

    names: list[str]
    values: NDArray[np.float32]
    settings: dict[str, Any]


def _predicted(
    task: LightningModule,
    data: ImageData,
    what: str,
    precision: Precision,
    device: str | None,
    say: Callable[[str], None] | None,
) -> _Predicted:
    """Predicts all images."""
    task.to(chosen_device(device))
    bf16 = computes_in_bf16(precision, task.device)
    with Steps(say) as steps:
        steps.begin(f"reading the {data.noun}")
        data.prepare_data()
        data.setup("predict")
        indices, values = _computed(task, data, what, bf16, steps)
    names = [data.name("train", index) for index in indices.tolist()]
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(wrong):
        raise ValueError(
            f"the predictions of {counted(len(wrong), data.noun)} are no numbers, the first is {names[wrong[0]]}; "
            "try --precision 32"
        )
    return _Predicted(names, values, {"ranges": data.ranges, "precision": "bf16" if bf16 else "32"})


def _computed(
    task: LightningModule, data: ImageData, what: str, bf16: bool, steps: Steps
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The number in the source of each image, and what is predicted: float32 array ``[num_images, num]``."""
    device, predictor = task.device, cast(Any, task)  # the type of a task does not tell that it predicts
    indices, values = [], []
    loader = data.predict_dataloader()
    steps.begin(f"{what} of the {data.noun}", loader.num_images)
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)
    with evaluation_mode(task), torch.inference_mode(), autocast:
        for batch in loader:
            values.append(predictor.predict(move_data_to_device(batch, device)).float().cpu())
            indices.append(batch.indices.cpu())
            steps.advance(len(batch.indices))
    if not indices:
        raise ValueError(f"{data.title}: there are no {data.noun} that can be decoded")
    return torch.cat(indices).numpy(), torch.cat(values).numpy()


_Columns = dict[str, Sequence[str] | NDArray[np.float32]]


def _write(out: Path, columns: _Columns, about: dict[str, Any]) -> Path:
    with atomic_file(out) as file:
        _WRITERS[out.suffix](file, columns, json.dumps(about))
    return out


def _write_parquet(file: BinaryIO, columns: _Columns, about: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata({"ssl_toolkit": about}), file)


def _write_csv(file: BinaryIO, columns: _Columns, about: str) -> None:
    with as_text(file) as text:
        writer = csv.writer(text)
        writer.writerow(list(columns))
        for row in zip(*columns.values(), strict=True):
            writer.writerow([no_formula(cell) if isinstance(cell, str) else cell for cell in row])


_WRITERS: dict[str, Callable[[BinaryIO, _Columns, str], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
}
