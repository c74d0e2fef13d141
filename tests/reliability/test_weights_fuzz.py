"""Damaged and hostile weights files and checksums: one kind of error, before memory or network are used."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import random
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from damaged_files import in_child, mutate
from downstream.classification import Classification
from peak_memory import forget_peak_memory, peak_memory
from ssl_toolkit.cli import main
from ssl_toolkit.cli.predict import TrainedRun, open_trained, trained_task
from ssl_toolkit.io.atomic import damage, write_checksum
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.schedule import Cosine
from ssl_toolkit.weights import WeightsError, load_backbone, load_into, read_header, save_backbone
from ssl_toolkit.weights.model import read_model_header, save_model

NUM = 500


def save(path: Path, name: str = "test_resnet", **arguments: Any) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(name, **arguments)
    save_backbone(path, backbone, {"pretext": "simclr", "step": 3})
    return backbone


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The outer header of a safetensors file, and its body."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def digest(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    """What a hostile author computes, too: the checksum is no signature."""
    whole = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for key, tensor in sorted(tensors.items()):
        whole.update(f"\n{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def files(content: bytes, num: int) -> Any:
    """Mutated files: bytes anywhere, and values of the two headers, half of these with a checksum that fits."""
    draw = random.Random(0)
    for number in range(num):
        if number % 2 == 0:
            changed = content
            while changed == content:
                changed = mutate(content, content[::-1], draw)
            yield changed
            continue
        outer, body = split(content)
        inner = json.loads(outer["__metadata__"]["ssl_toolkit"])
        if number % 4 == 1:
            change(draw.choice((inner, inner["backbone"])), draw)
        else:
            key = draw.choice([key for key in outer if key != "__metadata__"])
            change(draw.choice((outer, outer[key])), draw)
        if draw.random() < 0.5 and isinstance(inner, dict):
            with contextlib.suppress(Exception):
                inner.pop("sha256", None)
                inner["sha256"] = digest(inner, safetensors.torch.load(join(outer, body)))
        if isinstance(outer.get("__metadata__"), dict):
            outer["__metadata__"]["ssl_toolkit"] = json.dumps(inner)
        yield join(outer, body)


def change(values: dict[str, Any], draw: random.Random) -> None:
    key = draw.choice(list(values))
    odd = [None, True, -1, 0, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), "", "x" * 10_000, "\0", [], {},
           [[]], [2**40] * 3, {"a": {"b": [1]}}, "F64", "BF16", "BOOL", "F8_E4M3", [0, 2**62], [4, 0], [-1, 8],
           ["3", 3], "../../etc/passwd", "hf-hub:timm/resnet18.a1_in1k", "https://example.com/weights"]  # fmt: skip
    how = draw.randrange(4)
    if how == 0:
        del values[key]
    elif how == 1:
        values[draw.choice(("name", "kwargs", "shape", "weight", "channels", "📦"))] = values[key]
    else:
        values[key] = copy.deepcopy(draw.choice(odd))


class Outcomes:
    """What came of loading many files: how often what, and what should not have come."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.wrong: list[str] = []
        self._memory = forget_peak_memory()

    def load(self, number: int, file: Path, load: Any, expected: dict[str, torch.Tensor]) -> None:
        """Loads a file: it is refused in our own words, or gives a module with the expected tensors."""
        start = time.monotonic()
        try:
            loaded = load(file)
        except WeightsError as error:
            outcome = "refused"
            first, *diff = str(error).splitlines()
            if str(file) not in first or len(first) > 1000 or any(line[:2] not in ("- ", "+ ", "  ") for line in diff):
                self.wrong.append(f"{number}: {error}")
        except BaseException as error:
            outcome = "another error"
            self.wrong.append(f"{number}: {error!r}")
        else:
            outcome = "loaded"
            state = loaded.state_dict()
            if state.keys() != expected.keys() or any(not torch.equal(state[key], expected[key]) for key in state):
                self.wrong.append(f"{number}: other weights")
        if time.monotonic() - start > 20:
            self.wrong.append(f"{number}: {time.monotonic() - start:.0f} s")
        self.counts[outcome] = self.counts.get(outcome, 0) + 1

    def plain(self) -> dict[str, Any]:
        """As plain data, with the kilobytes by which memory grew."""
        return {"outcomes": self.counts, "wrong": self.wrong, "grown": peak_memory() - self._memory}


