"""Labels of frames: a table of segments, of whole sequences or of single frames, and what is wrong with one."""

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_toolkit.data.frames import FrameData
from ssl_toolkit.data.frames.single import SingleFrames

PARTS = {"start": "start", "end": "end"}
LENGTHS = {"a": 6, "b": 4, "c": 5, "d": 7}


@pytest.fixture
def folder(tmp_path):
    """Four sequences, of which two are tensors; a frame says in its first pixel which one it is."""
    for number, (name, length) in enumerate(LENGTHS.items()):
        frames = np.zeros((length, 16, 16, 3), np.uint8)
        frames[...] = (10 * np.arange(length) + number)[:, None, None, None]
        if number % 2:
            np.save(tmp_path / f"{name}.npy", frames)
            continue
        (tmp_path / name).mkdir()
        for place, frame in enumerate(frames):
            Image.fromarray(frame).save(tmp_path / name / f"f{place}.png")
    return tmp_path


def data(folder, text, columns=PARTS, **options):
    table = folder / "table.csv"
    table.write_text(text)
    arguments = {"val_fraction": 0.0, "test_fraction": 0.0, "batch_size": 4, "max_frames": None, "image_size": 16}
    made = FrameData(path=str(folder), table=str(table), columns=columns, frame_labels=True, **arguments | options)
    made.setup("fit")
    return made


def labels_by_name(made):
    batch = next(iter(made.loader("train")))
    parts = batch.frame_labels.split(batch.lengths.tolist())
    names = [*made.class_names, None]
    return {
        made.name("train", index): [names[label] for label in part.tolist()]
        for index, part in zip(batch.indices.tolist(), parts, strict=True)
    }


SEGMENTS = """path,start,end,label
a,0,2,walk
b.npy,1,3,run
a,4,6,walk
c,0,5,run
a,2,3,run
"""


def test_a_row_labels_a_segment(folder):
    made = data(folder, SEGMENTS)
    assert made.class_names == ["run", "walk"]
    assert labels_by_name(made) == {
        "a": ["walk", "walk", "run", None, "walk", "walk"],
        "b.npy": [None, "run", "run", None],
        "c": ["run"] * 5,
    }
    assert made.labels_of_frames("train").tolist() == [1, 1, 0, -1, 1, 1, -1, 0, 0, -1, 0, 0, 0, 0, 0]
    assert made.labels("train").tolist() == [-1, -1, -1]


def test_the_order_of_the_rows_plays_no_role(folder):
    lines = SEGMENTS.splitlines()
    shuffled = "\n".join([lines[0], *reversed(lines[1:])])
    assert labels_by_name(data(folder, shuffled)) == labels_by_name(data(folder, SEGMENTS))


def test_a_row_may_label_a_whole_sequence_or_a_frame(folder):
    made = data(folder, "path,label\na/f4.png,x\nb.npy,y\na/f0.png,y\n", columns=None)
    assert labels_by_name(made) == {"a": ["y", None, None, None, "x", None], "b.npy": ["y"] * 4}


