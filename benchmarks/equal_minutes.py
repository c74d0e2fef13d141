"""Pretext tasks, networks or batches compared at equal minutes of training, by kNN and a linear probe.

    python benchmarks/equal_minutes.py --rows benchmarks/rows/network_and_batch.yaml --images cifar10/train \
        --test cifar10/test --runs runs/equal_minutes --json network_and_batch.json

A row of the file is a recipe with options of `ssl-toolkit pretrain` (with `command: transfer` of that). First each
row's rate is measured, beside that of the first row: the processes take turns, a few seconds each, so that a neighbour
on the machine meets all of them. The ratio to the first row, taken within a round (median), times the first row's rate
in its quickest turn, is the row's rate, and turns the minutes into steps. Then each row trains for so many steps. So it
does not matter what else the machine does in that time, and a row that is killed goes on where it was when the command
is given again. Finished rows are kept in the JSON file and not repeated.

Where the file says `choose: {option: --model.optimizer.lr, values: [0.005, 0.01], minutes: 2}`, each row is first
trained so long with each value, and then takes the one with the higher kNN of the validation images.

All backbones are judged in the same way: pooled features of the centre view, the labelled training images as the bank,
k = 20 and 200, cosine; a linear probe whose penalty the validation images choose; the test images are seen once.
Without labels: RankMe of the test images, and LiDAR, alignment and uniformity of ten of SimCLR's views of 1,000
validation images. The random row is the first row's network, with BatchNorm statistics of the training images.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from measuring import HERE, MOST_OTHERS, add_outputs, draw_bars, in_turns, write_json

MOST_DRIFT = 1.2  # of the first row's rate between its turns, before it is said
AT_ONCE = 5  # processes that are measured beside the first row's
LIDAR_IMAGES, LIDAR_VIEWS = 1000, 10
RANDOM = "random weights"


def read_rows(file: Path) -> dict[str, dict[str, Any]]:
    """The rows by name; each has a recipe, options and minutes, and may have a choice."""
    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    common = {"command": "pretrain", "seed": 0, **{key: written.get(key) for key in ("recipe", "minutes")}}
    rows = {}
    for name, given in written["rows"].items():
        row = {**common, **(given or {})}
        if not row["recipe"] or not row["minutes"]:
            raise SystemExit(f"{file}: the row {name!r} needs a recipe and minutes, by itself or for all")
        row["options"] = [*written.get("options", []), *(given or {}).get("options", [])]
        choice = (given or {}).get("choose", written.get("choose"))
        if choice and row["command"] == "pretrain":
            row["choose"] = choice
        rows[name] = row
    return rows


def command(row: dict[str, Any], args: argparse.Namespace, run: Path) -> list[str]:
    """The training of a row, for as many steps as are added."""
    own = {
        "pretrain": ["--evaluation.every_n_epochs", "0"],
        "transfer": ["--data.test_path", args.test, "--random_weights", "false"],
    }
    return [
        sys.executable, "-m", "ssl_toolkit", row["command"], "-c", str(HERE.parent / row["recipe"]), "--out", str(run),
        "--data.path", args.images, "--data.cache", "disk", "--trainer.accelerator", "cpu", "--trainer.devices", "1",
        "--tracker", "none", "--trainer.max_epochs", "-1", "--seed", str(row["seed"]), *own[row["command"]],
        *row["options"],
    ]  # fmt: skip


def measure_rates(rows: dict[str, dict[str, Any]], args: argparse.Namespace, done: dict[str, Any]) -> None:
    """Adds to ``done`` the steps a second and the peak memory of each row that has none."""
    from ssl_toolkit.run_folder import processor

    first = next(iter(rows))
    missing = [name for name in rows if name not in done and name != first]
    if first not in done:
        missing = missing or [first]
    environment = {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    endless = ["--trainer.max_steps", "1000000", "--trainer.callbacks", '[{"class_path": "each_step.EachStep"}]']
    for start in range(0, len(missing), AT_ONCE):
        group = dict.fromkeys([first, *missing[start : start + AT_ONCE]])
        with tempfile.TemporaryDirectory() as folder:
            commands = {
                name: [*command(rows[name], args, Path(folder) / str(number)), *endless]
                for number, name in enumerate(group)
            }
            turns = in_turns(commands, args.seconds, args.rounds, args.tries, environment)
        beside = [turn.steps_per_second for turn in turns[first]]
        circumstances = {"processor": processor(), "date": time.strftime("%Y-%m-%d")}
        if first not in done:
            done[first] = {"steps_per_second": max(beside)}
        elif done[first]["processor"] != processor():
            raise SystemExit(
                f"the rates so far are of another processor ({done[first]['processor']}): measure all again"
            )
        for name in group:
            ratios = [turn.steps_per_second / other for turn, other in zip(turns[name], beside, strict=True)]
            if name != first:
                done[name] = {"steps_per_second": statistics.median(ratios) * done[first]["steps_per_second"]}
            if name != first or "turns" not in done[first]:
                memory = max(turn.peak_memory for turn in turns[name])
                done[name] |= {"settings": rows[name], "ratios": ratios, "turns": turns[name], "peak_memory": memory}
                done[name] |= circumstances
        others = max(turn.others for each in turns.values() for turn in each)
        if others > MOST_OTHERS or max(beside) > MOST_DRIFT * min(beside):
            print(
                f"not quiet: other programs took up to {others:.2f} cores, and {first} made {min(beside):.3g} to "
                f"{max(beside):.3g} steps a second; the minutes of these rows are rough",
                file=sys.stderr,
            )


def train(name: str, row: dict[str, Any], steps: int, args: argparse.Namespace) -> Path:
    """The run of a row, begun or gone on with."""
    run = args.runs / "".join(letter if letter.isalnum() else "_" for letter in name)
    if not (run / "backbone.safetensors").exists():
        made = [*command(row, args, run), "--trainer.max_steps", str(steps)]
        if (run / "config.yaml").exists():
            made += ["--resume", str(run)]
        with (args.runs / f"{run.name}.log").open("a") as log:
            status = subprocess.run(made, stdout=log, stderr=log, check=False, cwd=HERE.parent).returncode
        if status:
            raise SystemExit(f"{name}: ended with status {status}; see {log.name}")
    return run


def chosen(
    name: str, row: dict[str, Any], rate: float, args: argparse.Namespace, results: dict[str, Any]
) -> dict[str, Any]:
    """The row with the best value of its choice, each of which is tried if it was not before."""
    if "choose" not in row:
        return row
    choice, trials = row["choose"], results.setdefault("trials", {}).setdefault(name, {})
    for value in choice["values"]:
        if str(value) not in trials:
            tried = {**row, "options": [*row["options"], f"{choice['option']}={value}"]}
            run = train(f"{name} {value}", tried, max(1, round(60 * choice["minutes"] * rate)), args)
            trials[str(value)] = knn_of_validation(run, args)
            print(f"{name}, {choice['option']} {value}: {100 * trials[str(value)]:.1f} % (validation)", file=sys.stderr)
            shutil.rmtree(run, ignore_errors=True)
            write_json(args.json, results)
    best = max(choice["values"], key=lambda value: trials[str(value)])
    return {**row, "options": [*row["options"], f"{choice['option']}={best}"]}


def images_of(run: Path, args: argparse.Namespace) -> Any:
    """The labelled images, with the validation images of a run."""
    from ssl_toolkit.data import ImageData

    data = ImageData(
        args.images,
        test_path=args.test,
        labels="folder",
        image_size=args.image_size,
        splits=str(run),
        batch_size=256,
        cache="disk",
    )
    data.prepare_data()
    data.setup()
    return data


def knn_of_validation(run: Path, args: argparse.Namespace) -> float:
    """kNN (k = 20) of a run's backbone on the validation images, 0 to 1."""
    from ssl_toolkit.augment import CenterView
    from ssl_toolkit.evaluation import extract_features, knn_accuracy
    from ssl_toolkit.weights import load_backbone

    data, backbone = images_of(run, args), load_backbone(run / "backbone.safetensors")
    parts = [extract_features(backbone, data.loader(split), CenterView(args.image_size)) for split in ("train", "val")]
    (bank, labels), (queries, wanted) = [(part.features["pooled"], part.labels) for part in parts]
    return knn_accuracy(bank, labels, queries, wanted, k=(20,))[20]


