"""Processes that read images: their ends and shortages are faults with a remedy."""

import os
import signal

import pytest
import torch

from prunezoo.training.data.data import DataError
from prunezoo.training.data.layouts.folders import Files
from prunezoo.training.data.layouts.workers import AHEAD, results
from tests.support.image_files import opened, write_folders, write_photographs
from tests.support.refusals import refused

pytestmark = pytest.mark.usefixtures("cache")


def test_a_worker_that_the_system_ends_is_a_fault_with_a_remedy(tmp_path, monkeypatch):
    write_photographs(tmp_path / "set")
    data = opened(tmp_path / "set", image_size=32, workers=1)
    monkeypatch.setattr(Files, "read", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DataError, match=r"set: the system ended a process .*set data.workers low"):
        list(data.train_batches(0, 4))


def no_memory(*_):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space (28)")


def test_shared_memory_that_is_full_is_a_fault_and_no_wait_for_ever(tmp_path, monkeypatch):
    write_photographs(tmp_path / "set")
    data = opened(tmp_path / "set", image_size=32, workers=1)
    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", no_memory)  # and so in its workers
    message = r"set: no shared memory left for batches \(.*No space \(28\)\); .*--shm-size"
    with pytest.raises(DataError, match=message):
        list(data.train_batches(0, 4))


class Full(torch.utils.data.Dataset):
    """Tensors that a worker cannot share."""

    def __getitem__(self, index):
        torch.Tensor.share_memory_ = no_memory  # in this worker alone
        return torch.zeros(2), (index,)


def test_a_worker_says_that_shared_memory_is_full():
    with pytest.raises(DataError, match="here: no shared memory left for batches"):
        list(results(Full(), range(2), 1, "here"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_needs_no_more_memory_than_for_what_is_ahead(tmp_path, monkeypatch, workers):
    """Its batches, of which many lie in the same memory, are those that one process makes."""
    write_photographs(tmp_path / "set", per_class=10)
    options = {"image_size": 32, "augment": {"random_resized_crop": (0.3, 1), "flip": True}}
    options |= {"drop_last": False}  # 30 images, so the last of 8 batches is smaller
    expected = list(opened(tmp_path / "set", workers=0, **options).train_batches(0, 4))
    data = opened(tmp_path / "set", workers=workers, **options)
    make, made = torch.UntypedStorage._new_shared, []

    def limited(size):
        made.append(size)
        return make(size) if len(made) <= AHEAD + 1 else no_memory()

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", limited)
    batches = data.train_batches(0, 4)
    for batch, other in zip(batches, expected, strict=True):
        assert all(map(torch.equal, batch[:2], other[:2]))
    assert not made  # each worker has a list of its own
    assert len(expected) == 8


def test_processes_that_cannot_be_started(tmp_path, monkeypatch):
    def refuse(*_):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    write_photographs(tmp_path / "set")
    data = opened(tmp_path / "set", image_size=32, workers=1)
    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter", refuse)
    with pytest.raises(DataError, match=r"set: 1 processes cannot be started .*workers lower"):
        list(data.train_batches(0, 4))


def test_other_errors_of_a_worker_are_not_hidden(tmp_path, monkeypatch):
    write_photographs(tmp_path / "set")
    data = opened(tmp_path / "set", image_size=32, workers=0)
    monkeypatch.setattr(Files, "read", lambda *_: (_ for _ in ()).throw(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        list(data.train_batches(0, 4))


def test_more_images_than_memory_holds(tmp_path, monkeypatch):
    write_folders(tmp_path / "set")
    empty = torch.empty

    def limited(*shape, **options):
        if len(shape) == 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", limited)
    refused(tmp_path / "set", r"9×3×12×12 pixels do not fit into memory; set data.stream: true")
