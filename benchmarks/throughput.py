"""Source images a second of a pretraining from end to end, beside its arithmetic alone and beside the peers.

    python benchmarks/throughput.py --images cifar10/train --stem small --precision bf16 --json throughput.json
    python benchmarks/throughput.py --images caltech101 --recipe configs/pretrain/patch_position_caltech101.yaml
    python benchmarks/throughput.py --images photographs --recipe configs/pretrain/simclr.yaml --stem standard \
        --size 224 --batch 256 --device cuda --peers --option=--model.backbone.name=resnet50 --json resnet50.json

* ssl-toolkit: `ssl-toolkit pretrain` on the files of the folder, decoded once, with everything that a run does;
* arithmetic: forward, backward and optimizer of the same recipe on one batch of views, again and again, and nothing
  else: what no pipeline can exceed;
* products: square matrices multiplied in the same precision, what the device can do at best; beside it stands what the
  others make of it, by the operations of a step as torch counts them (two for a multiplication and an addition);
* lightly: its own loader, transform, loss and head, with some numbers of workers, contiguous or channels last;
  its best counts;
* stable-pretraining: likewise, as its CIFAR-10 example builds it.

The peers are measured beside SimCLR, with ResNet-18, the same batch and precision. All processes live at the same time
and take turns, so that a neighbour on the machine slows all of them; a turn in which other programs took more than a
tenth of a core is repeated. Speeds are medians over the rounds; ratios are taken within a round: their median, with its
quartiles, and by the time that a step takes in all of them. "others" is how many cores other programs took in the worst
turn. On a machine that is shared, many short turns tell more than a few long ones. `--repeats` starts all of them
again. Peers have separate environments, made on first use.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import (
    HERE,
    Turn,
    add_outputs,
    draw_bars,
    in_turns,
    lightly_python,
    median_and_quartiles,
    peer_python,
    window,
    write_json,
)

RECIPE = HERE.parent / "configs" / "pretrain" / "simclr_cifar10.yaml"
PRECISION = {"32": "32-true", "bf16": "bf16-mixed"}
OURS, ARITHMETIC, PRODUCTS = "ssl-toolkit", "arithmetic", "products"
RATIO = "ssl-toolkit/this"
# so large that no time is lost around a product, and some milliseconds for a step of products
SIDE, PRODUCTS_IN_A_STEP = {"cpu": 2048, "cuda": 8192}, {"cpu": 1, "cuda": 10}


def options(args: argparse.Namespace, run: Path) -> list[str]:
    """The arguments of our run, after the command."""
    accelerator = {"cpu": "cpu", "cuda": "gpu"}[args.device]
    given = [
        "-c", str(args.recipe), "--data.path", args.images, "--data.labels", "none", "--data.cache", "disk",
        "--data.batch_size", str(args.batch), "--data.val_fraction", "0", "--out", str(run),
        "--trainer.precision", PRECISION[args.precision], "--trainer.accelerator", accelerator,
        "--trainer.devices", "1", "--trainer.benchmark", "true", "--trainer.max_epochs", "100000", "--tracker", "none",
        "--evaluation.every_n_epochs", "0", "--model.backbone.stem", args.stem,
        "--trainer.callbacks", '[{"class_path": "each_step.EachStep"}]',
    ]  # fmt: skip
    if args.size:
        given += ["--data.image_size", str(args.size), "--model.view.size", str(args.size)]
    return given + args.option


def arithmetic(args: argparse.Namespace) -> None:
    """One batch of views through the network and back, for ever, or once, to count its operations."""
    import torch
    from step_clock import StepClock
    from torch.utils.flop_counter import FlopCounterMode

    from ssl_toolkit.cli.command_line import CommandLine
    from ssl_toolkit.cli.parser import instantiate, parse
    from ssl_toolkit.cli.training_parser import training_parser
    from ssl_toolkit.optim import parameter_groups
    from ssl_toolkit.perf.malloc import keep_freed_memory
    from ssl_toolkit.step import StepContext

    keep_freed_memory()  # as the command line does
    arguments = options(args, Path("unused"))
    parser = training_parser(CommandLine("pretrain", arguments))
    objects = instantiate(parser, parse(parser, arguments))
    task, data = objects.model.to(args.device), objects.data
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    pixels, sizes = batch.images
    views = task.make_views(type(batch.images)(pixels.to(args.device), sizes.to(args.device)), task.keys(batch))
    task.backbone.to(memory_format=torch.channels_last)
    spec = task.optimizer_spec
    optimizer = spec.build(parameter_groups(task, spec.lr, spec.weight_decay), fused=True)
    torch.backends.cudnn.benchmark = objects.trainer.benchmark

    def step() -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16"):
            loss = task.loss(views, StepContext(batch=batch)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    if args.worker == "count":
        with FlopCounterMode(display=False) as counter:
            step()
        print(json.dumps({"operations": counter.get_total_flops()}))
        return
    clock = StepClock()
    while True:
        step()
        clock.tick()


def products(args: argparse.Namespace) -> None:
    """Products of matrices, for ever."""
    import torch
    from step_clock import StepClock

    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    first, second, product = (torch.randn(2 * [SIDE[args.device]], device=args.device).to(dtype) for _ in range(3))
    clock = StepClock()
    while True:
        for _ in range(PRODUCTS_IN_A_STEP[args.device]):
            torch.mm(first, second, out=product)
        clock.tick()


def operations(args: argparse.Namespace) -> dict[str, float]:
    """Operations of a step, by what makes it."""
    step = window(worker(args, "count")).figures["operations"]
    return {OURS: step, ARITHMETIC: step, PRODUCTS: PRODUCTS_IN_A_STEP[args.device] * 2 * SIDE[args.device] ** 3}


def worker(args: argparse.Namespace, what: str) -> list[str]:
    """The command line of this file for one of the processes."""
    own = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--worker", what]
    return [*own, "--images", args.images, "--recipe", str(args.recipe)]


def commands(args: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """What is measured."""
    found = {
        PRODUCTS: worker(args, PRODUCTS),
        ARITHMETIC: worker(args, ARITHMETIC),
        OURS: [sys.executable, "-m", "ssl_toolkit", "pretrain", *options(args, folder / "run")],
    }
    shared = ["--images", args.images, "--device", args.device, "--precision", args.peer_precision or args.precision]
    for name in ("stem", "batch"):
        shared += [f"--{name}", str(getattr(args, name))]
    if "lightly" in args.peers and (python := lightly_python()):
        script = str(HERE / "peers" / "lightly_simclr.py")
        for workers in args.workers:
            for layout in ("contiguous", "channels_last"):
                given = ["--size", str(args.size or 32), "--workers", str(workers), "--layout", layout]
                found[f"lightly, {workers} workers, {layout}"] = [str(python), script, *shared, *given]
    if "stable-pretraining" in args.peers and (python := peer_python("stable-pretraining")):
        script = str(HERE / "peers" / "stable_pretraining_simclr.py")
        for workers in args.workers:
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
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2], help="of the peers' loaders, each is tried")
    parser.add_argument("--repeats", type=int, default=2, help="how often all processes are started")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each process")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn, or three steps")
    parser.add_argument("--tries", type=int, default=3, help="at most, where other programs disturb")
    add_outputs(parser)
    parser.add_argument("--worker", choices=["count", PRODUCTS, ARITHMETIC], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.images or not Path(args.images).is_dir():
        raise SystemExit(f"--images {args.images} is not a folder; give one with images, for instance CIFAR-10's")
    args.images, args.recipe = str(Path(args.images).resolve()), args.recipe.resolve()
    if args.peers is None:
        args.peers = ["lightly", "stable-pretraining"] if "simclr" in args.recipe.name else []
    if args.worker:
        products(args) if args.worker == PRODUCTS else arithmetic(args)
        return
    check_device(args.device)
    counted = operations(args)
    turns: dict[str, list[Turn]] = {}
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            environment = {"PYTHONPATH": str(HERE)}
            found = in_turns(commands(args, Path(folder)), args.seconds, args.rounds, args.tries, environment)
        for name, each in found.items():
            turns.setdefault(name, []).extend(each)
    report(args, turns, counted)


def check_device(device: str) -> None:
    """Says so if there is no GPU for ``--device cuda``."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no GPU here; the command is ready for a machine that has one")


