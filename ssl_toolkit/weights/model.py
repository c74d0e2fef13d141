"""Model files (``model.safetensors``): the whole network of a downstream run, for predicting.

The format is that of a backbone's file (see `ssl_toolkit.weights`). The keys are those of the task's state dict, and
the header tells what to do with images and what the classes, or the targets, are called. The network itself is that of
the run's ``config.yaml``; where this names a weights file instead of a backbone, the backbone is the header's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ssl_toolkit.io.schema import AT_LEAST_ONE, COUNT, NUMBER, TEXT, Each, Kind, Maybe, problems
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights.fit import check_layout
from ssl_toolkit.weights.reading import MODEL, WeightsError, read_any, read_layout, read_tensors
from ssl_toolkit.weights.writing import write

_HEADER = {
    "task": TEXT, "step": COUNT, "image_size": AT_LEAST_ONE, "ranges": Each([NUMBER]),
    "covariates": Maybe({"names": [TEXT], "gaps": [COUNT]}),
}  # fmt: skip
_TEMPERATURE = Kind("a number above 0", lambda value: NUMBER.fits(value) and value > 0)
_OF_CLASSES = {"class_names": [TEXT], "num_classes": AT_LEAST_ONE, "temperature": Maybe(_TEMPERATURE)}
_OF_TARGETS = {"target_names": [TEXT], "num_targets": AT_LEAST_ONE}


def save_model(path: str | Path, backbone: Backbone, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Writes a model file, whole or not at all.

    Args:
        path: The file; an older one is replaced.
        backbone: Of the network.
        tensors: The state dict of the whole network, parameters and buffers.
        header: ``task`` (class path), ``step``, ``class_names`` and ``num_classes``, or ``target_names`` and
            ``num_targets``, ``image_size`` (side in pixels of what the backbone sees), ``ranges`` (of numbers of
            more than 8 bits), and ``covariates`` where the head reads some (their ``names``, and the numbers of those
            with ``gaps``).

    Raises:
        WeightsError: If a weight is not finite (a file that exists is then kept), or if the header is not plain data.
    """
    write(Path(path), backbone, tensors, {**header, "holds": MODEL})


def add_temperature(path: str | Path, backbone: Backbone, temperature: float) -> None:
    """Adds to a model file the temperature of its run's test; its tensors stay as they are.

    Args:
        path: The file.
        backbone: Of the network; of its weights nothing is read.
        temperature: Above 0.

    Raises:
        WeightsError: As for `load_model`.
    """
    path = Path(path)
    header = read_model_header(path)
    tensors = read_tensors(path, header)
    del header["sha256"]
    write(path, backbone, tensors, {**header, "temperature": temperature})


def read_model_header(path: str | Path) -> dict[str, Any]:
    """The header of a model file, without its tensors.

    Raises:
        WeightsError: If there is no such file, or if it is not a model file that this version reads.
    """
    path = Path(path)
    header = read_any(path)
    if header.get("holds") != MODEL:
        raise WeightsError(f"{path} is of a backbone without a head; give the model.safetensors of a downstream run")
    outputs, names = (_OF_TARGETS, "target_names") if "target_names" in header else (_OF_CLASSES, "class_names")
    problem = next(problems(header, {**_HEADER, **outputs}), None)
    what = "targets" if "target_names" in header else "classes"
    num = len(header[names]) if problem is None else 0
    if problem is None and not num == header[f"num_{what}"] == len(set(header[names])):
        problem = f"{names} has {num} names for {header[f'num_{what}']} {what}, expected a different one for each"
    if problem is not None:
        raise WeightsError(f"the header of {path} is damaged ({problem})")
    return header


def load_model(path: str | Path, network: nn.Module) -> None:
    """Loads a model file into the network of its run: every tensor or none.

    Args:
        path: The file.
        network: The network to fill, a task with its head; its device and dtype stay.

    Raises:
        WeightsError: As for `read_model_header`; if a byte of the file was changed; or if the network is another one.
            The message then lists what only the file has (``-``) and what only the network has (``+``).
    """
    path = Path(path)
    header = read_model_header(path)
    check_layout(path, read_layout(path), network)
    network.load_state_dict(read_tensors(path, header), strict=True)
