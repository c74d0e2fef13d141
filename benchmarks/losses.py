"""Losses and their gradients beside lightly's, on the same numbers in float64.

    python benchmarks/losses.py --json losses.json

Each library computes its losses of the same embeddings in an environment of its own. The error of the loss is relative,
that of the gradient is the length of the difference over the length.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from measuring import HERE, add_outputs, lightly_python, window, write_json


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The errors of each loss that both have."""
    found = {}
    for name in sorted(ours.keys() & theirs.keys()):
        mine, other = (np.array(each[name]["gradient"]) for each in (ours, theirs))
        loss, expected = ours[name]["loss"], theirs[name]["loss"]
        error = float(np.linalg.norm(mine - other) / np.linalg.norm(other))
        found[name] = {
            "ours": loss,
            "theirs": expected,
            "loss": abs(loss - expected) / abs(expected),
            "gradient": error,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_outputs(parser)
    args = parser.parse_args()
    script = str(HERE / "peers" / "losses.py")
    python = lightly_python()
    if python is None:
        raise SystemExit("lightly could not be installed: there is nothing to compare with")
    ours = window([sys.executable, script, "ssl-toolkit"]).figures
    theirs = window([str(python), script, "lightly"]).figures
    found = differences(ours["losses"], theirs["losses"])
    print(f"| loss | ssl-toolkit | lightly {theirs['version']} | error | error of the gradient |")
    print("| --- | --- | --- | --- | --- |")
    for name, each in found.items():
        print(f"| {name} | {each['ours']:.6g} | {each['theirs']:.6g} | {each['loss']:.1e} | {each['gradient']:.1e} |")
    write_json(args.json, found)


if __name__ == "__main__":
    main()
