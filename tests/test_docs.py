"""The pages of docs/ are true: their Python runs, their YAML is accepted, and all that they point to is there.

What a page may count on:

* Its ``python`` blocks are run in their order, in one namespace, in an empty folder, without a network. A block that
  begins with ``# NAME.py`` is that file, too, so that a class in it has a class path.
* Each ``yaml`` block is a second recipe, given after configs/pretrain/simclr.yaml, or after
  configs/transfer/finetune.yaml (with a backbone of random weights) where the line above is ``<!-- transfer -->``, or
  after the recipe that the line above names (``<!-- configs/pretrain/byol.yaml -->``).
* ``sh`` blocks are not run, but their scripts exist and know the options, and so does ``ssl-toolkit``.
"""

import importlib
import inspect
import re
import shlex
import socket
import subprocess
import sys
import types
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from ssl_toolkit.cli import COMMANDS, recipes
from ssl_toolkit.cli.command_line import CommandLine, read_options
from ssl_toolkit.cli.parser import instantiate, parse
from ssl_toolkit.cli.training_parser import training_parser
from ssl_toolkit.init import Initializer
from ssl_toolkit.optim import OptimizerSpec
from ssl_toolkit.regularization import Regularizer
from ssl_toolkit.schedule import Schedule

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {page.relative_to(DOCS).as_posix(): page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))}
RECIPES = {"pretrain": "configs/pretrain/simclr.yaml", "transfer": "configs/transfer/finetune.yaml"}
FAMILIES = {"optim": OptimizerSpec, "schedule": Schedule, "init": Initializer, "regularization": Regularizer}
LARGEST_PICTURE = 80_000


class Block(NamedTuple):
    """A block of code of a page; the line is that of its first line, from 1."""

    language: str
    text: str
    line: int
    above: str


def blocks(page, *languages):
    lines = PAGES[page].splitlines()
    fences = [number for number, line in enumerate(lines) if line.lstrip().startswith("```")]
    assert len(fences) % 2 == 0, f"{page}: a block of code has no end"
    found = []
    for start, end in zip(fences[::2], fences[1::2], strict=True):
        assert lines[start].startswith("```"), f"{page}:{start + 1}: an indented block would not be tested"
        above = lines[start - 1].strip() if start else ""
        found.append(Block(lines[start][3:], "\n".join(lines[start + 1 : end]) + "\n", start + 2, above))
    return [block for block in found if block.language in languages]


def pages_with(*languages):
    return [page for page in PAGES if blocks(page, *languages)]


