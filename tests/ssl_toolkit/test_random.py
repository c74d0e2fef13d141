"""The generator against plain Python integers, and against what random numbers should look like."""

import math
import zlib

import pytest
import torch

from ssl_toolkit.random import (
    fold_in,
    integers,
    normal,
    number,
    permutations,
    random_bits,
    sample_keys,
    sample_order,
    streams,
    uniform,
)

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
KEYS = sample_keys(seed=3, epoch=1, indices=torch.arange(20_000))


def mix(value: int) -> int:
    """The output function of SplitMix64, as its authors write it in C."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def fold_reference(key: int, label: int) -> int:
    return mix(mix((key + GOLDEN) & MASK) ^ (((label + 1) * 0xD1342543DE82EF95) & MASK))


def unsigned(values: torch.Tensor) -> list[int]:
    return [value & MASK for value in values.flatten().tolist()]


def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([x.flatten(), y.flatten()]).double())[0, 1].item()


def assert_uniform(counts: torch.Tensor) -> None:
    """Chi-square within five standard deviations of its mean (its degrees of freedom)."""
    expected = counts.sum() / counts.numel()
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    freedom = counts.numel() - 1
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


def test_bits_are_those_of_splitmix64_with_the_known_answers_for_seed_0():
    # the first outputs of the published generator started at state 0 (mix(0) = 0)
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert unsigned(random_bits(torch.zeros((), dtype=torch.int64), 4)) == known


def test_bits_equal_plain_python_integers():
    keys = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 123456789])
    expected = [mix((mix(key & MASK) + i * GOLDEN) & MASK) for key in keys.tolist() for i in range(1, 8)]
    assert unsigned(random_bits(keys, 7)) == expected


@pytest.mark.parametrize("label", [0, 1, 7, 2**32, -5, "crop"])
def test_fold_equals_plain_python_integers(label: int | str):
    keys = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 987654321])
    as_number = zlib.crc32(label.encode()) if isinstance(label, str) else label
    expected = [fold_reference(key & MASK, as_number) for key in keys.tolist()]
    assert unsigned(fold_in(keys, label)) == expected
    assert unsigned(fold_in(keys, torch.tensor(as_number))) == expected


def test_fold_broadcasts_a_tensor_of_labels():
    keys = fold_in(KEYS[:5, None], torch.arange(3))
    assert keys.shape == (5, 3)
    for label in range(3):
        assert torch.equal(keys[:, label], fold_in(KEYS[:5], label))


def test_streams_are_the_keys_of_their_names():
    names = ("hflip", "apply", "")
    keys = KEYS[:6].view(2, 3)
    expected = torch.stack([fold_in(keys, name) for name in names], dim=-1)
    for _ in range(2):  # the second time with the numbers that were kept
        assert torch.equal(streams(keys, *names), expected)


def test_sample_keys_equal_plain_python_integers_and_known_bits():
    indices = torch.tensor([0, 5, 2**40])
    expected = [fold_reference(fold_reference(7 * 2 + 1, 2), index) for index in indices.tolist()]
    assert unsigned(sample_keys(7, 2, indices)) == expected
    # these bits decide every run: a change of them is a change of results
    assert sample_keys(0, 0, torch.arange(2)).tolist() == [5851418612046763414, 8883590628894945556]


@pytest.mark.parametrize("labels", [(), ("step",), ("step", 0, 3, 2**40, 1), ("view", -5, "crop")])
def test_a_number_is_the_key_folded_from_zero_without_its_last_bit(labels):
    key = torch.zeros((), dtype=torch.int64)
    for label in labels:
        key = fold_in(key, label)
    assert number(*labels) == (int(key) & MASK) >> 1


def test_no_two_samples_epochs_seeds_or_streams_share_a_key():
    indices = torch.arange(20_000)
    keys = [sample_keys(seed, epoch, indices) for seed in (0, 1, 2) for epoch in range(4)]
    streams = [fold_in(keys[0], label) for label in ("crop", "flip", "hue", 0, 1, 2)]
    views = [fold_in(fold_in(keys[0], view), "crop") for view in (0, 1)]
    together = torch.cat(keys + streams + views)
    assert together.unique().numel() == together.numel()


def test_the_order_of_folding_matters():
    assert not torch.equal(fold_in(fold_in(KEYS, 1), 2), fold_in(fold_in(KEYS, 2), 1))


def test_a_sample_draws_the_same_bits_in_any_batch():
    order = torch.randperm(len(KEYS), generator=torch.Generator().manual_seed(0))
    for draw in (
        lambda keys: uniform(keys, 3),
        lambda keys: normal(keys, 3),
        lambda keys: integers(keys, -2, 9, 3),
        lambda keys: permutations(keys, 5),
        lambda keys: fold_in(keys, "crop"),
    ):
        whole = draw(KEYS)
        assert torch.equal(draw(KEYS[order]), whole[order])
        assert torch.equal(torch.cat([draw(part) for part in KEYS[:100].split(7)]), whole[:100])
        assert torch.equal(draw(KEYS[17]), whole[17])
        assert torch.equal(draw(KEYS[:100].view(4, 25)).flatten(0, 1), whole[:100])


@pytest.mark.parametrize("draw", [uniform, normal])
def test_shapes_of_real_numbers(draw):
    assert draw(KEYS).shape == KEYS.shape
    assert draw(KEYS, 1).shape == (*KEYS.shape, 1)
    assert draw(KEYS, 0).shape == (*KEYS.shape, 0)
    assert draw(KEYS[:6].view(2, 3), 4).shape == (2, 3, 4)
    assert draw(KEYS, 4).dtype == torch.float32
    assert torch.equal(draw(KEYS), draw(KEYS, 1).squeeze(-1))
    assert torch.equal(draw(KEYS, 5)[:, :2], draw(KEYS, 2))


def test_uniform_is_uniform_and_its_numbers_are_independent():
    numbers = uniform(KEYS, 2)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for column in numbers.unbind(1):
        assert_uniform(torch.histc(column, 64, 0, 1))
    cells = (numbers * 16).long()
    assert_uniform(torch.bincount(cells[:, 0] * 16 + cells[:, 1], minlength=256).float())
    assert abs(correlation(numbers[:, 0], numbers[:, 1])) < 0.03


@pytest.mark.parametrize(
    "other",
    [
        lambda: sample_keys(3, 1, torch.arange(1, 20_001)),
        lambda: sample_keys(3, 2, torch.arange(20_000)),
        lambda: sample_keys(4, 1, torch.arange(20_000)),
        lambda: fold_in(KEYS, "crop"),
        lambda: fold_in(KEYS, 0),
    ],
    ids=["next index", "next epoch", "next seed", "stream", "view"],
)
def test_neighbouring_keys_draw_independent_numbers(other):
    first, second = (uniform(KEYS) * 16).long(), (uniform(other()) * 16).long()
    assert_uniform(torch.bincount(first * 16 + second, minlength=256).float())


def test_every_bit_is_fair():
    bits = random_bits(KEYS, 1)
    for place in range(64):
        fraction = ((bits >> place) & 1).double().mean().item()
        assert abs(fraction - 0.5) < 5 * 0.5 / math.sqrt(len(KEYS))


def test_one_changed_bit_of_a_key_changes_half_of_the_bits():
    bits = random_bits(KEYS[:500], 1)
    for place in range(0, 64, 7):
        changed = bits ^ random_bits(KEYS[:500] ^ (1 << place), 1)
        fractions = torch.stack([(changed >> other) & 1 for other in range(64)]).double().mean()
        assert abs(fractions.item() - 0.5) < 0.02


def test_uniform_between_bounds():
    numbers = uniform(KEYS, None, -3.0, 5.0)
    assert numbers.min() >= -3
    assert numbers.max() <= 5
    assert_uniform(torch.histc(numbers, 32, -3, 5))


def test_normal_has_the_moments_and_the_distribution_function_of_a_normal():
    numbers = normal(KEYS, 4).double()
    num = numbers.numel()
    assert numbers.isfinite().all()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((numbers**power).mean().item() - moment) < 5 * math.sqrt(variance / num)
    fractions = torch.special.ndtr(numbers)
    assert_uniform(torch.histc(fractions, 64, 0, 1))
    assert abs(correlation(numbers[:, 0], numbers[:, 1])) < 0.03
    assert abs(correlation(numbers[:, 0] ** 2, numbers[:, 1] ** 2)) < 0.03


def test_integers_cover_their_range_evenly():
    numbers = integers(KEYS, -3, 8)
    assert numbers.dtype == torch.int64
    assert set(numbers.tolist()) == set(range(-3, 8))
    assert_uniform(torch.bincount(numbers + 3).float())
    assert integers(KEYS, 5, 6).unique().tolist() == [5]
    assert integers(KEYS, 0, 3, 2).shape == (len(KEYS), 2)
    assert integers(KEYS, 0, 3, 0).shape == (len(KEYS), 0)


def test_integers_names_an_empty_range():
    with pytest.raises(ValueError, match="high > low, got low=4 and high=4"):
        integers(KEYS, 4, 4)


def test_permutations_are_permutations_and_all_equally_likely():
    orders = permutations(KEYS, 4)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(4).expand(len(KEYS), 4))
    codes = (orders * torch.tensor([64, 16, 4, 1])).sum(1)
    values, counts = codes.unique(return_counts=True)
    assert len(values) == math.factorial(4)
    assert_uniform(counts.float())


def test_number_is_a_seed_that_depends_on_every_label_and_on_their_order():
    labels = [(), (0,), (1,), (0, 1), (1, 0), ("dropout", 0), ("dropout", 1), (0, "dropout")]
    numbers = {number(*each) for each in labels}
    assert len(numbers) == len(labels)
    assert all(0 <= value < 2**63 for value in numbers)
    torch.Generator().manual_seed(max(numbers))


def test_sample_order_is_a_permutation_that_depends_on_seed_and_epoch_alone():
    order = sample_order(0, 0, 1000)
    assert torch.equal(order.sort().values, torch.arange(1000))
    state = torch.get_rng_state()
    assert torch.equal(order, sample_order(0, 0, 1000))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(order, sample_order(0, 1, 1000))
    assert not torch.equal(order, sample_order(1, 0, 1000))
    first = torch.tensor([sample_order(0, epoch, 10)[0].item() for epoch in range(2000)])
    assert_uniform(torch.bincount(first, minlength=10).float())
