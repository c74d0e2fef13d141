"""Sequences of frames: found, ordered, sampled, divided and delivered as they lie in the folder."""

import shutil

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from safetensors.numpy import save_file

from ssl_toolkit.data.frames import FrameData, SequenceSource
from ssl_toolkit.data.frames.files import TensorFile, natural_key

LENGTHS = {"jump": (2, 5, 9), "walk": (1, 12, 4)}


def frame(level, height=8, width=10):
    return np.full((height, width, 3), level, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Six sequences as folders of images; the grey level of a frame is its place, plus 20 for each sequence."""
    number = 0
    for name, lengths in LENGTHS.items():
        for sequence, length in enumerate(lengths):
            path = tmp_path / "frames" / name / f"take {sequence}"
            path.mkdir(parents=True)
            for place in range(length):
                Image.fromarray(frame(20 * number + place)).save(path / f"frame_{place}.png")
            number += 1
    return tmp_path / "frames"


def make_data(path, **arguments):
    defaults = {
        "labels": "folder", "image_size": 8, "batch_size": 2, "val_fraction": 0.0, "max_frames": None, "cache": "memory"
    }  # fmt: skip
    return FrameData(path=str(path), **{**defaults, **arguments})


def levels(batch):
    """The grey levels of the frames of each sequence of a batch."""
    first = batch.frames.pixels[:, 0, 0, 0]
    return [part.tolist() for part in first.split(batch.lengths.tolist())]


def all_levels(data, split="train"):
    found = {}
    for batch in data.loader(split):
        for index, part in zip(batch.indices.tolist(), levels(batch), strict=True):
            found[data.name(split, index)] = part
    return found


def test_natural_order():
    names = ["frame_10", "frame_9", "frame_009b", "a2", "a10", "frame_1", "10", "9"]
    assert sorted(names, key=natural_key) == ["9", "10", "a2", "a10", "frame_1", "frame_9", "frame_009b", "frame_10"]


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_sequences_arrive_whole_and_in_order(folder, cache, tmp_path):
    data = make_data(folder, cache=cache, cache_dir=str(tmp_path / "cache"))
    data.setup()
    assert isinstance(data, LightningDataModule)
    assert data.class_names == ["jump", "walk"]
    assert data.labels("train").tolist() == [0, 0, 0, 1, 1, 1]
    batches = list(data.loader("train"))
    assert [batch.lengths.tolist() for batch in batches] == [[2, 5], [9, 1], [12, 4]]
    assert [batch.indices.tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5]]
    assert [batch.labels.tolist() for batch in batches] == [[0, 0], [0, 1], [1, 1]]
    for batch in batches:
        assert levels(batch) == [
            [20 * index + place for place in range(length)]
            for index, length in zip(batch.indices.tolist(), batch.lengths.tolist(), strict=True)
        ]
        assert batch.frames.pixels.dtype == torch.uint8
        assert batch.frames.sizes.tolist() == [[8, 10]] * int(batch.lengths.sum())
        assert batch.epoch == 0
    assert data.name("train", 4) == "walk/take 1"
    assert data.summary() == f"{folder}: 6 train, 0 val, 0 test sequences of 2 classes (jump, walk)"


def test_a_tensor_is_a_sequence_too(folder, tmp_path):
    expected = all_levels(make_data(folder))
    tensors = tmp_path / "tensors"
    suffixes = [".npy", ".pt", ".safetensors"] * 2
    for suffix, (name, values) in zip(suffixes, expected.items(), strict=True):
        file = tensors / f"{name}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        frames = np.stack([frame(value) for value in values])
        if suffix == ".npy":
            np.save(file, frames)
        elif suffix == ".pt":
            torch.save(torch.from_numpy(frames), file)
        else:
            save_file({"frames": frames}, file)
    found = all_levels(make_data(tensors))
    assert {name.rpartition(".")[0]: values for name, values in found.items()} == expected
    assert sorted(file.suffix for file in tensors.rglob("*.*")) == sorted(suffixes)


def test_tensors_are_reduced_like_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for name in ("image", "tensor"):
        (tmp_path / name / "take").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "image" / "take" / "0.png")
    np.save(tmp_path / "tensor" / "0.npy", pixels[None])
    first, second = (SequenceSource(tmp_path / name, image_size=10).read(0) for name in ("image", "tensor"))
    assert first.shape == (10, 15, 3)
    assert np.array_equal(first, second)
    np.save(tmp_path / "tensor" / "0.npy", pixels[None, :, :, :1])
    assert SequenceSource(tmp_path / "tensor", image_size=10, channels=1).read(0).shape == (10, 15, 1)


def test_evenly_spaced_frames(folder):
    found = all_levels(make_data(folder, max_frames=4))
    assert found["walk/take 1"] == [80 + place for place in (1, 4, 7, 10)]
    assert found["jump/take 1"] == [20 + place for place in (0, 1, 3, 4)]
    assert found["walk/take 2"] == [100, 101, 102, 103]
    assert found["walk/take 0"] == [60]
    assert all_levels(make_data(folder, max_frames=1))["walk/take 1"] == [86]


def test_clips(folder):
    data = make_data(folder, max_frames=3, sampling="clip", batch_size=6)
    found = all_levels(data)
    assert found["walk/take 1"] == [84, 85, 86]
    assert found["jump/take 0"] == [0, 1]
    loader = data.loader("train", shuffle=True, drop_last=True)
    starts = set()
    for _ in range(60):
        (batch,) = list(loader)
        clip = levels(batch)[batch.indices.tolist().index(4)]
        assert clip == list(range(clip[0], clip[0] + 3))
        starts.add(clip[0] - 80)
    assert starts == set(range(10))
    again = data.loader("train", shuffle=True, drop_last=True)
    again.load_state_dict({"epoch": 59, "batch": 0})
    assert levels(next(iter(again))) == levels(batch)


def test_splits_and_few_labels_have_the_meaning_of_images(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(20):
            np.save(tmp_path / name / f"{number}.npy", np.zeros((1 + number % 3, 4, 4, 3), np.uint8))
    data = make_data(tmp_path, val_fraction=0.2, test_fraction=0.1, labels_per_class=3)
    assert [data.num_images(split) for split in ("train", "val", "test")] == [6, 8, 4]
    assert data.labels("train").bincount().tolist() == [3, 3]
    assert data.labels("val").bincount().tolist() == [4, 4]
    parts = [set(data.indices(split).tolist()) for split in ("train", "val", "test")]
    assert not parts[0] & parts[1]
    assert not parts[1] & parts[2]
    assert make_data(tmp_path, label_fraction=0.5).num_images("train") == 20
    other = shutil.copytree(tmp_path, tmp_path.with_name("other"))
    both = make_data(tmp_path, val_path=str(other))
    assert both.num_images("val") == both.num_images("train") == 40
    assert len(list(both.val_dataloader())) == 20


def test_without_labels(folder):
    data = make_data(folder / "walk", labels="none")
    assert data.num_classes == 0
    assert data.labels("train").tolist() == [-1, -1, -1]
    assert all_levels(data)["take 0"] == [60]


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_bad_frames_are_left_out_and_named(folder, cache):
    (folder / "walk" / "take 1" / "frame_3.png").write_bytes(b"not an image")
    (folder / "walk" / "take 0" / "frame_0.png").write_bytes(b"not an image")
    (folder / "jump" / "broken.npy").write_bytes(b"nor is this")
    np.save(folder / "jump" / "empty.npy", np.zeros((0, 4, 4, 3), np.uint8))
    data = make_data(folder, cache=cache, max_bad=0.5, batch_size=8)
    batches = list(data.loader("train"))
    if cache == "memory":
        assert data.num_images("train") == 5
        assert data.indices("train").tolist() == [2, 3, 4, 6, 7]
    assert [index for batch in batches for index in batch.indices.tolist()] == [2, 3, 4, 6, 7]
    for batch in batches:
        assert int(batch.lengths.sum()) == len(batch.frames.pixels)
        values = dict(zip(batch.indices.tolist(), levels(batch), strict=True))
        assert values[6] == [80 + place for place in range(12) if place != 3]
    assert {bad.path for bad in data.bad_files} == {
        "walk/take 1/frame_3.png", "walk/take 0/frame_0.png", "jump/broken.npy[0]", "jump/empty.npy[0]"
    }  # fmt: skip


def test_bad_frames_can_stop_a_run(folder):
    (folder / "walk" / "take 1" / "frame_3.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"cannot decode the image walk/take 1/frame_3\.png"):
        make_data(folder, on_error="raise").setup()


def test_a_cache_of_other_settings_is_not_taken(folder, tmp_path):
    for change in ({}, {"image_size": 4}, {"channels": 1}, {"max_frames": 3}):
        cached, decoded = (
            next(
                iter(
                    make_data(folder, batch_size=6, cache=cache, cache_dir=str(tmp_path / "cache"), **change).loader(
                        "train"
                    )
                )
            )
            for cache in ("disk", "none")
        )
        assert cached.lengths.tolist() == decoded.lengths.tolist()
        assert torch.equal(cached.frames.pixels, decoded.frames.pixels), change
        assert torch.equal(cached.frames.sizes, decoded.frames.sizes), change


def test_the_cache_notices_what_changes(folder, tmp_path):
    fingerprint = SequenceSource(folder, max_frames=4).fingerprint()
    assert SequenceSource(folder, max_frames=4).fingerprint() == fingerprint
    assert SequenceSource(folder, max_frames=3).fingerprint() != fingerprint
    Image.fromarray(frame(9, height=9)).save(folder / "walk" / "take 1" / "frame_3.png")
    assert SequenceSource(folder, max_frames=4).fingerprint() != fingerprint


def test_files_that_are_no_sequences(folder, tmp_path):
    Image.fromarray(frame(0)).save(folder / "walk" / "loose.png")
    with pytest.raises(ValueError, match=r"'walk/loose\.png' in .* must lie as class/sequence/frame\.jpg"):
        make_data(folder).setup()
    Image.fromarray(frame(0)).save(folder / "loose.png")
    with pytest.raises(ValueError, match=r"'loose\.png' in .* must lie as sequence/frame\.jpg"):
        make_data(folder, labels="none").setup()
    with pytest.raises(ValueError, match=r"'.*/fra' does not exist; did you mean '.*frames'"):
        make_data(folder.parent / "fra").setup()
    with pytest.raises(ValueError, match=r"data\.path is missing"):
        FrameData().setup()
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="is empty"):
        make_data(tmp_path / "nothing").setup()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), r"holds float32 \[2, 4, 4, 3\], expected uint8"),
        (np.zeros((2, 3, 5, 5), np.uint8), r"holds uint8 \[2, 3, 5, 5\], expected uint8"),
        (np.zeros((4, 4, 3), np.uint8), r"holds uint8 \[4, 4, 3\], expected uint8"),
    ],
)
def test_tensors_of_another_kind(array, message, tmp_path):
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "0.npy", array)
    with pytest.raises(ValueError, match=message):
        make_data(tmp_path).setup()


def test_files_with_something_else(tmp_path):
    torch.save({"frames": torch.zeros(1)}, tmp_path / "dict.pt")
    with pytest.raises(ValueError, match="holds a dict, expected one tensor"):
        TensorFile(tmp_path / "dict.pt")
    save_file({"a": frame(0)[None], "b": frame(0)[None]}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match="holds 2 tensors, expected one"):
        TensorFile(tmp_path / "two.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_frames": 0}, r"data\.max_frames must be at least 1, got 0"),
        ({"sampling": "clips"}, r"data\.sampling .*'clips'"),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_data(tmp_path, **arguments)
