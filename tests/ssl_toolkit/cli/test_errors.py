"""What a user gets wrong is answered in one line that names what is right."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ssl_toolkit.cli import main


def answer(capsys, *arguments):
    """The exit status and the error, which is one line."""
    status = main(list(arguments))
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("ssl-toolkit: error: ")
    return status, lines[0].removeprefix("ssl-toolkit: error: ")


def changed(recipe, tmp_path, path, value):
    content = yaml.safe_load(Path(recipe).read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file = tmp_path / "changed.yaml"
    file.write_text(yaml.safe_dump(content))
    return str(file)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--data.pth", "x"], "unknown option --data.pth; did you mean '--data.path'?"),
        (["--model.optimzer.lr", "1"], "unknown option --model.optimzer.lr; did you mean '--model.optimizer.lr'?"),
        (["--model.viev.size=3"], "unknown option --model.viev.size; did you mean '--model.view.size'?"),
        (["--resum", "runs/birds"], "unknown option --resum; did you mean '--resume'?"),
        (["--model.temprature", "1"], "unknown key model.temprature; did you mean 'temperature'?"),
        (["--data.batch_size", "many"], "data.batch_size is 'many', expected int"),
        (["--speed", "atuo"], "speed is atuo, expected auto; did you mean 'auto'?"),
        (
            ["--data.labels", "foldr"],
            "data.labels is 'foldr', expected one of ['folder', 'none']; did you mean",
        ),
        (["--model.backbone.name", "resnet81"], "did you mean"),
        (["--model.optimizer", "AdamV"], "model.optimizer: there is no class 'AdamV'; did you mean 'Adam'?"),
        (["--data.source", "foldr"], "did you mean 'folder'?"),
        (["--data.source", "folder", "--data.path", "/nowhere/images"], "/nowhere/images"),
        (["--resume", "nowhere"], "--resume nowhere: the folder does not exist"),
        (["--data.batch_size", "500"], "500"),
        (["--trainer.precision", "bf17"], "did you mean 'bf16'?"),
        (
            ["--model.backbone.pretrained", "birds.pth"],
            "model.backbone.pretrained is 'birds.pth', expected true or false: true takes timm's own weights; a",
        ),
        (["--tracker", "wandbb"], "expected wandb, none, or settings of W&B"),
        (["--trainer.devices", "0"], "is not a valid input"),
        (["--trainer.devices", "x"], "should be an int > 0"),
        (["--trainer.devices", "[0, 1]"], "should be an int > 0"),
        (["--trainer.strategy", "fsdp3"], "expected auto, ddp or fsdp2; did you mean 'fsdp2'?"),
        (["--trainer.gradient_clip_val", "-1"], "gradient_clip_val must be above 0, got -1"),
        (["--trainer.accumulate_grad_batches", "0"], "accumulate_grad_batches must be at least 1, got 0"),
        (["--trainer.max_epochs", "many"], "trainer.max_epochs is 'many', expected int or null"),
        (["--model.schedule.warmup_steps", "x"], "model.schedule.warmup_steps is 'x', expected int or null"),
    ],
)
def test_wrong_options(capsys, recipe, tmp_path, options, expected):
    status, line = answer(capsys, "pretrain", "-c", recipe, "--out", str(tmp_path / "run"), *options)
    assert status == 2
    assert expected in line
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (["modle"], {"a": 1}, "unknown key modle.a; did you mean 'model'?"),
        (["data", "pth"], "x", "unknown key data.pth; did you mean 'path'?"),
        (["model", "init_args", "temprature"], 1, "unknown key model.temprature; did you mean 'temperature'?"),
        (["model", "init_args", "temperature"], "warm", "temperature is 'warm', expected float"),
        (
            ["model", "init_args", "optimizer", "init_args", "lrr"],
            1,
            "unknown key model.optimizer.lrr; did you mean 'lr'?",
        ),
        (["model", "class_path"], "pretext.simclr.SimCRL", "no 'SimCRL' in pretext.simclr; did you mean 'SimCLR'?"),
        (["model", "class_path"], "pretext.simcrl.SimCLR", "no 'simcrl' in pretext; did you mean 'simclr'?"),
        (["model", "init_args", "view", "sise"], 3, "unknown key model.view.sise; did you mean 'size'?"),
        (["trainer"], [], "trainer is [], expected settings by their names"),
        (["trainer", "max_epoch"], 3, "unknown key trainer.max_epoch; did you mean 'max_epochs'?"),
    ],
)
def test_wrong_recipes(capsys, recipe, tmp_path, path, value, expected):
    status, line = answer(capsys, "pretrain", "-c", changed(recipe, tmp_path, path, value))
    assert status == 2
    assert expected in line


def test_missing_and_broken_recipes(capsys, tmp_path):
    assert "missing: --model" in answer(capsys, "pretrain")[1]
    assert "there is no file 'simclr.yml'" in answer(capsys, "pretrain", "-c", "simclr.yml")[1]
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,\n b: {")
    assert "Problems parsing config" in answer(capsys, "pretrain", "-c", str(broken))[1]


def test_what_a_task_refuses_stands_alone(capsys, tmp_path):
    recipe = str(Path(__file__).parents[3] / "configs" / "transfer" / "linear_probe.yaml")
    options = ["-c", recipe, "--data.source", "procedural", "--data.max_images", "40"]
    assert answer(capsys, "transfer", *options)[1].startswith("what to start from?")
    missing = answer(capsys, "transfer", *options, "--model.weights", str(tmp_path / "backbone.safetensor"))[1]
    assert missing.startswith("there is no ")


def test_a_run_is_never_overwritten(capsys, recipe, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("kept")
    status, line = answer(capsys, "pretrain", "-c", recipe, "--out", str(run))
    assert status == 2
    assert f"continue it with --resume {run}, or choose another --out" in line
    assert (run / "config.yaml").read_text() == "kept"


def test_unknown_command(capsys):
    assert answer(capsys, "pertrain") == (
        2,
        "unknown command 'pertrain'; did you mean 'pretrain'? (ssl-toolkit --help lists them)",
    )


def test_help_answers_at_once():
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "ssl_toolkit", "--help"], check=True, capture_output=True)
    assert time.monotonic() - start < 1


def test_print_config_is_a_recipe(capsys, recipe, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "-c", recipe, "--data.batch_size", "8", "--print_config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["data"]["batch_size"] == 8
    assert printed["model"]["init_args"]["temperature"] == 0.5


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_a_reader_that_is_gone_ends_it_quietly(arguments, unbuffered):
    read, write = os.pipe()
    os.close(read)  # as of a `head` that has ended
    done = subprocess.run(
        [sys.executable, "-m", "ssl_toolkit", *arguments],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.slow
def test_output_that_nobody_reads_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m ssl_toolkit pretrain --help | head -1", shell=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("usage: ssl-toolkit pretrain")
    assert not done.stderr


def test_what_cannot_work_leaves_no_run_behind(tmp_path, capsys):
    recipe = str(Path(__file__).parents[3] / "configs" / "pretrain" / "patch_position.yaml")
    options = ["--data.source", "procedural", "--data.max_images", "200", "--progressive.start", "0.5"]
    status, said = answer(capsys, "pretrain", "-c", recipe, *options, "--out", str(tmp_path / "run"))
    assert (status, "the views of PatchPosition have one size" in said) == (2, True)
    assert not (tmp_path / "run").exists()


def test_missing_weights_are_found_before_the_images_are_read(tmp_path, capsys):
    (tmp_path / "text").mkdir()
    status, said = answer(
        capsys, "evaluate", "--weights", str(tmp_path / "none.safetensors"), "--data.path", str(tmp_path / "text")
    )
    assert (status, "none.safetensors" in said) == (2, True)


def test_a_place_that_cannot_be_written_is_named(tmp_path, capsys, monkeypatch):
    from ssl_toolkit.cli import features

    def fail(arguments):
        (tmp_path / "file" / "below").open("w")

    (tmp_path / "file").touch()
    monkeypatch.setattr(features, "report", fail)
    status, said = answer(capsys, "report")
    assert status == 2
    assert said == f"Not a directory: '{tmp_path / 'file' / 'below'}'"


def test_a_command_imports_what_it_needs():
    code = """
import sys
from ssl_toolkit.cli import main
try:
    main(["report", "--help"])
except SystemExit:
    pass
print([name for name in ("torch", "lightning", "timm", "matplotlib", "wandb") if name in sys.modules], file=sys.stderr)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert said.stdout.startswith("usage: ssl-toolkit report")
    assert said.stderr == "[]\n"


@pytest.mark.slow
def test_a_resume_with_another_network_is_one_line_and_leaves_the_run_as_it_was(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["pretrain", "-c", recipe, "--trainer.max_epochs", "1", "--out", str(run)]) == 0
    before = {name: (run / name).read_bytes() for name in ("config.yaml", "status.json", "environment.json")}
    capsys.readouterr()
    assert main(["pretrain", "--resume", str(run), "--model.projector_widths", "[16, 4]"]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "the checkpoint is of its network" in said
    assert before == {name: (run / name).read_bytes() for name in before}
    assert main(["pretrain", "--resume", str(run)]) == 0