def load_all(folder: str) -> dict[str, Any]:
    """Loads mutated files in both ways; returns what came of it, and by how many kilobytes memory grew."""
    path, mutated = Path(folder) / "backbone.safetensors", Path(folder) / "mutated.safetensors"
    backbone = save(path)
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    load_into(backbone, path)
    content = path.read_bytes()
    for _ in range(3):
        load_backbone(path)

    def into(file: Path) -> Backbone:
        load_into(backbone, file)
        return backbone

    found = Outcomes()
    for number, changed in enumerate(files(content, NUM)):
        mutated.write_bytes(changed)
        for load in (load_backbone, into):
            found.load(number, mutated, load, before)
    return found.plain()


def run_of(folder: str) -> TrainedRun:
    """A run whose model file holds a tiny classifier; its configuration names a weights file that is gone."""
    run = Path(folder) / "run"
    run.mkdir()
    backbone = save(Path(folder) / "backbone.safetensors")
    task = Classification(backbone=backbone, optimizer=AdamW(), schedule=Cosine(), num_classes=2, image_size=32)
    task.setup("predict")
    header = {**task.model_header(), "step": 3, "task": "downstream.classification.Classification", "ranges": {}}
    save_model(run / "model.safetensors", backbone, task.state_dict(), header)
    settings: dict[str, Any] = {"weights": "gone", "image_size": 32}
    settings |= {"optimizer": {"class_path": "AdamW"}, "schedule": {"class_path": "Cosine"}}
    model = {"class_path": "downstream.classification.Classification", "init_args": settings}
    (run / "config.yaml").write_text(json.dumps({"model": model, "data": {"image_size": 32}}))
    return open_trained(str(run))


def load_models(folder: str) -> dict[str, Any]:
    """Loads mutated model files; as `load_all`."""
    run = run_of(folder)
    file = run.folder / "model.safetensors"
    content = file.read_bytes()
    for _ in range(3):
        before = trained_task(run)[0].state_dict()
    found = Outcomes()
    for number, changed in enumerate(files(content, NUM)):
        file.write_bytes(changed)
        found.load(number, file, lambda _: trained_task(run)[0], before)
    return found.plain()


@pytest.mark.guarantee("S3")
@pytest.mark.parametrize(
    ("load", "num", "what"),
    [(load_all, 2 * NUM, "mutated files, each loaded in two ways"), (load_models, NUM, "mutated model files")],
    ids=["backbone", "model"],
)
@pytest.mark.slow
def test_mutated_weights_files(tmp_path, reached, load, num, what):
    said = in_child(load, tmp_path)
    assert said["wrong"] == []
    outcomes = said["outcomes"]
    # what is loaded has the same weights: a header may say another pretext task, and have a checksum that fits
    assert outcomes["refused"] > 0.8 * num
    assert said["grown"] < 200_000
    reached(
        f"{NUM} {what}: {outcomes['refused']} refused by our own error, {outcomes.get('loaded', 0)} loaded with the "
        f"same weights, {said['grown'] / 1000:.0f} MB more memory"
    )


