"""Prototypes: cosines against a loop, and what they do not depend on."""

import math

import pytest
import torch

from ssl_toolkit.modules import Prototypes


def test_they_give_the_cosine_with_each_prototype():
    torch.manual_seed(0)
    prototypes, embeddings = Prototypes(5, 3).double(), torch.randn(4, 5, dtype=torch.float64)
    prototypes.weight.data.mul_(torch.tensor([[1.0], [3.0], [0.5]]))
    found = prototypes(embeddings)
    for i, one in enumerate(embeddings.tolist()):
        for k, other in enumerate(prototypes.weight.tolist()):
            product = sum(a * b for a, b in zip(one, other, strict=True))
            assert found[i, k].item() == pytest.approx(product / math.hypot(*one) / math.hypot(*other), rel=1e-12)
    torch.testing.assert_close(prototypes(7 * embeddings), found)


def test_they_are_not_rounded_under_autocast():
    torch.manual_seed(0)
    prototypes, embeddings = Prototypes(5, 3), torch.randn(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = prototypes(embeddings)
    assert found.dtype == torch.float32
    assert torch.equal(found, prototypes(embeddings))


def test_a_single_one_is_refused():
    with pytest.raises(ValueError, match=r"^model.num_prototypes is 1, expected at least 2$"):
        Prototypes(5, 1)
