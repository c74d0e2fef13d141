"""Nearest class mean: a head with nothing to train."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from downstream.base.standardize import EPS, Standardize

# of more images some, evenly spaced, settle the scale
_MOST_FOR_SCALE = 10_000
_HALVINGS = 60


class NearestMeanHead(nn.Module):
    """Scores of classes by the distance between the features and the mean of each class.

    The score is minus the squared Euclidean distance times a scale, so that the nearest mean has the highest (Mensink,
    Verbeek, Perronnin and Csurka 2013, "Distance-based image classification", IEEE TPAMI 35, section 3; Snell, Swersky
    and Zemel 2017, arXiv 1703.05175, section 2.3). Everything is computed in float32, also under autocast: in bfloat16
    means and distances are too coarse to tell classes apart.

    Args:
        num_features: Of the backbone.
        num_classes: Scores.
    """

    means: Tensor

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        # a parameter, since DDP needs one; of one dimension, since FSDP cannot shard a scalar
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("means", torch.zeros(num_classes, num_features))

    def forward(self, features: Tensor) -> Tensor:
        """Scores of shape ``[batch, num_classes]`` of standardized features of shape ``[batch, num_features]``."""
        with torch.autocast(features.device.type, enabled=False):
            return -self.scale.float() * squared_distances(features.float(), self.means.float())

    @torch.no_grad()
    def fit(self, standardize: Standardize, features: Tensor, labels: Tensor, class_names: list[str]) -> None:
        """Computes the statistics of the features, the means of the classes and the scale, all in float64.

        The scale is the one by which the softmax of the scores is most likely right of each training image, whose own
        class's mean is then that of the others.

        Args:
            standardize: What comes before this head; it gets mean and variance of the features.
            features: Float tensor of shape ``[num, num_features]``: those of all training images.
            labels: int64 tensor of shape ``[num]``.
            class_names: Of all classes.

        Raises:
            ValueError: A class has no image.
        """
        counts = labels.bincount(minlength=len(self.means))
        empty = (counts == 0).nonzero().flatten().tolist()
        if empty:
            shown = ", ".join(class_names[place] for place in empty[:4]) + ", ..." * (len(empty) > 4)
            raise ValueError(f"head nearest_mean needs a training image of each class, but there is none of {shown}")
        exact = features.double()
        mean, variance = exact.mean(dim=0), exact.var(dim=0, correction=0)
        means = torch.zeros(len(counts), exact.shape[1], dtype=torch.float64, device=exact.device)
        means.index_add_(0, labels, exact).div_(counts.unsqueeze(1))
        means = (means - mean) * torch.rsqrt(variance + EPS)
        # set and not copied: where a trainer has rounded buffers, these stay as they are
        standardize.count, standardize.mean = torch.full_like(mean[0], len(exact)).float(), mean.float()
        standardize.variance, self.means = variance.float(), means.float()
        some = torch.linspace(0, len(exact) - 1, min(len(exact), _MOST_FOR_SCALE), device=exact.device).round().long()
        distances = squared_distances((exact[some] - mean) * torch.rsqrt(variance + EPS), means)
        self.scale.fill_(best_scale(distances, labels[some], counts))


def squared_distances(features: Tensor, means: Tensor) -> Tensor:
    """Squared Euclidean distances ``[num, num_classes]``, from differences: nothing cancels."""
    if torch.compiler.is_exporting():  # ONNX has no cdist
        return (features.unsqueeze(1) - means).square().sum(dim=2)
    return torch.cdist(features, means, compute_mode="donot_use_mm_for_euclid_dist").square()


def best_scale(distances: Tensor, labels: Tensor, counts: Tensor) -> float:
    """The scale of most likelihood of the labels, each image left out of the mean of its class.

    Args:
        distances: float64 tensor of shape ``[num, num_classes]``: squared distances to the means.
        labels: int64 tensor of shape ``[num]``.
        counts: int64 tensor of shape ``[num_classes]``: images of each mean. Those of a class of one cannot be left
            out, and do not count.

    Returns:
        The scale; if nothing settles it, the inverse of the mean distance.
    """
    typical = float(distances.mean()) or 1.0
    counted = counts[labels] > 1
    if not counted.any():
        return 1 / typical
    distances, labels = distances[counted].clone() / typical, labels[counted]
    # without x the mean of n is (n m - x) / (n - 1), and the distance to it n / (n - 1) as large
    sizes = counts[labels].double()
    own = distances.gather(1, labels.unsqueeze(1)) * (sizes / (sizes - 1)).square().unsqueeze(1)
    distances.scatter_(1, labels.unsqueeze(1), own)
    # the negative likelihood is convex in the scale: its slope is 0 at one place
    low, high = -9.0, 9.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        expected = ((-(2.0**middle) * distances).softmax(dim=1) * distances).sum(dim=1)
        slope = float((own.squeeze(1) - expected).mean())
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(2.0 ** ((low + high) / 2)) / typical
