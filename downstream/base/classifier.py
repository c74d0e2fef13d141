"""`Classifier`: the base class of classification tasks."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from downstream.base.calibration import Reliability, fit_temperature, scores_of, summed
from downstream.base.task import DownstreamTask
from ssl_toolkit.distributed.ranks import is_rank_zero, world_size
from ssl_toolkit.losses.full_precision import full_precision
from ssl_toolkit.losses.imbalance import class_weights, focal_cross_entropy, log_prior
from ssl_toolkit.losses.soft_targets import soft_cross_entropy
from ssl_toolkit.random import sample_keys
from ssl_toolkit.step import StepContext, StepOutput

_SHOWN = 5


class Classifier(DownstreamTask):
    """Base class of classification tasks. A new one defines `build_head` and `logits`.

    It logs ``top1`` and, where there are more than five classes, ``top5``; the test also logs the accuracy of each
    class, ``test/top1_of/CLASS``, and their mean, ``test/mean_class_top1``. Where images are mixed in training, they
    count as what they are most of.

    The test logs ``test/ece``, the expected calibration error, with 15 bins of equal width of the confidence of the
    predicted class (Guo et al. 2017, arXiv 1706.04599); and where there are validation images ``test/temperature``, the
    number by which the scores are divided for the least cross entropy on these, and ``test/ece_calibrated`` with it.

    Three remedies for classes of very different sizes change the loss of training; ``val/loss`` and ``test/loss`` are
    the plain cross entropy with any of them.

    Args:
        num_classes: How many classes; by default as many as the data have.
        class_weights: How much more an image of a small class counts, from 0 (all alike) to 1 (the inverse of its
            class's size); between, the effective number of Cui et al. 2019 (arXiv 1901.05555), such as 0.999.
        focal_gamma: Well recognised images count less, by ``(1 - p)`` to this power, at least 0 (Lin et al. 2017, arXiv
            1708.02002, which uses 2).
        logit_adjustment: In training the logarithm of each class's frequency, times this factor of at least 0, is added
            to its score, so that the scores without it favour no class (Menon et al. 2021, arXiv 2007.07314, which
            uses 1).
        **kwargs: Arguments of `DownstreamTask`.

    Attributes:
        temperature: By which `predict` divides the scores, above 0; 1 leaves them.
        found_temperature: The temperature that the last test has found; None without validation images, and where none
            is the best (`downstream.base.calibration.fit_temperature`).
    """

    takes_soft_targets = True
    takes_weights = True
    predicts = True
    traits = frozenset({"labels"})
    _weights: Tensor | None
    _log_prior: Tensor | None

    def __init__(
        self,
        *,
        num_classes: int | None = None,
        class_weights: float = 0.0,
        focal_gamma: float = 0.0,
        logit_adjustment: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}, expected at least 2")
        if not 0 <= class_weights <= 1:
            raise ValueError(f"class_weights is {class_weights}, expected 0 (all alike) to 1 (inverse of the size)")
        for name, value in (("focal_gamma", focal_gamma), ("logit_adjustment", logit_adjustment)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}, expected a number of at least 0")
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.class_weights = class_weights
        self.focal_gamma = focal_gamma
        self.logit_adjustment = logit_adjustment
        # of the training samples: nothing that a checkpoint has to hold
        self.register_buffer("_weights", None, persistent=False)
        self.register_buffer("_log_prior", None, persistent=False)
        # [num_classes, 2]: test samples of each class that were recognised, and all of them
        self._class_counts = torch.zeros(0, 2, dtype=torch.int64)
        self.temperature = 1.0
        self.found_temperature: float | None = None

    @abstractmethod
    def logits(self, features: Any) -> Tensor:
        """The scores of the classes: float tensor of shape ``[batch, num_classes]``.

        Args:
            features: What `encode` returns.
        """

    def setup(self, stage: str) -> None:
        """Asks the data for the classes; images whose classes are to be predicted need not have any."""
        found = None if stage == "predict" and self.num_classes else getattr(self.data, "num_classes", None)
        if found is not None and found < 2:
            advice = "; set data.labels: folder and put each class into a folder of its own" if found == 0 else ""
            raise ValueError(f"a classifier needs data of at least 2 classes, but these have {found}{advice}")
        if self.num_classes is None:
            if found is None:
                raise ValueError("num_classes is not known: give it to the task, or use a data module that has one")
            self.num_classes = found
        elif found is not None and found > self.num_classes:
            raise ValueError(f"num_classes is {self.num_classes}, but the data have {found} classes")
        if found is not None and stage == "fit":
            self.check_training_labels()
        if found is not None and stage == "fit" and is_rank_zero():
            self._tell_of_missing_classes()
        if stage == "fit" and (self.class_weights or self.logit_adjustment):
            if getattr(self.data, "class_balance", 0.0):
                raise ValueError("class_weights and logit_adjustment count again what data.class_balance evens out")
            self._count_training_samples()
        super().setup(stage)

    def training_labels(self) -> Tensor | None:
        """int64 tensor: the labels of the training samples, -1 for none; None where the data do not tell them."""
        labels: Any = getattr(self.data, "labels", None)
        return None if labels is None else labels("train")

    def labels_of(self, batch: Any) -> Tensor:
        """int64 tensor: the label that belongs to each row of the scores of a batch, -1 for none."""
        return batch.labels

    def check_training_labels(self) -> None:
        """Refuses training samples without a label."""
        labels = self.training_labels()
        if labels is not None and (num_without := int((labels < 0).sum())):
            raise ValueError(f"{num_without} of the training samples have no label; a classifier needs one for each")

    def _tell_of_missing_classes(self) -> None:
        """Says which classes no training sample has: such as those of a table whose images are all tested."""
        labels = self.training_labels()
        if labels is None:
            return
        known = set(labels.unique().tolist())
        missing = [name for number, name in enumerate(self._class_names()) if number not in known]
        if missing:
            shown = ", ".join(missing[:_SHOWN]) + ", ..." * (len(missing) > _SHOWN)
            print(f"no training sample of {shown}: whatever is tested of it is taken for another class")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the number of classes from the tensors of the head, where it is not known."""
        head = {name: each for name, each in checkpoint["state_dict"].items() if name.startswith("head.") and each.ndim}
        if self.num_classes is None and head:
            self.num_classes = self.num_classes_of(head)
        super().on_load_checkpoint(checkpoint)

    def num_classes_of(self, head: dict[str, Tensor]) -> int:
        """The number of classes of a head, from its tensors by name."""
        return len(list(head.values())[-1])

    def initial_loss(self, batch_size: int) -> float | None:
        """Each class of the data is as likely: ln C."""
        if self.focal_gamma or self.logit_adjustment or getattr(self.data, "weighted", False):
            return None
        classes = getattr(self.data, "num_classes", None) or self.num_classes
        assert classes is not None
        return math.log(classes)

    def loss(self, features: Any, targets: Tensor, context: StepContext) -> StepOutput:
        """Cross entropy of the head's scores; the targets are soft where images are mixed or targets smoothed."""
        logits = self.logits(features)
        soft, counts = context.soften(targets), context.sample_weights()
        remedies = self.focal_gamma or self._weights is not None or self._log_prior is not None
        if context.training and (remedies or counts is not None):
            scores = full_precision(logits)
            if self._log_prior is not None:
                scores = scores + self.logit_adjustment * self._log_prior.to(scores)
            loss = focal_cross_entropy(scores, soft, self.focal_gamma, self._weights, counts)
        else:
            loss = soft_cross_entropy(full_precision(logits), soft)
        return StepOutput(loss, features, accuracies(logits.detach(), soft.heaviest))

    def _count_training_samples(self) -> None:
        """Weights and frequencies of the classes, from the training samples."""
        found = self.training_labels()
        if found is None:
            raise ValueError("class_weights and logit_adjustment need a data module that tells the training labels")
        assert self.num_classes is not None
        counts = found[found >= 0].bincount(minlength=self.num_classes)
        self._weights = class_weights(counts, self.class_weights) if self.class_weights else None
        self._log_prior = log_prior(counts) if self.logit_adjustment else None

    def scores(self, batch: Any) -> Tensor:
        """The scores of the classes for a batch, as in a test: float tensor of shape ``[batch, num_classes]``."""
        return self.logits(self.encode(batch, sample_keys(self.seed, 0, batch.indices)))

    def head_outputs(self, features: Any) -> tuple[Tensor, Tensor]:
        """Scores and probabilities of the classes: float tensors of shape ``[batch, num_classes]``."""
        logits = self.logits(features)
        return logits, (logits.float() / self.temperature).softmax(dim=1)

    @torch.no_grad()
    def predict(self, batch: Any) -> Tensor:
        """The probabilities of the classes, computed in evaluation mode.

        Args:
            batch: What the loader delivers; its labels are not read.

        Returns:
            float32 tensor of shape ``[batch, num_classes]`` whose rows sum to 1.
        """
        was_training = self.training
        self.eval()
        _, probabilities = self.head_outputs(self.encode(batch, sample_keys(self.seed, 0, batch.indices)))
        self.train(was_training)
        return probabilities

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """As `predict`."""
        return self.predict(batch)

    def model_header(self) -> dict[str, Any]:
        """What a model file tells of the run that it comes from: plain data only."""
        return {
            **{name: each for name, each in self.weights_header().items() if name in ("task", "step", "epoch")},
            "class_names": self._class_names(),
            "num_classes": self.num_classes,
            "image_size": self.image_size,
            "ranges": getattr(self.data, "ranges", {}),
            **self.covariates_header(),
        }

    def on_test_epoch_start(self) -> None:
        """Starts to count, and finds the temperature, on the validation images and with the weights that are tested."""
        super().on_test_epoch_start()
        assert self.num_classes is not None
        self.found_temperature = None
        num_images: Any = getattr(self.data, "num_images", None)
        if num_images is not None and num_images("val") >= world_size():
            scores = scores_of(self, self.data.val_dataloader())
            self.found_temperature = fit_temperature(scores, lambda own: summed(own, self.device))
        self._reliability = [Reliability(self.device) for _ in range(2)]
        self._class_counts = torch.zeros(self.num_classes, 2, dtype=torch.int64, device=self.device)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """The loss of a test batch, measured, and the samples of each class counted."""
        features = self.encode(batch, sample_keys(self.seed, 0, batch.indices))
        context = StepContext(False, self.progress, batch)
        self.measure("test", self.loss(features, batch.labels, context), len(batch.indices))
        self.count_scores(self.logits(features), batch.labels)

    def count_scores(self, logits: Tensor, labels: Tensor) -> None:
        """Counts test samples: their scores, float tensor of shape ``[batch, num_classes]``, and labels ``[batch]``."""
        self.count_tested(logits.argmax(dim=1), labels)
        scores, labels = logits.detach().float().cpu().double(), labels.cpu()
        for reliability, temperature in zip(self._reliability, (1.0, self.found_temperature or 1.0), strict=True):
            reliability.add((scores / temperature).softmax(dim=1), labels)

    def count_tested(self, predicted: Tensor, labels: Tensor) -> None:
        """Counts test samples: int64 tensors of shape ``[batch]`` of their most probable classes and their own."""
        self._class_counts += count_by_class(predicted == labels, labels, len(self._class_counts))

    def on_test_epoch_end(self) -> None:
        """Logs what was measured, the accuracy of each class of which there were samples, and that of the largest."""
        super().on_test_epoch_end()
        counts = self.trainer.strategy.reduce(self._class_counts, reduce_op="sum")
        assert isinstance(counts, Tensor)
        names = self._class_names()
        tested = counts[:, 1] > 0
        top1 = counts[:, 0].float() / counts[:, 1].clamp(min=1)
        for index in tested.nonzero().flatten().tolist():
            # Lightning refuses a name that holds its own word for loaders, unless it is told to add none
            name = f"test/top1_of/{names[index]}"
            self.log(name, top1[index], sync_dist=world_size() > 1, add_dataloader_idx=False)
        self.log("test/mean_class_top1", top1[tested].mean(), sync_dist=world_size() > 1)
        largest = self._largest_class()
        if largest is not None:
            fraction = counts[largest, 1].float() / counts[:, 1].sum()
            self.log("test/largest_class_top1", fraction, sync_dist=world_size() > 1)

        self._log_calibration()

    def _log_calibration(self) -> None:
        plain, calibrated = (each.error() for each in self._reliability)
        found = {"ece": plain}
        if self.found_temperature is not None:
            found |= {"ece_calibrated": calibrated, "temperature": self.found_temperature}
        for name, value in found.items():
            self.log(f"test/{name}", value, batch_size=1, sync_dist=world_size() > 1)

    def _class_names(self) -> list[str]:
        """A different name for each class; one that the data do not have is called by its number."""
        assert self.num_classes is not None
        names: list[str] = list(getattr(self.data, "class_names", ()))
        for index in range(len(names), self.num_classes):
            name = str(index)
            while name in names:
                name = f"class {name}"
            names.append(name)
        return names

    def _largest_class(self) -> int | None:
        """The class of the most training samples: naming it always is what an accuracy has to beat."""
        found = self.training_labels()
        if found is None:
            return None
        found = found[found >= 0]
        return int(found.bincount().argmax()) if len(found) else None


def accuracies(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Top-1 and top-5 accuracy: the class has the highest score, or is among the five highest.

    Args:
        logits: Float tensor of shape ``[batch, num_classes]``.
        targets: int64 tensor of shape ``[batch]``.

    Returns:
        ``top1``, and ``top5`` where it can differ from 1: with more than five classes.
    """
    num_classes = logits.shape[1]
    hits = logits.topk(min(5, num_classes), dim=1).indices == targets.unsqueeze(1)
    fractions = {"top1": hits[:, 0].float().mean()}
    if num_classes > 5:
        fractions["top5"] = hits.any(dim=1).float().mean()
    return fractions


def count_by_class(right: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Counts by class: how many samples are right, and how many there are.

    Args:
        right: bool tensor of shape ``[batch]``.
        targets: int64 tensor of shape ``[batch]``.
        num_classes: How many classes.

    Returns:
        int64 tensor of shape ``[num_classes, 2]``.
    """
    return torch.stack(
        [torch.bincount(which, minlength=num_classes) for which in (targets[right], targets)],
        dim=1,
    )
