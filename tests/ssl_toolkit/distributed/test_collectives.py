"""Two processes against one process that holds both batches, in float64."""

from __future__ import annotations

import copy
import time

import pytest
import timm
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from ssl_toolkit.distributed.collectives import all_reduce_mean, all_reduce_sum, gather, gather_uneven, standardize
from ssl_toolkit.distributed.ranks import rank, world_size
from ssl_toolkit.distributed.sync_batchnorm import SyncBatchNorm, convert_sync_batchnorm


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def contrast(embeddings):
    """A loss in which every embedding meets every other."""
    return (embeddings @ embeddings.T).sin().logsumexp(1).sum()


def gather_and_contrast(x):
    own = x.chunk(world_size())[rank()].clone().requires_grad_()
    everything = gather(own)
    loss = contrast(everything)
    loss.backward()
    return everything.detach(), loss.item(), own.grad


def test_gather_is_one_process_with_the_whole_batch(run_processes):
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    loss = contrast(x)
    loss.backward()
    results = run_processes(gather_and_contrast, 2, x.detach())
    for everything, value, _ in results:
        assert torch.equal(everything, x)
        assert value == pytest.approx(loss.item(), abs=1e-12)
    # every process computed the whole loss, so each gradient is twice that of one process; DDP averages over the two
    close(torch.cat([grad for _, _, grad in results]) / 2, x.grad)


def gather_unequal(shapes, dtypes):
    start = time.monotonic()
    with pytest.raises(ValueError, match="the same shape in every process") as error:
        gather(torch.zeros(shapes[rank()], dtype=dtypes[rank()]))
    return str(error.value), time.monotonic() - start


@pytest.mark.parametrize(
    ("shapes", "dtypes", "named"),
    [
        ([(4, 3), (3, 3)], [torch.float32] * 2, ["[4, 3]", "[3, 3]"]),
        ([(4, 3), (4, 3, 1)], [torch.float32] * 2, ["[4, 3]", "[4, 3, 1]"]),
        ([(4, 3), (4, 3)], [torch.float32, torch.bfloat16], ["float32", "bfloat16"]),
    ],
)
def test_gather_refuses_unequal_shapes_in_every_process(run_processes, shapes, dtypes, named):
    for message, seconds in run_processes(gather_unequal, 2, shapes, dtypes):
        assert all(name in message for name in named)
        assert seconds < 5


def global_moments(x, parts):
    """A loss of sums over all samples, and one of standardised columns; of this process's part, their gradients."""
    own = x.split(parts)[rank()].clone().requires_grad_()
    # a sum that is not the last thing to be computed, and of what is not contiguous
    total = all_reduce_sum((own.T @ own).T)
    columns = standardize(own)
    # sums of about 80,000: their sine would make rounding a thousand times as large
    loss = (total / 1000).sin().sum() + all_reduce_sum((columns**3).sum(0)).square().sum()
    loss.backward()
    return total.detach(), columns.detach(), loss.item(), own.grad


@pytest.mark.parametrize("parts", [[4, 4], [6, 2], [7, 1]])
def test_sums_and_standardized_columns_are_those_of_one_process(run_processes, parts):
    x = 3 * torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 100
    total, columns, loss, gradient = global_moments(x, [8])
    close(total, (x.T @ x).T)
    close(columns, (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt())
    totals, parts_of_columns, losses, gradients = zip(*run_processes(global_moments, 2, x, parts), strict=True)
    for each, value in zip(totals, losses, strict=True):
        close(each, total)
        assert value == pytest.approx(loss, rel=1e-10)
    close(torch.cat(parts_of_columns), columns)
    # twice, as with gather
    close(torch.cat(gradients) / 2, gradient)


def test_standardized_columns_of_one_sample_or_one_value_are_zero():
    x = torch.randn(5, 2)
    x[:, 1] = 7
    columns = standardize(x)
    torch.testing.assert_close(columns[:, 0], torch.nn.functional.batch_norm(x, None, None, training=True)[:, 0])
    assert (columns[:, 1] == 0).all()
    assert (standardize(x[:1]) == 0).all()


def average(values):
    x = values[rank()].requires_grad_()
    return all_reduce_mean(x), x.detach()


def test_all_reduce_mean(run_processes):
    values = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])]
    for (mean, unchanged), value in zip(run_processes(average, 2, values), values, strict=True):
        assert torch.equal(mean, torch.tensor([2.0, 4.0]))
        assert not mean.requires_grad
        assert torch.equal(unchanged, value)


