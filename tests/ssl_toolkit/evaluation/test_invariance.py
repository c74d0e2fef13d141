"""Invariance: networks of which the answer is known, and as a part of an evaluation."""

import json

import pytest
import torch
from torch import nn

from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation import evaluate
from ssl_toolkit.evaluation.invariance import measure_invariance
from ssl_toolkit.modules.backbone import Backbone


@pytest.fixture(scope="module")
def data():
    images = ImageData(
        source="procedural", max_images=60, image_size=24, batch_size=16, test_fraction=0.4, num_threads=1
    )
    images.setup()
    return images


class Made(nn.Module):
    """A network whose features are a function of the images."""

    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.function(x)


def test_what_sees_nothing_is_aligned_and_not_uniform_and_noise_is_the_other_way_round(data):
    generator = torch.Generator().manual_seed(0)
    networks = {
        "given": Made(lambda x: torch.ones(len(x), 8)),
        "random": Made(lambda x: torch.randn(len(x), 8, generator=generator)),
    }
    found = measure_invariance(networks, data, 24, precision="32")  # pyright: ignore[reportArgumentType]
    blind, noise = found.rows
    assert (found.num_images, found.num_views) == (24, 4)
    assert (blind.alignment, blind.uniformity, blind.lidar) == pytest.approx((0, 0, 0), abs=1e-6)
    assert noise.alignment == pytest.approx(2, abs=0.2), "two random directions"
    assert noise.uniformity < -1.5


def test_views_of_an_image_differ_and_are_the_same_each_time(data):
    seen = []
    network = Made(lambda x: (seen.append(x), nn.functional.avg_pool2d(x, 6).flatten(1))[1])
    first = measure_invariance({"given": network}, data, 24, precision="32")  # pyright: ignore[reportArgumentType]
    again = measure_invariance({"given": network}, data, 24, precision="32")  # pyright: ignore[reportArgumentType]
    assert first == again
    assert not torch.equal(seen[0], seen[2]), "24 images are two batches"
    assert first.rows[0].alignment > 0.001


def test_by_evaluate_and_as_json(data):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", kwargs={"channels": [4, 4, 8, 8]})
    evaluation = evaluate(backbone, data, image_size=32, stages=False, invariance=True, precision="32")
    assert [row.weights for row in evaluation.invariance.rows] == ["given", "random"]
    written = json.loads(json.dumps(evaluation.to_json()))["invariance"]
    assert written["rows"][0]["lidar"] == evaluation.invariance.rows[0].lidar
    assert "LiDAR" in "\n".join(evaluation.words())
