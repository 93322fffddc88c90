"""The shipped recipes by name, such as "zephyr-7b-beta/rmu"."""

from difflib import get_close_matches
from pathlib import Path

from defuse.utils.errors import UsageError

FOLDER = Path(__file__).parent
EXPERIMENTS = "experiments/"  # files for `defuse experiment`, in a folder of their own
# Models and datasets of the hub that require an access request.
GATED = frozenset({"meta-llama/Meta-Llama-3-8B", "cais/wmdp-bio-forget-corpus"})


def shipped_recipes() -> dict[str, Path]:
    """The file of every shipped recipe, by name."""
    return {name: path for name, path in _shipped().items() if not name.startswith(EXPERIMENTS)}


def shipped_experiments() -> dict[str, Path]:
    """Every shipped experiment's file by its name, such as "experiments/diseases"."""
    return {name: path for name, path in _shipped().items() if name.startswith(EXPERIMENTS)}


def _shipped() -> dict[str, Path]:
    paths = FOLDER.rglob("*.yaml")
    named = {path.relative_to(FOLDER).as_posix().removesuffix(".yaml"): path for path in paths}
    return dict(sorted(named.items()))


def shipped_recipe(name: str, otherwise: str = "is no shipped recipe") -> Path:
    """The file of the shipped recipe or experiment `name`.

    Raises UsageError, with the nearest names, if there is none.
    """
    files = _shipped()
    path = files.get(name.removesuffix(".yaml"))
    if path is None:
        nearest = ", ".join(get_close_matches(name, files, cutoff=0.0))
        raise UsageError(
            f"{name}: {otherwise}; the nearest are {nearest}, and `defuse recipes` lists all"
        )
    return path


def find_recipe(name: str | Path) -> Path:
    """The recipe file `name`, else the shipped recipe of that name."""
    path = Path(name)
    otherwise = "cannot be read, since it is neither a file nor a shipped recipe"
    return path if path.is_file() else shipped_recipe(path.as_posix(), otherwise)
