"""Sequence heads: padding never matters, order does, and a class that lies in the order alone is learned."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import nn

import methods
from downstream.base.sequence_heads import padding_mask, sinusoidal_positions
from downstream.classification import Classification
from downstream.sequence import (
    AttentionPoolingHead,
    FrameHead,
    MultiStageTCNHead,
    PairHead,
    PoolingHead,
    RecurrentHead,
    SequenceClassification,
    SequenceHead,
    TemporalConvHead,
    TransformerHead,
)
from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Images
from ssl_toolkit.data.frames import FrameData, SequenceBatch
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.schedule import Cosine
from ssl_toolkit.step import StepContext

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]

HEADS = {
    "rnn": lambda: RecurrentHead("rnn", hidden=8),
    "lstm": lambda: RecurrentHead("lstm", hidden=8, num_layers=2, dropout=0.1),
    "gru": lambda: RecurrentHead("gru", hidden=8, bidirectional=True),
    "convolution": lambda: TemporalConvHead(channels=8, num_blocks=2),
    "convolution_causal": lambda: TemporalConvHead(channels=16, num_blocks=3, causal=True, pooling="last"),
    "frame": lambda: FrameHead(),
    "frame_hidden": lambda: FrameHead(hidden=7),
    "multi_stage": lambda: MultiStageTCNHead(channels=8, num_layers=2, num_stages=2),
    "multi_stage_causal": lambda: MultiStageTCNHead(channels=8, num_layers=3, num_stages=2, causal=True),
    "mean": lambda: PoolingHead("mean"),
    "max": lambda: PoolingHead("max"),
    "mean_max": lambda: PoolingHead("mean_max"),
    "attention": lambda: AttentionPoolingHead(hidden=8),
    "transformer": lambda: TransformerHead(dim=8, num_heads=2),
    "transformer_mean": lambda: TransformerHead(dim=8, num_heads=2, pooling="mean"),
    "transformer_causal": lambda: TransformerHead(dim=8, num_heads=2, pooling="last", causal=True),
    "transformer_causal_mean": lambda: TransformerHead(dim=8, num_heads=2, pooling="mean", causal=True),
    "transformer_last": lambda: TransformerHead(dim=8, num_heads=2, pooling="last"),
    "transformer_learned": lambda: TransformerHead(dim=8, num_heads=2, positions="learned", max_frames=16),
}
every_head = pytest.mark.parametrize("name", HEADS)


def make_head(name, num_features=5, num_classes=3):
    torch.manual_seed(0)
    head = HEADS[name]()
    head.build(num_features, num_classes)
    return head.eval()


def make_backbone():
    torch.manual_seed(0)
    return Backbone("resnet10t", kwargs={"channels": (8, 8, 16, 16)})


def make_task(head, **arguments):
    defaults = {"backbone": make_backbone(), "optimizer": AdamW(lr=1e-2), "schedule": Cosine(warmup_percent=10)}
    return SequenceClassification(head=head, **{**defaults, **arguments})


def make_trainer(**arguments):
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **arguments,
    )  # fmt: skip


@every_head
def test_padding_changes_nothing(name):
    head = make_head(name)
    features, lengths = torch.randn(4, 6, 5), torch.tensor([6, 3, 1, 4])
    expected = head(features, lengths)
    for filling in (0.0, 1e6, float("nan"), float("inf")):
        other = features.masked_fill(padding_mask(lengths, 6).unsqueeze(2), filling)
        assert torch.equal(head(other, lengths), expected)
    longer = torch.cat([features, torch.randn(4, 5, 5)], dim=1)
    assert torch.allclose(head(longer, lengths), expected, atol=1e-6)


@every_head
def test_a_batch_equals_its_sequences_alone(name):
    head = make_head(name)
    features, lengths = torch.randn(4, 6, 5), torch.tensor([6, 3, 1, 4])
    together = head(features, lengths)
    for row, length, expected in zip(features, lengths, together, strict=True):
        assert torch.allclose(head(row[None, :length], length[None])[0], expected, atol=1e-6)


@every_head
def test_the_order_of_the_frames_matters_unless_the_head_says_that_it_does_not(name):
    head = make_head(name)
    features, lengths = torch.randn(2, 6, 5), torch.tensor([6, 6])
    difference = (head(features, lengths) - head(features.flip(1), lengths)).abs().max()
    assert difference < 1e-6 if head.blind_to_order else difference > 1e-4


def test_every_head_is_tried_here():
    heads = {each for each in methods.found().values() if issubclass(each, SequenceHead)}
    assert heads == {type(make()) for make in HEADS.values()} | {PairHead}


@every_head
def test_gradients_reach_every_parameter_and_every_real_frame(name):
    head = make_head(name).train()
    features, lengths = torch.randn(2, 6, 5, requires_grad=True), torch.tensor([6, 4])
    head(features, lengths).square().sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert features.grad is not None
    reached = features.grad.abs().sum(dim=2) > 0
    if name == "max":  # of each feature the largest frame
        assert reached.any(dim=1).all()
        assert not (reached & padding_mask(lengths, 6)).any()
    else:
        assert torch.equal(reached, ~padding_mask(lengths, 6))


def test_a_recurrent_head_against_a_naive_loop():
    head = make_head("rnn")
    layer = head.recurrent
    features = torch.randn(5, 5)
    state = torch.zeros(8)
    for frame in features:
        state = torch.tanh(
            layer.weight_ih_l0 @ frame + layer.bias_ih_l0 + layer.weight_hh_l0 @ state + layer.bias_hh_l0
        )
    expected = head.classifier(state)
    assert torch.allclose(head(features[None], torch.tensor([5]))[0], expected, atol=1e-6)


@pytest.mark.parametrize(("causal", "pooling"), [(False, "mean"), (True, "last"), (True, "mean"), (False, "last")])
def test_a_convolution_head_against_a_naive_loop(causal, pooling):
    torch.manual_seed(0)
    head = TemporalConvHead(channels=4, num_blocks=3, causal=causal, pooling=pooling)
    head.build(5, 3)
    features = torch.randn(7, 5, dtype=torch.float64)
    head.double().eval()

    def convolved(layer, states):
        rows, dilation = [], layer.dilation[0]
        for time in range(len(states)):
            row = layer.bias.clone()
            for tap in range(3):
                seen = time + dilation * (tap - (2 if causal else 1))
                if 0 <= seen < len(states):
                    row = row + layer.weight[:, :, tap] @ states[seen]
            rows.append(row)
        return torch.stack(rows)

    states = features
    for number, block in enumerate(head.blocks):
        assert block.first.dilation == block.second.dilation == (2**number,)
        found = convolved(block.second, convolved(block.first, states).relu()).relu()
        straight = states @ block.shortcut.weight[:, :, 0].T + block.shortcut.bias if number == 0 else states
        states = (straight + found).relu()
    expected = head.classifier(states.mean(dim=0) if pooling == "mean" else states[-1])
    torch.testing.assert_close(head(features[None], torch.tensor([7]))[0], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("causal", [True, False])
def test_a_causal_convolution_sees_no_later_frame_and_as_far_back_as_it_says(causal):
    """With a kernel of 3 and two blocks: 2 * (1 + 2) frames either way, or twice as many before it."""
    torch.manual_seed(0)
    head = TemporalConvHead(channels=6, num_blocks=2, causal=causal, pooling="last")
    head.build(5, 3)
    for parameter in head.parameters():  # whatever is seen gets through every ReLU
        parameter.data.abs_()
    features, length = torch.rand(1, 30, 5, requires_grad=True), torch.tensor([20])
    head(features, length).sum().backward()
    assert features.grad is not None
    seen = (features.grad[0].abs().sum(dim=1) > 0).nonzero().flatten().tolist()
    assert seen == list(range(19 - (12 if causal else 6), 20))
    states = torch.randn(1, 5, 30)
    never = torch.zeros(1, 1, 30, dtype=torch.bool)
    before = head.blocks[0](states, never)
    states[:, :, 20:] += 1
    after = head.blocks[0](states, never)
    assert torch.equal(before[:, :, :20], after[:, :, :20]) is causal


def test_attention_pooling_against_the_paper():
    head = make_head("attention")
    features = torch.randn(4, 5)
    scores = torch.stack([head.weigh.weight[0] @ ((head.judge.weight @ frame + head.judge.bias).tanh()
                          * (head.gate.weight @ frame + head.gate.bias).sigmoid()) for frame in features])  # fmt: skip
    weights = scores.exp() / scores.exp().sum()
    longer = torch.cat([features, torch.randn(2, 5)])[None]
    found = head.attention(longer, torch.tensor([4]))
    torch.testing.assert_close(found[0, :4], weights)
    assert torch.equal(found[0, 4:], torch.zeros(2))
    expected = head.classifier((weights[:, None] * features).sum(dim=0))
    torch.testing.assert_close(head(longer, torch.tensor([4]))[0], expected)


def test_pooling_against_numpy():
    features, lengths = torch.randn(3, 6, 5), torch.tensor([6, 2, 4])
    pooled = [
        (row[:length].mean(0), row[:length].max(0)) for row, length in zip(features.numpy(), lengths, strict=True)
    ]
    means, largest = (torch.from_numpy(np.stack(each)) for each in zip(*pooled, strict=True))
    for name, expected in (("mean", means), ("max", largest), ("mean_max", torch.cat([means, largest], dim=1))):
        head = make_head(name)
        torch.testing.assert_close(head(features, lengths), head.classifier(expected))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_gates_against_numpy(kind, dtype, tolerance):
    """Hochreiter and Schmidhuber 1997 with a forget gate; Cho et al. 2014, with torch's place of the reset gate."""
    torch.manual_seed(0)
    head = RecurrentHead(kind, hidden=8)
    head.build(5, 3)
    head.to(dtype)
    features = torch.randn(6, 5, dtype=dtype)
    names = ("weight_ih_l0", "bias_ih_l0", "weight_hh_l0", "bias_hh_l0")
    w_in, b_in, w_state, b_state = (getattr(head.recurrent, name).detach().numpy() for name in names)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    state, cell = np.zeros(8), np.zeros(8)
    for frame in features.numpy():
        seen, kept = w_in @ frame + b_in, w_state @ state + b_state
        if kind == "lstm":
            enter, forget, new, leave = np.split(seen + kept, 4)
            cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(new)
            state = sigmoid(leave) * np.tanh(cell)
        else:
            (reset, update, new), (reset_kept, update_kept, new_kept) = np.split(seen, 3), np.split(kept, 3)
            gate = sigmoid(update + update_kept)
            state = gate * state + (1 - gate) * np.tanh(new + sigmoid(reset + reset_kept) * new_kept)
    expected = head.classifier.weight.detach().numpy() @ state + head.classifier.bias.detach().numpy()
    found = head(features[None], torch.tensor([6]))[0].detach().numpy()
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)


