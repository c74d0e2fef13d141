"""The built-in sequences: the class is the motion, which no frame tells alone, nor all of them without their order."""

import numpy as np
import pytest
import torch

from ssl_toolkit.data.frames import FrameData
from ssl_toolkit.data.procedural import moving
from ssl_toolkit.data.procedural.moving import MOTIONS, NUM_FRAMES, MovingObjectFrames
from ssl_toolkit.data.procedural.pen import Pen, Pose
from ssl_toolkit.random import sample_keys

SIZE = 32


@pytest.fixture(scope="module")
def frames():
    return MovingObjectFrames(400, SIZE)


@pytest.fixture(scope="module")
def masks(frames):
    """Of all frames: bool array of shape ``[sequences, frames, height, width]``."""
    return frames.masks(np.arange(len(frames))).reshape(400, NUM_FRAMES, SIZE, SIZE)


def test_a_frame_is_the_same_however_it_is_asked_for(frames):
    asked = [7, 3199, 0, 64, 63]
    together = frames.read_many(asked)
    for index, image in zip(asked, together, strict=True):
        np.testing.assert_array_equal(frames.read(index), image)
        assert image.shape == (SIZE, SIZE, 3)
    other = MovingObjectFrames(400, SIZE, seed=1)
    assert not np.array_equal(other.read(7), frames.read(7))
    assert other.fingerprint() != frames.fingerprint()


def test_classes_are_balanced_and_named():
    source = MovingObjectFrames(20, SIZE)
    labels = [source.label(index) for index in range(0, len(source), NUM_FRAMES)]
    assert labels == [index % 8 for index in range(20)]
    assert source.name(NUM_FRAMES * 9 + 3) == "left/000009[3]"


def test_a_motion_backwards_is_that_of_its_neighbour(monkeypatch):
    """The same numbers by chance, with the other class of a pair: the same frames in the other order."""
    source = MovingObjectFrames(8, SIZE)
    before = source.render(np.arange(len(source))).reshape(8, NUM_FRAMES, SIZE, SIZE, 3)
    poses = moving.poses
    monkeypatch.setattr(moving, "poses", lambda keys, motions, places: poses(keys, motions ^ 1, places))
    after = source.render(np.arange(len(source))).reshape(before.shape)
    np.testing.assert_array_equal(after, before[:, ::-1])


def test_a_frame_from_anywhere_looks_the_same_in_all_classes():
    """Each of the four numbers has the same distribution whether it changes or not."""
    num = 16_000
    keys, places = sample_keys(3, 0, torch.arange(num)), np.random.default_rng(1).integers(0, NUM_FRAMES, num)
    found = {motion: moving.poses(keys, np.full(num, motion), places) for motion in range(8)}
    for name in ("x", "y", "angle", "half"):
        values = np.sort([getattr(pose, name).reshape(-1) for pose in found.values()], axis=1)
        # Kolmogorov and Smirnov: 1.95 / sqrt(num / 2) is passed once in a thousand times
        grid = np.linspace(values.min(), values.max(), 200)
        shares = np.stack([np.searchsorted(each, grid) / num for each in values])
        assert np.abs(shares[:, None] - shares[None]).max() < 1.95 / (num / 2) ** 0.5, name


def test_motions_are_what_they_are_called(frames, masks):
    rows, columns = np.mgrid[:SIZE, :SIZE]
    area = masks.sum(axis=(2, 3))
    assert area.min() > 10, "the object is inside of each frame"
    x, y = ((masks * place).sum(axis=(2, 3)) / area for place in (columns, rows))
    keys = np.arange(400) % 8
    right, down, larger = (each[:, -1] - each[:, 0] for each in (x, y, area))
    for name, change, sign in (
        ("right", right, 1), ("left", right, -1), ("down", down, 1), ("up", down, -1), ("grows", larger, 1),
        ("shrinks", larger, -1),
    ):  # fmt: skip
        assert (np.sign(change[keys == MOTIONS.index(name)]) == sign).all(), name
    # that only one thing changes: the centre of what does not move stays within a pixel or two
    assert np.abs(down[keys < 2]).max() < 2
    assert np.abs(right[(keys == 2) | (keys == 3)]).max() < 2


def test_turns_are_clockwise_as_seen(frames):
    indices = np.arange(len(frames))
    found = {}
    for chunk, _, _, pose in frames._chunks(indices):
        for place, angle in zip(chunk, pose.angle.reshape(-1), strict=True):
            found[int(place)] = float(angle)
    angles = np.array([found[place] for place in range(len(frames))]).reshape(400, NUM_FRAMES)
    keys = np.arange(400) % 8
    assert (np.diff(angles[keys == 4]) > 0).all()
    assert (np.diff(angles[keys == 5]) < 0).all()
    assert (np.diff(angles[keys < 4]) == 0).all()
    assert np.abs(angles).max() <= 0.7 + 1e-6


