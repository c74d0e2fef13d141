"""Evaluation on frozen features: kNN, linear probe, few labels, stage by stage, spread and rank, with intervals."""

from ssl_toolkit.evaluation.features import Features, Precision, evaluation_mode, extract_features, has_native_bf16
from ssl_toolkit.evaluation.few_labels import FewLabelResult, few_label_draws, few_label_probe
from ssl_toolkit.evaluation.flatness import Flatness, flatness
from ssl_toolkit.evaluation.intervals import (
    Interval,
    Spread,
    confidence_interval,
    mean_and_spread,
    paired_difference,
)
from ssl_toolkit.evaluation.knn import knn_accuracy, knn_predict
from ssl_toolkit.evaluation.linear_probe import ProbeResult, linear_probe
from ssl_toolkit.evaluation.measure import evaluate
from ssl_toolkit.evaluation.random_weights import calibrate_batch_norm, random_backbone
from ssl_toolkit.evaluation.representation import rank_me, spread
from ssl_toolkit.evaluation.results import Difference, Evaluation, Row

__all__ = [
    "Difference",
    "Evaluation",
    "Features",
    "FewLabelResult",
    "Flatness",
    "Interval",
    "Precision",
    "ProbeResult",
    "Row",
    "Spread",
    "calibrate_batch_norm",
    "confidence_interval",
    "evaluate",
    "evaluation_mode",
    "extract_features",
    "few_label_draws",
    "few_label_probe",
    "flatness",
    "has_native_bf16",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
    "mean_and_spread",
    "paired_difference",
    "random_backbone",
    "rank_me",
    "spread",
]
