"""Records of finished runs: the evidence for rows of tables, small enough to commit."""

import hashlib
import json
import math
import re
import shlex
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from prunezoo.reporting import papers
from prunezoo.reporting.claims import Claim
from prunezoo.reporting.conventions import bep_inference
from prunezoo.reporting.errors import RecordError
from prunezoo.reporting.json_files import (
    RecordFile,
    SummaryFile,
    check,
    parse_object,
    read_object,
)
from prunezoo.schema.headline import Headline
from prunezoo.training.folder.run_folder import ENVIRONMENT, LOG, SUMMARY
from prunezoo.training.history import Event, History, Summary, history

LOCAL = ("data.path=", "data.workers=", "log.", "checkpoint.", "cost.")  # no part of a result
UNSAID = (*LOCAL, "evaluation.")  # settings that do not change a result
HARMLESS = (*UNSAID, "training.channels_last=", "training.compile=")  # nor by more than rounding
VALUED = ("recipe", "set", "output", "processes")  # options that have a value
OPTIONS = (*VALUED, "resume", "dry-run", "defaults", "online", "traceback")
SETTING = re.compile(r"[a-z]\w*(\.\w+)*=")
REMEDY = "write it with tables.py collect"
UNREAD = "take a run folder as train.py left it"
# whole numbers by epoch or pruning, written on one line
NUMBERS = re.compile(r'("(?:epi/structure_[^"\n]*|kept|images)": \[)\s+([\d,\s]+)\]')
RECORDED = ("python", "packages", "cpu", "gpus", "commit", "command")


@dataclass(frozen=True)
class Job:
    """One training: its row (None: of no table), recipe, `--set` values and seed.

    `set` is the claim's; `extra` holds the user's own settings, which make another experiment.
    `study` is the name, `FOLDER/NAME`, that a study gives a training of no table.
    """

    row: str | None
    recipe: str
    set: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    seed: int = 0
    study: str | None = None

    @property
    def place(self) -> str:
        """The address of its row, or what stands for one: `other/RECIPE`, or the study's name."""
        return self.row or self.study or f"other/{_slug(self.recipe)}"

    @property
    def name(self) -> str:
        """The name of its run folder and record, `paper/table/row-seed0`, unique to the job."""
        table, row = split_row(self.place)
        slug = re.sub(r"[^\w.+-]+", "_", row).strip("_")
        settings = self.extra if self.row else self.set + self.extra
        digest = hashlib.sha256("\n".join(sorted(settings)).encode()).hexdigest()[:6]
        return f"{table}/{slug}{'-' + digest if settings else ''}-seed{self.seed}"

    @property
    def experiment(self) -> tuple[str, frozenset[str]]:
        """Equal for jobs that differ only in the seed or in the order of settings."""
        return self.recipe, frozenset((*self.set, *self.extra))

    @property
    def settings(self) -> list[str]:
        """All `--set` values."""
        return [*self.set, *self.extra, f"seed={self.seed}"]


def _nothing() -> History:
    return History(accuracy=[], prunings=[], forecasts=[])


