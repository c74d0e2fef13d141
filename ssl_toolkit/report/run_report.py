"""Report of one run, from the files in its folder."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_toolkit.errors import counted
from ssl_toolkit.io.schema import COUNT, NUMBER, TEXT, Each, Kind, Maybe
from ssl_toolkit.report.page import Code, Figure, Piece, Section, Table, Text, write_page
from ssl_toolkit.report.shortcuts import SCHEMA, shortcut_pieces
from ssl_toolkit.run_folder import (
    CONFIG,
    MODEL,
    WATCHED,
    WEIGHTS,
    predict_command,
    read_config,
    read_json,
    read_starts,
    sync_command,
)
from ssl_toolkit.tracking.metrics_csv import read_metrics
from ssl_toolkit.tracking.rates import rate_text

FILE = "report.html"
MAX_BAD_FILES = 100
# how a metric is called on the page, whether it is a fraction to be shown in %, by the last part of its name
TITLES = {
    "loss": ("loss", False),
    "knn_top1": ("kNN top-1 (%)", True),
    "linear_probe_top1": ("linear probe top-1 (%)", True),
    "top1": ("top-1 (%)", True),
    "mean_class_top1": ("mean-class top-1 (%)", True),
    "largest_class_top1": ("top-1 of always naming the largest class (%)", True),
    "random_weights_top1": ("top-1 of the same head on random weights (%)", True),
    "random_weights_mean_class_top1": ("mean-class top-1 of the same head on random weights (%)", True),
    "top5": ("top-5 (%)", True),
    "accuracy": ("accuracy (%)", True),
    "map": ("mean average precision (%)", True),
    "f1": ("F1 score, mean of the labels (%)", True),
    "prevalence": ("mean average precision of guessing (%)", True),
    "random_weights_map": ("mean average precision of the same head on random weights (%)", True),
    "r2": ("R2: explained fraction of the variance", False),
    "mae": ("mean absolute error", False),
    "rmse": ("root mean squared error", False),
    "random_weights_r2": ("R2 of the same head on random weights", False),
    "random_weights_mae": ("mean absolute error of the same head on random weights", False),
    "class_error": ("classes off, in the mean", False),
    "quadratic_kappa": ("Cohen's kappa with quadratic weights", False),
    "random_weights_quadratic_kappa": ("Cohen's kappa of the same head on random weights", False),
    "top1_low": ("top-1, lower end of its 95 % interval over sequences (%)", True),
    "top1_high": ("top-1, upper end of its 95 % interval over sequences (%)", True),
    "f1_10": ("F1 of segments with an overlap of 10 % (%)", True),
    "f1_25": ("F1 of segments with an overlap of 25 % (%)", True),
    "f1_50": ("F1 of segments with an overlap of 50 % (%)", True),
    "edit": ("edit score of segments (%)", True),
    "random_weights_top1_low": ("lower end of the top-1 of the same head on random weights (%)", True),
    "random_weights_top1_high": ("upper end of the top-1 of the same head on random weights (%)", True),
    "random_weights_f1_50": ("F1 of segments (50 %) of the same head on random weights (%)", True),
    "random_weights_edit": ("edit score of the same head on random weights (%)", True),
    "ece": ("expected calibration error (%)", True),
    "ece_calibrated": ("expected calibration error with the temperature (%)", True),
    "temperature": ("temperature, by the validation images", False),
    "lr": ("learning rate", False),
    "images_per_second": ("images per second", False),
    "data_wait": ("time waiting for data (%)", True),
    "rank_me": ("RankMe: effective rank of the features", False),
    "spread": ("spread of the features", False),
    "feature_rank": ("RankMe of the features of a training batch", False),
    "feature_spread": ("spread of the features of a training batch", False),
    "embedding_rank": ("RankMe of the embeddings of a training batch", False),
    "embedding_spread": ("spread of the embeddings of a training batch", False),
}


_WATCHED = [{"what": TEXT, "advice": TEXT}]
_INTERVAL = {"value": NUMBER, "low": NUMBER, "high": NUMBER}
_CHOICE = Kind("a number or nothing", lambda value: value is None or NUMBER.fits(value))
_ROW = {"representation": TEXT, "weights": TEXT, "num_features": COUNT, "knn": _INTERVAL, "knn_k": _CHOICE,
        "linear": _INTERVAL}  # fmt: skip
_EVALUATION = {"rows": [_ROW], "num_images": Each(COUNT), "num_classes": COUNT, "verdict": TEXT,
               "words": Maybe([TEXT]), "shortcuts": Maybe(SCHEMA)}  # fmt: skip


def write_report(run_dir: str | Path) -> Path:
    """Writes ``report.html`` into a run's folder: result, curves, views, evaluation, bad files, commands, settings.

    Args:
        run_dir: The run's folder. Whatever is missing in it is left out of the page.

    Returns:
        The page.

    Raises:
        ValueError: If the folder holds no run.
    """
    run = Path(run_dir)
    if run.is_file():
        raise ValueError(f"cannot write a report: {run} is a file; give the folder of a run")
    if not (run / CONFIG).is_file():
        reason = f"holds no {CONFIG}" if run.is_dir() else "does not exist"
        raise ValueError(f"cannot write a report: the folder {run} {reason}; give the folder of a run")
    config = read_config(run)
    text = (run / CONFIG).read_text(encoding="utf-8")
    metrics = read_metrics(run)
    starts = _whole(lambda: read_starts(run)) or []
    sections = [
        Section("Result", _result(metrics, starts)),
        Section("What the health monitor found", _findings(run)),
        Section("Curves", _curves(metrics)),
        Section("What the task saw", _views(run)),
        Section("Evaluation on frozen features", _evaluation(run)),
        Section("Unreadable files", _bad_files(run, starts)),
        Section("Commands", [Code("\n".join(_commands(run, config)))]),
        Section("Where it ran", _environment(starts)),
        Section("Configuration", [Code(text.rstrip(), summary=f"{CONFIG}, with every default written out")]),
    ]
    written = [section for section in sections if section.pieces]
    return write_page(run / FILE, run.resolve().name, written, _subtitle(config, starts))


def _whole(read: Callable[[], Any]) -> Any:
    """What is read; of a damaged file nothing, and it is named."""
    try:
        return read()
    except ValueError as error:
        print(f"left out of the report: {error}", file=sys.stderr)
        return None


def _setting(config: Any, *keys: str) -> Any:
    """A setting; an empty text if there is none."""
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return "" if config is None else config


def _subtitle(config: Mapping[str, Any], starts: Sequence[Mapping[str, Any]]) -> str:
    task = str(_setting(config, "model", "class_path"))
    backbone = _setting(config, "model", "init_args", "backbone", "name")
    parts = [task.rpartition(".")[2], backbone, *(start.get("started", "")[:10] for start in starts[:1])]
    return " · ".join(str(part) for part in parts if part)


def _last(values: Sequence[float]) -> float | None:
    return next((value for value in reversed(values) if math.isfinite(value)), None)


def _result(metrics: Mapping[str, Sequence[float]], starts: Sequence[Mapping[str, Any]]) -> list[Piece]:
    if not metrics:
        return [Text("Nothing has been logged yet.")]
    # rows are numbered by the steps before them; the test comes after the last one
    tests = [values for name, values in metrics.items() if name.startswith("test/")]
    done = max(step + all(math.isnan(values[row]) for values in tests) for row, step in enumerate(metrics["step"]))
    rows: list[list[str]] = [["steps", f"{int(done):,}"]]
    for name, values in metrics.items():
        last = _last(values)
        key = name.rpartition("/")[2]
        is_shown = key in TITLES and name.startswith(("train/loss", "val/", "test/"))
        # the losses of which a loss is the sum
        if last is not None and (is_shown or key.endswith("_loss")):
            title, percent = _title(key)
            rows.append([f"{name.partition('/')[0]} {title}", _number(last, percent)])
    speed = [value for value in metrics.get("train/images_per_second", []) if math.isfinite(value)]
    if speed:
        rows.append(["images per second, median", rate_text(sorted(speed)[len(speed) // 2])])
    if len(starts) > 1:
        rows.append(["times resumed", str(len(starts) - 1)])
    return [Table(["metric", "last value"], rows)]


def _title(key: str) -> tuple[str, bool]:
    """What a metric is called, and whether it is a fraction: a task's own accuracies are named ``..._top1``."""
    words = key.removesuffix("_top1").replace("_", " ")
    return TITLES.get(key, (f"{words} top-1 (%)", True) if key.endswith("_top1") else (words, False))


