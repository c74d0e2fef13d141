"""The README's commands work as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from ssl_toolkit.data.procedural import ProceduralSource

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    found = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    # a command that goes on in the next line is one
    return [re.sub(r"\\\n\s*", "", block) for block in found] if language == "sh" else found


def test_a_stranger_can_read_it_in_a_minute():
    lines = README.splitlines()
    # beside the table of pretext tasks, which has a row for each
    assert len([line for line in lines if "](docs/methods/" not in line]) < 164
    assert max(map(len, lines)) <= 120
    assert any(line.startswith("![") for line in lines[:10]), "a picture in the first screen"


@pytest.mark.slow
def test_the_python_example_runs(tmp_path):
    code = next(block for block in blocks("python") if "ssl_toolkit.pretrain(" in block)
    write_images(tmp_path / "images", num_images=60)
    code = code.replace('"IMAGES"', '"images"').replace('"LABELLED"', '"images"')
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    environment |= {"WANDB_MODE": "offline"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=200)
    assert (tmp_path / "runs/birds/backbone.safetensors").exists()


@pytest.mark.slow
def test_the_task_of_one_s_own_runs_by_its_command(tmp_path):
    code = next(block for block in blocks("python") if "class Rotation" in block)
    (tmp_path / "rotation.py").write_text(code, encoding="utf-8")
    write_images(tmp_path / "images", num_images=40)
    command = next(block for block in blocks("sh") if "rotation.Rotation" in block).split()
    options = [str(tmp_path / "images") if word == "IMAGES" else word for word in command[1:]]
    options += ["--trainer.max_epochs", "1", "--data.batch_size", "16", "--model.backbone.name", "resnet10t"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # as the console script does it: the folder is not on the interpreter's path of itself
    start = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable]
    code = f"import sys; sys.path.append({str(ROOT)!r}); from ssl_toolkit.cli import main; sys.exit(main(sys.argv[1:]))"
    subprocess.run([*start, "-c", code, *options], cwd=tmp_path, env=environment, check=True, timeout=200)
    assert "val/rotation_top1" in (tmp_path / "runs/rotation/metrics.csv").read_text(encoding="utf-8")


def test_the_gate_runs_the_readme_s_test_command():
    install, run = next(block for block in blocks("sh") if "pytest" in block).strip().split(" && ")
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert install.replace("pip install", "pip install --quiet") in gate
    assert run in gate


def test_every_file_that_the_readme_names_is_there():
    for path in re.findall(r"(?:configs|benchmarks|docs)/[\w/]+\.(?:yaml|py|md|png)", README):
        assert (ROOT / path).is_file(), path


def commands():
    (block,) = [block for block in blocks("sh") if "pretrain -c simclr" in block]
    return [line.split() for line in block.strip().splitlines()]


def write_images(folder, num_images):
    source = ProceduralSource(num_images=num_images, image_size=64)
    for index in range(len(source)):
        parent = folder / source.class_names[source.label(index)]
        parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.read(index)).save(parent / f"{index}.png")


@pytest.mark.slow
def test_the_commands_for_own_images_run(tmp_path):
    write_images(tmp_path / "images", num_images=60)
    # small enough for a test: options that any of these commands takes
    quick = {
        "pretrain": ["--data.batch_size", "16", "--trainer.max_epochs", "1", "--model.view.size", "32"],
        "transfer": ["--data.batch_size", "8", "--trainer.max_epochs", "1"],
    }
    for program, command, *options in commands():
        assert program == "ssl-toolkit"
        words = [str(tmp_path / "images") if word in ("IMAGES", "LABELLED") else word for word in options]
        more = quick.get(command, []) if "--resume" not in words else []
        subprocess.run(
            [sys.executable, "-m", "ssl_toolkit", command, *words, *more], cwd=tmp_path, check=True, timeout=300
        )
    assert yaml.safe_load((tmp_path / "runs/birds/config.yaml").read_text())["data"]["path"] == str(tmp_path / "images")
    assert (tmp_path / "features.parquet").is_file()
    assert (tmp_path / "birds.pth").is_file()
