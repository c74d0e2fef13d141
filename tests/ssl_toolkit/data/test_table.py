"""Images named by a table: what is read, what is refused with its row, and splits that keep groups together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ssl_toolkit.data import ImageData, Split
from ssl_toolkit.data.group_splits import joined, split_by_group
from ssl_toolkit.data.split_file import read_split_file
from ssl_toolkit.data.table import read_table
from ssl_toolkit.data.table_source import TableSource

NAMES = [f"{letter}/{number}.png" for letter in "ab" for number in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 different images in two folders."""
    path = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name in NAMES:
        (path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path / name)
    return path


def written(file: Path, rows: Iterable[Sequence[object]], separator: str = ",") -> Path:
    file.write_text("".join(separator.join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    return file


def data_of(table: Path, folder: Path, **options: object) -> ImageData:
    data = ImageData(f"{folder}", table=f"{table}", image_size=8, batch_size=2, cache="memory", **options)  # pyright: ignore[reportArgumentType]
    data.setup()
    return data


def names(data: ImageData, split: Split) -> set[str]:
    return {name for name, _ in data.files(split)}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_texts_are_read_whatever_separates_them(tmp_path: Path, separator: str) -> None:
    file = tmp_path / "table.csv"
    quoted = f'"a{separator}b.png"'
    file.write_bytes(
        f"\ufeffpath{separator} label {separator}note\r\n{quoted}{separator}dog{separator}\r\n\r\n"
        f"./c//d.png{separator} cat{separator}x\r\n".encode()
    )
    table = read_table(file)
    assert table.values == {"path": [f"a{separator}b.png", "c/d.png"], "label": ["dog", "cat"]}
    assert table.rows.tolist() == [2, 4]
    assert table.names == {"path": "path", "label": "label"}


def test_parquet_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "table.parquet"
    pq.write_table(pa.table({"image": ["x.png", "y.png"], "stage": [10, 2], "other": [None, 1.5]}), file)
    table = read_table(file, {"path": "image", "label": "stage"})
    assert table.values == {"path": ["x.png", "y.png"], "label": ["10", "2"]}
    assert table.rows.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,x\n,y\n", "has no path in row 3"),
        ("path,label\na.png,\nb.png,x\nc.png,\nd.png, \ne.png,\n", r"has no label in 4 rows \(2, 4, 5, ...\)"),
        ("path,label\na.png,x\nb.png,x\n./a.png,y\n", "has the path a.png in row 2 and in row 4"),
        ("path,label\na.png,x,7\n", "has 3 cells in row 2, but 2 columns"),
        ("path,path\na.png,x\n", "has two columns 'path'"),
        ("file,label\na.png,x\n", r"no column 'path'; its columns are 'file', 'label'.*--data.columns.path COLUMN"),
        ("path,label\n", "has no rows"),
        ("", "no column 'path'"),
        ('path,label\n"a.png,x\n', "cannot be read at line 2"),
        ("path,label\na.png,caf\xe9\n", "is not UTF-8"),
    ],
)
def test_what_is_wrong_is_named_with_its_row(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "table.csv"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as error:
        read_table(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tabel.csv", "does not exist; did you mean 'table.csv'"),
        (".", "is a folder"),
        ("table.xlsx", "ends in '.xlsx'"),
        ("table.parquet", "is no Parquet file"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, name: str, message: str) -> None:
    for each in ("table.csv", "table.xlsx", "table.parquet"):
        (tmp_path / each).write_text("path\n")
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / name)


def test_names_of_columns_are_checked(tmp_path: Path) -> None:
    file = written(tmp_path / "table.csv", [("path", "kind"), ("a.png", "x")])
    with pytest.raises(ValueError, match=r"no column 'kinds'.*did you mean 'kind'"):
        read_table(file, {"label": "kinds"})
    with pytest.raises(ValueError, match=r"data.columns has 'labels'.*did you mean 'label'"):
        read_table(file, {"labels": "kind"})
    with pytest.raises(ValueError, match="'kind' for both label and group"):
        read_table(file, {"label": "kind", "group": "kind"})


def test_the_images_of_the_table_have_its_labels_in_any_order_of_rows(folder: Path, tmp_path: Path) -> None:
    chosen = NAMES[3:17]
    rows = [(name, 10 * (place % 3)) for place, name in enumerate(chosen)]
    sources = [
        TableSource(written(tmp_path / f"{number}.csv", [("path", "label"), *order]), folder)
        for number, order in enumerate((rows, rows[::-1]))
    ]
    for source in sources:
        assert [source.name(place) for place in range(len(source))] == sorted(chosen)
        found = {source.name(place): source.class_names[source.label(place)] for place in range(len(source))}
        assert found == {name: str(label) for name, label in rows}
        assert source.class_names == ["0", "10", "20"]
        for place in range(len(source)):
            assert (source.read(place) == np.asarray(Image.open(folder / source.name(place)))).all()
    assert sources[0].fingerprint() == sources[1].fingerprint()


def test_whole_numbers_are_classes_by_their_value(folder: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "t.csv", [("path", "label"), *zip(NAMES, [10, 9, 2] * 8, strict=True)])
    assert TableSource(file, folder).class_names == ["2", "9", "10"]


def test_paths_begin_in_the_folder_of_the_table_if_no_other_is_given(folder: Path) -> None:
    source = TableSource(written(folder / "own.csv", [("path",), ("a/0.png",), (folder / "b/1.png",)]))
    assert len(source) == 2
    assert source.read(1).shape == (8, 8, 3)


def test_files_that_are_not_there_are_named(folder: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "t.csv", [("path",), ("a/0.png",), ("a/99.png",), ("b",)])
    with pytest.raises(ValueError, match=r"names 2 files of 3 that are not in .* \(row 3: a/99.png, row 4: b\)"):
        TableSource(file, folder)


def test_given_splits_are_kept(folder: Path, tmp_path: Path) -> None:
    splits = ["Training", "test", "valid", "train"] * 6
    file = written(tmp_path / "t.csv", [("path", "split"), *zip(NAMES, splits, strict=True)])
    data = data_of(file, folder, val_fraction=0.5, test_fraction=0.4)
    for split, aliases in (("train", {"Training", "train"}), ("val", {"valid"}), ("test", {"test"})):
        assert names(data, split) == {name for name, of in zip(NAMES, splits, strict=True) if of in aliases}
    file = written(tmp_path / "u.csv", [("path", "split"), ("a/0.png", "trian")])
    with pytest.raises(ValueError, match=r"split 'trian' in row 2.*did you mean 'train'"):
        TableSource(file, folder)


def test_what_is_not_given_is_drawn_from_training(folder: Path, tmp_path: Path) -> None:
    splits = ["test", "train", "train"] * 8
    file = written(tmp_path / "t.csv", [("path", "split"), *zip(NAMES, splits, strict=True)])
    data = data_of(file, folder, val_fraction=0.25, test_fraction=0.2)
    assert names(data, "test") == set(NAMES[::3])
    assert (data.num_images("val"), data.num_images("train")) == (4, 12)


def test_groups_stay_together_beside_given_splits_and_copies(folder: Path, tmp_path: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "b/11.png").read_bytes())
    every = [*NAMES, "copy.png"]
    groups = [f"g{place // 3}" for place in range(24)] + ["g0"]  # the copy joins g0 and g7
    file = written(tmp_path / "t.csv", [("path", "group"), *zip(every, groups, strict=True)])
    parts: tuple[Split, ...] = ("train", "val", "test")
    for seed in range(8):
        data = data_of(file, folder, val_fraction=0.25, test_fraction=0.25, split_seed=seed)
        place = {name: split for split in parts for name in names(data, split)}
        assert place.keys() == set(every)
        for first, second in zip(every, groups, strict=True):
            assert place[first] == place[every[groups.index(second)]]
        assert place["copy.png"] == place["b/11.png"] == place["a/0.png"]
        held = {
            split: {group for name, group in zip(every, groups, strict=True) if place[name] == split} for split in parts
        }
        said = ", ".join(f"{len(held[split])} {split}" for split in parts)
        assert data.summary().endswith(
            f"; {said} groups, where intervals take each of the images for independent of the others"
        )
        assert data.num_images("val") > 0
        assert data.num_images("test") > 0


