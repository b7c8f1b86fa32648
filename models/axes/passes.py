"""The passes that are watched: what a network does in evaluation and in training mode.

Some heads run only in training, hence two passes. What ran in neither, such as an expert that was
not chosen, may read whatever its module handles: all of that stays.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils import _pytree as pytree

from prunezoo.models import trees
from prunezoo.models.axes.trace import Pass, Trace, named_tensors
from prunezoo.models.axes.twins import repeatable, twin
from prunezoo.models.errors import ModelError
from prunezoo.models.modes import attention_by_operators, evaluating
from prunezoo.models.trees import Tree

_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@contextmanager
def _naming(model: nn.Module, trace: Trace) -> Iterator[None]:
    """Keep `trace.where` and `.kind` at the innermost module that runs, and what modules meet."""
    names = {module: name for name, module in model.named_modules()}
    stack = [("", type(model).__name__)]

    def enter(module: nn.Module, args: Any) -> None:
        trace.meet(pytree.tree_leaves(args))
        stack.append((names.get(module, stack[-1][0]), type(module).__name__))
        trace.where, trace.kind = stack[-1]
        trace.met.setdefault(trace.where, {})
        trace.meet(pytree.tree_leaves(args))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        trace.meet(pytree.tree_leaves(output))
        stack.pop()
        trace.where, trace.kind = stack[-1]
        trace.meet(pytree.tree_leaves(output))

    # global hooks: they leave no trace in the model, and see modules that it makes as it runs
    handles = [hooks.register_module_forward_pre_hook(enter)]
    handles += [hooks.register_module_forward_hook(leave)]
    try:
        yield
    finally:
        trace.where = trace.kind = ""
        for handle in handles:
            handle.remove()


def watch(model: nn.Module, example_input: Tree, rules: dict[str, Any]) -> tuple[Trace, Tensor]:
    """The trace of the passes, and the atoms of the image's channels.

    Raises:
        ModelError: a pass or a copy of the network is not possible, or its operators are hidden.
    """
    _check_forward(model)
    _check_visible(model)
    trace = Trace(named_tensors(model), _layer_weights(model), rules)
    image = trace.constant(_channels(example_input), "the image's channels")
    with evaluating(model), repeatable(trees.device(example_input)):
        try:
            _watch(trace, model, example_input, image)
        except RuntimeError as error:
            _blame_script(model, error)
            raise
    if trace.unknown:
        _blame_script(model)
    _watch_training(trace, model, example_input, image)
    for owner, names in trace.unused().items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        trace.where = owner
        reason = f"{names[0]}{more} never ran, and may meet these channels when it does"
        trace.fix(trace.met[owner].values(), reason)
    trace.where = ""
    return trace, image


def _check_forward(model: nn.Module) -> None:
    """Refuse a network that the inputs alone, as one argument, are not enough for."""
    if isinstance(model, torch.jit.ScriptModule):
        return  # which has a sentence of its own
    parameters = inspect.signature(model.forward).parameters.values()
    wanted = [p.name for p in parameters if p.default is p.empty and p.kind not in _REST]
    if len(wanted) > 1:
        raise ModelError(
            f"{type(model).__name__}: forward takes {', '.join(wanted)}, and is given one argument;"
            " wrap it in a module whose forward(self, inputs) takes a tuple or a dictionary"
        )


def _check_visible(model: nn.Module) -> None:
    """Refuse inference mode, in which PyTorch shows whole layers instead of what they run."""
    if torch.is_inference_mode_enabled():
        raise ModelError("torch.inference_mode() hides what a network runs; leave it for this call")
    for name, tensor in named_tensors(model).items():
        if tensor.is_inference():
            raise ModelError(
                f"{name} was made in torch.inference_mode(), which hides what a network runs; pass"
                " copy.deepcopy(model), made outside of it"
            )


def _channels(inputs: Tree) -> int:
    """Channels of images; 1 of a tree, or of words, of which nothing is known to be channels."""
    if isinstance(inputs, Tensor) and inputs.dim() > 1 and inputs.is_floating_point():
        return inputs.shape[1]
    return 1


def _layer_weights(model: nn.Module) -> set[str]:
    # by identity, as named_parameters gives a shared weight one name alone
    owned = {id(m.weight) for m in model.modules() if isinstance(m, LAYERS)}
    return {name for name, tensor in model.named_parameters() if id(tensor) in owned}


def _watch(trace: Trace, model: nn.Module, images: Tree, channels: Tensor) -> None:
    """One pass, in the mode that the model is in."""
    # a network may write into its input
    images = trees.mapped(lambda leaf: leaf.detach().clone(), images)
    for leaf in trees.leaves(images):
        vectors: list[Tensor | None] = [None] * leaf.dim()
        if len(channels) > 1:
            vectors[1] = channels
        trace.carry(leaf, vectors)
    trace.calls = []
    with _naming(model, trace), attention_by_operators(), trace:
        outputs = model(images)
    trace.passes[model.training] = Pass(trees.size(images), trace.calls)
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            trace.fix(trace.vectors(leaf), "the network's output")


def _watch_training(trace: Trace, model: nn.Module, image: Tree, channels: Tensor) -> None:
    """A pass of a copy in training mode, if images alone are enough for it.

    Of two images where one will not do: BatchNorm refuses the statistics of a single number.
    """
    copied = twin(model, {n: t.detach().clone() for n, t in named_tensors(model).items()}).train()
    # so that what the copy does ties the channels of the model
    trace.know(named_tensors(copied))
    for images in (image, trees.mapped(lambda leaf: torch.cat([leaf, leaf]), image)):
        with repeatable(trees.device(image)):
            try:
                return _watch(trace, copied, images, channels)
            except ModelError:
                raise
            except Exception:  # whatever a module raises that wants targets as well
                continue


def _blame_script(model: nn.Module, error: RuntimeError | None = None) -> None:
    """Raise ModelError if part of the network is TorchScript, which hides what it does."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{name or 'the network itself'}: is TorchScript, which cannot be watched; build"
                " the network from Python modules, or prune single weights by a recipe"
                " (granularity: weight)"
            ) from error
