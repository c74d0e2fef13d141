"""The command ``pseudo-label``: a table of labelled images, and of unlabelled ones whose class a run is sure of."""

from __future__ import annotations

import csv
import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from numpy.typing import NDArray

from ssl_toolkit.cli.features import check_one_process, say_line, tell_what_was_read
from ssl_toolkit.cli.parser import instantiate, parse
from ssl_toolkit.cli.predict import (
    TrainedRun,
    add_images,
    check_settings,
    covariates_of,
    images_of,
    open_trained,
    run_among,
    trained_task,
)
from ssl_toolkit.data import ImageData
from ssl_toolkit.data.copies import digest_of
from ssl_toolkit.errors import counted
from ssl_toolkit.evaluation.features import Precision
from ssl_toolkit.evaluation.predict import predicted
from ssl_toolkit.evaluation.tables import as_text, check_new_table
from ssl_toolkit.io.atomic import atomic_file
from ssl_toolkit.run_folder import CONFIG

_DESCRIPTION = (
    "Writes a table for --data.table of the labelled images of a run, and of unlabelled ones whose class it is sure of."
)
_OF_IMAGES = {
    "path": None, "val_path": None, "test_path": None, "label_fraction": 1.0, "labels_per_class": None,
    "max_images": None, "splits": None, "fold": None, "columns": None,
}  # fmt: skip
_SPLITS = ("train", "val", "test")
# of what is taken, the share of one class from which a warning is due
_MOST = 0.5


class Row(NamedTuple):
    """A row of the table: the file, its class, its split, and whether it was ``labelled`` or ``pseudo``."""

    path: str
    label: str
    split: str
    origin: str


def pseudo_label(arguments: Sequence[str]) -> Path:
    """Writes the labelled images of a run, and those that it is sure of, to a table.

    Args:
        arguments: The command line after ``pseudo-label``.

    Returns:
        The table's file.

    Raises:
        ValueError: For whatever the user can mend, in one line.
    """
    check_one_process("pseudo-label")
    folder = run_among(arguments)
    parser = _parser()
    if folder is None:
        if {"-h", "--help"} & set(arguments):
            parser.parse_args(arguments)  # which prints it and leaves
        raise ValueError(
            "missing: the folder of a run of transfer (ssl-toolkit pseudo-label RUN --data.path IMAGES ...)"
        )
    run = open_trained(folder)
    _check_run(run)
    if names := covariates_of(run):
        raise ValueError(
            f"the head of {run.folder} reads {', '.join(names)} of each image, which images without a table do not "
            "have: pseudo-label needs a run with model.covariates none"
        )
    check_settings(arguments, run)
    parser.set_defaults({"data.batch_size": run.config.data.batch_size})
    config = parse(parser, arguments)
    out = Path(config.out)
    _check(config, out)
    task, header = trained_task(run)
    if "class_names" not in header:
        raise ValueError(f"{run.folder} predicts no class: pseudo-label needs a run with one class for each image")
    labelled = _labelled(run)
    rows = _labelled_rows(labelled)
    unlabelled = images_of(run, config.data)
    names: list[str] = header["class_names"]
    found = predicted(
        task, unlabelled, len(names), "classes", precision=config.precision, device=config.device, say=say_line
    )
    files = {unlabelled.name("train", place): path for place, path in unlabelled.paths("train").items()}
    known = {split: _known(labelled, split, rows) for split in _SPLITS}
    sure = choose(found.values, config.threshold, None)
    left_out = copies_of([files[found.names[place]] for place in sure.tolist()], known)
    new = sure[[split is None for split in left_out]]
    taken = new[choose(found.values[new], config.threshold, config.max_per_class)].tolist()
    if len(sure) and not len(new):
        raise ValueError(
            f"the run has all {counted(len(sure), 'images')} whose class is sure, in its own splits: give other images"
        )
    if not taken:
        most = float(found.values.max())
        raise ValueError(
            f"no new image has a class of probability {config.threshold:g} or more (the largest of all is {most:.3f}): "
            "lower --threshold, or give other images"
        )
    classes: list[int] = found.values[taken].argmax(axis=1).tolist()
    rows += [
        Row(str(files[found.names[place]].absolute()), names[label], "train", "pseudo")
        for place, label in zip(taken, classes, strict=True)
    ]
    write_rows(out, rows)
    tell_what_was_read(unlabelled, out, of_path=True)
    for line in remarks(rows, names, left_out):
        print(line)
    if labelled.has_groups:
        print("groups of new images are not known: see to it that none is of a group that is validated or tested")
    print(f"table: {out}")
    print(f"next:  {_next(run, out, rows)}")
    return out


def choose(probabilities: NDArray[np.float32], threshold: float, max_per_class: int | None) -> NDArray[np.int64]:
    """The images whose class is sure.

    Args:
        probabilities: float32 array of shape ``[images, classes]``.
        threshold: The least probability of the most probable class.
        max_per_class: Of each class only so many, those of the highest probability (ties by their place).

    Returns:
        Sorted int64 array: their places.
    """
    labels, highest = probabilities.argmax(axis=1), probabilities.max(axis=1)
    sure = np.flatnonzero(highest >= threshold)
    if max_per_class is None:
        return sure
    order = sure[np.argsort(-highest[sure], kind="stable")]
    kept = [order[labels[order] == each][:max_per_class] for each in np.unique(labels[sure])]
    return np.sort(np.concatenate([*kept, np.zeros(0, dtype=np.int64)]))


