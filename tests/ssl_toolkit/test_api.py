"""Python and the command line are the same thing: what one computes, writes and refuses, the other does."""

import ast
import copy
import csv
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from jsonargparse import Namespace

import methods
import ssl_toolkit
from launch import ENVIRONMENT, started, wait_for
from ssl_toolkit.cli import main
from ssl_toolkit.cli.command_line import CommandLine, yaml_text
from ssl_toolkit.cli.from_python import starts_processes
from ssl_toolkit.cli.parser import parse
from ssl_toolkit.cli.python_arguments import options, recipe_options
from ssl_toolkit.cli.training_parser import training_parser
from ssl_toolkit.run_folder import read_config

ROOT = Path(__file__).parents[2]
DATA = {"source": "procedural", "max_images": 60, "image_size": 36, "batch_size": 8, "cache": "memory"}
# the clock's figures, which no two runs share
TIMED = ("images_per_second", "data_wait", "seconds")


def recipe(name="SimCLR", **sections):
    content = methods.recipe(name, Path(), max_epochs=1)
    return {**content, **sections}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the run ``cli`` of the command line, and its recipe."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    assert main(["pretrain", "-c", str(folder / "recipe.yaml"), "--out", str(folder / "cli")]) == 0
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """The same recipe from Python."""
    return ssl_toolkit.pretrain(folder / "recipe.yaml", out=folder / "api")


def tensors(run):
    return safetensors.torch.load_file(run / "backbone.safetensors")


def rows(run):
    with (run / "metrics.csv").open() as file:
        return [{name: text for name, text in row.items() if not name.endswith(TIMED)} for row in csv.DictReader(file)]


def assert_same_runs(first, second):
    weights = tensors(first), tensors(second)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert rows(first) == rows(second)
    assert len(rows(first)) > 0
    assert read_config(first) == read_config(second)


def read(command, config, **overrides):
    """The configuration as the command line's parser understands it."""
    line = CommandLine(command, [*recipe_options(config), *options({}, overrides)])
    return parse(training_parser(line), line.arguments)


# the names


def test_importing_the_package_costs_nothing():
    code = """
import sys, time
before = time.perf_counter()
import ssl_toolkit
print(time.perf_counter() - before, [name for name in ("torch", "lightning", "numpy") if name in sys.modules])
"""
    seconds = []
    for _ in range(5):
        said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        taken, _, imported = said.stdout.strip().partition(" ")
        assert imported == "[]"
        seconds.append(float(taken))
    assert min(seconds) < 0.05


