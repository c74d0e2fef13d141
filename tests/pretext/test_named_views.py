"""Named distributions of views: two different ones, several sizes, each size in one forward pass."""

import itertools

import pytest
import torch
import yaml

import methods
from pretext.barlow_twins import BarlowTwins
from pretext.byol import BYOL
from pretext.moco_v2 import MoCoV2
from pretext.simclr import SimCLR
from ssl_toolkit.augment import RandomView, Views
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.callbacks import ProgressiveSize
from ssl_toolkit.cli.command_line import CommandLine
from ssl_toolkit.cli.parser import instantiate, parse
from ssl_toolkit.cli.train import train
from ssl_toolkit.cli.training_parser import training_parser
from ssl_toolkit.losses import barlow_twins, info_nce, negative_cosine, nt_xent
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.random import fold_in, sample_keys
from ssl_toolkit.regularization import CutMix, MixUp
from ssl_toolkit.run_folder import read_config
from ssl_toolkit.schedule import Constant

NUM = 6
TASKS = (SimCLR, BarlowTwins, BYOL, MoCoV2)


def multi_crop(large=2, small=3):
    return {"global": Views(count=large, size=24, preset="large_crop"), "local": Views(count=small, size=16, blur=0)}


def make_task(kind=SimCLR, **arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", stem="small", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    if kind is MoCoV2:
        arguments = {"queue_size": 10, "symmetric": True, **arguments}
    arguments = {"projector_widths": (16, 8), **arguments}
    task = kind(backbone=backbone, optimizer=SGD(), schedule=Constant(), **arguments)
    task.passed = []
    task.backbone.register_forward_pre_hook(lambda module, inputs: task.passed.append(tuple(inputs[0].shape)))
    return task


def make_batch():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (NUM, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Batch(Images(pixels, torch.full((NUM, 2), 32)), torch.arange(NUM), torch.full((NUM,), -1), 0)


def test_the_short_form_is_one_distribution_drawn_twice():
    batch = make_batch()
    keys = sample_keys(0, 0, batch.indices)
    short = make_task(view=RandomView(24)).make_views(batch.images, keys)
    long = make_task(views={"any": Views(count=2, size=24)}).make_views(batch.images, keys)
    assert len(short) == len(long) == 2
    assert all(torch.equal(one, other) for one, other in zip(short, long, strict=True))
    expected = [RandomView(24)(batch.images, fold_in(keys, number)) for number in range(2)]
    torch.testing.assert_close(list(short), expected)


@pytest.mark.parametrize("kind", TASKS)
def test_each_size_is_one_forward_pass(kind):
    task = make_task(kind, views=multi_crop())
    assert task.compute(make_batch()).loss.isfinite()
    assert task.passed == [(2 * NUM, 3, 24, 24), (3 * NUM, 3, 16, 16)]


@pytest.mark.parametrize("kind", TASKS)
def test_in_two_passes_each_view_is_one(kind):
    task = make_task(kind, views=multi_crop(), forward_passes=2)
    task.compute(make_batch())
    assert task.passed == [(NUM, 3, 24, 24)] * 2 + [(NUM, 3, 16, 16)] * 3


@pytest.mark.parametrize("kind", TASKS)
def test_a_projector_may_have_more_layers(kind):
    task = make_task(kind, view=RandomView(24), projector_widths=(16, 12, 10, 8))
    assert task.compute(make_batch()).loss.isfinite()


def test_pictures_are_the_views_of_each_image_with_small_ones_in_a_white_frame():
    batch = make_batch()
    task = make_task(views=multi_crop())
    views = task.make_views(batch.images, task.keys(batch))
    pictures = task.view_pictures(views)
    assert pictures.shape == (NUM, 5, 3, 24, 24)
    assert all(torch.equal(pictures[:, number], views[number]) for number in range(2))
    for number in range(2, 5):
        assert torch.equal(pictures[:, number, :, 4:20, 4:20], views[number])
        assert (pictures[:, number, :, :4] == 1).all()
        assert (pictures[:, number, :, :, 20:] == 1).all()


def test_two_different_views_of_a_size_pass_together():
    views = {"first": Views(size=24, preset="byol_first"), "second": Views(size=24, preset="byol_second")}
    for kind in TASKS:
        task = make_task(kind, views=views)
        assert task.compute(make_batch()).loss.isfinite()
        assert task.passed == [(2 * NUM, 3, 24, 24)]


def expected_pairs(large, small):
    views = range(large + small)
    return [(i, j) for i, j in itertools.combinations(views, 2) if i < large]


@pytest.mark.parametrize(("large", "small"), [(2, 0), (1, 2), (2, 3), (3, 1)])
def test_pairs_hold_a_view_of_the_largest_size(large, small):
    views = multi_crop(large, small or 1)
    if not small:
        del views["local"]
    task = make_task(views=views)
    assert sorted(task.pairs()) == sorted(expected_pairs(large, small))
    teacher = make_task(BYOL, views=views)
    assert sorted(teacher.taught_pairs()) == sorted(
        (i, j) for i in range(large) for j in range(large + small) if i != j
    )


def by_hand(task, batch, momentum_network=None):
    """The embeddings of each view, pass by pass as BatchNorm sees them."""
    views = task.make_views(batch.images, task.keys(batch))
    network = momentum_network or (lambda x: task.projector(task.backbone(x)))
    large = network(torch.cat(views[:2])).chunk(2)
    return [*large, *network(torch.cat(views[2:])).chunk(3)]


def test_the_losses_are_means_over_pairs():
    batch = make_batch()
    for kind, loss in ((SimCLR, lambda a, b: nt_xent(a, b, 0.5)[0]), (BarlowTwins, lambda a, b: barlow_twins(a, b)[0])):
        task = make_task(kind, views=multi_crop())
        embedded = by_hand(task, batch)
        expected = [loss(embedded[i], embedded[j]) for i, j in expected_pairs(2, 3)]
        torch.testing.assert_close(task.compute(batch).loss, torch.stack(expected).mean())


def test_the_teacher_sees_large_views_and_the_student_all():
    batch = make_batch()
    task = make_task(BYOL, views=multi_crop())
    views = task.make_views(batch.images, task.keys(batch))
    taught = task.teacher(torch.cat(views[:2])).chunk(2)
    predicted = [task.predictor(each) for each in by_hand(task, batch)]
    expected = [negative_cosine(predicted[j], taught[i]) for i in range(2) for j in range(5) if i != j]
    torch.testing.assert_close(task.compute(batch).loss, torch.stack(expected).mean())
    task = make_task(MoCoV2, views=multi_crop())
    taught, embedded = task.teacher(torch.cat(views[:2])).chunk(2), by_hand(task, batch)
    found = [
        info_nce(embedded[j], taught[i], 0.2, task.queue.features)[0] for i in range(2) for j in range(5) if i != j
    ]
    output = task.compute(batch)
    torch.testing.assert_close(output.loss, torch.stack(found).mean())
    assert output.kept["keys"].shape == (NUM, 2, 8)


def test_moco_as_published_passes_one_view_through_each_network():
    task = make_task(MoCoV2, view=RandomView(24), symmetric=False)
    seen = []
    task.teacher.network("backbone").register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = make_batch()
    output = task.compute(batch)
    first, second = task.make_views(batch.images, task.keys(batch))
    assert task.passed == [(NUM, 3, 24, 24)]
    assert torch.equal(seen[0], second)
    queries, keys = task.projector(task.backbone(first)), task.teacher(second)
    torch.testing.assert_close(output.loss, info_nce(queries, keys, 0.2, task.queue.features)[0])
    with pytest.raises(ValueError, match=r"symmetric is false, which is for two views of one size; set it to true"):
        make_task(MoCoV2, views=multi_crop(), symmetric=False)


@pytest.mark.parametrize("mixer", [MixUp(1.0), CutMix()])
def test_mixing_changes_the_first_view_alone_and_its_shares_are_its_own(mixer):
    task = make_task(views=multi_crop(), regularizers=[mixer])
    mixer.prepare(task)
    before, after, known = [], [], []
    task.backbone._forward_pre_hooks.clear()
    task.backbone.register_forward_pre_hook(lambda module, inputs: before.append(inputs[0]))
    mixer.prepare(task)
    task.backbone.register_forward_pre_hook(lambda module, inputs: after.append(inputs[0]))
    loss = task.loss
    task.loss = lambda views, context: (loss(views, context), known.append(context.mixing))[0]
    task.log_step = lambda *_: None
    task.training_step(make_batch(), 0)
    (partners, weights) = known[0]
    assert torch.equal(before[0][NUM:], after[0][NUM:])
    assert torch.equal(before[1], after[1])
    first, mixed = before[0][:NUM], after[0][:NUM]
    for sample in range(NUM):
        own, other = first[sample], first[partners[sample]]
        if isinstance(mixer, MixUp):
            torch.testing.assert_close(mixed[sample], weights[sample] * own + (1 - weights[sample]) * other)
        else:
            # of 24 x 24 pixels, not of the 16 x 16 of the smaller views
            kept = (mixed[sample] == own).all(dim=0).float().mean()
            assert kept.item() == pytest.approx(weights[sample].item(), abs=1e-6)


def test_pictures_frame_the_smaller_views():
    task = make_task(views=multi_crop(1, 2))
    pictures = task.example_views(make_batch())
    assert pictures.shape == (NUM, 3, 3, 24, 24)
    assert (pictures[:, 1:, :, :4] == 1).all()
    assert (pictures[:, 1:, :, :, -4:] == 1).all()
    views = task.make_views(make_batch().images, task.keys(make_batch()))
    assert torch.equal(pictures[:, 1, :, 4:20, 4:20], views[1])


def test_progressive_views_shrink_in_proportion():
    task = make_task(views=multi_crop())
    progressive = ProgressiveSize(start=0.5, until=1.0, multiple=4)
    for view, _ in task.random_views:
        view.side = progressive.side(view.size, 0)
    task.compute(make_batch())
    assert task.passed == [(2 * NUM, 3, 12, 12), (3 * NUM, 3, 8, 8)]
    assert task.image_size == 24


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "give model.view .* or model.views .*, one of them"),
        ({"view": RandomView(24), "views": multi_crop()}, "one of them"),
        ({"views": {"alone": Views(size=24)}}, "makes one view of an image, but at least two are compared"),
    ],
)
def test_views_that_cannot_be_compared_are_refused(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        make_task(**arguments)


@pytest.fixture
def recipe(tmp_path):
    written = methods.recipe("BYOL", tmp_path, max_epochs=1)
    arguments = written["model"]["init_args"]
    arguments["views"] = {
        "global": {"preset": "byol_first", "size": 24, "count": 2},
        "local": {"preset": "small_crop", "size": 16, "count": 2, "scale": [0.3, 0.6]},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(written))
    return str(file)


def built(*arguments):
    line = CommandLine("pretrain", arguments)
    parser = training_parser(line)
    return instantiate(parser, parse(parser, line.arguments)).model


def test_one_view_is_overridden_by_its_name(recipe, tmp_path):
    task = built("-c", recipe, "--model.views.local.size", "20", "--model.views.global.blur=0.3")
    assert task.sizes == [24, 24, 20, 20]
    (first, _), (second, _) = task.random_views
    assert (first.blur, first.preset, second.preset, second.scale) == (0.3, "byol_first", "small_crop", (0.3, 0.6))
    second = tmp_path / "second.yaml"
    second.write_text("model: {init_args: {views: {local: {count: 5}}}}")
    assert built("-c", recipe, "-c", str(second)).sizes == [24, 24, *[16] * 5]


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--model.views.local.siz=20", "unknown key model.views.siz; did you mean 'size'?"),
        ("--model.views.local.size=x", "model.views.size is 'x', expected int"),
        ("--model.views.locl.size=20", "recipes name global, local; a new view needs a recipe; did you mean 'local'?"),
        ("--model.views.local.count=0", "count is 0"),
    ],
)
def test_wrong_options_are_one_line(recipe, option, expected):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        built("-c", recipe, option)
    assert expected in str(error.value)


@pytest.mark.slow
def test_a_run_with_several_sizes_writes_out_its_presets(recipe, tmp_path):
    run = train("pretrain", ["-c", recipe, "--out", str(tmp_path / "run")], quietly=True)
    views = read_config(run)["model"]["init_args"]["views"]
    assert (views["global"]["blur"], views["local"]["blur"], views["local"]["scale"]) == (1.0, 0.5, [0.3, 0.6])
    assert (run / "views.png").is_file()
