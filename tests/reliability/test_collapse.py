"""Both kinds of collapse are said at the next look, and of a healthy run nothing is said, whatever its method."""

import copy
import json
import math
import time

import numpy as np
import pytest
import torch
import yaml

import methods
from ssl_toolkit.cli.train import train
from ssl_toolkit.health import collapse, layers
from ssl_toolkit.health.collapse import DIMENSIONAL, POINT, extent, judge
from ssl_toolkit.health.monitor import HealthMonitor
from ssl_toolkit.task import Task
from ssl_toolkit.tracking.metrics_csv import read_metrics

STEPS = 200
EVERY = 20
SEEDS = range(5)  # of made-up vectors
RUNS = range(2)  # seeds of healthy runs


def write_recipe(name, folder, class_path=None, seed=0, learns=False, **watch):
    """The method's recipe with a network, a batch and a run large enough for their figures to mean something, and with
    arguments with which it learns, if it has such."""
    written = copy.deepcopy(methods.recipe(name, folder, max_epochs=-1, max_steps=STEPS, log_every_n_steps=5))
    arguments = written["model"]["init_args"]
    arguments["backbone"]["kwargs"] |= {"stem_width": 16, "channels": [16, 32, 64, 64]}
    if "projector_widths" in arguments:
        arguments["projector_widths"] = [64, 64]
    if "part" in arguments:  # a batch is to have more images than an embedding has numbers
        arguments |= {"projector_widths": [64, 16], "part": 32}
    if learns:
        arguments |= copy.deepcopy(methods.table()[name].learns_with or {})
    written["model"]["class_path"] = class_path or written["model"]["class_path"]
    # few enough epochs that no method overfits its images
    written["data"] |= {"max_images": 2000, "batch_size": 32}
    written["watch"], written["seed"] = watch or {"every_n_steps": EVERY}, seed
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(written))
    return ["-c", str(file), "--out", str(folder / "run")]


def found_in(run):
    file = run / "watch.json"
    return json.loads(file.read_text()) if file.is_file() else []


def finite(values):
    return [value for value in values if math.isfinite(value)]


def learns(name, losses, folder, seed):
    """Whether the loss falls, or is below that of a run whose weights hardly move, on the same batches: with a queue it
    may rise, as the random negatives give way to real ones, and by chance where batches differ much."""
    if "queue" not in methods.tasks()[name].traits and sum(losses[-5:]) < sum(losses[:5]):
        return True
    at_rest = [*write_recipe(name, folder, seed=seed, learns=True, every_n_steps=0), "--model.optimizer.lr", "1e-9"]
    others = finite(read_metrics(train("pretrain", at_rest, quietly=True))["train/loss"])
    half = len(losses) // 2
    return sum(losses[half:]) < 0.97 * sum(others[half:])


# ---- made-up vectors


def gaussian(num, width, seed=0):
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed))


def naive_spread(vectors):
    unit = np.array([vector / np.linalg.norm(vector) for vector in vectors.double().numpy()])
    return math.sqrt(unit.shape[1]) * float(np.sqrt(((unit - unit.mean(axis=0)) ** 2).mean(axis=0)).mean())


def naive_rank(vectors):
    singular = np.linalg.svd(vectors.double().numpy(), compute_uv=False)
    fractions = [float(value / singular.sum()) for value in singular]
    return math.exp(-sum(fraction * math.log(fraction) for fraction in fractions if fraction > 0))


