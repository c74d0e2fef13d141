"""One flipped bit anywhere in what a run saved is refused by a checksum, and the message names the file."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch
import yaml

import methods
from ssl_toolkit.checkpoint.io import AtomicCheckpointIO
from ssl_toolkit.cli import main
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.run_folder import CHECKPOINTS, CONFIG, newest_checkpoint
from ssl_toolkit.weights import WeightsError, load_backbone, load_into, save_backbone

NUM = 50


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.guarantee("S5")
@pytest.mark.slow
def test_a_flipped_bit_in_a_weights_file(tmp_path, reached):
    torch.manual_seed(0)
    backbone = Backbone("test_resnet")
    file = tmp_path / "backbone.safetensors"
    save_backbone(file, backbone, {"pretext": "simclr", "step": 1e-07, "config": {"lr": 1e-05, "name": "é ✓"}})
    content = file.read_bytes()
    end_of_header = 8 + int.from_bytes(content[:8], "little")
    anywhere = random.Random(0).sample(range(8 * len(content)), NUM)
    # the header is the part where two texts can mean the same: some more of it, and the metadata are at its front
    header = random.Random(1).sample(range(8 * end_of_header), 150) + list(range(8 * 8))
    refused = 0
    for bit in anywhere + header:
        file.write_bytes(flipped(content, bit))
        for load in (load_backbone, lambda path: load_into(backbone, path)):
            with pytest.raises(WeightsError) as caught:
                load(file)
            assert str(file) in str(caught.value).splitlines()[0]
        refused += 1
    file.write_bytes(content)
    load_backbone(file)
    reached(
        f"{NUM} random bits of a weights file and {len(header)} of its header: {refused} of {NUM + len(header)} "
        "refused with the file's name; its checksum is inside, so there is no file beside it to lose"
    )


def test_the_exponent_of_a_number_in_the_header_may_not_change_its_letter(tmp_path):
    """A bit that turns 1e-05 to 1E-05: the same number, but not the same file."""
    file = tmp_path / "backbone.safetensors"
    save_backbone(file, Backbone("test_resnet"), {"lr": 1e-05})
    content = file.read_bytes()
    assert content.count(b"1e-05") == 1
    file.write_bytes(content.replace(b"1e-05", b"1E-05"))
    with pytest.raises(WeightsError, match="not as ssl-toolkit writes it"):
        load_backbone(file)


@pytest.mark.guarantee("S5")
def test_a_flipped_bit_in_a_checkpoint(tmp_path, reached, capsys):
    run = tmp_path / "run"
    (run / CHECKPOINTS).mkdir(parents=True)
    saver = AtomicCheckpointIO()
    older, newer = (run / CHECKPOINTS / f"step-{step:010d}.ckpt" for step in (1, 2))
    state = {"state_dict": {"weight": torch.randn(40, 50)}, "optimizer_states": [{"step": 3}], "note": "é"}
    for file in (older, newer):
        saver.save_checkpoint(state, file)
    content, draw = newer.read_bytes(), random.Random(0)
    refused = 0
    for bit in draw.sample(range(8 * len(content)), NUM):
        newer.write_bytes(flipped(content, bit))
        assert newest_checkpoint(run) == older
        said = capsys.readouterr().out
        assert f"damaged: {newer}" in said
        refused += 1
    newer.write_bytes(content)
    assert newest_checkpoint(run) == newer
    # a bit of the checksum itself
    beside = newer.with_name(newer.name + ".sha256")
    checksum = beside.read_bytes()
    for bit in draw.sample(range(8 * 64), NUM):
        beside.write_bytes(flipped(checksum, bit))
        assert newest_checkpoint(run) == older
        assert str(newer) in capsys.readouterr().out
    # without a checksum nothing vouches for the file: it is not used
    beside.unlink()
    assert newest_checkpoint(run) == older
    assert f"{newer} ({beside.name} is missing)" in capsys.readouterr().out
    # and if there is no other, a run does not silently begin again
    older.write_bytes(flipped(older.read_bytes(), 12345))
    with pytest.raises(ValueError, match=re.escape(str(older))) as caught:
        newest_checkpoint(run)
    assert str(newer) in str(caught.value)
    reached(
        f"{refused} of {NUM} random bits of a checkpoint and {NUM} of {NUM} of its checksum refused with the file's "
        "name, the one before is used; without its checksum a checkpoint is refused, too"
    )


@pytest.mark.slow
def test_the_command_line_refuses_a_flipped_bit(recipe_file, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["pretrain", "-c", str(recipe_file), "--out", str(run)]) == 0
    (file,) = sorted((run / CHECKPOINTS).glob("*.ckpt"))[-1:]
    for each in (run / CHECKPOINTS).glob("*.ckpt"):
        each.write_bytes(flipped(each.read_bytes(), 999))
    before = (run / CONFIG).read_bytes()
    assert main(["pretrain", "--resume", str(run)]) == 2
    said = capsys.readouterr().err
    assert str(file) in said
    assert "start a new run" in said
    weights = run / "backbone.safetensors"
    weights.write_bytes(flipped(weights.read_bytes(), 8 * (weights.stat().st_size - 3)))
    assert (
        main(["export", "--weights", str(weights), "--format", "timm", "--out", str(tmp_path / "o.safetensors")]) == 2
    )
    assert f"{weights} is damaged" in capsys.readouterr().err
    assert (run / CONFIG).read_bytes() == before


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(methods.recipe("SimCLR", tmp_path / "data", max_epochs=1)))
    return file
