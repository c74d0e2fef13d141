"""Remarks before and after a training: what a user would want to know of its settings, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer

from ssl_toolkit.data.checks import rest_of_epoch
from ssl_toolkit.data.split_file import FILE, seen_in_pretraining
from ssl_toolkit.evaluation.intervals import Interval, newcombe_difference, wilson_interval
from ssl_toolkit.perf.bfloat16 import has_native_bf16
from ssl_toolkit.run_folder import MODEL, WEIGHTS, predict_command, read_config, sync_command
from ssl_toolkit.weights import read_header


def warmup_remarks(objects: Namespace) -> list[str]:
    """What is to be said of a run that ends before the warm-up of its learning rate does."""
    arguments, schedule = objects.trainer, objects.model.schedule
    per_epoch = len(objects.data.train_dataloader()) / arguments.accumulate_grad_batches
    totals = [arguments.max_steps] if arguments.max_steps > 0 else []
    totals += [int(arguments.max_epochs * per_epoch)] if (arguments.max_epochs or -1) > 0 else []
    if not totals or (warmup := schedule.warmup(min(totals), per_epoch)) < min(totals):
        return []
    return [
        f"the learning rate only rises: its warm-up of {warmup:,.0f} steps is no shorter than the run of "
        f"{min(totals):,}; give model.schedule.warmup_percent"
    ]


def precision_remarks(trainer: Namespace) -> list[str]:
    """What is to be said of a training in bfloat16 on a processor that only imitates it.

    Args:
        trainer: The arguments of the trainer.
    """
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.cuda.is_available())
    if str(trainer.precision) != "bf16-mixed" or not on_cpu or has_native_bf16(torch.device("cpu")):
        return []
    return [
        "this processor does not compute in bfloat16 itself and may be many times slower with it: "
        "--trainer.precision 32-true is the same recipe in float32"
    ]


def left_out(data: Any, trainer: Trainer) -> str | None:
    """What is to be said of images that do not fill a batch; None if there are none, or fewer batches are wanted."""
    if trainer.limit_train_batches != 1.0 or data.whole_batches is False:
        return None
    return rest_of_epoch(data.num_images("train"), data.batch_size * trainer.world_size, data.noun)


def seen_remarks(data: Any, weights: str | Path) -> list[str]:
    """What is to be said of test images with which the weights were pretrained."""
    if not (Path(weights).parent / FILE).is_file():
        return []  # there is nothing to compare with, and the names of all images take long to list
    files = data.files("test")
    try:
        seen = seen_in_pretraining(files, weights)
    except ValueError as error:
        return [f"whether test images were among those of the pretraining is not known: {error}"]
    if not seen:
        return []
    what = "figures on them may be better than on new ones"
    if read_header(weights).get("labels"):
        what = "it knew their labels, so that figures on them say nothing of new ones"
    return [
        f"among the training images of the pretraining ({Path(weights).parent}): {seen:,} of the {len(files):,} test "
        f"{data.noun}; {what}"
    ]


def accuracy_lines(metrics: Mapping[str, Any], num: int) -> list[str]:
    """What a test measured, beside what naming the largest class always would.

    Args:
        metrics: By name.
        num: How many samples were tested.
    """
    if "test/top1" not in metrics or not num:
        return target_lines(metrics, num) if num else []
    of_frames = "test/top1_low" in metrics
    if of_frames:
        top1 = Interval(*(float(metrics[f"test/top1{end}"]) for end in ("", "_low", "_high")))
    else:
        top1 = wilson_interval(round(float(metrics["test/top1"]) * num), num)
    interval = f"95 % interval {_percent(top1.low)} to {_percent(top1.high)}"
    tested = f"the frames of {num:,} sequences" if of_frames else f"{num:,} tested"
    lines = [f"test/top1: {_percent(top1.value)} ({interval}, {tested})"]
    if "test/mean_class_top1" in metrics:
        lines.append(f"test/mean_class_top1: {_percent(metrics['test/mean_class_top1'])}")
    if "test/edit" in metrics:
        scores = ", ".join(_percent(metrics[f"test/f1_{overlap}"]) for overlap in (10, 25, 50))
        lines.append(f"test/f1_10, f1_25 and f1_50 of segments: {scores}; test/edit: {_percent(metrics['test/edit'])}")
    if "test/largest_class_top1" in metrics:
        largest = float(metrics["test/largest_class_top1"])
        verdict = "" if top1.low > largest else ", and the network is not shown to be better"
        lines.append(f"always naming the largest class: {_percent(largest)}{verdict}")
    if "test/class_error" in metrics:
        lines.append(
            f"{float(metrics['test/class_error']):.2f} classes off in the mean, quadratic kappa "
            f"{float(metrics['test/quadratic_kappa']):.3f}"
        )
    if "test/ece" in metrics:
        lines.append(_calibration(metrics))
    if "test/random_weights_top1" in metrics and of_frames:
        random = [float(metrics[f"test/random_weights_{name}"]) for name in ("top1", "top1_high", "f1_50")]
        verdict = "" if top1.low > random[1] else "; their intervals overlap"
        lines.append(
            f"the same head on random weights: {_percent(random[0])}, f1_50 {_percent(random[2])}, difference of top1 "
            f"{_points(top1.value - random[0])} percentage points{verdict}"
        )
    elif "test/random_weights_top1" in metrics:
        random = wilson_interval(round(float(metrics["test/random_weights_top1"]) * num), num)
        gain = newcombe_difference(top1, random)
        verdict = "" if gain.low > 0 else "; the pretrained weights are not shown to be better"
        lines.append(
            f"the same head on random weights: {_percent(random.value)}, difference {_points(gain.value)} "
            f"percentage points (95 % interval {_points(gain.low)} to {_points(gain.high)}){verdict}"
        )
    return lines


def _calibration(metrics: Mapping[str, Any]) -> str:
    line = f"test/ece: {_percent(metrics['test/ece'])} expected calibration error"
    if "test/ece_calibrated" not in metrics:
        return line
    return (
        f"{line}, {_percent(metrics['test/ece_calibrated'])} with the temperature "
        f"{float(metrics['test/temperature']):.3g} (ssl-toolkit predict --calibrated)"
    )


def target_lines(metrics: Mapping[str, Any], num: int) -> list[str]:
    """What a test of predicted numbers or labels measured, beside guessing and the same head on random weights.

    Args:
        metrics: What the test logged.
        num: How many samples were tested.
    """
    lines, tested = [], f"({num:,} tested, no interval)"
    if "test/map" in metrics:
        lines.append(
            f"test/map: mean average precision {_percent(metrics['test/map'])} {tested}; guessing reaches "
            f"{_percent(metrics['test/prevalence'])}"
        )
    if "test/r2" in metrics:
        errors = [
            f", {name} {float(metrics[f'test/{name}']):.4g}" for name in ("mae", "rmse") if f"test/{name}" in metrics
        ]
        r2 = f"test/r2: {float(metrics['test/r2']):.3f}{''.join(errors)}"
        lines.append(f"{r2} {tested}; always saying the mean reaches 0")
    for name, text in (("map", _percent), ("r2", lambda value: f"{float(value):.3f}")):
        if f"test/random_weights_{name}" in metrics:
            lines.append(f"the same head on random weights: {name} {text(metrics[f'test/random_weights_{name}'])}")
    return lines


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f}"


def _percent(fraction: Any) -> str:
    return f"{100 * float(fraction):.1f} %"


def say_what_next(command: str, run: Path, figures: Mapping[str, Any], num_tested: int) -> None:
    """Prints what came out, where things are, and what to do with them."""
    for line in accuracy_lines(figures, num_tested):
        print(line)
    print(f"weights: {run / WEIGHTS}\nreport:  {run / 'report.html'}")
    if sync := sync_command(run):
        print(f"W&B:     {sync}")
    weights = shlex.quote(str(run / WEIGHTS))
    if command == "pretrain":
        print(
            f"next:    ssl-toolkit evaluate --weights {weights} --data.path LABELLED\n"
            f"         ssl-toolkit transfer -c linear_probe --data.path LABELLED --model.weights {weights}"
        )
    elif (run / MODEL).exists():
        print(f"next:    {predict_command(run, read_config(run))}")
