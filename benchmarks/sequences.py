"""Heads that read frames in order beside heads that are blind to it, on built-in sequences whose class is the motion.

With --frames the sequences are longer ones of several motions, and the class of each frame is asked for.

    ssl-toolkit pretrain -c ssl_toolkit/cli/quickstart/simclr.yaml --out runs/shapes
    python benchmarks/sequences.py --weights runs/shapes/backbone.safetensors --runs runs/sequences \\
        --json sequences.json --picture sequences.png
    python benchmarks/sequences.py --frames --weights runs/shapes/backbone.safetensors --runs runs/frames \\
        --json frames.json --picture timelines.png

Half of the motions are the others backwards, so a head that is blind to the order can tell pairs of them apart and no
more. Each head trains on the frozen backbone and, by the same command, on its random weights; the LSTM also fine-tunes
the backbone. Same sequences and splits in all rows, another seed for the head and the order of the batches; no value of
theirs is tuned. A run that is killed goes on, and what the JSON file has is not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from measuring import add_outputs, save_small, write_json

import ssl_toolkit
from ssl_toolkit.data.procedural.motions import SeveralMotionFrames
from ssl_toolkit.data.procedural.moving import MOTIONS
from ssl_toolkit.data.split_file import read_split_file
from ssl_toolkit.io.atomic import sha256

SIDE = 64
HEADS: dict[str, dict[str, Any]] = {
    "mean and maximum": {"class_path": "downstream.sequence.PoolingHead", "init_args": {"pooling": "mean_max"}},
    "attention pooling": {"class_path": "downstream.sequence.AttentionPoolingHead", "init_args": {"dropout": 0.2}},
    "LSTM": {"class_path": "downstream.sequence.RecurrentHead", "init_args": {"kind": "lstm", "dropout": 0.2}},
    "TCN": {"class_path": "downstream.sequence.TemporalConvHead", "init_args": {"dropout": 0.2}},
    "Transformer": {"class_path": "downstream.sequence.TransformerHead", "init_args": {}},
}
# of each frame; the first knows no other frame
FRAME_HEADS: dict[str, dict[str, Any]] = {
    "each frame alone": {"class_path": "downstream.sequence.FrameHead", "init_args": {"hidden": 256}},
    "LSTM": {
        "class_path": "downstream.sequence.RecurrentHead",
        "init_args": {"kind": "lstm", "bidirectional": True, "dropout": 0.2},
    },
    "Transformer": {"class_path": "downstream.sequence.TransformerHead", "init_args": {}},
    "MS-TCN": {"class_path": "downstream.sequence.MultiStageTCNHead", "init_args": {"num_layers": 5, "num_stages": 3}},
    "MS-TCN, causal": {
        "class_path": "downstream.sequence.MultiStageTCNHead",
        "init_args": {"num_layers": 5, "num_stages": 3, "causal": True},
    },
}
FIGURES = ("top1", "f1_50", "edit")
FINE_TUNED = "LSTM, fine-tuned"
PRETRAINED, RANDOM = "pretrained", "random weights"


def folder_of(name: str, seed: int, args: argparse.Namespace) -> Path:
    """Of a run."""
    return args.runs / f"{name}-{seed}".replace(" ", "_").replace(",", "")


def train(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The accuracies of one run, trained or gone on with."""
    run = folder_of(name, seed, args)
    is_frozen = name != FINE_TUNED
    head = HEADS["LSTM" if not is_frozen else name]
    start = time.monotonic()
    if (run / "config.yaml").exists():
        trained = ssl_toolkit.transfer(resume=run)
    else:
        options: dict[str, Any] = {
            "model.head": head, "trainer.accelerator": "cpu", "trainer.max_epochs": args.epochs, "tracker": "none",
            "trainer.limit_val_batches": 0, "seed": seed, "random_weights": is_frozen,
        }  # fmt: skip
        if is_frozen:
            options["model.cache_features"] = True
        else:
            options |= {"model.freeze_backbone": False, "model.layer_decay": 0.7, "model.head_lr_factor": 5.0,
                        "trainer.max_epochs": args.finetune_epochs}  # fmt: skip
        data = {"source": "procedural", "max_images": args.sequences, "image_size": SIDE, "batch_size": 32,
                "test_fraction": 0.4, "cache": "memory"}  # fmt: skip
        trained = ssl_toolkit.transfer("sequence_lstm", weights=args.weights, data=data, out=run, overrides=options)
    found = {PRETRAINED: trained.figures["test/top1"]}
    if is_frozen:
        found[RANDOM] = trained.figures["test/random_weights_top1"]
    return {"seed": seed, "seconds": round(time.monotonic() - start), **found}


