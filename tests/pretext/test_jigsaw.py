"""Jigsaw: the permutations, the puzzles and the loss."""

import itertools
import math

import pytest
import torch

from pretext import jigsaw
from pretext.jigsaw import Jigsaw, far_permutations
from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Images
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.random import sample_keys
from ssl_toolkit.schedule import Constant
from ssl_toolkit.step import StepContext


def make_task(**arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", stem="small", kwargs={"channels": (8, 8, 8, 8)})
    view = RandomView(size=48, scale=(1, 1), ratio=(1, 1), hflip=0, jitter_prob=0, grayscale=0, blur=0)
    arguments = {"patch_size": 12, "jitter": 0, "colour": "none", "num_permutations": 5, **arguments}
    return Jigsaw(
        backbone=backbone, view=view, optimizer=AdamW(), schedule=Constant(),
        patch_width=4, hidden_width=16, **arguments,
    )  # fmt: skip


def make_images(num):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (num, 3, 48, 48), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.full((num, 2), 48))


def test_each_permutation_is_the_farthest_from_those_before_it():
    chosen = [tuple(row) for row in far_permutations(9, size=5).tolist()]
    everything = list(itertools.permutations(range(5)))
    for num in range(1, len(chosen)):
        remaining = [each for each in everything if each not in chosen[:num]]
        sums = [sum(a != b for other in chosen[:num] for a, b in zip(each, other, strict=True)) for each in remaining]
        assert chosen[num] == remaining[sums.index(max(sums))]
    assert chosen[0] == (0, 1, 2, 3, 4)


def test_the_permutations_of_a_grid_are_different_and_far_apart():
    permutations = far_permutations(100)
    assert permutations.shape == (100, 9)
    assert torch.equal(permutations.sort(dim=1).values, torch.arange(9).expand(100, 9))
    different = (permutations[:, None] != permutations[None]).sum(dim=-1).double()
    pairs = different[~torch.eye(100, dtype=torch.bool)]
    assert pairs.min() >= 2  # no permutation twice
    # a random pair differs in 8 of 9 places on average
    assert pairs.mean() > 8.05


def test_a_puzzle_is_laid_out_as_its_number_says():
    task, images = make_task(), make_images(40)
    puzzle = task.make_views(images, sample_keys(0, 0, torch.arange(40)))
    for sample in range(40):
        for place, cell in enumerate(far_permutations(5)[puzzle.order[sample]].tolist()):
            top, left = cell // 3 * 16 + 2, cell % 3 * 16 + 2
            expected = images.pixels[sample, :, top : top + 12, left : left + 12] / 255
            torch.testing.assert_close(puzzle.patches[sample, place], expected, atol=1e-5, rtol=0)
    assert set(puzzle.order.tolist()) == set(range(5))


def test_the_loss_reads_all_patches_of_an_image_together():
    task = make_task().eval()
    puzzle = task.make_views(make_images(6), sample_keys(0, 0, torch.arange(6)))
    output = task.loss(puzzle, StepContext())
    losses, hits = [], []
    for patches, order in zip(puzzle.patches, puzzle.order.tolist(), strict=True):
        reduced = [task.reduce(task.backbone(patch[None]))[0] for patch in patches]
        logits = task.classifier(torch.cat(reduced)[None])[0].detach().double()
        losses.append(float(torch.logsumexp(logits, 0) - logits[order]))
        hits.append(int(logits.argmax()) == order)
    assert output.loss.item() == pytest.approx(sum(losses) / 6, rel=1e-4)
    assert output.metrics["permutation_top1"].item() == pytest.approx(sum(hits) / 6)
    assert task.initial_loss(6) == pytest.approx(math.log(5))


@pytest.mark.parametrize("num", [2, 1000])
def test_the_first_and_the_last_number_of_permutations_are_taken(num, monkeypatch):
    monkeypatch.setattr(jigsaw, "far_permutations", lambda num: torch.arange(9).expand(num, 9))
    assert make_task(num_permutations=num).initial_loss(6) == pytest.approx(math.log(num))


@pytest.mark.parametrize("num", [1, 1001])
def test_an_impossible_number_of_permutations_is_refused(num):
    with pytest.raises(ValueError, match=f"num_permutations is {num}, expected 2 to 1,000"):
        make_task(num_permutations=num)
