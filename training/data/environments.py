"""Environments of Gymnasium: the network acts, and what it sees and gets are the examples."""

import difflib
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from prunezoo.models.trees import Shape
from prunezoo.training.data.layouts import DataError

PREFIX = "gymnasium/"
INSTALL = 'pip install "gymnasium[box2d]"'
PACKAGES = {"Box2D": "box2d", "pygame": "pygame-ce"}  # that bring a module; else its own name
EXAMPLES = "gymnasium/CartPole-v1, gymnasium/Acrobot-v1, gymnasium/LunarLander-v3"


class Environment:
    """One environment, in the episode `episode` after these `actions`.

    An episode follows from its seed and its actions, so both are all that a checkpoint needs:
    `replay` brings any other environment of the name to the same state.
    """

    def __init__(self, name: str, seed_of_episode: Callable[[int], int]) -> None:
        self.game, self.seed_of_episode = made(name), seed_of_episode
        self.begin(0)

    def begin(self, episode: int) -> None:
        """Begin the episode of this number, from its own seed."""
        self.episode, self.score = episode, 0.0
        self.actions: list[int] = []
        self.observation, _ = self.game.reset(seed=self.seed_of_episode(episode))

    def step(self, action: int) -> tuple[float, bool, bool]:
        """Act; returns the reward, and if the episode is over by the game or by its time."""
        self.observation, reward, ended, cut, _ = self.game.step(action)
        self.actions.append(action)
        self.score += float(reward)
        return float(reward), ended, cut and not ended

    def replay(self, episode: int, actions: list[int]) -> None:
        """Come to the state of an environment after these actions in this episode.

        Raises:
            ValueError: they are not of an episode that still goes on.
        """
        self.begin(episode)
        for action in actions:
            if not self.game.action_space.contains(np.int64(action)):
                raise ValueError(f"{action} is not an action of {self.game.spec.id}")
            if any(self.step(action)[1:]):
                raise ValueError(f"episode {episode} of {self.game.spec.id} ends before its end")


def made(name: str) -> Any:
    """An environment by its name, `gymnasium/…`.

    Raises:
        DataError: gymnasium or what the environment needs is not installed, there is none of that
            name, or it is not one of vectors, numbered actions and limited episodes.
    """
    try:
        gymnasium = import_module("gymnasium")  # here, as no other data need it
    except ModuleNotFoundError:
        raise DataError(f"{name}: acting in it needs gymnasium; {INSTALL}") from None
    identity = name.removeprefix(PREFIX)
    if identity not in gymnasium.registry:  # never by module:name, which would import the module
        near = difflib.get_close_matches(identity, gymnasium.registry, 1)
        hint = f" (did you mean {PREFIX}{near[0]}?)" if near else ""
        raise DataError(f"{name}: gymnasium has no such environment{hint}; write {EXAMPLES}")
    try:
        # Box2D's binding warns of old types as it is imported, and crashes where that is an error
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            game = gymnasium.make(identity, disable_env_checker=True)
    except gymnasium.error.DependencyNotInstalled as error:
        raise DataError(f"{name}: {_needed(error)}") from None
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise DataError(f"{name}: cannot be made ({why}); write {EXAMPLES}") from None
    if fault := _misfit(game, gymnasium.spaces):
        raise DataError(f"{name} {fault}; write {EXAMPLES}")
    return game


def _needed(error: Exception) -> str:
    """What an environment needs and is not installed, by gymnasium's own error."""
    module = getattr(error.__cause__, "name", None)
    if module is None:
        return str(error).splitlines()[0]
    return f"it needs {module}, which is not installed; pip install {PACKAGES.get(module, module)}"


def _misfit(game: Any, spaces: Any) -> str:
    """What an environment has that examples cannot be made of; "" if nothing."""
    seen, acts = game.observation_space, game.action_space
    if not isinstance(seen, spaces.Box) or len(seen.shape) != 1:
        return "shows no vector of numbers"
    if not isinstance(acts, spaces.Discrete) or acts.start != 0:
        return "has no numbered actions to choose from"
    return "" if game.spec.max_episode_steps else "has no limit of steps to an episode"


def described(name: str) -> tuple[Shape, int, int]:
    """The shape of an observation, the number of actions, and the most steps of an episode."""
    game = made(name)
    shape = Shape(tuple(game.observation_space.shape))
    return shape, int(game.action_space.n), game.spec.max_episode_steps
