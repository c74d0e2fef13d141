"""Convolutions on small maps as fully connected layers: equal to torch's, in value and gradient, and taken for them."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_toolkit.modules import small_maps
from ssl_toolkit.modules.norms import standardize_weights, standardized
from ssl_toolkit.modules.small_maps import SmallMapConv2d, quicken_small_maps

CASES = {
    "2x2": (2, 2, {"kernel_size": 3, "padding": 1}),
    "1x1": (1, 1, {"kernel_size": 3, "padding": 1}),
    "2x2 to 1x1": (2, 2, {"kernel_size": 3, "padding": 1, "stride": 2}),
    "without padding": (4, 4, {"kernel_size": 4}),
    "not square": (1, 4, {"kernel_size": (3, 5), "padding": (1, 2), "stride": (1, 1)}),
    "more padding than the kernel needs": (1, 1, {"kernel_size": 3, "padding": 2, "stride": 2}),
    "two strides": (2, 4, {"kernel_size": 3, "padding": 1, "stride": (2, 4)}),
    "with a bias": (2, 2, {"kernel_size": 3, "padding": 1, "bias": True}),
}


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what was convolved as a fully connected layer."""
    shapes: list[tuple[int, ...]] = []
    before = small_maps.convolve_as_linear

    def noted(x: Tensor, *others: Any) -> Tensor:
        shapes.append(tuple(x.shape))
        return before(x, *others)

    monkeypatch.setattr(small_maps, "convolve_as_linear", noted)
    return shapes


def convolution(**options: Any) -> tuple[nn.Conv2d, nn.Conv2d]:
    """A convolution of torch, and a copy that is quicker on small maps."""
    torch.manual_seed(0)
    own = nn.Sequential(nn.Conv2d(64, 66, **{"bias": False, **options}))
    quick = copy.deepcopy(own)
    quicken_small_maps(quick)
    assert type(quick[0]) is SmallMapConv2d
    return own[0], quick[0]  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_it_equals_the_convolution_of_torch(
    case: str, layout: torch.memory_format, products: list[tuple[int, ...]]
) -> None:
    height, width, options = CASES[case]
    own, quick = (each.double().to(memory_format=layout) for each in convolution(**options))
    x = torch.randn(64, 64, height, width, dtype=torch.float64).contiguous(memory_format=layout)
    found = []
    for layer in (own, quick):
        given = x.clone().requires_grad_()
        y = layer(given)
        torch.manual_seed(1)
        grads = torch.autograd.grad(y, [given, *layer.parameters()], torch.randn_like(y.contiguous()))
        found.append([y, *grads])
    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)
    assert products == [(64, 64, height, width)]


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((64, 64, 3, 3), {"kernel_size": 3, "padding": 1}),
        ((63, 64, 2, 2), {"kernel_size": 3, "padding": 1}),
        ((64, 64, 2, 2), {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
        ((64, 64, 2, 2), {"kernel_size": 3, "padding": "same"}),
        ((64, 64, 2, 2), {"kernel_size": 2, "padding": 1, "dilation": 2}),
        ((64, 2, 2), {"kernel_size": 3, "padding": 1}),
        ((64, 64, 2, 2), {"kernel_size": 1}),
        ((64, 64, 2, 2), {"kernel_size": 3, "padding": 1, "groups": 2}),
    ],
    ids=["larger map", "smaller batch", "reflected", "named padding", "dilated", "one image", "1x1 kernel", "groups"],
)
def test_what_it_is_not_for_stays_with_torch(
    shape: tuple[int, ...], options: dict[str, Any], products: list[tuple[int, ...]]
) -> None:
    own, quick = convolution(**options)
    x = torch.randn(shape)
    assert torch.equal(own(x), quick(x))
    assert not products


def test_a_kernel_larger_than_the_map_is_refused_as_before() -> None:
    _, quick = convolution(kernel_size=3)
    with pytest.raises(RuntimeError, match=r"[Kk]ernel size"):
        quick(torch.randn(64, 64, 2, 2))


def test_in_bfloat16_the_gradient_is_as_exact(products: list[tuple[int, ...]]) -> None:
    own, quick = convolution(kernel_size=3, padding=1)
    x, weight = torch.randn(64, 64, 2, 2), own.weight.detach().double().requires_grad_()
    direction = torch.randn(64, 66, 2, 2)
    (F.conv2d(x.double(), weight, padding=1) * direction).sum().backward()
    assert weight.grad is not None
    errors = []
    for layer in (own, quick):
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        y.backward(direction.to(torch.bfloat16))
        assert layer.weight.grad is not None
        errors.append(float((layer.weight.grad - weight.grad).norm() / weight.grad.norm()))
    assert errors[1] <= 1.5 * errors[0]
    assert len(products) == 1


def test_an_export_holds_for_every_size(products: list[tuple[int, ...]]) -> None:
    own, quick = convolution(kernel_size=3, padding=1)
    batch, side = torch.export.Dim("batch", min=2), torch.export.Dim("side", min=2)
    program = torch.export.export(
        nn.Sequential(quick), (torch.randn(64, 64, 2, 2),), dynamic_shapes=[{0: batch, 2: side, 3: side}]
    ).module()
    assert not products
    for size in ((64, 64, 2, 2), (3, 64, 5, 5)):
        x = torch.randn(size)
        torch.testing.assert_close(program(x), own(x))


def test_standardized_weights_take_it(products: list[tuple[int, ...]]) -> None:
    own = convolution(kernel_size=3, padding=1)[0].double()
    quick = nn.Sequential(copy.deepcopy(own))
    standardize_weights(quick)
    x = torch.randn(64, 64, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(quick(x), F.conv2d(x, standardized(own.weight), padding=1))
    assert len(products) == 1


def test_a_backbone_takes_it(products: list[tuple[int, ...]]) -> None:
    from ssl_toolkit import Backbone

    backbone = Backbone("resnet18", stem="middle").eval()
    with torch.inference_mode():
        backbone(torch.rand(64, 3, 32, 32))
    assert products == [(64, 512, 2, 2)] * 3
