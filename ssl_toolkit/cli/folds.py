"""``transfer --folds``: one training for each fold of the labelled images, and the figures of all of them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace

from ssl_toolkit.cli.command_line import CommandLine
from ssl_toolkit.cli.resume_changes import changed_settings
from ssl_toolkit.data.split_file import FILE as SPLIT_FILE
from ssl_toolkit.data.split_file import read_split_file
from ssl_toolkit.evaluation.intervals import mean_and_spread
from ssl_toolkit.io.atomic import write_atomically
from ssl_toolkit.io.schema import ANYTHING, AT_LEAST_ONE, Each
from ssl_toolkit.run_folder import CONFIG, new_run, read_json
from ssl_toolkit.runtime.run_lock import held
from ssl_toolkit.tracking.metrics_csv import last_values

FILE = "folds.json"
HELP = (
    "Train so many times, each time testing another fold of the images (RUN/fold-1, ...), and write mean and standard "
    "deviation of each figure of the tests to RUN/folds.json. The same command line with the same --out goes on with "
    "folds that were stopped."
)
_SCHEMA = {"folds": AT_LEAST_ONE, "settings": Each(ANYTHING), "finished": [AT_LEAST_ONE], "figures": Each(ANYTHING)}
Train = Callable[[Sequence[str]], Path]


def run_folds(
    line: CommandLine, given: Sequence[str], config: Namespace, settings: dict[str, Any], train: Train
) -> Path:
    """Runs the trainings of all folds, one after the other, and writes what they measured.

    Args:
        line: The command line.
        given: Its arguments.
        config: What they say, with ``folds``.
        settings: The same as plain data.
        train: Runs the command with other arguments, and returns the run's folder.

    Returns:
        The folder that holds the runs and the figures.

    Raises:
        ValueError: For whatever the user can mend, in one line.
    """
    num = config.folds
    _check(line, config)
    settings = json.loads(json.dumps(settings))
    if config.out is not None and (Path(config.out) / FILE).is_file():
        folder = Path(config.out)
    else:
        folder = new_run(config.out, config.model.class_path.rpartition(".")[2].lower())
    with held(folder, is_new=False):
        new = {"folds": num, "settings": settings, "finished": [], "figures": {}}
        known = read_json(folder / FILE, _SCHEMA) or new
        _check_same(folder, known, num, settings)
        try:
            write_folds(folder, known)
            for fold in range(1, num + 1):
                if fold in known["finished"]:
                    continue
                own = folder / f"fold-{fold}"
                is_resumed = (own / CONFIG).is_file()
                print(f"fold {fold} of {num}: {own}{', which goes on' if is_resumed else ''}", flush=True)
                of_fold = ["--folds", "null", "--data.fold", f"{fold}/{num}", "--data.test_fraction", "0"]
                train(["--resume", str(own)] if is_resumed else [*given, *of_fold, "--out", str(own)])
                runs = [folder / f"fold-{each}" for each in (*known["finished"], fold)]
                check_apart(runs)
                known["finished"].append(fold)
                known["figures"] = summary([last_values(run) for run in runs])
                write_folds(folder, known)
        finally:
            if not any((folder / f"fold-{fold}" / CONFIG).is_file() for fold in range(1, num + 1)):
                (folder / FILE).unlink(missing_ok=True)  # nothing has begun: the folder is as it was
    for text in table(known["figures"], num):
        print(text)
    print(f"folds: {folder / FILE}")
    return folder


def summary(tested: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation of each figure over the folds.

    Args:
        tested: The figures of each fold by name; those whose name does not begin with ``test/`` are left out.

    Returns:
        By the name of each figure its ``mean``, its ``std`` (that of a sample: divided by one less) and its ``values``,
        one for each fold, with None where a fold has none (a class of which it has no test image, say).
    """
    names = dict.fromkeys(name for figures in tested for name in figures if name.startswith("test/"))
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        values = [figures.get(name, math.nan) for figures in tested]
        known = [value for value in values if math.isfinite(value)]
        if known:
            spread = mean_and_spread(known)
            kept = [value if math.isfinite(value) else None for value in values]
            found[name] = {"mean": spread.mean, "std": spread.std, "values": kept}
    return found


