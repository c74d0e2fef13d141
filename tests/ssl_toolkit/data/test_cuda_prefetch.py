"""Copies to a device: the values, the structure, and on a GPU the order of things."""

import numpy as np
import pytest
import torch

from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.data import BatchLoader, DecodedStore
from ssl_toolkit.data.bad_files import BadFiles
from ssl_toolkit.data.cuda_prefetch import DeviceCopies

DEVICES = [
    torch.device("cpu"),
    pytest.param(torch.device("cuda", 0), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def make_batch(seed):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (64, 3, 40, 40), dtype=torch.uint8, generator=generator)
    return Batch(Images(pixels, torch.full((64, 2), 40)), torch.arange(64), torch.arange(64) % 3, seed)


@pytest.mark.parametrize("device", DEVICES)
def test_batches_arrive_as_they_were(device):
    copies = DeviceCopies(device)
    sent = [copies.send(make_batch(seed)) for seed in range(8)]
    for seed, each in enumerate(sent):
        received = copies.receive(each)
        expected = make_batch(seed)
        assert isinstance(received, Batch)
        assert isinstance(received.images, Images)
        assert received.epoch == seed
        for found, tensor in zip([*received.images, *received[1:3]], [*expected.images, *expected[1:3]], strict=True):
            assert found.device == device
            assert torch.equal(found.cpu(), tensor)


@pytest.mark.parametrize("device", DEVICES)
def test_a_loader_delivers_the_same_with_and_without(device):
    num = 500
    data = np.random.default_rng(0).integers(0, 256, 12 * num).astype(np.uint8)
    store = DecodedStore(data, np.full((num, 2), 2), 3, BadFiles(num, 0.5, announce=False))
    labels = torch.arange(num)
    plain, copied = (
        BatchLoader(store, labels, np.arange(num), 32, seed=1, shuffle=True, drop_last=True, device=each)
        for each in (None, device)
    )
    for expected, found in zip(plain, copied, strict=True):
        assert found.images.pixels.device == device
        assert torch.equal(expected.images.pixels, found.images.pixels.cpu())
        assert torch.equal(expected.indices, found.indices.cpu())
    assert plain.state_dict() == copied.state_dict()
