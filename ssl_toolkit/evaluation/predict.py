"""Prediction export: the class of every image and its probabilities, as a table on disk."""

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
    task.to(chosen_device(device))
    bf16 = computes_in_bf16(precision, task.device)
    with Steps(say) as steps:
        steps.begin(f"reading the {data.noun}")
        data.prepare_data()
        data.setup("predict")
        indices, probabilities = _probabilities(task, data, bf16, steps)
    names = [data.name("train", index) for index in indices.tolist()]
    wrong = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if len(wrong):
        raise ValueError(
            f"the probabilities of {counted(len(wrong), data.noun)} are no numbers, the first is {names[wrong[0]]}; "
            "try --precision 32"
        )
    most_probable: list[int] = probabilities.argmax(axis=1).tolist()
    rows = _Rows(names, [class_names[place] for place in most_probable], probabilities)
    settings = {"class_names": list(class_names), "ranges": data.ranges, "precision": "bf16" if bf16 else "32"}
    with atomic_file(out) as file:
        _WRITERS[out.suffix](file, rows, list(class_names), json.dumps({**(about or {}), **settings}))
    return out


class _Rows(NamedTuple):
    name: list[str]
    class_name: list[str]
    probabilities: NDArray[np.float32]


def _probabilities(
    task: LightningModule, data: ImageData, bf16: bool, steps: Steps
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The number in the source of each image, and its probabilities: float32 array ``[num_images, num_classes]``."""
    device, classifier = task.device, cast(Any, task)  # the type of a task does not tell that it names classes
    indices, probabilities = [], []
    loader = data.predict_dataloader()
    steps.begin(f"classes of the {data.noun}", loader.num_images)
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)
    with evaluation_mode(task), torch.inference_mode(), autocast:
        for batch in loader:
            probabilities.append(classifier.predict(move_data_to_device(batch, device)).float().cpu())
            indices.append(batch.indices.cpu())
            steps.advance(len(batch.indices))
    if not indices:
        raise ValueError(f"{data.title}: there are no {data.noun} that can be decoded")
    return torch.cat(indices).numpy(), torch.cat(probabilities).numpy()


def _columns(class_names: Sequence[str]) -> list[str]:
    """A prefix that none of the other columns has: a class may be called as one of them."""
    return [f"p_{name}" for name in class_names]


def _write_parquet(file: BinaryIO, rows: _Rows, class_names: list[str], about: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"name": rows.name, "class": rows.class_name}
    columns["probability"] = rows.probabilities.max(axis=1)
    columns |= zip(_columns(class_names), rows.probabilities.T, strict=True)
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata({"ssl_toolkit": about}), file)


def _write_csv(file: BinaryIO, rows: _Rows, class_names: list[str], about: str) -> None:
    with as_text(file) as text:
        writer = csv.writer(text)
        writer.writerow(["name", "class", "probability", *_columns(class_names)])
        for name, class_name, probabilities in zip(*rows, strict=True):
            writer.writerow([no_formula(name), no_formula(class_name), probabilities.max(), *probabilities])


_WRITERS: dict[str, Callable[[BinaryIO, _Rows, list[str], str], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
}
