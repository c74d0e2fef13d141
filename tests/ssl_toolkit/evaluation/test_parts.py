"""Tables in parts: every image once, whoever is killed and whoever goes on, bit for bit as one process writes them."""

import json
import multiprocessing
import os
import random
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ssl_toolkit.data import ImageData
from ssl_toolkit.data.decode import BadImage
from ssl_toolkit.data.splits import SourceImages
from ssl_toolkit.distributed.ranks import launched
from ssl_toolkit.evaluation.embed import embed
from ssl_toolkit.evaluation.parts import PartFolder
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import save_backbone

SCHEMA = pa.schema([("name", pa.string()), ("square", pa.int64())])
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def source(num, bad=(), left_out=()):
    """A source of numbers, of which some cannot be decoded and some are in no split."""
    images: Any = SimpleNamespace(
        source=SimpleNamespace(name=str, sizes=lambda: np.arange(num), fingerprint=lambda: ""),
        labels=torch.full((num,), -1),
        store=SimpleNamespace(bad=SimpleNamespace(found={place: BadImage(str(place), "torn") for place in bad})),
    )
    splits = np.zeros(num, dtype=np.int8)
    splits[list(left_out)] = -1
    return SourceImages(images, splits)


def squares(known):
    def rows(source, places):
        good = np.array([place for place in places if place not in source.images.store.bad.found], dtype=np.int64)
        known.extend(good.tolist())
        return {"name": [str(place) for place in good], "square": good**2}, good

    return rows


def part_folder(out, sources, part_size=3, about=None, max_bad=0.5):
    data: Any = SimpleNamespace(batch_size=4, noun="images", max_bad=max_bad)
    return PartFolder(out, data, sources, SCHEMA, about or {"sha256": "a"}, part_size)


def write(folder, rows=None):
    said = []
    folder.write(rows or squares([]), "squares", Steps(said.append))
    return said[-1]


def table(out):
    return pyarrow.dataset.dataset(out).to_table()


def naive(sources):
    """The rows of one loop over all images."""
    return [
        {"name": str(place), "square": place**2}
        for images, splits in sources
        for place in range(len(splits))
        if splits[place] >= 0 and place not in images.store.bad.found
    ]


class KilledError(Exception):
    pass


@pytest.mark.parametrize("seed", range(8))
def test_any_order_of_kills_and_processes_gives_each_image_once(tmp_path, monkeypatch, seed):
    chance = random.Random(seed)
    sources = [source(10, bad=(0, 1, 2, 7), left_out=(5,)), source(8, left_out=(3, 4, 5))]
    written, left, there, said, write_table = [], 0, 0, "", pq.write_table

    def torn(found, file):
        nonlocal left
        left -= 1
        if left < 0:
            file.write(b"PAR1")
            raise KilledError
        write_table(found, file)

    monkeypatch.setattr(pq, "write_table", torn)
    for _ in range(200):
        world_size = chance.choice([1, 2, 3, 9])
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        for rank in chance.sample(range(world_size), chance.randint(1, world_size)):
            monkeypatch.setenv("RANK", str(rank))
            left = chance.choice([0, 1, 2, 9])
            try:
                said = write(part_folder(tmp_path / "table", sources), squares(written))
            except KilledError:
                continue
            there = len(list((tmp_path / "table").glob("part-*.parquet")))
            assert f"{there} of 7 parts" in said or there == 7
        if there == 7 and "rows" in said:
            break
    assert table(tmp_path / "table").to_pylist() == naive(sources)
    assert "7 parts, 10 rows" in said
    assert (tmp_path / "table" / "_bad_files.txt").read_text().split() == ["0", "torn", "1", "torn", "2", "torn",
                                                                           "7", "torn"]  # fmt: skip
    names = sorted(file.name for file in (tmp_path / "table").iterdir())
    assert names == ["_about.json", "_bad_files.txt", *(f"part-0000{number}.parquet" for number in range(7))]


