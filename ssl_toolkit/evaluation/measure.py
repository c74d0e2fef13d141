"""Evaluation of frozen features: a backbone beside the same architecture with random weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ssl_toolkit.augment import CenterView, View
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation.classes import by_class, calibration_error
from ssl_toolkit.evaluation.ensemble_rows import Extras, extra_rows
from ssl_toolkit.evaluation.feature_store import FeatureStore, stored_features
from ssl_toolkit.evaluation.features import Features, Precision, chosen_device
from ssl_toolkit.evaluation.intervals import confidence_interval, paired_difference
from ssl_toolkit.evaluation.invariance import measure_invariance
from ssl_toolkit.evaluation.knn import knn_predict
from ssl_toolkit.evaluation.label_curve import Splits, check_few_labels, measure_label_curve
from ssl_toolkit.evaluation.labelled_splits import check_labelled_splits
from ssl_toolkit.evaluation.linear_probe import ProbeResult, linear_probe
from ssl_toolkit.evaluation.logistic_regression import Labelled, LinearClassifier
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.evaluation.random_weights import calibrate_batch_norm, random_backbone
from ssl_toolkit.evaluation.representation import rank_me, spread
from ssl_toolkit.evaluation.results import Evaluation
from ssl_toolkit.evaluation.robustness import Probed, measure_robustness
from ssl_toolkit.evaluation.rows import Difference, EnsembleRow, FoldsRow, Row, best_representation
from ssl_toolkit.evaluation.shortcut_rows import Weights
from ssl_toolkit.evaluation.shortcuts import check_shortcuts, measure_shortcuts, patch_side
from ssl_toolkit.evaluation.unlabelled_rows import check_unlabelled, measure_unlabelled
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import load_backbone, read_header

# rank and spread settle long before; the singular values of more images only take time
_MAX_RANKED = 10_000


def evaluate(
    weights: str | Path | Backbone,
    data: ImageData,
    *,
    image_size: int | None = None,
    ks: Sequence[int] = (1, 5, 20, 200),
    stages: bool = True,
    random_weights: bool = True,
    ensemble: Literal["bagging", "boosting"] | None = None,
    members: int = 10,
    folds: int | None = None,
    few_labels: Sequence[int] = (),
    few_label_draws: int = 5,
    retrieval: bool = False,
    clustering: bool = False,
    feature_store: str | None = None,
    invariance: bool = False,
    robustness: bool = False,
    robustness_images: int = 2000,
    shortcuts: bool = False,
    seed: int = 0,
    precision: Precision = "auto",
    device: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measures kNN and linear-probe accuracy of a backbone's frozen features.

    Every choice (the number of neighbours, the strength of the penalty, the best stage) is made on the validation
    images; the test images give the figures. The random weights are one seeded initialisation, whose batch-norm
    statistics are estimated on the training images (see `calibrate_batch_norm`), as those of the given weights were.

    The intervals are about the choice of the test images and nothing else: not about that of the training images, nor
    about the seed of the random weights or of the pretraining. Before a difference of a few points is believed it
    should be seen with other seeds.

    Args:
        weights: A weights file, or a backbone, which is left as it is.
        data: Labelled images with the splits train, val and test.
        image_size: Side in pixels of what the backbone sees; None for the data's own.
        ks: Numbers of neighbours; those above the number of training images count as that number.
        stages: Measure the averaged map of each stage too, unless it is what the backbone returns: the best features
            are often not the last.
        random_weights: Measure the same architecture from random weights too.
        ensemble: Measure several linear classifiers of the pooled features together: ``bagging`` averages those of
            bootstrap resamples, ``boosting`` (SAMME) fits each to what those before got wrong. The linear probe's
            penalty is that of bagging's members; for boosting it is chosen among that and ten and a hundred times it.
        members: How many they are.
        folds: Measure the linear probe of the pooled features on so many folds of the training and validation images,
            each by a probe of the others.
        few_labels: Measure the linear probe of the pooled features with so few labelled images of a class, too, such as
            ``[1, 10, 100]``; as many validation images at most choose the penalty.
        few_label_draws: Labelled sets of each number.
        retrieval: Rank for each test image the others by the cosine of their pooled features: recall at 1, 5 and 10,
            and mean average precision, beside those of a random order.
        clustering: Cluster the pooled features of the test images by k-means, into as many clusters as there are
            classes: normalised mutual information and adjusted Rand index.
        invariance: Measure alignment, uniformity and LiDAR of the pooled features of random views of test images.
        robustness: Test the linear probe of the best representation on corrupted test images, too: noise, blur, JPEG,
            haze and others, at five strengths that are our own.
        robustness_images: Corrupt at most so many test images; each is corrupted in 55 ways.
        shortcuts: Measure what the features of patches tell of their place in the image and of chromatic aberration,
            too, by which tasks on patches may be solved without a look at the objects.
        feature_store: Folder in which features are kept and found again: another evaluation of the same weights and
            images, with other options, does not compute them again (`ssl_toolkit.evaluation.feature_store`).
        seed: Of the random weights, of the bootstrap, of the folds, of the patches, of k-means.
        precision: As in `extract_features`.
        device: Where to run a weights file; None for the GPU if there is one. A backbone stays where it is.
        say: Called with one line about each step, and at least every 20 seconds, for instance ``print``.

    Returns:
        The figures, with 95 % intervals.

    Raises:
        ValueError: If the data lack labels, a split, or test images for what is asked for; if patches for the shortcuts
            are too small or too few.
        WeightsError: If the weights file is missing or does not fit.
    """
    start = time.perf_counter()
    extras = Extras(ensemble, members, folds, seed)
    extras.check()
    check_few_labels(few_labels, few_label_draws)
    store = None if feature_store is None else FeatureStore(feature_store)
    if robustness_images < 1:
        raise ValueError(f"--robustness_images is {robustness_images}, expected at least 1")
    # the weights first: decoding the images may take long
    if isinstance(weights, Backbone):
        backbone, name, header = weights, "in memory", None
    else:
        backbone, name = load_backbone(weights), str(weights)
        header = read_header(weights)
        data.range_from(header)
        # as in a transfer, whose features then have the same bits
        backbone = backbone.to(chosen_device(device)).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    backbone.check_channels(data.channels, "the one given" if weights is backbone else name)
    backbone.check_size(image_size or data.image_size)
    data.prepare_data()
    data.setup("fit")
    check_labelled_splits(data)
    check_unlabelled(retrieval, clustering, data.labels("test"))
    size = image_size or data.image_size
    view = CenterView(size)
    patch_size = patch_side(size, header)
    if shortcuts:
        check_shortcuts(backbone, data, size, patch_size)

    with Steps(say) as steps:
        given = _measure(backbone, data, view, "given", ks, stages, precision, extras, store, steps)
        measured: dict[Weights, dict[str, _Measured]] = {"given": given}
        networks: dict[Weights, Backbone] = {"given": backbone}
        if random_weights:
            baseline = random_backbone(backbone, seed)
            steps.begin("estimating the batch-norm statistics of the random weights")
            calibrate_batch_norm(baseline, data.loader("train", shuffle=True), view)
            measured["random"] = _measure(baseline, data, view, "random", ks, stages, precision, extras, store, steps)
            networks["random"] = baseline
        pooled: dict[Weights, Tensor] = {weights: measured[weights]["pooled"].test[0] for weights in networks}
        test_labels = given["pooled"].test[1]
        unlabelled = measure_unlabelled(pooled, test_labels, retrieval, clustering, seed, steps)
        labelled: dict[Weights, Splits] = {}
        for weights_name, results in measured.items():
            if (of_pooled := results["pooled"].splits) is not None:
                labelled[weights_name] = of_pooled
        label_curve = measure_label_curve(labelled, few_labels, few_label_draws, seed, steps)
        invariant = None
        if invariance:
            invariant = measure_invariance(networks, data, size, seed=seed, precision=precision, steps=steps)
        robust = None
        if robustness:
            tested: dict[Weights, Probed] = {
                weights: _tested(networks[weights], results) for weights, results in measured.items()
            }
            robust = measure_robustness(
                tested, data, size, robustness_images, seed=seed, precision=precision, steps=steps
            )
        found = None
        if shortcuts:
            found = measure_shortcuts(
                networks, data, size, patch_size, stages=stages, seed=seed, precision=precision, steps=steps
            )
    differences = [
        Difference(
            representation,
            paired_difference(given[representation].knn_correct, other.knn_correct, seed=seed),
            paired_difference(given[representation].probe.correct, other.probe.correct, seed=seed),
        )
        for representation, other in measured.get("random", {}).items()
        if representation in given
    ]
    best_difference = None
    if random_weights:
        best = {name: results[_best(results)].probe.correct for name, results in measured.items()}
        best_difference = paired_difference(best["given"], best["random"], seed=seed)
    chosen = given[_best(given)]
    rows = [result.row for results in measured.values() for result in results.values()]
    num_images = {split: data.num_images(split) for split in ("train", "val", "test")}
    seconds = time.perf_counter() - start
    config = backbone.config()
    return Evaluation(
        name, config, size, num_images, data.num_classes, seed, rows, differences, best_difference, seconds,
        ensembles=[row for results in measured.values() for result in results.values() for row in result.ensembles],
        folds=[row for results in measured.values() for result in results.values() for row in result.folds],
        majority=float((data.labels("test") == data.labels("train").bincount().argmax()).double().mean()),
        shortcuts=found,
        classes=by_class(test_labels, chosen.probe.predicted, data.class_names, chosen.row.representation),
        label_curve=label_curve,
        retrieval=unlabelled.retrieval,
        clustering=unlabelled.clustering,
        invariance=invariant,
        robustness=robust,
    )  # fmt: skip