def test_one_process_changes_nothing():
    x = torch.randn(3, 2, requires_grad=True)
    assert (rank(), world_size()) == (0, 1)
    assert gather(x) is x
    assert all_reduce_sum(x) is x
    assert torch.equal(all_reduce_mean(x), x)


def make_norm(kind):
    torch.manual_seed(0)
    if kind == "1d":
        norm, shape = nn.BatchNorm1d(5), (7, 5)
    elif kind == "1d sequence":
        norm, shape = nn.BatchNorm1d(5, momentum=None), (7, 5, 3)
    elif kind == "2d":
        norm, shape = nn.BatchNorm2d(5), (7, 5, 4, 3)
    elif kind == "2d without weight":
        norm, shape = nn.BatchNorm2d(5, affine=False), (7, 5, 4, 3)
    elif kind == "2d without statistics":
        norm, shape = nn.BatchNorm2d(5, track_running_stats=False), (7, 5, 4, 3)
    else:
        norm, shape = BatchNormAct2d(5, act_layer=nn.SiLU), (7, 5, 4, 3)
    if norm.weight is not None:
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)
    return norm.double(), torch.randn(shape, dtype=torch.float64) + 3


def steps(module, x, parts):
    """Two training steps on this process's part of the batch, then the output in eval mode."""
    x = x.split(parts)[rank()].clone().requires_grad_()
    for _ in range(2):
        y = module(x)
        (y.sin() * y).sum().backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    for gradient in gradients.values():
        if world_size() > 1:
            dist.all_reduce(gradient)
    buffers = dict(module.named_buffers())
    module.eval()
    return y.detach(), x.grad, gradients, buffers, module(x).detach()


KINDS = ["1d", "1d sequence", "2d", "2d without weight", "2d without statistics", "with activation"]


def sync_steps():
    results = []
    for kind in KINDS:
        module, x = make_norm(kind)
        results.append(steps(convert_sync_batchnorm(module), x, [4, 3]))  # not the same batch size
    return results


def check(results, expected):
    outputs, x_grads, gradients, buffers, evaluated = zip(*results, strict=True)
    close(torch.cat(outputs), expected[0])
    close(torch.cat(x_grads), expected[1])
    for side in range(2):
        for name, value in expected[2].items():
            close(gradients[side][name], value)
        for name, value in expected[3].items():
            close(buffers[side][name], value)
    return evaluated


def test_sync_batchnorm_is_one_process_with_the_whole_batch(run_processes):
    results = run_processes(sync_steps, 2)
    for number, kind in enumerate(KINDS):
        module, x = make_norm(kind)
        expected = steps(module, x, [7])
        evaluated = check([result[number] for result in results], expected)
        if kind != "2d without statistics":  # which uses the batch in eval mode too, as the local layer does
            close(torch.cat(evaluated), expected[4])


MODELS = {"resnet": "test_resnet", "efficientnet": "test_efficientnet"}


def make_model(name):
    torch.manual_seed(1)
    return timm.create_model(name, num_classes=0).double(), torch.randn(6, 3, 32, 32, dtype=torch.float64)


def sync_models():
    results = []
    for name in MODELS.values():
        model, x = make_model(name)
        results.append(steps(convert_sync_batchnorm(model), x, [4, 2]))
    return results


def test_sync_batchnorm_in_networks(run_processes):
    results = run_processes(sync_models, 2)
    for number, name in enumerate(MODELS.values()):
        model, x = make_model(name)
        expected = steps(model, x, [6])
        close(torch.cat(check([result[number] for result in results], expected)), expected[4])


