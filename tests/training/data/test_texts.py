"""Texts: which words there are, where rows begin, and what is asked at which place."""

import pytest
import torch

from prunezoo.schema.data import DataConfig
from prunezoo.tasks.language import UNASKED
from prunezoo.training.data import texts
from prunezoo.training.data.data import DataError, info, known, open_data
from prunezoo.training.data.python_text import lines, main
from prunezoo.training.data.texts import cut

TRAIN = "a b c a\nb a d\n"  # a b c a <eos> b a d <eos>
OTHER = "a x\n"


def folder(tmp_path, train=TRAIN, valid=OTHER, test=OTHER, name="ptb.{}.txt"):
    for part, text in (("train", train), ("valid", valid), ("test", test)):
        (tmp_path / name.format(part)).write_text(text, encoding="utf-8")
    return str(tmp_path)


def opened(name, rank=0, world_size=1, seed=0, **config):
    config = {"target": "next_word", "drop_last": False, **config}
    config = DataConfig.model_validate({"name": name, **config})
    where = {"device": torch.device("cpu"), "rank": rank, "world_size": world_size}
    return open_data(config, seed=seed, **where)


def rows(data, split):
    batches = list(data.evaluation_batches(split, 100))
    return tuple(torch.cat(part) for part in list(zip(*batches, strict=True))[:2])


def test_each_word_is_asked_for_once_after_the_words_before_it():
    words = torch.arange(10, 21)  # ten are asked for
    inputs, targets = cut(words, 4, 0)
    assert inputs.tolist() == [[10, 11, 12, 13], [14, 15, 16, 17], [18, 19, 0, 0]]
    assert targets.tolist() == [[11, 12, 13, 14], [15, 16, 17, 18], [19, 20, UNASKED, UNASKED]]
    assert cut(words, 5, 0)[0].shape == (2, 5)


def test_context_is_read_and_not_asked_for():
    inputs, targets = cut(torch.arange(10, 19), 4, 3)
    assert inputs.tolist() == [[0, 0, 0, 10, 11, 12, 13], [11, 12, 13, 14, 15, 16, 17]]
    asked = [[11, 12, 13, 14], [15, 16, 17, 18]]
    assert targets[:, 3:].tolist() == asked
    assert (targets[:, :3] == UNASKED).all()


def test_numbers_are_by_frequency_and_what_the_training_text_lacks_is_unknown(tmp_path):
    data = opened(folder(tmp_path), length=8)
    # <eos> <unk> a b c d
    assert data.info.targets.outputs == 6
    inputs, targets = rows(data, "train")
    assert inputs.tolist() == [[2, 3, 4, 2, 0, 3, 2, 5]]
    assert targets.tolist() == [[3, 4, 2, 0, 3, 2, 5, 0]]
    for split in ("validation", "test"):
        assert rows(data, split)[0].tolist() == [[2, 1, 0, 0, 0, 0, 0, 0]]
        assert rows(data, split)[1].tolist() == [[1, 0, *[UNASKED] * 6]]
    small = opened(str(tmp_path), length=8, vocabulary=4)
    assert small.info.targets.outputs == 4
    assert rows(small, "train")[0].tolist() == [[2, 3, 1, 2, 0, 3, 2, 1]]


def test_its_own_unknown_word_and_empty_lines_count_as_they_stand(tmp_path):
    data = opened(folder(tmp_path, " \na <unk>", name="wiki.{}.tokens"), length=4)
    assert data.info.targets.outputs == 3
    assert rows(data, "train")[0].tolist() == [[0, 2, 1, 0]]
    assert rows(data, "train")[1].tolist() == [[2, 1, 0, UNASKED]]


