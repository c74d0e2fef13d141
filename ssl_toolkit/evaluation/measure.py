"""Evaluation of frozen features: a backbone beside the same architecture with random weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ssl_toolkit.augment import CenterView
from ssl_toolkit.data import ImageData
from ssl_toolkit.data.masks import open_masks
from ssl_toolkit.evaluation.classes import by_class
from ssl_toolkit.evaluation.dense import check_dense, measure_dense
from ssl_toolkit.evaluation.dense_maps import DenseSettings
from ssl_toolkit.evaluation.ensemble_rows import Extras
from ssl_toolkit.evaluation.feature_store import FeatureStore
from ssl_toolkit.evaluation.features import Precision, chosen_device
from ssl_toolkit.evaluation.intervals import paired_difference
from ssl_toolkit.evaluation.invariance import measure_invariance
from ssl_toolkit.evaluation.label_curve import Splits, check_few_labels, measure_label_curve
from ssl_toolkit.evaluation.labelled_rows import Measured, best_of, best_probe, measure_representations
from ssl_toolkit.evaluation.labelled_splits import check_labelled_splits, has_no_labels
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.evaluation.random_weights import calibrate_batch_norm, random_backbone
from ssl_toolkit.evaluation.results import Evaluation
from ssl_toolkit.evaluation.robustness import Probed, measure_robustness
from ssl_toolkit.evaluation.rows import Difference
from ssl_toolkit.evaluation.shortcut_rows import Weights
from ssl_toolkit.evaluation.shortcuts import check_shortcuts, measure_shortcuts, patch_side
from ssl_toolkit.evaluation.unlabelled_rows import check_unlabelled, measure_unlabelled
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import load_backbone, read_header


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
    masks: str | None = None,
    mask_classes: int | None = None,
    mask_pixels: int = 20_000,
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
        masks: A folder with masks of images: of ``cats/01.jpg`` in the folder of images it is ``cats/01.png``, with one
            channel or a palette, whose values are classes (255 for pixels that do not count). Or, of the built-in
            images, ``procedural`` (background and ten kinds of objects) or ``procedural:object``. A linear classifier
            of every place of each stage's map predicts them: mIoU and pixel accuracy. Images need no label for it:
            without any (``--data.labels none``) nothing else is measured.
        mask_classes: Number of classes of the masks, the background among them; by default as many as they show.
        mask_pixels: About so many pixels of training masks are drawn, equally many of each image, to fit the
            classifier; half as many of validation masks to choose its penalty.
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
            are too small or too few; if masks are missing or do not fit.
        WeightsError: If the weights file is missing or does not fit.
    """
    start = time.perf_counter()
    extras = Extras(ensemble, members, folds, seed)
    extras.check()
    check_few_labels(few_labels, few_label_draws)
    check_dense(masks, mask_classes, mask_pixels)
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
    # with masks, labels are needed for what was asked for beside them
    need_labels = bool(ensemble or folds or few_labels or retrieval or clustering or robustness)
    only_masks = masks is not None and not need_labels and has_no_labels(data)
    check_labelled_splits(data, with_labels=not only_masks)
    check_unlabelled(retrieval, clustering, data.labels("test"))
    size = image_size or data.image_size
    view = CenterView(size)
    patch_size = patch_side(size, header)
    if shortcuts:
        check_shortcuts(backbone, data, size, patch_size)

    with Steps(say) as steps:
        opened = None
        if masks is not None:
            steps.begin("looking at the masks")
            opened = open_masks(masks, data, data.image_size, mask_classes, steps.advance)
            for remark in opened.remarks:
                steps(remark)
        measured: dict[Weights, dict[str, Measured]] = {}
        networks: dict[Weights, Backbone] = {"given": backbone}
        if random_weights:
            networks["random"] = random_backbone(backbone, seed)
        for weights_name, network in networks.items():
            if weights_name == "random":
                steps.begin("estimating the batch-norm statistics of the random weights")
                calibrate_batch_norm(network, data.loader("train", shuffle=True), view)
            if not only_masks:
                measured[weights_name] = measure_representations(
                    network, data, view, weights_name, ks, stages, precision, extras, store, steps
                )
        given = measured.get("given", {})
        pooled: dict[Weights, Tensor] = {name: results["pooled"].test[0] for name, results in measured.items()}
        test_labels = given["pooled"].test[1] if given else data.labels("test")
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
                name: best_probe(networks[name], results) for name, results in measured.items()
            }
            robust = measure_robustness(
                tested, data, size, robustness_images, seed=seed, precision=precision, steps=steps
            )
        found = None
        if shortcuts:
            found = measure_shortcuts(
                networks, data, size, patch_size, stages=stages, seed=seed, precision=precision, steps=steps
            )
        dense = None
        if opened is not None:
            settings = DenseSettings(size, mask_pixels, stages, seed, precision)
            dense = measure_dense(networks, data, opened, settings, steps)
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
    if "random" in measured:
        best = {name: results[best_of(results)].probe.correct for name, results in measured.items()}
        best_difference = paired_difference(best["given"], best["random"], seed=seed)
    classes = majority = None
    if given:
        chosen = given[best_of(given)]
        classes = by_class(test_labels, chosen.probe.predicted, data.class_names, chosen.row.representation)
        majority = float((data.labels("test") == data.labels("train").bincount().argmax()).double().mean())
    rows = [result.row for results in measured.values() for result in results.values()]
    num_images = {split: data.num_images(split) for split in ("train", "val", "test")}
    seconds = time.perf_counter() - start
    config = backbone.config()
    return Evaluation(
        name, config, size, num_images, data.num_classes, seed, rows, differences, best_difference, seconds,
        ensembles=[row for results in measured.values() for result in results.values() for row in result.ensembles],
        folds=[row for results in measured.values() for result in results.values() for row in result.folds],
        majority=majority,
        shortcuts=found,
        classes=classes,
        label_curve=label_curve,
        retrieval=unlabelled.retrieval,
        clustering=unlabelled.clustering,
        invariance=invariant,
        robustness=robust,
        dense=dense,
    )  # fmt: skip
