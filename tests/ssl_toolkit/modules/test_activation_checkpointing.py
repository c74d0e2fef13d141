"""Gradient checkpointing against the same step without it."""

import copy

import pytest
import torch

from ssl_toolkit.distributed.sync_batchnorm import convert_sync_batchnorm
from ssl_toolkit.modules.activation_checkpointing import checkpoint_stages
from ssl_toolkit.modules.backbone import Backbone


def bytes_kept(backbone, images):
    """What a forward pass keeps for the gradient, beside the weights."""
    weights = {weight.data_ptr() for weight in backbone.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = backbone(images)
    assert output.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "regnety_002"])
@pytest.mark.parametrize("synchronised", [False, True])
def test_a_step_is_the_same_with_less_memory(name, synchronised):
    torch.manual_seed(0)
    plain = Backbone(name)
    if synchronised:
        convert_sync_batchnorm(plain)
    checkpointed = copy.deepcopy(plain)
    checkpoint_stages(checkpointed)
    images = torch.rand(4, 3, 64, 64)
    for backbone in (plain, checkpointed):
        for _ in range(2):
            torch.manual_seed(1)  # of dropout, which the second pass must draw again
            backbone(images).square().mean().backward()
    assert list(plain.state_dict()) == list(checkpointed.state_dict())
    for (key, expected), found in zip(plain.state_dict().items(), checkpointed.state_dict().values(), strict=True):
        assert torch.equal(expected, found), key
    for (key, expected), found in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        if expected.grad is None:
            assert found.grad is None, key
        else:
            assert found.grad is not None, key
            torch.testing.assert_close(found.grad, expected.grad, msg=key)
    assert bytes_kept(checkpointed, images) < 0.6 * bytes_kept(plain, images)


def test_evaluation_keeps_nothing_again():
    backbone = Backbone("resnet10t", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4}).eval()
    images = torch.rand(2, 3, 32, 32)
    expected = backbone(images)
    checkpoint_stages(backbone)
    assert torch.equal(backbone(images), expected)
    assert set(backbone.stage_features(images)) == {*backbone.stages, "pooled"}
