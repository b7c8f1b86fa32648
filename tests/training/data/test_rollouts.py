"""Rollouts follow from seed, position and network: on any number of ranks, and after a restart."""

import importlib
import sys
from importlib.util import find_spec

import gymnasium
import numpy as np
import pytest
import torch

from prunezoo import models
from prunezoo.models import trees
from prunezoo.schema.data import DataConfig
from prunezoo.tasks.reinforcement import TRANSITION, values
from prunezoo.training.data import environments
from prunezoo.training.data.data import DataError, info, open_data
from prunezoo.training.data.environments import Environment
from prunezoo.training.data.rollouts import Player, Steps, discounted

CPU = torch.device("cpu")
PLAY = {"environments": 4, "transitions": 96, "episodes": 5}
BOX2D = find_spec("Box2D") is not None  # no wheels for every machine: requirements.txt says which
NAMES = ("CartPole-v1", "Acrobot-v1", "LunarLander-v3")[: None if BOX2D else 2]


def opened(name="CartPole-v1", rank=0, world_size=1, seed=0, **play):
    config = DataConfig.model_validate(
        {"name": f"gymnasium/{name}", "validation": 3, "play": PLAY | play}
    )
    return open_data(config, seed=seed, device=CPU, rank=rank, world_size=world_size)


def network(data):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        outputs, channels = data.info.targets.outputs, data.info.channels
        return models.build("mlp", num_classes=outputs, in_channels=channels).double()


def played(data, epochs=3, **options):
    return list(data.played_by(network(data)).train_batches(0, 16, epochs=epochs, **options))


