"""The command ``flatness``: compares the minima of runs."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer

from ssl_toolkit.checkpoint.io import AtomicCheckpointIO
from ssl_toolkit.cli.command_line import CommandLine
from ssl_toolkit.cli.parser import parse
from ssl_toolkit.cli.prepare import prepare
from ssl_toolkit.cli.run_context import one_line_errors, quiet
from ssl_toolkit.cli.training_parser import training_parser
from ssl_toolkit.errors import nearest
from ssl_toolkit.evaluation.features import evaluation_mode
from ssl_toolkit.evaluation.flatness import Flatness
from ssl_toolkit.evaluation.flatness import flatness as measure
from ssl_toolkit.io.atomic import write_atomically
from ssl_toolkit.random import sample_keys
from ssl_toolkit.report.drawing import COLOURS, FONT_SIZE, new_figure
from ssl_toolkit.run_folder import CONFIG, newest_checkpoint, read_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def flatness(arguments: Sequence[str]) -> None:
    """Measures how flat the minima of runs are, and prints them side by side."""
    parser = ArgumentParser(
        prog="ssl-toolkit flatness",
        description="How flat is what runs have found? The loss of validation images around the newest checkpoint.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=str, help="Folders of runs; compare only those of one task and data.")
    parser.add_argument("--out", type=str | None, default=None, help="File for a picture, PNG; the figures lie beside.")
    parser.add_argument("--directions", type=int, default=5, help="Random directions.")
    parser.add_argument("--points", type=int, default=11, help="Points along a direction, odd.")
    parser.add_argument(
        "--radius", type=float, default=0.2, help="The distance whose rise is told, above 0, at most 1."
    )
    parser.add_argument("--max_images", type=int, default=512, help="Validation images.")
    parser.add_argument("--seed", type=int, default=0, help="Of the directions.")
    config = parse(parser, arguments)
    counts = {name: config[name] for name in ("directions", "points", "max_images")}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"--{name} is {count}, expected at least 1")
    if not 0 < config.radius <= 1:
        raise ValueError(f"--radius is {config.radius:g}, expected a number above 0 and at most 1")
    alphas = [*np.linspace(-1, 1, config.points), -config.radius, config.radius]
    found = {}
    for run in map(check_run, dict.fromkeys(config.runs)):
        found[str(run)] = of_run(run, alphas, config.directions, config.max_images, config.seed)
    show(found, config.radius)
    if config.out is not None:
        save(found, Path(config.out), config.radius)
        print(f"picture: {config.out}")


def check_run(path: str) -> Path:
    """The folder of a run that has a checkpoint.

    Raises:
        ValueError: It is none.
    """
    run = Path(path)
    if not (run / CONFIG).is_file():
        siblings = [str(other.parent) for other in run.parent.glob(f"*/{CONFIG}")]
        raise ValueError(f"{run} is not the folder of a run: it has no {CONFIG}{nearest(str(run), siblings)}")
    if newest_checkpoint(run) is None:
        raise ValueError(f"{run} has no checkpoint yet: train it first, ssl-toolkit pretrain --resume {run}")
    return run


def of_run(run: Path, alphas: Sequence[float], num_directions: int, max_images: int, seed: int) -> Flatness:
    """Flatness at the newest checkpoint of a run, whose task and data are built again; the run stays as it is.

    Args:
        run: The run's folder.
        alphas: Distances as fractions of the weights' length.
        num_directions: How many directions.
        max_images: How many validation images, spread evenly over them.
        seed: Of the directions.
    """
    # only a pretraining is evaluated while it goes on
    side = "pretrain" if "evaluation" in read_config(run) else "transfer"
    line = CommandLine(side, ["--config", str(run / CONFIG)])
    parser = training_parser(line)
    objects = prepare(parser, parse(parser, line.arguments))
    if not objects.data.num_images("val"):
        raise ValueError(f"{run}: there are no validation images to measure the loss with")
    around = _Around(alphas, num_directions, max_images, seed)
    with quiet(), one_line_errors():
        # float32 whatever the run computed in: rounding to bfloat16 is as large as what is to be seen
        trainer = Trainer(
            accelerator=objects.trainer.accelerator, devices=1, precision="32-true", logger=False, callbacks=[around],
            limit_val_batches=1, inference_mode=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False, plugins=[AtomicCheckpointIO()],
        )  # fmt: skip
        checkpoint = str(newest_checkpoint(run))
        trainer.validate(objects.model, objects.data, ckpt_path=checkpoint, weights_only=True, verbose=False)
    assert around.found is not None
    return around.found


class _Around(Callback):
    """Measures when Lightning has built the task, loaded its weights and put it on its device."""

    def __init__(self, alphas: Sequence[float], num_directions: int, max_images: int, seed: int) -> None:
        self.alphas = alphas
        self.num_directions = num_directions
        self.max_images = max_images
        self.seed = seed
        self.found: Flatness | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures."""
        task: Any = pl_module
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue] - set out of its sight
        indices = data.indices("val")
        chosen = np.linspace(0, len(indices) - 1, min(self.max_images, len(indices))).astype(int)
        loader = data.loader("val", indices=indices[chosen])
        batches = [trainer.strategy.batch_to_device(batch) for batch in loader]

        def loss() -> float:
            # what is random in a view is drawn from its key: always the same
            parts = [
                (task.compute(batch, sample_keys(task.seed, 0, batch.indices)).loss, len(batch.indices))
                for batch in batches
            ]
            return float(sum(part * num for part, num in parts) / sum(num for _, num in parts))

        weights = {name: weight for name, weight in task.named_parameters() if weight.requires_grad}
        with evaluation_mode(task), torch.no_grad():
            self.found = measure(loss, weights, self.alphas, self.num_directions, self.seed)


