"""The command ``export``: weights, or a whole trained network, for programs that do not know ssl-toolkit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl_toolkit import run_folder
from ssl_toolkit.cli.features import check_one_process, function_parser
from ssl_toolkit.cli.imports import quick_imports
from ssl_toolkit.cli.parser import parse


def export(arguments: Sequence[str]) -> None:
    """Converts a weights file, or a run's model file."""
    with quick_imports():
        from ssl_toolkit.weights.export import check_out
        from ssl_toolkit.weights.export import export as convert
        from ssl_toolkit.weights.reading import MODEL, read_any

    check_one_process("export")
    config = parse(function_parser("export", convert), arguments)
    config.pop("config")
    file = Path(config.weights)
    if file.is_dir() or read_any(file).get("holds") != MODEL:
        print(f"exported: {convert(**vars(config))}")
        return
    if config.format != "onnx":
        raise ValueError(f"{file} is of a network with its head, which exports as onnx only, not as {config.format}")
    if file.name != run_folder.MODEL:
        raise ValueError(
            f"'{file}' is not called {run_folder.MODEL}: give RUN/{run_folder.MODEL}, since a run has one network"
        )
    out = check_out(config.out, "onnx")
    with quick_imports():
        from ssl_toolkit.cli.predict import open_trained, trained_task
        from ssl_toolkit.weights.model_graph import check_onnx, export_model_graph

    check_onnx()
    run = open_trained(str(file.parent))
    export_model_graph(*trained_task(run), out)
    print(f"exported: {out}")
