"""Predictions of the rows of a table (pairs, parts of sequences, some images) against what the run has tested."""

import csv
import shutil
import tarfile

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from downstream.base import Classifier
from ssl_toolkit.cli import main
from ssl_toolkit.cli.train import train
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.run_folder import predict_command, read_config
from ssl_toolkit.weights import save_backbone

SIDE, NUM = 24, 20
TRAIN, VAL, TEST = range(10), range(10, 14), range(14, 20)
RECURRENT = {"class_path": "downstream.sequence.RecurrentHead", "init_args": {"hidden": 8}}
PAIRED = {"class_path": "downstream.sequence.PairHead", "init_args": {"rank": 4}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, and takes of seven frames, of noise."""
    path, random = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    files = [f"images/{number}.png" for number in range(NUM)]
    files += [f"takes/{take}/{frame}.png" for take in range(6) for frame in range(7)]
    for name in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path / name)
    torch.manual_seed(0)
    save_backbone(path / "w.safetensors", Backbone("resnet10t", kwargs={"channels": [8, 8, 16, 16]}), {})
    return path


def write(file, header, rows):
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([header.split(","), *rows])
    return file


def split_of(number, parts):
    return next(split for split, part in zip(("train", "val", "test"), parts, strict=True) if number in part)


def transfer(folder, out, name, header, rows, columns, head=None):
    """Trains a classifier on a table; its folder, and the probabilities that its test computes, by the names."""
    settings = {
        "optimizer": {"class_path": "ssl_toolkit.optim.AdamW", "init_args": {"lr": 0.01}},
        "schedule": {"class_path": "ssl_toolkit.schedule.Cosine"},
        "weights": str(folder / "w.safetensors"),
        "freeze_backbone": True,
    }
    task = "classification.Classification" if head is None else "sequence.SequenceClassification"
    table = write(folder / f"{name}.csv", header, rows)
    data = {"path": str(folder / name), "table": str(table), "columns": columns, "image_size": SIDE, "batch_size": 4}
    recipe = {
        "model": {"class_path": f"downstream.{task}", "init_args": {**settings, **({"head": head} if head else {})}},
        "data": data,
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "precision": "32"},
        "tracker": "none",
    }
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    tested = {}

    def test_step(self, batch, batch_idx):
        step(self, batch, batch_idx)
        logits = self.logits(self.encode(batch, batch.indices))
        for index, each in zip(batch.indices.tolist(), logits.double().softmax(dim=1), strict=True):
            tested.setdefault(self.data.name("test", index), each.numpy())

    step = Classifier.test_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "test_step", test_step)
        command = ["-c", str(out / "recipe.yaml"), "--out", str(out / "run"), "--random_weights", "false"]
        return train("transfer", command, quietly=True), tested


@pytest.fixture(scope="module")
def pairs(folder, tmp_path_factory):
    rows = [
        [f"{first}.png", f"{second}.png", "xy"[first % 2], split_of(first, (TRAIN, VAL, TEST))]
        for part in (TRAIN, VAL, TEST)
        for first, second in zip(part, [*part[3:], *part[:3]], strict=True)
    ]
    columns = {"path": "file", "second": "other"}
    out = tmp_path_factory.mktemp("pairs")
    return transfer(folder, out, "images", "file,other,label,split", rows, columns, PAIRED)


@pytest.fixture(scope="module")
def parts(folder, tmp_path_factory):
    rows = [
        [take, start, start + 2 + take % 2, "xy"[(take + start) % 2], split_of(take, ((0, 1, 2), (3,), (4, 5)))]
        for take in range(6)
        for start in (0, 1, 3)
    ]
    out = tmp_path_factory.mktemp("parts")
    return transfer(folder, out, "takes", "path,from,to,label,split", rows, {"start": "from", "end": "to"}, RECURRENT)


@pytest.fixture(scope="module")
def single(folder, tmp_path_factory):
    shutil.copytree(folder / "images", folder / "alone")
    rows = [[f"{number}.png", "xy"[number % 2], split_of(number, (TRAIN, VAL, TEST))] for number in range(NUM)]
    out = tmp_path_factory.mktemp("single")
    return transfer(folder, out, "alone", "path,kind,split", rows, {"label": "kind"})


def predict(run, out, *options):
    """Runs the command; the names of its rows, and their probabilities."""
    command = ["predict", str(run), "--out", str(out), "--device", "cpu", "--precision", "32", *map(str, options)]
    assert main(command) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["name"] for row in rows], np.array([[float(row["p_x"]), float(row["p_y"])] for row in rows])


def error(capsys, command, run, out, *options):
    capsys.readouterr()
    assert main([command, str(run), "--out", str(out), *map(str, options)]) == 2
    # what was read of a table is said before
    *before, said = capsys.readouterr().err.splitlines()
    assert said.startswith("ssl-toolkit: error: ")
    assert not any(line.startswith("ssl-toolkit: error") for line in before)
    return said


def check_as_tested(found, tested, names):
    assert found[0] == names
    assert tested.keys() >= set(names)
    np.testing.assert_allclose(found[1], [tested[name] for name in names], atol=1e-6)
    assert len(np.unique(np.round(found[1], 4), axis=0)) > 1


def test_pairs_are_predicted_as_tested(pairs, folder, tmp_path, capsys):
    run, tested = pairs
    assert len(tested) == 6
    names = sorted(tested, key=lambda name: int(name.partition(".")[0]))[::2]
    # in another order, and with labels and splits that no training could take
    rows = [[*name.split("|"), "", "nonsense"] for name in reversed(names)]
    table = write(tmp_path / "t.csv", "file,other,label,split", rows)
    given = ["--data.table", table, "--data.path", folder / "images"]
    check_as_tested(predict(run, tmp_path / "p.csv", *given), tested, names)
    said = capsys.readouterr()
    assert said.out.startswith(f"images: {table}: 3 sequences\n")
    assert "path from 'file', second from 'other'\n" in said.err
    # of other names, and of files beside the table
    shutil.copytree(folder / "images", tmp_path / "images")
    other = write(tmp_path / "images" / "u.csv", "one,other", [row[:2] for row in rows])
    found = predict(run, tmp_path / "q.csv", "--data.table", other, "--data.columns.path", "one")
    check_as_tested(found, tested, names)
    # the other way round it is another pair
    turned = write(tmp_path / "v.csv", "other,file", [rows[0][:2]])
    (name,), values = predict(run, tmp_path / "r.csv", "--data.table", turned, *given[2:])
    assert name == "|".join(reversed(rows[0][:2]))
    assert np.abs(values[0] - tested[names[-1]]).max() > 1e-4


def test_a_folder_of_parts_goes_on_with_the_same_pairs_only(pairs, folder, tmp_path, capsys):
    run, _ = pairs
    rows = [["14.png", "15.png"], ["15.png", "14.png"], ["16.png", "17.png"]]
    given = ["--data.path", folder / "images", "--part_size", "2", "--device", "cpu"]
    table = write(tmp_path / "t.csv", "file,other", rows)
    command = ["predict", str(run), "--out", str(tmp_path / "o"), "--data.table", str(table), *map(str, given)]
    assert main(command) == 0
    assert "(2 parts, 3 rows)" in capsys.readouterr().err
    (tmp_path / "o" / "part-00001.parquet").unlink()
    write(table, "file,other", rows[::-1])
    assert main(command) == 0
    write(table, "file,other", [*rows[:2], ["16.png", "18.png"]])
    assert "was begun with images of digest" in error(capsys, *command[:2], tmp_path / "o", *command[4:])


def test_parts_of_sequences_are_predicted_as_tested(parts, folder, tmp_path, capsys):
    run, tested = parts
    assert len(tested) == 6
    table = write(tmp_path / "t.csv", "path,to,from", [[5, 4, 1], [4, 5, 3], [5, 3, 0]])
    given = ["--data.path", folder / "takes"]
    found = predict(run, tmp_path / "p.csv", "--data.table", table, *given)
    check_as_tested(found, tested, ["4[3:5]", "5[0:3]", "5[1:4]"])
    assert "these are whole ones" not in capsys.readouterr().err
    # whole ones without a table, which is said; and the same by one
    names, whole = predict(run, tmp_path / "q.csv", *given)
    assert names == [f"{take}" for take in range(6)]
    assert "the run is of parts of sequences, and these are whole ones: --data.table" in capsys.readouterr().err
    write(table, "path,to,from", [[5, 7, 0]])
    np.testing.assert_allclose(
        predict(run, tmp_path / "r.csv", "--data.table", table, *given)[1][0], whole[5], atol=1e-6
    )


def test_a_table_chooses_images_of_a_folder_and_of_shards(single, folder, tmp_path, capsys):
    run, tested = single
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for number in range(NUM):
            archive.add(folder / "alone" / f"{number}.png", f"{number}.png")
    table = write(tmp_path / "t.csv", "path,kind", [["17.png", ""], ["15.png", ""]])
    given = ["--data.table", table, "--data.path"]
    check_as_tested(predict(run, tmp_path / "p.csv", *given, folder / "alone"), tested, ["15.png", "17.png"])
    shards = ["--data.source", "shards", "--data.index", tmp_path / "index"]
    names, found = predict(run, tmp_path / "q.csv", *given, tmp_path / "s.tar", *shards)
    check_as_tested(([name.rpartition("/")[2] for name in names], found), tested, ["15.png", "17.png"])
    assert "left out, without a row: 18 images" in capsys.readouterr().err


def test_what_is_wrong_is_one_line(pairs, parts, single, folder, tmp_path, capsys):
    out, images = tmp_path / "p.csv", ["--data.path", folder / "images"]
    run = pairs[0]
    expected = f"{run} is a run of pairs of images: give --data.table TABLE with the columns file and other"
    assert expected in error(capsys, "predict", run, out)
    table = write(tmp_path / "t.csv", "file,second", [["14.png", "nowhere.png"]])
    given = ["--data.table", table, *images]
    said = error(capsys, "predict", run, out, *given)
    assert "has no column 'other'; its columns are 'file', 'second'" in said
    said = error(capsys, "predict", run, out, *given, "--data.columns.second", "second")
    assert "names 1 file of 1 that is not in" in said
    assert "(row 2: nowhere.png)" in said
    assert "the table 'no.csv' does not exist" in error(capsys, "predict", run, out, "--data.table", "no.csv", *images)
    said = error(capsys, "predict", run, out, *given, "--data.columns.label", "kind")
    assert "--data.columns.label: predict reads path, second, start, end of a table, and nothing else: leave it" in said
    said = error(capsys, "predict", single[0], out, "--data.table", table, *images, "--data.columns.second", "other")
    assert "--data.columns.second: predict reads path of a table, and nothing else: leave it out" in said
    said = error(capsys, "predict", single[0], out, *images, "--data.columns.path", "file")
    assert "data.columns are those of data.table, but there is none; give the table" in said
    said = error(capsys, "predict", parts[0], out, "--data.table", table, "--data.columns.path", "file")
    assert "has no column 'from'" in said
    for option in ("--data.table", "--data.columns.path"):
        said = error(capsys, "pseudo-label", single[0], out, *images, option, "t.csv")
        assert said == f"ssl-toolkit: error: {option}: every image of data.path is read, and no table; leave it out"
    assert not out.exists()


def test_a_run_of_pairs_reads_a_folder_of_two_images_each(pairs, folder, tmp_path, capsys):
    run, tested = pairs
    name = next(iter(tested))
    for number, image in enumerate(name.split("|")):
        for place in ("pair", "broken"):
            (tmp_path / "f" / place).mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "images" / image, tmp_path / "f" / place / f"{number}.png")
    (tmp_path / "f" / "broken" / "1.png").write_bytes(b"nothing")
    names, found = predict(run, tmp_path / "p.csv", "--data.path", tmp_path / "f", "--data.max_bad", "0.5")
    assert names == ["pair"]
    np.testing.assert_allclose(found[0], tested[name], atol=1e-6)
    shutil.copy(folder / "images" / "3.png", tmp_path / "f" / "pair" / "2.png")
    said = error(capsys, "predict", run, tmp_path / "q.csv", "--data.path", tmp_path / "f")
    assert "(pair has 3 frames); name pairs with data.table, or put the two images of each into a folder" in said
    said = error(capsys, "predict", run, tmp_path / "q.csv", "--data.path", folder / "images")
    assert "is not part of a sequence" in said
    assert "; name pairs with data.table, or put the two images of each into a folder of its own" in said


def test_the_next_command_names_the_table(pairs, parts, single):
    for run, has_table in ((pairs[0], True), (parts[0], True), (single[0], False)):
        command = predict_command(run, read_config(run))
        assert (" --data.table TABLE " in command) == has_table
        assert command in (run / "report.html").read_text().replace("&#x27;", "'")


@pytest.mark.slow
def test_the_graph_of_pairs_has_two_images(pairs, parts, folder, tmp_path, capsys):
    runtime = pytest.importorskip("onnxruntime")
    run, tested = pairs
    graph = tmp_path / "pairs.onnx"
    assert main(["export", "--weights", str(run / "model.safetensors"), "--format", "onnx", "--out", str(graph)]) == 0
    session = runtime.InferenceSession(graph)
    assert [each.name for each in session.get_inputs()] == ["first", "second"]
    assert [each.name for each in session.get_outputs()] == ["logits", "probabilities"]
    names = [name.split("|") for name in tested]
    first, second = (
        np.stack([np.asarray(Image.open(folder / "images" / name[place])) for name in names]) for place in (0, 1)
    )
    _, found = session.run(None, {"first": first, "second": second})
    np.testing.assert_allclose(found, list(tested.values()), rtol=1e-4, atol=1e-4)
    _, alone = session.run(None, {"first": first[2:3], "second": second[2:3]})
    np.testing.assert_allclose(alone, found[2:3], rtol=1e-4, atol=1e-4)
    weights = ["--weights", parts[0] / "model.safetensors", "--format", "onnx"]
    capsys.readouterr()
    assert main(["export", *map(str, weights), "--out", str(tmp_path / "parts.onnx")]) == 2
    said = capsys.readouterr().err
    assert "SequenceClassification does not export: only tasks of single images, and of pairs, do" in said
