from __future__ import annotations

import csv
import json
import math
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import torch
import wandb
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ssl_toolkit.callbacks.resume_metrics import ResumeMetrics
from ssl_toolkit.checkpoint import AtomicCheckpointIO
from ssl_toolkit.run_folder import sync_command
from ssl_toolkit.tracking import (
    MetricsLogger,
    Tracker,
    Wandb,
    make_loggers,
    offline,
)
from ssl_toolkit.tracking.metrics_csv import read_metrics
from ssl_toolkit.tracking.weights_and_biases import GuardedWandbLogger

# Lightning advises more loader workers, and is behind torch
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]


class Tiny(LightningModule):
    """Four weights that are pulled to zero; a step is one of ten batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/top1", 0.25)

    def on_train_epoch_end(self) -> None:
        self.log("val/knn_top1", 0.5)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Batches:
    """Ten batches of two; its state is the place of the next one."""

    def __init__(self) -> None:
        self.samples = torch.randn(10, 2, 3, generator=torch.Generator().manual_seed(1))
        self.place = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Tensor]:
        for place in range(self.place, len(self)):
            # Lightning does not ask for what comes after the last batch
            self.place = (place + 1) % len(self)
            yield self.samples[place]

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


class Save(Callback):
    """Keeps the state after every step, as a kill between two steps would find it."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / f"{trainer.global_step}.ckpt")


def fit(
    run_dir: Path, loggers: list[Any], max_steps: int, ckpt_path: Path | None = None, more: Any = (), **options: Any
) -> Tiny:
    torch.manual_seed(0)
    task = Tiny()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=max_steps,
        logger=loggers,
        log_every_n_steps=1,
        default_root_dir=run_dir,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ResumeMetrics(), Save(), *more],
        **options,
    )
    trainer.fit(task, Batches(), Batches(), ckpt_path=ckpt_path, weights_only=True)
    return task


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    # W&B remembers the key that another test has set
    wandb.teardown()


