"""`python -m benchmarks`: measures, prints, keeps the JSON. About ten minutes; --quick is one."""

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks import machine, report, results
from benchmarks.cases import CASES, QUICK, Case
from benchmarks.timing import Local, interleave


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    _set_up(options.threads)
    result = run(options)
    print("\n" + report.summary(result))
    path = options.json or results.FOLDER / f"{result.machine['date']}-cpu.json"
    if options.json or not (options.quick or options.only):
        results.write(result, path)
        print(f"kept: {path}")
    return 0


def run(options: argparse.Namespace) -> results.Result:
    from benchmarks import memory, tf_columns
    from benchmarks.worker import Torch

    torch = None if options.no_torch else Torch(options.threads)
    about = machine.describe(options.threads)
    about |= {"torch": torch and torch.version, "allocator": tf_columns.allocator()}
    print(report.opening(about))
    print(report.head(), flush=True)
    begin, rows = time.perf_counter(), []
    cases = [c for c in (QUICK if options.quick else CASES) if _asked(c, options.only)]
    pairs = [(case, passes) for case in cases for passes in case.passes]
    for done, (case, passes) in enumerate(pairs):
        left = 60 * options.minutes - (time.perf_counter() - begin)
        share = 0.5 * left / (len(pairs) - done)  # the other half goes into building the columns
        rows.append(_row(case, passes, torch, options, min(options.seconds, share)))
        print(report.line(rows[-1]), flush=True)
    if torch:
        torch.close()
    peaks = []
    if not options.no_memory:
        peaks = memory.measure(memory.SMALL if options.quick else memory.CASE)
    about["load"].append(machine.load())
    print(f"\n{time.perf_counter() - begin:.0f} seconds, load {about['load'][1]} at the end")
    return results.Result(about, rows, peaks)


def _asked(case: Case, only: str) -> bool:
    return only in f"{case.name} {case.family} {case.dtype}"


def _row(case: Case, passes: str, torch, options, seconds: float) -> results.Row:
    """Builds the columns, times them in turn, and drops them."""
    from benchmarks import tf_columns

    x, dy = tf_columns.data(case)
    columns, why_not = {}, {}
    for name in tf_columns.COLUMNS:
        try:
            columns[name] = Local(tf_columns.column(name, case, passes, x, dy))
        except Exception as error:  # a column that cannot run is reported, the others go on
            why_not[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    columns[results.COPY] = Local(tf_columns.copy(x, options.threads))
    for name, found in (torch.open(case, passes) if torch else {}).items():
        (why_not if isinstance(found, str) else columns)[name] = found
    timings = interleave(columns, rounds=options.rounds, seconds=seconds)
    return results.Row(case, passes, {**timings, **why_not})


def _set_up(threads: int) -> None:
    os.environ |= {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # each column is traced anew, which is meant
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    keras.config.disable_traceback_filtering()  # it puts the reason of an error into its middle


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="few, small rows; kept only with --json")
    add("--json", type=Path, help="where to keep the result (default: benchmarks/results/)")
    add("--only", default="", metavar="TEXT", help="rows whose layer, family or dtype holds TEXT")
    add("--threads", type=int, default=2, help="for each column (default: 2)")
    add("--rounds", type=int, default=7, help="visits of each column in a row (default: 7)")
    add("--seconds", type=float, default=2.5, help="a row's rounds end then (default: 2.5)")
    add("--minutes", type=float, default=8.5, help="all rows; then fewest rounds (default: 8.5)")
    add("--no-torch", action="store_true")
    add("--no-memory", action="store_true")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds = min(options.rounds, 5), min(options.seconds, 1.0)
    return options


if __name__ == "__main__":
    sys.exit(main())
