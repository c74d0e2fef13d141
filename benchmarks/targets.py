"""Heads for numbers, several labels and ordered classes beside scikit-learn on the same features of the same images.

    ssl-toolkit pretrain -c ssl_toolkit/cli/quickstart/simclr.yaml --out runs/shapes
    python benchmarks/targets.py --weights runs/shapes/backbone.safetensors --runs runs/targets --json targets.json \\
        --picture targets.png

Draws built-in images into a folder with a table (size, place, angle and kind of each object; the order is the size in
fifths), embeds them in float32, and fits scikit-learn's linear models to the features of the training images, with the
penalty that is best on the validation images. Our heads train on the frozen backbone by the shipped recipes. Both are
measured on the same test images by scikit-learn's metrics, ours by what ``predict`` writes.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from matplotlib.figure import Figure
from measuring import add_outputs, save_small, write_json
from PIL import Image
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, cohen_kappa_score, mean_absolute_error, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import ssl_toolkit
from ssl_toolkit.data import ImageData

NUMBERS = ["size", "x", "y", "angle"]
LABELS = ["animal", "vehicle", "plant", "left", "negative"]
PENALTIES = [10.0**power for power in range(-4, 5)]
SIDE = 48


def draw_images(folder: Path, num_images: int) -> Path:
    """Writes images and their table, once; returns the table."""
    table = folder / "table.csv"
    if table.exists():
        return table
    folder.mkdir(parents=True, exist_ok=True)
    data = ImageData(
        source="procedural", max_images=num_images, image_size=SIDE, targets=[*NUMBERS, *LABELS],
        val_fraction=0.0, test_fraction=0.0,
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    rows = []
    for batch in data.loader("train"):
        assert batch.targets is not None
        for index, pixels, targets in zip(batch.indices.tolist(), batch.images.pixels, batch.targets, strict=True):
            name = f"{index:05d}.png"
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / name)
            rows.append([name, *targets.tolist()])
    sizes = np.array([row[1] for row in rows])
    fifths = np.searchsorted(np.quantile(sizes, [0.2, 0.4, 0.6, 0.8]), sizes)
    splits = np.random.default_rng(0).permutation(np.resize(["train"] * 6 + ["val"] + ["test"] * 3, len(rows)))
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "label", *NUMBERS, *LABELS])
        writer.writerows(
            [name, split, fifth, *(f"{value:.6g}" for value in values)]
            for (name, *values), split, fifth in zip(rows, splits, fifths, strict=True)
        )
    return table


def read_table(table: Path) -> dict[str, np.ndarray]:
    """The columns by name, in the order of the paths; text for path and split, numbers for the others."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["path"])
    return {
        name: np.array([row[name] if name in ("path", "split") else float(row[name]) for row in rows])
        for name in rows[0]
    }


def by_name(file: Path, prefix: str, paths: np.ndarray) -> np.ndarray:
    """The columns of a prefix of what ``predict`` wrote, ``[images, columns]``, in the order of the paths."""
    table = pyarrow.parquet.read_table(file)
    columns = [name for name in table.column_names if name.startswith(prefix)]
    values = np.stack([table[name].to_numpy() for name in columns], axis=1)
    places = {name: place for place, name in enumerate(table["name"].to_pylist())}
    return values[[places[path] for path in paths]]


def best_on_val(
    make: Any, fitted: Any, error: Any, features: dict[str, np.ndarray], truth: dict[str, np.ndarray]
) -> Any:
    """The predictions for the test images of the penalty whose validation error is the lowest."""
    models = [
        make_pipeline(StandardScaler(), make(penalty)).fit(features["train"], truth["train"]) for penalty in PENALTIES
    ]
    best = min(models, key=lambda model: error(truth["val"], fitted(model, features["val"])))
    return fitted(best, features["test"])


