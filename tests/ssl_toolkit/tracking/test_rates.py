"""Rates as text."""

import pytest

from ssl_toolkit.tracking.rates import rate_text


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(1834.4, "1,834"), (10.2, "10"), (9.96, "10"), (9.94, "9.9"), (0.42, "0.42"), (0.0213, "0.021"), (0.0, "0")],
)
def test_a_slow_rate_is_not_shown_as_zero(rate, expected):
    assert rate_text(rate) == expected
