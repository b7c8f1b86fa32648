"""Three tiny networks, data for them, and what the tests of criteria compare with."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from prunezoo.pruning.criteria.measuring import layer_weights


class Residual(nn.Module):
    """Convolutions with BatchNorm, in-place ReLU and in-place addition."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4 * 4, 3)

    def forward(self, x):
        x = self.relu(self.bn(self.stem(x)))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += x
        return self.fc(F.avg_pool2d(self.relu(y), 2).flatten(1))


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
    )


def depthwise():
    return nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU6(inplace=True),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU6(inplace=True),
        nn.Conv2d(4, 5, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 16, 3),
    )


NETS = {"mlp": mlp, "residual": Residual, "depthwise": depthwise}


def tiny_network(name, dtype=torch.float32):
    """A network with statistics and affine parameters that are not those of a fresh BatchNorm."""
    torch.manual_seed(0)
    model = NETS[name]()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (norm.bias, norm.running_mean):
                nn.init.normal_(tensor, std=0.3)
    return model.to(dtype)


def data(*sizes, dtype=torch.float32):
    stream = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(n, 3, 4, 4, generator=stream, dtype=dtype),
            torch.randint(3, (n,), generator=stream),
        )
        for n in sizes
    ]


def loss(model, batches):
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    return F.cross_entropy(model.eval()(images), labels)


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def differences(value, tensor, step=1e-5):
    """∂value()/∂tensor by central differences, element by element."""
    numeric = torch.zeros_like(tensor)
    flat = tensor.detach().view(-1)
    for i in range(tensor.numel()):
        here = flat[i].item()
        flat[i] = here + step
        above = value()
        flat[i] = here - step
        numeric.view(-1)[i] = (above - value()) / (2 * step)
        flat[i] = here
    return numeric


def masked(model, masks):
    """Parameters times masks, for torch.func.functional_call."""
    return {n: p.detach() * masks.get(n, 1.0) for n, p in model.named_parameters()}


def rows(product):
    return product.reshape(len(product), -1).sum(1)


def stage(model, *members):
    """A stand-in for Axes: the listed layers write one axis."""
    width = len(model.get_parameter(members[0]))
    labels = {n: (torch.arange(width) if n in members else None,) for n in layer_weights(model)}
    return SimpleNamespace(widths={"a": width}, offsets={"a": 0}, labels=labels)