def judge(run: Path, is_random: bool, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of a run's backbone, or of its network with random weights."""
    import torch

    from ssl_toolkit.augment import CenterView, RandomView
    from ssl_toolkit.evaluation import (
        alignment,
        calibrate_batch_norm,
        extract_features,
        knn_accuracy,
        lidar,
        linear_probe,
        random_backbone,
        rank_me,
        uniformity,
    )
    from ssl_toolkit.evaluation.features import evaluation_mode
    from ssl_toolkit.random import sample_keys
    from ssl_toolkit.weights import load_backbone

    view, size = CenterView(args.image_size), args.image_size
    data = images_of(run, args)
    backbone = load_backbone(run / "backbone.safetensors")
    if is_random:
        backbone = random_backbone(backbone, 0)
        calibrate_batch_norm(backbone, data.loader("train", shuffle=True), view)
    parts = [extract_features(backbone, data.loader(split), view) for split in ("train", "val", "test")]
    labelled = [(part.features["pooled"], part.labels) for part in parts]
    (train, train_labels), val, test = labelled
    probe = linear_probe(*labelled)
    strong = RandomView(size=size, preset="simclr_cifar")
    views = []
    with evaluation_mode(backbone), torch.inference_mode():
        for batch in data.loader("val"):
            keys = torch.stack([sample_keys(0, number, batch.indices) for number in range(LIDAR_VIEWS)])
            views.append(torch.stack([backbone(each).float() for each in strong(batch.images, keys)]))
            if sum(each.shape[1] for each in views) >= LIDAR_IMAGES:
                break
    several = torch.cat(views, dim=1)[:, :LIDAR_IMAGES]
    return {
        "knn_val": knn_accuracy(train, train_labels, *val, k=(20, 200)),
        "knn_test": knn_accuracy(train, train_labels, *test, k=(20, 200)),
        "linear_val": probe.val_top1,
        "linear_test": float(probe.correct.double().mean()),
        "rank_me": rank_me(test[0]),
        "lidar": lidar(several),
        "alignment": alignment(several),
        "uniformity": uniformity(several[0]),
    }


def pretext_figures(run: Path) -> dict[str, float]:
    """The last loss and accuracies that the run wrote of its own task."""
    from ssl_toolkit.tracking.metrics_csv import read_metrics

    found = {}
    for name, values in read_metrics(run).items():
        numbers = [value for value in values if value == value]
        if numbers and (name.endswith(("_top1", "/top1")) or name == "train/loss"):
            found[name] = numbers[-1]
    return found


def print_table(results: dict[str, Any]) -> None:
    print("| row | minutes | steps | images/s | kNN 20 | kNN 200 | linear probe | kNN 20, val | RankMe | LiDAR | GiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, row in results["rows"].items():
        percents = [row["knn_test"]["20"], row["knn_test"]["200"], row["linear_test"], row["knn_val"]["20"]]
        cells = [f"{row['minutes']:g}", f"{row['steps']:,}", f"{row['images_per_second']:.0f}"]
        cells += [f"{100 * value:.1f} %" for value in percents]
        cells += [f"{row['rank_me']:.0f}", f"{row['lidar']:.0f}", f"{row['peak_memory'] / 2**30:.1f}"]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = HERE / "rows" / "network_and_batch.yaml"
    parser.add_argument("--rows", type=Path, default=default, help="the file of rows")
    parser.add_argument("--images", help="a folder of training images, a sub-folder for each class")
    parser.add_argument("--test", help="likewise, of test images")
    parser.add_argument("--image_size", type=int, default=32, help="side in pixels of what is judged")
    parser.add_argument("--runs", type=Path, help="a folder for the runs, from which a row goes on")
    parser.add_argument("--only", nargs="+", help="these rows alone")
    parser.add_argument("--only_rates", action="store_true", help="measure the rates and stop")
    parser.add_argument("--seconds", type=float, default=10, help="of a turn in which a rate is measured")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each row")
    parser.add_argument("--tries", type=int, default=2, help="how often a turn that others disturb is made at most")
    add_outputs(parser)
    args = parser.parse_args()
    for name in ("images", "test"):
        if not Path(getattr(args, name) or "").is_dir() or not getattr(args, name):
            raise SystemExit(f"--{name} {getattr(args, name)} is not a folder; give one of images by class")
    if not args.json or not args.runs:
        raise SystemExit("give --json, a file for finished rows, and --runs, a folder for the runs")
    rows = read_rows(args.rows)
    if unknown := set(args.only or ()) - set(rows):
        raise SystemExit(f"--only {', '.join(sorted(unknown))}: expected some of {', '.join(rows)}")
    args.runs.mkdir(parents=True, exist_ok=True)
    results = json.loads(args.json.read_text()) if args.json.exists() else {"rates": {}, "rows": {}}
    for kind in ("rates", "rows"):
        for name in set(rows) & set(results[kind]):
            if results[kind][name]["settings"] != rows[name]:
                raise SystemExit(f"{name}: {args.json} has it with other settings; give it another name, or a new file")
    if set(rows) - set(results["rates"]):
        measure_rates(rows, args, results["rates"])
        write_json(args.json, results)
    for name in [] if args.only_rates else rows:
        if name in results["rows"] or (args.only and name not in args.only):
            continue
        rate = results["rates"][name]
        steps = max(1, round(60 * rows[name]["minutes"] * rate["steps_per_second"]))
        row = chosen(name, rows[name], rate["steps_per_second"], args, results)
        run = train(name, row, steps, args)
        batch = yaml.safe_load((run / "config.yaml").read_text())["data"]["batch_size"]
        results["rows"][name] = {
            "minutes": rows[name]["minutes"], "steps": steps, "batch": batch, "seed": rows[name]["seed"],
            "images_per_second": batch * rate["steps_per_second"], "peak_memory": rate["peak_memory"],
            "settings": rows[name], **judge(run, False, args), **pretext_figures(run),
        }  # fmt: skip
        if "choose" in rows[name]:
            results["rows"][name]["chosen"] = row["options"][-1]
        if RANDOM not in results["rows"]:
            random = {"minutes": 0, "steps": 0, "batch": batch, "seed": 0, "images_per_second": 0, "peak_memory": 0}
            results["rows"][RANDOM] = {**random, **judge(run, True, args)}
        write_json(args.json, results)
        results = json.loads(args.json.read_text())
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
    print_table(results)
    accuracies = {name: [100 * row["knn_test"]["20"]] for name, row in results["rows"].items()}
    draw_bars(args.picture, {"kNN (k = 20)": accuracies}, "% of the test images")


if __name__ == "__main__":
    main()
