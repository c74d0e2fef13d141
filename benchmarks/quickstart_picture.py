"""The quickstart's table as bars: top-1 from ten labels a class, with the spread over draws of the labelled set.

    python benchmarks/quickstart_picture.py --picture docs/pictures/quickstart.png
    python benchmarks/quickstart_picture.py --comparison runs/quickstart/comparison.json --picture quickstart.png

The figures are those of the README's table, or with --comparison those that `ssl-toolkit quickstart` has written.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path

from measuring import HERE, add_outputs, save_small, write_json

README = HERE.parent / "README.md"
ROW = re.compile(r"^\| ([^|]+) \| [^|]+ \| ([\d.]+) ± ([\d.]+) % \|", flags=re.MULTILINE)
CHANCE = 10.0


def from_readme() -> dict[str, tuple[float, float]]:
    """Mean and spread in percent, by the weights."""
    rows = ROW.findall(README.read_text(encoding="utf-8"))
    return {name.strip(): (float(mean), float(spread)) for name, mean, spread in rows}


def from_run(file: Path) -> dict[str, tuple[float, float]]:
    """Likewise, of a run."""
    results = json.loads(file.read_text(encoding="utf-8"))
    draws = {each["weights"]: [100 * draw for draw in each["draws"]] for each in results}
    return {name: (statistics.mean(each), statistics.stdev(each)) for name, each in draws.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--comparison", type=Path, help="comparison.json of a quickstart; by default the README's table"
    )
    add_outputs(parser)
    args = parser.parse_args()
    if args.comparison and not args.comparison.is_file():
        raise SystemExit(f"--comparison {args.comparison} is not a file; give the comparison.json of a quickstart")
    rows = from_run(args.comparison) if args.comparison else from_readme()
    for name, (mean, spread) in rows.items():
        print(f"{name}: {mean:.1f} ± {spread:.1f} %")
    write_json(args.json, rows)
    if args.picture:
        draw(args.picture, rows)


def draw(file: Path, rows: dict[str, tuple[float, float]]) -> None:
    """A bar for each row, pretrained ones in colour."""
    from matplotlib.figure import Figure

    plain = {"random", "random weights", "supervised", "supervised, from random weights"}
    colours = ["#b0b7c3" if name in plain else "#0072b2" for name in rows]
    figure = Figure(figsize=(8.4, 2.2), layout="constrained")
    axes = figure.subplots()
    means, spreads = zip(*rows.values(), strict=True)
    axes.barh(list(rows), means, xerr=spreads, color=colours, height=0.62, error_kw={"capsize": 3, "linewidth": 1.2})
    for place, (mean, spread) in enumerate(rows.values()):
        axes.text(mean + spread + 1.5, place, f"{mean:.1f} ± {spread:.1f} %", va="center", fontsize=10)
    axes.axvline(CHANCE, color="#666666", linewidth=1, linestyle=":")
    axes.text(CHANCE + 0.6, -0.62, "chance", fontsize=8, color="#666666")
    axes.set(
        xlim=(0, 122), xticks=range(0, 101, 20), xlabel="top-1 of held-out images from 10 labelled images a class, %"
    )
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    save_small(figure, file, dpi=110)


if __name__ == "__main__":
    main()
