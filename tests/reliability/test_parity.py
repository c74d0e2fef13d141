"""Several processes with a slice of the batch each compute what one does with all of it, for every method there is."""

from functools import cache

import pytest
import torch

import methods
import parity
from processes import run_processes

CASES = parity.cases()
HINT = (
    "Does a step draw from torch's generator (draw by the samples' keys instead), or does a loss look at its own "
    "process's samples only (see ssl_toolkit.distributed.collectives)?"
)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    return parity.write_recipes(tmp_path_factory.mktemp("recipes"))


@pytest.fixture(scope="module")
def computed(recipes):
    """The outcomes of every case in each of so many processes, which are started once."""

    @cache
    def compute(num):
        if num == 1:
            return [parity.outcomes(recipes, CASES)]
        return run_processes(parity.outcomes, num, recipes, CASES, timeout=280)

    return compute


def test_every_method_is_there():
    assert {case.method for case in CASES} == set(methods.tasks())
    assert parity.Case("SimCLR", ("--model.forward_passes=2",)) in CASES


@pytest.mark.goal("P1")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("num", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_equal_one(case, num, computed, reached):
    found = parity.differences(computed(1)[0][case], [each[case] for each in computed(num)])
    for dtype, limit in parity.LIMITS.items():
        assert found[dtype] <= limit, f"{case}, {num} processes, {dtype}: {found[dtype]:.1e} from one process. {HINT}"
    reached(f"{case}, W = {num}: {found[torch.float64]:.0e} in float64, {found[torch.float32]:.0e} in float32")


@pytest.mark.goal("P1")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_comparison_is_of_something(case, computed):
    for dtype, found in computed(1)[0][case].items():
        for loss, gradients in found:
            assert loss == loss != 0.0
            norms = [float(each.norm()) for each in gradients.values() if each is not None]
            assert all(each.dtype == dtype for each in gradients.values() if each is not None)
            # most parameters have a gradient that is more than rounding
            assert sum(each > 1e-3 * max(norms) for each in norms) > 0.5 * len(norms)
