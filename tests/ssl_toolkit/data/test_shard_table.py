"""Images of shards named by a table: the same as those of a folder, and what is refused with its row."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_toolkit.data import ImageData, Split
from ssl_toolkit.data.shards import ShardSource
from ssl_toolkit.data.shards.table_source import ShardTableSource
from ssl_toolkit.data.table import read_table
from tar_shards import png, web_server, write_shards, write_tar

NAMES = [f"{letter}/{number:02d}.png" for letter in "ab" for number in range(12)]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 different images in two folders, and four shards of the same files beside them, in the same order."""
    path = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name in NAMES:
        (path / "images" / name).parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path / "images" / name)
    (path / "shards").mkdir()
    for shard in range(4):
        with tarfile.open(path / "shards" / f"s{shard}.tar", "w") as archive:
            for name in NAMES[6 * shard : 6 * shard + 6]:
                archive.add(path / "images" / name, name)
    return path


def written(file: Path, rows: Iterable[Sequence[object]]) -> Path:
    file.write_text("".join(",".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    return file


def data_of(path: Path | str, table: Path, tmp_path: Path, **options: object) -> ImageData:
    arguments = {"source": "shards", "image_size": 8, "batch_size": 2, "cache": "memory"} | options
    return ImageData(f"{path}", table=f"{table}", cache_dir=f"{tmp_path / 'cache'}", **arguments)  # pyright: ignore[reportArgumentType]


def names(data: ImageData, split: Split) -> list[str]:
    return [data.name(split, place) for place in data.indices(split).tolist()]


def source_of(shards: Path, table: Path, tmp_path: Path, labels: str = "none", **columns: str) -> ShardTableSource:
    source = ShardSource(f"{shards}", cache_dir=tmp_path / "cache", progress=False)
    return ShardTableSource(read_table(table, columns), source, labels, f"{shards}")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("columns", [("label", "group"), ("label", "split"), ("weight", "t"), ()])
def test_a_table_over_shards_says_what_it_says_over_the_folder(
    folder: Path, tmp_path: Path, columns: tuple[str, ...]
) -> None:
    random = np.random.default_rng(1)
    chosen = [name for name in NAMES if name not in ("a/03.png", "b/07.png")]
    cells = {
        "label": [f"c{place % 3}" for place in range(len(chosen))],
        "group": [f"p{place // 3}" for place in range(len(chosen))],
        "split": [("train", "train", "val", "test")[place % 4] for place in range(len(chosen))],
        "weight": random.integers(1, 5, len(chosen)),
        "t": random.normal(size=len(chosen)).round(3),
    }
    rows = list(zip(chosen, *(cells[column] for column in columns), strict=True))
    random.shuffle(rows)
    table = written(tmp_path / "t.csv", [("path", *columns), *rows])
    options: dict[str, object] = {"labels": "folder", "val_fraction": 0.2, "test_fraction": 0.2}
    options |= {"columns": {"weight": "weight"}} if "weight" in columns else {}
    options |= {"targets": ["t"]} if "t" in columns else {}
    of_folder = data_of(folder / "images", table, tmp_path, source="folder", **options)
    of_shards = data_of(folder / "shards", table, tmp_path, **options)
    assert of_folder.class_names == of_shards.class_names
    for split in SPLITS:
        assert [name.partition("/")[2] for name in names(of_shards, split)] == names(of_folder, split)
        assert torch.equal(of_shards.labels(split), of_folder.labels(split))
        assert torch.equal(of_shards.targets(split), of_folder.targets(split))
        for first, second in zip(of_folder.loader(split), of_shards.loader(split), strict=True):
            assert torch.equal(first.images.pixels, second.images.pixels)
    weights = [data.weights() for data in (of_folder, of_shards)]
    assert (weights[0] is None) == (weights[1] is None) == ("weight" not in columns)
    if weights[0] is not None and weights[1] is not None:
        assert torch.equal(weights[0], weights[1])
    groups = [data.groups_of("train", torch.from_numpy(data.indices("train"))) for data in (of_folder, of_shards)]
    assert str(groups[0]) == str(groups[1])


def test_the_order_of_rows_and_the_way_to_name_an_image_play_no_role(folder: Path, tmp_path: Path) -> None:
    every = ShardSource(f"{folder / 'shards'}", cache_dir=tmp_path / "cache", progress=False)
    ways = [
        [every.name(place) for place in range(24)],  # as `embed` writes them
        NAMES[::-1],
        [name.removesuffix(".png") for name in NAMES],
        [f"./{name}" for name in NAMES],
    ]
    for number, way in enumerate(ways):
        rows = [(path, path.rpartition("/")[2][:2]) for path in way]
        source = source_of(folder / "shards", written(tmp_path / f"{number}.csv", [("path", "label"), *rows]), tmp_path)
        assert [source.name(place) for place in range(24)] == ways[0]
        assert [source.class_names[source.label(place)] for place in range(24)] == [name[2:4] for name in NAMES]
        assert source.labels().tolist() == [source.label(place) for place in range(24)]
        assert "left out" not in source.summary()


def test_images_without_a_row_are_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    table = written(tmp_path / "t.csv", [("path",), ("b/01.png",), ("a/02.png",)])
    source = source_of(folder / "shards", table, tmp_path, "folder")
    assert [source.name(place) for place in range(len(source))] == ["s0.tar/a/02.png", "s2.tar/b/01.png"]
    assert source.class_names == ["a", "b"]
    assert source.summary() == f"{table}: 2 images; path from 'path'; left out, without a row: 22 images"
    one = source_of(folder / "shards", written(tmp_path / "t.csv", [("path",), ("b/01.png",)]), tmp_path, "folder")
    assert one.class_names == ["b"]


def test_the_classes_of_cls_files_stay_where_the_table_has_none(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", shards=2, images=5)
    table = written(tmp_path / "t.csv", [("path",), ("000004.png",), ("train-000001.tar/000008.png",), ("000000",)])
    source = source_of(shards, table, tmp_path)
    assert source.class_names == ["0", "1", "2"]
    assert source.labels().tolist() == [source.label(place) for place in range(3)] == [0, 4 % 3, 8 % 3]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["s0.tar/0.png", "5.png", "x", "s1.tar/7", "y"], r"names 4 images of 5 that are not in '.*' \(row 3: 5.png, "),
        (
            ["1", "0.png"],
            r"path 0.png in row 3, which is the name of 2 images in .* \(s0.tar/0.png, s1.tar/0.png\); wr",
        ),
        (["0"], r"path 0 in row 2, which is the name of 2 images"),
        (["scan"], r"path scan in row 2, which is the name of 2 images in .* \(s0.tar/scan.1.png, s0.tar/scan.2.png\)"),
        (["1.png", "s0.tar/1.png"], "has the image s0.tar/1.png in row 2 and in row 3"),
        (["1.png", "scan.1", "./1.png"], "has the path 1.png in row 2 and in row 4"),
    ],
)
def test_what_names_no_image_or_several_is_refused(tmp_path: Path, rows: list[str], message: str) -> None:
    scans = [("scan.1.png", png(4)), ("scan.2.png", png(5))]
    write_tar(tmp_path / "shards" / "s0.tar", [("0.png", png(0)), ("1.png", png(1)), *scans])
    write_tar(tmp_path / "shards" / "s1.tar", [("0.png", png(2)), ("d/3.seg.png", png(3)), ("d/3.cls", b"7")])
    assert len(source_of(tmp_path / "shards", written(tmp_path / "ok.csv", [("path",), ("d/3",)]), tmp_path)) == 1
    with pytest.raises(ValueError, match=message) as error:
        source_of(tmp_path / "shards", written(tmp_path / "t.csv", [("path",), *((row,) for row in rows)]), tmp_path)
    assert "\n" not in str(error.value)


