"""Peak memory of a training step: forward, backward, y and the gradients handed out.

Each column has a process of its own. There the step runs once, so that everything is loaded and
traced; then, several times, Linux' high-water mark of resident memory is set back and read after
one step. For that a freed block must leave at once: TensorFlow takes memory from malloc, not from
the pool that comes with oneDNN (which computes nothing here), and malloc maps blocks one by one.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.cases import BOTH, Case
from benchmarks.results import Memory

CASE = Case("GroupNormalization", (32, 56, 56, 64), groups=32)
SMALL = Case("GroupNormalization", (8, 56, 56, 64), groups=32)
COLUMNS = ("ours", "ours XLA", "ours portable", "Keras eager", "Keras graph", "Keras XLA")
REPEATS = 5
ENVIRONMENT = {
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "KERAS_BACKEND": "tensorflow",
    "CUDA_VISIBLE_DEVICES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def measure(case: Case, columns: Sequence[str] = COLUMNS, repeats: int = REPEATS) -> list[Memory]:
    return [_in_process(column, case, repeats) for column in columns]


def _in_process(column: str, case: Case, repeats: int) -> Memory:
    question = json.dumps([column, dataclasses.asdict(case), repeats])
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
        return Memory(case, column, None, reason)
    return Memory(case, column, min(json.loads(lines[-1])))


def peaks(column: str, case: Case, repeats: int) -> list[int]:
    """Bytes over the baseline at the peak of each step. Linux only."""
    from benchmarks import tf_columns

    x, dy = tf_columns.data(case)
    call = tf_columns.column(column, case, BOTH, x, dy)
    call()
    return [_peak(call) for _ in range(repeats)]


def _peak(call: Callable) -> int:
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark becomes what is resident
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}.")


if __name__ == "__main__":
    import keras

    keras.config.disable_traceback_filtering()  # it puts the reason of an error into its middle
    name, kept, times = json.loads(sys.argv[1])
    print(json.dumps(peaks(name, Case.of(kept), times)))
