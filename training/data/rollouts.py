"""Examples that a network makes by acting: transitions of environments, in steps of all of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from prunezoo.models.modes import evaluating
from prunezoo.models.trees import Tree
from prunezoo.schema.data import DataConfig, PlayConfig
from prunezoo.schema.seeds import seed_of
from prunezoo.tasks.reinforcement import TRANSITION, logits, values
from prunezoo.tasks.task import Targets
from prunezoo.training.data.batches import Batch, Data, DataInfo
from prunezoo.training.data.environments import Environment, described
from prunezoo.training.data.layouts import DataError
from prunezoo.training.random import generator
from prunezoo.training.ranks.collectives import gather_rows


class Steps(NamedTuple):
    """What happened in n environments in a row of T steps; (T, n) but for what was seen."""

    seen: np.ndarray  # before each step, (T, n, numbers)
    actions: np.ndarray
    rewards: np.ndarray  # with the value of what follows, where time alone ended an episode
    scores: np.ndarray
    ended: np.ndarray


class Player:
    """A network that acts; on its device, and in its precision."""

    def __init__(self, network: nn.Module, config: PlayConfig) -> None:
        self.network, self.config = network, config
        self.like = next(network.parameters())

    def outputs(self, seen: np.ndarray) -> Tensor:
        """Of one observation a row."""
        return self.network(torch.from_numpy(seen).to(self.like))

    def value(self, seen: np.ndarray) -> np.ndarray:
        """The scaled returns that the network expects from here on, (n,)."""
        return values(self.outputs(seen)).double().cpu().numpy()

    def choose(self, seen: np.ndarray, draws: np.ndarray | None) -> np.ndarray:
        """An action of each row by its draw from [0, 1); without draws the likeliest."""
        scores = logits(self.outputs(seen)).double()
        if draws is None:
            return scores.argmax(1).cpu().numpy()
        below = scores.softmax(1).cumsum(1).cpu().numpy()[:, :-1]
        return (draws[:, None] >= below).sum(1)

    def step(self, games: list[Environment], draws: np.ndarray | None) -> Steps:
        """One step of every environment; those whose episode ended begin the next one."""
        seen = np.stack([game.observation for game in games]).astype(np.float32)
        actions = self.choose(seen, draws)
        rewards, scores, ended = np.zeros((3, len(games)))
        for i, game in enumerate(games):
            reward, over, cut = game.step(int(actions[i]))
            rewards[i] = reward * self.config.reward_scale
            if cut:  # it would have gone on
                rest = self.value(game.observation[None].astype(np.float32))[0]
                rewards[i] += self.config.discount * rest
            if over or cut:
                ended[i], scores[i] = 1, game.score
                game.begin(game.episode + 1)
        return Steps(seen, actions, rewards, scores, ended)

    def play(self, games: list[Environment], draws: np.ndarray) -> tuple[Tree, Tree]:
        """Transitions of environments by draws (T, n), those of one environment after another."""
        steps = Steps(*map(np.stack, zip(*(self.step(games, row) for row in draws), strict=True)))
        last = np.stack([game.observation for game in games]).astype(np.float32)
        returns = discounted(steps, self.value(last), self.config.discount)
        return self.examples(steps, returns)

    def episodes(self, games: list[Environment]) -> tuple[Tree, Tree]:
        """Transitions of one whole episode of each environment, of the likeliest actions."""
        each: list[list[Steps]] = [[] for _ in games]
        while going := [i for i, game in enumerate(games) if not game.episode]:
            step = self.step([games[i] for i in going], None)
            for place, i in enumerate(going):
                each[i].append(Steps(*(values[place : place + 1] for values in step)))
        parts = []
        for rows in each:
            steps = Steps(*map(np.stack, zip(*rows, strict=True)))
            returns = discounted(steps, np.zeros(1), self.config.discount)
            parts.append((steps, returns))
        together = Steps(*map(np.concatenate, zip(*(steps for steps, _ in parts), strict=True)))
        return self.examples(together, np.concatenate([returns for _, returns in parts]))

    def examples(self, steps: Steps, returns: np.ndarray) -> tuple[Tree, Tree]:
        """Inputs and targets, one transition a row; of environments in turn."""
        numbers = {"return": returns, "score": steps.scores, "ended": steps.ended}
        targets = {name: self._rows(values).to(self.like.dtype) for name, values in numbers.items()}
        return self._rows(steps.seen), {"action": self._rows(steps.actions), **targets}

    def _rows(self, values: np.ndarray) -> Tensor:
        rows = np.ascontiguousarray(values.swapaxes(0, 1))
        return torch.from_numpy(rows).flatten(0, 1).to(self.like.device)


def discounted(steps: Steps, last: np.ndarray, discount: float) -> np.ndarray:
    """Returns (T, n): R_t = r_t + discount · R_{t+1} within an episode, and `last` after all."""
    returns, ahead = np.empty_like(steps.rewards), last
    for t in reversed(range(len(returns))):
        ahead = steps.rewards[t] + discount * ahead * (1 - steps.ended[t])
        returns[t] = ahead
    return returns


@dataclass(frozen=True)
class Rollouts(Data):
    """Transitions by the network that `played_by` names; an epoch is a number of them.

    Each process acts in its share of the environments. Their state is all that is carried along:
    the draws of actions follow from seed and position, an episode's start from seed, environment
    and number.
    """

    games: list[Environment]  # this rank's
    limit: int  # steps of an episode, at most
    network: nn.Module | None = None

    @property
    def play(self) -> PlayConfig:
        """The recipe's `play`."""
        return self.config.play or PlayConfig()

    def played_by(self, network: nn.Module) -> "Rollouts":
        """These environments, where this network acts."""
        return replace(self, network=network)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches in an epoch."""
        return self.info.train_images // batch_size

    def train_batches(
        self, epoch: int, batch_size: int, parts: int = 1, *, start: int = 0, epochs: int = 1
    ) -> Iterator[Batch]:
        """Transitions of a few steps of all environments, which go on where they stand."""
        starts = {epoch: start}
        for each in range(epoch, epoch + epochs):
            for step in range(starts.get(each, 0), self.steps_per_epoch(batch_size)):
                yield self._played(self.games, batch_size, "actions", each, step)

    def calibration_batches(
        self,
        batches: int,
        batch_size: int,
        *,
        class_balanced: bool = False,
        stream: str = "calibration",
    ) -> list[tuple[Tree, Tree]]:
        """Transitions of copies of the environments, which go on from where training stands.

        Raises:
            DataError: a batch does not divide among environments.
        """
        assert not class_balanced, "of returns pruning refuses to balance classes"
        self._check(batch_size, stream)
        copies = [Environment(self.config.name, game.seed_of_episode) for game in self.games]
        for mine, copy in zip(self.games, copies, strict=True):
            copy.replay(mine.episode, mine.actions)
        played = (self._played(copies, batch_size, f"of {stream}", i) for i in range(batches))
        return [(inputs, targets) for inputs, targets, _ in played]

    def subset_batches(self, fraction: float, batch_size: int, stream: str) -> Iterator[Batch]:
        """As many transitions as this part of an epoch, of copies of the environments."""
        count = max(1, round(fraction * self.info.train_images / batch_size))
        for inputs, targets in self.calibration_batches(count, batch_size, stream=stream):
            yield Batch(inputs, targets, batch_size)

    def evaluation_batches(
        self, split: Literal["train", "validation", "test"], batch_size: int
    ) -> Iterator[Batch]:
        """The split's episodes, each once over all ranks, by the likeliest actions.

        Their seeds are the same in every run; `batch_size` of them are played at once.
        """
        episodes = torch.arange(getattr(self.info, f"{split}_images"))
        for chunk in episodes.split(batch_size):
            mine = self._share(chunk, None).rows.tolist()
            starts = [partial(seed_of, 0, f"{split} episode", each) for each in mine]
            games = [Environment(self.config.name, start) for start in starts]
            if games:
                with self._acting() as player:
                    inputs, targets = player.episodes(games)
                yield Batch(inputs, targets, len(chunk))

    def state_dict(self) -> dict[str, Tensor]:
        """Of every rank's environments in order: episode, number of actions, and the actions."""
        table = torch.zeros(len(self.games), 2 + self.limit, dtype=torch.int32)
        for row, game in zip(table, self.games, strict=True):
            history = [game.episode, len(game.actions), *game.actions]
            row[: len(history)] = torch.tensor(history, dtype=torch.int32)
        return {"environments": gather_rows(table).cpu()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Bring every environment to where it stood.

        Raises:
            ValueError: it is not a state of these environments.
        """
        table = tensors.get("environments", torch.zeros(0))
        if table.shape != (self.play.environments, 2 + self.limit) or table.dtype != torch.int32:
            raise ValueError(f"{tuple(table.shape)} is not a table of the environments")
        for game, row in zip(
            self.games, _own(table.tolist(), self.rank, self.world_size), strict=True
        ):
            episode, count, *actions = row
            if episode < 0 or not 0 <= count < self.limit:
                raise ValueError(f"episode {episode} after {count} steps")
            game.replay(episode, actions[:count])

    def _played(self, games: list[Environment], batch_size: int, stream: str, *at: int) -> Batch:
        """A batch of steps; draws are made for all ranks' environments."""
        self._check(batch_size, stream)
        steps = batch_size // self.play.environments
        draws = torch.rand(
            (steps, self.play.environments),
            dtype=torch.float64,
            generator=generator(self.seed, stream, *at),
        )
        with self._acting() as player:
            inputs, targets = player.play(
                games, _own(draws.T, self.rank, self.world_size).T.numpy()
            )
        return Batch(inputs, targets, batch_size)

    @contextmanager
    def _acting(self) -> Iterator[Player]:
        assert self.network is not None, "played_by comes first"
        with evaluating(self.network):
            yield Player(self.network, self.play)

    def _check(self, batch_size: int, stream: str) -> None:
        if batch_size % self.play.environments:
            raise DataError(f"{stream}: {uneven(batch_size, self.play.environments)}")


def known(config: DataConfig) -> DataInfo:
    """Shapes of the environment, and how many transitions and episodes are played."""
    play = config.play or PlayConfig()
    shape, actions, _ = described(config.name)
    return DataInfo(
        config.name,
        shape,
        Targets(actions + 1, TRANSITION),
        play.transitions,
        int(config.validation),
        play.episodes,
        task="reinforcement",
        environments=play.environments,
    )


def opened(
    config: DataConfig, *, seed: int, device: torch.device, rank: int, world_size: int
) -> Rollouts:
    """This rank's share of the environments, at the start of their first episodes."""
    info, (*_, limit) = known(config), described(config.name)
    mine = _own(list(range(info.environments)), rank, world_size)
    games = [Environment(config.name, partial(seed_of, seed, "environment", i)) for i in mine]
    return Rollouts(info, config, seed, device, rank, world_size, {}, {}, games, limit)


def _own(rows: Any, rank: int, ranks: int) -> Any:
    """A rank's share of what there is one of for each environment."""
    return rows[rank * len(rows) // ranks : (rank + 1) * len(rows) // ranks]


def uneven(batch_size: int, environments: int) -> str:
    """A sentence on a batch that does not divide over the environments."""
    below = batch_size // environments * environments
    fitting = f"{below} or {below + environments}" if below else f"{environments}"
    return (
        f"batches of {batch_size} transitions do not divide over {environments} environments"
        f" (data.play); write {fitting}"
    )
