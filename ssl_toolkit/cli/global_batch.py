"""Global batch of all processes, which a run keeps when it is resumed with another number of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssl_toolkit.distributed.ranks import is_rank_zero
from ssl_toolkit.errors import counted
from ssl_toolkit.run_folder import read_config, read_starts


def batch_facts(data: Any, num_processes: int) -> dict[str, Any]:
    """Batch facts of a start, for the next one: the number of processes, and the batch size of each."""
    return {"processes": num_processes, "batch_size": data.batch_size}


def keep_global_batch(
    data: Any, num_processes: int, run: Path, resolved: dict[str, Any], batch_size_is_given: bool
) -> None:
    """Divides the batches of a run that is resumed among the processes that it has now, and says so.

    The batch of all processes together is what the learning rate is for, what BatchNorm and contrastive losses see, and
    what the place in the epoch is counted in, so that none of these changes.

    Args:
        data: The run's data; their ``batch_size`` is that of each process.
        num_processes: How many there are now.
        run: The run's folder.
        resolved: The configuration as plain data, whose batch size becomes the one in use.
        batch_size_is_given: Whether the command line names one: that is not changed.

    Raises:
        ValueError: If the batches cannot be divided, or if a batch size is asked for that would change them.
    """
    starts = read_starts(run)
    before = starts[-1] if starts else {}
    if not {"processes", "batch_size"} <= before.keys():
        return  # of a version that did not write them
    whole, size = before["processes"] * before["batch_size"], data.batch_size
    if size * num_processes == whole:
        return
    what, processes = counted(whole, data.noun), counted(num_processes, "processes")
    if whole % num_processes:
        raise ValueError(
            f"the run's batches of {what} cannot be divided among {processes}: --resume it with a number "
            f"of processes (--trainer.devices, --trainer.num_nodes) that divides {whole:,}"
        )
    per_process = whole // num_processes
    if batch_size_is_given or size != read_config(run)["data"]["batch_size"]:
        raise ValueError(
            f"data.batch_size {size:,} in {processes} makes batches of {size * num_processes:,} "
            f"{data.noun}, but the run's have {whole:,}: leave it out or set it to {per_process:,}"
        )
    data.batch_size = resolved["data"]["batch_size"] = per_process
    if is_rank_zero():
        print(
            f"batches of {per_process:,} {data.noun} in {processes}, before {before['batch_size']:,} in "
            f"{counted(before['processes'], 'processes')}: {whole:,} in all, as before"
        )