def test_a_group_in_two_given_splits_is_refused(folder: Path, tmp_path: Path) -> None:
    rows = [
        ("path", "split", "group"),
        ("a/0.png", "train", "p1"),
        ("a/1.png", "test", "p2"),
        ("a/2.png", "test", "p1"),
    ]
    with pytest.raises(ValueError, match="the group 'p1' in two splits, test and train"):
        TableSource(written(tmp_path / "t.csv", rows), folder)


def test_splits_of_another_run_and_of_the_table_exclude_each_other(folder: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "t.csv", [("path", "split"), *((name, "train") for name in NAMES)])
    data = data_of(file, folder, val_fraction=0.2)
    data.write_splits(tmp_path)
    with pytest.raises(ValueError, match=r"come with their splits.*data.splits"):
        data_of(file, folder, splits=str(tmp_path))


def test_a_new_image_of_a_known_group_follows_it(folder: Path, tmp_path: Path) -> None:
    groups = [f"g{place // 4}" for place in range(24)]
    rows = list(zip(NAMES, groups, strict=True))
    first = data_of(written(tmp_path / "t.csv", [("path", "group"), *rows[::2]]), folder, val_fraction=0.3)
    first.write_splits(tmp_path)
    second = data_of(written(tmp_path / "t.csv", [("path", "group"), *rows]), folder, splits=str(tmp_path))
    group_of = dict(rows)
    for split in ("train", "val"):
        assert {group_of[name] for name in names(first, split)} == {group_of[name] for name in names(second, split)}
    assert second.num_images("train") + second.num_images("val") == 24


