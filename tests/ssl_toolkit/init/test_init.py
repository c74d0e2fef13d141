"""Initialisations: the variance that the papers ask for, and only where the pattern says."""

import pytest
import timm
import torch
from torch import nn

from ssl_toolkit.init import (
    Constant,
    Identity,
    Kaiming,
    Keep,
    LeCun,
    Normal,
    Orthogonal,
    Sparse,
    TruncatedNormal,
    Uniform,
    Xavier,
    ZeroGamma,
    Zeros,
    check_covered,
)


@pytest.mark.parametrize(
    ("initialize", "variance"),
    [
        (Normal("weight", std=0.3), 0.09),
        (Uniform("weight", bound=0.3), 0.3**2 / 3),
        # of a standard normal cut at 2: 1 - 4 phi(2) / (2 Phi(2) - 1)
        (TruncatedNormal("weight", std=0.3), 0.09 * 0.774),
        (Kaiming("weight"), 2 / 600),
        (Kaiming("weight", distribution="uniform"), 2 / 600),
        (Kaiming("weight", mode="fan_out"), 2 / 300),
        (Kaiming("weight", negative_slope=0.5), 2 / 600 / 1.25),
        (Xavier("weight"), 2 / 900),
        (Xavier("weight", distribution="normal", activation="tanh"), 2 / 900 * 25 / 9),
        (LeCun("weight"), 1 / 600),
        (LeCun("weight", distribution="uniform"), 1 / 600),
        (Orthogonal("weight"), 1 / 600),
        (Sparse("weight", num_inputs=15, std=2.0), 4 * 15 / 600),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, float) else "",
)
def test_the_variances(initialize, variance):
    torch.manual_seed(0)
    module = nn.Linear(600, 300)
    bias = module.bias.clone()
    assert initialize(module) == ["weight"]
    assert module.weight.mean().abs() < 0.02 * variance**0.5
    assert module.weight.var().item() == pytest.approx(variance, rel=0.04)
    assert torch.equal(module.bias, bias)


def test_a_convolution_counts_the_places_of_its_kernel():
    torch.manual_seed(0)
    module = nn.Conv2d(40, 60, 3)
    for initialize, variance in [(Kaiming("weight"), 2 / 360), (Kaiming("weight", mode="fan_out"), 2 / 540)]:
        initialize(module)
        assert module.weight.var().item() == pytest.approx(variance, rel=0.04)


def test_kaiming_keeps_the_variance_through_relu_layers_and_small_numbers_do_not():
    """The textbook picture: ten layers of 400 units."""
    torch.manual_seed(0)
    network = nn.Sequential(*[layer for _ in range(10) for layer in (nn.Linear(400, 400, bias=False), nn.ReLU())])
    inputs = torch.randn(200, 400)
    spread = {}
    for name, initialize in {"kaiming": Kaiming(""), "small": Normal("", std=0.01), "large": Normal("", std=1)}.items():
        initialize(network)
        spread[name] = network(inputs).square().mean().sqrt().item()
    assert 0.3 < spread["kaiming"] < 3
    assert spread["small"] < 1e-6
    assert spread["large"] > 1e10


def test_orthogonal_matrices():
    torch.manual_seed(0)
    wide, kernel = nn.Linear(20, 8), nn.Conv2d(4, 6, 3)
    Orthogonal("weight", gain=2.0)(wide)
    Orthogonal("weight")(kernel)
    torch.testing.assert_close(wide.weight @ wide.weight.T, 4 * torch.eye(8), atol=1e-5, rtol=0)
    rows = kernel.weight.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(6), atol=1e-5, rtol=0)


def test_sparse_units_have_so_many_inputs():
    torch.manual_seed(0)
    module = nn.Conv2d(4, 50, 3)
    Sparse("weight", num_inputs=5)(module)
    assert (module.weight.flatten(1) != 0).sum(dim=1).tolist() == [5] * 50
    narrow = nn.Linear(3, 7)
    Sparse("weight", num_inputs=5)(narrow)
    assert (narrow.weight != 0).all()


def test_identity_passes_its_input_on():
    inputs = torch.randn(2, 4, 5, 5)
    kernel, layer = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Linear(5, 5, bias=False)
    Identity("")(kernel)
    Identity("", gain=0.5)(layer)
    torch.testing.assert_close(kernel(inputs), inputs)
    torch.testing.assert_close(layer(inputs), 0.5 * inputs)


def test_constant_zeros_and_keep():
    module = nn.Linear(3, 3)
    before = module.weight.clone()
    assert Keep("")(module) == ["weight", "bias"]
    assert torch.equal(module.weight, before)
    Constant("bias", 0.1)(module)
    Zeros("weight")(module)
    assert module.bias.tolist() == pytest.approx([0.1] * 3)
    assert not module.weight.any()


@pytest.mark.parametrize(("name", "last"), [("resnet18", "bn2.weight"), ("resnet50", "bn3.weight")])
def test_zero_gamma_makes_each_block_the_identity(name, last):
    network = timm.create_model(name, zero_init_last=False).eval()
    network.bn1.weight.data.fill_(0.7)
    names = ZeroGamma()(network)
    assert names == [each for each, _ in network.named_parameters() if each.startswith("layer") and each.endswith(last)]
    assert network.bn1.weight.unique().item() == pytest.approx(0.7)
    inputs = torch.rand(1, network.layer1[1].conv1.in_channels, 8, 8)
    torch.testing.assert_close(network.layer1[1](inputs), inputs)
    assert ZeroGamma("layer3")(network) == [each for each in names if each.startswith("layer3")]
    with pytest.raises(ValueError, match="no residual block"):
        ZeroGamma()(nn.Linear(2, 2))


def test_only_matching_parameters_change():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    before = module[0].weight.clone()
    assert Zeros(r"^1\.")(module) == ["1.weight", "1.bias"]
    assert torch.equal(module[0].weight, before)
    assert module[1].weight.abs().sum() == 0


def test_no_parameter_is_forgotten():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"nothing is said of 0\.bias, 1\.weight, 1\.bias \(of one"):
        check_covered([Kaiming("")], module)
    check_covered([Kaiming(""), Keep(r"^1"), Zeros(r"0\.bias")], module)
    module[1].requires_grad_(False)
    check_covered([Kaiming(""), Zeros(r"0\.bias")], module)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Zeros("heat")(nn.Linear(2, 2)), "no parameter has a name that matches 'heat'"),
        (lambda: Kaiming("bias")(nn.Linear(2, 2)), "no parameter of two or more dimensions"),
        (lambda: Zeros("(")(nn.Linear(2, 2)), "is no regular expression"),
        (lambda: Normal("", std=0), "std is 0"),
        (lambda: Kaiming("", mode="fanin"), "did you mean 'fan_in'"),
        (lambda: Xavier("", distribution="gauss"), "expected normal or uniform"),
        (lambda: Sparse("", num_inputs=0), "num_inputs is 0"),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()
