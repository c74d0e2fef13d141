"""Comparison of weights: on images of colours, beside the single measures, and what is refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ssl_toolkit.augment import CenterView
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation import (
    Comparison,
    compare,
    confidence_interval,
    evaluate,
    extract_features,
    few_label_draws,
    few_label_probe,
    holm,
    mcnemar_exact,
    paired_permutation_test,
)
from ssl_toolkit.evaluation.compare import _test
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import load_backbone, save_backbone

NARROW = {"stem": "small", "kwargs": {"channels": [4, 4, 8, 8]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three hues under noise, and weights that see them beside weights that see nothing."""
    place, generator = tmp_path_factory.mktemp("compare"), np.random.default_rng(0)
    for label in range(3):
        (place / "images" / str(label)).mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(0, 100, (16, 16, 3))
            pixels[..., label] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(place / "images" / str(label) / f"{number:02}.png")
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", **NARROW)
    backbone(torch.rand(32, 3, 16, 16))  # which sets the statistics of its batch norm
    save_backbone(place / "seeing.safetensors", backbone, {"config": {"data": {"image_size": 16}}})
    for parameter in backbone.parameters():
        torch.nn.init.zeros_(parameter)
    save_backbone(place / "blind.safetensors", backbone, {"config": {"data": {"image_size": 12}}})
    return place


def opener(folder, **arguments):
    fractions = {"val_fraction": 0.2, "test_fraction": 0.4, **arguments}
    return lambda size: ImageData(
        path=str(folder / "images"), labels="folder", image_size=size, batch_size=16, num_threads=1, **fractions
    )


@pytest.fixture(scope="module")
def files(folder):
    return [folder / "seeing.safetensors", folder / "blind.safetensors"]


@pytest.fixture(scope="module")
def comparison(folder, files):
    def all_zeros(backbone, weights, name, images, size):
        assert name == "hues"
        assert images.image_size == size
        return torch.zeros(images.num_images("test"), dtype=torch.int64)

    return compare(
        files, {"hues": opener(folder)}, protocols=("knn", "linear", "few-label", "finetune"), labels_per_class=2,
        num_draws=2, finetune=all_zeros, precision="32", seed=5,
    )  # fmt: skip


def entry(comparison, protocol, weights):
    return next(each for each in comparison.entries if (each.protocol, each.weights) == (protocol, weights))


def test_figures_are_those_of_the_single_measures(comparison, folder, files):
    data = opener(folder)(16)
    alone = evaluate(files[0], data, image_size=16, stages=False, precision="32", seed=5)
    for name, weights in (("A", "given"), ("random A", "random")):
        assert entry(comparison, "knn", name).top1 == alone.row("pooled", weights).knn
        assert entry(comparison, "linear", name).top1 == alone.row("pooled", weights).linear
    backbone, splits = load_backbone(files[0]), []
    for split in ("train", "val", "test"):
        found = extract_features(backbone, data.loader(split), CenterView(16), precision="32")
        splits.append((found.features["pooled"], found.labels))
    few = few_label_probe(*splits, few_label_draws(splits[0][1], 2, 2, seed=5))
    assert entry(comparison, "few-label", "A").top1.value == pytest.approx(few.top1.mean)
    expected = confidence_interval(splits[2][1] == 0)
    assert {entry(comparison, "finetune", name).top1 for name in ("A", "B")} == {expected}


def test_pairs_are_tested_and_corrected_together(comparison):
    assert [(each.first, each.second) for each in comparison.tests] == 4 * [
        ("A", "B"), ("A", "random A"), ("B", "random B"),
    ]  # fmt: skip
    assert [each.adjusted for each in comparison.tests] == pytest.approx(
        holm([each.p_value for each in comparison.tests])
    )
    linear = next(each for each in comparison.tests if each.protocol == "linear")
    assert linear.difference.value == pytest.approx(
        entry(comparison, "linear", "A").top1.value - entry(comparison, "linear", "B").top1.value
    )
    assert linear.is_significant, "one sees the colours, the other one nothing"
    assert all(each.p_value == 1 for each in comparison.tests if each.protocol == "finetune")


def test_what_it_says(comparison):
    said = "\n".join(comparison.words())
    assert "hues, linear: A is better than B by" in said
    assert "not shown by these test images" in said
    assert "Another seed of the pretraining" in said
    assert "A 16 px, B 12 px" in said
    assert "24 train, 12 val, 24 test images of 3 classes" in said
    console = Console(file=io.StringIO(), width=80)
    console.print(comparison.table())
    text = console.file.getvalue()
    assert "…" not in text
    assert "random A" in text
    assert [each.image_size for each in comparison.entries[:4]] == [16, 12, 16, 12]


def test_the_file_reads_back(comparison, tmp_path):
    comparison.save(tmp_path / "compare.json")
    assert Comparison.load(tmp_path / "compare.json") == comparison
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(ValueError, match="is no comparison that ssl-toolkit compare has written"):
        Comparison.load(tmp_path / "other.json")


def test_one_architecture_and_size_has_one_row_of_random_weights(folder, files):
    found = compare(files, {"hues": opener(folder)}, protocols=("knn",), image_size=12, precision="32")
    assert [each.weights for each in found.entries] == ["A", "B", "random"]
    assert "A was trained with images of 16 px and sees 12 px" in found.remarks
    without = compare(files, {"hues": opener(folder)}, protocols=("knn",), random_weights=False, precision="32")
    assert [each.weights for each in without.entries] == ["A", "B"]
    assert len(without.tests) == 1


def test_groups_have_one_sign():
    one = torch.tensor([1, 1, 1, 1, 1, 1, 0, 0])
    other = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
    assert _test(one, other, 1, None, 0)[1] == mcnemar_exact(6, 1)
    groups = torch.tensor([7, 7, 7, 7, 7, 7, 3, 3])
    assert _test(one, other, 1, groups, 0)[1] == paired_permutation_test(torch.tensor([6, -1])) > 0.4


def test_networks_that_get_other_images_are_not_compared(folder, files):
    def open_data(size):
        return opener(folder, split_seed=size)(size)

    with pytest.raises(ValueError, match="the networks got other train images"):
        compare(files, {"hues": open_data}, protocols=("knn",))


def test_what_cannot_be_compared_is_refused(folder, files):
    data = {"hues": opener(folder)}
    with pytest.raises(ValueError, match="needs two weights files or more, got 1; ssl-toolkit evaluate"):
        compare(files[:1], data)
    with pytest.raises(ValueError, match="the same weights file is given twice"):
        compare([files[0], files[0]], data)
    with pytest.raises(ValueError, match=r"missing\.safetensors"):
        compare([files[0], folder / "missing.safetensors"], data)
    with pytest.raises(ValueError, match="got 'lineer'; did you mean 'linear'"):
        compare(files, data, protocols=("lineer",))
    with pytest.raises(ValueError, match="each protocol once"):
        compare(files, data, protocols=("knn", "knn"))
    with pytest.raises(ValueError, match="at least 1 image a class and 1 draw, got 10 and 0"):
        compare(files, data, num_draws=0)
    with pytest.raises(ValueError, match="the test split is empty"):
        compare(files, {"hues": opener(folder, test_fraction=0.0)})
