import itertools
from collections import Counter

import pytest
import torch

from prunezoo.schema.data import AugmentConfig, DataConfig
from prunezoo.training.data.augment import finish
from prunezoo.training.data.data import DataError, info, open_data
from prunezoo.training.data.facts import DATASETS
from prunezoo.training.random import generator
from prunezoo.training.ranks.shares import portions

CPU = torch.device("cpu")
EVERYTHING = {"crop_padding": 2, "flip": True, "rotation": 20, "resize": 24, "cutout": 5}


def opened(rank=0, world_size=1, seed=0, **options):
    options = {"image_size": 16, "train_images": 103, "test_images": 41} | options
    config = DataConfig(name="synthetic", **options)
    return open_data(config, seed=seed, device=CPU, rank=rank, world_size=world_size)


def numbers(data, images):
    """Which training images these are; unaugmented, and synthetic noise makes each unique."""
    everything = data.stores["train"].bordered
    padding = data.stores["train"].padding
    side = everything.shape[-1] - 2 * padding
    plain = finish(
        everything[..., padding : padding + side, padding : padding + side],
        None,
        AugmentConfig(),
        data.stores["train"].finishing.colour,
    )
    table = {tuple(image.flatten()[:40].tolist()): row for row, image in enumerate(plain)}
    return [table[tuple(image.flatten()[:40].tolist())] for image in images]


def joined(batches):
    batches = list(batches)
    return torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_together_see_what_one_process_sees(world_size):
    whole = list(opened(augment=EVERYTHING).train_batches(3, 30))
    ranks = [opened(rank, world_size, augment=EVERYTHING) for rank in range(world_size)]
    for batch, *shares in zip(whole, *(r.train_batches(3, 30) for r in ranks), strict=True):
        images, labels = joined(shares)
        assert torch.equal(images, batch.inputs)
        assert torch.equal(labels, batch.targets)
        assert {share.global_count for share in shares} == {30}


@pytest.mark.parametrize(("world_size", "parts"), [(1, 4), (2, 4), (3, 2)])
def test_a_part_has_the_same_images_on_any_number_of_ranks(world_size, parts):
    """Batches of 23 and a last one of 11, on one rank in torch.chunk's parts."""
    whole = list(opened(augment=EVERYTHING, drop_last=False).train_batches(0, 23))
    ranks = [opened(r, world_size, augment=EVERYTHING, drop_last=False) for r in range(world_size)]
    each = [data.train_batches(0, 23, parts) for data in ranks]
    for batch, *shares in zip(whole, *each, strict=True):
        sizes = [
            [len(rows) for rows in portions(len(batch.targets), rank, world_size, parts)]
            for rank in range(world_size)
        ]
        split = [share.inputs.split(s) for share, s in zip(shares, sizes, strict=True)]
        for part, *pieces in zip(batch.inputs.chunk(parts), *split, strict=True):
            assert torch.equal(torch.cat(pieces), part)


def test_starting_in_the_middle_gives_the_rest_of_the_epoch():
    data = opened(augment=EVERYTHING, drop_last=False)
    whole = list(data.train_batches(1, 16))
    rest = list(data.train_batches(1, 16, start=4))
    assert len(rest) == len(whole) - 4 == 3
    for a, b in zip(whole[4:], rest, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)


def test_an_epoch_is_a_permutation_of_its_own():
    data = opened(drop_last=False)
    first, second = (numbers(data, joined(data.train_batches(e, 16))[0]) for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(103))
    assert first != second
    other = opened(seed=1, drop_last=False)
    assert numbers(other, joined(other.train_batches(0, 16))[0]) != first


def test_epochs_augment_the_same_image_differently():
    data = opened(train_images=8, augment={"crop_padding": 4})
    seen = {joined(data.train_batches(e, 8))[0].sum().item() for e in range(5)}
    assert len(seen) == 5


def test_labels_follow_their_images():
    data = opened(num_classes=7, drop_last=False)
    images, labels = joined(data.train_batches(0, 10))
    assert [row % 7 for row in numbers(data, images)] == labels.tolist()


