"""Heads that read covariates: beside plain loops, what they learn that neither input tells, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from downstream.base.covariates import Covariates, covariate_head
from downstream.base.standardize import Standardize
from downstream.base.trained_head import fold_standardization
from downstream.classification import Classification
from downstream.multi_label import MultiLabel
from downstream.ordinal import OrdinalClassification
from downstream.regression import Regression
from downstream.sequence import RecurrentHead, SequenceClassification
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.data import ImageData
from ssl_toolkit.losses.soft_targets import Mixing
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.regularization import SAM, MixUp
from ssl_toolkit.schedule import Cosine
from ssl_toolkit.step import StepContext

NAN = math.nan
GIVEN = torch.tensor([[2020.0, 1.0, 5.0], [2021.0, NAN, 7.0], [2024.0, 0.0, 9.0], [2020.0, 1.0, NAN]])


def naive_inputs(rows, mean, std, gaps):
    """What a head gets, one number after the other."""
    found = []
    for row in rows:
        numbers = [0.0 if math.isnan(each) else (each - m) / s for each, m, s in zip(row, mean, std, strict=True)]
        found.append(numbers + [0.0 if math.isnan(row[number]) else 1.0 for number in gaps])
    return found


def test_covariates_are_standardized_by_what_is_known():
    covariates = Covariates.of(["year", "male", "dose"], GIVEN)
    columns = [[each for each in column if not math.isnan(each)] for column in GIVEN.T.tolist()]
    mean = [sum(column) / len(column) for column in columns]
    std = [
        math.sqrt(sum((each - m) ** 2 for each in column) / len(column))
        for column, m in zip(columns, mean, strict=True)
    ]
    np.testing.assert_allclose(covariates.mean.numpy(), mean, rtol=1e-6)
    np.testing.assert_allclose(covariates.std.numpy(), std, rtol=1e-6)
    assert (covariates.gaps, covariates.num_inputs) == ([1, 2], 5)
    # others than those of the training, too, of which one lacks what none of these did
    rows = [*GIVEN.tolist(), [NAN, 0.0, 1000.0]]
    expected = naive_inputs(rows, covariates.mean.tolist(), covariates.std.tolist(), [1, 2])
    np.testing.assert_allclose(covariates(torch.tensor(rows)).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert "of 4 training images male is not known of 1, dose is not known of 1" in covariates.words(GIVEN)


def test_without_gaps_there_is_no_further_input():
    covariates = Covariates.of(["year"], GIVEN[:, :1])
    assert covariates(GIVEN[:, :1]).shape == (4, 1)
    assert covariates.words(GIVEN[:, :1]) == "year"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([3.0, 3.0, NAN], "all training images have 3 for 'b', so that it"),
        ([NAN] * 3, "has a number for 'b'; leave"),
        # of the seconds since 1970 float32 tells 128 apart
        ([1.7e9, 1.7e9 + 256, 1.7e9 + 512], r"'b' differs by 209 around 1.7e\+09, which .* subtract a constant"),
    ],
)
def test_what_tells_nothing_is_refused(column, message):
    with pytest.raises(ValueError, match=message) as caught:
        Covariates.of(["a", "b"], torch.tensor([[1.0, 2.0, 3.0], column]).T)
    assert "\n" not in str(caught.value)


def test_units_and_offsets_that_float32_holds_play_no_role():
    exact = np.array([0.0, 100.0, 500.0, 900.0])
    expected = (exact - exact.mean()) / exact.std()
    # years, and the smallest spread and largest numbers that are taken
    for scale, offset in ((0.01, 2020.0), (1.0, 350.0 * 2**16), (1e-30, 0.0), (1e30, 0.0)):
        given = torch.from_numpy(scale * exact + offset).float().unsqueeze(1)
        np.testing.assert_allclose(Covariates.of(["a"], given)(given).numpy()[:, 0], expected, atol=0.01)


@pytest.mark.parametrize("use", ["concatenated", "multiplicative"])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("rank", [None, 2])
def test_a_head_computes_what_its_formula_says(use, kind, rank):
    torch.manual_seed(0)
    head = covariate_head(use, kind, 3, 2, 4, 5, 0.0, rank).double()
    for each in head.parameters():
        torch.nn.init.normal_(each)  # products that are not 0
    head(torch.randn(30, 5).double())
    head.eval().requires_grad_(False)
    inputs = torch.randn(6, 5).double()
    found = head(inputs)
    first = next(each for each in head if isinstance(each, torch.nn.Linear) or hasattr(each, "interaction"))
    layer = first.interaction if use == "multiplicative" else None
    linear = first if layer is None else layer.linear
    outputs = 5 if kind == "mlp" else 4
    for sample in range(6):
        x, z = inputs[sample, :3].tolist(), inputs[sample, 3:].tolist()
        hidden = []
        for k in range(outputs):
            value = 0.0 if linear.bias is None else float(linear.bias[k])
            value += sum(float(w) * each for w, each in zip(linear.weight[k], [*x, *z], strict=True))
            for i in range(3) if layer is not None else ():
                for j in range(2):
                    product = (
                        layer.products[k, i, j]
                        if rank is None
                        else sum(layer.mix[k, r] * layer.of_first[r, i] * layer.of_second[r, j] for r in range(rank))
                    )
                    value += float(product) * x[i] * z[j]
            hidden.append(value)
        if kind == "mlp":
            norm, last = head[1], head[3]
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            active = [
                max(0.0, float(scale[k]) * (hidden[k] - float(norm.running_mean[k])) + float(norm.bias[k]))
                for k in range(5)
            ]
            hidden = [
                float(last.bias[k]) + sum(float(last.weight[k, i]) * active[i] for i in range(5)) for k in range(4)
            ]
        np.testing.assert_allclose(found[sample].tolist(), hidden, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_multiplicative_head_begins_linear_and_learns_products(rank):
    head = covariate_head("multiplicative", "linear", 3, 2, 4, 5, 0.0, rank)
    x, z = torch.randn(5, 3), torch.randn(5, 2)
    zero = head(torch.zeros(5, 5))
    torch.testing.assert_close(
        head(torch.cat([x, z], dim=1)) - zero,
        (head(torch.cat([x, 0 * z], dim=1)) - zero) + (head(torch.cat([0 * x, z], dim=1)) - zero),
    )
    head(torch.cat([x, z], dim=1)).square().sum().backward()
    layer = head[1].interaction
    assert float((layer.products if rank is None else layer.mix).grad.norm()) > 0


# ---- a task


def make_task(cls=Classification, **arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", stem="small", kwargs={"channels": (8, 8, 8, 8)})
    return cls(**{"backbone": backbone, "optimizer": AdamW(lr=3e-2, weight_decay=0), "schedule": Cosine(), **arguments})


def images(**arguments):
    given = {"max_images": 60, "image_size": 16, "batch_size": 16, "cache": "memory", "covariates": ["size", "left"]}
    return ImageData(source="procedural", **{**given, **arguments})


def fitted(task, data, epochs=1):
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=epochs,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    return trainer


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """A table of red and blue images, whose class is the colour times the sign of a dose: neither tells it alone."""
    folder, random = tmp_path_factory.mktemp("coloured"), np.random.default_rng(0)
    lines = ["path,label,dose,age"]
    for number in range(160):
        red, dose = number % 2, (1 if number % 4 < 2 else -1) * random.uniform(1, 2)
        pixels = random.integers(0, 60, (16, 16, 3))
        pixels[..., 0 if red else 2] += 150
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.png")
        label = "up" if (dose > 0) == bool(red) else "down"
        age = "" if number % 7 == 0 else random.integers(20, 90)
        lines.append(f"{number:03d}.png,{label},{50 + 10 * dose:.3f},{age}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder


def colours(folder, covariates=("dose", "age")):
    return ImageData(
        table=str(folder / "table.csv"), covariates=list(covariates), image_size=16, batch_size=32, cache="memory",
        val_fraction=0.1, test_fraction=0.4,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("use", "rank", "low", "high"),
    [
        ("multiplicative", None, 0.9, 1),
        ("multiplicative", 1, 0.9, 1),
        ("concatenated", None, 0, 0.7),
        ("none", None, 0, 0.7),
    ],
)
def test_products_solve_what_neither_input_tells(coloured, use, rank, low, high, capsys):
    data = colours(coloured)
    task = make_task(freeze_backbone=True, cache_features=True, covariates=use, covariate_rank=rank, image_size=16)
    trainer = fitted(task, data, epochs=30)
    (figures,) = trainer.test(task, datamodule=data, verbose=False)
    assert low <= figures["test/top1"] <= high
    said = f"covariates, {use}: dose, age; of 80 training images age is not known of"
    assert (said in capsys.readouterr().out) == (use != "none")


def test_cached_features_train_the_same_head(coloured):
    heads = []
    for cached in (False, True):
        task = make_task(freeze_backbone=True, cache_features=cached, head="mlp", hidden=8, covariates="multiplicative")
        fitted(task, colours(coloured), epochs=2)
        heads.append(task.state_dict())
    assert all(torch.equal(each, heads[1][name]) for name, each in heads[0].items())


def test_covariates_are_concatenated_if_nothing_is_said(capsys):
    task = make_task(regularizers=[SAM()])
    fitted(task, images())
    assert task.head[1].in_features == task.backbone.num_features + 2
    assert "covariates, concatenated: size, left\n" in capsys.readouterr().out
    assert task.model_header()["covariates"] == {"names": ["size", "left"], "gaps": []}
    task = make_task(covariates="none")
    fitted(task, images())
    assert task.head[1].in_features == task.backbone.num_features
    assert "covariates" not in task.model_header()
    assert not any("covariates" in name for name in task.state_dict())


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (Regression, {"targets": ["x", "y"]}),
        (MultiLabel, {"targets": ["animal", "plant"]}),
        (OrdinalClassification, {}),
    ],
)
def test_each_task_of_single_images_reads_them(cls, arguments):
    task = make_task(cls, covariates="multiplicative", head="mlp", hidden=8)
    data = images(**arguments)
    fitted(task, data)
    batch = next(iter(data.loader("train")))
    assert not torch.equal(
        task.predict(batch), task.predict(batch._replace(covariates=batch.covariates.roll(1, dims=0)))
    )
    output = task.compute(batch)
    assert output.features.shape == (len(batch.indices), task.backbone.num_features)


def test_covariates_of_mixed_images_are_mixed():
    task = make_task()
    task.use_covariates(["a", "b"], [1])
    encoded = torch.randn(3, task.backbone.num_features + 3)
    mixing = Mixing(torch.tensor([1, 2, 0]), torch.tensor([0.75, 0.5, 1.0]))
    found = task.mixed_covariates(encoded, StepContext(mixing=mixing))
    torch.testing.assert_close(found[:, :-3], encoded[:, :-3])
    given = encoded[:, -3:]
    for place, (partner, share) in enumerate(((1, 0.75), (2, 0.5), (0, 1.0))):
        torch.testing.assert_close(found[place, -3:], share * given[place] + (1 - share) * given[partner])
    assert task.mixed_covariates(encoded, StepContext()) is encoded
    fitted(make_task(covariates="multiplicative", regularizers=[MixUp()]), images())


def test_a_head_on_plain_features_goes_on_with_covariates():
    torch.manual_seed(0)
    for kind in ("linear", "mlp"):
        head, standardize = covariate_head("concatenated", kind, 6, 2, 3, 5, 0.0), Standardize(6)
        features, given = 3 + torch.randn(50, 6) * torch.tensor([0.01, 0.1, 1, 2, 10, 1]), torch.randn(50, 2)
        head(torch.cat([standardize(features), given], dim=1))
        head.eval()
        expected = head(torch.cat([standardize.eval()(features), given], dim=1))
        fold_standardization(head, standardize.mean, standardize.variance)
        torch.testing.assert_close(head(torch.cat([features, given], dim=1)), expected, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_tells_which_covariates_there_are():
    task = make_task(covariates="multiplicative")
    data = images()
    fitted(task, data)
    other = make_task(covariates="multiplicative", image_size=16)
    state = {"state_dict": task.state_dict()}
    other.on_load_checkpoint(state)
    other.load_state_dict(task.state_dict())
    batch = next(iter(data.loader("train")))
    torch.testing.assert_close(other.predict(batch), task.predict(batch))
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    found = trainer.predict(other, datamodule=data)
    assert torch.cat(found).shape == (60, 10)
    assert other.model_header()["covariates"] == {"names": ["size", "left"], "gaps": []}
    state["state_dict"]["covariates.has_gaps"] = torch.tensor([1.0, 0.0])
    with pytest.raises(ValueError, match="the checkpoint is of a head that reads other covariates"):
        task.on_load_checkpoint(state)


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"covariates": "concatenated", "head": "cosine"},
            "head cosine reads no covariates: set model.covariates none",
        ),
        ({"covariate_rank": 2}, "covariate_rank is of covariates multiplicative, not of None"),
        ({"covariates": "multiplicative", "covariate_rank": 0}, "covariate_rank is 0, expected at least 1"),
        ({"covariates": "multiplicative", "head_weights": "x", "weights": "y"}, "does not begin with a linear layer"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_task(**arguments)


def test_data_that_do_not_fit():
    with pytest.raises(ValueError, match=r"model.covariates is multiplicative, but the data have none: name their"):
        fitted(make_task(covariates="multiplicative"), images(covariates=None))
    with pytest.raises(ValueError, match="head cosine reads no covariates"):
        fitted(make_task(head="cosine"), images())
    fitted(make_task(head="cosine", covariates="none"), images())
    task = make_task()
    fitted(task, images())
    with pytest.raises(ValueError, match="reads the covariates size, left, but the data have left, size"):
        fitted(task, images(covariates=["left", "size"]))
    pixels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    batch = Batch(Images(pixels, torch.full((2, 2), 16)), torch.arange(2), torch.zeros(2).long(), 0)
    with pytest.raises(ValueError, match="reads 2 covariates of each image, but the batch has none"):
        task.predict(batch)
    with pytest.raises(ValueError, match="reads 2 covariates of each image, but the batch has 1"):
        task.predict(batch._replace(covariates=torch.zeros(2, 1)))


def test_covariates_of_which_the_head_knows_nothing():
    task = make_task(image_size=16)
    fitted(task, images(covariates=None))
    with pytest.raises(ValueError, match="the data have the covariates size, left, but the head was made without any"):
        Trainer(accelerator="cpu", logger=False, enable_model_summary=False).test(task, datamodule=images())
    batch = next(iter(images().loader("train")))
    with pytest.raises(ValueError, match="the batch has covariates, but the data do not tell of them"):
        task.predict(batch)
    assert task.predict(batch._replace(covariates=None)).shape == (len(batch.indices), 10)


def test_bfloat16_rounds_them_too_early():
    trainer = Trainer(accelerator="cpu", precision="bf16-true", logger=False, enable_checkpointing=False, max_epochs=1)
    with pytest.raises(ValueError, match=r"trainer.precision bf16-true rounds covariates before"):
        trainer.fit(make_task(), datamodule=images())


def test_sequences_have_none():
    with pytest.raises(TypeError, match="covariates"):
        make_task(SequenceClassification, head=RecurrentHead(), covariates="concatenated")
