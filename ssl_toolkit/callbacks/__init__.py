"""Callbacks: checkpoints, progress line, throughput, online evaluation, weight averages, early stopping and others."""

from ssl_toolkit.callbacks.checkpoint import Checkpoint
from ssl_toolkit.callbacks.early_stopping import EarlyStopping
from ssl_toolkit.callbacks.export_weights import ExportWeights
from ssl_toolkit.callbacks.learning_rate import LearningRate
from ssl_toolkit.callbacks.nonfinite import NonFinite
from ssl_toolkit.callbacks.online_evaluation import OnlineEvaluation
from ssl_toolkit.callbacks.progress import ProgressBar
from ssl_toolkit.callbacks.progressive_size import ProgressiveSize
from ssl_toolkit.callbacks.resume_metrics import ResumeMetrics
from ssl_toolkit.callbacks.sample_views import SampleViews
from ssl_toolkit.callbacks.throughput import Throughput
from ssl_toolkit.callbacks.weight_average import WeightAverage, averaged_weights

__all__ = [
    "Checkpoint",
    "EarlyStopping",
    "ExportWeights",
    "LearningRate",
    "NonFinite",
    "OnlineEvaluation",
    "ProgressBar",
    "ProgressiveSize",
    "ResumeMetrics",
    "SampleViews",
    "Throughput",
    "WeightAverage",
    "averaged_weights",
]
