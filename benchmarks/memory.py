"""Memory of a training step: its peak, and what its forward pass keeps for the backward pass.

Each column has a process of its own. There a step runs once, so that everything is loaded and
traced; then, several times, Linux' high-water mark of resident memory is set back and read after
one step. For that a freed block must leave at once: TensorFlow takes memory from malloc, not from
the pool that comes with oneDNN (which computes nothing here), and malloc maps blocks one by one.

What is kept is measured as a tape's: x is made, the layer called, x and y are let go, and what is
still resident is what the tape holds.
"""

import dataclasses
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.cases import BOTH, Case
from benchmarks.results import Memory

CASES = (
    Case("LayerNormalization", (8192, 1024)),
    Case("RMSNormalization", (8192, 1024)),
    Case("GroupNormalization", (32, 56, 56, 64), groups=32),
    Case("InstanceNormalization", (32, 56, 56, 64)),
    Case("BatchNormalization", (32, 56, 56, 64)),
)
SMALL = (Case("GroupNormalization", (8, 56, 56, 64), groups=32),)
COLUMNS = ("ours", "ours XLA", "ours portable", "Keras eager", "Keras graph", "Keras XLA")
REPEATS = 5
AT_ONCE = 2  # processes: memory, unlike time, is not shared
ENVIRONMENT = {
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "KERAS_BACKEND": "tensorflow",
    "CUDA_VISIBLE_DEVICES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def measure(
    cases: Sequence[Case], columns: Sequence[str] = COLUMNS, repeats: int = REPEATS
) -> list[Memory]:
    """Case by case, in the order of the columns."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda column: _in_process(column, cases, repeats), columns))
    return [memory for of_case in zip(*found, strict=True) for memory in of_case]


def _in_process(column: str, cases: Sequence[Case], repeats: int) -> list[Memory]:
    question = json.dumps([column, [dataclasses.asdict(case) for case in cases], repeats])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", question],
        cwd=Path(__file__).parents[1],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        return [Memory(case, column, None, reason) for case in cases]
    answers = json.loads(lines[-1])
    return [
        Memory(case, column, peak, None, saved)
        for case, (peak, saved) in zip(cases, answers, strict=True)
    ]


def peak(column: str, case: Case, repeats: int) -> int:
    """Bytes over the baseline at the peak of a step, the least of the repeats. Linux only."""
    from benchmarks import tf_columns

    x, dy = tf_columns.data(case)
    call = tf_columns.column(column, case, BOTH, x, dy)
    call()
    return min(_peak(call) for _ in range(repeats))


def _peak(call: Callable) -> int:
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark becomes what is resident
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def saved(column: str, case: Case, repeats: int) -> int:
    """Bytes that the forward pass keeps for the backward pass, the least of the repeats."""
    import tensorflow as tf

    from benchmarks import tf_columns

    call = tf_columns.forward(column, case)

    def kept() -> int:
        gc.collect()
        before = _status("VmRSS")
        x = tf.random.normal(case.shape, dtype=case.dtype)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = call(x)
        del x, y
        return _status("VmRSS") - before

    kept()
    return min(kept() for _ in range(repeats))


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}.")


if __name__ == "__main__":
    import keras

    keras.config.disable_traceback_filtering()  # it puts the reason of an error into its middle
    name, kept, times = json.loads(sys.argv[1])
    cases = [Case.of(case) for case in kept]
    print(json.dumps([[peak(name, case, times), saved(name, case, times)] for case in cases]))
