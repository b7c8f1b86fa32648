import re
import subprocess
from pathlib import Path

import torch

from prunezoo import __version__
from prunezoo.models.count import count

ROOT = Path(__file__).parents[2]


def test_the_example_prunes_a_timm_model(tmp_path, monkeypatch):
    """The README's own lines, run: half of the MACs are left, in the file too, and it trains."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"```python\n(import timm.*?)```", text, flags=re.S)
    names: dict = {}
    exec(block, names)
    timm, image, model = names["timm"], names["image"], names["model"]
    dense = count(timm.create_model("resnet18", num_classes=10), image).macs
    assert 0.4975 * dense <= count(model, image).macs <= 0.5 * dense
    assert torch.equal(names["again"].eval()(image), model.eval()(image))
    model.train()(image.repeat(2, 1, 1, 1)).sum().backward()
    names["optimizer"].step()
    held = [id(p) for group in names["optimizer"].param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_the_readme_shows_a_recipe_and_commands_that_exist():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"--recipe (\S+\.yaml)", text):
        assert (ROOT / path).exists(), path
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M)
    for name in re.findall(r"^make (\w+)", text, flags=re.M):
        assert name in targets


def lines_to_read(path: Path) -> list[tuple[int, str]]:
    """Lines of prose and settings, without tables and code of a page and commands of a recipe."""
    kept, code = [], False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        code ^= path.suffix == ".md" and line.startswith("```")
        if not (code or line.startswith(("|", "# accelerate launch"))):
            kept.append((number, line))
    return kept


def test_pages_and_recipes_fit_a_screen():
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md", "*.yaml"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    pages = [
        name for name in names.splitlines() if not name.startswith(("results/", "docs/map.md"))
    ]
    wide = [f"{n}:{i}" for n in pages for i, line in lines_to_read(ROOT / n) if len(line) > 120]
    assert pages
    assert not wide, "break these lines within 120 characters"


def test_one_version_everywhere():
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