def test_a_larger_angle_is_clockwise():
    """Of the pen's own coordinates: what is to the right of the object's middle is seen below it."""
    half, turn = np.full((1, 1, 1), 0.3, np.float32), np.full((1, 1, 1), np.pi / 2, np.float32)
    middle, one = np.full((1, 1, 1), 0.5, np.float32), np.ones((1, 1, 1), np.float32)
    canvas = [np.zeros((1, SIZE, SIZE), np.float32)]
    pen = Pen(canvas, sample_keys(0, 0, torch.arange(1)), [canvas] * 4,
              Pose(half, middle, middle, turn, one, one))  # fmt: skip
    right = np.unravel_index(np.argmax(pen.u[0]), (SIZE, SIZE))
    assert right[0] == SIZE - 1


def correct(inputs, labels):
    """How many of the second half a linear classifier gets right that is fitted to the first half by least squares."""
    inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    half = len(inputs) // 2
    targets = np.eye(8)[labels]
    gram = inputs[:half].T @ inputs[:half] + 10.0 * np.eye(inputs.shape[1])
    weights = np.linalg.solve(gram, inputs[:half].T @ targets[:half])
    return int(((inputs[half:] @ weights).argmax(axis=1) == labels[half:]).sum())


def test_one_frame_tells_nothing_and_order_tells_all(masks):
    """From where the object is, which is more than a network can see."""
    rows, columns = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    area = masks.sum(axis=(2, 3))
    facts = [area / 100, *((masks * place).sum(axis=(2, 3)) / area for place in (columns, rows, columns * rows / 10))]
    facts = np.stack(facts, axis=2)  # [sequences, frames, facts]
    facts = np.concatenate([facts, facts**2], axis=2)
    labels, num = np.arange(400) % 8, 200
    chance, deviation = num / 8, (num / 8 * 7 / 8) ** 0.5
    one = correct(facts[np.arange(400), np.random.default_rng(0).integers(0, NUM_FRAMES, 400)], labels)
    assert one < chance + 3 * deviation, f"{one} of {num} by one frame"
    blind = correct(np.concatenate([facts.mean(axis=1), facts.std(axis=1)], axis=1), labels)
    assert blind < num / 2 + 4 * (num / 4) ** 0.5, f"{blind} of {num} without the order; one of two at best"
    ordered = correct(facts[:, -1, :4] - facts[:, 0, :4], labels)
    assert ordered > 0.7 * num, f"{ordered} of {num} by the order"


def test_what_cannot_be_asked_for_is_one_line(tmp_path):
    for arguments, message in (
        ({"source": "folders"}, "did you mean 'folder'"),
        ({"source": "procedural", "path": str(tmp_path)}, "data.path names sequences, but data.source is procedural"),
        ({"source": "procedural", "table": "a.csv"}, "data.table names sequences, but data.source is procedural"),
        ({"source": "procedural", "columns": {"label": "x"}}, "data.columns"),
        ({"source": "procedural", "channels": 1}, "data.channels is 1"),
        ({"source": "procedural", "image_size": 8}, "need at least 16 pixels"),
        ({"path": str(tmp_path), "max_images": 8}, "data.max_images is the number of built-in sequences"),
    ):
        with pytest.raises(ValueError, match=message) as found:
            FrameData(**arguments).setup()
        assert "\n" not in str(found.value)


def test_they_are_data_like_others():
    arguments = {"image_size": SIZE, "batch_size": 5, "cache": "memory", "test_fraction": 0.25, "labels": "folder"}
    data = FrameData(source="procedural", max_images=80, **arguments)
    data.setup()
    assert data.num_classes == 8
    assert data.class_names == list(MOTIONS)
    assert [data.num_images(split) for split in ("train", "val", "test")] == [52, 8, 20]
    assert len(FrameData(source="procedural", **arguments).indices("train")) > 700
    frames = MovingObjectFrames(80, SIZE)
    for batch in data.loader("val"):
        assert (batch.lengths == NUM_FRAMES).all()
        first = int(batch.indices[0])
        expected = frames.render(range(NUM_FRAMES * first, NUM_FRAMES * (first + 1)))
        np.testing.assert_array_equal(batch.frames.pixels[:NUM_FRAMES].permute(0, 2, 3, 1).numpy(), expected)
        assert int(batch.labels[0]) == first % 8
    few = FrameData(source="procedural", max_images=80, max_frames=2, **arguments)
    batch = next(iter(few.loader("val")))
    assert batch.lengths.tolist() == [2] * len(batch.lengths)
    expected = frames.render([NUM_FRAMES * int(batch.indices[0]) + place for place in (2, 6)])
    np.testing.assert_array_equal(batch.frames.pixels[:2].permute(0, 2, 3, 1).numpy(), expected)
