"""Run folders: configuration, metrics, status, checkpoints and results of a run."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml

from ssl_toolkit.distributed.ranks import is_rank_zero
from ssl_toolkit.errors import nearest, printable
from ssl_toolkit.io.atomic import damage, remove_orphans, write_atomically
from ssl_toolkit.io.schema import ANYTHING, AT_LEAST_ONE, COUNT, TEXT, Each, Maybe, problems
from ssl_toolkit.io.yaml_files import read_yaml

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
WEIGHTS = "backbone.safetensors"
MODEL = "model.safetensors"
STATUS = "status.json"
ENVIRONMENT = "environment.json"
BAD_FILES = "bad_files.txt"
WATCHED = "watch.json"
_STARTED = "SSL_TOOLKIT_STARTED"
_START = {
    "started": Maybe(TEXT), "command": Maybe([TEXT]), "versions": Maybe(Each(TEXT)), "gpus": Maybe([TEXT]),
    "processes": Maybe(AT_LEAST_ONE), "batch_size": Maybe(AT_LEAST_ONE), "step": Maybe(COUNT),
    "changed": Maybe(Each([ANYTHING])),
}  # fmt: skip
_STARTS = {"starts": [_START]}


def new_run(path: str | None, task_name: str) -> Path:
    """Chooses the folder of a new run; the first thing written there is the configuration.

    Args:
        path: Where; None for ``runs/TASK-DATE-TIME``.
        task_name: The task's name, for a folder that the user did not name.

    Raises:
        ValueError: If the folder holds a run, or is a file.
    """
    if path is None:
        # srun numbers its processes; without such a number there is one, whatever the job may hold
        under_srun = os.environ.get("SLURM_NTASKS", "1") if "SLURM_PROCID" in os.environ else "1"
        if int(os.environ.get("WORLD_SIZE", under_srun)) > 1 and _STARTED not in os.environ:
            raise ValueError("several processes need to agree on the run's folder: name it with --out")
        # processes that Lightning launches run this command again and must find the same folder
        if _STARTED not in os.environ:
            os.environ[_STARTED] = _claim(f"runs/{task_name}")
        path = f"runs/{task_name}-{os.environ[_STARTED]}"
    folder = Path(path)
    if folder.is_file():
        raise ValueError(f"--out {folder} is a file, expected a folder for the run")
    if is_rank_zero():
        check_free(folder)
    return folder


def _claim(prefix: str) -> str:
    """Makes a folder that was not there, named by the time, and returns what comes after the prefix in its name."""
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        stamp = now if number == 1 else f"{now}-{number}"
        with contextlib.suppress(FileExistsError):
            Path(f"{prefix}-{stamp}").mkdir(parents=True)
            return stamp
    raise AssertionError


def check_free(folder: Path) -> None:
    """Raises a ValueError if a folder holds a run."""
    if (folder / CONFIG).exists():
        raise ValueError(f"{folder} holds a run already: continue it with --resume {folder}, or choose another --out")


def open_run(path: str, option: str = "--resume ") -> Path:
    """Finds the folder of a run that is to be resumed or used.

    Args:
        path: The folder.
        option: What stands before it on the command line, for the message.

    Raises:
        ValueError: If there is no run.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        siblings = [str(run.parent) for run in folder.parent.glob(f"*/{CONFIG}")]
        if folder.is_file():
            raise ValueError(f"{option}{folder} is a file, expected the folder of a run")
        reason = f"holds no {CONFIG}" if folder.exists() else "does not exist"
        raise ValueError(f"{option}{folder}: the folder {reason}{nearest(str(folder), siblings)}")
    return folder


def newest_checkpoint(run: Path) -> Path | None:
    """The whole checkpoint of a run with the most steps, or None if it was stopped before the first.

    A damaged one is named and passed over.

    Raises:
        ValueError: If there are checkpoints, but all of them are damaged.
    """
    damaged = []
    for file in sorted((run / CHECKPOINTS).glob("step-*.ckpt"), reverse=True):
        problem = damage(file)
        if problem is None:
            if damaged and is_rank_zero():
                print(f"damaged: {', '.join(damaged)}; the run goes on from {file}")
            return file
        damaged.append(f"{file} ({problem})")
    if damaged:
        raise ValueError(f"no checkpoint of {run} is whole: {', '.join(damaged)}; start a new run with another --out")
    return None


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was taken."""
    return int(checkpoint.stem.removeprefix("step-"))


def remove_leftovers(run: Path) -> None:
    """Deletes what killed processes left in a run: parts of files, and checksums of checkpoints that never came."""
    for folder in (run, run / CHECKPOINTS):
        remove_orphans(folder)
    for checksum in (run / CHECKPOINTS).glob("step-*.ckpt.sha256"):
        if not checksum.with_suffix("").exists():
            checksum.unlink(missing_ok=True)


def write_status(run: Path, state: Literal["running", "finished", "preempted", "failed"], **facts: Any) -> None:
    """Writes how a run stands to ``status.json``.

    Args:
        run: The run's folder.
        state: In a word.
        **facts: Plain data: the step, the reason.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_atomically(run / STATUS, json.dumps({"state": state, "at": now, **facts}, indent=2) + "\n")


