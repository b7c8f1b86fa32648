"""Selections that look for a structure by themselves, as BEP compares them at initialisation."""

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from prunezoo.models.axes.labels import Axes
from prunezoo.models.axes.removal import shrink
from prunezoo.models.modes import evaluating
from prunezoo.models.operations import alike
from prunezoo.models.trees import Tree
from prunezoo.pruning.amount.budget import BudgetError, select_channels
from prunezoo.pruning.compensation.compensations import bn_recalibrate
from prunezoo.pruning.compensation.global_batchnorm import WholeBatch
from prunezoo.pruning.criteria.measuring import scoring
from prunezoo.pruning.errors import PruningError, bounded
from prunezoo.pruning.rounds import ChannelRound
from prunezoo.pruning.selection.base import Selection
from prunezoo.pruning.training_view import stream_seed
from prunezoo.pruning.types import Batches, Keep
from prunezoo.tasks.task import added, over_ranks

Images = list[tuple[Tree, Tree]]
AT_ONCE = 10  # batches of images in memory while gates learn


class PruneFromScratch(Selection):
    """The units whose gates are largest after learning them on frozen weights, exact in size.

    Wang et al. 2020, arXiv:1909.12579: Adam lowers CE + strength · (mean gate − density)² over
    gates that start at 1 and are clamped to [0, 1]; 10 epochs of 128 images on CIFAR-10 are 3900
    steps. Among equal gates (many end at 0) the criterion decides. The gate of a unit
    multiplies what is read of it: after BatchNorm, activation and addition, where the paper's lies
    before the activation; for activations with f(gx) = g f(x) this is the same. Other deviations:
    images are not augmented, dropout is off, the last gates count and not those best on validation
    images, and in residual networks the stream has gates too. BatchNorm normalises by the global
    batch. The paper trains the structure from new weights: `compensation: reinitialise`.
    """

    def __init__(
        self,
        *,
        steps: int = 3900,
        batch_size: int = 128,
        lr: float = 0.01,
        strength: float = 0.5,
        density: float = 0.2,
    ) -> None:
        super().__init__()
        bounded(
            "selection: prune_from_scratch",
            steps=(steps, 0, 10**7),
            batch_size=(batch_size, 1, 10**6),
            lr=(lr, 0, math.inf),
            strength=(strength, 0, math.inf),
            density=(density, 0, 1),
        )
        self.steps, self.batch_size, self.lr = steps, batch_size, lr
        self.strength, self.density = strength, density

    def rehearse(self, round: ChannelRound) -> None:
        """Raise PruningError for images that cannot be drawn."""
        round.state.calibration(min(AT_ONCE, self.steps), self.batch_size, stream="rehearsal")

    def keep(self, round: ChannelRound) -> Keep:
        """The units that stay, for every scored axis."""
        ties = _ranks(round.scores)
        scores = {axis: gate + 1e-9 * ties[axis] for axis, gate in self.gates(round).items()}
        return select_channels(scores, round.sizes, round.ask, alive=round.alive)

    def gates(self, round: ChannelRound) -> dict[str, Tensor]:
        """The learnt gate of every unit of the prunable axes, (width,) float64; 0 if removed."""
        axes, model, reduce = round.axes, round.state.model, round.state.reduce
        units = torch.cat(
            [axes.offsets[a] + alive.cpu().nonzero()[:, 0] for a, alive in round.alive.items()]
        )
        weight = next(model.parameters())
        gates = weight.new_ones(len(units), requires_grad=True)
        adam, read = torch.optim.Adam([gates], lr=self.lr), list(readers(model, axes))
        factors = weight.new_ones(sum(axes.widths.values()) + 1)  # the last: columns of no unit, −1
        place = units.to(weight.device)
        with scoring(model):
            for norm in _norms(model):
                norm.train()
            for inputs, targets in alike(self._batches(round)):
                weights = gated(read, factors.index_copy(0, place, gates))
                with WholeBatch(reduce):
                    outputs = functional_call(model, weights, (inputs,))
                distance = gates.mean() - self.density
                loss = round.state.task.loss(outputs, targets)
                loss = loss + self.strength * distance.square()
                # by hand: backward() would also fill the gradients of all weights
                gates.grad = reduce(torch.autograd.grad(loss, gates)[0])
                adam.step()
                gates.detach().clamp_(0, 1)
        whole = torch.zeros(len(factors), dtype=torch.float64)
        whole[units] = gates.detach().double().cpu()
        return {axis: whole[axes.offsets[axis] :][: axes.widths[axis]] for axis in round.alive}

    def _batches(self, round: ChannelRound) -> Batches:
        for start in range(0, self.steps, AT_ONCE):
            count = min(AT_ONCE, self.steps - start)
            stream = f"gates {start} {round.stream}"
            yield from round.state.calibration(count, self.batch_size, stream=stream)


Reader = tuple[str, Tensor, Tensor]  # name, weight, unit that each column reads


def readers(model: nn.Module, axes: Axes) -> Iterator[Reader]:
    """Every convolution and linear layer that reads units."""
    for name in axes.weights:
        columns = axes.labels[name][1] if name in axes.labels else None
        if columns is not None:
            weight = model.get_parameter(name).detach()
            yield name, weight, columns.to(weight.device)