def test_every_public_name_is_there_and_is_what_type_checkers_see():
    namespace = {}
    exec("from ssl_toolkit import *", namespace)
    assert set(ssl_toolkit.__all__) <= namespace.keys()
    assert set(ssl_toolkit.__all__) <= set(dir(ssl_toolkit))
    seen = {}
    for node in ast.walk(ast.parse(Path(ssl_toolkit.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            seen = {name.name: each.module for each in node.body for name in each.names}
    assert sorted(seen) == ssl_toolkit.__all__
    for name, module in seen.items():
        assert getattr(ssl_toolkit, name) is getattr(sys.modules[module], name)
    with pytest.raises(AttributeError, match="has no attribute 'pretrian'"):
        ssl_toolkit.pretrian  # noqa: B018


# the same runs


def test_python_and_the_command_line_train_the_same(folder, run):
    assert run.folder == folder / "api"
    assert_same_runs(run.folder, folder / "cli")


def test_a_dict_trains_the_same_as_its_file_and_stays_as_it_is(folder):
    config = recipe()
    # what the overrides change is at first something else
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] = 0.5
    config["data"]["batch_size"] = 16
    before = copy.deepcopy(config)
    overrides = {"data.batch_size": 8, "model": {"optimizer": {"lr": np.float64(0.002)}}}
    given = copy.deepcopy(overrides)
    made = ssl_toolkit.pretrain(config, out=str(folder / "dict"), overrides=overrides)
    assert_same_runs(made.folder, folder / "cli")
    assert config == before
    assert overrides == given


AWKWARD = {
    "none": None,
    "nested": [[1, [2.5, None]], {"deep": {"list": []}}],
    "small": 1e-4,
    "smaller": 1e-05,
    "infinite": float("inf"),
    "yes": True,
    "texts": ["1e-4", "null", "yes", "1:30", "2024-01-01", "[1]", "a: b # c", " two\nlines ", "é", ""],
    3: {"a": {}},
}


def test_yaml_of_plain_data_is_read_as_the_same_data():
    twice = [1, 2]
    for value in (AWKWARD, {"a": twice, "b": twice}, *AWKWARD.values()):
        assert yaml.safe_load(yaml_text(value)) == value
        assert yaml.safe_load(yaml_text(value, in_a_line=True)) == value
        assert "\n" not in yaml_text(value, in_a_line=True)


def test_a_dict_is_read_as_its_file_is(tmp_path):
    config, awkward = recipe(), {key: AWKWARD[key] for key in AWKWARD if key not in (3, "infinite")}
    config["model"]["init_args"]["backbone"]["kwargs"]["awkward"] = awkward
    config["trainer"]["limit_val_batches"] = None
    # JSON is YAML that quotes every text
    (tmp_path / "recipe.yaml").write_text(json.dumps(config))
    parsed = [read("pretrain", each) for each in (config, tmp_path / "recipe.yaml")]
    for each in parsed:
        each.pop("config")
    assert parsed[0] == parsed[1]
    assert parsed[0].model.init_args.backbone.kwargs["awkward"] == awkward


def test_a_list_of_recipes_is_merged_and_options_win(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    second = {"data": {"batch_size": 4, "path": tmp_path / "images"}, "model": {"init_args": {"temperature": 0.3}}}
    overrides = {"data": {"batch_size": 2}, "model.projector_widths": (32, 4), "trainer.max_time": None}
    overrides["model"] = {"optimizer": {"init_args": {"lr": 0.1}, "class_path": "SGD"}}
    config = read("pretrain", [tmp_path / "recipe.yaml", second], **overrides)
    task = config.model.init_args
    assert (config.data.batch_size, config.data.max_images, config.data.path) == (2, 60, str(tmp_path / "images"))
    assert (task.temperature, task.projector_widths) == (0.3, (32, 4))
    assert (task.optimizer.class_path, task.optimizer.init_args.lr) == ("ssl_toolkit.optim.SGD", 0.1)


# what comes back


def test_the_figures_are_the_last_of_each_column(run):
    expected = {}
    with (run.folder / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            expected |= {name: float(text) for name, text in row.items() if text}
    assert run.figures == expected
    assert {"train/loss", "val/loss"} <= run.figures.keys()


def test_the_backbone_is_that_of_the_weights_file(run):
    assert run.weights == run.folder / "backbone.safetensors"
    assert run.backbone is run.backbone
    written = tensors(run.folder)
    assert all(torch.equal(each, written[name]) for name, each in run.backbone.model.state_dict().items())
    assert run.backbone(torch.rand(2, 3, 36, 36)).shape == (2, run.backbone.num_features)


@pytest.mark.slow
def test_evaluation_is_what_the_command_line_writes(run, tmp_path):
    options = {"stages": False, "ks": [1, 5], "data.test_fraction": 0.3}
    result = ssl_toolkit.evaluate(run, data=DATA, out=tmp_path / "api.json", overrides=options)
    arguments = ["--stages", "false", "--ks", "[1, 5]", "--data.test_fraction", "0.3", "--out", f"{tmp_path}/cli.json"]
    arguments += [word for key, value in DATA.items() for word in (f"--data.{key}", str(value))]
    assert main(["evaluate", "--weights", str(run.weights), *arguments]) == 0
    written, expected = (json.loads((tmp_path / name).read_text()) for name in ("api.json", "cli.json"))
    assert {**written, "seconds": 0} == {**expected, "seconds": 0}
    assert json.loads(json.dumps(result.to_json())) == written
    assert result.row("pooled").knn.value == expected["rows"][0]["knn"]["value"]


def test_features_are_those_that_the_command_line_writes(run, tmp_path):
    file = ssl_toolkit.embed(str(run.weights), data=DATA, out=tmp_path / "api.npz", overrides={"precision": "32"})
    arguments = [word for key, value in DATA.items() for word in (f"--data.{key}", str(value))]
    arguments += ["--precision", "32", "--out", str(tmp_path / "cli.npz")]
    assert main(["embed", "--weights", str(run.weights), *arguments]) == 0
    written, expected = np.load(file), np.load(tmp_path / "cli.npz")
    assert file == tmp_path / "api.npz"
    assert set(written.files) == set(expected.files)
    assert all(np.array_equal(written[name], expected[name]) for name in expected.files)


def test_a_run_is_transferred(run, tmp_path):
    config = recipe("Classification")
    del config["model"]["init_args"]["backbone"]
    made = ssl_toolkit.transfer(config, weights=run, data={"test_fraction": 0.3}, out=tmp_path / "transfer")
    assert read_config(made.folder)["model"]["init_args"]["weights"] == str(run.weights)
    assert read_config(made.folder)["data"]["test_fraction"] == 0.3
    assert 0 <= made.figures["test/top1"] <= 1
    assert made.backbone.num_features == run.backbone.num_features


# what goes wrong


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"overrides": {"model.temprature": 1}}, "unknown key model.temprature; did you mean 'temperature'?"),
        ({"overrides": {"model": {"temprature": 1}}}, "unknown key model.temprature; did you mean 'temperature'?"),
        ({"overrides": {"data.pth": 1}}, "unknown option --data.pth; did you mean '--data.path'?"),
        ({"overrides": {"data.batch": 1}}, "unknown option --data.batch"),
        ({"data": {"pth": "x"}}, "unknown option --data.pth; did you mean '--data.path'?"),
        ({"overrides": {"help": True}}, "unknown key help"),
        ({"overrides": {"model.help": "SimCLR"}}, "unknown key model.help"),
        ({"overrides": {"data.path=x --seed": 1}}, "unknown key data.path=x --seed"),
        ({"overrides": {"data.batch_size": "many"}}, "data.batch_size is 'many', expected int"),
        ({"overrides": ["data.batch_size"]}, "overrides is an object of list, expected a dict"),
        ({"overrides": {"trainer": {"callbacks": [Namespace()]}}}, "trainer.callbacks is an object of Namespace"),
        ({"config": {"model": Namespace}}, "config.model is the class Namespace, expected plain data"),
        ({"config": {"modle": {"a": 1}}}, "unknown key modle.a; did you mean 'model'?"),
        ({"config": "recipe.yml"}, "there is no file 'recipe.yml'"),
        ({"config": 3}, "config is an object of int, expected the path of a recipe"),
        ({"config": None}, "missing: --model"),
        ({"resume": "nowhere"}, "--resume nowhere: the folder does not exist"),
        ({"budget": "an hour"}, "an hour"),
        ({"overrides": {"trainer.devices": 0}}, "is not a valid input"),
        ({"overrides": {"data.path": "s3://me:secret@host/x"}}, "an address with a password"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_run(arguments, expected, tmp_path):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        ssl_toolkit.pretrain(**{"config": recipe(), "out": tmp_path / "run", **arguments})
    assert expected in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_run_is_never_overwritten(run):
    with pytest.raises(ValueError, match="holds a run already"):
        ssl_toolkit.pretrain(recipe(), out=run.folder)


def test_missing_weights_are_one_line(run, tmp_path):
    with pytest.raises(ValueError, match=r"^[^\n]*none.safetensors[^\n]*$"):
        ssl_toolkit.evaluate(tmp_path / "none.safetensors", data=DATA)
    with pytest.raises(ValueError, match=r"^[^\n]*none.safetensors[^\n]*$"):
        ssl_toolkit.embed(tmp_path / "none.safetensors", data=DATA, out=tmp_path / "features.npz")
    with pytest.raises(ValueError, match=r"weights is an object of Backbone, expected a run or the path"):
        ssl_toolkit.transfer(recipe("Classification"), weights=run.backbone)


INTERRUPTING = """
from lightning.pytorch import Callback

class Interrupting(Callback):
    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step == 4:
            raise KeyboardInterrupt
"""


def state():
    """What a training changes in its process."""
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    flags = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark, torch.get_num_threads()
    return handlers, ours, flags, list(sys.path), list(warnings.filters), torch.random.get_rng_state().tolist()


@pytest.mark.slow
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(folder, tmp_path, monkeypatch):
    (tmp_path / "interrupting.py").write_text(INTERRUPTING)
    monkeypatch.chdir(tmp_path)
    config = recipe(checkpoint={"every_n_steps": 2}, threads=1)
    config["trainer"] |= {"callbacks": [{"class_path": "interrupting.Interrupting"}], "deterministic": True}
    torch.rand(3)
    before = state()
    with pytest.raises(KeyboardInterrupt):
        ssl_toolkit.pretrain(config)
    (interrupted,) = Path("runs").iterdir()
    assert not (interrupted / "backbone.safetensors").exists()
    made = ssl_toolkit.pretrain(resume=interrupted, overrides={"trainer.callbacks": None})
    assert made.folder == interrupted
    for now, then in zip(state(), before, strict=True):
        assert now == then
    expected = tensors(folder / "cli")
    assert all(torch.equal(each, expected[name]) for name, each in tensors(made.folder).items())


# several processes


def test_runs_of_several_processes_are_told_from_others(monkeypatch):
    def arguments(devices, num_nodes=1):
        return Namespace(accelerator="cpu", devices=devices, num_nodes=num_nodes)

    assert starts_processes(arguments(2))
    assert starts_processes(arguments(1, num_nodes=2))
    assert not any(starts_processes(arguments(devices)) for devices in (1, "auto", "x", 0))
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not starts_processes(arguments(2)), "a launcher has started them"


SCRIPT = """
import sys
import torch.distributed as dist
import yaml

import ssl_toolkit

with open("recipe.yaml") as file:
    recipe = yaml.safe_load(file)
two = {"trainer": {"devices": 2, "strategy": "ddp"}, "data.batch_size": 4}
run = ssl_toolkit.pretrain(recipe, out=sys.argv[1] if sys.argv[1:] else None, overrides=two)
print(f"this script has {len(run.backbone.state_dict())} tensors, {run.figures['step']} steps", dist.is_initialized())
"""


def run_script(folder, *command):
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    (folder / "script.py").write_text(SCRIPT)
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *command]
    return subprocess.run(command, cwd=folder, env=environment, timeout=250, capture_output=True, text=True)


@pytest.mark.slow
def test_a_script_without_a_guard_trains_in_several_processes_and_runs_once(tmp_path):
    done = run_script(tmp_path, "script.py")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("this script has") == done.stdout.count("report:") == 1
    assert done.stdout.rstrip().endswith("False")
    (made,) = (tmp_path / "runs").iterdir()
    (start,) = json.loads((made / "environment.json").read_text())["starts"]
    assert start["processes"] == 2
    again = run_script(tmp_path, "script.py", str(made))
    assert f"ValueError: {made} holds a run already" in again.stderr
    assert (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_script_under_torchrun_trains_in_its_processes(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "script.py"]
    done = run_script(tmp_path, *torchrun, str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("this script has") == 2
    assert done.stdout.count("report:") == 1
    assert "name it with --out" in run_script(tmp_path, *torchrun).stderr


@pytest.mark.slow
def test_what_fails_in_another_process_is_raised_here(tmp_path, capsys):
    overrides = {"trainer": {"devices": 2, "strategy": "ddp"}, "data.batch_size": 500}
    with pytest.raises(ValueError, match=r"^[^\n]*500[^\n]*$") as error:
        ssl_toolkit.pretrain(recipe(), out=tmp_path / "run", overrides=overrides)
    assert f"ssl-toolkit: error: {error.value}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ctrl_c_in_a_script_saves_the_state_of_its_processes(tmp_path, monkeypatch):
    endless = recipe()
    endless["trainer"] |= {"max_epochs": 10_000, "devices": 2, "strategy": "ddp"}
    script = f"""
import ssl_toolkit

try:
    ssl_toolkit.pretrain({endless!r}, out="run")
except KeyboardInterrupt:
    print("interrupted")
"""
    (tmp_path / "script.py").write_text(script)
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "log"
    environment = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with started([sys.executable, "script.py"], log, **environment) as process:
        wait_for(lambda: "step 1/" in log.read_text(), process, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(240) == 0
    assert log.read_text().endswith("interrupted\n")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "preempted"
    assert list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))
