"""Whitening of a batch by Cholesky decomposition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_toolkit.losses.full_precision import full_precision

if TYPE_CHECKING:
    from jaxtyping import Float


def whiten(embeddings: Float[Tensor, "batch width"], eps: float = 0.0) -> Float[Tensor, "batch width"]:
    """Whitening: embeddings with mean 0 whose covariance over the batch is the identity.

    Ermolov, Siarohin, Sangineto, Sebe 2021, arXiv 2007.06346, section 3, by the inverse of the covariance's Cholesky
    factor. It has a gradient, and looks at this process alone: gather the embeddings first.

    Args:
        embeddings: More than ``width`` of them, unless ``eps`` is above 0; computed in float64, where there is such.
        eps: The covariance is ``(1 - eps) * covariance + eps * identity``, 0 to 1, so that it can be inverted.

    Returns:
        Tensor of the same shape. Where the covariance cannot be inverted it is not finite.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        given = full_precision(embeddings)
        # the factor of a covariance that is nearly singular is lost in float32
        centred = given if given.device.type == "mps" else given.double()
        centred = centred - centred.mean(dim=0)
        num, width = centred.shape
        covariance = (1 - eps) * (centred.T @ centred) / max(1, num - 1)
        covariance = covariance + eps * torch.eye(width, dtype=centred.dtype, device=centred.device)
        # cholesky_ex waits for no GPU to say whether it worked
        factor, info = torch.linalg.cholesky_ex(covariance)
        factor = torch.where(info > 0, torch.nan, factor)
        return torch.linalg.solve_triangular(factor, centred.T, upper=False).T.to(given.dtype)
