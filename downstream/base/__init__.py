"""What every downstream task shares: pretrained weights, a backbone that is frozen or fine-tuned, a head on top."""

from downstream.base.classifier import Classifier
from downstream.base.task import DownstreamTask

__all__ = ["Classifier", "DownstreamTask"]
