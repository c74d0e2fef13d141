"""Base classes of downstream tasks: pretrained weights, a frozen or fine-tuned backbone, a head."""

from downstream.base.classifier import Classifier
from downstream.base.frozen_features import check_views, compute_features
from downstream.base.nearest_mean import NearestMeanHead
from downstream.base.pooled_head import ClassHeadKind, CosineHead, HeadKind, check_pooled_head, pooled_head
from downstream.base.target_task import TargetTask
from downstream.base.task import DownstreamTask

__all__ = [
    "ClassHeadKind",
    "Classifier",
    "CosineHead",
    "DownstreamTask",
    "HeadKind",
    "NearestMeanHead",
    "TargetTask",
    "check_pooled_head",
    "check_views",
    "compute_features",
    "pooled_head",
]
