"""Figures of frozen features by their labels: kNN and linear probe of each representation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ssl_toolkit.augment import View
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation.classes import calibration_error
from ssl_toolkit.evaluation.ensemble_rows import Extras, extra_rows
from ssl_toolkit.evaluation.feature_store import FeatureStore, stored_features
from ssl_toolkit.evaluation.features import Features, Precision
from ssl_toolkit.evaluation.intervals import confidence_interval
from ssl_toolkit.evaluation.knn import knn_predict
from ssl_toolkit.evaluation.label_curve import Splits
from ssl_toolkit.evaluation.linear_probe import ProbeResult, linear_probe
from ssl_toolkit.evaluation.logistic_regression import Labelled, LinearClassifier
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.evaluation.representation import rank_me, spread
from ssl_toolkit.evaluation.robustness import Probed
from ssl_toolkit.evaluation.rows import EnsembleRow, FoldsRow, Row, best_representation
from ssl_toolkit.modules.backbone import Backbone

# rank and spread settle long before; the singular values of more images only take time
_MAX_RANKED = 10_000


class Measured(NamedTuple):
    """All figures of one representation with one set of weights."""

    row: Row
    knn_correct: Tensor
    probe: ProbeResult
    test: Labelled
    ensembles: list[EnsembleRow]
    folds: list[FoldsRow]
    splits: Splits | None  # of the pooled features: those of all representations would take their memory


def measure_representations(
    backbone: Backbone,
    data: ImageData,
    view: View,
    weights: Literal["given", "random"],
    ks: Sequence[int],
    stages: bool,
    precision: Precision,
    extras: Extras,
    store: FeatureStore | None,
    steps: Steps,
) -> dict[str, Measured]:
    """All figures of one set of weights, by representation."""
    splits: list[Features] = []
    for split in ("train", "val", "test"):
        steps.begin(f"features with {weights} weights, {split} images", data.num_images(split))
        extracted = stored_features(
            store, backbone, data, split, view, stages=stages, precision=precision, count=steps.advance
        )
        how = f"in {extracted.seconds:.0f} s" if extracted.seconds or store is None else f"from '{store.folder}'"
        steps(f"features with {weights} weights: {len(extracted.labels):,} {split} images {how}")
        splits.append(extracted)
    train_labels, val_labels, test_labels = (split.labels for split in splits)
    results = {}
    for name in sorted(splits[0].features, key=lambda name: name != "pooled"):
        if name != "pooled" and _is_pooled(name, splits[-1].features):
            continue
        train, val, test = (split.features[name] for split in splits)
        steps.begin(f"kNN and linear probe of {name} with {weights} weights")
        knn_val = _accuracies(knn_predict(train, train_labels, val, ks), val_labels)
        k = max(knn_val, key=lambda number: (knn_val[number], -number))
        predictions = knn_predict(train, train_labels, test, ks)
        knn_correct = predictions[k] == test_labels
        probe = linear_probe((train, train_labels), (val, val_labels), (test, test_labels))
        row = Row(
            weights,
            name,
            test.shape[1],
            knn=confidence_interval(knn_correct),
            knn_k=k,
            knn_val=knn_val,
            knn_test=_accuracies(predictions, test_labels),
            linear=confidence_interval(probe.correct),
            linear_val=probe.val_top1,
            strength=probe.strength,
            spread=spread(test[:_MAX_RANKED]),
            rank_me=rank_me(test[:_MAX_RANKED]),
            knn_mean_class=mean_class(knn_correct, test_labels),
            linear_mean_class=mean_class(probe.correct, test_labels),
            linear_ece=calibration_error(probe.confidence, probe.correct),
        )
        steps(
            f"{name} with {weights} weights: kNN {100 * row.knn.value:.1f} %, "
            f"linear probe {100 * row.linear.value:.1f} %"
        )
        more, parts = ([], []), None
        if name == "pooled":
            parts = (train, train_labels), (val, val_labels), (test, test_labels)
            of_each = [
                data.groups_of(split, each.indices) for split, each in zip(("train", "val"), splits, strict=False)
            ]
            groups = (
                None
                if any(each is None for each in of_each)
                else torch.cat([each for each in of_each if each is not None])
            )
            more = extra_rows(extras, *parts, weights, probe, steps, groups)
        results[name] = Measured(row, knn_correct, probe, (test, test_labels), *more, parts)
    return results


def _is_pooled(stage: str, features: Mapping[str, Tensor]) -> bool:
    """Whether the averaged map of a stage is what the backbone returns, to the rounding of bfloat16."""
    averaged, pooled = features[stage], features["pooled"]
    return averaged.shape == pooled.shape and torch.allclose(
        averaged, pooled, rtol=0.02, atol=0.02 * float(pooled.std())
    )


def best_of(results: dict[str, Measured]) -> str:
    """The representation whose linear probe is the best on the validation images."""
    return best_representation([result.row for result in results.values()])


def best_probe(network: Backbone, results: dict[str, Measured]) -> Probed:
    """The linear probe of the best representation."""
    name = best_of(results)
    probe = results[name].probe
    return Probed(network, name, LinearClassifier(probe.weight, probe.bias))


def _accuracies(predictions: dict[int, Tensor], labels: Tensor) -> dict[int, float]:
    return {k: float((predicted == labels).double().mean()) for k, predicted in predictions.items()}


def mean_class(correct: Tensor, labels: Tensor) -> float:
    """The accuracy of each class, averaged over the classes that there are."""
    counts = labels.bincount()
    return float((labels[correct].bincount(minlength=len(counts)) / counts)[counts > 0].double().mean())
