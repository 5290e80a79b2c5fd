"""Prints a run on the terminal, row by row and then what follows from it."""

from benchmarks import goals
from benchmarks.cases import Case
from benchmarks.results import ADDONS, COPY, KERAS, OURS, SLOWER, TORCH, Result, Row
from benchmarks.timing import Timing

COLUMNS = (OURS, "ours XLA", "ours portable", *KERAS, *TORCH, *ADDONS, COPY)
HEADS = (
    *("ours", "XLA", "portable", "K eager", "K graph", "K XLA"),
    *("torch", "torch cl", "addons", "addons XLA", "copy"),
)
WIDTH = 14
TITLE = """\
Milliseconds, minimum/median of the wall clock, columns in turn.
ours/K: ours over the best of Keras, medians; CPU: the same of CPU time, all threads.
GB/s: of the bytes that must move (x, y; then dy, x, dx); limit: ours over copying those.
"""


def opening(machine: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads a column, "
        f"load average {machine['load'][0]}\n{machine['system']}, {versions}, "
        f"torch {machine.get('torch')}, tensorflow-addons {machine.get('addons')}\n"
        f"memory of TensorFlow: {machine['allocator']}\n"
    )


def head() -> str:
    cells = "".join(f"{name:>{WIDTH}}" for name in HEADS)
    return f"{TITLE}\n{'':44}{cells}{'ours/K':>8}{'CPU':>7}{'GB/s':>7}{'limit':>7}"


def line(row: Row) -> str:
    case = row.case
    cells = "".join(f"{_cell(row.timing(name)):>{WIDTH}}" for name in COLUMNS)
    numbers = (
        f"{_number(row.ratio()):>8}{_number(row.ratio('cpu_median')):>7}"
        f"{_number(row.gigabytes_per_second):>7}{_number(row.to_limit):>7}"
    )
    flag = f"  SLOWER than {SLOWER:g}x" if row.too_slow else ""
    passes = f"{_shape(case)} {case.dtype} {row.passes}"
    return f"{case.name}\n  {passes:42}{cells}{numbers}{flag}"


def summary(result: Result) -> str:
    lines = []
    if result.mean_ratio:
        slow, rows = len(result.slow_rows), len(result.compared)
        lines += [
            f"ours over the best of Keras: geometric mean {result.mean_ratio:.3f}, "
            f"worst {max(row.ratio() for row in result.compared):.2f}; "
            f"{slow} of {rows} rows slower than {SLOWER:g}x"
        ]
        lines += [f"  {row.label}: {row.ratio():.2f}" for row in result.slow_rows]
    for sentence, rows in goals.summary(result):
        lines += [sentence, *(f"  {row}" for row in rows)]
    for column, reasons in result.why_not().items():
        lines += [f"{column} lacks {count}: {reason}" for reason, count in reasons.items()]
    for case, of_case in result.memory_by_case.items():
        lines.append(
            f"peak memory of a training step through {case.name} {_shape(case)}, of which y and dx "
            f"are {_mib(of_case[0].outputs)}; and what is kept for the backward pass, of which x "
            f"is {_mib(case.bytes)}:"
        )
        lines += [
            f"  {m.column:14} {m.why_not or f'{_mib(m.bytes):>10}{_mib(m.saved):>12}'}"
            for m in of_case
        ]
    return "\n".join(lines)


def _shape(case: Case) -> str:
    return "x".join(map(str, case.shape))


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.1f} MiB"


def _milliseconds(value: float) -> str:
    digits = 0 if value >= 100 else 3
    return f"{value:.{digits}f}" if value >= 100 or value < 0.01 else f"{value:.3g}"


def _cell(timing: Timing | None) -> str:
    if timing is None:
        return "-"
    return f"{_milliseconds(timing.wall_min)}/{_milliseconds(timing.wall_median)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"
