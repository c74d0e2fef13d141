"""What a training verb does beyond the training itself."""

import csv

import pytest

from ssl_toolkit.cli import train


@pytest.mark.parametrize(
    ("options", "steps"),
    [([], [4, 9, 14]), (["--trainer.max_steps", "2"], [1]), (["--trainer.log_every_n_steps", "3"], [2, 5, 8, 11, 14])],
)
def test_a_short_run_has_curves_too(options, steps, recipe, tmp_path):
    train.train("pretrain", ["-c", recipe, "--out", str(tmp_path / "run"), *options], quietly=True)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]] == steps
