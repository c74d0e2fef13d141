"""Calibration: the error against a loop over bins, the temperature against a grid, both over several processes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from downstream.base import calibration
from downstream.base.calibration import Reliability, fit_temperature, summed
from ssl_toolkit.distributed.ranks import rank, world_size
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import WeightsError
from ssl_toolkit.weights.model import add_temperature, load_model, read_model_header, save_model

CPU = torch.device("cpu")


def made_up(num=400, classes=5, sharpness=3.0, seed=0):
    """Scores that are too sure of themselves, and labels."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(num, classes, generator=generator)
    labels = torch.multinomial(true.softmax(dim=1), 1, generator=generator).squeeze(1)
    return true * sharpness, labels


def naive_error(probabilities, labels, num_bins=15):
    total = 0.0
    for number in range(num_bins):
        low, high = number / num_bins, (number + 1) / num_bins
        confidences, right = [], []
        for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
            confidence = max(row)
            if low < confidence <= high:
                confidences.append(confidence)
                right.append(row.index(confidence) == label)
        if confidences:
            total += abs(np.mean(confidences) - np.mean(right)) * len(right) / len(labels)
    return total


def cross_entropy(scores, labels, temperature):
    return float(F.cross_entropy(scores.double() / temperature, labels))


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 5.0, 100.0])
def test_the_error_is_that_of_a_loop_over_bins(sharpness):
    scores, labels = made_up(sharpness=sharpness)
    probabilities = scores.double().softmax(dim=1)
    reliability = Reliability(CPU)
    for part in torch.arange(400).split(37):
        reliability.add(probabilities[part], labels[part])
    assert reliability.error() == pytest.approx(naive_error(probabilities, labels), abs=1e-12)


def test_errors_by_hand():
    reliability = Reliability(CPU)
    assert math.isnan(reliability.error())
    # sure to 1, and right in one of two cases; an even guess of two classes, which is right
    probabilities = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    reliability.add(probabilities, torch.tensor([0, 1, 0]))
    assert reliability.error() == pytest.approx((abs(2 - 1) + abs(0.5 - 1)) / 3)


@pytest.mark.parametrize("sharpness", [0.01, 0.5, 1.0, 4.0, 300.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_temperature_is_the_best_of_a_grid(sharpness, seed):
    scores, labels = made_up(sharpness=sharpness, seed=seed)
    found = fit_temperature([(scores[:150], labels[:150]), (scores[150:], labels[150:])])
    assert found is not None
    grid = np.geomspace(0.1, 10, 2001) * sharpness
    best = grid[np.argmin([cross_entropy(scores, labels, temperature) for temperature in grid])]
    assert found == pytest.approx(best, rel=0.0025)
    assert cross_entropy(scores, labels, found) <= cross_entropy(scores, labels, best) + 1e-12
    # a law: of scores that are c times as large, the temperature is, too
    assert fit_temperature([(scores * 4, labels)]) == pytest.approx(4 * found, rel=1e-9)


def test_a_calibrated_network_has_a_small_error():
    scores, labels = made_up(num=20_000)
    found = fit_temperature([(scores[:10_000], labels[:10_000])])
    assert found == pytest.approx(3.0, rel=0.05), "the labels were drawn by a third of the scores"
    errors = []
    for temperature in (1.0, found):
        reliability = Reliability(CPU)
        reliability.add((scores[10_000:].double() / temperature).softmax(dim=1), labels[10_000:])
        errors.append(reliability.error())
    assert errors[0] > 0.15
    assert errors[1] < 0.02


def test_where_no_temperature_is_the_best_there_is_none():
    labels = torch.tensor([0, 1, 2])
    assert fit_temperature([(torch.eye(3), labels)]) is None, "all are recognised"
    assert fit_temperature([(torch.eye(3), labels.roll(1))]) is None, "none is"
    assert fit_temperature([(torch.zeros(3, 3), labels)]) is None
    assert fit_temperature([(torch.eye(3) * math.nan, labels)]) is None
    assert fit_temperature([(torch.eye(3) * math.inf, labels)]) is None
    assert fit_temperature([]) is None
    # nearly all are recognised: a low temperature, and still found
    scores, classes = torch.eye(3).repeat(200, 1), labels.repeat(200)
    scores[0] = torch.tensor([1.0, 1.001, 0.0])
    found = fit_temperature([(scores, classes)])
    assert found is not None
    assert 0 < found < 0.1


def test_extreme_scores_have_their_temperature():
    for factor in (1e-6, 1e6):
        scores, labels = made_up(sharpness=factor)
        assert fit_temperature([(scores, labels)]) == pytest.approx(factor, rel=0.3)


def _calibrated_in_a_group(scores, labels, sizes):
    """What a process of several finds from its part, of which one may be empty."""
    start = sum(sizes[: rank()])
    part = slice(start, start + sizes[rank()])
    temperature = fit_temperature([(scores[part], labels[part])], lambda own: summed(own, CPU))
    reliability = Reliability(CPU)
    reliability.add((scores[part].double() / temperature).softmax(dim=1), labels[part])
    assert world_size() == len(sizes)
    return temperature, reliability.error()


@pytest.mark.slow
def test_any_number_of_processes_finds_the_same(run_processes):
    scores, labels = made_up()
    temperature = fit_temperature([(scores, labels)])
    reliability = Reliability(CPU)
    reliability.add((scores.double() / temperature).softmax(dim=1), labels)
    for sizes in ((123, 277), (400, 0, 0)):
        found = run_processes(_calibrated_in_a_group, len(sizes), scores, labels, sizes)
        assert all(each == found[0] for each in found), "to the bit the same in each process"
        assert found[0] == pytest.approx((temperature, reliability.error()), rel=1e-9)


def test_a_temperature_is_added_to_a_model_file(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.ModuleDict({"backbone": Backbone("resnet10t", kwargs={"channels": (8, 8, 8, 8)})})
    header = {
        "task": "x.Y", "step": 3, "image_size": 32, "ranges": {}, "class_names": ["a", "b"], "num_classes": 2,
    }  # fmt: skip
    file = tmp_path / "model.safetensors"
    save_model(file, network["backbone"], network.state_dict(), header)
    before = read_model_header(file)
    add_temperature(file, network["backbone"], 1.25)
    after = read_model_header(file)
    assert after == before | {"temperature": 1.25, "sha256": after["sha256"]}
    load_model(file, network)
    add_temperature(file, network["backbone"], 0.5)
    assert read_model_header(file)["temperature"] == 0.5
    save_model(file, network["backbone"], network.state_dict(), header | {"temperature": -1.0})
    with pytest.raises(WeightsError, match=r"temperature is -1.0, expected a number above 0"):
        read_model_header(file)


def test_the_slope_is_that_of_autograd():
    scores, labels = (each[:20] for each in made_up())
    inverse = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(scores.double() * inverse, labels, reduction="sum")
    (slope,) = torch.autograd.grad(loss, inverse, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, inverse)
    own = scores.double().gather(1, labels.unsqueeze(1)).squeeze(1)
    found = calibration._slopes(scores.double(), own, 0.7)
    assert float(found[0].sum()) == pytest.approx(slope.item())
    assert float(found[1].sum()) == pytest.approx(curvature.item())
