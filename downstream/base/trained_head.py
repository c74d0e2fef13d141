"""Start of a head: one that was trained on the frozen backbone, and fine-tuning does not begin with a random one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstream.base.standardize import EPS
from ssl_toolkit.weights.fit import difference
from ssl_toolkit.weights.model import read_model_header
from ssl_toolkit.weights.reading import WeightsError, describe, read_tensors

_BACKBONE, _READ = "backbone.model.", ("head.", "covariates.")


class TrainedHead(NamedTuple):
    """The head of a model file, read but in no network yet.

    Attributes:
        path: The file.
        header: Its header.
        tensors: All of its tensors, those of the frozen backbone among them.
    """

    path: Path
    header: dict[str, Any]
    tensors: dict[str, Tensor]

    def check_backbone(self, state: dict[str, Tensor]) -> None:
        """Raises a `WeightsError` unless a backbone is the one on whose features the head was trained.

        Args:
            state: The state dict of its timm network.
        """
        own = {name.removeprefix(_BACKBONE): each for name, each in self.tensors.items() if name.startswith(_BACKBONE)}
        # a file holds floats of any width as float32
        if own.keys() != state.keys() or not all(torch.equal(own[name].to(each), each) for name, each in state.items()):
            raise WeightsError(
                f"the head of {self.path} was trained on other features: its backbone is not that of model.weights; "
                "give the model.safetensors of a run with the same weights and freeze_backbone"
            )

    def load_into(self, task: Any) -> None:
        """Sets the head of a task; its first layer takes over the standardization of the features.

        Args:
            task: A `DownstreamTask` with its head, which knows its classes or targets.

        Raises:
            WeightsError: The head is of other classes or targets, or has other layers.
        """
        header = task.model_header()
        for what in ("class_names", "target_names"):
            if self.header.get(what) != header.get(what):
                kind = what.partition("_")[0]
                raise WeightsError(
                    f"the head of {self.path} is for {_listed(self.header, kind)}; the data have "
                    f"{_listed(header, kind)}"
                )
        if self.header.get("covariates") != header.get("covariates"):
            raise WeightsError(
                f"the head of {self.path} reads {_read_by(self.header)}; that of the run reads {_read_by(header)}"
            )
        # covariates are standardized as the head has seen them
        state = {name: each for name, each in self.tensors.items() if name.startswith(_READ)}
        own = {name: each for name, each in task.state_dict().items() if name.startswith(_READ)}
        layouts = [{name: describe(each.shape, each.dtype) for name, each in side.items()} for side in (state, own)]
        if layouts[0] != layouts[1]:
            raise WeightsError(
                f"the head of {self.path} has other layers than that of the run (- file, + run)\n"
                + difference(*layouts)
            )
        task.load_state_dict(state, strict=False)
        if "standardize.mean" in self.tensors:
            fold_standardization(task.head, self.tensors["standardize.mean"], self.tensors["standardize.variance"])


def fold_standardization(head: nn.Module, mean: Tensor, variance: Tensor) -> None:
    """Has a head compute from features what it computed from standardized ones (see `Standardize`), in place.

    Args:
        head: It begins with a linear layer, which has a bias or is followed by BatchNorm. What it gets beside the
            features comes after them, and stays as it is.
        mean: Float tensor of shape ``[num_features]``.
        variance: Float tensor of the same shape.
    """
    layers = [each for each in head.modules() if isinstance(each, nn.Linear | nn.BatchNorm1d)]
    first, *following = layers
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        others = (0, first.in_features - len(mean))
        scale = F.pad(torch.rsqrt(variance.double() + EPS), others, value=1.0)
        weight = first.weight.double() * scale
        shift = weight @ F.pad(mean.double(), others)
        first.weight.copy_(weight)
        if first.bias is not None:
            first.bias.copy_(first.bias.double() - shift)
        else:
            statistics: Any = following[0]
            statistics.running_mean.copy_(statistics.running_mean.double() + shift)


def read_trained_head(path: str) -> TrainedHead:
    """Reads the head of a downstream run.

    Args:
        path: Its ``model.safetensors``.

    Raises:
        WeightsError: The file is missing, damaged, or of a backbone without a head.
    """
    header = read_model_header(path)
    return TrainedHead(Path(path), header, read_tensors(Path(path), header))


def _listed(header: Mapping[str, Any], kind: str) -> str:
    names = header.get(f"{kind}_names")
    plural = {"class": "classes", "target": "targets"}[kind]
    if names is None:
        return f"no {plural}"
    shown = ", ".join(map(str, names[:8]))
    return f"{plural} {shown}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _read_by(header: Mapping[str, Any]) -> str:
    """The covariates of a model file's header, for people."""
    found = header.get("covariates")
    if not found:
        return "no covariates"
    gaps = ", ".join(found["names"][number] for number in found["gaps"])
    return f"the covariates {', '.join(found['names'])}" + (f", of which {gaps} may be unknown" if gaps else "")
