"""The range test: where a known bowl diverges, what is suggested, what is left alone."""

import json

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from ssl_toolkit.cli import main
from ssl_toolkit.data import ImageData
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.random import fold_in, normal
from ssl_toolkit.schedule import Cosine
from ssl_toolkit.task import StepOutput, Task
from ssl_toolkit.tuning.lr_range_test import RateCurve, range_test, running_mean

CPU = {"accelerator": "cpu", "devices": 1}


class Bowl(Task):
    """Linear regression on inputs of unequal variances, drawn by key: the Hessian is known."""

    def __init__(self, top=4.0, noise=0.3, **kwargs):
        super().__init__(backbone=Backbone("resnet10t", kwargs={"channels": (4, 4, 4, 4)}), **kwargs)
        self.backbone.requires_grad_(False)
        self.scales = torch.linspace(top**0.5, 0.5, 8)
        self.noise = noise
        self.weight = nn.Parameter(torch.zeros(8))
        self.seen = []

    def step(self, batch, keys, context):
        # as far as the sample and not the epoch goes, so that the whole set is one bowl
        inputs = normal(fold_in(batch.indices, "x"), 8) * self.scales
        targets = inputs.sum(dim=1) + self.noise * normal(fold_in(batch.indices, "y"))
        loss = 0.5 * (inputs @ self.weight - targets).square().mean()
        self.seen.append(float(loss.detach()))
        return StepOutput(loss, inputs, {})

    def hessian(self, indices):
        inputs = normal(fold_in(indices, "x"), 8) * self.scales
        return inputs.T @ inputs / len(inputs)


def make(batch_size=30, **arguments):
    torch.manual_seed(0)
    plain = SGD(lr=123.0, momentum=0.0, weight_decay=0.0)
    task = Bowl(**{"optimizer": plain, "schedule": Cosine(warmup_percent=50), **arguments})
    data = ImageData(source="procedural", max_images=100, image_size=16, batch_size=batch_size, cache="memory")
    data.setup("fit")
    return task, data


@pytest.mark.parametrize(("batch_size", "top"), [(15, 4.0), (30, 4.0), (30, 50.0), (30, 0.5)])
def test_a_bowl_diverges_where_its_largest_eigenvalue_says(batch_size, top):
    task, data = make(batch_size, top=top)
    found = range_test(task, data, CPU, 1e-5, 100.0, 100)
    eigenvalue = float(torch.linalg.eigvalsh(task.hessian(torch.from_numpy(data.indices("train"))))[-1])
    assert found.curve.problem is None
    assert found.curve.end in ("rise", "not finite")
    assert 0.5 < found.curve.at_lowest * eigenvalue / 2 < 1.25
    assert found.candidates["steepest"] < 2 / eigenvalue


def test_the_rates_grow_by_one_factor_and_the_losses_are_those_of_plain_gradient_descent():
    """Against a loop by hand, with two batches accumulated and the layers' factors."""
    task, data = make(15)
    found = range_test(task, data, {**CPU, "accumulate_grad_batches": 2}, 1e-3, 1e-1, 20)
    curve = found.curve
    assert found.batch_size == 30
    assert curve.end == "highest"
    assert curve.rates == pytest.approx(np.geomspace(1e-3, 1e-1, 20))

    again, data = make(15)
    loader = data.loader("train", shuffle=True, drop_last=True)
    weight, losses, batches = torch.zeros(8), [], [batch for _ in range(20) for batch in loader]
    for step in range(24):
        pair = batches[2 * step : 2 * step + 2]
        with torch.no_grad():
            again.weight.copy_(weight)
        total = sum(again.step(batch, None, None).loss for batch in pair) / 2
        (gradient,) = torch.autograd.grad(total, [again.weight])
        weight = weight - (1e-3 if step < 4 else curve.rates[min(step - 4, 19)]) * gradient
        with torch.no_grad():
            again.weight.copy_(weight)
        losses.append(float(again.step(batches[0], None, None).loss.detach()))
    assert curve.losses == pytest.approx(losses[4:], rel=1e-4)
    assert curve.start == pytest.approx(np.mean(losses[:4]), rel=1e-4)


def test_the_answer_is_the_same_twice_and_the_generator_is_left_alone():
    answers = []
    for seed in (1, 2):
        task, data = make()
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        answers.append(range_test(task, data, CPU, 1e-4, 10.0, 30).curve)
        assert torch.equal(state, torch.get_rng_state())
    for first, second in zip(*answers, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1.0), ("linear", 0.25), ("sqrt", 0.5)])
def test_the_suggestion_is_for_the_recipe_before_its_scaling(scaling, factor):
    task, data = make(lr_scaling=scaling, reference_batch_size=120)
    found = range_test(task, data, CPU, 1e-4, 10.0, 50)
    assert found.factor == factor
    assert found.candidates["lowest"] == pytest.approx(found.curve.at_lowest / factor, rel=0.05)


