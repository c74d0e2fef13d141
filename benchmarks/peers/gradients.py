"""Gradients of a library's losses in several processes beside one; run by `benchmarks/barlow_gradients.py`.

A small network embeds two views of a batch in W gloo processes on the CPU, each with its slice, under
DistributedDataParallel; and one process does so with the whole batch. Prints the versions, and for each setting the
difference of the parameters' gradients, as JSON.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Loss = Callable[[Tensor, Tensor], Tensor]
INPUTS = 32


def ssl_toolkit(folder: Path) -> dict[str, Loss]:
    from ssl_toolkit.losses import barlow_twins, nt_xent

    return {
        "Barlow Twins": lambda first, second: barlow_twins(first, second)[0],
        "NT-Xent": lambda first, second: nt_xent(first, second, 0.5)[0],
    }


def lightly(folder: Path) -> dict[str, Loss]:
    from lightly.loss import BarlowTwinsLoss, NTXentLoss

    return {"Barlow Twins": BarlowTwinsLoss(gather_distributed=True), "NT-Xent": NTXentLoss(gather_distributed=True)}


def solo_learn(folder: Path) -> dict[str, Loss]:
    """Its loss's file alone, because the package asks for a torch that Python 3.9 was the last to have."""
    spec = importlib.util.spec_from_file_location("barlow", folder / "solo" / "losses" / "barlow.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {"Barlow Twins": module.barlow_loss_func}


def stable_pretraining(folder: Path) -> dict[str, Loss]:
    from stable_pretraining.losses import BarlowTwinsLoss, NTXEntLoss

    return {"Barlow Twins": BarlowTwinsLoss(), "NT-Xent": NTXEntLoss(temperature=0.5)}


LIBRARIES = {
    "ssl-toolkit": ssl_toolkit,
    "lightly": lightly,
    "solo-learn": solo_learn,
    "stable-pretraining": stable_pretraining,
}


class Network(nn.Module):
    """A small network with the loss of what it makes of two views."""

    def __init__(self, loss: Loss, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(INPUTS, width), nn.Tanh(), nn.Linear(width, width))
        self.loss = loss

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.loss(*self.layers(torch.cat([first, second])).chunk(2))


def train(rank: int, world: int, network: Network, views: list[Tensor], folder: str) -> None:
    """One of the processes: the loss of its slice and the gradient of all parameters, in a file."""
    torch.set_num_threads(1)
    module: nn.Module = network
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
        module = DistributedDataParallel(network)
    loss = module(*(view.chunk(world)[rank] for view in views))
    loss.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
    torch.save((loss.item(), gradient), f"{folder}/{rank}")
    if world > 1:
        dist.destroy_process_group()


def run(world: int, network: Network, views: list[Tensor]) -> tuple[float, Tensor]:
    """The processes' mean loss, and their gradient."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world, network, views, folder)
        torch.multiprocessing.start_processes(train, arguments, nprocs=world, start_method="fork")
        parts = [torch.load(f"{folder}/{rank}", weights_only=True) for rank in range(world)]
    losses, found = zip(*parts, strict=True)
    assert all(torch.equal(each, found[0]) for each in found), "DistributedDataParallel gives all processes the same"
    return sum(losses) / world, found[0].double()


def compare(loss: Loss, world: int, batch: int, width: int, dtype: torch.dtype) -> dict[str, float]:
    """What several processes compute beside what one computes."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    network = Network(loss, width).to(dtype)
    # what two views share, and what each has alone
    shared, *own = torch.randn(3, batch, INPUTS)
    views = [(shared + 0.5 * each).to(dtype) for each in own]
    torch.set_default_dtype(dtype)  # of what a loss makes for itself
    expected_loss, expected = run(1, network, views)
    found_loss, found = run(world, network, views)
    cosine = float(found @ expected / (found.norm() * expected.norm()))
    return {
        "loss_error": abs(found_loss - expected_loss) / abs(expected_loss),
        "error": float((found - expected).norm() / expected.norm()),
        "length": float(found.norm() / expected.norm()),
        "angle": math.degrees(math.acos(max(-1.0, min(1.0, cosine)))),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--worlds", type=int, nargs="+", required=True)
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--dtypes", nargs="+", required=True)
    parser.add_argument("--folder", type=Path, help="where the package's files lie, if it cannot be imported")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, loss in LIBRARIES[args.library](args.folder).items():
        for dtype in args.dtypes:
            for world in args.worlds:
                for batch in args.batches:
                    setting = {"loss": name, "dtype": dtype, "processes": world, "batch": batch}
                    rows.append(setting | compare(loss, world, batch, args.width, getattr(torch, dtype)))
    path = None if args.folder is None else [str(args.folder)]
    found = importlib.metadata.distributions(name=args.library, **({} if path is None else {"path": path}))
    version = next((each.version for each in found), "")
    print(json.dumps({"version": version, "torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
