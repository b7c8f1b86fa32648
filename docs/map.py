"""Write docs/map.md: every file of code with its first line. `python docs/map.py`."""

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/map.md"
FOLDERS = {
    "": "",
    "prunezoo": "the folders below as one package",
    "schema": "what a recipe may say",
    "models": "networks, their channels, costs and files",
    "tasks": "losses, metrics and what a model must output",
    "pruning": "what goes, when, and what is done for the rest",
    "training": "runs: data, steps, checkpoints, costs",
    "reporting": "tables, pages and jobs, from records",
    "studies": "experiments of several runs, each a command",
    "benchmarks": "measurements of the project itself",
    "deploy": "clusters and images, with their proofs",
    "docs": "this page and the site",
    "tests": "what each file proves is in the names of its tests",
}


def page() -> str:
    """Return the map of all files that git knows or would add."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    words = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = sorted({Path(word) for word in words.split()}, key=lambda p: (p.parent.parts, p.name))
    lines = [
        "# Map",
        "",
        "Every file of code. Made by `python docs/map.py`; a test keeps it true.",
        "",
    ]
    for top, about in FOLDERS.items():
        lines += [f"## {top}/: {about}" if top else "## Commands", ""]
        inside = [f for f in files if (f.parts[0] if len(f.parts) > 1 else "") == top]
        shown = [f for f in inside if top != "tests" or not f.name.startswith("test_")]
        lines += [row for f in shown if (row := _row(f))] + [""]
    return "\n".join(lines).rstrip() + "\n"


def _row(file: Path) -> str:
    text = ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8"))) or ""
    first = text.partition("\n\n")[0].replace("\n", " ").strip()
    return f"- [`{file}`](../{file}): {first}" if first else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
