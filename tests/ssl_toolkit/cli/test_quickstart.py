from __future__ import annotations

import json

import pytest

from ssl_toolkit.cli import main


def test_an_earlier_quickstart_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "report.html").write_text("earlier")
    assert main(["quickstart", "--out", str(tmp_path)]) == 2
    assert "--out" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == "earlier"


def draws(folder):
    """The accuracies of each kind of weights, one for each labelled set."""
    return {row["weights"]: row["draws"] for row in json.loads((folder / "comparison.json").read_text())}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_one_shows_everything(tmp_path, capsys):
    assert main(["quickstart", "--out", str(tmp_path), "--num_images", "600", "--max_epochs", "1"]) == 0
    results = draws(tmp_path)
    assert list(results) == ["random weights", "SimCLR", "patch position", "supervised"]
    assert all(len(each) == 3 and 0 <= min(each) <= max(each) <= 1 for each in results.values())
    assert (tmp_path / "report.html").stat().st_size > 50_000
    shown = capsys.readouterr().out
    assert "random weights" in shown
    assert "ssl-toolkit pretrain -c" in shown


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_pretraining_is_worth_it_beyond_doubt(tmp_path):
    assert main(["quickstart", "--out", str(tmp_path)]) == 0
    results = draws(tmp_path)
    for task in ("SimCLR", "patch position"):
        # the worst labelled set with pretraining is far better than the best without
        assert min(results[task]) > max(results["random weights"]) + 0.3
