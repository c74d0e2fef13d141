"""What all tasks on a grid of patches refuse."""

import pytest

from pretext.base import GridTask
from pretext.jigsaw import Jigsaw
from pretext.patch_position import PatchPosition
from ssl_toolkit.augment import RandomView, TrivialAugment
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.schedule import Constant


@pytest.mark.parametrize("task", [PatchPosition, Jigsaw])
@pytest.mark.parametrize("name", ["rotation", "erase", "policy"])
def test_views_with_filled_places_are_refused(task, name):
    assert issubclass(task, GridTask)
    value = {"rotation": 10.0, "erase": 0.5, "policy": TrivialAugment()}[name]
    backbone = Backbone("resnet10t", stem="small", kwargs={"channels": (8, 8, 8, 8)})
    with pytest.raises(ValueError, match=rf"^model\.view\.{name} leaves places filled with grey.*; leave it out"):
        task(
            backbone=backbone, view=RandomView(size=48, **{name: value}), patch_size=12, optimizer=AdamW(),
            schedule=Constant(),
        )  # fmt: skip
