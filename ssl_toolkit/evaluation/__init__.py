"""Evaluation on frozen features: kNN, linear probes, masks, retrieval, clusters, stage by stage, with intervals."""

from ssl_toolkit.data.folds import stratified_folds
from ssl_toolkit.evaluation.classes import Classes, ClassRow, by_class, calibration_error
from ssl_toolkit.evaluation.clustering import (
    adjusted_rand_index,
    chance_information,
    k_means,
    normalized_mutual_information,
)
from ssl_toolkit.evaluation.compare import compare
from ssl_toolkit.evaluation.comparison import Comparison
from ssl_toolkit.evaluation.dense_rows import DenseClass, DenseDifference, DenseProbe, DenseRow
from ssl_toolkit.evaluation.ensembles import (
    EnsembleResult,
    FoldsResult,
    bagging,
    boosting,
    bootstrap,
    cross_validate,
    samme_step,
)
from ssl_toolkit.evaluation.features import Features, Precision, evaluation_mode, extract_features
from ssl_toolkit.evaluation.few_labels import FewLabelResult, few_label_draws, few_label_probe
from ssl_toolkit.evaluation.flatness import Flatness, flatness
from ssl_toolkit.evaluation.intervals import (
    Interval,
    Spread,
    bootstrap_interval,
    confidence_interval,
    mean_and_spread,
    paired_difference,
)
from ssl_toolkit.evaluation.knn import knn_accuracy, knn_predict
from ssl_toolkit.evaluation.label_curve import LabelCurve, LabelPoint
from ssl_toolkit.evaluation.linear_probe import ProbeResult, linear_probe
from ssl_toolkit.evaluation.logistic_regression import LinearClassifier, fit_linear
from ssl_toolkit.evaluation.measure import evaluate
from ssl_toolkit.evaluation.random_weights import calibrate_batch_norm, random_backbone
from ssl_toolkit.evaluation.representation import alignment, lidar, rank_me, spread, uniformity
from ssl_toolkit.evaluation.results import Evaluation
from ssl_toolkit.evaluation.retrieval import retrieve
from ssl_toolkit.evaluation.rows import Difference, EnsembleRow, FoldsRow, Row
from ssl_toolkit.evaluation.segmentation import class_iou, image_confusions, mean_iou, pixel_accuracy
from ssl_toolkit.evaluation.shortcut_rows import ShortcutDifference, ShortcutRow, Shortcuts
from ssl_toolkit.evaluation.shortcuts import measure_shortcuts
from ssl_toolkit.evaluation.significance import holm, mcnemar_exact, paired_permutation_test
from ssl_toolkit.evaluation.unlabelled_rows import Clustering, ClusterRow, Retrieval, RetrievalRow

__all__ = [
    "ClassRow",
    "Classes",
    "ClusterRow",
    "Clustering",
    "Comparison",
    "DenseClass",
    "DenseDifference",
    "DenseProbe",
    "DenseRow",
    "Difference",
    "EnsembleResult",
    "EnsembleRow",
    "Evaluation",
    "Features",
    "FewLabelResult",
    "Flatness",
    "FoldsResult",
    "FoldsRow",
    "Interval",
    "LabelCurve",
    "LabelPoint",
    "LinearClassifier",
    "Precision",
    "ProbeResult",
    "Retrieval",
    "RetrievalRow",
    "Row",
    "ShortcutDifference",
    "ShortcutRow",
    "Shortcuts",
    "Spread",
    "adjusted_rand_index",
    "alignment",
    "bagging",
    "boosting",
    "bootstrap",
    "bootstrap_interval",
    "by_class",
    "calibrate_batch_norm",
    "calibration_error",
    "chance_information",
    "class_iou",
    "compare",
    "confidence_interval",
    "cross_validate",
    "evaluate",
    "evaluation_mode",
    "extract_features",
    "few_label_draws",
    "few_label_probe",
    "fit_linear",
    "flatness",
    "holm",
    "image_confusions",
    "k_means",
    "knn_accuracy",
    "knn_predict",
    "lidar",
    "linear_probe",
    "mcnemar_exact",
    "mean_and_spread",
    "mean_iou",
    "measure_shortcuts",
    "normalized_mutual_information",
    "paired_difference",
    "paired_permutation_test",
    "pixel_accuracy",
    "random_backbone",
    "rank_me",
    "retrieve",
    "samme_step",
    "spread",
    "stratified_folds",
    "uniformity",
]
