"""The recipes that come with Defuse, by name, such as "zephyr-7b-beta/rmu"."""

from difflib import get_close_matches
from pathlib import Path

from defuse.utils.errors import UsageError

FOLDER = Path(__file__).parent
# Models and datasets that the hub gives only to those who have asked for access.
GATED = frozenset({"meta-llama/Meta-Llama-3-8B", "cais/wmdp-bio-forget-corpus"})


def shipped_recipes() -> dict[str, Path]:
    """Every shipped recipe's file by the recipe's name."""
    paths = FOLDER.rglob("*.yaml")
    named = {path.relative_to(FOLDER).as_posix().removesuffix(".yaml"): path for path in paths}
    return dict(sorted(named.items()))


def shipped_recipe(name: str, otherwise: str = "is no shipped recipe") -> Path:
    """The file of the shipped recipe `name`. Raises UsageError, with the nearest names, if none."""
    recipes = shipped_recipes()
    path = recipes.get(name.removesuffix(".yaml"))
    if path is None:
        nearest = ", ".join(get_close_matches(name, recipes, cutoff=0.0))
        raise UsageError(
            f"{name}: {otherwise}; the nearest are {nearest}, and `defuse recipes` lists all"
        )
    return path


def find_recipe(name: str | Path) -> Path:
    """The recipe file `name`, or else the shipped recipe of that name."""
    path = Path(name)
    otherwise = "cannot be read, since it is neither a file nor a shipped recipe"
    return path if path.is_file() else shipped_recipe(path.as_posix(), otherwise)