def show(found: Mapping[str, Flatness], radius: float) -> None:
    """Prints a table.

    Args:
        found: By the run's folder.
        radius: The distance whose rise is told.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "loss", f"rise at {radius:g} of the weights' length")
    for name, each in found.items():
        mean, spread = each.rise(radius)
        table.add_row(name, f"{each.loss:.4f}", f"{mean:.4f} ± {spread:.4f}")
    Console().print(table)


def save(found: Mapping[str, Flatness], file: Path, radius: float) -> None:
    """Writes a picture, and the figures as JSON beside it.

    Args:
        found: By the run's folder.
        file: The picture.
        radius: The distance whose rise is told.
    """
    if file.suffix != ".png":
        raise ValueError(f"--out {file} is no PNG: name the picture, such as flatness.png")
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = io.BytesIO()
    draw(found).savefig(picture, format="png", dpi=130)
    write_atomically(file, picture.getvalue())
    figures = {
        name: {
            "loss": each.loss, "radius": radius, "rise": each.rise(radius)[0], "spread": each.rise(radius)[1],
            "alphas": each.alphas.tolist(), "losses": each.losses.tolist(),
        }
        for name, each in found.items()
    }  # fmt: skip
    write_atomically(file.with_suffix(".json"), json.dumps(figures, indent=2))


def draw(found: Mapping[str, Flatness]) -> Figure:
    """The loss over the distance: for each run the mean of the directions, and their spread as a band."""
    figure, axes = new_figure(6.0, 3.2)
    for (name, each), colour in zip(found.items(), itertools.cycle(COLOURS)):
        mean, spread = each.losses.mean(axis=0), each.losses.std(axis=0)
        axes.plot(each.alphas, mean, color=colour, linewidth=1.5, label=name)
        axes.fill_between(each.alphas, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("distance along random directions, as a fraction of each filter's length", fontsize=FONT_SIZE)
    axes.set_ylabel("validation loss", fontsize=FONT_SIZE)
    axes.legend(frameon=False, fontsize=FONT_SIZE)
    return figure
