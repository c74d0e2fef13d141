"""Patches, colour dropping, colour projection, rescaling and erasing against plain loops."""

import math

import pytest
import torch

from ssl_toolkit.augment import drop_channels, erase, project_colour, rescale, take_patches
from ssl_toolkit.random import fold_in, sample_keys


def test_patches_equal_slices():
    images = torch.rand(5, 3, 20, 24)
    tops, lefts = torch.randint(0, 20 - 7 + 1, (5, 9)), torch.randint(0, 24 - 7 + 1, (5, 9))
    tops[0, 0], lefts[0, 0], tops[0, 1], lefts[0, 1] = 0, 0, 13, 17
    patches = take_patches(images, tops, lefts, 7)
    assert patches.shape == (5, 9, 3, 7, 7)
    for i in range(5):
        for k in range(9):
            top, left = tops[i, k], lefts[i, k]
            assert torch.equal(patches[i, k], images[i, :, top : top + 7, left : left + 7])


def test_a_patch_outside_of_its_image_raises():
    with pytest.raises(IndexError, match="out of bounds"):
        take_patches(torch.rand(1, 3, 8, 8), torch.tensor([[5]]), torch.tensor([[0]]), 4)


@pytest.fixture
def patches() -> torch.Tensor:
    return torch.rand(300, 4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def keys() -> torch.Tensor:
    return fold_in(sample_keys(0, 0, torch.arange(300))[:, None], torch.arange(4))


def test_dropping_keeps_one_channel_and_fills_the_others_with_noise_about_the_mean(patches, keys):
    mean = (0.5, 0.4, 0.3)
    patches = patches * torch.tensor([0.2, 1.0])[torch.arange(300) % 2].view(-1, 1, 1, 1, 1)
    result = drop_channels(patches, keys, mean)
    same = (result == patches).flatten(3).all(3)
    assert torch.equal(same.sum(2), torch.ones(300, 4))
    kept = same.long().argmax(2)
    counts = torch.bincount(kept.flatten(), minlength=3)
    assert (counts - 400).abs().max() < 5 * (1200 * 1 / 3 * 2 / 3) ** 0.5
    noise = (result - torch.tensor(mean)[:, None, None])[~same].view(1200, 2, 144)
    deviation = patches.gather(2, kept[..., None, None, None].expand(-1, -1, 1, 12, 12)).flatten(2).std(2) / 100
    scaled = noise / deviation.flatten()[:, None, None]
    assert abs(scaled.mean()) < 0.01
    assert abs(scaled.std() - 1) < 0.01
    assert abs((scaled[:, 0] * scaled[:, 1]).mean()) < 0.02
    assert abs((scaled[:-1] * scaled[1:]).mean()) < 0.02


def test_dropping_depends_on_the_key_alone(patches, keys):
    result = drop_channels(patches, keys)
    assert torch.equal(drop_channels(patches[7:9, 1:3], keys[7:9, 1:3]), result[7:9, 1:3])
    assert torch.equal(drop_channels(patches[7, 2], keys[7, 2]), result[7, 2])
    equal = patches[:1].expand(300, -1, -1, -1, -1)
    assert len(drop_channels(equal, keys)[:, 0].flatten(1).unique(dim=0)) == 300


def test_dropping_takes_other_channel_counts_with_their_means(patches, keys):
    four = torch.cat([patches, patches[:, :, :1]], dim=2)
    result = drop_channels(four, keys, (0.5,) * 4)
    assert torch.equal((result == four).flatten(3).all(3).sum(2), torch.ones(300, 4))
    with pytest.raises(ValueError, match="a mean for each of the 4 channels"):
        drop_channels(four, keys)


def test_patches_and_their_colours_stay_on_their_device_and_never_wait_for_it():
    images, places = torch.rand(4, 3, 20, 20, device="meta"), torch.zeros(4, 9, dtype=torch.int64, device="meta")
    patches = take_patches(images, places, places, 6)
    assert project_colour(drop_channels(patches, places)).shape == (4, 9, 3, 6, 6)


def test_projection_is_the_papers_matrix_where_its_result_is_in_range():
    axis = torch.tensor([[-1.0, 2.0, -1.0]])
    matrix = torch.eye(3) - axis.T @ axis / (axis @ axis.T)
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.einsum("nchw,cd->ndhw", images, matrix)
    result = project_colour(images)
    fits = ((expected >= 0) & (expected <= 1)).all(1, keepdim=True).expand_as(result)
    assert 0.5 < fits.float().mean() < 1
    torch.testing.assert_close(result[fits], expected[fits], atol=1e-6, rtol=0)


def test_projection_leaves_nothing_on_the_axis_stays_in_range_and_keeps_the_mean_and_greys():
    corners = torch.cartesian_prod(*[torch.linspace(0, 1, 9)] * 3).T.reshape(1, 3, 27, 27)
    result = project_colour(corners)
    assert (2 * result[:, 1] - result[:, 0] - result[:, 2]).abs().max() < 1e-6
    assert result.min() >= -1e-7
    assert result.max() <= 1 + 1e-6
    torch.testing.assert_close(result.mean(1), corners.mean(1))
    grey = torch.rand(2, 5, 1, 4, 4).expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(project_colour(grey), grey)
    torch.testing.assert_close(project_colour(result), result)
    with pytest.raises(ValueError, match="3 channels, got 1"):
        project_colour(corners[:, :1])


def rescaled_by_hand(patch, centre, mean, std):
    """One patch, [channels][height][width] as lists, a value at a time."""
    seen = [[[(x - m) / s for x in row] for row in channel] for channel, m, s in zip(patch, mean, std, strict=True)]
    if centre:
        for channel in seen:
            level = sum(map(sum, channel)) / sum(map(len, channel))
            channel[:] = [[x - level for x in row] for row in channel]
    values = [x for channel in seen for row in channel for x in row]
    size = max(math.sqrt(sum(x * x for x in values) / len(values)), 1 / 255 / 0.225)
    return [[[m + s * x / size for x in row] for row in channel] for channel, m, s in zip(seen, mean, std, strict=True)]


@pytest.mark.parametrize("centre", [False, True])
def test_rescaling_equals_plain_loops(centre, patches):
    mean, std = (0.5, 0.4, 0.3), (0.3, 0.2, 0.25)
    some = patches[:4, :2].double()
    some[1] = 0.4 + 0.01 * some[1]  # flat
    some[2] = 0.4  # flatter than a step of 8 bits
    result = rescale(some, centre, mean, std)
    assert result.dtype == torch.float64
    for given, made in zip(some.flatten(0, 1), result.flatten(0, 1), strict=True):
        expected = torch.tensor(rescaled_by_hand(given.tolist(), centre, mean, std), dtype=torch.float64)
        torch.testing.assert_close(made, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("centre", [False, True])
def test_rescaling_gives_all_patches_the_same_size_and_leaves_a_uniform_one_uniform(centre, patches):
    mean, std = (torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen = (rescale(patches, centre) - mean) / std
    torch.testing.assert_close(seen.square().mean(dim=(-3, -2, -1)), torch.ones(300, 4))
    assert (seen.mean(dim=(-2, -1)).abs().max() < 1e-5) == centre
    # more contrast about the mean changes nothing, and more light nothing if the patch is centred
    brighter = mean + 0.3 * (patches - mean) + (0.1 * std if centre else 0)
    torch.testing.assert_close(rescale(brighter, centre), rescale(patches, centre), atol=1e-4, rtol=1e-4)
    uniform = rescale(torch.full((1, 3, 6, 6), 0.7), centre)
    assert uniform.std(dim=(-2, -1)).max() < 1e-6
    assert uniform.isfinite().all()


def test_erasing_fills_the_box_and_nothing_else():
    images = torch.rand(3, 2, 10, 12)
    boxes = torch.tensor([[0, 0, 3, 4], [7, 5, 3, 7], [2, 2, 0, 5]])
    result = erase(images, boxes, 0.25)
    expected = images.clone()
    expected[0, :, :3, :4] = 0.25
    expected[1, :, 7:, 5:] = 0.25
    assert torch.equal(result, expected)
