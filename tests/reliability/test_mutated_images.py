"""A thousand damaged images in nine formats: no process dies, each is reported once, and epochs are complete."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from damaged_files import in_child, mutations, originals
from peak_memory import forget_peak_memory, peak_memory
from ssl_toolkit.data import ImageData
from ssl_toolkit.data.formats import FORMATS
from ssl_toolkit.data.frames import FrameData
from ssl_toolkit.data.limits import MAX_PIXELS
from ssl_toolkit.random import sample_order

NUM_MUTATED = 1000
NUM_SOUND = 300
BATCH = 32


def write_images(folder: Path) -> None:
    """The sound and the damaged images, under names that mix them."""
    written = list(originals())
    sound = [written[index % len(written)] for index in range(NUM_SOUND)]
    damaged = [
        (written[place][0], content)
        for place, content in mutations([content for _, content in written], NUM_MUTATED, seed=1)
    ]
    names = list(range(NUM_SOUND + NUM_MUTATED))
    random.Random(2).shuffle(names)
    for name, (suffix, content) in zip(names, sound + damaged, strict=True):
        (folder / f"{name:04}{suffix}").write_bytes(content)


def is_bad(file: Path) -> bool:
    """What Pillow alone makes of it."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return True
            image.load()
            return image.mode == "F" and not (np.abs(np.asarray(image)) < 1e30).any()
    except Exception:
        return True


def open_data(folder: str, cache_dir: str, cache: str, threads: int, max_bad: float = 0.99) -> ImageData:
    return ImageData(
        folder, image_size=16, batch_size=BATCH, val_fraction=0.0, max_bad=max_bad, cache=cache, cache_dir=cache_dir,
        num_threads=threads, seed=3,
    )  # fmt: skip


def train(data: ImageData, epochs: int = 2, state: dict[str, int] | None = None) -> list[list]:
    """For each batch, its images' numbers and a checksum of its pixels."""
    loader = data.loader("train", shuffle=True, drop_last=True)
    if state:
        loader.load_state_dict(state)
    batches = []
    for _ in range(epochs - (state or {}).get("epoch", 0)):
        for batch in loader:
            crc = zlib.crc32(batch.images.pixels.numpy().tobytes())
            assert len(batch.images.pixels) == len(batch.indices)
            batches.append([batch.indices.tolist(), batch.images.pixels.shape[0], crc])
    return batches


def use_images(folder: str, work: str) -> dict:
    files = sorted(Path(folder).iterdir())
    runs = {}
    for cache in ("memory", "disk", "none"):
        for threads in (1, 4):
            said = io.StringIO()
            with contextlib.redirect_stderr(said):
                data = open_data(folder, f"{work}/{cache}-{threads}", cache, threads)
                # without a cache the second epoch knows what is bad, and the first did not
                batches = train(data, epochs=2 if cache == "none" else 1)
            reports = [(error.path, error.reason) for error in data.bad_files]
            announced = re.findall(r"skipping the bad image (\S+?): ", said.getvalue())
            runs[f"{cache} {threads}"] = {"batches": batches, "reports": reports, "announced": announced}
    # the rest of an epoch in another process, which does not know yet what is bad
    resumed = train(open_data(folder, f"{work}/resumed", "none", 4), state={"epoch": 1, "batch": 7})
    stopped = {}
    for cache in ("memory", "disk", "none"):
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                train(open_data(folder, f"{work}/stopped-{cache}", cache, 2, max_bad=0.01))
            except ValueError as error:
                stopped[cache] = str(error)
    bad = [file.name for file in files if is_bad(file)]
    return {"names": [file.name for file in files], "bad": bad, "runs": runs, "resumed": resumed, "stopped": stopped}


