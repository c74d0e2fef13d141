"""Model files: what is saved is what is loaded, and a header that lacks something is one line."""

import json

import pytest
import safetensors.torch
import torch
from torch import nn

from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import WeightsError, load_backbone
from ssl_toolkit.weights.model import load_model, read_model_header, save_model
from ssl_toolkit.weights.reading import sha256

HEADER = {
    "task": "downstream.classification.Classification",
    "step": 7,
    "class_names": ["ant", "bee"],
    "num_classes": 2,
    "image_size": 32,
    "ranges": {"uint16": [0, 4095.0]},
}


def network(seed):
    torch.manual_seed(seed)
    parts = {"backbone": Backbone("test_resnet"), "head": nn.Linear(160, 2, dtype=torch.float64)}
    return nn.ModuleDict(parts)


def save(path, seed=0, **changed):
    model = network(seed)
    save_model(path, model["backbone"], model.state_dict(), {**HEADER, **changed})
    return model


def test_all_tensors_are_saved_and_loaded_whatever_their_dtype(tmp_path):
    file = tmp_path / "model.safetensors"
    saved, loaded = save(file), network(1)
    assert not torch.equal(saved["head"].weight, loaded["head"].weight)
    load_model(file, loaded)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, saved.state_dict()[name].float().to(tensor.dtype)), name
    assert all(each.dtype in (torch.float32, torch.int64) for each in safetensors.torch.load_file(file).values())
    header = read_model_header(file)
    assert {name: header[name] for name in HEADER} == HEADER
    assert Backbone(**header["backbone"]).config() == saved["backbone"].config()


def test_weights_that_are_not_finite_leave_the_older_file(tmp_path):
    file = tmp_path / "model.safetensors"
    model = save(file)
    before = file.read_bytes()
    with torch.no_grad():
        model["head"].bias[1] = float("inf")
    with pytest.raises(WeightsError, match=r"not saved to .*: 1 of \d+ tensors are not finite, the first is head.bias"):
        save_model(file, model["backbone"], model.state_dict(), HEADER)
    assert file.read_bytes() == before


def test_a_changed_byte_and_another_network_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    save(file)
    model = network(1)
    model["head"] = nn.Linear(160, 3)
    with pytest.raises(WeightsError, match=r"does not fit the network .*\n- head.weight: \[2, 160\]\n\+ head.weight: "):
        load_model(file, model)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="does not match its SHA-256"):
        load_model(file, network(1))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"task": None}, "task is None, expected a text"),
        ({"class_names": ["ant", 3]}, r"class_names\[1\] is 3, expected a text"),
        ({"class_names": ["ant", "ant"]}, "2 names for 2 classes, expected a different one for each"),
        ({"num_classes": 3}, "2 names for 3 classes, expected a different one for each"),
        ({"num_classes": True}, "num_classes is True, expected a whole number"),
        ({"image_size": "32"}, "image_size is '32', expected a whole number of at least 1"),
        ({"ranges": {"uint16": [0, "4095"]}}, "expected a finite number"),
        ({"step": -1}, "step is -1, expected a count"),
        ({"holds": "something"}, "is of a backbone without a head"),
        ({"mean": [0.5]}, "it lacks format, backbone, num_features, mean"),
    ],
)
def test_a_header_that_is_none_is_one_line(tmp_path, changed, said):
    file = tmp_path / "model.safetensors"
    save(file)
    header = {**read_model_header(file), **changed}
    header.pop("sha256")
    tensors = safetensors.torch.load_file(file)
    header["sha256"] = sha256(header, tensors)
    file.write_bytes(safetensors.torch.save(tensors, {"ssl_toolkit": json.dumps(header)}))
    with pytest.raises(WeightsError, match=said) as refused:
        read_model_header(file)
    assert "\n" not in str(refused.value)
    assert str(file) in str(refused.value)


def test_a_model_file_is_no_backbone_s(tmp_path):
    save(tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"give the backbone\.safetensors of its run instead"):
        load_backbone(tmp_path / "model.safetensors")
