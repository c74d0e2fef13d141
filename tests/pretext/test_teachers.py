"""What tasks with a teacher guarantee: nothing but the hook moves it, and it may be what is exported."""

import json
import shutil
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import yaml
from lightning.pytorch import Callback

import methods
from parity import without_chance
from pretext.base import TeacherTask
from ssl_toolkit.augment import RandomView, Views
from ssl_toolkit.cli.train import train
from ssl_toolkit.modules import Backbone, FeatureQueue
from ssl_toolkit.optim import AdamW, parameter_groups
from ssl_toolkit.run_folder import newest_checkpoint
from ssl_toolkit.schedule import Cosine
from ssl_toolkit.task import StepContext
from ssl_toolkit.tracking.metrics_csv import read_metrics
from ssl_toolkit.weights import load_backbone, read_header

TEACHERS = [name for name, each in methods.pretext_tasks().items() if issubclass(each, TeacherTask)]


class Moves(Callback):
    """Follows the teacher by hand: after each step a weighted mean of what it was and of the student."""

    worst = []  # noqa: RUF012 - there is no other way out of a run

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        self.before = [each.clone() for each in task.teacher.parameters()]

    def on_train_batch_end(self, trainer, task, *_):
        progress = trainer.global_step / trainer.estimated_stepping_batches
        momentum = 1 - (1 - 0.9) * (1 - progress)
        # in the teacher's order, in which they have been put together
        students = [each for name, _ in task.teacher.named_children() for each in getattr(task, name).parameters()]
        for before, student, teacher in zip(self.before, students, task.teacher.parameters(), strict=True):
            expected = momentum * before + (1 - momentum) * student
            self.worst.append(float((teacher - expected).detach().abs().max()))


def write(name, folder, changes=(), **trainer):
    recipe = methods.recipe(name, folder, max_epochs=1, **trainer)
    recipe["model"]["init_args"] |= dict(changes)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return ["-c", str(file), "--out", str(folder / "run")]


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("name", methods.each(TEACHERS))
def test_the_teacher_moves_once_a_step_by_the_schedule_of_its_momentum(name, accumulated, tmp_path):
    Moves.worst.clear()
    linear = {"value": 0.9, "end": 1.0, "schedule": {"class_path": "ssl_toolkit.schedule.Linear"}}
    command = write(name, tmp_path, {"momentum": linear}, accumulate_grad_batches=accumulated)
    if accumulated == 1:
        command += ["--trainer.callbacks", json.dumps([{"class_path": "test_teachers.Moves"}])]
    run = train("pretrain", command, quietly=True)
    if accumulated == 1:
        assert len(Moves.worst) > 100
        assert max(Moves.worst) < 1e-6
    state = torch.load(newest_checkpoint(run), weights_only=True)["state_dict"]
    # the momentum is 1 in the end, so teacher and student differ
    assert any(not torch.equal(state[f"teacher.{name}"], state[name]) for name in state if f"teacher.{name}" in state)


def built(name, **changes):
    arguments = {**methods.table()[name].arguments, **changes}
    if "view" in arguments:
        arguments["view"] = RandomView(**arguments["view"])
    else:
        arguments["views"] = {view: Views(**each) for view, each in arguments["views"].items()}
    torch.manual_seed(0)
    backbone = Backbone(**arguments.pop("backbone", methods.BACKBONE))
    return methods.tasks()[name](backbone=backbone, optimizer=AdamW(), schedule=Cosine(), **arguments)


@pytest.mark.parametrize("name", methods.each(TEACHERS))
def test_neither_optimizer_nor_ddp_sees_the_teacher(name):
    task = built(name)
    mine = {id(each) for each in task.teacher.parameters()}
    grouped = [id(each) for group in parameter_groups(task, 0.1, 0.1) for each in group["params"]]
    assert not mine & set(grouped)
    ignored = set(task._equal_everywhere())
    assert {f"teacher.{each}" for each, _ in task.teacher.named_parameters()} <= ignored
    queues = [each for each in task.modules() if isinstance(each, FeatureQueue)]
    assert len(ignored) == len(mine) + 2 * len(queues)


@pytest.mark.parametrize("name", methods.each(TEACHERS))
def test_initialisations_reach_the_teacher(name, tmp_path):
    init = [
        {"class_path": "ssl_toolkit.init.Keep", "init_args": {"pattern": ""}},
        {"class_path": "ssl_toolkit.init.Normal", "init_args": {"pattern": "^backbone.*conv", "std": 0.3}},
    ]
    command = write(name, tmp_path, {"init": init, "momentum": 1.0}, max_steps=2)
    run = train("pretrain", [*command, "--trainer.max_epochs", "-1", "--model.optimizer.lr", "1e-12"], quietly=True)
    state = torch.load(newest_checkpoint(run), weights_only=True)["state_dict"]
    convolutions = [key for key in state if key.startswith("backbone.") and "conv" in key and state[key].ndim == 4]
    assert len(convolutions) > 5
    for key in convolutions:
        torch.testing.assert_close(state[f"teacher.{key}"], state[key], atol=1e-6, rtol=0)
        assert state[key].std().item() == pytest.approx(0.3, rel=0.2)


