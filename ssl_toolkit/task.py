"""The one training loop's body of the project: what pretext and downstream tasks have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor

from ssl_toolkit.data import ImageData
from ssl_toolkit.distributed.ranks import rank, world_size
from ssl_toolkit.distributed.sync_batchnorm import convert_sync_batchnorm
from ssl_toolkit.init import Initializer, check_covered
from ssl_toolkit.losses.soft_targets import Mixing
from ssl_toolkit.modules.activation_checkpointing import checkpoint_stages
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import Adam, AdamW, LRScaling, OptimizerSpec, match_layout, parameter_groups, scaled_lr
from ssl_toolkit.random import number, sample_keys, seed_generators
from ssl_toolkit.regularization import Regularizer
from ssl_toolkit.schedule import Schedule
from ssl_toolkit.tracking.scalars import log_now

MemoryFormat = Literal["channels_last", "contiguous"]


class StepOutput(NamedTuple):
    """What a task computes from a batch.

    Attributes:
        loss: Scalar to minimise.
        features: The backbone's output, of shape ``[n, num_features]``.
        metrics: Scalars to log, by name; they need no gradient.
    """

    loss: Tensor
    features: Tensor
    metrics: dict[str, Tensor]


class Task(LightningModule, ABC):
    """A backbone with what it takes to train it.

    Args:
        backbone: The network whose weights travel.
        optimizer: The optimizer.
        schedule: The learning rate's course over the run.
        lr_scaling: How the optimizer's rate follows the batch of one step, over all processes and accumulated batches:
            ``linear`` (twice the batch, twice the rate; for SGD, LARS), ``sqrt`` (its root; for Adam and its kin), or
            ``none``.
        reference_batch_size: The batch size that the optimizer's rate is for, if it is scaled.
        init: Initialisations of parameters by name, applied in this order; each trainable parameter must have one.
            None keeps each layer's own.
        regularizers: Penalties added to the loss, noise, dropout, and what else a step is done under.
        seed: Seed of every random choice of the task.
        sync_batchnorm: Under several processes, BatchNorm uses the statistics of all of them, so that W processes
            compute what one process would with the same global batch.
        memory_format: How the backbone's weights and feature maps lie in memory; ``channels_last`` is nearly always
            quicker.
        gradient_checkpointing: Keep only the inputs of the backbone's stages and compute the rest again for the
            gradient: about half of the memory for a third more arithmetic.
        compile: Compile the backbone with ``torch.compile``: quicker on a GPU after a minute at the start; on a CPU it
            needs a C++ compiler.

    Attributes:
        data_class: The data that the task takes: its arguments are the ``data`` section of a configuration.
        speed_settings: Arguments that change a task's speed and little else, with the values that ``--speed auto``
            tries beside those of the trainer; a subclass may add its own.
        takes_soft_targets: Whether the loss follows `mixing` and `smoothing`; a task of which it does not is refused
            with regularizers that set them.
        mixing: Which samples of the batch at hand are mixed; None outside a training step that mixes.
        smoothing: Share of the targets that is spread over all classes; 0 outside a training step that smooths.
        training_batch: The batch at hand; None outside a training step.
        numbers: What callbacks have to say of the last step, for the rows of the log (`ssl_toolkit.tracking.scalars`).
        stops_gradients: Whether the loss holds something constant that depends on the weights (a teacher, a target), so
            that what is followed is not the gradient of the loss; ``diagnose`` then does not check it.
        initial_loss_margin: By how much the loss at the start may be below and above `initial_loss`.
    """

    data_class: ClassVar[type[LightningDataModule]] = ImageData
    speed_settings: ClassVar[dict[str, tuple[Any, ...]]] = {"memory_format": ("channels_last", "contiguous")}
    takes_soft_targets: ClassVar[bool] = False
    mixing: Mixing | None = None
    smoothing: float = 0.0
    training_batch: Any = None
    stops_gradients: ClassVar[bool] = False
    # scores of variance 1, more than any usual head begins with, add half a nat to a cross entropy (its second order)
    initial_loss_margin: tuple[float, float] = (0.5, 0.5)

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerSpec,
        schedule: Schedule,
        lr_scaling: LRScaling = "none",
        reference_batch_size: int = 256,
        init: list[Initializer] | None = None,
        regularizers: list[Regularizer] | None = None,
        seed: int = 0,
        sync_batchnorm: bool = True,
        memory_format: MemoryFormat = "channels_last",
        gradient_checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        scaled_lr(optimizer.lr, lr_scaling, reference_batch_size, reference_batch_size)  # a wrong name is found now
        self.backbone = backbone
        self.optimizer_spec = optimizer
        self.schedule = schedule
        self.lr_scaling: LRScaling = lr_scaling
        self.reference_batch_size = reference_batch_size
        self.initializers = init or []
        self.regularizers = regularizers or []
        self._regularizers_are_prepared = False
        self._undo: list[Callable[[], None]] = []
        self.seed = seed
        self.sync_batchnorm = sync_batchnorm
        self.memory_format: MemoryFormat = memory_format
        self.gradient_checkpointing = gradient_checkpointing
        self.compile_backbone = compile
        self.resolved_config: dict[str, Any] = {}
        self.numbers: dict[str, float] = {}
        # kept, because weights in parts make the task an object of another class
        self._class_path = f"{type(self).__module__}.{type(self).__qualname__}"

    @abstractmethod
    def step(self, batch: Any, keys: Tensor) -> StepOutput:
        """Computes the loss of a batch.

        Args:
            batch: What the loader delivers, `ssl_toolkit.batch.Batch` as a rule.
            keys: int64 tensor of shape ``[batch]``: the samples' keys in this epoch.
        """

    def initial_loss(self, batch_size: int) -> float | None:
        """The loss of a network that knows nothing yet, for ``diagnose``; None if there is no such figure."""
        return None

    def least_loss(self, batch_size: int) -> float:
        """The least loss that a batch can reach without penalties, for ``diagnose``."""
        return 0.0

    def lr_factor(self, name: str) -> float:
        """The factor on the learning rate of a parameter, by its name; 1 unless a task says otherwise."""
        return 1.0

    def check(self) -> None:
        """Raises a ValueError for what cannot work, as far as it can be told before the data are known."""
        for regularizer in self.regularizers:
            regularizer.check(self)
        if self.initializers and self.is_complete():
            check_covered(self.initializers, self)

    def is_complete(self) -> bool:
        """Whether all of the task's layers are there."""
        return True

    def mixed_rows(self, partners: Tensor) -> tuple[Tensor, Tensor]:
        """How what the backbone sees in a step is made up of samples, for regularizers that mix them.

        Here a row for each sample; a task whose backbone sees more defines its own.

        Args:
            partners: int64 tensor of shape ``[batch]``: the sample that each is mixed with.

        Returns:
            Two int64 tensors with an entry for each row that the backbone sees in a training step, over all its
            forward passes, in order: the row's sample, and the row that it is mixed with - itself if it is not mixed.
        """
        return torch.arange(len(partners), device=partners.device), partners

    def setup(self, stage: str) -> None:
        """Prepares the modules once the trainer and the data are known."""
        if stage != "fit":
            return
        self.check()
        for initialize in self.initializers:
            torch.manual_seed(number("init", self.seed))
            initialize(self)
        if self.memory_format == "channels_last":
            self.backbone.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if self.sync_batchnorm and self.trainer.world_size > 1:
            convert_sync_batchnorm(self)
        if self.gradient_checkpointing:
            checkpoint_stages(self.backbone)
        if not self._regularizers_are_prepared:
            for regularizer in self.regularizers:
                regularizer.prepare(self)
            self._regularizers_are_prepared = True
        if getattr(self._trainer, "precision", None) == "64-true":
            self.double()  # before a checkpoint is loaded, whose weights would be rounded: Lightning does so after
        if self.compile_backbone:
            self.backbone.compile()

    def configure_model(self) -> None:
        """Divides the weights among the processes, if the trainer's strategy does."""
        shard = getattr(self.trainer.strategy, "shard", None)
        if shard is not None:
            shard(self)

    def learning_rate(self, batch_size: int) -> float:
        """The learning rate for a batch size, before the schedule's factor.

        Args:
            batch_size: Images of one optimizer step, over all processes and accumulated batches.
        """
        return scaled_lr(self.optimizer_spec.lr, self.lr_scaling, batch_size, self.reference_batch_size)

    def base_lr(self) -> float:
        """The learning rate of the trainer's batches, before the schedule's factor."""
        if self.lr_scaling == "none":  # their size does not matter
            return self.optimizer_spec.lr
        loader: Any = self.trainer.train_dataloader
        return self.learning_rate(loader.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches)

    def configure_optimizers(self) -> dict[str, Any]:
        """Builds the optimizer and a scheduler that steps with it."""
        total_steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(total_steps) or total_steps < 1:
            raise ValueError("the schedule needs the run's length: set --trainer.max_epochs or --trainer.max_steps")
        spec = self.optimizer_spec
        groups = parameter_groups(self, self.base_lr(), spec.weight_decay, self.lr_factor)
        optimizer = spec.build(groups, fused=self._may_fuse())
        optimizer.register_load_state_dict_post_hook(match_layout)
        steps_per_epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches

        def factor(step: int) -> float:
            return self.schedule.factor(step, int(total_steps), steps_per_epoch)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _may_fuse(self) -> bool:
        """Whether the optimizer may be fused: in float16 it then unscales the gradients itself, too late to change."""
        changed = bool(self.trainer.gradient_clip_val) or any(each.changes_gradients for each in self.regularizers)
        changed_late = self.trainer.precision == "16-mixed" and changed
        # of the fused kernels, torch knows for these alone how to take weights in parts
        in_parts = any(hasattr(each, "full_tensor") for each in self.parameters())
        unknown = in_parts and not isinstance(self.optimizer_spec, Adam | AdamW)
        return self.device.type in ("cpu", "cuda") and not changed_late and not unknown

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips the gradients by their norm or their values (``trainer.gradient_clip_val`` and ``_algorithm``).

        Lightning's own way refuses every fused optimizer in mixed precision. Only those of float16 unscale gradients
        themselves, and there none is fused if they are to be clipped.
        """
        algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
        Precision.clip_gradients(self.trainer.precision_plugin, optimizer, gradient_clip_val or 0.0, algorithm)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds what the model itself draws (dropout, say), so that a resumed run draws the same."""
        seed_generators(number("step", self.seed, self.current_epoch, batch_idx, rank()), self.device)

    def keys(self, batch: Any) -> Tensor:
        """The keys of a batch's samples in its epoch: int64 tensor of shape ``[batch]``."""
        return sample_keys(self.seed, batch.epoch, batch.indices)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch with its penalties, logged."""

        def compute() -> tuple[Tensor, StepOutput]:
            output = self.step(batch, self.keys(batch))
            penalties = [regularizer.penalty(self, output.features) for regularizer in self.regularizers]
            return sum((each for each in penalties if each is not None), start=output.loss), output

        for regularizer in self.regularizers:
            compute = partial(regularizer.around, self, compute)
        self.training_batch = batch
        try:
            loss, output = compute()
        finally:
            self.training_batch = None
        self._log("train", output, len(batch.indices))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs the callbacks' numbers, if a row is about to be written; Lightning calls this after the callbacks."""
        every: int = getattr(self.trainer, "log_every_n_steps", 1)  # set out of pyright's sight
        if (every and self.global_step % every == 0) or self.trainer.should_stop:
            log_now(self, self.numbers)

    def undo_after_backward(self, undo: Callable[[], None]) -> None:
        """Has something called when the gradient of this batch is known; what was given last comes first."""
        self._undo.append(undo)

    def on_after_backward(self) -> None:
        """Undoes what the regularizers did to the network."""
        while self._undo:
            self._undo.pop()()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Lets the regularizers change the gradients."""
        for regularizer in self.regularizers:
            regularizer.before_optimizer_step(self)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The loss of a validation batch, logged; its random choices are the same in every epoch."""
        output = self.step(batch, sample_keys(self.seed, 0, batch.indices))
        self._log("val", output, len(batch.indices))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """The loss of a test batch, logged."""
        output = self.step(batch, sample_keys(self.seed, 0, batch.indices))
        self._log("test", output, len(batch.indices))

    def _log(self, stage: str, output: StepOutput, batch_size: int) -> None:
        scalars = {"loss": output.loss.detach(), **output.metrics}
        for name, scalar in scalars.items():
            self.log(
                f"{stage}/{name}",
                scalar,
                batch_size=batch_size,
                sync_dist=stage != "train" and world_size() > 1,
            )

    def weights_header(self) -> dict[str, Any]:
        """What a weights file tells of the run it comes from: plain data only."""
        return {
            "task": self._class_path,
            "step": self.global_step,
            "epoch": self.current_epoch,
            "seed": self.seed,
            "config": self.resolved_config,
        }
