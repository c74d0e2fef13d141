"""Bagging, boosting and folds by their laws, by hand, and against scikit-learn; the bootstrap by its coverage."""

import math

import pytest
import torch
import torch.nn.functional as F

from ssl_toolkit.evaluation import (
    bagging,
    boosting,
    bootstrap,
    bootstrap_interval,
    cross_validate,
    fit_linear,
    linear_probe,
    paired_difference,
    samme_step,
    stratified_folds,
)


def problem(num, seed, width=8, num_classes=4, noise=1.5):
    centres = torch.randn(num_classes, width, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num,), generator=generator)
    return centres[labels] + noise * torch.randn(num, width, generator=generator), labels


TRAIN, TEST = problem(60, 0), problem(300, 1)


def test_weights_are_those_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    weights = torch.rand(60, generator=torch.Generator().manual_seed(0)) ** 3
    fitted = fit_linear(TRAIN, 0.01, 4, weights=weights)
    mean, std = TRAIN[0].double().mean(0), TRAIN[0].double().std(0, correction=0)
    # its objective is C times the weighted sum of the losses
    reference = linear_model.LogisticRegression(C=1 / (0.01 * float(weights.sum())), tol=1e-9, max_iter=10_000)
    reference.fit(((TRAIN[0] - mean) / std).numpy(), TRAIN[1].numpy(), sample_weight=weights.numpy())
    expected = torch.from_numpy(reference.predict_proba(((TEST[0] - mean) / std).numpy()))
    torch.testing.assert_close(fitted(TEST[0]).softmax(dim=1), expected, rtol=0, atol=2e-3)


def test_whole_weights_are_copies_of_images():
    counts = bootstrap(60, 3)
    fitted = fit_linear(TRAIN, 0.1, 4, weights=counts)
    # the copies' own standardisation would be another: these features have mean 0 and variance 1 either way
    weight, x = torch.zeros(4, 8, requires_grad=True), (TRAIN[0] - TRAIN[0].mean(0)) / TRAIN[0].std(0, correction=0)
    bias = torch.zeros(4, requires_grad=True)
    copies = torch.arange(60).repeat_interleave(counts)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-8)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(x[copies] @ weight.T + bias, TRAIN[1][copies]) + 0.05 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(fitted(TRAIN[0]).float(), (x @ weight.T + bias).detach(), rtol=0, atol=1e-2)


def test_without_resampling_a_bag_is_the_linear_probe():
    probe = linear_probe(TRAIN, TRAIN, TEST, strengths=[0.01])
    for num_members in (1, 3):
        bag = bagging(TRAIN, TEST, strength=0.01, num_members=num_members, resample=False)
        assert torch.equal(bag.correct, probe.correct)
        assert bag.top1 == probe.top1


def test_a_bag_is_the_mean_of_its_members_and_one_equals_its_member():
    bag = bagging(TRAIN, TEST, strength=0.01, num_members=3, seed=5)
    alone = bagging(TRAIN, TEST, strength=0.01, num_members=1, seed=5)
    torch.testing.assert_close(alone.scores, bag.members[0](TEST[0]).softmax(1))
    torch.testing.assert_close(bag.scores, sum(member(TEST[0]).softmax(1) for member in bag.members) / 3)
    torch.testing.assert_close(bag.scores.sum(1), torch.ones(300, dtype=torch.float64))


@pytest.mark.slow
def test_the_spread_over_seeds_shrinks_with_members():
    spreads = []
    for num_members in (1, 16):
        bags = [bagging(TRAIN, TEST, strength=1e-3, num_members=num_members, seed=seed) for seed in range(8)]
        spreads.append(float(torch.stack([bag.scores for bag in bags]).std(dim=0).mean()))
    # independent members: a factor of 4
    assert spreads[0] / spreads[1] == pytest.approx(4, rel=0.35)


def test_a_bootstrap_draws_as_many_and_leaves_out_a_share_of_1_over_e():
    counts = torch.stack([bootstrap(1000, draw) for draw in range(20)])
    assert (counts.sum(1) == 1000).all()
    assert float((counts == 0).double().mean()) == pytest.approx(math.exp(-1), abs=0.01)
    assert not torch.equal(counts[0], counts[1])
    assert not torch.equal(bootstrap(1000, 0, seed=1), counts[0])


