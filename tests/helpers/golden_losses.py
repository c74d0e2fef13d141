"""The first losses of every method, kept in golden_losses.json: a change of the arithmetic does not go unnoticed.

    python tests/helpers/golden_losses.py            # writes the whole file
    python tests/helpers/golden_losses.py SimCLR     # these methods only

Run it when a change is meant to change a method's losses, and say in the commit why they did.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.append(str(Path(__file__).parents[2]))

import torch
import yaml
from lightning.pytorch import Callback

import methods
from parity import without_chance
from ssl_toolkit.distributed.collectives import all_reduce_mean
from ssl_toolkit.distributed.ranks import world_size
from ssl_toolkit.io.atomic import write_atomically
from ssl_toolkit.run_folder import processor
from train_in_processes import train_together

FILE = Path(__file__).with_name("golden_losses.json")
COMMAND = "python tests/helpers/golden_losses.py"
STEPS = 12
GLOBAL_BATCH = 8


class Losses(Callback):
    """Keeps the losses, and lets nothing be drawn from torch's generator, which is another one in each process.

    Args:
        double: Compute in float64.
    """

    kept: list[float] = []  # noqa: RUF012 - there is no other way out of a run

    def __init__(self, double: bool = False) -> None:
        self.double = double
        self.kept.clear()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if not self.double or stage != "fit":
            return
        make_views, setup = pl_module.make_views, pl_module.setup

        # its own setup comes next, and makes the head
        def setup_in_double(stage: str) -> None:
            setup(stage)
            pl_module.double()

        pl_module.make_views = lambda *arguments: _to_double(make_views(*arguments))
        pl_module.setup = setup_in_double

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        without_chance(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.kept.append(float(all_reduce_mean(outputs["loss"])))


def losses(name: str, folder: str, double: bool = False) -> list[float]:
    """The losses of a method's first steps with its recipe of `methods`, of all processes together.

    Args:
        name: The task's class.
        folder: Where `write_recipe` has put its recipe.
        double: Compute in float64.
    """
    torch.set_num_threads(1)
    run = Path(folder, f"{name}-{world_size()}-{'double' if double else 'single'}")
    number = 0
    while run.with_name(f"{run.name}-{number}").exists() and world_size() == 1:
        number += 1
    callback = {"class_path": "golden_losses.Losses", "init_args": {"double": double}}
    options = {
        "--config": str(Path(folder, f"{name}.yaml")), "--out": f"{run}-{number}",
        "--data.batch_size": str(GLOBAL_BATCH // world_size()), "--trainer.callbacks": json.dumps([callback]),
    }  # fmt: skip
    with patch("ssl_toolkit.cli.train.finish"), contextlib.redirect_stdout(io.StringIO()):
        train_together(methods.command(name), [part for option in options.items() for part in option])
    from golden_losses import Losses  # the class that the run had, also where this file is the program

    return list(Losses.kept)


def write_recipe(name: str, folder: Path) -> None:
    """A method's recipe for these steps, as a file."""
    steps = {"max_epochs": -1, "max_steps": STEPS, "limit_val_batches": 0}
    recipe = methods.recipe(name, folder / f"data-{name}", **steps)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))


def read() -> dict[str, Any]:
    """What is kept."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def _to_double(views: Any) -> Any:
    return torch.utils._pytree.tree_map(lambda x: x.double() if x.is_floating_point() else x, views)


def main() -> None:
    chosen = sys.argv[1:] or list(methods.tasks())
    kept = read()["losses"] if FILE.exists() and sys.argv[1:] else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            write_recipe(name, Path(folder))
            kept[name] = losses(name, folder, double=True)
            print(f"{name}: {kept[name][0]:.6g} to {kept[name][-1]:.6g}")
    content = {
        "command": COMMAND,
        "what": f"training loss of the first {STEPS} steps of each method's recipe in tests/helpers/methods, global "
        f"batch {GLOBAL_BATCH}, no dropout, float64 but for the views, one thread",
        "torch": torch.__version__.split("+")[0],
        "processor": processor(),
        "losses": dict(sorted(kept.items())),
    }
    write_atomically(FILE, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
