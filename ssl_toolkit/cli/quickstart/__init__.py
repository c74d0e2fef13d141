"""The command ``quickstart``: pretrain twice, transfer and compare on built-in images, in five minutes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from ssl_toolkit.augment import CenterView
from ssl_toolkit.cli.parser import parse
from ssl_toolkit.cli.quickstart.comparison import Result, frozen, supervised, typical_speed
from ssl_toolkit.cli.quickstart.page import write_comparison
from ssl_toolkit.cli.train import train
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation import Features, calibrate_batch_norm, random_backbone
from ssl_toolkit.evaluation.features import chosen_device
from ssl_toolkit.perf.bfloat16 import has_native_bf16
from ssl_toolkit.run_folder import WEIGHTS
from ssl_toolkit.weights import load_backbone

IMAGE_SIZE = 64
NUM_DRAWS = 3
PRETEXT_TASKS = {"simclr": "SimCLR", "patch_position": "patch position"}


def recipe(name: str) -> str:
    """The path of one of the recipes that come with this package."""
    return str(files("ssl_toolkit.cli.quickstart") / f"{name}.yaml")


def quickstart(arguments: Sequence[str]) -> None:
    """Runs the quickstart.

    Args:
        arguments: What follows the command.

    Raises:
        ValueError: If the folder holds an earlier quickstart.
    """
    parser = ArgumentParser(
        prog="ssl-toolkit quickstart",
        description="Pretrains a small backbone twice on built-in images, transfers it, and compares it honestly.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=str, default="runs/quickstart", help="Folder of the runs and of the page.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the pretraining runs and of the labelled sets.")
    parser.add_argument("--num_images", type=int, default=6000, help="Built-in images, a third of them for testing.")
    parser.add_argument("--labels_per_class", type=int, default=10, help="Size of the small labelled sets.")
    parser.add_argument("--max_epochs", type=int | None, default=None, help="Shorter or longer pretraining.")
    config = parse(parser, arguments)
    out = Path(config.out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: choose another folder with --out, or remove it")

    start = time.monotonic()
    minutes = _pretrain(config, out)
    print(f"\nTransferring: {NUM_DRAWS} draws of {config.labels_per_class} labelled images a class")
    data = ImageData(
        source="procedural",
        max_images=config.num_images,
        image_size=IMAGE_SIZE,
        val_fraction=0.05,
        test_fraction=1 / 3,
        cache="memory",
    )
    data.setup("fit")
    features, results = _frozen(config, out, data, minutes)
    results.append(_supervised(config, out))
    total = (time.monotonic() - start) / 60
    (out / "comparison.json").write_text(json.dumps([asdict(result) for result in results], indent=2), encoding="utf-8")
    page = write_comparison(out, results, data, features, list(PRETEXT_TASKS), config.labels_per_class, total)
    _print(results, config.labels_per_class, data.num_images("test"))
    print(
        f"\n{total:.1f} minutes in all. The page: {page}\n"
        "\nNow with your own images (IMAGES: any folder; LABELLED: a sub-folder for each class):\n"
        "  ssl-toolkit pretrain -c simclr --data.path IMAGES --out runs/mine\n"
        "  ssl-toolkit evaluate --weights runs/mine/backbone.safetensors --data.path LABELLED\n"
        "  ssl-toolkit transfer -c linear_probe --data.path LABELLED "
        "--model.weights runs/mine/backbone.safetensors --out runs/mine-probe"
    )


def _precision() -> list[str]:
    """float32 on a processor that does not compute in bfloat16 itself: imitated it took twenty times as long on one."""
    return [] if has_native_bf16(chosen_device(None)) else ["--trainer.precision", "32-true"]


def _pretrain(config: Namespace, out: Path) -> dict[str, float]:
    """Pretrains with each task; the minutes that it took, by the task's name."""
    length = ["--trainer.max_epochs", str(config.max_epochs)] if config.max_epochs else []
    minutes = {}
    for name, title in PRETEXT_TASKS.items():
        print(f"\nPretraining with {title}, without labels")
        began = time.monotonic()
        options = ["-c", recipe(name), "--out", str(out / name), "--seed", str(config.seed), *length]
        train("pretrain", [*options, *_precision(), "--data.max_images", str(config.num_images)], quietly=True)
        minutes[name] = (time.monotonic() - began) / 60
    return minutes


def _frozen(
    config: Namespace, out: Path, data: ImageData, minutes: dict[str, float]
) -> tuple[dict[str, Features], list[Result]]:
    """Linear heads on the frozen features of random and of pretrained weights.

    Args:
        config: Of the command.
        out: Folder of the runs.
        data: The images, labelled.
        minutes: Of the pretraining runs, by the task's name.

    Returns:
        The features of the test images and the results, by the weights.
    """
    backbones = {name: load_backbone(out / name / WEIGHTS) for name in PRETEXT_TASKS}
    chance = random_backbone(backbones["simclr"], config.seed)
    calibrate_batch_norm(chance, data.loader("train", shuffle=True), CenterView(IMAGE_SIZE))
    features, results = {}, []
    for name, backbone in {"random": chance, **backbones}.items():
        began = time.monotonic()
        features[name], draws = frozen(backbone, data, config.labels_per_class, NUM_DRAWS, config.seed)
        title = PRETEXT_TASKS.get(name, "random weights")
        spent = minutes.get(name, 0.0) + (time.monotonic() - began) / 60
        speed = typical_speed(out / name) if name in PRETEXT_TASKS else None
        results.append(Result(title, "linear head on frozen features", draws, spent, speed))
    return features, results


def _supervised(config: Namespace, out: Path) -> Result:
    """The same network trained from random weights on the labelled images alone."""
    began = time.monotonic()
    options = ["-c", recipe("supervised"), "--data.max_images", str(config.num_images)]
    options += ["--data.labels_per_class", str(config.labels_per_class), *_precision()]
    draws, speed = supervised(options, out / "supervised", NUM_DRAWS, config.seed)
    spent = (time.monotonic() - began) / 60 / NUM_DRAWS
    return Result("supervised", "everything trained from random weights", draws, spent, speed)


def _print(results: list[Result], labels_per_class: int, num_test: int) -> None:
    table = Table(
        title=f"top-1 of {num_test:,} held-out images, from {labels_per_class} labelled images a class: "
        f"mean ± spread of {NUM_DRAWS} draws"
    )
    for header in ("weights", "transfer", "top-1", "minutes", "images/s"):
        table.add_column(header, justify="left" if header in ("weights", "transfer") else "right")
    for result in results:
        table.add_row(*result.cells())
    Console().print(table)
