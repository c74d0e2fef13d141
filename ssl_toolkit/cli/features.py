"""The commands that use a finished backbone: ``evaluate``, ``embed`` and ``report``."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from ssl_toolkit.cli.imports import quick_imports
from ssl_toolkit.cli.parser import instantiate, parse
from ssl_toolkit.distributed.ranks import is_rank_zero, launched
from ssl_toolkit.io.atomic import write_atomically
from ssl_toolkit.run_folder import BAD_FILES, bad_file_lines

if TYPE_CHECKING:
    from ssl_toolkit.data import ImageData
    from ssl_toolkit.evaluation import Evaluation


def evaluate(arguments: Sequence[str]) -> Evaluation:
    """Measures a backbone on labelled images beside random weights, prints the table and writes the figures."""
    with quick_imports():
        from rich.console import Console

        from ssl_toolkit.cli.remarks import seen_remarks
        from ssl_toolkit.data import ImageData
        from ssl_toolkit.evaluation import evaluate as measure
        from ssl_toolkit.report import write_report
        from ssl_toolkit.run_folder import CONFIG

    check_one_process("evaluate")
    parser = function_parser("evaluate", measure, skip={"say", "data"})
    parser.add_class_arguments(ImageData, "data")
    parser.add_argument("--out", type=str | None, default=None, help="File for the figures, JSON (evaluation.json).")
    parser.set_defaults({"data.labels": "folder", "data.test_fraction": 0.2})
    config = instantiate(parser, _parse_with_size(parser, arguments))
    out = Path(config.pop("out") or Path(config.weights).parent / "evaluation.json")
    config.pop("config")
    evaluation = measure(**vars(config), say=say_line)
    Console().print(evaluation.table())
    for line in evaluation.words():
        print(line)
    if evaluation.robustness is not None:
        Console().print(evaluation.robustness.table())
    if evaluation.dense is not None and evaluation.rows:
        Console().print(evaluation.dense.table())
    if evaluation.shortcuts is not None:
        Console().print(evaluation.shortcuts.table())
        for line in evaluation.shortcuts.words:
            print(line)
    for remark in seen_remarks(config.data, config.weights):
        print(remark)
    if out.exists():
        earlier = _free_name(out)
        out.rename(earlier)
        print(f"earlier figures: {earlier}")
    evaluation.save(out)
    tell_what_was_read(config.data, out)
    print(f"figures: {out}")
    if out.parent == Path(config.weights).parent and (out.parent / CONFIG).is_file():
        print(f"report: {write_report(out.parent)}")
    return evaluation


def embed(arguments: Sequence[str]) -> Path:
    """Writes the features of every image to a table, whose file it returns."""
    with quick_imports():
        from ssl_toolkit.data import ImageData
        from ssl_toolkit.data.frames import FrameData
        from ssl_toolkit.evaluation.embed import embed as write

    parser = function_parser("embed", write, skip={"say", "data"})
    per_frame = _says_per_frame(arguments)
    parser.add_class_arguments(FrameData if per_frame else ImageData, "data")
    if per_frame:
        parser.set_defaults({"data.batch_size": 256})
    config = instantiate(parser, _parse_with_size(parser, arguments))
    config.pop("config")
    file = write(**vars(config), say=say_line if is_rank_zero() else None)
    if is_rank_zero():
        tell_what_was_read(config.data, file)
        print(f"features: {file}")
    return file


def report(arguments: Sequence[str]) -> None:
    """Writes the local page of a run."""
    with quick_imports():
        from ssl_toolkit.report import write_report

    parser = function_parser("report", write_report, as_positional=True)
    # the folder was an option in earlier versions
    config = parse(parser, [argument for argument in arguments if argument != "--run_dir"])
    config.pop("config")
    print(f"report: {write_report(**vars(config))}")


def check_one_process(command: str) -> None:
    """Raises a ValueError for a command that several processes would each do whole, and write."""
    num = launched().world_size
    if num > 1:
        raise ValueError(
            f"{command} runs in one process, but a launcher has started {num}: start it without torchrun or srun"
        )


def function_parser(
    command: str, function: Callable, skip: set[str | int] | None = None, as_positional: bool = False
) -> ArgumentParser:
    """A parser whose options are a function's arguments."""
    description = (function.__doc__ or "").partition("\n")[0]
    parser = ArgumentParser(
        prog=f"ssl-toolkit {command}", description=description, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("-c", "--config", action="config", help="Options in a YAML file.")
    parser.add_function_arguments(function, skip=skip, as_positional=as_positional)
    return parser


def _says_per_frame(arguments: Sequence[str]) -> bool:
    """Whether the data are sequences, on which their options depend: it is looked for before these are parsed."""
    from ssl_toolkit.cli.command_line import statements

    values = [each.value for each in statements(arguments) if each.key == "per_frame"]
    return bool(values) and str(values[-1]).lower() in ("true", "yes", "1")


def _free_name(file: Path) -> Path:
    """A name beside a file that is not taken: ``evaluation-1.json``, ``evaluation-2.json`` ..."""
    names = (file.with_name(f"{file.stem}-{number}{file.suffix}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def _parse_with_size(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parses; images have the size with which the weights were trained, unless the command line says another."""
    from ssl_toolkit.weights import read_header
    from ssl_toolkit.weights.trained_size import size_remark, trained_size

    config = parse(parser, arguments)
    size = trained_size(read_header(config.weights))
    if size is not None:
        parser.set_defaults({"data.image_size": size})
        config = parse(parser, arguments)
    say_line(size_remark(config.weights, config.image_size or config.data.image_size))
    return config


def tell_what_was_read(data: ImageData, out: Path, of_path: bool = False) -> None:
    """Says which images there were (see `ImageData.summary`), and lists the bad ones beside what came out.

    A folder of part files has its own list.
    """
    if out.is_dir():
        print(f"images: {data.summary(of_path, with_bad=True)}")
        return
    print(f"images: {data.summary(of_path)}")
    lines = bad_file_lines((error.path, error.reason) for error in data.bad_files)
    listing = out.with_name(f"{out.stem}_{BAD_FILES}")
    listing.unlink(missing_ok=True)  # that of an earlier time
    if lines:
        write_atomically(listing, "".join(f"{line}\n" for line in lines))
        print(f"unreadable files left out: {len(lines)}, listed in {listing}")


def say_line(line: str) -> None:
    print(line, file=sys.stderr)
