"""Random boxes against torchvision's RandomResizedCrop, in distribution."""

import math

import pytest
import torch
from torchvision.transforms.v2 import RandomResizedCrop

from ssl_toolkit.augment import random_erasing_boxes, random_resized_crop_boxes
from ssl_toolkit.random import sample_keys

NUM = 4000


def draw(size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]) -> torch.Tensor:
    sizes = torch.tensor([size]).expand(NUM, -1)
    return random_resized_crop_boxes(sizes, sample_keys(0, 0, torch.arange(NUM)), scale, ratio)


def draw_torchvision(size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]) -> torch.Tensor:
    transform = RandomResizedCrop(8, scale, ratio)
    image = torch.empty(3, *size)
    boxes = [transform.make_params([image]) for _ in range(NUM)]
    return torch.tensor([[box[name] for name in ("top", "left", "height", "width")] for box in boxes]).float()


def kolmogorov_smirnov(x: torch.Tensor, y: torch.Tensor) -> float:
    places = torch.cat([x, y]).unique()
    below = [torch.searchsorted(values.sort().values, places, right=True) / len(values) for values in (x, y)]
    return (below[0] - below[1]).abs().max().item()


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((32, 32), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((96, 160), (0.2, 1.0), (3 / 4, 4 / 3)),
        ((40, 24), (0.5, 1.0), (0.5, 2.0)),
        ((20, 90), (0.7, 1.0), (3 / 4, 4 / 3)),
        ((60, 60), (0.1, 0.3), (1.5, 3.0)),  # wide boxes only: height and width are not alike
    ],
)
def test_boxes_are_distributed_as_torchvision_draws_them(size, scale, ratio):
    torch.manual_seed(0)
    ours, theirs = draw(size, scale, ratio), draw_torchvision(size, scale, ratio)
    # two samples of one distribution differ by more than this once in about 3000 times
    limit = math.sqrt(-math.log(0.0003 / 2) / NUM)
    for column in range(4):
        assert kolmogorov_smirnov(ours[:, column], theirs[:, column]) < limit
    area, shape = [boxes[:, 2] * boxes[:, 3] for boxes in (ours, theirs)], [b[:, 3] / b[:, 2] for b in (ours, theirs)]
    assert kolmogorov_smirnov(*area) < limit
    assert kolmogorov_smirnov(*shape) < limit


def test_boxes_lie_inside_images_of_different_sizes_and_have_integer_corners():
    sizes = torch.stack(torch.meshgrid(torch.arange(1, 64), torch.arange(1, 64), indexing="ij"), -1).flatten(0, 1)
    for epoch in range(5):
        boxes = random_resized_crop_boxes(sizes, sample_keys(0, epoch, torch.arange(len(sizes))))
        assert torch.equal(boxes, boxes.round())
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] >= 1).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()


@pytest.mark.parametrize("size", [(10, 100), (100, 10), (7, 64), (30, 31)])
def test_the_fallback_is_that_of_torchvision(size):
    # an area that no box of an allowed shape has
    scale, ratio = ((0.999, 1.0), (3 / 4, 4 / 3)) if size != (30, 31) else ((0.9, 1.0), (5.0, 6.0))
    ours, theirs = draw(size, scale, ratio)[:20], draw_torchvision(size, scale, ratio)[:20]
    assert torch.equal(ours, theirs)
    assert len(ours.unique(dim=0)) == 1


def test_erasing_boxes_cover_the_asked_share():
    sizes = torch.full((NUM, 2), 64)
    boxes = random_erasing_boxes(sizes, sample_keys(0, 0, torch.arange(NUM)), (0.1, 0.3))
    fractions = boxes[:, 2] * boxes[:, 3] / 64**2
    assert fractions.min() > 0.08
    assert fractions.max() < 0.32
    assert abs(fractions.mean() - 0.2) < 0.01
