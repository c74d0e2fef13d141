"""Gradients of Barlow Twins in several processes beside one process with the whole batch: ours and the peers'.

    python benchmarks/barlow_gradients.py --json gradients.json

Each library computes its own loss (with what it offers for several processes switched on) of the same embeddings, in
one process and in W gloo processes on the CPU, each with its slice of the batch, under DistributedDataParallel. The
error is the length of the difference of the two gradients of all parameters over the length of that of one process: 0
but for rounding if W processes train as one does. NT-Xent is the control: there all of them are right.

Peers have separate environments, which are made on first use. solo-learn asks for torch 1.9.1, so that the file
of its loss is run with our torch.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

from measuring import HERE, add_outputs, draw_bars, lightly_python, peer_python, window, write_json


def commands() -> dict[str, list[str]]:
    """What computes the gradients of each library."""
    script = str(HERE / "peers" / "gradients.py")
    found = {"ssl-toolkit": [sys.executable, script, "ssl-toolkit"]}
    if python := lightly_python():
        found["lightly"] = [str(python), script, "lightly"]
    if python := peer_python("solo-learn", "--no-deps", "solo-learn"):
        asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        folder = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        found["solo-learn"] = [sys.executable, script, "solo-learn", "--folder", folder]
    if python := peer_python("stable-pretraining"):
        found["stable-pretraining"] = [str(python), script, "stable-pretraining"]
    return found


def cell(row: dict[str, Any]) -> str:
    """A gradient's error, in percent where that can be read."""
    error = row["error"]
    return f"{error:.1e}" if error < 1e-4 else f"{100 * error:.3g} % (length {row['length']:.2f})"


def report(results: dict[str, dict[str, Any]]) -> None:
    """Prints a table for each number format: a row for each library and loss, a column for each setting."""
    rows = [(name, result["version"], row) for name, result in results.items() for row in result["rows"]]
    for dtype in dict.fromkeys(row["dtype"] for *_, row in rows):
        settings = dict.fromkeys((row["processes"], row["batch"]) for *_, row in rows)
        header = [dtype, *(f"W = {processes}, batch {batch}" for processes, batch in settings)]
        print("", "| " + " | ".join(header) + " |", "| --- " * len(header) + "|", sep="\n")
        for name, version, loss in dict.fromkeys((name, version, row["loss"]) for name, version, row in rows):
            chosen = {
                (row["processes"], row["batch"]): row
                for each, _, row in rows
                if (each, row["loss"], row["dtype"]) == (name, loss, dtype)
            }
            print("| " + " | ".join([f"{loss}, {name} {version}".strip(), *(cell(chosen[s]) for s in settings)]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4], help="numbers of processes")
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 16], help="global batch sizes")
    parser.add_argument("--width", type=int, default=128, help="of the embeddings")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "float64"], default=["float32", "float64"])
    add_outputs(parser)
    args = parser.parse_args()
    options = ["--worlds", *args.processes, "--batches", *args.batches, "--width", args.width, "--dtypes", *args.dtypes]
    results = {name: window([*each, *map(str, options)]).figures for name, each in commands().items()}
    report(results)
    write_json(args.json, results)
    shown = [row | {"library": name} for name, result in results.items() for row in result["rows"]]
    groups: dict[str, dict[str, list[float]]] = {}
    for row in shown:
        if row["loss"] == "Barlow Twins" and row["dtype"] == args.dtypes[0]:
            title = f"Barlow Twins, {row['processes']} processes, batch {row['batch']}"
            groups.setdefault(title, {})[row["library"]] = [100 * row["error"]]
    draw_bars(args.picture, groups, "error of the gradient in %")


if __name__ == "__main__":
    main()
