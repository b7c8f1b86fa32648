"""Data sets that must be refused, and the way to show it."""

import pytest

from prunezoo.training.data.data import DataError
from tests.support.image_files import opened, pictures, png

PNG = png(pictures(1)[0])
STREAMED = {"stream": True, "image_size": 8, "workers": 0}


def read_all(folder, **options):
    """Open a data set and go once through its images."""
    data = opened(folder, drop_last=False, **options)
    for batch in (*data.train_batches(0, 4), *data.evaluation_batches("test", 4)):
        assert int(batch.targets.max()) < data.info.targets.outputs
    return data


def refused(folder, message, **options):
    """Assert that opening or reading it ends in one line."""
    with pytest.raises(DataError, match=message) as caught:
        read_all(folder, **options)
    assert len(str(caught.value).splitlines()) == 1