HOSTILE: dict[str, dict[str, Any]] = {
    "a billion channels": {"kwargs": {"channels": [10**9] * 4}},
    "many channels": {"kwargs": {"channels": [60_000] * 4}},
    "a million layers": {"kwargs": {"layers": [10**6, 1, 1, 1]}},
    "many layers": {"kwargs": {"layers": [60_000] * 4}},
    "many stages": {"kwargs": {"layers": [1] * 900, "channels": [8] * 900}},
    "a wide stem": {"kwargs": {"stem_width": 65_536, "stem_type": "deep"}},
    "many groups": {"kwargs": {"cardinality": 60_000, "base_width": 60_000}},
    "a deep ConvNeXt": {"name": "convnext_tiny", "kwargs": {"depths": [65_536] * 4, "drop_path_rate": 0.5}},
    "a wide ConvNeXt": {"name": "convnext_tiny", "kwargs": {"dims": [65_536] * 4}},
    "many inputs": {"in_channels": 10**9},
    "no number": {"in_channels": "3"},
    "a path": {"name": "../../etc/passwd"},
    "a local folder": {"name": "local-dir:/etc"},
    "the hub": {"name": "hf-hub:timm/resnet18.a1_in1k"},
    "the hub behind a network": {"name": "resnet18.hf-hub:timm/resnet18.a1_in1k"},
    "an address": {"name": "https://example.com/resnet18"},
    "weights of timm": {"name": "resnet18.a1_in1k", "pretrained": True},
    "pretrained in kwargs": {"kwargs": {"pretrained": True}},
    "weights from an address": {"kwargs": {"pretrained_cfg": {"url": "http://127.0.0.1:9/x", "state_dict": None}}},
    "weights from an overlay": {"kwargs": {"pretrained_cfg_overlay": {"file": "/etc/passwd"}}},
    "a checkpoint": {"kwargs": {"checkpoint_path": "/etc/passwd"}},
    "another cache": {"kwargs": {"cache_dir": "/tmp/somewhere"}},
    "a class": {"kwargs": {"norm_layer": "os.system", "act_layer": "subprocess.Popen"}},
    "a block": {"kwargs": {"block": "os.system"}},
    "nested": {"kwargs": {"a": [[[[[[[[[[1]]]]]]]]]]}},
    "a long text": {"kwargs": {"act_layer": "relu" * 10_000}},
    "kwargs that are none": {"kwargs": [1, 2]},
    "another argument": {"device": "cuda:99"},
    "a transformer": {"name": "vit_base_patch16_224"},
    "infinite": {"kwargs": {"drop_path_rate": float("inf")}},
}


def load_hostile(folder: str) -> dict[str, Any]:
    """Loads files whose headers were written by somebody who means harm, with a network that only takes notes."""
    run = run_of(folder)
    path, model = Path(folder) / "backbone.safetensors", run.folder / "model.safetensors"
    backbone = load_backbone(path)
    contents = {path: (safetensors.torch.load_file(path), read_header(path))}
    contents[model] = safetensors.torch.load_file(model), read_model_header(model)
    loads = (
        (path, load_backbone),
        (path, lambda file: load_into(backbone, file)),
        (model, lambda _: trained_task(run)),
    )
    for file, load in 3 * loads:
        load(file)
    called: list[str] = []

    def note(self: Any, address: Any) -> None:
        called.append(str(address))
        raise OSError("no network here")

    socket.socket.connect = note  # type: ignore[method-assign]
    socket.getaddrinfo = lambda *arguments, **_: called.append(str(arguments)) or []
    memory = forget_peak_memory()
    found: dict[str, Any] = {}
    for name, arguments in HOSTILE.items():
        for file, (tensors, header) in contents.items():
            hostile = copy.deepcopy(header)
            hostile["backbone"] |= arguments
            hostile.pop("sha256")
            hostile["sha256"] = digest(hostile, tensors)
            file.write_bytes(safetensors.torch.save(tensors, {"ssl_toolkit": json.dumps(hostile)}))
        start = time.monotonic()
        outcomes = []
        for file, load in loads:
            try:
                load(file)
                outcomes.append("loaded")
            except WeightsError as error:
                outcomes.append(str(error).splitlines()[0])
            except BaseException as error:
                outcomes.append(f"another error: {error!r}")
        grown = peak_memory() - memory
        found[name] = [*outcomes, grown, time.monotonic() - start]
    return {"found": found, "called": called}


