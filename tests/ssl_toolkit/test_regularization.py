"""Penalties against hand values."""

import pytest
import torch
from torch import nn

from ssl_toolkit.regularization import L1, FeatureNorm


def test_l1_sums_the_weights_that_match_and_no_biases():
    module = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
    for parameter, value in zip(module.parameters(), (-3.0, 5.0, 2.0, 7.0), strict=True):
        nn.init.constant_(parameter, value)
    features = torch.zeros(1, 2)
    assert L1(0.5).penalty(module, features).item() == pytest.approx(0.5 * (3 + 3 + 2))
    assert L1(0.5, pattern="^1").penalty(module, features).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no trainable weight"):
        L1(0.5, pattern="head").penalty(module, features)


def test_l1_pushes_weights_to_zero():
    module = nn.Linear(1, 1, bias=False)
    L1(2.0).penalty(module, torch.zeros(1, 1)).backward()
    assert module.weight.grad.item() == 2.0 * module.weight.sign().item()


def test_feature_norm():
    assert FeatureNorm(0.1).penalty(nn.Identity(), torch.tensor([[3.0, 4.0], [0.0, 1.0]])).item() == pytest.approx(1.3)
