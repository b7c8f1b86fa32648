"""One pruning of a run, and where the recipe asks for it the accuracy just before and after."""

from training.evaluation import evaluate
from training.folder.log import Record
from training.run import Run

ACCURACY = "prune/validation_top1_{}_percent"


def prune(run: Run) -> Record:
    """What the pruner says of its rounds that are due now.

    With `evaluation.around_pruning` also the accuracy on validation images before and after them,
    compensation and rewinding included; evaluation draws nothing and changes no result.
    """
    if not run.recipe.evaluation.around_pruning:
        return run.pruner.prune(run)
    before = evaluate(run, "validation")["eval/top1_percent"]
    event = run.pruner.prune(run)
    after = evaluate(run, "validation")["eval/top1_percent"]
    return event | {ACCURACY.format("before"): before, ACCURACY.format("after"): after}
