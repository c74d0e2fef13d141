"""Sequences named by a table, and parts of them: their frames, labels, splits and weights, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_toolkit.data import Split
from ssl_toolkit.data.frames import FrameData, SequenceBatch, SequenceSource
from ssl_toolkit.data.frames.table_source import SequenceTableSource

LENGTHS = {"jump/take 1": 9, "jump/take 2": 5, "jump/take 10": 3, "walk/take 1": 12, "walk/take 01": 4, "walk/t.npy": 6}
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def fill(folder: Path, lengths: dict[str, int]) -> Path:
    """Sequences whose grey levels are the places of the frames, plus 20 for each sequence."""
    for number, (name, length) in enumerate(lengths.items()):
        frames = [np.full((4, 4, 3), 20 * number + place, dtype=np.uint8) for place in range(length)]
        if name.endswith(".npy"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(folder / name, np.stack(frames))
            continue
        (folder / name).mkdir(parents=True)
        for place, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / name / f"f{place}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = fill(tmp_path_factory.mktemp("sequences"), LENGTHS)
    (path / "walk" / "take 1" / "notes.txt").write_text("x")
    return path


def written(file: Path, rows: Iterable[Sequence[object]]) -> Path:
    file.write_text("".join(",".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    return file


def data_of(folder: Path, table: Path | None, **options: object) -> FrameData:
    arguments = {
        "path": f"{folder}",
        "image_size": 4,
        "batch_size": 2,
        "val_fraction": 0.0,
        "max_frames": None,
        "cache": "memory",
    } | options
    return FrameData(table=None if table is None else f"{table}", **arguments)  # pyright: ignore[reportArgumentType]


def levels(data: FrameData, split: Split = "train") -> dict[str, list[int]]:
    """The grey levels of each sequence of a split."""
    found: dict[str, list[int]] = {}
    for batch in data.loader(split):
        assert isinstance(batch, SequenceBatch)
        parts = batch.frames.pixels[:, 0, 0, 0].split(batch.lengths.tolist())
        found |= {data.name(split, index): part.tolist() for index, part in zip(batch.indices.tolist(), parts)}  # noqa: B905
    return found


def names(data: FrameData, split: Split) -> list[str]:
    return [data.name(split, place) for place in data.indices(split).tolist()]


def test_a_table_of_all_sequences_says_what_their_folders_say(folder: Path, tmp_path: Path) -> None:
    for order in (1, -1):
        rows = [(name, name.partition("/")[0]) for name in LENGTHS][::order]
        table = written(tmp_path / "t.csv", [("path", "label"), *rows])
        found, expected = data_of(folder, table), data_of(folder, None, labels="folder")
        assert found.class_names == expected.class_names == ["jump", "walk"]
        assert levels(found) == levels(expected)
        assert names(found, "train")[:3] == ["jump/take 1", "jump/take 2", "jump/take 10"]
        assert found.labels("train").tolist() == expected.labels("train").tolist()
        assert "not read: 1 .txt" in found.summary()
    without = data_of(folder, written(tmp_path / "t.csv", [("path",), *((name,) for name in LENGTHS)]), labels="folder")
    assert without.labels("train").tolist() == expected.labels("train").tolist()
    assert levels(data_of(folder, written(folder / "own.csv", [("path",), ("walk/take 1",)]), path=None)) == {
        "walk/take 1": [60 + place for place in range(12)]
    }


def test_parts_are_what_python_counts(folder: Path, tmp_path: Path) -> None:
    rows = [("walk/take 1", 3, 7), ("walk/take 1", 0, 12), ("walk/t.npy", 4, 6), ("jump/take 1", "8.0", 9)]
    for order in (1, -1):
        table = written(tmp_path / "t.csv", [("path", "from", "to"), *rows[::order]])
        data = data_of(folder, table, columns={"start": "from", "end": "to"})
        assert levels(data) == {
            "jump/take 1[8:9]": [8],
            "walk/t.npy[4:6]": [104, 105],
            "walk/take 1[0:12]": list(range(60, 72)),
            "walk/take 1[3:7]": [63, 64, 65, 66],
        }
        assert names(data, "train") == list(levels(data))
    only = data_of(folder, table, columns={"start": "from"})
    assert levels(only)["walk/take 1[3:12]"] == list(range(63, 72))
    evenly = data_of(folder, table, columns={"end": "to"}, max_frames=2)
    # the middles of the two halves of frames 0 to 6
    assert levels(evenly)["walk/take 1[0:7]"] == [61, 65]


def test_a_cache_of_other_parts_is_not_taken(folder: Path, tmp_path: Path) -> None:
    for start, end in ((0, 3), (2, 5), (0, 3)):
        table = written(tmp_path / "t.csv", [("path", "start", "end"), ("jump/take 1", start, end)])
        columns = {"start": "start", "end": "end"}
        data = data_of(folder, table, columns=columns, cache="disk", cache_dir=f"{tmp_path / 'cache'}")
        assert list(levels(data).values()) == [list(range(start, end))]


def test_parts_of_a_folder_and_groups_that_share_one_stay_together(tmp_path: Path) -> None:
    fill(tmp_path / "data", {f"v{number}": 6 for number in range(12)})
    (tmp_path / "data" / "link").symlink_to(tmp_path / "data" / "v11")
    rows: list[tuple[object, ...]] = [(f"v{number}", start, start + 3) for number in range(12) for start in (0, 2)]
    rows.append(("link", 3, 6))
    columns = {"start": "start", "end": "end"}
    grouped = [(*row, "p" if row[:2] in (("v3", 2), ("v5", 0)) else f"own {row}".replace(",", "")) for row in rows]
    for seed in range(5):
        options = {"columns": columns, "val_fraction": 0.25, "test_fraction": 0.25, "split_seed": seed}
        for header, each in ((("path", "start", "end"), rows), (("path", "start", "end", "group"), grouped)):
            data = data_of(tmp_path / "data", written(tmp_path / "t.csv", [header, *each]), **options)
            split_of = {name: split for split in SPLITS for name in names(data, split)}
            assert len(split_of) == len(rows)
            for number in range(12):
                assert split_of[f"v{number}[0:3]"] == split_of[f"v{number}[2:5]"]
            assert split_of["link[3:6]"] == split_of["v11[0:3]"]
            if len(header) == 4:
                assert split_of["v3[0:3]"] == split_of["v5[0:3]"]
            assert all(data.num_images(split) for split in SPLITS)
            assert data.has_groups


def test_folds_known_splits_and_resuming(tmp_path: Path) -> None:
    fill(tmp_path / "data", {f"v{number}": 4 for number in range(9)})
    rows = [(f"v{number}", start, start + 2, "ab"[number % 2]) for number in range(9) for start in (0, 2)]
    columns = {"start": "start", "end": "end"}
    header = ("path", "start", "end", "label")
    table = written(tmp_path / "t.csv", [header, *rows])
    tested = [names(data_of(tmp_path / "data", table, columns=columns, fold=f"{fold}/3"), "test") for fold in (1, 2, 3)]
    assert sorted(name for each in tested for name in each) == sorted(f"{row[0]}[{row[1]}:{row[2]}]" for row in rows)
    first = data_of(tmp_path / "data", table, columns=columns, val_fraction=0.3)
    first.setup()
    first.write_splits(tmp_path)
    written(table, [header, *rows[::-1]])
    again = data_of(tmp_path / "data", table, columns=columns, val_fraction=0.3)
    again.go_on_with(tmp_path)
    known = data_of(tmp_path / "data", table, columns=columns, splits=f"{tmp_path}")
    for split in SPLITS:
        assert names(again, split) == names(first, split) == names(known, split)
    for changed, message in (
        ([*rows[:-1], ("v8", 1, 4, "a")], r"gone since the run was begun: 1 of its 18 sequences, such as v8\[2:4\]"),
        ([*rows[:-1], ("v8", 2, 4, "b")], r"class changed since the run was begun: 1 of its 18 sequences, such as v8"),
    ):
        later = data_of(tmp_path / "data", written(table, [header, *changed]), columns=columns)
        later.go_on_with(tmp_path)
        with pytest.raises(ValueError, match=message):
            later.setup()


def test_weights_are_delivered_in_training_whatever_the_number_of_processes(folder: Path, tmp_path: Path) -> None:
    given = [1.0, 2.0, 0.0, 4.0, 0.5, 3.0]
    weight = dict(zip(LENGTHS, given, strict=True))
    table = written(tmp_path / "t.csv", [("path", "w"), *weight.items()])
    data = data_of(folder, table, columns={"weight": "w"})
    assert data.weighted
    expected = torch.tensor([weight[name] for name in names(data, "train")]) / (sum(given) / 6)
    for world_size in (1, 2):
        for rank in range(world_size):
            options = {"rank": rank, "world_size": world_size, "weights": data.weights()}
            images, members = data._divided().split("train")
            (batch,) = data._loader(images, members, 6 // world_size, **options)
            assert batch.weights is not None
            assert torch.equal(batch.weights, expected[batch.indices])
    assert next(iter(data.loader("train"))).weights is None
    assert next(iter(data.loader("train", for_training=True))).weights is not None


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        (
            "path\njump/take 1\njump\nx\nown.csv\n",
            {},
            r"names 3 sequences of 4 that are not in .* \(row 3: jump, row 4:",
        ),
        (
            "path\njump/take 1\njump/take 1/f0.png\n",
            {},
            r"names 1 sequence of 2 that is not in .* \(row 3: jump/take 1/f",
        ),
        ("path,label\njump/take 1,\n", {}, "has no label in row 2"),
        (
            "path,label\njump/take 1,a\n./jump//take 1,b\n",
            {},
            "has the path jump/take 1 in row 2 and in row 3; what tells them apart",
        ),
        ("path,w\njump/take 1,nan\n", {"weight": "w"}, "has the weight 'nan' in the column 'w' in row 2"),
        ("path,s\njump/take 1,\n", {"start": "s"}, "has no start in row 2"),
        ("path,s\njump/take 1,nan\n", {"start": "s"}, "has 'nan' in the column 's' in row 2, expected the number of a"),
        ("path,s\njump/take 1,1.5\n", {"start": "s"}, "has '1.5' in the column 's' in row 2"),
        ("path,s\njump/take 1,-1\n", {"start": "s"}, "has '-1' in the column 's' in row 2"),
        ("path,s\njump/take 1,9\n", {"start": "s"}, "has the part 9 to 9 of jump/take 1 in row 2, expected a start"),
        (
            "path,e\njump/take 1,9\njump/take 2,6\n",
            {"end": "e"},
            "part 0 to 6 of jump/take 2 in row 3, which has 5 fra",
        ),
        ("path,e\njump/take 1,4\njump/take 1,04\n", {"end": "e"}, "frames 0 to 4 of jump/take 1 in row 2 and in row 3"),
        (
            "path,s\njump/take 1,4\n",
            {"strat": "s"},
            "'strat', expected path, label, split, group, weight, start, end, second; d",
        ),
        ("path,s\njump/take 1,4\n", {"start": "t"}, "has no column 't'; its columns are 'path', 's'"),
        (
            "path,split,e\njump/take 2,test,2\njump/take 1,train,4\njump/take 1,test,5\n",
            {"end": "e"},
            "parts of jump/take 1 in two splits, train in row 3 and test in row 4",
        ),
        (
            "path,split,group\njump/take 2,test,p\njump/take 1,train,p\n",
            {},
            "the group 'p' in two splits, test and train",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_row(
    folder: Path, tmp_path: Path, text: str, columns: dict[str, str], message: str
) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        SequenceTableSource(tmp_path / "t.csv", folder, columns=columns)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_path": "x"}, "data.val_path does not go with data.table: say in a column `split` which sequences"),
        ({"table": None, "columns": {"start": "s"}}, "data.columns are those of data.table, but there is none"),
        ({"val_fraction": 0.3}, "1 group, too few: data.val_fraction = 0.3 and the training images need a group each"),
        ({"labels": "folder"}, r"data.labels: folder takes the class .* 2 images lie directly in"),
        ({"table": "nothing.csv"}, "the table 'nothing.csv' does not exist"),
    ],
)
def test_what_does_not_go_with_a_table_is_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    fill(tmp_path, {"v1": 2, "v2": 2})
    table = written(tmp_path / "t.csv", [("path", "group"), ("v1", "p"), ("v2", "p")])
    arguments = {"path": f"{tmp_path}", "table": f"{table}", "val_fraction": 0.0, **options}
    with pytest.raises(ValueError, match=message) as error:
        FrameData(**arguments).setup()  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(error.value)


def test_a_tensor_that_cannot_be_read_counts_as_bad_whatever_its_part(folder: Path, tmp_path: Path) -> None:
    fill(tmp_path, {"v1": 2, "v2": 6})
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    table = written(tmp_path / "t.csv", [("path", "e"), ("bad.npy", 4), ("v1", 2), ("v2", 5)])
    data = data_of(tmp_path, table, columns={"end": "e"}, max_bad=0.5)
    assert list(levels(data)) == ["v1[0:2]", "v2[0:5]"]
    assert [bad.path for bad in data.bad_files] == ["bad.npy[0]"]


def test_sizes_are_those_of_the_files(folder: Path, tmp_path: Path) -> None:
    table = written(tmp_path / "t.csv", [("path",), ("walk/take 01",), ("walk/take 1",)])
    source, every = SequenceTableSource(table, folder), SequenceSource(folder)
    sizes = {every.name(place): size for place, size in enumerate(every.sizes().tolist())}
    assert source.sizes().tolist() == [sizes[source.name(place)] for place in range(2)]
