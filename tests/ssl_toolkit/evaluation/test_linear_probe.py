"""The linear probe against scikit-learn's solution, its choice of the penalty, and the edges of tiny data."""

import math

import pytest
import torch
import torch.nn.functional as F

from ssl_toolkit.evaluation import few_label_draws, few_label_probe, fit_linear, linear_probe


def problem(num, width=30, num_classes=5, seed=0, noise=2.5):
    """Overlapping classes with features of very different scales and strong correlations."""
    fixed = torch.Generator().manual_seed(7)
    centres = torch.randn(num_classes, width, generator=fixed)
    mixing = torch.randn(width, width, generator=fixed)
    scales = 10.0 ** torch.linspace(-3, 3, width)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num,), generator=generator)
    x = centres[labels] + noise * torch.randn(num, width, generator=generator)
    return (x @ mixing) * scales + 5 * scales, labels


@pytest.mark.parametrize("strength", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("num", [600, 20])
def test_finds_scikit_learns_minimum(strength, num):
    linear_model = pytest.importorskip("sklearn.linear_model")
    train, test = problem(num), problem(400, seed=1)
    probe = linear_probe(train, test, test, strengths=[strength])
    mean, std = train[0].double().mean(0), train[0].double().std(0, correction=0)
    x, x_test = (train[0] - mean) / std, (test[0] - mean) / std
    reference = linear_model.LogisticRegression(C=1 / (strength * num), tol=1e-10, max_iter=20_000)
    reference.fit(x.numpy(), train[1].numpy())
    weight = torch.from_numpy(reference.coef_)
    loss = F.cross_entropy(x @ weight.T + torch.from_numpy(reference.intercept_), train[1])
    objective = float(loss + strength / 2 * weight.square().sum())
    assert probe.path[0].converged
    assert probe.path[0].objective == pytest.approx(objective, rel=1e-4, abs=1e-6)
    expected = reference.predict(x_test.numpy()) == test[1].numpy()
    assert probe.top1 == pytest.approx(expected.mean(), abs=0.01)
    assert float((probe.correct.numpy() != expected).mean()) < 0.01


def test_the_weights_returned_are_those_of_the_features_as_given():
    train, val, test = problem(500), problem(200, seed=1), problem(300, seed=2)
    probe = linear_probe(train, val, test)
    predicted = F.linear(test[0], probe.weight, probe.bias).argmax(dim=1)
    assert float((predicted == test[1]).double().mean()) == pytest.approx(probe.top1, abs=0.01)


@pytest.mark.slow
def test_the_penalty_is_chosen_on_the_validation_images_and_never_on_the_test_images():
    train, val, test = problem(60), problem(300, seed=1), problem(300, seed=2)
    probe = linear_probe(train, val, test)
    best = max(probe.path, key=lambda point: (point.val_top1, -point.val_loss))
    assert probe.strength == best.strength
    assert probe.val_top1 == best.val_top1
    assert all(point.converged for point in probe.path)
    assert len(probe.path) == probe.path.index(best) + 5 < 15, "the path ends after four that are no better"
    shuffled = linear_probe(train, val, (test[0], test[1].roll(1)))
    assert shuffled.strength == probe.strength
    assert torch.equal(shuffled.weight, probe.weight)


def test_a_warm_start_ends_where_a_cold_one_does():
    train, val = problem(300), problem(100, seed=1)
    path = linear_probe(train, val, val, strengths=[1.0, 0.1, 0.01]).path
    for point in path:
        cold = linear_probe(train, val, val, strengths=[point.strength]).path[0]
        assert point.objective == pytest.approx(cold.objective, rel=1e-5)


def test_pure_noise_stays_at_chance():
    generator = torch.Generator().manual_seed(0)

    def noise(num):
        return torch.randn(num, 16, generator=generator), torch.randint(4, (num,), generator=generator)

    probe = linear_probe(noise(400), noise(400), noise(2000))
    assert probe.top1 == pytest.approx(0.25, abs=0.05)


def test_tiny_and_degenerate_data():
    two = (torch.tensor([[0.0, 7.0, 1.0], [1.0, 7.0, 1.0], [0.9, 7.0, 1.0]]), torch.tensor([0, 1, 1]))
    assert linear_probe(two, two, two).top1 == 1.0
    one_class = (torch.randn(3, 2), torch.tensor([1, 1, 1]))
    assert linear_probe(one_class, one_class, one_class).top1 == 1.0
    constant = (torch.full((4, 3), 2.5), torch.tensor([0, 1, 1, 1]))
    probe = linear_probe(constant, constant, constant)
    assert probe.top1 == 0.75
    # what is left is the entropy of the class frequencies
    assert probe.path[-1].objective == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), abs=1e-4)


