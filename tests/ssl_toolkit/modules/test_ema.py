"""The EMA teacher: its arithmetic, and that nothing else touches it."""

import copy

import pytest
import torch
from torch import nn

from ssl_toolkit.modules import Backbone, EMATeacher


def networks():
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", stem="small", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    return backbone, nn.Sequential(nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def changed(*modules):
    """Other weights, as after some steps."""
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape))


def test_it_begins_as_a_copy_that_shares_nothing_and_needs_no_gradient():
    backbone, projector = networks()
    teacher = EMATeacher(backbone=backbone, projector=projector)
    for name, parameter in teacher.named_parameters():
        its = {"backbone": backbone, "projector": projector}[name.partition(".")[0]]
        original = its.get_parameter(name.partition(".")[2])
        assert torch.equal(parameter, original)
        assert parameter.data_ptr() != original.data_ptr()
        assert not parameter.requires_grad
    assert all(parameter.requires_grad for parameter in (*backbone.parameters(), *projector.parameters()))
    assert len(list(teacher.parameters())) == len([*backbone.parameters(), *projector.parameters()])
    assert teacher.network("backbone").num_features == backbone.num_features


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_an_update_is_the_weighted_mean_of_every_weight(momentum):
    backbone, projector = networks()
    teacher = EMATeacher(backbone=backbone, projector=projector)
    before = copy.deepcopy(dict(teacher.named_parameters()))
    buffers = copy.deepcopy(dict(teacher.named_buffers()))
    changed(backbone, projector)
    teacher.update(momentum)
    students = {f"backbone.{name}": each for name, each in backbone.named_parameters()}
    students |= {f"projector.{name}": each for name, each in projector.named_parameters()}
    for name, parameter in teacher.named_parameters():
        expected = momentum * before[name] + (1 - momentum) * students[name]
        torch.testing.assert_close(parameter, expected, atol=1e-6, rtol=1e-5)
    # running statistics are of what the teacher itself has seen
    assert all(torch.equal(each, buffers[name]) for name, each in teacher.named_buffers())


def test_it_computes_what_the_students_compute_without_gradient():
    backbone, projector = networks()
    teacher = EMATeacher(backbone=backbone, projector=projector)
    images = torch.rand(5, 3, 16, 16)
    expected = projector(backbone(images))
    found = teacher(images)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    # as in the student, BatchNorm uses the batch and moves its own statistics
    assert torch.equal(teacher.network("projector")[1].running_mean, projector[1].running_mean)
    assert teacher.network("projector")[1].num_batches_tracked == 1


def test_synchronising_takes_over_weights_and_statistics():
    backbone, projector = networks()
    teacher = EMATeacher(backbone=backbone, projector=projector)
    changed(backbone, projector)
    projector[1].running_mean.fill_(3.0)
    teacher.synchronize()
    assert all(torch.equal(mine, its) for mine, its in zip(teacher.network("projector").state_dict().values(),
                                                           projector.state_dict().values(), strict=True))  # fmt: skip
    assert torch.equal(next(teacher.network("backbone").parameters()), next(backbone.parameters()))


def test_a_copy_of_a_task_has_a_teacher_that_follows_the_copy():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.student = nn.Linear(2, 2)
            self.teacher = EMATeacher(student=self.student)

    original = Holder()
    copied = copy.deepcopy(original)
    kept = original.teacher.network("student").weight.clone()
    nn.init.zeros_(copied.student.weight)
    copied.teacher.update(0.0)
    assert not copied.teacher.network("student").weight.any()
    assert torch.equal(original.teacher.network("student").weight, kept)