def test_a_bidirectional_head_reads_from_both_ends():
    head = make_head("gru")
    features = torch.randn(1, 6, 5)
    forward, backward = nn.GRU(5, 8, batch_first=True), nn.GRU(5, 8, batch_first=True)
    for key, tensor in head.recurrent.state_dict().items():
        target = backward if key.endswith("_reverse") else forward
        target.state_dict()[key.removesuffix("_reverse")].copy_(tensor)
    ends = torch.cat([forward(features)[1][0], backward(features.flip(1))[1][0]], dim=1)
    assert torch.allclose(head(features, torch.tensor([6])), head.classifier(ends), atol=1e-6)


@pytest.mark.parametrize(
    ("pooling", "causal"), [("cls", False), ("mean", False), ("last", False), ("mean", True), ("last", True)]
)
def test_a_transformer_head_against_plain_attention(pooling, causal):
    """Pre-norm: what a block adds to its input is computed from the normalised input (Xiong et al. 2020)."""
    torch.manual_seed(0)
    head = TransformerHead(dim=8, num_heads=2, num_layers=2, pooling=pooling, causal=causal)
    head.build(5, 3)
    head.eval()
    for parameter in head.parameters():  # norms that change what they see
        nn.init.normal_(parameter, std=0.5)
    features = torch.randn(6, 5)
    x = head.project(features) + sinusoidal_positions(6, 8)
    if pooling == "cls":
        x = torch.cat([head.cls_token[0], x])
    for layer in head.encoder.layers:
        projected = F.linear(layer.norm1(x), layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias)
        queries, keys, values = projected.view(len(x), 3, 2, 4).unbind(1)
        scores = torch.einsum("qhw,khw->hqk", queries, keys).div(4**0.5)
        if causal:
            for query in range(len(x)):
                scores[:, query, query + 1 :] = -torch.inf
        attention = scores.softmax(dim=-1)
        x = x + layer.self_attn.out_proj(torch.einsum("hqk,khw->qhw", attention, values).flatten(1))
        x = x + layer.linear2(F.gelu(layer.linear1(layer.norm2(x))))
    x = head.encoder.norm(x)
    expected = head.classifier({"cls": x[0], "mean": x.mean(dim=0), "last": x[-1]}[pooling])
    torch.testing.assert_close(head(features[None], torch.tensor([6]))[0], expected, atol=1e-4, rtol=1e-4)


