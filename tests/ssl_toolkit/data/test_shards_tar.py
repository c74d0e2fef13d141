"""The tar reader, against Python's own, and against archives that are damaged or hostile."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import tarfile

import pytest

from ssl_toolkit.data.shards.shard import read_shard
from ssl_toolkit.data.shards.tar import TarError, members
from tar_shards import write_tar

NAMES = [
    "a.jpg",
    "folder/b.png",
    "./c.cls",
    "grün/ä ö.jpg",
    "d" * 96 + ".jpg",
    "long/" + "e" * 90 + "/" + "f" * 90 + ".jpg",
    "longer/" + "g" * 300 + ".jpg",
    "no-suffix",
    "\udcff.jpg",  # a byte that is not UTF-8
]


def archive(names=NAMES, **options) -> bytes:
    """An archive with files of various sizes, folders and links between them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = (0, 1, 511, 512, 513, 2000)[number % 6]
            member.mtime = 1_700_000_000.5 if options.get("format") == tarfile.PAX_FORMAT else 1_700_000_000
            tar.addfile(member, io.BytesIO(bytes([number]) * member.size))
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
                special = tarfile.TarInfo(f"special{number}-{kind.decode()}")
                special.type, special.linkname = (
                    kind,
                    "a" * (50 if options.get("format") == tarfile.USTAR_FORMAT else 50 * (number + 1)),
                )
                tar.addfile(special)
    return buffer.getvalue()


def ours(content: bytes) -> list[tuple[str, int, int, bool]]:
    return [tuple(member) for member in members(io.BytesIO(content), len(content))]


def pythons(content: bytes) -> list[tuple[str, int, int, bool]]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        return [(member.name, member.offset_data, member.size, member.isfile()) for member in tar]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_same_entries_as_pythons_own_reader(format):
    names = [name for name in NAMES if format != tarfile.USTAR_FORMAT or len(name) < 250]
    content = archive(names, format=format)
    assert ours(content) == pythons(content)
    assert len(ours(content)) == 6 * len(names)


@pytest.mark.skipif(not shutil.which("tar"), reason="no tar here")
@pytest.mark.parametrize("format", ["v7", "ustar", "gnu", "posix"])
def test_what_the_tar_command_makes(tmp_path, format):
    for name in ("b/2.jpg", "a/1.jpg", "a/1.cls", "a/" + "x" * 40 + ".jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 100)
    file = tmp_path / "shard.tar"
    made = subprocess.run(
        ["tar", "--sort=name", f"--format={format}", "-C", str(tmp_path), "-cf", str(file), "a", "b"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"this tar cannot: {made.stderr}")
    found = [member for member in ours(file.read_bytes()) if member[3]]
    assert found == [member for member in pythons(file.read_bytes()) if member[3]]
    assert [name for name, *_ in found] == ["a/1.cls", "a/1.jpg", "a/" + "x" * 40 + ".jpg", "b/2.jpg"]


def test_sizes_beyond_eight_gigabytes_are_understood():
    huge = tarfile.TarInfo("huge.jpg")
    huge.size = 10 << 30
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        content = huge.tobuf(format) + bytes(1024)
        with pytest.raises(TarError, match=r"'huge.jpg' claims 10,737,418,240 bytes, but the shard ends after 1,024"):
            ours(content)
    # a small size in base 256 is a size like any other
    header = bytearray(tarfile.TarInfo("small.jpg").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\x80" + (700).to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 256)
    content = bytes(header) + bytes(1024 + 1024)
    assert ours(content) == pythons(content) == [("small.jpg", 512, 700, True)]


def test_an_archive_that_is_cut_off_never_passes_for_whole(reached):
    content = archive()
    end = max(offset + -(-size // 512) * 512 for _, offset, size, _ in ours(content))
    cuts = [*range(0, end + 512, 100), end, end + 511]
    for cut in cuts:
        with pytest.raises(TarError, match=r"cut off|claims"):
            ours(content[:cut])
    # what tar fills up with is no loss
    assert ours(content[: end + 512]) == ours(content)


@pytest.mark.guarantee("D4")
def test_no_changed_byte_leaves_a_file_out_in_silence(reached):
    content = archive([f"{number}.jpg" for number in range(12)], format=tarfile.GNU_FORMAT)
    whole = ours(content)
    generator = random.Random(0)
    refused = unharmed = 0
    for _ in range(1000):
        changed = bytearray(content)
        place = generator.randrange(len(content))
        changed[place] ^= generator.randrange(1, 256)
        try:
            found = ours(bytes(changed))
        except TarError:
            refused += 1
            continue
        unharmed += 1
        assert found == whole, place
    assert refused > 100
    assert unharmed > 100
    reached(f"1,000 changed bytes: {refused} archives refused, {unharmed} read as before, 0 files left out")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is cut off: it ends at byte 0"),
        (b"GIF89a" + bytes(2000), "it is no tar archive"),
        (b"\x1f\x8b" + bytes(range(256)) * 8, "it is no tar archive"),
        (archive() + archive(), "it goes on after its end"),
        (archive() + bytes(2 << 20), "it goes on after its end"),
    ],
)
def test_what_is_no_archive(content, reason):
    with pytest.raises(TarError, match=reason):
        ours(content)


def test_names_and_records_that_claim_too_much():
    for kind in (b"L", b"x"):
        header = tarfile.TarInfo("name")
        header.type, header.size = kind, 1 << 30
        with pytest.raises(TarError, match="claims 1,073,741,824 bytes"):
            ours(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        header.size = 2 << 20
        with pytest.raises(TarError, match="claims a name of 2,097,152 bytes"):
            ours(header.tobuf(tarfile.GNU_FORMAT) + bytes(4 << 20))
    for records in (b"9999999999 path=a\n", b"0 path=a\n", b"path=a\n", b"12 path", b"10 path=a\nx"):
        header = tarfile.TarInfo("name")
        header.type, header.size = b"x", len(records)
        with pytest.raises(TarError, match="pax header is damaged"):
            ours(header.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0") + bytes(1024))


@pytest.mark.guarantee("D4")
def test_hostile_names_are_only_names(tmp_path, reached):
    names = ["../../escape.jpg", "/etc/escape.jpg", "a/../../escape2.jpg", "C:\\escape.jpg", "\x1b[2J\n.jpg"]
    file = write_tar(tmp_path / "inner" / "hostile.tar", [(name, b"content") for name in names])
    with tarfile.open(file, "a") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(f"special{number}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    before = sorted(tmp_path.rglob("*"))
    with file.open("rb") as opened:
        contents = read_shard(opened, file.stat().st_size)
    assert sorted(tmp_path.rglob("*")) == before
    assert len(contents.offsets) == len(names)  # no link and no device is an image
    assert contents.others == {"links (tar --dereference stores what they lead to)": 4}
    reached(f"{len(names) + 4} hostile members, {len(sorted(tmp_path.rglob('*'))) - len(before)} files written")


def test_a_file_is_looked_at_no_further_than_its_end():
    """The header after an empty file begins with a name, which may look like the beginning of an image."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("empty", "GIF89a.cls"):
            tar.addfile(tarfile.TarInfo(name))
    contents = read_shard(buffer, len(buffer.getvalue()))
    assert len(contents.offsets) == 0
    assert contents.others == {"without ending": 1}
