"""Multi-task pretraining: each task is what it is alone, and the sum is that of the weights."""

import pytest
import safetensors
import torch
import yaml

import methods
from pretext.multi_task import MultiTask
from pretext.rotation import Rotation
from pretext.simclr import SimCLR
from pretext.spark import SparK
from pretext.swav import SwAV
from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.cli.train import train
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.run_folder import newest_checkpoint
from ssl_toolkit.schedule import Constant, Linear, Progress, Scheduled
from ssl_toolkit.task import StepContext
from ssl_toolkit.weights import read_header

NUM = 6
SIMCLR = {"view": {"size": 24}, "projector_widths": [16, 8]}
BYOL = {"view": {"size": 24}, "projector_widths": [16, 8], "predictor_width": 16}


def simclr(**shared):
    return SimCLR(view=RandomView(24), projector_widths=(16, 8), **shared)


def rotation(**shared):
    return Rotation(view=RandomView(20), **shared)


def make(tasks, **arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", stem="small", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    return MultiTask(backbone=backbone, optimizer=SGD(), schedule=Constant(), tasks=tasks, **arguments)


def batch():
    pixels = torch.randint(0, 256, (NUM, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Batch(Images(pixels, torch.full((NUM, 2), 32)), torch.arange(NUM), torch.full((NUM,), -1), 0)


def gradients(module, loss):
    module.zero_grad()
    loss.backward()
    return {name: each.grad.clone() for name, each in module.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("name", ["first", "second"])
def test_each_task_is_what_it_is_alone(name):
    several = make({"first": simclr, "second": rotation}).double().eval()
    part = several.parts[name]
    alone = (
        {"first": simclr, "second": rotation}[name](backbone=several.backbone, optimizer=SGD(), schedule=Constant())
        .double()
        .eval()
    )
    state = {f"backbone.{key}": value for key, value in several.backbone.state_dict().items()} | part.state_dict()
    alone.load_state_dict(state)
    expected = alone.compute(batch())
    metrics = several.compute(batch()).metrics
    assert metrics[f"{name}_loss"].item() == expected.loss.item()
    assert {f"{name}_{each}": value.item() for each, value in expected.metrics.items()}.items() <= {
        each: value.item() for each, value in metrics.items()
    }.items()


def test_loss_and_gradient_are_the_weighted_sums():
    several = make({"first": simclr, "second": rotation}, weights={"first": 0.5, "second": 3.0}).double().eval()
    whole = several.compute(batch())
    found = gradients(several, whole.loss)
    losses = [each.compute(batch()).loss for each in several.parts.values()]
    assert whole.loss.item() == pytest.approx(0.5 * losses[0].item() + 3 * losses[1].item(), rel=1e-12)
    first, second = (gradients(several, each) for each in losses)
    assert not set(first) >= set(found)  # each has layers of its own
    for name, each in found.items():
        expected = 0.5 * first.get(name, torch.zeros_like(each)) + 3 * second.get(name, torch.zeros_like(each))
        torch.testing.assert_close(each, expected, rtol=1e-9, atol=1e-12)


def test_the_weight_of_a_task_may_move():
    falling = Scheduled(1.0, 0.0, Linear())
    several = make({"first": simclr, "second": rotation}, weights={"second": falling}).double().eval()
    losses = {name: each.compute(batch()).loss.item() for name, each in several.parts.items()}
    for step, weight in ((0, 1.0), (25, 0.75), (100, 0.0)):
        context = StepContext(True, Progress(step, 100, 10), batch())
        loss = several.step(batch(), several.keys(batch()), context).loss
        assert loss.item() == pytest.approx(losses["first"] + weight * losses["second"], rel=1e-9)


def test_the_backbone_is_there_once():
    several = make({"first": simclr, "second": rotation})
    names = [name for name in several.state_dict() if "backbone" in name]
    assert names
    assert all(name.startswith("backbone.") for name in names)
    assert all(each.backbone is several.backbone for each in several.parts.values())


class Hooked(SimCLR):
    def on_train_epoch_start(self):
        """Would never be called."""


def test_a_task_with_a_hook_that_would_not_be_called_is_refused():
    with pytest.raises(
        ValueError, match=r"^model\.tasks\.one: Hooked has on_train_epoch_start of its own, which is not"
    ):
        make({"one": lambda **shared: Hooked(view=RandomView(24), projector_widths=(8,), **shared)})


def test_a_task_may_hold_its_gradients_back_for_a_part_of_the_run():
    def swav(**shared):
        return SwAV(view=RandomView(24), projector_widths=(16, 8), num_prototypes=4, frozen_until=0.5, **shared)

    several = make({"swav": swav, "rotation": rotation})
    weight = several.parts["swav"].prototypes.weight
    optimizer = SGD(lr=0.1).build([{"params": list(several.parameters())}])
    for step, moves in ((0, False), (49, False), (50, True)):
        several.progress = Progress(step, 100, 10)
        before = weight.detach().clone()
        optimizer.zero_grad()
        output = several.compute(batch())
        output.loss.backward()
        several.on_before_optimizer_step(optimizer)
        optimizer.step()
        with torch.no_grad():
            several.after_optimizer_step(Progress(step + 1, 100, 10), output.kept)
        assert (not torch.equal(weight, before)) == moves


def test_what_one_task_has_no_use_for_another_may_train():
    """SparK leaves the normalisation of a ConvNeXt's head alone, which is part of the features that SimCLR sees."""
    kwargs = {"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}

    def spark(**shared):
        return SparK(view=RandomView(64), decoder_width=32, **shared)

    for tasks, trained in (({"spark": spark}, False), ({"spark": spark, "simclr": simclr}, True)):
        several = MultiTask(
            backbone=Backbone("convnext_atto", kwargs=kwargs), optimizer=SGD(), schedule=Constant(), tasks=tasks
        )
        head = list(several.backbone.model.head.parameters())
        assert head
        assert all(each.requires_grad == trained for each in head)


def test_its_bounds_are_the_weighted_sums():
    several = make({"first": simclr, "second": rotation}, weights={"first": 2.0, "second": 0.5})
    first, second = several.parts.values()
    assert several.initial_loss(9) == pytest.approx(2 * first.initial_loss(9) + 0.5 * second.initial_loss(9))
    assert several.least_loss(9) == pytest.approx(2 * first.least_loss(9))
    below, above = several.initial_loss_margin
    assert below == pytest.approx(2 * first.initial_loss_margin[0] + 0.5 * second.initial_loss_margin[0])
    assert above == pytest.approx(2 * first.initial_loss_margin[1] + 0.5 * second.initial_loss_margin[1])


def test_pictures_are_those_of_all_tasks():
    several = make({"first": simclr, "second": rotation})
    pictures = several.example_views(batch())
    assert pictures.shape == (NUM, 2 + 4, 3, 24, 24)
    views = several.parts["first"].example_views(batch())
    assert torch.equal(pictures[:, :2], views)
    # those of 20 px have a white frame
    assert (pictures[:, 2:, :, :2] == 1).all()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"tasks": {}}, "model.tasks is empty, expected at least one task by its name"),
        ({"tasks": {"a.b": simclr}}, "model.tasks has the name 'a.b', expected letters, digits and underscores"),
        (
            {"tasks": {"type": simclr}},
            "model.tasks has the name 'type', which means something else; choose another one",
        ),
        (
            {"tasks": {"rotation": rotation}, "weights": {"rotatoin": 1.0}},
            "model.weights has 'rotatoin', which is none of model.tasks; did you mean 'rotation'",
        ),
        (
            {"tasks": {"rotation": rotation}, "weights": {"rotation": -1.0}},
            "model.weights.rotation is -1.0, expected at least 0",
        ),
        (
            {"tasks": {"one": lambda **shared: MultiTask(tasks={"two": rotation}, **shared)}},
            "model.tasks.one is a MultiTask; give its tasks themselves",
        ),
        (
            {
                "tasks": {
                    "one": lambda **shared: SimCLR(view=RandomView(24), projector_widths=(8,), temperature=0, **shared)
                }
            },
            "model.tasks.one: model.temperature is 0, expected above 0",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, expected):
    with pytest.raises(ValueError, match=f"^{expected}"):
        make(**arguments)


def write(folder, tasks, **arguments):
    recipe = methods.recipe("MultiTask", folder, max_epochs=1)
    recipe["model"]["init_args"] |= {"tasks": tasks, "weights": None, **arguments}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return ["-c", str(file), "--out", str(folder / "run")]


@pytest.mark.slow
def test_the_teacher_of_a_task_is_exported(tmp_path):
    byol = {"class_path": "pretext.byol.BYOL", "init_args": {**BYOL, "export": "teacher", "momentum": 0.5}}
    tasks = {"byol": byol, "simclr": {"class_path": "pretext.simclr.SimCLR", "init_args": SIMCLR}}
    run = train("pretrain", write(tmp_path, tasks), quietly=True)
    assert read_header(run / "backbone.safetensors")["network"] == "teacher"
    state = torch.load(newest_checkpoint(run), weights_only=True)["state_dict"]
    with safetensors.safe_open(run / "backbone.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118 - it is no dict
            assert torch.equal(file.get_tensor(key), state[f"tasks.byol.teacher.backbone.model.{key}"])
    folder = tmp_path / "two"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"several of model\.tasks export their teacher's backbone"):
        train("pretrain", write(folder, {"byol": byol, "again": byol}))


def test_what_concerns_the_run_cannot_be_given_to_a_part(tmp_path):
    part = {"class_path": "pretext.simclr.SimCLR", "init_args": {**SIMCLR, "gradient_checkpointing": True}}
    said = (
        "model.tasks: pretext.simclr.SimCLR: gradient_checkpointing belongs to the whole run: give model.gradient_che"
    )
    with pytest.raises(ValueError, match=f"^{said}ckpointing$"):
        train("pretrain", write(tmp_path, {"simclr": part}))
    typed = [*write(tmp_path, {"simclr": {**part, "init_args": SIMCLR}}), "--model.tasks.simclr.optimizer", "SGD"]
    with pytest.raises(
        ValueError, match=r"^model\.tasks\.simclr\.optimizer belongs to the whole run: give model\.opti"
    ):
        train("pretrain", typed)


def test_a_wrong_key_of_a_part_is_named_with_the_nearest(tmp_path):
    part = {"class_path": "pretext.simclr.SimCLR", "init_args": SIMCLR}
    typed = [*write(tmp_path, {"simclr": part}), "--model.tasks.simclr.temperatur", "1"]
    with pytest.raises(
        ValueError, match=r"^unknown key model\.tasks\.simclr\.temperatur; did you mean 'temperature'\?$"
    ):
        train("pretrain", typed)
