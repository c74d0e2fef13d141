"""Weight averaging (EMA, SWA), for validation, evaluation, export and test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, cast, get_args

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from ssl_toolkit.data import ImageData
from ssl_toolkit.distributed.collectives import all_reduce_mean
from ssl_toolkit.errors import nearest
from ssl_toolkit.evaluation.features import evaluation_mode
from ssl_toolkit.random import number
from ssl_toolkit.task import Task

Kind = Literal["none", "ema", "swa"]


class WeightAverage(Callback):
    """Weight averaging: trains as usual, but validates, evaluates, exports and tests an average of the weights.

    ``ema``: after each optimizer step ``average = decay * average + (1 - decay) * weights`` (Polyak and Juditsky 1992;
    Tarvainen and Valpola 2017, arXiv 1703.01780, section 2), and BatchNorm's statistics likewise.

    ``swa``: the plain mean of the weights at intervals over the last part of the run (Izmailov et al. 2018, arXiv
    1803.05407, algorithm 1). It needs a learning rate that is still high in that part. BatchNorm's statistics are
    computed again from views as in training, but without dropout. Before that part the weights are the current ones.

    What is averaged are the trainable parameters; other buffers are the current ones.

    Args:
        kind: Which average.
        decay: Of ``ema``, at least 0 and less than 1: the average reaches over about ``1 / (1 - decay)`` steps.
        warmup: Of ``ema``: after n steps the decay is at most ``(1 + n) / (10 + n)``, so that the first, random weights
            are soon forgotten.
        start: Of ``swa``: the fraction of the run after which it begins, at least 0 and less than 1.
        every_n_steps: Of ``swa``: optimizer steps from one of the averaged weights to the next, counted back from the
            run's last; an epoch by default.
        batchnorm_images: Of ``swa``: about how many training images give BatchNorm's statistics.
    """

    def __init__(
        self,
        kind: Kind = "none",
        decay: float = 0.999,
        warmup: bool = True,
        start: float = 0.75,
        every_n_steps: int | None = None,
        batchnorm_images: int = 10_000,
    ) -> None:
        if kind not in get_args(Kind):
            raise ValueError(
                f"average.kind is one of {', '.join(get_args(Kind))}, got {kind!r}{nearest(kind, get_args(Kind))}"
            )
        for name, fraction in (("decay", decay), ("start", start)):
            if not 0 <= fraction < 1:
                raise ValueError(f"average.{name} is {fraction}, expected at least 0 and less than 1")
        for name, value in (("every_n_steps", every_n_steps), ("batchnorm_images", batchnorm_images)):
            if value is not None and value < 1:
                raise ValueError(f"average.{name} is {value}, expected at least 1")
        self.kind: Kind = kind
        self.decay = decay
        self.warmup = warmup
        self.start = start
        self.every_n_steps = every_n_steps
        self.batchnorm_images = batchnorm_images
        self._average: dict[str, Tensor] = {}
        self._num = 0
        self._last_step = 0
        self._uses = 0
        self._finished = False
        self._loaded: dict[str, Any] = {}
        # BatchNorm's statistics for so many averaged weights
        self._statistics: tuple[int, list[Tensor]] = (0, [])

    def check(self, task: LightningModule) -> None:
        """Raises a ValueError if the task exports what is not averaged."""
        if self.kind != "none" and isinstance(task, Task) and task.exported_backbone is not task.backbone:
            raise ValueError(
                f"average.kind {self.kind} averages the student, but {type(task).__name__} exports its teacher, which "
                "is an average itself; leave it out, or set model.export: student"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts at the weights, or where the checkpoint was."""
        self.check(pl_module)
        loaded = self._loaded.get("average", {})
        if trainer.ckpt_path and self._tensors(pl_module).keys() - loaded.keys():
            raise ValueError(f"{trainer.ckpt_path} does not fit this run: it lacks the average, or some weights of it")
        self._average = {
            name: torch.empty_like(tensor).copy_(loaded.get(name, tensor))
            for name, tensor in self._tensors(pl_module).items()
        }
        self._num = self._loaded.get("num", 0)
        self._loaded, self._uses, self._finished, self._statistics = {}, 0, False, (0, [])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remembers the step."""
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes the weights into the average, after an optimizer step and not between the micro-batches of one."""
        step = trainer.global_step
        if step == self._last_step:
            return
        self._last_step = step
        if not self._due(trainer, step):
            return
        averages, current = list(self._average.values()), list(self._tensors(pl_module).values())
        if self.kind == "ema":
            decay = min(self.decay, (1 + self._num) / (10 + self._num)) if self.warmup else self.decay
            get_ema_multi_avg_fn(decay)(averages, current, self._num)
        else:
            get_swa_multi_avg_fn()(averages, current, self._num)
        self._num += 1

    def _due(self, trainer: Trainer, step: int) -> bool:
        if self.kind != "swa":
            return self.kind == "ema"
        total = int(trainer.estimated_stepping_batches)
        in_an_epoch = -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
        return step > self.start * total and (total - step) % (self.every_n_steps or in_an_epoch) == 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validates the average."""
        self._use(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes on with the weights themselves."""
        self._leave(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the average in the task."""
        self._use(trainer, pl_module)
        self._finished = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_train_end`, where a finished run was resumed and there was nothing to train."""
        if not self._finished:
            self.on_train_end(trainer, pl_module)

    @contextlib.contextmanager
    def used(self, trainer: Trainer, task: LightningModule) -> Iterator[None]:
        """Swaps the average into the task, within the context."""
        self._use(trainer, task)
        try:
            yield
        finally:
            self._leave(task)

    @contextlib.contextmanager
    def set_aside(self, task: LightningModule) -> Iterator[None]:
        """Swaps the trained weights into the task, within the context: during a validation of the average, say."""
        is_there = bool(self._num and self._uses and not self._finished)
        if is_there:
            self._swap(task)
        try:
            yield
        finally:
            if is_there:
                self._swap(task)

    def _use(self, trainer: Trainer, task: LightningModule) -> None:
        self._uses += 1
        if self._num and self._uses == 1 and not self._finished:
            self._swap(task)
            if self.kind == "swa":
                self._set_statistics(trainer, task)

    def _leave(self, task: LightningModule) -> None:
        self._uses -= 1
        if self._num and not self._uses and not self._finished:
            self._swap(task)

    # validation runs in inference mode, whose tensors could not be trained on
    @torch.inference_mode(False)
    @torch.no_grad()
    def _swap(self, task: LightningModule) -> None:
        for name, tensor in self._tensors(task).items():
            kept = tensor.clone()
            tensor.copy_(self._average[name].to(tensor.device))
            self._average[name].copy_(kept)

    def _tensors(self, task: LightningModule) -> dict[str, Tensor]:
        """What is averaged or, of ``swa``, exchanged: trainable parameters and BatchNorm's statistics, by name."""
        if self.kind == "none":
            return {}
        tensors = {name: each.detach() for name, each in task.named_parameters() if each.requires_grad}
        for name, norm in _trained_norms(task).items():
            tensors[f"{name}.running_mean"] = cast(Tensor, norm.running_mean)
            tensors[f"{name}.running_var"] = cast(Tensor, norm.running_var)
        return tensors

    @torch.inference_mode(False)
    @torch.no_grad()
    def _set_statistics(self, trainer: Trainer, task: LightningModule) -> None:
        """Gives BatchNorm the statistics that belong to the averaged weights, which are in the task."""
        norms = list(_trained_norms(task).values())
        statistics = [cast(Tensor, each) for norm in norms for each in (norm.running_mean, norm.running_var)]
        if statistics and self._statistics[0] != self._num:
            self._compute_statistics(trainer, cast(Task, task), norms)
            self._statistics = self._num, [all_reduce_mean(each).clone() for each in statistics]
        for each, value in zip(statistics, self._statistics[1], strict=True):
            each.copy_(value)

    def _compute_statistics(self, trainer: Trainer, task: Task, norms: list[_BatchNorm]) -> None:
        """The plain mean over batches of training views, the same at each call."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, ImageData):
            raise ValueError(
                f"average.kind swa needs the images as ImageData, got {type(data).__name__}: call "
                "trainer.fit(task, datamodule=ImageData(...))"
            )
        momenta = [norm.momentum for norm in norms]
        others = [(buffer, buffer.clone()) for buffer in task.buffers()]
        own = {id(each) for norm in norms for each in (norm.running_mean, norm.running_var)}
        device = task.device
        with (
            evaluation_mode(task),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            trainer.precision_plugin.train_step_context(),
        ):
            torch.manual_seed(number("batch norm", task.seed))
            # the views are those of training; of the layers only BatchNorm is as in training
            task.training = True
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.train()
            num = 0
            for batch in data.loader("train", shuffle=True, drop_last=task.whole_batches, for_training=True):
                batch = trainer.strategy.batch_to_device(batch, device)
                task.compute(batch)
                num += len(batch.indices) * trainer.world_size
                if num >= self.batchnorm_images:
                    break
        for buffer, value in others:
            if id(buffer) not in own:
                buffer.copy_(value)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def state_dict(self) -> dict[str, Any]:
        """The average so far."""
        return {"num": self._num, "average": self._average} if self.kind != "none" else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from this average."""
        self._loaded = state_dict


def averaged_weights(trainer: Trainer, task: LightningModule) -> contextlib.AbstractContextManager[None]:
    """Swaps the averaged weights into the task, within the context, if the trainer averages them."""
    average = _average(trainer)
    return contextlib.nullcontext() if average is None else average.used(trainer, task)


def trained_weights(trainer: Trainer, task: LightningModule) -> contextlib.AbstractContextManager[None]:
    """Swaps the trained weights into the task, within the context, also where the average is in their place."""
    average = _average(trainer)
    return contextlib.nullcontext() if average is None else average.set_aside(task)


def _average(trainer: Trainer) -> WeightAverage | None:
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] - set out of its sight
    return next((each for each in callbacks if isinstance(each, WeightAverage)), None)


def _trained_norms(task: LightningModule) -> dict[str, _BatchNorm]:
    """The BatchNorms, by name, of the parts that are trained: those of a frozen backbone stay as they are."""
    return {
        f"{part}.{name}" if name else part: norm
        for part, child in task.named_children()
        if any(parameter.requires_grad for parameter in child.parameters())
        for name, norm in child.named_modules()
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
    }