def test_of_too_many_images_to_name_the_classes_are_checked_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_toolkit.data.split_file.MOST_NAMED", 10)
    rows = list(zip(NAMES, "xy" * 12, strict=True))
    table = written(tmp_path / "t.csv", [("path", "label"), *rows])
    data_of(table, folder, val_fraction=0.25).write_splits(tmp_path)
    for label, changes in (("x", False), ("y", True)):
        written(table, [("path", "label"), ("a/0.png", label), *rows[1:]])
        again = ImageData(f"{folder}", table=f"{table}", image_size=8, cache="memory", val_fraction=0.25)
        again.go_on_with(tmp_path)
        if changes:
            with pytest.raises(ValueError, match="names, sizes or classes of the 24 images have changed"):
                again.setup()
        else:
            again.setup()


def test_a_run_is_not_resumed_with_other_classes(folder: Path, tmp_path: Path) -> None:
    rows = list(zip(NAMES, "xy" * 12, strict=True))
    data_of(written(tmp_path / "t.csv", [("path", "label"), *rows]), folder, val_fraction=0.25).write_splits(tmp_path)
    for changed, message in (
        ([("a/0.png", "y"), *rows[1:]], r"class changed since the run was begun: 1 of its 24 images, such as a/0.png"),
        ([(name, {"x": "z", "y": "x"}[label]) for name, label in rows], "some of which have other names now"),
    ):
        again = ImageData(
            f"{folder}", table=f"{written(tmp_path / 't.csv', [('path', 'label'), *changed])}", image_size=8
        )
        again.go_on_with(tmp_path)
        with pytest.raises(ValueError, match=message):
            again.setup()


