"""``diagnose`` has nothing to say against the recipe from which a pretext task learns."""

import pytest
import yaml
from test_learning import recipe_of

import methods
from ssl_toolkit.cli.command_line import CommandLine
from ssl_toolkit.cli.parser import parse
from ssl_toolkit.cli.prepare import prepare
from ssl_toolkit.cli.training_parser import training_parser
from ssl_toolkit.health.diagnose import diagnose


@pytest.mark.guarantee("R12")
@pytest.mark.parametrize(
    "name", methods.each(methods.pretext_tasks(), quick=("BarlowTwins",), others=pytest.mark.nightly)
)
def test_a_recipe_that_teaches_has_no_finding(name, tmp_path, reached):
    recipe, file = recipe_of(name, methods.table()[name].lesson), tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    parser = training_parser(CommandLine("pretrain", ["-c", str(file)]))
    objects = prepare(parser, parse(parser, ["-c", str(file)]))
    findings = diagnose(objects.model, objects.data, vars(objects.trainer)).findings
    assert not findings, [str(finding) for finding in findings]
    reached(f"{name}: no finding")
