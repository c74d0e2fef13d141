"""The feature queue: first in, first out, whatever comes at once."""

import random

import pytest
import torch
import torch.nn.functional as F

from ssl_toolkit.modules import FeatureQueue


def rows(*numbers):
    """Vectors that are told apart, of any length."""
    angles = torch.tensor(numbers, dtype=torch.float32) * 0.1
    return 3 * torch.stack([angles.cos(), angles.sin()], dim=1)


def test_it_begins_with_random_vectors_of_length_one():
    torch.manual_seed(0)
    queue = FeatureQueue(1000, 8)
    assert queue.features.shape == (1000, 8)
    torch.testing.assert_close(queue.features.norm(dim=1), torch.ones(1000))
    assert queue.features.mean(dim=0).abs().max() < 0.05


def test_it_holds_the_newest_in_a_circle():
    generator = random.Random(0)
    queue, newest, count = FeatureQueue(7, 2), [], 0
    for _ in range(50):
        num = generator.choice([1, 2, 3, 7, 9, 20])
        numbers = list(range(count, count + num))
        count += num
        queue.enqueue(rows(*numbers))
        newest = (newest + numbers)[-7:]
        if len(newest) == 7:
            found = sorted(map(tuple, queue.features.round(decimals=4).tolist()))
            expected = F.normalize(rows(*newest), dim=1)
            assert found == sorted(map(tuple, expected.round(decimals=4).tolist()))


def test_the_oldest_go_first():
    queue = FeatureQueue(4, 2)
    queue.enqueue(rows(1, 2, 3, 4))
    queue.enqueue(rows(5))
    unit = F.normalize(rows(5, 2, 3, 4), dim=1)
    torch.testing.assert_close(queue.features, unit)
    assert queue.place == 1


def test_it_is_part_of_the_state_and_goes_on_from_there():
    first, second = FeatureQueue(5, 2), FeatureQueue(5, 2)
    first.enqueue(rows(1, 2, 3))
    second.load_state_dict(first.state_dict())
    for queue in (first, second):
        queue.enqueue(rows(4, 5, 6))
    assert torch.equal(first.features, second.features)
    assert list(first.state_dict()) == ["features", "place"]


def test_a_queue_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1 embedding, got a size of 0"):
        FeatureQueue(0, 4)
