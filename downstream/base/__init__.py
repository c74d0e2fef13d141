"""Base classes of downstream tasks: pretrained weights, a frozen or fine-tuned backbone, a head."""

from downstream.base.classifier import Classifier
from downstream.base.task import DownstreamTask

__all__ = ["Classifier", "DownstreamTask"]
