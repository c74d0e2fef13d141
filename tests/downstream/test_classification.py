"""Classification: what is trained and what is not, learning rates by depth, metrics, weights files, few labels."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from PIL import Image
from timm.optim import param_groups_layer_decay

from downstream.base import CosineHead
from downstream.base.classifier import accuracies, count_by_class
from downstream.classification import Classification
from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.data import ImageData
from ssl_toolkit.init import Keep, Normal
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import SGD, AdamW
from ssl_toolkit.regularization import FeatureNorm, LabelSmoothing, VarianceCovariance
from ssl_toolkit.schedule import Constant, Cosine
from ssl_toolkit.tracking import MetricsLogger
from ssl_toolkit.tracking.metrics_csv import last_values
from ssl_toolkit.weights import WeightsError, save_backbone

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]

COLOURS = {"blue": (40, 60, 200), "green": (40, 200, 60), "red": (200, 60, 40)}


def make_backbone(seed=0, width=8, **arguments):
    torch.manual_seed(seed)
    return Backbone("resnet10t", kwargs={"channels": (width, width, 2 * width, 2 * width)}, **arguments)


def make_task(**arguments):
    defaults = {"optimizer": AdamW(lr=1e-2), "schedule": Cosine()}
    if "weights" not in arguments:
        defaults["backbone"] = make_backbone()
    return Classification(**{**defaults, **arguments})


def make_trainer(**arguments):
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **arguments,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Discs of three colours at random places on noise: 20 images of 32 pixels for each colour."""
    path = tmp_path_factory.mktemp("discs")
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :32]
    for name, colour in COLOURS.items():
        (path / name).mkdir()
        for number in range(20):
            pixels = random.integers(60, 160, (32, 32, 3), dtype=np.uint8)
            top, left = random.integers(10, 22, 2)
            pixels[(rows - top) ** 2 + (columns - left) ** 2 < 100] = colour
            Image.fromarray(pixels).save(path / name / f"{number}.png")
    return path


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, make_backbone(seed=5), {"task": "pretext.simclr.SimCLR", "step": 17, "config": {"seed": 4}})
    return str(path)


def make_data(folder, **arguments):
    defaults = {"labels": "folder", "image_size": 32, "batch_size": 16, "cache": "memory", "val_fraction": 0.2}
    return ImageData(path=str(folder), **{**defaults, **arguments})


def make_batch(num, num_classes=3, size=32):
    torch.manual_seed(num)
    pixels = torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8)
    images = Images(pixels, torch.full((num, 2), size))
    return Batch(images, torch.arange(num), torch.arange(num) % num_classes, 0)


def test_a_linear_probe_learns_and_leaves_the_backbone_untouched(folder, weights):
    flips = RandomView(size=32, jitter_prob=0, grayscale=0, blur=0)
    task = make_task(weights=weights, freeze_backbone=True, optimizer=AdamW(lr=0.1), augmentation=flips)
    before = {name: tensor.clone() for name, tensor in task.backbone.state_dict().items()}
    trainer = make_trainer(max_epochs=8)
    trainer.fit(task, datamodule=make_data(folder))
    after = task.backbone.state_dict()
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in task.backbone.parameters())
    assert trainer.callback_metrics["val/top1"] > 0.8


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"layer_decay": 0.7}, "layer_decay is 0.7, but freeze_backbone"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing saves nothing with freeze_backbone"),
        ({"regularizers": [FeatureNorm(0.1)]}, "FeatureNorm changes what the backbone learns, but all of it is frozen"),
        ({"regularizers": [VarianceCovariance(0.1)]}, "VarianceCovariance changes what the backbone learns"),
    ],
)
def test_what_a_frozen_backbone_would_ignore_is_refused(arguments, expected):
    with pytest.raises(ValueError, match=expected) as refused:
        make_task(freeze_backbone=True, **arguments).check()
    assert "\n" not in str(refused.value)
    make_task(**arguments).check()


def test_a_frozen_backbone_computes_as_in_evaluation():
    task = make_task(freeze_backbone=True, num_classes=3, image_size=32)
    batch = make_batch(4)
    task.train()
    trained = task.backbone_features(batch.images, batch.indices)
    standardized = task.encode(batch, batch.indices)
    task.eval()
    assert torch.equal(trained, task.backbone_features(batch.images, batch.indices))
    assert not trained.requires_grad
    alive = trained.std(dim=0) > 0.01
    assert alive.any()
    assert torch.allclose(standardized.mean(dim=0), torch.zeros(16), atol=1e-3)
    assert torch.allclose(standardized.std(dim=0, correction=0)[alive], torch.ones(int(alive.sum())), atol=0.02)


