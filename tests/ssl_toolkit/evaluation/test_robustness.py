"""Robustness of a linear probe: against its own classifier by hand, and networks of which the answer is known."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation import evaluate
from ssl_toolkit.evaluation.corruptions import CORRUPTIONS
from ssl_toolkit.evaluation.logistic_regression import LinearClassifier
from ssl_toolkit.evaluation.robustness import Probed, measure_robustness
from ssl_toolkit.modules.backbone import Backbone


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Dark and bright images, with some noise."""
    folder, generator = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    for label, tone in enumerate((80, 150)):
        (folder / str(label)).mkdir()
        for place in range(24):
            pixels = generator.integers(tone - 40, tone + 40, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{place:02}.png")
    fractions = {"val_fraction": 0.25, "test_fraction": 0.5}
    return ImageData(path=str(folder), labels="folder", image_size=16, batch_size=10, num_threads=1, **fractions)


class Mean(nn.Module):
    """Its only feature is the mean of the image."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x.mean(dim=(1, 2, 3))[:, None]


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_threshold_of_brightness_fails_where_brightness_changes(data, precision):
    # bright is above 115 of 255
    threshold = LinearClassifier(torch.tensor([[-1.0], [1.0]]), torch.tensor([115 / 255, -115 / 255]))
    tested = {"given": Probed(Mean(), "pooled", threshold)}
    found = measure_robustness(tested, data, 16, 1000, precision=precision)
    row = found.rows[0]
    assert (found.num_images, found.difference) == (24, None)
    assert row.clean.value == 1
    assert [each.value for each in row.top1["brightness"]] == [1, 0.5, 0.5, 0.5, 0.5], "80 + 51 of 255 are bright"
    for name in ("contrast", "pixelate", "gaussian_noise", "defocus_blur", "motion_blur", "jpeg"):
        assert {each.value for each in row.top1[name]} == {1.0}, f"{name} leaves the mean as it is"
    assert list(row.top1) == list(CORRUPTIONS)
    values = [each.value for several in row.top1.values() for each in several]
    assert row.mean.value == pytest.approx(np.mean(values))
    assert row.relative == row.mean.value / row.clean.value
    assert row.mean.low < row.mean.value < row.mean.high


def test_by_evaluate_with_random_weights_and_as_json(data, tmp_path):
    torch.manual_seed(0)
    backbone = Backbone("resnet18", stem="small", kwargs={"channels": [4, 4, 4, 4]})
    evaluation = evaluate(backbone, data, stages=False, robustness=True, robustness_images=10, precision="32")
    found = evaluation.robustness
    assert (found.num_images, found.image_size) == (10, 16)
    given, random = found.rows
    assert (given.weights, random.weights, given.representation) == ("given", "random", "pooled")
    assert found.difference.value == pytest.approx(given.mean.value - random.mean.value)
    evaluation.save(tmp_path / "evaluation.json")
    written = json.loads((tmp_path / "evaluation.json").read_text())["robustness"]
    assert written["rows"][0]["top1"]["haze"][4] == given.top1["haze"][4]._asdict()
    console = Console(file=io.StringIO(), width=80)
    console.print(found.table())
    assert "…" not in console.file.getvalue()
    assert "impulse_noise" in console.file.getvalue()
    with pytest.raises(ValueError, match="--robustness_images is 0, expected at least 1"):
        evaluate(backbone, data, robustness=True, robustness_images=0)
