"""What tests of data sets in files share."""

import pytest

from tests.support.refusals import STREAMED


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of decoded images, away from the user's own; relative paths begin next to it."""
    monkeypatch.setenv("PRUNEZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture(params=["in memory", "streamed"])
def kind(request):
    """Options of either store of images."""
    return {"in memory": {}, "streamed": STREAMED}[request.param]
