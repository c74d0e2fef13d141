"""Hostile files run nothing, and no line of the source could let them."""

import ast
import os
import pickle
import re
import shutil
import sys
import zipfile
from importlib.metadata import requires, version
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from ssl_toolkit.cli import main
from ssl_toolkit.io import yaml_files
from ssl_toolkit.io.atomic import write_checksum
from ssl_toolkit.io.yaml_files import load_yaml
from ssl_toolkit.run_folder import CHECKPOINTS, CONFIG, MODEL

ROOT = Path(__file__).parents[3]
SOURCES = sorted(file for part in ("ssl_toolkit", "pretext", "downstream") for file in (ROOT / part).rglob("*.py"))

PICKLES = ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")
RUNNERS = ("eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "torch.export.load")

# what the advisories in CONTRIBUTING.md ask for
FLOORS = {"torch": "2.11", "lightning": "2.6.6", "timm": "1.0.31", "wandb": "0.29", "pillow": "13.0"}


def forbidden(tree):
    """The calls of a module that could run what a file says."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [each.name for each in node.names] + [getattr(node, "module", None) or ""]
            if any(
                name.split(".")[0] in ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal") for name in names
            ):
                yield node, "import of a pickle"
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {each.arg: each.value for each in node.keywords}
        if name in (
            "eval",
            "exec",
            "compile",
            "os.system",
            "os.popen",
            "yaml.load",
            "yaml.unsafe_load",
            "torch.export.load",
        ):
            yield node, name
        if name == "torch.load" and ast.unparse(keywords.get("weights_only", ast.Constant(None))) != "True":
            yield node, "torch.load without weights_only=True"
        if name.startswith("torch.hub.") or name.endswith("load_from_checkpoint"):
            yield node, name
        if name.endswith(".extractall") and "filter" not in keywords:
            yield node, "extractall without a filter"
        for key in ("allow_pickle", "shell"):
            if key in keywords and ast.unparse(keywords[key]) != "False":
                yield node, f"{key}={ast.unparse(keywords[key])}"


@pytest.mark.guarantee("S2")
def test_no_line_of_the_source_runs_what_a_file_says(reached):
    assert len(SOURCES) > 100
    found = []
    for file in SOURCES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found += [f"{file.relative_to(ROOT)}:{node.lineno}: {what}" for node, what in forbidden(tree)]
    assert found == []
    reached(f"{len(found)} in {len(SOURCES)} files")


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import load",
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "torch.hub.load_state_dict_from_url(url)",
        "yaml.load(text, Loader=yaml.Loader)",
        "numpy.load(path, allow_pickle=True)",
        "archive.extractall(folder)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_the_gate_finds_what_it_is_there_for(line):
    assert list(forbidden(ast.parse(line)))


def test_yaml_builds_plain_data_only():
    assert issubclass(yaml_files._LOADER, yaml.constructor.SafeConstructor)
    assert load_yaml("{a: [1, 2.5, null]}") == {"a": [1, 2.5, None]}
    for text in ("!!python/object/apply:os.getcwd []", "!!python/name:os.getcwd", "a: !!python/tuple [1]"):
        with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
            load_yaml(text)


@pytest.mark.guarantee("S7")
def test_floors_of_the_dependencies_are_those_of_the_advisories(reached):
    requirements = [Requirement(each) for each in requires("ssl-toolkit") or []]
    for name, floor in FLOORS.items():
        mine = [each for each in requirements if each.name == name]
        # Python 3.10 has no newer Pillow; README says so
        mine = [
            each for each in mine if not each.marker or each.marker.evaluate({"python_version": "3.12", "extra": ""})
        ]
        assert mine, name
        for requirement in mine:
            # the newest version before the floor is refused
            before = f"{floor}.dev0"
            assert not requirement.specifier.contains(before, prereleases=True), requirement
        assert re.search(rf"\| {name}[^|]*\| {floor}", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
        if sys.version_info >= (3, 11):
            assert Version(version(name).split("+")[0]) >= Version(floor)
    reached(f"{len(FLOORS)} floors")


@pytest.mark.guarantee("S7")
def test_the_lock_names_each_dependency_with_its_checksum_and_meets_the_floors(reached):
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    locked: dict[str, list[Version]] = {}
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        requirement, *hashes = re.split(r"\s+--hash=", line)
        name, _, rest = requirement.partition("==")
        locked.setdefault(name, []).append(Version(rest.partition(";")[0].strip()))
        assert hashes, name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), name
    for each in map(Requirement, requires("ssl-toolkit") or []):
        if not each.marker or each.marker.evaluate({"python_version": "3.12", "extra": ""}):
            assert all(each.specifier.contains(found) for found in locked[each.name]), each
    reached(f"{len(locked)} packages locked, each by its checksums")


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def payloads(mark):
    """Files that want to run something, by name: bytes, or what torch.save is to write."""
    evil = Payload(mark)
    state = {"state_dict": {"weight": torch.ones(2)}, "global_step": 1, "epoch": 0, "loops": {}}
    state["pytorch-lightning_version"] = version("lightning")
    yield "pickle.ckpt", pickle.dumps(evil)
    yield "old-pickle.ckpt", pickle.dumps(evil, protocol=0)
    yield "in-root.ckpt", evil
    yield "in-state.ckpt", {**state, "state_dict": {"weight": evil}}
    yield "in-callbacks.ckpt", {**state, "callbacks": {"Watch": evil}}
    yield "in-hyper-parameters.ckpt", {**state, "hyper_parameters": evil}
    yield "in-optimizer.ckpt", {**state, "optimizer_states": [evil]}
    yield (
        "named-instantiator.ckpt",
        {**state, "hyper_parameters": {"_instantiator": "os.system", "_class_path": "os.system"}},
    )
    yield "named-class.ckpt", {**state, "hyper_parameters": {"_class_path": "subprocess.Popen"}}
    yield "no-checkpoint.ckpt", [1, 2, 3]
    yield "text.ckpt", b"not a checkpoint"
    yield "empty.ckpt", b""
    yield "zip.ckpt", None  # a zip archive with a pickle in it, but nothing of torch's


def write(file, content, mark):
    if content is None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Payload(mark)))
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)


@pytest.mark.guarantee("S1")
@pytest.mark.parametrize(
    "forced",
    [
        pytest.param(False, id="plain"),
        pytest.param(True, id="weights_only switched off by the environment", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_hostile_files_run_nothing_wherever_they_are_given(recipe, tmp_path, monkeypatch, capsys, forced, reached):
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    mark = tmp_path / "it-ran"
    images = ["--data.source", "procedural", "--data.max_images", "60", "--data.image_size", "32"]
    run, trained = tmp_path / "run", tmp_path / "trained"
    trained.mkdir()
    shutil.copy(ROOT / "configs/transfer/linear_probe.yaml", trained / CONFIG)
    (run / CHECKPOINTS).mkdir(parents=True)
    shutil.copy(recipe, run / CONFIG)
    num = 0
    for name, content in payloads(mark):
        file = tmp_path / name
        write(file, content, mark)
        step = run / CHECKPOINTS / "step-0000000001.ckpt"
        shutil.copy(file, step)
        write_checksum(step, step)
        shutil.copy(file, trained / MODEL)
        entries = {
            "resume": ["pretrain", "--resume", str(run)],
            "evaluate": ["evaluate", "--weights", str(file), *images],
            "embed": ["embed", "--weights", str(file), *images, "--out", str(tmp_path / "out.parquet")],
            "export": ["export", "--weights", str(file), "--format", "timm", "--out", str(tmp_path / "out.pth")],
            "transfer": ["transfer", "-c", str(ROOT / "configs/transfer/linear_probe.yaml"), *images,
                         "--model.weights", str(file), "--out", str(tmp_path / "transferred")],
            "predict": ["predict", str(trained), "--data.source", "procedural", "--out", str(tmp_path / "out.csv")],
        }  # fmt: skip
        for entry, command in entries.items():
            status = main(command)
            said = capsys.readouterr().err.strip().splitlines()
            # harmless names in a checkpoint of another kind only make it one that does not fit
            assert status in (1, 2), (name, entry)
            assert sum(line.startswith("ssl-toolkit: error: ") for line in said) == 1, (name, entry, said)
            assert not mark.exists(), (name, entry)
            num += 1
    assert num == 78
    reached(f"{num} of {num} pairs of file and command refused, nothing run")