def copies_of(files: Sequence[Path], known: dict[str, list[Path]]) -> list[str | None]:
    """The split that has a file, or one of the same bytes, of each of some files; None for a new one.

    Args:
        files: Files that may be links.
        known: The files of each split.

    Returns:
        The first of the splits in their order, where several have it.
    """
    by_size: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for split, paths in known.items():
        for path in paths:
            if path.exists():
                by_size[path.stat().st_size].append((split, path))
    digests: dict[int, dict[bytes | None, str]] = {}
    found: list[str | None] = []
    for file in files:
        size = file.stat().st_size
        if size not in by_size:
            found.append(None)
            continue
        if size not in digests:
            digests[size] = {}
            for split, path in by_size[size]:
                digests[size].setdefault(digest_of(path), split)
        found.append(digests[size].get(digest_of(file)))
    return found


def write_rows(out: Path, rows: Iterable[Row]) -> None:
    """Writes a table, whole or not at all."""
    with atomic_file(out) as file, as_text(file) as text:
        writer = csv.writer(text)
        writer.writerow(Row._fields)
        writer.writerows(rows)


def remarks(rows: Sequence[Row], names: Sequence[str], left_out: Sequence[str | None]) -> list[str]:
    """What is to be said of a table.

    Args:
        rows: Its rows.
        names: Of the classes.
        left_out: Of each sure image the split that has it already, or None.
    """
    pseudo = [row.label for row in rows if row.origin == "pseudo"]
    own = [row.label for row in rows if row.origin == "labelled" and row.split == "train"]
    lines = [f"{name}: {own.count(name):,} labelled, {pseudo.count(name):,} taken" for name in names]
    for split in _SPLITS:
        if number := sum(each == split for each in left_out):
            lines.append(f"left out, since the run's {split} split has them: {counted(number, 'images')}")
    most = max(names, key=pseudo.count)
    if len(names) > 1 and pseudo.count(most) > max(_MOST, 1.5 / len(names)) * len(pseudo):
        lines.append(
            f"{100 * pseudo.count(most) / len(pseudo):.0f} % of what was taken is {most}: a run on it would learn to "
            "say so; limit it with --max_per_class"
        )
    return lines


def _check(config: Namespace, out: Path) -> None:
    check_new_table(out, [".csv"], "pseudo-label")
    if not 0 < config.threshold <= 1:
        raise ValueError(f"--threshold is {config.threshold}, expected a probability above 0 and at most 1")
    if config.max_per_class is not None and config.max_per_class < 1:
        raise ValueError(f"--max_per_class is {config.max_per_class}, expected at least 1")
    if config.data.source != "folder":
        raise ValueError(f"data.source is {config.data.source}, but a table names files: give a folder as data.path")


def _check_run(run: TrainedRun) -> None:
    """Refuses a run whose images a table cannot name."""
    if run.data_class is not ImageData:
        raise ValueError(f"{run.folder} is a run of sequences: pseudo-label needs one of images with a class each")
    if run.config.data.source != "folder":
        raise ValueError(
            f"{run.folder} was trained on data.source {run.config.data.source}, but a table names files: pseudo-label "
            "needs a run on a folder, or on a table"
        )


def _labelled(run: TrainedRun) -> ImageData:
    """The images of the run in their splits; none is decoded for it."""
    settings = {**vars(run.config.data), "cache": "none", "splits": None}
    data: ImageData = instantiate(run.parser, Namespace(data=Namespace(**settings))).data
    data.go_on_with(run.folder)
    data.setup()
    return data


def _labelled_rows(data: ImageData) -> list[Row]:
    rows = []
    for split in _SPLITS:
        paths = data.paths(split)
        for place, label in zip(data.indices(split).tolist(), data.labels(split).tolist(), strict=True):
            if label >= 0:
                rows.append(Row(str(paths[place].absolute()), data.class_names[label], split, "labelled"))
    return rows


def _known(data: ImageData, split: Any, rows: Sequence[Row]) -> list[Path]:
    """The files of a split that are not new: of the training split those in the table, of the others all."""
    if split == "train":
        return [Path(row.path) for row in rows if row.split == "train"]
    return list(data.paths(split).values())


def _next(run: TrainedRun, out: Path, rows: Sequence[Row]) -> str:
    there = {row.split for row in rows}
    # what the table does not have would be drawn from its training images, pseudo-labels among them
    none = "".join(f" --data.{split}_fraction 0" for split in _SPLITS[1:] if split not in there)
    # of the run's settings those that would choose images, or name other ones
    changed = [(name, value) for name, value in _OF_IMAGES.items() if run.config.data[name] != value]
    options = "".join(f" --data.{name} {'null' if value is None else value}" for name, value in changed)
    config = shlex.quote(str(run.folder / CONFIG))
    return f"ssl-toolkit transfer -c {config}{options} --data.table {shlex.quote(str(out))}{none} --out NEW"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="ssl-toolkit pseudo-label", description=_DESCRIPTION, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("-c", "--config", action="config", help="Options in a YAML file.")
    add_images(parser, ImageData)
    parser.add_argument("--out", type=str, required=True, help="The table to write, .csv. It must not exist.")
    parser.add_argument("--threshold", type=float, default=0.95, help="The least probability of an image's class.")
    parser.add_argument(
        "--max_per_class",
        type=int | None,
        default=None,
        help="Take of each class only so many, the most probable ones.",
    )
    parser.add_argument("--precision", type=Precision, default="auto", help="32, bf16 or auto.")
    parser.add_argument("--device", type=str | None, default=None, help="Where to run; the GPU if there is one.")
    return parser
