"""The command ``compare``: several weights files on the same images, each pair by a paired test."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.apply_func import move_data_to_device
from rich.console import Console
from torch import Tensor

from ssl_toolkit.cli.features import check_one_process, say_line
from ssl_toolkit.cli.from_python import called_from_python
from ssl_toolkit.cli.parser import parse
from ssl_toolkit.cli.predict import open_trained, trained_task
from ssl_toolkit.cli.python_arguments import options
from ssl_toolkit.cli.recipes import find
from ssl_toolkit.cli.remarks import seen_remarks
from ssl_toolkit.cli.train import train
from ssl_toolkit.data import ImageData
from ssl_toolkit.data.split_file import FILE as SPLIT_FILE
from ssl_toolkit.evaluation.compare import OpenData
from ssl_toolkit.evaluation.compare import compare as measure
from ssl_toolkit.evaluation.comparison import Comparison
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import save_backbone

_WEIGHTS = "Two or more weights files, as in --weights A.safetensors B.safetensors."
_PATH = "Folders of labelled images, one or several data sets; none for a source without a folder."
_PROTOCOLS = "Some of knn, linear, few-label and finetune."
_OUT = "File for the figures, JSON; it must not exist."


def compare(arguments: Sequence[str]) -> Comparison:
    """Compares weights files on the same images, prints the table and what it shows, and writes the figures."""
    check_one_process("compare")
    parser = ArgumentParser(
        prog="ssl-toolkit compare",
        description="Compares several weights files on the same images, each pair by a paired test.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", action="config", help="Options in a YAML file.")
    parser.add_argument("--weights", nargs="+", type=str, default=[], help=_WEIGHTS)
    parser.add_argument("--protocol", nargs="+", type=str, default=["knn", "linear"], help=_PROTOCOLS)
    parser.add_function_arguments(measure, skip={"weights", "data", "protocols", "finetune", "say"})
    parser.add_argument("--out", type=str, default="compare.json", help=_OUT)
    parser.add_argument("--finetune.config", type=str, default="finetune", help="Recipe of transfer, a name or a file.")
    parser.add_argument("--finetune.epochs", type=int, default=10, help="Epochs of each fine-tuning.")
    parser.add_argument(
        "--finetune.out",
        type=str | None,
        default=None,
        help="Folder that keeps the runs of fine-tuning; none by default.",
    )
    parser.add_argument("--data.path", nargs="+", type=str, default=[], help=_PATH)
    parser.add_class_arguments(ImageData, "data", skip={"path", "image_size", "seed"}, instantiate=False)
    parser.set_defaults({"data.labels": "folder", "data.test_fraction": 0.2})
    config = parse(parser, arguments)
    out = Path(config.out)
    if out.exists():
        raise ValueError(f"{out} exists; give another --out, or move it away")
    if config.finetune.epochs < 1:
        raise ValueError(f"--finetune.epochs is {config.finetune.epochs}, expected at least 1")
    if "finetune" in config.protocol:
        find(config.finetune.config, "transfer")
        kept = config.finetune.out and Path(config.finetune.out)
        if kept and kept.exists() and (not kept.is_dir() or any(kept.iterdir())):
            raise ValueError(f"--finetune.out {kept} is not empty; give another folder")
    settings = {name: each for name, each in vars(config.data).items() if name != "path"} | {"seed": config.seed}
    sets = _sets(config.data, settings)
    given: dict[str, Any] = {
        name: each
        for name, each in vars(config).items()
        if name not in ("config", "out", "finetune", "data", "protocol")
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(config.finetune.out or temporary)
        tuned = _FineTuning(config.finetune, folder, sets, settings, config.seed)
        comparison = measure(
            **given,
            data={name: _opener(path, settings) for name, path in sets.items()},
            protocols=config.protocol,
            finetune=tuned,
            say=say_line,
        )
    Console().print(comparison.table())
    for line in comparison.words():
        print(line)
    for remark in _seen(sets, settings, config.weights):
        print(remark)
    comparison.save(out)
    print(f"figures: {out}")
    return comparison


def _sets(data: Namespace, settings: Mapping[str, Any]) -> dict[str, str | None]:
    """The path of each data set, by its name: the folder's own, or all of it where two are called the same."""
    paths: list[str] = data.path
    if len({str(Path(path).resolve()) for path in paths}) < len(paths):
        raise ValueError("the same data.path is given twice")
    for path in paths if settings["source"] == "folder" else ():
        if not Path(path).is_dir():
            raise ValueError(f"data.path: the folder {path!r} does not exist")  # before the others take their time
    if not paths:
        return {str(settings["source"]): None}
    names = [Path(path).name or path for path in paths]
    return {name if names.count(name) == 1 else path: path for name, path in zip(names, paths, strict=True)}


def _opener(path: str | None, settings: Mapping[str, Any]) -> OpenData:
    return lambda size: ImageData(**settings, path=path, image_size=size)


def _seen(sets: Mapping[str, str | None], settings: Mapping[str, Any], weights: Sequence[str]) -> list[str]:
    """What is to be said of test images with which weights were pretrained, by data set."""
    remarks = []
    for name, path in sets.items():
        with_splits = [each for each in weights if (Path(each).parent / SPLIT_FILE).is_file()]
        images = ImageData(**settings, path=path) if with_splits else None
        remarks += [f"{name}: {line}" for each in with_splits for line in seen_remarks(images, each)]
    return remarks


class _FineTuning:
    """Fine-tunes a backbone by the command ``transfer``, and predicts the test images with what it has trained.

    Args:
        settings: The recipe and the epochs.
        folder: Of the runs.
        sets: The paths of the data sets.
        data: Settings of the images.
        seed: Of all trainings.
    """

    def __init__(
        self,
        settings: Namespace,
        folder: Path,
        sets: Mapping[str, str | None],
        data: Mapping[str, Any],
        seed: int,
    ) -> None:
        self._settings, self._folder, self._sets, self._data, self._seed = settings, folder, sets, data, seed

    def __call__(self, backbone: Backbone, weights: str, name: str, images: ImageData, size: int) -> Tensor:
        # two folders may be called the same
        number = list(self._sets).index(name)
        place = self._folder / f"{number}-{Path(name).name}-{weights.replace(' ', '-')}"
        place.mkdir(parents=True, exist_ok=False)
        file = place / "start.safetensors"
        save_backbone(file, backbone)
        # the run's seed is that of the images, too; the batch is the recipe's
        given = {"path": self._sets[name], **self._data, "image_size": size, "seed": None, "batch_size": None}
        of_run: dict[str, Any] = {
            "model.weights": str(file),
            "seed": self._seed,
            "trainer.max_epochs": self._settings.epochs,
            "tracker": "none",
            "out": str(place / "run"),
            "data": {key: each for key, each in given.items() if each is not None},
        }
        if self._settings.config == "finetune":
            of_run["model.augmentation.size"] = size  # a recipe of the user's own has its own
        with called_from_python():
            run = train("transfer", ["-c", self._settings.config, *options(of_run, None)], quietly=True)
            task, header = trained_task(open_trained(str(run)))
        if header.get("class_names") != images.class_names:
            raise ValueError(f"{shlex.quote(str(run))} has classes other than {name}: nothing can be compared")
        predictor: Any = task.to(next(backbone.parameters()).device)
        with torch.inference_mode():
            return torch.cat(
                [
                    predictor.predict(move_data_to_device(batch, task.device)).argmax(dim=1).cpu()
                    for batch in images.loader("test")
                ]
            )
