"""N of M weights, and dense weights behind masks: the equation, counts, averages, resuming."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.pruning import WeightNormSparsifier

from prunezoo.pruning.amount.scope import keep_n_of_m, select_weights
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.pruner import Pruner
from tests.support.small_training import Training, images, recipe

SR_STE = {"scope": "2:4", "application": "straight_through", "refine": 0.5}
PRUNABLE = ("4.weight", "9.weight", "11.weight")  # the first layer has one input channel


def groups(weight: Tensor, m: int = 4) -> Tensor:
    """(groups, m): neighbouring inputs of one output at one position, written out."""
    rows = weight.flatten(2) if weight.dim() > 2 else weight[..., None]
    outputs, inputs, positions = rows.shape
    return torch.stack([rows[o, i : i + m, p] for o in range(outputs)
                        for i in range(0, inputs, m) for p in range(positions)])  # fmt: skip


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_n_of_every_m_inputs_are_the_best_of_their_group(n: int, m: int):
    scores = torch.rand(3, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    mask = keep_n_of_m("w", scores, n, m)
    kept, values = groups(mask, m), groups(scores, m)
    assert (kept.sum(1) == n).all()
    assert (values.where(kept, torch.inf).amin(1) > values.where(~kept, -torch.inf).amax(1)).all()


def test_two_of_four_are_those_of_torchs_sparsifier():
    layer = nn.Linear(16, 6)
    mask = keep_n_of_m("w", layer.weight.detach().abs(), 2, 4)
    theirs = WeightNormSparsifier(1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    theirs.prepare(nn.Sequential(layer), [{"tensor_fqn": "0.weight"}])
    theirs.step()
    assert torch.equal(mask, layer.parametrizations.weight[0].mask.bool())


def test_among_equal_scores_the_lower_index_stays_and_the_removed_stay_removed():
    assert keep_n_of_m("w", torch.zeros(1, 4), 2, 4).tolist() == [[True, True, False, False]]
    alive = {"w": torch.tensor([[False, True, False, True]])}
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    assert torch.equal(keep_n_of_m("w", scores, 2, 4, alive), alive["w"])


@pytest.mark.parametrize("scores", [torch.full((1, 4), torch.nan), torch.ones(1, 6)])
def test_groups_that_cannot_be_ranked_or_filled_are_refused(scores: Tensor):
    with pytest.raises(PruningError, match=r"^(the score of )?w is"):
        select_weights({"w": scores}, 2, scope="2:4")


def test_one_cut_keeps_exactly_n_of_m_and_leaves_other_layers_dense():
    training = Training(averages=True)
    pruner = Pruner(recipe(scope="2:4", schedule={"start": "1ep"}), training)
    training.run(pruner)
    parameters = dict(training.model.named_parameters())
    assert set(pruner.method.masks) == set(PRUNABLE)
    assert all((groups(parameters[name] != 0).sum(1) == 2).all() for name in PRUNABLE)
    assert parameters["0.weight"].all()
    assert training.records[-1]["prune/got"] == training.records[-1]["prune/asked"] == 0.5


def test_a_network_without_a_layer_of_m_inputs_is_refused():
    training = Training()
    with pytest.raises(PruningError, match="scope: 1:7: no layer has a multiple of 7 inputs"):
        Pruner(recipe(scope="1:7"), training)


def plain_sr_ste(steps: int, refine: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Dense weights and masks of as many steps, by autograd through w ⊙ m and the equation."""
    training = Training()
    dense = dict(training.model.named_parameters())
    momenta = {name: torch.zeros_like(p) for name, p in dense.items()}

    def masks() -> dict[str, Tensor]:
        return {n: keep_n_of_m(n, dense[n].detach().abs(), 2, 4) for n in PRUNABLE}

    for position in range(steps):
        x, y = images(position, 16)
        mask = masks()
        effective = {n: (p.detach() * mask[n] if n in mask else p.detach()).requires_grad_()
                     for n, p in dense.items()}  # fmt: skip
        training.model.train()
        loss = F.cross_entropy(torch.func.functional_call(training.model, effective, (x,)), y)
        slopes = dict(zip(effective, torch.autograd.grad(loss, [*effective.values()]), strict=True))
        with torch.no_grad():
            for n in PRUNABLE:
                slopes[n] = slopes[n] + refine * (~mask[n]) * dense[n]
            norm = torch.stack([g.norm() for g in slopes.values()]).norm()
            factor = (1.0 / (norm + 1e-6)).clamp(max=1)  # the loop clips at 1
            for n, p in dense.items():
                slope = slopes[n] * factor + 1e-3 * p
                momenta[n] = slope if position == 0 else 0.9 * momenta[n] + slope
                p -= 0.05 * momenta[n]
    return {n: p.detach() for n, p in dense.items()}, masks()


