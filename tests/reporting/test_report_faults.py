"""Wrong command lines, recipes and addresses: tables.py answers each with one line."""

import os
import random
import subprocess
import sys

import pytest

import tables
from prunezoo.reporting import papers
from prunezoo.reporting.answer import answer
from prunezoo.reporting.papers import AddressError
from tests.support.synthetic_runs import said

ADDRESSES = [
    f"{address}/{row}/{column}"
    for address, table in papers.tables().items()
    for row in table.rows
    for column in table.columns
]


# ── command lines ────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["show", "bep/3", "--output", "/proc/x"], 4, "/proc/x: No such file or directory; choose"),
        (["show", "bep/3", "--output", "/dev/null"], 4, "/dev/null: File exists; choose another"),
        (["report", "--output", "/proc/x"], 4, "/proc/x: No such file or directory; choose an"),
        (["report", "--output", "/dev/null"], 4, "/dev/null: File exists; choose another place"),
        (["zoo", "--output", "/"], 4, "/: Is a directory; choose another place"),
        (["zoo", "--output", "/proc/x/y"], 4, "/proc/x/y: No such file or directory; choose"),
        (["plan", "bep/3", "--set", "x"], 2, "--set x: write --set key=value, as in"),
        (["plan", "bep/3", "--set", ""], 2, "--set : write --set key=value, as in"),
        (["--claims", "/nope", "show", "bep/3"], 2, "/nope: no such folder; give the papers/"),
        (["run", "bep/3", "--launcher", "'a"], 2, "--launcher 'a: No closing quotation; close it"),
        (
            ["plan", "bep/3", "--seeds", "999999999"],
            2,
            "argument --seeds: ",
        ),
        (["plan", "bep/3", "--seeds", "9" * 5000], 2, "argument --seeds: "),
        (["plan", "bep/3", "--seeds", "-1"], 2, "argument --seeds: "),
        (["plan", "bep/3", "--seeds=-1,"], 2, "argument --seeds: -1 is not"),
        (["plan", "bep/3", "--seeds", "x"], 2, "argument --seeds: x is not"),
        (["plan", "bep/3", "--seeds", ","], 2, "argument --seeds: ,: no s"),
        (["plan", "--processes", "0"], 2, "argument --processes: 0 is not"),
        (["plan", "--processes=-2"], 2, "argument --processes: -2 is not"),
        (
            ["run", "--jobs", "0"],
            2,
            "argument --jobs: 0 is not a number from 1",
        ),
        (
            ["run", "--jobs=-1"],
            2,
            "argument --jobs: -1 is not a number from 1",
        ),
        (
            ["run", "--jobs", "10000000"],
            2,
            "argument --jobs: 10000000 is not",
        ),
        (["run", "--slurm", "x"], 2, "argument --slurm: x: write OPTION="),
        (["run", "--slurm", "time=x"], 2, "argument --slurm: time=x: write"),
        (["plan", "--watts", "nan"], 2, "argument --watts: nan is not a n"),
        (["plan", "--watts", "0"], 2, "argument --watts: 0 is not above 0"),
        (["plan", "--images-per-second", "inf"], 2, "argument --images-pe"),
        (
            ["plan", "--price=-1"],
            2,
            "argument --price: -1 is not a number of",
        ),
        (["show", "--jsno"], 2, "unknown argument --jsno (did you mean --json?); --help lists all"),
        (["foo"], 2, "argument COMMAND: invalid choice: 'foo' (choose from"),
        (["beside"], 2, "the following arguments are required: RUN; --help lists all arguments"),
        (["show", "bep/3", "--claims", "/nope"], 2, "/nope: no such folder; give the papers/"),
        (["show", "bep/3", "--results", "/nope"], 2, "/nope: no such folder; collect runs into"),
        (["run", "recipes/nope.yaml"], 2, f"{tables.ROOT}/recipes/nope.yaml: No such file or dire"),
        (["run", "bep/3", "--set", "foo=1"], 2, "--set foo=1: unknown key foo (known: "),
        (["run", "bep/3", "--set", "foo"], 2, "--set foo: write --set key=value, as in"),
        (["run", "bep/3", "--launcher", "nope"], 2, "--launcher nope: no such program; write"),
        (["show", "\0"], 2, "no table is called '\\x00'; near it: "),
        (["show", "../../etc/passwd"], 2, "no table is called '../../etc/passwd'; near it: "),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_a_wrong_command_line_is_one_line(arguments, status, line, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tables.py"])
    lines = said(arguments, capsys)
    assert lines[0] == status
    assert lines[1].startswith(line)


def test_a_claim_that_cannot_be_read_is_named(tmp_path, capsys):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "a.yaml").write_text("")
    folder = tmp_path / "papers" / "claims"
    folder.mkdir(parents=True)
    faults = {
        "a: [": "not YAML (",
        "\x00": "not YAML (",
        "a: b": "not a list of claims, each with the key recipe",
        "- 5": "item 1: : Input should be a valid dictionary",
        "- {row: a}": "item 1: recipe: Field required",
        "- {recipe: {}, expect: 3}": "item 1: expect: Extra inputs are not permitted",
        "- &a [*a]": "not YAML (found unconstructable recursive node",
        "- {recipe: {a: b, a: c}}": "not YAML (a is written twice)",
        "- {recipe: {bep/3/x: recipes/a.yaml}}": "recipe: no row fits bep/3/x; `tables.py show`",
        "- {recipe: {earlycrop/1/SNIP: recipes/b.yaml}}": "recipes/b.yaml: no such file in",
    }
    for text, fault in faults.items():
        (folder / "a.yaml").write_text(text)
        status, line = said(["--claims", str(folder), "show", "bep/3"], capsys)
        assert status == 2
        assert "a.yaml: " in line
        assert fault in line
    (folder / "a.yaml").write_bytes(b"\x89PNG")
    assert "a.yaml: not YAML" in said(["--claims", str(folder), "show"], capsys)[1]


def test_any_address_is_found_or_refused_by_name():
    rng = random.Random(20)
    for _ in range(300):
        letters = list(rng.choice(ADDRESSES))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(letters)) if letters else 0
            letters[at : at + rng.randrange(2)] = rng.choice(["", *"/,%*?[]é\0\n .𝟙", "../", "//"])
        address = "".join(letters)
        try:
            papers.lookup(address)
        except AddressError:
            assert address not in ADDRESSES
        else:
            assert address in ADDRESSES


def test_an_unforeseen_error_is_one_line_with_its_traceback_on_request(capsys):
    def broken() -> int:
        raise ZeroDivisionError("of\nsomething")

    assert answer(broken) == 1
    printed = capsys.readouterr().err
    assert printed == (
        "unexpected ZeroDivisionError: of something; --traceback shows where; please report it\n"
    )
    assert answer(broken, rest=True) == 1
    printed = capsys.readouterr().err
    assert "in broken" in printed
    assert printed.endswith("unexpected ZeroDivisionError: of something; please report it\n")


def test_an_interrupt_and_a_closed_pipe_are_no_tracebacks():
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert answer(interrupted) == 130
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "tables.py", "show", "bep/3", "--csv"]
    ran = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tables.ROOT)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, "")
