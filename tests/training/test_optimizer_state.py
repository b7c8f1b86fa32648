"""An optimizer of a recipe is refused, or goes on from a checkpoint as if there had been none."""

import pytest
import torch
from timm.optim import kron, list_optimizers
from torch import nn
from torch.nn import functional as F

from prunezoo.pruning.stateful import pack
from prunezoo.schema.recipe import RecipeError, load
from prunezoo.training.build import build_optimizer
from prunezoo.training.folder.checkpoint import Checkpoint
from prunezoo.training.limits import check_settings, check_stated
from prunezoo.training.optimizer_state import joined, split
from prunezoo.training.stored import check_optimizer
from tests.support.runs import DIGITS, ROOT
from tests.support.tiers import slow_but

# those of a GPU alone are left out
TIMM = [f"timm/{name}" for name in list_optimizers(exclude_filters=["bnb*", "fused*"])]
DTYPE = ("timm/adafactorbv", "timm/adafactorbvc", "timm/cadafactorbv", "timm/cadafactorbvc")
LISTS = ("timm/kron", "timm/kronc", "timm/kronw")  # of tensors
REFUSED = {
    "timm/adahessian": "needs second derivatives",
    **dict.fromkeys(DTYPE + LISTS, "keeps what a checkpoint cannot hold; choose another"),
}
QUICK = ("sgd", "timm/adafactor", "timm/adafactorbv", "timm/kron")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    images = torch.linspace(-1, 1, 8 * 48).reshape(8, 3, 4, 4)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), torch.arange(8) % 5).backward()
        optimizer.step()


@pytest.mark.parametrize("name", slow_but(QUICK, ["sgd", "adam", "adamw", "rmsprop", *TIMM]))
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_every_optimizer_is_refused_or_goes_on_exactly(name, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(kron, "has_dynamo", False)  # it would compile for a minute
    recipe = load(ROOT / DIGITS, [f"training.optimizer={{name: {name}, lr: 0.01}}"])[0]
    if name in REFUSED:
        with pytest.raises(RecipeError, match=REFUSED[name]):
            check_settings(recipe)
        return
    check_settings(recipe)
    model = network()
    optimizer = build_optimizer(recipe.training, model)
    train(model, optimizer)
    parts = {"optimizer": split(optimizer.state_dict()), "model": {"tensors": model.state_dict()}}
    kept = Checkpoint(**pack(parts, {})).copied()  # through JSON, as in a file
    train(model, optimizer)

    resumed = network()
    resumed.load_state_dict(kept.part("model")["tensors"])
    again = build_optimizer(recipe.training, resumed)
    state = joined(kept.part("optimizer"))
    check_optimizer(again, state)
    again.load_state_dict(state)
    train(resumed, again)
    for weight, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(weight, other)


MASKS = "{criterion: magnitude, granularity: channel, channels: 25%, application: APPLICATION}"


def check(monkeypatch, *settings: str) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    check_settings(load(ROOT / DIGITS, list(settings))[0])


@pytest.mark.parametrize("name", ["cadamw", "csgdw", "clion", "lion, options: {caution: true}"])
@pytest.mark.parametrize("application", ["mask", "mask_then_surgery"])
def test_cautious_steps_are_refused_behind_masks(monkeypatch, name, application):
    """timm divides them by the mean of update · gradient > 0, in which masked entries count."""
    optimizer = f"training.optimizer={{name: timm/{name}, lr: 0.01}}"
    masks = f"pruning={MASKS.replace('APPLICATION', application)}"
    with pytest.raises(RecipeError, match=r"is cautious: .*; write options: {caution: false}"):
        check(monkeypatch, optimizer, masks)
    check(monkeypatch, optimizer, masks, "training.optimizer.options={caution: false}")


@pytest.mark.parametrize(
    "pruning",
    [
        MASKS.replace("APPLICATION", "surgery"),
        "{criterion: magnitude, sparsity: 80%, application: straight_through}",
        "null",
    ],
)
def test_cautious_steps_are_as_they_should_be_without_masks(monkeypatch, pruning):
    check(monkeypatch, "training.optimizer={name: timm/cadamw, lr: 0.01}", f"pruning={pruning}")


FILES = {  # what a recipe states over torch's SGD with momentum
    "name: timm/lamb": "",
    "name: timm/lamb, options: {betas: [0.5, 0.6], eps: 0.1}": "",
    "name: adam": "",
    "name: timm/lamb, momentum: 0.8": "r.yaml:2: training.optimizer: timm/lamb does not read momen",
    "name: adam, nesterov: on": "r.yaml:2: training.optimizer: adam does not read nesterov; remove",
    "betas: [0.5, 0.6]": "r.yaml:2: training.optimizer: sgd does not read betas; remove it",
}


@pytest.mark.parametrize("stated", FILES)
def test_numbers_that_an_optimizer_does_not_read_are_refused_where_they_are_stated(
    stated, tmp_path, run_recipe, capsys
):
    """Those of a baseline's optimizer of another name are not."""
    path = tmp_path / "r.yaml"
    path.write_text(f"extends: {ROOT / DIGITS}\ntraining: {{optimizer: {{{stated}}}}}\n")
    recipe, source = load(path)
    if not FILES[stated]:
        check_stated(recipe, source)
        group = build_optimizer(recipe.training, nn.Linear(2, 2)).param_groups[0]
        assert group["eps"] == (0.1 if "0.1" in stated else 1e-8 if "adam" in stated else 1e-6)
        return
    assert run_recipe(str(path))[0] == 2
    assert FILES[stated] in capsys.readouterr().err
    (tmp_path / "folder").mkdir()
    written = path.rename(tmp_path / "folder" / "recipe.resolved.yaml")  # with every default
    check_stated(*load(written))
