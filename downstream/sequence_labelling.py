"""Sequence labelling: the class of each frame, such as the phases of an operation or the actions in a video.

SequenceLabelling(weights="runs/clinic/backbone.safetensors", freeze_backbone=True, head=MultiStageTCNHead(), ...)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from downstream.base.classifier import accuracies
from downstream.base.sequence_heads import FrameFeatures, SequenceHead, padding_mask
from downstream.base.sequence_task import SequenceTask
from ssl_toolkit.data.frames import SequenceBatch
from ssl_toolkit.distributed.collectives import gather_uneven
from ssl_toolkit.distributed.ranks import world_size
from ssl_toolkit.errors import nearest
from ssl_toolkit.evaluation.segments import LabelledSequences, figures
from ssl_toolkit.losses.imbalance import focal_cross_entropy
from ssl_toolkit.losses.truncated_mse import truncated_mse
from ssl_toolkit.random import sample_keys
from ssl_toolkit.step import StepContext, StepOutput


class SequenceLabelling(SequenceTask):
    """Class of each frame of a sequence (temporal segmentation) by the features of the frames, in order.

    The loss of a sequence is the mean over its labelled frames, that of a batch the mean over its sequences. Frames
    without a label count nowhere. ``val/loss`` and ``test/loss`` are the plain cross entropy of the answer, without
    the earlier stages of a head. Validation and test log ``top1``, the share of all labelled frames that are right;
    of segments, which are the frames in a row with one label, ``f1_10``, ``f1_25`` and ``f1_50``, the F1 of those that
    are found with an intersection over union of at least 0.1, 0.25 and 0.5 (Lea et al. 2017, arXiv 1611.05267), and
    ``edit``, one minus the normalised edit distance of their labels, as a mean over sequences (Lea et al. 2016, arXiv
    1602.02995). All lie in [0, 1]. What else `Classifier` logs is of frames.

    Args:
        head: `MultiStageTCNHead`, `TemporalConvHead`, `RecurrentHead` or `TransformerHead`; blind to other frames
            `FrameHead`.
        smoothing: Weight, at least 0, of a loss against labels that change from frame to frame
            (`ssl_toolkit.losses.truncated_mse`; Farha and Gall 2019, arXiv 1903.01945, section 3.3 use 0.15).
        background: A class whose segments do not count in ``f1_10``, ``f1_25``, ``f1_50`` and ``edit``.
        **kwargs: Arguments of `Classifier`.
    """

    takes_soft_targets = False
    predicts_frames = True

    def __init__(
        self, *, head: SequenceHead, smoothing: float = 0.0, background: str | None = None, **kwargs: Any
    ) -> None:
        if not head.labels_frames:
            raise ValueError(
                f"{type(head).__name__} scores whole sequences, and SequenceLabelling needs a score of each frame: "
                "take MultiStageTCNHead, TemporalConvHead, RecurrentHead, TransformerHead or FrameHead"
            )
        if not smoothing >= 0:
            raise ValueError(f"smoothing is {smoothing}, expected a number of at least 0")
        super().__init__(head=head, **kwargs)
        self.smoothing = smoothing
        self.background = background

    def setup(self, stage: str) -> None:
        """As in `Classifier`; each frame needs a label, and the background must be one of the classes."""
        if self.data is not None and not getattr(self.data, "frame_labels", False):
            raise ValueError(
                "SequenceLabelling names the class of each frame, but the data have none: set data.frame_labels: true "
                "(a table then labels segments or frames), or take downstream.sequence.SequenceClassification"
            )
        super().setup(stage)
        names = self._class_names()
        if self.background is not None and self.background not in names and stage != "predict":
            raise ValueError(
                f"model.background is {self.background!r}, which is no class; the classes are {', '.join(names)}"
                f"{nearest(self.background, names)}"
            )

    # ---- the labels

    def training_labels(self) -> Tensor | None:
        """The labels of all training frames."""
        labels: Any = getattr(self.data, "labels_of_frames", None)
        return None if labels is None else labels("train")

    def labels_of(self, batch: SequenceBatch) -> Tensor:
        """The labels of the frames."""
        assert batch.frame_labels is not None
        return batch.frame_labels

    def check_training_labels(self) -> None:
        """Refuses training sequences of which no frame has a label."""
        labels = self.training_labels()
        if labels is not None and not bool((labels >= 0).any()):
            raise ValueError("no training frame has a label; SequenceLabelling needs some")

    def initial_loss(self, batch_size: int) -> float | None:
        """As in `Classifier`, for each stage; not with smoothing, nor where frames may lack labels."""
        labels = self.training_labels()
        if self.smoothing or labels is None or bool((labels < 0).any()) or self._weights is not None:
            return None
        loss = super().initial_loss(batch_size)
        return None if loss is None else loss * (getattr(self.head, "num_stages", 1) if self.training else 1)

    # ---- a step

    def logits(self, features: FrameFeatures) -> Tensor:
        """The scores of all frames: float tensor of shape ``[num_frames, num_classes]``."""
        return _flat(self.head.score_frames(features.padded, features.lengths)[-1], features.lengths)

    def step(self, batch: SequenceBatch, keys: Tensor, context: StepContext) -> StepOutput:
        """Features, then loss."""
        return self.loss(self.encode(batch, keys), self.labels_of(batch), context)

    def loss(self, features: FrameFeatures, targets: Tensor, context: StepContext) -> StepOutput:
        """Cross entropy of the frames; in training that of all stages of the head, and the loss against changes.

        Args:
            features: Of the frames.
            targets: int64 tensor of shape ``[num_frames]``: their labels, -1 where one is not known.
            context: As in `DownstreamTask`.
        """
        padded, lengths = features
        stages = self.head.score_frames(padded, lengths)
        known = targets >= 0
        last = _flat(stages[-1].detach(), lengths)[known]
        metrics = {"top1": accuracies(last, targets[known])["top1"]} if len(last) else {}
        loss = self._stages_loss(stages if context.training else stages[-1:], lengths, targets, context)
        return StepOutput(loss, _flat(padded, lengths), metrics)

    def _stages_loss(self, stages: list[Tensor], lengths: Tensor, targets: Tensor, context: StepContext) -> Tensor:
        """The loss of scores ``[batch, longest, num_classes]``; the remedies and the smoothing are for training."""
        known, weights = targets >= 0, context.sample_weights()
        counts = _counts(known, lengths, weights)
        loss = stages[0].new_zeros(())
        for scores in stages:
            flat = _flat(scores, lengths)[known]
            if not len(flat):
                loss = loss + scores.sum() * 0.0  # so that all parameters have a gradient
            elif context.training:
                if self._log_prior is not None:
                    flat = flat.float() + self.logit_adjustment * self._log_prior.to(flat)
                soft = context.soften(targets[known])
                loss = loss + focal_cross_entropy(flat, soft, self.focal_gamma, self._weights, counts)
            else:
                loss = loss + focal_cross_entropy(flat, context.soften(targets[known]), sample_weights=counts)
            if self.smoothing and context.training:
                changes = truncated_mse(scores, lengths)
                loss = loss + self.smoothing * (changes if weights is None else changes * weights.to(changes)).mean()
        return loss

    # ---- validation and test

    def on_validation_epoch_start(self) -> None:
        """Starts to count."""
        super().on_validation_epoch_start()
        self._start_counting()

    def on_test_epoch_start(self) -> None:
        """Starts to count."""
        super().on_test_epoch_start()
        self._start_counting()

    def validation_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """The loss of a validation batch, measured, and what was recognised."""
        self._count("val", batch)

    def test_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """The loss of a test batch, measured, and what was recognised."""
        labels = self.labels_of(batch)
        known = labels >= 0
        self.count_scores(self._count("test", batch)[known], labels[known])

    def on_validation_epoch_end(self) -> None:
        """Logs what was measured."""
        super().on_validation_epoch_end()
        self._log_figures("val")

    def on_test_epoch_end(self) -> None:
        """Logs what was measured."""
        super().on_test_epoch_end()
        self._log_figures("test")

    def _start_counting(self) -> None:
        background = None if self.background is None else self._class_names().index(self.background)
        self._seen = LabelledSequences(background)

    def _count(self, stage: str, batch: SequenceBatch) -> Tensor:
        features = self.encode(batch, sample_keys(self.seed, 0, batch.indices))
        labels, counted = self.labels_of(batch), list(batch.lengths.tolist())
        answer = self.head.score_frames(features.padded, features.lengths)[-1]
        # of the sequences that have labels: one without would bring a loss of 0 into the mean
        num = sum(bool((own >= 0).any()) for own in labels.split(counted))
        if num:
            loss = self._stages_loss([answer], batch.lengths, labels, StepContext(False, self.progress, batch))
            self.measure(stage, StepOutput(loss * len(counted) / num, features.padded, {}), num)
        scores = _flat(answer, batch.lengths)
        parts = scores.argmax(dim=1).split(counted), labels.split(counted)
        for index, own, truth in zip(batch.indices.tolist(), *parts, strict=True):
            self._seen.add(index, own, truth)
        return scores

    def _log_figures(self, stage: str) -> None:
        rows = gather_uneven(self._seen.rows().to(self.device))[0].cpu()
        for name, value in figures(rows).items():
            if stage == "test" or name not in ("top1_low", "top1_high"):
                self.log(f"{stage}/{name}", value, batch_size=1, sync_dist=world_size() > 1)


def _flat(padded: Tensor, lengths: Tensor) -> Tensor:
    """The rows of all frames, one sequence after the other, without the padding."""
    return padded[~padding_mask(lengths, padded.shape[1])]


def _counts(known: Tensor, lengths: Tensor, weights: Tensor | None) -> Tensor:
    """How much each labelled frame counts in a mean over them, so that it becomes a mean over the sequences."""
    owners = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)[known]
    labelled = owners.bincount(minlength=len(lengths))
    counts = len(owners) / (len(lengths) * labelled[owners])
    return counts if weights is None else counts * weights.to(counts)[owners]