def test_a_split_file_of_an_earlier_version_has_no_labels(folder: Path, tmp_path: Path) -> None:
    data_of(written(tmp_path / "t.csv", [("path",), *((name,) for name in NAMES)]), folder).write_splits(tmp_path)
    file = tmp_path / "splits.parquet"
    table = pq.read_table(file)
    assert (np.array(table["label"]) == -1).all()
    pq.write_table(table.drop_columns("label"), file)
    assert read_split_file(tmp_path)["train"].labels is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "procedural"}, "data.table names files of a folder or of shards, but data.source is procedural"),
        ({"val_path": "elsewhere"}, "data.val_path does not go with data.table"),
        ({"table": None, "columns": {"label": "x"}}, "data.columns are those of data.table, but there is none"),
    ],
)
def test_what_does_not_go_with_a_table_is_refused(folder: Path, options: dict[str, object], message: str) -> None:
    file = written(folder / "own.csv", [("path",), ("a/0.png",)])
    arguments = {"path": f"{folder}", "table": f"{file}", **options}
    with pytest.raises(ValueError, match=message):
        ImageData(**arguments).setup()  # pyright: ignore[reportArgumentType]


def test_joined_is_what_a_search_through_the_graph_finds() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        num = int(random.integers(1, 30))
        first, second = random.integers(0, 25, num), random.integers(0, 20, num)
        expected = []
        for start in range(num):
            reached, waiting = {start}, [start]
            while waiting:
                here = waiting.pop()
                for other in range(num):
                    if other not in reached and (first[other] == first[here] or second[other] == second[here]):
                        reached.add(other)
                        waiting.append(other)
            expected.append(min(reached))
        assert joined(first, second).tolist() == expected


def test_groups_are_divided_near_the_fractions_and_the_classes_alike() -> None:
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(400), random.integers(1, 12, 400))
    labels = (groups % 10 < 2).astype(np.int64)  # a fifth of the groups
    for seed in range(5):
        parts = split_by_group(labels, groups, 0.1, 0.2, seed)
        assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(len(groups)))
        for name, share in (("test", 0.2), ("val", 0.1)):
            assert len(parts[name]) / len(groups) == pytest.approx(share, abs=0.005)
            assert labels[parts[name]].mean() == pytest.approx(labels.mean(), abs=0.06)
        found = [set(groups[places]) for places in parts.values()]
        assert sum(map(len, found)) == 400
        # another validation fraction moves nothing into the test split or out of it
        assert np.array_equal(split_by_group(labels, groups, 0.3, 0.2, seed)["test"], parts["test"])


def test_too_few_groups_are_refused() -> None:
    labels = np.zeros(10, dtype=np.int64)
    with pytest.raises(ValueError, match=r"2 groups, too few: data.test_fraction = 0.2 and data.val_fraction = 0.1"):
        split_by_group(labels, np.arange(10) % 2, 0.1, 0.2, 0)
    parts = split_by_group(labels, np.arange(10) % 3, 0.1, 0.2, 0)
    assert all(len(places) for places in parts.values())


def test_the_group_of_each_image_is_told(folder: Path, tmp_path: Path) -> None:
    group = {name: f"p{number // 4}" for number, name in enumerate(NAMES)}
    rows = [("path", "group"), *((name, group[name]) for name in reversed(NAMES))]
    data = data_of(written(tmp_path / "table.csv", rows), folder, val_fraction=0.3)
    found: dict[int, set[str]] = {}
    for split in ("train", "val"):
        indices = torch.from_numpy(data.indices(split))
        numbers = data.groups_of(split, indices)
        assert numbers is not None
        for index, number in zip(indices.tolist(), numbers.tolist(), strict=True):
            found.setdefault(number, set()).add(group[data.name(split, index)])
    assert sorted(found.values(), key=min) == [{f"p{number}"} for number in range(6)]
    plain = data_of(written(tmp_path / "plain.csv", [row[:1] for row in rows]), folder)
    assert plain.groups_of("train", torch.from_numpy(plain.indices("train"))) is None