@pytest.mark.parametrize("name", methods.each(TEACHERS))
@pytest.mark.slow
def test_the_teacher_may_be_what_is_exported_and_evaluated(name, tmp_path):
    evaluated = ["--evaluation.every_n_epochs", "1", "--data.labels", "folder", "--model.momentum", "0.5"]
    runs = {}
    for export in ("student", "teacher"):
        folder = tmp_path / export
        folder.mkdir()
        command = write(name, folder)
        runs[export] = train("pretrain", [*command, *evaluated, "--model.export", export], quietly=True)
    state = torch.load(newest_checkpoint(runs["teacher"]), weights_only=True)["state_dict"]
    for export, prefix in (("student", "backbone.model."), ("teacher", "teacher.backbone.model.")):
        weights = runs[export] / "backbone.safetensors"
        tensors = safetensors.torch.load_file(weights)
        assert all(torch.equal(tensor, state[f"{prefix}{key}"]) for key, tensor in tensors.items())
        assert read_header(weights)["network"] == export
        assert load_backbone(weights).num_features == 16
    ranks = [read_metrics(runs[export])["val/rank_me"][-1] for export in runs]
    assert ranks[0] != ranks[1]


@pytest.mark.parametrize("name", methods.each(TEACHERS))
def test_an_average_of_the_student_that_would_not_be_exported_is_refused(name, tmp_path):
    command = write(name, tmp_path)
    with pytest.raises(ValueError, match=r"^average.kind ema averages the student, but .* exports its teacher.*$"):
        train("pretrain", [*command, "--average.kind", "ema", "--model.export", "teacher"])
    assert not (tmp_path / "run").exists()


def set_up(name, **changes):
    """A task as a run sets it up, in float64, with a batch of views."""
    task = built(name, **changes)
    task.trainer = SimpleNamespace(world_size=1, precision="64-true")
    task.setup("fit")
    torch.manual_seed(1)
    views = tuple(torch.rand(6, 3, size, size, dtype=torch.float64) for size in task.sizes)
    without_chance(task)
    return task, views


@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
@pytest.mark.parametrize("name", methods.each(TEACHERS))
def test_the_memory_format_reaches_the_teacher(name, memory_format):
    task, _ = set_up(name, memory_format=memory_format)
    for backbone in (task.backbone, task.teacher.network("backbone")):
        kernels = [each for each in backbone.parameters() if each.ndim == 4 and each.shape[2] > 1]
        assert kernels
        lasting = [each.is_contiguous(memory_format=torch.channels_last) for each in kernels if each.shape[1] > 1]
        assert all(each is (memory_format == "channels_last") for each in lasting)


@pytest.mark.parametrize("name", methods.each(TEACHERS))
def test_activation_checkpointing_changes_nothing_with_a_teacher(name):
    outcomes = []
    for gradient_checkpointing in (False, True):
        task, views = set_up(name, gradient_checkpointing=gradient_checkpointing)
        loss = task.loss(views, StepContext()).loss
        loss.backward()
        gradients = [each.grad for each in task.parameters() if each.grad is not None]
        outcomes.append((loss.detach(), gradients, dict(task.named_buffers())))
    torch.testing.assert_close(*outcomes, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", methods.each(TEACHERS))
def test_the_teacher_s_backbone_is_compiled_too(name, monkeypatch):
    compiled = []
    monkeypatch.setattr(Backbone, "compile", lambda self: compiled.append(self))
    task, _ = set_up(name, compile=True)
    assert compiled == [task.backbone, task.teacher.network("backbone")]


@pytest.mark.parametrize("name", methods.each(TEACHERS))
@pytest.mark.slow
def test_a_run_of_a_teacher_resumed_after_its_first_step_is_the_same(name, tmp_path):
    command = write(name, tmp_path, {"regularizers": [{"class_path": "ssl_toolkit.regularization.SAM"}]})
    options = ["--checkpoint.every_n_steps", "1", "--checkpoint.keep", "99", "--average.kind", "ema"]
    run = train("pretrain", [*command, *options], quietly=True)
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    for file in sorted((broken / "checkpoints").glob("step-*"))[2:]:
        file.unlink()
    train("pretrain", ["--resume", str(broken)], quietly=True)
    whole, resumed = (torch.load(newest_checkpoint(each), weights_only=True)["state_dict"] for each in (run, broken))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_wrong_arguments_are_refused():
    for changes, expected in (
        ({"momentum": 1.5}, "model.momentum is 1.5, expected at least 0 and at most 1"),
        ({"export": "techer"}, "model.export is 'techer', expected student or teacher"),
    ):
        with pytest.raises(ValueError, match=expected):
            built("BYOL", **changes)
