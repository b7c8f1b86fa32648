"""What ranks ask of one another."""

from types import SimpleNamespace

import pytest
import torch

from prunezoo.training.ranks import collectives
from prunezoo.training.ranks.collectives import AnyRank


@pytest.fixture
def two_ranks(monkeypatch):
    """Pretend a second rank, whose flag is the list's only entry."""
    other = [False]
    ranks = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    monkeypatch.setattr(collectives, "PartialState", lambda: ranks)
    monkeypatch.setattr(collectives, "sum_over_ranks", lambda flag: flag + other[0])
    return other


def test_one_process_learns_of_its_flag_at_once():
    assert AnyRank().raised(True)
    assert not AnyRank().raised(False)


@pytest.mark.parametrize(("own", "others"), [(True, False), (False, True), (True, True)])
def test_a_flag_of_any_rank_is_known_at_the_next_call(two_ranks, own, others):
    flags = AnyRank()
    assert not flags.raised(False)
    two_ranks[0] = others
    assert not flags.raised(own)
    two_ranks[0] = False
    assert flags.raised(False)
    assert not flags.raised(False)
