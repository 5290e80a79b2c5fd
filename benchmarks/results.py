"""What is kept of a run, and the numbers that follow from it. Imports nothing but the stdlib."""

import dataclasses
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cases import BOTH, Case
from benchmarks.timing import Timing

FOLDER = Path(__file__).parent / "results"
OURS = "ours"
KERAS = ("Keras eager", "Keras graph", "Keras XLA")
TORCH = ("torch NCHW", "torch channels_last")
COPY = "copy"
SLOWER = 2.0  # times the best of Keras: no row may be slower


@dataclass(frozen=True)
class Row:
    """One case and pass: a Timing per column, or the line why there is none."""

    case: Case
    passes: str
    columns: dict[str, Timing | str]

    def timing(self, name: str) -> Timing | None:
        found = self.columns.get(name)
        return found if isinstance(found, Timing) else None

    def best(self, names: Iterable[str], statistic: str = "wall_median") -> Timing | None:
        timings = [t for t in map(self.timing, names) if t]
        return min(timings, key=lambda t: getattr(t, statistic), default=None)

    def ratio(self, statistic: str = "wall_median") -> float | None:
        """Ours over the best of Keras: below 1 is faster."""
        ours, keras = self.timing(OURS), self.best(KERAS, statistic)
        return getattr(ours, statistic) / getattr(keras, statistic) if ours and keras else None

    @property
    def too_slow(self) -> bool:
        """By the medians or by the minima, so that no disturbance hides a slow row."""
        return any((self.ratio(s) or 0) > SLOWER for s in ("wall_median", "wall_min"))

    @property
    def copies(self) -> float:
        """Bytes that must move, in copies of x: x, y; then also dy, x, dx."""
        return 2.5 if self.passes == BOTH else 1.0

    @property
    def gigabytes_per_second(self) -> float | None:
        """Of the bytes that must move, by ours."""
        ours = self.timing(OURS)
        return self.copies * 2 * self.case.bytes / ours.wall_median / 1e6 if ours else None

    @property
    def to_limit(self) -> float | None:
        """Ours over the time of those copies: 1 is the limit of the memory."""
        ours, copy = self.timing(OURS), self.timing(COPY)
        return ours.wall_median / (self.copies * copy.wall_median) if ours and copy else None


@dataclass(frozen=True)
class Memory:
    """Peak of a training step's memory over what was there before it, least of the repeats.

    `outputs` is what the step must hand out: y and dx.
    """

    case: Case
    column: str
    bytes: int | None
    why_not: str | None = None

    @property
    def outputs(self) -> int:
        return 2 * self.case.bytes


@dataclass(frozen=True)
class Result:
    machine: dict
    rows: list[Row]
    memory: list[Memory]

    @property
    def slow_rows(self) -> list[Row]:
        return [row for row in self.rows if row.too_slow]

    @property
    def mean_ratio(self) -> float | None:
        """Geometric mean of the rows' ratios."""
        ratios = [r for r in (row.ratio() for row in self.rows) if r]
        return statistics.geometric_mean(ratios) if ratios else None

    def why_not(self) -> dict[str, dict[str, int]]:
        """Per column: the reasons why rows lack it, and how many rows each."""
        reasons: dict[str, dict[str, int]] = {}
        for row in self.rows:
            for name, found in row.columns.items():
                if isinstance(found, str):
                    counts = reasons.setdefault(name, {})
                    counts[found] = counts.get(found, 0) + 1
        return reasons


def write(result: Result, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = dataclasses.asdict(result)
    parts = [f'"machine": {json.dumps(kept["machine"])}']
    for name in ("rows", "memory"):  # each on a line of its own, so that a diff can be read
        lines = ",\n".join(map(json.dumps, kept[name]))
        parts.append(f'"{name}": [\n{lines}\n]')
    path.write_text("{" + ",\n".join(parts) + "}\n")


def read(path: Path) -> Result:
    kept = json.loads(path.read_text())
    rows = [
        Row(
            case=Case.of(row["case"]),
            passes=row["passes"],
            columns={
                name: found if isinstance(found, str) else Timing(**found)
                for name, found in row["columns"].items()
            },
        )
        for row in kept["rows"]
    ]
    memory = [Memory(**m | {"case": Case.of(m["case"])}) for m in kept["memory"]]
    return Result(kept["machine"], rows, memory)


def latest(folder: Path = FOLDER) -> Path:
    """The last kept run on a CPU: their names begin with the date."""
    kept = sorted(folder.glob("*-cpu.json"))
    if not kept:
        raise FileNotFoundError(
            f"No *-cpu.json is kept in {folder}. `python -m benchmarks` makes one."
        )
    return kept[-1]
