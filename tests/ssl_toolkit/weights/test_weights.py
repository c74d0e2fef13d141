from __future__ import annotations

import hashlib
import json
import pickle
import random
import re

import pytest
import safetensors
import safetensors.torch
import timm
import torch

from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import WeightsError, load_backbone, load_into, read_header, save_backbone


def make(name="test_resnet", seed=0, **arguments):
    torch.manual_seed(seed)
    backbone = Backbone(name, **arguments)
    with torch.no_grad():
        backbone(torch.rand(4, backbone.in_channels, 32, 32))  # batch-norm statistics other than 0 and 1
    return backbone


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, make(), {"pretext": "simclr", "step": 12, "config": {"lr": 0.1, "names": ["a", "b"]}})
    return path


def rewrite(path, change):
    """Writes a file again after ``change(header)``, with a hash that fits: what a malicious author would do."""
    tensors, header = safetensors.torch.load_file(path), read_header(path)
    change(header)
    header.pop("sha256", None)
    header["sha256"] = reference_hash(header, tensors)
    path.write_bytes(safetensors.torch.save(tensors, {"ssl_toolkit": json.dumps(header)}))


def reference_hash(header, tensors):
    content = json.dumps(header, sort_keys=True).encode()
    for key, tensor in sorted(tensors.items()):
        content += f"\n{key} {tensor.dtype} {list(tensor.shape)}\n".encode() + tensor.numpy().tobytes()
    return hashlib.sha256(content).hexdigest()


def test_round_trip(file):
    backbone = load_backbone(file)
    assert equal(backbone, make())
    assert backbone.training
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(backbone.eval()(x), make().eval()(x))


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "test_resnet", "stem": "small", "in_channels": 1},
        {"name": "resnet10t", "kwargs": {"channels": [8, 8, 16, 16], "drop_path_rate": 0.2}},
        {"name": "test_efficientnet", "stem": "small"},
        {"name": "test_convnext"},
        {"name": "test_nfnet"},
    ],
)
def test_round_trip_of_other_backbones(tmp_path, arguments):
    backbone = make(**arguments)
    save_backbone(tmp_path / "w.safetensors", backbone, {})
    again = load_backbone(tmp_path / "w.safetensors")
    assert again.config() == backbone.config()
    assert equal(again, backbone)
    x = torch.rand(2, backbone.in_channels, 32, 32)
    assert torch.equal(again.eval()(x), backbone.eval()(x))


def test_header(file):
    header = read_header(file)
    assert header["format"] == 1
    assert header["backbone"] == make().config()
    assert header["num_features"] == 96
    assert (tuple(header["mean"]), tuple(header["std"])) == (make().mean, make().std)
    assert set(header["versions"]) == {"ssl-toolkit", "torch", "timm", "python"}
    assert (header["pretext"], header["step"]) == ("simclr", 12)
    assert header["config"] == {"lr": 0.1, "names": ["a", "b"]}
    recorded = header.pop("sha256")
    assert recorded == reference_hash(header, safetensors.torch.load_file(file))


def test_plain_timm_loads_the_file(file):
    model = timm.create_model("test_resnet", num_classes=0, checkpoint_path=str(file))
    assert equal(model, make().model)


def test_equal_content_gives_equal_bytes(file):
    header = {"pretext": "simclr", "step": 12, "config": {"lr": 0.1, "names": ["a", "b"]}}
    again = file.with_name("again.safetensors")
    save_backbone(again, make(), header)
    assert again.read_bytes() == file.read_bytes()


def test_any_precision_and_memory_format(file, tmp_path):
    path = tmp_path / "other.safetensors"
    for change in (lambda b: b.double(), lambda b: b.to(memory_format=torch.channels_last)):
        save_backbone(path, change(make()), {})
        assert equal(load_backbone(path), make())
    save_backbone(path, make().bfloat16(), {})
    assert {tensor.dtype for tensor in safetensors.torch.load_file(path).values()} == {torch.float32, torch.int64}
    target = make(seed=1).double()
    load_into(target, file)
    assert equal(target, make().double())


def test_load_into(file):
    backbone = make(seed=1)
    backbone.set_normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    report = load_into(backbone, file)
    assert equal(backbone, make())
    assert backbone.mean == make().mean
    num = len(make().state_dict())
    assert (report.num_loaded, report.num_total) == (num, num)
    assert str(report) == f"{num} of {num} tensors loaded from {file}"


def test_tags_pretraining_and_drop_rates_may_differ(file):
    rewrite(file, lambda header: header["backbone"].update(name="test_resnet.r160_in1k", pretrained=True))
    load_into(Backbone("test_resnet", kwargs={"drop_path_rate": 0.1}), file)
    assert load_backbone(file).config()["pretrained"] is False


@pytest.mark.parametrize(
    ("arguments", "reason", "lines"),
    [
        ({"name": "resnet10t"}, r"\d+ of \d+ tensors fit", ["- network: test_resnet", "+ network: resnet10t"]),
        ({"in_channels": 1}, r"89 of 90 tensors fit", ["- conv1.0.weight: [16, 3, 3, 3]", "+ in_channels: 1"]),
        ({"stem": "small"}, "right shapes, but the network differs", ["- stem: standard", "+ stem: small"]),
        ({"kwargs": {"output_stride": 8}}, "right shapes, but the network differs", ["+ kwargs.output_stride: 8"]),
    ],
)
def test_another_network_is_refused_with_a_diff(file, arguments, reason, lines):
    backbone = make(**{"name": "test_resnet", "seed": 1, **arguments})
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    with pytest.raises(WeightsError, match="does not fit this backbone") as error:
        load_into(backbone, file)
    first, *diff = str(error.value).splitlines()
    assert re.search(reason, first)
    assert set(lines) <= set(diff)
    assert len(diff) <= 11
    assert all(line[:2] in ("- ", "+ ", "  ") for line in diff)
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.state_dict().items())


