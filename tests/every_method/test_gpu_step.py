"""In each method's step, and between two steps, nothing waits for a GPU (`tests/test_gpu_steps.py`)."""

import pytest
import yaml

import methods
from fake_gpu import Questions, fake_step
from ssl_toolkit.callbacks import Throughput, nonfinite
from ssl_toolkit.cli.train import train

# how many frames a sequence has, is asked in each step
NAMES = [name for name in methods.tasks() if not methods.needs_sequences(name)]


@pytest.mark.parametrize("name", methods.each(NAMES))
def test_a_step_neither_asks_a_gpu_nor_brings_it_numbers(name, tmp_path, monkeypatch):
    assert fake_step(methods.recipe(name, tmp_path), methods.command(name), tmp_path, monkeypatch) == {}


@pytest.mark.parametrize("name", methods.each(NAMES))
def test_between_two_steps_nothing_is_asked_either(name, tmp_path, monkeypatch):
    """The loop around the steps, on a CPU: Lightning, the callbacks, the optimizer, the schedule, the log."""
    monkeypatch.setattr(nonfinite, "_is_behind", lambda device: True)
    questions = Questions()
    start, end = Throughput.on_train_batch_start, Throughput.on_train_batch_end

    def begin(self, trainer, module, batch, batch_idx):
        if batch_idx == 1:
            questions.__enter__()
        start(self, trainer, module, batch, batch_idx)

    def finish(self, trainer, module, outputs, batch, batch_idx):
        end(self, trainer, module, outputs, batch, batch_idx)
        if batch_idx == 3:
            questions.__exit__(None, None, None)

    monkeypatch.setattr(Throughput, "on_train_batch_start", begin)
    monkeypatch.setattr(Throughput, "on_train_batch_end", finish)
    recipe = methods.recipe(name, tmp_path, max_epochs=1)
    arguments = recipe["model"]["init_args"]
    for view in (*arguments.get("views", {}).values(), arguments.get("view")):
        if view is not None:
            view["blur"] = 0  # on a CPU it asks which views are to be blurred
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    command = ["-c", str(file), "--out", str(tmp_path / "run"), "--watch.every_n_steps", "0"]
    train(methods.command(name), command, quietly=True)
    files = {line.split(":")[0] for line in questions.found}
    # the verdict on a step that is over
    assert files == {"/ssl_toolkit/callbacks/nonfinite.py"}, questions.found
