"""Which part of the package may import which; CONTRIBUTING.md draws the map."""

import ast
import graphlib
from pathlib import Path

import omarl_jax

ROOT = Path(omarl_jax.__file__).parent
ALONE = {("report", "episodes"): "report.episodes"}  # a module that is a room of its own


def room(parts: tuple[str, ...]) -> str:
    """The part of the package that a module belongs to: a folder, or a file beside the folders."""
    return ALONE.get(parts[:2], parts[0])


def imported(file: Path) -> set[str]:
    """The rooms of this package that a file imports from, in functions, too."""
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "omarl_jax":
            for name in node.names:
                parts = (*node.module.split(".")[1:], name.name)
                if (ROOT / parts[0]).is_dir() or (ROOT / f"{parts[0]}.py").exists():
                    rooms.add(room(parts))
        elif isinstance(node, ast.Import):
            rooms |= {
                room(tuple(name.name.split(".")[1:])) for name in node.names if name.name.startswith("omarl_jax.")
            }
    return rooms


def graph() -> dict[str, set[str]]:
    """Room -> the other rooms that it imports from."""
    arrows: dict[str, set[str]] = {}
    for file in ROOT.rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        if parts != ("__init__",):
            arrows.setdefault(room(parts), set()).update(imported(file))
    return {name: others - {name} for name, others in arrows.items()}


def test_no_rooms_import_each_other() -> None:
    order = list(graphlib.TopologicalSorter(graph()).static_order())  # raises for a cycle
    assert order.index("types") < order.index("data") < order.index("rollout") < order.index("datasets")
    assert order.index("datasets") < order.index("sweep") < order.index("cli")


def test_each_room_knows_what_it_may() -> None:
    arrows = graph()
    assert arrows["types"] == set()
    assert arrows["report"] <= {"errors", "files", "schemas"}
    assert arrows["data"] <= {"errors", "files", "report", "schemas", "tasks", "types"}
    assert arrows["rollout"] <= {"data", "networks", "types"}
    assert arrows["online"] <= {"data", "errors", "rollout", "types"}
    assert arrows["algorithms"] <= {"errors", "files", "networks", "types"}
