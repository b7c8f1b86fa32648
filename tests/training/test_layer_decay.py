"""Learning rates that fall from the last layer to the first, of timm's networks."""

from types import SimpleNamespace

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from prunezoo.models.axes.find import axes
from prunezoo.pruning.compensation.compensations import mean_replacement
from prunezoo.schema.recipe import RecipeError, load
from prunezoo.schema.training import TrainingConfig
from prunezoo.training import loop
from prunezoo.training.build import build_optimizer
from prunezoo.training.dry_run import plan
from tests.support.runs import DIGITS


def training(**optimizer):
    stated = {"name": "adamw", "lr": 0.1, "weight_decay": 0.05, "layer_decay": 0.5} | optimizer
    return TrainingConfig.model_validate({"duration": "1ep", "batch_size": 4, "optimizer": stated})


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
@pytest.mark.parametrize("whole", [True, False])
def test_the_groups_are_timms(name, whole):
    model = timm.create_model(name, num_classes=3)
    ours = build_optimizer(training(decay_norm_and_bias=whole), model).param_groups
    theirs = param_groups_layer_decay(
        model, 0.05, layer_decay=0.5, weight_decay_exclude_1d=not whole
    )

    def table(groups):
        rows = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
        assert len(rows) == sum(len(g["params"]) for g in groups)
        return rows

    assert table(ours) == table(theirs)
    assert ours[-1]["lr_scale"] == 1.0


def places(optimizer):
    return [[id(p) for p in group["params"]] for group in optimizer.param_groups]


def test_a_new_bias_joins_its_layer():
    """Where a mean is folded into a layer without a bias, as a run that goes on would group it."""
    model = timm.create_model("test_resnet", num_classes=3).eval()
    model.fc = nn.Linear(model.fc.in_features, 3, bias=False)
    images = [(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))]
    config = training(decay_norm_and_bias=False)
    optimizer = build_optimizer(config, model)
    network = axes(model, images[0][0][:1])
    keep = {axis: torch.arange(width) > 0 for axis, width in network.widths.items()}
    before = {name for name, _ in model.named_parameters()}
    mean_replacement(model, network, keep, images, optimizer=optimizer)
    assert {name for name, _ in model.named_parameters()} - before == {"fc.bias"}
    assert places(optimizer) == places(build_optimizer(config, model))


def test_a_step_goes_by_the_rate_of_its_layer():
    config = training()
    optimizer = build_optimizer(config, timm.create_model("test_resnet", num_classes=3))
    run = SimpleNamespace(
        recipe=SimpleNamespace(training=config),
        pruner=SimpleNamespace(over=True),
        optimizer=optimizer,
        position=0,
        total_steps=10,
        steps_per_epoch=5,
    )
    loop._set_rates(run)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates[-1] == 0.1
    assert rates == pytest.approx([0.1 * 0.5**depth for depth in range(len(rates))][::-1])


def test_another_network_is_refused():
    with pytest.raises(RecipeError, match="layer_decay: the network does not say in which order"):
        plan(*load(DIGITS, ["training.optimizer.layer_decay=0.9"]))
