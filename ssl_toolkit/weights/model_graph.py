"""ONNX export of a trained downstream network: from bytes to what ``predict`` writes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ssl_toolkit.io.atomic import write_atomically

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

_WHAT_IMAGES_ARE = (
    "the centred square of each image, resized with antialiasing to image_size: bytes of RGB, or floats in [0, 1] "
    "where the type of images is float"
)


class ModelGraph(nn.Module):
    """Backbone, normalisation and head of a task as a function of the pixels, and of the covariates that it reads.

    Args:
        task: The trained task, in evaluation mode, whose backbone sees one image at a time.
        float_images: Whether the pixels are floats in [0, 1] instead of bytes.
    """

    def __init__(self, task: Any, float_images: bool) -> None:
        super().__init__()
        self.task, self.float_images = task, float_images

    def forward(
        self,
        images: Shaped[Tensor, "batch height width channels"],
        covariates: Float[Tensor, "batch covariates"] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The outputs of the head, and what they predict.

        Args:
            images: uint8 (or float32) tensor of shape ``[batch, image_size, image_size, channels]``.
            covariates: In their own units, NaN where one is not known; None for a head that reads none.

        Returns:
            Two float32 tensors, of shape ``[batch, classes]`` or ``[batch, targets]``.
        """
        features = self.features(images)
        if covariates is not None:
            features = torch.cat([features, self.task.covariates(covariates)], dim=1)
        return self.task.head_outputs(features)

    def features(self, images: Shaped[Tensor, "batch height width channels"]) -> Float[Tensor, "batch width"]:
        """What the head reads of images, as `forward` takes them: float32 tensor ``[batch, num_features]``."""
        pixels = images.permute(0, 3, 1, 2)
        return self.task.standardize(self.task.backbone(pixels if self.float_images else pixels.float() / 255))


class PairGraph(ModelGraph):
    """A task of pairs of images as a function of the pixels of both; arguments are those of `ModelGraph`."""

    def forward(
        self,
        first: Shaped[Tensor, "batch height width channels"],
        second: Shaped[Tensor, "batch height width channels"],
    ) -> tuple[Tensor, Tensor]:
        """The outputs of the head, and what they predict, as of `ModelGraph`.

        Args:
            first: The first images, as `ModelGraph` takes them.
            second: The second ones.
        """
        return self.task.pair_outputs(self.features(first), self.features(second))


def check_onnx() -> None:
    """Raises a ValueError if the packages that write ONNX are not installed."""
    missing = [package for package in ("onnx", "onnxscript") if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f"the format onnx needs {' and '.join(missing)}: pip install ssl-toolkit[onnx]")


def export_model_graph(task: Any, header: dict[str, Any], path: Path) -> None:
    """Writes the network of a downstream run as an ONNX graph.

    Its input is ``images``, uint8 of shape [batch, image_size, image_size, channels]; of images of more than 8 bits a
    channel float32 in [0, 1], by the run's ranges. A head that reads covariates has a second one, ``covariates``,
    float32 of shape [batch, covariates] in their own units, NaN where one is not known. A task of pairs has two images,
    ``first`` and ``second``. The outputs are ``logits`` and ``probabilities`` of the classes, or ``outputs`` and
    ``predictions`` of targets. The graph's metadata hold ``class_names`` or ``target_names`` (JSON), ``image_size``,
    ``ranges``, ``temperature`` (by which to divide logits, see `Classifier`; where there is one), ``covariates`` (their
    names, if there are some) and ``images`` (what they are to be).

    Args:
        task: The trained task, in evaluation mode on the CPU.
        header: Of its model file.
        path: The file to write, whole or not at all.

    Raises:
        ValueError: The packages are missing, or the task is not one of single images or of pairs.
    """
    check_onnx()
    names = getattr(task, "head_output_names", None)
    if names is None:
        raise ValueError(f"{type(task).__name__} does not export: only tasks of single images, and of pairs, do")
    size, float_images = header["image_size"], bool(header["ranges"])
    dtype = torch.float32 if float_images else torch.uint8
    in_pairs, covariates = getattr(task, "exports_pairs", False), getattr(task, "covariates", None)
    names_in = ["first", "second"] if in_pairs else ["images"]
    example = [torch.zeros(2, size, size, task.backbone.in_channels, dtype=dtype) for _ in names_in]
    if covariates is not None:
        names_in.append("covariates")
        example.append(torch.zeros(2, len(covariates.names)))
    # that a second input has as many rows the graph finds out, which warns of a second name for them
    axes = (torch.export.Dim("batch"), torch.export.Dim.DYNAMIC)
    task.backbone.to(memory_format=torch.contiguous_format)
    program = torch.onnx.export(
        (PairGraph if in_pairs else ModelGraph)(task, float_images).eval(),
        tuple(example),
        input_names=names_in,
        output_names=list(names),
        dynamic_shapes={name: {0: axis} for name, axis in zip(names_in, axes, strict=False)},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    kept = ("class_names", "target_names", "image_size", "ranges", "task", "step", "temperature")
    about = {name: json.dumps(header[name]) for name in kept if name in header}
    if covariates is not None:
        about["covariates"] = json.dumps(covariates.names)
    for key, value in {**about, "images": _WHAT_IMAGES_ARE}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    write_atomically(path, model.SerializeToString())
