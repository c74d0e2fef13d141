"""The quickstart's page: the table, the curves, what the tasks saw, and nearest neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ssl_toolkit.cli.quickstart.comparison import Result
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation import Features
from ssl_toolkit.report import Figure, Section, Table, Text, write_page
from ssl_toolkit.report.figures import bars, curves, neighbours
from ssl_toolkit.run_folder import processor
from ssl_toolkit.tracking.metrics_csv import read_metrics

NUM_QUERIES = 5
NUM_NEIGHBOURS = 8
CURVES = {
    "train/loss": ("loss", {}),
    "train/pair_top1": ("the right partner is the nearest (%)", {}),
    "train/position_top1": ("position guessed right (%)", {"chance": 1 / 8}),
    "val/knn_top1": ("kNN top-1 on validation images (%)", {"chance": 1 / 10}),
}


def write_comparison(
    out: Path,
    results: Sequence[Result],
    data: ImageData,
    features: Mapping[str, Features],
    runs: Sequence[str],
    labels_per_class: int,
    minutes: float,
) -> Path:
    """Writes ``report.html`` into the quickstart's folder.

    Args:
        out: The folder.
        results: The rows of the table.
        data: The images.
        features: Features of the test images, by name of the weights.
        runs: Names of the pretraining runs in the folder.
        labels_per_class: Labelled images of each class in a draw.
        minutes: Time of everything.

    Returns:
        The page.
    """
    headers = ["weights", "transfer", "top-1 (mean ± spread)", "minutes", "images/s"]
    num_test, num_draws = data.num_images("test"), len(results[0].draws)
    means = [float(np.mean(result.draws)) for result in results]
    spreads = [float(np.std(result.draws, ddof=1)) for result in results]
    labels = [result.weights for result in results]
    caption = (
        f"Top-1 of {num_test:,} held-out images of {data.num_classes} classes, from {labels_per_class} labelled images "
        f"a class: mean and standard deviation of {num_draws} random labelled sets, one pretraining each. The random "
        "weights have BatchNorm statistics of the images. Chance is "
        f"{100 / data.num_classes:.0f} %."
    )
    chart = bars(
        labels, means, errors=spreads, draws=[r.draws for r in results], references={"chance": 1 / data.num_classes}
    )
    sections = [
        Section("Was it worth it?", [Table(headers, [r.cells() for r in results], caption), Figure([chart])]),
        Section("How the pretraining went", [Figure(_curves(out, run), run.replace("_", " ")) for run in runs]),
        Section("What the tasks saw", [_views(out, run) for run in runs]),
        Section(
            "Nearest neighbours of held-out images",
            [
                Text("In each row an image and those whose features are the most alike, the nearest first."),
                *(_neighbours(data, features[name], name) for name in features),
            ],
        ),
    ]
    subtitle = f"{minutes:.1f} minutes on {processor()}, {torch.get_num_threads()} threads"
    return write_page(out / "report.html", "ssl-toolkit quickstart", sections, subtitle)


def _curves(out: Path, run: str) -> list:
    metrics = read_metrics(out / run)
    return [
        curves({run: (metrics["step"], metrics[key])}, title, references=references, percent="%" in title)
        for key, (title, references) in CURVES.items()
        if key in metrics
    ]


def _views(out: Path, run: str) -> Figure:
    captions = {
        "simclr": "SimCLR: the two views of each image",
        "patch_position": "Patch position: the nine patches of each image, in reading order",
    }
    return Figure([(out / run / "views.png").read_bytes()], captions[run])


def _neighbours(data: ImageData, features: Features, name: str) -> Figure:
    embedded = F.normalize(features.features["pooled"], dim=1)
    # the first image of each class is a query
    queries = torch.stack([(features.labels == label).nonzero()[0, 0] for label in range(data.num_classes)])[
        :NUM_QUERIES
    ]
    similarity = embedded[queries] @ embedded.T
    similarity.scatter_(1, queries[:, None], -2.0)
    nearest = similarity.topk(min(NUM_NEIGHBOURS, len(embedded) - 1), dim=1).indices
    same = features.labels[nearest] == features.labels[queries][:, None]
    wanted = torch.cat([queries[:, None], nearest], dim=1)
    pixels = _pixels(data, features.indices[wanted.flatten()])
    pictures = pixels.reshape(*wanted.shape, *pixels.shape[1:])
    titles = [data.class_names[int(label)] for label in features.labels[queries]]
    drawn = neighbours(pictures[:, 0], pictures[:, 1:], same.numpy(), row_titles=titles)
    percent = 100 * float(same.float().mean())
    return Figure([drawn], f"{name.replace('_', ' ')}: {percent:.0f} % of these neighbours are of the query's class")


def _pixels(data: ImageData, indices: torch.Tensor) -> np.ndarray:
    """uint8 array of shape ``[num, height, width, channels]`` of test images by their place in the source."""
    places = {int(index): pixels for batch in data.loader("test", indices=indices.unique().numpy())
              for index, pixels in zip(batch.indices, batch.images.pixels, strict=True)}  # fmt: skip
    return np.stack([places[int(index)].permute(1, 2, 0).numpy() for index in indices])
