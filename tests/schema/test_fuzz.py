"""A short run of the fuzz, and that it would see what it looks for."""

import sys

import pytest

import train
from benchmarks.fuzz_cases import Case
from benchmarks.fuzz_recipes import Outcome, drawn, fuzz, guarded, keep, kept, run


@pytest.mark.slow
def test_sixty_cases_of_the_fuzz_pass():
    tally = fuzz(60, start=1, seconds=120)
    assert [(case, outcome.fault) for _, case, outcome in tally.failed] == []
    assert len(tally.seconds) == 60
    assert {kind for kind, _ in tally.outcomes} >= {"structure", "text", "--set", "tables.py"}
    assert {end for _, end in tally.outcomes} == {"done", "refused"}


def test_the_fuzz_draws_the_same_case_again(tmp_path):
    case = drawn(3, 14)
    assert drawn(3, 14) == case != drawn(4, 14)
    keep([(14, case, Outcome("raised", "said", 0.1, "a fault"))], tmp_path)
    assert kept(tmp_path / "000014") == case


def test_the_fuzz_sees_what_is_wrong(tmp_path, monkeypatch):
    def judged(main) -> str:
        monkeypatch.setattr(train, "main", main)
        return run(Case("x", "train.py", ()), tmp_path, seconds=1, gigabytes=4).fault

    def says(line: str, status: int = 2):
        def main(words):
            print(line, file=sys.stderr)
            return status

        return main

    def hangs(words):
        while True:
            pass

    with guarded():
        assert judged(says("seed: write 1")) == ""
        assert judged(lambda words: 0) == ""
        assert judged(lambda words: 2) == "status 2 and no line"
        assert judged(lambda words: {}["x"]) == "raised"
        assert judged(says("unexpected KeyError: 'x'", 1)) == "unexpected KeyError: 'x'"
        assert judged(says("x" * 3000)) == "a line of 3,000 characters"
        assert judged(hangs) == "over 1 s"
