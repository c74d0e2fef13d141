"""Features of a frozen backbone in the feature store that evaluations use, too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssl_toolkit.augment import CenterView
from ssl_toolkit.data.decode import BadImage
from ssl_toolkit.data.divided import DividedData
from ssl_toolkit.data.splits import Split
from ssl_toolkit.distributed.collectives import all_reduce_max
from ssl_toolkit.distributed.ranks import is_rank_zero, world_size
from ssl_toolkit.evaluation.feature_store import FeatureStore, fingerprint_of
from ssl_toolkit.evaluation.features import Features, Precision

_PRECISIONS: dict[str, Precision] = {"32-true": "32", "bf16-mixed": "bf16"}


def stored_key(task: Any, data: Any, split: Split) -> dict[str, Any]:
    """What the features of a split depend on (`fingerprint_of`), with the number of processes that share a batch.

    Args:
        task: A `DownstreamTask` with a frozen backbone, in a trainer.
        data: The images.
        split: Which of them.

    Raises:
        ValueError: The run computes in a precision, or keeps its feature maps in a way, in which no evaluation does.
    """
    precision = _PRECISIONS.get(task.trainer.precision)
    if precision is None:
        raise ValueError(
            f"feature_store holds features of the precisions {' and '.join(_PRECISIONS)}, but trainer.precision is "
            f"{task.trainer.precision}: set one of them, or leave feature_store out"
        )
    if task.memory_format != "channels_last":
        raise ValueError(
            "feature_store holds features computed with memory_format channels_last: leave one of them out"
        )
    view = task.augmentation if split == "train" and task.augmentation is not None else CenterView(task.image_size)
    key = fingerprint_of(task.backbone, data, split, view, precision)
    # a process computes its part of each batch, whose sums are rounded in another way
    return key if world_size() == 1 else {**key, "processes": world_size()}


def find(
    store: FeatureStore, key: dict[str, Any], data: DividedData, split: Split, device: torch.device
) -> Features | None:
    """The features if every process finds them.

    Args:
        store: Where they may be.
        key: What `stored_key` returns.
        data: The images, of which it is noted which can be decoded.
        split: Which of them.
        device: On which the processes exchange tensors.

    Raises:
        ValueError: What is there is damaged, for one process at least.
    """
    found, problem = None, None
    try:
        found = store.read(key, stages=False)
    except ValueError as error:
        problem = error
    mine = torch.tensor([found is None, problem is not None], dtype=torch.float32, device=device)
    absent, damaged = all_reduce_max(mine).tolist()
    if damaged:
        raise problem or ValueError(f"'{store.folder}' is damaged for another process, which says what is wrong")
    if absent or found is None:
        return None
    features, bad = found
    data.know_images(split, features.indices.numpy(), bad)
    return features


def keep(
    store: FeatureStore,
    key: dict[str, Any],
    data: DividedData,
    split: Split,
    indices: Tensor,
    features: Tensor,
    labels: Tensor,
) -> None:
    """Writes the features of all processes; the first one does.

    Args:
        store: Where to.
        key: What `stored_key` returns.
        data: The images.
        split: Which of them.
        indices: int64 tensor of shape ``[num]``: their numbers in the source.
        features: float32 tensor of shape ``[num, num_features]``.
        labels: int64 tensor of shape ``[num]``.
    """
    if not is_rank_zero():
        return
    bad = dict(data.bad_images(split))
    good = set(indices.tolist())
    for number in data.indices(split).tolist():
        if number not in good and number not in bad:  # only the process that should have read it knows why
            bad[number] = BadImage(data.name(split, number), "it could not be decoded")
    whole = Features({"pooled": features.cpu()}, labels.cpu(), indices.cpu(), seconds=0.0)
    names = [data.name(split, number) for number in whole.indices.tolist()]
    store.write(key, whole, names, split, False, bad)