@pytest.mark.parametrize(("drop_last", "steps", "images"), [(True, 6, 96), (False, 7, 103)])
def test_steps_per_epoch(drop_last, steps, images):
    data = opened(drop_last=drop_last)
    batches = list(data.train_batches(0, 16))
    assert len(batches) == data.steps_per_epoch(16) == steps
    assert sum(b.global_count for b in batches) == sum(len(b.targets) for b in batches) == images


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(
    ("world_size", "batch_size", "images"),
    list(itertools.product([1, 2, 3, 5], [1, 4, 7, 64], [1, 13, 28])),
)
def test_evaluation_sees_every_image_once(split, world_size, batch_size, images):
    size = {"validation": images} if split == "validation" else {"test_images": images}
    seen, labels = [], []
    for rank in range(world_size):
        data = opened(rank, world_size, train_images=40, image_size=8, **size)
        for batch in data.evaluation_batches(split, batch_size):
            assert len(batch.targets)
            seen += [image.sum().item() for image in batch.inputs]
            labels += batch.targets.tolist()
    assert len(set(seen)) == len(seen) == images
    store = data.stores["test" if split == "test" else "train"]
    assert sorted(labels) == sorted(store.labels[data.rows[split]].tolist())


def test_calibration_images_are_training_images_without_augmentation():
    data = opened(validation=0.3, augment={"crop_padding": 3, "flip": True, "cutout": 4})
    batches = data.calibration_batches(4, 18)
    assert [len(labels) for _, labels in batches] == [18] * 4
    rows = numbers(data, joined(batches)[0])
    assert len(rows) == len(set(rows)) == 72 == len(data.rows["train"])
    assert set(rows) == set(data.rows["train"].tolist())
    assert not set(rows) & set(data.rows["validation"].tolist())


def test_calibration_depends_on_stream_and_repeats_only_when_all_are_used():
    data = opened()
    first, again = (joined(data.calibration_batches(2, 8))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, joined(data.calibration_batches(2, 8, stream="round 2"))[0])
    rows = numbers(data, joined(data.calibration_batches(3, 100))[0])
    assert set(Counter(rows).values()) == {2, 3}
    assert sorted(rows[:103]) == list(range(103))


def test_calibration_is_shared_among_ranks():
    whole = opened().calibration_batches(3, 12)
    shares = [opened(rank, 3).calibration_batches(3, 12) for rank in range(3)]
    for i, batch in enumerate(whole):
        images, labels = joined(share[i] for share in shares)
        assert torch.equal(images, batch[0])
        assert torch.equal(labels, batch[1])
    with pytest.raises(DataError, match=r"batches of 16 images .* do not divide over 3 processes"):
        opened(0, 3).calibration_batches(1, 16)
    with pytest.raises(DataError, match="bep: batches of 16 images"):
        list(opened(0, 3).subset_batches(0.4, 16, "bep"))