@pytest.mark.guarantee("R12")
@pytest.mark.parametrize("width", [32, 64, 128, 512])
def test_made_up_vectors_of_each_kind(width, reached):
    num = 300
    spreads, ranks = [], []
    for seed in SEEDS:
        healthy = gaussian(num, width, seed)
        point = gaussian(1, width, seed) + 1e-3 * gaussian(num, width, seed + 10)
        line = gaussian(num, 1, seed) @ gaussian(1, width, seed + 20)
        for vectors, kind in ((healthy, None), (point, POINT), (line, DIMENSIONAL)):
            measured = extent(vectors)
            first = vectors[:256]
            assert measured.spread == pytest.approx(naive_spread(first), rel=1e-4, abs=1e-9)
            assert measured.rank == pytest.approx(naive_rank(first), rel=0.02)
            assert measured.most == min(256, width)
            said = judge("embedding", measured, step=7)
            assert (said and said.kind) == kind
            if kind == POINT:
                spreads.append(measured.spread)
            if kind == DIMENSIONAL:
                assert measured.spread > 0.1, "the spread alone is blind to it"
                ranks.append(measured.rank / measured.most)
    reached(
        f"width {width}: point (spread up to {max(spreads):.1g}) and dimensional (rank up to {100 * max(ranks):.1g} %) "
        f"flagged in {len(spreads) + len(ranks)} of {2 * len(SEEDS)}"
    )


def test_too_few_vectors_tell_nothing():
    assert extent(gaussian(7, 64)) is None
    assert extent(gaussian(64, 1)) is None
    assert judge("embedding", extent(torch.full((20, 8), math.nan)), step=1) is None
    # classes need no more dimensions than there are classes
    assert judge("feature", extent(gaussian(200, 2) @ gaussian(2, 64)), step=1, by_rank=False) is None


# ---- real runs that collapse


@pytest.mark.guarantee("R12")
@pytest.mark.parametrize("kind", [POINT, DIMENSIONAL])
@pytest.mark.slow
def test_a_collapse_is_said_at_the_next_look(kind, tmp_path, monkeypatch, capsys, reached):
    arguments = write_recipe("SimCLR", tmp_path, every_n_steps=5)
    original = Task.training_step

    @torch.no_grad()
    def spoil(layer):
        if kind == POINT:
            layer.weight.mul_(1e-4)
            layer.bias.fill_(1.0)
        else:
            layer.weight.copy_(gaussian(len(layer.weight), 1) @ gaussian(1, layer.weight.shape[1], 1))
            layer.bias.zero_()

    def training_step(self, batch, batch_idx):
        if self.global_step == 7:
            spoil(self.projector[-1])
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Task, "training_step", training_step)
    options = ["--trainer.max_steps", "11", "--model.optimizer.lr", "1e-6", "--trainer.log_every_n_steps", "1"]
    run = train("pretrain", [*arguments, *options], quietly=True)
    said = [line for line in capsys.readouterr().out.splitlines() if "The embeddings have collapsed" in line]
    assert [line.partition(":")[0] for line in said] == ["watch", "watch, again"]
    assert all("at step 10" in line for line in said)
    assert [each["kind"] for each in found_in(run) if "collapse" in each["kind"]] == [f"{kind} of embeddings"]
    assert "The embeddings have collapsed" in (run / "report.html").read_text()
    metrics = read_metrics(run)
    name, least = ("spread", 0.1) if kind == POINT else ("rank", 0.05 * 64)
    at_steps = dict(zip([step + 1 for step in metrics["step"]], metrics[f"train/embedding_{name}"], strict=True))
    assert at_steps[5] > least > at_steps[10]
    reached(f"{kind} at step 8: flagged at the look of step 10")


@pytest.mark.guarantee("R12")
@pytest.mark.slow
@pytest.mark.parametrize(("task", "kind"), [("Agreement", POINT), ("Narrow", DIMENSIONAL)])
def test_a_run_that_collapses_by_itself_is_flagged(task, kind, tmp_path, reached):
    run = train("pretrain", write_recipe("SimCLR", tmp_path, class_path=f"collapsing_tasks.{task}"), quietly=True)
    found = [each for each in found_in(run) if each["kind"] == f"{kind} of embeddings"]
    assert found
    assert found[0]["what"].startswith("The embeddings have collapsed")
    metrics = read_metrics(run)
    figures = [(finite(metrics[f"train/embedding_{name}"])[-1]) for name in ("spread", "rank")]
    step = found[0]["what"].partition("at step ")[2].partition(":")[0]
    reached(
        f"{task}: {kind} flagged at step {step} of {STEPS}; at the end spread {figures[0]:.2g}, rank {figures[1]:.2g}"
    )


