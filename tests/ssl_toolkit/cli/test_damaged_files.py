"""Damaged files of a run and of the user: one line that names the file, or made again; never a traceback."""

import json
import shutil

import pytest

from ssl_toolkit.cli import main
from ssl_toolkit.tracking.metrics_csv import last_values, read_metrics

NO_JSON = {
    "cut off": b'{"starts": [{"star',
    "empty": b"",
    "no text": b"\xff\xfe\x00\x81",
    "a list": b"[1, 2]",
    "a number": b"7",
    "another key": b'{"begun": []}',
    "a start that is none": b'{"starts": [3]}',
    "a count as text": b'{"starts": [{"processes": "2", "batch_size": 8}]}',
    "no processes": b'{"starts": [{"processes": 0, "batch_size": 8}]}',
    "versions as a list": b'{"starts": [{"versions": ["a"]}]}',
    "nested deeply": b"[" * 100_000,
}


@pytest.fixture(scope="module")
def begun(begin_run):
    """A run of four steps, with its state after two of them."""
    return begin_run(4, 2)


@pytest.fixture
def run(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "run")


def errors(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("ssl-toolkit: error: ")]


@pytest.mark.parametrize("damage", NO_JSON)
@pytest.mark.slow
def test_a_damaged_record_of_the_starts_is_named_at_a_resume_and_left_out_of_the_report(run, damage, capsys):
    file = run / "environment.json"
    file.write_bytes(NO_JSON[damage])
    config = (run / "config.yaml").read_bytes()
    assert main(["pretrain", "--resume", str(run)]) == 2
    (said,) = errors(capsys)
    assert f"{file} is damaged" in said
    assert (run / "config.yaml").read_bytes() == config
    assert main(["report", "--run_dir", str(run)]) == 0
    assert f"left out of the report: {file} is damaged" in capsys.readouterr().err
    file.unlink()
    assert main(["pretrain", "--resume", str(run)]) == 0
    assert len(json.loads(file.read_text())["starts"]) == 1


@pytest.mark.parametrize("name", ["watch.json", "evaluation.json", "bad_files.txt", "status.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1]", b'{"rows": [1]}', b'[{"what": 1}]', b"[" * 100_000])
def test_a_report_is_written_of_a_run_with_a_damaged_file(run, name, content, capsys):
    (run / name).write_bytes(content)
    assert main(["report", "--run_dir", str(run)]) == 0
    assert not errors(capsys)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"- 1", b"a: [", b"model: 3", b"model: &a [*a]", b"model: {class_path: 3}"]
)
@pytest.mark.parametrize(
    "command",
    [["report", "--run_dir"], ["pretrain", "--resume"], ["predict", "--data.path", "images", "--out", "table.csv"]],
)
def test_a_damaged_configuration_is_one_line(run, command, content, capsys):
    (run / "config.yaml").write_bytes(content)
    status = main([*command, str(run)])
    assert (status, len(errors(capsys))) in ((2, 1), (0, 0))


HEADER = "step,epoch,train/loss\n"
CSV = {
    "no text": b"\xff\xfe\x00\x81\n\x00\n",
    "no step": b"epoch,train/loss\n0,1\n",
    "a column twice": b"step,step\n0,1\n",
    "a header alone": HEADER.encode(),
    "too many cells": f"{HEADER}0,0,1.5\n1,0,1,2,3\n".encode(),
    "too few cells": f"{HEADER}0,0,1.5\n1\n".encode(),
    "a step that is none": f"{HEADER}0,0,1.5\nx,0,1\ninf,0,1\nnan,0,1\n".encode(),
    "a zero byte": f"{HEADER}0,0,1.5\n\x00\n".encode(),
    "a huge cell": f"{HEADER}0,0,1.5\n1,0,{'9' * 200_000}\n".encode(),
    "an open quote": f'{HEADER}0,0,1.5\n"1,0,1\n'.encode(),
    "an empty line": f"{HEADER}0,0,1.5\n\n".encode(),
}


@pytest.mark.parametrize("damage", CSV)
def test_damaged_metrics_are_left_out_and_kept_beside(run, damage, capsys):
    file = run / "metrics.csv"
    file.write_bytes(CSV[damage])
    assert main(["report", "--run_dir", str(run)]) == 0
    assert main(["pretrain", "--resume", str(run)]) == 0
    assert not errors(capsys)
    metrics = read_metrics(run)
    assert metrics["step"][-1] >= 2
    assert last_values(run)["train/loss"] > 0
    if damage != "a header alone":
        assert (run / "metrics.csv.damaged").read_bytes() == CSV[damage]
        if b"0,0,1.5" in CSV[damage]:
            assert metrics["train/loss"][0] == 1.5


BOMBS = {
    "aliases": "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    + "model: *a11\n",
    "an alias of itself": "model: &a {init_args: *a}\n",
    "deep": f"model: {'[' * 5000}{']' * 5000}\n",
    "deep mappings": "".join(f"{' ' * n}a:\n" for n in range(2000)),
    "merged": "a: &a {x: 1}\n" + "b: &b {<<: [" + ", ".join(["*a"] * 9) + "]}\n" + "model: {<<: *b}\n",
}


COMMANDS = {"pretrain": ["pretrain"], "transfer": ["transfer"], "diagnose": ["diagnose", "pretrain"],
            "lr-find": ["lr-find", "pretrain"], "evaluate": ["evaluate"]}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_recipe_that_stands_for_too_much_is_one_line(tmp_path, bomb, command, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(BOMBS[bomb])
    assert main([*COMMANDS[command], "-c", str(file)]) == 2
    (said,) = errors(capsys)
    assert str(file) in said or bomb == "merged"
    for option in ("-c", "--data", "--model"):
        assert main([*COMMANDS[command], option, BOMBS[bomb]]) == 2
        assert len(errors(capsys)) == 1