@pytest.mark.guarantee("S3")
@pytest.mark.slow
def test_hostile_headers_use_neither_memory_nor_network(tmp_path, reached):
    said = in_child(load_hostile, tmp_path)
    assert said["called"] == []
    refused = 0
    for name, (built, into, model, grown, seconds) in said["found"].items():
        for how, outcome in (("built", built), ("into", into), ("model", model)):
            # where downloads would go is of no weight, and what a network is built with is not asked where it is there
            if (name, how) in (("another cache", "built"), ("another cache", "model"), ("another argument", "into")):
                assert outcome == "loaded", (name, outcome)
                continue
            refused += 1
            assert f"{'model' if how == 'model' else 'backbone'}.safetensors" in outcome, (name, how, outcome)
            assert not outcome.startswith("another error"), (name, outcome)
        assert grown < 200_000, (name, grown)
        assert seconds < 60, (name, seconds)
    most, longest = (max(each[place] for each in said["found"].values()) for place in (3, 4))
    reached(
        f"{len(HOSTILE)} hostile headers with checksums that fit, each loaded in three ways: {refused} refused, "
        f"{3 * len(HOSTILE) - refused} loaded without what they ask for, {len(said['called'])} connections, "
        f"at most {most / 1000:.0f} MB more memory, at most {longest:.1f} s"
    )


def load_many_classes(folder: str) -> dict[str, Any]:
    """Loads a model file that claims to have many classes, for which the head would take 200 MB."""
    run = run_of(folder)
    file = run.folder / "model.safetensors"
    names = [str(number) for number in range(300_000)]
    tensors, header = safetensors.torch.load_file(file), read_model_header(file)
    header |= {"class_names": names, "num_classes": len(names)}
    header.pop("sha256")
    header["sha256"] = digest(header, tensors)
    file.write_bytes(safetensors.torch.save(tensors, {"ssl_toolkit": json.dumps(header)}))
    memory = forget_peak_memory()
    with pytest.raises(WeightsError) as refused:
        trained_task(run)
    return {"said": str(refused.value), "grown": peak_memory() - memory}


def test_a_network_larger_than_its_file_takes_no_memory(tmp_path):
    said = in_child(load_many_classes, tmp_path)
    assert "the file is not of so large a network" in said["said"]
    assert said["grown"] < 100_000


def test_what_a_file_is_for_is_compared_before_a_tensor_is_read(tmp_path, monkeypatch):
    backbone = save(tmp_path / "w.safetensors")
    save(tmp_path / "other.safetensors", in_channels=1)
    from ssl_toolkit import weights

    def never(*_: Any) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(weights, "read_tensors", never)
    with pytest.raises(WeightsError, match="does not fit this backbone"):
        load_into(backbone, tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "sidecar",
    [b"", b"\0" * 100, b"\xff" * 64, b"0" * 64, b"x" * (1 << 20), "folder", "missing", "pipe", "upper", "other"],
)
@pytest.mark.guarantee("S3")
def test_damaged_checksums_are_damage(tmp_path, sidecar, reached):
    import os

    file, beside = tmp_path / "step-1.ckpt", tmp_path / "step-1.ckpt.sha256"
    file.write_bytes(b"content")
    write_checksum(file, file)
    assert damage(file) is None
    sound = beside.read_bytes()
    beside.unlink()
    if sidecar == "folder":
        beside.mkdir()
    elif sidecar == "pipe":
        os.mkfifo(beside)
    elif sidecar == "upper":
        beside.write_bytes(sound.upper())
    elif sidecar == "other":
        beside.write_bytes(b" " + sound[1:])
    elif sidecar != "missing":
        beside.write_bytes(sidecar)
    problem = damage(file)
    assert problem
    assert "step-1.ckpt.sha256" in problem
    assert "\n" not in problem
    reached(f"{problem}")


def test_the_command_line_says_it_in_a_line(tmp_path, capsys):
    path = tmp_path / "backbone.safetensors"
    save(path)
    shutil.copy(path, tmp_path / "sound.safetensors")
    outer, body = split(path.read_bytes())
    for content in (b"", join(b"[" * 100_000, body), join({**outer, "__metadata__": 3}, body), join(outer, body[:-4])):
        path.write_bytes(content)
        status = main(
            ["export", "--weights", str(path), "--format", "timm", "--out", str(tmp_path / "out.safetensors")]
        )
        said = capsys.readouterr().err.strip()
        assert status == 2
        assert said.startswith("ssl-toolkit: error: ")
        assert "\n" not in said
        assert str(path) in said
    assert not (tmp_path / "out.safetensors").exists()
