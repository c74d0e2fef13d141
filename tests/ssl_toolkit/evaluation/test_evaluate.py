"""The whole evaluation on a tiny folder: what it chooses, what it says, what it writes."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ssl_toolkit.augment import CenterView
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation import (
    Difference,
    Evaluation,
    Interval,
    Row,
    calibrate_batch_norm,
    evaluate,
    extract_features,
    random_backbone,
    rank_me,
    spread,
)
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import save_backbone


def write_images(folder, num_classes=3, per_class=16, side=16):
    """Classes are hues under heavy noise."""
    generator = np.random.default_rng(0)
    for label in range(num_classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(per_class):
            pixels = generator.integers(0, 150, (side, side, 3))
            pixels[..., label] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"class{label}" / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images")


def image_data(path, **arguments):
    defaults = {"labels": "folder", "image_size": 16, "val_fraction": 0.25, "test_fraction": 0.25, "cache": "memory"}
    return ImageData(path=str(path), batch_size=10, num_threads=1, **{**defaults, **arguments})


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return Backbone("resnet18", stem="small", kwargs={"channels": [4, 8, 12, 16]})


@pytest.fixture(scope="module")
def evaluation(folder, backbone):
    return evaluate(backbone, image_data(folder), seed=3, precision="32")


@pytest.mark.slow
def test_every_representation_with_both_weights(evaluation, backbone):
    assert [(row.weights, row.representation) for row in evaluation.rows] == [
        (weights, name) for weights in ("given", "random") for name in ("pooled", *backbone.stages[:-1])
    ], "the last stage of a ResNet, averaged, is the pooled feature"
    assert evaluation.row("layer2").num_features == 8
    assert evaluation.row("pooled", "random").num_features == 16
    assert evaluation.num_images == {"train": 24, "val": 12, "test": 12}
    assert (evaluation.num_classes, evaluation.image_size, evaluation.weights) == (3, 16, "in memory")
    with pytest.raises(KeyError, match="layer9 with given weights"):
        evaluation.row("layer9")


def test_what_was_chosen_was_chosen_on_the_validation_images(evaluation):
    for row in evaluation.rows:
        assert list(row.knn_val) == [1, 5, 20, 24], "k is clipped to the 24 training images"
        best = max(row.knn_val.values())
        assert row.knn_k == min(k for k, accuracy in row.knn_val.items() if accuracy == best)
        assert row.knn.value == row.knn_test[row.knn_k]
        assert row.knn.low <= row.knn.value <= row.knn.high
        assert row.linear.low <= row.linear.value <= row.linear.high
    given = [row for row in evaluation.rows if row.weights == "given"]
    assert evaluation.row(evaluation.best_representation()).linear_val == max(row.linear_val for row in given)


def test_differences_are_those_of_the_rows(evaluation):
    for difference in evaluation.differences:
        given, random = (evaluation.row(difference.representation, weights) for weights in ("given", "random"))
        assert difference.linear.value == pytest.approx(given.linear.value - random.linear.value)
        assert difference.knn.value == pytest.approx(given.knn.value - random.knn.value)


def test_the_best_of_each_are_compared(evaluation):
    given = evaluation.row(evaluation.best_representation("given"), "given")
    random = evaluation.row(evaluation.best_representation("random"), "random")
    assert evaluation.best_difference.value == pytest.approx(given.linear.value - random.linear.value)
    assert evaluation.best_difference.low <= evaluation.best_difference.value <= evaluation.best_difference.high
    if random.representation != "pooled":
        assert f"{random.representation} of the random weights" in evaluation.verdict()


def test_the_random_row_has_the_batch_norm_statistics_of_the_training_images(folder, backbone, evaluation):
    """Of all three splits, and of none: only those of the training images give the figures of the row."""
    data, view = image_data(folder), CenterView(16)
    expected = {}
    for split in (None, "train", "val", "test"):
        baseline = random_backbone(backbone, 3)
        if split is not None:
            calibrate_batch_norm(baseline, data.loader(split, shuffle=True), view)
        features = extract_features(baseline, data.loader("test"), view, precision="32").features["pooled"]
        expected[split] = spread(features), rank_me(features)
    row = evaluation.row("pooled", "random")
    assert (row.spread, row.rank_me) == pytest.approx(expected.pop("train"), rel=1e-5)
    assert all((row.spread, row.rank_me) != pytest.approx(other, rel=1e-3) for other in expected.values())


def test_colour_classes_are_found_by_the_first_stage(evaluation, backbone):
    assert evaluation.row(backbone.stages[0], "random").linear.value > 0.8


def test_a_backbone_in_memory_is_left_alone_and_a_file_gives_the_same(folder, backbone, evaluation, tmp_path):
    backbone.train()
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, backbone)
    lines = []
    data = image_data(folder)
    again = evaluate(path, data, stages=False, seed=3, precision="32", device="cpu", say=lines.append)
    for row in again.rows:
        other = evaluation.row("pooled", row.weights)
        assert (row.knn, row.linear, row.knn_val) == (other.knn, other.linear, other.knn_val)
    assert again.differences == evaluation.differences[:1]
    assert again.weights == str(path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.state_dict().items())
    assert all(module.training for module in backbone.modules())
    assert any("24 train images" in line for line in lines)


def test_json_holds_plain_data_and_the_verdict(evaluation, tmp_path):
    path = tmp_path / "evaluation.json"
    evaluation.save(path)
    loaded = json.loads(path.read_text())
    assert loaded["verdict"] == evaluation.verdict()
    assert loaded["best_representation"] == evaluation.best_representation()
    assert loaded["rows"][0]["linear"] == evaluation.rows[0].linear._asdict()
    assert loaded["rows"][0]["knn_test"] == {str(k): value for k, value in evaluation.rows[0].knn_test.items()}
    assert loaded["backbone"]["name"] == "resnet18"
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]


def test_without_random_weights_and_stages(folder, backbone):
    evaluation = evaluate(backbone, image_data(folder), stages=False, random_weights=False)
    assert [(row.weights, row.representation) for row in evaluation.rows] == [("given", "pooled")]
    assert evaluation.differences == []
    assert "random weights were not measured" in evaluation.verdict()
    render(evaluation)


@pytest.mark.slow
def test_an_ensemble_and_folds_stand_in_table_and_json(folder, backbone, evaluation):
    plain = evaluation
    for kind, name in (("bagging", "2 bagged"), ("boosting", "boosted")):
        asked = evaluate(
            backbone, image_data(folder), stages=False, ensemble=kind, members=2, folds=3, seed=3, precision="32"
        )
        assert [row.weights for row in asked.ensembles] == [row.weights for row in asked.folds] == ["given", "random"]
        given = asked.ensembles[0]
        assert given.over_probe.value == pytest.approx(given.top1.value - asked.row().linear.value)
        assert asked.row().linear == plain.row().linear, "the other figures are what they were"
        assert len(asked.folds[0].values) == 3
        text = render(asked)
        assert name in text
        assert "3 folds" in text
        assert f"{kind} over one linear probe" in text
        assert max(len(line) for line in text.splitlines()) <= 80
        loaded = json.loads(json.dumps(asked.to_json()))
        assert loaded["ensembles"][0]["top1"] == given.top1._asdict()
    with pytest.raises(ValueError, match="--folds is 1, expected at least 2"):
        evaluate(backbone, image_data(folder), folds=1)


def test_two_classes_and_three_images_a_split(tmp_path, backbone):
    folder = write_images(tmp_path / "images", num_classes=2, per_class=5)
    data = image_data(folder, val_fraction=0.3, test_fraction=0.3)
    evaluation = evaluate(backbone, data, stages=False)
    assert evaluation.num_images == {"train": 4, "val": 3, "test": 3}
    assert "no difference to random weights that the test images can show" in evaluation.verdict()


def test_errors_name_the_option(folder, tmp_path, backbone):
    with pytest.raises(ValueError, match=r"the test split is empty; give --data.test_fraction 0.2 or --data.test_path"):
        evaluate(backbone, image_data(folder, test_fraction=0.0))
    with pytest.raises(ValueError, match=r"the val split is empty; give --data.val_fraction 0.1 or --data.val_path"):
        evaluate(backbone, image_data(folder, val_fraction=0.0))
    with pytest.raises(ValueError, match=r"24 of 24 images of the train split have no label.*--data.labels folder"):
        evaluate(backbone, image_data(folder, labels="none"))
    with pytest.raises(ValueError, match=r"missing\.safetensors"):
        evaluate(tmp_path / "missing.safetensors", image_data(folder))


def render(evaluation, width=80):
    console = Console(width=width, file=io.StringIO())
    console.print(evaluation.table())
    return console.file.getvalue()


FULL = Interval(1.0, 0.9996, 1.0)


def made_up(difference, linear=FULL):
    def row(weights, name, linear):
        knn = Interval(0.9996, 0.9991, 1.0)
        return Row(weights, name, 2048, knn, 200, {200: 0.8}, {200: 0.8}, linear, 0.7, 1e-3, 0.9, 100.0)

    rows = [row(weights, name, linear) for weights in ("given", "random") for name in ("pooled", "layer4.act3")]
    differences = [Difference(name, difference, difference) for name in ("pooled", "layer4.act3")]
    images = {"train": 1_281_167, "val": 50_000, "test": 100_000}
    return Evaluation("w", {}, 224, images, 1000, 0, rows, differences, None, 12345.6)


def test_the_table_fits_80_columns():
    text = render(made_up(Interval(0.1234, 0.1111, 0.1357), Interval(0.5, 0.4567, 0.5432)))
    assert "…" not in text
    assert "50.0 (45.7-54.3)" in text
    assert "+12.3 (+11.1 to +13.6)" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_the_table_fits_100_columns_at_its_widest():
    text = render(made_up(Interval(-1.0, -1.0, -0.999)), width=100)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "100.0 (100.0-100.0)" in text
    assert "-100.0 (-100.0 to -99.9)" in text
    assert "worse than random weights by 100.0 points" in " ".join(text.split())


@pytest.mark.parametrize(
    ("difference", "sentence"),
    [
        ((0.213, 0.198, 0.228), "pretrained features beat random weights by 21.3 points (95 % interval 19.8 to 22.8)"),
        (
            (-0.02, -0.03, -0.01),
            "pretrained features are worse than random weights by 2.0 points (95 % interval 1.0 to 3.0)",
        ),
        (
            (0.01, -0.02, 0.04),
            "no difference to random weights that the test images can show: +1.0 points (95 % interval -2.0 to +4.0)",
        ),
    ],
)
def test_the_verdict_claims_no_more_than_the_interval(difference, sentence):
    assert made_up(Interval(*difference)).verdict() == sentence
