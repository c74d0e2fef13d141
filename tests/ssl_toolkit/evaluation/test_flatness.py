"""Flatness: exact on bowls, blind to a rescaling that changes nothing, and everything is put back."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from ssl_toolkit.cli import main
from ssl_toolkit.cli.flatness import of_run
from ssl_toolkit.evaluation import flatness
from ssl_toolkit.evaluation.flatness import direction

ALPHAS = np.linspace(-1, 1, 9)


def test_exact_on_a_bowl_that_is_round():
    """Whatever the direction, the rise is curvature / 2 x (radius x length of the weights)^2."""
    weight = torch.randn(5, 7, dtype=torch.float64)
    kept = weight.clone()
    for curvature in (0.1, 3.0):
        found = flatness(lambda c=curvature: float(c / 2 * (weight - kept).square().sum() + 1), {"w": weight}, ALPHAS)
        expected = 1 + curvature / 2 * ALPHAS**2 * float(kept.square().sum())
        for losses in found.losses:
            assert losses == pytest.approx(expected)
        assert found.loss == 1.0
        mean, spread = found.rise(0.5)
        assert mean == pytest.approx(curvature / 8 * float(kept.square().sum()))
        assert spread == pytest.approx(0, abs=1e-12)
    assert torch.equal(weight, kept)


def test_exact_on_a_bowl_of_any_shape_along_the_directions_themselves():
    torch.manual_seed(0)
    first, second = torch.randn(3, 4, dtype=torch.float64), torch.randn(2, 2, 2, 2, dtype=torch.float64)
    flat = torch.cat([first.flatten(), second.flatten()])
    root = torch.randn(28, 28, dtype=torch.float64)
    hessian = root @ root.T

    def loss():
        moved = torch.cat([first.flatten(), second.flatten()]) - flat
        return float(0.5 * moved @ hessian @ moved)

    weights = {"first": first, "second": second}
    found = flatness(loss, weights, ALPHAS, num_directions=3, seed=5)
    for index, losses in enumerate(found.losses):
        along = torch.cat([direction(weight, 5, index, name).flatten() for name, weight in weights.items()])
        curvature = float(along @ hessian @ along)
        assert losses == pytest.approx(curvature / 2 * ALPHAS**2)
    assert found.rise(1.0)[1] > 0


def test_each_filter_of_a_direction_is_as_long_as_the_networks():
    weight = torch.randn(6, 3, 2, 2) * torch.arange(6.0).reshape(6, 1, 1, 1)
    drawn = direction(weight, 0, 0, "conv")
    torch.testing.assert_close(drawn.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))
    assert not torch.equal(drawn, direction(weight, 0, 1, "conv"))
    assert torch.equal(drawn, direction(weight, 0, 0, "conv"))


def test_a_rescaling_that_changes_nothing_changes_no_figure():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).double()
    images, targets = torch.randn(4, 3, 9, 9).double(), torch.randn(4, 4, 5, 5).double()

    def loss():
        return float((network(images) - targets).square().mean())

    def measured():
        with torch.no_grad():
            return flatness(loss, dict(network.named_parameters()), ALPHAS).losses

    before = measured()
    with torch.no_grad():
        for parameter in network[0].parameters():
            parameter.mul_(100.0)
        network[2].weight.div_(100.0)
    np.testing.assert_allclose(measured(), before, rtol=1e-9)

    # and without the lengths of the filters the same step would be quite another one
    with torch.no_grad():
        network[2].weight.add_(torch.randn(8).reshape(1, 8, 1, 1) * 0.1)
    assert not np.allclose(measured(), before, rtol=1e-2)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="two or more dimensions"):
        flatness(lambda: 0.0, {"bias": torch.ones(3)}, ALPHAS)
    with pytest.raises(ValueError, match="directions is 0"):
        flatness(lambda: 0.0, {"weight": torch.ones(3, 3)}, ALPHAS, num_directions=0)


def test_the_weights_are_put_back_after_an_error():
    weight = torch.randn(3, 3)
    kept = weight.clone()

    def loss():
        if torch.equal(weight, kept):
            return 0.0
        raise RuntimeError

    with pytest.raises(RuntimeError):
        flatness(loss, {"w": weight}, ALPHAS)
    assert torch.equal(weight, kept)


SIDES = {
    "pretrain": ("pretext.simclr.SimCLR", {"view": {"size": 16}, "projector_widths": [16, 8]}),
    "transfer": ("downstream.classification.Classification", {}),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each side."""
    folder = tmp_path_factory.mktemp("runs")
    for command, (class_path, arguments) in SIDES.items():
        recipe = {
            "model": {
                "class_path": class_path,
                "init_args": {
                    "backbone": {"name": "resnet10t", "kwargs": {"stem_width": 8, "channels": [8, 8, 8, 8]}},
                    "optimizer": {"class_path": "ssl_toolkit.optim.SGD"},
                    "schedule": {"class_path": "ssl_toolkit.schedule.Cosine"},
                    "regularizers": [{"class_path": "ssl_toolkit.regularization.SAM"}],
                    **arguments,
                },
            },
            "data": {"source": "procedural", "max_images": 80, "image_size": 16, "batch_size": 16, "cache": "memory"},
            "trainer": {"max_steps": 3, "max_epochs": -1, "accelerator": "cpu"},
            "tracker": "none",
        }
        (folder / f"{command}.yaml").write_text(yaml.safe_dump(recipe))
        assert main([command, "-c", str(folder / f"{command}.yaml"), "--out", str(folder / command)]) == 0
    return folder


