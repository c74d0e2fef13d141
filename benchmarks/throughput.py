"""Source images a second of SimCLR from end to end, beside its arithmetic alone and beside lightly.

    python benchmarks/throughput.py --images cifar10/train --stem small --precision bf16 --json throughput.json

* arithmetic: forward, backward and optimizer on random views, nothing else: what no pipeline can exceed;
* ssl-toolkit: the files of the folder, decoded once, through `ImageData`, `SimCLR` and Lightning's Trainer;
* lightly: its own loader, transform, loss and head, with 0 or 2 workers, contiguous or channels last; its best counts.

All with ResNet-18, the same batch and precision. Each measurement is a process of its own; they alternate, and one in
which other programs took more than a tenth of a core is repeated. Figures are medians over the rounds; ratios are taken
within a round, with their range. lightly lives in an environment of its own, which is made if uv or pip can install it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from measuring import HERE, Window, lightly_python, undisturbed

if TYPE_CHECKING:
    from pretext.simclr import SimCLR

LIGHTLY_SETTINGS = [
    {"workers": workers, "channels_last": channels_last} for workers in (0, 2) for channels_last in (0, 1)
]


def make_task(args: argparse.Namespace) -> SimCLR:
    """The task; torch is imported here, because the process that measures has no use for it."""
    import torch

    from pretext.simclr import SimCLR
    from ssl_toolkit.augment import RandomView
    from ssl_toolkit.backbones import Backbone
    from ssl_toolkit.optim import SGD
    from ssl_toolkit.schedule import Constant

    torch.manual_seed(0)
    view = RandomView(args.size, scale=(0.08, 1.0), blur=0.0)
    backbone = Backbone("resnet18", stem=args.stem)
    return SimCLR(backbone=backbone, view=view, optimizer=SGD(lr=0.06), schedule=Constant())


def arithmetic(args: argparse.Namespace) -> float:
    """Random views through the network and back."""
    import torch

    task = make_task(args).to(args.device)
    task.backbone.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.06, momentum=0.9)
    shape = (args.batch, 3, args.size, args.size)
    first, second = (torch.rand(shape, device=args.device).to(memory_format=torch.channels_last) for _ in range(2))
    steps, start = 0, 0.0
    while steps < 15 or time.perf_counter() - start < args.seconds:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16"):
            loss = task.loss((first, second)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if args.device == "cuda":
            torch.cuda.synchronize()
        steps += 1
        if steps == 5:
            start = time.perf_counter()
    return (steps - 5) * args.batch / (time.perf_counter() - start)


def ssl_toolkit(args: argparse.Namespace) -> float:
    """A real run, from files."""
    from ssl_toolkit.budget import measure
    from ssl_toolkit.data import ImageData

    data = ImageData(path=args.images, image_size=args.size, batch_size=args.batch, cache="disk")
    data.setup("fit")
    precision = {"32": "32-true", "bf16": "bf16-mixed"}[args.precision]
    accelerator = {"cpu": "cpu", "cuda": "gpu"}[args.device]
    arguments = {"precision": precision, "accelerator": accelerator, "devices": 1, "limit_val_batches": 0}
    return args.batch / measure(make_task(args), data, arguments, seconds=args.seconds).step


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", help="a folder of images")
    parser.add_argument("--stem", choices=["small", "standard"], default="small", help="of the ResNet-18")
    parser.add_argument("--size", type=int, default=32, help="side of a view in pixels")
    parser.add_argument("--batch", type=int, default=128, help="images in a batch")
    parser.add_argument("--precision", choices=["32", "bf16"], default="bf16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured, in turns")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--tries", type=int, default=3, help="at most, where other programs disturb")
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    parser.add_argument("--worker", choices=sorted(WORKERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.images or not Path(args.images).is_dir():
        raise SystemExit(f"--images {args.images} is not a folder; give one with images, for instance CIFAR-10's")
    args.images = str(Path(args.images).resolve())
    if args.worker:
        from ssl_toolkit.memory import keep_freed_memory

        keep_freed_memory()  # as the command line does
        print(json.dumps({"images_per_second": WORKERS[args.worker](args)}))
        return
    report(args, measure_all(args))


WORKERS: dict[str, Callable[[argparse.Namespace], float]] = {"arithmetic": arithmetic, "ssl-toolkit": ssl_toolkit}


def measure_all(args: argparse.Namespace) -> list[dict[str, Window]]:
    """All measurements, round by round."""
    shared = ["--images", args.images, "--seconds", str(args.seconds), "--device", args.device]
    for name in ("stem", "size", "batch", "precision"):
        shared += [f"--{name}", str(getattr(args, name))]
    commands = {name: [sys.executable, str(Path(__file__).resolve()), "--worker", name, *shared] for name in WORKERS}
    python = lightly_python()
    if python is None:
        print("not measured: lightly, which could not be installed", file=sys.stderr)
    else:
        for setting in LIGHTLY_SETTINGS:
            options = [word for name, value in setting.items() for word in (f"--{name}", str(value))]
            script = str(HERE / "peers" / "lightly_simclr.py")
            name = f"lightly, {setting['workers']} workers" + (", channels last" if setting["channels_last"] else "")
            commands[name] = [str(python), script, *shared, *options]
    rounds = []
    for number in range(args.rounds):
        rounds.append({name: undisturbed(command, args.tries) for name, command in commands.items()})
        for name, measured in rounds[-1].items():
            print(
                f"round {number + 1}: {name}: {measured.figures['images_per_second']:,.1f} images/s, "
                f"others {measured.others:.2f} cores",
                file=sys.stderr,
            )
    return rounds


def speed(measured: Window) -> float:
    """Images a second."""
    return measured.figures["images_per_second"]


def report(args: argparse.Namespace, rounds: list[dict[str, Window]]) -> None:
    """Prints the table and writes the file."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "images/s", "ssl-toolkit / this", "most others' cores", title=title(args))
    rows = {}
    for name in rounds[0]:
        speeds = [speed(each[name]) for each in rounds]
        ratios = [speed(each["ssl-toolkit"]) / speed(each[name]) for each in rounds]
        others = max(each[name].others for each in rounds)
        rows[name] = {"images_per_second": speeds, "ratio": ratios, "others": others}
        table.add_row(
            name,
            f"{statistics.median(speeds):,.1f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            f"{others:.2f}",
        )
    Console().print(table)
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name not in ("json", "worker", "images")}
        args.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def title(args: argparse.Namespace) -> str:
    """What was measured."""
    network = f"ResNet-18 with {args.stem} stem"
    return f"SimCLR, {network}, {args.size} px, batch {args.batch}, {args.precision}, {args.device}"


if __name__ == "__main__":
    main()
