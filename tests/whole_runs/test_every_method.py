"""Every method that prunes during or after training, end to end on the digits."""

import pytest
from safetensors.torch import load_file

from benchmarks.every_method import METHODS, reached_amount
from benchmarks.kill import outcome
from prunezoo.training.folder.log import read
from tests.support.runs import TINY, launch_several, summary
from tests.support.tiers import slow_but

BASE = "extends=../base/digits/digits_cnn.yaml"


# Averages, measured times, ticks, rewinding, weights behind masks.
TWO_RANKS = (
    "pat/epi",
    "pat/latency",
    "earlycrop/gate_decorators",
    "earlycrop/ltr",
    "methods/n_of_m",
)
# Whose events are another method's, for which a crash is tried.
LIKE = {
    "pat/fixed_epoch": "pat/epi",
    "pat/random_epoch": "pat/epi",
    "pat/gpwp": "pat/epi",
    "methods/gmp": "methods/rigl",
    "methods/slimming": "pat/train_prune_finetune",
    "methods/depgraph": "pat/train_prune_finetune",
    "methods/lottery_ticket": "earlycrop/ltr",
    "methods/train_prune_finetune": "earlycrop/efficient_conv_nets",
}


def words(method: str) -> tuple[str, ...]:
    """The recipe on the digits' network, in a few steps."""
    return (BASE, *TINY, *METHODS[method])


@pytest.mark.parametrize("method", slow_but(TWO_RANKS, METHODS))
def test_a_method_gets_what_it_asks_and_resumes_exactly(run_recipe, crash, method: str):
    path = f"recipes/{method}.yaml"
    status, whole = run_recipe(path, *words(method), folder="whole")
    assert status == 0
    events = [r for r in read(whole / "log.jsonl") if "prune/hash" in r and "eval/loss" not in r]
    last = events[-1]
    assert last["prune/rounds_done"] == last["prune/rounds"]
    assert reached_amount(path, last), (last["prune/asked"], last["prune/got"])
    if method in LIKE:
        return
    cut_at = (events[0] if len(events) == 1 else events[1])["step"]
    crash(*words(method), step=cut_at, recipe=path)
    status, cut = run_recipe(path, *words(method), folder="cut", resume=True)
    assert status == 0
    assert outcome(cut) == outcome(whole)


@pytest.mark.slow
def test_two_ranks_prune_as_one(run_recipe, tmp_path):
    """What two processes keep, several methods in one launch, is what one process keeps.

    In float64, in which no two scores are so near that the order of a sum would swap them.
    """
    alike = ("training.precision=fp64", "training.sync_batchnorm=on")
    runs = {m: [f"recipes/{m}.yaml", *words(m), *alike] for m in TWO_RANKS}
    runs["pat/latency"] += ["pruning.importance.per=latency"]  # measured: the same on all ranks
    launch_several(tmp_path, runs)
    for method, run in runs.items():
        two = summary(tmp_path / method)
        assert two["run/processes"] == 2
        assert two["prune/rounds_done"] == two["prune/rounds"]
        if method == "pat/latency":
            continue
        _, alone = run_recipe(*run, folder=f"one-{method[-9:]}")
        for key in ("prune/hash", "prune/layers", "model/macs", "run/steps", "model/sparsity"):
            assert two[key] == summary(alone)[key], method


def test_the_best_on_validation_is_of_the_pruned_network(run_recipe):
    settings = (
        *words("earlycrop/efficient_conv_nets"),
        "evaluation.every=1ep",
    )
    _, folder = run_recipe("recipes/earlycrop/efficient_conv_nets.yaml", *settings)
    figures = summary(folder)
    log = read(folder / "log.jsonl")
    at = next(r["step"] for r in log if "prune/hash" in r)
    after = [r for r in log if "validation/top1_percent" in r and r["step"] > at]
    best = max(after, key=lambda r: r["validation/top1_percent"])
    assert figures["best/validation_top1_percent"] == best["validation/top1_percent"]
    assert figures["best/step"] == best["step"]
    best_model = load_file(folder / "model.best.safetensors")
    last = load_file(folder / "model.safetensors")
    assert {n: t.shape for n, t in best_model.items()} == {n: t.shape for n, t in last.items()}
