"""Compares two runs by their ratios: times of different days do not compare, ratios do."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks import goals, results
from benchmarks.results import OURS, Result, Row

FACTOR = 1.25
# A ratio has changed if that of the medians and that of the minima have: medians move with the
# load, minima with a lucky call.
STATISTICS = ("wall_median", "wall_min")
RATIOS = {
    "ours / best of Keras": lambda row, s: row.ratio(s),
    "ours XLA / best of Keras": lambda row, s: row.ratio(s, ours=(goals.OURS_XLA,)),
    "ours / copy limit": lambda row, s: row.over_copies(row.copies, OURS, s),
}


@dataclass(frozen=True)
class Change:
    """A ratio of a row that changed: medians before and now, and the lesser of the two factors."""

    row: Row
    ratio: str
    before: float
    now: float
    factor: float  # above 1 is worse

    @property
    def line(self) -> str:
        return (
            f"  {self.row.label}: {self.ratio} {self.before:.2f} -> {self.now:.2f} "
            f"({self.factor:.2f}x)"
        )


def changes(result: Result, before: Result, factor: float = FACTOR) -> list[Change]:
    """The ratios that got worse or better by more than `factor`, the worst first."""
    known = {(row.case, row.passes): row for row in before.rows}
    found = []
    for row in result.rows:
        for name, pairs in _ratios(row, known.get((row.case, row.passes))).items():
            factors = [now / then for then, now in pairs]
            if min(factors) > factor or max(factors) < 1 / factor:
                least = min(factors) if min(factors) > 1 else max(factors)
                found.append(Change(row, name, *pairs[0], least))
    return sorted(found, key=lambda change: -change.factor)


def _ratios(row: Row, before: Row | None) -> dict[str, list[tuple[float, float]]]:
    """Those that both have, before and now, by each of STATISTICS."""
    found = {}
    for name, ratio in RATIOS.items() if before else ():
        pairs = [(ratio(before, s), ratio(row, s)) for s in STATISTICS]
        if all(a and b for a, b in pairs):
            found[name] = pairs
    return found


def previous(machine: dict, folder: Path = results.FOLDER) -> Path | None:
    """The latest kept run before this one's date, of the same processor and threads."""
    for path in reversed(results.runs(folder)):
        kept = results.read(path).machine
        same = all(kept[key] == machine[key] for key in ("processor", "threads"))
        if same and kept["date"] <= machine["date"] and kept != machine:
            return path
    return None


def report(result: Result, before: Result, factor: float = FACTOR) -> str:
    found = changes(result, before, factor)
    worse = [change.line for change in found if change.factor > 1]
    better = [change.line for change in found if change.factor < 1]
    known = {(row.case, row.passes): row for row in before.rows}
    shared = sum(bool(_ratios(row, known.get((row.case, row.passes)))) for row in result.rows)
    commit = before.machine.get("commit")
    return "\n".join(
        [
            f"Compared with {before.machine['date']} (commit {commit}), {shared} rows in both, "
            f"by ratios that changed by more than {factor:g}x in medians and in minima:",
            f"worse: {len(worse)}",
            *worse,
            f"better: {len(better)}",
            *better,
        ]
    )
