"""The notebooks run, cell by cell, and are stored without outputs.

They are plain Python, so that a fresh interpreter runs their cells in one namespace, as a kernel
would, without Jupyter's packages and ports.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
RUN = """
import json, sys
cells = json.load(open(sys.argv[1], encoding="utf-8"))["cells"]
names = {"__name__": "__main__"}
for number, cell in enumerate(cells):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
"""


@pytest.mark.slow
def test_the_notebook_prunes_trains_on_and_exports():
    words = [sys.executable, "-c", RUN, str(ROOT / "examples/prune_timm.ipynb")]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    dense, _, trained_on = map(float, re.findall(r"(\d\.\d+) (?:dense|pruned|after)", ran.stdout))
    assert dense > 0.8  # of ten classes
    assert trained_on > dense - 0.1
    macs = [int(n.replace(",", "")) for n in re.findall(r": ([\d,]+) MACs", ran.stdout)]
    assert 0.44 * macs[0] < macs[1] <= 0.5 * macs[0]
    assert "small.onnx: " in ran.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_stored_without_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
