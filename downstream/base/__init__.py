"""Base classes of downstream tasks: pretrained weights, a frozen or fine-tuned backbone, a head."""

from downstream.base.classifier import Classifier
from downstream.base.pooled_head import CosineHead, HeadKind, check_pooled_head, pooled_head
from downstream.base.target_task import TargetTask
from downstream.base.task import DownstreamTask

__all__ = ["Classifier", "CosineHead", "DownstreamTask", "HeadKind", "TargetTask", "check_pooled_head", "pooled_head"]
