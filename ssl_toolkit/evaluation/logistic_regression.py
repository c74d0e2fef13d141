"""Multinomial logistic regression on frozen features, solved to convergence.

The objective is plain: on features standardised by the mean and standard deviation of the training images,

    mean cross-entropy + strength / 2 * (sum of squared weights),        biases free of penalty

which is scikit-learn's ``LogisticRegression`` after ``StandardScaler`` with ``C = 1 / (strength * num_train)``. It is
convex, so it has no learning rate, no schedule and no seed. How it is solved changes nothing about the solution:
the features are rotated to their principal axes (an orthogonal map, which leaves the penalty as it is), and L-BFGS (Liu
and Nocedal 1989, Mathematical Programming 45) works on the weights times the square root of the curvature along each
axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_toolkit.perf.matmul import onednn_matmul

if TYPE_CHECKING:
    from jaxtyping import Float, Num

# memory that is used again stays in the cache
_IMAGES_AT_ONCE = 8192

Labelled = tuple[Tensor, Tensor]
"""Features ``[num_images, d]`` with their int64 labels ``[num_images]``."""


class LinearClassifier(NamedTuple):
    """Scores of classes that are linear in the features.

    Attributes:
        weight: float32 tensor of shape ``[num_classes, d]``.
        bias: float32 tensor of shape ``[num_classes]``.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Float[Tensor, "samples width"]) -> Float[Tensor, "samples classes"]:
        """float64 tensor of shape ``[num_images, num_classes]``."""
        return features.double() @ self.weight.double().T + self.bias.double()


def fit_linear(
    train: Labelled,
    strength: float,
    num_classes: int,
    *,
    weights: Num[Tensor, " samples"] | None = None,
    max_iterations: int = 200,
    tolerance: float = 1e-5,
) -> LinearClassifier:
    """Fits one linear classifier, the objective of this module with images that count differently.

    The mean of the cross-entropy is weighted; the features are standardised by all training images equally, so that
    classifiers of other weights have the same penalty.

    Args:
        train: Features and labels.
        strength: Of the L2 penalty, above 0.
        num_classes: Number of classes.
        weights: How much each image counts: numbers of at least 0, of shape ``[num_images]``; all equal by default.
        max_iterations: As in `linear_probe`.
        tolerance: Likewise.

    Raises:
        ValueError: As `linear_probe`, or if no image counts.
    """
    check_labelled(train, train, train, [strength])
    image_weights = None
    if weights is not None:
        image_weights = weights.to(train[0].device, torch.float64)
        if (
            image_weights.shape != train[1].shape
            or float(image_weights.min()) < 0
            or not float(image_weights.sum()) > 0
        ):
            raise ValueError(f"expected {len(train[1])} weights of images, at least 0 and not all 0")
        image_weights = image_weights / image_weights.sum()
    with onednn_matmul():
        axes = PrincipalAxes(train[0])
        z = axes(train[0])
        start = torch.zeros(num_classes, len(z), dtype=torch.float64, device=z.device)
        scale = (axes.variance / num_classes + strength).rsqrt()
        bias = start.new_zeros(num_classes)
        weight, bias, *_ = minimise(z, train[1], start, bias, scale, strength, max_iterations, tolerance, image_weights)
    weight, bias = axes.undo(weight, bias)
    return LinearClassifier(weight.float(), bias.float())