@pytest.mark.slow
def test_runs_of_both_sides_side_by_side(runs, tmp_path, capsys):
    folders = [str(runs / command) for command in SIDES]
    before = {file: file.stat().st_mtime_ns for run in folders for file in (runs / run).rglob("*")}
    out = tmp_path / "new" / "flatness.png"
    options = ["--out", str(out), "--directions", "2", "--points", "5", "--radius", "0.3"]
    assert main(["flatness", *folders, *options]) == 0
    assert before == {file: file.stat().st_mtime_ns for run in folders for file in (runs / run).rglob("*")}
    figures = json.loads(out.with_suffix(".json").read_text())
    assert list(figures) == folders
    for each in figures.values():
        assert each["alphas"] == pytest.approx([-1, -0.5, -0.3, 0, 0.3, 0.5, 1])
        assert np.shape(each["losses"]) == (2, 7)
        assert np.isfinite(each["losses"]).all()
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert "rise at 0.3" in capsys.readouterr().out


@pytest.mark.slow
def test_the_loss_in_the_middle_is_that_of_the_checkpoint(runs, monkeypatch):
    """All weights, BatchNorm statistics and buffers are afterwards those of the checkpoint, and the same twice."""
    from lightning.pytorch import Trainer

    seen = {}
    original = Trainer.validate

    def validate(self, model, *args, **kwargs):
        result = original(self, model, *args, **kwargs)
        seen["state"], seen["loss"] = model.state_dict(), float(self.callback_metrics["val/loss"])
        return result

    monkeypatch.setattr(Trainer, "validate", validate)
    run = runs / "transfer"
    first, again = (of_run(run, [-0.5, 0.5], 2, 1000, 0) for _ in range(2))
    np.testing.assert_array_equal(first.losses, again.losses)
    saved = torch.load(next((run / "checkpoints").glob("*.ckpt")), weights_only=True)["state_dict"]
    assert saved.keys() == seen["state"].keys()
    for name, tensor in saved.items():
        assert torch.equal(tensor, seen["state"][name]), name
    # 8 validation images are one batch
    assert first.loss == pytest.approx(seen["loss"], rel=1e-5)
    assert not math.isclose(first.losses[0, 0], first.loss)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "runs"),
        (["runs/transfr"], "did you mean"),
        (["runs/transfer", "--radius", "0"], "--radius is 0"),
        (["runs/transfer", "--directions", "0"], "--directions is 0"),
        (["runs/transfer", "--out", "picture.jpg", "--directions", "1", "--points", "1"], "is no PNG"),
    ],
)
def test_errors_are_one_line(runs, arguments, message, capsys):
    arguments = [each.replace("runs", str(runs)) for each in arguments]
    assert main(["flatness", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
