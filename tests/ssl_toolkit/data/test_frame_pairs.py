"""Pairs of images named by a table: two frames each, and pairs that share an image on one side of a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_toolkit.data import Split
from ssl_toolkit.data.frames import FrameData, SequenceBatch, SequenceSource

SPLITS: tuple[Split, ...] = ("train", "val", "test")
SECOND = {"second": "other"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty images whose grey level is their number."""
    for number in range(30):
        save(tmp_path / f"{number}.png", number)
    return tmp_path


def save(file: Path, level: int) -> None:
    Image.fromarray(np.full((4, 4, 3), level, dtype=np.uint8)).save(file)


def written(folder: Path, rows: Iterable[Sequence[object]], header: str = "path,other,label") -> Path:
    file = folder / "t.csv"
    file.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return file


def data_of(table: Path, **options: object) -> FrameData:
    arguments = {"columns": SECOND, "image_size": 4, "batch_size": 2, "val_fraction": 0.0, "cache": "memory"} | options
    return FrameData(table=f"{table}", **arguments)  # pyright: ignore[reportArgumentType]


def levels(data: FrameData, split: Split = "train") -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for batch in data.loader(split):
        assert isinstance(batch, SequenceBatch)
        parts = batch.frames.pixels[:, 0, 0, 0].split(batch.lengths.tolist())
        for index, part in zip(batch.indices.tolist(), parts, strict=True):
            found[data.name(split, index)] = part.tolist()
    return found


def split_of(data: FrameData) -> dict[str, Split]:
    return {data.name(split, place): split for split in SPLITS for place in data.indices(split).tolist()}


def test_a_pair_is_its_two_images_in_order_whatever_the_order_of_the_rows(folder: Path) -> None:
    rows = [
        ("10.png", "2.png", "b"),
        ("2.png", "10.png", "a"),
        ("./3.png", folder / "4.png", "a"),
        ("2.png", "3.png", "b"),
    ]
    for order in (1, -1):
        data = data_of(written(folder, rows[::order]))
        expected = {
            "2.png|3.png": [2, 3],
            "2.png|10.png": [2, 10],
            f"3.png|{folder}/4.png": [3, 4],
            "10.png|2.png": [10, 2],
        }
        assert levels(data) == expected
        assert list(levels(data)) == list(expected)
        assert data.class_names == ["a", "b"]
        assert data.labels("train").tolist() == [1, 0, 0, 1]
    assert levels(data_of(written(folder, rows), sampling="clip", max_frames=2)) == expected


def naive_components(rows: Sequence[Sequence[object]], copies: dict[str, str]) -> list[set[int]]:
    """The rows that a chain of common images leads to, by a search."""
    images = [{copies.get(str(name), str(name)) for name in row[:2]} for row in rows]
    left, found = set(range(len(rows))), []
    while left:
        reached = {left.pop()}
        while more := {row for row in left for known in reached if images[row] & images[known]}:
            reached |= more
            left -= more
        found.append(reached)
    return found


def test_pairs_that_share_an_image_or_its_copy_are_on_one_side(folder: Path) -> None:
    random = np.random.default_rng(0)
    save(folder / "copy.png", 29)
    (folder / "link.png").symlink_to(folder / "28.png")
    pairs = {(f"{first}.png", f"{second}.png") for first, second in random.integers(0, 28, (14, 2)) if first != second}
    further = [("29.png", "copy.png"), ("copy.png", "0.png"), ("28.png", "29.png"), ("link.png", "27.png")]
    rows = [*sorted(pairs), *further]
    components = naive_components(rows, {"copy.png": "29.png", "link.png": "28.png"})
    assert 3 < len(components) < len(rows)
    table = written(folder, [(*row, number % 2) for number, row in enumerate(rows)])
    for seed in range(5):
        data = data_of(table, val_fraction=0.2, test_fraction=0.2, split_seed=seed)
        places = split_of(data)
        assert len(places) == len(rows)
        for component in components:
            assert len({places[f"{rows[row][0]}|{rows[row][1]}"] for row in component}) == 1
        assert all(data.num_images(split) for split in SPLITS)
    groups = data._divided().split("train").images.source.split_groups()
    assert groups is not None
    assert len(np.unique(groups)) == len(components)


