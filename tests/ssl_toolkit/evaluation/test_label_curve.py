"""The few-label curve beside probes that are fitted one by one."""

from __future__ import annotations

import json

import pytest
import torch

from ssl_toolkit.cli import main
from ssl_toolkit.evaluation.few_labels import few_label_draws
from ssl_toolkit.evaluation.label_curve import check_few_labels, measure_label_curve
from ssl_toolkit.evaluation.linear_probe import linear_probe
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import save_backbone


def clouds(num, seed, sizes=(1.0, 1.0, 1.0), noise=1.5):
    """Features of three classes around their own directions, in about these shares."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(sizes).multinomial(num, replacement=True, generator=generator)
    return torch.eye(8)[labels] * 2 + noise * torch.randn(num, 8, generator=generator), labels


def test_each_point_is_the_probes_of_its_sets():
    splits = clouds(300, 0), clouds(90, 1), clouds(200, 2)
    train, val, test = splits
    other = tuple((torch.randn_like(features), labels) for features, labels in splits)
    curve = measure_label_curve({"given": splits, "random": other}, [20, 2], 3, 5, Steps(None))
    assert [(each.weights, each.per_class) for each in curve.points] == [
        ("given", 2), ("given", 20), ("random", 2), ("random", 20),
    ]  # fmt: skip
    for point in curve.points[:2]:
        expected = []
        chosen = few_label_draws(train[1], point.per_class, 3, 5)
        for draw, choosing in zip(chosen, few_label_draws(val[1], point.per_class, 3, 6), strict=True):
            assert train[1][draw].bincount().tolist() == [point.per_class] * 3
            assert val[1][choosing].bincount().tolist() == [point.per_class] * 3
            probe = linear_probe((train[0][draw], train[1][draw]), (val[0][choosing], val[1][choosing]), test)
            expected.append(probe.top1)
        assert point.values == expected
        assert point.num_labelled == 3 * point.per_class
        assert point.mean == pytest.approx(sum(expected) / 3)
        assert point.std == pytest.approx(float(torch.tensor(expected, dtype=torch.float64).std()))
    few, many, of_noise = curve.points[0], curve.points[1], curve.points[3]
    assert many.mean > few.mean > 0.4
    assert abs(of_noise.mean - 1 / 3) < 0.12
    assert curve.words()[1].startswith(f"  given weights: {100 * few.mean:.1f} ± {100 * few.std:.1f} % with 2, ")


def test_a_class_that_has_fewer_images_is_said():
    splits = clouds(100, 0, (1.0, 1.0, 0.05)), clouds(60, 1), clouds(60, 2)
    smallest = int(splits[0][1].bincount().min())
    curve = measure_label_curve({"given": splits}, [smallest + 3], 1, 0, Steps(None))
    (point,) = curve.points
    assert point.num_labelled == 2 * (smallest + 3) + smallest
    assert point.std == 0
    assert f"some classes have fewer training images ({point.num_labelled} in all)" in curve.words()[-1]


def test_what_cannot_be_is_refused():
    assert measure_label_curve({"given": (clouds(9, 0),) * 3}, [], 3, 0, Steps(None)) is None
    for numbers, draws, message in (
        ([0], 1, "at least 1"),
        ([3, 3], 1, "a number twice"),
        ([3], 0, "expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            check_few_labels(numbers, draws)


def test_on_the_command_line(tmp_path, capsys):
    torch.manual_seed(0)
    save_backbone(tmp_path / "w.safetensors", Backbone("resnet10t", kwargs={"channels": [8, 8, 16, 16]}), {})
    out = tmp_path / "e.json"
    arguments = [
        "evaluate",
        "--weights",
        str(tmp_path / "w.safetensors"),
        "--data.source",
        "procedural",
        "--device",
        "cpu",
    ]
    arguments += ["--data.max_images", "120", "--data.image_size", "32", "--stages", "false", "--out", str(out)]
    assert main([*arguments, "--few_labels", "[1, 3]", "--few_label_draws", "2"]) == 0
    found = json.loads(out.read_text())["label_curve"]
    assert [(each["weights"], each["per_class"], len(each["values"])) for each in found["points"]] == [
        ("given", 1, 2), ("given", 3, 2), ("random", 1, 2), ("random", 3, 2),
    ]  # fmt: skip
    assert "few labels: linear probe of pooled" in capsys.readouterr().out
    assert main([*arguments, "--few_labels", "[0]"]) == 2
    assert "--few_labels is [0]" in capsys.readouterr().err
