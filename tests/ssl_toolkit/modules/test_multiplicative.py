"""The multiplicative layer beside its formula, and what it represents exactly."""

from __future__ import annotations

import pytest
import torch

from ssl_toolkit.modules.multiplicative import MultiplicativeInteraction


def inputs(first, second, batch=5):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(batch, width, generator=generator, dtype=torch.float64) for width in (first, second))


@pytest.mark.parametrize("rank", [None, 1, 4])
def test_each_output_is_the_formula(rank):
    layer = MultiplicativeInteraction(3, 2, 4, rank).double()
    x, z = inputs(3, 2)
    found = layer(x, z)
    # what the formula says, one number after the other
    for sample in range(len(x)):
        for k in range(4):
            w = (
                layer.products[k]
                if rank is None
                else sum(layer.mix[k, r] * torch.outer(layer.of_first[r], layer.of_second[r]) for r in range(rank))
            )
            weight, bias = layer.linear.weight[k], layer.linear.bias[k]
            expected = x[sample] @ w @ z[sample] + weight[:3] @ x[sample] + weight[3:] @ z[sample] + bias
            torch.testing.assert_close(found[sample, k], expected)


def test_an_inner_product_is_exact():
    x, z = inputs(6, 6)
    for rank in (None, 6):
        layer = MultiplicativeInteraction(6, 6, 1, rank).double()
        with torch.no_grad():
            layer.linear.weight.zero_()
            layer.linear.bias.zero_()
            if rank is None:
                layer.products.copy_(torch.eye(6).unsqueeze(0))
            else:
                layer.of_first.copy_(torch.eye(6))
                layer.of_second.copy_(torch.eye(6))
                layer.mix.fill_(1)
        torch.testing.assert_close(layer(x, z).squeeze(1), (x * z).sum(dim=1))


def test_the_gradient_is_that_of_the_formula():
    layer = MultiplicativeInteraction(3, 2, 2, 2).double()
    assert torch.autograd.gradcheck(layer, tuple(each.requires_grad_() for each in inputs(3, 2)))


@pytest.mark.parametrize("rank", [None, 8])
def test_outputs_begin_with_the_scale_of_their_inputs(rank):
    torch.manual_seed(0)
    layer = MultiplicativeInteraction(64, 32, 256, rank)
    outputs = layer(torch.randn(512, 64), torch.randn(512, 32))
    assert 0.8 < float(outputs.detach().std()) < 1.6


def test_widths_below_one_are_refused():
    for widths in ((0, 2, 2), (2, 0, 2), (2, 2, 0), (2, 2, 2, 0)):
        with pytest.raises(ValueError, match="is 0, expected at least 1"):
            MultiplicativeInteraction(*widths)
