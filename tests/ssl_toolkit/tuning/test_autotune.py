from __future__ import annotations

import math
import shutil

import pytest
import torch

from pretext.simclr import SimCLR
from ssl_toolkit.augment import RandomView
from ssl_toolkit.data import ImageData
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.schedule import Cosine
from ssl_toolkit.step import StepContext
from ssl_toolkit.tuning import autotune
from ssl_toolkit.tuning.autotune import KeptChoices, fastest, measure_batch, speed_candidates

FACTORS = {"bf16-mixed": 1.0, "32-true": 4.0, "channels_last": 1.2, "contiguous": 1.0, True: 0.99, False: 1.0}
CANDIDATES = {"precision": ["bf16-mixed", "32-true"], "format": ["channels_last", "contiguous"], "fused": [False, True]}


def cost(settings):
    return math.prod(FACTORS[value] for value in settings.values())


def tiny_task(**kwargs):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    return SimCLR(backbone=backbone, view=RandomView(size=16), optimizer=SGD(lr=0.01), schedule=Cosine(), **kwargs)


def test_the_fastest_is_found_and_what_gains_next_to_nothing_is_left():
    choice = fastest(CANDIDATES, cost)
    assert choice.settings == {"precision": "bf16-mixed", "format": "contiguous", "fused": False}
    assert [trial.seconds for trial in choice.trials] == [cost(trial.settings) for trial in choice.trials]
    assert len(choice.trials) == 4
    assert "with precision 32-true, format channels_last 4.80 times as long" in str(choice)
    assert "with fused True 0.99 times as long" in str(choice)


def test_what_fails_is_not_chosen(tmp_path):
    def measure(settings):
        if settings["format"] == "contiguous":
            raise RuntimeError("out of memory")
        return cost(settings)

    choice = fastest(CANDIDATES, measure)
    assert choice.settings == {"precision": "bf16-mixed", "format": "channels_last", "fused": False}
    assert "contiguous" not in str(choice)
    kept = KeptChoices(tmp_path / "speed.json")
    kept.keep({}, CANDIDATES, choice)
    assert kept.find({}, CANDIDATES) == choice


def test_a_choice_is_kept_for_the_same_question_only(tmp_path):
    kept = KeptChoices(tmp_path / "folder" / "speed.json")
    assert kept.find({"model": "a"}, CANDIDATES) is None
    choice = fastest(CANDIDATES, cost)
    kept.keep({"model": "a"}, CANDIDATES, choice)
    kept.keep({"model": "b"}, CANDIDATES, choice._replace(day="1999-12-31"))
    assert kept.find({"model": "a"}, CANDIDATES) == choice
    assert kept.find({"model": "b"}, CANDIDATES) == choice._replace(day="1999-12-31")
    assert kept.find({"model": "a"}, {"precision": ["32-true"]}) is None


@pytest.mark.parametrize("content", ["", "[", "[]", '{"a": 1}', "\x00"])
def test_a_damaged_file_is_as_good_as_none(content, tmp_path):
    kept = KeptChoices(tmp_path / "speed.json")
    kept.path.write_text(content)
    assert kept.find({}, CANDIDATES) is None
    kept.keep({}, CANDIDATES, fastest(CANDIDATES, cost))
    assert kept.find({}, CANDIDATES) is not None


def test_without_a_place_to_write_nothing_is_kept(tmp_path):
    (tmp_path / "file").touch()
    KeptChoices(tmp_path / "file" / "speed.json").keep({}, CANDIDATES, fastest(CANDIDATES, cost))
    assert (tmp_path / "file").read_bytes() == b""


def test_candidates_are_what_the_machine_can_do(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(autotune, "has_native_bf16", lambda device: False)
    assert speed_candidates(SimCLR, cpu)["trainer.precision"] == ["32-true"]
    assert speed_candidates(SimCLR, torch.device("cuda"))["trainer.precision"] == ["16-mixed", "32-true"]
    monkeypatch.setattr(autotune, "has_native_bf16", lambda device: True)
    candidates = speed_candidates(SimCLR, cpu)
    assert candidates["trainer.precision"] == ["bf16-mixed", "32-true"]
    assert candidates["model.init_args.memory_format"] == ["channels_last", "contiguous"]


def test_threads_are_tried_where_nobody_else_decides_on_them(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(autotune, "threads_are_chosen", lambda: False)
    monkeypatch.setattr(autotune, "num_cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert speed_candidates(SimCLR, cpu)["threads"] == [4, 8, 2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(autotune, "num_cores", lambda: 1)
    assert speed_candidates(SimCLR, cpu)["threads"] == [1]
    assert "threads" not in speed_candidates(SimCLR, gpu)
    assert "threads" not in speed_candidates(SimCLR, cpu, num_processes=2)
    monkeypatch.setattr(autotune, "threads_are_chosen", lambda: True)
    assert "threads" not in speed_candidates(SimCLR, cpu)


def test_a_trial_takes_a_small_batch_and_gives_the_data_back_as_they_were():
    sizes = []

    class Watched(SimCLR):
        def loss(self, views, context):
            sizes.append(len(views[0]))
            return super().loss(views, context)

    task = tiny_task()
    task.__class__ = Watched
    data = ImageData(source="procedural", max_images=120, image_size=16, batch_size=50, cache="memory")
    data.setup("fit")
    assert 0 < measure_batch(task, data, {"accelerator": "cpu"}, seconds=0.0) < 10
    assert sizes == [32] * 5
    assert data.batch_size == 50


@pytest.mark.parametrize(("memory_format", "channels_last"), [("channels_last", True), ("contiguous", False)])
def test_the_memory_format_is_that_of_the_weights(memory_format, channels_last):
    task = tiny_task(memory_format=memory_format, sync_batchnorm=False)
    task.setup("fit")
    weight = task.backbone.model.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert weight.is_contiguous() != channels_last


def test_two_forward_passes_are_one_where_nothing_looks_at_the_whole_batch():
    views = (torch.rand(6, 3, 16, 16), torch.rand(6, 3, 16, 16))
    task = tiny_task(forward_passes=2)
    assert "model.init_args.forward_passes" in speed_candidates(SimCLR, torch.device("cpu"))
    for training, equal in ((False, True), (True, False)):
        outputs = []
        for passes in (1, 2):
            task.forward_passes = passes
            outputs.append(task.train(training).loss(views, StepContext(training)))
        assert outputs[0].features.shape == outputs[1].features.shape == (12, task.backbone.num_features)
        assert torch.allclose(outputs[0].features, outputs[1].features, atol=1e-5) == equal
        assert torch.allclose(outputs[0].loss, outputs[1].loss, atol=1e-5) == equal


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_a_compiled_backbone_computes_the_same_and_keeps_its_names(monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # the compiler does not know its wrappers
    views = (torch.rand(8, 3, 16, 16), torch.rand(8, 3, 16, 16))
    losses, names = [], []
    for compile in (False, True):
        task = tiny_task(compile=compile, sync_batchnorm=False)
        task.setup("fit")
        loss = task.loss(views, StepContext()).loss
        loss.backward()
        losses.append((loss.item(), task.backbone.model.conv1[0].weight.grad.norm().item()))
        names.append(list(task.state_dict()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert names[0] == names[1]