def write_bad_files(run: Path, bad: Iterable[tuple[str, str]]) -> int:
    """Adds the images that could not be decoded to ``bad_files.txt``: one line each, its name and the reason.

    What an earlier start of the run has found stays, because without a cache each start meets some of them only.

    Returns:
        How many are listed.
    """
    file = run / BAD_FILES
    before = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    lines = {*before, *bad_file_lines(bad)}
    if len(lines) > len(before):
        write_atomically(file, "".join(f"{line}\n" for line in sorted(lines)))
    return len(lines)


def bad_file_lines(bad: Iterable[tuple[str, str]]) -> list[str]:
    """How images that could not be decoded are listed, from the name of each and the reason."""
    return sorted("\t".join(map(printable, each)) for each in bad)


def read_status(run: Path) -> dict[str, Any]:
    """Reads how a run stands; empty if there is nothing to read."""
    try:
        status = json.loads((run / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def write_config(run: Path, config: dict[str, Any]) -> None:
    """Writes the resolved configuration, from which the run can be repeated; this makes a folder a run."""
    (run / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    write_atomically(run / CONFIG, yaml.safe_dump(config, sort_keys=False))


def read_config(run: Path) -> dict[str, Any]:
    """Reads the resolved configuration of a run."""
    config = read_yaml(run / CONFIG) or {}
    if not isinstance(config, dict) or not isinstance(config.get("model", {}), dict):
        raise ValueError(f"{run / CONFIG} is damaged: expected settings by their names; restore it from a copy")
    return config


def write_environment(run: Path, **facts: Any) -> None:
    """Writes the machine, the versions and the command, each start of the run after the other.

    Args:
        run: The run's folder.
        **facts: Plain data that belong to this start, too.
    """
    import torch

    packages = ("ssl-toolkit", "torch", "lightning", "torchvision", "timm", "jsonargparse", "numpy", "pillow", "wandb")
    start = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {package: version(package) for package in packages},
        **facts,
    }
    write_atomically(run / ENVIRONMENT, json.dumps({"starts": [*read_starts(run), start]}, indent=2))


def read_starts(run: Path) -> list[dict[str, Any]]:
    """What was written of each start of a run, the last one last.

    Raises:
        ValueError: The file is damaged.
    """
    return (read_json(run / ENVIRONMENT, _STARTS) or {"starts": []})["starts"]


def read_json(file: Path, schema: Any) -> Any:
    """Reads a file of a run that holds JSON.

    Args:
        file: The file.
        schema: What it has to hold (see `ssl_toolkit.io.schema`).

    Returns:
        What it holds; None if there is no file.

    Raises:
        ValueError: It holds anything else.
    """
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = next(problems(content, schema), None)
    except (ValueError, RecursionError) as error:
        content, found = None, str(error).splitlines()[0]
    if found:
        raise ValueError(f"{file} is damaged ({found}): restore it from a copy, or remove it to go on without it")
    return content


def processor() -> str:
    """The processor's name, as the operating system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def sync_command(run_dir: str | Path) -> str | None:
    """The command that sends a run recorded offline to W&B.

    Args:
        run_dir: The run's folder.

    Returns:
        One line for the shell, or None if nothing was recorded offline. Of a resumed run it names the last part, which
        begins with all that came before.
    """
    parts = [part for part in Path(run_dir).glob("wandb/*run-*") if part.is_dir() and not part.is_symlink()]
    newest = max(parts, key=lambda part: part.name.removeprefix("offline-"), default=None)
    return shlex.join(["wandb", "sync", str(newest)]) if newest and newest.name.startswith("offline-") else None


def predict_command(run_dir: str | Path, config: Mapping[str, Any]) -> str:
    """The command that applies a downstream run to images: with their table, where it reads more than images of it.

    That is where the head reads covariates, and where a table has named pairs of images or parts of sequences.

    Args:
        run_dir: The run's folder.
        config: Its configuration, as plain data.
    """
    data, arguments = config.get("data") or {}, (config.get("model") or {}).get("init_args") or {}
    if not isinstance(data, dict) or not isinstance(arguments, dict):
        data, arguments = {}, {}
    columns = data.get("columns")
    # frames are labelled in whole sequences, whatever their table has named
    named = isinstance(columns, dict) and any(role in columns for role in ("second", "start", "end"))
    named = named and not data.get("frame_labels")
    given = data.get("covariates") and arguments.get("covariates") != "none"
    table = " --data.table TABLE" if named or given else ""
    return f"ssl-toolkit predict {shlex.quote(str(run_dir))}{table} --data.path IMAGES --out predictions.csv"
