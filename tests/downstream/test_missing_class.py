"""A class that no training image has is said."""

import numpy as np
from PIL import Image

from ssl_toolkit.cli import main


def test_a_label_only_in_test_is_said(tmp_path, capsys):
    random = np.random.default_rng(0)
    lines = ["path,label,split"]
    for number in range(12):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{number:02d}.png")
        label = "zebra" if number == 11 else "ab"[number % 2]
        lines.append(f"{number:02d}.png,{label},{'train' if number < 8 else 'test'}")
    table = tmp_path / "table.csv"
    options = ["transfer", "-c", "linear_probe", "--data.table", str(table), "--data.image_size", "32"]
    options += ["--data.batch_size", "4", "--data.val_fraction", "0", "--model.backbone.name", "resnet10t"]
    options += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--tracker", "none"]
    options += ["--random_weights", "false"]
    table.write_text("\n".join(lines) + "\n")
    assert main([*options, "--out", str(tmp_path / "one")]) == 0
    said = "no training sample of zebra: whatever is tested of it is taken for another class"
    assert capsys.readouterr().out.count(said) == 1
    table.write_text("\n".join(lines).replace("zebra", "b") + "\n")
    assert main([*options, "--out", str(tmp_path / "two")]) == 0
    assert "no training sample" not in capsys.readouterr().out