def equal(batch, other):
    pairs = zip(trees.leaves(tuple(batch)[:2]), trees.leaves(tuple(other)[:2]), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.skipif(not BOX2D, reason="LunarLander needs Box2D")
def test_counts_and_shapes_are_known_before_anything_is_played():
    about = info(DataConfig(name="gymnasium/LunarLander-v3"))
    assert (about.example.sizes, about.targets.outputs) == ((8,), 4 + 1)
    assert about.targets.shape == TRANSITION
    assert (about.train_images, about.test_images, about.task) == (16_000, 100, "reinforcement")
    data = opened()
    assert data.steps_per_epoch(16) == 6
    (batch, *_) = played(data)
    assert trees.size(batch.inputs) == batch.global_count == 16
    assert batch.targets.keys() == TRANSITION.keys()


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_play_what_one_plays(name):
    """Their outputs are of other rows at a time, which may move the last digit."""
    whole = played(opened(name))
    shares = [played(opened(name, rank, 2)) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        leaves = [trees.leaves(tuple(each)[:2]) for each in (batch, *parts)]
        for ours, *halves in zip(*leaves, strict=True):
            theirs = torch.cat(halves)
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert any(batch.targets["ended"].any() for batch in whole) or name != "CartPole-v1"


@pytest.mark.parametrize("name", NAMES)
def test_a_state_leads_on_as_if_nothing_had_happened(name):
    whole = played(opened(name))
    first = opened(name)
    batches = first.played_by(network(first)).train_batches(0, 16, epochs=3)
    for _ in range(9):
        next(batches)
    state = {key: tensor.clone() for key, tensor in first.state_dict().items()}
    again = opened(name)
    again.load_state_dict(state)
    rest = again.played_by(network(again)).train_batches(1, 16, start=3, epochs=2)
    assert all(equal(a, b) for a, b in zip(whole[9:], rest, strict=True))
    # on another number of ranks each takes its own environments
    second = opened(name, 1, 2)
    second.load_state_dict(state)
    assert [game.actions for game in second.games] == [game.actions for game in first.games[2:]]


def test_other_seeds_and_environments_begin_elsewhere():
    starts = {tuple(game.observation) for seed in (0, 1) for game in opened(seed=seed).games}
    assert len(starts) == 8


def test_calibration_goes_on_from_copies_and_leaves_training_alone():
    data = opened()
    acting = data.played_by(network(data))
    batches = acting.train_batches(0, 16)
    next(batches)
    before = data.state_dict()["environments"]
    first, again = (acting.calibration_batches(2, 8) for _ in range(2))
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    assert not equal(first[0], acting.calibration_batches(1, 8, stream="round 2")[0])
    assert torch.equal(data.state_dict()["environments"], before)
    # environments stand as training left them: a transition in the first row of each
    now = np.stack([game.observation for game in data.games])
    assert np.array_equal(first[0][0].view(4, 2, -1)[:, 0].numpy(), now)
    (subset,) = acting.subset_batches(0.2, 16, "bep")
    assert trees.size(subset.inputs) == 16
    with pytest.raises(DataError, match=r"of 10 transitions do not divide over 4 .* write 8 or 12"):
        acting.calibration_batches(1, 10)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_episodes_of_a_split_are_those_of_greedy_play(split):
    data = opened()
    net = network(data)
    batches = list(data.played_by(net).evaluation_batches(split, 4))
    scores = torch.cat([b.targets["score"][b.targets["ended"] > 0] for b in batches])
    assert len(scores) == {"validation": 3, "test": 5}[split]
    game = gymnasium.make("CartPole-v1")
    for number, score in enumerate(scores.tolist()):
        seed = environments_seed(split, number)
        seen, _ = game.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action = net(torch.from_numpy(seen).double()[None])[0, :-1].argmax().item()
            seen, reward, ended, cut, _ = game.step(action)
            total, over = total + float(reward), ended or cut
        assert score == total
    shares = [opened(rank=rank, world_size=2) for rank in range(2)]
    mine = [b for d in shares for b in d.played_by(net).evaluation_batches(split, 4)]
    assert sum(b.targets["score"].sum() for b in mine) == scores.sum()
    other = opened(seed=7)
    (*_, last) = other.played_by(net).evaluation_batches(split, 4)
    assert equal(last, batches[-1])  # the same in every run


def environments_seed(split, number):
    from prunezoo.schema.seeds import seed_of

    return seed_of(0, f"{split} episode", number, 0)


def test_the_first_return_of_an_episode_is_its_discounted_reward():
    """CartPole gives 1 a step: Σ 0.9^t = (1 − 0.9^T) / 0.1."""
    data = opened(discount=0.9)
    (batch,) = data.played_by(network(data)).evaluation_batches("test", 5)
    ends = batch.targets["ended"].nonzero()[:, 0]
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1] + 1])
    lengths = (ends + 1 - starts).double()
    torch.testing.assert_close(batch.targets["score"][ends], lengths)
    torch.testing.assert_close(batch.targets["return"][starts], (1 - 0.9**lengths) / 0.1)


def test_returns_by_hand():
    rewards, ended = np.array([[1.0, 1], [1, 1], [1, 1]]), np.array([[0.0, 0], [1, 0], [0, 0]])
    steps = Steps(np.zeros((3, 2, 1)), np.zeros((3, 2)), rewards, ended, ended)
    result = discounted(steps, np.array([4.0, 8.0]), 0.5)
    assert result.tolist() == [[1.5, 2.75], [1.0, 3.5], [3.0, 5.0]]


def test_an_episode_cut_by_time_goes_on_by_its_value(monkeypatch):
    data = opened("Acrobot-v1")
    net = network(data)
    player, game = Player(net, data.play), Environment("gymnasium/Acrobot-v1", lambda n: n)
    game.game._max_episode_steps = 2
    with torch.no_grad():
        first, second = (player.step([game], np.array([0.5])) for _ in range(2))
    assert (first.ended, second.ended) == (0, 1)
    assert first.rewards == -1
    assert second.scores == -2
    assert game.episode == 1
    twin = Environment("gymnasium/Acrobot-v1", lambda n: n)
    for action in (first.actions[0], second.actions[0]):
        twin.step(int(action))
    with torch.no_grad():
        value = values(net(torch.from_numpy(twin.observation).double()[None])).item()
    assert second.rewards[0] == pytest.approx(-1 + 0.99 * value, rel=1e-6)


