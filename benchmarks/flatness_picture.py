"""How flat the minima are that SGD finds with small and with large batches, and with SAM.

    python benchmarks/flatness_picture.py --picture docs/pictures/flatness.png --json flatness.json

The small CNN and the built-in images of `batch_size_and_rate.py`, trained in three ways until they
fit, each with several seeds; the training loss along filter-normalised random directions.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from batch_size_and_rate import TEST_IMAGES, images, network
from measuring import add_outputs, write_json
from torch import Tensor, nn

from ssl_toolkit.evaluation import Flatness, flatness
from ssl_toolkit.random import sample_order
from ssl_toolkit.schedule import Linear

# batch size, rate, radius of SAM's ball (0 for none), epochs: a large batch makes fewer steps and needs more of them
WAYS = {
    "SGD, batch 16": (16, 0.05, 0.0, 30),
    "SGD, batch 512": (512, 0.2, 0.0, 200),
    "SGD, batch 16, SAM": (16, 0.05, 0.05, 30),
}


def train(x: Tensor, y: Tensor, batch: int, lr: float, rho: float, epochs: int, seed: int) -> nn.Module:
    """Trains with SGD of momentum 0.9, and if asked with SAM (Foret et al. 2021, arXiv 2010.01412, equation 3)."""
    torch.manual_seed(seed)
    net, num = network(), len(x) - TEST_IMAGES
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    schedule, steps, step = Linear(warmup_percent=5), epochs * (num // batch), 0
    for epoch in range(epochs):
        for chosen in sample_order(seed, epoch, num)[: num // batch * batch].split(batch):
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule.factor(step, steps, num // batch)
            gradients = torch.autograd.grad(F.cross_entropy(net(x[chosen]), y[chosen]), list(net.parameters()))
            if rho:
                length = torch.stack([each.norm() for each in gradients]).norm() + 1e-12
                moves = [rho / length * each for each in gradients]
                with torch.no_grad():
                    torch._foreach_add_(list(net.parameters()), moves)
                gradients = torch.autograd.grad(F.cross_entropy(net(x[chosen]), y[chosen]), list(net.parameters()))
                with torch.no_grad():
                    torch._foreach_sub_(list(net.parameters()), moves)
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            step += 1
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num_images", type=int, default=1024, help="images to train on")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--radius", type=float, default=0.5, help="the distance whose rise is told")
    add_outputs(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    x, y = images(args.num_images)
    num, started = len(x) - TEST_IMAGES, time.monotonic()
    found: dict[str, Flatness] = {}
    figures = {}
    for name, (batch, lr, rho, epochs) in WAYS.items():
        curves, accuracies = [], []
        for seed in range(args.seeds):
            net = train(x, y, batch, lr, rho, epochs, seed)
            with torch.no_grad():
                accuracies.append(float((net(x[num:]).argmax(dim=1) == y[num:]).float().mean()))

                def loss(net: nn.Module = net) -> float:
                    return float(F.cross_entropy(net(x[:num]), y[:num]))

                curves.append(flatness(loss, dict(net.named_parameters()), np.linspace(-1, 1, 21).tolist(), 5, seed))
        rises = [curve.rise(args.radius)[0] for curve in curves]
        losses = [curve.loss for curve in curves]
        figures[name] = {"rises": rises, "accuracies": accuracies, "losses": losses}
        found[name] = Flatness(curves[0].alphas, np.concatenate([curve.losses for curve in curves]))
        print(
            f"{name}: rise at {args.radius:g} {np.mean(rises):.3f} ± {np.std(rises, ddof=1):.3f}, training loss "
            f"{np.mean(losses):.3f}, top-1 of images held out {100 * np.mean(accuracies):.1f} ± "
            f"{100 * np.std(accuracies, ddof=1):.1f} %",
            flush=True,
        )
    print(f"{(time.monotonic() - started) / 60:.1f} minutes on one core, {args.seeds} seeds")
    write_json(args.json, figures)
    if args.picture:
        draw(args.picture, found)


def draw(file: Path, found: dict[str, Flatness]) -> None:
    """The loss over the distance."""
    from ssl_toolkit.cli.flatness import draw as draw_flatness

    figure = draw_flatness(found)
    figure.axes[0].set_ylabel("training loss", fontsize=8)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
