"""torchrun: processes that are killed and started again, and two launchers that stand for two machines."""

import json
import os
import signal
import sys
import time

import pytest
import torch

from launch import free_port, newest_step, started, state, wait_for, worker, write_recipe
from ssl_toolkit.run_folder import new_run
from ssl_toolkit.runtime.preemption import restart_remarks

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ONE_MACHINE = [*TORCHRUN, "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
TRAIN = ["-m", "ssl_toolkit", "pretrain"]
TWO = ["--trainer.devices", "2", "--data.batch_size", "4"]
# what a launcher has to set, as the files in configs/cluster do
NOT_SHARED = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def finish(command, log, seconds=300, **environment):
    with started(command, log, **environment) as process:
        process.wait(seconds)
        assert process.returncode == 0, log.read_text()[-3000:]


def differing(first, second):
    """The tensors of two runs' ends that are not the same bit for bit, the optimizer's included."""
    first, second = state(first), state(second)
    assert first["global_step"] == second["global_step"]
    names = [name for name, each in first["state_dict"].items() if not torch.equal(each, second["state_dict"][name])]
    for number, values in first["optimizer_states"][0]["state"].items():
        others = second["optimizer_states"][0]["state"][number]
        names += [f"{number}/{name}" for name, each in values.items() if not torch.equal(each, others[name])]
    return names


@pytest.mark.guarantee("R6")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("strategy", "victims"),
    [pytest.param("ddp", [0, 1, 0], marks=pytest.mark.nightly), pytest.param("fsdp2", [1], marks=pytest.mark.slow)],
)
def test_killed_ranks_are_started_again_and_the_run_ends_as_if_nothing_had_been(strategy, victims, tmp_path, reached):
    steps = 30 * (1 + len(victims))
    recipe = write_recipe(tmp_path, trainer={"max_steps": steps, "max_epochs": -1}, checkpoint={"every_n_steps": 2})
    arguments = [*TRAIN, "-c", recipe, *TWO, "--trainer.strategy", strategy]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish([*ONE_MACHINE, *arguments, "--out", str(whole)], tmp_path / "whole.log", **NOT_SHARED)

    log, kills, start = tmp_path / "broken.log", [], time.monotonic()
    command = [*ONE_MACHINE, "--max-restarts", "3", *arguments, "--out", str(broken)]
    with started(command, log, **NOT_SHARED) as process:
        for number, rank in enumerate(victims):
            wait_for(lambda number=number: newest_step(broken) >= 30 * number + 10, process, log)
            victim = wait_for(lambda rank=rank: worker(process.pid, rank), process, log)
            os.kill(victim, signal.SIGKILL)
            kills.append((rank, newest_step(broken)))
        process.wait(300)
        assert process.returncode == 0, log.read_text()[-3000:]
    seconds = time.monotonic() - start
    assert [rank for rank, _ in kills] == victims
    assert max(step for _, step in kills) < steps, "the run was over before the last kill"
    starts = json.loads((broken / "environment.json").read_text())["starts"]
    assert len(starts) == 1 + len(kills)
    differences = differing(whole, broken)
    assert differences == []
    reached(
        f"{strategy}: {len(kills)} kill -9 (ranks {', '.join(str(rank) for rank, _ in kills)}), {len(differences)} "
        f"tensors of weights and optimizer differ, {seconds:.0f} s in all"
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_launchers_compute_what_one_does(tmp_path):
    recipe = write_recipe(tmp_path, trainer={"max_steps": 12, "max_epochs": -1})
    arguments = [*TRAIN, "-c", recipe, "--data.batch_size", "4", "--trainer.strategy", "ddp"]
    one, two = tmp_path / "one", tmp_path / "two"
    finish([*ONE_MACHINE, *arguments, "--trainer.devices", "2", "--out", str(one)], tmp_path / "one.log", **NOT_SHARED)

    launcher = [
        *TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "two",
        "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--local-addr", "127.0.0.1",
    ]  # fmt: skip
    nodes = [*arguments, "--trainer.num_nodes", "2", "--trainer.devices", "1", "--out", str(two)]
    with (
        started([*launcher, *nodes], tmp_path / "first.log", **NOT_SHARED) as first,
        started([*launcher, *nodes], tmp_path / "second.log", **NOT_SHARED) as second,
    ):
        for process, log in ((first, "first.log"), (second, "second.log")):
            process.wait(300)
            assert process.returncode == 0, (tmp_path / log).read_text()[-3000:]
    assert differing(one, two) == []
    # one of the two speaks for both
    said = [(tmp_path / log).read_text() for log in ("first.log", "second.log")]
    assert sum(each.count("report:") for each in said) == 1


def test_a_launcher_that_lacks_the_setting_is_told(monkeypatch):
    assert restart_remarks() == []
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert restart_remarks() == []
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in restart_remarks()[0]
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert restart_remarks() == []


def test_processes_of_srun_need_a_name_for_their_folder(monkeypatch):
    monkeypatch.delenv("SSL_TOOLKIT_STARTED", raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert new_run(None, "simclr").parts[0] == "runs"  # one process in a job of two
    # it notes when it began, for processes that it starts; those of srun know nothing of it
    monkeypatch.delenv("SSL_TOOLKIT_STARTED")
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(ValueError, match="name it with --out"):
        new_run(None, "simclr")
