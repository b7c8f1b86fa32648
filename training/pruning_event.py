"""One pruning of a run, and where the recipe asks for it the headline just before and after."""

from prunezoo.training.evaluation import evaluate
from prunezoo.training.folder.log import Record
from prunezoo.training.run import Run


def prune(run: Run) -> Record:
    """What the pruner says of its rounds that are due now.

    With `evaluation.around_pruning` also the headline on validation images before and after them,
    compensation and rewinding included; evaluation draws nothing and changes no result.
    """
    if not run.recipe.evaluation.around_pruning:
        return run.pruner.prune(run)
    headline = run.task.headline
    before = evaluate(run, "validation")[headline.test]
    event = run.pruner.prune(run)
    after = evaluate(run, "validation")[headline.test]
    return event | {headline.around("before"): before, headline.around("after"): after}
