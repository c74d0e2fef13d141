"""Shortcut meter: what frozen features tell of a patch's place in the image, and of chromatic aberration.

Doersch et al. (2015, arXiv 1505.05192, section 3.1) found that a network tells where in a photograph a patch lies from
chromatic aberration, and so solves tasks on patches without a look at the objects.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_toolkit.data import ImageData, Split
from ssl_toolkit.evaluation.features import Precision, extract_features
from ssl_toolkit.evaluation.intervals import bootstrap_interval
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.evaluation.random_weights import calibrate_batch_norm
from ssl_toolkit.evaluation.ridge import fit_ridge
from ssl_toolkit.evaluation.shortcut_rows import ShortcutDifference, ShortcutRow, Shortcuts, Weights, What
from ssl_toolkit.evaluation.shortcut_views import PatchView
from ssl_toolkit.evaluation.shortcut_words import shortcut_words
from ssl_toolkit.random import sample_keys, sample_order

if TYPE_CHECKING:
    from jaxtyping import Float

    from ssl_toolkit.modules.backbone import Backbone

# of each image; more patches of the same images add little
PATCHES = 2
FEWEST_PATCHES = 100
# pixels in the image's corners: more than lenses do to images of this size, so that a few hundred images show it
REACH = 2.0
# of a split: the figures of more images are hardly any surer, and the time grows
_MAX_IMAGES = 5_000
_FRACTION = 0.3
_SPLITS: tuple[Split, ...] = ("train", "val", "test")


def patch_side(image_size: int, header: Mapping[str, Any] | None = None) -> int:
    """Side in pixels of the patches that are measured: that of the task, or 0.3 of the image's side.

    Args:
        image_size: Side of the images.
        header: Of the weights file; its task's ``patch_size`` counts if it is at most half of the image's side.
    """
    found: Any = header
    for key in ("config", "model", "init_args", "patch_size"):
        found = found.get(key) if isinstance(found, Mapping) else None
    if isinstance(found, int) and not isinstance(found, bool) and 0 < found <= image_size // 2:
        return found
    return max(1, round(_FRACTION * image_size))


def check_shortcuts(backbone: Backbone, data: ImageData, image_size: int, patch_size: int) -> None:
    """Raises a ValueError where nothing can be measured, before features take their time.

    Args:
        backbone: The network.
        data: The images.
        image_size: Their side in pixels.
        patch_size: Side of the patches.
    """
    num = PATCHES * data.num_images("train")
    if num < FEWEST_PATCHES:
        raise ValueError(
            f"--shortcuts fits a regression to {PATCHES} patches of each training image, and {num} patches are too "
            f"few; give at least {FEWEST_PATCHES // PATCHES} training images"
        )
    try:
        backbone.check_size(patch_size)
    except ValueError as error:
        raise ValueError(
            f"--shortcuts cuts patches of {patch_size} px out of images of {image_size} px, which are too small "
            f"({error}); give a larger --image_size"
        ) from None


def measure_shortcuts(
    networks: Mapping[Weights, Backbone],
    data: ImageData,
    image_size: int,
    patch_size: int,
    *,
    stages: bool = True,
    seed: int = 0,
    precision: Precision = "auto",
    steps: Steps | None = None,
) -> Shortcuts:
    """Measures what the features of patches tell of where they lie, and of a known chromatic aberration.

    A ridge regression tells two things from the averaged features of each stage: the row and the column of a patch;
    and, of patches whose colours were shifted against each other as a lens does it, by how much. It is fitted to the
    training images, its penalty chosen on the validation images. Random weights do the same; the statistics of their
    batch norm are estimated on the same patches.

    Args:
        networks: The ``given`` weights, and ``random`` ones if they are wanted, whose statistics of batch norm change.
        data: Images with the splits train, val and test; labels are not read.
        image_size: Side in pixels of the centre crop out of which patches are cut.
        patch_size: Side of the patches.
        stages: Whether each stage is measured, or the pooled features alone.
        seed: Of places and aberrations, which are a function of it and the image; and of the bootstrap.
        precision: As in `extract_features`, but ``auto`` is ``32``: an aberration changes features little, and
            bfloat16 would round that away.
        steps: Progress.

    Returns:
        The figures. Grey images have no chromatic aberration: it is left out, and the words say so.
    """
    start = time.perf_counter()
    steps = steps or Steps(None)
    indices = {split: _some(data, split, seed) for split in _SPLITS}
    whats: list[What] = ["position", "aberration"] if data.channels == 3 else ["position"]
    told: dict[tuple[What, Weights], dict[str, _Told]] = {}
    for weights, network in networks.items():
        if weights == "random":
            view = PatchView(image_size, patch_size, 0, seed)
            calibrate_batch_norm(network, data.loader("train", indices=indices["train"], shuffle=True), view)
        for what in whats:
            steps.begin(f"{what} of patches with {weights} weights", PATCHES * sum(map(len, indices.values())))
            reach = REACH if what == "aberration" else 0.0
            views = [PatchView(image_size, patch_size, number, seed, reach) for number in range(PATCHES)]
            parts = [
                _patches(network, data, split, indices[split], views, what, stages, precision, steps)
                for split in _SPLITS
            ]
            told[what, weights] = _tell(parts)
            best = max(told[what, weights].values(), key=lambda each: each.r2_val)
            steps(f"{what} of patches with {weights} weights: R2 {_r2(best.errors, best.chance):.2f} at best")
    rows = [_row(what, weights, name, each, seed) for (what, weights), of in told.items() for name, each in of.items()]
    differences = [
        ShortcutDifference(
            what,
            name,
            bootstrap_interval(_r2, given.errors, given.chance, baseline=of_random[name].errors, seed=seed),
        )
        for what in whats
        for of_random in [told.get((what, "random"), {})]
        for name, given in told[what, "given"].items()
        if name in of_random
    ]
    return Shortcuts(
        image_size,
        patch_size,
        {split: PATCHES * len(chosen) for split, chosen in indices.items()},
        REACH,
        rows,
        differences,
        shortcut_words(rows, differences, is_grey=data.channels != 3),
        time.perf_counter() - start,
    )


class _Told(NamedTuple):
    """What one representation tells of the test images; errors and those of chance are squares, summed by image."""

    errors: Tensor
    chance: Tensor
    r2_each: list[float]
    r2_val: float
    strength: float
    num: int


_Part = tuple[dict[str, Tensor], Tensor]


def _some(data: ImageData, split: Split, seed: int) -> np.ndarray:
    """The images of a split, or some by chance."""
    indices = data.indices(split)
    chosen = sample_order(seed, 0, len(indices))[:_MAX_IMAGES].sort().values
    return indices[chosen.numpy()]


def _patches(
    network: Backbone,
    data: ImageData,
    split: Split,
    indices: np.ndarray,
    views: list[PatchView],
    what: What,
    stages: bool,
    precision: Precision,
    steps: Steps,
) -> _Part:
    """The features of patches, the first of all images before the second, and what they are to tell."""
    features: dict[str, list[Tensor]] = {}
    targets = []
    for view in views:
        found = extract_features(
            network,
            data.loader(split, indices=indices),
            view,
            stages=stages,
            precision="32" if precision == "auto" else precision,
            count=steps.advance,
        )
        for name, each in found.features.items():
            features.setdefault(name, []).append(each)
        keys = sample_keys(0, 0, found.indices)
        targets.append(view.positions(keys) if what == "position" else view.shifts(keys))
    return {name: torch.cat(each) for name, each in features.items()}, torch.cat(targets)


def _tell(parts: list[_Part]) -> dict[str, _Told]:
    """What each representation tells, by name; the last stage only where it is not the pooled features."""
    (train, train_targets), (val, val_targets), (test, test_targets) = parts
    told = {}
    for name in sorted(train, key=lambda name: name != "pooled"):
        if name != "pooled" and train[name].shape == train["pooled"].shape and train[name].allclose(train["pooled"]):
            continue
        fit = fit_ridge((train[name], train_targets), (val[name], val_targets))
        errors = (fit.predict(test[name]) - test_targets).square()
        chance = (fit.target_mean - test_targets).square()
        val_errors = (fit.predict(val[name]) - val_targets).square()
        told[name] = _Told(
            _by_image(errors),
            _by_image(chance),
            [_r2(errors[:, axis], chance[:, axis]) for axis in range(2)],
            _r2(val_errors, (fit.target_mean - val_targets).square()),
            fit.strength,
            len(errors),
        )
    return told


def _by_image(squares: Float[Tensor, "patches 2"]) -> Float[Tensor, " images"]:
    return squares.sum(dim=1).view(PATCHES, -1).sum(dim=0)


def _r2(errors: Tensor, chance: Tensor) -> float:
    return 1 - float(errors.sum() / chance.sum())


def _row(what: What, weights: Weights, name: str, told: _Told, seed: int) -> ShortcutRow:
    down, right = told.r2_each
    rmse, chance = (float((squares.sum() / told.num).sqrt()) for squares in (told.errors, told.chance))
    # patches of one image are not independent: images are drawn
    r2 = bootstrap_interval(_r2, told.errors, told.chance, seed=seed)
    return ShortcutRow(what, weights, name, r2, down, right, rmse, chance, told.r2_val, told.strength)
