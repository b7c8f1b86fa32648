"""One pruning of a run, and where the recipe asks for it the headline just before and after."""

from training.evaluation import evaluate
from training.folder.log import Record
from training.run import Run


def prune(run: Run) -> Record:
    """What the pruner says of its rounds that are due now.

    With `evaluation.around_pruning` also the task's headline (accuracy) on validation images before
    and after them, compensation and rewinding included; evaluation draws nothing and changes no
    result.
    """
    if not run.recipe.evaluation.around_pruning:
        return run.pruner.prune(run)
    headline = run.task.headline
    before = evaluate(run, "validation")[headline.test]
    event = run.pruner.prune(run)
    after = evaluate(run, "validation")[headline.test]
    name = f"prune/validation_{headline.key}"
    return event | {f"{name}_before": before, f"{name}_after": after}