def test_a_step_of_samme_by_hand():
    """Five images, three classes, two wrong: err = 0.4, weight = ln(0.6 / 0.4) + ln 2 = ln 3."""
    wrong = torch.tensor([True, False, True, False, False])
    weight, counts = samme_step(torch.full((5,), 0.2, dtype=torch.float64), wrong, 3)
    assert weight == pytest.approx(math.log(3))
    assert counts.tolist() == pytest.approx([3 / 9, 1 / 9, 3 / 9, 1 / 9, 1 / 9])
    # the next errs on the last: err = 1/9, weight = ln 8 + ln 2
    weight, counts = samme_step(counts, torch.arange(5) == 4, 3)
    assert weight == pytest.approx(math.log(16))
    assert counts.tolist() == pytest.approx([fraction / 24 for fraction in (3, 1, 3, 1, 16)])
    assert samme_step(counts, torch.zeros(5, dtype=torch.bool), 3)[0] == math.inf
    # two of three wrong is chance
    chance = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert samme_step(chance, torch.tensor([True, True, False]), 3)[0] == pytest.approx(0, abs=1e-12)


def test_boosting_is_samme_of_scikit_learn():
    ensemble = pytest.importorskip("sklearn.ensemble")
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Member(ClassifierMixin, BaseEstimator):
        def fit(self, x, y, sample_weight=None):
            self.classes_ = torch.arange(4).numpy()
            data = torch.from_numpy(x), torch.from_numpy(y)
            self.fitted = fit_linear(data, 0.5, 4, weights=torch.from_numpy(sample_weight))
            return self

        def predict(self, x):
            return self.fitted(torch.from_numpy(x)).argmax(1).numpy()

    reference = ensemble.AdaBoostClassifier(Member(), n_estimators=5).fit(TRAIN[0].numpy(), TRAIN[1].numpy())
    boosted = boosting(TRAIN, TEST, strength=0.5, num_members=5)
    assert len(boosted.members) == 5
    assert boosted.weights == pytest.approx(list(reference.estimator_weights_), rel=1e-3)
    assert (boosted.scores.argmax(1).numpy() == reference.predict(TEST[0].numpy())).mean() > 0.99