@dataclass(frozen=True)
class Record:
    """A finished run: its job, its figures, and the part of its log that reports draw.

    `penalties` is the file next to the record with the laboratory's rows, where there are any.
    """

    job: Job
    summary: Summary
    history: History = field(default_factory=_nothing)
    environment: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    penalties: str | None = None
    path: str = ""

    @property
    def experiment(self) -> tuple[Any, ...]:
        """Equal for runs that differ only in the seed."""
        same = ("recipe/hash", "data/name", "run/device", "run/processes")
        facts = [self.summary.get(key) for key in same]
        return self.job.row, self.job.experiment, self.schedule_epochs, *facts

    @property
    def schedule_epochs(self) -> int | float | None:
        """Epochs of its schedule: what a rewind trains again is within them."""
        schedule = self.number("run/schedule_epochs")  # older records have none
        return self.number("run/epochs") if schedule is None else schedule

    @property
    def headline(self) -> Headline:
        """The metric by which it is compared."""
        return Headline.of(self.summary)

    @property
    def measured(self) -> bool:
        """True if it has that metric, as a number."""
        return self.summary.get(self.headline.test) is not None

    @property
    def processes(self) -> int:
        """Processes of the run's last session; one where an older record does not say."""
        return int(self.number("run/processes") or 1)

    def number(self, key: str) -> int | float | None:
        """A figure of the summary; None if the run has not measured it.

        Raises:
            RecordError: the value is not a number.
        """
        value = self.summary.get(key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None or (number and math.isfinite(value)):
            return value
        raise RecordError(f"{self.path}: {key} {value!r:.60} is not a number; {REMEDY}")


def numbers(records: Sequence[Record], key: str) -> list[float]:
    """The values of a figure, from the records that have it."""
    return [value for record in records if (value := record.number(key)) is not None]


def standard_error(values: Sequence[float]) -> float | None:
    """The standard error of a mean, s/√n, s with n − 1; None of fewer than two values."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def _slug(recipe: str) -> str:
    """`bep-snip` of recipes/bep/snip.yaml; of a file elsewhere its name and a digest of where."""
    path = Path(recipe)
    if path.parts[:1] == ("recipes",):
        return "-".join(path.with_suffix("").parts[1:])
    where = hashlib.sha256(path.parent.as_posix().encode()).hexdigest()[:6]
    return path.stem if path.parent == Path() else f"{path.stem}-{where}"


def split_row(address: str) -> tuple[str, str]:
    """`paper/table` and the row of a row's address; of `other/name`, those two."""
    parts = address.split("/", 2)
    return "/".join(parts[:-1]), parts[-1]


def is_finished(folder: Path) -> bool:
    """Return True if a run folder has a summary, which is written last."""
    return (folder / SUMMARY).exists()


def collect(
    folder: Path,
    results: Path,
    job: Job | None = None,
    *,
    claims: Sequence[Claim] = (),
    weights: str | None = None,
) -> Path:
    """Write the record of a finished run under `results` and return its path.

    Without a `job`, recipe, settings and seed come from the run's command line, and the row from
    the `claims`.

    Raises:
        RecordError: the run has no summary yet, its files are damaged, or its record would replace
            one of another recipe.
    """
    if not is_finished(folder):
        raise RecordError(f"{folder}: no summary.json; finish the run first (train.py --resume)")
    summary = read_object(folder / SUMMARY, UNREAD)
    check(SummaryFile, summary, folder / SUMMARY, UNREAD)
    environment = _environment(folder / ENVIRONMENT)
    record = Record(
        job=job or _job_of(summary, environment, claims),
        summary=summary,
        history=_history(folder / LOG),
        environment=environment,
        weights=weights,
    )
    path = results / f"{record.job.name}.json"
    if path.exists():
        check_hash(path, summary.get("recipe/hash"))
    table = folder / "laboratory.parquet"
    if table.exists():
        record = replace(record, penalties=f"{path.stem}.penalties.parquet")
    try:
        text = _text(record)
    except RecursionError:
        raise RecordError(f"{folder}: its files are nested too deep; {UNREAD}") from None
    # as it would be read: tuples are lists in the file
    check(RecordFile, json.loads(text), folder, UNREAD)
    path.parent.mkdir(parents=True, exist_ok=True)
    if record.penalties is not None:
        _compact(table, path.with_name(record.penalties))
    path.write_text(text)
    return path


def _text(record: Record) -> str:
    """The record as its file has it."""
    values = asdict(record)
    del values["path"]
    # no null: other records stay as they were before there were these keys
    for section, key in ((values, "penalties"), (values["job"], "study")):
        if section[key] is None:
            del section[key]
    # sorted, so that a record collected again gives an empty diff
    text = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    return NUMBERS.sub(lambda lines: lines[1] + " ".join(lines[2].split()) + "]", text)


def check_hash(path: Path, recipe: str | None) -> None:
    """Check that a record, or a finished run's folder, is of the recipe with this hash.

    Raises:
        RecordError: it is of another.
    """
    values = read_object(path / SUMMARY if path.is_dir() else path, REMEDY)
    was = (values if path.is_dir() else values.get("summary", {})).get("recipe/hash")
    if was != recipe:
        raise RecordError(
            f"{path}: is of another recipe ({was}) than this run ({recipe}), such as the same file"
            " before it was edited; move it away, or give the recipe's file another name"
        )


def _compact(source: Path, target: Path) -> None:
    # imports torch, which most commands here need not wait for
    from prunezoo.pruning.laboratory.table import compact

    try:
        compact(source, target)
    except (ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise RecordError(f"{source}: not readable ({reason}); {UNREAD}") from None


def load_records(results: Path) -> list[Record]:
    """All records below a folder, sorted by path.

    Raises:
        RecordError: a file that is not a record, or a copy of another.
    """
    found = [load_record(path, results) for path in sorted(results.rglob("*.json"))]
    by_job: dict[Job, list[Record]] = defaultdict(list)
    for record in found:
        others = by_job[record.job]
        # a copy would count as one seed more
        same = next((other for other in others if other.summary == record.summary), None)
        if same is not None:
            raise RecordError(f"{record.path}: is a copy of {same.path}; delete one of the two")
        others.append(record)
    return found


def load_record(path: Path, results: Path) -> Record:
    """The record in a file below a folder.

    Raises:
        RecordError: the file is not a record.
    """
    values = read_object(path, REMEDY)
    check(RecordFile, values, path, REMEDY)
    stated: dict[str, Any] = values["job"]
    stated = {key: tuple(v) if isinstance(v, list) else v for key, v in stated.items()}
    job = Job(**stated)
    if job.row:
        try:
            papers.find_table(split_row(job.row)[0])
        except papers.AddressError as error:
            raise RecordError(f"{path}: job.row: {error}") from None
    rest = {key: value for key, value in values.items() if key not in ("job", "history")}
    past = History(**_nothing() | values.get("history", {}))
    return Record(job, history=past, path=path.relative_to(results.parent).as_posix(), **rest)


def _job_of(summary: Summary, environment: dict[str, Any], claims: Sequence[Claim]) -> Job:
    """The job of a run started by hand, from its command line; the row whose settings it has."""
    pairs = _options(environment.get("command") or "")
    recipe = next((b for a, b in pairs if a == "recipe"), str(summary.get("run/name", "unknown")))
    unsaid = ("seed=", *LOCAL)
    settings = tuple(b for a, b in pairs if a == "set" and not b.startswith(unsaid))
    fitting = [c for c in claims if c.recipe == recipe and set(c.set) <= set(settings)]
    # the one with the most settings in common: others are those of more general rows
    claim = max(fitting, key=lambda c: len(c.set), default=None)
    extra = tuple(s for s in settings if claim is None or s not in claim.set)
    seed = int(summary.get("run/seed", 0))
    return Job(claim.row if claim else None, recipe, claim.set if claim else (), extra, seed)


def _options(command: str) -> list[tuple[str, str]]:
    """The options of a command line of train.py, as (name, value).

    `--set KEY=VALUE`, `--set=KEY=VALUE`, `--se KEY=VALUE` and `KEY=VALUE` are the same. A value
    without quotes goes on until the next of them.
    """
    pairs: list[tuple[str, str]] = []
    for word in shlex.split(command)[1:]:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            pairs.append((next((o for o in OPTIONS if o.startswith(name)), name), value))
        elif SETTING.match(word) and not _goes_on(pairs):
            pairs.append(("set", word))
        elif pairs:
            name, value = pairs[-1]
            pairs[-1] = (name, f"{value} {word}".lstrip())
    return pairs


def _goes_on(pairs: Sequence[tuple[str, str]]) -> bool:
    """Return True if the last option still lacks its value, or the end of one in brackets."""
    name, value = pairs[-1] if pairs else ("", "")
    brackets = sum(value.count(c) for c in "{[") > sum(value.count(c) for c in "}]")
    return brackets or (name in VALUED and not value)


def _history(log: Path) -> History:
    """A log's history; its prunings with BEP's counts of the networks that they left."""
    past = history(_events(log))
    past["prunings"] = [event | bep_inference(event) for event in past["prunings"]]
    return past


def _events(path: Path) -> list[Event]:
    """The lines of a log.

    Raises:
        RecordError: a line that is not a JSON object.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [
        parse_object(line, f"{path}, line {number}", UNREAD)
        for number, line in enumerate(lines, 1)
        if line.endswith(b"}")  # a kill may have cut the last
    ]


def _environment(path: Path) -> dict[str, Any]:
    """Versions, hardware, commit and command of a run, without paths of the machine.

    Raises:
        RecordError: not a JSON object, or a command with an unclosed quote.
    """
    values = read_object(path, UNREAD) if path.exists() else {}
    if values.get("command"):
        try:
            values["command"] = _command(_options(str(values["command"])))
        except ValueError as error:  # quotes that do not end
            raise RecordError(f"{path}: command: {error}; {UNREAD}") from None
    # a list of what is kept: other entries may name paths, users or hosts
    return {key: values[key] for key in RECORDED if key in values}


def _command(pairs: Sequence[tuple[str, str]]) -> str:
    """The command line without paths of the machine."""
    kept = [(a, b) for a, b in pairs if a != "output" and not b.startswith("data.path=")]
    return shlex.join(["train.py", *(word for a, b in kept for word in (f"--{a}", b) if word)])
