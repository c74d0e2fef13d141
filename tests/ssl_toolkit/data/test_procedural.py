from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ssl_toolkit.data.procedural import ProceduralSource


def test_images_have_the_promised_shape_type_and_labels():
    source = ProceduralSource(num_images=30, image_size=64)
    images = source.render(range(30))
    assert images.shape == (30, 64, 64, 3)
    assert images.dtype == np.uint8
    assert len(source) == 30
    assert len(source.class_names) == len(set(source.class_names)) == 10
    assert np.bincount([source.label(i) for i in range(30)]).tolist() == [3] * 10
    assert source.class_names[source.label(7)] in source.name(7)


def test_an_image_depends_on_seed_and_index_only():
    source = ProceduralSource(num_images=5000, image_size=32, seed=3)
    together = source.render(range(100))
    assert np.array_equal(together, ProceduralSource(100, 32, 3).render(range(100)))
    order = np.random.default_rng(0).permutation(100)
    assert np.array_equal(source.render(order), together[order])
    for i in (0, 17, 99):
        assert np.array_equal(source.read(i), together[i])
    assert all(np.array_equal(a, b) for a, b in zip(source.read_many([5, 99]), together[[5, 99]], strict=True))


def test_rendering_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global generator is what is tested
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    ProceduralSource(4, 32).render(range(4))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_no_two_images_are_equal():
    images = [ProceduralSource(200, 32, seed).render(range(200)) for seed in (0, 1)]
    flat = np.concatenate(images).reshape(400, -1)
    assert len(np.unique(flat, axis=0)) == 400


def test_the_fingerprint_tells_different_images_apart():
    arguments = [(10, 32, 0), (10, 32, 1), (10, 64, 0), (20, 32, 0)]
    assert len({ProceduralSource(*a).fingerprint() for a in arguments}) == 4
    assert ProceduralSource(10, 32, 0).fingerprint() == ProceduralSource(10, 32, 0).fingerprint()


def test_every_object_fills_most_of_the_image_and_stands_out():
    # the mean over many images of a class is flat, so an object shows as change from image to image
    source = ProceduralSource(num_images=1000, image_size=64)
    images = source.render(range(1000)).astype(np.float32)
    assert 90 < images.mean() < 165
    assert images.std(axis=(1, 2, 3)).min() > 5, "an image is blank"


@pytest.mark.parametrize("arguments", [{"num_images": 0}, {"image_size": 8}])
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ProceduralSource(**arguments)


@pytest.mark.slow
def test_a_linear_classifier_of_the_pixels_fails():
    pixels = ProceduralSource(5000, 64).render(range(5000)).reshape(5000, -1).astype(np.float32)
    labels = np.arange(5000) % 10
    pixels = (pixels - pixels[:4000].mean(axis=0)) / pixels[:4000].std(axis=0)
    scores = []
    for strength in (1e-5, 1e-4, 1e-3):
        model = LogisticRegression(C=strength, max_iter=60, tol=1e-2).fit(pixels[:4000], labels[:4000])
        scores.append(model.score(pixels[4000:], labels[4000:]))
    assert max(scores) < 0.35
