"""Gradient checkpointing changes the memory of a step and nothing else."""

import pytest
import timm
import torch

from prunezoo.schema.recipe import RecipeError, load
from prunezoo.training.dry_run import plan
from prunezoo.training.recomputing import recomputing, statistics_kept
from prunezoo.training.segment import Step
from tests.support.runs import DIGITS

PUPILS = {
    "test_resnet": {"drop_path_rate": 0.3},
    "test_efficientnet": {"drop_path_rate": 0.3, "drop_rate": 0.2},
    "test_vit": {"drop_path_rate": 0.3, "img_size": 64},
}


def stepped(name: str, *, recomputes: bool) -> dict[str, torch.Tensor]:
    """The tensors of a network after two steps."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **PUPILS[name]).train()
    step = Step(model, recomputes=recomputes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for number in range(2):
        torch.manual_seed(number)
        loss = step(torch.randn(4, 3, 64, 64)).square().mean()
        with statistics_kept(model):
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.parametrize("name", PUPILS)
def test_a_step_ends_with_the_same_bits(name):
    """Dropped paths are drawn again as they were, and running statistics move once."""
    kept, again = (stepped(name, recomputes=recomputes) for recomputes in (False, True))
    assert all(torch.equal(tensor, kept[key]) for key, tensor in again.items())


def test_fewer_values_are_kept():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3).train()

    def kept(*, recomputes):
        numbers = []
        saved = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: numbers.append(tensor.numel()) or tensor, lambda tensor: tensor
        )
        with saved:
            Step(model, recomputes=recomputes)(torch.randn(4, 3, 64, 64))
        return sum(numbers)

    assert kept(recomputes=True) < 0.7 * kept(recomputes=False)


def test_the_network_is_left_without():
    model = timm.create_model("test_resnet", num_classes=3)
    with recomputing(model):
        assert model.grad_checkpointing
    assert not model.grad_checkpointing
    with pytest.raises(RuntimeError, match="input to conv2d"):
        Step(model, recomputes=True)(torch.zeros(1))
    assert not model.grad_checkpointing


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], "digits_cnn keeps all its maps; choose one of timm's"),
        (["model=timm/vgg11", "data.augment.resize=32"], "not supported"),
        (["training.compile=true"], "gradient_checkpointing and compile: the compiler itself"),
    ],
)
def test_what_cannot_is_refused(settings, words):
    with pytest.raises(RecipeError, match=words):
        plan(*load(DIGITS, ["model.options={}", "training.gradient_checkpointing=true", *settings]))
