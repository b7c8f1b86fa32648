"""The list of what a GPU is to settle: chosen by time, gone on with, recorded."""

import re
import shlex
import time
from fnmatch import fnmatchcase

import pytest
import torch

from benchmarks import gpu_day
from benchmarks.gpu_day import ITEMS, Item, chosen, record, todo, work
from prunezoo.reporting.claims import find_claims
from prunezoo.schema.recipe import load
from tests.support.runs import ROOT


def said(text: str, **options: bool) -> Item:
    return Item(text, 1, "", ("python", "-c", f"print('{text}')"), **options)


def test_without_a_gpu_it_says_so_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_day.main([]) == 2
    answer = capsys.readouterr()
    assert len(answer.err.splitlines()) == 1
    assert not answer.out


def test_the_list_can_be_looked_at_anywhere(capsys):
    assert gpu_day.main(["--dry-run"]) == 0
    out = capsys.readouterr().out
    for item in ITEMS:
        assert item.name in out
        assert shlex.join(item.command) in out


def test_every_command_names_what_there_is():
    claimed = {claim.row for claim in find_claims(ROOT / "papers" / "claims")}
    for item in ITEMS:
        _, *words = item.command
        script = f"{words[1].replace('.', '/')}.py" if words[0] == "-m" else words[0]
        assert (ROOT / script).exists(), item.name
        if words[:2] == ["tables.py", "run"]:
            rows = [row for row in claimed if fnmatchcase(str(row), f"{words[2]}/*")]
            assert rows or (ROOT / words[2]).exists(), item.name


def test_every_item_names_the_data_that_its_recipes_read():
    claims = find_claims(ROOT / "papers" / "claims")
    for item in ITEMS:
        if item.command[1:3] != ("tables.py", "run"):
            continue
        rows = [c for c in claims if fnmatchcase(c.row, f"{item.command[3]}/*")]
        recipes = [(ROOT / c.recipe, list(c.set)) for c in rows] or [(ROOT / item.command[3], [])]
        read = {load(recipe, words)[0].data.name for recipe, words in recipes}
        assert read == set(item.data), item.name


def test_an_item_without_its_data_is_left_out_and_said(tmp_path, capsys):
    item = said("needy")._replace(data=("cifar10",))
    assert gpu_day.planned([item, said("other")], 9, tmp_path) == ["other"]
    assert work([item], 9, tmp_path) == 0
    assert "needy: left out, needs data/cifar10 (docs/data.md)" in capsys.readouterr().out
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    assert gpu_day.planned([item], 9, tmp_path) == ["needy"]


def test_a_dry_run_says_what_the_minutes_suffice_for(tmp_path):
    table, last = said("table", parts=True)._replace(minutes=8), said("last")
    items = [said("first"), table, last]
    assert gpu_day.planned(items, 10, tmp_path) == ["first", "table", "last"]
    assert gpu_day.planned(items, 4, tmp_path) == ["first", "a part of table"]
    assert gpu_day.planned(items, 2.5, tmp_path) == ["first", "last"]


def test_a_quarter_of_an_hour_settles_the_first_and_shortest():
    """What is known without a table: rates of two networks, energy, CIFAR-10 at its usual mark."""
    left, done = 15.0, []
    for item in ITEMS:
        if item.minutes <= left:
            done.append(item.name)
            left -= item.minutes
    assert done[:4] == ["device_resnet50", "device_resnet18_cifar", "energy", "resnet18_cifar10"]


def test_the_page_has_the_minutes_of_the_list():
    page = (ROOT / "docs" / "reproducing.md").read_text()
    section = page.partition("## An hour on a GPU")[2].partition("\n## ")[0]
    stated = [int(minutes) for minutes in re.findall(r"^\| (?:\+ )?(\d+) \|", section, re.M)]
    groups = {}
    for number, item in enumerate(ITEMS):
        kind, _, rest = item.name.partition("_")
        key = "first" if number < 4 else item.name if "seeds" in rest else kind
        groups[key] = groups.get(key, 0) + item.minutes
    assert stated == [minutes for name, minutes in groups.items() if "seeds" not in name]
    assert f"+ {groups['earlycrop_1_seeds']:g} with three" in section


def test_items_are_run_once_and_leave_records(tmp_path, capsys):
    items = [said("first"), said("second")]
    assert work(items, 9, tmp_path) == 0
    text = record(items[0], tmp_path).read_text()
    assert text.startswith("# python -c ")
    assert text.endswith("first\n")
    assert not todo(items, tmp_path)
    capsys.readouterr()
    assert work(items, 9, tmp_path) == 0
    assert "left for another day: nothing" in capsys.readouterr().out


def test_a_failure_leaves_no_record_and_the_rest_goes_on(tmp_path, capsys):
    wrong = Item("wrong", 1, "", ("python", "-c", "raise SystemExit(3)"))
    assert work([wrong, said("second")], 9, tmp_path) == 1
    assert "failed with status 3: runs/gpu_day/wrong.log" in capsys.readouterr().out
    assert todo([wrong, said("second")], tmp_path) == [wrong]


def test_only_what_is_kept_in_parts_is_begun_without_time_for_all_of_it():
    assert chosen(Item("a", 10, "", ()), 10)
    assert not chosen(Item("a", 10, "", ()), 9)
    assert chosen(Item("a", 10, "", (), parts=True), 9)
    assert not chosen(Item("a", 10, "", (), parts=True), 1)


def test_what_is_cut_off_may_save_its_state(tmp_path):
    """A signal reaches what the command started, as tables.py starts trainings."""
    child = (
        "import pathlib, signal, sys, time;"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('saved').touch(), sys.exit(75)));"
        "pathlib.Path('started').touch(); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    item = Item("table", 9, "", ("python", "-c", parent), parts=True)
    before = time.monotonic()
    assert gpu_day.run(item, 0.05, tmp_path).startswith("cut off")
    assert time.monotonic() - before < 50
    assert (tmp_path / "saved").exists() == (tmp_path / "started").exists()
    assert not record(item, tmp_path).exists()


@pytest.mark.parametrize(("visible", "processes", "own"), [
    (None, "1", ["0"]),
    (None, "2", ["0", "1"]),
    ("3", "1", ["3"]),
    ("4,GPU-7f, 6", "2", ["4", "GPU-7f"]),
])  # fmt: skip
def test_the_energy_of_a_run_is_that_of_its_own_gpus(monkeypatch, visible, processes, own):
    from prunezoo.training.energy import own_gpus

    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert own_gpus() == own
