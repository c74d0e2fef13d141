"""Quality of features without labels: spread and rank; of several views of an image, alignment, uniformity and LiDAR.

Spread and rank see different things: a point collapse leaves the rank intact, a dimensional collapse leaves the spread
intact.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


def spread(embeddings: Float[Tensor, ...]) -> float:
    """Spread of normalised embeddings: 1 is uniform on the sphere, 0 a single point.

    The standard deviation of each coordinate of the L2-normalised embeddings over the images, averaged over the
    coordinates, times ``sqrt(d)``: Chen and He 2021, "Exploring Simple Siamese Representation Learning",
    arXiv 2011.10566, section 4.1. Non-negative features (after a ReLU) lie in one corner of the sphere: they
    stay clearly below 1 when healthy.

    Args:
        embeddings: float tensor of shape ``[num_images, d]``.

    Returns:
        A number in ``[0, 1]``.

    Raises:
        ValueError: If the tensor is not two-dimensional or has no images.
    """
    _check(embeddings)
    unit = F.normalize(embeddings.double(), dim=1)
    return float(unit.std(dim=0, correction=0).mean()) * math.sqrt(embeddings.shape[1])


def rank_me(embeddings: Float[Tensor, ...]) -> float:
    """RankMe, the effective rank of embeddings: the exponential of the entropy of their normalised singular values.

    Garrido et al. 2023, "RankMe: Assessing the downstream performance of pretrained self-supervised representations by
    their rank", arXiv 2210.02885, equation 1: ``exp(-sum_k p_k log p_k)``, ``p_k = s_k / sum(s) + 1e-7``. The
    embeddings are not centred. It is at most ``min(num_images, d)``, so compare figures of equally many images only.

    Args:
        embeddings: float tensor of shape ``[num_images, d]``.

    Returns:
        A number from 1 to ``min(num_images, d)``; 0 if all embeddings are zero, NaN if one is not finite.

    Raises:
        ValueError: If the tensor is not two-dimensional or has no images.
    """
    _check(embeddings)
    if not torch.isfinite(embeddings).all():
        return math.nan
    matrix = embeddings.double()
    # the smaller Gram matrix has the squared singular values, at a fraction of the cost of a decomposition
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt()
    if not singular.sum() > 0:
        return 0.0
    p = singular / singular.sum() + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


def alignment(views: Float[Tensor, ...]) -> float:
    """Alignment: the mean squared distance of two views of an image, on the sphere; lower is better.

    Wang and Isola 2020, "Understanding contrastive representation learning through alignment and uniformity on the
    hypersphere", arXiv 2005.10242, section 4.1, with alpha = 2.

    Args:
        views: float tensor of shape ``[num_views, num_images, d]``, two views or more; all pairs count.

    Returns:
        A number in ``[0, 4]``.

    Raises:
        ValueError: If the tensor has another shape, or fewer than two views.
    """
    _check_views(views)
    unit = F.normalize(views.double(), dim=2)
    num = len(unit)
    # the pairs of equal views, whose distance is 0, are left out of the mean
    return float((2 - 2 * torch.einsum("und,vnd->uvn", unit, unit)).mean()) * num / (num - 1)


def uniformity(embeddings: Float[Tensor, ...]) -> float:
    """Uniformity: the logarithm of the mean Gaussian potential of two images, on the sphere; lower is better.

    Wang and Isola 2020, arXiv 2005.10242, section 4.1, with t = 2.

    Args:
        embeddings: float tensor of shape ``[num_images, d]``, of two images or more.

    Returns:
        A number in ``[-8, 0]``; 0 if all embeddings lie in one direction.

    Raises:
        ValueError: If the tensor is not two-dimensional or has fewer than two images.
    """
    _check(embeddings)
    num = len(embeddings)
    if num < 2:
        raise ValueError("uniformity is over pairs of images, and there is one image")
    unit = F.normalize(embeddings.double(), dim=1)
    total = sum(float((4 * (part @ unit.T - 1)).exp().sum()) for part in unit.split(1024))
    # without the pairs of an image with itself, which are 1 each
    return math.log((total - num) / (num * (num - 1)))


def lidar(views: Float[Tensor, ...], regularization: float = 1e-4) -> float:
    """LiDAR: the effective rank of what tells images apart, measured in what differs between views of one image.

    Thilak et al. 2023, "LiDAR: Sensing linear probing performance in joint embedding SSL architectures", arXiv
    2312.04000, equations 3 to 5: the between-image covariance, whitened by the within-image covariance, and the
    exponential of the entropy of its eigenvalues. It is at most ``min(num_images - 1, d)``, so compare figures of
    equally many images and views only (the authors take 1,000 images of 50 views).

    Args:
        views: float tensor of shape ``[num_views, num_images, d]``, two views or more.
        regularization: Added to the diagonal of the within-image covariance.

    Returns:
        A number from 1 to ``min(num_images - 1, d)``; 0 if all images have one mean, NaN if a value is not finite.

    Raises:
        ValueError: If the tensor has another shape, or fewer than two views.
    """
    _check_views(views)
    if not torch.isfinite(views).all():
        return math.nan
    x = views.double()
    num_views, num_images, width = x.shape
    means = x.mean(dim=0)
    inside = (x - means).flatten(0, 1)
    within = inside.T @ inside / (num_images * (num_views - 1)) + regularization * torch.eye(width, dtype=x.dtype)
    centred = means - means.mean(dim=0)
    between = centred.T @ centred / max(1, num_images - 1)
    values, vectors = torch.linalg.eigh(within)
    whitening = vectors * values.rsqrt() @ vectors.T
    spectrum = torch.linalg.eigvalsh(whitening @ between @ whitening).clamp(min=0.0)
    if not spectrum.sum() > 1e-12 * width:
        return 0.0
    p = spectrum / spectrum.sum() + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


def _check_views(views: Tensor) -> None:
    if views.dim() != 3 or len(views) < 2 or not views.numel():
        raise ValueError(
            f"expected embeddings of shape [num_views, num_images, d] of two views or more, got {list(views.shape)}"
        )


def _check(embeddings: Tensor) -> None:
    if embeddings.dim() != 2 or not embeddings.numel():
        raise ValueError(f"expected embeddings of shape [num_images, d], got {list(embeddings.shape)}")