def table(figures: Mapping[str, Mapping[str, Any]], num: int) -> list[str]:
    """The lines of a table of what `summary` returns.

    Args:
        figures: By name.
        num: How many folds there are.
    """
    width = max([len("figure"), *map(len, figures)])
    lines = [f"{'figure':{width}}  {'mean':>9}  {'std':>9}  folds"]
    for name, each in figures.items():
        values = ["-" if value is None else f"{value:.4g}" for value in each["values"]]
        lines.append(f"{name:{width}}  {each['mean']:>9.4g}  {each['std']:>9.4g}  {' '.join(values)}")
    lines.append(
        f"std: standard deviation over {num} folds, which says how much the choice of the images matters; it is not "
        "the error of the mean, because the folds share training images"
    )
    return lines


def check_apart(runs: Sequence[Path]) -> None:
    """Raises a ValueError unless runs have the same images, and none of them tests an image of another one."""
    names: list[str] | None = None
    times: Any = 0
    for run in runs:
        if not (run / SPLIT_FILE).is_file():
            return
        main = read_split_file(run)["train"]
        names = main.names if names is None else names
        if main.names != names:
            raise ValueError(
                f"the images have changed since {runs[0]} was begun, so that folds would overlap: bring them back and "
                f"remove {run}, or begin again with another --out"
            )
        times = times + (main.splits == "test")
    if np.any(times > 1):
        raise ValueError(
            f"{int((times > 1).sum()):,} images are tested in more than one fold of {runs[0].parent}, because other "
            "images were taken for identical in each: give data.range, so that the folds do not depend on it"
        )


def write_folds(folder: Path, known: Mapping[str, Any]) -> None:
    """Writes what is known of the folds, whole or not at all."""
    write_atomically(folder / FILE, json.dumps(known, indent=2, allow_nan=True) + "\n")


def _check(line: CommandLine, config: Namespace) -> None:
    if config.folds < 2:
        raise ValueError(f"--folds is {config.folds}, expected at least 2")
    under_srun = os.environ.get("SLURM_NTASKS", "1") if "SLURM_PROCID" in os.environ else "1"
    if int(os.environ.get("WORLD_SIZE") or under_srun) > 1:
        raise ValueError(
            "--folds trains one fold after the other in processes that it starts itself: run it without torchrun or "
            "srun and give --trainer.devices, or run each fold with --data.fold"
        )
    if line.resumed is not None:
        raise ValueError("--folds goes on by the same command line with the same --out: leave --resume out")
    for option in ("budget", "speed"):
        if config[option] is not None:
            raise ValueError(f"--{option} would settle each fold in another way, so that they differ: leave it out")
    if config.data.fold is not None:
        raise ValueError("--folds runs every fold, --data.fold one of them: give one of the two")
    if "data.test_fraction" in line.set_by_options and config.data.test_fraction:
        raise ValueError("--folds says which images are tested: leave --data.test_fraction out")


def _check_same(folder: Path, known: Mapping[str, Any], num: int, settings: dict[str, Any]) -> None:
    """Refuses to go on with folds that were begun in another way."""
    changed = {"folds": (known["folds"], num)} if known["folds"] != num else {}
    changed |= changed_settings(known["settings"], settings)
    if not changed and known["settings"] == settings:
        return
    what = "settings"
    for key, (before, now) in changed.items():
        what = f"{key.replace('.init_args', '')} is {now}, before {before}"
        break
    raise ValueError(
        f"the folds in {folder} were begun with other settings ({what}): give the same command line to go on, or "
        "another --out to begin again"
    )
