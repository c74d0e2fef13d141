"""Index of shards: made once, and found again."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from filelock import FileLock

from ssl_toolkit.data.console import say, show_progress
from ssl_toolkit.data.shards.index_file import Index, read_index, write_index
from ssl_toolkit.data.shards.remote import Found, plain
from ssl_toolkit.data.shards.shard import ShardContents, read_shard
from ssl_toolkit.data.shards.tar import TarError

_SAVE_SECONDS = 60.0


def open_index(
    addresses: Sequence[str],
    found: Sequence[Found],
    folder: Path,
    open_file: Callable[[int], IO[bytes]],
    num_threads: int = 4,
    progress: bool = True,
) -> Index:
    """The index of these shards. Shards that have changed since it was made are read again, and new ones.

    Args:
        addresses: Of the shards.
        found: Their states.
        folder: Where indices are kept.
        open_file: Opens the file of a shard on this machine.
        num_threads: How many shards are read at once.
        progress: Whether to say what is going on.

    Raises:
        ValueError: A shard cannot be read or is no whole tar archive, there are no images, or the folder is not
            writable.
    """
    shards = [(plain(address), state) for address, state in zip(addresses, found, strict=True)]
    path = index_path(folder, [name for name, _ in shards])
    try:
        index = read_index(path)
        if index is None or _shards(index) != shards:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                index = read_index(path)  # another process may have made it in between
                if index is None or _shards(index) != shards:
                    index = _make(path, shards, index, open_file, num_threads, progress)
    except OSError as error:
        raise ValueError(
            f"cannot write the index of the shards to '{folder}': {error.strerror or error}; set data.index to a "
            "folder that can be written"
        ) from error
    _check(index, progress)
    return index


def index_path(folder: Path, names: Sequence[str]) -> Path:
    """Where the index of shards of these names is kept."""
    key = "\n".join(names).encode("utf-8", "surrogateescape")
    return folder / f"{hashlib.blake2b(key, digest_size=16).hexdigest()}.shards"


def _shards(index: Index) -> list[tuple[str, Found]]:
    return [(entry.name, entry.found) for entry in index.entries]


def _make(
    path: Path,
    shards: list[tuple[str, Found]],
    old: Index | None,
    open_file: Callable[[int], IO[bytes]],
    num_threads: int,
    progress: bool,
) -> Index:
    kept = {shard: number for number, shard in enumerate(_shards(old))} if old else {}
    contents: dict[int, ShardContents] = {
        number: old.contents(kept[shard]) for number, shard in enumerate(shards) if old and shard in kept
    }
    missing = [number for number in range(len(shards)) if number not in contents]
    if contents and progress:
        say(f"{len(missing):,} of {len(shards):,} shards are new or have changed; reading them")

    def save() -> None:
        numbers = sorted(contents)
        write_index(path, [shards[number] for number in numbers], [contents[number] for number in numbers])

    saved = time.monotonic()
    seconds = 0.0
    with ThreadPoolExecutor(num_threads, thread_name_prefix="index") as pool:
        waiting = {number: pool.submit(_read, open_file, number, shards[number]) for number in missing}
        try:
            for number in show_progress(missing, len(missing), "reading what is in the shards", progress):
                contents[number] = waiting.pop(number).result()
                # a run that is stopped now goes on from here; saving must not take most of the time
                if time.monotonic() - saved > max(_SAVE_SECONDS, 20 * seconds):
                    start = time.monotonic()
                    save()
                    saved = time.monotonic()
                    seconds = saved - start
        except BaseException:
            for future in waiting.values():
                future.cancel()
            with contextlib.suppress(OSError, ValueError):
                save()
            raise
    save()
    index = read_index(path)
    assert index is not None
    return index


def _read(open_file: Callable[[int], IO[bytes]], number: int, shard: tuple[str, Found]) -> ShardContents:
    name, found = shard
    try:
        with open_file(number) as file:
            return read_shard(file, found.size)
    except TarError as error:
        raise ValueError(
            f"the shard '{name}' cannot be used: {error}; make or copy it again, or leave it out of data.path"
        ) from None
    except OSError as error:
        raise ValueError(f"cannot read the shard '{name}': {error.strerror or error}") from None


def _check(index: Index, progress: bool) -> None:
    """Says what was left out, and that there are images at all."""
    others = index.left_out()
    if not index.starts[-1]:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in others.most_common(5)) or "no files at all"
        raise ValueError(
            f"the {len(index.entries)} shards from '{index.entries[0].name}' on hold no image that is named like "
            f"KEY.jpg, only {kinds}"
        )
    unlabelled = [entry for entry in index.entries if entry.unlabelled]
    if unlabelled and progress:
        number = sum(entry.unlabelled for entry in unlabelled)
        say(
            f"{number:,} .cls files hold no class (the first ones in '{unlabelled[0].name}'): these images get no label"
        )
