from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression

from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Images
from ssl_toolkit.data.procedural import ProceduralSource
from ssl_toolkit.data.procedural.objects import OBJECTS
from ssl_toolkit.data.procedural.pen import Pen
from ssl_toolkit.perf.bfloat16 import has_native_bf16
from ssl_toolkit.random import sample_keys

# mean grey level of 4 x 4 parts over 20 images of each class, row by row, of the drawings called "procedural-v1"
GREY_LEVELS = {
    "bird": "153.0 162.3 166.3 164.5 139.6 138.0 147.6 164.3 153.5 124.9 123.3 147.0 161.0 140.4 140.4 159.9",
    "boat": "165.3 146.2 145.4 160.5 164.5 133.6 124.9 154.7 151.1 131.1 128.9 145.3 166.3 157.6 157.1 164.3",
    "car": "172.9 165.7 169.8 173.0 153.6 146.5 153.5 165.8 146.6 144.9 137.1 151.8 169.0 166.6 165.4 169.8",
    "cup": "156.2 147.4 145.1 145.6 151.0 133.6 124.6 132.8 154.7 135.5 128.9 128.4 153.6 134.8 139.8 138.1",
    "face": "140.6 140.7 140.5 148.7 137.1 116.9 117.7 142.4 139.6 119.2 123.2 140.1 147.6 136.3 136.2 148.5",
    "fish": "167.8 151.8 150.4 160.5 144.6 130.0 133.9 141.2 154.8 143.4 140.6 151.4 170.9 164.2 168.5 167.0",
    "flower": "147.8 134.1 132.9 146.2 148.6 134.8 121.4 139.2 147.7 132.7 121.2 139.5 146.1 144.6 137.5 145.0",
    "house": "156.3 145.7 133.9 137.0 145.7 130.7 120.6 131.7 145.9 131.8 130.4 136.1 150.4 141.2 136.6 145.2",
    "key": "170.7 152.4 147.1 157.8 170.5 141.6 132.6 159.7 177.6 150.9 132.1 161.6 178.5 167.0 145.6 162.6",
    "tree": "162.7 156.3 150.9 162.0 158.2 144.0 144.1 145.7 154.1 136.0 128.5 145.7 160.4 150.2 145.5 158.1",
}


def test_the_drawings_are_those_of_their_version():
    """Published figures are of these drawings, and caches on disk know them by their version."""
    source = ProceduralSource(num_images=200, image_size=32)
    assert source.fingerprint().startswith("procedural-v1-")
    found = source.render(range(200)).mean(axis=3).reshape(20, 10, 4, 8, 4, 8).mean(axis=(0, 3, 5)).reshape(10, 16)
    expected = np.array([[float(level) for level in GREY_LEVELS[name].split()] for name in source.class_names])
    assert np.abs(found - expected).max() < 0.3, "if the change is meant, a new version and its levels are due"


def test_images_have_the_guaranteed_shape_type_and_labels():
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


def test_no_image_is_blank_and_the_set_is_neither_dark_nor_pale():
    images = ProceduralSource(num_images=500, image_size=64).render(range(500)).astype(np.float32)
    assert 90 < images.mean() < 165
    assert images.std(axis=(1, 2)).min() > 5


def test_objects_stay_in_the_image_and_fill_most_of_it():
    # a pen that records what each object covers
    keys = sample_keys(0, 0, torch.arange(40))
    for draw in OBJECTS.values():
        canvas = [np.zeros((40, 64, 64), np.float32) for _ in range(3)]
        pen = Pen(canvas, keys, [[np.ones((40, 1, 1), np.float32)] * 3] * 4)
        draw(pen)
        rows, columns = (pen.mask > 0.5).any(axis=2).sum(axis=1), (pen.mask > 0.5).any(axis=1).sum(axis=1)
        assert np.maximum(rows, columns).min() > 0.5 * 64
        assert (np.maximum(rows, columns) < 64).mean() > 0.9


def test_shapes_are_signed_distances():
    pen = Pen([np.zeros((1, 64, 64), np.float32)] * 3, torch.zeros(1, dtype=torch.int64), [[]] * 4)
    pen.u, pen.v = np.array([0.0, 0.5, 1.0]), np.zeros(3)
    assert pen.circle(0, 0, 0.5) == pytest.approx([-0.5, 0, 0.5])
    assert pen.box(0, 0, 0.5, 0.7) == pytest.approx([-0.5, 0, 0.5])
    assert pen.line(0, 0, 0, 1, 0.5) == pytest.approx([-0.5, 0, 0.5])
    assert pen.polygon((-0.5, -0.6), (0.5, -0.6), (0.5, 0.6), (-0.5, 0.6)) == pytest.approx([-0.5, 0, 0.5])
    assert np.sign(pen.ellipse(0, 0, 0.6, 0.3)).tolist() == [-1, -1, 1]


@pytest.mark.parametrize("arguments", [{"num_images": 0}, {"image_size": 8}])
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ProceduralSource(**arguments)


@pytest.mark.nightly
def test_a_linear_classifier_of_the_pixels_fails():
    pixels = ProceduralSource(5000, 64).render(range(5000)).reshape(5000, -1).astype(np.float32)
    labels = np.arange(5000) % 10
    pixels = (pixels - pixels[:4000].mean(axis=0)) / pixels[:4000].std(axis=0)
    scores = []
    for strength in (1e-5, 1e-4, 1e-3):
        model = LogisticRegression(C=strength, max_iter=60, tol=1e-2).fit(pixels[:4000], labels[:4000])
        scores.append(model.score(pixels[4000:], labels[4000:]))
    assert max(scores) < 0.35


@pytest.mark.nightly
def test_a_network_with_labels_succeeds():
    torch.manual_seed(0)
    pixels = torch.from_numpy(ProceduralSource(5000, 64).render(range(5000))).permute(0, 3, 1, 2)
    labels = torch.arange(5000) % 10
    network = timm.create_model("resnet10t", num_classes=10, stem_width=16, channels=(32, 64, 128, 256))
    network = network.to(memory_format=torch.channels_last)
    view = RandomView(64, scale=(0.7, 1), hflip=0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0)
    steps = 8 * 32
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for step in range(steps):
        chosen = torch.randint(4000, (128,))
        batch = view(Images(pixels[chosen], torch.full((128, 2), 64)), sample_keys(0, step, chosen))
        # without the instructions for it, a processor computes bfloat16 several times as slowly as float32
        with torch.autocast("cpu", torch.bfloat16, enabled=has_native_bf16(torch.device("cpu"))):
            logits = network((batch - 0.5).contiguous(memory_format=torch.channels_last))
        torch.nn.functional.cross_entropy(logits.float(), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    network.eval()
    with torch.no_grad():
        guesses = torch.cat([network(part.float() / 255 - 0.5).argmax(dim=1) for part in pixels[4000:].split(250)])
    assert (guesses == labels[4000:]).float().mean() > 0.9
