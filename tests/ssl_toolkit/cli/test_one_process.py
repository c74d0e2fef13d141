"""Commands that several processes would each do whole are refused under a launcher, before they read anything."""

import pytest

from ssl_toolkit.cli import main


@pytest.mark.parametrize("command", ["evaluate", "compare", "pseudo-label", "export"])
@pytest.mark.parametrize(
    "names", [("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")]
)
def test_it_is_refused(command, names, monkeypatch, capsys):
    for name, value in zip(names, ("1", "3", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert main([command, "--weights", "missing.safetensors"]) == 2
    assert f"{command} runs in one process, but a launcher has started 3" in capsys.readouterr().err
