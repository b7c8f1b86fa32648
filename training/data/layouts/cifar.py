"""CIFAR's Python batches, read without unpickling: a pickle may make any object, and break memory.

The opcodes of the file are walked here. They build containers, text and numbers; what they name is
never looked up, and the array's bytes are taken as they lie in the file, after a check of length.
"""

import io
import pickletools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_STEPS = 2_000_000  # CIFAR-100's 50,000 images, of two labels and a file name, take 250,000
ROW = 3 * 32 * 32


class NoBatch(ValueError):
    """The reason why bytes are not one of CIFAR's batches."""


@dataclass(frozen=True)
class Name:
    """A name that the pickle states: nothing but text."""

    text: str


@dataclass
class Array:
    """NumPy's array before and after its state: (version, shape, dtype, is_fortran, bytes)."""

    state: Any = None


@dataclass(frozen=True)
class Kind:
    """The code of a NumPy dtype, such as u1; its state (byte order, fields) is left unread."""

    code: Any


def read(data: bytes) -> tuple[np.ndarray, Sequence[object]]:
    """Images, uint8 (N, 3072), and as many labels, not yet checked, of one batch.

    Raises:
        NoBatch: the pickle has another shape, or names anything but NumPy's arrays.
    """
    content = _Walk().run(data)
    if not isinstance(content, dict):
        raise NoBatch("it holds no dictionary")
    entries = {_text(key): value for key, value in content.items()}
    if "data" not in entries or not entries.keys() & {"labels", "fine_labels"}:
        raise NoBatch("it has no data or no labels")
    labels = entries.get("labels", entries.get("fine_labels"))
    if not isinstance(labels, list):
        raise NoBatch("its labels are not a list")
    images = _pixels(entries["data"])
    if len(images) != len(labels):
        raise NoBatch(f"{len(images)} images and {len(labels)} labels")
    return images, labels


def _pixels(array: object) -> np.ndarray:
    if not isinstance(array, Array):
        raise NoBatch("its data are not an array")
    match array.state:
        case (int(), (int(rows), int(width)), Kind(code), bool(by_column), bytes() | str() as raw):
            content = _bytes(raw)
        case _:
            raise NoBatch("its data are not a plain array of two dimensions")
    if _text(code) != "u1" or width != ROW or len(content) != rows * ROW:
        raise NoBatch(f"its data are {len(content)} bytes of ({rows}, {width}) {_text(code)}")
    flat = np.frombuffer(content, dtype=np.uint8)
    return flat.reshape((rows, ROW), order="F" if by_column else "C")


def _bytes(raw: bytes | str) -> bytes:
    """Bytes; Python 2 has one type for them and for text, which is read here as Latin-1."""
    try:
        return raw if isinstance(raw, bytes) else raw.encode("latin-1")
    except UnicodeEncodeError:
        raise NoBatch("its data are text") from None


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)[:80]


CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# opcodes whose argument is the value
NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
BYTES = ("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")


class _Walk:
    """A pickle machine that knows containers, literals, and three calls by their names' text."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks under the open marks
        self.memo: dict[int, Any] = {}
        self.steps: dict[str, Callable[[Any], None]] = {
            "PROTO": lambda _: None,
            "FRAME": lambda _: None,
            "MARK": self._mark,
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "EMPTY_TUPLE": lambda _: self.stack.append(()),
            "DICT": lambda _: self._put(_pairs(self._since_mark())),
            "LIST": lambda _: self._put(self._since_mark()),
            "TUPLE": lambda _: self._put(tuple(self._since_mark())),
            "TUPLE1": lambda _: self._put(tuple(self._pop(1))),
            "TUPLE2": lambda _: self._put(tuple(self._pop(2))),
            "TUPLE3": lambda _: self._put(tuple(self._pop(3))),
            "APPEND": lambda _: self._extend(self._pop(1)),
            "APPENDS": lambda _: self._extend(self._since_mark()),
            "SETITEM": lambda _: self._update(self._pop(2)),
            "SETITEMS": lambda _: self._update(self._since_mark()),
            "MEMOIZE": lambda _: self._remember(len(self.memo)),
            "GLOBAL": lambda name: self._put(Name(name.replace(" ", "."))),
            "STACK_GLOBAL": lambda _: self._put(Name(".".join(map(_text, self._pop(2))))),
            "REDUCE": lambda _: self._put(_called(*self._pop(2))),
            "BUILD": lambda _: self._build(),
        }
        self.steps |= dict.fromkeys((*NUMBERS, *BYTES, *TEXTS), self._put)
        self.steps |= {name: lambda _, v=value: self._put(v) for name, value in CONSTANTS.items()}
        self.steps |= dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._remember)
        self.steps |= dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), self._recall)

    def run(self, data: bytes) -> object:
        """The value that the pickle describes."""
        for count, (opcode, argument, _) in enumerate(self._opcodes(data)):
            if opcode.name == "STOP":
                break
            step = self.steps.get(opcode.name)
            if step is None or count > MOST_STEPS:
                raise NoBatch(f"it uses {opcode.name}" if step is None else "it has too many parts")
            step(argument)
        (value,) = self._pop(1)
        return value

    def _opcodes(self, data: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
        try:
            yield from pickletools.genops(io.BytesIO(data))
        except (ValueError, DeprecationWarning) as error:  # cut short, no pickle, odd escapes
            raise NoBatch(str(error)[:80]) from None

    def _put(self, value: Any) -> None:
        # arithmetic and printing of a number of millions of digits take minutes
        if isinstance(value, int) and value.bit_length() > 64:
            raise NoBatch("it holds a number of more than 64 bits")
        self.stack.append(value)

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise NoBatch("it is damaged")
        # count is at least 1: [-0:] would be the whole stack
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def _mark(self, _: object) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        if not self.below:
            raise NoBatch("it is damaged")
        values, self.stack = self.stack, self.below.pop()
        return values

    def _top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise NoBatch("it is damaged")
        return self.stack[-1]

    def _extend(self, values: list[Any]) -> None:
        self._top(list).extend(values)

    def _update(self, values: list[Any]) -> None:
        self._top(dict).update(_pairs(values))

    def _remember(self, place: int) -> None:
        self.memo[place] = self._top(object)

    def _recall(self, place: int) -> None:
        if place not in self.memo:
            raise NoBatch("it is damaged")
        self.stack.append(self.memo[place])

    def _build(self) -> None:
        (state,) = self._pop(1)
        value = self._top(object)
        if isinstance(value, Array):
            value.state = state
        elif not isinstance(value, Kind):
            raise NoBatch("it sets the state of something else than an array")


def _pairs(values: list[Any]) -> dict[Any, Any]:
    if len(values) % 2 or not all(isinstance(key, str | bytes) for key in values[::2]):
        raise NoBatch("its keys are not text")
    return dict(zip(values[::2], values[1::2], strict=True))


def _called(name: object, arguments: object) -> object:
    """The value that one of the calls in a pickled array stands for."""
    match name, arguments:
        case Name("numpy.core.multiarray._reconstruct" | "numpy._core.multiarray._reconstruct"), _:
            return Array()
        case Name("numpy.dtype"), (code, *_):
            return Kind(code)
        case Name("_codecs.encode"), (str(text), "latin1"):
            return _bytes(text)  # Python 3's way to write bytes for Python 2
        case Name(text), _:
            raise NoBatch(f"it names {text[:80]}")
    raise NoBatch("it is damaged")
