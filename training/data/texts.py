"""Texts: rows of words, each with the word that follows at every place."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from prunezoo.models.trees import Shape
from prunezoo.schema.data import DataConfig
from prunezoo.tasks.language import UNASKED
from prunezoo.tasks.task import Targets
from prunezoo.training.data.batches import Data, DataInfo, rows_of
from prunezoo.training.data.layouts import DataError
from prunezoo.training.data.layouts.files import contents, faults_named
from prunezoo.training.data.tables import Rows

PTB = "penn_treebank"
PTB_WORDS, PTB_VOCABULARY = {"train": 929_589, "validation": 73_760, "test": 82_430}, 10_000
NAMES = {"train": "train", "validation": "valid", "test": "test"}  # in the names of files
ENDS = ("txt", "tokens")
LENGTH = 80  # words of a row in EarlyCroP's code
END, UNKNOWN = "<eos>", "<unk>"
MOST_BYTES = 2**32


class Text(NamedTuple):
    """The splits' words as numbers, and how many words are told apart."""

    words: dict[str, Tensor]
    vocabulary: int


def known(config: DataConfig) -> DataInfo | None:
    """Of the Penn Treebank as Mikolov et al. 2010 prepared it; other texts have to be read."""
    if config.name != PTB:
        return None
    vocabulary = min(config.vocabulary or PTB_VOCABULARY, PTB_VOCABULARY)
    return described(config, PTB_WORDS, vocabulary)


def described(config: DataConfig, words: dict[str, int], vocabulary: int) -> DataInfo:
    """Shapes, and counts of rows.

    Raises:
        DataError: fewer than two words in a split, or fewer rows than `train_subset`.
    """
    length = config.length or LENGTH
    for split, count in words.items():
        if count < 2:
            raise DataError(
                f"{config.name}: {count} words in {NAMES[split]} are too few; write a longer text"
            )
    rows = {split: -(-(count - 1) // length) for split, count in words.items()}
    train = config.train_subset or rows["train"]
    if train > rows["train"]:
        raise DataError(
            f"{config.name}: {rows['train']} rows to train on are fewer than train_subset {train};"
            " lower it"
        )
    shape = Shape((config.context + length,), torch.int64)
    targets = Targets(vocabulary, shape)
    counts = (train, rows["validation"], rows["test"])
    return DataInfo(config.name, shape, targets, *counts, task="language")


def open_texts(
    config: DataConfig, *, seed: int, device: torch.device, rank: int, world_size: int
) -> Data:
    """The splits; see `training.data.data.open_data`. Validation is a file of its own."""
    text = read(config)
    counts = {split: len(words) for split, words in text.words.items()}
    expected = known(config)
    if expected and (counts, text.vocabulary) != (PTB_WORDS, expected.targets.outputs):
        raise DataError(
            f"{PTB}: {counts} words, {text.vocabulary} told apart; expected {PTB_WORDS} and"
            f" {PTB_VOCABULARY}: give the folder as data.name, with target: next_word, to use it as"
            " it is"
        )
    info = described(config, counts, text.vocabulary)
    length = config.length or LENGTH
    parts = {n: cut(words, length, config.context) for n, words in text.words.items()}
    whole = len(parts["train"][0])
    # Data looks for rows to validate on in the store of those to train on
    joined = (torch.cat(pair) for pair in zip(parts["train"], parts["validation"], strict=True))
    pairs = {"train": tuple(joined), "test": parts["test"]}
    stores = {name: Rows(*(t.to(device) for t in pair)) for name, pair in pairs.items()}
    rows = rows_of({"train": whole, "test": info.test_images}, (info.train_images, 0), seed)
    rows["validation"] = torch.arange(whole, whole + info.validation_images)
    return Data(info, config, seed, device, rank, world_size, stores, rows)


def cut(words: Tensor, length: int, context: int) -> tuple[Tensor, Tensor]:
    """Rows of `context` + `length` words, and at each place the word after it, (rows, …).

    At the first `context` places, which the row before has asked, none is asked for, nor after the
    end: so each word but the first is asked for once. What lies outside the text is word 0.
    """
    count = len(words) - 1
    rows = -(-count // length)
    before, after = words.new_zeros(context), words.new_zeros(rows * length - count)
    inputs = torch.cat([before, words[:count], after])
    targets = torch.cat([before + UNASKED, words[1:], after + UNASKED])
    spans = [t.unfold(0, context + length, length).clone() for t in (inputs, targets)]
    spans[1][:, :context] = UNASKED
    return spans[0], spans[1]


def read(config: DataConfig) -> Text:
    """The words of the three files as numbers.

    Words are what white space parts, and the end of each line is one. The vocabulary is that of the
    training text, the most frequent words first, by their letters where equal; ends of lines and
    `<unk>`, which stands for all others, are always in it.

    Raises:
        DataError: a file is missing, or there are two, or it is not UTF-8 text.
    """
    folder = Path(config.path or (f"data/{PTB}" if config.name == PTB else config.name))
    texts = {split: _words(_file(folder.expanduser(), part)) for split, part in NAMES.items()}
    counted = Counter(texts["train"])
    others = sorted(counted.keys() - {END, UNKNOWN}, key=lambda word: (-counted[word], word))
    vocabulary = [END, UNKNOWN, *others][: config.vocabulary]
    numbers = {word: number for number, word in enumerate(vocabulary)}
    unknown = numbers[UNKNOWN]
    return Text(
        {n: torch.tensor([numbers.get(word, unknown) for word in t]) for n, t in texts.items()},
        len(vocabulary),
    )


def _words(path: Path) -> list[str]:
    try:
        lines = contents(path, MOST_BYTES).decode().split("\n")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    if not lines[-1]:
        lines.pop()  # what follows the last line's end is no line
    return [word for line in lines for word in (*line.split(), END)]


def _file(folder: Path, part: str) -> Path:
    with faults_named(folder):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = [n for n in sorted(names) if n.endswith(tuple(f"{part}.{end}" for end in ENDS))]
    if len(found) == 1:
        return folder / found[0]
    if found:
        raise DataError(f"{folder}: {' and '.join(found[:3])} are both texts of {part}; leave one")
    # a text of our own is no Treebank, whose counts are checked
    made = f", or make one: python -m prunezoo.training.data.python_text {folder}"
    raise DataError(
        f"{folder}: no text *.{part}.{ENDS[0]} there, such as ptb.{part}.{ENDS[0]}; copy it"
        f"{' (docs/data.md)' if folder.name == PTB else made}"
    )
