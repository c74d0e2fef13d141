"""Optimizers against recurrences written from the papers, and the parameter groups' laws."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from ssl_toolkit.optim import (
    LAMB,
    LARS,
    SGD,
    SGDP,
    Adadelta,
    Adagrad,
    Adam,
    AdamP,
    AdamW,
    Lion,
    Muon,
    NAdam,
    RAdam,
    RMSprop,
    large_batch_remark,
    muon,
    parameter_groups,
)

TARGET = np.array([[1.0, -2.0], [0.5, 3.0]])


@pytest.fixture(params=[False, True], ids=["plain", "fused"])
def run(request):
    return functools.partial(weights_after_each_step, fused=request.param)


def weights_after_each_step(spec, num_steps=20, *, fused):
    """Minimises 0.5 * |w - TARGET|^2 from 0.5 everywhere; returns the weights after each step."""
    module = nn.Linear(2, 2, bias=False).double()
    nn.init.constant_(module.weight, 0.5)
    optimizer = spec.build(parameter_groups(module, spec.lr, spec.weight_decay), fused)
    weights = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        (0.5 * (module.weight - torch.from_numpy(TARGET)).square().sum()).backward()
        optimizer.step()
        weights.append(module.weight.detach().numpy().copy())
    return np.stack(weights)


def recurrence(update, num_steps=20):
    weight, state, weights = np.full((2, 2), 0.5), {}, []
    for step in range(1, num_steps + 1):
        weight = update(weight, weight - TARGET, state, step)
        weights.append(weight)
    return np.stack(weights)


def test_sgd(run):
    def update(weight, gradient, state, step):
        gradient = gradient + 0.01 * weight
        state["v"] = 0.9 * state.get("v", 0) + gradient
        return weight - 0.05 * state["v"]

    np.testing.assert_allclose(run(SGD(lr=0.05, momentum=0.9, weight_decay=0.01)), recurrence(update), rtol=1e-12)


def test_nesterov(run):
    def update(weight, gradient, state, step):
        state["v"] = 0.9 * state.get("v", 0) + gradient
        return weight - 0.05 * (gradient + 0.9 * state["v"])

    spec = SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.0)
    np.testing.assert_allclose(run(spec), recurrence(update), rtol=1e-12)


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_and_adamw(run, decoupled):
    def update(weight, gradient, state, step):
        if decoupled:
            weight = weight - 0.1 * 0.02 * weight
        else:
            gradient = gradient + 0.02 * weight
        state["m"] = 0.9 * state.get("m", 0) + 0.1 * gradient
        state["v"] = 0.99 * state.get("v", 0) + 0.01 * gradient**2
        mean, square = state["m"] / (1 - 0.9**step), state["v"] / (1 - 0.99**step)
        return weight - 0.1 * mean / (np.sqrt(square) + 1e-8)

    spec = (AdamW if decoupled else Adam)(lr=0.1, betas=(0.9, 0.99), weight_decay=0.02)
    np.testing.assert_allclose(run(spec), recurrence(update), rtol=1e-10)


def test_lars(run):
    def update(weight, gradient, state, step):
        norms = np.linalg.norm(weight), np.linalg.norm(gradient)
        rate = 0.02 * norms[0] / (norms[1] + 0.1 * norms[0] + 1e-8)
        state["v"] = 0.9 * state.get("v", 0) + rate * (gradient + 0.1 * weight)
        return weight - 2.0 * state["v"]

    spec = LARS(lr=2.0, momentum=0.9, weight_decay=0.1, trust_coefficient=0.02)
    np.testing.assert_allclose(run(spec), recurrence(update), rtol=1e-6)


def test_adagrad(run):
    def update(weight, gradient, state, step):
        gradient = gradient + 0.02 * weight
        state["sum"] = state.get("sum", 0) + gradient**2
        return weight - 0.3 * gradient / (np.sqrt(state["sum"]) + 1e-10)

    np.testing.assert_allclose(run(Adagrad(lr=0.3, weight_decay=0.02)), recurrence(update), rtol=1e-10)


def test_adadelta(run):
    def update(weight, gradient, state, step):
        state["g"] = 0.8 * state.get("g", 0) + 0.2 * gradient**2
        change = np.sqrt(state.get("x", 0) + 1e-4) / np.sqrt(state["g"] + 1e-4) * gradient
        state["x"] = 0.8 * state.get("x", 0) + 0.2 * change**2
        return weight - 0.7 * change

    np.testing.assert_allclose(run(Adadelta(lr=0.7, rho=0.8, eps=1e-4)), recurrence(update), rtol=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rmsprop(run, momentum):
    def update(weight, gradient, state, step):
        state["g"] = 0.95 * state.get("g", 0) + 0.05 * gradient**2
        state["v"] = momentum * state.get("v", 0) + gradient / (np.sqrt(state["g"]) + 1e-8)
        return weight - 0.01 * state["v"]

    spec = RMSprop(lr=0.01, alpha=0.95, momentum=momentum)
    np.testing.assert_allclose(run(spec), recurrence(update), rtol=1e-10)


def test_nadam(run):
    """Dozat 2016, algorithm 2 with the momenta of section 2.2; torch keeps their product in float32."""

    def mu(step):
        return 0.9 * (1 - 0.5 * 0.96 ** (step * 0.004))

    def update(weight, gradient, state, step):
        weight = weight - 0.1 * 0.02 * weight
        state["product"] = state.get("product", 1) * mu(step)
        state["m"] = 0.9 * state.get("m", 0) + 0.1 * gradient
        state["v"] = 0.99 * state.get("v", 0) + 0.01 * gradient**2
        mean = mu(step + 1) * state["m"] / (1 - state["product"] * mu(step + 1))
        mean = mean + (1 - mu(step)) * gradient / (1 - state["product"])
        return weight - 0.1 * mean / (np.sqrt(state["v"] / (1 - 0.99**step)) + 1e-8)

    np.testing.assert_allclose(run(NAdam(lr=0.1, betas=(0.9, 0.99), weight_decay=0.02)), recurrence(update), rtol=1e-6)


def test_radam(run):
    """Liu et al. 2020, algorithm 2: both of its branches are taken in 20 steps."""
    branches = set()

    def update(weight, gradient, state, step):
        weight = weight - 0.1 * 0.02 * weight
        state["m"] = 0.9 * state.get("m", 0) + 0.1 * gradient
        state["v"] = 0.99 * state.get("v", 0) + 0.01 * gradient**2
        mean = state["m"] / (1 - 0.9**step)
        longest = 2 / (1 - 0.99) - 1
        length = longest - 2 * step * 0.99**step / (1 - 0.99**step)
        branches.add(length > 5)
        if length <= 5:
            return weight - 0.1 * mean
        rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return weight - 0.1 * np.sqrt(rectified) * mean / np.sqrt(state["v"] / (1 - 0.99**step))

    found = run(RAdam(lr=0.1, betas=(0.9, 0.99), eps=0.0, weight_decay=0.02))
    np.testing.assert_allclose(found, recurrence(update), rtol=1e-8)
    assert branches == {False, True}


def projected(weight, gradient, step, delta=0.1):
    """Heo et al. 2021, equation 12, for each row and then for the whole; also whether it was done."""
    for view in (lambda matrix: matrix, lambda matrix: matrix.reshape(1, -1)):
        rows, gradients, steps = view(weight), view(gradient), view(step)
        norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(gradients, axis=1)
        cosines = np.abs((rows * gradients).sum(1)) / norms
        if cosines.max() < delta / np.sqrt(rows.shape[1]):
            units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            return (steps - units * (units * steps).sum(1, keepdims=True)).reshape(step.shape), True
    return step, False


@pytest.mark.parametrize("delta", [0.0, 10.0], ids=["never projected", "always projected"])
def test_sgdp(run, delta):
    def update(weight, gradient, state, step):
        state["v"] = 0.9 * state.get("v", 0) + gradient
        change, done = projected(weight, gradient, gradient + 0.9 * state["v"], delta)
        assert done == (delta > 0)
        weight = weight * (1 - 0.01 * 0.02 * (0.1 if done else 1) / (1 - 0.9))
        return weight - 0.01 * change

    spec = SGDP(lr=0.01, momentum=0.9, delta=delta, weight_decay=0.02)
    np.testing.assert_allclose(run(spec), recurrence(update), rtol=1e-6)


@pytest.mark.parametrize("delta", [0.0, 10.0], ids=["never projected", "always projected"])
def test_adamp(run, delta):
    def update(weight, gradient, state, step):
        state["m"] = 0.9 * state.get("m", 0) + 0.1 * gradient
        state["v"] = 0.99 * state.get("v", 0) + 0.01 * gradient**2
        change = state["m"] / (np.sqrt(state["v"] / (1 - 0.99**step)) + 1e-8)
        change, done = projected(weight, gradient, change, delta)
        assert done == (delta > 0)
        weight = weight * (1 - 0.1 * 0.02 * (0.1 if done else 1))
        return weight - 0.1 / (1 - 0.9**step) * change

    spec = AdamP(lr=0.1, betas=(0.9, 0.99), delta=delta, weight_decay=0.02)
    np.testing.assert_allclose(run(spec), recurrence(update), rtol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.02])
def test_lamb(run, weight_decay):
    """Adapted without decay, too."""

    def update(weight, gradient, state, step):
        state["m"] = 0.9 * state.get("m", 0) + 0.1 * gradient
        state["v"] = 0.99 * state.get("v", 0) + 0.01 * gradient**2
        change = state["m"] / (1 - 0.9**step) / (np.sqrt(state["v"] / (1 - 0.99**step)) + 1e-6)
        change = change + weight_decay * weight
        return weight - 0.1 * np.linalg.norm(weight) / np.linalg.norm(change) * change

    spec = LAMB(lr=0.1, betas=(0.9, 0.99), weight_decay=weight_decay)
    np.testing.assert_allclose(run(spec), recurrence(update), rtol=1e-6)


def test_lars_adapts_without_decay_too(run):
    def update(weight, gradient, state, step):
        state["v"] = 0.02 * np.linalg.norm(weight) / np.linalg.norm(gradient) * gradient
        return weight - 2.0 * state["v"]

    spec = LARS(lr=2.0, momentum=0.0, weight_decay=0.0, trust_coefficient=0.02)
    np.testing.assert_allclose(run(spec), recurrence(update), rtol=1e-6)


@pytest.mark.parametrize("spec", [LARS(trust_coefficient=0.02), LAMB()], ids=["LARS", "LAMB"])
def test_biases_and_norms_are_not_adapted(spec):
    module = nn.BatchNorm1d(2)
    for group in spec.build(parameter_groups(module, spec.lr, spec.weight_decay)).param_groups:
        assert not group["always_adapt"]
        assert group["weight_decay"] == 0


def test_lion(run):
    def update(weight, gradient, state, step):
        mean = state.get("m", 0)
        change = np.sign(0.9 * mean + 0.1 * gradient)
        state["m"] = 0.98 * mean + 0.02 * gradient
        return weight - 0.01 * (change + 0.3 * weight)

    spec = Lion(lr=0.01, betas=(0.9, 0.98), weight_decay=0.3)
    np.testing.assert_allclose(run(spec), recurrence(update), rtol=1e-10)


@pytest.mark.parametrize(("native", "tolerance"), [(True, 0.05), (False, 1e-5)], ids=["bfloat16", "float32"])
def test_muon(native, tolerance, monkeypatch):
    """The iteration in float64; ours runs in bfloat16, of 8 binary digits, or where that is emulated in float32."""
    monkeypatch.setattr(muon, "has_native_bf16", lambda device: native)
    rng = np.random.default_rng(0)
    target, weight, mean = rng.normal(size=(4, 6)), np.zeros((4, 6)), np.zeros((4, 6))
    module = nn.Linear(6, 4, bias=False).double()
    nn.init.zeros_(module.weight)
    spec = Muon(lr=0.01, momentum=0.9, weight_decay=0.1)
    optimizer = spec.build(parameter_groups(module, spec.lr, spec.weight_decay))
    for _ in range(20):
        weight = module.weight.detach().numpy().copy()
        gradient = weight - target
        mean = 0.9 * mean + 0.1 * gradient
        change = 0.1 * gradient + 0.9 * mean
        change = change / np.linalg.norm(change)
        for _ in range(5):
            gram = change @ change.T
            change = 3.4445 * change + (-4.7750 * gram + 2.0315 * gram @ gram) @ change
        expected = weight * (1 - 0.01 * 0.1) - 0.01 * 0.2 * np.sqrt(6) * change

        optimizer.zero_grad()
        (0.5 * (module.weight - torch.from_numpy(target)).square().sum()).backward()
        optimizer.step()
        step = np.abs(expected - weight).max()
        np.testing.assert_allclose(module.weight.detach().numpy(), expected, atol=tolerance * step, rtol=0)


def test_muon_treats_a_convolution_as_a_matrix_and_vectors_as_adamw_does():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    spec = Muon(lr=0.01, nesterov=False, weight_decay=0.0)
    optimizer = spec.build(parameter_groups(network, spec.lr, spec.weight_decay))
    network(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    step = (before["0.weight"] - network[0].weight.detach()).flatten(1)
    singular = torch.linalg.svdvals(step) / (0.01 * 0.2 * 27**0.5)
    assert (singular - 1).abs().max() < 0.4, "Jordan et al.: singular values of 0.7 to 1.2"
    # the first step of Adam is the rate times the gradient's sign
    change = (before["1.weight"] - network[1].weight).abs()
    torch.testing.assert_close(change, torch.full((4,), 0.01), rtol=1e-3, atol=0)


ALL = [Adadelta, Adagrad, Adam, AdamP, AdamW, LAMB, LARS, Lion, Muon, NAdam, RAdam, RMSprop, SGD, SGDP]


@pytest.mark.parametrize("spec", [kind() for kind in ALL], ids=lambda spec: type(spec).__name__)
def test_defaults_make_a_small_network_better(spec):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
    inputs = torch.randn(64, 8)
    targets = inputs[:, :1] * inputs[:, 1:2]
    optimizer = spec.build(parameter_groups(network, spec.lr, spec.weight_decay))
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (network(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * 0.99


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(momentum=1), r"optimizer\.momentum is 1"),
        (lambda: SGD(momentum=0, nesterov=True), "nesterov needs a momentum"),
        (lambda: Adam(betas=(0.9, 1.0)), r"optimizer\.betas is"),
        (lambda: AdamW(eps=-1), r"optimizer\.eps is -1"),
        (lambda: RMSprop(alpha=2), r"optimizer\.alpha is 2"),
        (lambda: Muon(num_iterations=0), r"optimizer\.num_iterations is 0"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_remark_on_large_batches_is_for_plain_sgd():
    assert large_batch_remark(SGD(), 8192) is None
    assert "16,384" in str(large_batch_remark(SGD(), 16384))
    assert "LARS and LAMB" in str(large_batch_remark(SGD(), 16384))
    assert large_batch_remark(LARS(), 16384) is None


def test_every_parameter_is_in_one_group_and_vectors_are_not_decayed():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    module[2].bias.requires_grad_(False)
    groups = parameter_groups(module, 0.1, 0.05, lambda name: 0.5 if name.startswith("0") else 1.0)
    found = {(group["lr"], group["weight_decay"]): [tuple(p.shape) for p in group["params"]] for group in groups}
    assert found == {
        (0.05, 0.05): [(4, 3, 3, 3)],
        (0.05, 0.0): [(4,)],
        (0.1, 0.0): [(4,), (4,)],
        (0.1, 0.05): [(2, 4)],
    }


def test_a_frozen_module_is_an_error():
    module = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        parameter_groups(module, 0.1, 0.0)


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match=r"optimizer\.lr is 0"):
        SGD(lr=0)
    with pytest.raises(ValueError, match=r"optimizer\.weight_decay is -1"):
        AdamW(weight_decay=-1)
