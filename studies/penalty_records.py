"""Laboratory records of many runs as one table, and statistics of it."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from prunezoo.reporting.intervals import half_width

SCORES = ("abs_mrs", "abs_rs", "norm", "rand", "mrs", "rs")
CELL = ["data", "model", "seed", "step", "layers", "amount"]  # one measurement of all methods


class NotRunError(Exception):
    """The records lack what a figure needs."""


def load(sources: Iterable[Path]) -> pd.DataFrame:
    """All laboratory rows of run folders and of records that name a table of penalties.

    The column `method` is the score, with or without bp_.
    """
    paths = [path for source in sources if (path := _table_of(source)) and path.exists()]
    tables = [pd.read_parquet(path) for path in paths]
    if not tables:
        raise SystemExit(
            "no laboratory.parquet found; name folders of runs with a laboratory, or their records"
        )
    table = pd.concat(tables, ignore_index=True)
    bp = table["bias_propagation"].fillna(False).astype(bool)
    return table.assign(bias_propagation=bp, method=np.where(bp, "bp_", "") + table["score"])


def _table_of(source: Path) -> Path | None:
    if source.suffix != ".json":
        return source / "laboratory.parquet"
    name = json.loads(source.read_text()).get("penalties")
    return name and source.with_name(name)


def one_shot(table: pd.DataFrame, fine_tune: int = 0) -> pd.DataFrame:
    """Penalties by cell (rows) and method (columns)."""
    rows = table[(table["experiment"] == "one_shot") & (table["fine_tune"] == fine_tune)]
    if rows.empty:
        raise NotRunError(f"no penalties after {fine_tune} steps of fine-tuning")
    return rows.pivot_table(index=CELL, columns="method", values="penalty").dropna()


def setting(table: pd.DataFrame, layers: str, amount: str = "0.1") -> tuple[pd.DataFrame, str]:
    """The rows of one model, choice of layers and amount: the wanted ones if they exist."""
    rows = table[(table["experiment"] == "one_shot") & (table["fine_tune"] == 0)]
    for column, wanted in (("model", "medium_conv"), ("layers", layers), ("amount", amount)):
        values = list(rows[column].unique())
        chosen = wanted if wanted in values else next((k for k in values if k != "all"), values[0])
        rows = rows[rows[column] == chosen]
    first = rows.iloc[0]
    title = f"{first['model']}, {first['layers']}, {label(first['amount'])}"
    return rows, f"{title}, {rows['seed'].nunique()} seeds"


def label(amount: str) -> str:
    """`0.1` as 10 %, `1` as 1 unit."""
    return f"{amount} unit" if amount.isdecimal() else f"{100 * float(amount):g} %"


def interval(values: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Mean over columns (seeds) and half the width of its 80 % interval; NaN for one seed."""
    n = values.notna().sum(axis=1)
    quantile = pd.Series(student.ppf(0.9, n - 1), n.index)
    return values.mean(axis=1), quantile * values.std(axis=1) / np.sqrt(n)


def halves(table: pd.DataFrame, *, second: bool) -> pd.DataFrame:
    """The first or second half of each run, by step."""
    middle = table.groupby(["data", "model", "seed"])["step"].transform("max") / 2
    return table[(table["step"] > middle) == second]


def profile(penalties: pd.DataFrame, tau: np.ndarray) -> pd.DataFrame:
    """P_i(τ): share of cells with d_i ≤ τ min + (1 − τ) max over methods, (method → τ).

    The paper prints <, with which the best method would score 0 at τ = 1.
    """
    low, high = penalties.min(axis=1), penalties.max(axis=1)
    bound = low.to_numpy()[:, None] * tau + high.to_numpy()[:, None] * (1 - tau)
    slack = 1e-12 * np.abs(bound).max()  # τ min + (1 − τ) max may round below min
    shares = {m: (penalties[m].to_numpy()[:, None] <= bound + slack).mean(0) for m in penalties}
    return pd.DataFrame(shares, index=tau)


def ever_selected(rows: pd.DataFrame) -> pd.DataFrame:
    """Fraction of units selected at least once up to each step: columns seed, step, fraction."""
    fractions = []
    for seed, part in rows.sort_values("step").groupby("seed"):
        bits = [np.unpackbits(np.frombuffer(b, np.uint8)) for b in part["selected"]]
        units = int(part["units"].iloc[0])
        ever = np.maximum.accumulate(np.stack(bits)[:, :units])
        fractions.append(
            pd.DataFrame({"seed": seed, "step": part["step"], "fraction": ever.mean(1)})
        )
    return pd.concat(fractions)


def summary(table: pd.DataFrame, fine_tune: int = 0) -> pd.DataFrame:
    """Mean penalty of every method and how often bias propagation lowers it, by setting."""
    pairs = one_shot(table, fine_tune)
    scores = [s for s in SCORES if f"bp_{s}" in pairs]
    wins = pd.concat([(pairs[f"bp_{s}"] < pairs[s]).rename(s) for s in scores], axis=1).mean(axis=1)
    groups = pairs.assign(bp_wins=wins).groupby(["data", "model", "layers", "amount"])
    return groups.mean().assign(measurements=groups.size()).reset_index()


def later(table: pd.DataFrame) -> pd.DataFrame:
    """What is left of it: penalties after fine-tuning, and held-out accuracy of the copies.

    A line for each number of steps, then one for each amount that was removed little by little,
    whose copies trained on to the end: top-1 in % in place of penalties.
    """
    steps = table.loc[table["experiment"] == "one_shot", "fine_tune"].unique()
    tuned = [summary(table, int(n)).assign(after=f"{n:.0f} steps") for n in sorted(steps)]
    ends = table[table["experiment"] == "trained_on"]
    columns = {"index": ["data", "model", "layers", "amount"], "columns": "method"}
    if not ends.empty:
        copies = ends.pivot_table(values="held_out_top1_percent", **columns).reset_index()
        tuned.append(copies.assign(after="training on, top-1 %"))
    return pd.concat(tuned, ignore_index=True)


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """What bias propagation changes over the same seeds: with minus without, and the interval.

    Of penalties, in which less is better, and of the top-1 of copies that trained on, in which more
    is. A seed's value is the mean of its measurements.
    """
    steps = sorted(table.loc[table["experiment"] == "one_shot", "fine_tune"].unique())
    found = [_gains(one_shot(table, int(n)), f"{n:.0f} steps", "penalty") for n in steps]
    ends = table[table["experiment"] == "trained_on"]
    if not ends.empty:
        values = "held_out_top1_percent"
        copies = ends.pivot_table(values=values, index=CELL, columns="method")
        found.append(_gains(copies, "training on", "top-1 %"))
    return pd.DataFrame([row for rows in found for row in rows])


def _gains(cells: pd.DataFrame, after: str, figure: str) -> Iterator[dict[str, Any]]:
    place = ["data", "model", "layers", "amount"]
    means = cells.groupby([*place, "seed"]).mean()
    for where, seeds in means.groupby(place):
        for score in SCORES:
            if score in seeds and f"bp_{score}" in seeds:
                change = (seeds[f"bp_{score}"] - seeds[score]).dropna().tolist()
                half = half_width(change)
                yield dict(zip(place, where, strict=True)) | {
                    "after": after, "figure": figure, "seeds": len(change), "score": score,
                    "with minus without": np.mean(change), "95 % interval ±": half,
                }  # fmt: skip