def test_groups_of_the_table_join_those_of_images(folder: Path) -> None:
    rows = [(f"{2 * number}.png", f"{2 * number + 1}.png", "x", f"p{number // 2}") for number in range(10)]
    rows.append(("0.png", "19.png", "x", "p9"))
    table = written(folder, rows, "path,other,label,group")
    for seed in range(5):
        places = split_of(data_of(table, val_fraction=0.3, split_seed=seed))
        for first, second in ((0, 1), (2, 3), (8, 9), (0, 9), (0, 10)):
            one, two = (f"{rows[each][0]}|{rows[each][1]}" for each in (first, second))
            assert places[one] == places[two]
        assert set(places.values()) == {"train", "val"}


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_pair_without_one_of_its_images_is_left_out(folder: Path, cache: str) -> None:
    (folder / "5.png").write_bytes(b"nothing")
    rows = [("0.png", "1.png", "a"), ("5.png", "2.png", "a"), ("3.png", "4.png", "b"), ("6.png", "5.png", "b")]
    data = data_of(written(folder, rows), cache=cache, batch_size=4, max_bad=0.5)
    assert levels(data) == {"0.png|1.png": [0, 1], "3.png|4.png": [3, 4]}
    frames, missing = data._divided().split("train").images.store.gather(np.array([0, 2, 3]))
    assert missing == [1, 2][: len(missing)]
    assert frames.pixels[:, 0, 0, 0].tolist() == [0, 1, *([3, 4] if 2 not in missing else [])]
    assert {bad.path for bad in data.bad_files} == {"5.png"}
    # whole batches get the next good pair instead
    (batch,) = data.loader("train", batch_size=len(data.indices("train")), drop_last=True)
    assert isinstance(batch, SequenceBatch)
    assert batch.lengths.tolist() == [2] * len(data.indices("train"))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("path,other\n0.png,1.png\n2.png,x.png\n", {}, r"names 1 file of 2 that is not in .* \(row 3: x.png\)"),
        ("path,other\n0.png,1.png\n2.png,\n", {}, "has no second in row 3"),
        ("path,other\n0.png,1.png\n2.png,./2.png\n", {}, "has one image as both of the pair in row 3"),
        ("path,other\n0.png,1.png\n0.png,./1.png\n", {}, "has one pair of images in row 2 and in row 3"),
        ("path,two\n0.png,1.png\n", {}, "has no column 'other'; its columns are 'path', 'two'"),
        (
            "path,other,split\n0.png,1.png,train\n2.png,3.png,test\n4.png,0.png,test\n",
            {},
            "has the image 0.png, or a copy, in two splits, train in row 2 and test in row 4",
        ),
        (
            "path,other,from\n0.png,1.png,3\n",
            {"columns": {**SECOND, "start": "from"}},
            "data.columns.start parts of se",
        ),
        ("path,other\n0.png,1.png\n", {"labels": "folder"}, "has no column 'label', and a pair has no folder"),
        ("path,other\n0.png,1.png\n", {"max_frames": 1}, "data.max_frames is 1, but a pair has two images"),
        (
            "path,other\n0.png,1.png\n1.png,2.png\n2.png,3.png\n",
            {"val_fraction": 0.3},
            "1 group, too few: data.val_fraction = 0.3",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_row(folder: Path, text: str, options: dict[str, object], message: str) -> None:
    (folder / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        data_of(folder / "t.csv", **options).setup()
    assert "\n" not in str(error.value)


def test_how_many_pairs_hang_together_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("0.png", "1.png"), ("1.png", "2.png"), ("3.png", "4.png")]
    data_of(written(folder, rows, "path,other"), val_fraction=0.3).setup()
    said = capsys.readouterr().err
    assert "t.csv: 3 pairs; path from 'path', second from 'other'; 2 groups without an image in common" in said


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_an_image_of_many_pairs_is_decoded_once_and_counted_once_if_it_is_bad(folder: Path, cache: str) -> None:
    (folder / "7.png").write_bytes(b"nothing")
    pairs = [(first, second) for first in range(8) for second in range(8) if first != second]
    data = data_of(
        written(folder, [(f"{first}.png", f"{second}.png", "x") for first, second in pairs]), cache=cache, max_bad=0.2
    )
    sets = data._divided().split("train").images
    assert isinstance(sets.source, SequenceSource)
    assert len(sets.source.frames) == 8
    assert levels(data) == {
        f"{first}.png|{second}.png": [first, second] for first, second in pairs if 7 not in (first, second)
    }
    assert [bad.path for bad in data.bad_files] == ["7.png"]


def in_folders(folder: Path, sequences: Sequence[Sequence[int]]) -> Path:
    for place, each in enumerate(sequences):
        (folder / "pairs" / f"{place}").mkdir(parents=True)
        for number, level in enumerate(each):
            save(folder / "pairs" / f"{place}" / f"{number}.png", level)
    return folder / "pairs"


@pytest.mark.parametrize("options", [{}, {"max_frames": 1}, {"max_frames": 1, "sampling": "clip"}])
def test_folders_may_be_pairs_and_then_lack_no_image(folder: Path, options: dict[str, Any]) -> None:
    path = in_folders(folder, [(1, 2), (3, 4), (5, 6)])
    (path / "1" / "0.png").write_bytes(b"nothing")
    data = FrameData(
        f"{path}", 2, image_size=4, labels="none", cache="memory", val_fraction=0.0, max_bad=0.5, **options
    )
    data.expect_pairs()
    assert levels(data) == {"0": [1, 2], "2": [5, 6]}


@pytest.mark.parametrize("most", [2, None])
def test_folders_of_other_numbers_of_images_are_no_pairs(folder: Path, most: int | None) -> None:
    path = in_folders(folder, [(1, 2), (3, 4, 5), (6,)])
    data = FrameData(f"{path}", image_size=4, labels="none", max_frames=most)
    data.expect_pairs()
    with pytest.raises(ValueError, match=r"2 sequences of 3 in .* are no pair of images \(1 has 3 frames\)"):
        data.setup()


def test_pairs_of_files_with_bars_in_their_names_are_told_apart(folder: Path) -> None:
    for number, name in enumerate(("x", "y|z.png", "x|y", "z.png")):
        save(folder / f"{name.removesuffix('.png')}.png", number)
    (folder / "x.png").rename(folder / "x")
    (folder / "x|y.png").rename(folder / "x|y")
    table = written(folder, [("x", "y|z.png", "a"), ("x|y", "z.png", "b")])
    with pytest.raises(ValueError, match=r"has two pairs called x\|y\|z.png: rename files"):
        data_of(table).setup()
