"""Feature store: features of a split on disk, found again by what they depend on.

Each entry is a folder, whose name is a digest of its fingerprint: the tensors of the backbone, what it sees of an image
(size, precision, kind of device, batch size), and the images (a key that changes whenever a file may have changed, and
which of them are in the split). It holds a matrix for each representation (``pooled.npy``: float32 of shape
``[num_images, width]``, memory-mapped), ``index.parquet`` (``name``, ``index`` in the source, ``label``, ``split``; of
the frames of sequences ``sequence`` and ``frame``, too) and ``about.json`` with the fingerprint in words. An entry
appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.data.decode import BadImage
from ssl_toolkit.data.frames import SingleFrames
from ssl_toolkit.distributed.dtensor import full_state_dict
from ssl_toolkit.evaluation.features import Features, Precision, computes_in_bf16, extract_features
from ssl_toolkit.io.atomic import atomic_file, flush_folder, write_atomically

if TYPE_CHECKING:
    from ssl_toolkit.augment import View
    from ssl_toolkit.data import Split
    from ssl_toolkit.data.divided import DividedData
    from ssl_toolkit.modules.backbone import Backbone

_FORMAT = 1
_DAY = 86_400.0  # seconds
_ABOUT, _INDEX, _PARTIAL = "about.json", "index.parquet", ".partial-"


class FeatureStore:
    """Features in a folder.

    Args:
        folder: The folder; made when the first features are written.

    Raises:
        ValueError: It is a file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"feature_store is '{folder}', which is a file; give a folder")

    def read(self, fingerprint: dict[str, Any], stages: bool) -> tuple[Features, dict[int, BadImage]] | None:
        """The features of a fingerprint, and the images without any; None if there are none, or fewer than asked for.

        Args:
            fingerprint: What `fingerprint_of` returns.
            stages: Whether the averaged map of each stage is needed, too.

        Raises:
            ValueError: The entry is damaged.
        """
        import pyarrow.parquet as pq

        entry = self._entry(fingerprint)
        if not (entry / _ABOUT).is_file():
            return None
        try:
            about = json.loads((entry / _ABOUT).read_text(encoding="utf-8"))
            if about["fingerprint"] != fingerprint or about["format"] != _FORMAT:
                raise ValueError("it is of other features")
            if stages and not about["stages"]:
                return None
            names = about["representations"] if stages else ["pooled"]
            index = pq.read_table(entry / _INDEX, columns=["index", "label"])
            bad = {number: BadImage(path, reason) for number, path, reason in about["bad"]}
            features = {name: self._matrix(entry / f"{name}.npy", len(index)) for name in names}
            columns = [
                torch.from_numpy(np.array(index[name].to_numpy(), dtype=np.int64)) for name in ("label", "index")
            ]
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"'{entry}' is damaged ({reason}); remove it, and its features are computed again"
            ) from None
        return Features(features, *columns, seconds=0.0), bad

    def write(
        self,
        fingerprint: dict[str, Any],
        features: Features,
        names: list[str],
        split: str,
        stages: bool,
        bad: Mapping[int, BadImage],
        columns: Mapping[str, Sequence[Any] | NDArray[np.generic]] | None = None,
    ) -> None:
        """Keeps features; an entry with fewer representations is replaced.

        Args:
            fingerprint: What `fingerprint_of` returns.
            features: These.
            names: Of the images, in the order of the features.
            split: That of the images.
            stages: Whether there is the averaged map of each stage.
            bad: Images that cannot be decoded, by their number in the source.
            columns: What else the index says of each image.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        entry = self._entry(fingerprint)
        self._remove_leftovers()
        made = self.folder / f"{_PARTIAL}{uuid.uuid4().hex}"
        made.mkdir(parents=True)
        try:
            for name, matrix in features.features.items():
                with atomic_file(made / f"{name}.npy") as file:
                    np.save(file, matrix.numpy(), allow_pickle=False)
            index = {
                "name": names,
                "index": features.indices.numpy(),
                "label": features.labels.numpy(),
                "split": pa.array([split] * len(names), pa.string()),
                **(columns or {}),
            }
            with atomic_file(made / _INDEX) as file:
                pq.write_table(pa.table(index), file)
            about = {
                "format": _FORMAT,
                "fingerprint": fingerprint,
                "stages": stages,
                "representations": list(features.features),
                "bad": [[number, each.path, each.reason] for number, each in bad.items()],
            }
            write_atomically(made / _ABOUT, json.dumps(about, indent=2) + "\n")
            if entry.exists():
                # a reader has mapped its files, which stay until it lets go of them
                entry.rename(old := made.with_name(f"{made.name}-old"))
                shutil.rmtree(old, ignore_errors=True)
            try:
                made.rename(entry)
            except OSError:
                if not (entry / _ABOUT).is_file():
                    raise  # it was not another process that wrote the same
            flush_folder(self.folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _entry(self, fingerprint: dict[str, Any]) -> Path:
        text = json.dumps(fingerprint, sort_keys=True)
        return self.folder / hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _remove_leftovers(self) -> None:
        """Deletes what processes that were killed while writing have left, of more than a day ago."""
        for each in self.folder.glob(f"{_PARTIAL}*"):
            try:
                is_old = time.time() - each.stat().st_mtime > _DAY
            except OSError:
                continue
            if is_old:
                shutil.rmtree(each, ignore_errors=True)

    @staticmethod
    def _matrix(file: Path, num: int) -> Tensor:
        # copy on write, since torch takes no array that may not be written; nothing reaches the file
        matrix = np.load(file, mmap_mode="c", allow_pickle=False)
        if matrix.dtype != np.float32 or matrix.ndim != 2 or len(matrix) != num:
            raise ValueError(f"{file.name} holds {matrix.dtype} of shape {matrix.shape} for {num} images")
        return torch.from_numpy(matrix)


def stored_features(
    store: FeatureStore | None,
    backbone: Backbone,
    data: DividedData,
    split: Split,
    view: View,
    *,
    stages: bool = False,
    precision: Precision = "auto",
    count: Callable[[int], None] = lambda num: None,
) -> Features:
    """The features of a split, from the store if it has them; otherwise computed, and kept there.

    Args:
        store: Where they are kept; None to compute them in any case.
        backbone: The backbone.
        data: The images.
        split: Which of them.
        view: What the backbone sees of each image; the same for an image each time.
        stages: As in `extract_features`.
        precision: As in `extract_features`.
        count: As in `extract_features`.

    Returns:
        The features; ``seconds`` is 0 if they were found.

    Raises:
        ValueError: As for `extract_features`; or an entry of the store is damaged.
    """
    fingerprint = None if store is None else fingerprint_of(backbone, data, split, view, precision)
    if store is not None and fingerprint is not None:
        found = store.read(fingerprint, stages)
        if found is not None:
            features, bad = found
            data.know_images(split, features.indices.numpy(), bad)
            count(len(features.labels))
            return features
    loader = data.loader(split)
    features = extract_features(backbone, loader, view, stages=stages, precision=precision, count=count)
    if store is not None and fingerprint is not None:
        names = [data.name(split, index) for index in features.indices.tolist()]
        columns = {}
        if isinstance(data, SingleFrames):
            columns["sequence"], columns["frame"] = data.places(split, features.indices.numpy())
        store.write(fingerprint, features, names, split, stages, data.bad_images(split), columns)
    return features


def fingerprint_of(
    backbone: Backbone, data: DividedData, split: Split, view: View, precision: Precision
) -> dict[str, Any]:
    """What the features of a split depend on, as plain data.

    Args:
        backbone: The backbone.
        data: The images.
        split: Which of them.
        view: What the backbone sees of each image.
        precision: As in `extract_features`.
    """
    device = next(backbone.parameters()).device
    return {
        "backbone": _digest_of(backbone),
        "view": repr(view),
        "precision": "bf16" if computes_in_bf16(precision, device) else "32",
        "device": device.type,
        "versions": {"torch": torch.__version__, "ssl-toolkit": version("ssl-toolkit")},
        # sums of other batches are rounded in another way
        "batch_size": data.batch_size,
        "images": data.content_key(split),
    }


def _digest_of(backbone: Backbone) -> str:
    """Of the arguments, the normalisation and all tensors of a backbone."""
    digest = hashlib.blake2b(digest_size=16)
    settings = {**backbone.config(), "pretrained": False, "mean": backbone.mean, "std": backbone.std}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(full_state_dict(backbone.model).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