def _number(value: float, percent: bool) -> str:
    return f"{100 * value:.1f}" if percent else f"{value:,.4g}"


def _findings(run: Path) -> list[Piece]:
    found = _whole(lambda: read_json(run / WATCHED, _WATCHED))
    return [Text(f"{each['what']} {each['advice']}") for each in found or ()]


def _curves(metrics: Mapping[str, Sequence[float]]) -> list[Piece]:
    from ssl_toolkit.report.figures import curves

    groups: dict[str, dict[str, Any]] = {}
    for name, values in metrics.items():
        split, slash, key = name.partition("/")
        if slash and split != "test" and key != "evaluation_seconds" and sum(map(math.isfinite, values)) > 1:
            groups.setdefault(key, {})[split] = (metrics["step"], values)
    order = {key: place for place, key in enumerate(TITLES)}
    pictures = []
    for key in sorted(groups, key=lambda key: order.get(key, len(order))):
        title, percent = _title(key)
        pictures.append(curves(groups[key], title, percent=percent, smooth=key != "lr"))
    return [Figure(pictures, "Over the optimizer's steps.")] if pictures else []


def _views(run: Path) -> list[Piece]:
    file = run / "views.png"
    caption = "The first images of the run, one in each row, with the views that the task made of them side by side."
    return [Figure([file.read_bytes()], caption)] if file.is_file() else []


