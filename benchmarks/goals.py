"""The few numbers that say how a run stands: against Keras, PyTorch and the floor of memory."""

import statistics

from benchmarks import floor
from benchmarks.cases import BOTH, FORWARD
from benchmarks.results import OURS, TORCH, Result, Row

COMPILED = ("Keras graph", "Keras XLA")
OURS_XLA = "ours XLA"


def mean_ratio(result: Result, passes: str, column: str = OURS) -> float | None:
    """Geometric mean, over the usual shapes, of ours over the better of Keras' graph and XLA."""
    rows = [r for r in result.rows if r.case.family == "usual" and r.passes == passes]
    ratios = [row.ratio(ours=(column,), others=COMPILED) for row in rows]
    ratios = [ratio for ratio in ratios if ratio]
    return statistics.geometric_mean(ratios) if ratios else None


def behind_torch(result: Result) -> list[tuple[Row, float]]:
    """The rows that PyTorch, in the better of its formats, computes faster; ours over its time."""
    ratios = [(row, row.ratio(others=TORCH)) for row in result.rows]
    return [(row, ratio) for row, ratio in ratios if ratio and ratio > 1]


def over_floor(result: Result) -> list[tuple[Row, float]]:
    """The rows of large tensors, and ours over their floor. No row without the cache's size."""
    cache = result.machine.get("cache")
    if cache is None:
        return []
    large = [row for row in result.rows if row.case.bytes >= floor.LARGE]
    times = [(r, r.over_copies(floor.copies(r.case, r.passes, cache))) for r in large]
    return [(row, ratio) for row, ratio in times if ratio]


def summary(result: Result) -> list[tuple[str, list[str]]]:
    """Sentences, each with the rows that fall short of it."""
    found = []
    for passes in (BOTH, FORWARD):
        ours, xla = (mean_ratio(result, passes, column) for column in (OURS, OURS_XLA))
        if ours:
            with_xla = f" (under XLA {1 / xla:.2f})" if xla else ""
            found.append(
                f"{passes} of the usual shapes: {1 / ours:.2f} times faster{with_xla} than the "
                "better of Keras' graph and XLA, geometric mean.",
            )
    found = [(sentence, []) for sentence in found]
    with_torch = [row for row in result.rows if row.ratio(others=TORCH)]
    if with_torch:
        slower = behind_torch(result)
        found.append(
            (
                f"PyTorch is faster in {len(slower)} of {len(with_torch)} rows (named with our "
                "time over its).",
                _named(slower),
            )
        )
    if measured := over_floor(result):
        far = [(row, ratio) for row, ratio in measured if ratio > floor.CLOSE]
        found.append(
            (
                f"{len(far)} of {len(measured)} rows of tensors of {floor.LARGE / 1e6:g} MB and "
                f"more take over {floor.CLOSE:g} times their own floor: the copies that they must "
                f"make with a cache of {result.machine['cache'] / 2**20:.0f} MiB, 1 to 1.5 forward "
                "and 2.5 to 4 forward and backward.",
                _named(far),
            )
        )
    return found


def _named(rows: list[tuple[Row, float]]) -> list[str]:
    return [f"{row.label}: {ratio:.1f}" for row, ratio in rows]
