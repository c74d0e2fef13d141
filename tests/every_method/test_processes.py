"""Several processes with a slice of the batch each compute what one does with all of it, for every method there is."""

import pytest
import torch

import methods
import parity
from gloo_processes import run_processes

HINT = (
    "Does a step draw from torch's generator (draw by the samples' keys instead), or does a loss look at its own "
    "process's samples only (see ssl_toolkit.distributed.collectives)?"
)


def test_settings_that_change_the_speed_only_are_cases_too():
    assert parity.Case("SimCLR", ("--model.forward_passes=2",)) in parity.cases("SimCLR")


def compare(name, num, folder):
    """The largest differences between so many processes and one, by precision."""
    recipe, cases = parity.write_recipe(name, folder), parity.cases(name)
    alone = parity.outcomes(recipe, cases)
    together = run_processes(parity.outcomes, num, recipe, cases, timeout=280)
    worst = dict.fromkeys(parity.LIMITS, 0.0)
    for case in cases:
        assert_is_of_something(alone[case])
        for dtype, found in parity.differences(alone[case], [each[case] for each in together]).items():
            limit = parity.LIMITS[dtype]
            assert found <= limit, f"{case}, {num} processes, {dtype}: {found:.1e} from one process. {HINT}"
            worst[dtype] = max(worst[dtype], found)
    return worst


def assert_is_of_something(outcomes):
    """Most parameters have a gradient that is more than rounding, in the precision asked for."""
    for dtype, found in outcomes.items():
        for loss, gradients in found:
            assert loss == loss != 0.0
            norms = [float(each.norm()) for each in gradients.values() if each is not None]
            assert all(each.dtype == dtype for each in gradients.values() if each is not None)
            assert sum(each > 1e-3 * max(norms) for each in norms) > 0.5 * len(norms)


def say(name, num, worst):
    return f"{name}, W = {num}: {worst[torch.float64]:.0e} in float64, {worst[torch.float32]:.0e} in float32"


@pytest.mark.guarantee("P1")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", methods.each())
def test_two_processes_equal_one(name, tmp_path, reached):
    reached(say(name, 2, compare(name, 2, tmp_path)))


@pytest.mark.guarantee("P1")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", methods.on_representatives())
def test_four_processes_equal_one(name, tmp_path, reached):
    reached(say(name, 4, compare(name, 4, tmp_path)))
