"""`python -m benchmarks`: measures, prints, keeps the JSON. About ten minutes; --quick is one."""

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks import compare, machine, report, results
from benchmarks.cases import CASES, QUICK, Case
from benchmarks.timing import Local, interleave

ADDONS_PYTHON = Path(__file__).parents[1] / ".venv-addons/bin/python"  # `make test-peers` makes it

ADDONS_FAMILIES = ("usual", "inference", "more layers")  # its slow rows would take half of the time


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    if options.compare is not None:
        kept = results.read(options.json or results.latest())
        before = options.compare if options.compare.name else compare.previous(kept.machine)
        print(_compared(kept, before))
        return 0
    _set_up(options.threads)
    result = run(options)
    print("\n" + report.summary(result))
    print("\n" + _compared(result, compare.previous(result.machine)))
    path = options.json or results.FOLDER / f"{result.machine['date']}-cpu.json"
    if options.json or not (options.quick or options.only):
        results.write(result, path)
        print(f"kept: {path}")
    return 0


def _compared(result: results.Result, before: Path | None) -> str:
    if before is None:
        return "Nothing to compare with: no run of this processor and threads was kept before."
    return compare.report(result, results.read(before))


def run(options: argparse.Namespace) -> results.Result:
    from benchmarks import memory, tf_columns

    peers = [] if options.no_peers else _peers(options.threads)
    about = machine.describe(options.threads)
    about |= {peer.name: peer.version for peer in peers}
    about["allocator"] = tf_columns.allocator()
    print(report.opening(about))
    print(report.head(), flush=True)
    begin, rows = time.perf_counter(), []
    cases = [c for c in (QUICK if options.quick else CASES) if _asked(c, options.only)]
    pairs = [(case, passes) for case in cases for passes in case.passes]
    for done, (case, passes) in enumerate(pairs):
        left = 60 * options.minutes - (time.perf_counter() - begin)
        share = 0.5 * left / (len(pairs) - done)  # the other half goes into building the columns
        rows.append(_row(case, passes, peers, options, min(options.seconds, share)))
        print(report.line(rows[-1]), flush=True)
    for peer in peers:
        peer.close()
    peaks = []
    if not options.no_memory:
        peaks = memory.measure(memory.SMALL if options.quick else memory.CASES)
    about["load"].append(machine.load())
    print(f"\n{time.perf_counter() - begin:.0f} seconds, load {about['load'][1]} at the end")
    return results.Result(about, rows, peaks)


def _asked(case: Case, only: str) -> bool:
    return only in f"{case.name} {case.family} {case.dtype}"


def _peers(threads: int) -> list:
    """PyTorch beside TensorFlow, and tensorflow-addons in its own environment."""
    from benchmarks.worker import Worker

    python = Path(os.environ.get("KERAS_NORMS_ADDONS_PYTHON") or ADDONS_PYTHON)
    return [Worker("torch", threads), Worker("addons", threads, python, ADDONS_FAMILIES)]


def _row(case: Case, passes: str, peers, options, seconds: float) -> results.Row:
    """Builds the columns, times them in turn, and drops them."""
    from benchmarks import tf_columns

    x, dy = tf_columns.data(case)
    columns, why_not = {}, {}
    for name in tf_columns.names(case):
        try:
            columns[name] = Local(tf_columns.column(name, case, passes, x, dy))
        except Exception as error:  # a column that cannot run is reported, the others go on
            why_not[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    if not case.model:
        columns[results.COPY] = Local(tf_columns.copy(x, options.threads))
        for peer in peers:
            for name, found in peer.open(case, passes).items():
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
    add("--minutes", type=float, default=8.0, help="all rows; then fewest rounds (default: 8)")
    add("--no-peers", action="store_true", help="without PyTorch and tensorflow-addons")
    add("--no-memory", action="store_true")
    add(
        "--compare",
        type=Path,
        nargs="?",
        const=Path(),
        metavar="JSON",
        help="measures nothing: compares what is kept, the last run or --json, with this one "
        "(default: the one before, of the same processor and threads)",
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds = min(options.rounds, 5), min(options.seconds, 1.0)
    return options


if __name__ == "__main__":
    sys.exit(main())
