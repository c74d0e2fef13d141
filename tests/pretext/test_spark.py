"""SparK: the masks, the loss, what learns, what is exported, and what is refused."""

import math

import pytest
import torch

from pretext.spark import SparK
from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.losses import masked_reconstruction
from ssl_toolkit.modules import Backbone
from ssl_toolkit.modules.visible import only_visible
from ssl_toolkit.optim import AdamW
from ssl_toolkit.random import sample_keys
from ssl_toolkit.regularization import MixUp
from ssl_toolkit.schedule import Constant
from ssl_toolkit.step import StepContext
from ssl_toolkit.weights import load_backbone, save_backbone

SIDE = 32
NARROW = {"channels": (8, 8, 16, 16), "stem_width": 8}


def make_task(name="resnet10t", kwargs=NARROW, stem="small", size=SIDE, **arguments):
    torch.manual_seed(0)
    backbone = Backbone(name, stem=stem, kwargs=kwargs)
    view = RandomView(size=size, scale=(1, 1), ratio=(1, 1), hflip=0, preset="crop_and_flip")
    given = {"view": view, "decoder_width": 32, **arguments}
    return SparK(backbone=backbone, optimizer=AdamW(), schedule=Constant(), **given)


def make_batch(num, side=SIDE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (num, 3, side, side), dtype=torch.uint8, generator=generator)
    return Batch(Images(pixels, torch.full((num, 2), side)), torch.arange(num), torch.full((num,), -1), 0)


def views_of(task, num):
    return task.make_views(make_batch(num).images, sample_keys(0, 0, torch.arange(num)))


def test_patches_are_hidden_by_chance_and_drawn_from_the_sample_s_key():
    task, num = make_task(), 600
    visible = views_of(task, num).visible
    # 16 patches, of which 0.6 are 9.6: ten are hidden
    assert visible.shape == (num, 6)
    assert all(row == sorted(set(row)) for row in visible.tolist())
    counts = visible.flatten().bincount(minlength=16)
    expected = num * 6 / 16
    assert (counts - expected).abs().max() < 5 * math.sqrt(expected * 10 / 16)
    # pairs as well: that two patches can be seen together has the probability 6/16 * 5/15
    seen = torch.zeros(num, 16).scatter(1, visible, 1.0)
    together = (seen.T @ seen)[~torch.eye(16, dtype=torch.bool)]
    assert (together - num / 8).abs().max() < 5 * math.sqrt(num / 8)
    some = task.make_views(Images(*(each[7:9] for each in make_batch(9).images)), sample_keys(0, 0, torch.arange(7, 9)))
    assert torch.equal(some.visible, visible[7:9])
    assert not torch.equal(task.make_views(make_batch(num).images, sample_keys(0, 1, torch.arange(num)))[1], visible)


@pytest.mark.parametrize(
    ("patch_size", "mask_ratio", "visible"), [(None, 0.75, 4), (8, 0.99, 1), (8, 0.01, 15), (16, 0.5, 2)]
)
def test_how_many_patches_can_be_seen(patch_size, mask_ratio, visible):
    task = make_task(patch_size=patch_size, mask_ratio=mask_ratio)
    assert task.grid == SIDE // (patch_size or 8)
    assert views_of(task, 3).visible.shape == (3, visible)
    assert torch.isfinite(task.compute(make_batch(3)).loss)


@pytest.mark.parametrize(
    ("name", "kwargs", "stem", "size", "strides"),
    [
        ("resnet10t", NARROW, "standard", 64, [4, 8, 16, 32]),
        ("resnet10t", NARROW, "small", 32, [1, 2, 4, 8]),
        ("resnet10t", {**NARROW, "output_stride": 16}, "standard", 64, [4, 8, 16]),
        ("test_convnext", {}, "standard", 64, [4, 8, 16, 32]),
        ("test_convnext", {}, "small", 32, [1, 2, 4, 8]),
    ],
)
def test_patches_are_as_large_as_the_network_s_stride(name, kwargs, stem, size, strides):
    task = make_task(name, kwargs, stem, size)
    assert list(task.maps) == strides
    assert task.patch_size == strides[-1]
    assert task.grid == size // strides[-1]
    # of each resolution but that of the image there is a map, the deepest of its side
    assert list(task.decoder.densify) == [str(stride) for stride in strides[::-1] if stride > 1]
    assert task.maps[strides[-1]] == task.backbone.stages[-1]
    batch = make_batch(2, size)
    task.compute(batch).loss.backward()
    learns = [key for key, each in task.named_parameters() if each.requires_grad]
    without = {key for key, each in task.named_parameters() if each.requires_grad and each.grad is None}
    assert not without, "DDP waits for the gradient of each weight that learns"
    frozen = [key for key, each in task.named_parameters() if not each.requires_grad]
    assert all(key.startswith("backbone.model.head.") for key in frozen)
    assert len(learns) > 20