def records(run_dir: Path, parts: str = "*") -> list[Any]:
    """The records of the offline W&B files of a run, in the order of the files' names."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for file in sorted(run_dir.glob(f"wandb/offline-run-{parts}/*.wandb")):
        # W&B's own process may still be writing
        for _ in range(100):
            of_file = [wandb_internal_pb2.Record.FromString(data) for data in leveldb_records(file.read_bytes())]
            if any(record.HasField("exit") for record in of_file):
                break
            time.sleep(0.1)
        found += of_file
    return found


def leveldb_records(data: bytes) -> list[bytes]:
    """Reads the LevelDB log format that W&B writes: a header of 7 bytes, then blocks of 32 KiB.

    Each piece in a block is a CRC (4 bytes), a length (2), a type (1: whole, 2: first, 3: middle, 4: last), the bytes.
    """
    found, pieces, place, block = [], b"", 7, 32768
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if kind == 0 or place + 7 + length > len(data):
            break  # still being written
        pieces += data[place + 7 : place + 7 + length]
        if kind in (1, 4):
            found.append(pieces)
            pieces = b""
        place += 7 + length
    return found


def history(run_dir: Path, parts: str = "*") -> list[dict[str, Any]]:
    """What was logged to W&B, row by row."""
    rows = []
    for record in records(run_dir, parts):
        if record.HasField("history"):
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


# ---- the CSV file


def test_csv_lies_in_the_run_folder_and_reads_back(tmp_path: Path) -> None:
    fit(tmp_path, make_loggers(tmp_path, "none"), max_steps=4)
    assert [file.name for file in tmp_path.glob("**/metrics.csv")] == ["metrics.csv"]
    metrics = read_metrics(tmp_path)
    assert list(metrics)[:2] == ["step", "epoch"]
    assert metrics["step"] == [0, 1, 2, 3, 3]  # the last for the end of the epoch
    assert all(loss > 0 for loss in metrics["train/loss"][:4])
    assert math.isnan(metrics["train/loss"][4])


def test_lightning_takes_the_run_folder_as_its_log_dir(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=make_loggers(tmp_path, "none"))
    assert trainer.log_dir is not None
    assert Path(trainer.log_dir) == tmp_path


@pytest.mark.parametrize("step", [4, 9, 10, 11])
def test_resumed_run_has_the_rows_of_an_uninterrupted_one(tmp_path: Path, step: int) -> None:
    fit(tmp_path, make_loggers(tmp_path, "none"), max_steps=20)
    expected = (tmp_path / "metrics.csv").read_text()
    assert expected.count("\n") == 1 + 20 + 2 * 2  # a header, the steps, the validations, the ends of the epochs
    # the run was killed while it wrote a row, long after its last checkpoint
    (tmp_path / "metrics.csv").write_text(expected[:-4])
    fit(tmp_path, make_loggers(tmp_path, "none"), max_steps=20, ckpt_path=tmp_path / f"{step}.ckpt")
    assert (tmp_path / "metrics.csv").read_text() == expected


def test_a_new_run_leaves_no_rows_of_one_that_died_before_its_first_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,epoch,train/loss\n0,0,5.0\n1,0,5.0\n")
    fit(tmp_path, make_loggers(tmp_path, "none"), max_steps=1)
    assert read_metrics(tmp_path)["step"] == [0, 0]
    assert 5.0 not in read_metrics(tmp_path)["train/loss"]


def test_new_metrics_widen_the_file(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path)
    for step, metrics in enumerate([{"a": 1.0}, {"b": torch.tensor(2.0)}, {"a": 3.0, "epoch": 1}]):
        logger.log_metrics(metrics, step)
        logger.save()
    text = (tmp_path / "metrics.csv").read_text()
    assert text == "step,epoch,a,b\n0,,1.0,\n1,,,2.0\n2,1,3.0,\n"


def test_full_disk_is_reported_once_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = MetricsLogger(tmp_path)

    def full(self: Path, *args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        patch.setattr(Path, "write_text", full)
        logger.log_metrics({"a": 1.0}, 0)
        with pytest.warns(UserWarning, match="cannot write .*No space left on device.*training goes on"):
            logger.save()
        logger.log_metrics({"a": 2.0}, 1)
        logger.save()  # says nothing a second time
    logger.finalize("success")
    assert read_metrics(tmp_path)["a"] == [1.0, 2.0]


def test_read_metrics_of_a_run_without_any(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == {}


# ---- W&B, recorded offline and read back


@pytest.mark.usefixtures("no_key")
@pytest.mark.slow
def test_offline_run_reads_back(tmp_path: Path) -> None:
    run_dir = tmp_path / "birds"
    settings = Wandb(project="flock", tags=["small", "test"], group="seeds", notes="a note", job_type="transfer")
    config = {"model": {"class_path": "pretext.simclr.SimCLR", "lr": 0.3}}
    loggers = make_loggers(run_dir, settings, config=config, pretraining={"run": "runs/eggs", "step": 7})
    fit(run_dir, loggers, max_steps=3)

    run = next(record.run for record in records(run_dir) if record.HasField("run"))
    assert (run.project, run.display_name, run.run_group) == ("flock", "birds", "seeds")
    assert (list(run.tags), run.notes, run.job_type) == (["small", "test"], "a note", "transfer")
    assert run.run_id == (run_dir / "wandb_id.txt").read_text().strip()
    stored = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert stored["model"] == config["model"]
    assert stored["pretraining"] == {"run": "runs/eggs", "step": 7}
    rows, metrics = history(run_dir), read_metrics(run_dir)
    assert [row["trainer/global_step"] for row in rows] == metrics["step"] == [0, 1, 2, 2]
    assert [row["train/loss"] for row in rows[:3]] == metrics["train/loss"][:3]
    assert any(record.HasField("exit") and record.exit.exit_code == 0 for record in records(run_dir))
    assert wandb.run is None


@pytest.mark.usefixtures("no_key")
@pytest.mark.slow
def test_resumed_run_continues_the_same_wandb_run(tmp_path: Path) -> None:
    fit(tmp_path, make_loggers(tmp_path), max_steps=12)
    fit(tmp_path, make_loggers(tmp_path), max_steps=14, ckpt_path=tmp_path / "11.ckpt")
    ids = {record.run.run_id for record in records(tmp_path) if record.HasField("run")}
    assert ids == {(tmp_path / "wandb_id.txt").read_text().strip()}
    # the last part holds the whole run, each row once
    command = sync_command(tmp_path)
    assert command is not None
    last = Path(command.removeprefix("wandb sync "))
    rows = [
        {
            name: row[name]
            for name in ("trainer/global_step", "epoch", "train/loss", "val/top1", "val/knn_top1")
            if name in row
        }
        for row in history(tmp_path, parts=last.name.removeprefix("offline-run-"))
    ]
    with (tmp_path / "metrics.csv").open() as file:
        expected = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    assert [{"step": row.pop("trainer/global_step"), **row} for row in rows] == expected
    assert len(expected) == 14 + 3


@pytest.mark.usefixtures("no_key")
def test_no_secret_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "c0ffee" * 6 + "c0ff"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("SOME_SERVICE_TOKEN", secret)
    fit(tmp_path, make_loggers(tmp_path, Wandb(mode="offline")), max_steps=2)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in files)
    assert [file for file in files if secret.encode() in file.read_bytes()] == []


def test_sync_command_quotes_and_is_none_without_an_offline_run(tmp_path: Path) -> None:
    assert sync_command(tmp_path) is None
    folder = tmp_path / "my birds" / "wandb" / "offline-run-20260101_000000-abc"
    folder.mkdir(parents=True)
    assert sync_command(tmp_path / "my birds") == f"wandb sync '{folder}'"


def test_given_id_is_kept(tmp_path: Path) -> None:
    fit(tmp_path, make_loggers(tmp_path, Wandb(mode="offline"), run_id="abc123"), max_steps=1)
    assert (tmp_path / "wandb_id.txt").read_text() == "abc123\n"
    logger = make_loggers(tmp_path, "wandb")[1]
    assert logger.version == "abc123"


def test_none_uses_the_csv_file_only(tmp_path: Path) -> None:
    assert [type(logger) for logger in make_loggers(tmp_path, "none")] == [MetricsLogger]
    assert not (tmp_path / "wandb_id.txt").exists()


def test_wandb_disabled_by_its_own_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert len(make_loggers(tmp_path, "wandb")) == 1
    assert len(make_loggers(tmp_path, Wandb(mode="offline"))) == 2


@pytest.mark.usefixtures("no_key")
def test_auto_mode_looks_for_a_key_and_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked the user"))
    assert offline("auto")
    assert not offline("online")
    file = tmp_path / "netrc"
    file.write_text("machine api.wandb.ai\n  login user\n  password " + "0" * 40 + "\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    assert not offline("auto")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert offline("auto")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", str(tmp_path / "missing"))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert not offline("auto")


# ---- a tracker that dies


class Boom:
    """A W&B run of which one method fails."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.num_logged = 0

    def log(self, *args: Any) -> None:
        self.num_logged += 1
        if self.method == "log" and self.num_logged == 3:
            raise ConnectionResetError("Connection lost")

    def finish(self, **options: Any) -> None:
        if self.method == "finish":
            raise TimeoutError("no answer")

    def define_metric(self, *args: Any, **options: Any) -> None: ...