@pytest.mark.parametrize("refine", [0.0, 0.5])
def test_dense_weights_follow_the_equation(refine: float):
    training = Training()
    pruner = Pruner(recipe(**SR_STE | {"refine": refine}), training)
    training.run(pruner, until=8)
    dense, masks = plain_sr_ste(8, refine)
    behind = pruner.state_dict()["tensors"]
    for name, parameter in training.model.named_parameters():
        value = parameter.detach()
        if name in PRUNABLE:
            assert torch.equal(pruner.method.masks[name], masks[name])
            assert not value[~masks[name]].any()
            value = value + behind[f"method/behind/{name}"]
        # sums in another order: a few units in the last place of values below 1, over 8 steps
        torch.testing.assert_close(value, dense[name], rtol=1e-5, atol=1e-6)


def test_masks_move_and_every_step_keeps_n_of_m():
    training = Training()
    pruner = Pruner(recipe(**SR_STE), training)
    training.run(pruner, until=1)
    first = {n: mask.clone() for n, mask in pruner.method.masks.items()}
    moved = 0
    for step in range(2, 15):
        training.run(pruner, until=step)
        parameters = dict(training.model.named_parameters())
        for name in PRUNABLE:
            assert (groups(pruner.method.masks[name]).sum(1) == 2).all()
            assert not parameters[name][~pruner.method.masks[name]].any()
        moved += sum(int((first[n] != pruner.method.masks[n]).sum()) for n in PRUNABLE)
    assert moved


def test_any_scope_keeps_its_k_at_every_step_and_rounds_rank_the_dense_weights():
    training = Training()
    rounds = {"rounds": 3, "every": "4it", "curve": "linear"}
    keys = {"sparsity": 0.9, "application": "straight_through", "schedule": rounds}
    pruner = Pruner(recipe(**keys), training)
    total = sum(p.numel() for p in training.model.parameters() if p.dim() > 1)
    while training.position < 12:
        training.run(pruner, until=training.work + 1)
        kept = sum(int(mask.sum()) for mask in pruner.method.masks.values())
        assert kept == int((1 - 0.3 * pruner.done) * total + 1e-9)
    behind = pruner.state_dict()["tensors"]
    both = {n: p.detach() + behind[f"method/behind/{n}"]
            for n, p in training.model.named_parameters() if p.dim() > 1}  # fmt: skip
    expected = select_weights({n: p.abs() for n, p in both.items()}, kept)
    assert all(torch.equal(mask, pruner.method.masks[n]) for n, mask in expected.items())


@pytest.mark.parametrize("cut", [1, 7])
def test_resuming_gives_the_same_dense_weights_bit_for_bit(cut: int):
    config = recipe(**SR_STE)
    whole = Training(epochs=2)
    ended = Pruner(config, whole)
    whole.run(ended)
    first = Training(epochs=2)
    pruner = Pruner(config, first)
    first.run(pruner, until=cut)
    second = Training(epochs=2, seed=1)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.position, second.work = first.position, first.work
    resumed = Pruner(config, second)
    stored = pruner.state_dict()
    resumed.load_state_dict(stored | {"values": json.loads(json.dumps(stored["values"]))}, second)
    second.run(resumed)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name
    for name, tensor in ended.state_dict()["tensors"].items():
        assert torch.equal(resumed.state_dict()["tensors"][name], tensor), name


def test_the_averaged_copy_has_the_pattern_of_the_network():
    training = Training(averages=True)
    pruner = Pruner(recipe(**SR_STE), training)

    def average(step: int) -> None:
        training.run(pruner, until=step)
        with torch.no_grad():
            for mean, p in zip(training.ema.parameters(), training.model.parameters(), strict=True):
                mean.lerp_(p, 0.1)
        pruner.hold_average(training)

    for step in range(1, 12):
        average(step)
        means = dict(training.ema.named_parameters())
        for name, mask in pruner.method.masks.items():
            assert not means[name][~mask].any()
            assert means[name][mask].any()


def test_nothing_moves_before_the_first_round():
    training, plain = Training(epochs=1), Training(epochs=1)
    pruner = Pruner(recipe(**SR_STE | {"schedule": {"start": "100%"}}), training)
    training.run(pruner, until=9)
    plain.run(Pruner(recipe(sparsity=0.5, schedule={"start": "100%"}), plain), until=9)
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(training.model.state_dict()[name], tensor)
