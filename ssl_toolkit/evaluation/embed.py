"""Embedding export: the features of every image, as a table on disk."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_toolkit.augment import CenterView
from ssl_toolkit.data import ImageData, Split
from ssl_toolkit.errors import nearest
from ssl_toolkit.evaluation.features import Precision, chosen_device, extract_features
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.evaluation.tables import as_text, check_new_table, no_formula
from ssl_toolkit.io.atomic import atomic_file, sha256
from ssl_toolkit.weights import load_backbone, read_header


def embed(
    weights: str | Path,
    data: ImageData,
    out: str | Path,
    *,
    image_size: int | None = None,
    representation: str = "pooled",
    precision: Precision = "auto",
    device: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Writes the features of every image of every split to a table.

    One row for each image, in the order of the source (split by split if the splits are different folders), with
    ``name`` (path in the folder), ``split``, ``index`` (number in the source), ``label`` (class number; only if any
    image has one) and the features: in parquet one column ``features``, fixed-size lists of float32; in npz an array
    ``features`` of shape ``[num_images, num_features]``; in csv a column each, ``f0``, ``f1``, ... An image without a
    label among others has null in parquet, nothing in csv and -1 in npz. In csv an apostrophe stands before a name that
    begins with ``=``, ``+``, ``-`` or ``@``, which a spreadsheet would compute. Parquet (in its schema metadata) and
    npz hold under ``ssl_toolkit`` one JSON text with what made the features: the weights file and its SHA-256, the
    backbone's arguments, ``image_size``, ``representation``, the class names, and the range of numbers of more than 8
    bits.

    Args:
        weights: A weights file.
        data: The images; labels are not needed.
        out: The file to write, ``.parquet``, ``.npz`` or ``.csv``. It must not exist, and appears whole or not at all.
        image_size: Side in pixels of what the backbone sees; None for the data's own.
        representation: ``pooled``, or the name of a stage for its averaged map.
        precision: As in `extract_features`.
        device: Where to run; None for the GPU if there is one.
        say: Called with a line on how far it is, at least every 20 seconds.

    Returns:
        The file written.

    Raises:
        ValueError: If the file exists, its suffix or the representation is unknown, or there are no images.
        WeightsError: If the weights file is missing or damaged.
    """
    out, weights = Path(out), Path(weights)
    check_new_table(out, _WRITERS, "embed")
    backbone = load_backbone(weights).to(chosen_device(device))
    choices = ["pooled", *backbone.stages]
    if representation not in choices:
        raise ValueError(
            f"representation is one of {', '.join(choices)}, got {representation!r}{nearest(representation, choices)}"
        )
    backbone.check_channels(data.channels, weights)
    size = image_size or data.image_size
    backbone.check_size(size)
    view = CenterView(size)
    data.range_from(read_header(weights))
    data.prepare_data()
    data.setup()
    parts = []
    with Steps(say) as steps:
        for split in get_args(Split):
            if not data.num_images(split):
                continue
            steps.begin(f"features of the {split} images", data.num_images(split))
            stages, loader = representation != "pooled", data.loader(split)
            extracted = extract_features(
                backbone, loader, view, stages=stages, precision=precision, count=steps.advance
            )
            parts.append((split, extracted.indices, extracted.labels, extracted.features[representation]))
    if not parts:
        raise ValueError("embed found no images")
    about = {
        "weights": str(weights),
        "sha256": sha256(weights),
        "backbone": backbone.config(),
        "representation": representation,
        "image_size": size,
        "ranges": data.ranges,
        "class_names": data.class_names,
    }
    splits = np.concatenate([np.full(len(indices), split) for split, indices, _, _ in parts])
    indices, labels, features = (torch.cat([part[column] for part in parts]).numpy() for column in (1, 2, 3))
    names = np.array([data.name(split, int(index)) for split, index in zip(splits, indices, strict=True)])
    order = _order(splits, indices)
    rows = _Rows(names[order], splits[order], indices[order], labels[order], features[order])
    with atomic_file(out) as file:
        _WRITERS[out.suffix](file, rows, json.dumps(about))
    return out


class _Rows(NamedTuple):
    name: NDArray[np.str_]
    split: NDArray[np.str_]
    index: NDArray[np.int64]
    label: NDArray[np.int64]
    features: NDArray[np.float32]


def _order(splits: NDArray[np.str_], indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each image once, in the order of the source.

    Without a cache, a batch of nothing but bad images gets the next good one, so one may come twice.
    """
    pairs = np.array(list(zip(splits, indices, strict=True)), dtype=[("split", splits.dtype), ("index", np.int64)])
    first = np.sort(np.unique(pairs, return_index=True)[1])
    # numbers that are unique over all splits are those of one source
    if len(np.unique(indices[first])) == len(first):
        return first[np.argsort(indices[first])]
    return first


def _write_parquet(file: BinaryIO, rows: _Rows, about: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"name": rows.name.tolist(), "split": rows.split.tolist(), "index": rows.index}
    if (rows.label >= 0).any():
        columns["label"] = pa.array(rows.label, mask=rows.label < 0)
    flat = pa.array(np.ascontiguousarray(rows.features).reshape(-1))
    columns["features"] = pa.FixedSizeListArray.from_arrays(flat, rows.features.shape[1])
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata({"ssl_toolkit": about}), file)


def _write_npz(file: BinaryIO, rows: _Rows, about: str) -> None:
    columns = rows._asdict()
    if not (rows.label >= 0).any():
        del columns["label"]
    np.savez(file, ssl_toolkit=np.array(about), **columns)


def _write_csv(file: BinaryIO, rows: _Rows, about: str) -> None:
    labelled = bool((rows.label >= 0).any())
    numbers = [f"f{number}" for number in range(rows.features.shape[1])]
    with as_text(file) as text:
        writer = csv.writer(text)
        writer.writerow(["name", "split", "index", *["label"] * labelled, *numbers])
        for name, split, index, label, features in zip(*rows, strict=True):
            labels = ["" if label < 0 else label] * labelled
            writer.writerow([no_formula(name), split, index, *labels, *features])


_WRITERS: dict[str, Callable[[BinaryIO, _Rows, str], None]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
    ".csv": _write_csv,
}