def _evaluation(run: Path) -> list[Piece]:
    evaluation = _whole(lambda: read_json(run / "evaluation.json", _EVALUATION))
    if not evaluation:
        return []
    rows = [
        [
            row["representation"],
            row["weights"],
            row["num_features"],
            _interval(row["knn"]),
            row["knn_k"],
            _interval(row["linear"]),
            *([f"{100 * row['linear_mean_class']:.1f}"] if row.get("linear_mean_class") is not None else []),
        ]
        for row in evaluation["rows"]
    ]
    images = ", ".join(f"{num:,} {split}" for split, num in evaluation["num_images"].items())
    caption = (
        f"Top-1 in % on the test images with its 95 % interval: {images} images, {evaluation['num_classes']} classes. "
        "k and the penalty of the probe were chosen on the validation images."
    )
    headers = ["features", "weights", "width", "kNN", "k", "linear probe"]
    if rows and len(rows[0]) > len(headers):
        headers.append("its mean-class accuracy")
    if baselines := evaluation.get("baselines"):
        caption += f" {baselines[0].upper()}{baselines[1:]}."
    verdict = evaluation["verdict"] or "no verdict"
    pieces: list[Piece] = [Text(f"{verdict[0].upper()}{verdict[1:]}.")]
    pieces += [Table(headers, rows, caption)] if rows else []
    pieces += [Text(line) for line in evaluation.get("words") or () if line != verdict]
    return [*pieces, *(shortcut_pieces(evaluation["shortcuts"]) if "shortcuts" in evaluation else ())]


def _interval(interval: Mapping[str, float]) -> str:
    value, low, high = (100 * interval[name] for name in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def _bad_files(run: Path, starts: Sequence[Mapping[str, Any]]) -> list[Piece]:
    file = run / "bad_files.txt"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    others = starts[-1].get("not_read") if starts else None
    pieces: list[Piece] = [Text(f"Files {others}.")] if others else []
    if lines:
        rows = [line.partition("\t")[::2] for line in lines[:MAX_BAD_FILES]]
        more = f"; the first {MAX_BAD_FILES} are shown" if len(lines) > MAX_BAD_FILES else ""
        pieces.append(Table(["file", "reason"], rows, f"{counted(len(lines), 'files')} left out{more}."))
    return pieces


def _commands(run: Path, config: Mapping[str, Any]) -> list[str]:
    folder, weights = shlex.quote(str(run)), shlex.quote(str(run / WEIGHTS))
    command = "transfer" if str(_setting(config, "model", "class_path")).startswith("downstream.") else "pretrain"
    commands = [f"ssl-toolkit {command} --resume {folder}"]
    if command == "pretrain":
        commands.append(f"ssl-toolkit transfer -c linear_probe --data.path LABELLED --model.weights {weights}")
    commands.append(f"ssl-toolkit evaluate --weights {weights} --data.path LABELLED")
    commands.append(f"ssl-toolkit embed --weights {weights} --data.path IMAGES --out features.parquet")
    if (run / MODEL).exists():
        commands.append(predict_command(run, config))
    if sync := sync_command(run):
        commands.append(sync)
    return commands


def _environment(starts: Sequence[Mapping[str, Any]]) -> list[Piece]:
    if not starts:
        return []
    last = starts[-1]
    versions = ", ".join(f"{name} {version}" for name, version in (last.get("versions") or {}).items())
    facts = {
        "started": ", ".join(str(start.get("started", "")) for start in starts),
        "processor": f"{last.get('processor')} ({last.get('cpus')} CPUs, {last.get('threads')} threads)",
        "GPUs": ", ".join(last.get("gpus") or []) or "none",
        "system": f"{last.get('platform')}, Python {last.get('python')}",
        "versions": versions,
    }
    command = Code(shlex.join(map(str, last.get("command") or [])))
    return [Table([], list(facts.items())), command]
