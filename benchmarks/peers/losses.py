"""A library's losses of given embeddings, with their gradients; run by `benchmarks/losses.py`.

Prints the version, and of each loss its value and its gradient with respect to all embeddings, as JSON.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]
VIEWS, BATCH, WIDTH = 2, 48, 12


def ssl_toolkit() -> dict[str, Loss]:
    from ssl_toolkit import losses

    def vicreg(views: Tensor) -> Tensor:
        spreads = [losses.spread(each) for each in views]
        variance = sum(each.variance for each in spreads) / len(views)
        covariance = sum(each.covariance for each in spreads)
        return 25 * losses.invariance(*views) + 25 * variance + covariance

    def swav(views: Tensor) -> Tensor:
        scores = torch.nn.functional.normalize(views, dim=2)
        assigned = [losses.sinkhorn(each, 0.05) for each in scores]
        pairs = [losses.soft_assignment_loss(scores[1 - one] / 0.1, assigned[one]) for one in range(2)]
        return torch.stack(pairs).mean()

    def dino(views: Tensor) -> Tensor:
        targets = [(each.detach() / 0.04).softmax(dim=1) for each in views]
        pairs = [losses.soft_assignment_loss(views[1 - one] / 0.1, targets[one]) for one in range(2)]
        return torch.stack(pairs).mean()

    def emp_ssl(views: Tensor, sign: int = -1) -> Tensor:
        rate = losses.coding_rate(torch.nn.functional.normalize(views, dim=2), 0.2).mean()
        published = losses.emp_ssl(views, 200.0, 0.2)[0] - 200 - losses.most_coding_rate(WIDTH, 0.2)
        return published + (1 + sign) * rate

    return {
        "Barlow Twins": lambda views: losses.barlow_twins(*views)[0],
        "DCL": lambda views: losses.dcl(*views, 0.1)[0],
        "DCLW": lambda views: losses.dcl(*views, 0.1, 0.5)[0],
        "DINO": dino,
        "EMP-SSL": emp_ssl,
        "EMP-SSL, the coding rate added": lambda views: emp_ssl(views, 1),
        "NT-Xent": lambda views: losses.nt_xent(*views, 0.5)[0],
        "SwAV": swav,
        "VICReg": vicreg,
        "W-MSE": lambda views: losses.symmetric_cosine(*(losses.whiten(each) for each in views)),
        "negative cosine": lambda views: losses.negative_cosine(*views) / 2 - 1,
    }


def lightly() -> dict[str, Loss]:
    from lightly import loss

    dino = loss.DINOLoss(output_dim=WIDTH, warmup_teacher_temp_epochs=0).double()
    whitening = loss.WMSELoss(embedding_dim=WIDTH, w_size=BATCH, track_running_stats=False)

    def negative_cosine(views: Tensor) -> Tensor:
        return loss.NegativeCosineSimilarity()(views[0], views[1].detach())

    def emp_ssl(views: Tensor) -> Tensor:
        # it leaves it to the model to normalise
        return loss.EMPSSLLoss()(list(torch.nn.functional.normalize(views, dim=2)))

    def swav(views: Tensor) -> Tensor:
        scores = torch.nn.functional.normalize(views, dim=2)
        return loss.SwaVLoss()(list(scores), [])

    return {
        "Barlow Twins": lambda views: loss.BarlowTwinsLoss()(*views),
        "DCL": lambda views: loss.DCLLoss()(*views),
        "DCLW": lambda views: loss.DCLWLoss()(*views),
        "DINO": lambda views: dino([each.detach() for each in views], list(views), epoch=0),
        "EMP-SSL": emp_ssl,
        "EMP-SSL, the coding rate added": emp_ssl,
        "NT-Xent": lambda views: loss.NTXentLoss()(*views),
        "SwAV": swav,
        "VICReg": lambda views: loss.VICRegLoss()(*views),
        "W-MSE": lambda views: whitening(views.flatten(0, 1)),
        "negative cosine": negative_cosine,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    libraries = {"ssl-toolkit": ssl_toolkit, "lightly": lightly}
    parser.add_argument("library", choices=libraries)
    args = parser.parse_args()
    torch.set_default_dtype(torch.float64)  # of what a loss makes for itself
    random = np.random.default_rng(0)
    shared, own = random.standard_normal((1, BATCH, WIDTH)), random.standard_normal((VIEWS, BATCH, WIDTH))
    found = {}
    for name, loss in libraries[args.library]().items():
        views = torch.from_numpy(shared + 0.5 * own).requires_grad_()
        value = loss(views)
        value.backward()
        assert views.grad is not None
        found[name] = {"loss": value.item(), "gradient": views.grad.flatten().tolist()}
    try:
        version = importlib.metadata.version(args.library)
    except importlib.metadata.PackageNotFoundError:  # a checkout
        version = ""
    print(json.dumps({"version": version, "losses": found}))


if __name__ == "__main__":
    main()
