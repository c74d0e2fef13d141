"""Whatever happens to W&B, a run makes all of its steps, with the weights and the local numbers of one without it."""

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import wandb
import yaml
from lightning.pytorch.loggers import WandbLogger
from wandb.sdk import wandb_setup

import broken_wandb
import methods
from ssl_toolkit.cli.train import train
from ssl_toolkit.run_folder import newest_checkpoint
from ssl_toolkit.tracking import Wandb, make_loggers, weights_and_biases
from ssl_toolkit.tracking.metrics_csv import read_metrics
from ssl_toolkit.tracking.weights_and_biases import GuardedWandbLogger

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds W&B's process in /proc")

# what is left of a broken W&B: collecting it would warn of its open sockets
LEFT = []
# what no two runs have in common
SPEED = ("train/images_per_second", "train/data_wait")


def write_recipe(folder, tracker):
    written = methods.recipe("SimCLR", folder, log_every_n_steps=1)
    written["tracker"] = tracker
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(written))
    return str(folder / "recipe.yaml")


def outcome(run):
    """The last weights, and the rows of the metrics file without the speed."""
    columns = {name: column for name, column in read_metrics(run).items() if name not in SPEED}
    rows = [[None if math.isnan(value) else value for value in row] for row in zip(*columns.values(), strict=True)]
    return torch.load(newest_checkpoint(run), weights_only=True), (list(columns), rows)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return outcome(train("pretrain", ["-c", write_recipe(folder, "none"), "--out", str(folder / "run")], quietly=True))


def assert_unharmed(run, plain):
    """Compares with the run without a tracker, and returns the number of steps."""
    (state, metrics), (expected, expected_metrics) = outcome(run), plain
    assert state["global_step"] == expected["global_step"]
    assert all(torch.equal(tensor, state["state_dict"][name]) for name, tensor in expected["state_dict"].items())
    assert metrics == expected_metrics
    assert (run / "report.html").is_file()
    return state["global_step"]


def failures(caught):
    return [str(warning.message) for warning in caught if "W&B failed" in str(warning.message)]


@pytest.fixture
def fresh_wandb(monkeypatch):
    """W&B with a separate process, of which nothing is left afterwards."""
    wandb.teardown()  # first: it forgets where its process was, which must not be put back
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", "/nonexistent")
    yield
    with contextlib.suppress(AttributeError):
        LEFT.append(wandb_setup._singleton)
        connection = wandb_setup._singleton._connection
        connection._cleanup()
        connection._finalizer._queue.put(None)
        connection._proc._process.kill()
        connection._proc._process.wait()
    wandb_setup._singleton = None
    os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture
def no_network(monkeypatch):
    """An API key is set up, and nobody answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    return {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": url}


@pytest.mark.guarantee("R15")
@pytest.mark.usefixtures("fresh_wandb")
@pytest.mark.parametrize(
    ("name", "num_warnings"),
    [
        ("nothing", {0}),
        ("kill", {1}),
        ("remove_folder", {0, 1}),
        ("fill_disk", {0, 1}),
        pytest.param("stop", {1}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_what_happens_to_wandb_does_not_happen_to_the_run(name, num_warnings, plain, tmp_path, monkeypatch, reached):
    monkeypatch.setattr(weights_and_biases, "ANSWER_SECONDS", 5)
    happened = broken_wandb.sabotage_at_step(monkeypatch, name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recipe = write_recipe(tmp_path, {"mode": "offline"})
        run = train("pretrain", ["-c", recipe, "--out", str(tmp_path / "run")], quietly=True)
    assert happened == [broken_wandb.STEP]
    steps = assert_unharmed(run, plain)
    said = failures(caught)
    assert len(said) in num_warnings
    reached(f"{name} at step {happened[0]}: all {steps} steps, the same weights and rows, {len(said)} warnings")


@pytest.mark.guarantee("R15")
@pytest.mark.usefixtures("fresh_wandb")
@pytest.mark.parametrize("what", [pytest.param("no network", marks=pytest.mark.slow), "no folder"])
def test_a_start_that_fails_is_said_once(what, plain, tmp_path, monkeypatch, no_network, reached):
    monkeypatch.setattr(weights_and_biases, "INIT_SECONDS", 3)
    if what == "no network":
        for name, value in no_network.items():
            monkeypatch.setenv(name, value)
    else:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "wandb").write_text("no folder")
        # W&B would go on in the system's own folder
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "run" / "wandb"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recipe = write_recipe(tmp_path, "wandb")
        run = train("pretrain", ["-c", recipe, "--out", str(tmp_path / "run")], quietly=True)
    steps = assert_unharmed(run, plain)
    assert len(failures(caught)) == 1
    reached(f"{what}: all {steps} steps, the same weights and rows, 1 warning")


@pytest.mark.guarantee("R15")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["kill", "stop", "fill_disk", "no network"])
def test_the_command_ends_well_and_soon(name, plain, tmp_path, no_network, reached):
    network = {"nothing": no_network} if name == "no network" else {}
    sabotage = "nothing" if network else name
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    env |= {"NETRC": "/nonexistent", "OMP_NUM_THREADS": "1", **network.get("nothing", {})}
    recipe = write_recipe(tmp_path, "wandb")
    command = [sys.executable, broken_wandb.__file__, sabotage, recipe, str(tmp_path / "run")]
    started = time.monotonic()
    # no pipes: a process that is left behind would hold them open
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        try:
            process.wait(timeout=240)
        finally:
            for each in (*left_behind(process.pid), process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            process.wait()
    out, err = (tmp_path / "out").read_text(), (tmp_path / "err").read_text()
    assert process.returncode == 0, err[-3000:]
    assert err.count("UserWarning: W&B failed") <= 1
    assert name == "fill_disk" or err.count("UserWarning: W&B failed") == 1
    assert "Traceback" not in err
    assert "weights: " in out
    steps = assert_unharmed(tmp_path / "run", plain)
    reached(f"{name}: all {steps} steps, exit status 0, {math.ceil(time.monotonic() - started)} s in all")


def left_behind(parent):
    """The processes that W&B started for a command, which begin their own sessions."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = file.read_bytes().split(b"\0")
            if b"--pid" in words and words[words.index(b"--pid") + 1] == str(parent).encode():
                yield int(file.parent.name)