def test_sinusoidal_positions_against_the_paper():
    codes = sinusoidal_positions(7, 6)
    for place in range(7):
        for i in range(3):
            angle = place / 10000 ** (2 * i / 6)
            assert codes[place, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert codes[place, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_learned_positions_end_somewhere():
    head = make_head("transformer_learned")
    with pytest.raises(ValueError, match="has 17 frames, but the learned positions end at max_frames=16"):
        head(torch.randn(1, 17, 5), torch.tensor([17]))
    assert make_head("transformer")(torch.randn(1, 700, 5), torch.tensor([700])).shape == (1, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RecurrentHead(hidden=0), "at least 1, got 0 and 1"),
        (lambda: RecurrentHead(kind="lstn"), "did you mean 'lstm'"),
        (lambda: PoolingHead("meen"), "did you mean 'mean'"),
        (lambda: AttentionPoolingHead(hidden=0), "hidden is 0"),
        (lambda: TemporalConvHead(num_blocks=0), "at least 1, got 128 and 0"),
        (lambda: TemporalConvHead(kernel=4), "kernel is 4, expected an odd number"),
        (lambda: TemporalConvHead(pooling="max"), "expected mean or last"),
        (lambda: TransformerHead(pooling="max"), "pooling is 'max', expected cls, mean or last"),
        (lambda: TransformerHead(causal=True), "pooling is cls, whose token sees all frames"),
        (lambda: TransformerHead(dim=10, num_heads=4), "dim=10 and num_heads=4"),
        (lambda: TransformerHead(dim=9, num_heads=3), "dim=9 and num_heads=3"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def make_batch(lengths, size=32):
    torch.manual_seed(1)
    num = sum(lengths)
    frames = Images(torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8), torch.full((num, 2), size))
    indices = torch.arange(len(lengths))
    return SequenceBatch(frames, torch.tensor(lengths), indices, indices % 2, 0)


@every_head
def test_the_whole_task_treats_sequences_one_by_one(name):
    task = make_task(HEADS[name](), num_classes=2, image_size=32)
    task.setup("predict")
    batch = make_batch([5, 1, 3])
    together = task.predict(batch)
    assert torch.allclose(together.sum(dim=1), torch.ones(3))
    start = 0
    for number, length in enumerate(batch.lengths.tolist()):
        frames = Images(*(part[start : start + length] for part in batch.frames))
        one = slice(number, number + 1)
        alone = SequenceBatch(frames, batch.lengths[one], batch.indices[one], batch.labels[one], 0)
        assert torch.allclose(task.predict(alone)[0], together[number], atol=1e-5)
        start += length


def test_the_frames_of_a_sequence_share_their_augmentation():
    view = RandomView(size=16)
    task = make_task(HEADS["lstm"](), num_classes=2, augmentation=view)
    batch = make_batch([3, 3])
    # the same picture six times: the views of a sequence are equal, those of two sequences are not
    frames = Images(batch.frames.pixels[:1].expand(6, -1, -1, -1).contiguous(), batch.frames.sizes)
    views = task.example_views(batch._replace(frames=frames))
    assert views.shape == (2, 3, 3, 16, 16)
    assert torch.equal(views[:, 0], views[:, 1])
    assert torch.equal(views[:, 0], views[:, 2])
    assert not torch.equal(views[0], views[1])


def test_the_network_sees_frames_that_share_their_augmentation():
    view = RandomView(size=16)
    task = make_task(HEADS["lstm"](), num_classes=2, augmentation=view, freeze_backbone=True).train()
    batch = make_batch([3, 3])
    frames = Images(batch.frames.pixels[:1].expand(6, -1, -1, -1).contiguous(), batch.frames.sizes)
    features = task.encode(batch._replace(frames=frames), batch.indices).padded
    torch.testing.assert_close(features[:, 1:], features[:, :1].expand(-1, 2, -1), atol=1e-5, rtol=1e-4)
    assert (features[0] - features[1]).abs().max() > 0.01


def test_the_output_holds_the_features_of_real_frames_only():
    task = make_task(HEADS["lstm"](), num_classes=2, image_size=32)
    task.setup("validate")
    task.eval()
    batch = make_batch([4, 2])
    output = task.compute(batch, batch.indices)
    expected = task.backbone_features(batch.frames, batch.indices.repeat_interleave(batch.lengths))
    assert torch.allclose(output.features, expected, atol=1e-5)


def test_the_weights_of_sequences_count_in_training_alone():
    task = make_task(HEADS["lstm"](), num_classes=2, image_size=32)
    task.setup("validate")
    task.eval()
    weights = torch.tensor([0.0, 2.0, 1.0])
    batch = make_batch([4, 2, 3])._replace(weights=weights)
    features = task.encode(batch, batch.indices)
    each = F.cross_entropy(task.logits(features), batch.labels, reduction="none")
    for training, expected in ((True, (weights * each).mean()), (False, each.mean())):
        found = task.loss(features, batch.labels, StepContext(training, batch=batch)).loss
        assert torch.allclose(found, expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Noise that grows brighter, or darker: 40 sequences of 4 to 8 frames each, the same frames in both classes."""
    path = tmp_path_factory.mktemp("order")
    random = np.random.default_rng(0)
    for name in ("brighter", "darker"):
        (path / name).mkdir()
    for number in range(40):
        levels = np.linspace(30, 220, random.integers(4, 9)).round()
        frames = np.clip(levels[:, None, None, None] + random.integers(-20, 20, (len(levels), 16, 16, 3)), 0, 255)
        np.save(path / "brighter" / f"{number}.npy", frames.astype(np.uint8))
        np.save(path / "darker" / f"{number}.npy", frames[::-1].astype(np.uint8))
    return path


def make_data(folder, **arguments):
    defaults = {"labels": "folder", "image_size": 16, "batch_size": 12, "cache": "memory", "val_fraction": 0.25}
    return FrameData(path=str(folder), **{**defaults, **arguments})


@pytest.mark.parametrize(
    "head",
    [
        RecurrentHead("lstm", hidden=16),
        TransformerHead(dim=32, num_heads=2, num_layers=1, dropout=0.0),
        TemporalConvHead(channels=16, num_blocks=2),
    ],
)
@pytest.mark.slow
def test_a_class_that_lies_in_the_order_is_learned(folder, head):
    task = make_task(head, freeze_backbone=True)
    before = {name: tensor.clone() for name, tensor in task.backbone.state_dict().items()}
    data = make_data(folder)
    trainer = make_trainer(max_epochs=15)
    trainer.fit(task, datamodule=data)
    assert trainer.callback_metrics["val/top1"] >= 0.9
    assert all(torch.equal(before[name], tensor) for name, tensor in task.backbone.state_dict().items())


def test_a_bag_of_frames_cannot_tell_these_classes_apart(folder):
    data = make_data(folder)
    data.setup()
    task = make_task(HEADS["lstm"](), num_classes=2, image_size=16)
    task.eval()
    bags = {}
    for batch in data.loader("train"):
        features = task.encode(batch, batch.indices)
        for row, length, index in zip(*features, batch.indices, strict=True):
            bags[data.name("train", int(index))] = row[:length].mean(dim=0)
    pairs = [(bags[name], bags[name.replace("brighter", "darker")]) for name in bags
             if name.startswith("brighter") and name.replace("brighter", "darker") in bags]  # fmt: skip
    assert len(pairs) > 5
    assert all(torch.allclose(*pair, atol=1e-5) for pair in pairs)


def test_fine_tuning_lowers_the_loss_and_moves_the_backbone(folder):
    task = make_task(RecurrentHead("gru", hidden=16), optimizer=AdamW(lr=5e-3), layer_decay=0.7, head_lr_factor=4.0)
    before = task.backbone.model.conv1[0].weight.clone()
    trainer = make_trainer(max_epochs=4, limit_val_batches=0)
    trainer.fit(task, datamodule=make_data(folder))
    assert trainer.callback_metrics["train/loss"] < 0.9 * math.log(2)
    assert not torch.equal(before, task.backbone.model.conv1[0].weight)


def test_each_task_names_its_data():
    assert SequenceClassification.data_class is FrameData
    assert Classification.data_class is not FrameData