def test_an_empty_first_part_has_all_columns(tmp_path):
    sources = [source(9, bad=(0, 1, 2))]
    write(part_folder(tmp_path / "table", sources))
    assert pq.read_table(tmp_path / "table" / "part-00000.parquet").schema.names == ["name", "square"]
    assert table(tmp_path / "table").schema.types == SCHEMA.types
    assert pq.read_table(tmp_path / "table").to_pylist() == naive(sources)


def test_processes_divide_the_parts_among_them(tmp_path, monkeypatch):
    for world_size in (1, 2, 3, 9):
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        mine = []
        for rank in range(world_size):
            monkeypatch.setenv("RANK", str(rank))
            mine.append([part.number for part in part_folder(tmp_path / str(world_size), [source(20)]).missing()])
        assert sorted(number for each in mine for number in each) == list(range(7))
        assert max(map(len, mine)) - min(map(len, mine)) <= 1


def test_what_differs_is_named(tmp_path):
    out = tmp_path / "table"
    write(part_folder(out, [source(9)]))
    about = json.loads((out / "_about.json").read_text())
    assert (about["num_images"], about["part_size"], about["num_parts"], about["sha256"]) == (9, 3, 3, "a")
    part_folder(out, [source(9)], about={"sha256": "a"})
    changes: list[tuple[str, list[SourceImages], dict[str, Any]]] = [
        ("weights of SHA-256 'a', now it is 'b'", [source(9)], {"about": {"sha256": "b"}}),
        ("--part_size 3, now it is 4", [source(9)], {"part_size": 4}),
        ("--precision None, now it is '32'", [source(9)], {"about": {"sha256": "a", "precision": "32"}}),
        ("images of digest ", [source(9, left_out=(8,))], {}),
        ("images of digest ", [source(10)], {}),
    ]
    for problem, sources, options in changes:
        with pytest.raises(ValueError, match=f"was begun with {problem}"):
            part_folder(out, sources, **options)
    other = {"sha256": "a", "run": "moved"}
    part_folder(out, [source(9)], about=other)


def test_another_folder_or_a_file_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").touch()
    with pytest.raises(ValueError, match=r"holds photo.jpg and no _about.json"):
        part_folder(tmp_path / "full", [source(9)])
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        part_folder(tmp_path / "full" / "photo.jpg", [source(9)])
    (tmp_path / "full" / "_about.json").write_text("{")
    with pytest.raises(ValueError, match=r"_about.json' is damaged"):
        part_folder(tmp_path / "full", [source(9)])


def test_a_damaged_part_is_refused_and_one_that_is_gone_written_again(tmp_path):
    out = tmp_path / "table"
    write(part_folder(out, [source(9)]))
    part = out / "part-00001.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:50])
    with pytest.raises(ValueError, match=r"part-00001.parquet' is damaged; remove it"):
        write(part_folder(out, [source(9)]))
    part.unlink()
    write(part_folder(out, [source(9)]))
    assert part.read_bytes() == whole
    shutil.copy(out / "part-00000.parquet", part)
    write(part_folder(tmp_path / "other", [source(9)], about={"sha256": "b"}))
    shutil.copy(tmp_path / "other" / part.name, part)
    with pytest.raises(ValueError, match=r"part-00001.parquet' is of another table"):
        write(part_folder(out, [source(9)]))


def test_too_many_bad_images_of_all_parts_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"2 of 9 images cannot be decoded, more than data.max_bad = 0.1 allows"):
        write(part_folder(tmp_path / "table", [source(9, bad=(1, 8))], max_bad=0.1))
    assert len((tmp_path / "table" / "_bad_files.txt").read_text().splitlines()) == 2


def test_a_lost_or_doubled_row_is_no_part(tmp_path):
    for lost in (lambda places: places[1:], lambda places: places[[0, 0, 1]]):
        folder = part_folder(tmp_path / "table", [source(9)])

        def rows(source, places, lost=lost):
            found = lost(places)
            return {"name": [str(place) for place in found], "square": found}, found

        with pytest.raises(RuntimeError, match="its rows are not those of its images"):
            write(folder, rows)
    assert not list((tmp_path / "table").glob("part*"))


