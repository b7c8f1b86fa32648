import re
from pathlib import Path

from models.count import count

ROOT = Path(__file__).parents[2]


def test_the_example_prunes_a_timm_model():
    """The README's own lines, run; the network that they leave has half of its MACs and trains."""
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"```python\n(import timm.*?)```", text, flags=re.S)
    names: dict = {}
    exec(block, names)
    timm, image, model = names["timm"], names["image"], names["model"]
    dense = count(timm.create_model("resnet18", num_classes=10), image).macs
    assert 0.4975 * dense <= count(model, image).macs <= 0.5 * dense
    model(image.repeat(2, 1, 1, 1)).sum().backward()
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