def report(args: argparse.Namespace, turns: dict[str, list[Turn]], counted: dict[str, float]) -> None:
    """Prints the table, writes the file and draws the picture."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    columns = ("", "images/s", RATIO, "by time", "TFLOP/s", "of products", "others")
    table = Table(title=title(args), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column == RATIO)
    ours = [turn.steps_per_second for turn in turns[OURS]]
    rates = {name: [turn.steps_per_second * number / 1e12 for turn in turns[name]] for name, number in counted.items()}
    rows: dict[str, dict[str, Any]] = {}
    for name, each in turns.items():
        others = max(turn.others for turn in each)
        rows[name] = {"others": others}
        cells = [""] * 3
        if name != PRODUCTS:
            speeds = [turn.steps_per_second * args.batch for turn in each]
            ratios = [mine / turn.steps_per_second for mine, turn in zip(ours, each, strict=True)]
            by_time = sum(1 / turn.steps_per_second for turn in each) / sum(1 / mine for mine in ours)
            rows[name] |= {"images_per_second": speeds, "ratio": ratios, "ratio_by_time": by_time}
            cells = [f"{statistics.median(speeds):,.1f}", median_and_quartiles(ratios), f"{by_time:.2f}"]
        if name in rates:
            fractions = [rate / best for rate, best in zip(rates[name], rates[PRODUCTS], strict=True)]
            rows[name] |= {"tflops": rates[name], "share_of_products": fractions}
            cells += [f"{statistics.median(rates[name]):,.3g}", f"{statistics.median(fractions):.0%}"]
        table.add_row(name, *cells, *[""] * (5 - len(cells)), f"{others:.2f}")
    Console().print(table)
    settings = {name: str(value) for name, value in vars(args).items() if name not in ("json", "worker", "images")}
    write_json(args.json, {"settings": {**settings, "recipe": args.recipe.name}, "rows": rows})
    shown = {name: row["images_per_second"] for name, row in rows.items() if name != PRODUCTS}
    draw_bars(args.picture, {title(args): shown}, "source images a second")


def title(args: argparse.Namespace) -> str:
    """What was measured."""
    size = f", {args.size} px" if args.size else ""
    peers = f" (peers {args.peer_precision})" if args.peer_precision else ""
    return f"{args.recipe.stem}, {args.stem} stem{size}, batch {args.batch}, {args.precision}{peers}, {args.device}"


if __name__ == "__main__":
    main()