def test_draws_choose_actions_by_the_policy():
    player = Player(models.build("mlp", num_classes=3, in_channels=4), opened().play)
    outputs = torch.tensor([[0.0, np.log(3.0), 9.0]]).expand(4, -1)
    player.outputs = lambda seen: outputs
    draws = np.array([0.0, 0.2499, 0.2501, 0.9999])
    assert player.choose(np.zeros((4, 4)), draws).tolist() == [0, 0, 1, 1]
    assert player.choose(np.zeros((4, 4)), None).tolist() == [1] * 4


STATES = {
    "not a table": lambda t: t[:, :-1],
    "a float": lambda t: t.double(),
    "no table": lambda t: t[:0],
    "is not an action": lambda t: t.index_fill(1, torch.tensor([2]), 7),
    "ends before its end": lambda t: t.index_fill(1, torch.tensor([1]), 400),
    "after 500 steps": lambda t: t.index_fill(1, torch.tensor([1]), 500),
    "episode -1": lambda t: t.index_fill(1, torch.tensor([0]), -1),
}


SAID = {"a float": "not a table", "no table": "not a table"}


@pytest.mark.parametrize("fault", STATES)
def test_a_state_is_checked_before_it_is_believed(fault):
    data = opened()
    played(data, epochs=1)
    table = STATES[fault](data.state_dict()["environments"])
    with pytest.raises(ValueError, match=SAID.get(fault, fault)):
        opened().load_state_dict({"environments": table})
    with pytest.raises(ValueError, match="not a table"):
        opened().load_state_dict({})


def test_stored_examples_have_no_state():
    data = open_data(DataConfig(name="diabetes"), seed=0, device=CPU)
    assert data.state_dict() == {}
    with pytest.raises(ValueError, match="diabetes has no state, and there are environments"):
        data.load_state_dict({"environments": torch.zeros(1)})
    assert data.played_by(torch.nn.Identity()) is data


REFUSED = {
    "CartPol-v1": r"no such environment \(did you mean gymnasium/CartPole-v1\?\)",
    "os:CartPole-v1": "no such environment",
    "LunarLander-v2": r"did you mean gymnasium/LunarLander-v3\?",
    "Pendulum-v1": "has no numbered actions to choose from; write gymnasium/CartPole-v1",
    "FrozenLake-v1": "shows no vector of numbers",
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_environments_that_do_not_fit_are_refused(name):
    with pytest.raises(DataError, match=REFUSED[name]):
        info(DataConfig(name=f"gymnasium/{name}"))


def test_a_missing_package_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(environments, "import_module", missing)
    with pytest.raises(DataError, match=r'needs gymnasium; pip install "gymnasium\[box2d\]"'):
        info(DataConfig(name="gymnasium/CartPole-v1"))


PACKAGES = {"Box2D": "box2d"} | ({"pygame": "pygame-ce"} if BOX2D else {})


@pytest.mark.parametrize(("module", "package"), PACKAGES.items())
def test_the_module_that_an_environment_lacks_is_named(module, package, monkeypatch):
    """As gymnasium finds it: LunarLander imports Box2D, and then pygame, which draws it."""
    for loaded in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    line = rf"LunarLander-v3: it needs {module}, which is not installed; pip install {package}$"
    with pytest.raises(DataError, match=line):
        info(DataConfig(name="gymnasium/LunarLander-v3"))


def test_what_is_missing_and_has_no_name_is_in_the_words_of_the_library(monkeypatch):
    real = importlib.import_module("gymnasium")

    def without(*_, **__):
        raise real.error.DependencyNotInstalled("the sea is not installed, dig")

    monkeypatch.setattr(real, "make", without)
    with pytest.raises(DataError, match=r"LunarLander-v3: the sea is not installed, dig$"):
        info(DataConfig(name="gymnasium/LunarLander-v3"))