@pytest.mark.guarantee("D1")
@pytest.mark.slow
def test_a_thousand_mutated_images_in_nine_formats(tmp_path, reached):
    folder = tmp_path / "images"
    folder.mkdir()
    write_images(folder)
    said = in_child(use_images, folder, tmp_path)
    names, bad, runs = said["names"], set(said["bad"]), said["runs"]
    assert len(names) == NUM_SOUND + NUM_MUTATED
    assert {Path(name).suffix for name in bad} == {
        ".jpg",
        ".png",
        ".webp",
        ".bmp",
        ".tif",
        ".gif",
        ".avif",
        ".jp2",
        ".ppm",
    }
    assert NUM_MUTATED / 3 < len(bad) < NUM_MUTATED
    for kind, run in runs.items():
        paths = [path for path, _ in run["reports"]]
        assert len(paths) == len(set(paths)), kind
        assert set(paths) <= bad, kind
        if "none" not in kind:
            assert set(paths) == bad, kind
        assert all(0 < len(reason) <= 120 and reason.isprintable() for _, reason in run["reports"])
        # the screen names the first hundred, each once; the list has all
        assert len(run["announced"]) == len(set(run["announced"])) == min(100, len(paths))
        assert all(size == BATCH == len(indices) for indices, size, _ in run["batches"])
    # with a cache, what is bad is known before the first batch and is in none
    good = [index for index, name in enumerate(names) if name not in bad]
    reference = runs["memory 1"]["batches"]
    assert len(reference) == len(good) // BATCH
    assert [each[0] for each in reference] == [
        [good[place] for place in sample_order(3, 0, len(good))[BATCH * number : BATCH * number + BATCH].tolist()]
        for number in range(len(good) // BATCH)
    ]
    for kind in ("memory 4", "disk 1", "disk 4"):
        assert runs[kind]["batches"] == reference, kind
    # without one, the next good image stands in for a bad one, however many threads there are and whatever is known
    without = runs["none 1"]["batches"]
    per_epoch = len(names) // BATCH
    expected = []
    for epoch in range(2):
        order = sample_order(3, epoch, len(names)).tolist()
        for index in order[: per_epoch * BATCH]:
            while names[index] in bad:
                index = (index + 1) % len(names)
            expected.append(index)
    assert [index for batch in without for index in batch[0]] == expected
    assert runs["none 4"]["batches"] == without
    assert said["resumed"] == without[per_epoch + 7 :]
    # above max_bad the run stops and lists them
    for cache, message in said["stopped"].items():
        found = re.fullmatch(
            r"(\d+) of [\d,]+ images cannot be decoded, more than data.max_bad = 0.01 allows .*listed in '(.*)'\).*",
            message,
        )
        assert found, message
        listed = [line.split("\t")[0] for line in Path(found[2]).read_text(encoding="utf-8").splitlines()]
        assert len(listed) == len(set(listed)) == int(found[1])
        assert set(listed) <= bad
        assert cache == "none" or set(listed) == bad
    assert set(said["stopped"]) == {"memory", "disk", "none"}
    reached(
        f"{NUM_MUTATED} mutated files, {len(bad)} bad: 0 process deaths and each bad one reported once in "
        f"{len(runs)} of 6 combinations of cache and threads; {sum(len(run['batches']) for run in runs.values())} full "
        "batches, the same for 1 and 4 threads and after a resume"
    )


@pytest.mark.guarantee("D1")
def test_a_share_that_is_tolerated_does_not_stop_a_run_by_chance(reached):
    """Without a cache the first batches are a sample of all images, and may hold more than their part of bad ones."""
    from ssl_toolkit.data import BadImage
    from ssl_toolkit.data.bad_files import BadFiles

    stopped = {}
    for fraction in (0.08, 0.3):
        stopped[fraction] = 0
        for seed in range(60):
            draw = np.random.default_rng(seed)
            bad = BadFiles(5000, max_bad=0.1, announce=False)
            is_bad = draw.permutation(5000) < fraction * 5000
            try:
                for number, index in enumerate(draw.permutation(5000), 1):
                    bad.saw(int(index), BadImage(str(index), "bad") if is_bad[index] else None)
                    if number % 32 == 0:
                        bad.check()
                bad.check()
            except ValueError:
                stopped[fraction] += 1
    assert stopped == {0.08: 0, 0.3: 60}
    reached(f"8 % bad where 10 % are tolerated: {stopped[0.08]} of 60 runs stopped; 30 %: {stopped[0.3]} of 60")


def write_sequences(folder: Path, mark: Path) -> None:
    """Sequences as folders of frames and as tensors in three formats, two thirds of which are damaged."""
    from safetensors.numpy import save

    draw = np.random.default_rng(0)
    pictures = list(originals())
    damaged = [(pictures[place][0], content) for place, content in mutations([c for _, c in pictures], 150, seed=4)]
    for number in range(50):
        sequence = folder / f"frames {number:02}"
        sequence.mkdir(parents=True)
        (sequence / "0.png").write_bytes(pictures[4][1])
        for place in range(3):
            suffix, content = damaged[3 * number + place]
            (sequence / f"{place + 1}{suffix}").write_bytes(content)
    tensors: dict[str, list[bytes]] = {".npy": [], ".pt": [], ".safetensors": []}
    for number in range(4):
        frames = draw.integers(0, 256, (2 + number, 8, 10, (1, 3, 4, 3)[number]), dtype=np.uint8)
        buffers = {".npy": io.BytesIO(), ".pt": io.BytesIO()}
        np.save(buffers[".npy"], frames)
        torch.save(torch.from_numpy(frames), buffers[".pt"])
        for suffix, buffer in buffers.items():
            tensors[suffix].append(buffer.getvalue())
        tensors[".safetensors"].append(save({"frames": frames}))
    for suffix, contents in tensors.items():
        for number in range(50):
            (folder / f"sound {number:02}{suffix}").write_bytes(contents[number % len(contents)])
        for number, (_, content) in enumerate(mutations(contents, 100, seed=5)):
            (folder / f"mutated {number:03}{suffix}").write_bytes(content)
    write_hostile_tensors(folder, mark)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def write_hostile_tensors(folder: Path, mark: Path) -> None:
    """Tensors that are no damage but a plan: code, and numbers of frames that no memory holds."""
    import json
    import zipfile

    torch.save(Payload(mark), folder / "code.pt")
    np.save(folder / "code.npy", np.array([Payload(mark)], dtype=object), allow_pickle=True)
    torch.save(torch.zeros(1, dtype=torch.uint8).expand(10**9, 8, 8, 3), folder / "repeated.pt")
    header = json.dumps({"frames": {"dtype": "U8", "shape": [10**12, 0, 8, 3], "data_offsets": [0, 0]}}).encode()
    (folder / "empty.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({10**12}, 0, 8, 3), }}".ljust(117) + "\n"
    (folder / "empty.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())
    torch.save(torch.zeros(10**8, dtype=torch.uint8).reshape(-1, 100, 100, 1), folder / "plain.pt")
    with zipfile.ZipFile(folder / "plain.pt") as plain, zipfile.ZipFile(folder / "packed.pt", "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    (folder / "plain.pt").unlink()


def use_sequences(folder: str, work: str) -> dict:
    runs = {}
    before = forget_peak_memory()
    for cache in ("memory", "disk", "none"):
        for threads in (1, 4):
            with contextlib.redirect_stderr(io.StringIO()):
                data = FrameData(
                    folder, batch_size=16, image_size=8, val_fraction=0.0, max_bad=0.95, cache=cache,
                    cache_dir=f"{work}/{cache}-{threads}", num_threads=threads,
                )  # fmt: skip
                loader = data.loader("train", shuffle=True, drop_last=True)
                batches = [
                    [batch.indices.tolist(), batch.lengths.tolist(), zlib.crc32(batch.frames.pixels.numpy().tobytes())]
                    for batch in loader
                ]
            runs[f"{cache} {threads}"] = {"batches": batches, "bad": [error.path for error in data.bad_files]}
    return {"runs": runs, "grown": peak_memory() - before}


@pytest.mark.guarantee("D1")
@pytest.mark.slow
def test_mutated_frames_and_tensors(tmp_path, reached):
    folder, mark = tmp_path / "sequences", tmp_path / "it-ran"
    write_sequences(folder, mark)
    said = in_child(use_sequences, folder, tmp_path / "work")
    assert not mark.exists()
    assert said["grown"] < 300_000  # kilobytes
    runs = said["runs"]
    hostile = {"code.pt[0]", "code.npy[0]", "repeated.pt[0]", "empty.safetensors[0]", "empty.npy[0]", "packed.pt[0]"}
    for kind, run in runs.items():
        assert len(run["bad"]) == len(set(run["bad"])), kind
        assert all(len(indices) == 16 and min(lengths) > 0 for indices, lengths, _ in run["batches"]), kind
        assert not any(name.startswith("sound") for name in run["bad"])
        if "none" not in kind:
            assert hostile <= set(run["bad"])
            assert run == runs["memory 1"]
    assert runs["none 1"]["batches"] == runs["none 4"]["batches"]
    tensors = {Path(name.partition("[")[0]).suffix for name in runs["memory 1"]["bad"] if name.startswith("mutated")}
    assert tensors == {".npy", ".pt", ".safetensors"}
    reached(
        f"150 mutated frames, 300 mutated and {len(hostile)} hostile tensor files (.npy .pt .safetensors): 0 process "
        f"deaths, nothing run, {len(runs['memory 1']['bad'])} bad frames named once each"
    )
