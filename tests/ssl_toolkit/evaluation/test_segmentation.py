"""Figures of segmentation against naive loops and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score

from ssl_toolkit.evaluation.segmentation import class_iou, image_confusions, mean_iou, pixel_accuracy

GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def pictures():
    """Predictions, and masks with pixels that do not count; class 3 of 5 is never true."""
    predicted = torch.randint(5, (4, 6, 7), generator=GENERATOR)
    masks = torch.randint(5, (4, 6, 7), generator=GENERATOR, dtype=torch.uint8)
    masks[masks == 3] = 255
    masks[2] = 255
    return predicted, masks


def test_confusions_are_those_of_a_loop(pictures):
    predicted, masks = pictures
    expected = np.zeros((4, 5, 5), dtype=np.int64)
    for image in range(4):
        for row in range(6):
            for column in range(7):
                if (truth := int(masks[image, row, column])) != 255:
                    expected[image, truth, int(predicted[image, row, column])] += 1
    found = image_confusions(predicted, masks, 5)
    assert found.dtype == torch.int64
    assert np.array_equal(found, expected)
    assert int(found[2].sum()) == 0


def test_figures_are_those_of_scikit_learn(pictures):
    predicted, masks = pictures
    confusion = image_confusions(predicted, masks, 5).sum(dim=0)
    counts = masks != 255
    truth, said = masks[counts].numpy(), predicted[counts].numpy()
    assert np.array_equal(confusion, confusion_matrix(truth, said, labels=range(5)))
    each = jaccard_score(truth, said, labels=[0, 1, 2, 4], average=None)
    iou = class_iou(confusion)
    assert iou[[0, 1, 2, 4]].numpy() == pytest.approx(each)
    assert math.isnan(iou[3]), "there is no pixel of it"
    assert mean_iou(confusion) == pytest.approx(each.mean())
    assert pixel_accuracy(confusion) == pytest.approx((truth == said).mean())


def test_by_hand():
    # 3 pixels of class 0, one of which is taken for 1; one of class 1
    confusion = torch.tensor([[2, 1], [0, 1]])
    assert class_iou(confusion).tolist() == pytest.approx([2 / 3, 1 / 2])
    assert pixel_accuracy(confusion) == 0.75
    assert math.isnan(mean_iou(torch.zeros(2, 2, dtype=torch.int64)))
    assert math.isnan(pixel_accuracy(torch.zeros(2, 2, dtype=torch.int64)))


def test_counts_are_exact_beyond_what_float32_holds():
    many = torch.tensor([[2**40 + 1, 0], [1, 2**40]])
    assert 0 < 1 - mean_iou(many) < 1e-11
