"""Options that a recipe or a model file may give to a network, by an allow-list.

Both may come from strangers. So the names are an allow-list, the constructor's own: what timm's
`create_model` takes besides (checkpoint_path, pretrained_cfg, cache_dir, features_only, …) opens
files and addresses, unpickles, or does not make a classifier. None of it is in a network's
signature, with any version of timm. Values are plain: numbers, words, lists and maps of them. A
word can name one of timm's own layers, which timm looks up in a dictionary, but neither a path nor
a module.
"""

import difflib
import inspect
import math
import re
import reprlib
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import nn

from prunezoo.models.errors import ModelError

LARGEST = 1_000_000  # no width, depth, image side or number of classes is larger
NODES = 10_000  # values in one option, nested ones too
DEPTH = 8  # of lists in lists
WORD = re.compile(r"[A-Za-z0-9_+-]{0,64}")
# Set by `build` itself, or of a machine (device), or making something other than a classifier.
WITHHELD = {"self", "args", "kwargs", "num_classes", "in_chans", "device", "dtype"}
WITHHELD |= {"fork_feat", "return_interm_layers", "out_features", "out_indices", "features_only"}
EXTRA = {"bn_eps", "bn_momentum"}  # numbers that timm's EfficientNets turn into their norm layer
KINDS: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("a word", (str,)),
}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def check_size(name: str, what: str, value: Any) -> None:
    """Check a number of classes or channels.

    Raises:
        ModelError: it is not a possible one.
    """
    if type(value) is not int or not 1 <= value <= LARGEST:
        raise ModelError(
            f"{name}: {what} {shown(value)} is not a whole number from 1 to {LARGEST:,}"
        )


def check_options(name: str, constructor: Callable[..., Any], given: dict[str, Any]) -> None:
    """Check the options of a network of ours: their names, kinds and sizes.

    Raises:
        ModelError: it does not take them.
    """
    parameters = inspect.signature(constructor).parameters
    names = {key: p for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    _check_names(name, names, given)
    for option, value in given.items():
        kind = names[option].annotation
        # by type, as isinstance takes True for a whole number
        if type(value) not in KINDS[kind][1]:
            raise ModelError(f"{name}: {option} {shown(value)} is not {KINDS[kind][0]}")
        if option == "dropout" and not _is_rate(value):
            raise ModelError(f"{name}: {option} {shown(value)} is not a rate from 0 to 1")
        if kind in (int, float) and option != "dropout" and not 0 < value <= LARGEST:
            raise ModelError(
                f"{name}: {option} {shown(value)} is not above 0 and at most {LARGEST:,}"
            )


def check_timm_options(timm_name: str, given: dict[str, Any]) -> None:
    """Check the options of a network of timm: their names, and that their values are plain.

    Raises:
        ModelError: it does not take them.
    """
    if given:
        _check_plain(f"timm/{timm_name}", _signature(timm_name), given)


def check_torchvision_options(torchvision_name: str, given: dict[str, Any]) -> None:
    """Check the options of a network of torchvision: its class's switches and numbers.

    Raises:
        ModelError: it does not take them.
    """
    if given:
        _check_plain(f"torchvision/{torchvision_name}", _switches(torchvision_name), given)


def _check_plain(name: str, names: list[str], given: dict[str, Any]) -> None:
    _check_names(name, names, given)
    for option, value in given.items():
        fault = _fault_of(value)
        if not fault and re.fullmatch(r"(.*_)?drop_(.*_)?rate", option) and not _is_rate(value):
            fault = "is not a rate from 0 to 1"
        if fault:
            raise ModelError(f"{name}: {option} {shown(value)} {fault}")


def shown(value: Any) -> str:
    """A value for a sentence: on one line, cut where it is long or deep."""
    if isinstance(value, str) and value.isprintable() and 0 < len(value) <= 60:
        return value
    if isinstance(value, int) and value.bit_length() > 200:
        return "of more than 60 digits"  # Python refuses to print thousands of them
    return " ".join(_SHORT.repr(value).split())


def first_line(error: BaseException) -> str:
    """The kind of an error and its first line, for a sentence."""
    return " ".join([f"{type(error).__name__}:", *str(error).splitlines()[:1]])[:200]


@cache
def _signature(timm_name: str) -> list[str]:
    """The parameters of the class behind a name, and of those it extends."""
    import timm  # here, because it takes seconds that a network of ours need not wait for

    with torch.device("meta"):
        # the part after the point names pretrained weights, which are not asked for here
        network = type(timm.create_model(timm_name.partition(".")[0]))
    classes = [c for c in network.__mro__ if issubclass(c, nn.Module) and c is not nn.Module]
    # a subclass often passes **kwargs on, so its own signature is not the whole
    names = {key for c in classes for key in inspect.signature(c.__init__).parameters}
    return sorted((names | EXTRA) - WITHHELD)


@cache
def _switches(torchvision_name: str) -> list[str]:
    """The parameters of the class behind a name that are switches or numbers.

    Of networks for segmentation also whether they have an auxiliary head.
    """
    import torchvision

    builder = inspect.signature(torchvision.models.get_model_builder(torchvision_name)).parameters
    none = {key: None for key in ("weights", "weights_backbone") if key in builder}
    with torch.device("meta"):
        network = type(torchvision.models.get_model(torchvision_name, **none))
    parameters = inspect.signature(network.__init__).parameters.values()
    plain = {p.name for p in parameters if p.annotation in (bool, int, float)}
    return sorted((plain | ({"aux_loss"} & builder.keys())) - WITHHELD)


def _check_names(name: str, names: Iterable[str], given: Iterable[str]) -> None:
    for option in given:
        if option not in names:
            near = difflib.get_close_matches(str(option)[:80], names, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ModelError(
                f"{name} has no option {shown(option)}; it has {', '.join(names) or 'none'}{hint}"
            )


def _fault_of(value: Any) -> str | None:
    """The reason why a value is not plain; None of one that is."""
    # a loop, not recursion, which a value nested thousands deep would exhaust
    left, nodes = [(value, 0)], 0
    while left:
        part, depth = left.pop()
        nodes += 1
        inner: list[Any] = []
        if isinstance(part, list | tuple):
            inner = list(part)
        elif isinstance(part, dict):
            inner = [*part, *part.values()]
        elif fault := _fault_of_one(part):
            return fault
        left += [(below, depth + 1) for below in inner]
        if depth > DEPTH or nodes + len(left) > NODES:
            return "is nested too deep or too long"
    return None


def _is_rate(value: Any) -> bool:
    return not isinstance(value, int | float) or 0 <= value <= 1


def _fault_of_one(value: Any) -> str | None:
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        return None if WORD.fullmatch(value) else "is not a word of letters, digits, + - and _"
    if type(value) is int:
        return None if 0 <= value <= LARGEST else f"is not a whole number from 0 to {LARGEST:,}"
    if type(value) is float:
        return None if math.isfinite(value) else "is not finite"
    return "is not a number, word, list or map"