@pytest.mark.guarantee("R15")
@pytest.mark.parametrize("method", ["init", "log", "finish"])
def test_dying_tracker_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def init(**options: Any) -> Boom:
        if method == "init":
            raise wandb.errors.CommError("no network")
        return Boom(method)

    expected = fit(tmp_path / "plain", make_loggers(tmp_path / "plain", "none"), max_steps=6)
    monkeypatch.setattr(wandb, "init", init)
    loggers = make_loggers(tmp_path / "run", Wandb(mode="offline"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = fit(tmp_path / "run", loggers, max_steps=6)
    failures = [str(warning.message) for warning in caught if "W&B failed" in str(warning.message)]
    assert len(failures) == 1
    assert "goes on without it" in failures[0]
    assert torch.equal(task.layer.weight, expected.layer.weight)
    assert (tmp_path / "run" / "metrics.csv").read_text() == (tmp_path / "plain" / "metrics.csv").read_text()


def test_picture_that_cannot_be_logged_is_only_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = GuardedWandbLogger(tmp_path, Wandb(mode="offline"), run_id="a", config={})
    monkeypatch.setattr(wandb, "init", lambda **options: Boom("none"))
    with pytest.warns(UserWarning, match="W&B failed"):
        logger.log_image("views", ["no such file.png"])
    logger.log_metrics({"a": 1.0}, 0)
    logger.log_hyperparams({"a": 1})
    logger.experiment.alert("title", "text")
    logger.finalize("success")


# ---- the command line


def parse(arguments: list[str]) -> Any:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--tracker", type=Tracker, default="wandb")
    return parser.instantiate(parser.parse_args(arguments)).tracker


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "wandb"),
        (["--tracker", "none"], "none"),
        (["--tracker", "wandb"], "wandb"),
        (["--tracker.project", "birds"], Wandb(project="birds")),
        (["--tracker.tags=[a,b]", "--tracker.mode=offline"], Wandb(tags=["a", "b"], mode="offline")),
        (["--tracker.project", "birds", "--tracker", "none"], "none"),
    ],
)
def test_command_line(arguments: list[str], expected: Any) -> None:
    assert parse(arguments) == expected


