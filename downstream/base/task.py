"""`DownstreamTask`: the base class of downstream tasks."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from downstream.base.covariate_task import CovariateTask
from downstream.base.standardize import Standardize
from downstream.base.trained_head import read_trained_head
from downstream.base.tuning import Tuned, train_only
from ssl_toolkit.augment import CenterView, View
from ssl_toolkit.batch import Images
from ssl_toolkit.distributed.ranks import is_rank_zero
from ssl_toolkit.init import Keep
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.random import number
from ssl_toolkit.step import StepContext, StepOutput
from ssl_toolkit.weights import LoadReport, load_backbone, load_into, read_header


class DownstreamTask(CovariateTask):
    """Base class of downstream tasks: a head on a backbone. A new task defines `build_head` and `loss`.

    Args:
        weights: A weights file (``backbone.safetensors``) to start from; None for the backbone's own start.
        backbone: The network. With `weights` it may be left out, because the file says which network it holds; if it
            is given nonetheless, it must be that network (drop rates may differ).
        freeze_backbone: Train the head alone: the backbone's weights and BatchNorm statistics stay as they are, and it
            computes as in evaluation. The head then gets each feature standardized (see `Standardize`), so that one
            learning rate fits backbones of any scale.
        image_size: Side in pixels of what the backbone sees in evaluation, and in training without `augmentation`.
            By default that of `augmentation`, or else that of the data.
        augmentation: What the backbone sees in training; by default the centred square, as in evaluation.
        tuned: What of the backbone is trained: "all"; "norms", scale and shift of its normalisations (Frankle, Schwab
            and Morcos 2021, arXiv 2003.00152); or "biases" (Ben Zaken et al. 2022, arXiv 2106.10199). The head always
            is.
        head_weights: The ``model.safetensors`` of a run with the same `weights` and a frozen backbone: the head begins
            as the one that was trained there, and not with random weights that would distort the features (linear
            probing, then fine-tuning, Kumar et al. 2022, arXiv 2202.10054).
        unfreeze_percent: Gradual unfreezing (Howard and Ruder 2018, arXiv 1801.06146, section 3.3): over so many
            per cent of the run, in [0, 100), one stage of the backbone after the other takes part, the last one first;
            before, its learning rate is 0. The head learns from the first step, and running statistics of
            normalisations move.
        layer_decay: The learning rate of each stage of the backbone is that of the stage above it times this factor,
            in (0, 1]; the head is above the last stage (Howard and Ruder 2018, arXiv 1801.06146, section 3.2).
        head_lr_factor: Factor on the head's learning rate, above 0: a head that starts from random weights can take
            larger steps than a pretrained backbone.
        **kwargs: Arguments of `CovariateTask` and `Task`.

    Attributes:
        pretraining: Where the weights come from, as plain data: the file, and what its header tells of its run; None
            without weights.

    Raises:
        ValueError: An argument is out of its range, or there is neither a backbone nor weights.
        WeightsError: The weights file is missing, damaged, or for another backbone.
    """

    whole_batches = False
    # whether the first layer of ``head`` is linear, and gets the features
    head_begins_linear: bool = False
    # whether a run computes its head and tests it, without a step of an optimizer
    trains_nothing: bool = False

    def __init__(
        self,
        *,
        weights: str | None = None,
        backbone: Backbone | None = None,
        freeze_backbone: bool = False,
        image_size: int | None = None,
        augmentation: View | None = None,
        tuned: Tuned = "all",
        head_weights: str | None = None,
        unfreeze_percent: float = 0.0,
        layer_decay: float = 1.0,
        head_lr_factor: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if not 0 < layer_decay <= 1:
            raise ValueError(f"layer_decay is {layer_decay}, expected a factor above 0 and at most 1")
        if head_lr_factor <= 0:
            raise ValueError(f"head_lr_factor is {head_lr_factor}, expected a factor above 0")
        if not 0 <= unfreeze_percent < 100:
            raise ValueError(f"unfreeze_percent is {unfreeze_percent}, expected at least 0 and less than 100")
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size is {image_size}, expected at least 1 pixel")
        if freeze_backbone and layer_decay != 1:
            raise ValueError(
                f"layer_decay is {layer_decay}, but freeze_backbone leaves no stage to train; set layer_decay to 1"
            )
        if freeze_backbone and kwargs.get("gradient_checkpointing"):
            raise ValueError(
                "gradient_checkpointing saves nothing with freeze_backbone, which needs no gradient; leave it out"
            )
        if freeze_backbone and tuned != "all":
            raise ValueError(f"tuned is {tuned}, but freeze_backbone leaves nothing of the backbone to train")
        if freeze_backbone and unfreeze_percent:
            raise ValueError(f"unfreeze_percent is {unfreeze_percent}, but freeze_backbone keeps all stages frozen")
        if head_weights is not None:
            self._check_head_weights(weights, freeze_backbone)
        super().__init__(backbone=_start(backbone, weights), **kwargs)
        self.pretraining = None if weights is None else _provenance(weights)
        self._trained_head = None if head_weights is None else read_trained_head(head_weights)
        if self._trained_head is not None:
            self._trained_head.check_backbone(self.backbone.model.state_dict())
        self.freeze_backbone = freeze_backbone
        self.image_size: int | None = image_size if image_size is not None else getattr(augmentation, "size", None)
        self.augmentation = augmentation
        self.unfreeze_percent = unfreeze_percent
        self.layer_decay = layer_decay
        self.head_lr_factor = head_lr_factor
        self.tuned: Tuned = tuned
        self._head_is_built = False
        self.standardize: nn.Module = nn.Identity()
        train_only(self.backbone, tuned)
        if freeze_backbone:
            self.backbone.requires_grad_(False)
            self.standardize = Standardize(self.backbone.num_features)

    @abstractmethod
    def build_head(self, num_features: int) -> None:
        """Makes the layers of the head; called once, when the data are known.

        Args:
            num_features: Width of the backbone's features.
        """

    @abstractmethod
    def loss(self, features: Any, targets: Tensor, context: StepContext) -> StepOutput:
        """Computes the loss.

        Args:
            features: What `encode` returns.
            targets: int64 tensor of shape ``[batch]``: the labels of the batch.
            context: What the loss depends on beside them and the weights.
        """

    def encode(self, batch: Any, keys: Tensor) -> Any:
        """What the head gets of a batch: float tensor of shape ``[batch, num_features]``, with covariates more."""
        return self.with_covariates(self.standardize(self.cached_or_computed(batch, keys)), batch)

    def step(self, batch: Any, keys: Tensor, context: StepContext) -> StepOutput:
        """Features, then loss."""
        encoded = self.mixed_covariates(self.encode(batch, keys), context)
        return self.without_covariates(self.loss(encoded, batch.labels, context))

    def backbone_features(self, images: Images, keys: Tensor) -> Tensor:
        """Views of images through the backbone.

        Args:
            images: The images, as bytes.
            keys: int64 tensor of shape ``[num]``: every random choice about an image is drawn from its key.

        Returns:
            Float tensor of shape ``[num, num_features]``, without gradient if the backbone is frozen.
        """
        views = self.make_views(images, keys)
        if not self.freeze_backbone:
            return self.backbone(views)
        # at each step, because a training loop puts all of a module into training mode
        self.backbone.eval()
        with torch.no_grad():
            return self.backbone(views)

    def frozen_features(self, images: Images, keys: Tensor) -> Tensor:
        """As `backbone_features`, outside of a step: where weights are sharded they are gathered for it."""
        return self.backbone_features(images, keys)

    def make_views(self, images: Images, keys: Tensor) -> Tensor:
        """What the backbone sees: augmented in training, the centred square in evaluation."""
        if self.training and self.augmentation is not None:
            return self.augmentation(images, keys)
        if self.image_size is None:
            raise ValueError("image_size is not known: give it to the task, or use a data module that has one")
        return CenterView(self.image_size)(images, keys)

    def images_of(self, batch: Any) -> Images:
        """The images that the backbone sees of a batch, as bytes."""
        return batch.images

    def example_views(self, batch: Any) -> Tensor:
        """What the backbone sees of a batch: float tensor of shape ``[batch, 1, channels, height, width]``."""
        views = self.cached_views(len(batch.indices))
        return self.make_views(batch.images, self.keys(batch)).unsqueeze(1) if views is None else views

    def is_complete(self) -> bool:
        """Whether there is a head."""
        return self._head_is_built

    def check_data(self, data: Any) -> None:
        """As in `Task`; and what the backbone sees must not be too small."""
        super().check_data(data)
        in_evaluation = self.image_size or getattr(data, "image_size", None)
        for side in {in_evaluation, getattr(self.augmentation, "size", None)} - {None, 0}:
            self.backbone.check_size(side)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Builds the head where no data have done so: outside of a trainer."""
        super().on_load_checkpoint(checkpoint)
        self._build_head()

    def setup(self, stage: str) -> None:
        """Builds the head, whose size the data decide, before the optimizer looks for parameters."""
        if self.image_size is None:
            self.image_size = getattr(self.data, "image_size", None)
        self.prepare_covariates(stage)
        self._build_head()
        if self.pretraining is not None:
            self._check_initializers()
        super().setup(stage)

    def _build_head(self) -> None:
        if not self._head_is_built:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(number("head", self.seed))
                self.build_head(self.backbone.num_features)
            if self._trained_head is not None:
                self._trained_head.load_into(self)
                self._trained_head = None
            self._head_is_built = True

    def _check_head_weights(self, weights: str | None, freeze_backbone: bool) -> None:
        """Refuses `head_weights` where they are of no use."""
        if not self.head_begins_linear:
            raise ValueError(
                f"head_weights is not for {type(self).__name__} with a head that does not begin with a linear layer: "
                "standardization cannot be folded into it"
            )
        if weights is None:
            raise ValueError("head_weights needs model.weights: the backbone on whose features the head was trained")
        if freeze_backbone:
            raise ValueError(
                "head_weights is for fine-tuning after a probe; freeze_backbone is a probe, --resume goes on with it"
            )

    def lr_factor(self, name: str) -> float:
        """`head_lr_factor` for the head, powers of `layer_decay` for the stages of the backbone."""
        if name.startswith("backbone."):
            return self.layer_decay ** self._stages_below_head[name.removeprefix("backbone.model.")]
        return self.head_lr_factor

    def lr_begin(self, name: str) -> float:
        """0 for the head; for the stages of the backbone equal parts of `unfreeze_percent`, the last stage first."""
        if not name.startswith("backbone."):
            return 0.0
        below = self._stages_below_head
        return self.unfreeze_percent / 100 * below[name.removeprefix("backbone.model.")] / max(below.values())

    def weights_header(self) -> dict[str, Any]:
        """As in `Task`, with the pretraining."""
        return {**super().weights_header(), "pretraining": self.pretraining}

    @cached_property
    def _stages_below_head(self) -> dict[str, int]:
        """How many stages each parameter of the backbone is below the head: 1 for those of the last stage."""
        model = self.backbone.model
        # by stage and not by block, so that a factor means about the same for networks of different depths
        stages: dict[str, int] = dict(group_parameters(model, model.group_matcher(coarse=True), reverse=True))
        head = max(stages.values()) + 1
        return {name: head - stage for name, stage in stages.items()}

    def _check_initializers(self) -> None:
        """Refuses initialisations that would overwrite what was loaded."""
        for initializer in self.initializers:
            if isinstance(initializer, Keep):
                continue
            for name in initializer.names(self):
                if name.startswith("backbone."):
                    raise ValueError(
                        f"init: the pattern {initializer.pattern!r} matches {name}, which the weights file has set; "
                        "let the pattern begin with ^head, or leave out the weights"
                    )


def _start(backbone: Backbone | None, weights: str | None) -> Backbone:
    """The backbone with its first weights; says what was loaded."""
    if weights is None:
        if backbone is None:
            raise ValueError("what to start from? Give model.weights (a file) or model.backbone.name (random weights)")
        return backbone
    if backbone is None:
        backbone = load_backbone(weights)
        num_tensors = len(backbone.model.state_dict())
        report = LoadReport(num_tensors, num_tensors, Path(weights))
    else:
        report = load_into(backbone, weights)
    if is_rank_zero():
        print(report)
    return backbone


def _provenance(weights: str) -> dict[str, Any]:
    """The file, and the part of its header that tells of its run."""
    of_the_network = {"format", "backbone", "num_features", "mean", "std", "versions"}
    header = read_header(weights)
    return {"weights": weights, **{key: value for key, value in header.items() if key not in of_the_network}}
