"""Command lines whose faults are one line each: what is wrong, and what to write."""

import argparse
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import NoReturn

SETTING = re.compile(r"(?:--)?(?P<setting>[a-z_]+(?:\.[a-z_]+)*=.*)", re.DOTALL)
MEANT = {  # words of other projects' scripts, and what they are here
    "device": "a GPU is used where there is one; for the CPU write ACCELERATE_USE_CPU=true before",
    "gpus": "launch with accelerate launch --num_processes N",
    "epochs": "write --set training.duration=90ep",
    "lr": "write --set training.optimizer.lr=0.1",
    "batch_size": "write --set training.batch_size=128",
    "seed": "write --set seed=1",
    "data": "write --set data.path=FOLDER",
    "model": "write --set model=NAME",
    "config": "write --recipe FILE",
}


class Arguments(argparse.ArgumentParser):
    """Answers a wrong command line in one line."""

    def parse_args(  # pyright: ignore[reportIncompatibleMethodOverride] of two overloads
        self, args: Sequence[str] | None = None
    ) -> argparse.Namespace:
        """The parsed arguments; one that is not known ends the program with what was meant."""
        return self._known(*self.parse_known_args(args))

    def parse_intermixed_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Sequence[str] | None = None
    ) -> argparse.Namespace:
        """As `parse_args`, with plain words between the options."""
        return self._known(*self.parse_known_intermixed_args(args))

    def _known(self, parsed: argparse.Namespace, unknown: Sequence[str]) -> argparse.Namespace:
        if unknown:
            self.error(f"unknown argument {unknown[0]}{self._hint(unknown)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{' '.join(message.split())}; --help lists all arguments\n")

    def _hint(self, unknown: Sequence[str]) -> str:
        options = set(self._options())
        setting = SETTING.fullmatch(unknown[0])
        if setting and "--set" in options:
            return f": write --set {setting['setting']}"
        word = unknown[0].partition("=")[0].removeprefix("--").replace("-", "_")
        if word in MEANT and "--recipe" in options:
            return f": {MEANT[word]}"
        near = difflib.get_close_matches(unknown[0], options, 1)
        return f" (did you mean {near[0]}?)" if near else ""

    def _options(self) -> Iterator[str]:
        """The options of this command and of those below it."""
        yield from self._option_string_actions
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for below in action.choices.values():
                    yield from below._option_string_actions
