import pytest
import torch
from torch import nn

from prunezoo.pruning.application.masks import Hold

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
}


def small_model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()


def random_masks(model: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(p.shape, generator=stream) < 0.5
        for name, p in model.named_parameters()
        if p.dim() > 1
    }


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(100 + step)
    images = torch.randn(8, 6, generator=stream, dtype=torch.float64)
    return images, torch.randint(3, (8,), generator=stream)


def test_held_training_is_masked_sgd_written_by_hand():
    model = small_model()
    masks = random_masks(model)
    by_hand = {n: p.detach() * masks.get(n, 1) for n, p in model.named_parameters()}
    velocity = {n: torch.zeros_like(p) for n, p in by_hand.items()}
    hold = Hold(model, masks)
    hold.weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    hold = Hold(model, masks, optimizer)
    for step in range(5):
        images, labels = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        hold.gradients()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
        hold.weights()

        leaves = {n: p.clone().requires_grad_() for n, p in by_hand.items()}
        loss = nn.functional.cross_entropy(
            torch.func.functional_call(model, leaves, images), labels
        )
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        slopes = {n: g * masks.get(n, 1) for n, g in zip(leaves, slopes, strict=True)}
        norm = torch.stack([g.square().sum() for g in slopes.values()]).sum().sqrt()
        for n, p in by_hand.items():
            clipped = slopes[n] * min(1.0, 0.05 / (norm.item() + 1e-6))
            velocity[n] = 0.9 * velocity[n] + clipped + 0.01 * p
            by_hand[n] = (p - 0.1 * velocity[n]) * masks.get(n, 1)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), by_hand[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_entries_of_weights_and_moments_stay_zero(name: str):
    model = small_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    for step in range(2):  # momenta are not zero when the mask comes
        images, labels = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    masks = random_masks(model)
    hold = Hold(model, masks, optimizer)
    hold.weights()
    for step in range(3):
        images, labels = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        hold.gradients()
        optimizer.step()
        hold.weights()
        for key, parameter in model.named_parameters():
            if key not in masks:
                continue
            removed = ~masks[key]
            assert (parameter.detach()[removed] == 0).all()
            assert (parameter.grad[removed] == 0).all()
            assert (parameter.detach()[masks[key]] != 0).all()
            for value in optimizer.state[parameter].values():
                if value.shape == parameter.shape:
                    assert (value[removed] == 0).all()


def test_parameters_without_gradient_are_passed_over():
    model = small_model()
    hold = Hold(model, random_masks(model))
    hold.gradients()
    assert all(p.grad is None for p in model.parameters())


def test_a_mask_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match="rebuild Hold after surgery"):
        Hold(small_model(), {"0.weight": torch.ones(2, 2, dtype=torch.bool)})