def test_a_cosine_head_sees_directions_alone():
    torch.manual_seed(0)
    head, features = CosineHead(5, 3).double(), torch.randn(4, 5, dtype=torch.float64)
    scores, classes = head(features), head.classes.weight
    for image in range(4):
        for number in range(3):
            lengths = features[image].norm() * classes[number].norm()
            assert torch.isclose(scores[image, number], 10 * features[image] @ classes[number] / lengths)
    with torch.no_grad():
        head.classes.weight *= torch.tensor([[2.0], [0.1], [30.0]])
    assert torch.allclose(head(7 * features), scores, rtol=1e-12)
    # the gradient turns a class's vector, and its scale learns
    head(features).square().sum().backward()
    assert torch.allclose((head.classes.weight.grad * head.classes.weight).sum(dim=1), torch.zeros(3).double())
    assert head.scale.grad.abs() > 0


def test_a_cosine_head_has_no_use_for_the_head_of_a_probe(weights):
    with pytest.raises(ValueError, match="head_weights is not for Classification with a head that"):
        make_task(weights=weights, head="cosine", head_weights="model.safetensors")


@pytest.mark.parametrize("head", ["linear", "mlp", "cosine"])
def test_fine_tuning_learns(folder, head):
    task = make_task(
        head=head, hidden=32, layer_decay=0.7, head_lr_factor=2.0, dropout=0.1, regularizers=[LabelSmoothing(0.1)]
    )
    before = task.backbone.model.conv1[0].weight.clone()
    data = make_data(folder, val_fraction=0.1, test_fraction=0.2)
    trainer = make_trainer(max_epochs=8, limit_val_batches=0)
    trainer.fit(task, datamodule=data)
    assert not torch.equal(before, task.backbone.model.conv1[0].weight)
    assert trainer.callback_metrics["train/loss"] < 0.8 < np.log(3)
    metrics = trainer.test(task, datamodule=data, verbose=False)[0]
    assert metrics["test/top1"] > 0.8

    probabilities = torch.cat([task.predict(batch) for batch in data.loader("test")])
    labels = data.labels("test")
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(len(labels)))
    right = probabilities.argmax(dim=1) == labels
    assert metrics["test/top1"] == pytest.approx(right.float().mean().item())
    for number, name in enumerate(data.class_names):
        assert metrics[f"test/top1_of/{name}"] == pytest.approx(right[labels == number].float().mean().item())
    assert metrics["test/mean_class_top1"] == pytest.approx(
        np.mean([metrics[f"test/top1_of/{name}"] for name in data.class_names])
    )
    again = trainer.predict(task, data.loader("test"))
    assert again is not None
    assert torch.allclose(torch.cat(again), probabilities)


def test_a_class_without_test_images_is_not_in_the_mean(folder, tmp_path):
    for name in ("blue", "red"):
        shutil.copytree(folder / name, tmp_path / "test" / name)
    data = make_data(folder, test_path=str(tmp_path / "test"))
    task, trainer = make_task(freeze_backbone=True), make_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(task, datamodule=data)
    metrics = trainer.test(task, datamodule=data, verbose=False)[0]
    of_classes = {name.rpartition("/")[2]: value for name, value in metrics.items() if "top1_of" in name}
    assert of_classes.keys() == {"blue", "red"}
    assert metrics["test/mean_class_top1"] == pytest.approx(np.mean(list(of_classes.values())))
    assert metrics["test/mean_class_top1"] > 0


def test_a_test_measures_its_own_images_and_nothing_of_what_was_measured_before(folder):
    data = make_data(folder, test_fraction=0.3)
    task, trainer = make_task(freeze_backbone=True), make_trainer(max_epochs=1)
    trainer.fit(task, datamodule=data)
    first = trainer.test(task, dataloaders=data.loader("test"), verbose=False)[0]
    trainer.test(task, dataloaders=data.loader("train"), verbose=False)
    assert trainer.test(task, dataloaders=data.loader("test"), verbose=False)[0] == first
    assert all(name.startswith("test/") for name in first)


