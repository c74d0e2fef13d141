"""Pairs of images: the head against its formula, and a comparison is learned to which a mean of frames is blind."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import nn

from downstream.sequence import PairHead, RecurrentHead, SequenceClassification
from ssl_toolkit.data.frames import FrameData
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.schedule import Cosine

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]


def make_head(**arguments):
    torch.manual_seed(0)
    head = PairHead(**arguments)
    head.build(5, 3)
    return head.double()


@pytest.mark.parametrize("rank", [None, 2])
def test_the_scores_are_quadratic_forms_of_the_two_images(rank):
    head = make_head(rank=rank)
    features = torch.randn(4, 2, 5, dtype=torch.float64)
    layer = head.classifier
    forms = (
        layer.products if rank is None else torch.einsum("kr,ri,rj->kij", layer.mix, layer.of_first, layer.of_second)
    )
    found = head(features, torch.tensor([2, 2, 2, 2]))
    for (first, second), scores in zip(features, found, strict=True):
        linear = layer.linear.weight @ torch.cat([first, second]) + layer.linear.bias
        for number, form in enumerate(forms):
            assert torch.allclose(scores[number], first @ form @ second + linear[number])
    assert not torch.allclose(head(features.flip(1), torch.tensor([2, 2, 2, 2])), found)


def test_other_numbers_of_frames_and_ranks_are_refused():
    for lengths, shown in (([2, 1], "1 frame:"), ([3, 2], "3 frames:")):
        with pytest.raises(ValueError, match=f"compares two images, but a sequence has {shown}"):
            make_head()(torch.randn(2, 3, 5, dtype=torch.float64), torch.tensor(lengths))
    with pytest.raises(ValueError, match="rank is 0, expected at least 1"):
        PairHead(rank=0)


def test_only_what_compares_as_it_does_exports_as_pairs():
    class Symmetric(PairHead):
        def forward(self, features, lengths):
            return super().forward(features, lengths) + super().forward(features.flip(1), lengths)

    arguments = {"optimizer": AdamW(), "schedule": Cosine()}
    for head, names in (
        (PairHead(), ("logits", "probabilities")),
        (Symmetric(), None),
        (RecurrentHead(hidden=4), None),
    ):
        task = SequenceClassification(head=head, backbone=Backbone("resnet10t"), **arguments)
        assert task.head_output_names == names
        assert task.exports_pairs == (names is not None)


@pytest.mark.parametrize("rank", [None, 4])
def test_whether_two_are_alike_is_learned_but_not_by_a_layer_on_both(rank):
    torch.manual_seed(0)
    kinds = torch.randint(0, 2, (600, 2))
    features = torch.randn(600, 2, 5)
    features[:, :, 0] += 6.0 * kinds - 3.0
    same = (kinds[:, 0] == kinds[:, 1]).long()
    head, side_by_side = PairHead(rank=rank), nn.Linear(10, 2)
    head.build(5, 2)
    right = []
    for scores, layer in (
        (lambda part: head(part, torch.full((len(part),), 2)), head),
        (lambda part: side_by_side(part.flatten(1)), side_by_side),
    ):
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(scores(features[:400]), same[:400]).backward()
            optimizer.step()
        right.append(float((scores(features[400:]).argmax(dim=1) == same[400:]).float().mean()))
    assert right[0] > 0.95
    assert right[1] < 0.65  # of kinds that are as frequent, no sum of a term of each says more than half


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Discs of 60 sizes on noise, and a table of pairs, in both orders: which of the two is larger."""
    path = tmp_path_factory.mktemp("drawings")
    random = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16] - 7.5
    radius = random.uniform(1.5, 7.5, 60)
    for number, each in enumerate(radius):
        pixels = np.where((x**2 + y**2 < each**2)[:, :, None], 200, 60) + random.integers(-40, 40, (16, 16, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path / f"{number}.png")
    rows = ["path,other,larger,split"]
    for split, first, last, count in (("train", 0, 40, 80), ("val", 40, 60, 40)):
        pairs = {tuple(sorted(random.choice(np.arange(first, last), 2, replace=False).tolist())) for _ in range(count)}
        for one, two in sorted(pairs):
            if abs(radius[one] - radius[two]) < 1:
                continue
            for a, b in ((one, two), (two, one)):
                rows.append(f"{a}.png,{b}.png,{'first' if radius[a] > radius[b] else 'second'},{split}")
    (path / "pairs.csv").write_text("\n".join(rows) + "\n")
    return path


def make_data(folder):
    columns = {"second": "other", "label": "larger"}
    return FrameData(
        table=f"{folder / 'pairs.csv'}",
        columns=columns,
        image_size=16,
        batch_size=16,
        cache="memory",
        test_fraction=0.0,
    )


def make_task(**arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", kwargs={"channels": (8, 8, 16, 16)})
    return SequenceClassification(
        head=PairHead(),
        backbone=backbone,
        optimizer=AdamW(lr=3e-2),
        schedule=Cosine(),
        freeze_backbone=True,
        **arguments,
    )


def test_which_of_two_drawings_is_larger_is_learned_on_other_drawings(drawings):
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=10,
    )  # fmt: skip
    trainer.fit(make_task(), datamodule=make_data(drawings))
    assert trainer.callback_metrics["val/top1"] >= 0.85


def test_a_mean_of_the_two_frames_is_blind_to_it(drawings):
    data = make_data(drawings)
    data.setup()
    task = make_task(image_size=16).eval()
    means = {}
    for batch in data.loader("val"):
        features = task.encode(batch, batch.indices).padded.mean(dim=1)
        for row, index, label in zip(features, batch.indices.tolist(), batch.labels.tolist(), strict=True):
            means[tuple(data.name("val", index).split("|"))] = (row, label)
    for (first, second), (mean, label) in means.items():
        other, other_label = means[second, first]
        assert torch.allclose(mean, other, atol=1e-5)
        assert label != other_label