@pytest.mark.parametrize("arguments", [["--tracker", "nonne"], ["--tracker.projct", "a"], ["--tracker.mode", "on"]])
def test_command_line_refuses(arguments: list[str]) -> None:
    with pytest.raises(jsonargparse.ArgumentError):
        parse(arguments)


# ---- what a W&B run is and when it starts


def parts(run_dir: Path) -> list[str]:
    return sorted(part.name for part in run_dir.glob("wandb/*run-*"))


@pytest.mark.usefixtures("no_key")
def test_a_finished_run_that_is_resumed_makes_no_empty_part(tmp_path: Path) -> None:
    fit(tmp_path, make_loggers(tmp_path), max_steps=4)
    before, command = parts(tmp_path), sync_command(tmp_path)
    fit(tmp_path, make_loggers(tmp_path), max_steps=4, ckpt_path=tmp_path / "4.ckpt")
    assert parts(tmp_path) == before
    assert sync_command(tmp_path) == command
    assert command is not None
    assert command.endswith(before[-1])
    assert len(history(tmp_path)) == len(read_metrics(tmp_path)["step"])


@pytest.mark.usefixtures("no_key")
def test_a_part_that_was_killed_at_its_first_step_holds_all_that_came_before(tmp_path: Path) -> None:
    fit(tmp_path, make_loggers(tmp_path), max_steps=4)

    class Stop(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            raise RuntimeError("stopped")

    logger: Any = make_loggers(tmp_path)
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path, logger, max_steps=6, ckpt_path=tmp_path / "4.ckpt", more=[Stop()])
    command = sync_command(tmp_path)
    assert command is not None
    last = Path(command.removeprefix("wandb sync ")).name
    assert len(parts(tmp_path)) == 2
    rows = history(tmp_path, last.removeprefix("offline-run-"))
    assert [row["trainer/global_step"] for row in rows] == read_metrics(tmp_path)["step"] == [0, 1, 2, 3, 3]


@pytest.mark.usefixtures("no_key")
def test_a_start_that_is_refused_leaves_nothing_of_wandb(tmp_path: Path) -> None:
    fit(tmp_path, make_loggers(tmp_path, "none"), max_steps=2)
    (tmp_path / "2.ckpt").write_bytes(b"damaged")
    before = sorted(file.name for file in tmp_path.iterdir())
    resumed = {"ckpt_path": tmp_path / "2.ckpt", "plugins": [AtomicCheckpointIO()]}
    with pytest.raises(ValueError, match="is no checkpoint of a run"):
        fit(tmp_path, make_loggers(tmp_path), max_steps=4, **resumed)
    assert sorted(file.name for file in tmp_path.iterdir()) == before


@pytest.mark.usefixtures("no_key")
@pytest.mark.parametrize("max_steps", [14, 12], ids=["with steps to make", "finished"])
def test_a_tracker_switched_on_at_a_resume_gets_the_earlier_rows(tmp_path: Path, max_steps: int) -> None:
    fit(tmp_path, make_loggers(tmp_path, "none"), max_steps=12)
    assert parts(tmp_path) == []
    fit(tmp_path, make_loggers(tmp_path), max_steps=max_steps, ckpt_path=tmp_path / "12.ckpt")
    metrics = read_metrics(tmp_path)
    rows = history(tmp_path)
    assert [row["trainer/global_step"] for row in rows] == metrics["step"]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses == [loss for loss in metrics["train/loss"] if loss == loss]
    assert len(losses) == max_steps


@pytest.mark.usefixtures("no_key")
def test_a_run_of_a_sweep_keeps_the_id_of_its_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "agent-7")
    fit(tmp_path, make_loggers(tmp_path), max_steps=2)
    monkeypatch.setenv("WANDB_RUN_ID", "agent-8")  # of the next run of the same agent
    fit(tmp_path, make_loggers(tmp_path), max_steps=4, ckpt_path=tmp_path / "2.ckpt")
    monkeypatch.delenv("WANDB_RUN_ID")
    fit(tmp_path, make_loggers(tmp_path), max_steps=6, ckpt_path=tmp_path / "4.ckpt")
    assert {record.run.run_id for record in records(tmp_path) if record.HasField("run")} == {"agent-7"}
    assert (tmp_path / "wandb_id.txt").read_text() == "agent-7\n"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a/b", b"x" * 500, b""])
def test_a_damaged_id_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "wandb_id.txt").write_bytes(content)
    assert re.fullmatch("[0-9a-f]{8}", str(make_loggers(tmp_path)[1].version))