def train_on_frames(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one run that labels frames, trained or gone on with."""
    run, start = folder_of(name, seed, args), time.monotonic()
    if (run / "config.yaml").exists():
        trained = ssl_toolkit.transfer(resume=run)
    else:
        options: dict[str, Any] = {
            "model.head": FRAME_HEADS[name], "trainer.accelerator": "cpu", "trainer.max_epochs": args.epochs,
            "tracker": "none", "trainer.limit_val_batches": 0, "seed": seed, "random_weights": True,
        }  # fmt: skip
        data = {"source": "procedural", "max_images": args.sequences, "image_size": SIDE, "batch_size": 8,
                "test_fraction": 0.4, "cache": "memory"}  # fmt: skip
        trained = ssl_toolkit.transfer("sequence_labels", weights=args.weights, data=data, out=run, overrides=options)
    return {
        "seed": seed, "seconds": round(time.monotonic() - start),
        PRETRAINED: {figure: trained.figures[f"test/{figure}"] for figure in FIGURES},
        RANDOM: {figure: trained.figures[f"test/random_weights_{figure}"] for figure in FIGURES},
    }  # fmt: skip


def print_frames_table(results: dict[str, list[dict[str, Any]]]) -> None:
    print("| head | " + " | ".join(f"{figure}, {kind}" for figure in FIGURES for kind in (PRETRAINED, RANDOM)) + " |")
    print("|" + " --- |" * 7)
    for name, rows in results.items():
        cells = []
        for figure in FIGURES:
            for kind in (PRETRAINED, RANDOM):
                values = [100 * row[kind][figure] for row in rows]
                cells.append(f"{statistics.fmean(values):.1f} % ({min(values):.1f}-{max(values):.1f})")
        print(f"| {name} | {' | '.join(cells)} |")


def draw_timelines(file: Path | None, args: argparse.Namespace) -> None:
    """True and predicted labels of some test sequences, a colour for each class; nothing without a file."""
    if not file:
        return
    names, truth = list(FRAME_HEADS), {}
    found: dict[str, dict[str, list[str]]] = {}
    source = SeveralMotionFrames(args.sequences, SIDE)
    for name in names:
        out = args.runs / f"{folder_of(name, args.seeds[0], args).name}.parquet"
        if not out.exists():
            ssl_toolkit.predict(folder_of(name, args.seeds[0], args), data={"source": "procedural"}, out=out)
        found[name] = {}
        for row in pq.read_table(out, columns=["name", "class"]).to_pylist():
            found[name].setdefault(row["name"], []).append(row["class"])
    tested = read_split_file(folder_of(names[0], args.seeds[0], args))["train"]
    chosen = [place for place, split in enumerate(tested.splits) if split == "test"][:4]
    for place in chosen:
        truth[place] = source.motions[source.starts[place] : source.starts[place + 1]].tolist()
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    diagrams: Any = figure.subplots(len(chosen), 1)
    colours = matplotlib.colormaps["Paired"]
    for axes, place in zip(diagrams, chosen, strict=True):
        rows = [truth[place], *([MOTIONS.index(each) for each in found[name][f"{place:06d}"]] for name in names)]
        axes.imshow(rows, aspect="auto", cmap=colours, vmin=0, vmax=11, interpolation="nearest")
        axes.set_yticks(range(len(rows)), ["true", *names], fontsize="x-small")
        axes.set_xticks([])
        for line in range(1, len(rows)):
            axes.axhline(line - 0.5, color="white", linewidth=1.5 if line > 1 else 4)
    diagrams[-1].set_xlabel("frame")
    handles = [Patch(color=colours(number / 11), label=name) for number, name in enumerate(MOTIONS)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize="small")
    save_small(figure, file, dpi=90)


def print_table(results: dict[str, list[dict[str, Any]]]) -> None:
    print(f"| head | {PRETRAINED} | {RANDOM} | minutes |")
    print("| --- | --- | --- | --- |")
    for name, rows in results.items():
        cells = []
        for kind in (PRETRAINED, RANDOM):
            values = [100 * row[kind] for row in rows if kind in row]
            cells.append(f"{statistics.fmean(values):.1f} % ({min(values):.1f}-{max(values):.1f})" if values else "")
        print(f"| {name} | {' | '.join(cells)} | {statistics.fmean(row['seconds'] for row in rows) / 60:.1f} |")


def draw_bars(file: Path | None, results: dict[str, list[dict[str, Any]]], chance: float) -> None:
    """The mean accuracy of each head, with the seeds as dots; nothing without a file."""
    if not file:
        return
    figure = Figure(figsize=(6.6, 3.4), layout="constrained")
    axes: Any = figure.subplots()
    for offset, kind, colour in ((-0.2, RANDOM, "#9aa2ad"), (0.2, PRETRAINED, "#1b6ca8")):
        places = [place for place, rows in enumerate(results.values()) if kind in rows[0]]
        values = [[100 * row[kind] for row in rows] for rows in results.values() if kind in rows[0]]
        heights = [statistics.fmean(each) for each in values]
        axes.barh([place - offset for place in places], heights, 0.38, color=colour, label=kind)
        for place, each in zip(places, values, strict=True):
            axes.plot(each, [place - offset] * len(each), "k.", markersize=4)
    for name, share in (("chance", chance), ("best without the order", 0.5)):
        axes.axvline(100 * share, color="black", linewidth=1, linestyle=":")
        axes.annotate(
            name, (100 * share, -0.6), textcoords="offset points", xytext=(3, 0), fontsize="small", va="center"
        )
    axes.set_yticks(range(len(results)), list(results))
    axes.set(xlabel="test sequences recognised (%)", xlim=(0, 100), ylim=(len(results) - 0.5, -0.85))
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.94))
    save_small(figure, file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="of the pretrained backbone")
    parser.add_argument(
        "--frames", action="store_true", help="the class of each frame, in sequences of several motions"
    )
    parser.add_argument("--sequences", type=int, help="built-in ones, 1,200 (300 with --frames), four tenths tested")
    parser.add_argument("--epochs", type=int, default=30, help="of the heads on a frozen backbone")
    parser.add_argument("--finetune_epochs", type=int, default=6, help="of the fine-tuned backbone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, help="a folder for the runs, from which one goes on")
    add_outputs(parser)
    args = parser.parse_args()
    if not args.weights or not args.weights.is_file():
        raise SystemExit(f"--weights {args.weights} is not a file; give a backbone.safetensors of a run")
    if not args.json or not args.runs:
        raise SystemExit("give --json, a file for finished rows, and --runs, a folder for the runs")
    args.runs.mkdir(parents=True, exist_ok=True)
    args.sequences = args.sequences or (300 if args.frames else 1200)
    facts = {"weights": sha256(args.weights), "seeds": args.seeds, "frames": args.frames}
    facts |= {name: getattr(args, name) for name in ("sequences", "epochs", "finetune_epochs")}
    held = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {**facts, "results": {}}
    if {name: held.get(name, False) for name in facts} != facts:
        raise SystemExit(f"{args.json} is of other weights or settings; give another file")
    results = held["results"]
    for name in FRAME_HEADS if args.frames else (*HEADS, FINE_TUNED):
        rows = results.setdefault(name, [])
        for seed in args.seeds[len(rows) :]:
            rows.append((train_on_frames if args.frames else train)(name, seed, args))
            write_json(args.json, held)
    if args.frames:
        print_frames_table(results)
        draw_timelines(args.picture, args)
        return
    print_table(results)
    draw_bars(args.picture, results, 1 / 8)


if __name__ == "__main__":
    main()
