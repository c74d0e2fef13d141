"""The command ``describe``: the layers of a network, with output sizes, receptive fields, parameters and cost."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from ssl_toolkit.cli import recipes
from ssl_toolkit.cli.parser import parse
from ssl_toolkit.evaluation.tables import as_text, check_new_table
from ssl_toolkit.io.atomic import atomic_file
from ssl_toolkit.io.yaml_files import load_yaml
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.modules.layer_table import Field, Layer, LayerTable, layer_table
from ssl_toolkit.run_folder import CONFIG, WEIGHTS, read_config
from ssl_toolkit.weights import read_header

_USUAL_SIZE = 224
_COLUMNS = ("layer", "kind", "output", "receptive field", "parameters", "multiply-adds")


def describe(arguments: Sequence[str]) -> LayerTable:
    """Prints the layers of a network."""
    parser = ArgumentParser(
        prog="ssl-toolkit describe",
        description="The layers of a backbone: output sizes, receptive fields, parameters, multiply-adds, memory.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "network", type=str, help="A network of timm (resnet18), a recipe (simclr), a run, or a weights file."
    )
    parser.add_argument("--image_size", type=int | None, default=None, help="Side of the images in pixels.")
    parser.add_argument("--stem", type=str | None, default=None, help="standard, middle or small.")
    parser.add_argument("--in_channels", type=int | None, default=None, help="Channels of the images.")
    parser.add_argument("--kwargs", type=dict | None, default=None, help="Further arguments of the timm network.")
    parser.add_argument("--out", type=str | None, default=None, help="A file for the table, CSV.")
    config = parse(parser, arguments)
    if config.image_size is not None and config.image_size < 1:
        raise ValueError(f"--image_size is {config.image_size}, expected at least 1 pixel")
    out = None if config.out is None else Path(config.out)
    if out is not None:
        check_new_table(out, [".csv"], "describe")
    settings, size = _backbone_of(config.network)
    given = {name: config[name] for name in ("stem", "in_channels", "kwargs") if config[name] is not None}
    backbone = Backbone(**{**settings, **given, "pretrained": False})
    size = config.image_size or size or getattr(backbone.model, "only_size", _USUAL_SIZE)
    table = layer_table(backbone.model, (backbone.in_channels, size, size))
    _print(table, backbone, size)
    print(
        f"{table.parameters:,} parameters; {_short(table.multiply_adds)} multiply-adds an image; its activations take "
        f"{table.activation_bytes / 2**20:.1f} MiB in training (float32, half in bfloat16)"
    )
    if out is not None:
        with atomic_file(out) as file, as_text(file) as text:
            writer = csv.writer(text)
            writer.writerow(_COLUMNS)
            writer.writerows(_cells(layer, plain=True) for layer in table.layers)
        print(f"table: {out}")
    return table


def _backbone_of(what: str) -> tuple[dict[str, Any], int | None]:
    """The arguments of a backbone, and the size of its images where that is known."""
    path = Path(what).expanduser()
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise ValueError(
                f"'{what}' is a folder without a {CONFIG}: give a network, a recipe, a run or a weights file"
            )
        config = read_config(path)
        found = _in(config, "model", "init_args", "backbone")
        if found is None and (path / WEIGHTS).is_file():
            found = read_header(path / WEIGHTS)["backbone"]
        return _arguments(found, what), _size(config)
    if path.suffix == ".safetensors":
        header = read_header(path)
        return dict(header["backbone"]), _size(header.get("config"))
    shipped = {name: file for side in recipes.SIDES for name, file in recipes.shipped(side).items()}
    if path.is_file() or what in shipped:
        config = load_yaml((path if path.is_file() else shipped[what]).read_text(encoding="utf-8"))
        return _arguments(_in(config, "model", "init_args", "backbone"), what), _size(config)
    return {"name": what}, None


def _arguments(found: Any, what: str) -> dict[str, Any]:
    if not isinstance(found, dict) or "name" not in found:
        raise ValueError(f"'{what}' names no network (model.backbone.name): its backbone comes from a weights file")
    return dict(found)


def _size(config: Any) -> int | None:
    """What the backbone sees of an image in a run: the side of its largest views."""
    arguments = _in(config, "model", "init_args")
    views = _in(arguments, "views")
    sizes = [_in(view, "size") for view in views.values()] if isinstance(views, dict) else []
    sizes += [_in(arguments, "view", "size"), _in(arguments, "image_size")]
    known = [size for size in sizes if isinstance(size, int)]
    size = max(known) if known else _in(config, "data", "image_size")
    return size if isinstance(size, int) else None


def _in(config: Any, *keys: str) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _print(table: LayerTable, backbone: Backbone, size: int) -> None:
    stem = "" if backbone.stem == "standard" else f" with the {backbone.stem} stem"
    print(f"{backbone.name}{stem}, images of {backbone.in_channels}x{size}x{size}\n")
    rows = [list(_COLUMNS), *(_cells(layer) for layer in table.layers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) if place < 2 else cell.rjust(width)
                 for place, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        print("  ".join(cells).rstrip())
    print()


def _cells(layer: Layer, plain: bool = False) -> list[str]:
    multiply_adds = str(layer.multiply_adds) if plain else _short(layer.multiply_adds)
    parameters = str(layer.parameters) if plain else f"{layer.parameters:,}"
    output = "x".join(map(str, layer.output))
    return [layer.name, layer.kind, output, _field_text(layer.field), parameters, multiply_adds]


def _field_text(field: Field | None) -> str:
    """Sides in pixels; that of what depends on the whole image is not a number."""
    if field is None:
        return "image"
    return f"{field.height}" if field.height == field.width else f"{field.height}x{field.width}"


def _short(number: int) -> str:
    """A count in thousands, millions or billions."""
    for unit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {sign}"
    return str(number)
