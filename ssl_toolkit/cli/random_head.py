"""The same head on random weights, after a transfer with a frozen backbone: what the pretraining was worth."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer

from ssl_toolkit.augment import CenterView
from ssl_toolkit.batch import Batch
from ssl_toolkit.callbacks import ProgressBar
from ssl_toolkit.cli.parser import instantiate
from ssl_toolkit.cli.prepare import build_task
from ssl_toolkit.cli.run_context import one_line_errors, quiet
from ssl_toolkit.distributed.ranks import from_rank_zero, is_rank_zero, world_size
from ssl_toolkit.errors import RunFailed
from ssl_toolkit.evaluation.random_weights import calibrate_batch_norm, random_backbone
from ssl_toolkit.runtime.rank_failure import end_on_rank_failure

# what it may take without being asked for
CHEAP_SECONDS = 600.0
HELP = (
    "Train and test the same head on random weights afterwards, to compare with; by default where the backbone is "
    f"frozen, has weights from a file, and the run took less than {CHEAP_SECONDS / 60:.0f} minutes."
)
# as they are logged, and what the test of any run calls them
FIGURES = {
    f"test/random_weights_{name}": f"test/{name}"
    for name in (
        "top1",
        "mean_class_top1",
        "quadratic_kappa",
        "map",
        "r2",
        "mae",
        "top1_low",
        "top1_high",
        "f1_50",
        "edit",
    )
}


def check_asked(asked: bool | None, objects: Namespace, trainer: Namespace) -> None:
    """Raises a ValueError where random weights are asked for and cannot be compared with."""
    if asked and not objects.data.num_images("test"):
        raise ValueError("--random_weights needs a test split: set data.test_fraction or data.test_path")
    if asked and (reason := _obstacle(objects.model, trainer)):
        raise ValueError(f"--random_weights compares frozen backbones with their random weights, but {reason}")


def compare_with_random(
    parser: ArgumentParser,
    config: Namespace,
    objects: Namespace,
    trainer: Trainer,
    seconds: float,
    earlier: Mapping[str, float],
) -> dict[str, float]:
    """Trains and tests the head on random weights, and logs the figures with those of the run.

    Recipe, data, first weights of the head and order of the images are the run's own. The backbone gets the random
    weights and BatchNorm statistics of an evaluation (`calibrate_batch_norm`).

    Args:
        parser: Of the configuration.
        config: Of the run.
        objects: What it describes.
        trainer: That has trained and tested the run.
        seconds: How long that took; 0 if there was nothing left to train.
        earlier: The run's figures before this start; those of random weights are kept where nothing was left to train.

    Returns:
        The figures by name, such as ``test/random_weights_top1``; empty where they are not measured.
    """
    asked = config.random_weights
    if asked is False or _obstacle(objects.model, config.trainer) or not objects.data.num_images("test"):
        return {}
    if asked is None and not from_rank_zero(0 < seconds <= CHEAP_SECONDS):
        kept = {} if seconds else {name: earlier[name] for name in FIGURES if name in earlier}
        if kept:
            return _logged(kept, trainer)
        if is_rank_zero():
            reason = "the run was long" if seconds else "nothing was left to train"
            print(f"the same head on random weights is not measured, since {reason}: --random_weights true does")
        return {}
    if is_rank_zero():
        duration = f", for about {seconds:.0f} s" if seconds else ""
        print(f"training the same head on random weights{duration}", flush=True)
    try:
        with quiet(), one_line_errors(), contextlib.redirect_stdout(io.StringIO()):
            found = _train_and_test(parser, config, objects, trainer)
    except (RunFailed, ValueError) as error:
        if world_size() > 1:
            raise  # the other processes wait for this one
        print(f"the same head on random weights could not be measured: {error}")
        return {}
    return _logged({name: float(found[tested]) for name, tested in FIGURES.items() if tested in found}, trainer)


def _logged(figures: dict[str, float], trainer: Trainer) -> dict[str, float]:
    for logger in trainer.loggers:
        logger.log_metrics(figures, step=trainer.global_step)
        logger.save()
    return figures


def _train_and_test(
    parser: ArgumentParser, config: Namespace, objects: Namespace, trainer: Trainer
) -> Mapping[str, Any]:
    task: Any = build_task(parser, config)
    other = random_backbone(task.backbone, config.seed)
    # by every process, so that its figures do not depend on how many there are
    images = (task.images_of(batch) for batch in objects.data.loader("train", shuffle=True, by_all=True))
    batches = (Batch(each, torch.arange(len(each.sizes)), torch.zeros(0), 0) for each in images)
    calibrate_batch_norm(other, batches, CenterView(objects.model.image_size))
    task.backbone.model.load_state_dict(other.model.state_dict())
    settings = ("nonfinite", "average", "early_stopping")
    fresh = instantiate(parser, Namespace({name: config[name] for name in settings}))
    again = Trainer(
        **vars(objects.trainer),
        logger=False,
        callbacks=[ProgressBar(), *(fresh[name] for name in settings)],
        default_root_dir=trainer.default_root_dir,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with end_on_rank_failure(Path(trainer.default_root_dir), again, objects.checkpoint.preemption):
        again.fit(task, datamodule=objects.data)
        again.test(task, datamodule=objects.data, verbose=False)
    return again.callback_metrics


def _obstacle(task: Any, trainer: Namespace) -> str | None:
    """Why there is nothing to compare, or no way to; None if there is."""
    if not getattr(task, "freeze_backbone", False):
        return "this one is trained: a second run without model.weights is the comparison"
    if getattr(task, "pretraining", None) is None:
        return "this one has no weights of a file"
    if trainer.strategy not in ("auto", "ddp"):
        return f"trainer.strategy is {trainer.strategy}, expected auto or ddp"
    if trainer.callbacks or trainer.plugins:
        return "trainer.callbacks and trainer.plugins are objects of one run"
    return None
