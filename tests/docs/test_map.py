"""The map is current, and imports go one way."""

import ast
import graphlib
from pathlib import Path

import pytest

from docs import map as site_map

ROOT = Path(__file__).parents[2]
# each may use those before it
FLOORS = ["schema", "models", "tasks", "pruning", "training", "reporting"]
FILES = [path.relative_to(ROOT) for floor in FLOORS for path in (ROOT / floor).rglob("*.py")]
MODULES = {
    ".".join(("prunezoo", *path.with_suffix("").parts)).removesuffix(".__init__"): ROOT / path
    for path in FILES
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
    floor = FLOORS.index(module.split(".")[1])
    above = {f"prunezoo.{name}" for name in FLOORS[floor + 1 :]}
    if floor == FLOORS.index("models"):
        above.add("prunezoo.schema")
    assert not {name for name in anywhere(MODULES[module]) if name.startswith(tuple(above))}


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