# ---- healthy runs


class Meter:
    """The processor's time of this thread that functions take, and how often they are called at a look or not."""

    def __init__(self, monkeypatch):
        self.inside, self.seconds, self.whole, self.start = False, 0.0, 0.0, 0.0
        for owner, name in (
            (HealthMonitor, "on_train_batch_start"),
            (HealthMonitor, "on_before_backward"),
            (HealthMonitor, "on_before_optimizer_step"),
            (HealthMonitor, "on_train_batch_end"),
            (layers, "_alive"),
            (collapse, "extent"),
        ):
            monkeypatch.setattr(owner, name, self.timed(getattr(owner, name)))
        begin, end = HealthMonitor.on_train_start, HealthMonitor.on_train_end

        def on_train_start(watch, trainer, module):
            self.start = time.thread_time()
            begin(watch, trainer, module)

        def on_train_end(watch, trainer, module):
            self.whole += time.thread_time() - self.start
            end(watch, trainer, module)

        monkeypatch.setattr(HealthMonitor, "on_train_start", on_train_start)
        monkeypatch.setattr(HealthMonitor, "on_train_end", on_train_end)

    def timed(self, function):
        def call(*args, **kwargs):
            if self.inside:
                return function(*args, **kwargs)
            self.inside, start = True, time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.inside = False
                self.seconds += time.thread_time() - start

        return call


@pytest.mark.guarantee("R12")
@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", methods.pretext_tasks())
def test_nothing_is_said_of_healthy_runs(name, tmp_path, capsys, reached):
    num_looks, least = 0, {}
    for seed in RUNS:
        run = train("pretrain", write_recipe(name, tmp_path / str(seed), seed=seed, learns=True), quietly=True)
        metrics = read_metrics(run)
        losses = finite(metrics["train/loss"])
        assert learns(name, losses, tmp_path / f"{seed} at rest", seed), "it does not learn"
        assert found_in(run) == []
        for key, values in metrics.items():
            if key.endswith(("_spread", "_rank")):
                least[key] = min([least.get(key, math.inf), *finite(values)])
        num_looks += STEPS // EVERY
    assert "watch" not in capsys.readouterr().out
    assert {"train/feature_spread", "train/feature_rank"} <= set(least)
    figures = ", ".join(f"{key.removeprefix('train/')} {value:.2g}" for key, value in least.items())
    reached(f"{name}: 0 false alarms in {num_looks} looks, {len(RUNS)} seeds of {STEPS} steps; least {figures}")


@pytest.mark.guarantee("R12")
# the watch is the same for all: one of each trait is enough
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "BarlowTwins" else pytest.mark.nightly)
        for name in methods.pretext_tasks()
        if name in methods.representatives()
    ],
)
def test_a_watched_step_costs_less_than_a_hundredth_more(name, tmp_path, monkeypatch, reached):
    meter = Meter(monkeypatch)
    steps = 100
    # 14 steps an epoch, so that rows are written as often as by default
    options = ["--data.max_images", "2000", "--data.batch_size", "128", "--trainer.log_every_n_steps", "10"]
    arguments = write_recipe(name, tmp_path, every_n_steps=steps)
    train("pretrain", [*arguments, *options, "--trainer.max_steps", str(steps)], quietly=True)
    fraction = meter.seconds / (meter.whole - meter.seconds)
    step = 1000 * meter.whole / steps
    reached(f"{name}: {100 * fraction:.2g} % of the processor's time of a step of {step:.0f} ms")
    assert 0 < fraction < 0.01
