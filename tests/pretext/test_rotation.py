"""Rotation: the views, their answers, and what is refused."""

import math

import pytest
import torch

from pretext.rotation import Rotation
from ssl_toolkit.augment import RandomView, TrivialAugment
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.losses import Mixing
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.random import sample_keys
from ssl_toolkit.regularization import MixUp
from ssl_toolkit.schedule import Constant
from ssl_toolkit.step import StepContext

SIDE = 12


def plain_view(**arguments):
    arguments = {"hflip": 0, "preset": "crop_and_flip", **arguments}
    return RandomView(size=SIDE, scale=(1, 1), ratio=(1, 1), **arguments)


def make_task(view=None, **arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", stem="small", kwargs={"channels": (8, 8, 8, 8)})
    return Rotation(backbone=backbone, view=view or plain_view(), optimizer=AdamW(), schedule=Constant(), **arguments)


def make_images(num):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (num, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.full((num, 2), SIDE))


def turned_by_hand(image, turns):
    """An image rotated counter-clockwise, a pixel at a time: [channels, side, side]."""
    for _ in range(turns):
        before, image = image, torch.empty_like(image)
        for row in range(SIDE):
            for column in range(SIDE):
                # what was the last column, read downwards, is the first row
                image[:, row, column] = before[:, column, SIDE - 1 - row]
    return image


@pytest.mark.parametrize("rotations", ["all", "one"])
def test_each_view_is_rotated_as_its_answer_says(rotations):
    images = make_images(40)
    rotated = make_task(rotations=rotations).make_views(images, sample_keys(0, 0, torch.arange(40)))
    num = {"all": 4, "one": 1}[rotations]
    assert rotated.views.shape == (40, num, 3, SIDE, SIDE)
    assert rotated.turns.shape == (40, num)
    for views, turns, image in zip(rotated.views, rotated.turns.tolist(), images.pixels, strict=True):
        for view, each in zip(views, turns, strict=True):
            torch.testing.assert_close(view, turned_by_hand(image / 255, each), atol=1e-5, rtol=0)
    if rotations == "all":
        assert rotated.turns.tolist() == [[0, 1, 2, 3]] * 40
    else:
        counts = rotated.turns.flatten().bincount(minlength=4)
        assert (counts - 10).abs().max() < 5 * (40 * 3 / 16) ** 0.5
        assert counts.min() > 0


def test_the_one_rotation_is_drawn_from_the_sample_s_key():
    task, keys = make_task(rotations="one"), sample_keys(0, 0, torch.arange(40))
    turns = task.make_views(make_images(40), keys).turns
    assert torch.equal(task.make_views(Images(*(each[7:9] for each in make_images(40))), keys[7:9]).turns, turns[7:9])
    assert not torch.equal(task.make_views(make_images(40), sample_keys(0, 1, torch.arange(40))).turns, turns)


def test_a_mirrored_image_is_rotated_after_it_was_mirrored():
    images = make_images(2)
    rotated = make_task(plain_view(hflip=1)).make_views(images, sample_keys(0, 0, torch.arange(2)))
    for number in range(2):
        for turns in range(4):
            expected = turned_by_hand(images.pixels[number].flip(-1) / 255, turns)
            torch.testing.assert_close(rotated.views[number, turns], expected, atol=1e-5, rtol=0)


def reference(task, rotated, aims):
    """Mean cross entropy and accuracy, by plain loops; ``aims`` are the weights of the classes of each row."""
    losses, hits = [], []
    for view, aim in zip(rotated.views.flatten(0, 1), aims, strict=True):
        logits = task.classifier(task.backbone(view[None]))[0].detach().double()
        losses.append(sum(weight * float(torch.logsumexp(logits, 0) - logits[each]) for each, weight in enumerate(aim)))
        hits.append(int(logits.argmax()) == max(range(4), key=lambda each: aim[each]))
    return sum(losses) / len(losses), sum(hits) / len(hits)


@pytest.mark.parametrize("rotations", ["all", "one"])
def test_the_loss_and_the_accuracy_are_means_over_all_views(rotations):
    task = make_task(rotations=rotations).eval()
    torch.nn.init.normal_(task.classifier[0].weight, std=100)  # so large that not all answers are one
    rotated = task.make_views(make_images(9), sample_keys(0, 0, torch.arange(9)))
    output = task.loss(rotated, StepContext(smoothing=0.2))
    smooth = [[0.2 / 4 + 0.8 * (turns == each) for each in range(4)] for turns in rotated.turns.flatten().tolist()]
    loss, top1 = reference(task, rotated, smooth)
    assert output.loss.item() == pytest.approx(loss, rel=1e-4)
    assert output.metrics["rotation_top1"].item() == pytest.approx(top1)
    assert 0 < top1 < 1
    assert output.features.shape == (9 * rotated.turns.shape[1], 8)


@pytest.mark.parametrize("rotations", ["all", "one"])
def test_mixing_changes_the_targets_of_single_rotations_alone(rotations):
    task = make_task(rotations=rotations).eval()
    rotated = task.make_views(make_images(6), sample_keys(0, 0, torch.arange(6)))
    mixing = Mixing(torch.tensor([1, 2, 3, 4, 5, 0]), torch.linspace(0.1, 0.9, 6))
    output = task.loss(rotated, StepContext(mixing=mixing))
    aims = []
    for sample, answers in enumerate(rotated.turns.tolist()):
        for number, turns in enumerate(answers):
            other = int(rotated.turns[mixing.partners[sample], number])
            own = float(mixing.weights[sample])
            aims.append([own * (turns == each) + (1 - own) * (other == each) for each in range(4)])
    assert output.loss.item() == pytest.approx(reference(task, rotated, aims)[0], rel=1e-4)
    assert any(max(aim) < 1 for aim in aims) == (rotations == "one")


@pytest.mark.parametrize("rotations", ["all", "one"])
def test_mixed_rows_are_of_one_rotation_or_one_each(rotations):
    partners = torch.tensor([2, 0, 1])
    samples, rows = make_task(rotations=rotations).mixed_rows(None, partners)
    num = {"all": 4, "one": 1}[rotations]
    assert samples.tolist() == [sample for sample in range(3) for _ in range(num)]
    assert rows.tolist() == [int(partners[sample]) * num + turns for sample in range(3) for turns in range(num)]


@pytest.mark.parametrize("rotations", ["all", "one"])
def test_the_backbone_sees_mixed_views(rotations):
    task = make_task(rotations=rotations, regularizers=[MixUp(probability=1.0)])
    task.regularizers[0].prepare(task)
    batch = Batch(make_images(4), torch.arange(4), torch.full((4,), -1), 0)
    context = StepContext(batch=batch)
    seen = []
    task.backbone.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    task.regularizers[0].around(task, context, lambda: seen.append(task.step(batch, task.keys(batch), context)))
    own = task.backbone._normalize(task.make_views(batch.images, task.keys(batch)).views.flatten(0, 1))
    assert seen[0].shape == own.shape
    assert not torch.allclose(seen[0], own)


def test_a_constant_answer_has_the_loss_of_chance():
    task = make_task()
    torch.nn.init.zeros_(task.classifier[0].weight)
    torch.nn.init.zeros_(task.classifier[0].bias)
    output = task.loss(task.make_views(make_images(3), sample_keys(0, 0, torch.arange(3))), StepContext())
    assert output.loss.item() == pytest.approx(math.log(4), rel=1e-5) == pytest.approx(task.initial_loss(3), rel=1e-5)
    assert output.metrics["rotation_top1"].item() == 0.25


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rotation", 10.0, "changes which side is up, so that no answer is right; leave it out$"),
        ("vflip", 0.5, "changes which side is up, so that no answer is right; leave it out$"),
        ("policy", TrivialAugment(), "leaves places filled with grey, and where they lie tells the rotation.*leave it"),
    ],
)
def test_views_that_spoil_or_tell_the_answer_are_refused(name, value, message):
    with pytest.raises(ValueError, match=rf"^model\.view\.{name} {message}"):
        make_task(plain_view(**{name: value}))


def test_empty_corners_of_a_shear_would_tell_the_rotation():
    """They are at the bottom or at the right, never at the top left: what a policy is refused for."""
    view = plain_view(policy=TrivialAugment())
    pixels = torch.zeros(400, 3, SIDE, SIDE, dtype=torch.uint8)  # black: what is grey has been filled
    views = view(Images(pixels, torch.full((400, 2), SIDE)), sample_keys(0, 0, torch.arange(400)))
    steps = view.policy.draw(sample_keys(0, 0, torch.arange(400)), SIDE)
    assert len(steps.operations) == 400
    filled = (views[:, 0] > 0.4).float().mean(dim=0)
    assert filled[-3:].mean() > 1.2 * filled[:3].mean()


def test_an_unknown_number_of_rotations_is_refused():
    with pytest.raises(ValueError, match=r"^model\.rotations is 'two', expected all or one$"):
        make_task(rotations="two")
