"""Times files in turn: thread CPU time, one thread, XNNPACK, of the calls alone.

Of CPU time the disturbances that are left are those of shared caches and clocks, which only add to
it: least times are compared.
"""

import time
from collections.abc import Iterable

import numpy as np

from benchmarks.mobile.results import Latency
from keras_norms.tflite import Runtime, custom_op

CALLS = 3  # a visit; one more before them meets the caches that the file before has left


class Visited:
    """A file that is open, and the times of its calls."""

    def __init__(self, content: bytes, with_op: bool = False):
        delegates = [custom_op.delegate()] if with_op else []
        self.interpreter = Runtime().open(content, delegates)
        self.interpreter.allocate_tensors()
        draw = np.random.default_rng(0)
        for detail in self.interpreter.get_input_details():
            x = draw.normal(size=detail["shape"]).astype(detail["dtype"])
            self.interpreter.set_tensor(detail["index"], x)

    def visit(self) -> list[int]:
        """Nanoseconds of each call."""
        self.interpreter.invoke()
        times = []
        for _ in range(CALLS):
            start = time.thread_time_ns()
            self.interpreter.invoke()
            times.append(time.thread_time_ns() - start)
        return times


def visits(files: dict[str, Visited], rounds: int) -> dict[str, list[int]]:
    """Each file is visited once a round."""
    times: dict[str, list[int]] = {name: [] for name in files}
    for _ in range(rounds):
        for name, file in files.items():
            times[name] += file.visit()
    return times


def latency(nanoseconds: Iterable[int]) -> Latency:
    times = np.array(list(nanoseconds)) / 1e3
    least, low, median = (round(float(np.percentile(times, p)), 2) for p in (0, 10, 50))
    return Latency(least, low, median, times.size)
