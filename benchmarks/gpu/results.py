"""What is kept of a run, and the numbers that follow from it. Standard library only."""

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.cases import BACKWARD, COMPILED, EAGER, FORWARD, OURS, ROWS

FOLDER = Path(__file__).resolve().parents[1] / "results"
ONE_READ, TWO_READS = "one read", "two reads"


@dataclass(frozen=True)
class Row:
    """A timed row, as `measure` wrote it, or why there is none."""

    kept: dict
    copy_rate: float  # bytes a second, read and written

    @property
    def columns(self) -> dict:
        return self.kept.get("columns", {})

    @property
    def is_rows(self) -> bool:
        return self.kept["case"]["layout"] == ROWS

    def seconds(self, column: str, kind: str = "cold") -> float | None:
        """The mean of the passes; None where the column has no time."""
        found = self.columns.get(column)
        return statistics.mean(found[kind]) if isinstance(found, dict) and found[kind] else None

    @property
    def spread(self) -> float:
        """Between the passes, of any column's cold time: less than this is noise."""
        passes = [c["cold"] for c in self.columns.values() if isinstance(c, dict) and c["cold"]]
        return max((max(p) / min(p) - 1 for p in passes), default=0.0)

    def part(self, size: str = "bytes") -> float | None:
        """Of the rate of copying, by the bytes that must move or (own_bytes) that ours moves."""
        ours = self.seconds(OURS)
        if not ours or size not in self.kept or not self.copy_rate:
            return None
        return self.kept[size] / ours / self.copy_rate

    @property
    def reads(self) -> str | None:
        if "bytes" not in self.kept:
            return None
        return ONE_READ if self.kept["own_bytes"] == self.kept["bytes"] else TWO_READS

    def ratio(self, column: str, kind: str = "cold") -> float | None:
        """That column's time over ours: above 1 ours is faster."""
        ours, theirs = self.seconds(OURS, kind), self.seconds(column, kind)
        return theirs / ours if ours and theirs else None

    @property
    def slower(self) -> bool:
        """Than PyTorch's eager one, by more than the passes differ."""
        ratio = self.ratio(EAGER)
        return ratio is not None and ratio * (1 + min(self.spread, 0.05)) < 1


@dataclass(frozen=True)
class Goal:
    name: str
    least: float
    of: Callable[[Row], bool]
    size: str = "bytes"

    def reached(self, rows: Iterable[Row]) -> tuple[float | None, int]:
        """The geometric mean of the rows' parts of the copy rate, and how many rows they are."""
        parts = [row.part(self.size) for row in rows if self.of(row)]
        parts = [part for part in parts if part]
        return (statistics.geometric_mean(parts) if parts else None), len(parts)


GOALS = (
    Goal("rows, forward", 0.90, lambda r: r.is_rows and r.kept["passes"] == FORWARD),
    Goal("rows, backward", 0.80, lambda r: r.is_rows and r.kept["passes"] == BACKWARD),
    Goal("others, one read", 0.85, lambda r: not r.is_rows and r.reads == ONE_READ),
    Goal("two reads, of their own floor", 0.90, lambda r: r.reads == TWO_READS, "own_bytes"),
)


@dataclass(frozen=True)
class Result:
    machine: dict
    checks: list[dict]
    sanitizer: list[dict]
    times: list[dict]

    @property
    def copy_rate(self) -> float:
        return self.machine.get("copy_rate") or 0.0

    @property
    def rows(self) -> list[Row]:
        """Those with times; a compiled column joins the row that it belongs to."""
        found = {}
        for kept in self.times:
            if "columns" not in kept:
                continue
            key = kept["title"]
            if key in found:
                extra = {n: c for n, c in kept["columns"].items() if n == COMPILED}
                kept = found[key] | {"columns": found[key]["columns"] | extra}
            found[key] = kept
        return [Row(kept, self.copy_rate) for kept in found.values()]

    @property
    def failures(self) -> list[dict]:
        """Checks and sanitizers that say no; they make the exit code 1."""
        checked = [row for row in self.checks if row.get("failed") or row.get("problems")]
        return [*checked, *(row for row in self.sanitizer if row.get("failed"))]

    @property
    def missing(self) -> list[dict]:
        """What there is no result of, with its reason; failed timings too."""
        skipped = [r for r in (*self.checks, *self.sanitizer, *self.times) if r.get("skipped")]
        return [*skipped, *(row for row in self.times if row.get("failed"))]


def write(result: Result, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [f'"machine": {json.dumps(result.machine)}']
    for name in ("checks", "sanitizer", "times"):  # a line each, so that a diff can be read
        lines = ",\n".join(map(json.dumps, getattr(result, name)))
        parts.append(f'"{name}": [\n{lines}\n]')
    path.write_text("{" + ",\n".join(parts) + "}\n")


def read(path: Path) -> Result:
    return Result(**json.loads(path.read_text()))
