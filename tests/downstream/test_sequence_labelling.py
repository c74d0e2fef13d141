"""Labels of frames: every head's laws, the loss against a naive loop, the figures, and predictions of each frame."""

import csv
import shutil
from itertools import chain, pairwise

import numpy as np
import pyarrow.dataset
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from test_cached_features import assert_same
from test_sequence import HEADS, make_backbone, make_head

from downstream.base.sequence_heads import FrameFeatures, padding_mask
from downstream.sequence import FrameHead, MultiStageTCNHead, PoolingHead, RecurrentHead, SequenceClassification
from downstream.sequence_labelling import SequenceLabelling
from ssl_toolkit.batch import Images
from ssl_toolkit.cli import main
from ssl_toolkit.cli.train import train
from ssl_toolkit.data.frames import FrameData, SequenceBatch
from ssl_toolkit.data.procedural.motions import SeveralMotionFrames
from ssl_toolkit.data.procedural.moving import MOTIONS
from ssl_toolkit.evaluation.segments import edit_score, matches, segments
from ssl_toolkit.losses.truncated_mse import truncated_mse
from ssl_toolkit.optim import AdamW
from ssl_toolkit.schedule import Cosine
from ssl_toolkit.step import StepContext
from ssl_toolkit.tracking.metrics_csv import last_values
from train_in_processes import train_together

LABELLING = [name for name in HEADS if HEADS[name]().labels_frames]
every_head = pytest.mark.parametrize("name", LABELLING)


def scores(head, features, lengths):
    return head.score_frames(features, lengths)[-1]


# ---- the heads


@every_head
def test_padding_changes_no_score_of_a_frame(name):
    head = make_head(name)
    features, lengths = torch.randn(4, 6, 5), torch.tensor([6, 3, 1, 4])
    real = ~padding_mask(lengths, 6)
    expected = scores(head, features, lengths)[real]
    for filling in (0.0, 1e6, float("nan"), float("inf")):
        other = features.masked_fill(~real.unsqueeze(2), filling)
        assert torch.equal(scores(head, other, lengths)[real], expected)
    longer = torch.cat([features, torch.randn(4, 5, 5)], dim=1)
    assert torch.allclose(scores(head, longer, lengths)[:, :6][real], expected, atol=1e-6)


@every_head
def test_the_frames_of_a_batch_equal_those_of_its_sequences_alone(name):
    head = make_head(name)
    features, lengths = torch.randn(4, 6, 5), torch.tensor([6, 3, 1, 4])
    together = scores(head, features, lengths)
    for row, length, expected in zip(features, lengths, together, strict=True):
        assert torch.allclose(scores(head, row[None, :length], length[None])[0], expected[:length], atol=1e-6)


@every_head
def test_a_causal_head_does_not_see_the_future_and_another_does(name):
    head = make_head(name).double()
    features, lengths = torch.randn(2, 6, 5).double(), torch.tensor([6, 6])
    other = features.clone()
    other[:, 4:] += 1
    change = (scores(head, other, lengths) - scores(head, features, lengths)).abs().amax(dim=(0, 2))
    assert change[4:].min() > 1e-6
    assert bool(change[:4].max() < 1e-12) == head.causal


@every_head
def test_a_head_reads_the_frames_around_unless_it_is_blind(name):
    head = make_head(name)
    features, lengths = torch.randn(2, 6, 5), torch.tensor([6, 6])
    other = features.clone()
    other[:, 0] += 1
    change = (scores(head, other, lengths) - scores(head, features, lengths)).abs().amax(dim=(0, 2))
    assert change[0] > 1e-4
    assert bool(change[1] < 1e-7) == head.blind_to_order