def test_the_validation_counts_each_image_once_with_batches_of_two_sizes(folder):
    # an average of batches would weigh an image of the second batch 7/6-fold
    data = make_data(folder, batch_size=12, val_fraction=13 / 60)
    task = make_task(freeze_backbone=True)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(task, datamodule=data)
    assert [len(batch.indices) for batch in data.loader("val")] == [7, 6]
    logits = [task.predict(batch).log() for batch in data.loader("val")]
    expected = F.cross_entropy(torch.cat(logits), data.labels("val")).item()
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(expected, rel=1e-4)


def test_accuracies_against_sorting():
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 8), torch.randint(0, 8, (50,))
    ranks = [sorted(range(8), key=lambda c, row=row: -row[c]).index(t) for row, t in zip(logits, targets, strict=True)]
    values = accuracies(logits, targets)
    assert values["top1"].item() == pytest.approx(np.mean([rank < 1 for rank in ranks]))
    assert values["top5"].item() == pytest.approx(np.mean([rank < 5 for rank in ranks]))
    assert set(accuracies(logits[:1, :5], targets[:1] % 5)) == {"top1"}
    assert set(accuracies(logits[:, :2], targets % 2)) == {"top1"}


def test_counts_by_class():
    targets = torch.tensor([0, 0, 2, 2, 2])
    right = torch.tensor([True, False, True, True, False])
    assert count_by_class(right, targets, 4).tolist() == [[1, 2], [0, 0], [2, 3], [0, 0]]


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "convnext_atto", "efficientnet_b0", "regnety_002", "mobilenetv3_small_050"]
)
def test_learning_rates_fall_with_depth_below_the_head(name):
    with torch.device("meta"):
        backbone = Backbone(name)
    task = make_task(backbone=backbone, layer_decay=0.5, head_lr_factor=10.0)
    factors = [task.lr_factor(parameter) for parameter, _ in task.named_parameters()]
    # timm lists the parameters from the stem to the last stage
    assert factors == sorted(factors)
    assert factors[-1] == 0.5
    assert sorted(set(factors)) == [0.5**depth for depth in range(len(set(factors)), 0, -1)]
    assert task.lr_factor("head.0.weight") == 10.0
    if name == "resnet18":
        assert task.lr_factor("backbone.model.conv1.weight") == 0.5**5
        assert task.lr_factor("backbone.model.layer4.1.bn2.weight") == 0.5


def test_learning_rates_order_parameters_as_timm_does():
    backbone = make_backbone()
    task = make_task(backbone=backbone, layer_decay=0.5)
    by_timm = {}
    for group in param_groups_layer_decay(backbone.model, layer_decay=0.5):
        by_timm.update({id(parameter): group["lr_scale"] for parameter in group["params"]})
    ours = {
        id(parameter): task.lr_factor(f"backbone.model.{name}") for name, parameter in backbone.model.named_parameters()
    }
    pairs = sorted((by_timm[key], ours[key]) for key in ours)
    assert [pair[1] for pair in pairs] == sorted(ours.values())


def test_the_optimizer_gets_these_rates(folder):
    task = make_task(layer_decay=0.5, head_lr_factor=10.0, optimizer=SGD(lr=0.1), schedule=Constant())
    trainer = make_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(task, datamodule=make_data(folder))
    rates = {
        id(parameter): group["lr"] for group in trainer.optimizers[0].param_groups for parameter in group["params"]
    }
    assert rates[id(task.backbone.model.conv1[0].weight)] == pytest.approx(0.1 * 0.5**5)
    assert rates[id(task.head[1].weight)] == pytest.approx(1.0)


def test_a_frozen_backbone_is_not_in_the_optimizer(folder):
    task = make_task(freeze_backbone=True)
    trainer = make_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(task, datamodule=make_data(folder))
    trained = [parameter for group in trainer.optimizers[0].param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in task.head.parameters()}


def test_weights_bring_their_backbone_and_their_history(weights, capsys):
    task = make_task(weights=weights)
    total = len(task.backbone.model.state_dict())
    assert f"{total} of {total} tensors loaded from {weights}" in capsys.readouterr().out
    expected = make_backbone(seed=5).model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in task.backbone.model.state_dict().items())
    assert task.pretraining is not None
    assert {key: task.pretraining[key] for key in ("weights", "task", "step", "config")} == {
        "weights": weights,
        "task": "pretext.simclr.SimCLR",
        "step": 17,
        "config": {"seed": 4},
    }
    assert make_task().pretraining is None


