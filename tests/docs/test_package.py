"""The project as an installed package: it has all code, needs little, takes no names of others."""

import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
FOLDERS = ("models", "pruning", "reporting", "schema", "tasks", "training")


def pins(lines: Iterable[str]) -> list[tuple[str, frozenset[str], str]]:
    found = map(Requirement, lines)
    return sorted((r.name, frozenset(r.extras), f"{r.specifier};{r.marker}") for r in found)


def test_requirements_are_those_of_the_package_and_all_its_extras():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    extras = [line for group in PROJECT["optional-dependencies"].values() for line in group]
    listed = pins(line for line in lines if not line.startswith("#"))
    assert pins([*PROJECT["dependencies"], *extras]) == listed


def test_every_folder_of_code_is_in_the_package():
    files = [p.relative_to(ROOT) for top in FOLDERS for p in (ROOT / top).rglob("*.py")]
    folders = {".".join(("prunezoo", *file.parent.parts)) for file in files}
    assert set(SETUPTOOLS["packages"]) == {"prunezoo", *folders}
    assert SETUPTOOLS["package-dir"] == {f"prunezoo.{name}": name for name in FOLDERS}


def test_no_file_imports_a_folder_without_the_package():
    """`import models` would load it twice, or another project's."""
    bare = rf"^\s*(from|import) ({'|'.join(FOLDERS)})\b"
    asked = subprocess.run(
        ["git", "grep", "--untracked", "-nP", bare, "--", "*.py", "*.md", ":!results",
         ":!tests/docs/test_package.py"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (asked.returncode, asked.stdout) == (1, "")


# ── What it needs ────────────────────────────────────────────────────────────────────────────────
# Hides each package that `dependencies` and what those require do not bring.
ALONE = """
import importlib.metadata, sys
from importlib.machinery import PathFinder

allowed = set(sys.argv[1].split(","))
owners = importlib.metadata.packages_distributions()

class Declared(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        whose = {d.lower().replace("_", "-") for d in owners.get(name.partition(".")[0], ())}
        hidden = whose and not whose & allowed
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Declared
for missing in ("accelerate", "wandb", "datasets", "codecarbon", "matplotlib", "gpytorch", "rich"):
    try:
        __import__(missing)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{missing} is not hidden")
"""
PRUNES = """
import timm, torch
from prunezoo import models
from prunezoo.pruning import *
from prunezoo.models import *

model = timm.create_model("resnet10t", num_classes=10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
data = [(torch.randn(4, 3, 32, 32), torch.randint(10, (4,)))]
for criterion in ("snip", "grasp"):
    left = prune_once(model, data[0][0][:1], channels="20%", criterion=criterion, batches=data,
                      optimizer=optimizer, compensation="least_squares")
models.save(model, sys.argv[2])
again = timm.create_model("resnet10t", num_classes=10)
models.load_into(again, sys.argv[2])
assert torch.equal(model.eval()(data[0][0]), again.eval()(data[0][0]))
print(*map(int, left.sizes["channels"]))
"""


def closure(lines: Iterable[str]) -> set[str]:
    """Names of the distributions that installing these brings."""
    waiting, found = [Requirement(line) for line in lines], set()
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name in found or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        waiting += [Requirement(line) for line in requires(name) or []]
    return found


@pytest.mark.slow
def test_pruning_in_a_notebook_needs_the_dependencies_alone(tmp_path):
    brought = closure(PROJECT["dependencies"])
    assert {"torch", "timm", "pydantic"} <= brought
    assert not brought & {"accelerate", "wandb", "pandas"}
    words = [sys.executable, "-c", ALONE + PRUNES, ",".join(brought), tmp_path / "m.safetensors"]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    dense, now = map(int, ran.stdout.split())
    assert now < dense


# ── As a wheel, and installed from the checkout with -e ──────────────────────────────────────────
BESIDE = """
import site, sys
site.addsitedir(sys.argv[1])
import models, training
assert models.MINE == training.MINE == "another project's"
from importlib.metadata import version
from pathlib import Path
import prunezoo
import prunezoo.training.run
from prunezoo import models as ours
from prunezoo.pruning import prune_once
from prunezoo.reporting.pages import html
from prunezoo.schema.options import registry
import torch

assert prune_once(ours.build("digits_cnn", num_classes=10, in_channels=1), torch.zeros(1, 1, 8, 8),
                  channels="50%", criterion="magnitude").axes
assert registry("prunezoo.pruning.criteria", "CRITERIA")
assert version("prunezoo") == prunezoo.__version__
assert Path(html.__file__).with_name("page.html").exists()
assert Path(prunezoo.__file__).with_name("py.typed").exists()
for name in ("pruning", "schema", "reporting", "tasks", "tests"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"the name {name} is taken")
print(Path(ours.__file__))
"""
BUILD = """
import sys
from setuptools import build_meta
getattr(build_meta, sys.argv[1])(sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_an_installed_package_stands_beside_another_projects_models(tmp_path, kind):
    checkout, site, other = (tmp_path / name for name in ("checkout", "site", "other"))
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        if name.startswith(("prunezoo/", *(f"{f}/" for f in FOLDERS))) or "/" not in name:
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_bytes((ROOT / name).read_bytes())
    words = [sys.executable, "-c", BUILD, f"build_{kind}", tmp_path]
    built = subprocess.run(words, cwd=checkout, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (file,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(file).extractall(site)
    for name in ("models", "training"):
        (other / name).mkdir(parents=True)
        (other / name / "__init__.py").write_text('MINE = "another project\'s"\n')
    ran = subprocess.run(
        [sys.executable, "-c", BESIDE, site], cwd=other, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    home = checkout if kind == "editable" else site / "prunezoo"
    assert Path(ran.stdout.strip()) == home / "models/__init__.py"
