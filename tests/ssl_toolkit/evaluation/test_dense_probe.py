"""The dense probe: networks of which the answer is known, scikit-learn, and as a part of an evaluation."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from ssl_toolkit.cli import main
from ssl_toolkit.data import ImageData
from ssl_toolkit.data.masks import open_masks
from ssl_toolkit.evaluation import dense_maps, evaluate
from ssl_toolkit.evaluation.dense import check_dense, measure_dense
from ssl_toolkit.evaluation.dense_maps import DenseMaps, DenseSettings, features_at, predict_masks, sample_pixels
from ssl_toolkit.evaluation.intervals import bootstrap_interval
from ssl_toolkit.evaluation.logistic_regression import LinearClassifier
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.evaluation.resampled_pixels import accuracy_of, miou_of, percentile_interval, resampled_sums
from ssl_toolkit.evaluation.segmentation import image_confusions, mean_iou
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import save_backbone

GENERATOR = torch.Generator().manual_seed(0)


class Made(nn.Module):
    """A network whose map is a function of the images, a place for each pixel."""

    def __init__(self, function, channels=3):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.zeros(1))
        self.stages, self.stage_channels, self.most = ["map"], [channels], 0

    def map_sides(self, side):
        return {"map": side}

    def feature_maps(self, x):
        self.most = max(self.most, len(x))
        return {"map": self.function(x)}


def drawings(max_images=60, image_size=24, **options):
    data = ImageData(
        source="procedural", max_images=max_images, image_size=image_size, test_fraction=0.4, val_fraction=0.2,
        **{"num_threads": 1, "batch_size": 16, **options},
    )  # fmt: skip
    data.setup()
    return data


COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], dtype=np.uint8)


def write_pictures(folder, num=24, block=8, groups=None):
    """Images that are their own masks: each class has its colour, in blocks of pixels."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    generator = np.random.default_rng(0)
    for number in range(num):
        mask = generator.choice(3, (3, 4), p=[0.6, 0.3, 0.1]).repeat(block, axis=0).repeat(block, axis=1)
        Image.fromarray(COLOURS[mask]).save(folder / "images" / f"{number:02}.png")
        mask[0, block] = 255
        Image.fromarray(mask.astype(np.uint8)).save(folder / "masks" / f"{number:02}.png")
    return folder


def pictures(folder, **options):
    fractions = {} if "table" in options else {"val_fraction": 0.25, "test_fraction": 0.4}
    path = str(folder / "images")
    defaults = {"image_size": 24, "num_threads": 1, "batch_size": 10, **fractions}
    data = ImageData(path=path, **{**defaults, **options})
    data.setup()
    return data


def measured(network, data, masks, size=24, **options):
    settings = DenseSettings(size, **{"num_pixels": 500, "precision": "32", **options})
    return measure_dense({"given": network}, data, open_masks(str(masks), data, data.image_size), settings)


def without_seconds(found):
    return {**vars(found), "seconds": 0}


# the parts


