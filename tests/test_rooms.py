"""The rooms of the package import one another as the table in CONTRIBUTING.md allows."""

import re
from pathlib import Path

import pytest
from dev.architecture import data_of_picture, drawn_rooms, reduced
from dev.imports import ROOT, circle, floors, module_imports, room_imports, room_of

ROW = re.compile(r"^\| `([\w.]+)` \| [^|]+ \| ?([^|]*) ?\|$", re.M)
MODULES = module_imports()
ROOMS = room_imports(MODULES)


def allowed() -> dict[str, set[str]]:
    """The rooms of the table, with those that each may import."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    return {
        room: set(re.findall(r"`([\w.]+)`", cell)) | ({"utils"} - {room})
        for room, cell in ROW.findall(text)
    }


def test_every_room_is_in_the_table_and_the_table_names_no_other() -> None:
    table = allowed()
    assert set(table) == set(ROOMS)
    assert set().union(*table.values()) <= set(table)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_what_the_table_allows(room: str) -> None:
    foreign = [
        f"{module} imports {imported}"
        for module, others in MODULES.items()
        for imported in sorted(others)
        if room_of(module) == room != room_of(imported)
        and room_of(imported) not in allowed().get(room, set())
    ]
    assert not foreign


def test_the_table_allows_no_circle() -> None:
    assert not circle(allowed())


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert not circle(MODULES)
    assert not circle(ROOMS)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_imports_are_found_wherever_they_are(tmp_path: Path) -> None:
    package = write(
        tmp_path / "defuse",
        {
            "__init__.py": "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from defuse.low import thing\n",
            "low/__init__.py": "from .part import thing\n",
            "low/part.py": "import json\nthing = 1\n",
            "high.py": "def late():\n    import defuse.low.part\n",
            "experiments/one/run.py": "from ...low import part\nfrom defuse import high\n",
        },
    )
    modules = module_imports(package)
    assert modules == {
        "defuse": {"defuse.low"},
        "defuse.low": {"defuse.low.part"},
        "defuse.low.part": set(),
        "defuse.high": {"defuse.low.part"},
        "defuse.experiments.one.run": {"defuse.low.part", "defuse.high"},
    }
    rooms = room_imports(modules)
    assert rooms == {
        "defuse": {"low"},
        "low": set(),
        "high": {"low"},
        "experiments.one": {"low", "high"},
    }
    assert floors(rooms) == [["low"], ["defuse", "high"], ["experiments.one"]]


def test_a_circle_is_found() -> None:
    assert not circle({"a": {"b"}, "b": {"c"}, "c": set()})
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}


def test_the_picture_of_the_architecture_is_up_to_date() -> None:
    assert data_of_picture() == drawn_rooms(), "run python -m dev.architecture"


def test_an_arrow_that_a_longer_path_replaces_is_not_drawn() -> None:
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": set(), "d": set()}
    assert reduced(graph, "a") == {"b", "d"}
