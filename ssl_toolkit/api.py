"""The commands ``pretrain``, ``transfer``, ``evaluate``, ``embed`` and ``predict`` as functions of Python.

Each builds the arguments of the command line and calls what the command line calls, so that both do the same and say
the same. A mistake of the user's is a ``ValueError`` of one line; a file that cannot be written is an ``OSError``.

The process is afterwards as it was before: torch's random state and settings, threads, signals, warnings, variables of
the environment. Three things stay: memory that tensors have freed is kept for those that follow (set
``MALLOC_TRIM_THRESHOLD_`` before Python starts if you do not want it), the seeds of GPUs are those of the run, and what
was imported remains imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ssl_toolkit.cli import features
from ssl_toolkit.cli import predict as prediction
from ssl_toolkit.cli.from_python import called_from_python
from ssl_toolkit.cli.python_arguments import kind, options, recipe_options
from ssl_toolkit.cli.train import train
from ssl_toolkit.distributed.ranks import from_rank_zero
from ssl_toolkit.run_folder import WEIGHTS
from ssl_toolkit.tracking.metrics_csv import last_values
from ssl_toolkit.weights import load_backbone

if TYPE_CHECKING:
    from ssl_toolkit.evaluation import Evaluation
    from ssl_toolkit.modules.backbone import Backbone

AnyPath: TypeAlias = "str | os.PathLike[str]"
Settings: TypeAlias = Mapping[str, Any]
Config: TypeAlias = "AnyPath | Settings | Sequence[AnyPath | Settings]"


@dataclass(frozen=True)
class Run:
    """A run that `pretrain` or `transfer` has finished.

    Attributes:
        folder: The run's folder: its configuration, ``metrics.csv``, checkpoints, weights and the report.
    """

    folder: Path

    @property
    def weights(self) -> Path:
        """The weights file, for `evaluate`, `embed`, `transfer` and `load_backbone`."""
        return self.folder / WEIGHTS

    @property
    def figures(self) -> dict[str, float]:
        """The last value in each column of ``metrics.csv``, by the column's name (``val/knn_top1``, say)."""
        return last_values(self.folder)

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone of the weights file, on the CPU, in training mode; read when it is first asked for."""
        return load_backbone(self.weights)


def pretrain(
    config: Config | None = None,
    *,
    data: AnyPath | Settings | None = None,
    out: AnyPath | None = None,
    resume: AnyPath | Run | None = None,
    budget: str | None = None,
    overrides: Settings | None = None,
) -> Run:
    """Pretrains a backbone on unlabelled images, as ``ssl-toolkit pretrain`` does.

    A run of several processes (``trainer.devices``) happens in processes of its own, unless torchrun or SLURM has
    started this one: then each calls this function, with the same arguments, and returns when the run is complete.
    What a run changes in this process is put back, but for what `ssl_toolkit.api` names.

    Args:
        config: A recipe: the path of a YAML file, the name of a shipped one (``simclr``), a dict of the same structure,
            or a list of these, of which the later win. It is not changed. None for a run that is resumed.
        data: The folder of images, or a dict of settings (``{"source": "procedural"}``), as below ``data`` in a recipe.
        out: Folder of the run; None for ``runs/TASK-DATE-TIME``.
        resume: A run, or the folder of one, to go on with; its own configuration comes first.
        budget: Time for all of it, such as ``60min``, in place of a number of epochs.
        overrides: What differs from the recipe, as options of the command line: ``{"model.optimizer.lr": 1e-3}`` or
            nested dicts. It wins over everything else.

    Returns:
        The finished run.

    Raises:
        ValueError: For whatever the user can mend, in one line.
        OSError: A file cannot be written.
        KeyboardInterrupt: For Ctrl-C; the run can be resumed.
        SystemExit: With status 143, if SIGTERM or SIGUSR1 has stopped the run, whose state is saved.
    """
    given = {"out": out, "resume": _folder(resume), "budget": budget}
    return _train("pretrain", config, {**given, **_data(data)}, overrides)


def transfer(
    config: Config | None = None,
    *,
    data: AnyPath | Settings | None = None,
    weights: AnyPath | Run | None = None,
    out: AnyPath | None = None,
    resume: AnyPath | Run | None = None,
    budget: str | None = None,
    overrides: Settings | None = None,
) -> Run:
    """Trains a head, or everything, on labelled data from pretrained weights, as ``ssl-toolkit transfer`` does.

    Args:
        config: As in `pretrain`.
        data: As in `pretrain`; a folder holds one folder of images for each class.
        weights: A run, or a weights file, to start from; None for what the recipe says.
        out: As in `pretrain`.
        resume: As in `pretrain`.
        budget: As in `pretrain`.
        overrides: As in `pretrain`.

    Returns:
        The finished run; its figures hold ``test/top1`` and the like.

    Raises:
        ValueError: For whatever the user can mend, in one line.
        OSError: A file cannot be written.
        KeyboardInterrupt: For Ctrl-C; the run can be resumed.
        SystemExit: With status 143, if SIGTERM or SIGUSR1 has stopped the run, whose state is saved.
    """
    given = {"out": out, "resume": _folder(resume), "budget": budget, "model.weights": _weights(weights)}
    return _train("transfer", config, {**given, **_data(data)}, overrides)


def evaluate(
    weights: AnyPath | Run,
    *,
    data: AnyPath | Settings | None = None,
    out: AnyPath | None = None,
    overrides: Settings | None = None,
) -> Evaluation:
    """Measures kNN and a linear probe of a backbone beside random weights, as ``ssl-toolkit evaluate`` does.

    For a backbone in memory there is `ssl_toolkit.evaluation.evaluate`.

    Args:
        weights: A run, or a weights file.
        data: A folder with a folder of images for each class, or a dict of settings, as in `pretrain`.
        out: File for the figures, JSON; None for ``evaluation.json`` beside the weights.
        overrides: Other options, such as ``{"ensemble": "bagging", "data.batch_size": 64}``.

    Returns:
        The figures: ``row("pooled").knn``, ``verdict()``, and as plain data ``to_json()``, which is what is written.

    Raises:
        ValueError: For whatever the user can mend, in one line.
        OSError: A file cannot be written.
    """
    arguments = options({"weights": _weights(weights), "out": out, **_data(data)}, overrides)
    with called_from_python():
        return features.evaluate(arguments)


def embed(
    weights: AnyPath | Run,
    *,
    out: AnyPath,
    data: AnyPath | Settings | None = None,
    overrides: Settings | None = None,
) -> Path:
    """Writes the features of every image to a table, as ``ssl-toolkit embed`` does.

    Args:
        weights: A run, or a weights file.
        out: The file to write, ``.parquet``, ``.npz`` or ``.csv``. It must not exist. Or, without a suffix, a folder of
            part files, which several processes may write together; the same call goes on with it.
        data: The folder of images, or a dict of settings, as in `pretrain`.
        overrides: Other options, such as ``{"representation": "layer3"}``.

    Returns:
        The file written, or the folder; `ssl_toolkit.evaluation.embed.embed` says what it holds.

    Raises:
        ValueError: For whatever the user can mend, in one line.
        OSError: The file cannot be written.
    """
    arguments = options({"weights": _weights(weights), "out": out, **_data(data)}, overrides)
    with called_from_python():
        return features.embed(arguments)


def predict(
    run: AnyPath | Run,
    *,
    out: AnyPath,
    data: AnyPath | Settings | None = None,
    overrides: Settings | None = None,
) -> Path:
    """Writes the class of every image to a table, as ``ssl-toolkit predict`` does.

    Args:
        run: A run of `transfer`, or its folder.
        out: The file to write, ``.parquet`` or ``.csv``. It must not exist. Or, without a suffix, a folder of part
            files, which several processes may write together; the same call goes on with it.
        data: The folder of images, or a dict of settings of these images (``{"path": ..., "batch_size": 64}``); what
            the run has settled, such as ``image_size``, is not among them.
        overrides: Other options, such as ``{"precision": "32"}``.

    Returns:
        The file written, or the folder; `ssl_toolkit.evaluation.predict.predict` says what it holds.

    Raises:
        ValueError: For whatever the user can mend, in one line.
        OSError: The file cannot be written.
    """
    folder = _folder(run)
    if not isinstance(folder, (str, os.PathLike)):
        raise ValueError(f"run is {kind(run)}, expected a run of transfer, or the path of its folder")
    text = os.fspath(folder)
    # a folder is no option, whatever its name begins with
    arguments = [f"./{text}" if text.startswith("-") else text, *options({"out": out, **_data(data)}, overrides)]
    with called_from_python():
        return prediction.predict(arguments)


def _train(command: str, config: Config | None, given: Settings, overrides: Settings | None) -> Run:
    arguments = [*recipe_options(config), *options(given, overrides)]
    with called_from_python():
        folder = train(command, arguments, apart=True)
        # the first process writes the weights and the report
        return Run(from_rank_zero(folder))


def _data(data: AnyPath | Settings | None) -> dict[str, Any]:
    return {"data": data or None} if isinstance(data, Mapping) else {"data.path": data}


def _weights(weights: AnyPath | Run | None) -> AnyPath | None:
    if isinstance(weights, (str, os.PathLike, type(None))):
        return weights
    if isinstance(weights, Run):
        return weights.weights
    raise ValueError(
        f"weights is {kind(weights)}, expected a run or the path of a weights file (save_backbone writes one)"
    )


def _folder(run: AnyPath | Run | None) -> AnyPath | None:
    return run.folder if isinstance(run, Run) else run
