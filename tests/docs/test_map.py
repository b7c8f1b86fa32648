"""The map is current, and imports go one way."""

import ast
import graphlib
from pathlib import Path

import pytest

from docs import map as site_map

ROOT = Path(__file__).parents[2]
FLOORS = [
    "schema",
    "models",
    "tasks",
    "pruning",
    "training",
    "reporting",
]  # each may use those before it
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for floor in FLOORS
    for path in (ROOT / floor).rglob("*.py")
}


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports when it is imported, not only for types or in a call."""
    modules: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ):
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= {name if name in MODULES else node.module for name in names}
        waiting += ast.iter_child_nodes(node)
    return modules & MODULES.keys()


def anywhere(path: Path) -> set[str]:
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.module for node in tree if isinstance(node, ast.ImportFrom) and node.module}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    floor = FLOORS.index(module.partition(".")[0])
    above = set(FLOORS[floor + 1 :])
    assert not {name for name in anywhere(MODULES[module]) if name.partition(".")[0] in above}
    if floor == FLOORS.index("models"):
        assert not {n for n in anywhere(MODULES[module]) if n.startswith("schema")}


def test_no_imports_run_in_a_circle():
    graphlib.TopologicalSorter({m: imports(path) for m, path in MODULES.items()}).prepare()


def test_the_map_is_current():
    assert (ROOT / "docs/map.md").read_text(encoding="utf-8") == site_map.page(), (
        "write it again with python docs/map.py"
    )


def test_every_file_is_on_the_map():
    page = site_map.page()
    missing = [
        str(p.relative_to(ROOT)) for p in MODULES.values() if f"`{p.relative_to(ROOT)}`" not in page
    ]
    assert not missing, "give each a docstring whose first line says what it is"