def test_each_stage_refines_the_probabilities_of_the_one_before():
    head = make_head("multi_stage")
    features, lengths = torch.randn(1, 6, 5), torch.tensor([6])
    first, second = head.score_frames(features, lengths)
    padding = torch.zeros(1, 1, 6, dtype=torch.bool)
    assert torch.allclose(head.stages[1](first.softmax(dim=2).transpose(1, 2), padding).transpose(1, 2), second)
    # a layer of the first stage, by hand: the dilated convolution of three frames, one over single frames, a shortcut
    layer, states = head.stages[0].layers[1], torch.randn(1, 8, 6)
    padded = F.pad(states, (2, 2))
    for frame in range(6):
        window = torch.stack([padded[0, :, frame + 2 * place] for place in range(3)], dim=1)
        hidden = (torch.einsum("oik,ik->o", layer.dilated.weight, window) + layer.dilated.bias).relu()
        expected = states[0, :, frame] + layer.mix.weight[:, :, 0] @ hidden + layer.mix.bias
        assert torch.allclose(layer(states)[0, :, frame], expected, atol=1e-5)


def test_heads_of_whole_sequences_are_refused():
    with pytest.raises(ValueError, match=r"PoolingHead scores whole sequences, and SequenceLabelling needs a score of"):
        make_task(PoolingHead())
    with pytest.raises(ValueError, match="PoolingHead scores whole sequences, not each frame"):
        make_head("mean").score_frames(torch.randn(1, 2, 5), torch.tensor([2]))
    with pytest.raises(ValueError, match="smoothing is -1"):
        make_task(FrameHead(), smoothing=-1.0)


# ---- the loss


def make_task(head, **arguments):
    defaults = {"backbone": make_backbone(), "optimizer": AdamW(lr=1e-2), "schedule": Cosine(warmup_percent=10),
                "num_classes": 3, "image_size": 16}  # fmt: skip
    return SequenceLabelling(head=head, **{**defaults, **arguments})


def batch_of(labels, weights=None):
    lengths = torch.tensor([len(each) for each in labels])
    num = int(lengths.sum())
    pixels = torch.zeros(num, 0, 0, 0, dtype=torch.uint8)
    return SequenceBatch(
        Images(pixels, torch.zeros(num, 2, dtype=torch.int64)), lengths, torch.arange(len(labels)),
        torch.full((len(labels),), -1), 0, None, weights, torch.arange(num), torch.tensor(list(chain(*labels))),
    )  # fmt: skip


LABELS = [[0, 0, 1, 1, 2, 2], [1, -1, -1], [-1, -1], [2, 0, 0, -1]]


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_the_mean_of_the_means_of_the_sequences(weighted):
    head = make_head("multi_stage", num_classes=3)
    task = make_task(head, smoothing=0.3)
    weights = torch.tensor([0.5, 2.0, 1.0, 0.5]) if weighted else None
    batch = batch_of(LABELS, weights)
    features = FrameFeatures(torch.randn(4, 6, 5), batch.lengths)
    output = task.loss(features, batch.frame_labels, StepContext(True, batch=batch))
    expected = 0.0
    for stage in head.score_frames(*features):
        for number, own in enumerate(LABELS):
            known = [frame for frame, label in enumerate(own) if label >= 0]
            losses = [F.cross_entropy(stage[number, frame], torch.tensor(own[frame])) for frame in known]
            loss = sum(losses) / len(losses) if losses else 0.0
            loss += 0.3 * truncated_mse(stage[number, None, : len(own)], torch.tensor([len(own)]))[0]
            expected += loss * (1.0 if weights is None else weights[number]) / len(LABELS)
    assert torch.allclose(output.loss, expected, rtol=1e-5)
    right = [int(head.score_frames(*features)[-1][number, frame].argmax()) == label
             for number, own in enumerate(LABELS) for frame, label in enumerate(own) if label >= 0]  # fmt: skip
    assert float(output.metrics["top1"]) == pytest.approx(sum(right) / len(right))
    assert len(output.features) == sum(map(len, LABELS))


def test_what_is_not_labelled_has_no_say():
    head = make_head("frame", num_classes=3)
    task = make_task(head)
    batch = batch_of(LABELS)
    features = FrameFeatures(torch.randn(4, 6, 5, requires_grad=True), batch.lengths)
    task.loss(features, batch.frame_labels, StepContext(True, batch=batch)).loss.backward()
    reached = features.padded.grad.abs().sum(dim=2) > 0
    expected = torch.zeros(4, 6, dtype=torch.bool)
    for number, own in enumerate(LABELS):
        expected[number, : len(own)] = torch.tensor(own) >= 0
    assert torch.equal(reached, expected)
    # a batch without a label still reaches every parameter, with nothing
    head.zero_grad()
    nothing = batch_of([[-1, -1], [-1]])
    loss = task.loss(FrameFeatures(torch.randn(2, 2, 5), nothing.lengths), nothing.frame_labels, StepContext(True)).loss
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(not parameter.grad.any() for parameter in head.parameters())


