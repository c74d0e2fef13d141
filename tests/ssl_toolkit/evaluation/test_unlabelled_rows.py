"""Retrieval and clustering as parts of an evaluation: what is written and said."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import adjusted_rand_score

from ssl_toolkit.augment import CenterView
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation import evaluate, extract_features, k_means, retrieve
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.evaluation.unlabelled_rows import check_unlabelled, measure_unlabelled, unlabelled_words
from ssl_toolkit.modules.backbone import Backbone


def image_data(folder, per_class=(14, 14, 14)):
    generator = np.random.default_rng(0)
    for label, number in enumerate(per_class):
        (folder / f"class{label}").mkdir(parents=True)
        for place in range(number):
            pixels = generator.integers(0, 150, (16, 16, 3))
            pixels[..., label % 3] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"class{label}" / f"{place:02}.png")
    fractions = {"val_fraction": 0.25, "test_fraction": 0.4}
    return ImageData(path=str(folder), labels="folder", image_size=16, batch_size=10, num_threads=1, **fractions)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return Backbone("resnet18", stem="small", kwargs={"channels": [4, 4, 8, 8]})


def test_figures_are_those_of_the_test_features_and_are_written(tmp_path, backbone):
    data = image_data(tmp_path / "images")
    evaluation = evaluate(backbone, data, stages=False, retrieval=True, clustering=True, precision="32", seed=2)
    test = extract_features(backbone, data.loader("test"), CenterView(16), precision="32")
    features, labels = test.features["pooled"], test.labels
    expected = retrieve(features, labels, seed=2)
    retrieval, clustering = evaluation.retrieval, evaluation.clustering
    assert [row.weights for row in retrieval.rows] == [row.weights for row in clustering.rows] == ["given", "random"]
    row = retrieval.rows[0]
    assert {k: each.value for k, each in row.recall.items()} == pytest.approx(
        {k: float(hits.double().mean()) for k, hits in expected.hits.items()}
    )
    precision = row.mean_precision
    assert precision.value == pytest.approx(float(expected.precision.mean()))
    assert precision.low < precision.value < precision.high
    random = retrieval.rows[1].mean_precision.value
    assert retrieval.difference.value == pytest.approx(precision.value - random)
    assert (clustering.num_clusters, clustering.num_images) == (3, len(labels))
    unit = torch.nn.functional.normalize(features, dim=1)
    assigned = k_means(unit, 3, restarts=10, seed=2).assigned
    assert clustering.rows[0].ari == pytest.approx(adjusted_rand_score(labels, assigned))
    evaluation.save(tmp_path / "evaluation.json")
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["retrieval"]["rows"][0]["recall"]["5"] == row.recall[5]._asdict()
    assert written["clustering"]["rows"][1]["nmi"] == clustering.rows[1].nmi
    assert sum(num for *_, num in written["classes"]["confusion"]) == len(labels)
    assert written["classes"]["rows"][0]["name"] == "class0"
    assert 0 <= written["rows"][0]["linear_ece"] <= 1
    assert written["words"] == evaluation.words()
    said = "\n".join(evaluation.words())
    assert "mean average precision over random weights" in said
    assert "a random order: recall" in said
    assert "random clusters 0" in said


def test_nothing_of_it_stands_in_the_file_unless_asked_for(tmp_path, backbone):
    written = evaluate(backbone, image_data(tmp_path / "images"), stages=False, random_weights=False).to_json()
    assert not {"retrieval", "clustering"} & set(written)


def test_without_random_weights_and_with_classes_of_one_image():
    features, labels = torch.randn(21, 4), torch.cat([torch.arange(4).repeat_interleave(5), torch.tensor([4])])
    found = measure_unlabelled({"given": features}, labels, True, True, 0, Steps(None))
    assert found.retrieval.difference is None
    assert (found.retrieval.num_queries, found.retrieval.num_single) == (20, 1)
    assert "1 are the only ones of their class and left out" in unlabelled_words(*found)[0]


def test_what_cannot_be_measured_is_refused_before_the_work(tmp_path, backbone):
    with pytest.raises(ValueError, match="--retrieval needs a class with two test images, but each has one"):
        check_unlabelled(True, False, torch.tensor([0, 1, 2]))
    one = image_data(tmp_path / "one", (10,))
    with pytest.raises(ValueError, match="--clustering needs test images of at least two classes"):
        evaluate(backbone, one, clustering=True)
