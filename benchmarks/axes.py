"""On how many networks are ours and Torch-Pruning's channels right, and how long do they take?

    python benchmarks/axes.py                       # 40 timm families, some minutes
    python benchmarks/axes.py resnet50 densenet121 --size 224

Both remove the same share of random units of every group they find, classifier excepted. Which
entries of which tensors are left is read from a copy whose tensors hold their own positions. The
network with all other entries zero must then compute what the small one does, in float64. Times are
processor seconds of one thread, so that other programs do not count.
"""

import argparse
import copy
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import timm
import torch
import torch_pruning
from torch import Tensor, nn

from prunezoo.models.axes.find import axes, shrink
from prunezoo.models.axes.trace import named_tensors

NAMES = (
    "resnet18 resnet50 resnext50_32x4d seresnet50 resnest14d wide_resnet50_2 resnetblur50"
    " densenet121 mobilenetv1_100 mobilenetv2_100 mobilenetv3_large_100 mobilenetv3_small_100"
    " efficientnet_b0 tf_efficientnetv2_b0 regnetx_002 regnety_002 convnext_atto ghostnet_100 dla34"
    " dla46_c inception_v3 res2net50_14w_8s skresnet18 hrnet_w18_small cspresnet50 cspdarknet53"
    " darknet53 repvgg_a0 mixnet_s mnasnet_100 tinynet_a legacy_xception selecsls42"
    " ese_vovnet19b_dw hardcorenas_a fbnetc_100 dpn48b lcnet_050 rexnet_100 vgg11_bn"
)
SHARE, LIMIT = 0.3, 60  # of units removed; processor seconds for one network


class Seconds(NamedTuple):
    """To find what goes together, to put that to the test, to remove."""

    find: float
    verify: float
    remove: float


Removal = Callable[[nn.Module, Tensor], Seconds]  # in place


def ours(model: nn.Module, image: Tensor) -> Seconds:
    """`axes` without and with its test, then `shrink`."""
    start = time.process_time()
    axes(model, image, verify=False)
    traced = time.process_time()
    channels = axes(model, image)
    verified = time.process_time()
    keep = {
        axis: torch.randperm(width) >= min(int(SHARE * width), width - 1)
        for axis, width in channels.widths.items()
    }
    shrink(model, channels, keep)
    find = traced - start
    return Seconds(find, verified - traced - find, time.process_time() - verified)


def theirs(model: nn.Module, image: Tensor) -> Seconds:
    """Torch-Pruning's pruner, which builds a dependency graph, with random importance."""
    start = time.process_time()
    pruner = torch_pruning.pruner.BasePruner(
        model,
        image,
        importance=torch_pruning.importance.RandomImportance(),
        pruning_ratio=SHARE,
        ignored_layers=[model.get_classifier()],  # pyright: ignore[reportCallIssue]
    )
    middle = time.process_time()
    pruner.step()
    return Seconds(middle - start, 0, time.process_time() - middle)


class Outcome(NamedTuple):
    """Outcome of one network."""

    verdict: str
    seconds: Seconds
    left: float  # parameters left, as a share


def judge(model: nn.Module, image: Tensor, remove: Removal) -> Outcome:
    """True if the smaller network computes what the masked one does."""
    torch.manual_seed(0)
    small = copy.deepcopy(model)
    hold(small, {n: torch.arange(t.numel()).view(t.shape) for n, t in named_tensors(small).items()})
    signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        seconds = remove(small, image)
        signal.setitimer(signal.ITIMER_PROF, 0)
        places = {name: t.detach().long() for name, t in named_tensors(small).items()}
        actual, expected = compare(model, small, places, image)
    except Exception as error:  # whatever a tool or a network raises is the finding
        return Outcome(
            f"{type(error).__name__}: {str(error).splitlines()[0][:70]}", Seconds(0, 0, 0), 1
        )
    left = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    right = torch.allclose(actual, expected, rtol=0, atol=1e-9)
    return Outcome("right" if right else "wrong outputs", seconds, left)


def give_up(*_: object) -> None:
    raise TimeoutError(f"more than {LIMIT} s")


def compare(
    model: nn.Module, small: nn.Module, places: dict[str, Tensor], image: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs of the small network and of the one with the entries at all other places zero."""
    masked, tensors = copy.deepcopy(model), named_tensors(model)
    kept = {name: tensors[name].detach().flatten()[at] for name, at in places.items()}
    hold(small, kept)
    for name, parameter in masked.named_parameters():
        rest = torch.zeros_like(parameter).flatten()
        rest[places[name].flatten()] = kept[name].flatten()
        parameter.data.copy_(rest.view(parameter.shape))
    with torch.no_grad():
        return small.eval()(image), masked.eval()(image)


def hold(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Write floating-point values; counters and indices stay."""
    for name, tensor in named_tensors(model).items():
        if tensor.is_floating_point():
            tensor.data.copy_(values[name])


def randomise(model: nn.Module) -> nn.Module:
    """In float64, with weights behind which no channel can hide, such as a branch that is zero."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=(len(parameter) / parameter.numel()) ** 0.5)
        else:
            nn.init.uniform_(parameter, 0.2, 0.8)
    return model.double().eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore
    parser.add_argument("names", nargs="*", default=NAMES.split())
    parser.add_argument("--size", type=int, default=96)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of timm, on renamed models
    outcomes: dict[str, list[Outcome]] = {"ours": [], "theirs": []}
    for name in arguments.names:
        model = randomise(timm.create_model(name, num_classes=100))
        image = torch.randn(1, 3, arguments.size, arguments.size, dtype=torch.float64)
        for who, remove in (("ours", ours), ("theirs", theirs)):
            outcome = judge(model, image, remove)
            outcomes[who].append(outcome)
            print(
                f"{name:24} {who:7}"
                + "".join(f"{k} {v:6.2f} s  " for k, v in outcome.seconds._asdict().items())
                + f"parameters left {outcome.left:4.0%}  {outcome.verdict}",
                flush=True,
            )
    summarise(outcomes)


def summarise(outcomes_of: dict[str, list[Outcome]]) -> None:
    for who, outcomes in outcomes_of.items():
        right = [o for o in outcomes if o.verdict == "right"]
        print(f"{who}: right on {len(right)} of {len(outcomes)} networks")
    both = [
        pair
        for pair in zip(*outcomes_of.values(), strict=True)
        if all(o.verdict == "right" for o in pair)
    ]
    for what in ("find", "remove"):
        sides = zip(*both, strict=True)
        times = [[getattr(o.seconds, what) for o in side] for side in sides]
        ratios = [b / a for a, b in zip(*times, strict=True)]
        print(
            f"{what}: median {statistics.median(times[0]):.3f} s ours,"
            f" {statistics.median(times[1]):.3f} s theirs;"
            f" theirs / ours median {statistics.median(ratios):.2f} ({len(both)} networks)"
        )


if __name__ == "__main__":
    main()