def test_weights_go_into_a_backbone_that_is_the_same_network(weights, capsys):
    given = make_backbone(seed=6)
    task = make_task(weights=weights, backbone=given)
    assert task.backbone is given
    assert torch.equal(given.model.conv1[0].weight, make_backbone(seed=5).model.conv1[0].weight)
    assert "tensors loaded" in capsys.readouterr().out


@pytest.mark.parametrize("other", [{"width": 16}, {"stem": "small"}])
def test_weights_of_another_network_are_refused(weights, other):
    with pytest.raises(WeightsError, match="does not fit this backbone"):
        make_task(weights=weights, backbone=make_backbone(**other))


def test_an_initialisation_may_not_overwrite_the_weights(folder, weights):
    task = make_task(weights=weights, init=[Normal(pattern="weight")])
    with pytest.raises(ValueError, match=r"matches backbone\.model\.conv1.*begin with \^head"):
        make_trainer(max_steps=1).fit(task, datamodule=make_data(folder))
    task = make_task(weights=weights, init=[Keep("^backbone|bias$"), Normal(pattern=r"^head.*weight", std=0.1)])
    make_trainer(max_steps=1, limit_val_batches=0).fit(task, datamodule=make_data(folder))


def test_the_head_depends_on_the_seed_and_on_nothing_else():
    heads = []
    for seed, noise in ((1, 0), (1, 9), (2, 0)):
        task = make_task(num_classes=3, seed=seed)
        torch.manual_seed(noise)
        task.setup("test")
        heads.append(task.head[1].weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_few_labels_train_on_few_images(folder):
    data = make_data(folder, labels_per_class=2, batch_size=3)
    seen = set()
    task = make_task(freeze_backbone=True)
    task.on_train_batch_end = lambda outputs, batch, number: seen.update(batch.indices.tolist())
    make_trainer(max_epochs=3).fit(task, datamodule=data)
    assert seen == set(data.indices("train").tolist())
    assert torch.bincount(data.labels("train")).tolist() == [2, 2, 2]
    tenth = make_data(folder, label_fraction=0.25, val_fraction=0.2)
    tenth.setup()
    assert torch.bincount(tenth.labels("train")).tolist() == [4, 4, 4]


def test_views(folder):
    batch = make_batch(4)
    task = make_task(augmentation=RandomView(size=24), num_classes=3)
    assert task.image_size == 24
    assert task.example_views(batch).shape == (4, 1, 3, 24, 24)
    task.eval()
    first, second = (task.make_views(batch.images, keys) for keys in (batch.indices, batch.indices + 1))
    assert torch.equal(first, second)
    task = make_task()
    with pytest.raises(ValueError, match="image_size is not known"):
        task.make_views(batch.images, batch.indices)
    make_trainer(max_steps=1, limit_val_batches=0).fit(task, datamodule=make_data(folder))
    assert task.image_size == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": None}, "model.weights .* or model.backbone.name"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"head_lr_factor": -1.0}, "head_lr_factor is -1.0"),
        ({"image_size": 0}, "image_size is 0"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"hidden": 0}, "hidden is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_task(**arguments)


def test_data_that_do_not_fit(folder):
    with pytest.raises(ValueError, match=r"these have 0; set data\.labels: folder"):
        make_trainer(max_steps=1).fit(make_task(), datamodule=make_data(folder, labels="none"))
    with pytest.raises(ValueError, match="num_classes is 2, but the data have 3 classes"):
        make_trainer(max_steps=1).fit(make_task(num_classes=2), datamodule=make_data(folder))
    with pytest.raises(ValueError, match="num_classes is not known"):
        make_task().setup("test")


@pytest.mark.parametrize("name", ["dataloader_idx_1", "loss", "a.b", "top1_of", "nan", "=1+1"])
def test_a_class_of_any_name_has_its_figure(folder, tmp_path, name):
    shutil.copytree(folder, tmp_path / "discs")
    (tmp_path / "discs" / "red").rename(tmp_path / "discs" / name)
    data = make_data(tmp_path / "discs", test_fraction=0.5)
    task, logger = make_task(), MetricsLogger(tmp_path / "run")
    trainer = make_trainer(max_steps=1)
    trainer.fit(task, datamodule=data)
    trainer.loggers = [logger]
    metrics = trainer.test(task, datamodule=data, verbose=False)[0]
    logger.save()
    assert 0 <= metrics[f"test/top1_of/{name}"] <= 1
    assert last_values(tmp_path / "run")[f"test/top1_of/{name}"] == pytest.approx(metrics[f"test/top1_of/{name}"])
