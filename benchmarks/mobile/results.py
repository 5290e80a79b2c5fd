"""What is kept of a run. Imports nothing but the stdlib."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "results"

# The tables of `Timed` and of `Quantized`.
NORMS, WRAPPERS, APPLICATIONS = "norms", "wrappers", "applications"
INT16X8, GAIN = "int16x8", "int8 at varying gain"

# Columns: the files of a network. "without" is without its norm, by the same exporter.
KERAS, CPU, ANY, CUSTOM = "Keras", "cpu", "any", "custom op"
KERAS_WITHOUT, WITHOUT = "Keras without", "without"
OURS = "ours"
NOT_FINITE = -150.0  # dB: what `keras_norms.tflite.measure` calls an output that is not finite
RESOLUTION = 0.01  # of a file's time: smaller differences between two files are not seen


@dataclass(frozen=True)
class Latency:
    """Microseconds of a run: the least, the 10th percentile and the median of so many calls."""

    least: float
    low: float
    median: float
    calls: int


@dataclass(frozen=True)
class File:
    """A file; `folded` of `norms` are in the weights of their neighbours, None if not told."""

    bytes: int
    ops: dict[str, int]
    latency: Latency | None = None
    norms: int | None = None
    folded: int | None = None


@dataclass(frozen=True)
class Timed:
    """A network's files by column, or the line why there is none.

    Attributes:
        in_keras: whether the network is of Keras' own layers. If not, "Keras" is its export of
            ours.
    """

    table: str
    name: str
    net: str
    in_keras: bool
    files: dict[str, File | str]

    def file(self, column: str) -> File | None:
        found = self.files.get(column)
        return found if isinstance(found, File) else None

    def time(self, column: str) -> float | None:
        file = self.file(column)
        return file.latency.least if file and file.latency else None

    def without(self, column: str) -> str:
        return KERAS_WITHOUT if column == KERAS else WITHOUT

    def cost(self, column: str) -> float | None:
        """What the norm takes: the least time with it over the least without, not below 0."""
        times = self.time(column), self.time(self.without(column))
        return None if None in times else max(0.0, times[0] - times[1])

    def least_cost(self) -> float | None:
        """What can be told from nothing."""
        base = self.time(WITHOUT)
        return base and base * RESOLUTION

    def gain(self, column: str) -> float | None:
        """How many times less the norm takes than in Keras' file; at least, where it is so little
        that it cannot be told from nothing. None where Keras' cannot be, either."""
        keras, ours, least = self.cost(KERAS), self.cost(column), self.least_cost()
        if keras is None or ours is None or keras < least:
            return None
        return keras / max(ours, least)

    def growth(self, column: str) -> int | None:
        """Bytes that the norm adds to the file."""
        files = self.file(column), self.file(self.without(column))
        return None if None in files else files[0].bytes - files[1].bytes


@dataclass(frozen=True)
class OnGpu:
    """A layer on the GPU delegate in float16, by "Keras" and "ours".

    `outcomes` are SQNRs in dB by the deviation of the input, or why not all of a file is taken.
    """

    name: str
    in_keras: bool
    outcomes: dict[str, dict[str, float] | str]


@dataclass(frozen=True)
class Quantized:
    """A network in integers by column: SQNR in dB over all samples and of the worst one, or the
    line why there is no file."""

    table: str
    name: str
    net: str
    in_keras: bool
    columns: dict[str, list[float] | str]

    def sqnr(self, column: str) -> float | None:
        found = self.columns.get(column)
        return None if found is None or isinstance(found, str) else found[0]


@dataclass(frozen=True)
class Errors:
    """A layer's largest difference from Keras over the largest output, by target and runtime; or
    the line why it was not converted."""

    name: str
    targets: dict[str, dict[str, float] | str]


@dataclass(frozen=True)
class Result:
    """`missing` has the reason for each runtime or library that is not there."""

    machine: dict
    missing: dict[str, str]
    timed: list[Timed] = field(default_factory=list)
    gpu: list[OnGpu] = field(default_factory=list)
    quantized: list[Quantized] = field(default_factory=list)
    errors: list[Errors] = field(default_factory=list)

    def of(self, table: str) -> list:
        """The rows of a table of `Timed` or `Quantized`."""
        return [row for row in (*self.timed, *self.quantized) if row.table == table]


def decibels(sqnr: float) -> str:
    return "not finite" if sqnr <= NOT_FINITE else f"{sqnr:.1f}"


LISTS = ("timed", "gpu", "quantized", "errors")


def write(result: Result, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = dataclasses.asdict(result)
    parts = [f'"{name}": {json.dumps(kept[name])}' for name in ("machine", "missing")]
    for name in LISTS:  # each row on a line of its own, so that a diff can be read
        lines = ",\n".join(json.dumps(row, allow_nan=False) for row in kept[name])
        parts.append(f'"{name}": [\n{lines}\n]')
    path.write_text("{" + ",\n".join(parts) + "}\n")


def read(path: Path) -> Result:
    kept = json.loads(path.read_text())
    return Result(
        machine=kept["machine"],
        missing=kept["missing"],
        timed=[_timed(row) for row in kept["timed"]],
        gpu=[OnGpu(**row) for row in kept["gpu"]],
        quantized=[Quantized(**row) for row in kept["quantized"]],
        errors=[Errors(**row) for row in kept["errors"]],
    )


def _timed(row: dict) -> Timed:
    files = {
        column: found if isinstance(found, str) else _file(found)
        for column, found in row["files"].items()
    }
    return Timed(**row | {"files": files})


def _file(kept: dict) -> File:
    latency = kept["latency"] and Latency(**kept["latency"])
    return File(**kept | {"latency": latency})


def latest(folder: Path = FOLDER) -> Path:
    """The last kept run: their names begin with the date."""
    kept = sorted(folder.glob("*-mobile.json"))
    if not kept:
        raise FileNotFoundError(
            f"No *-mobile.json is kept in {folder}. `python -m benchmarks.mobile` makes one."
        )
    return kept[-1]
