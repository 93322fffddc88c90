"""The imports of the package, read from its source, and its rooms.

A room is a folder of `defuse`, a module that lies directly in it, or one experiment.
"""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "defuse"
Graph = Mapping[str, set[str]]  # what each one imports


def module_imports(package: Path = PACKAGE) -> dict[str, set[str]]:
    """The modules of `package` that each of them imports, wherever in its code."""
    names = {_name(path, package): path for path in sorted(package.rglob("*.py"))}
    return {name: set(_imported(name, path, names)) for name, path in names.items()}


def room_imports(modules: Graph) -> dict[str, set[str]]:
    """The rooms that each room imports."""
    rooms: dict[str, set[str]] = {}
    for name, imported in modules.items():
        rooms.setdefault(room_of(name), set()).update(map(room_of, imported))
    return {name: imported - {name} for name, imported in rooms.items()}


def room_of(module: str) -> str:
    """The room of a module: `evaluate`, `store`, `experiments.core`; the package is `defuse`."""
    package, *parts = module.split(".")
    if not parts:
        return package
    return ".".join(parts[: 2 if parts[0] == "experiments" else 1])


def circle(graph: Graph) -> list[str]:
    """Members of a circle, each imported by the next, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def floors(graph: Graph) -> list[list[str]]:
    """Members by height: those that import nothing first, each above all that it imports."""
    sorter, found = TopologicalSorter(graph), []
    sorter.prepare()
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        found.append(ready)
        sorter.done(*ready)
    return found


def _name(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def _imported(name: str, path: Path, names: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = _home(node, name, is_package=path.name == "__init__.py")
            candidates = [
                full if (full := f"{home}.{alias.name}") in names else home for alias in node.names
            ]
        else:
            continue
        yield from (each for each in candidates if each in names and each != name)


def _home(node: ast.ImportFrom, name: str, *, is_package: bool) -> str:
    """The module that a `from` imports from, also where it is given by dots."""
    if not node.level:
        return node.module or ""
    parts = name.split(".")
    kept = parts[: len(parts) - node.level + is_package]
    return ".".join([*kept, node.module] if node.module else kept)
