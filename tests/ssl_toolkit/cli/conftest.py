"""A recipe so small that a run takes about a second."""

import pytest
import yaml

from ssl_toolkit.cli.train import train
from ssl_toolkit.run_folder import newest_checkpoint

TINY = {
    "seed": 0,
    "model": {
        "class_path": "pretext.simclr.SimCLR",
        "init_args": {
            "backbone": {"name": "resnet10t", "kwargs": {"channels": [8, 8, 16, 16], "drop_path_rate": 0.2}},
            "view": {"size": 24},
            "projector_widths": [16, 8],
            "optimizer": {"class_path": "ssl_toolkit.optim.AdamW", "init_args": {"lr": 0.002}},
            "schedule": {"class_path": "ssl_toolkit.schedule.Cosine", "init_args": {"warmup_steps": 2}},
        },
    },
    "data": {"source": "procedural", "max_images": 90, "image_size": 32, "batch_size": 16, "cache": "memory"},
    "trainer": {"max_epochs": 3, "accelerator": "cpu"},
    "tracker": "none",
}


@pytest.fixture(scope="session")
def begin_run(tmp_path_factory):
    """Trains the tiny recipe for so many steps, and takes away its last checkpoint of those after every so many."""

    def begin(steps, every):
        folder = tmp_path_factory.mktemp("begun")
        (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
        options = ["-c", str(folder / "tiny.yaml"), "--trainer.max_steps", str(steps)]
        options += ["--checkpoint.every_n_steps", str(every), "--out", str(folder / "run")]
        run = train("pretrain", options, quietly=True)
        newest_checkpoint(run).unlink()
        return run

    return begin


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return str(file)
