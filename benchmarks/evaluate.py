"""Seconds for kNN beside lightly's, and for a converged linear probe beside scikit-learn's, on the same features.

    python benchmarks/evaluate.py --images cifar10/train --test cifar10/test --weights backbone.safetensors \
        --json evaluate.json

The features are those of a pretrained backbone (``backbone.safetensors`` of a run, such as
`configs/pretrain/simclr_cifar10.yaml`); without images they are made up, which shows less.
Each measurement is a separate process; they alternate, and one that other programs disturbed is repeated. Both linear
probes minimise the same objective (see `ssl_toolkit.evaluation.linear_probe`) to the same tolerance of the gradient;
what they reach is computed in float64.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import HERE, Window, add_outputs, draw_bars, lightly_python, median_and_range, undisturbed, write_json

K = 200
PAIRS = [("ssl-toolkit kNN", "lightly kNN"), ("ssl-toolkit probe", "scikit-learn probe")]


def make_features(folder: Path, num_train: int, num_test: int, width: int) -> None:
    """Writes train.npy and test.npy with their labels."""
    import numpy as np

    generator = np.random.default_rng(0)
    lengths = np.logspace(0, -2.5, width)
    turn = np.linalg.qr(generator.standard_normal((width, width)))[0]
    means = generator.standard_normal((10, width)) * 0.35
    for name, num in (("train", num_train), ("test", num_test)):
        labels = generator.integers(0, 10, num)
        features = (means[labels] + generator.standard_normal((num, width))) * lengths
        np.save(folder / f"{name}.npy", np.maximum(features @ turn + 0.1, 0).astype(np.float32))
        np.save(folder / f"{name}_labels.npy", labels)


def extract(folder: Path, images: str, test: str, weights: str) -> None:
    """Writes the pooled features of real images likewise."""
    import numpy as np

    from ssl_toolkit.augment import CenterView
    from ssl_toolkit.data import ImageData
    from ssl_toolkit.evaluation.features import extract_features
    from ssl_toolkit.weights import load_backbone, read_header

    backbone = load_backbone(weights)
    size = read_header(weights)["config"]["data"]["image_size"]
    data = ImageData(images, test_path=test, labels="folder", image_size=size, val_fraction=0.0)
    for split in ("train", "test"):
        found = extract_features(backbone, data.loader(split), CenterView(size))
        np.save(folder / f"{split}.npy", found.features["pooled"].numpy())
        np.save(folder / f"{split}_labels.npy", found.labels.numpy())


def load(folder: Path) -> list[Any]:
    """Train features and labels, test features and labels, as tensors."""
    import numpy as np
    import torch

    names = ("train", "train_labels", "test", "test_labels")
    return [torch.from_numpy(np.load(folder / f"{name}.npy")) for name in names]


def our_knn(folder: Path, strength: float) -> dict[str, float]:
    from ssl_toolkit.evaluation import knn_accuracy

    arrays = load(folder)
    start = time.perf_counter()
    top1 = knn_accuracy(*arrays, k=[K], temperature=0.1)[K]
    return {"seconds": time.perf_counter() - start, "top1": top1}


def our_probe(folder: Path, strength: float) -> dict[str, float]:
    from ssl_toolkit.evaluation import linear_probe

    train, train_labels, test, test_labels = load(folder)
    tested = (test, test_labels)
    start = time.perf_counter()
    probe = linear_probe((train, train_labels), tested, tested, strengths=[strength])
    seconds = time.perf_counter() - start
    # back to standardised features, on which the penalty is defined
    std = train.double().std(dim=0, correction=0)
    weight = probe.weight.double() * std
    bias = probe.bias.double() + probe.weight.double() @ train.double().mean(dim=0)
    return {"seconds": seconds, "top1": probe.top1, "objective": objective(train, train_labels, weight, bias, strength)}


def sklearn_probe(folder: Path, strength: float) -> dict[str, float]:
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    train, train_labels, test, test_labels = load(folder)
    start = time.perf_counter()
    scaler = StandardScaler()
    x = scaler.fit_transform(train.numpy())
    model = LogisticRegression(C=1 / (strength * len(x)), max_iter=10_000, tol=1e-5).fit(x, train_labels.numpy())
    top1 = float(model.score(scaler.transform(test.numpy()), test_labels.numpy()))
    seconds = time.perf_counter() - start
    weight, bias = torch.from_numpy(model.coef_).double(), torch.from_numpy(model.intercept_).double()
    return {"seconds": seconds, "top1": top1, "objective": objective(train, train_labels, weight, bias, strength)}


def objective(train: Any, labels: Any, weight: Any, bias: Any, strength: float) -> float:
    """Mean cross entropy on standardised features plus penalty, in float64."""
    import torch.nn.functional as F

    x = train.double()
    x = (x - x.mean(dim=0)) / x.std(dim=0, correction=0)
    return float(F.cross_entropy(x @ weight.T + bias, labels) + strength / 2 * weight.square().sum())


WORKERS = {"ssl-toolkit kNN": our_knn, "ssl-toolkit probe": our_probe, "scikit-learn probe": sklearn_probe}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", help="a folder of labelled images for the bank and to fit the probe")
    parser.add_argument("--test", help="likewise, of those that are classified")
    parser.add_argument("--weights", help="a backbone.safetensors")
    parser.add_argument("--num_train", type=int, default=50_000, help="made-up features instead of --images: how many")
    parser.add_argument("--num_test", type=int, default=10_000, help="likewise, of those that are classified")
    parser.add_argument("--width", type=int, default=512, help="of the made-up features")
    parser.add_argument("--strength", type=float, default=1e-5, help="of the probe's penalty")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured, in turns")
    parser.add_argument("--tries", type=int, default=3, help="at most, where other programs disturb")
    add_outputs(parser)
    parser.add_argument("--worker", choices=sorted(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        from ssl_toolkit.perf.malloc import keep_freed_memory

        keep_freed_memory()  # as the command line does
        print(json.dumps(WORKERS[args.worker](args.folder, args.strength)))
        return
    for name in ("images", "test"):
        given = getattr(args, name)
        if (given or args.images or args.test) and not (given and Path(given).is_dir()):
            raise SystemExit(f"--{name} {given} is not a folder; give both, for instance CIFAR-10's train and test")
    if args.images and not args.weights:
        raise SystemExit("--weights is missing: the backbone.safetensors of a run, for the features of these images")
    with tempfile.TemporaryDirectory() as folder:
        if args.images:
            extract(Path(folder), args.images, args.test, args.weights)
        else:
            make_features(Path(folder), args.num_train, args.num_test, args.width)
        commands = {}
        for name in WORKERS:
            worker = ["--worker", name, "--folder", folder, "--strength", str(args.strength)]
            commands[name] = [sys.executable, str(Path(__file__).resolve()), *worker]
        if python := lightly_python():
            script = str(HERE / "peers" / "lightly_knn.py")
            commands["lightly kNN"] = [str(python), script, "--folder", folder, "--k", str(K)]
        rounds = [
            {name: undisturbed(command, args.tries) for name, command in commands.items()} for _ in range(args.rounds)
        ]
    report(args, rounds)


def report(args: argparse.Namespace, rounds: list[dict[str, Window]]) -> None:
    """Prints the table and writes the file."""
    from rich.console import Console
    from rich.table import Table

    features = f"of {args.weights}" if args.images else f"made up, {args.num_train:,} x {args.width}"
    table = Table("", "seconds", "top-1", "objective", "this / ours", title=f"evaluation of features {features}")
    rows = {}
    for ours, peer in PAIRS:
        for name in (ours, peer):
            if name not in rounds[0]:
                continue
            figures = [each[name].figures for each in rounds]
            ratios = [each[name].figures["seconds"] / each[ours].figures["seconds"] for each in rounds]
            rows[name] = {"figures": figures, "ratios": ratios, "others": [each[name].others for each in rounds]}
            found = figures[0].get("objective")
            table.add_row(
                name,
                f"{statistics.median(each['seconds'] for each in figures):.2f}",
                f"{100 * figures[0]['top1']:.2f} %",
                "" if found is None else f"{found:.8f}",
                median_and_range(ratios, 1) if name == peer else "",
            )
    Console().print(table)
    write_json(args.json, {"features": features, "strength": args.strength, "rows": rows})
    seconds = {name: [each["seconds"] for each in row["figures"]] for name, row in rows.items()}
    draw_bars(args.picture, {"kNN and linear probe": seconds}, "seconds")


if __name__ == "__main__":
    main()