def each_block(*languages):
    found = [(page, block) for page in PAGES for block in blocks(page, *languages)]
    return pytest.mark.parametrize(
        ("page", "block"), found, ids=[f"{page.removesuffix('.md')}-{block.line}" for page, block in found]
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, where modules are found as the command line finds them; they are forgotten afterwards."""
    known = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def write_modules(page, folder):
    for block in blocks(page, "python"):
        if name := re.match(r"# (\w+\.py)$", block.text.splitlines()[0]):
            (folder / name[1]).write_text(block.text, encoding="utf-8")


# what libraries warn of does not stop a user either
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "page",
    # thousands of images are predicted there
    [pytest.param(page, marks=pytest.mark.slow if page == "predicting.md" else ()) for page in pages_with("python")],
)
def test_python_runs(page, folder, monkeypatch):
    def refuse(*_):
        raise OSError("a page works without a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    # each line at its own number, so that an error names the line of the page
    lines = [""] * len(PAGES[page].splitlines())
    for block in blocks(page, "python"):
        code = block.text.splitlines()
        lines[block.line - 1 : block.line - 1 + len(code)] = code
    file = folder / f"page_{page.removesuffix('.md').replace('/', '_')}.py"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    code = compile(file.read_text(encoding="utf-8"), str(file), "exec")
    write_modules(page, folder)
    module = types.ModuleType(file.stem)
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, file.stem, module)
    exec(code, module.__dict__)


@each_block("yaml")
def test_yaml_is_accepted(page, block, folder):
    write_modules(page, folder)
    named = re.fullmatch(r"<!-- (configs/(pretrain|transfer)/\w+\.yaml) -->", block.above)
    command = named[2] if named else "transfer" if block.above == "<!-- transfer -->" else "pretrain"
    (folder / "fragment.yaml").write_text(block.text, encoding="utf-8")
    recipe = ROOT / (named[1] if named else RECIPES[command])
    arguments = ["-c", str(recipe), "-c", "fragment.yaml", "--tracker", "none"]
    line = CommandLine(command, arguments)
    parser, arguments = training_parser(line), line.arguments
    if command == "transfer" and not parse(parser, arguments).model.init_args.backbone:
        arguments += ["--model.backbone.name", "resnet10t"]
    task = instantiate(parser, parse(parser, arguments)).model
    if command == "transfer":
        task.num_classes = 10
        task.build_head(task.backbone.num_features)
    task.check()
    for regularizer in task.regularizers:
        # where its pattern does not match anything, it says so here
        regularizer.prepare(task)


@each_block("sh")
def test_commands_are_known(page, block, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in re.sub(r"\\\n", " ", block.text).splitlines():
        words = shlex.split(command, comments=True)
        for number, word in enumerate(words):
            if word == "python" and words[number + 1].startswith("benchmarks/"):
                check_script(words[number + 1], words[number + 2 :])
            elif word == "ssl-toolkit":
                check_command(words[number + 1 :])


def check_script(script, arguments):
    assert (ROOT / script).is_file(), script
    for option, _ in read_options(arguments):
        if option.startswith("--"):
            known = option in options_of(script) or option in help_of(script).split()
            assert known, f"{script} does not know {option}"


@cache
def options_of(script):
    """As far as its text tells, which is sooner read than it says its help."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in (script, "benchmarks/measuring.py")]
    return set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', "".join(texts)))


@cache
def help_of(script):
    said = subprocess.run([sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True, timeout=100)
    assert said.returncode == 0, said.stderr
    return said.stdout


def check_command(arguments):
    command, *rest = arguments
    assert command in COMMANDS
    if command not in RECIPES:
        return
    kept = []
    while rest:
        word = rest.pop(0)
        if word in recipes.OPTIONS and rest[0].endswith(".yaml") and not rest[0].startswith("configs/"):
            rest.pop(0)  # a recipe of the user's own
        else:
            kept.append(word)
    line = CommandLine(command, kept)
    parse(training_parser(line), line.arguments)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = ((DOCS / page).parent / path).resolve() if path else DOCS / page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page} links to {target}"


def anchors(text):
    """The names that GitHub gives to the headings."""
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_are_there(page):
    prose = re.sub(r"^```(?:python|yaml).*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    named = (
        r"(?<![\w/.-])(?:ssl_toolkit|pretext|downstream|configs|benchmarks|tests|docs)/[\w/.-]*\.(?:py|yaml|md|png)\b"
    )
    for path in re.findall(named, prose):
        assert (ROOT / path).is_file(), f"{page} names {path}"


def test_every_picture_is_shown_and_small():
    shown = [*PAGES.values(), (ROOT / "README.md").read_text(encoding="utf-8")]
    for picture in (DOCS / "pictures").glob("*"):
        assert any(f"pictures/{picture.name}" in text for text in shown), f"no page shows {picture.name}"
        assert picture.stat().st_size < LARGEST_PICTURE, picture.name


def test_every_page_is_in_the_index():
    for page in PAGES:
        folder, _, name = page.rpartition("/")
        index = f"{folder}/README.md" if folder and name != "README.md" else "README.md"
        assert page == index or f"]({page.removeprefix(index.removesuffix('README.md'))})" in PAGES[index], page


def public_components():
    for package, base in FAMILIES.items():
        module = importlib.import_module(f"ssl_toolkit.{package}")
        for name in module.__all__:
            member = getattr(module, name)
            is_one = inspect.isclass(member) and issubclass(member, base) and member is not base
            if is_one and not inspect.isabstract(member):
                yield f"ssl_toolkit.{package}.{name}"


@pytest.mark.parametrize("component", list(public_components()))
def test_every_component_has_its_place_in_a_page(component):
    name = component.rpartition(".")[2]
    # a page names it in code, or in a recipe with or without its package
    mention = rf"`{name}[`(]|\b{re.escape(component)}\b|class_path: {name}\b"
    assert any(re.search(mention, text) for text in PAGES.values()), f"{component} is in no page of docs/"
