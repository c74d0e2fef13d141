"""Ridge regression beside scikit-learn's, and on features that tell everything or nothing."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from ssl_toolkit.evaluation.ridge import STRENGTHS, fit_ridge


def drawn(num, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = 3 + torch.randn(num, width, generator=generator) * torch.linspace(0.1, 5, width)
    targets = features[:, :2] @ torch.tensor([[1.0, -2.0], [0.5, 0.0]]) + torch.randn(num, 2, generator=generator)
    return features, targets


@pytest.mark.parametrize("width", [8, 90], ids=["narrow", "wider than rows"])
def test_it_is_scikit_learn_s_with_the_strength_that_is_best_on_held_out_rows(width):
    train, val = drawn(60, width), drawn(40, width, 1)
    fit = fit_ridge(train, val)
    scaler = StandardScaler().fit(train[0].double().numpy())
    errors = {}
    for strength in STRENGTHS:
        ridge = Ridge(alpha=strength * 60, solver="svd")
        ridge.fit(scaler.transform(train[0].double().numpy()), train[1].double().numpy())
        predicted = ridge.predict(scaler.transform(val[0].double().numpy()))
        errors[strength] = ((predicted - val[1].double().numpy()) ** 2).sum()
        if strength == fit.strength:
            np.testing.assert_allclose(fit.predict(val[0]).numpy(), predicted, rtol=1e-7, atol=1e-8)
    assert fit.strength == min(errors, key=errors.__getitem__)


def test_features_that_do_not_vary_change_nothing():
    train, val = drawn(60, 4), drawn(40, 4, 1)
    constant = [(torch.cat([features, torch.full((len(features), 1), 7.0)], dim=1), y) for features, y in (train, val)]
    fits = fit_ridge(train, val), fit_ridge(constant[0], constant[1])
    torch.testing.assert_close(fits[1].predict(constant[1][0]), fits[0].predict(val[0]))


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="rows to fit and to choose on, got 60 and 0"):
        fit_ridge(drawn(60, 4), drawn(0, 4))
