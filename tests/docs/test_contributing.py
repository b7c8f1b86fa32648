"""The worked examples of CONTRIBUTING.md, done as they say in a copy of the project."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = [
    "prunezoo",
    "schema",
    "models",
    "tasks",
    "pruning",
    "training",
    "reporting",
    "recipes",
    "tests",
    "papers",
    "benchmarks",
    "docs",
    "zoo",
]
FILES = ("train.py", "tables.py", "pyproject.toml")
CURRENT = (  # tests of what is made from code and recipes, and of all criteria at once
    "tests/pruning/test_criteria.py::"
    "test_tied_and_single_channels_go_alike_unless_their_scores_are_summed_on_purpose",
    "tests/docs/test_methods.py",
    "tests/schema/test_recipe.py::test_the_checked_in_schema_is_current",
)
QUICKLY = ["--set=training.duration=2ep", "--set=log.tracker=none", "--set=cost.tracker=none"]


def section(title: str) -> str:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def blocks(text: str) -> list[tuple[str, str]]:
    """Pairs of a fenced block's language and its lines."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def follow(block: str, root: Path) -> None:
    """Put a block into the file that its first line names: at the end, or next to a line of it."""
    first, _, code = block.partition("\n")
    name, side, line = re.split(", (below|above): |$", first.removeprefix("# "), maxsplit=1)
    path = root / name
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if not line:
        path.write_text(f"{text}\n\n{code}" if text else code, encoding="utf-8")
        return
    begin = [
        i for i, text_line in enumerate(text.splitlines()) if text_line.strip().startswith(line)
    ]
    assert len(begin) == 1, f"{name}: {line!r} begins {len(begin)} lines"
    lines, place = text.splitlines(keepends=True), begin[0] + (side == "below")
    path.write_text("".join([*lines[:place], code, *lines[place:]]), "utf-8")


@pytest.fixture
def copy(tmp_path) -> Path:
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.slow
def test_the_worked_examples_do_what_they_say(copy):
    """One after the other in one copy; what both make at their end is made once."""
    commands: list[str] = []
    for title in ("Your criterion in fifteen minutes", "Your trigger", "Your model"):
        before = len(commands)
        for language, block in blocks(section(title)):
            if language == "sh":
                commands += block.splitlines()
            else:
                follow(block, copy)
        assert len(commands) >= before + 4
    commands = [c for i, c in enumerate(commands) if c not in commands[i + 1 :]]
    for command in [*commands, f"python -m pytest -q {' '.join(CURRENT)}"]:
        line, _, output = command.partition(" > ")
        words = shlex.split(line)
        assert words.pop(0) == "python"
        trains = "train.py" in words and "--dry-run" not in words
        done = subprocess.run(
            [sys.executable, *words, *(QUICKLY if trains else [])],
            cwd=copy,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if output:
            (copy / output).write_text(done.stdout, encoding="utf-8")
        if "pytest" in words:
            assert re.search(r"[1-9]\d* passed|^\.+", done.stdout, re.MULTILINE), done.stdout