def test_ranks_of_launchers(monkeypatch):
    assert launched() == (0, 1, 0)
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert launched() == (0, 1, 0), "a batch script is one process"
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert launched() == (3, 4, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK is 2, but WORLD_SIZE is 2"):
        launched()


# ---- of images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of two classes; of the first part none can be decoded."""
    folder = tmp_path_factory.mktemp("parts") / "images"
    generator = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(12):
            pixels = generator.integers(0, 256, (16 + number % 2, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number:02d}.png")
    for number in range(4):
        (folder / "cat" / f"{number:02d}.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    torch.manual_seed(0)
    save_backbone(path, Backbone("resnet18", stem="small", kwargs={"channels": [4, 8, 12, 16]}))
    return path


def embedded(folder, weights, out, **options):
    arguments = {"image_size": 16, "labels": "folder", "cache": "auto", "num_threads": 1, "max_bad": 0.3, **options}
    data = ImageData(path=str(folder), batch_size=3, **arguments)
    return embed(weights, data, out, part_size=4, device="cpu")


def rows_of(out):
    return table(out).replace_schema_metadata(None)


def files_of(out):
    return {file.name: file.read_bytes() for file in out.iterdir()}


def test_part_files_do_not_depend_on_the_cache(folder, weights, tmp_path):
    outs = [embedded(folder, weights, tmp_path / cache, cache=cache) for cache in ("none", "memory", "auto")]
    assert files_of(outs[0]) == files_of(outs[1]) == files_of(outs[2])
    found = table(outs[0])
    assert found["name"].to_pylist() == [f"cat/{n:02d}.png" for n in range(4, 12)] + [
        f"dog/{n:02d}.png" for n in range(12)
    ]
    assert found["label"].to_pylist() == [0] * 8 + [1] * 12
    assert pq.read_metadata(outs[0] / "part-00000.parquet").num_rows == 0
    assert len((outs[0] / "_bad_files.txt").read_text().splitlines()) == 4
    one = embed(
        weights,
        ImageData(path=str(folder), batch_size=3, image_size=16, labels="folder", max_bad=0.3, num_threads=1),
        tmp_path / "one.parquet",
        device="cpu",
    )
    single = pq.read_table(one)
    assert found.drop_columns(["features"]).equals(single.drop_columns(["features"]))
    np.testing.assert_allclose(found["features"].to_pylist(), single["features"].to_pylist(), atol=0.02, rtol=0.02)


def test_changed_weights_images_and_labels_are_refused(folder, weights, tmp_path):
    out = embedded(folder, weights, tmp_path / "table")
    torch.manual_seed(1)
    save_backbone(
        tmp_path / "other.safetensors", Backbone("resnet18", stem="small", kwargs={"channels": [4, 8, 12, 16]})
    )
    with pytest.raises(ValueError, match="was begun with weights of SHA-256"):
        embedded(folder, tmp_path / "other.safetensors", out)
    with pytest.raises(ValueError, match="was begun with images of digest"):
        embedded(folder, weights, out, val_fraction=0.3)
    shutil.copy(weights, tmp_path / "same.safetensors")
    embedded(folder, tmp_path / "same.safetensors", out)


def _embed_until_killed(folder, weights, out, rank, world_size, written):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
    write_table, count = pq.write_table, 0

    def counting(found, file):
        nonlocal count
        if count == written:
            file.write(b"PAR1 and half of it")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        write_table(found, file)

    pq.write_table = counting
    embedded(Path(folder), Path(weights), Path(out))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [(0, 0), (1, 2), (2, 99)])
def test_two_processes_that_are_killed_are_continued_by_one(folder, weights, tmp_path, kills):
    expected = embedded(folder, weights, tmp_path / "expected")
    out = tmp_path / "table"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm", "lightning"])
    jobs = [
        context.Process(target=_embed_until_killed, args=(str(folder), str(weights), str(out), rank, 2, written))
        for rank, written in enumerate(kills)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(100)
    assert [job.exitcode for job in jobs] == [0 if written > 3 else -signal.SIGKILL for written in kills]
    assert len(list(out.glob("part-*.parquet"))) == sum(min(written, 3) for written in kills)
    embedded(folder, weights, out)
    assert rows_of(out).equals(rows_of(expected))
    assert files_of(out) == files_of(expected)