def test_a_whole_name_goes_before_a_shorter_one(tmp_path: Path) -> None:
    write_tar(tmp_path / "shards" / "s0.tar", [("1.png", png(1)), ("1.png.jpg", png(2)), ("s1.tar/2.png", png(3))])
    write_tar(tmp_path / "shards" / "s1.tar", [("2.png", png(4))])
    table = written(tmp_path / "t.csv", [("path",), ("1.png",), ("s1.tar/2.png",)])
    source = source_of(tmp_path / "shards", table, tmp_path)
    assert [source.name(place) for place in range(2)] == ["s0.tar/1.png", "s1.tar/2.png"]


def test_names_that_are_escaped_in_tables_are_found(tmp_path: Path) -> None:
    files = [("a\x1b[1m.png", png(0)), ("b//c.png", png(1)), ("d/../e.png", png(2))]
    write_tar(tmp_path / "shards" / "s.tar", files)
    every = ShardSource(f"{tmp_path / 'shards'}", cache_dir=tmp_path / "cache", progress=False)
    table = written(tmp_path / "t.csv", [("path",), *((every.name(place),) for place in range(3))])
    assert len(source_of(tmp_path / "shards", table, tmp_path)) == 3


def test_limits_folds_known_splits_and_resuming(folder: Path, tmp_path: Path) -> None:
    rows = [(name, name[0], f"p{place // 2}") for place, name in enumerate(NAMES)]
    table = written(tmp_path / "t.csv", [("path", "label", "group"), *rows[::-1]])
    limited = data_of(folder / "shards", table, tmp_path, max_images=10, val_fraction=0.3)
    limited.setup()
    assert limited.num_images("train") + limited.num_images("val") == 10
    limited.write_splits(tmp_path)
    resumed = data_of(folder / "shards", table, tmp_path, max_images=10, val_fraction=0.3)
    resumed.go_on_with(tmp_path)
    known = data_of(folder / "shards", table, tmp_path, splits=f"{tmp_path}")
    for split in ("train", "val"):
        assert names(resumed, split) == names(limited, split)
        assert set(names(limited, split)) <= set(names(known, split))
    tested = [names(data_of(folder / "shards", table, tmp_path, fold=f"{fold}/3"), "test") for fold in (1, 2, 3)]
    assert len({name for each in tested for name in each}) == sum(map(len, tested)) == 24
    kept = names(limited, "train")[0]
    changed_rows = [(name, "c" if kept.endswith(name) else label, group) for name, label, group in rows]
    changed = data_of(folder / "shards", written(table, [("path", "label", "group"), *changed_rows]), tmp_path)
    changed.go_on_with(tmp_path)
    with pytest.raises(ValueError, match=r"the run was begun with 2 classes, now there are 3"):
        changed.setup()


