"""What pyproject.toml cannot say: the recipes of configs/ travel in the wheel, as ssl_toolkit/recipes."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Copies the recipes beside the package; an editable install finds them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for recipe in Path("configs").glob("*/*.yaml"):
                copy = Path(self.build_lib, "ssl_toolkit", "recipes", *recipe.parts[1:])
                copy.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(recipe), str(copy))


setup(cmdclass={"build_py": BuildWithRecipes})
