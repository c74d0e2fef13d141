"""Optimizers against recurrences written from the papers, and the parameter groups' laws."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from ssl_toolkit.optim import LARS, SGD, Adam, AdamW, parameter_groups

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
