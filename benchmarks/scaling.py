"""Images a second and memory of SimCLR against batch, image size and processes, and opening many files or tar shards.

    python benchmarks/scaling.py --json scaling.json --picture scaling.png
    python benchmarks/scaling.py --only index --index_counts 1000000 10000000

Built-in images, decoded beforehand; ResNet-18 with standard stem and bf16 where the processor has it. Each figure is a
separate process, repeated if other programs disturbed it. Memory is the largest that the process ever had. The
folders hold one small image under many names. An index of shards is generated, with a thousand images and labels in
each; the shards themselves are holes of the right size, because only their headers would be looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import add_outputs, peak_memory, save_small, undisturbed, write_json

FILES_IN_A_FOLDER = 1000
IMAGES_IN_A_SHARD = 1000
NUM_CLASSES = 1000
GIB = 2**30
AXES = ["batch", "image size", "processes", "files", "index"]
SPEEDS = {"files": ("seconds", "seconds to open"), "index": ("seconds", "seconds to open")}


def train(args: argparse.Namespace) -> dict[str, float]:
    """A short training in this process, or in several."""
    import torch

    from pretext.simclr import SimCLR
    from ssl_toolkit.augment import RandomView
    from ssl_toolkit.data import ImageData
    from ssl_toolkit.evaluation.features import has_native_bf16
    from ssl_toolkit.modules.backbone import Backbone
    from ssl_toolkit.optim import SGD
    from ssl_toolkit.perf.malloc import keep_freed_memory
    from ssl_toolkit.schedule import Constant
    from ssl_toolkit.tuning.time_budget import measure

    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = "bf16-mixed" if has_native_bf16(device) else "32-true"
    num_images = max(512, 4 * args.batch * args.processes)
    data = ImageData(source="procedural", max_images=num_images, image_size=args.size, batch_size=args.batch)
    data.setup("fit")
    arguments = {"precision": precision, "devices": args.processes, "limit_val_batches": 0}
    if args.processes > 1:
        arguments["strategy"] = "ddp"
    torch.manual_seed(0)
    view = RandomView(args.size, scale=(0.08, 1.0), blur=0.0)
    task = SimCLR(backbone=Backbone("resnet18"), view=view, optimizer=SGD(lr=0.06), schedule=Constant())
    step = measure(task, data, arguments, seconds=args.seconds).step
    return {"images_per_second": args.batch * args.processes / step, "memory": peak_memory()}


def open_folder(args: argparse.Namespace) -> dict[str, float]:
    """Opens a folder of many files."""
    from PIL import Image

    from ssl_toolkit.data.sources import FolderSource

    with tempfile.TemporaryDirectory() as name:
        original = Path(name) / "original.png"
        Image.new("RGB", (8, 8)).save(original)
        for folder in range(-(-args.files // FILES_IN_A_FOLDER)):
            (parent := Path(name) / "images" / f"class{folder % 100:02}" / f"{folder:05}").mkdir(parents=True)
            first = parent / "0.png"
            first.write_bytes(original.read_bytes())
            for number in range(1, min(FILES_IN_A_FOLDER, args.files - folder * FILES_IN_A_FOLDER)):
                os.link(first, parent / f"{number}.png")
        before, start = peak_memory(), time.perf_counter()
        source = FolderSource(str(Path(name) / "images"), "folder", 32, 3)
        assert len(source) == args.files
        return {"seconds": time.perf_counter() - start, "memory": peak_memory() - before}


def make_index(folder: Path, count: int) -> None:
    """Writes an index of so many images of 50 to 150 kB, and shards that are holes of the right size."""
    import numpy as np

    from ssl_toolkit.data.shards.index import index_path
    from ssl_toolkit.data.shards.index_file import write_index
    from ssl_toolkit.data.shards.remote import Found
    from ssl_toolkit.data.shards.shard import ShardContents

    random = np.random.default_rng(0)
    shards, contents = [], []
    for shard in range(-(-count // IMAGES_IN_A_SHARD)):
        num = min(IMAGES_IN_A_SHARD, count - shard * IMAGES_IN_A_SHARD)
        sizes = random.integers(50_000, 150_000, num)
        ends = np.cumsum(512 + -(-sizes // 512) * 512)
        names = "".join(f"{shard:06d}{number:06d}.jpg" for number in range(num)).encode()
        name_ends = 16 * np.arange(1, num + 1, dtype=np.uint32)
        labels = random.integers(0, NUM_CLASSES, num, dtype=np.int32)
        contents.append(
            ShardContents(
                offsets=np.concatenate([[0], ends[:-1]]) + 512,
                sizes=sizes.astype(np.uint32),
                classes=labels,
                folders=np.full(num, -1, dtype=np.int32),
                name_ends=name_ends,
                names=np.frombuffer(names, dtype=np.uint8),
                class_texts=[str(number) for number in range(NUM_CLASSES)],
                folder_texts=[],
            )
        )
        file = folder / f"train-{shard:06d}.tar"
        with file.open("wb") as opened:
            opened.truncate(int(ends[-1]) + 1024)
        shards.append((file.as_posix(), Found(file.stat().st_size, str(file.stat().st_mtime_ns))))
    write_index(index_path(folder, [name for name, _ in shards]), shards, contents)


def open_index(args: argparse.Namespace) -> dict[str, float]:
    """Opens an index of many images, then divides them and shuffles an epoch."""
    with tempfile.TemporaryDirectory() as name:
        # in a separate process, whose memory does not count
        make = [sys.executable, str(Path(__file__).resolve()), "--worker", "--make_index", name]
        subprocess.run([*make, "--index", str(args.index)], check=True)

        from ssl_toolkit.data import ImageData
        from ssl_toolkit.data.shards import ShardSource

        before, start = peak_memory(), time.perf_counter()
        source = ShardSource(name, cache_dir=Path(name))
        figures = {"images": len(source), "seconds": time.perf_counter() - start}
        assert source.name(args.index - 1).endswith(".jpg")
        assert 0 <= source.label(args.index // 2) < NUM_CLASSES
        figures |= {"memory": peak_memory() - before, "process_memory": peak_memory()}
        del source
        start = time.perf_counter()
        settings = {"cache": "none", "val_fraction": 0.1, "shard_window": 16, "index": name}
        data = ImageData(name, source="shards", **settings)
        loader = data.train_dataloader()
        state = {"epoch": 3, "batch": len(loader) // 2, "window": 16}
        if len(data.indices("train")) > 16 * IMAGES_IN_A_SHARD:
            loader.load_state_dict(state)
        assert len(loader._places(3)) == len(loader)
        return {
            **figures,
            "setup_seconds": time.perf_counter() - start,
            "setup_memory": peak_memory() - before,
            "setup_process_memory": peak_memory(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="*", default=[16, 32, 64, 128, 256], help="batches at 32 px")
    parser.add_argument("--sizes", type=int, nargs="*", default=[32, 64, 128, 224], help="sides in pixels, batch 32")
    parser.add_argument("--process_counts", type=int, nargs="*", default=[1, 2], help="processes, batch 64 each, 32 px")
    parser.add_argument("--file_counts", type=int, nargs="*", default=[1000, 10_000, 100_000], help="files in a folder")
    parser.add_argument("--index_counts", type=int, nargs="*", default=[100_000, 1_000_000], help="images in shards")
    parser.add_argument("--only", nargs="*", default=AXES, choices=AXES, help="what to measure; everything by default")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each training")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured, in turns")
    parser.add_argument("--tries", type=int, default=3, help="at most, where other programs disturb")
    add_outputs(parser)
    for name, default in (("batch", 32), ("size", 32), ("processes", 1), ("files", 0), ("index", 0)):
        parser.add_argument(f"--{name}", type=int, default=default, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--make_index", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make_index:
        make_index(args.make_index, args.index)
        return
    if args.worker:
        figures = open_folder(args) if args.files else open_index(args) if args.index else train(args)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(json.dumps(figures))
        return

    start = [sys.executable, str(Path(__file__).resolve()), "--worker", "--seconds", str(args.seconds)]
    rows = {
        "batch": {each: [*start, "--batch", str(each)] for each in args.batches},
        "image size": {each: [*start, "--size", str(each)] for each in args.sizes},
        "processes": {each: [*start, "--batch", "64", "--processes", str(each)] for each in args.process_counts},
        "files": {each: [*start, "--files", str(each)] for each in args.file_counts},
        "index": {each: [*start, "--index", str(each)] for each in args.index_counts},
    }
    rows = {axis: commands for axis, commands in rows.items() if axis in args.only}
    measured: dict[str, dict[int, list[dict[str, float]]]] = {}
    for _ in range(args.rounds):
        for axis, commands in rows.items():
            for value, command in commands.items():
                window = undisturbed(command, args.tries)
                figures = {**window.figures, "others": window.others}
                measured.setdefault(axis, {}).setdefault(value, []).append(figures)
    report(args, measured)


def median(figures: list[dict[str, float]], name: str) -> float:
    """Over the rounds."""
    return statistics.median(each[name] for each in figures)


def report(args: argparse.Namespace, measured: dict[str, dict[int, list[dict[str, float]]]]) -> None:
    """Prints the tables, writes the file, draws the picture."""
    from rich.console import Console
    from rich.table import Table

    for axis, rows in measured.items():
        speed, unit = SPEEDS.get(axis, ("images_per_second", "images/s"))
        columns = {unit: speed, "memory, GiB": "memory"}
        if axis == "index":
            columns |= {"with the process": "process_memory", "seconds to divide and shuffle": "setup_seconds"}
            columns |= {"memory, GiB, with the process": "setup_process_memory"}
        table = Table(axis, *columns, "most others' cores")
        for value, figures in rows.items():
            scales = {name: GIB if "memory" in name else 1 for name in columns.values()}
            cells = [f"{median(figures, name) / scale:,.2f}" for name, scale in scales.items()]
            table.add_row(f"{value:,}", *cells, f"{max(each['others'] for each in figures):.2f}")
        Console().print(table)
    write_json(args.json, measured)
    if args.picture:
        draw(args.picture, measured)


def draw(file: Path, measured: dict[str, dict[int, list[dict[str, float]]]]) -> None:
    """One diagram for each axis."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(3.2 * len(measured), 3), layout="constrained")
    diagrams: Any = figure.subplots(1, len(measured), squeeze=False)[0]
    for axes, (axis, rows) in zip(diagrams, measured.items(), strict=True):
        name, unit = SPEEDS.get(axis, ("images_per_second", "images/s"))
        axes.semilogx(list(rows), [median(figures, name) for figures in rows.values()], marker="o")
        axes.set(xlabel=axis, ylabel=unit, ylim=(0, None))
        axes.set_xticks(list(rows), labels=[f"{value:,}" for value in rows])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    save_small(figure, file)


if __name__ == "__main__":
    main()
