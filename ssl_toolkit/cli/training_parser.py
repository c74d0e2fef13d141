"""The parser of ``pretrain`` and ``transfer``: what classes say of their arguments is what the command line offers."""

from __future__ import annotations

from typing import Literal

from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer

from ssl_toolkit.callbacks import EarlyStopping, NonFinite, OnlineEvaluation, ProgressiveSize, WeightAverage
from ssl_toolkit.callbacks.checkpoint import Checkpoint
from ssl_toolkit.cli.command_line import CommandLine
from ssl_toolkit.cli.folds import HELP as FOLDS
from ssl_toolkit.cli.random_head import HELP as RANDOM_HEAD
from ssl_toolkit.cli.recipes import shipped
from ssl_toolkit.health.monitor import HealthMonitor
from ssl_toolkit.task import Task
from ssl_toolkit.tracking.loggers import Tracker

# what the run folder, the tracker and the project's own callbacks decide
OWN_TRAINER_ARGUMENTS: set[str | int] = {
    "logger", "default_root_dir", "enable_checkpointing", "enable_progress_bar", "enable_model_summary",
    "use_distributed_sampler", "reload_dataloaders_every_n_epochs", "sync_batchnorm",
}  # fmt: skip

BUDGET = (
    "Time for all of it (90s, 60min, 1.5h, 2d): a short trial measures the speed, then as many steps are trained as "
    "fit, with the schedule over just these; they take the place of trainer.max_epochs."
)


SPEED = (
    "auto: precision, memory format, threads and the like are those that a short trial finds fastest on this machine, "
    "instead of the recipe's; what the command line sets itself stays. Kept for the next run of the kind."
)


THREADS = (
    "Threads of each process for operations on the CPU, at least 1; at most as many as there are cores are used. By "
    "default torch decides."
)


def training_parser(line: CommandLine) -> ArgumentParser:
    """The parser of ``pretrain`` and ``transfer``.

    Args:
        line: The task that it names decides what data it takes.
    """
    parser = ArgumentParser(
        prog=f"ssl-toolkit {line.command}",
        description=f"{line.command.capitalize()}. Give a recipe with -c, then what differs from it.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    names = ", ".join(shipped(line.command))
    help_of_recipe = f"Recipe: a YAML file, or a shipped one's name ({names}); several are merged, the later wins."
    parser.add_argument("-c", "--config", action="config", help=help_of_recipe)
    parser.add_argument("--out", type=str | None, default=None, help="Folder of the run (runs/TASK-DATE-TIME).")
    parser.add_argument("--resume", type=str | None, default=None, help="Folder of a run to continue.")
    parser.add_argument("--budget", type=str | None, default=None, help=BUDGET)
    parser.add_argument("--speed", type=Literal["auto"] | None, default=None, help=SPEED)
    parser.add_argument("--threads", type=int | None, default=None, help=THREADS)
    parser.add_argument("--seed", type=int, default=0, help="Seed of every random choice of the run.")
    parser.add_subclass_arguments(Task, "model", required=True, help="The task: class_path and init_args.")
    parser.add_class_arguments(line.data_class, "data")
    parser.add_class_arguments(Trainer, "trainer", skip=OWN_TRAINER_ARGUMENTS, instantiate=False)
    parser.add_class_arguments(Checkpoint, "checkpoint")
    parser.add_class_arguments(NonFinite, "nonfinite")
    parser.add_class_arguments(WeightAverage, "average")
    parser.add_class_arguments(EarlyStopping, "early_stopping")
    parser.add_class_arguments(HealthMonitor, "watch")
    if line.command == "transfer":
        parser.add_argument("--random_weights", type=bool | None, default=None, help=RANDOM_HEAD)
        parser.add_argument("--folds", type=int | None, default=None, help=FOLDS)
    if line.command == "pretrain":
        parser.add_class_arguments(OnlineEvaluation, "evaluation")
        parser.add_class_arguments(ProgressiveSize, "progressive")
    parser.add_argument("--tracker", type=Tracker, default="wandb", help="Where numbers go beside metrics.csv.")
    parser.link_arguments("seed", "model.init_args.seed")
    parser.link_arguments("seed", "data.seed")
    parser.set_defaults({"trainer.num_sanity_val_steps": 0, "trainer.log_every_n_steps": 10})
    if line.command == "transfer":
        parser.set_defaults({"data.labels": "folder", "data.test_fraction": 0.2})
    return parser
