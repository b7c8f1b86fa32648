"""Without PyTorch's compiler everything computes the same, and the compiler sees the same."""

import sys

import pytest
import torch
from torch import nn

from prunezoo.models.eager import step_eagerly

OPTIMIZERS = {
    "SGD": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "RMSprop": {"momentum": 0.5},
}


def test_a_function_runs_without_the_compiler_and_is_hidden_from_it_later(monkeypatch):
    @torch._disable_dynamo
    def hidden(x):
        return x.sin()

    x, graphs = torch.ones(3), []
    with monkeypatch.context() as patched:
        patched.delitem(sys.modules, "torch._dynamo", raising=False)
        assert torch.equal(hidden(x), x.sin())
        assert "torch._dynamo" not in sys.modules

    def keep(graph, _):
        graphs.append({node.target for node in graph.graph.nodes})
        return graph

    torch.compiler.reset()
    compiled = torch.compile(lambda x: hidden(x.cos()).tan(), backend=keep)
    assert torch.equal(compiled(x), x.cos().sin().tan())
    assert [("cos" in g, "sin" in g, "tan" in g) for g in graphs] == [
        (True, False, False),
        (False, False, True),
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_steps_as_before(name):
    def trained(change):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = change(getattr(torch.optim, name)(model.parameters(), 0.1, **OPTIMIZERS[name]))
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(trained(step_eagerly), trained(lambda optimizer: optimizer))


def test_an_eager_step_calls_hooks_and_closure():
    weight, calls = nn.Parameter(torch.ones(2)), []
    optimizer = step_eagerly(torch.optim.SGD([weight], 0.5))
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2
    assert weight.tolist() == [0.0, 0.0]
    assert calls == ["before", "after"]
    assert torch.is_grad_enabled()


def test_a_differentiable_step_stays_as_it_is():
    weight = torch.ones(2, requires_grad=True)
    optimizer = step_eagerly(torch.optim.SGD([weight.clone()], 0.5, differentiable=True))
    assert "step" not in vars(optimizer)
