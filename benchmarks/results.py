"""What is kept of a run, and the numbers of a row. Imports nothing but the stdlib."""

import dataclasses
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import floor
from benchmarks.cases import Case
from benchmarks.timing import Timing

FOLDER = Path(__file__).parent / "results"
OURS = "ours"
KERAS = ("Keras eager", "Keras graph", "Keras XLA")
TORCH = ("torch NCHW", "torch channels_last")
ADDONS = ("addons graph", "addons XLA")
COPY = "copy"
SLOWER = 2.0  # times the best of Keras: no row may be slower


@dataclass(frozen=True)
class Row:
    """One case and pass: a Timing per column, or the line why there is none."""

    case: Case
    passes: str
    columns: dict[str, Timing | str]

    @property
    def label(self) -> str:
        """Its name in a line of text."""
        shape = "x".join(map(str, self.case.shape))
        return f"{self.case.name} {shape} {self.case.dtype} {self.passes}"

    def timing(self, name: str) -> Timing | None:
        found = self.columns.get(name)
        return found if isinstance(found, Timing) else None

    def best(self, names: Iterable[str], statistic: str = "wall_median") -> Timing | None:
        timings = [t for t in map(self.timing, names) if t]
        return min(timings, key=lambda t: getattr(t, statistic), default=None)

    def ratio(
        self,
        statistic: str = "wall_median",
        ours: Iterable[str] = (OURS,),
        others: Iterable[str] = KERAS,
    ) -> float | None:
        """The best of ours over the best of the others, those of Keras: below 1 is faster."""
        mine, theirs = self.best(ours, statistic), self.best(others, statistic)
        return getattr(mine, statistic) / getattr(theirs, statistic) if mine and theirs else None

    @property
    def too_slow(self) -> bool:
        """By the medians or by the minima, so that no disturbance hides a slow row."""
        return any((self.ratio(s) or 0) > SLOWER for s in ("wall_median", "wall_min"))

    @property
    def copies(self) -> float | None:
        """Bytes that must move, in copies of x: `floor.copies` with a cache of any size."""
        return floor.copies(self.case, self.passes)

    @property
    def gigabytes_per_second(self) -> float | None:
        """Of the bytes that must move, by ours."""
        ours = self.timing(OURS)
        known = ours and self.copies
        return self.copies * 2 * self.case.bytes / ours.wall_median / 1e6 if known else None

    @property
    def to_limit(self) -> float | None:
        """Ours over the time of those copies: 1 is the limit of the memory."""
        return self.over_copies(self.copies)

    def over_copies(
        self, copies: float | None, column: str = OURS, statistic: str = "wall_median"
    ) -> float | None:
        """A column over the time of so many copies of x."""
        timing, copy = self.timing(column), self.timing(COPY)
        if not (timing and copy and copies):
            return None
        return getattr(timing, statistic) / (copies * getattr(copy, statistic))


@dataclass(frozen=True)
class Memory:
    """Peak of a training step's memory over what was there before it, least of the repeats.

    `outputs` is what the step must hand out: y and dx. `saved` is what the forward pass, compiled
    by itself, keeps for the backward pass, x included.
    """

    case: Case
    column: str
    bytes: int | None
    why_not: str | None = None
    saved: int | None = None

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
        ratios = [row.ratio() for row in self.compared]
        return statistics.geometric_mean(ratios) if ratios else None

    @property
    def compared(self) -> list[Row]:
        """The rows that ours and Keras both have."""
        return [row for row in self.rows if row.ratio()]

    @property
    def memory_by_case(self) -> dict[Case, list[Memory]]:
        found: dict[Case, list[Memory]] = {}
        for memory in self.memory:
            found.setdefault(memory.case, []).append(memory)
        return found

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
    kept = runs(folder)
    if not kept:
        raise FileNotFoundError(
            f"No *-cpu.json is kept in {folder}. `python -m benchmarks` makes one."
        )
    return kept[-1]


def runs(folder: Path = FOLDER) -> list[Path]:
    """The kept runs on a CPU, by date."""
    return sorted(folder.glob("*-cpu.json"))
