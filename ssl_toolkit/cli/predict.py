"""The command ``predict``: a trained downstream run, applied to images."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import ArgumentParser, Namespace

from ssl_toolkit.cli.command_line import CommandLine, statements
from ssl_toolkit.cli.features import function_parser, say_line, tell_what_was_read
from ssl_toolkit.cli.messages import parser_keys
from ssl_toolkit.cli.parser import instantiate, parse
from ssl_toolkit.cli.predicted_table import OF_TABLE, TABLE, columns_of, pairs_in_folder, tell_of_parts
from ssl_toolkit.cli.prepare import build_task
from ssl_toolkit.cli.training_parser import training_parser
from ssl_toolkit.data import ImageData
from ssl_toolkit.distributed.ranks import is_rank_zero
from ssl_toolkit.errors import counted, nearest
from ssl_toolkit.evaluation.predict import predict as predict_classes
from ssl_toolkit.evaluation.predict import predict_frames, predict_targets
from ssl_toolkit.io.atomic import sha256
from ssl_toolkit.io.schema import shown
from ssl_toolkit.run_folder import CONFIG, MODEL, WEIGHTS, open_run, read_status
from ssl_toolkit.task import Task
from ssl_toolkit.weights.model import load_model, read_model_header
from ssl_toolkit.weights.reading import WeightsError, building, read_layout
from ssl_toolkit.weights.skeleton import no_larger_than

# settings of the images that are predicted; all others are the run's
OF_THESE_IMAGES = (
    "path", "source", "batch_size", "on_error", "max_bad", "cache", "cache_dir", "index", "shard_cache", "num_threads",
    "read_timeout",
)  # fmt: skip
# what would leave images out or add others, and what is of no weight for a prediction
_OF_TRAINING: dict[str, Any] = {
    "labels": "none", "download": False, "val_path": None, "test_path": None, "val_fraction": 0.0,
    "test_fraction": 0.0, "label_fraction": 1.0, "labels_per_class": None, "max_images": None, "splits": None,
    "fold": None, "table": None, "columns": None, "targets": None, "class_balance": 0.0,
}  # fmt: skip
# a data set of torchvision has splits of its own, and not one path
_SOURCES = ("folder", "shards", "procedural")
# it may have a value
_SWITCH = "--calibrated"
_FLAGS = ("-h", "--help", "--print_config", _SWITCH)
_RUN = "Folder of a run of transfer."
_CALIBRATED = (
    "Divide the scores by the temperature that the run's test has found on its validation images, so that the "
    "probabilities are closer to how often they are right; the most probable class stays."
)


class TrainedRun(NamedTuple):
    """A downstream run that has written its model file.

    Attributes:
        folder: Of the run.
        config: Its configuration.
        parser: Of the configuration.
        data_class: Of its images.
    """

    folder: Path
    config: Namespace
    parser: ArgumentParser
    data_class: type[ImageData]


def predict(arguments: Sequence[str]) -> Path:
    """Writes the class of every image to a table, by a run of transfer.

    Args:
        arguments: The command line after ``predict``.

    Returns:
        The table's file.

    Raises:
        ValueError: For whatever the user can mend, in one line.
    """
    folder = run_among(arguments)
    run = None if folder is None else open_trained(folder)
    parser = _parser(ImageData if run is None else run.data_class)
    if run is None:
        if {"-h", "--help"} & set(arguments):
            parser.parse_args(arguments)  # which prints it and leaves
        raise ValueError("missing: the folder of a run of transfer (ssl-toolkit predict RUN --data.path IMAGES ...)")
    covariates = covariates_of(run)
    check_settings(arguments, run, (*OF_THESE_IMAGES, *OF_TABLE))
    parser.set_defaults({"data.batch_size": run.config.data.batch_size})
    config = parse(parser, arguments)
    task: Any
    task, header = trained_task(run)
    state = read_status(run.folder).get("state")
    if state != "finished" and is_rank_zero():
        say_line(f"the run is not finished ({state}): its weights are those of step {header['step']:,}")
    data = images_of(run, config.data, covariates)
    tell_of_parts(run.config.data, config.data)
    own = ("config", "run", "data", "calibrated")
    options = {name: each for name, each in vars(config).items() if name not in own}
    about = _about(run, header)
    if config.calibrated:
        about["temperature"] = task.temperature = _temperature(run, header)
    write, names = (predict_targets, "target_names") if "target_names" in header else (predict_classes, "class_names")
    if getattr(task, "predicts_frames", False):
        write = predict_frames
    out = write(task, header[names], data, **options, about=about, say=say_line if is_rank_zero() else None)
    if is_rank_zero():
        tell_what_was_read(data, out, of_path=True)
        if covariates:
            _tell_of_unknown(data, header["covariates"])
        print(f"predictions: {out}")
    return out


def covariates_of(run: TrainedRun) -> list[str]:
    """The names of the covariates that the head of a run reads."""
    return read_model_header(run.folder / MODEL).get("covariates", {"names": []})["names"]


def _tell_of_unknown(data: ImageData, header: dict[str, Any]) -> None:
    """Says where what is not known is news to the head."""
    found = data.sources(of_path=True)[0].images.covariates
    assert found is not None
    for number, name in enumerate(header["names"]):
        if num := 0 if number in header["gaps"] else int(found[:, number].isnan().sum()):
            print(f"{name} is not known of {counted(num, data.noun)}, and was of every training image: the mean there")


def open_trained(folder: str) -> TrainedRun:
    """Reads the configuration of a run whose task names classes.

    Raises:
        ValueError: There is no run, or none of such a task.
    """
    run = open_run(folder, option="")
    line = CommandLine("transfer", ["--config", str(run / CONFIG)])
    if line.task_class is not None and not getattr(line.task_class, "predicts", False):
        raise ValueError(
            f"{run} is a run of {line.task_class.__name__}, which predicts nothing of an image: ssl-toolkit embed "
            f"--weights {run / WEIGHTS} writes features, ssl-toolkit transfer trains a classifier on them"
        )
    parser = training_parser(line)
    config = parse(parser, line.arguments)
    if not (run / MODEL).exists():
        raise ValueError(
            f"{run} holds no {MODEL}, since an earlier version made it or its first epoch has not ended: "
            f"ssl-toolkit transfer --resume {shlex.quote(str(run))} writes it"
        )
    return TrainedRun(run, config, parser, line.data_class)


def trained_task(run: TrainedRun) -> tuple[Task, dict[str, Any]]:
    """The trained task of a run, on the CPU in evaluation mode, and the header of its model file.

    Raises:
        ValueError: The file is missing, damaged, or not of this run's network.
    """
    file = run.folder / MODEL
    header, layout = read_model_header(file), read_layout(file)
    config = run.config.clone()
    _check_same(file, "task", header["task"], config.model.class_path)
    settings = config.model.init_args
    with building(file, "network"), no_larger_than(len(layout), file.stat().st_size):
        # the weights file of the pretraining may be gone; of it only the network's arguments are needed
        settings.weights = settings.head_weights = None
        if settings.backbone is None:
            settings.backbone = Namespace(**header["backbone"])
        settings.backbone.pretrained = False
        task: Any = build_task(run.parser, config)
        outputs = "num_targets" if "num_targets" in header else "num_classes"
        setattr(task, outputs, getattr(task, outputs, None) or header[outputs])
        task.image_size = task.image_size or config.data.image_size
        if "covariates" in header:
            task.use_covariates(**header["covariates"])
        task.setup("predict")
        task.backbone.set_normalization(tuple(header["mean"]), tuple(header["std"]))
    for name in (outputs, "image_size"):
        _check_same(file, name, header[name], getattr(task, name))
    load_model(file, task)
    if task.memory_format == "channels_last":
        task.backbone.to(memory_format=torch.channels_last)
    return task.eval(), header


def _check_same(file: Path, name: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise WeightsError(
            f"{file} is of another run: its {name} is {shown(found)}, that of {CONFIG} is {expected}; restore both "
            "from a copy"
        )


def images_of(run: TrainedRun, given: Namespace, covariates: Sequence[str] = ()) -> ImageData:
    """The images of a command line, read as those of the run were.

    Args:
        run: The run.
        given: The settings of the images.
        covariates: The columns of their table that the head of the run reads.

    Raises:
        ValueError: There is no table for them, a column that is not read, or another source than can be predicted.
    """
    if given.get("source", "folder") not in _SOURCES:
        raise ValueError(
            f"data.source is {given.source!r}, but predict takes {', '.join(_SOURCES)}{nearest(given.source, _SOURCES)}"
        )
    settings = vars(run.config.data)
    columns, in_table = columns_of(run.data_class, run.config.data, given), given.get(TABLE) is not None
    of_training = {**_OF_TRAINING, "covariates": None}
    if given.get("source", "folder") != "shards":
        of_training["shard_window"] = None  # the run may have been of shards
    own = {name: each for name, each in of_training.items() if name in settings}
    if covariates:
        if not in_table and given.get("source") != "procedural":
            raise ValueError(
                f"the head of {run.folder} reads {', '.join(covariates)} of each image: give --data.table TABLE with "
                f"the columns {', '.join([columns.get('path', 'path'), *covariates])}"
            )
        own["covariates"] = list(covariates)
    settings = {**settings, **own, **vars(given)}
    if in_table:
        settings["columns"] = columns
    data: Any = instantiate(run.parser, Namespace(data=Namespace(**settings))).data
    if in_table or getattr(data, "frame_labels", False):
        data.read_columns("path")  # what else the table may hold is of no weight
    if not in_table and pairs_in_folder(run.folder, columns, given):
        data.expect_pairs()
    return data


def _about(run: TrainedRun, header: dict[str, Any]) -> dict[str, Any]:
    facts = {name: header[name] for name in ("task", "step", "image_size")}
    return {"run": str(run.folder), "sha256": sha256(run.folder / MODEL), **facts}


def _temperature(run: TrainedRun, header: dict[str, Any]) -> float:
    if "target_names" in header:
        raise ValueError("--calibrated is for probabilities of classes; leave it out")
    if "temperature" not in header:
        raise ValueError(
            f"{run.folder} has no temperature: its test finds one, if there are validation images, and the network "
            "recognises some and not all of them; a run of an earlier version is tested again by ssl-toolkit transfer "
            f"--resume {shlex.quote(str(run.folder))}; else leave --calibrated out"
        )
    return header["temperature"]


def _parser(data_class: type) -> ArgumentParser:
    parser = function_parser("predict", predict_classes, skip={"task", "class_names", "data", "about", "say"})
    add_images(parser, data_class, (*OF_THESE_IMAGES, *OF_TABLE))
    parser.add_argument("--calibrated", type=bool, nargs="?", const=True, default=False, help=_CALIBRATED)
    return parser


def add_images(parser: ArgumentParser, data_class: type, settings: Sequence[str] = OF_THESE_IMAGES) -> None:
    """Adds the folder of a run, and those settings of the images that it is applied to."""
    parser.add_argument("run", type=str, help=_RUN)
    of_all = ArgumentParser(exit_on_error=False)
    of_all.add_class_arguments(data_class, "data")
    names = [key.removeprefix("data.") for key in parser_keys(of_all) if key.startswith("data.")]
    skip: set[str | int] = {name for name in names if name not in settings}
    parser.add_class_arguments(data_class, "data", skip=skip, instantiate=False)


def run_among(arguments: Sequence[str]) -> str | None:
    """The argument that is neither an option nor the value of one: it decides which options there are."""
    rest: Iterator[str] = iter(arguments)
    before = ""
    for argument in rest:
        is_value = before == _SWITCH and argument in ("true", "false")
        before = argument
        if not argument.startswith("-") and not is_value:
            return argument
        if is_value:
            continue
        if "=" not in argument and argument not in _FLAGS:
            next(rest, None)
    return None


def check_settings(arguments: Sequence[str], run: TrainedRun, allowed: Sequence[str] = OF_THESE_IMAGES) -> None:
    """Refuses settings of the images that the run has settled, or that would leave some out."""
    for each in statements(arguments):
        section, _, name = each.key.partition(".")
        name, _, _ = name.partition(".")
        if section != "data" or name in allowed or name not in run.config.data:
            continue
        if name in OF_TABLE:
            raise ValueError(f"--{each.key}: every image of data.path is read, and no table; leave it out")
        if name in _OF_TRAINING:
            raise ValueError(
                f"--{each.key}: predict takes every image of data.path, each once, and no labels; leave it out"
            )
        raise ValueError(
            f"--{each.key}: predict reads images as the run was trained with, {name} {run.config.data.get(name)}; "
            "leave it out"
        )
