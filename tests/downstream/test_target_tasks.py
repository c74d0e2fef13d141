"""Regression, multi-label and ordinal classification: figures against scikit-learn, refusals, and that they learn."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Trainer
from sklearn import metrics as sk

from downstream.multi_label import MultiLabel, best_threshold
from downstream.ordinal import CoralHead, OrdinalClassification, quadratic_kappa
from downstream.regression import Regression
from ssl_toolkit.data import ImageData
from ssl_toolkit.losses import coral, coral_probabilities
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.schedule import Cosine

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]


def make_task(cls, **arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", stem="middle", kwargs={"channels": (8, 16, 32, 64)})
    return cls(**{"backbone": backbone, "optimizer": AdamW(lr=3e-3), "schedule": Cosine(), **arguments})


def make_data(*targets, **arguments):
    given = {"max_images": 300, "image_size": 24, "batch_size": 32, "cache": "memory", "val_fraction": 0.2}
    return ImageData(source="procedural", targets=list(targets) or None, **{**given, **arguments})


def fitted(task, data, steps=1):
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_steps=steps,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    return trainer


def with_names(task, *names):
    """A task without data, whose targets have names."""
    task.num_targets = len(names)
    task.setup("predict")
    type(task).target_names = property(lambda self: list(names))
    return task


def some_targets(num=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, 2, generator=generator), torch.rand(num, 2, generator=generator) < 0.2


# ---- figures


@pytest.fixture(autouse=True)
def _own_names(monkeypatch):
    for cls in (Regression, MultiLabel):
        monkeypatch.setattr(cls, "target_names", cls.target_names)


def test_regression_measures_what_scikit_learn_does():
    task = with_names(make_task(Regression), "year", "weight")
    task.target_mean.copy_(torch.tensor([2000.0, 0.0]))
    task.target_std.copy_(torch.tensor([3.0, 0.5]))
    numbers, unknown = some_targets()
    targets = numbers.double() * torch.tensor([3.0, 0.5]) + torch.tensor([2000.0, 0.0])
    predicted = targets + torch.tensor([1.0, 0.1]) * torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    targets[unknown] = math.nan
    found = task.figures("test", predicted, targets)
    scores = []
    for number, name in enumerate(("year", "weight")):
        known = ~unknown[:, number]
        pair = targets[known, number], predicted[known, number]
        assert found[f"mae_of/{name}"] == pytest.approx(sk.mean_absolute_error(*pair), rel=1e-6)
        assert found[f"rmse_of/{name}"] == pytest.approx(sk.root_mean_squared_error(*pair), rel=1e-6)
        scores.append(sk.r2_score(*pair))
        assert found[f"r2_of/{name}"] == pytest.approx(scores[-1], rel=1e-5)
    assert found["r2"] == pytest.approx(sum(scores) / 2, rel=1e-5)
    assert set(task.figures("val", predicted, targets)) == {"r2"}


def test_multi_label_measures_what_scikit_learn_does():
    task = with_names(make_task(MultiLabel), "male", "adult")
    numbers, unknown = some_targets(200)
    targets = (numbers > 0.5).double()
    probabilities = (numbers + torch.randn(200, 2, generator=torch.Generator().manual_seed(1))).double().sigmoid()
    targets[unknown] = math.nan
    validated, tested = slice(0, 100), slice(100, 200)
    task.figures("val", probabilities[validated], targets[validated])
    found = task.figures("test", probabilities[tested], targets[tested])
    for number, name in enumerate(("male", "adult")):
        known = ~unknown[:, number]
        true, guess = (each[validated][known[validated], number] for each in (targets, probabilities))
        # the threshold of the best F1 score, by trying all
        best = max((sk.f1_score(true, guess >= threshold), threshold) for threshold in guess.tolist())
        assert sk.f1_score(true, guess >= float(task.thresholds[number])) == pytest.approx(best[0])
        true, guess = (each[tested][known[tested], number] for each in (targets, probabilities))
        assert found[f"ap_of/{name}"] == pytest.approx(sk.average_precision_score(true, guess), rel=1e-6)
        expected = sk.f1_score(true, guess >= float(task.thresholds[number]))
        assert found[f"f1_of/{name}"] == pytest.approx(expected, rel=1e-6)
    assert found["map"] == pytest.approx((found["ap_of/male"] + found["ap_of/adult"]) / 2)


def test_a_test_finds_the_thresholds_on_the_validation_images():
    data = make_data("left", "negative", test_fraction=0.3)
    task = make_task(MultiLabel)
    trainer = fitted(task, data, steps=3)
    # as a run that is resumed after its last step and before its test
    task.thresholds = {}
    (found,) = trainer.test(task, datamodule=data, verbose=False)
    task.eval()
    with torch.no_grad():
        val, test = (
            [torch.cat(each) for each in zip(*((task.predict(b), b.targets) for b in data.loader(split)), strict=True)]
            for split in ("val", "test")
        )
    for number, name in enumerate(("left", "negative")):
        best = best_threshold(val[0][:, number].double(), val[1][:, number].long())
        expected = sk.f1_score(test[1][:, number], test[0][:, number].double() >= best)
        assert found[f"test/f1_of/{name}"] == pytest.approx(expected)
        assert best != 0.5
    assert "val/loss" not in found
    assert not any("threshold" in name for name in task.state_dict())


def test_a_label_that_all_or_none_have_counts_in_neither():
    task = with_names(make_task(MultiLabel), "some", "all", "none")
    targets = torch.tensor([[1.0, 1, 0], [0, 1, 0], [1, 1, math.nan]])
    found = task.figures("test", torch.tensor([[0.9, 0.5, 0.5], [0.1, 0.5, 0.5], [0.8, 0.5, 0.5]]).double(), targets)
    assert {name for name in found if "_of/" in name} == {"ap_of/some", "f1_of/some"}
    assert (found["map"], found["f1"]) == (1, 1)
    assert task.figures("test", torch.rand(3, 3).double(), torch.ones(3, 3)) == {}


def test_the_best_threshold_takes_equal_probabilities_together():
    probabilities = torch.tensor([0.1, 0.4, 0.4, 0.4, 0.9], dtype=torch.float64)
    assert best_threshold(probabilities, torch.tensor([0, 1, 1, 0, 1])) == pytest.approx(0.25)
    assert best_threshold(probabilities, torch.ones(5, dtype=torch.int64)) == 0


def test_kappa_is_scikit_learn_s():
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(5, (300,), generator=generator)
    guess = (true + torch.randint(-1, 3, (300,), generator=generator)).clamp(0, 4)
    confusion = torch.bincount(true * 5 + guess, minlength=25).view(5, 5)
    assert quadratic_kappa(confusion) == pytest.approx(sk.cohen_kappa_score(true, guess, weights="quadratic"))
    assert quadratic_kappa(torch.diag(torch.tensor([4, 5, 6]))) == 1
    assert quadratic_kappa(torch.tensor([[3, 0], [0, 0]])) == 0


# ---- losses


def test_a_target_is_standardized_by_the_training_images():
    data = make_data("angle", "size")
    task = make_task(Regression, dropout=0.0)
    fitted(task, data)
    expected = data.targets("train").double()
    torch.testing.assert_close(task.target_mean.double(), expected.mean(dim=0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(task.target_std.double(), expected.std(dim=0, correction=0), rtol=1e-6, atol=1e-6)
    outputs = torch.randn(4, 2)
    wanted = task.predictions(outputs)
    assert float(task.target_loss(outputs, wanted)) == pytest.approx(0, abs=1e-10)
    wanted[0, 0] = math.nan
    assert float(task.target_loss(outputs + 1, wanted)) == pytest.approx(7 / 8)


@pytest.mark.parametrize(("kind", "expected"), [("mse", 4.0), ("huber", 1.5), ("l1", 2.0)])
def test_each_loss_of_an_error_of_two_deviations(kind, expected):
    task = with_names(make_task(Regression, loss_kind=kind), "age")
    assert float(task.target_loss(torch.full((3, 1), 2.0), torch.zeros(3, 1))) == pytest.approx(expected)


# ---- what is refused


@pytest.mark.parametrize(
    ("cls", "targets", "message"),
    [
        (Regression, (), "Regression predicts numbers, but the data have none: name their columns"),
        (MultiLabel, ("size",), "'size' of data.targets is 0.* for a training image; a label is 1 .yes. or 0 .no."),
    ],
)
def test_mistakes_are_one_line(cls, targets, message):
    with pytest.raises(ValueError, match=message) as caught:
        fitted(make_task(cls), make_data(*targets))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cls", [Regression, MultiLabel])
@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([math.nan] * 3, "no training image has a number for 'b'"),
        ([1.0, math.nan, 1.0], "all training images have 1 for"),
    ],
)
def test_a_target_that_teaches_nothing_is_refused(cls, column, message):
    targets = torch.tensor([[0.0, 1.0, 1.0], column]).T
    with pytest.raises(ValueError, match=message):
        make_task(cls).check_targets(["a", "b"], targets)


@pytest.mark.parametrize("name", ["class_weights", "focal_gamma", "logit_adjustment"])
def test_an_ordinal_loss_has_no_remedy_for_imbalance(name):
    with pytest.raises(ValueError, match=f"{name} is 1.0, but the loss of OrdinalClassification has none"):
        make_task(OrdinalClassification, **{name: 1.0})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_targets": 0}, "num_targets is 0"), ({"hidden": 0}, "hidden is 0"), ({"dropout": 1.0}, "dropout is 1.0")],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_task(Regression, **arguments)


# ---- learning


def test_ordinal_scores_have_one_direction():
    head = CoralHead(torch.nn.Linear(4, 1), 5)
    with torch.no_grad():
        head.thresholds.copy_(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    scores = head(torch.randn(6, 4))
    assert scores.shape == (6, 4)
    torch.testing.assert_close(scores.diff(dim=1), torch.full((6, 3), -1.0))


def test_an_ordinal_head_finds_the_order_of_classes():
    generator = torch.Generator().manual_seed(0)
    grades = torch.randint(4, (400,), generator=generator)
    # the grade lies in the sum of two features, and the third is noise
    noise = torch.randn(400, 3, generator=generator)
    features = torch.stack([grades + noise[:, 0], grades - noise[:, 0], noise[:, 1]], dim=1).float()
    head = CoralHead(torch.nn.Linear(3, 1), 4)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = coral(head(features), grades)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (head.thresholds.diff() > 0).all()  # as the paper's theorem 1 says
    assert (coral_probabilities(head(features)).argmax(dim=1) == grades).float().mean() > 0.95


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "targets", "metric", "least"),
    [(Regression, ("x", "y"), "val/r2", 0.3), (MultiLabel, ("left", "negative"), "val/map", 0.6)],
)
def test_it_learns(cls, targets, metric, least):
    trainer = fitted(make_task(cls), make_data(*targets, max_images=600), steps=100)
    assert float(trainer.callback_metrics[metric]) > least
