"""One row of the table: a case and pass, every column cold and hot, two passes over all of them."""

from dataclasses import asdict

from benchmarks.gpu import columns, floors
from benchmarks.gpu.cases import CLONE, COMPILED, EAGER, FORWARD, OURS, ROWS, TRITON, TWICE, Case
from benchmarks.gpu.timing import Timer

COLD_CACHES = 4  # the sets in turn are so many times the size of the L2 cache
PASSES = 2
# Of y or dx, between ours and another column: that one has parameters of 16 bits, too.
AGREES = 0.02


def names(case: Case, passes: str) -> list[str]:
    """The columns of a row, but for the compiled one."""
    triton = [TRITON] if case.layout == ROWS and passes == FORWARD else []
    twice = [TWICE] if case.layer == "batch" else []
    return [OURS, *twice, EAGER, *triton, CLONE]


def compiled_names(case: Case, passes: str) -> list[str]:
    return [OURS, COMPILED]


def measure(case: Case, passes: str, wanted, library, timer: Timer, device, stream) -> dict:
    """The row as it is kept. A column that fails is the reason why.

    Args:
        wanted: the names of the columns.
    """
    row = {"case": asdict(case) | {"name": case.name}, "passes": passes, "columns": {}}
    runs, ours = {}, None
    with timer.scope():
        data = columns.data(case, passes, COLD_CACHES * timer.l2_bytes, device)
        row["sets"] = len(data.xs)
        for name in wanted:
            if name == TWICE and row.get("own_bytes") != row.get("bytes"):
                continue  # ours reads twice
            try:
                calls = columns.build(name, case, passes, data, library, stream)
                got = columns.result(name, case, calls[0]())
                if name == OURS:
                    row |= _floors(case, passes, library.kernels)
                    ours = got.clone()
                elif name != CLONE and ours is not None:
                    _expect_equal(got, ours)
                del got
                cold, hot = timer.capture(calls, cold=True), timer.capture(calls[:1], cold=False)
                runs[name] = {"cold": cold, "hot": hot}
                row["columns"][name] = {"cold": [], "hot": []}
                if why := cold.no_graph or hot.no_graph:
                    row["columns"][name]["no_graph"] = why
            except Exception as error:
                row["columns"][name] = _reason(error)
        for _ in range(PASSES):
            for name, run in runs.items():
                for kind, seconds in run.items():
                    row["columns"][name][kind].append(seconds())
    return row


def _expect_equal(got, want) -> None:
    """What is timed has to compute the same."""
    want = want.double()
    error = float((got.double() - want).norm() / want.norm())
    if not error < AGREES:
        raise ArithmeticError(f"its result differs from ours by {error:.2g}")


def _floors(case, passes, kernels) -> dict:
    return {
        "kernels": kernels,
        "bytes": floors.least_bytes(case, passes),
        "own_bytes": floors.own_bytes(case, passes, kernels),
    }


def _reason(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0] if first else ''}"[:300]


def copy_rate(timer: Timer, device, size: int = 1 << 30) -> float:
    """Bytes read and written in a second by copying a tensor of `size` bytes."""
    import torch

    with timer.scope():
        x = torch.empty(size, dtype=torch.uint8, device=device).random_()
        run = timer.capture([x.clone], cold=True)
        return 2 * size / min(run() for _ in range(PASSES))
