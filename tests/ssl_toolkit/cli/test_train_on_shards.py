"""The command line from tar shards: the same runs as from a folder, and a resume that is exact over the network."""

import io
import json
import tarfile

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from ssl_toolkit.cli import main, train
from ssl_toolkit.data.procedural import ProceduralSource
from ssl_toolkit.run_folder import newest_checkpoint
from ssl_toolkit.task import Task
from tar_shards import web_server, write_tar

NUM = 90


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The same labelled images as a folder of files and as a folder of six shards, in one order."""
    root = tmp_path_factory.mktemp("pictures")
    source = ProceduralSource(NUM, image_size=32)
    order = sorted(range(NUM), key=lambda index: (source.label(index), index))
    files = []
    for index in order:
        buffer = io.BytesIO()
        Image.fromarray(source.read(index)).save(buffer, "PNG")
        name = source.class_names[source.label(index)]
        files.append((f"{name}/{index:04d}", buffer.getvalue(), name))
    files.sort()
    for name, content, _ in files:
        (root / "folder" / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
        (root / "folder" / f"{name}.png").write_bytes(content)
    for shard in range(6):
        members = []
        for name, content, label in files[shard * 15 : (shard + 1) * 15]:
            members += [(f"{name}.cls", label.encode()), (f"{name}.png", content)]
        write_tar(root / "shards" / f"train-{shard:06d}.tar", members)
    return root


def run(*arguments):
    assert main([str(each) for each in arguments]) == 0


def images(path, source="shards"):
    return ["--data.source", source, "--data.path", path, "--data.max_images", "null", "--data.cache", "none"]


@pytest.mark.slow
def test_from_pretraining_to_features(recipe, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shards, folder = pictures / "shards", pictures / "folder"
    for name, options in (("shards", images(shards)), ("folder", images(folder, "folder"))):
        run("pretrain", "-c", recipe, *options, "--data.val_fraction", "0", "--out", tmp_path / name)
    first, second = (
        safetensors.torch.load_file(tmp_path / name / "backbone.safetensors") for name in ("shards", "folder")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    weights = tmp_path / "shards" / "backbone.safetensors"
    small = ["--data.image_size", "32", "--data.batch_size", "16"]
    transfer = ["-c", "configs/transfer/finetune.yaml", "--model.weights", weights, "--tracker", "none"]
    transfer += ["--model.augmentation.size", "32", "--trainer.max_epochs", "1", "--trainer.precision", "32-true"]
    run("transfer", *transfer, *images(shards), "--data.labels", "none", *small, "--out", tmp_path / "transfer")
    options = [*images(shards), *small, "--data.test_fraction", "0.2"]
    run("evaluate", "--weights", weights, *options, "--out", tmp_path / "evaluation")
    run("embed", "--weights", weights, *images(shards), *small, "--out", tmp_path / "features.npz")
    with np.load(tmp_path / "features.npz") as stored:
        table = dict(stored)
    assert len(table["name"]) == NUM
    expected = []
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as archive:
            expected += [f"{shard.name}/{member}" for member in archive.getnames() if member.endswith(".png")]
    assert table["name"].tolist() == expected
    class_names = json.loads(str(table["ssl_toolkit"]))["class_names"]
    assert class_names == sorted(folder.name for folder in folder.iterdir())
    assert [class_names[label] for label in table["label"]] == [name.split("/")[1] for name in expected]


class PowerCut(Exception):
    """Stands for whatever ends a process between two steps."""


@pytest.mark.slow
@pytest.mark.guarantee("X2")
def test_a_run_over_http_that_was_stopped_ends_where_an_unbroken_one_does(
    recipe, pictures, tmp_path, monkeypatch, reached
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    original = Task.training_step
    stops = (1, 4, 7)
    with web_server(pictures / "shards") as server:
        options = images(f"{server.address}/train-{{000000..000005}}.tar")
        command = ["-c", recipe, *options, "--data.shard_window", "2", "--data.val_fraction", "0"]
        command += ["--checkpoint.every_n_steps", "1", "--trainer.max_epochs", "2"]
        train.train("pretrain", [*command, "--out", str(tmp_path / "whole")])
        whole = torch.load(newest_checkpoint(tmp_path / "whole"), weights_only=True)
        for stop in stops:

            def training_step(self, batch, batch_idx, stop=stop):
                if self.global_step == stop:
                    raise PowerCut
                return original(self, batch, batch_idx)

            broken = tmp_path / f"broken{stop}"
            with monkeypatch.context() as patch:
                patch.setattr(Task, "training_step", training_step)
                with pytest.raises(PowerCut):
                    train.train("pretrain", [*command, "--out", str(broken)])
            for copy in (tmp_path / "cache").rglob("*.tar"):
                copy.unlink()
            train.train("pretrain", ["--resume", str(broken)])
            again = torch.load(newest_checkpoint(broken), weights_only=True)
            assert again["global_step"] == whole["global_step"] == 10
            for name, tensor in whole["state_dict"].items():
                assert torch.equal(tensor, again["state_dict"][name]), name
    reached(
        f"{len(stops)} of {len(stops)} stops over http: weights and statistics bit for bit those of an unbroken run"
    )