class _Measured(NamedTuple):
    row: Row
    knn_correct: Tensor
    probe: ProbeResult
    test: Labelled
    ensembles: list[EnsembleRow]
    folds: list[FoldsRow]
    splits: Splits | None  # of the pooled features: those of all representations would take their memory


def _measure(
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
) -> dict[str, _Measured]:
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
            knn_mean_class=_mean_class(knn_correct, test_labels),
            linear_mean_class=_mean_class(probe.correct, test_labels),
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
        results[name] = _Measured(row, knn_correct, probe, (test, test_labels), *more, parts)
    return results


def _is_pooled(stage: str, features: Mapping[str, Tensor]) -> bool:
    """Whether the averaged map of a stage is what the backbone returns, to the rounding of bfloat16."""
    averaged, pooled = features[stage], features["pooled"]
    return averaged.shape == pooled.shape and torch.allclose(
        averaged, pooled, rtol=0.02, atol=0.02 * float(pooled.std())
    )


def _best(results: dict[str, _Measured]) -> str:
    return best_representation([result.row for result in results.values()])


def _tested(network: Backbone, results: dict[str, _Measured]) -> Probed:
    """The linear probe of the best representation."""
    name = _best(results)
    probe = results[name].probe
    return Probed(network, name, LinearClassifier(probe.weight, probe.bias))


def _accuracies(predictions: dict[int, Tensor], labels: Tensor) -> dict[int, float]:
    return {k: float((predicted == labels).double().mean()) for k, predicted in predictions.items()}


def _mean_class(correct: Tensor, labels: Tensor) -> float:
    """The accuracy of each class, averaged over the classes that there are."""
    counts = labels.bincount()
    return float((labels[correct].bincount(minlength=len(counts)) / counts)[counts > 0].double().mean())
