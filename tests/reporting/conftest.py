"""Records of two sizes × three methods × two seeds, all made up, and the page made of them."""

from pathlib import Path

import pytest

from prunezoo.reporting import papers
from prunezoo.reporting.pages.html import write
from prunezoo.reporting.records import load_records
from prunezoo.reporting.tables.compare import compare
from tests.support.synthetic_runs import make_results


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    return make_results(tmp_path_factory.mktemp("made_up"))


@pytest.fixture(scope="session")
def compared(results):
    runs = load_records(results)
    return {address: compare(table, [], runs) for address, table in papers.tables().items()}


@pytest.fixture(scope="session")
def page(results, compared, tmp_path_factory) -> Path:
    return write(compared, load_records(results), tmp_path_factory.mktemp("report"))