def ours(recipe: str, table: Path, weights: Path, run: Path, seed: int, **settings: Any) -> Path:
    """Trains a head by a shipped recipe and predicts all images; returns the predictions."""
    out = run / "predictions.parquet"
    if out.exists():
        return out
    data = {"path": str(table.parent), "table": str(table), "image_size": SIDE, "cache": "memory", **settings}
    overrides = {"trainer.accelerator": "cpu", "tracker": "none", "random_weights": False, "seed": seed}
    # the same figures in a fraction of the time
    overrides |= {"model.cache_features": True, "model.feature_store": str(run.parent / "features")}
    if (run / "config.yaml").exists():
        trained = ssl_toolkit.transfer(resume=run)
    else:
        trained = ssl_toolkit.transfer(recipe, weights=weights, data=data, out=run, overrides=overrides)
    return ssl_toolkit.predict(trained, data=table.parent, out=out, overrides={"precision": "32", "device": "cpu"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="a backbone.safetensors")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the images and the runs")
    parser.add_argument("--num_images", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of our heads")
    add_outputs(parser)
    args = parser.parse_args()
    if not args.weights.is_file():
        raise SystemExit(f"there is no {args.weights}; the first command of --help makes one")
    table = draw_images(args.runs / "images", args.num_images)
    columns = read_table(table)
    parts = {split: columns["split"] == split for split in ("train", "val", "test")}
    embedded = args.runs / "features.npz"
    if not embedded.exists():
        data = {"path": str(table.parent), "image_size": SIDE}
        ssl_toolkit.embed(args.weights, data=data, out=embedded, overrides={"precision": "32", "device": "cpu"})
    with np.load(embedded) as stored:
        names = stored["name"].tolist()
        all_features = stored["features"][[names.index(path) for path in columns["path"]]].astype(np.float64)
    features = {split: all_features[of_split] for split, of_split in parts.items()}
    figures: dict[str, Any] = {}

    def add(name: str, theirs: float, of_ours: list[float]) -> None:
        figures[name] = {"scikit-learn": round(theirs, 4), "ssl-toolkit": [round(value, 4) for value in of_ours]}
        print(f"{name:28} scikit-learn {theirs:.3f}   ssl-toolkit {', '.join(f'{value:.3f}' for value in of_ours)}")

    def predicted(recipe: str, kind: str, prefix: str, **settings: Any) -> list[np.ndarray]:
        runs = [
            ours(recipe, table, args.weights, args.runs / f"{kind}-{seed}", seed, **settings) for seed in args.seeds
        ]
        return [by_name(file, prefix, columns["path"][parts["test"]]) for file in runs]

    found = predicted("regression", "numbers", "predicted_", targets=NUMBERS)
    for place, name in enumerate(NUMBERS):
        truth = {split: columns[name][of_split] for split, of_split in parts.items()}
        theirs = best_on_val(Ridge, lambda model, x: model.predict(x), mean_squared, features, truth)
        add(f"{name}, R2", r2_score(truth["test"], theirs), [r2_score(truth["test"], each[:, place]) for each in found])
    found = predicted("multi_label", "labels", "predicted_", targets=LABELS)
    for place, name in enumerate(LABELS):
        truth = {split: columns[name][of_split] for split, of_split in parts.items()}
        theirs = best_on_val(
            lambda penalty: LogisticRegression(C=1 / penalty, max_iter=5000),
            lambda model, x: model.predict_proba(x)[:, 1], log_loss, features, truth,
        )  # fmt: skip
        score = average_precision_score
        add(
            f"{name}, average precision",
            score(truth["test"], theirs),
            [score(truth["test"], each[:, place]) for each in found],
        )
    found = predicted("ordinal", "order", "p_")
    truth = {split: columns["label"][of_split].astype(int) for split, of_split in parts.items()}
    theirs = best_on_val(
        lambda penalty: LogisticRegression(C=1 / penalty, max_iter=5000),
        lambda model, x: model.predict_proba(x), lambda true, p: -np.log(p[np.arange(len(true)), true]).mean(),
        features, truth,
    ).argmax(axis=1)  # fmt: skip
    classes = [each.argmax(axis=1) for each in found]
    for name, score in {
        "fifths of size, classes off": mean_absolute_error,
        "fifths of size, kappa": lambda true, guess: cohen_kappa_score(true, guess, weights="quadratic"),
    }.items():
        add(name, score(truth["test"], theirs), [score(truth["test"], each) for each in classes])
    counts = {split: int(of_split.sum()) for split, of_split in parts.items()}
    write_json(args.json, {"images": counts, "seeds": args.seeds, "figures": figures})
    draw_points(args.picture, figures)


def draw_points(file: Path | None, figures: dict[str, dict[str, Any]]) -> None:
    """A line for each figure: a circle for scikit-learn, a point for each of our seeds; nothing without a file."""
    if not file:
        return
    figure = Figure(figsize=(7, 0.35 * len(figures) + 1.2), layout="constrained")
    axes = figure.subplots()
    for place, found in enumerate(figures.values()):
        axes.plot(found["scikit-learn"], place, "o", color="#b0b7c3", markersize=11, label="scikit-learn")
        values = found["ssl-toolkit"]
        axes.plot(values, [place] * len(values), ".", color="#4c72b0", label="ssl-toolkit, each seed")
        if not place:
            axes.legend(loc="upper left")
    axes.set_yticks(range(len(figures)), list(figures))
    axes.invert_yaxis()
    axes.set(xlim=(0, None), title="on the same frozen features, test images")
    axes.grid(axis="x", alpha=0.3)
    save_small(figure, file)


def mean_squared(true: np.ndarray, guess: np.ndarray) -> float:
    return float(np.square(true - guess).mean())


def log_loss(true: np.ndarray, probability: np.ndarray) -> float:
    of_truth = np.where(true > 0.5, probability, 1 - probability)
    return float(-np.log(of_truth.clip(1e-12)).mean())


if __name__ == "__main__":
    main()