def test_balanced_calibration_has_equally_many_of_each_class():
    data = opened(num_classes=6, train_images=50)
    for batches, size in ((1, 12), (4, 3), (5, 18)):
        drawn = data.calibration_batches(batches, size, class_balanced=True)
        labels = torch.cat([labels for _, labels in drawn])
        assert labels.bincount().tolist() == [batches * size // 6] * 6
        assert all(x.bincount(minlength=6).max() <= -(-size // 6) for _, x in drawn)
    with pytest.raises(DataError, match="20 calibration images do not divide among 6 classes"):
        data.calibration_batches(2, 10, class_balanced=True)


def test_a_subset_is_fixed_and_of_the_size_asked_for():
    data = opened(validation=3, augment={"flip": True})
    parts = [list(data.subset_batches(0.4, 16, "bep")) for _ in range(2)]
    assert [len(b.targets) for b in parts[0]] == [16, 16]  # 40 images in whole batches
    assert torch.equal(joined(parts[0])[0], joined(parts[1])[0])
    rows = numbers(data, joined(parts[0])[0])
    assert set(rows) <= set(data.rows["train"].tolist())
    assert rows != numbers(data, joined(data.subset_batches(0.4, 16, "other"))[0])


@pytest.mark.parametrize(("validation", "held"), [(0, 0), (0.25, 26), (1, 1), (7, 7)])
def test_validation_is_held_out_of_training(validation, held):
    data = opened(validation=validation)
    train, out = (set(data.rows[split].tolist()) for split in ("train", "validation"))
    assert (len(train), len(out)) == (103 - held, held)
    assert train | out == set(range(103))
    assert (data.info.train_images, data.info.validation_images) == (103 - held, held)
    if held:
        assert out != set(opened(validation=validation, seed=1).rows["validation"].tolist())


def test_a_subset_to_train_on_leaves_validation_alone():
    data = opened(validation=10, train_subset=20)
    assert torch.equal(data.rows["validation"], opened(validation=10).rows["validation"])
    assert data.info.train_images == len(data.rows["train"]) == 20
    with pytest.raises(DataError, match="103 training images are too few"):
        opened(validation=90, train_subset=20)


def test_normalised_pixels_have_the_closed_form():
    data = opened(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    (batch,) = data.evaluation_batches("test", 64)
    raw = data.stores["test"].bordered.double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in
                 ((0.1, 0.2, 0.3), (0.5, 0.25, 1.0)))  # fmt: skip
    assert torch.allclose(batch.inputs.double(), (raw - mean) / std, atol=1e-6)


def test_digits_split_is_fixed_and_stratified():
    data = open_data(DataConfig(name="digits"), seed=0, device=CPU)
    other = open_data(DataConfig(name="digits"), seed=5, device=CPU)
    assert data.info == info(data.config)
    assert data.stores["test"].labels.bincount().tolist() == [36] * 10
    assert torch.equal(data.stores["test"].bordered, other.stores["test"].bordered)
    pixels = data.stores["train"].bordered.double() / 255
    assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 3)) == (0.3047, 0.375)


def test_known_data_sets_are_described_without_their_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, facts in DATASETS.items():
        if facts.train is None:
            continue
        about = info(DataConfig(name=name, validation=100, augment=AugmentConfig(resize=64)))
        assert (about.train_images, about.validation_images) == (facts.train - 100, 100)
        assert (about.height, about.targets.outputs) == (64, facts.num_classes)
    assert info(DataConfig(name="imagenet", image_size=160)).example.sizes == (3, 160, 160)


def test_a_generator_is_a_function_of_all_its_arguments():
    arguments = [
        (0, "a"),
        (1, "a"),
        (0, "b"),
        (0, "a", 0),
        (0, "a", 1),
        (0, "a", 0, 1),
        (0, "a", 1, 0),
    ]
    seeds = [generator(*a).initial_seed() for a in arguments]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [generator(*a).initial_seed() for a in arguments]
    assert max(seeds) < 2**63
    assert generator(0, "a").initial_seed() == 70371372590122459


def test_synthetic_images_can_be_learnt():
    data = opened(num_classes=4, train_images=200, test_images=80)
    (train,), (test,) = data.evaluation_batches("train", 200), data.evaluation_batches("test", 80)
    centres = torch.stack([train.inputs[train.targets == c].mean(0) for c in range(4)])
    nearest = torch.cdist(test.inputs.flatten(1), centres.flatten(1)).argmin(1)
    assert (nearest == test.targets).float().mean() > 0.95


def test_epochs_follow_one_another_from_one_reader():
    data = opened(augment=EVERYTHING)
    each = [*data.train_batches(2, 16, start=3), *data.train_batches(3, 16)]
    for ours, theirs in zip(data.train_batches(2, 16, start=3, epochs=2), each, strict=True):
        assert torch.equal(ours.inputs, theirs.inputs)
        assert torch.equal(ours.targets, theirs.targets)
