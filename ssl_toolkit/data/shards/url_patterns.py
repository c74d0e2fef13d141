"""URL patterns: expands what a user writes to a list of shards."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ssl_toolkit.data.shards import remote
from ssl_toolkit.data.shards.remote import plain
from ssl_toolkit.errors import nearest

_MOST_SHARDS = 1_000_000
_MOST_LIST_BYTES = 256 << 20
_BRACES = re.compile(r"\{([^{}]*)\}")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4", ".zip")


def find_shards(path: str) -> list[str]:
    """The addresses of shards, in order.

    Args:
        path: One shard, a folder of them, a pattern with ``*`` or with braces (``{000..146}``, ``{a,b}``), a text file
            with one of these on each line, or such an address of a server or an object store.

    Raises:
        ValueError: There are none, some of them are missing, or one is named twice.
    """
    addresses = _find(path.removeprefix("file://"), lists=True)
    for address in addresses:
        if plain(address).lower().endswith(_COMPRESSED):
            raise ValueError(
                f"the shard '{plain(address)}' is compressed, so that no image in it can be read by itself; uncompress "
                "it: images hardly get smaller"
            )
    name, times = Counter(addresses).most_common(1)[0]
    if times > 1:
        raise ValueError(f"the shard '{plain(name)}' is named {times} times in data.path; name each one once")
    return addresses


def short_names(addresses: list[str]) -> list[str]:
    """The addresses without the folder that all of them are in."""
    names = [plain(address) for address in addresses]
    common = os.path.commonprefix(names)  # noqa: RUF071 (cut at a slash)
    return [name[common.rfind("/") + 1 :] for name in names]


def _find(path: str, lists: bool) -> list[str]:
    if remote.is_remote(path):
        return [found for each in _braces(path) for found in _find_remote(each)]
    place = Path(path).expanduser()
    if place.is_dir():
        found = sorted(
            file
            for file in place.rglob("*.tar")
            if not any(part.startswith(".") for part in file.relative_to(place).parts)
        )
        if not found:
            raise ValueError(f"the folder '{path}' holds no shard; their names end in .tar")
        return [file.as_posix() for file in found]
    if place.is_file():
        tar_like = place.suffix == ".tar" or path.lower().endswith(_COMPRESSED)
        return [place.as_posix()] if tar_like or not lists else _find_listed(place)
    found, missing = [], []
    for each in _braces(place.as_posix()):
        # not Path.glob, which wants to know where a pattern begins
        matches = sorted(glob.glob(each, recursive=True)) if glob.has_magic(each) else [each]  # noqa: PTH207
        found += [match for match in matches if Path(match).is_file()]
        missing += [match for match in matches if not Path(match).exists()]
    if missing and (found or len(missing) > 1):
        raise ValueError(
            f"{len(missing)} of the {len(missing) + len(found)} shards of data.path are missing, such as "
            f"'{missing[0]}'; get them, or leave them out of data.path"
        )
    if not found:
        siblings = [child.name for child in place.parent.iterdir()] if place.parent.is_dir() else []
        raise ValueError(f"there is no shard '{path}'{nearest(place.name, siblings)}")
    return found


def _find_listed(place: Path) -> list[str]:
    """The shards in a text file: one on each line, relative to the file's folder."""
    content = place.read_bytes() if place.stat().st_size <= _MOST_LIST_BYTES else b"\0"
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        lines = ["\0"]
    if "\0" in "".join(lines[:1]):
        raise ValueError(f"'{place}' is neither a shard (its name would end in .tar) nor a text with one on each line")
    found = []
    for line in lines:
        entry = line.partition("#")[0].strip()
        if entry:
            here = entry if remote.is_remote(entry) else (place.parent / Path(entry).expanduser()).as_posix()
            found += _find(here, lists=False)
    if not found:
        raise ValueError(f"the list '{place}' names no shard; write one on each line")
    return found


def _find_remote(address: str) -> list[str]:
    is_pattern = any(letter in address for letter in "*[")
    if remote.is_http(address):
        if is_pattern or address.endswith("/"):
            raise ValueError(
                f"a web server cannot be asked which shards it has under '{plain(address)}'; write their numbers in "
                "braces, such as train-{000000..000146}.tar"
            )
        return [address]
    if not is_pattern and address.endswith(".tar"):
        return [address]
    found = remote.find(address if is_pattern else f"{address.rstrip('/')}/*.tar")
    if not found:
        raise ValueError(f"there is no shard under '{plain(address)}'; their names end in .tar")
    return found


def _braces(pattern: str) -> Iterator[str]:
    """What a shell would make of ``{000..146}`` and ``{a,b}``."""
    number = 1
    for match in _BRACES.finditer(pattern):
        number *= len(_choices(match[1], pattern))
        if number > _MOST_SHARDS:
            raise ValueError(f"data.path '{plain(pattern)}' stands for more than {_MOST_SHARDS:,} shards")
    return _expand(pattern)


def _expand(pattern: str) -> Iterator[str]:
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    for choice in _choices(match[1], pattern):
        for rest in _expand(pattern[match.end() :]):
            yield f"{pattern[: match.start()]}{choice}{rest}"


def _choices(content: str, pattern: str) -> list[str]:
    numbers = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", content)
    if numbers:
        first, last = numbers.groups()
        padded = (len(first) > 1 and first[0] == "0") or (len(last) > 1 and last[0] == "0")
        width = max(len(first), len(last)) if padded else 0
        if 0 <= int(last) - int(first) < _MOST_SHARDS:
            return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    elif "," in content:
        return content.split(",")
    raise ValueError(
        f"data.path '{plain(pattern)}' has {{{content}}} in it; expected two numbers, as in {{000000..000146}} (at "
        f"most {_MOST_SHARDS:,} of them), or names, as in {{a,b}}"
    )
