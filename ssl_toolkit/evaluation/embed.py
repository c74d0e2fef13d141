"""Embedding export: the features of every image, as a table on disk."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_toolkit.augment import CenterView
from ssl_toolkit.data import ImageData, Split
from ssl_toolkit.data.frames import FrameData, SingleFrames
from ssl_toolkit.data.splits import SourceImages
from ssl_toolkit.errors import nearest
from ssl_toolkit.evaluation.feature_store import FeatureStore, stored_features
from ssl_toolkit.evaluation.features import (
    Precision,
    chosen_device,
    computes_in_bf16,
    evaluation_mode,
    extract_features,
)
from ssl_toolkit.evaluation.parts import PartFolder, device_of
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.evaluation.tables import as_text, check_table, no_formula
from ssl_toolkit.io.atomic import atomic_file, sha256
from ssl_toolkit.weights import load_backbone, read_header

if TYPE_CHECKING:
    from ssl_toolkit.augment import View
    from ssl_toolkit.modules.backbone import Backbone


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
    part_size: int | None = None,
    feature_store: str | None = None,
    per_frame: bool = False,
) -> Path:
    """Writes the features of every image of every split to a table.

    One row for each image, in the order of the source (split by split if the splits are different folders), with
    ``name`` (path in the folder), ``split``, ``index`` (number in the source), ``label`` (class number; only if any
    image has one) and the features: in parquet one column ``features``, fixed-size lists of float32; in npz an array
    ``features`` of shape ``[num_images, num_features]``; in csv a column each, ``f0``, ``f1``, ... An image without a
    label among others has null in parquet, nothing in csv and -1 in npz. In csv an apostrophe stands before a name that
    begins with ``=``, ``+``, ``-`` or ``@``, which a spreadsheet would compute. Of sequences there is a row for each
    frame, with ``sequence`` (its name) and ``frame`` (the place in it, from 0, among the frames that are used). Parquet
    (in its schema metadata) and npz hold under ``ssl_toolkit`` one JSON text with what made the features: the weights
    file and its SHA-256, the backbone's arguments, ``image_size``, ``representation``, the class names, and the range
    of numbers of more than 8 bits.

    A name without a suffix is a folder of part files (`ssl_toolkit.evaluation.parts`), Parquet with the same columns:
    any number of processes share the work, and a command that was killed goes on where it was.

    Args:
        weights: A weights file.
        data: The images; labels are not needed.
        out: The file to write, ``.parquet``, ``.npz`` or ``.csv``. It must not exist, and appears whole or not at all.
            Or, without a suffix, a folder of part files; the same command goes on with it.
        image_size: Side in pixels of what the backbone sees; None for the data's own.
        representation: ``pooled``, or the name of a stage for its averaged map.
        precision: As in `extract_features`.
        device: Where to run; None for the GPU if there is one.
        say: Called with a line on how far it is, at least every 20 seconds.
        part_size: Images in a part of a folder; None for 10,000.
        feature_store: Folder in which features are kept and found again, as in `evaluate`; not for part files, which
            are a store of their own.
        per_frame: The data are sequences (`ssl_toolkit.data.frames.FrameData`), whose frames are embedded one by one,
            `data.batch_size` at once; `data.max_frames` null takes all.

    Returns:
        The file written, or the folder.

    Raises:
        ValueError: If the file exists, its suffix or the representation is unknown, the folder holds something else, or
            there are no images.
        WeightsError: If the weights file is missing or damaged.
    """
    out, weights = Path(out), Path(weights)
    images = _images_of(data, per_frame)
    in_parts = check_table(out, _WRITERS, "embed", part_size)
    if in_parts and feature_store is not None:
        raise ValueError("feature_store is not for part files, which are kept as they are: leave it out")
    if images.weighted:
        raise ValueError("data.columns.weight is for the loss of a transfer: leave it out")
    if data.has_covariates:
        raise ValueError("data.covariates are for the head of a transfer: leave them out")
    store = None if feature_store is None else FeatureStore(feature_store)
    backbone = load_backbone(weights).to(device_of(device) if in_parts else chosen_device(device))
    backbone = backbone.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    choices = ["pooled", *backbone.stages]
    if representation not in choices:
        raise ValueError(
            f"representation is one of {', '.join(choices)}, got {representation!r}{nearest(representation, choices)}"
        )
    backbone.check_channels(images.channels, weights)
    size = image_size or images.image_size
    backbone.check_size(size)
    view = CenterView(size)
    images.range_from(read_header(weights))
    if in_parts:
        images.read_once()
    images.prepare_data()
    images.setup()
    about = {
        "weights": str(weights),
        "sha256": sha256(weights),
        "backbone": backbone.config(),
        "representation": representation,
        "image_size": size,
        "ranges": images.ranges,
        "class_names": images.class_names,
    }
    if in_parts:
        bf16 = computes_in_bf16(precision, next(backbone.parameters()).device)
        about = {"command": "embed", **about, "precision": "bf16" if bf16 else "32"}
        with Steps(say) as steps:
            _write_parts(out, backbone, images, view, about, steps, part_size)
        return out
    parts = []
    with Steps(say) as steps:
        for split in get_args(Split):
            if not images.num_images(split):
                continue
            steps.begin(f"features of the {split} images", images.num_images(split))
            stages = representation != "pooled"
            extracted = stored_features(
                store, backbone, images, split, view, stages=stages, precision=precision, count=steps.advance
            )
            parts.append((split, extracted.indices, extracted.labels, extracted.features[representation]))
    if not parts:
        raise ValueError("embed found no images")
    splits = np.concatenate([np.full(len(indices), split) for split, indices, _, _ in parts])
    indices, labels, features = (torch.cat([part[column] for part in parts]).numpy() for column in (1, 2, 3))
    names = np.array([images.name(split, int(index)) for split, index in zip(splits, indices, strict=True)])
    order = _order(splits, indices)
    sequences, frames = None, None
    if isinstance(images, SingleFrames):
        found = [images.places(split, indices.numpy()) for split, indices, _, _ in parts]
        sequences = np.array([name for names, _ in found for name in names])[order]
        frames = np.concatenate([places for _, places in found])[order]
    rows = _Rows(names[order], splits[order], indices[order], labels[order], features[order], sequences, frames)
    with atomic_file(out) as file:
        _WRITERS[out.suffix](file, rows, json.dumps(about))
    return out


def _images_of(data: ImageData, per_frame: bool) -> ImageData | SingleFrames:
    if not per_frame:
        if isinstance(data, FrameData):
            raise ValueError("the data are sequences: give per_frame, and each frame has a row")
        return data
    if not isinstance(data, FrameData):
        raise ValueError(f"per_frame is for sequences, and the data are {data.noun}: give FrameData, or leave it out")
    return SingleFrames(data)


def _write_parts(
    out: Path,
    backbone: Backbone,
    data: ImageData | SingleFrames,
    view: View,
    about: dict[str, Any],
    steps: Steps,
    part_size: int | None,
) -> None:
    import pyarrow as pa

    name, sources = about["representation"], data.sources()
    device = next(backbone.parameters()).device
    with evaluation_mode(backbone), torch.inference_mode():
        one = torch.zeros(1, data.channels, about["image_size"], about["image_size"], device=device)
        width = backbone.stage_features(one)[name].shape[1]
    labelled = any(bool((each.images.labels.numpy()[each.splits >= 0] >= 0).any()) for each in sources)
    fields = [("name", pa.string()), ("split", pa.string()), ("index", pa.int64())]
    fields += [("sequence", pa.string()), ("frame", pa.int64())] * isinstance(data, SingleFrames)
    fields += [("label", pa.int64())] * labelled + [("features", pa.list_(pa.float32(), width))]

    def rows(source: SourceImages, places: NDArray[np.int64]) -> tuple[dict[str, Any], NDArray[np.int64]]:
        loader = iter(data.source_loader(source, places))
        first = next(loader, None)
        if first is None:  # none of them can be decoded
            return pa.schema(fields).empty_table().to_pydict(), places[:0]
        extracted = extract_features(
            backbone,
            itertools.chain([first], loader),
            view,
            stages=name != "pooled",
            precision=about["precision"],
            count=steps.advance,
        )
        indices = extracted.indices.numpy()
        names = np.array([source.images.source.name(index) for index in indices.tolist()])
        splits = np.array([get_args(Split)[number] for number in source.splits[indices].tolist()])
        features = extracted.features[name].numpy()
        rows = _Rows(names, splits, indices, extracted.labels.numpy(), features)
        if isinstance(data, SingleFrames):
            sequences, frames = data.places_in(source.images, indices)
            rows = rows._replace(sequence=np.array(sequences), frame=frames)
        return _parquet_columns(rows, labelled), indices

    PartFolder(out, data, sources, pa.schema(fields), about, part_size).write(rows, "features", steps)


class _Rows(NamedTuple):
    name: NDArray[np.str_]
    split: NDArray[np.str_]
    index: NDArray[np.int64]
    label: NDArray[np.int64]
    features: NDArray[np.float32]
    sequence: NDArray[np.str_] | None = None
    frame: NDArray[np.int64] | None = None


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


def _parquet_columns(rows: _Rows, labelled: bool) -> dict[str, Any]:
    import pyarrow as pa

    columns: dict[str, Any] = {"name": rows.name.tolist(), "split": rows.split.tolist(), "index": rows.index}
    if rows.sequence is not None and rows.frame is not None:
        columns |= {"sequence": rows.sequence.tolist(), "frame": rows.frame}
    if labelled:
        columns["label"] = pa.array(rows.label, mask=rows.label < 0)
    flat = pa.array(np.ascontiguousarray(rows.features).reshape(-1))
    columns["features"] = pa.FixedSizeListArray.from_arrays(flat, rows.features.shape[1])
    return columns


def _write_parquet(file: BinaryIO, rows: _Rows, about: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(_parquet_columns(rows, bool((rows.label >= 0).any())))
    pq.write_table(table.replace_schema_metadata({"ssl_toolkit": about}), file)


def _write_npz(file: BinaryIO, rows: _Rows, about: str) -> None:
    columns = {name: column for name, column in rows._asdict().items() if column is not None}
    if not (rows.label >= 0).any():
        del columns["label"]
    np.savez(file, ssl_toolkit=np.array(about), **columns)


def _write_csv(file: BinaryIO, rows: _Rows, about: str) -> None:
    labelled = bool((rows.label >= 0).any())
    numbers = [f"f{number}" for number in range(rows.features.shape[1])]
    with as_text(file) as text:
        writer = csv.writer(text)
        places: list[list[Any]] = [[] for _ in rows.name]
        if rows.sequence is not None and rows.frame is not None:
            places = [[no_formula(name), frame] for name, frame in zip(rows.sequence, rows.frame, strict=True)]
        of_frames = ["sequence", "frame"] if rows.sequence is not None else []
        writer.writerow(["name", "split", "index", *of_frames, *["label"] * labelled, *numbers])
        for name, split, index, label, features, place in zip(*rows[:5], places, strict=True):
            labels = ["" if label < 0 else label] * labelled
            writer.writerow([no_formula(name), split, index, *place, *labels, *features])


_WRITERS: dict[str, Callable[[BinaryIO, _Rows, str], None]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
    ".csv": _write_csv,
}