def test_what_is_known_is_what_is_read(tmp_path):
    data = opened(folder(tmp_path), length=2, context=1)
    assert data.info == info(data.config)
    assert (data.info.train_images, data.info.validation_images, data.info.test_images) == (4, 1, 1)
    assert data.info.example.sizes == data.info.targets.shape.sizes == (3,)
    assert (data.info.channels, data.info.task) == (1, "language")
    fewer = opened(str(tmp_path), length=2, train_subset=2)
    assert rows(fewer, "train")[0].shape == (2, 2)
    assert rows(fewer, "validation")[0].shape == (1, 2)


def test_two_ranks_see_what_one_does(tmp_path):
    name = folder(tmp_path, TRAIN * 9)
    whole = list(opened(name, length=4).train_batches(1, 6))
    shares = [list(opened(name, rank, 2, length=4).train_batches(1, 6)) for rank in (0, 1)]
    assert len(whole) > 2
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([p.inputs for p in parts]), batch.inputs)
        assert torch.equal(torch.cat([p.targets for p in parts]), batch.targets)


def test_the_treebank_is_known_without_files_and_told_from_other_texts(tmp_path):
    about = known(DataConfig(name="penn_treebank"))
    assert about is not None
    # 929,588 words that follow another one, 80 in a row
    assert (about.train_images, about.targets.outputs) == (11_620, 10_000)
    with pytest.raises(DataError, match=r"penn_treebank: .*'train': 9.* as data.name, with target"):
        opened("penn_treebank", path=folder(tmp_path))


FAULTS = {
    "missing": ({"test": None}, {}, r"no text \*.test.txt there, such as ptb.test.txt; copy it"),
    "short": ({"valid": "\n"}, {}, "1 words in valid are too few; write a longer text"),
    "latin": ({"test": b"\xe9"}, {}, r"ptb.test.txt: not UTF-8 text; save it as UTF-8"),
    "subset": ({}, {"train_subset": 9}, "1 rows to train on are fewer than train_subset 9"),
    "validation": ({}, {"validation": 0.1}, "data.validation means nothing for"),
    "picture": ({}, {"augment": {"flip": True}}, "data.augment means nothing for"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_texts_that_do_not_fit_are_named(tmp_path, name):
    files, config, said = FAULTS[name]
    place = folder(tmp_path)
    for part, content in files.items():
        path = tmp_path / f"ptb.{part}.txt"
        path.unlink()
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said):
        opened(place, **config)


def test_two_texts_of_one_part_are_one_too_many(tmp_path):
    place = folder(tmp_path)
    (tmp_path / "other.train.tokens").write_text("a\n")
    with pytest.raises(DataError, match=r"train.tokens and ptb.train.txt are both texts of train"):
        opened(place)


@pytest.mark.parametrize("key", ["length", "context", "vocabulary"])
def test_keys_of_texts_are_of_texts(key):
    with pytest.raises(ValueError, match="length, context and vocabulary are of texts; remove"):
        DataConfig.model_validate({"name": "cifar10", key: 8})


def test_words_of_a_documentation():
    assert lines("Don't use x_1!!\n====\n\nIt's 42.\n \n") == [
        "don ' t use x _ N !! ====",
        "it ' s N .",
    ]


def test_pythons_documentation_becomes_three_texts(tmp_path, monkeypatch, capsys):
    chapters = [f"Chapter {'x' * n}\n\nIts words." for n in range(1, 41)]
    monkeypatch.setattr("prunezoo.training.data.python_text._strings", lambda library: chapters * 2)
    monkeypatch.setattr("prunezoo.training.data.python_text.topics", {"b": "of b", "a": "of a"})
    folder = tmp_path / "text"
    assert main([str(folder)]) == 0
    train, valid = ((folder / f"python.{part}.txt").read_text() for part in ("train", "valid"))
    assert train.startswith("of a\nof b\nchapter x\nits words .\n")
    # the two chapters before them are documents too
    assert valid == "".join(f"chapter {'x' * n}\nits words .\n" for n in (9, 29))
    assert capsys.readouterr().out.endswith(" 14 words of validation, 14 words of test\n")
    assert texts.read(DataConfig(name=str(folder), target="next_word")).vocabulary > 40
