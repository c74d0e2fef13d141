"""Comparison of several weights files on the same images, each pair by a paired test."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ssl_toolkit.augment import CenterView
from ssl_toolkit.data import ImageData
from ssl_toolkit.data.survey import range_in
from ssl_toolkit.errors import nearest
from ssl_toolkit.evaluation.compared_networks import Network, open_networks, pairs, size_remarks
from ssl_toolkit.evaluation.comparison import Comparison, Entry, PairedTest
from ssl_toolkit.evaluation.features import Features, Precision, chosen_device, extract_features
from ssl_toolkit.evaluation.few_labels import few_label_draws
from ssl_toolkit.evaluation.intervals import Interval, bootstrap_interval, confidence_interval, paired_difference
from ssl_toolkit.evaluation.knn import knn_predict
from ssl_toolkit.evaluation.labelled_splits import check_labelled_splits
from ssl_toolkit.evaluation.linear_probe import linear_probe
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.evaluation.random_weights import calibrate_batch_norm
from ssl_toolkit.evaluation.significance import holm, paired_permutation_test
from ssl_toolkit.modules.backbone import Backbone

PROTOCOLS = ("knn", "linear", "few-label", "finetune")
KS = (1, 5, 20, 200)

OpenData = Callable[[int], ImageData]
"""Opens a data set whose images are reduced to so many pixels."""

FineTune = Callable[[Backbone, str, str, ImageData, int], Tensor]
"""Trains everything from a backbone's weights, and gives the predicted classes of the test images, in their order.

