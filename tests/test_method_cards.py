"""Each pretext task has a card in docs/methods, and what it says of the recipe is what stands in the recipe."""

import re
from pathlib import Path

import pytest
import yaml

import methods

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "docs" / "methods"
SECTIONS = [
    "What it does",
    "When to use it",
    "How to run it",
    "Hyper-parameters",
    "Cost",
    "Figures",
    "Traps",
    "Source",
]
MODULES = sorted(each.__module__.removeprefix("pretext.").split(".")[0] for each in methods.pretext_tasks().values())


def card(module):
    file = CARDS / f"{module}.md"
    assert file.is_file(), f"pretext/{module}.py has no card: write docs/methods/{module}.md"
    return file.read_text(encoding="utf-8")


def section(text, title):
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE)[1]


def rows(text):
    """The cells of a table's rows, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def in_recipe(recipe, key):
    """What the command line's name of a value stands for in a recipe; of a class, its name."""
    node = recipe
    for part in key.split("."):
        if part not in node:
            node = node["init_args"]
        node = node[part]
    return node["class_path"].rpartition(".")[2] if isinstance(node, dict) else node


@pytest.mark.parametrize("module", MODULES)
def test_a_card_has_its_sections(module):
    assert re.findall(r"^## (.*)$", card(module), flags=re.MULTILINE) == SECTIONS


@pytest.mark.parametrize("module", MODULES)
def test_a_card_s_table_says_what_the_recipe_says(module):
    text = card(module)
    assert f"ssl-toolkit pretrain -c {module} " in section(text, "How to run it")
    recipe = yaml.safe_load((ROOT / f"configs/pretrain/{module}.yaml").read_text(encoding="utf-8"))
    table = rows(section(text, "Hyper-parameters"))
    assert len(table) >= 5
    for key, said, *_ in table:
        assert yaml.safe_load(said) == in_recipe(recipe, key.strip("`")), f"{module}: {key}"


@pytest.mark.parametrize("module", MODULES)
def test_a_card_names_its_file_and_its_paper(module):
    text = card(module)
    assert f"`pretext/{module}.py`" in text
    assert "https://arxiv.org/abs/" in section(text, "Source")


@pytest.mark.parametrize("module", MODULES)
def test_the_index_has_each_card_and_its_cost(module):
    index = (CARDS / "README.md").read_text(encoding="utf-8")
    (row,) = [line for line in index.splitlines() if f"]({module}.md)" in line]
    assert f"`configs/pretrain/{module}.yaml`" in row
    assert any(line.startswith(f"| `{module}` |") for line in index.splitlines()), f"measure {module}: see its Cost"


@pytest.mark.parametrize("module", MODULES)
def test_the_ratio_to_simclr_is_the_same_everywhere(module):
    index = rows(section((CARDS / "README.md").read_text(encoding="utf-8"), "Cost"))
    (measured,) = [row for row in index if row[0] == f"`{module}`"]
    if module != "simclr":
        cost = section(card(module), "Cost")
        assert f"{measured[3]} times as long" in cost
        assert f"{measured[5]} times the memory" in cost
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in readme if f"](docs/methods/{module}.md)" in line]
    assert row.endswith(f"| {measured[3].split()[0]} |")


def test_no_card_is_left_of_a_task_that_is_gone():
    assert {card.stem for card in CARDS.glob("*.md")} == {*MODULES, "README"}