def test_the_loss_is_that_of_the_hidden_patches():
    task = make_task().eval()
    torch.nn.init.normal_(task.decoder.predict.weight, std=30)  # so large that the mean is not all
    views = views_of(task, 4)
    output = task.loss(views, StepContext())
    losses, gains = [], []
    for image, visible in zip(views.views, views.visible, strict=True):
        one = views._replace(views=image[None], visible=visible[None])
        places = task.places(one)
        with only_visible(places):
            _, maps = task.backbone(image[None], with_maps=True)
            predicted = task.decoder({stride: maps[stage] for stride, stage in task.maps.items()}, places)
        hidden = torch.tensor([[[4 * row + column not in visible.tolist() for column in range(4)] for row in range(4)]])
        loss, gain = masked_reconstruction(predicted, image[None], hidden)
        losses.append(loss.item())
        gains.append(gain.item())
    assert output.loss.item() == pytest.approx(sum(losses) / 4, rel=1e-4)
    assert output.metrics["variance_explained"].item() == pytest.approx(sum(gains) / 4, rel=1e-3)
    assert output.loss.item() > 1.2
    assert output.features.shape == (4, 16)


@pytest.mark.parametrize("training", [True, False])
def test_hidden_pixels_are_what_is_predicted_and_nothing_else(training):
    """Whatever they are, the predictions are the same to the last bit."""
    task = make_task().train(training)
    views, predicted = views_of(task, 4), []
    task.decoder.register_forward_hook(lambda _, inputs, output: predicted.append(output.detach()))
    hidden = ~task.places(views).mask(SIDE)
    output = task.loss(views, StepContext())
    other = views._replace(views=torch.where(hidden, torch.rand_like(views.views), views.views))
    other_output = task.loss(other, StepContext())
    assert torch.equal(*predicted)
    assert torch.equal(output.features, other_output.features)
    assert output.loss != other_output.loss
    seen = views._replace(views=torch.where(hidden, views.views, torch.rand_like(views.views)))
    task.loss(seen, StepContext())
    assert not torch.equal(predicted[0], predicted[2])


def test_pictures_show_what_is_hidden():
    task = make_task()
    views = views_of(task, 3)
    pictures = task.example_views(make_batch(3))
    assert pictures.shape == (3, 2, 3, SIDE, SIDE)
    assert torch.equal(pictures[:, 0], views.views)
    for image, visible in enumerate(views.visible.tolist()):
        for number in range(16):
            top, left = 8 * (number // 4), 8 * (number % 4)
            patch = pictures[image, :, :, top : top + 8, left : left + 8]
            if number in visible:
                assert torch.equal(patch[0], patch[1])
            else:
                assert (patch[1] == 0.5).all()


def test_the_mean_of_each_patch_has_the_loss_of_chance():
    task = make_task()
    torch.nn.init.zeros_(task.decoder.predict.weight)
    output = task.compute(make_batch(4))
    # noise in all patches
    assert output.loss.item() == pytest.approx(1, abs=1e-3) == pytest.approx(task.initial_loss(4), abs=1e-3)
    assert output.metrics["variance_explained"] == 0


@pytest.mark.parametrize(("name", "kwargs"), [("resnet10t", NARROW), ("test_convnext", {})])
def test_what_is_exported_is_the_plain_backbone(name, kwargs, tmp_path):
    task = make_task(name, kwargs)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    for seed in range(2):
        task.compute(make_batch(4, seed=seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_backbone(tmp_path / "backbone.safetensors", task.exported_backbone)
    loaded = load_backbone(tmp_path / "backbone.safetensors").eval()
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in loaded.modules())
    assert all(each.requires_grad for each in loaded.parameters())
    plain = Backbone(name, stem="small", kwargs=kwargs).eval()
    plain.load_state_dict(task.backbone.state_dict())
    images = torch.rand(2, 3, 40, 40)
    assert torch.equal(loaded(images), plain(images))
    assert torch.equal(task.backbone.eval()(images), plain(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "regnety_002", "kwargs": {}}, r"^masked convolutions are there for ResNets and ConvNeXts, got 'regn"),
        ({"size": 36}, r"^model\.view\.size is 36, expected a multiple of the patches of 8 px, at least two of them; "),
        ({"stem": "standard"}, r"^model\.view\.size is 32, expected a multiple of the patches of 32 px, at least two"),
        ({"patch_size": 12}, r"^model\.patch_size is 12, expected a multiple of the stride of resnet10t, 8 px$"),
        ({"patch_size": 0}, r"^model\.patch_size is 0, expected a multiple of the stride of resnet10t, 8 px$"),
        ({"mask_ratio": 0.0}, r"^model\.mask_ratio is 0\.0, expected a fraction above 0 and below 1$"),
        ({"mask_ratio": 1.0}, r"^model\.mask_ratio is 1\.0, expected a fraction above 0 and below 1$"),
        ({"decoder_width": 20}, r"^model\.decoder_width is 20, expected a multiple of the network's stride, 8$"),
        (
            {"name": "test_convnext", "kwargs": {"patch_size": 6}, "stem": "standard", "size": 96},
            "^the maps of test_conv",
        ),
    ],
)
def test_what_cannot_work_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message) as refused:
        make_task(**arguments)
    assert "\n" not in str(refused.value)


def test_mixing_is_refused():
    """Patches of one image are predicted from others of it."""
    with pytest.raises(ValueError, match="MixUp needs a task with soft targets"):
        make_task(regularizers=[MixUp()]).check()
