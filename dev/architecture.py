"""The picture of the architecture page, drawn from the imports in the code.

`python -m dev.architecture` writes docs/images/architecture.svg. A box is a room. An arrow leads to
a room that is imported; it is left out where a longer path of arrows leads there as well.
"""

import json
import re
from collections.abc import Mapping
from itertools import product

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from dev.imports import ROOT, Graph, floors, module_imports, room_imports

PICTURE = ROOT / "docs" / "images" / "architecture.svg"
TOP, BOTTOM = ("cli", "defuse"), "utils"  # bars: they import all, and all import them
EMPTY = ("__main__", "experiments")
BOX_WIDTH, BOX_HEIGHT, STEP_X, STEP_Y = 1.5, 0.5, 1.9, 1.15
SLOTS = 7  # places for boxes on each floor
NEAR = 0.55  # a line is behind a box whose centre is less than this many slots away
COLOURS = {"experiments": "#fde0c5", "": "#d9e8f5"}
Place = Mapping[str, tuple[float, float]]


def drawn_rooms() -> dict[str, list[str]]:
    """The arrows of the picture: each room's imports that no longer path reaches."""
    rooms = room_imports(module_imports())
    left_out = {*TOP, BOTTOM, *EMPTY}
    kept = {room: others - left_out for room, others in rooms.items() if room not in left_out}
    return {room: sorted(reduced(kept, room)) for room in sorted(kept)}


def reduced(graph: Graph, room: str) -> set[str]:
    """The rooms that `room` imports and that none of its other imports reaches."""
    return graph[room] - set().union(*(reached(graph, other) for other in graph[room]))


def reached(graph: Graph, room: str) -> set[str]:
    """All rooms that `room` imports, directly or through others."""
    return graph[room] | set().union(*(reached(graph, other) for other in graph[room]))


def data_of_picture() -> dict[str, list[str]]:
    """The arrows that the picture on disk was drawn from."""
    found = re.search(r"<dc:description>(.*?)</dc:description>", PICTURE.read_text("utf-8"), re.S)
    assert found is not None, "the picture has no description"
    return json.loads(found[1].replace("&quot;", '"'))


def places(arrows: Mapping[str, list[str]]) -> Place:
    """The centre of each room's box, above all that it imports.

    On its floor a room moves to the slot, or changes places with the room there, for which arrows
    are short and pass behind few boxes, until no move is better.
    """
    where: dict[str, tuple[float, float]] = {}
    for height, floor in enumerate(floors({room: set(others) for room, others in arrows.items()})):
        for slot, room in enumerate(floor):
            where[room] = (float(slot), float(height))
    best, is_better = disorder(arrows, where), True
    while is_better:
        is_better = False
        for room, slot in product(sorted(where), range(SLOTS)):
            moved = swapped(where, room, float(slot))
            if (now := disorder(arrows, moved)) < best - 1e-9:
                where, best, is_better = moved, now, True
    return {room: (x * STEP_X, y * STEP_Y) for room, (x, y) in where.items()}


def swapped(where: Place, room: str, slot: float) -> dict[str, tuple[float, float]]:
    """Places with `room` in a slot of its floor; a room that is there gets the slot it leaves."""
    place = (slot, where[room][1])
    return {
        each: place if each == room else where[room] if at == place else at
        for each, at in where.items()
    }


def disorder(arrows: Mapping[str, list[str]], where: Place) -> float:
    """How far arrows go sideways, with 3 for each box that one passes behind."""
    total = 0.0
    for room, others in arrows.items():
        for (x1, y1), (x2, y2) in ((where[room], where[other]) for other in others):
            total += abs(x1 - x2)
            for x, y in where.values():
                if y2 < y < y1:
                    total += 3 * (abs(x1 + (x2 - x1) * (y1 - y) / (y1 - y2) - x) < NEAR)
    return total


def draw(arrows: Mapping[str, list[str]]) -> Figure:
    """The picture: rooms in floors, arrows downwards, a bar above and one below."""
    where = places(arrows)
    right = (SLOTS - 1) * STEP_X
    top = max(y for _, y in where.values()) + STEP_Y
    figure = Figure(figsize=(right + 2, top + 2.4), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set(xlim=(-1, right + 1), ylim=(-STEP_Y - 0.5, top + 0.5), aspect="equal")
    for room, others in arrows.items():
        for other in others:
            _arrow(axes, where[room], where[other])
    for room, place in where.items():
        _box(axes, room, place, BOX_WIDTH)
    _box(axes, "cli and the public API (defuse): import any room", (right / 2, top), right + 1.5)
    _box(axes, "utils: any room imports it", (right / 2, -STEP_Y), right + 1.5)
    return figure


def _box(axes: Axes, name: str, place: tuple[float, float], width: float) -> None:
    x, y = place
    corner = (x - width / 2, y - BOX_HEIGHT / 2)
    colour = COLOURS[name.partition(".")[0] if name.startswith("experiments") else ""]
    style = "round,pad=0,rounding_size=0.1"
    axes.add_patch(
        FancyBboxPatch(
            corner, width, BOX_HEIGHT, boxstyle=style, facecolor=colour, edgecolor="#555", zorder=2
        )
    )
    text = name.replace("experiments.", "experiments\n")
    axes.text(x, y, text, ha="center", va="center", fontsize=11, zorder=3)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    (x1, y1), (x2, y2) = start, end
    tail, head = (x1, y1 - BOX_HEIGHT / 2), (x2, y2 + BOX_HEIGHT / 2)
    axes.add_patch(
        FancyArrowPatch(
            tail, head, arrowstyle="-|>", mutation_scale=12, shrinkA=0, shrinkB=0, color="#777"
        )
    )


def main() -> None:
    """Write the picture, with its arrows as its description."""
    arrows = drawn_rooms()
    with mpl.rc_context({"svg.hashsalt": "defuse", "svg.fonttype": "none"}):
        about = {"Description": json.dumps(arrows), "Date": None}
        draw(arrows).savefig(PICTURE, metadata=about)
    lines = [line.rstrip() for line in PICTURE.read_text("utf-8").splitlines()]
    PICTURE.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
