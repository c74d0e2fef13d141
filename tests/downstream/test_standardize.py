"""`Standardize`: the statistics of all samples so far, in one process or several."""

import pytest
import torch

from downstream.base.standardize import Standardize

SIZES = [4, 1, 7, 3]


def make_batches():
    torch.manual_seed(0)
    scale = torch.tensor([1.0, 100.0, 1e-2, 0.0])
    return [scale * (torch.randn(size, 4) + 5) for size in SIZES]


def test_before_training_nothing_changes():
    features = torch.randn(3, 4)
    assert torch.allclose(Standardize(4).eval()(features), features, rtol=1e-5)


def test_statistics_are_those_of_all_samples():
    layer = Standardize(4, eps=1e-12)
    seen = torch.zeros(0, 4)
    for batch in make_batches():
        seen = torch.cat([seen, batch])
        found = layer(batch)
        expected = (batch - seen.mean(dim=0)) / (seen.var(dim=0, correction=0) + 1e-12).sqrt()
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert layer.count == sum(SIZES)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    assert set(before) == {"count", "mean", "variance"}
    layer.eval()(batch)
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())


def test_gradients_pass_as_through_constants():
    layer = Standardize(4)
    features = torch.randn(5, 4, requires_grad=True)
    layer(features).sum().backward()
    assert torch.allclose(features.grad, torch.rsqrt(layer.variance + layer.eps).expand(5, 4))


def count_part(rank_batches):
    layer = Standardize(4)
    for batch in rank_batches[torch.distributed.get_rank()]:
        layer(batch)
    return layer.state_dict()


@pytest.mark.slow
def test_two_processes_equal_one(run_processes):
    batches = make_batches()
    single = Standardize(4)
    for first, second in (batches[:2], batches[2:]):
        single(torch.cat([first, second]))
    for state in run_processes(count_part, 2, [batches[::2], batches[1::2]]):
        assert all(torch.allclose(state[name], tensor, rtol=1e-4) for name, tensor in single.state_dict().items())
