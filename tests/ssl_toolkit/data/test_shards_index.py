"""Shards on this machine: what counts as a sample, labels, the index and what becomes of it, broken shards."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ssl_toolkit.data import BadImage, FolderSource, ImageData
from ssl_toolkit.data.shards import ShardOptions, ShardSource
from ssl_toolkit.data.shards import index as index_module
from ssl_toolkit.data.shards.index_file import COLUMNS, MAGIC, read_index
from ssl_toolkit.data.shards.url_patterns import find_shards, short_names
from tar_shards import number_of, png, write_shards, write_tar

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "scaling.py"


def open_shards(path, **arguments) -> ShardSource:
    folder = Path(str(path).split("{")[0].split("*")[0]).parent / "cache"
    return ShardSource(str(path), **{"cache_dir": folder, "progress": False, **arguments})


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "shards")


@pytest.fixture
def reads(monkeypatch):
    """The shards whose headers are read."""
    found = []
    original = index_module.read_shard

    def read_shard(file, total):
        found.append(Path(file.name).name)
        return original(file, total)

    monkeypatch.setattr(index_module, "read_shard", read_shard)
    return found


def test_images_labels_and_names(shards):
    source = open_shards(shards)
    assert len(source) == 30
    assert source.class_names == ["0", "1", "2"]
    assert source.labels().tolist() == [source.label(index) for index in range(30)] == [i % 3 for i in range(30)]
    assert [number_of(source.read(index)) for index in range(30)] == list(range(30))
    assert source.name(0) == "train-000000.tar/000000.png"
    assert source.name(29) == "train-000005.tar/000029.png"
    assert source.groups() is None  # on this machine any order is as fast


def test_the_same_images_as_from_a_folder(shards, tmp_path):
    for file in sorted(shards.glob("*.tar")):
        with tarfile.open(file) as tar:
            tar.extractall(tmp_path / "folder", filter="data")
    folder, source = FolderSource(tmp_path / "folder", image_size=4), open_shards(shards, image_size=4)
    assert len(folder) == len(source)
    for index in range(len(folder)):
        assert np.array_equal(folder.read(index), source.read(index))
        assert source.name(index).endswith("/" + folder.name(index))


def test_names_with_several_dots_are_the_images_that_a_folder_has(tmp_path):
    names = [f"a/scan.2021.{number}.png" for number in range(5)] + [f"a/well_{number}.ome.tif" for number in range(5)]
    names += ["b/plain.png", "b/no_ending", "b/page.unknown", "b.c/dotted.folder.png"]
    files = [(name, png(number)) for number, name in enumerate(names)]
    for name, content in files:
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    labels = [("a/scan.2021.3.cls", b"1"), ("a/scan.cls", b"2"), ("b/plain.cls", b"3"), ("a/well_4.cls", b"4")]
    others = [("a/scan.heic", b"none"), ("b/plain.mask.png", png(99))]
    source = open_shards(write_tar(tmp_path / "one.tar", [*files, *labels, *others]))
    folder = FolderSource(tmp_path / "folder")
    found = {source.name(index).removeprefix("one.tar/"): source.read(index) for index in range(len(source))}
    assert sorted(found) == [folder.name(index) for index in range(len(folder))] == sorted(names)
    for index in range(len(folder)):
        assert np.array_equal(folder.read(index), found[folder.name(index)])
    expected = dict.fromkeys(names[:5], 2) | {names[3]: 1, names[9]: 4, "b/plain.png": 3}
    assert [source.label(number) for number in range(len(names))] == [expected.get(name, -1) for name in names]
    # what is no sample of its own is counted, and said
    assert source.left_out == {".heic": 1, ".png of a sample with another image": 1}
    data = ImageData(str(tmp_path / "one.tar"), source="shards", image_size=4, cache_dir=str(tmp_path / "cache"))
    assert "not read: 1 .heic, 1 .png of a sample with another image" in data.summary()


def naive_samples(file):
    """WebDataset's rule, one file after the other by Python's own reader: key -> {suffix: content}."""
    samples = {}
    with tarfile.open(file) as tar:
        for member in tar:
            folder, base = os.path.split(member.name)
            if member.isfile() and not base.startswith("."):
                stem, _, suffix = base.partition(".")
                samples.setdefault(f"{folder}/{stem}", {})[suffix.lower()] = tar.extractfile(member).read()
    return samples


def test_samples_are_grouped_as_webdataset_does(tmp_path):
    files = []
    for number in range(40):
        key = f"{'abc'[number % 3]}/{number:03d}"
        suffix = ("png", "PNG", "jpg")[number % 3]
        files += [(f"{key}.{suffix}", png(number)), (f"{key}.seg.png", png(999)), (f"{key}.json", b"{}")]
        if number % 4:
            files.append((f"{key}.cls", f" {number % 5}\n".encode()))
    files += [("a/text.txt", b"no image"), ("a/._000.png", png(998)), ("b/only.cls", b"1"), (".hidden.png", png(997))]
    random.Random(0).shuffle(files)
    file = write_tar(tmp_path / "mixed.tar", files)
    expected = {
        key: (parts[image], int(parts.get("cls", b"-1")))
        for key, parts in naive_samples(file).items()
        for image in ("png", "jpg")
        if image in parts
    }
    source = open_shards(file)
    assert len(source) == len(expected) == 40
    with file.open("rb") as opened:
        for index in range(len(source)):
            key = source.name(index).removeprefix("mixed.tar/").partition(".")[0]
            content, label = expected.pop(key)
            columns = source._index.columns
            opened.seek(int(columns["offsets"][index]))
            assert opened.read(int(columns["sizes"][index])) == content
            assert source.label(index) == label
    assert not expected


@pytest.mark.parametrize(
    ("texts", "names", "labels"),
    [
        (["2", "0", "2"], ["0", "1", "2"], [2, 0, 2]),
        (["007", "1\n", " 0 "], [str(number) for number in range(8)], [7, 1, 0]),
        (["dog", "cat", "dog"], ["cat", "dog"], [1, 0, 1]),
        (["1", "dog", "1"], ["1", "dog"], [0, 1, 0]),
        (["", "dog", "-1"], ["dog"], [-1, 0, -1]),
        (["a\nb", "x" * 1000, "\x00"], [], [-1, -1, -1]),
        ([None, None, "3"], ["0", "1", "2", "3"], [-1, -1, 3]),
    ],
)
def test_labels_in_cls_files(tmp_path, texts, names, labels):
    files = [(f"{number}.png", png(number)) for number in range(len(texts))]
    files += [(f"{number}.cls", text.encode()) for number, text in enumerate(texts) if text is not None]
    source = open_shards(write_tar(tmp_path / "one.tar", files))
    assert list(source.class_names) == names
    assert source.labels().tolist() == labels


def test_labels_by_folder_and_those_of_other_shards(tmp_path):
    train = write_tar(tmp_path / "train.tar", [(f"./{name}/1.png", png(1)) for name in ("dog", "ant", "cat")])
    val = write_tar(tmp_path / "val.tar", [(f"{name}/2.png", png(2)) for name in ("dog", "cat")])
    source = open_shards(train, labels="folder")
    assert source.class_names == ["ant", "cat", "dog"]
    assert source.labels().tolist() == [2, 0, 1]
    assert open_shards(val, labels="folder", class_names=source.class_names).labels().tolist() == [2, 1]
    with pytest.raises(ValueError, match=r"the class 'ant' in .* is none of the 2 classes .*; did you mean 'cat'"):
        open_shards(train, labels="folder", class_names=["cat", "dog"])
    loose = write_tar(tmp_path / "loose.tar", [("ant/1.png", png(1)), ("2.png", png(2))])
    with pytest.raises(ValueError, match=r"1 of the 2 images in .* lie in none \(such as '2.png'\)"):
        open_shards(loose, labels="folder")
    many = write_tar(tmp_path / "many.tar", [("1.png", png(1)), ("1.cls", b"123456789012")])
    with pytest.raises(ValueError, match="the class number 123456789012"):
        open_shards(many)


def test_the_index_is_made_once_and_only_for_what_changed(shards, reads):
    first = open_shards(shards)
    assert sorted(reads) == [f"train-00000{number}.tar" for number in range(6)]
    reads.clear()
    second = open_shards(shards)
    assert reads == []
    assert second.fingerprint() == first.fingerprint()

    write_tar(shards / "train-000002.tar", [("new.png", png(777)), ("new.cls", b"8")])
    third = open_shards(shards)
    assert reads == ["train-000002.tar"]
    assert third.fingerprint() != first.fingerprint()
    assert len(third) == 26
    expected = [*range(10), 777, *range(15, 30)]
    assert [number_of(third.read(index)) for index in range(26)] == expected
    assert third.labels().tolist() == [8 if number == 777 else number % 3 for number in expected]
    assert third.name(10) == "train-000002.tar/new.png"
    assert third.name(11) == "train-000003.tar/000015.png"


def test_a_damaged_index_is_made_again(shards, reads):
    labels = open_shards(shards).labels().tolist()
    (file,) = (shards.parent / "cache").glob("*.shards")
    content = file.read_bytes()
    generator = random.Random(0)
    damages = [content[:cut] for cut in (0, 7, 100, len(content) // 2, len(content) - 1)]
    for _ in range(20):
        changed = bytearray(content)
        changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        damages.append(bytes(changed))
    for damage in damages:
        reads.clear()
        file.write_bytes(damage)
        again = open_shards(shards)
        assert len(reads) == 6
        assert file.read_bytes() == content
        assert again.labels().tolist() == labels
    with file.open("r+b") as opened:
        opened.truncate(100)  # while it is in use
    with pytest.raises(ValueError, match="the index of the shards was cut off by another program"):
        again.name(29)


WRONG = {
    "a class beyond the table": lambda about, columns: columns["classes"].__setitem__(0, 99),
    "a folder before the table": lambda about, columns: columns["folders"].__setitem__(0, -7),
    "an image beyond its shard": lambda about, columns: columns["offsets"].__setitem__(1, 1 << 40),
    "an image before its shard": lambda about, columns: columns["offsets"].__setitem__(1, -5),
    "a huge image": lambda about, columns: columns["sizes"].__setitem__(1, 4_000_000_000),
    "names that go back": lambda about, columns: columns["name_ends"].__setitem__(1, 0),
    "a count as text": lambda about, columns: about["shards"][0].__setitem__(3, "5"),
    "a negative count": lambda about, columns: about["shards"][0].__setitem__(3, -5),
    "a shard of other entries": lambda about, columns: about["shards"].__setitem__(0, [1, 2]),
    "other files as a list": lambda about, columns: about["shards"][0].__setitem__(6, []),
    "no shards": lambda about, columns: about.update(shards=None),
    "no table": lambda about, columns: about.pop("folders"),
    "a table of numbers": lambda about, columns: about.update(classes=[1, 2, 3], folders=[4] * 9),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_index_with_a_fitting_sum_and_wrong_content_is_made_again(shards, reads, wrong):
    labels = open_shards(shards).labels().tolist()
    (file,) = (shards.parent / "cache").glob("*.shards")
    content = file.read_bytes()
    index = read_index(file)
    length = int.from_bytes(content[-16:-8], "little")
    body, text = content[: -48 - length], content[-48 - length : -48]
    about, columns, offset = json.loads(text), {}, 0
    body = bytearray(body)
    for name, kind in COLUMNS.items():
        columns[name] = np.frombuffer(body, dtype=kind, count=len(index.columns[name]), offset=offset)
        offset += columns[name].nbytes + -columns[name].nbytes % 8
    WRONG[wrong](about, columns)
    changed = bytes(body) + json.dumps(about).encode()
    digest = hashlib.blake2b(changed, digest_size=32).digest()
    length = len(changed) - len(body)
    file.write_bytes(changed + digest + length.to_bytes(8, "little") + MAGIC)
    reads.clear()
    again = open_shards(shards)
    assert len(reads) == 6
    assert file.read_bytes() == content
    assert again.labels().tolist() == labels


def test_an_index_that_was_begun_is_gone_on_with(shards, reads):
    whole = (shards / "train-000004.tar").read_bytes()
    (shards / "train-000004.tar").write_bytes(whole[:3000])
    with pytest.raises(ValueError, match=r"the shard '.*train-000004.tar' cannot be used: .*; make or copy it again"):
        open_shards(shards, num_threads=1)
    reads.clear()
    (shards / "train-000004.tar").write_bytes(whole)
    assert len(open_shards(shards)) == 30
    assert set(reads) <= {"train-000004.tar", "train-000005.tar"}


def test_an_index_beside_the_shards_and_one_that_cannot_be_written(shards, tmp_path):
    open_shards(shards, options=ShardOptions(index=shards))
    assert len(list(shards.glob("*.shards"))) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write the index of the shards to .*; set data.index to a folder"):
        open_shards(shards, options=ShardOptions(index=tmp_path / "file" / "sub"))


def test_shards_that_change_while_they_are_read(shards):
    source = open_shards(shards)
    os.utime(shards / "train-000001.tar", ns=(1, 1))
    (shards / "train-000002.tar").unlink()
    with pytest.raises(ValueError, match=r"the shard '.*train-000001.tar' has changed since its index was made"):
        source.read(5)
    with pytest.raises(ValueError, match=r"cannot read the shard '.*train-000002.tar': No such file or directory"):
        source.read(10)
    assert number_of(source.read(0)) == 0


def test_bad_images_are_named_and_replaced(tmp_path, capsys):
    files = [(f"{number:06d}.png", png(number)) for number in range(20)]
    files[17] = ("000017.png", b"no image at all")
    files[4] = ("000004.png", b"")
    write_tar(tmp_path / "train-000000.tar", [("x.png", png(500))])
    write_tar(tmp_path / "train-000003.tar", files)
    arguments = {"path": str(tmp_path / "*.tar"), "source": "shards", "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(BadImage, match=r"^train-000003.tar/000017.png: not an image"):
        open_shards(tmp_path).read(18)
    seen = []
    for cache in ("none", "memory"):
        data = ImageData(**arguments, cache=cache, val_fraction=0, max_bad=0.5, batch_size=7, num_threads=1)
        batches = list(data.train_dataloader())
        seen.append({index for batch in batches for index in batch.indices.tolist()})
        assert sorted(error.path for error in data.bad_files) == [f"train-000003.tar/0000{n}.png" for n in ("04", "17")]
        assert "skipping the bad image train-000003.tar/000017.png: not an image" in capsys.readouterr().err
    assert not {5, 18} & set.union(*seen)


def test_a_name_that_would_write_to_the_terminal_is_made_harmless(tmp_path):
    file = write_tar(tmp_path / "one.tar", [("\x1b[2J\nfake: message.png", b"bad")])
    source = open_shards(file)
    assert source.name(0).isprintable()
    with pytest.raises(BadImage) as error:
        source.read(0)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([("1.txt", b"x"), ("2.json", b"")], r"hold no image that is named like KEY.jpg, only .txt 1, .json 1"),
        ([], "hold no image that is named like KEY.jpg, only no files at all"),
        ([("a/1.png", png(1)), ("a/1.png", png(2))], r"it holds 'a/1.png' twice"),
        ([("1.png", png(1)), ("1.cls", b"1"), ("1.cls", b"2")], r"it holds '1.cls' twice"),
    ],
)
def test_shards_without_images_and_with_a_name_twice(tmp_path, files, reason):
    with pytest.raises(ValueError, match=reason) as error:
        open_shards(write_tar(tmp_path / "one.tar", files))
    assert "\n" not in str(error.value)


def test_ways_to_name_shards(shards, tmp_path, monkeypatch):
    every = [f"{shards.as_posix()}/train-00000{number}.tar" for number in range(6)]
    assert find_shards(str(shards)) == every
    assert find_shards(f"{shards}/train-{{000000..000005}}.tar") == every
    assert find_shards(f"{shards}/train-00000{{0..5}}.tar") == every
    assert find_shards(f"{shards}/train-00000[1-3].tar") == every[1:4]
    assert find_shards(f"file://{shards}/train-00000{{4,2}}.tar") == [every[4], every[2]]
    assert find_shards(every[3]) == [every[3]]
    (shards / "some.txt").write_text("# two\ntrain-000003.tar\n\ntrain-00000{0..1}.tar  # and these\n")
    assert find_shards(str(shards / "some.txt")) == [every[3], every[0], every[1]]
    monkeypatch.chdir(shards.parent)
    assert find_shards("shards/*.tar") == [f"shards/train-00000{number}.tar" for number in range(6)]
    assert short_names(["a/b/1.tar", "a/c/1.tar"]) == ["b/1.tar", "c/1.tar"]
    assert short_names(["s3://bucket/1.tar?key=secret"]) == ["1.tar"]
    (tmp_path / "shards" / ".trash").mkdir()
    (tmp_path / "shards" / ".trash" / "old.tar").write_text("")
    assert find_shards(str(shards)) == every


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (
            "shards/train-{000000..000008}.tar",
            r"3 of the 9 shards of data.path are missing, such as '.*train-000006.tar'",
        ),
        ("shards/val-*.tar", "there is no shard"),
        ("shads", r"there is no shard 'shads'; did you mean 'shards'"),
        ("shards/train-{0..}.tar", r"has \{0\.\.\} in it; expected two numbers"),
        ("shards/train-{5..1}.tar", "expected two numbers"),
        ("shards/{0..99999}{0..99999}.tar", "stands for more than 1,000,000 shards"),
        ("shards/{0..99999999}.tar", "at most 1,000,000"),
        ("shards/train-00000{1,1}.tar", "is named 2 times in data.path"),
        ("empty", "the folder 'empty' holds no shard; their names end in .tar"),
        ("picture.png", "'picture.png' is neither a shard .* nor a text with one on each line"),
        ("nothing.txt", "the list 'nothing.txt' names no shard"),
        ("shards.tar.gz", "is compressed, so that no image in it can be read by itself; uncompress it"),
        ("http://localhost/*.tar", "a web server cannot be asked which shards it has"),
    ],
)
def test_paths_without_shards(shards, monkeypatch, path, reason):
    monkeypatch.chdir(shards.parent)
    Path("empty").mkdir()
    Path("picture.png").write_bytes(png(1))
    Path("nothing.txt").write_text("# none\n")
    Path("shards.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(ValueError, match=reason) as error:
        find_shards(path)
    assert "\n" not in str(error.value)


def test_options_of_other_sources_are_refused(shards):
    for arguments in ({"index": "x"}, {"shard_window": 3}):
        with pytest.raises(ValueError, match=r"are for data.source: shards, but the source is procedural"):
            ImageData(source="procedural", **arguments).setup()
    with pytest.raises(ValueError, match=r"data.path is missing: give the tar shards"):
        ImageData(source="shards").setup()
    with pytest.raises(ValueError, match=r"data.shard_cache must be above 0 GB"):
        ImageData(source="shards", shard_cache=0)


def test_splits_and_limits(shards, tmp_path):
    write_shards(tmp_path / "val", shards=2, images=3)
    arguments = {"source": "shards", "cache_dir": str(tmp_path / "cache"), "image_size": 8}
    data = ImageData(str(shards), val_path=str(tmp_path / "val"), test_fraction=0.2, **arguments)
    assert [data.num_images(split) for split in ("train", "val", "test")] == [24, 6, 6]
    assert np.bincount(data.labels("test")).tolist() == [2, 2, 2]
    assert data.num_classes == 3
    assert data.name("val", 3) == "train-000001.tar/000003.png"
    data = ImageData(str(shards), max_images=12, val_fraction=0.25, **arguments)
    assert [data.num_images(split) for split in ("train", "val")] == [9, 3]
    for batch in data.loader("train", batch_size=4):
        numbers = [number_of(pixels.permute(1, 2, 0).numpy()) for pixels in batch.images.pixels]
        names = [int(data.name("train", int(index))[-10:-4]) for index in batch.indices]
        assert numbers == names
        assert batch.labels.tolist() == [number % 3 for number in numbers]


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.guarantee("X1")
def test_an_index_of_ten_million_images_opens_soon_and_in_little_memory(reached):
    count = 10_000_000
    command = [sys.executable, str(BENCHMARK), "--worker", "--index", str(count)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=850)
    assert said.returncode == 0, said.stderr[-3000:]
    figures = json.loads(said.stdout.splitlines()[-1])
    assert figures["images"] == count
    assert figures["seconds"] < 10
    # what it takes, beside what the libraries do, which differs between processors
    assert figures["memory"] < 1e9
    assert figures["setup_memory"] < 1.2e9
    memory, later = figures["memory"] / 1e9, figures["setup_memory"] / 1e9
    reached(
        f"{count:,} images: opened in {figures['seconds']:.1f} s with {memory:.2f} GB; divided and an "
        f"epoch shuffled in {figures['setup_seconds']:.1f} s more, {later:.2f} GB"
    )


@pytest.mark.guarantee("X1")
def test_an_index_takes_few_bytes_an_image(tmp_path, monkeypatch, reached):
    """What 1 GB for ten million allows: 100 bytes an image, beside what the libraries take."""
    count = 200_000
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    importlib.import_module("scaling").make_index(tmp_path, count)
    tracemalloc.start()
    try:
        source = open_shards(tmp_path, cache_dir=tmp_path)
        _, opened = tracemalloc.get_traced_memory()
        assert len(source) == count
        assert source.name(count - 1) == "train-000199.tar/000199000999.jpg"
        data = ImageData(str(tmp_path), source="shards", cache="none", index=str(tmp_path), shard_window=16)
        loader = data.train_dataloader()
        assert len(loader._places(3)) == len(loader)
        _, divided = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    blocks = 8 << 20  # the sum of the file is computed block by block
    assert opened - blocks < 100 * count
    assert divided - blocks < 200 * count
    reached(f"{count:,} images: {opened / count:.0f} bytes each to open, {divided / count:.0f} to divide and shuffle")


def test_index_of_an_image_file_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("ssl_toolkit.data.shards.source.MOST_IMAGE_BYTES", 100)
    noise = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()
    source = open_shards(write_tar(tmp_path / "one.tar", [("1.png", noise), ("2.png", io.BytesIO(png(2)).getvalue())]))
    with pytest.raises(BadImage, match=r"one.tar/1.png: a file of more than"):
        source.read(0)
    assert number_of(source.read(1)) == 2