@pytest.mark.parametrize("side", [1, 3, 6, 24])
def test_features_at_places_are_those_of_the_enlarged_map(side):
    maps = torch.randn(3, 5, side, side, generator=GENERATOR)
    places = torch.arange(24 * 24).expand(3, -1)
    enlarged = F.interpolate(maps, (24, 24), mode="bilinear", align_corners=False)
    torch.testing.assert_close(features_at(maps, places, 24), enlarged.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_scores_enlarged_are_the_scores_of_enlarged_features():
    maps = torch.randn(2, 4, 3, 3, generator=GENERATOR)
    classifier = LinearClassifier(torch.randn(5, 4, generator=GENERATOR), torch.randn(5, generator=GENERATOR))
    of_features = classifier(features_at(maps, torch.arange(400).expand(2, -1), 20).flatten(0, 1)).argmax(dim=1)
    assert (predict_masks(classifier, maps, 20).flatten() == of_features).double().mean() > 0.999
    with pytest.raises(ValueError, match="some test features are not finite"):
        predict_masks(classifier, maps.clone().fill_(float("nan")), 20)


def test_pixels_are_drawn_evenly_from_those_that_count_and_by_the_image_alone():
    masks = torch.randint(3, (5, 12, 12), generator=GENERATOR, dtype=torch.uint8)
    masks[torch.rand(5, 12, 12, generator=GENERATOR) < 0.5] = 255
    masks[3] = 255
    masks[4, 5, 7] = 1
    masks[4][masks[4] != 1] = 255
    numbers = torch.tensor([7, 2, 40, 1, 3])
    places, has_some = sample_pixels(masks, numbers, 4000, seed=1)
    assert has_some.tolist() == [True, True, True, False, True]
    drawn = masks.flatten(1).gather(1, places)[has_some]
    assert (drawn != 255).all()
    counts = places[0].bincount(minlength=144)[masks[0].flatten() != 255].double()
    expected = 4000 / len(counts)
    assert float(((counts - expected) ** 2 / expected).sum() / len(counts)) < 1.6, "chi-square"
    some = sample_pixels(masks[[2, 0]], numbers[[2, 0]], 4000, seed=1)[0]
    assert torch.equal(some, places[[2, 0]])
    assert not torch.equal(sample_pixels(masks, numbers, 4000, seed=2)[0][0], places[0])


def test_intervals_are_those_of_the_bootstrap_of_one_network():
    truth = torch.randint(9, (7, 4), generator=GENERATOR)
    truth[1:, 3] = 0  # some draws have no pixel of it
    counts = [
        torch.stack([right, truth + torch.randint(5, (7, 4), generator=GENERATOR), truth], dim=1)
        for right in ((truth * torch.rand(7, 4, generator=GENERATOR)).long() for _ in range(2))
    ]
    first, second = resampled_sums(counts, num_draws=200, seed=3)

    def miou(of, _):
        which = 0 if any(torch.equal(of[0], each) for each in counts[0]) else 1
        whole = counts[which].sum(dim=0)
        ious = []
        for (right, union, of_class), (all_right, all_union, _) in zip(of.sum(dim=0).T, whole.T, strict=True):
            ious.append(float(right / union) if of_class else float(all_right / all_union))
        return sum(ious) / len(ious)

    totals = [each.sum(dim=0) for each in counts]
    expected = bootstrap_interval(miou, counts[0], truth, num_draws=200, seed=3)
    found = percentile_interval(miou_of(totals[0]), miou_of(first, totals[0]))
    assert found == pytest.approx(expected, abs=1e-6)
    expected = bootstrap_interval(miou, counts[0], truth, baseline=counts[1], num_draws=200, seed=3)
    drawn = miou_of(first, totals[0]) - miou_of(second, totals[1])
    assert percentile_interval(miou_of(totals[0]) - miou_of(totals[1]), drawn) == pytest.approx(expected, abs=1e-6)
    expected = bootstrap_interval(lambda of, _: float(of[:, 0].sum() / of[:, 2].sum()), counts[0], truth, seed=3)
    (first,) = resampled_sums(counts[:1], seed=3)
    found = percentile_interval(accuracy_of(counts[0].sum(dim=0)), accuracy_of(first))
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_class_that_a_draw_lacks_does_not_make_it_better():
    """Naming the background everywhere is as good on other images: without the rare classes it would look better."""
    truth = torch.zeros(20, 6, dtype=torch.int64)
    truth[:, 0] = 70
    truth[torch.arange(20), 1 + torch.arange(20) % 5 * (torch.arange(20) < 5)] += (
        30  # four classes are on one image each
    )
    right = torch.zeros_like(truth)
    right[:, 0] = truth[:, 0]
    union = truth.clone()
    union[:, 0] = truth.sum(dim=1)
    counts = torch.stack([right, union, truth], dim=1)
    (sums,) = resampled_sums([counts])
    whole = counts.sum(dim=0)
    found = percentile_interval(miou_of(whole), miou_of(sums, whole))
    assert found.low <= found.value <= found.high < found.value + 0.05
    assert float(miou_of(sums).mean()) > found.value + 0.03


# networks of which the answer is known


def test_features_that_are_the_mask_give_it_back(tmp_path):
    data = pictures(write_pictures(tmp_path))
    found = measured(Made(lambda x: x), data, tmp_path / "masks")
    row = found.rows[0]
    assert (row.miou, row.pixel_accuracy) == ((1, 1, 1), (1, 1, 1))
    assert found.best_difference is None
    assert all(true == said for true, said, _ in found.confusion)
    assert found.num_pixels["train"] == 500 // found.num_images["train"] * found.num_images["train"]


def test_a_view_that_is_resized_lies_on_its_mask(tmp_path):
    """Only pixels at edges are wrong; with a mask that is mirrored, as good as none is right."""
    folder = write_pictures(tmp_path, block=20)
    found = measured(Made(lambda x: x), pictures(folder, image_size=41), folder / "masks", size=33)
    assert found.rows[0].miou.value > 0.9
    mirrored = measured(Made(lambda x: x.flip(3)), pictures(folder, image_size=41), folder / "masks", size=33)
    assert mirrored.rows[0].miou.value < 0.6


def test_features_that_say_nothing_are_the_largest_class():
    data = drawings()
    found = measured(Made(lambda x: torch.zeros_like(x)), data, "procedural:object")
    row = found.rows[0]
    assert (row.miou.value, row.pixel_accuracy.value) == (found.trivial_miou, found.trivial_accuracy)
    truth = open_masks("procedural:object", data, 24)._source.masks(data.indices("test")) > 0
    assert found.trivial_class == "background"
    assert found.trivial_accuracy == pytest.approx((~truth).mean())
    assert found.trivial_miou == pytest.approx((~truth).mean() / 2)
    assert "not shown to be better than naming background everywhere" in found.verdict()


def test_it_is_the_solution_of_scikit_learn_on_the_same_pixels():
    data, settings = drawings(), DenseSettings(24, 600, precision="32")
    network = Made(lambda x: torch.cat([x, x.square(), F.avg_pool2d(x, 3, 1, 1)], dim=1), channels=9)
    masks = open_masks("procedural:object", data, 24)
    maps = DenseMaps(network, data, masks, settings, "given", Steps(None))  # pyright: ignore[reportArgumentType]
    sample = maps.sample("train", masks.members("train"), 600)
    features, labels = sample.features["map"], sample.labels
    assert len(labels) == 600 // len(data.indices("train")) * len(data.indices("train"))
    found = measure_dense({"given": network}, data, masks, settings)  # pyright: ignore[reportArgumentType]
    scaler = StandardScaler().fit(features)
    strength = found.rows[0].strength
    reference = LogisticRegression(C=1 / (strength * len(labels)), tol=1e-8, max_iter=2000)
    reference.fit(scaler.transform(features), labels)
    weight = reference.coef_ / scaler.scale_
    bias = reference.intercept_ - weight @ scaler.mean_
    both = LinearClassifier(  # two classes have one score in scikit-learn
        torch.from_numpy(np.concatenate([0 * weight, weight])), torch.from_numpy(np.concatenate([0 * bias, bias]))
    )
    of_both = maps.test(masks.members("test"), {"map": both})["map"].confusion
    assert found.rows[0].miou.value == pytest.approx(mean_iou(of_both), abs=2e-3)
    assert sum(number for *_, number in found.confusion) == int(of_both.sum()) == found.num_pixels["test"]


def test_test_figures_are_those_of_a_loop_over_images(tmp_path):
    data, masks = drawings(), None
    masks = open_masks("procedural", data, 24)
    network, settings = Made(lambda x: x), DenseSettings(24, 500)
    maps = DenseMaps(network, data, masks, settings, "given", Steps(None))  # pyright: ignore[reportArgumentType]
    classifier = LinearClassifier(torch.randn(11, 3, generator=GENERATOR), torch.zeros(11))
    found = maps.test(masks.members("test"), {"map": classifier})["map"]
    chosen = data.indices("test")
    pixels = torch.from_numpy(masks._source.render(chosen)).double() / 255
    predicted = (pixels @ classifier.weight.double().T).argmax(dim=3)
    truth = torch.from_numpy(masks._source.masks(chosen))
    confusions = image_confusions(predicted, truth, 11)
    assert (confusions.sum(dim=0) - found.confusion).abs().sum() <= 4, "but for ties of rounding"
    right, union, of_class = found.counts.unbind(dim=1)
    assert torch.equal(of_class, confusions.sum(dim=2))
    assert int((right - confusions.diagonal(dim1=1, dim2=2)).abs().sum()) <= 4
    assert torch.equal(union.sum(dim=0), (found.confusion.sum(dim=0) + of_class.sum(dim=0) - right.sum(dim=0)))


# what no figure depends on


def test_batches_and_threads_change_nothing(tmp_path, monkeypatch):
    folder = write_pictures(tmp_path)
    network = Made(lambda x: F.avg_pool2d(x, 3, 1, 1))
    plain = measured(network, pictures(folder), folder / "masks")
    other = measured(network, pictures(folder, batch_size=3, num_threads=3, cache="none"), folder / "masks")
    assert without_seconds(other) == without_seconds(plain)
    monkeypatch.setattr(dense_maps, "_MAP_BYTES", 2 * 4 * 3 * 24 * 24)
    monkeypatch.setattr(dense_maps, "_SCORE_BYTES", 1)
    network.most = 0
    bounded = measured(network, pictures(folder), folder / "masks")
    assert network.most == 2, "maps of no more images are there at once"
    assert bounded.rows[0].miou == pytest.approx(plain.rows[0].miou, abs=1e-3)


def test_images_of_a_group_are_drawn_together(tmp_path):
    """The interval over groups of equal images is as wide as if each were one image."""
    folder = write_pictures(tmp_path, num=12)
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 6
    with (tmp_path / "table.csv").open("w") as file:
        file.write("path,split,group\n")
        for number, split in enumerate(splits):
            for copy in range(3):
                for kind in ("images", "masks"):
                    with Image.open(folder / kind / f"{number:02}.png") as image:
                        image.save(folder / kind / f"{number:02}-{copy}.png")
                file.write(f"{number:02}-{copy}.png,{split},{number}\n")
    network = Made(lambda x: F.avg_pool2d(x, 7, 1, 3))
    grouped = measured(network, pictures(folder, table=str(tmp_path / "table.csv")), folder / "masks")
    rows = ["path,split", *(f"{number:02}.png,{split}" for number, split in enumerate(splits))]
    (tmp_path / "single.csv").write_text("\n".join(rows))
    single = measured(network, pictures(folder, table=str(tmp_path / "single.csv")), folder / "masks")
    assert grouped.rows[0].miou.value == pytest.approx(single.rows[0].miou.value, abs=0.02)
    widths = [found.rows[0].miou.high - found.rows[0].miou.low for found in (grouped, single)]
    assert widths[0] == pytest.approx(widths[1], rel=0.35)


# as a part of an evaluation


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return Backbone("resnet10t", kwargs={"channels": [4, 4, 8, 8]})


def test_without_labels_it_is_all_there_is_and_reads_back(tmp_path, backbone):
    folder, said = write_pictures(tmp_path), []
    backbone.train()
    backbone.model.layer2.eval()
    flags = [module.training for module in backbone.modules()]
    evaluation = evaluate(
        backbone, pictures(folder, image_size=32), masks=str(folder / "masks"), mask_pixels=300, precision="32",
        say=said.append,
    )  # fmt: skip
    assert [module.training for module in backbone.modules()] == flags
    dense = evaluation.dense
    assert [(row.weights, row.stage) for row in dense.rows] == [
        (weights, stage) for weights in ("given", "random") for stage in backbone.stages
    ]
    assert [row.map_side for row in dense.rows[:5]] == [16, 8, 4, 2, 1]
    best = {weights: dense.best_row(weights) for weights in ("given", "random")}
    for weights, row in best.items():
        assert row.miou_val == max(each.miou_val for each in dense.rows if each.weights == weights)
    assert dense.best_difference.value == pytest.approx(best["given"].miou.value - best["random"].miou.value)
    for difference, given, random in zip(dense.differences, dense.rows, dense.rows[5:], strict=False):
        assert difference.stage == given.stage == random.stage
        assert difference.miou.value == pytest.approx(given.miou.value - random.miou.value)
    assert not evaluation.rows
    assert str(evaluation.table().title) == str(dense.table().title)
    assert evaluation.verdict() == dense.verdict()
    assert any("24 of 24 images have one" in line for line in said)
    evaluation.save(tmp_path / "evaluation.json")
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["best_representation"] is None
    assert written["dense"]["rows"][3]["miou"] == dense.rows[3].miou._asdict()
    assert [tuple(each) for each in written["dense"]["confusion"]] == dense.confusion
    assert written["dense"]["classes"] == [vars(each) for each in dense.classes]
    assert written["words"] == evaluation.words()
    assert dense.verdict() in written["words"]
    with pytest.raises(ValueError, match="an evaluation needs labelled images"):
        evaluate(backbone, pictures(folder, image_size=32), masks=str(folder / "masks"), retrieval=True)


def test_beside_labels_the_other_figures_stay(backbone):
    def asked(**options):
        data = drawings(image_size=32)
        return evaluate(backbone, data, stages=False, random_weights=False, precision="32", **options)

    plain, dense = asked(), asked(masks="procedural", mask_pixels=600)
    assert dense.rows == plain.rows
    assert (plain.dense, "dense" in plain.to_json()) == (None, False)
    assert [row.stage for row in dense.dense.rows] == backbone.stages[-1:]
    assert len(dense.dense.classes) == 11
    assert "random weights were not measured" in dense.dense.verdict()


def test_the_command_says_and_writes_it(tmp_path, backbone, capsys, monkeypatch):
    folder = write_pictures(tmp_path)
    save_backbone(tmp_path / "backbone.safetensors", backbone)
    monkeypatch.setenv("COLUMNS", "80")
    status = main(
        [
            "evaluate", "--weights", str(tmp_path / "backbone.safetensors"), "--data.path", str(folder / "images"),
            "--data.labels", "none", "--data.image_size", "32", "--data.val_fraction", "0.3", "--data.num_threads", "1",
            "--masks", str(folder / "masks"), "--mask_pixels", "100", "--stages", "false", "--device", "cpu",
        ]
    )  # fmt: skip
    said = capsys.readouterr()
    assert status == 0, said.err
    assert max(map(len, said.out.split("dense probe: mIoU")[0].splitlines())) <= 80
    assert said.out.count("mIoU in %") == 1
    assert "all class 0" in said.out
    assert "24 of 24 images have one" in said.err
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["dense"]["num_images"] == {"train": 12, "val": 7, "test": 5}
    assert written["verdict"] in said.out


def test_more_images_than_pixels_are_some_of_them():
    found = measured(Made(lambda x: x), drawings(), "procedural:object", num_pixels=7)
    assert (found.num_pixels["train"], found.num_pixels["val"]) == (7, 3)


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--mask_classes is for --masks, which is not given"):
        check_dense(None, 3, 10)
    with pytest.raises(ValueError, match="--masks is empty"):
        check_dense("", None, 10)
    with pytest.raises(ValueError, match="--mask_pixels is 0, expected at least 1"):
        check_dense("procedural", None, 0)
    folder = write_pictures(tmp_path)
    data = pictures(folder)
    for split, value in (("train", 1), ("test", 255), ("val", 255)):
        for index in data.indices(split).tolist():
            file = folder / "masks" / data.name(split, index)
            before = file.read_bytes()
            mask = np.full((24, 32), value, dtype=np.uint8)
            mask[:, 0] = 0  # cut off by the view
            Image.fromarray(mask).save(file)
            file.with_suffix(".before").write_bytes(before)
        match = "are of class 1, after the centre crop" if split == "train" else f"no pixel of the {split} masks in"
        with pytest.raises(ValueError, match=match):
            measured(Made(lambda x: x), data, folder / "masks")
        for file in (folder / "masks").glob("*.before"):
            file.rename(file.with_suffix(".png"))
