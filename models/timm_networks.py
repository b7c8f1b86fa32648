"""Networks of timm, by its names."""

import difflib
from typing import Any

from torch import nn

from prunezoo.models.errors import ModelError
from prunezoo.models.options import check_timm_options, first_line, shown

# Errors of timm's constructors for options that do not fit; they check few of them.
FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError)
FAULTS += (RuntimeError, TypeError, ValueError)


def from_timm(
    num_classes: int,
    in_channels: int,
    *,
    timm_name: str,
    pretrained: bool | str = False,
    **options: Any,
) -> nn.Module:
    """Timm's network of that name; `options` are its own, such as drop_rate.

    `pretrained`: the tag of its weights, such as a1_in1k, or true for those of the name. They come
    from the Hugging Face cache or hub; with HF_HUB_OFFLINE=1 only from the cache. The last layer is
    new where they have another number of classes.

    Raises:
        ModelError: timm has no such network, no weights for it, or not that option.
        OSError: the weights are neither in the cache nor reachable.
    """
    import timm  # here, because it takes seconds that a network of ours need not wait for

    if not timm.is_model(timm_name):
        near = difflib.get_close_matches(timm_name, timm.list_models(), 1)
        hint = f"; did you mean timm/{near[0]}?" if near else ""
        raise ModelError(f"timm has no network {shown(timm_name)}{hint}")
    check_timm_options(timm_name, options)
    timm_name = tagged(timm_name, pretrained)
    sizes = {"num_classes": num_classes, "in_chans": in_channels}
    try:
        model = timm.create_model(timm_name, bool(pretrained), **sizes, **options)
    except OSError as error:
        raise OSError(
            f"timm/{timm_name}: the pretrained weights are neither in the Hugging Face cache nor "
            "reachable; connect once to fetch them, point HF_HOME to a cache that has them, "
            "or write pretrained: false"
        ) from error
    except ModelError:
        raise
    except FAULTS as error:
        raise ModelError(
            f"timm/{timm_name}: timm cannot build it so ({first_line(error)}); write other options"
        ) from error
    return unlike_inplace(model)


def unlike_inplace(model: nn.Module) -> nn.Module:
    """The model, whose activations overwrite their input no longer.

    Hooks and second derivatives see every tensor then.
    """
    for module in model.modules():
        if getattr(module, "inplace", False):
            vars(module)["inplace"] = False
    return model


def tagged(timm_name: str, pretrained: bool | str) -> str:
    """The name with the tag of its weights, where `pretrained` is one.

    Raises:
        ModelError: timm has no such weights; lists those it has.
    """
    import timm

    if isinstance(pretrained, bool):
        return timm_name
    architecture = timm_name.partition(".")[0]
    name = f"{architecture}.{pretrained}"
    known = timm.list_pretrained(f"{architecture}.*")
    if name not in known:
        tags = ", ".join(full.partition(".")[2] for full in known)
        raise ModelError(
            f"timm/{architecture} has no weights {shown(pretrained)}; write pretrained:"
            f" {tags or 'false'}"
        )
    return name
