"""The files of configs/cluster are what a user copies: read by a shell, and run for real on this machine."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from launch import ENVIRONMENT, ROOT, free_port, newest_step, started, state, wait_for, write_recipe

FOLDER = ROOT / "configs" / "cluster"
FILES = sorted(FOLDER.glob("*.sh"))
CPU = ["--trainer.accelerator", "cpu", "--data.batch_size", "4"]

SRUN = """#!/usr/bin/env bash
# one task after the other, as srun numbers them, all of them on this machine
echo "$@" > {folder}/srun-options
while [[ $1 == --* ]]; do shift; done
tasks=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 "$@" &
  tasks+=($!)
  echo $! > {folder}/task-$task
done
status=0
for task in "${{tasks[@]}}"; do wait "$task" || status=$?; done
exit $status
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >> {folder}/scontrol-called
"""


def test_the_files_are_found():
    assert [file.name for file in FILES] == ["one_machine.sh", "several_machines.sh", "slurm.sh"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shell_can_read_the_file(file):
    subprocess.run(["bash", "-n", str(file)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(file)], check=True)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_has_to_be_set_is_set(file):
    text = file.read_text()
    assert "set -euo pipefail" in text
    if "torch.distributed.run" in text:
        assert "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in text
        assert re.search(r"--signals-to-handle \S*SIGTERM\S*SIGUSR1", text)
    else:
        directives = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, flags=re.MULTILINE))
        assert {"requeue", "ntasks-per-node", "gpus-per-node", "open-mode"} <= directives.keys()
        assert directives["ntasks-per-node"] == directives["gpus-per-node"]
        # to the processes (with B: only the shell would get it), and what makes a run queue its job again
        assert re.fullmatch(r"USR1@\d+", directives["signal"])


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_several_processes_of_one_machine(tmp_path):
    recipe, run, log = write_recipe(tmp_path), tmp_path / "run", tmp_path / "log"
    arguments = ["pretrain", "-c", recipe, *CPU, "--out", str(run)]
    with started(["bash", str(FOLDER / "one_machine.sh"), *arguments], log, PROCESSES="2") as process:
        process.wait(300)
        assert process.returncode == 0, log.read_text()[-3000:]
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert state(run)["global_step"] == newest_step(run) > 0
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" not in log.read_text()
    (start,) = json.loads((run / "environment.json").read_text())["starts"]
    assert start["command"][1:] == [*arguments, "--trainer.devices", "2", "--trainer.strategy", "ddp"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_machines(tmp_path):
    recipe, run = write_recipe(tmp_path, trainer={"max_epochs": 1}), tmp_path / "run"
    command = ["bash", str(FOLDER / "several_machines.sh"), "pretrain", "-c", recipe, *CPU, "--out", str(run)]
    both = {"FIRST": "127.0.0.1", "PORT": str(free_port()), "PROCESSES": "1", "LOCAL_ADDRESS": "127.0.0.1"}
    logs = tmp_path / "first.log", tmp_path / "second.log"
    with started(command, logs[0], **both) as first, started(command, logs[1], **both, STRATEGY="ddp") as second:
        for process, log in zip((first, second), logs, strict=True):
            process.wait(300)
            assert process.returncode == 0, log.read_text()[-3000:]
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def slurm(folder, tasks):
    """What sbatch sets, and programs in the place of SLURM's own."""
    programs = folder / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        file = programs / name
        file.write_text(text.format(folder=folder))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return {
        "PATH": f"{programs}:{ENVIRONMENT['PATH']}",
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NAME": "ssl-toolkit",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NNODES": "1",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks),
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_of_slurm_is_queued_again_once_and_goes_on(tmp_path):
    environment = slurm(tmp_path, tasks=2)
    every_step = {"checkpoint": {"every_n_steps": 1}}
    recipe = write_recipe(tmp_path, trainer={"max_steps": 60, "max_epochs": -1}, **every_step)
    arguments = ["pretrain", "-c", recipe, *CPU]

    def job(run, log, **restarted):
        return started(
            ["bash", str(FOLDER / "slurm.sh"), *arguments, "--out", str(run)], log, **environment, **restarted
        )

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with job(whole, tmp_path / "whole.log") as process:
        process.wait(300)
        assert process.returncode == 0, (tmp_path / "whole.log").read_text()[-3000:]
    assert not (tmp_path / "scontrol-called").exists()

    log = tmp_path / "first.log"
    with job(broken, log) as process:
        wait_for(lambda: newest_step(broken) >= 5, process, log)
        for task in range(2):
            os.kill(int((tmp_path / f"task-{task}").read_text()), signal.SIGUSR1)
        process.wait(120)
        assert process.returncode == 143, log.read_text()[-3000:]
    assert (tmp_path / "scontrol-called").read_text() == "requeue 77\n"
    left = json.loads((broken / "status.json").read_text())
    assert (left["state"], left["reason"]) == ("preempted", "SIGUSR1")
    assert 5 <= left["step"] < 60

    log = tmp_path / "second.log"
    with job(broken, log, SLURM_RESTART_COUNT="1") as process:
        process.wait(300)
        assert process.returncode == 0, log.read_text()[-3000:]
    assert json.loads((broken / "status.json").read_text())["state"] == "finished"
    first, second = state(whole), state(broken)
    assert first["global_step"] == second["global_step"] == 60
    for name, tensor in first["state_dict"].items():
        assert tensor.equal(second["state_dict"][name]), name
    assert Path(tmp_path / "srun-options").read_text().startswith("--kill-on-bad-exit=0 --wait=60 ")
