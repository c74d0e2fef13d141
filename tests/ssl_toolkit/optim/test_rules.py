"""Rules by name: learning-rate factors, weight decay, freezing, and rates that stay constant."""

import pytest
import torch
import yaml
from torch import nn

from ssl_toolkit.cli.train import train
from ssl_toolkit.optim import ParameterRule, check_rules, freeze, parameter_groups
from ssl_toolkit.run_folder import newest_checkpoint


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)


def table(module, *rules, lr_factor=lambda name: 1.0):
    """For each parameter its learning rate, weight decay, and whether its rate stays constant."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = parameter_groups(module, 0.1, 0.01, lr_factor, rules)
    assert len({group["name"] for group in groups}) == len(groups)
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"], group["constant_lr"])
        for group in groups
        for parameter in group["params"]
    }


def test_without_rules_vectors_are_not_decayed():
    assert table(Network()) == {
        "body.0.weight": (0.1, 0.01, False), "body.0.bias": (0.1, 0.0, False), "body.1.weight": (0.1, 0.0, False),
        "body.1.bias": (0.1, 0.0, False), "head.weight": (0.1, 0.01, False), "head.bias": (0.1, 0.0, False),
    }  # fmt: skip


def test_each_rule_says_what_it_says_and_the_last_one_wins():
    rules = [
        ParameterRule("^head", lr_factor=10, weight_decay_factor=0),
        ParameterRule("bias$", weight_decay_factor=0.5),
        ParameterRule("^head", lr_factor=3, constant_lr=True),
        ParameterRule(r"^body\.1", constant_lr=False),
    ]
    found = table(Network(), *rules, lr_factor=lambda name: 0.5 if name.startswith("body") else 1.0)
    assert found["body.0.weight"] == pytest.approx((0.05, 0.01, False))
    assert found["body.0.bias"] == pytest.approx((0.05, 0.005, False))
    assert found["body.1.weight"] == pytest.approx((0.05, 0.0, False))
    assert found["head.weight"] == pytest.approx((0.3, 0.0, True))
    assert found["head.bias"] == pytest.approx((0.3, 0.005, True))


def test_freezing():
    network = Network()
    rules = [ParameterRule("^body", freeze=True), ParameterRule(r"^body\.1", freeze=False)]
    freeze(rules, network)
    assert {name for name, each in network.named_parameters() if not each.requires_grad} == {
        "body.0.weight", "body.0.bias",
    }  # fmt: skip
    assert "body.0.weight" not in table(network, *rules)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"pattern": "(", "freeze": True}, "no regular expression"),
        ({"pattern": "head"}, "says nothing; give lr_factor"),
        ({"pattern": "head", "lr_factor": -1.0}, "lr_factor of 'head' is -1.0, expected 0 or more"),
        ({"pattern": "head", "weight_decay_factor": -1.0}, "weight_decay_factor of 'head' is -1.0"),
    ],
)
def test_wrong_rules_are_refused(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        ParameterRule(**arguments)


def test_a_rule_for_nothing_is_refused():
    with pytest.raises(ValueError, match=r"no parameter has a name that matches 'haed'; names look like .*head.bias"):
        check_rules([ParameterRule("haed", freeze=True)], Network())


RECIPE = """
model:
  class_path: downstream.classification.Classification
  init_args:
    backbone: {name: resnet10t, kwargs: {stem_width: 8, channels: [8, 8, 8, 8]}}
    optimizer: {class_path: ssl_toolkit.optim.SGD, init_args: {lr: 0.1, weight_decay: 0.01}}
    schedule: {class_path: ssl_toolkit.schedule.Linear}
    weight_decay_schedule: {value: 0.04, end: 0.4, schedule: {class_path: ssl_toolkit.schedule.Linear}}
    rules:
      - {pattern: '^backbone[.]model[.]conv1', freeze: true}
      - {pattern: '^head', lr_factor: 2.0, constant_lr: true}
      - {pattern: 'layer1.*conv', weight_decay_factor: 0.5}
data: {source: procedural, max_images: 40, image_size: 16, batch_size: 8, cache: memory, test_fraction: 0}
trainer: {max_steps: 4, max_epochs: -1, accelerator: cpu, limit_val_batches: 0}
checkpoint: {every_n_steps: 1, keep: 9}
tracker: none
"""


@pytest.mark.slow
def test_rules_and_a_schedule_of_the_weight_decay_in_a_run_and_after_a_resume(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    run = train("transfer", ["-c", str(file), "--out", str(tmp_path / "run")], quietly=True)
    states = [torch.load(run / "checkpoints" / f"step-{step:010d}.ckpt", weights_only=True) for step in range(1, 5)]
    first, last = (each["state_dict"] for each in (states[0], states[-1]))
    frozen = [name for name in first if name.startswith("backbone.model.conv1") and "weight" in name]
    assert frozen
    assert all(torch.equal(first[name], last[name]) for name in frozen)
    assert not torch.equal(first["backbone.model.layer1.0.conv1.weight"], last["backbone.model.layer1.0.conv1.weight"])
    for step, state in enumerate(states):
        groups = state["optimizer_states"][0]["param_groups"]
        # the rate is that of the next step already, the decay that of the step that was made
        decay = 0.4 + (0.04 - 0.4) * (1 - step / 4)
        for group in groups:
            assert group["weight_decay"] == pytest.approx(decay * group["weight_decay_factor"])
            assert group["lr"] == pytest.approx(0.2 if group["constant_lr"] else 0.1 * (1 - (step + 1) / 4))
        assert {group["weight_decay_factor"] for group in groups} == {0.0, 0.5, 1.0}
    for step in (2, 3, 4):
        (run / "checkpoints" / f"step-{step:010d}.ckpt").unlink()
    train("transfer", ["--resume", str(run)], quietly=True)
    resumed = torch.load(newest_checkpoint(run), weights_only=True)
    assert all(torch.equal(tensor, resumed["state_dict"][name]) for name, tensor in last.items())
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["rules"][0]["freeze"] is True
