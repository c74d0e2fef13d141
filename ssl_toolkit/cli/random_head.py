"""The same head on random weights, after a transfer with a frozen backbone: what the pretraining was worth."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_toolkit.augment import CenterView
from ssl_toolkit.batch import Batch
from ssl_toolkit.callbacks import ProgressBar
from ssl_toolkit.cli.parser import instantiate
from ssl_toolkit.cli.prepare import build_task
from ssl_toolkit.cli.run_context import one_line_errors, quiet
from ssl_toolkit.distributed.collectives import all_reduce_mean
from ssl_toolkit.distributed.ranks import from_rank_zero, is_rank_zero, world_size
from ssl_toolkit.errors import RunFailed
from ssl_toolkit.evaluation.random_weights import calibrate_batch_norm, random_backbone

# what it may take without being asked for
CHEAP_SECONDS = 600.0
HELP = (
    "Train and test the same head on random weights afterwards, to compare with; by default where the backbone is "
    f"frozen, has weights from a file, and the run took less than {CHEAP_SECONDS / 60:.0f} minutes."
)
# as they are logged, and what the test of any run calls them
FIGURES = {
    "test/random_weights_top1": "test/top1",
    "test/random_weights_mean_class_top1": "test/mean_class_top1",
}


def check_asked(asked: bool | None, task: Any, strategy: Any) -> None:
    """Raises a ValueError where random weights are asked for and cannot be compared with."""
    if asked and (reason := _obstacle(task, strategy)):
        raise ValueError(f"--random_weights compares frozen backbones with their random weights, but {reason}")


def compare_with_random(
    parser: ArgumentParser, config: Namespace, objects: Namespace, trainer: Trainer, seconds: float
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

    Returns:
        The figures by name, such as ``test/random_weights_top1``; empty where they are not measured.
    """
    asked, task = config.random_weights, objects.model
    if _obstacle(task, config.trainer.strategy) or not objects.data.num_images("test"):
        return {}
    if asked is False or (asked is None and not from_rank_zero(0 < seconds <= CHEAP_SECONDS)):
        if asked is None and seconds and is_rank_zero():
            print("the same head on random weights is not measured, since the run was long: --random_weights true does")
        return {}
    if is_rank_zero():
        print(f"training the same head on random weights, for about {seconds:.0f} s", flush=True)
    try:
        with quiet(), one_line_errors(), contextlib.redirect_stdout(io.StringIO()):
            found = _train_and_test(parser, config, objects, trainer)
    except (RunFailed, ValueError) as error:
        if is_rank_zero():
            print(f"the same head on random weights could not be measured: {error}")
        return {}
    figures = {name: float(found[tested]) for name, tested in FIGURES.items() if tested in found}
    for logger in trainer.loggers:
        logger.log_metrics(figures, step=trainer.global_step)
        logger.save()
    return figures


def _train_and_test(
    parser: ArgumentParser, config: Namespace, objects: Namespace, trainer: Trainer
) -> Mapping[str, Any]:
    task: Any = build_task(parser, config)
    other = random_backbone(task.backbone, config.seed)
    images = (task.images_of(batch) for batch in objects.data.loader("train", shuffle=True))
    batches = (Batch(each, torch.arange(len(each.sizes)), torch.zeros(0), 0) for each in images)
    calibrate_batch_norm(other, batches, CenterView(objects.model.image_size), 10_000 // world_size())
    for norm in (module for module in other.modules() if isinstance(module, _BatchNorm)):
        for statistic in (norm.running_mean, norm.running_var):
            if statistic is not None:
                statistic.copy_(all_reduce_mean(statistic))
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
    again.fit(task, datamodule=objects.data)
    again.test(task, datamodule=objects.data, verbose=False)
    return again.callback_metrics


def _obstacle(task: Any, strategy: Any) -> str | None:
    """Why there is nothing to compare, or no way to; None if there is."""
    if not getattr(task, "freeze_backbone", False):
        return "this one is trained: a second run without model.weights is the comparison"
    if getattr(task, "pretraining", None) is None:
        return "this one has no weights of a file"
    if strategy not in ("auto", "ddp"):
        return f"trainer.strategy is {strategy}, expected auto or ddp"
    return None