def test_long_diffs_are_cut(file):
    with pytest.raises(WeightsError, match=r"\n  and \d+ more$"):
        load_into(make("test_convnext"), file)


@pytest.mark.slow
def test_every_flipped_byte_is_refused_or_harmless(file, tmp_path):
    content, expected = file.read_bytes(), make()
    damaged = tmp_path / "damaged.safetensors"
    end_of_header = 8 + int.from_bytes(content[:8], "little")
    random_places = random.Random(0)
    places = [
        *range(8),
        *random_places.choices(range(8, end_of_header), k=60),
        *random_places.choices(range(end_of_header, len(content)), k=40),
    ]
    refused = 0
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << random_places.randrange(8)
        damaged.write_bytes(flipped)
        try:
            backbone = load_backbone(damaged)
        except WeightsError:
            refused += 1
        else:  # white space in the header, say
            assert equal(backbone, expected)
            assert backbone.config() == expected.config()
    assert refused >= len(places) - 3


def test_truncated_file(file):
    content = file.read_bytes()
    for length in (0, 5, 1000, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(WeightsError, match="not a safetensors file, or a damaged one"):
            load_backbone(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(format=2), r"has format 2, this ssl-toolkit reads format 1; .*pip install -U ssl-toolkit"),
        (lambda h: h.update(format="x"), "header .* is damaged"),
        (lambda h: h.pop("mean"), "header .* is damaged"),
        (lambda h: h.update(std=[1.0]), "header .* is damaged"),
        (lambda h: h.update(mean=[float("nan")] * 3), "header .* is damaged"),
        (lambda h: h.update(backbone=[]), "header .* is damaged"),
        (lambda h: h["backbone"].update(name="resnet_81"), "cannot build the backbone .*knows no network"),
        (lambda h: h["backbone"].update(name=3), "header .* is damaged"),
        (lambda h: h["backbone"].update(kwargs=[3]), "header .* is damaged"),
        (lambda h: h["backbone"].update(size=3), "cannot build the backbone"),
        (lambda h: h["backbone"].update(kwargs={"checkpoint_path": "/etc/passwd"}), "may not hold 'checkpoint_path'"),
        # a network that would need 200 GB is never allocated
        (lambda h: h["backbone"].update(name="resnet18", kwargs={"channels": [60000] * 4}), "does not fit"),
        (lambda h: h["backbone"].update(kwargs={"channels": [90000] * 4}), "not one of a backbone: .* number 90000"),
    ],
)
def test_wrong_or_hostile_headers(file, change, message):
    rewrite(file, change)
    with pytest.raises(WeightsError, match=message):
        load_backbone(file)


def test_metadata_that_is_no_json(file):
    for text in ("{", "[" * 100_000, "3", "null"):
        file.write_bytes(safetensors.torch.save({"x": torch.zeros(1)}, {"ssl_toolkit": text}))
        with pytest.raises(WeightsError, match=r"header .* is damaged") as error:
            read_header(file)
        assert "\n" not in str(error.value)


def test_files_of_another_kind(file, tmp_path):
    plain = tmp_path / "timm.safetensors"
    safetensors.torch.save_file(make().model.state_dict(), plain)
    with pytest.raises(WeightsError, match="without the header of ssl-toolkit"):
        load_backbone(plain)
    for name, write in (
        ("epoch.ckpt", lambda path: torch.save({"state_dict": {}}, path)),
        ("old.pt", lambda path: torch.save({}, path, _use_new_zipfile_serialization=False)),
        ("raw.pkl", lambda path: path.write_bytes(pickle.dumps({}, protocol=2))),
    ):
        write(tmp_path / name)
        with pytest.raises(WeightsError, match=r"is a checkpoint .* give the backbone\.safetensors of its run"):
            load_backbone(tmp_path / name)
    (tmp_path / "notes.txt").write_text("hello, this is no weights file at all")
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_backbone(tmp_path / "notes.txt")


def test_missing_files(file, tmp_path):
    for path, message in (
        (tmp_path / "backbon.safetensors", r"there is no file .*; did you mean 'backbone\.safetensors'"),
        (tmp_path, r"is a folder, not a weights file; did you mean 'backbone\.safetensors'"),
        (tmp_path / "nowhere" / "backbone.safetensors", "there is no folder .*nowhere"),
        (tmp_path.with_name(tmp_path.name + "x") / "w", f"there is no folder .*did you mean '{tmp_path.name}'"),
    ):
        with pytest.raises(WeightsError, match=message) as error:
            load_backbone(path)
        assert "\n" not in str(error.value)


def test_weights_that_are_not_finite_are_not_saved(file):
    before = file.read_bytes()
    broken = make()
    with torch.no_grad():
        broken.model.layer1[0].conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(WeightsError, match=r"1 of 90 tensors are not finite, the first is layer1\.0\.conv1\.weight"):
        save_backbone(file, broken, {})
    assert file.read_bytes() == before


def test_header_must_be_plain_data(file):
    with pytest.raises(WeightsError, match="must be numbers, strings, lists and dicts"):
        save_backbone(file, make(), {"config": object()})
    load_backbone(file)


def test_an_interrupted_write_leaves_the_old_file(file, monkeypatch):
    before = file.read_bytes()

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_backbone(file, make(seed=1), {})
    assert file.read_bytes() == before
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]
