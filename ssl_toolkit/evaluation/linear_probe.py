"""Linear probe: the best logistic regression on frozen features, its penalty chosen by validation images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_toolkit.evaluation.logistic_regression import Labelled, PrincipalAxes, check_labelled, class_scores, minimise
from ssl_toolkit.perf.matmul import onednn_matmul

# half decades, from strong to weak: each solution is a good start for the next weaker penalty
STRENGTHS = tuple(10.0 ** (-half / 2) for half in range(-2, 13))

# the path ends after so many strengths in a row that are no better: two decades of overfitting
_PATIENCE = 4


class PathPoint(NamedTuple):
    """One strength on the path.

    Attributes:
        strength: Of the L2 penalty.
        objective: Mean cross-entropy of the training images plus penalty, in nats.
        val_loss: Mean cross-entropy of the validation images, in nats.
        val_top1: Their accuracy, in ``[0, 1]``.
        iterations: Of L-BFGS.
        converged: Whether the gradient came within ten times the tolerance: float32 can stop the search short of it.
    """

    strength: float
    objective: float
    val_loss: float
    val_top1: float
    iterations: int
    converged: bool


class ProbeResult(NamedTuple):
    """A linear probe.

    Attributes:
        top1: Accuracy on the test images, in ``[0, 1]``.
        correct: bool tensor of shape ``[num_test]``: whether each test image was classified rightly.
        strength: The chosen strength of the L2 penalty.
        val_top1: Accuracy on the validation images at that strength: it chose, so it is biased upwards.
        path: All strengths tried, from strong to weak.
        weight: float32 tensor of shape ``[num_classes, d]``, for features as given (not standardised).
        bias: float32 tensor of shape ``[num_classes]``.
        predicted: int64 tensor of shape ``[num_test]``: the predicted class of each test image.
        confidence: float64 tensor of shape ``[num_test]``: the probability of that class, by the softmax of the scores.
    """

    top1: float
    correct: Tensor
    strength: float
    val_top1: float
    path: list[PathPoint]
    weight: Tensor
    bias: Tensor
    predicted: Tensor
    confidence: Tensor


def linear_probe(
    train: Labelled,
    val: Labelled,
    test: Labelled,
    *,
    strengths: Sequence[float] = STRENGTHS,
    max_iterations: int = 200,
    tolerance: float = 1e-5,
    score: Callable[[Tensor, Tensor], float] | None = None,
) -> ProbeResult:
    """Fits a linear classifier on frozen features and measures it.

    The strength of the penalty is the one with the highest accuracy on the validation images (of equals, the one with
    the lower loss); they are tried from strong to weak until four in a row are no better than one before. The
    classifier chosen is the one fitted to the training images: there is no refit on the union with the validation
    images. The test images are classified once, by that classifier.

    Args:
        train: Features and labels to fit.
        val: Features and labels that choose the strength.
        test: Features and labels that are measured once.
        strengths: Strengths of the L2 penalty, each above 0.
        max_iterations: Most iterations of L-BFGS for each strength.
        tolerance: L-BFGS stops when no entry of the gradient (of the rescaled weights) is larger.
        score: Takes predicted and true classes of the validation images; the strength of the highest score is chosen
            instead of that of the highest accuracy.

    Returns:
        The accuracy and what led to it. All computation runs on the device of the training features.

    Raises:
        ValueError: If a split is empty, lacks labels or has another width of features, a feature is not finite, or a
            strength is not above 0.
    """
    check_labelled(train, val, test, strengths)
    num_classes = 1 + max(int(labels.max()) for _, labels in (train, val, test))
    with onednn_matmul():
        return _along_the_path(
            train, val, test, sorted(strengths, reverse=True), num_classes, max_iterations, tolerance, score
        )


def _along_the_path(
    train: Labelled,
    val: Labelled,
    test: Labelled,
    strengths: Sequence[float],
    num_classes: int,
    max_iterations: int,
    tolerance: float,
    score: Callable[[Tensor, Tensor], float] | None,
) -> ProbeResult:
    axes = PrincipalAxes(train[0])
    z, z_val = axes(train[0]), axes(val[0])
    weight = torch.zeros(num_classes, len(z), dtype=torch.float64, device=z.device)
    bias = weight.new_zeros(num_classes)
    path: list[PathPoint] = []
    best, best_score, best_weight, best_bias = None, 0.0, weight, bias
    for strength in strengths:
        # the curvature of the cross-entropy at weights 0 is the variance along the axis over the number of classes
        scale = (axes.variance / num_classes + strength).rsqrt()
        weight, bias, objective, iterations, converged = minimise(
            z, train[1], weight, bias, scale, strength, max_iterations, tolerance
        )
        logits = class_scores(z_val, weight, bias)
        point = PathPoint(
            strength,
            objective,
            float(F.cross_entropy(logits.T, val[1])),
            float((logits.argmax(dim=0) == val[1]).double().mean()),
            iterations,
            converged,
        )
        path.append(point)
        reached = point.val_top1 if score is None else score(logits.argmax(dim=0), val[1])
        if best is None or (reached, -point.val_loss) > (best_score, -best.val_loss):
            best, best_score, best_weight, best_bias = point, reached, weight, bias
        elif path.index(best) + _PATIENCE < len(path):
            break
    assert best is not None
    raw_weight, raw_bias = axes.undo(best_weight, best_bias)
    scores = test[0].to(raw_weight) @ raw_weight.T + raw_bias
    predicted = scores.argmax(dim=1)
    correct = predicted == test[1]
    return ProbeResult(
        float(correct.double().mean()),
        correct,
        best.strength,
        best.val_top1,
        path,
        raw_weight.float(),
        raw_bias.float(),
        predicted,
        scores.softmax(dim=1).amax(dim=1),
    )