class PrincipalAxes:
    """Standardises features and turns them to the principal axes of the training images.

    Axes along which the training images do not vary are left out: the best weights along them are 0.
    """

    def __init__(self, train: Tensor) -> None:
        self.mean = train.float().mean(dim=0)
        squares = sum((part.float() - self.mean).square_().sum(dim=0) for part in train.split(_IMAGES_AT_ONCE))
        std = (torch.as_tensor(squares) / len(train)).sqrt()
        # a feature that is constant (up to rounding) tells nothing: it becomes 0
        constant = std <= 1e-6 * torch.maximum(train.amax(dim=0), -train.amin(dim=0))
        self.inverse_std = torch.where(constant, 0.0, 1.0 / torch.where(constant, 1.0, std))
        if len(train) < train.shape[1]:
            x = self._standardise(train)
            variance, axes = torch.linalg.eigh((x @ x.T).double() / len(x))
            axes = F.normalize(x.double().T @ axes, dim=0)
        else:
            parts = (self._standardise(part) for part in train.split(_IMAGES_AT_ONCE))
            covariance = sum((part.T @ part).double() for part in parts)
            variance, axes = torch.linalg.eigh(torch.as_tensor(covariance) / len(train))
        kept = variance > 1e-6 * variance[-1]
        kept[-1] = True
        self.variance = variance[kept]
        self.axes = axes[:, kept].float()

    def __call__(self, x: Tensor) -> Tensor:
        """The images as columns, ``[num_axes, num_images]``: quicker to multiply than as rows."""
        turned = self.mean.new_empty(self.axes.shape[1], len(x))
        for part, place in zip(x.split(_IMAGES_AT_ONCE), turned.split(_IMAGES_AT_ONCE, dim=1), strict=True):
            torch.mm(self.axes.T, self._standardise(part).T, out=place)
        return turned

    def _standardise(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean).mul_(self.inverse_std)

    def undo(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight ``[num_classes, d]`` and bias for features as they were given."""
        raw = (weight @ self.axes.T.double()) * self.inverse_std.double()
        return raw, bias - raw @ self.mean.double()


def class_scores(
    z: Float[Tensor, "width images"], weight: Float[Tensor, "classes width"], bias: Float[Tensor, " classes"]
) -> Float[Tensor, "classes images"]:
    """float64 ``[num_classes, num_images]``: only the long product is in float32, its rounding averages out."""
    return (weight.float() @ z).double() + bias[:, None]


def minimise(
    z: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    strength: float,
    max_iterations: int,
    tolerance: float,
    image_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, float, int, bool]:
    """L-BFGS from the given weights: the new weights and bias, the objective, iterations, and whether it converged.

    ``image_weights`` is how much each image counts, float64 of sum 1; by default all count the same.
    """
    scaled, bias = weight / scale, bias.clone()
    optimizer = torch.optim.LBFGS(
        [scaled, bias],
        max_iter=max_iterations,
        history_size=20,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        """The objective, with its gradient: the predicted less the true fraction of each class, times the features."""
        unscaled = scaled * scale
        log_probabilities = torch.log_softmax(class_scores(z, unscaled, bias), dim=0)
        of_labels = log_probabilities.gather(0, labels[None])
        errors = log_probabilities.exp_().scatter_add_(0, labels[None], torch.full_like(of_labels, -1.0))
        errors = errors / len(labels) if image_weights is None else errors * image_weights
        scaled.grad = ((errors.float() @ z.T).double() + strength * unscaled) * scale
        bias.grad = errors.sum(dim=1)
        gain = of_labels.mean() if image_weights is None else of_labels[0] @ image_weights
        return 0.5 * strength * unscaled.square().sum() - gain

    optimizer.step(closure)  # pyright: ignore[reportArgumentType] - typed for closures that return floats
    objective = float(closure())
    assert scaled.grad is not None
    assert bias.grad is not None
    gradient = max(float(scaled.grad.abs().max()), float(bias.grad.abs().max()))
    iterations = optimizer.state[scaled]["n_iter"]
    return scaled * scale, bias, objective, iterations, gradient <= 10 * tolerance


def check_labelled(train: Labelled, val: Labelled, test: Labelled, strengths: Sequence[float]) -> None:
    """Raises a ValueError if a split lacks labelled images, its features do not fit, or a strength is not above 0."""
    for name, (features, labels) in {"train": train, "val": val, "test": test}.items():
        if not len(features) or len(features) != len(labels):
            raise ValueError(
                f"a linear probe needs a label for each of at least one {name} image, got {len(features)} images and "
                f"{len(labels)} labels"
            )
        if int(labels.min()) < 0:
            unlabelled = int((labels < 0).sum())
            raise ValueError(f"a linear probe needs labels, but {unlabelled} of {len(labels)} {name} images have none")
        if features.shape[1] != train[0].shape[1]:
            raise ValueError(
                f"the {name} features have {features.shape[1]} channels, the train features {train[0].shape[1]}: both "
                "must come from the same backbone"
            )
        # the sum of finite numbers is finite unless they are huge, and known in a tenth of the time
        if not bool(torch.isfinite(features.sum())) and not bool(torch.isfinite(features).all()):
            raise ValueError(f"some {name} features are not finite: the weights or the images hold NaN or infinity")
    if not strengths or min(strengths) <= 0:
        raise ValueError(f"strengths of the penalty must be above 0, got {tuple(strengths)}")
