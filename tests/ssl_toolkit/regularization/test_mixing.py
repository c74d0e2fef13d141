"""MixUp, CutMix, manifold mixup and label smoothing against naive loops and their laws, in every task that has them."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from downstream.classification import Classification
from downstream.sequence import RecurrentHead, SequenceClassification
from pretext.patch_position import PatchPosition
from pretext.simclr import SimCLR
from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.data.frames import SequenceBatch
from ssl_toolkit.losses import info_nce
from ssl_toolkit.losses.soft_targets import Mixing, soft_cross_entropy, soften
from ssl_toolkit.modules.activation_checkpointing import checkpoint_stages
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.random import beta, sample_keys
from ssl_toolkit.regularization import SAM, CutMix, LabelSmoothing, ManifoldMixUp, MixUp
from ssl_toolkit.schedule import Constant
from ssl_toolkit.step import StepContext
from ssl_toolkit.task import Task

SIZE = 16
MIXERS = {
    "mixup": lambda: [MixUp(alpha=1.0)],
    "cutmix": lambda: [CutMix()],
    "some": lambda: [MixUp(alpha=1.0, probability=0.5)],
    "both": lambda: [CutMix(), MixUp(alpha=1.0)],
    "more": lambda: [MixUp(probability=0.3), CutMix(probability=0.3), MixUp(alpha=2.0, probability=0.3)],
}
every_mixer = pytest.mark.parametrize("mixers", MIXERS)


class Bare(nn.Module):
    """What a mixing needs of a task."""

    takes_soft_targets, gradient_checkpointing, compile_backbone = True, False, False
    seed = 0
    keys, mixed_rows = Task.keys, Task.mixed_rows

    def __init__(self, *regularizers, backbone=None):
        super().__init__()
        self.backbone = backbone or nn.Identity()
        self.backbone.stages = []
        self.regularizers = regularizers
        for each in regularizers:
            each.check(self)
            each.prepare(self)

    def run(self, images, epoch=0):
        """What comes out of the backbone, and the mixing."""
        batch = Batch(Images(images, images), torch.arange(len(images)), torch.empty(0), epoch)
        self.context = StepContext(batch=batch)

        def compute():
            return self.backbone(images), self.context.mixing

        for each in self.regularizers:
            compute = partial(each.around, self, self.context, compute)
        return compute()


def plain_images(num, size=16):
    """Image i has the value i everywhere."""
    return torch.arange(num, dtype=torch.float32).view(-1, 1, 1, 1).expand(num, 3, size, size).clone()


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 2.0, 32.0])
def test_the_shares_are_those_of_beta(alpha):
    weights = beta(sample_keys(0, 0, torch.arange(40_000)), alpha)
    assert 0 <= weights.min() <= weights.max() <= 1
    assert weights.mean().item() == pytest.approx(0.5, abs=0.01)
    assert weights.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    torch.manual_seed(0)
    others = torch.distributions.Beta(alpha, alpha).sample((40_000,))
    levels = torch.linspace(0.02, 0.98, 25)
    quantiles = others.quantile(levels)
    # nearer to the ends float32 has too few numbers
    for level in quantiles[(quantiles > 1e-5) & (quantiles < 1 - 1e-5)]:
        below = [(each <= level).float().mean().item() for each in (weights, others)]
        assert below[0] == pytest.approx(below[1], abs=0.012)


def test_mixup_by_a_loop():
    torch.manual_seed(0)
    images = torch.rand(9, 3, 8, 8)
    task = Bare(MixUp(alpha=1.0))
    mixed, (partners, weights) = task.run(images)
    for i in range(9):
        expected = weights[i] * images[i] + (1 - weights[i]) * images[partners[i]]
        torch.testing.assert_close(mixed[i], expected)
    assert weights.std() > 0.1, "each sample has its own weight"
    assert sorted(partners.tolist()) == list(range(9))
    assert all(partner != i for i, partner in enumerate(partners.tolist()))
    again, other = task.run(images)[0], task.run(images, epoch=1)[0]
    assert torch.equal(mixed, again)
    assert not torch.equal(mixed, other)


def test_cutmix_shares_are_the_pixels_left():
    images = plain_images(200, 12)
    mixed, (partners, weights) = Bare(CutMix()).run(images)
    for i, partner in enumerate(partners.tolist()):
        own, pasted = (mixed[i] == i), (mixed[i] == partner)
        assert torch.all(own ^ pasted)
        assert own.float().mean().item() == pytest.approx(weights[i].item())
        rows, columns = pasted[0].any(1).nonzero(), pasted[0].any(0).nonzero()
        if len(rows):
            box = pasted[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert box.all(), "a box, the same of all channels"
    # of a box as large as its draw from Beta(1, 1), three quarters are left within the image on average, or more
    assert 0.5 < weights.mean() < 0.75
    dense = soften(torch.arange(200), Mixing(partners, weights)).dense(200)
    assert dense[torch.arange(200), partners].numpy() == pytest.approx(1 - weights.numpy())


@every_mixer
def test_no_mixing_is_mixed_again(mixers):
    """Each image is made of two whole ones, by the weights that the targets have, whatever mixings there are."""
    images = plain_images(64)
    task = Bare(*MIXERS[mixers]())
    mixed, (partners, weights) = task.run(images)
    numbers = torch.arange(64.0)
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), weights * numbers + (1 - weights) * partners)
    assert task.context.mixing is None


def test_several_mixings_share_the_samples():
    images = plain_images(6000, 8)
    for mixers, expected in [
        ([MixUp(1.0)], (1.0, 0.0)),
        ([MixUp(1.0, probability=0.25)], (0.25, 0.0)),
        ([MixUp(1.0), CutMix()], (0.5, 0.5)),
        ([CutMix(probability=0.3), MixUp(1.0, probability=0.2)], (0.2, 0.3)),
    ]:
        mixed, (partners, _) = Bare(*mixers).run(images)
        meant = mixed.std(dim=(1, 2, 3)) < 1e-4
        chosen = partners != torch.arange(6000)
        means = (meant & chosen & (mixed[:, 0, 0, 0] != torch.arange(6000))).float().mean().item()
        assert chosen.float().mean().item() == pytest.approx(sum(expected), abs=0.02)
        # a box may be empty or the whole image
        assert means == pytest.approx(expected[0], abs=0.02 + 0.1 * expected[1])


def test_manifold_mixup_mixes_the_output_of_one_layer():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)]
    images = torch.randn(6, 3, 8, 8)
    task = Bare(ManifoldMixUp("^backbone.[01]$"), backbone=nn.Sequential(*layers))
    plain = task.backbone(images)
    found = set()
    for step in range(12):
        torch.manual_seed(step)
        mixed, (partners, weights) = task.run(images)
        of_row = weights.view(-1, 1, 1, 1)
        for place in (0, 1, 2):
            hidden = nn.Sequential(*layers[: place + 1])(images)
            hidden = of_row * hidden + (1 - of_row) * hidden[partners]
            if torch.allclose(nn.Sequential(*layers[place + 1 :])(hidden), mixed, atol=1e-6):
                found.add(place)
                break
        else:
            pytest.fail("mixed at no layer")
    assert found == {0, 1}
    assert torch.equal(task.backbone(images), plain), "not outside a step"


# The tasks -----------------------------------------------------------------------------------------------------------


def make_task(kind, regularizers, **arguments):
    torch.manual_seed(0)
    shared = {
        "backbone": Backbone("resnet10t", stem="small", kwargs={"channels": (8, 8, 8, 8)}),
        "optimizer": SGD(),
        "schedule": Constant(),
        "regularizers": regularizers,
        **arguments,
    }
    if kind == "simclr":
        task = SimCLR(view=RandomView(size=SIZE), projector_widths=(8, 4), **shared)
    elif kind == "patches":
        task = PatchPosition(view=RandomView(size=48), patch_size=12, jitter=1, hidden_width=8, **shared)
    elif kind == "frames":
        head = RecurrentHead("gru", hidden=4)
        task = SequenceClassification(head=head, num_classes=5, image_size=SIZE, **shared)
    else:
        task = Classification(num_classes=5, image_size=SIZE, **shared)
    if kind in ("frames", "images"):
        task.setup("validate")
    task.check()
    if task.gradient_checkpointing:
        checkpoint_stages(task.backbone)
    task.before, task.after, task.known, task.logged = [], [], [], {}
    task.backbone.register_forward_pre_hook(lambda module, inputs: task.before.append(inputs[0]))
    for regularizer in task.regularizers:
        regularizer.prepare(task)
    task.backbone.register_forward_pre_hook(lambda module, inputs: task.after.append(inputs[0]))
    loss = task.loss

    def noted(*given):
        output, task.context = loss(*given), given[-1]
        task.known.append((task.context.mixing, task.context.smoothing))
        return output

    task.loss = noted
    task.log_step = lambda output, num: task.logged.update(output.metrics, loss=output.loss.detach())
    task.measure = lambda stage, output, num: task.log_step(output, num)
    return task


def make_batch(kind, num=6):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 6, (num,), generator=generator)
    count = int(lengths.sum()) if kind == "frames" else num
    pixels = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    images = Images(pixels, torch.full((count, 2), SIZE))
    labels = torch.arange(num) % 5
    if kind == "frames":
        return SequenceBatch(images, lengths, torch.arange(num), labels, 0)
    return Batch(images, torch.arange(num), labels, 0)


def row_pairs(kind, batch, partners):
    """For each row that the backbone sees its sample and the row that it is mixed with, by loops."""
    num, pairs = len(partners), []
    if kind == "images":
        pairs = [(i, partners[i]) for i in range(num)]
    elif kind == "patches":
        pairs = [(i, 9 * partners[i] + place) for i in range(num) for place in range(9)]
    elif kind == "simclr":
        pairs = [(i, partners[i]) for i in range(num)] + [(i, num + i) for i in range(num)]
    else:
        lengths = batch.lengths.tolist()
        for i in range(num):
            other = partners[i]
            for frame in range(lengths[i]):
                pairs.append((i, sum(lengths[:other]) + math.floor(frame / lengths[i] * lengths[other] + 1e-9)))
    return pairs


@pytest.mark.parametrize("kind", ["images", "frames", "patches", "simclr", "simclr in two passes"])
def test_each_task_mixes_what_it_should(kind):
    kind, _, passes = kind.partition(" in ")
    task = make_task(kind, [MixUp(1.0)], **({"forward_passes": 2} if passes else {}))
    batch = make_batch(kind)
    loss = task.training_step(batch, 0)
    loss.backward()
    (partners, weights), _ = task.known[0]
    before, after = torch.cat(task.before), torch.cat(task.after)
    pairs = row_pairs(kind, batch, partners.tolist())
    assert len(task.after) == (2 if passes else 1)
    assert len(pairs) == len(after)
    for row, (sample, other) in enumerate(pairs):
        expected = weights[sample] * before[row] + (1 - weights[sample]) * before[other]
        torch.testing.assert_close(after[row], expected)
    assert task.context.mixing is None


@pytest.mark.parametrize("kind", ["images", "frames"])
@every_mixer
def test_the_targets_are_mixed_as_the_images_are(kind, mixers):
    task = make_task(kind, [*MIXERS[mixers](), LabelSmoothing(0.2)])
    batch = make_batch(kind)
    scores = []
    task.logits = lambda features, logits=task.logits: scores.append(logits(features)) or scores[-1]
    loss = task.training_step(batch, 0)
    (partners, weights), smoothing = task.known[0]
    assert smoothing == pytest.approx(0.2)
    labels, total, hits = batch.labels.tolist(), 0.0, 0
    for i, row in enumerate(scores[0].double()):
        target = [0.2 / 5] * 5
        target[labels[i]] += 0.8 * weights[i].item()
        target[labels[partners[i]]] += 0.8 * (1 - weights[i].item())
        total -= sum(fraction * math.log(p) for fraction, p in zip(target, row.softmax(0).tolist(), strict=True))
        hits += int(row.argmax()) == labels[i if weights[i] >= 0.5 else partners[i]]
    assert loss.item() == pytest.approx(total / len(labels), rel=1e-5)
    assert task.logged["top1"].item() == pytest.approx(hits / len(labels))


def test_the_targets_of_mixed_embeddings_are_smoothed_too():
    task = make_task("simclr", [MixUp(1.0), LabelSmoothing(0.2)])
    embeddings = []
    task.embed = lambda views, embed=task.embed: embeddings.append(embed(views)) or embeddings[-1]
    loss = task.training_step(make_batch("simclr"), 0)
    _, embedded = embeddings[0]
    mixing, smoothing = task.known[0]
    assert mixing is not None
    expected, _ = info_nce(embedded[0], embedded[1], task.temperature, mixing=mixing, smoothing=smoothing)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kind", ["images", "frames", "patches", "simclr"])
def test_evaluation_is_not_touched(kind):
    regularized = make_task(kind, [MixUp(1.0), CutMix(), LabelSmoothing()])
    plain = make_task(kind, [])
    batch = make_batch(kind)
    for task in (regularized, plain):
        task.train()
        task.training_step(batch, 0)
    plain.load_state_dict(regularized.state_dict())
    for task in (regularized, plain):
        task.eval()
        task.validation_step(batch, 0)
    assert torch.equal(regularized.after[-1], regularized.before[-1])
    assert regularized.known[-1] == (None, 0.0)
    assert regularized.known[0][0] is not None
    assert regularized.logged["loss"].item() == pytest.approx(plain.logged["loss"].item())
    if kind == "images":
        logits = regularized.logits(regularized.backbone(regularized.after[-1]))
        assert regularized.logged["loss"].item() == pytest.approx(F.cross_entropy(logits, batch.labels).item())


@pytest.mark.parametrize("sam_first", [True, False])
@pytest.mark.parametrize("kind", ["images", "simclr"])
def test_sam_sees_the_same_mixing_twice(kind, sam_first):
    mixers = [MixUp(1.0), CutMix(), LabelSmoothing()]
    task = make_task(kind, [SAM(), *mixers] if sam_first else [*mixers, SAM()])
    task.training_step(make_batch(kind), 0).backward()
    task.on_after_backward()
    assert torch.equal(*task.after)
    (first, smoothing), (second, again) = task.known
    assert torch.equal(first.partners, second.partners)
    assert torch.equal(first.weights, second.weights)
    assert smoothing == again == pytest.approx(0.1)
    assert (task.context.mixing, task.context.smoothing) == (None, 0.0)


def test_a_step_that_fails_leaves_nothing_mixed():
    task = make_task("images", [MixUp(1.0), LabelSmoothing()])
    batch = make_batch("images")
    with pytest.raises(RuntimeError, match="out of bounds"):
        task.training_step(batch._replace(labels=batch.labels + 9), 0)
    task.backbone(images := torch.rand(2, 3, SIZE, SIZE))
    assert task.after[-1] is images


def test_a_frozen_backbone_sees_mixed_images_too():
    task = make_task("images", [MixUp(1.0)], freeze_backbone=True)
    task.training_step(make_batch("images"), 0)
    assert not torch.equal(task.after[0], task.before[0])
    assert task.known[0][0] is not None


@pytest.mark.slow
def test_a_compiled_backbone_sees_the_same(monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # the compiler does not know its wrappers
    plain, compiled = (
        make_task("images", [MixUp(1.0, probability=0.7), CutMix(probability=0.3)], compile=compile)
        for compile in (False, True)
    )
    compiled.backbone.compile(backend="eager")
    for epoch in range(2):
        batch = make_batch("images")._replace(epoch=epoch)
        assert compiled.training_step(batch, 0).item() == pytest.approx(plain.training_step(batch, 0).item())


@pytest.mark.parametrize("passes", [1, 2])
def test_manifold_mixup_with_gradient_checkpointing(passes):
    gradients = []
    for checkpointing in (False, True):
        mixer = ManifoldMixUp(r"^backbone\.model\.layer2$")
        task = make_task("simclr", [mixer], gradient_checkpointing=checkpointing, forward_passes=passes)
        task.training_step(make_batch("simclr"), 0).backward()
        assert torch.equal(task.after[0], task.before[0])
        gradients.append({name: each.grad for name, each in task.named_parameters()})
    plain = make_task("simclr", [], forward_passes=passes)
    plain.training_step(make_batch("simclr"), 0).backward()
    assert not torch.allclose(plain.backbone.model.conv1[0].weight.grad, gradients[0]["backbone.model.conv1.0.weight"])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


# Soft targets --------------------------------------------------------------------------------------------------------


def test_smoothing_is_that_of_torch_and_two_are_one():
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 4), torch.randint(0, 4, (7,))
    expected = F.cross_entropy(logits, targets, label_smoothing=0.3)
    torch.testing.assert_close(soft_cross_entropy(logits, soften(targets, smoothing=0.3)), expected)
    assert torch.equal(soft_cross_entropy(logits, soften(targets)), F.cross_entropy(logits, targets))
    task = make_task("images", [LabelSmoothing(0.2), LabelSmoothing(0.5)])
    task.training_step(make_batch("images"), 0)
    assert task.known[0][1] == pytest.approx(1 - 0.8 * 0.5)


def test_weighted_soft_cross_entropy_by_a_loop():
    torch.manual_seed(0)
    logits, targets, weights = torch.randn(6, 4), torch.randint(0, 4, (6,)), torch.tensor([0.5, 1.0, 2.0, 4.0])
    mixing = Mixing(torch.tensor([1, 0, 3, 2, 5, 4]), torch.rand(6))
    soft = soften(targets, mixing, 0.1)
    dense, losses, total = soft.dense(4), 0.0, 0.0
    for row, aim in zip(logits, dense, strict=True):
        for c in range(4):
            losses -= float(weights[c] * aim[c] * row.log_softmax(0)[c])
            total += float(weights[c] * aim[c])
    assert soft_cross_entropy(logits, soft, weights).item() == pytest.approx(losses / total, rel=1e-5)
    constant = soft_cross_entropy(torch.zeros(6, 4), soft, weights)
    assert constant.item() == pytest.approx(math.log(4)), "a constant answer costs ln C, however classes weigh"
    assert torch.all(dense.sum(dim=1).isclose(torch.ones(6)))


def test_a_class_out_of_the_question_gets_nothing():
    logits = torch.tensor([[1.0, float("-inf"), 0.0, 2.0]], requires_grad=True)
    loss = soft_cross_entropy(logits, soften(torch.tensor([0]), smoothing=0.3))
    without = F.cross_entropy(torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([0]), label_smoothing=0.3)
    torch.testing.assert_close(loss, without)
    loss.backward()
    assert logits.grad.isfinite().all()


def test_patch_position_smooths_its_eight_classes():
    task, seen = make_task("patches", [LabelSmoothing(0.3)]), []
    task.classifier.register_forward_hook(lambda module, inputs, output: seen.append(output))
    loss = task.training_step(make_batch("patches"), 0)
    expected, total = 0.0, 0.0
    for row, direction in zip(seen[0], task.compared[:, 2].repeat(6).tolist(), strict=True):
        for c, weight in enumerate(task.class_weights.tolist()):
            aim = weight * (0.7 * (c == direction) + 0.3 / 8)
            expected -= aim * row.log_softmax(0)[c].item()
            total += aim
    assert loss.item() == pytest.approx(expected / total, rel=1e-5)


@pytest.mark.parametrize("kind", ["images", "simclr"])
def test_smoothing_raises_the_entropy_of_what_is_predicted(kind):
    entropies = []
    for fraction in (0.0, 0.4):
        task = make_task(kind, [LabelSmoothing(fraction)], **({"temperature": 0.2} if kind == "simclr" else {}))
        seen = []
        if kind == "images":
            task.logits = lambda features, inner=task.logits, seen=seen: seen.append(inner(features)) or seen[-1]
        else:
            task.projector.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(similar(output)))
        optimizer = torch.optim.Adam(task.parameters(), lr=0.03)
        for _ in range(15):
            optimizer.zero_grad()
            task.training_step(make_batch(kind), 0).backward()
            optimizer.step()
        chances = seen[-1].detach().softmax(dim=1)
        entropies.append(-(chances * (chances + 1e-9).log()).sum(dim=1).mean().item())
    assert entropies[1] > entropies[0] + 0.05


def similar(embeddings):
    """As NT-Xent sees them."""
    embeddings = F.normalize(embeddings, dim=1)
    return (embeddings @ embeddings.T / 0.2).masked_fill(torch.eye(len(embeddings), dtype=torch.bool), -1e9)


# Mistakes ------------------------------------------------------------------------------------------------------------


class Deaf(Classification):
    takes_soft_targets = False


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixUp(0.0), "alpha is 0.0"),
        (lambda: CutMix(probability=0), "probability is 0"),
        (lambda: LabelSmoothing(1.0), "share is 1.0"),
        (lambda: checked(Deaf, MixUp()), "MixUp needs a task with soft targets, but the loss of Deaf knows none"),
        (lambda: checked(Deaf, LabelSmoothing()), "LabelSmoothing needs a task with soft targets"),
        (lambda: checked(Classification, ManifoldMixUp("tail")), "no module's name matches 'tail'"),
        (lambda: checked(Classification, ManifoldMixUp("head|layer1$"), True), "matches head.*begin with .backbone"),
        (
            lambda: checked(Classification, ManifoldMixUp("layer1"), gradient_checkpointing=True),
            "layer1.0, which gradient_checkpointing computes twice",
        ),
        (lambda: checked(Classification, ManifoldMixUp("layer1$"), compile=True), "set compile: false"),
        (lambda: Bare(ManifoldMixUp("0$"), backbone=nn.Linear(2, 2)), "no module's name matches"),
        (
            lambda: Bare(ManifoldMixUp("unused"), backbone=Half()).run(plain_images(3)),
            "matches backbone.unused, which the network does not use",
        ),
        (lambda: Bare(ManifoldMixUp("uses"), backbone=Half()).run(plain_images(3)), "not a tensor with a row for each"),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def checked(kind, regularizer, built=False, **arguments):
    backbone = Backbone("resnet10t", kwargs={"channels": (8, 8, 8, 8)})
    task = kind(
        backbone=backbone, optimizer=SGD(), schedule=Constant(), regularizers=[regularizer], num_classes=3,
        image_size=SIZE, **arguments,
    )  # fmt: skip
    if built:
        task.setup("validate")
    task.check()


class Half(nn.Module):
    """One of its layers is not used, the output of the other has no rows."""

    def __init__(self):
        super().__init__()
        self.unused, self.uses = nn.Identity(), nn.Identity()

    def forward(self, images):
        return self.uses(images[:1])
