from __future__ import annotations

import json

import pytest

from ssl_toolkit.cli import main


def test_an_earlier_quickstart_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "report.html").write_text("earlier")
    assert main(["quickstart", "--out", str(tmp_path)]) == 2
    assert "--out" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == "earlier"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.nightly)])
def test_pretraining_is_worth_it_beyond_doubt(seed, tmp_path, capsys):
    assert main(["quickstart", "--out", str(tmp_path), "--seed", str(seed)]) == 0
    results = {row["weights"]: row["draws"] for row in json.loads((tmp_path / "comparison.json").read_text())}
    assert all(len(draws) == 3 for draws in results.values())
    for task in ("SimCLR", "patch position"):
        # the worst labelled set with pretraining is far better than the best without
        assert min(results[task]) > max(results["random weights"]) + 0.3
    assert (tmp_path / "report.html").stat().st_size > 50_000
    shown = capsys.readouterr().out
    assert "random weights" in shown
    assert "ssl-toolkit pretrain -c" in shown