@pytest.mark.guarantee("R15")
@pytest.mark.usefixtures("fresh_wandb")
@pytest.mark.slow
def test_a_process_that_hangs_holds_up_the_run_once(tmp_path, monkeypatch, reached):
    monkeypatch.setattr(weights_and_biases, "ANSWER_SECONDS", 2)
    logger = make_loggers(tmp_path, Wandb(mode="offline"))[1]
    logger.log_metrics({"a": 1.0}, 0)
    broken_wandb.stop(tmp_path)
    large = {f"metric {number}": float(number) for number in range(20_000)}
    seconds = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, 30):
            started = time.monotonic()
            logger.log_metrics(large, step)
            seconds.append(time.monotonic() - started)
        logger.finalize("success")
    assert failures(caught) == [
        "W&B failed (no answer within 2 s); the run goes on without it, its numbers are in metrics.csv"
    ]
    waited = [each for each in seconds if each > 2]
    assert len(waited) == 1, "the pipe to it is full: it is the waiting that is tested"
    reached(f"W&B's process hangs: one wait of {waited[0]:.1f} s where 2 are allowed, and none after it")


class Refuses:
    """A W&B run that fails whatever is asked of it."""

    id = "abc"

    def __getattr__(self, name):
        raise RuntimeError(f"{name} does not work")


@pytest.mark.guarantee("R15")
def test_no_method_of_the_logger_raises(tmp_path, monkeypatch, reached):
    arguments = {
        "log_metrics": ({"a": 1.0}, 3),
        "log_hyperparams": ({"a": 1},),
        "log_graph": (torch.nn.Linear(1, 1),),
        "log_image": ("a", [torch.zeros(3, 4, 4)]),
        "log_table": ("a", ["b"], [[1]]),
        "log_text": ("a", ["b"], [["c"]]),
        "log_audio": ("a", ["no such file.wav"]),
        "log_video": ("a", ["no such file.mp4"]),
        "watch": (torch.nn.Linear(1, 1),),
        "use_artifact": ("a",),
        "after_save_checkpoint": (None,),
        "finalize": ("success",),
        "save": (),
    }
    # static: it touches no run
    public = {name for name in dir(WandbLogger) if not name.startswith("_")} - {"download_artifact"}
    methods_of_it = {name for name in public if callable(getattr(WandbLogger, name))}
    assert set(arguments) == methods_of_it - {"LOGGER_JOIN_CHAR"}, "a new method of Lightning's logger"
    for name, given in arguments.items():
        logger = GuardedWandbLogger(tmp_path, Wandb(mode="offline"), run_id="a", config={})
        monkeypatch.setattr(logger, "_start", Refuses)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            logger.log_metrics({}, 0) if name == "finalize" else None
            getattr(logger, name)(*given)
            getattr(logger, name)(*given)
            assert (logger.name, logger.version, logger.save_dir) == ("ssl-toolkit", "a", str(tmp_path))
        assert len(failures(caught)) == (name not in ("log_graph", "after_save_checkpoint", "save")), name
    reached(f"{len(arguments)} of {len(arguments)} methods of the logger never raise")