def gated(layers: list[Reader], factors: Tensor) -> dict[str, Tensor]:
    """Name → weight × the factor of the unit that each of its columns reads; (units + 1,) factors.

    With 0 for removed units and else 1, the network computes what it does with them masked.
    """
    return {
        name: weight * factors[columns].view(1, -1, *[1] * (weight.dim() - 2))
        for name, weight, columns in layers
    }


def _ranks(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every score's place among all of them, from 0 for the lowest to 1."""
    flat = torch.cat([score.cpu().double() for score in scores.values()])
    places = torch.empty_like(flat)
    places[flat.argsort(stable=True)] = torch.linspace(0, 1, len(flat), dtype=torch.float64)
    return dict(zip(scores, places.split([len(s) for s in scores.values()]), strict=True))


class EagleEye(Selection):
    """The best of random structures, judged by the task's headline after adaptive BatchNorm.

    Li et al. 2020, arXiv:2007.02491. Each candidate draws the rate of every axis from U[low, high];
    the criterion ranks units inside an axis (the paper: L1 norms, `channel_norm`). Statistics come
    from `adapt` batches and accuracy from `judge` others; all are training images, none twice while
    they last. Ties: the smaller loss, then the earlier candidate. Deviation: the paper throws away
    draws that miss the size; here the drawn fractions kept are scaled by one factor until the size
    is met, so that every draw counts and any size can be asked for.

    Raises:
        PruningError: the rates are not a range within [0, 1), or no candidate is left.
    """

    def __init__(
        self,
        *,
        candidates: int = 100,
        low: float = 0.0,
        high: float = 0.7,
        adapt: int = 100,
        judge: int = 10,
        batch_size: int = 128,
    ) -> None:
        super().__init__()
        bounded("selection: eagle_eye", batch_size=(batch_size, 1, 10**6))
        if not (0 <= low <= high < 1 and min(candidates, adapt, judge) > 0):
            raise PruningError(
                f"eagle_eye: candidates {candidates}, low {low:g}, high {high:g}, adapt {adapt},"
                f" judge {judge}; write 0 ≤ low ≤ high < 1 and at least one of the others"
            )
        self.candidates, self.low, self.high = candidates, low, high
        self.adapt, self.judge, self.batch_size = adapt, judge, batch_size

    def rehearse(self, round: ChannelRound) -> None:
        """Raise PruningError for images that cannot be drawn."""
        count = self.judge + self.adapt
        round.state.calibration(count, self.batch_size, stream="rehearsal")

    def keep(self, round: ChannelRound) -> Keep:
        """The units that stay, for every scored axis."""
        count = self.judge + (self.adapt if _norms(round.state.model) else 0)
        stream = f"eagle_eye {round.stream}"
        images = list(round.state.calibration(count, self.batch_size, stream=stream))
        candidates = self.candidates_of(round)
        merits = [self._merit(round, keep, images) for keep in candidates]
        return candidates[merits.index(max(merits))]

    def candidates_of(self, round: ChannelRound) -> list[Keep]:
        """The structures to choose among: those of the draws that meet the size.

        Raises:
            BudgetError: none does.
        """
        draw = torch.Generator()
        draw.manual_seed(stream_seed(round.state, f"eagle_eye {round.stream}"))
        candidates, missed = [], None
        for _ in range(self.candidates):
            rates = torch.rand(len(round.scores), generator=draw) * (self.high - self.low)
            shares = dict(zip(round.scores, (1 - self.low - rates).tolist(), strict=True))
            scores = {a: _in_turn(s, round.alive[a], shares[a]) for a, s in round.scores.items()}
            try:
                keep = select_channels(scores, round.sizes, round.ask, alive=round.alive)
                candidates.append(keep)
            except BudgetError as error:
                missed = error
        if missed is not None and not candidates:
            raise missed
        return candidates

    def _merit(self, round: ChannelRound, keep: Keep, images: Images) -> tuple[float, float]:
        """The headline, higher is better, and minus the loss, the same on all ranks."""
        task, reduce = round.state.task, round.state.reduce
        candidate = copy.deepcopy(round.state.model)
        shrink(candidate, round.axes, keep)
        if _norms(candidate):
            bn_recalibrate(candidate, round.axes, {}, images[self.judge :], reduce=reduce)
        sums = task.no_sums(next(candidate.parameters()).device)
        with evaluating(candidate):
            for inputs, targets in alike(images[: self.judge]):
                sums = added(sums, task.sums(candidate(inputs), targets))
        # summed first: one collective call a candidate
        sums = over_ranks(sums, reduce)
        figures = task.metrics(sums)
        return task.headline.merit(figures[task.headline.key]), -float(sums["loss"])


def _in_turn(score: Tensor, alive: Tensor, share: float) -> Tensor:
    """Scores by which an axis fills in proportion to its share, best units first."""
    score = score.cpu().double().masked_fill(~alive.cpu(), -torch.inf)
    place = torch.empty_like(score)
    order = score.argsort(descending=True, stable=True)
    place[order] = torch.arange(1, len(order) + 1, dtype=torch.float64)
    # rank over share: with scope global, all axes then fill at rates in proportion to their shares
    return -place / (share * int(alive.sum()))


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
