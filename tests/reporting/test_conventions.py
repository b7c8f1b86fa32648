"""BEP's training FLOPs from a run's segments: its own tables' figures, and our records'."""

import pytest
import torch

import tables
from prunezoo.models import build
from prunezoo.models.count import count
from prunezoo.reporting.conventions import bep_flops, bep_inference, bep_weight_flops, spent
from prunezoo.reporting.records import Record, load_records

RECORDS = [
    record
    for record in load_records(tables.ROOT / "results")
    if record.summary.get("model/name") == "bep_small_cnn"
    and "bep/training_flops" in record.summary
]


def dense_flops(record: Record) -> dict[str, int]:
    """BEP's two counts of the network before it was pruned."""
    with torch.device("meta"):
        sizes = count(build("bep_small_cnn", num_classes=10), torch.zeros(1, 3, 32, 32))
    assert sizes.params == record.summary["dense/params"]
    return bep_inference({f"model/{k}": number for k, number in sizes.image_sizes.items()})


def of_networks(record: Record, name: str) -> float | None:
    """The training FLOPs of a record, from the networks that its prunings left."""
    prunings = record.history["prunings"]
    flops = [dense_flops(record)[name], *(event[name] for event in prunings)]
    ends = [*(event["images"] for event in prunings), record.summary["run/images"]]
    starts = [0, *ends[:-1]]
    segments = [
        {"images": end - start, "flops": each}
        for start, end, each in zip(starts, ends, flops, strict=True)
    ]
    return spent(segments, lambda segment: segment["flops"])


def test_there_are_records_of_the_small_cnn():
    assert len(RECORDS) >= 16


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.path)
@pytest.mark.parametrize("kind", ["flops", "weight_flops"])
def test_training_flops_of_records_are_their_segments_to_the_digit(record: Record, kind: str):
    assert of_networks(record, f"bep/inference_{kind}") == record.summary[f"bep/training_{kind}"]


def test_each_segment_counts_its_own_images_of_its_own_network():
    sizes = {"macs": 3, "biased_outputs": 5, "norm_outputs": 7, "norm_channels": 11}
    sizes |= {"max_pool_outputs": 13, "weights": 17}
    assert bep_flops(sizes) == 6 + 5 + 14 + 66 + 52
    segments = [sizes | {"images": 10}, sizes | {"images": 2, "weights": 1}]
    assert spent(segments, bep_weight_flops) == 10 * 34 + 2 * 2
    assert spent(segments, bep_flops) == 12 * 143
    assert spent([], bep_flops) == 0


def test_a_run_with_an_older_checkpoints_segments_has_no_training_flops():
    assert spent([{"macs": 3, "weights": 17}], bep_weight_flops) is None
    assert bep_inference({"model/macs": 3}) == {}


@pytest.mark.parametrize(
    ("final", "expected"),
    [(223_884, 3.956e12), (95_028, 3.118e12), (24_348, 2.659e12), (6_188, 2.541e12)],
)
def test_training_flops_of_pruning_once_after_20_epochs_are_the_papers(final, expected):
    epoch = 50_000
    dense, small = {"weights": 2_500_288 // 2}, {"weights": final // 2}
    segments = [dense | {"images": 20 * epoch}, small | {"images": 130 * epoch}]
    assert spent(segments, bep_weight_flops) == pytest.approx(expected, rel=3e-4)


@pytest.mark.parametrize(
    ("flops", "epochs", "images", "printed", "digits"),
    [
        (2_500_288, 150, 50_000, 1.88e13, 3e-3),
        (664_200_000, 248, 50_000, 8.2e15, 5e-3),
        (7_300_000_000, 100, 1_281_167, 9.35e17, 1e-3),
    ],
)
def test_training_flops_of_dense_networks_are_the_papers(flops, epochs, images, printed, digits):
    segments = [{"images": epochs * images, "weights": flops // 2}]
    assert spent(segments, bep_weight_flops) == pytest.approx(printed, rel=digits)
