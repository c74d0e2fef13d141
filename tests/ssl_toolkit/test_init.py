"""Initialisations: the variance the papers ask for, and only where the pattern says."""

import pytest
import torch
from torch import nn

from ssl_toolkit.init import Kaiming, Normal, Xavier, Zeros


def test_the_variances():
    torch.manual_seed(0)
    module = nn.Linear(600, 300)
    for initialize, variance in [
        (Normal("weight", std=0.3), 0.09),
        (Kaiming("weight"), 2 / 600),
        (Kaiming("weight", mode="fan_out"), 2 / 300),
        (Xavier("weight"), 2 / 900),
    ]:
        assert initialize(module) == ["weight"]
        assert module.weight.var().item() == pytest.approx(variance, rel=0.02)


def test_only_matching_parameters_change():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    before = module[0].weight.clone()
    assert Zeros(r"^1\.")(module) == ["1.weight", "1.bias"]
    assert torch.equal(module[0].weight, before)
    assert module[1].weight.abs().sum() == 0


def test_a_pattern_without_a_match_is_an_error():
    with pytest.raises(ValueError, match="no parameter's name matches 'heat'"):
        Zeros("heat")(nn.Linear(2, 2))
