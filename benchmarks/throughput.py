"""Source images a second of a pretraining from end to end, beside its arithmetic alone and beside the peers.

    python benchmarks/throughput.py --images cifar10/train --stem small --precision bf16 --json throughput.json
    python benchmarks/throughput.py --images caltech101 --recipe configs/pretrain/patch_position_caltech101.yaml

* ssl-toolkit: `ssl-toolkit pretrain` on the files of the folder, decoded once, with everything that a run does;
* arithmetic: forward, backward and optimizer of the same recipe on one batch of views, again and again, and nothing
  else: what no pipeline can exceed;
* lightly: its own loader, transform, loss and head, with 0 or 2 workers, contiguous or channels last; its best counts;
* stable-pretraining: likewise, as its CIFAR-10 example builds it.

The peers are measured beside SimCLR, with ResNet-18, the same batch and precision. All processes live at the same time
and take turns, so that a neighbour on the machine slows all of them; a turn in which other programs took more than a
tenth of a core is repeated. Speeds are medians over the rounds; ratios are taken within a round, with their range.
`--repeats` starts all of them anew. Peers live in environments of their own, made on first use.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import (
    HERE,
    Turn,
    add_outputs,
    draw_bars,
    in_turns,
    lightly_python,
    median_and_range,
    peer_python,
    write_json,
)

RECIPE = HERE.parent / "configs" / "pretrain" / "simclr_cifar10.yaml"
PRECISION = {"32": "32-true", "bf16": "bf16-mixed"}
OURS, ARITHMETIC = "ssl-toolkit", "arithmetic"


def options(args: argparse.Namespace, run: Path) -> list[str]:
    """The command line of our run after the verb."""
    accelerator = {"cpu": "cpu", "cuda": "gpu"}[args.device]
    given = [
        "-c", str(args.recipe), "--data.path", args.images, "--data.labels", "none", "--data.cache", "disk",
        "--data.batch_size", str(args.batch), "--data.val_fraction", "0", "--out", str(run),
        "--trainer.precision", PRECISION[args.precision], "--trainer.accelerator", accelerator,
        "--trainer.devices", "1", "--trainer.max_epochs", "100000", "--tracker", "none",
        "--evaluation.every_n_epochs", "0", "--model.backbone.stem", args.stem,
        "--trainer.callbacks", '[{"class_path": "each_step.EachStep"}]',
    ]  # fmt: skip
    if args.size:
        given += ["--data.image_size", str(args.size), "--model.view.size", str(args.size)]
    return given + args.option


def arithmetic(args: argparse.Namespace) -> None:
    """One batch of views through the network and back, for ever."""
    import torch

    from ssl_toolkit.cli.parser import instantiate, parse
    from ssl_toolkit.cli.training_parser import training_parser
    from ssl_toolkit.memory import keep_freed_memory
    from ssl_toolkit.optim import parameter_groups

    keep_freed_memory()  # as the command line does
    arguments = options(args, Path("unused"))
    parser = training_parser("pretrain", arguments)
    objects = instantiate(parser, parse(parser, arguments))
    task, data = objects.model.to(args.device), objects.data
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    pixels, sizes = batch.images
    views = task.make_views(type(batch.images)(pixels.to(args.device), sizes.to(args.device)), task.keys(batch))
    task.backbone.to(memory_format=torch.channels_last)
    spec = task.optimizer_spec
    optimizer = spec.build(parameter_groups(task, spec.lr, spec.weight_decay), fused=True)
    while True:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16"):
            loss = task.loss(views).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if args.device == "cuda":
            torch.cuda.synchronize()
        print(time.monotonic(), flush=True)


def commands(args: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """What is measured."""
    worker = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--worker"]
    worker += ["--images", args.images, "--recipe", str(args.recipe)]
    found = {
        ARITHMETIC: worker,
        OURS: [sys.executable, "-m", "ssl_toolkit", "pretrain", *options(args, folder / "run")],
    }
    shared = ["--images", args.images, "--device", args.device, "--precision", args.peer_precision or args.precision]
    for name in ("stem", "batch"):
        shared += [f"--{name}", str(getattr(args, name))]
    if "lightly" in args.peers and (python := lightly_python()):
        script = str(HERE / "peers" / "lightly_simclr.py")
        for workers in (0, 2):
            for layout in ("contiguous", "channels_last"):
                given = ["--size", str(args.size or 32), "--workers", str(workers), "--layout", layout]
                found[f"lightly, {workers} workers, {layout}"] = [str(python), script, *shared, *given]
    if "stable-pretraining" in args.peers and (python := peer_python("stable-pretraining")):
        script = str(HERE / "peers" / "stable_pretraining_simclr.py")
        for workers in (0, 2):
            given = ["--size", str(args.size or 32), "--workers", str(workers)]
            found[f"stable-pretraining, {workers} workers"] = [str(python), script, *shared, *given]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", help="a folder of images, in sub-folders")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="of our run")
    parser.add_argument("--stem", choices=["small", "standard"], default="small", help="of the backbone")
    parser.add_argument("--size", type=int, help="side of a view in pixels, instead of the recipe's")
    parser.add_argument("--batch", type=int, default=128, help="images in a batch")
    parser.add_argument("--precision", choices=sorted(PRECISION), default="bf16")
    parser.add_argument(
        "--peer_precision", choices=sorted(PRECISION), help="of the peers, by default the same; as they ship: 32"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--option", action="append", default=[], help="of ssl-toolkit pretrain, as --option=--a=b")
    parser.add_argument(
        "--peers", nargs="*", choices=["lightly", "stable-pretraining"], help="all of them beside SimCLR, by default"
    )
    parser.add_argument("--repeats", type=int, default=3, help="how often all processes are started")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each process")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each turn")
    parser.add_argument("--tries", type=int, default=3, help="at most, where other programs disturb")
    add_outputs(parser)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.images or not Path(args.images).is_dir():
        raise SystemExit(f"--images {args.images} is not a folder; give one with images, for instance CIFAR-10's")
    args.images, args.recipe = str(Path(args.images).resolve()), args.recipe.resolve()
    if args.peers is None:
        args.peers = ["lightly", "stable-pretraining"] if "simclr" in args.recipe.name else []
    if args.worker:
        arithmetic(args)
        return
    turns: dict[str, list[Turn]] = {}
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            environment = {"PYTHONPATH": str(HERE)}
            found = in_turns(commands(args, Path(folder)), args.seconds, args.rounds, args.tries, environment)
        for name, each in found.items():
            turns.setdefault(name, []).extend(each)
    report(args, turns)


def report(args: argparse.Namespace, turns: dict[str, list[Turn]]) -> None:
    """Prints the table, writes the file and draws the picture."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "images/s", "ssl-toolkit / this", "most others' cores", title=title(args))
    ours = [turn.steps_per_second for turn in turns[OURS]]
    rows: dict[str, dict[str, Any]] = {}
    for name, each in turns.items():
        speeds = [turn.steps_per_second * args.batch for turn in each]
        ratios = [mine / turn.steps_per_second for mine, turn in zip(ours, each, strict=True)]
        others = max(turn.others for turn in each)
        rows[name] = {"images_per_second": speeds, "ratio": ratios, "others": others}
        table.add_row(name, f"{statistics.median(speeds):,.1f}", median_and_range(ratios), f"{others:.2f}")
    Console().print(table)
    settings = {name: str(value) for name, value in vars(args).items() if name not in ("json", "worker", "images")}
    write_json(args.json, {"settings": {**settings, "recipe": args.recipe.name}, "rows": rows})
    speeds = {name: row["images_per_second"] for name, row in rows.items()}
    draw_bars(args.picture, {title(args): speeds}, "source images a second")


def title(args: argparse.Namespace) -> str:
    """What was measured."""
    size = f", {args.size} px" if args.size else ""
    peers = f" (peers {args.peer_precision})" if args.peer_precision else ""
    return f"{args.recipe.stem}, {args.stem} stem{size}, batch {args.batch}, {args.precision}{peers}, {args.device}"


if __name__ == "__main__":
    main()
