"""Operations of records, with and without a count of what pruning spent, and what pages say."""

from dataclasses import replace

from prunezoo.reporting.operations import TOTAL, name, number, remark, uncounted
from prunezoo.reporting.pages.experiments import FLOPS, Experiment, points
from prunezoo.reporting.pages.figures import equal_costs
from prunezoo.reporting.pages.html import runs_html
from prunezoo.reporting.pages.looks import looks_of
from prunezoo.reporting.pages.verdicts import sentences, verdicts
from prunezoo.reporting.records import Job, Record


def record(method: str, pruning: float | None, training: float = 1e12) -> Record:
    summary = {
        "eval/top1_percent": 70.0,
        "task/headline": "eval/top1_percent",
        "model/sparsity": 0.5,
        "cost/training_flops": training,
    }
    if pruning is not None:
        summary |= {"cost/pruning_flops": pruning, TOTAL: training + pruning}
    return Record(Job(None, f"recipes/{method}.yaml"), summary)


COUNTED, OLD = record("a", 5e11), record("b", None)


def test_old_records_have_the_operations_of_training_steps_and_say_so():
    assert number(COUNTED, TOTAL) == 1.5e12
    assert number(OLD, TOTAL) == 1e12
    assert number(OLD, "cost/pruning_flops") is None
    assert number(replace(OLD, summary={}), TOTAL) is None
    assert [uncounted(r) for r in ([], [COUNTED], [OLD, COUNTED, OLD])] == [0, 0, 2]
    assert remark([COUNTED]) == ""
    assert "of 2 of 3 runs" in remark([OLD, COUNTED, OLD])
    assert "of all runs" in remark([OLD])
    assert name([COUNTED]) == "FLOPs of training and pruning"
    assert "(1 of 2 runs: of training steps alone)" in name([COUNTED, OLD])
    assert name([OLD]) == "FLOPs of training steps alone, without pauses and searches"


def test_every_part_of_the_report_that_shows_them_says_how_many_lack_the_count():
    mixed = [Experiment(r.job.recipe, "", (r,)) for r in (COUNTED, OLD)]
    assert [p.x for p in points(mixed, FLOPS)] == [1.5e12, 1e12]
    (verdict,) = verdicts(mixed)
    shown = [runs_html(mixed, looks_of(e.method for e in mixed)), sentences(verdict)[1]]
    shown.append(equal_costs([mixed[1], replace(mixed[1], method="c")]))
    for text, count in zip(shown, ("1 of 2", "1 of 2", "all"), strict=True):
        assert f"FLOPs of {count} runs shown are those of training steps alone" in text
    counted = [mixed[0], replace(mixed[0], method="c")]
    assert "alone, without pauses" not in runs_html(counted, looks_of(e.method for e in counted))