def test_boosting_ends_with_a_member_without_mistakes_and_at_chance():
    easy = problem(40, 2, noise=0.01)
    alone = boosting(easy, easy, strength=1e-3, num_members=5)
    assert (len(alone.members), alone.top1) == (1, 1.0)
    blind = (torch.zeros(8, 2), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    chance = boosting(blind, blind, strength=1.0, num_members=5)
    assert (len(chance.members), chance.top1) == (1, 0.25)


@pytest.mark.parametrize("num_folds", [2, 3, 7])
def test_folds_are_disjoint_cover_all_and_keep_the_shares(num_folds):
    labels = torch.tensor([0] * 30 + [1] * 20 + [2] * 4)
    labels = labels[torch.randperm(54, generator=torch.Generator().manual_seed(0))]
    folds = stratified_folds(labels, num_folds, seed=1)
    sizes = torch.bincount(folds, minlength=num_folds)
    assert sizes.sum() == 54
    assert sizes.max() - sizes.min() <= 1
    for label in range(3):
        counts = torch.bincount(folds[labels == label], minlength=num_folds)
        assert counts.max() - counts.min() <= 1
    assert not torch.equal(folds, stratified_folds(labels, num_folds, seed=2))


@pytest.mark.parametrize("seed", range(20))
def test_a_group_is_in_one_fold_and_classes_are_as_even_as_groups_allow(seed):
    generator = torch.Generator().manual_seed(seed)
    num_groups, num_folds = int(torch.randint(5, 60, (), generator=generator)), 5
    groups = torch.randint(num_groups, (400,), generator=generator)
    labels = (torch.rand(400, generator=generator) < groups / num_groups).long()  # groups differ in their classes
    folds = stratified_folds(labels, num_folds, seed, groups)
    assert folds.unique().tolist() == list(range(num_folds))
    for group in groups.unique():
        assert len(folds[groups == group].unique()) == 1
    largest = int(torch.bincount(groups).max())
    for label in (0, 1):
        counts = torch.bincount(folds[labels == label], minlength=num_folds)
        assert counts.max() - counts.min() <= 2 * largest


def test_groups_of_one_image_are_as_even_as_images():
    labels = torch.arange(60) % 3
    folds = stratified_folds(labels, 4, 0, torch.arange(60))
    assert torch.bincount(folds * 3 + labels).tolist() == [5] * 12
    with pytest.raises(ValueError, match="3 groups can be divided into 2 to 3 folds, got 4"):
        stratified_folds(labels, 4, 0, labels)


def test_cross_validation_keeps_groups_together():
    """Each group has a class and a feature by chance: to know a group's class from others is impossible."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(400) // 10
    features = torch.randn(40, 30, generator=generator)[groups] + 0.01 * torch.randn(400, 30, generator=generator)
    labels = torch.randint(2, (40,), generator=generator)[groups]
    leaked = cross_validate((features, labels), 5, strength=1e-3)
    honest = cross_validate((features, labels), 5, strength=1e-3, groups=groups)
    assert leaked.top1.mean > 0.95
    assert honest.top1.mean < 0.7
    assert cross_validate((features, labels), 5, groups=groups).top1.mean < 0.7


def test_folds_of_images_without_labels_are_refused():
    with pytest.raises(ValueError, match="folds need labels, but 2 of 5 images have none"):
        stratified_folds(torch.tensor([0, -1, 1, -1, 0]), 2)


def test_cross_validation_fits_to_the_other_folds_only():
    seen = []

    def nearest_mean(train, features):
        seen.append(features)
        means = torch.stack([train[0][train[1] == label].mean(0) for label in range(4)])
        return torch.cdist(features, means).argmin(1)

    result = cross_validate(TRAIN, 5, classify=nearest_mean)
    assert sum(map(len, seen)) == 60
    assert torch.cat(seen).unique(dim=0).shape == (60, 8), "each image is left out once"
    assert result.top1.mean == pytest.approx(sum(result.values) / 5)
    assert result.top1.mean == pytest.approx(float(result.correct.double().mean()), abs=0.02)
    # labels of no meaning: a model that saw what it is asked would know them
    noise = (torch.randn(200, 20), torch.randint(2, (200,)))
    assert cross_validate(noise, 4, strength=1e-3).top1.mean == pytest.approx(0.5, abs=0.15)
    assert cross_validate(TRAIN, 3).top1.mean > 0.5


def accuracy(predictions, labels):
    return float((predictions == labels).double().mean())


@pytest.mark.slow
def test_the_bootstrap_covers_the_truth_at_about_its_level():
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for trial in range(200):
        values = torch.rand(60, generator=generator) ** 2  # skewed, of mean 1/3
        interval = bootstrap_interval(
            lambda x, y: float(x.mean()), values, torch.zeros(60), num_draws=200, level=0.9, seed=trial
        )
        hits += interval.low <= 1 / 3 <= interval.high
    # standard deviation of the fraction: 0.02
    assert 0.83 <= hits / 200 <= 0.96


def test_a_paired_bootstrap_is_that_of_accuracies_and_narrower_than_an_unpaired_one():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (300,), generator=generator)
    baseline = torch.where(torch.rand(300, generator=generator) < 0.7, labels, 9)
    better = torch.where(torch.rand(300, generator=generator) < 0.3, labels, baseline)
    paired = bootstrap_interval(accuracy, better, labels, baseline=baseline)
    known = paired_difference(better == labels, baseline == labels)
    assert paired.value == pytest.approx(known.value)
    assert (paired.low, paired.high) == pytest.approx((known.low, known.high), abs=0.015)
    alone = [bootstrap_interval(accuracy, each, labels) for each in (better, baseline)]
    assert paired.high - paired.low < sum(each.high - each.low for each in alone) / math.sqrt(2)


def test_errors():
    with pytest.raises(ValueError, match="needs at least 1 member, got 0"):
        bagging(TRAIN, TEST, strength=0.1, num_members=0)
    with pytest.raises(ValueError, match="60 images can be divided into 2 to 60 folds, got 1"):
        stratified_folds(TRAIN[1], 1)
    with pytest.raises(ValueError, match="got 3 for 60 labels"):
        bootstrap_interval(accuracy, TRAIN[1][:3], TRAIN[1])
    with pytest.raises(ValueError, match="60 weights of images, at least 0 and not all 0"):
        fit_linear(TRAIN, 0.1, 4, weights=torch.zeros(60))