@pytest.mark.parametrize("name", MODELS.values())
def test_conversion_keeps_the_network(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0)
    x = torch.randn(4, 3, 32, 32)
    converted = convert_sync_batchnorm(copy.deepcopy(model))
    assert not any(type(part) in (nn.BatchNorm2d, BatchNormAct2d) for part in converted.modules())
    assert any(isinstance(part, SyncBatchNorm) for part in converted.modules())
    assert list(converted.state_dict()) == list(model.state_dict())
    assert torch.equal(converted(x), model(x))
    assert torch.equal(converted.eval()(x), model.eval()(x))
    for one, other in zip(converted.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_conversion_shares_parameters_keeps_dropout_and_mode():
    norm = BatchNormAct2d(4, drop_layer=nn.Dropout).eval()
    converted = convert_sync_batchnorm(norm)
    assert isinstance(converted, SyncBatchNorm)
    assert converted.weight is norm.weight
    assert isinstance(converted.drop, nn.Dropout)
    assert not converted.training
    assert convert_sync_batchnorm(converted) is converted
    with pytest.raises(ValueError, match="channels"):
        converted(torch.zeros(4))


def test_conversion_keeps_hooks():
    norm, seen = nn.BatchNorm2d(3), []
    norm.register_forward_pre_hook(lambda _, inputs: (inputs[0] + 1,))
    norm.register_forward_hook(lambda _, inputs, named, output: seen.append(named), with_kwargs=True)
    handle = norm.register_forward_hook(lambda _, inputs, output: 2 * output)
    x = torch.randn(4, 3, 5, 5)
    expected = copy.deepcopy(norm)(x)
    converted = convert_sync_batchnorm(norm)
    assert torch.equal(converted(x), expected)
    handle.remove()
    assert torch.equal(converted(x), expected / 2)
    assert seen == [{}] * 3


def bfloat16_step():
    torch.manual_seed(0)
    norm = convert_sync_batchnorm(nn.BatchNorm2d(3))
    x = (torch.randn(8, 3, 4, 4) + 100).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    own = x.chunk(2)[rank()].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(own)
    y.float().pow(3).sum().backward()
    channels_last = y.is_contiguous(memory_format=torch.channels_last)
    return y.detach(), own.grad, norm.weight.grad, norm.running_var, channels_last


def test_sync_batchnorm_in_bfloat16_has_float32_statistics(run_processes):
    torch.manual_seed(0)
    x = (torch.randn(8, 3, 4, 4) + 100).to(torch.bfloat16)
    norm = nn.BatchNorm2d(3)
    expected = norm(x.float())
    results = run_processes(bfloat16_step, 2)
    y = torch.cat([result[0] for result in results])
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected.detach(), rtol=1e-2, atol=1e-2)
    for _, x_grad, weight_grad, running_var, channels_last in results:
        assert x_grad.dtype == torch.bfloat16
        assert weight_grad.dtype == torch.float32
        torch.testing.assert_close(running_var, norm.running_var, rtol=1e-4, atol=1e-4)
        assert channels_last


def fail_in_rank_1():
    if rank() == 1:
        raise RuntimeError("the cause")


def sleep():
    time.sleep(60)


@pytest.mark.slow
def test_run_processes_reports_failures(run_processes):
    with pytest.raises(AssertionError, match=r"rank 1(?s:.*)the cause"):
        run_processes(fail_in_rank_1, 2)
    with pytest.raises(AssertionError, match="rank 0: killed"):
        run_processes(sleep, 1, timeout=3)


def gathered_uneven(lengths):
    """A loss of all rows, as each process computes it, and its gradient averaged as DDP does."""
    rows = torch.randn(sum(lengths), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = sum(lengths[: rank()])
    own = rows[start : start + lengths[rank()]].clone().requires_grad_()
    everything, place = gather_uneven(own)
    loss = everything.std(dim=0).square().sum() + (everything @ everything.T).tanh().sum()
    loss.backward()
    return loss.item(), place, own.grad / world_size()


@pytest.mark.parametrize("lengths", [[4, 3], [1, 5], [3, 3]])
def test_rows_of_different_numbers_are_gathered_with_the_gradient_of_one_process(lengths, run_processes):
    rows = torch.randn(sum(lengths), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows.requires_grad_()
    loss = rows.std(dim=0).square().sum() + (rows @ rows.T).tanh().sum()
    loss.backward()
    found = run_processes(gathered_uneven, 2, lengths)
    assert [place for _, place, _ in found] == [0, lengths[0]]
    assert [value for value, _, _ in found] == pytest.approx([loss.item()] * 2)
    torch.testing.assert_close(torch.cat([grad for _, _, grad in found]), rows.grad)


def gather_nothing():
    return [gather_uneven(torch.zeros(0, *shape, dtype=torch.int64))[0].shape for shape in ((), (3,))]


def test_nothing_of_any_process_is_gathered_as_nothing(run_processes):
    for shapes in run_processes(gather_nothing, 2):
        assert shapes == [torch.Size([0]), torch.Size([0, 3])]