# ---- a run


def recipe(out, data, head="MultiStageTCNHead", head_arguments=None, epochs=2, **model):
    arguments = {
        "backbone": {"name": "resnet10t", "kwargs": {"channels": [8, 8, 16, 16]}}, "freeze_backbone": True,
        "cache_features": True, "image_size": 16,
        "head": {"class_path": f"downstream.sequence.{head}", "init_args": head_arguments or {}},
        "optimizer": {"class_path": "ssl_toolkit.optim.AdamW", "init_args": {"lr": 0.01}},
        "schedule": {"class_path": "ssl_toolkit.schedule.Cosine"}, **model,
    }  # fmt: skip
    written = {
        "model": {"class_path": "downstream.sequence_labelling.SequenceLabelling", "init_args": arguments},
        "data": {"labels": "none", "frame_labels": True, "max_frames": None, "image_size": 16, "batch_size": 4,
                 "val_fraction": 0.2, "test_fraction": 0.3, **data},
        "trainer": {"accelerator": "cpu", "max_epochs": epochs}, "tracker": "none", "random_weights": False,
    }  # fmt: skip
    return ["-c", yaml.safe_dump(written), "--out", str(out)]


SMALL = {"channels": 8, "num_layers": 3, "num_stages": 2}
BUILT_IN = {"source": "procedural", "max_images": 21}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Twenty-one sequences of several motions as frames, a frame of which is no picture, and the table of their
    segments, of which one is left out."""
    folder = tmp_path_factory.mktemp("videos")
    source = SeveralMotionFrames(21, 16)
    images, rows = source.render(range(len(source))), []
    for number, (first, end) in enumerate(zip(source.starts[:-1], source.starts[1:], strict=True)):
        (folder / f"v{number}").mkdir()
        for frame in range(first, end):
            Image.fromarray(images[frame]).save(folder / f"v{number}" / f"{frame - first}.png")
        own = source.motions[first:end]
        begins = [0, *(np.flatnonzero(np.diff(own)) + 1).tolist(), len(own)]
        rows += [(f"v{number}", a, b, MOTIONS[own[a]]) for a, b in pairwise(begins)]
    (folder / "v3" / "2.png").write_bytes(b"no picture")
    table = folder / "segments.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "start", "end", "label"), *rows[:5], *rows[6:]])
    return folder


def of_videos(videos):
    return {"path": str(videos), "table": str(videos / "segments.csv"), "columns": {"start": "start", "end": "end"},
            "max_bad": 0.1}  # fmt: skip


@pytest.fixture(scope="module")
def run(videos, tmp_path_factory):
    """A run on the videos."""
    return train("transfer", recipe(tmp_path_factory.mktemp("runs") / "run", of_videos(videos), head_arguments=SMALL),
                 quietly=True)  # fmt: skip


def read(file):
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def test_predictions_name_each_frame_and_the_test_figures_come_from_them(run, videos, tmp_path):
    out = tmp_path / "frames.csv"
    main(["predict", str(run), "--data.path", str(videos), "--data.max_bad", "0.1", "--out", str(out)])
    rows = read(out)
    per_video = {}
    for row in rows:
        per_video.setdefault(row["name"], []).append(row)
    assert list(per_video) == [f"v{number}" for number in range(21)]
    # v3 is without its third frame, whose number is left out
    numbers = {name: [int(row["frame"]) for row in own] for name, own in per_video.items()}
    assert numbers["v3"] == [number for number in range(len(numbers["v3"]) + 1) if number != 2]
    assert all(own == list(range(len(own))) for name, own in numbers.items() if name != "v3")
    for row in rows[:20]:
        values = {name.removeprefix("p_"): float(each) for name, each in row.items() if name.startswith("p_")}
        assert sum(values.values()) == pytest.approx(1, abs=1e-5)
        assert row["class"] == max(values, key=values.get)
    # the figures of the test split, from the table of segments and from what is predicted
    data = FrameData(**of_videos(videos), frame_labels=True, max_frames=None, image_size=16, val_fraction=0.2,
                     test_fraction=0.3, labels="none")  # fmt: skip
    data.setup()
    right, total, f1, edits = 0, 0, np.zeros(3), []
    for batch in data.loader("test"):
        names = [data.name("test", index) for index in batch.indices.tolist()]
        for name, labels in zip(names, batch.frame_labels.split(batch.lengths.tolist()), strict=True):
            truth = labels.numpy()
            found = np.array([data.class_names.index(row["class"]) for row in per_video[name]])
            known = truth >= 0
            right, total = right + (found == truth)[known].sum(), total + known.sum()
            f1 += matches(segments(found, known), segments(truth, known), 0.25)
            edits.append(edit_score(segments(found, known), segments(truth, known)))
    tested = last_values(run)
    assert float(tested["test/top1"]) == pytest.approx(right / total)
    assert float(tested["test/f1_25"]) == pytest.approx(2 * f1[0] / (2 * f1[0] + f1[1] + f1[2]))
    assert float(tested["test/edit"]) == pytest.approx(np.mean(edits))
    # the loss: of the last stage alone, from the probabilities that were predicted
    losses = []
    for batch in data.loader("test"):
        names = [data.name("test", index) for index in batch.indices.tolist()]
        for name, labels in zip(names, batch.frame_labels.split(batch.lengths.tolist()), strict=True):
            own = [-np.log(float(row[f"p_{data.class_names[label]}"]))
                   for row, label in zip(per_video[name], labels.tolist(), strict=True) if label >= 0]  # fmt: skip
            losses.append(np.mean(own))
    assert float(tested["test/loss"]) == pytest.approx(np.mean(losses), rel=2e-2)
    assert float(tested["test/top1_low"]) < right / total < float(tested["test/top1_high"])


def test_a_frame_keeps_its_number_where_some_are_left_out(videos, tmp_path):
    data = of_videos(videos) | {"max_frames": 5}
    out = train("transfer", recipe(tmp_path / "run", data, "FrameHead", epochs=1), quietly=True)
    main(["predict", str(out), "--data.path", str(videos), "--data.max_bad", "0.1", "--out", str(tmp_path / "f.csv")])
    numbers = [int(row["frame"]) for row in read(tmp_path / "f.csv") if row["name"] == "v0"]
    num = len(list((videos / "v0").iterdir()))
    assert numbers == [(2 * part + 1) * num // 10 for part in range(5)]


def test_predictions_in_parts_are_the_same(run, videos, tmp_path):
    words = ["predict", str(run), "--data.path", str(videos), "--data.max_bad", "0.1", "--out"]
    main([*words, str(tmp_path / "frames.parquet")])
    main([*words, str(tmp_path / "parts"), "--part_size", "8"])
    whole = pyarrow.parquet.read_table(tmp_path / "frames.parquet")
    files = sorted((tmp_path / "parts").glob("part-*.parquet"))
    assert len(files) == 3
    assert whole["frame"].type == pyarrow.int64()
    files[1].unlink()
    main([*words, str(tmp_path / "parts"), "--part_size", "8"])
    parts = pyarrow.parquet.read_table(tmp_path / "parts")
    assert parts.column_names == whole.column_names
    assert parts["name"].equals(whole["name"])
    assert parts["frame"].equals(whole["frame"])
    assert np.allclose(parts["probability"], whole["probability"], atol=1e-5)


def test_a_resumed_run_notices_other_labels(run, videos, tmp_path):
    copy, data = shutil.copytree(run, tmp_path / "run"), shutil.copytree(videos, tmp_path / "videos")
    table = data / "segments.csv"
    table.write_text(table.read_text().replace("right", "left", 1))
    moved = ["--data.path", str(data), "--data.table", str(table), "--trainer.max_epochs", "3"]
    with pytest.raises(ValueError, match=r"labels of frames of the 21 .* have changed since the run was begun"):
        train("transfer", ["--resume", str(copy), *moved], quietly=True)


@pytest.mark.slow
def test_cached_features_teach_the_same(videos, tmp_path):
    # a frozen backbone in batches of one size of 16 sequences: kernels of other sizes round differently
    pair = [
        train("transfer", recipe(tmp_path / str(cached), of_videos(videos) | {"num_threads": 1}, cache_features=cached,
                                 head_arguments=SMALL), quietly=True)
        for cached in (False, True)
    ]  # fmt: skip
    assert_same(*pair)


def in_processes(out):
    return train_together("transfer", recipe(out, BUILT_IN, "RecurrentHead", {"hidden": 8}, epochs=0))


@pytest.mark.slow
def test_any_number_of_processes_has_the_same_figures(tmp_path, run_processes):
    for num in (1, 2, 3):
        run_processes(in_processes, num, str(tmp_path / str(num)), timeout=180.0)
    one, *others = (last_values(tmp_path / str(num)) for num in (1, 2, 3))
    figures = [name for name in one if name.startswith("test/")]
    assert {"test/top1", "test/f1_50", "test/edit", "test/mean_class_top1"} <= set(figures)
    for other in others:
        for name in figures:
            rounds = name.split("/")[1] in ("loss", "ece", "ece_calibrated", "temperature")
            assert float(other[name]) == pytest.approx(float(one[name]), rel=1e-4 if rounds else 1e-6), name


def test_frames_are_labelled_better_with_those_around_them(tmp_path):
    """A recurrent head learns which way the brightness goes, which no frame tells."""
    random, rows = np.random.default_rng(0), []
    for number in range(60):
        levels, level, way = [], float(random.uniform(60, 190)), 1
        for _ in range(3):
            way = -way if level > 60 and random.random() < 0.9 else 1
            start = len(levels)
            for _ in range(int(random.integers(4, 9))):
                level = float(np.clip(level + 9 * way, 0, 255))
                levels.append(level)
            rows.append((f"{number}.npy", start, len(levels), "up" if way > 0 else "down"))
        frames = np.zeros((len(levels), 16, 16, 3), np.uint8) + np.array(levels, np.uint8)[:, None, None, None]
        np.save(tmp_path / f"{number}.npy", frames)
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "start", "end", "label"), *rows])
    data = {"path": str(tmp_path), "table": str(tmp_path / "t.csv"), "columns": {"start": "start", "end": "end"}}
    found = {}
    for name, arguments in (("RecurrentHead", {"hidden": 16, "bidirectional": True}), ("FrameHead", {"hidden": 16})):
        out = train("transfer", recipe(tmp_path / name, data, name, arguments, epochs=25), quietly=True)
        found[name] = last_values(out)
    assert float(found["RecurrentHead"]["test/top1"]) > 0.85
    assert float(found["RecurrentHead"]["test/top1"]) > float(found["FrameHead"]["test/top1"]) + 0.1


# ---- what does not fit


def test_a_task_and_data_of_other_labels_are_refused(tmp_path):
    built_in = {"source": "procedural", "max_images": 20, "image_size": 16}
    task = make_task(RecurrentHead(hidden=8), num_classes=None)
    with pytest.raises(ValueError, match=r"the data have none: set data.frame_labels: true"):
        setup(task, FrameData(**built_in, labels="folder"))
    task = SequenceClassification(head=RecurrentHead(hidden=8), backbone=make_backbone(), optimizer=AdamW(lr=0.1),
                                  schedule=Cosine())  # fmt: skip
    with pytest.raises(ValueError, match=r"frame_labels gives each frame a label: SequenceClassification names the"):
        setup(task, FrameData(**built_in, frame_labels=True))
    task = make_task(MultiStageTCNHead(**SMALL), background="rihgt", num_classes=None)
    with pytest.raises(ValueError, match=r"background is 'rihgt', which is no class.* right.*did you mean"):
        setup(task, FrameData(**built_in, frame_labels=True))


def setup(task, data):
    from lightning.pytorch import Trainer

    data.setup("fit")
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, max_epochs=1)  # fmt: skip
    trainer.fit(task, datamodule=data)