def test_a_class_that_only_the_test_images_have_is_got_wrong():
    train = problem(50, num_classes=2)
    test = (train[0], torch.where(torch.arange(50) < 10, 7, train[1]))
    assert not linear_probe(train, train, test).correct[:10].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:0], y[:0]), "at least one val image, got 0 images"),
        (lambda x, y: (x, y - 1), "of 20 val images have none"),
        (lambda x, y: (x[:, 1:], y), "the val features have 29 channels, the train features 30"),
        (lambda x, y: (x / 0, y), "some val features are not finite"),
    ],
)
def test_errors_name_the_split(change, message):
    data = problem(20)
    with pytest.raises(ValueError, match=message):
        linear_probe(data, change(*data), data)
    with pytest.raises(ValueError, match="strengths of the penalty must be above 0"):
        linear_probe(data, data, data, strengths=[0.0])


def test_few_label_draws_are_stratified_seeded_and_differ():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 3 + [-1] * 10)
    draws = few_label_draws(labels, per_class=5, num_draws=4, seed=3)
    for draw in draws:
        assert torch.bincount(labels[draw]).tolist() == [5, 5, 3]
        assert torch.equal(draw, draw.unique())
    assert not torch.equal(draws[0], draws[1])
    again = few_label_draws(labels, per_class=5, num_draws=2, seed=3)
    assert torch.equal(again[1], draws[1]), "a draw does not depend on how many there are"
    assert not torch.equal(few_label_draws(labels, 5, 1, seed=4)[0], draws[0])


def test_few_label_draws_take_each_image_equally_often():
    labels = torch.zeros(20, dtype=torch.int64)
    counts = torch.cat(few_label_draws(labels, 5, 800)).bincount(minlength=20)
    # 200 expected, standard deviation 12.2
    assert counts.sum() == 4000
    assert counts.min() > 150
    assert counts.max() < 250


def test_few_label_probe_gives_mean_and_spread():
    train, val, test = problem(300, noise=1.0), problem(100, seed=1, noise=1.0), problem(200, seed=2, noise=1.0)
    draws = few_label_draws(train[1], 4, 3)
    result = few_label_probe(train, val, test, draws, strengths=[0.1])
    accuracies = [probe.top1 for probe in result.probes]
    mean = sum(accuracies) / 3
    assert result.top1.mean == pytest.approx(mean)
    assert result.top1.std == pytest.approx(math.sqrt(sum((one - mean) ** 2 for one in accuracies) / 2))
    assert result.top1.num == 3


def test_few_label_errors():
    with pytest.raises(ValueError, match="at least 1 image a class and 1 draw, got 0 and 3"):
        few_label_draws(torch.tensor([0, 1]), 0, 3)
    with pytest.raises(ValueError, match="none has a label"):
        few_label_draws(torch.tensor([-1, -1]), 1, 1)


@pytest.mark.parametrize("level", [1000.0, -1000.0])
def test_a_feature_that_varies_by_rounding_alone_has_no_weight(level):
    generator = torch.Generator().manual_seed(0)
    train, labels = torch.randn(60, 3, generator=generator), torch.arange(60) % 2
    train[:, 0] += labels
    # two neighbouring float32 numbers, which tell the classes apart
    rounded = torch.where(labels == 0, torch.tensor(level), torch.nextafter(torch.tensor(level), torch.tensor(0.0)))
    with_it = fit_linear((torch.cat([train, rounded[:, None]], dim=1), labels), 1e-3, 2)
    without = fit_linear((train, labels), 1e-3, 2)
    assert (with_it.weight[:, 3] == 0).all()
    torch.testing.assert_close(with_it.weight[:, :3], without.weight, atol=1e-3, rtol=1e-3)