def test_what_cannot_be_read_off_is_said():
    rates = np.geomspace(1e-6, 10, 100)
    noise = np.random.default_rng(0).normal(size=100)
    falls = RateCurve(rates, 2 / (1 + 1e3 * rates), 2.0, "highest")
    assert "--highest 1e+03" in (falls.problem or "")
    assert "never clearly falls" in (RateCurve(rates, 2 + 0.1 * noise, 2.0, "highest").problem or "")
    assert "never clearly falls" in (RateCurve(rates, 2 + rates, 2.0, "rise").problem or "")
    # falls by half around 0.01, back at 1
    good = RateCurve(rates, 2 - 1 / (1 + 0.01 / rates) + np.minimum(5.0, rates), 2.0, "highest")
    assert good.problem is None
    assert good.at_steepest == pytest.approx(0.01, rel=0.5)
    assert good.at_lowest == pytest.approx(0.1, rel=0.5)
    # that it falls once more, after what was learned is lost, means nothing
    again = good._replace(losses=np.where(rates > 1, 0.5, good.losses))
    assert again.at_lowest == pytest.approx(good.at_lowest)


def test_the_running_mean_is_adams():
    values = [3.0, -1.0, 4.0, 1.0]
    weights = [[0.8 ** (n - i) for i in range(n + 1)] for n in range(4)]
    expected = [np.average(values[: len(each)], weights=each) for each in weights]
    assert running_mean(values, 0.8) == pytest.approx(expected)


def test_wrong_ranges_are_refused():
    task, data = make()
    for lowest, highest in ((0.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (1.0, float("inf"))):
        with pytest.raises(ValueError, match="expected 0 < lowest < highest"):
            range_test(task, data, CPU, lowest, highest)
    with pytest.raises(ValueError, match="at least 10"):
        range_test(task, data, CPU, steps=9)


def recipe(tmp_path):
    content = {
        "model": {
            "class_path": "downstream.classification.Classification",
            "init_args": {
                "backbone": {"name": "resnet10t", "kwargs": {"stem_width": 8, "channels": [8, 8, 16, 16]}},
                "optimizer": {"class_path": "ssl_toolkit.optim.AdamW"},
                "schedule": {"class_path": "ssl_toolkit.schedule.Cosine"},
            },
        },
        "data": {"source": "procedural", "max_images": 200, "image_size": 24, "batch_size": 40, "cache": "memory"},
        "trainer": {"max_epochs": 6, "accelerator": "cpu", "limit_val_batches": 0},
        "tracker": "none",
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return str(file)


@pytest.mark.slow
def test_the_line_can_be_pasted_and_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = recipe(tmp_path)
    answers = []
    for folder in ("first", "second"):
        assert main(["lr-find", "transfer", "-c", file, "--steps", "40", "--out", folder]) == 0
        answers.append([line for line in capsys.readouterr().out.splitlines() if "--model" in line])
    assert answers[0] == answers[1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["first", "recipe.yaml", "second"]
    assert sorted(file.name for file in (tmp_path / "first").iterdir()) == ["lr_find.json", "lr_find.png"]
    figures = json.loads((tmp_path / "first/lr_find.json").read_text())
    option, rate = answers[0][0].split()
    assert float(rate) == figures["suggestion"]
    assert main(["transfer", "-c", file, "--out", "run", option, rate]) == 0
    metrics = [line.split(",") for line in (tmp_path / "run/metrics.csv").read_text().splitlines()]
    column = metrics[0].index("train/loss")
    losses = [float(row[column]) for row in metrics[1:] if row[column]]
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "lr-find needs to know for which command"),
        (["pretrian"], "did you mean 'pretrain'?"),
        (["transfer", "-c", "RECIPE", "--budget", "60min"], "lr-find takes no --budget"),
        (["transfer", "-c", "RECIPE", "--highest", "1e-9"], "expected 0 < lowest < highest"),
        (["transfer", "-c", "RECIPE", "--steps", "9.5"], "steps is '9.5', expected int"),
        (["transfer", "-c", "RECIPE", "--out", "RECIPE"], "expected a folder"),
        (["transfer", "-c", "RECIPE", "--lowest", "1e-9", "--highest", "1e-8", "--steps", "12"], None),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = recipe(tmp_path)
    status = main(["lr-find", *(file if each == "RECIPE" else each for each in arguments)])
    captured = capsys.readouterr()
    if message is None:
        assert status == 0
        assert "no suggestion: the loss never clearly falls" in captured.out
    else:
        assert status == 2
        assert message in captured.err
        assert len(captured.err.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]