def test_the_labels_belong_to_their_frames_whatever_is_left_out(folder):
    """Every frame is labelled by its number, which is what its pixels say, too."""
    (folder / "c" / "f3.png").write_bytes(b"no picture")
    rows = [f"{name}{'.npy' if name in 'bd' else ''},{place},{place + 1},{place}"
            for name, length in LENGTHS.items() for place in range(length)]  # fmt: skip
    for options in ({}, {"max_frames": 3}, {"max_frames": 3, "sampling": "clip"}):
        made = data(folder, "\n".join(["path,start,end,label", *rows]), max_bad=0.5, **options)
        for shuffle in (True, False):
            batch = next(iter(made.loader("train", shuffle=shuffle)))
            assert torch.equal(batch.frames.pixels[:, 0, 0, 0].long() // 10, batch.frame_labels)
            # evaluation sees whole sequences; the bad frame is left out
            longest = 7 if not options or (options.get("sampling") and not shuffle) else 3
            assert int(batch.lengths.max()) == longest
        assert torch.equal(batch.frame_labels, made.labels_of_frames("train")[batch.places])


def test_single_frames_have_their_own_labels(folder):
    made = data(folder, SEGMENTS)
    frames = SingleFrames(made)
    assert torch.equal(frames.labels("train"), made.labels_of_frames("train"))


def test_a_group_and_a_split_are_of_a_sequence(folder):
    made = data(folder, "path,start,end,label,split\na,0,2,x,train\nb.npy,0,1,y,test\na,3,4,y,train\n")
    assert made.num_images("train") == made.num_images("test") == 1
    with pytest.raises(ValueError, match=r"has the split 'train' for a in row 2 and 'test' in row 3.* has one split"):
        data(folder, "path,start,end,label,split\na,0,2,x,train\na,3,4,y,test\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,start,end\na,0,2\n", r"has no column 'label', and data.frame_labels needs one"),
        ("path,start,end,label\na,0,3,x\na,2,4,y\n", r"labels frame 2 of a in row 2 and in row 3; a frame has one"),
        ("path,start,end,label\na,0,9,x\n", r"the part 0 to 9 of a in row 2, which has 6 frames: .* ends at 6"),
        ("path,start,end,label\na,3,3,x\n", r"the part 3 to 3 of a in row 2, expected a start"),
        ("path,start,end,label\na,-1,3,x\n", r"has '-1' in the column 'start' in row 2"),
        ("path,start,end,label\na,0,3,\n", r"has no label in row 2"),
        ("path,start,end,label\nz,0,3,x\n", r"names 1 sequence of 1 that is not in .*row 2: z"),
        ("path,start,end,label\na/f0.png,0,1,x\n", r"names the image a/f0.png in row 2, but start is a frame of a"),
        ("path,start,end,label\n./a,0,1,x\nlink,1,2,x\n", r"has link in row 3, which is the same as a"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_its_row(folder, text, message):
    (folder / "link").symlink_to(folder / "a")
    with pytest.raises(ValueError, match=message) as caught:
        data(folder, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na/f9.png,x\n", r"names the image a/f9.png in row 2, which is not there"),
        ("path,label\nf0.png,x\n", r"names the image f0.png in row 2, which lies in no folder"),
        ("path,label\na/f1.png,x\na/f1.png,y\n", r"has the path a/f1.png in row 2 and in row 3"),
        ("path,label\na/f1.png,x\na,y\n", r"labels frame 1 of a in row 2 and in row 3"),
    ],
)
def test_what_is_wrong_with_a_table_of_frames(folder, text, message):
    with pytest.raises(ValueError, match=message):
        data(folder, text, columns=None)


def test_without_a_table_there_are_no_labels(folder):
    with pytest.raises(ValueError, match=r"takes the labels of frames from a table: give data.table"):
        FrameData(path=str(folder), frame_labels=True).setup("fit")


@pytest.mark.parametrize("given", [{"class_balance": 0.5}, {"labels_per_class": 2}, {"label_fraction": 0.5}])
def test_what_goes_by_the_class_of_a_sequence_is_refused(folder, given):
    with pytest.raises(ValueError, match=rf"data\.{next(iter(given))} goes by the class of a sequence"):
        data(folder, SEGMENTS, **given)
    neutral = {name: {"class_balance": 0.0, "labels_per_class": None, "label_fraction": 1.0}[name] for name in given}
    assert data(folder, SEGMENTS, **neutral).frame_labels


def test_a_tensor_that_cannot_be_read_is_named_with_the_bad_files(folder):
    (folder / "b.npy").write_bytes(b"no tensor")
    made = data(folder, SEGMENTS, max_bad=0.9)
    assert set(labels_by_name(made)) == {"a", "c"}
    assert [bad.path for bad in made.bad_files] == ["b.npy[0]"]


def test_built_in_sequences_of_several_motions():
    made = FrameData(source="procedural", frame_labels=True, max_images=20, image_size=32, max_frames=None,
                     val_fraction=0.0, test_fraction=0.0)  # fmt: skip
    made.setup("fit")
    for part in made.labels_of_frames("train").split(np.diff(made.sources()[0].images.source.starts).tolist()):
        changes = int((part.diff() != 0).sum())
        assert 2 <= changes <= 4
        assert 18 <= len(part) <= 60
    # each class is there, and none rules
    counts = made.labels_of_frames("train").bincount(minlength=8)
    assert int(counts.min()) > 0
    assert int(counts.max()) < 0.35 * int(counts.sum())
