"""The command ``compare`` as a user gives it, fine-tuning included, and its mistakes."""

import pytest
import torch

from ssl_toolkit.cli import main
from ssl_toolkit.cli.predict import open_trained, trained_task
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation import Comparison
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import save_backbone

DATA = ["--data.source", "procedural", "--data.max_images", "60", "--data.num_threads", "1"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place = tmp_path_factory.mktemp("weights")
    for number, name in enumerate("ab"):
        torch.manual_seed(number)
        backbone = Backbone("resnet10t", kwargs={"channels": [8, 8, 8, 16]})
        save_backbone(place / f"{name}.safetensors", backbone, {"config": {"data": {"image_size": 32}}})
    return [str(place / f"{name}.safetensors") for name in "ab"]


def test_frozen_features_and_fine_tuning(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--protocol", "knn", "finetune", "--finetune.epochs", "1", "--finetune.out", "runs", "--out", "c.json"]
    assert main(["compare", "--weights", *files, *DATA, *options, "--random_weights", "false", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "better than" in said
    assert "figures: c.json" in said
    found = Comparison.load("c.json")
    assert found.weights == dict(zip("AB", files, strict=True))
    assert [(each.protocol, each.weights) for each in found.entries] == [
        (protocol, letter) for protocol in ("knn", "finetune") for letter in "AB"
    ]
    data = ImageData(source="procedural", max_images=60, image_size=32, test_fraction=0.2, num_threads=1)
    task, header = trained_task(open_trained("runs/0-procedural-A/run"))
    assert header["step"] >= 1
    right = torch.cat([task.predict(batch).argmax(dim=1) == batch.labels for batch in data.loader("test")])
    tuned = next(each for each in found.entries if (each.protocol, each.weights) == ("finetune", "A"))
    assert tuned.top1.value == pytest.approx(float(right.double().mean()))
    assert main(["compare", "--weights", *files, *DATA, "--out", "c.json"]) == 2
    assert "c.json exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.path", "nowhere"], "the folder 'nowhere' does not exist"),
        (["--data.path", "/", "nowhere"], "the folder 'nowhere' does not exist"),
        (["--data.path", "x", "x"], "the same data.path is given twice"),
        ([*DATA, "--protocol", "lineer"], "did you mean 'linear'"),
        ([*DATA, "--finetune.epochs", "0"], "--finetune.epochs is 0, expected at least 1"),
        ([*DATA, "--wieghts", "x"], "wieghts"),
        ([*DATA, "--protocol", "finetune", "--finetune.config", "finetun"], "did you mean 'finetune'"),
        ([*DATA, "--data.test_fraction", "0"], "the test split is empty"),
    ],
)
def test_mistakes_are_one_line(files, tmp_path, monkeypatch, capsys, options, said):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--weights", *files, *options]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(error) == 1
    assert said in error[0]
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_images_without_labels_are_refused(files, tmp_path, monkeypatch, capsys):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for number in range(12):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
    assert main(["compare", "--weights", *files, "--data.path", ".", "--data.labels", "none"]) == 2
    assert "have no label" in capsys.readouterr().err