It is called with the backbone, what the weights are called, the name of the data set, the images and their size.
"""


def compare(
    weights: Sequence[str | Path],
    data: Mapping[str, OpenData],
    *,
    protocols: Sequence[str] = ("knn", "linear"),
    image_size: int | None = None,
    random_weights: bool = True,
    labels_per_class: int = 10,
    num_draws: int = 5,
    finetune: FineTune | None = None,
    seed: int = 0,
    precision: Precision = "auto",
    device: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Comparison:
    """Compares weights files on the same images: one accuracy for each data set and protocol, each pair tested.

    The pooled features are frozen, but for ``finetune``. ``knn`` and ``linear`` choose the number of neighbours and the
    penalty on the validation images; ``few-label`` is the mean over linear probes of small labelled sets, the same for
    all weights, whose penalty all validation images choose. Every pair of weights files, and each of them with random
    weights of its architecture, is tested on each data set by each protocol: by McNemar's exact test, or over several
    draws by a sign-flip test of how often each image is right. Holm's correction is over all tests together. Where
    images come in groups, the sign is that of a group.

    Args:
        weights: Two or more weights files.
        data: The data sets by name: each opens its images with the splits train, val and test at a size.
        protocols: Some of ``knn``, ``linear``, ``few-label`` and ``finetune``.
        image_size: Side in pixels of what all networks see; None for the size with which each was trained.
        random_weights: Compare with random weights, too: one seeded initialisation of each architecture.
        labels_per_class: Labelled images of each class in a few-label draw.
        num_draws: How many few-label draws.
        finetune: How to fine-tune, if that is asked for.
        seed: Of draws, random weights and bootstrap.
        precision: As in `extract_features`.
        device: Where to run; None for the GPU if there is one.
        say: Called with one line about each step.

    Returns:
        The figures and the tests.

    Raises:
        ValueError: If there are fewer than two weights files, a protocol is unknown, the data lack labels or splits, or
            the splits differ between the sizes of images.
        WeightsError: If a weights file is missing or damaged.
    """
    start = time.perf_counter()
    _check(weights, data, protocols, labels_per_class, num_draws)
    if "finetune" in protocols and finetune is None:
        raise ValueError("fine-tuning needs to be told how: give finetune")
    networks = open_networks(weights, image_size, random_weights, seed)
    letters = {network.name: network for network in networks if not network.is_random}
    entries: list[Entry] = []
    untested: list[tuple[str, str, str, str, Interval, float]] = []
    remarks = size_remarks(networks, image_size)
    with Steps(say) as steps:
        for name, open_data in data.items():
            rights, times, groups, summary = _of_data(
                name, open_data, networks, protocols, labels_per_class, num_draws, finetune, seed, precision,
                chosen_device(device), steps,
            )  # fmt: skip
            remarks.append(f"images: {summary}")
            if groups is not None:
                remarks.append(
                    f"{name}: the tests take groups, and the intervals images, for independent of each other"
                )
            for protocol, by_network in rights.items():
                runs = times[protocol]
                for network in networks:
                    right = by_network[network.name]
                    entries.append(
                        Entry(name, protocol, network.name, network.size, len(right), _accuracy(right, runs, seed))
                    )
                for first, second in pairs(networks):
                    one, other = by_network[first], by_network[second]
                    untested.append((name, protocol, first, second, *_test(one, other, runs, groups, seed)))
    adjusted = holm([each[-1] for each in untested])
    tests = [PairedTest(*each, adjusted=value) for each, value in zip(untested, adjusted, strict=True)]
    names = {letter: str(file) for letter, file in zip(letters, weights, strict=True)}
    names |= {each.name: f"{each.backbone.config()['name']}, untrained" for each in networks if each.is_random}
    seconds = time.perf_counter() - start
    return Comparison(names, entries, tests, labels_per_class, num_draws, seed, remarks, seconds)


def _check(
    weights: Sequence[str | Path],
    data: Mapping[str, OpenData],
    protocols: Sequence[str],
    labels_per_class: int,
    num_draws: int,
) -> None:
    if len(weights) < 2:
        raise ValueError(
            f"compare needs two weights files or more, got {len(weights)}; ssl-toolkit evaluate measures a single one"
        )
    if len({Path(each).resolve() for each in weights}) < len(weights):
        raise ValueError("the same weights file is given twice")
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise ValueError(
                f"a protocol is one of {', '.join(PROTOCOLS)}, got {protocol!r}{nearest(protocol, PROTOCOLS)}"
            )
    if not protocols or not data or len(set(protocols)) < len(protocols):
        raise ValueError(f"compare needs a data set, and each protocol once, got {len(data)} and {list(protocols)}")
    if labels_per_class < 1 or num_draws < 1:
        raise ValueError(
            f"few-label draws need at least 1 image a class and 1 draw, got {labels_per_class} and {num_draws}"
        )


def _of_data(
    name: str,
    open_data: OpenData,
    networks: Sequence[Network],
    protocols: Sequence[str],
    labels_per_class: int,
    num_draws: int,
    finetune: FineTune | None,
    seed: int,
    precision: Precision,
    device: torch.device,
    steps: Steps,
) -> tuple[dict[str, dict[str, Tensor]], dict[str, int], Tensor | None, str]:
    """How many times each test image is right, by protocol and network; how often it was tried; its group; and what the
    images are."""
    opened: dict[str, ImageData] = {}
    rights: dict[str, dict[str, Tensor]] = {protocol: {} for protocol in protocols}
    first, draws, groups, summary = None, [], None, ""
    for network in networks:
        key = json.dumps([network.size, range_in(network.header)], default=str)
        if key not in opened:
            steps.begin(f"reading {name}")
            images = open_data(network.size)
            images.range_from(network.header)
            images.prepare_data()
            images.setup("fit")
            check_labelled_splits(images)
            opened[key] = images
        images = opened[key]
        network.backbone.check_channels(images.channels, network.name)
        backbone, view = network.backbone.to(device), CenterView(network.size)
        if network.is_random:
            steps.begin(f"{name}: batch-norm statistics of random weights")
            calibrate_batch_norm(backbone, images.loader("train", shuffle=True), view)
        splits = []
        for split in ("train", "val", "test"):
            steps.begin(f"{name}: features with weights {network.name}, {split} images", images.num_images(split))
            loader = images.loader(split)
            splits.append(extract_features(backbone, loader, view, precision=precision, count=steps.advance))
        train, _, test = splits
        if first is None:
            first = splits
            draws = few_label_draws(train.labels, labels_per_class, num_draws, seed)
            groups = images.groups_of("test", test.indices)
            summary = images.summary()  # which names what was left out, too
        _check_same(name, first, splits)
        features = [(each.features["pooled"], each.labels) for each in splits]
        for protocol in protocols:
            steps.begin(f"{name}: {protocol} with weights {network.name}")
            if protocol == "knn":
                right = _knn(*features).long()
            elif protocol == "linear":
                right = linear_probe(*features).correct.long()
            elif protocol == "few-label":
                chosen = [(features[0][0][draw], features[0][1][draw]) for draw in draws]
                right = torch.stack([linear_probe(each, *features[1:]).correct.long() for each in chosen]).sum(dim=0)
            else:
                assert finetune is not None
                right = (finetune(backbone, network.name, name, images, network.size) == test.labels).long()
            rights[protocol][network.name] = right
            shown = 100 * float(right.double().mean()) / (num_draws if protocol == "few-label" else 1)
            steps(f"{name}, {protocol}, weights {network.name}: {shown:.1f} %")
        backbone.cpu()
    return rights, {each: num_draws if each == "few-label" else 1 for each in protocols}, groups, summary


def _check_same(name: str, first: Sequence[Features], splits: Sequence[Features]) -> None:
    """All networks must see the same images in the same splits: else nothing is paired."""
    for split, one, other in zip(("train", "val", "test"), first, splits, strict=True):
        if not (torch.equal(one.indices, other.indices) and torch.equal(one.labels, other.labels)):
            raise ValueError(
                f"{name}: the networks got other {split} images, perhaps as files have changed or could not be read "
                "meanwhile; try again, with --data.cache memory or disk"
            )


def _knn(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Tensor:
    scores = {k: float((each == val[1]).double().mean()) for k, each in knn_predict(*train, val[0], KS).items()}
    k = max(scores, key=lambda number: (scores[number], -number))
    # all numbers again, as an evaluation does: which of equally similar images count depends on how many are sought
    return knn_predict(*train, test[0], KS)[k] == test[1]


def _accuracy(right: Tensor, runs: int, seed: int) -> Interval:
    return confidence_interval(right) if runs == 1 else _mean(right.double() / runs, seed)


def _test(one: Tensor, other: Tensor, runs: int, groups: Tensor | None, seed: int) -> tuple[Interval, float]:
    """The difference of two accuracies with its interval, and the p-value of the test."""
    difference = one - other
    if groups is not None:
        places = groups.unique(return_inverse=True)[1]
        units = torch.zeros(int(places.max()) + 1, dtype=torch.int64).index_add_(0, places, difference)
    else:
        units = difference
    interval = (
        paired_difference(one > 0, other > 0, seed=seed) if runs == 1 else _mean(difference.double() / runs, seed)
    )
    return interval, paired_permutation_test(units, seed=seed)


def _mean(values: Tensor, seed: int) -> Interval:
    return bootstrap_interval(lambda drawn, _: float(drawn.mean()), values, values, seed=seed)
