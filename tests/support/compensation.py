"""Small networks, images and masks on which the tests of compensations agree."""

import copy

import torch
from torch import nn

from prunezoo.models.axes.find import axes, masks


def images(*shape, batches=2, seed=0, dtype=torch.float64):
    stream = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(*shape, generator=stream, dtype=dtype),
            torch.zeros(shape[0], dtype=torch.long),
        )
        for _ in range(batches)
    ]


def seeded(make, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return make().to(dtype)


def axes_for(model, batches):
    return axes(model, batches[0][0][:1])


@torch.no_grad()
def masked(model, model_axes, keep):
    model = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    for name, mask in masks(model_axes, keep).items():
        parameters[name].mul_(mask)
    return model


def bare():
    return nn.Sequential(
        nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)
    )
