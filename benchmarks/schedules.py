"""The curves of all schedules, over a run of 1,000 steps with a warm-up of 5 %.

python benchmarks/schedules.py --picture docs/pictures/schedules.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from measuring import add_outputs, write_json

from ssl_toolkit.schedule import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    MultiStep,
    OneCycle,
    Polynomial,
    Schedule,
    Step,
)

STEPS = 1000


def schedules() -> dict[str, Schedule]:
    """Each by its name."""
    return {
        "Constant": Constant(warmup_percent=5),
        "Cosine": Cosine(warmup_percent=5),
        "Cosine, 3 cycles": Cosine(warmup_percent=5, num_cycles=3, cycle_growth=2.0, restart_factor=0.7),
        "Linear": Linear(warmup_percent=5),
        "Polynomial": Polynomial(warmup_percent=5),
        "Exponential": Exponential(warmup_percent=5),
        "Step": Step(warmup_percent=5, gamma=0.3),
        "MultiStep": MultiStep(warmup_percent=5, gamma=0.3),
        "InverseSqrt": InverseSqrt(warmup_percent=5),
        "OneCycle": OneCycle(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_outputs(parser)
    args = parser.parse_args()
    factors = {
        name: [schedule.factor(step, STEPS, 100.0) for step in range(STEPS)] for name, schedule in schedules().items()
    }
    write_json(args.json, factors)
    if args.picture:
        draw(factors, args.picture)


def draw(factors: dict[str, list[float]], file: Path) -> None:
    """A diagram for each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    diagrams = figure.subplots(2, 5, sharex=True, sharey=True).flat
    for axes, (name, values) in zip(diagrams, factors.items(), strict=True):
        axes.plot(values, color="#0072b2", linewidth=1.4)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("factor on the rate", fontsize=8)
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main()
