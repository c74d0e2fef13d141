"""Weights & Biases as the tracker: settings, and a logger that can never stop a run."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import DummyExperiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from ssl_toolkit.io.atomic import write_atomically
from ssl_toolkit.tracking.metrics_csv import read_metrics
from ssl_toolkit.tracking.patience import NoAnswer, end_without_wandb, within

WANDB_ID = "wandb_id.txt"
INIT_SECONDS = 60
FINISH_SECONDS = 600
ANSWER_SECONDS = 60  # for what W&B's own process does at once while it is well


@dataclass(frozen=True)
class Wandb:
    """Settings of the Weights & Biases run.

    Args:
        project: The project.
        name: The run's name; by default that of its folder.
        group: What the run is grouped by, the three seeds of an experiment say.
        tags: Words to find the run by.
        entity: The user or team whose run it is; by default the account's own.
        notes: A longer description.
        job_type: The kind of work within a group: pretrain, transfer, ...
        mode: ``online`` sends as the run goes, ``offline`` records in the run's folder for ``wandb sync``, ``auto`` is
            ``online`` where an API key is set up (``wandb login``) and ``offline`` elsewhere.
    """

    project: str = "ssl-toolkit"
    name: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    entity: str | None = None
    notes: str | None = None
    job_type: str | None = None
    mode: Literal["auto", "online", "offline"] = "auto"


def offline(mode: Literal["auto", "online", "offline"] = "auto") -> bool:
    """Whether a run is recorded offline. Uses no network and asks nothing.

    ``auto`` looks at ``WANDB_MODE``, at W&B's settings file (where ``wandb offline`` leaves its mark), and for a key in
    the environment, the settings and ``.netrc``, where ``wandb login`` puts it.
    """
    if mode != "auto":
        return mode == "offline"
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    settings = wandb_setup.singleton().settings
    # W&B reads the environment once in a process; we may be called after it changed
    mode_set = os.environ.get("WANDB_MODE", settings.mode)
    if mode_set in ("offline", "dryrun"):
        return True
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")) or settings.api_key:
        return False
    return not wbauth.read_netrc_auth(host=os.environ.get("WANDB_BASE_URL", settings.base_url))


class GuardedWandbLogger(WandbLogger):
    """Lightning's W&B logger, which gives up after the first failure with one warning; the run goes on.

    No answer is a failure, too: each call is made in a separate thread, which is left behind if it does not return.
    It starts the W&B run when the first step is about to be made or there is something to log, so that a start that
    is refused, and a finished run that is resumed, leave nothing behind; ends it with the trainer, and continues it, by
    its id, when there is more to log or the run is resumed. Nothing of it is global: several runs of one process, and a
    run of the user's own, do not meet.

    Args:
        run_dir: The run's folder; W&B's files go to its folder ``wandb``.
        settings: The settings.
        run_id: The W&B run's id.
        config: Shown as the run's configuration.
    """

    def __init__(self, run_dir: Path, settings: Wandb, run_id: str, config: dict[str, Any]) -> None:
        super().__init__(
            save_dir=run_dir, project=settings.project, name=settings.name or run_dir.resolve().name, id=run_id
        )
        self.run_dir = run_dir
        self.settings = settings
        self.run_id = run_id
        self.config = config
        self._failed = False
        self._replay = False
        self._is_offline = True

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, which starts when it is used; after a failure something that does nothing with any call."""
        return DummyExperiment() if self._failed else self._experiment or _NotStarted(self)

    @rank_zero_only
    def start(self) -> Any:
        """Starts the W&B run if there is none; returns what `experiment` does then."""
        if self._experiment is None and not self._failed:
            # W&B keeps to its own limit once it has reached its process
            self._experiment = self._guard(self._start, seconds=2 * INIT_SECONDS + ANSWER_SECONDS)
        return DummyExperiment() if self._experiment is None else self._experiment

    def _start(self) -> Any:
        import wandb

        self._is_offline = is_offline = offline(self.settings.mode)
        # console="off": W&B's capture of the terminal garbles the progress bar
        # finish_timeout: without it a run whose network is gone never ends
        settings = wandb.Settings(
            console="off", silent=is_offline, init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS
        )
        self.run_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(self.run_dir / WANDB_ID, f"{self.run_id}\n")
        run = wandb.init(
            project=self.settings.project,
            name=self._name,
            group=self.settings.group,
            tags=self.settings.tags or None,
            entity=self.settings.entity,
            notes=self.settings.notes,
            job_type=self.settings.job_type,
            config=self.config,
            dir=str(self.run_dir),
            id=self.run_id,
            resume=None if is_offline else "allow",
            mode="offline" if is_offline else "online",
            reinit="create_new",
            settings=settings,
        )
        # W&B does not join parts recorded offline under one id, the one sent last replaces the others; so each later
        # part is made to begin with all that came before it, as does a run whose tracker is switched on at a resume
        self._replay = is_offline or not run.resumed
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return run

    def _guard(self, action: Callable[..., Any], *args: Any, seconds: float | None = None, **kwargs: Any) -> Any:
        """Calls and returns the result; the first failure is the last thing W&B does in this run."""
        if self._failed:
            return None
        try:
            return within(ANSWER_SECONDS if seconds is None else seconds, action, *args, **kwargs)
        # whatever goes wrong in a tracker, numbers of hours of training are worth more
        except Exception as error:
            # a call within a call may have said it already
            if not self._failed:
                self._failed, self._experiment = True, None
                end_without_wandb(hung=isinstance(error, NoAnswer))
                reason = " ".join(str(error).split()) or type(error).__name__
                rank_zero_warn(f"W&B failed ({reason}); the run goes on without it, its numbers are in metrics.csv")
            return None

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Logs numbers."""
        self.start()
        if self._replay:
            # the last row is the one that is about to be logged: the CSV logger comes before this one
            self._log_past(slice(-1))
        self._guard(super().log_metrics, metrics, step)

    @rank_zero_only
    def begin(self) -> None:
        """Starts the W&B run before the first step, with all rows that there are: a kill leaves no part without."""
        self.start()
        if self._replay:
            self._log_past(slice(None))

    @rank_zero_only
    def log_finished_run(self) -> None:
        """Logs all of a run that was finished before its tracker was switched on."""
        if self._experiment is None and not (self.run_dir / WANDB_ID).is_file():
            self.begin()

    def _log_past(self, which: slice) -> None:
        self._replay = False
        self._guard(self._replay_rows, which, seconds=FINISH_SECONDS)

    def _replay_rows(self, which: slice) -> None:
        import wandb

        columns = read_metrics(self.run_dir)
        past = list(zip(*columns.values(), strict=True))[which]
        if past and (self.run_dir / "views.png").is_file():
            self.experiment.log({"views": wandb.Image(str(self.run_dir / "views.png")), "trainer/global_step": 0})
        for values in past:
            row = {name: value for name, value in zip(columns, values, strict=True) if not math.isnan(value)}
            super().log_metrics(row, int(row.pop("step")))

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Logs pictures."""
        self.start()  # which may take longer than to log
        self._guard(super().log_image, key, images, step, **kwargs)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Adds to the configuration."""
        self.start()
        self._guard(super().log_hyperparams, params)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the W&B run."""
        if self._experiment is not None:
            well = status in ("success", "finished")
            # a run that was stopped has no time to send what is left: it stays in the run's folder for wandb sync
            seconds = ANSWER_SECONDS + (FINISH_SECONDS if well and not self._is_offline else 0)
            self._guard(self._experiment.finish, exit_code=0 if well else 1, seconds=seconds)
        self._experiment = None

    @property
    def version(self) -> str:
        """The W&B run's id."""
        return self.run_id


class _NotStarted:
    """Stands for the W&B run before there is one: Lightning asks for it at each start, and does nothing with it."""

    def __init__(self, logger: GuardedWandbLogger) -> None:
        self._logger = logger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger.start(), name)


def _guarded(name: str) -> Any:
    """A method of Lightning's logger that cannot stop a run."""

    @rank_zero_only
    def method(self: GuardedWandbLogger, *args: Any, **kwargs: Any) -> Any:
        self.start()
        return self._guard(getattr(WandbLogger, name), self, *args, **kwargs)

    method.__doc__ = getattr(WandbLogger, name).__doc__
    return method


for _name in ("watch", "log_table", "log_text", "log_audio", "log_video", "use_artifact"):
    setattr(GuardedWandbLogger, _name, _guarded(_name))
