"""`Task`: the base class of pretext and downstream tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_toolkit.distributed.collectives import relative_size
from ssl_toolkit.distributed.ranks import rank, world_size
from ssl_toolkit.distributed.sync_batchnorm import convert_sync_batchnorm
from ssl_toolkit.init import Initializer, check_covered
from ssl_toolkit.modules import Backbone, EMATeacher, FeatureQueue, checkpoint_stages
from ssl_toolkit.optim import (
    LRScaling,
    OptimizerSpec,
    ParameterRule,
    check_rules,
    freeze,
)
from ssl_toolkit.random import number, sample_keys, seed_generators
from ssl_toolkit.regularization import Regularizer
from ssl_toolkit.schedule import Schedule, Scheduled
from ssl_toolkit.step import StepContext, StepOutput
from ssl_toolkit.task.photographs import PhotographAccuracy
from ssl_toolkit.task.standalone import StandaloneModule

M = TypeVar("M", bound=nn.Module)
MemoryFormat = Literal["channels_last", "contiguous"]


class Task(StandaloneModule, ABC):
    """Base class of tasks: a backbone, its optimizer, schedule and regularizers.

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
        gradient_checkpointing: Activation checkpointing: keep only the inputs of the backbone's stages and compute the
            rest again for the gradient: about half of the memory for a third more arithmetic.
        compile: Compile the backbone with ``torch.compile``: quicker on a GPU after a minute at the start; on a CPU it
            needs a C++ compiler.
        rules: Learning-rate factors, weight decay and freezing of parameters by name.
        weight_decay_schedule: The course of the weight decay over the run, instead of the optimizer's constant.

    Attributes:
        data_class: The data that the task takes: its arguments are the ``data`` section of a configuration.
        speed_settings: Arguments that change a task's speed and little else, with the values that ``--speed auto``
            tries beside those of the trainer; a subclass may add its own.
        traits: What sets the task apart from a plain loss over single images, fewer where its arguments say so; the
            tests of the core take one task for each trait.
        whole_batches: Whether it is trained on whole batches only, since its loss looks at a batch as a whole.
        takes_weights: Whether the loss counts samples as `StepContext.sample_weights` says.
        takes_covariates: Whether it reads the covariates of images.
        takes_soft_targets: Whether the loss follows mixing and smoothing (`StepContext.soften`); a task of which it
            does not is refused with regularizers that set them.
        stops_gradients: Whether the loss holds something constant that depends on the weights that are trained
            (SimSiam's stop-gradient), so that what is followed is not the gradient of the loss; ``diagnose`` then does
            not check it. An `EMATeacher` needs no such mark.
        predicts: Whether it predicts classes or targets of an image: it then has ``predict`` and ``model_header``, and
            its runs a ``model.safetensors``.
        photograph_accuracy: The accuracy that photographs are known to allow, if a source says so: a run far above it
            is likely solved by a shortcut, which is said.
        initial_loss_margin: By how much the loss at the start may be below and above `initial_loss`.
    """

    speed_settings: ClassVar[dict[str, tuple[Any, ...]]] = {"memory_format": ("channels_last", "contiguous")}
    whole_batches: ClassVar[bool] = True
    takes_soft_targets: bool = False
    takes_weights: bool = False
    takes_covariates: bool = False
    stops_gradients: bool = False
    predicts: ClassVar[bool] = False
    photograph_accuracy: ClassVar[PhotographAccuracy | None] = None
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
        rules: list[ParameterRule] | None = None,
        weight_decay_schedule: Scheduled | None = None,
    ) -> None:
        super().__init__(
            optimizer, schedule, lr_scaling, reference_batch_size, regularizers or [], rules or [],
            weight_decay_schedule,
        )  # fmt: skip
        self.backbone = backbone
        self.initializers = init or []
        self.seed = seed
        self.sync_batchnorm = sync_batchnorm
        self.memory_format: MemoryFormat = memory_format
        self.gradient_checkpointing = gradient_checkpointing
        self.compile_backbone = compile
        self.resolved_config: dict[str, Any] = {}
        self.setting_changes: list[dict[str, Any]] = []
        # kept, because sharded weights make the task an object of another class
        self._class_path = f"{type(self).__module__}.{type(self).__qualname__}"
        self._regularizers_are_prepared = False
        self._undo: list[Callable[[], None]] = []

    # ---- what a task defines

    @abstractmethod
    def step(self, batch: Any, keys: Tensor, context: StepContext) -> StepOutput:
        """Computes the loss of a batch.

        Args:
            batch: What the loader delivers, `ssl_toolkit.batch.Batch` as a rule.
            keys: int64 tensor of shape ``[batch]``: the samples' keys in this epoch.
            context: What the loss depends on beside them.
        """

    def initial_loss(self, batch_size: int) -> float | None:
        """The loss of a network that knows nothing yet, for ``diagnose``; None if there is no such figure."""
        return None

    def least_loss(self, batch_size: int) -> float:
        """The least loss that a batch can reach without penalties, for ``diagnose``."""
        return 0.0

    def least_loss_of(self, batch: Any) -> float:
        """The same of a batch of samples, for a task in which it depends on them."""
        return self.least_loss(len(batch.indices))

    def is_complete(self) -> bool:
        """Whether all of the task's layers are there."""
        return True

    def check_batch(self, size: int) -> None:
        """Raises a ValueError for a batch from which the task cannot learn.

        Args:
            size: Samples in a batch of all processes together.
        """

    def mixed_rows(self, batch: Any, partners: Tensor) -> tuple[Tensor, Tensor]:
        """How what the backbone sees in a step is made up of samples, for regularizers that mix them.

        Here a row for each sample; a task whose backbone sees more defines its own.

        Args:
            batch: What the loader has delivered.
            partners: int64 tensor of shape ``[batch]``: the sample that each is mixed with.

        Returns:
            Two int64 tensors with an entry for each row that the backbone sees in a training step, over all its
            forward passes, in order: the row's sample, and the row that it is mixed with - itself if it is not mixed.
        """
        return torch.arange(len(partners), device=partners.device), partners

    @property
    def exported_backbone(self) -> Backbone:
        """The backbone that is exported and evaluated: the student's, unless a task says the teacher's."""
        return self.backbone

    @property
    def is_supervised(self) -> bool:
        """Whether it learns from labels or targets, which ask for no more dimensions than there are of them."""
        return "labels" in self.traits

    # ---- before the first step

    def check(self) -> None:
        """Raises a ValueError for what cannot work, as far as it can be told before the data are known."""
        if self.is_complete():
            check_rules(self.rules, self)
            freeze(self.rules, self)
            if self.initializers:
                check_covered(self.initializers, self)
        for regularizer in self.regularizers:
            regularizer.check(self)

    def check_data(self, data: Any) -> None:
        """Raises a ValueError for data that the backbone cannot take, as far as it can be told before they are read."""
        channels = getattr(data, "channels", None)
        if channels is not None:
            weights = (getattr(self, "pretraining", None) or {}).get("weights")
            self.backbone.check_channels(channels, weights)
        if getattr(data, "weighted", False) and not self.takes_weights:
            raise ValueError(
                f"data.columns.weight is for the loss of a transfer, and {type(self).__name__} takes no weights"
            )
        if getattr(data, "has_covariates", False) and not self.takes_covariates:
            raise ValueError(f"data.covariates are for the head of a transfer, and {type(self).__name__} reads none")

    def setup(self, stage: str) -> None:
        """Prepares the modules once the trainer and the data are known."""
        self.check_data(getattr(self._trainer, "datamodule", None))
        if stage != "fit":
            return
        self.check()
        for initialize in self.initializers:
            torch.manual_seed(number("init", self.seed))
            initialize(self)
        if self.initializers:
            for teacher in self._modules_of(EMATeacher):
                teacher.synchronize()
        backbones = self._modules_of(Backbone)
        if self.memory_format == "channels_last":
            for backbone in backbones:
                backbone.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if self.sync_batchnorm and self.trainer.world_size > 1:
            convert_sync_batchnorm(self)
        if self.gradient_checkpointing:
            for backbone in backbones:
                checkpoint_stages(backbone)
        if not self._regularizers_are_prepared:
            for regularizer in self.regularizers:
                regularizer.prepare(self)
            self._regularizers_are_prepared = True
        if getattr(self._trainer, "precision", None) == "64-true":
            self.double()  # before a checkpoint is loaded, whose weights would be rounded: Lightning does so after
        if self.compile_backbone:
            for backbone in backbones:
                backbone.compile()
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, self._equal_everywhere())

    def configure_model(self) -> None:
        """Divides the weights among the processes, if the trainer's strategy does."""
        shard = getattr(getattr(self._trainer, "strategy", None), "shard", None)
        if shard is not None:
            shard(self)

    # ---- a step

    def keys(self, batch: Any) -> Tensor:
        """The keys of a batch's samples in its epoch: int64 tensor of shape ``[batch]``."""
        return sample_keys(self.seed, batch.epoch, batch.indices, getattr(batch, "repeats", None))

    def compute(self, batch: Any, keys: Tensor | None = None) -> StepOutput:
        """The loss of a batch as it is: no regularizer, no log.

        Args:
            batch: What the loader delivers.
            keys: int64 tensor of shape ``[batch]``; the samples' keys in the batch's epoch by default.
        """
        keys = self.keys(batch) if keys is None else keys
        return self.step(batch, keys, StepContext(self.training, self.progress, batch))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds what the model itself draws (dropout, say), so that a resumed run draws the same."""
        self.progress = self._progress(self.global_step)
        seed_generators(number("step", self.seed, self.current_epoch, batch_idx, rank()), self.device)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch with its penalties, logged."""
        context = StepContext(True, self.progress, batch)
        # gradients are averaged over the processes, as if each had as many samples
        is_uneven = not self.whole_batches and world_size() > 1
        size = relative_size(len(batch.indices), self.device) if is_uneven else None

        def compute() -> tuple[Tensor, StepOutput]:
            output = self.step(batch, self.keys(batch), context)
            penalties = [regularizer.penalty(self, output.features) for regularizer in self.regularizers]
            loss = sum((each for each in penalties if each is not None), start=output.loss)
            return loss if size is None else loss * size, output

        for regularizer in self.regularizers:
            compute = partial(regularizer.around, self, context, compute)
        loss, output = compute()
        self._kept.append({name: each.detach() for name, each in output.kept.items()})
        self.log_step(output, len(batch.indices))
        return loss

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
        """The loss of a validation batch, measured; its random choices are the same in every epoch."""
        self.measure("val", self.compute(batch, sample_keys(self.seed, 0, batch.indices)), len(batch.indices))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """The loss of a test batch, measured."""
        self.measure("test", self.compute(batch, sample_keys(self.seed, 0, batch.indices)), len(batch.indices))

    def weights_header(self) -> dict[str, Any]:
        """What a weights file tells of the run it comes from: plain data only."""
        return {
            "task": self._class_path,
            "network": "student" if self.exported_backbone is self.backbone else "teacher",
            "step": self.global_step,
            "epoch": self.current_epoch,
            "seed": self.seed,
            "labels": self.is_supervised,
            "config": self.resolved_config,
            **({"changes": self.setting_changes} if self.setting_changes else {}),
        }

    def _modules_of(self, kind: type[M]) -> list[M]:
        return [module for module in self.modules() if isinstance(module, kind)]

    def _equal_everywhere(self) -> list[str]:
        """Names of what is the same in all processes by construction, so that DDP need not send it in each step."""
        names = []
        for name, module in self.named_modules():
            if isinstance(module, EMATeacher):
                names += [f"{name}.{each}" for each, _ in module.named_parameters()]
            elif isinstance(module, FeatureQueue):
                names += [f"{name}.{each}" for each, _ in module.named_buffers()]
        return names
