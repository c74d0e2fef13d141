"""What all tasks on a grid of patches refuse, and what they do to a patch."""

import pytest
import torch
import torch.nn.functional as F

from pretext.base import GridTask
from pretext.jigsaw import Jigsaw
from pretext.patch_position import PatchPosition
from ssl_toolkit.augment import RandomView, TrivialAugment, rescale
from ssl_toolkit.batch import Images
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.random import sample_keys
from ssl_toolkit.schedule import Constant

TASKS = [PatchPosition, Jigsaw]
NUM, SIDE = 24, 14


def make_task(task=PatchPosition, channels=3, **arguments):
    backbone = Backbone("resnet10t", stem="small", in_channels=channels, kwargs={"channels": (8, 8, 8, 8)})
    view = RandomView(size=48, scale=(1, 1), ratio=(1, 1), hflip=0, preset="crop_and_flip")
    arguments = {"view": view, "patch_size": SIDE, "jitter": 1, "colour": "none", **arguments}
    return task(backbone=backbone, optimizer=AdamW(), schedule=Constant(), **arguments)


def patches_of(task=PatchPosition, channels=3, **arguments):
    """Patches of random images, as the task makes them: [NUM, 9, channels, SIDE, SIDE]."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (NUM, channels, 48, 48), dtype=torch.uint8, generator=generator)
    images = Images(pixels, torch.full((NUM, 2), 48))
    return make_task(task, channels, **arguments).make_patches(images, sample_keys(0, 0, torch.arange(NUM)))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["rotation", "erase", "policy"])
def test_views_with_filled_places_are_refused(task, name):
    assert issubclass(task, GridTask)
    value = {"rotation": 10.0, "erase": 0.5, "policy": TrivialAugment()}[name]
    with pytest.raises(
        ValueError, match=rf"^model\.view\.{name} leaves places filled with grey.*a patch's place.*out$"
    ):
        make_task(task, view=RandomView(size=48, **{name: value}))


@pytest.mark.parametrize("task", TASKS)
def test_grey_is_the_luma_of_each_patch(task):
    patches, grey = patches_of(task), patches_of(task, colour="grey")
    red, green, blue = patches.unbind(2)
    # the weights of torchvision's rgb_to_grayscale
    luma = 0.2989 * red + 0.587 * green + 0.114 * blue
    for channel in grey.unbind(2):
        torch.testing.assert_close(channel, luma, atol=1e-6, rtol=0)


@pytest.mark.parametrize("colour", ["grey", "projection", "none"])
def test_images_of_one_channel_have_no_colour_to_lose(colour):
    torch.testing.assert_close(patches_of(channels=1, colour=colour), patches_of(channels=1))


def resized(patch, side):
    """A patch at a lower resolution and back."""
    low = F.interpolate(patch[None], (side, side), mode="bilinear", antialias=True)
    return F.interpolate(low, patch.shape[-2:], mode="bilinear", antialias=True)[0]


@pytest.mark.parametrize("task", TASKS)
def test_some_patches_have_a_lower_resolution(task):
    whole, reduced = patches_of(task), patches_of(task, downsampling=1 / 3)
    found = []
    for before, after in zip(whole.flatten(0, 1), reduced.flatten(0, 1), strict=True):
        sides = [side for side in range(10, SIDE) if torch.allclose(resized(before, side), after, atol=1e-5)]
        sides += [SIDE] if torch.allclose(before, after, atol=1e-6) else []
        assert len(sides) == 1
        found += sides
    changed = [side for side in found if side < SIDE]
    num = 9 * NUM
    assert abs(len(changed) - num / 3) < 5 * (num * 2 / 9) ** 0.5
    assert set(changed) == set(range(10, SIDE))
    # drawn for each patch, not for each image
    of_images = torch.tensor(found).view(NUM, 9)
    assert (of_images != of_images[:, :1]).any(dim=1).float().mean() > 0.8


def test_all_patches_may_have_a_lower_resolution_and_it_comes_before_the_colour():
    coarse = patches_of(downsampling=1.0)
    assert ((coarse - patches_of()).abs().amax(dim=(2, 3, 4)) > 1e-3).all()
    red, green, blue = coarse.unbind(2)
    grey = patches_of(downsampling=1.0, colour="grey")
    torch.testing.assert_close(grey[:, :, 0], 0.2989 * red + 0.587 * green + 0.114 * blue, atol=1e-6, rtol=0)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("rescaling", "centre"), [("rms", False), ("standardize", True)])
def test_rescaled_patches_are_alike_in_what_the_backbone_sees(task, rescaling, centre):
    backbone = make_task().backbone
    patches = patches_of(task, rescaling=rescaling)
    seen = backbone._normalize(patches.flatten(0, 1)).unflatten(0, (NUM, 9))
    torch.testing.assert_close(seen.square().mean(dim=(2, 3, 4)), torch.ones(NUM, 9))
    assert (seen.mean(dim=(3, 4)).abs().max() < 1e-5) == centre
    torch.testing.assert_close(patches, rescale(patches_of(task), centre, backbone.mean, backbone.std))


def test_a_dropped_channel_is_noise_after_rescaling_too():
    patches = patches_of(colour="dropping", rescaling="standardize")
    spread = patches.std(dim=(-1, -2))
    assert ((spread > 0.1).sum(dim=-1) == 1).all()
    assert ((spread < 0.01).sum(dim=-1) == 2).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"colour": "gray"}, r"^model\.colour is 'gray', expected one of dropping, projection, grey, none$"),
        ({"rescaling": "std"}, r"^model\.rescaling is 'std', expected one of none, rms, standardize$"),
        ({"downsampling": 1.1}, r"^model\.downsampling is 1\.1, expected a probability, 0 to 1$"),
        ({"downsampling": 0.1, "patch_size": 10}, r"^model\.downsampling is 0\.1, but patches of 10 px have no lower"),
    ],
)
def test_what_cannot_be_done_to_a_patch_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_task(**arguments)


def test_the_smallest_patches_of_a_lower_resolution_are_taken():
    assert make_task(downsampling=1.0, patch_size=11).downsampling == 1.0