def test_remote_shards_are_read_in_windows_and_only_those_of_the_table(tmp_path: Path) -> None:
    write_shards(tmp_path / "served", shards=6, images=5)
    chosen = [number for number in range(30) if number // 5 != 2]
    table = written(tmp_path / "t.csv", [("path",), *((f"{number:06d}.png",) for number in chosen[::-1])])
    with web_server(tmp_path / "served") as server:
        address = f"{server.address}/train-{{000000..000005}}.tar"
        data = data_of(address, table, tmp_path, cache="none", shard_window=2, val_fraction=0.0)
        data.setup()
        groups = data.sources()[0].images.source.groups()
        assert groups is not None
        assert groups.of.tolist() == [number // 5 for number in chosen]
        batches = data.loader("train", shuffle=True)
        order = [data.name("train", index) for batch in batches for index in batch.indices.tolist()]
    assert sorted(order) == [f"train-{number // 5:06d}.tar/{number:06d}.png" for number in chosen]
    # windows of two shards one after the other: the images of one are among the first ten, or the next
    windows = [{name.partition("/")[0] for name in part} for part in (order[:10], order[10:20], order[20:])]
    assert sum(map(len, windows)) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_path": "elsewhere"}, "data.val_path does not go with data.table"),
        ({"path": None}, "data.path is missing: give the tar shards whose images the table names"),
        ({"columns": {"label": "kind"}}, "has no column 'kind'; its columns are 'path', 'label'"),
        ({"targets": ["label"]}, "has 'c0' in the column 'label' of data.targets in row 2"),
        ({"targets": ["size"]}, "has no column 'size' of data.targets"),
        ({"columns": {"weight": "label"}}, "'label' for both label and weight"),
        ({"columns": {"start": "label"}}, "data.columns has 'start', expected path, label, split, group, weight"),
    ],
)
def test_what_does_not_go_with_shards_is_refused(
    folder: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    table = written(tmp_path / "t.csv", [("path", "label"), ("a/01.png", "c0")])
    arguments = {"path": f"{folder / 'shards'}", "table": f"{table}", "source": "shards", **options}
    with pytest.raises(ValueError, match=message) as error:
        ImageData(**arguments, cache_dir=f"{tmp_path}").setup()  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(error.value)
