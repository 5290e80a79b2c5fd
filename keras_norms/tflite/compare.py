"""Two `.tflite` files on the same samples, and how fast each is."""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_norms.tflite import custom_op, progress
from keras_norms.tflite.errors import ConversionError
from keras_norms.tflite.inspection import Inspection, Tensor, inspect, read
from keras_norms.tflite.measure import Distance, distance
from keras_norms.tflite.probe import probe
from keras_norms.tflite.runtimes import Runtime
from keras_norms.tflite.signature import Input, fits, is_array, per_input
from keras_norms.tflite.steps import whole
from keras_norms.tflite.text import as_json, table
from keras_norms.tflite.verify import generate, generated_shape

TIMEOUT = 600.0  # seconds
LARGEST_NOISE = 1 << 30  # bytes of samples that are made up


@dataclass(frozen=True)
class Comparison:
    """The second file beside the first. `print(comparison)` shows a table.

    Attributes:
        a, b: the paths.
        samples: how many were run.
        outputs: of each output, how far it is from the first file's, in its own unit and in dB.
        sizes, ops: bytes and number of operations of each.
    """

    a: str
    b: str
    samples: int
    outputs: dict[str, Distance]
    sizes: tuple[int, int]
    ops: tuple[int, int]

    def to_json(self) -> str:
        return as_json(self)

    def __str__(self) -> str:
        rows = [
            ("a", f"{self.a}: {self.sizes[0]:,} bytes, {self.ops[0]} operations"),
            ("b", f"{self.b}: {self.sizes[1]:,} bytes, {self.ops[1]} operations"),
            ("samples", f"{self.samples}"),
        ]
        for name, d in self.outputs.items():
            rows.append(
                (
                    f"output {name}",
                    f"SQNR {d.sqnr:.1f} dB (worst batch {d.worst:.1f}), largest difference "
                    f"{d.max_error:.3g}",
                )
            )
        return table(rows)


def compare(
    a: str | os.PathLike, b: str | os.PathLike, data: Any = None, *, timeout: float = TIMEOUT
) -> Comparison:
    """Runs two files in LiteRT on the same samples; each in a process of its own.

    Args:
        a, b: the files. Their inputs agree, and their outputs, by name or, if there is one, alone.
        data: `(samples, ...)`, an array for files of one input, else a dict by input name; or a
            tf.data.Dataset of such or of `(x, y)`, as for `fit`. The number of samples is a
            multiple of the files' batch size. None: 8 samples of noise.
        timeout: seconds > 0 that each file may take.

    Raises: ConversionError, a ValueError, if a file is damaged, cannot be run or takes too long, or
        if they do not fit each other; ValueError, if the samples do not fit them.
    """
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not timeout > 0:
        raise ValueError(f"`timeout` must be a number above 0. Received: {timeout!r}")
    first, second = inspect(a), inspect(b)
    data = whole(data, _inputs(first), ordered=False)  # once: it may be shuffled each time
    batches = _batches(first, data)
    progress.say(f"running {first.path}")
    want = _outputs(first, batches, timeout)
    progress.say(f"running {second.path}")
    got = _outputs(second, _batches(second, data), timeout)
    if len(want) == len(got) == 1:
        got = dict.fromkeys(want, next(iter(got.values())))
    shapes = [{name: array.shape for name, array in found.items()} for found in (want, got)]
    if shapes[0] != shapes[1]:
        raise ConversionError(
            f"The files' outputs must agree. Received: {shapes[0]} in {first.path!r} and "
            f"{shapes[1]} in {second.path!r}"
        )
    return Comparison(
        a=first.path,
        b=second.path,
        samples=len(batches) * (_batch(first.inputs)),
        outputs={name: distance(array, got[name]) for name, array in sorted(want.items())},
        sizes=(first.size, second.size),
        ops=(sum(first.ops.values()), sum(second.ops.values())),
    )


def _outputs(file: Inspection, batches: list, timeout: float) -> dict[str, np.ndarray]:
    return probe(read(file.path)[0], batches, timeout=timeout).outputs


@dataclass(frozen=True)
class Timing:
    """One file's time for a run, in microseconds, and `ratio`: that of the first file over it."""

    path: str
    median: float
    least: float
    ratio: float


def bench(
    paths: Sequence[str | os.PathLike], *, threads: int = 1, runs: int = 50, data: Any = None
) -> list[Timing]:
    """Times files against each other in LiteRT with XNNPACK, in turns, after a run to warm up.

    Args:
        paths: one or more files.
        threads: int > 0, of each.
        runs: int > 0, timed runs of each.
        data: as in `compare`; its first batch is what runs.
    """
    for name, value in (("threads", threads), ("runs", runs)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be an integer above 0. Received: {value!r}")
    runners = []
    for path in paths:
        progress.say(f"opening {path}")
        file = inspect(path)
        data = whole(data, _inputs(file), ordered=False)  # once: it is arrays then
        batch = _batches(file, data)[:1]
        content = read(path)[0]
        probe(content, batch, timeout=TIMEOUT)  # what ends a process is to end that one
        delegates = [custom_op.delegate()] if custom_op.needed(content) else []
        runner = Runtime(threads=threads).open(content, delegates).get_signature_runner()
        runners.append((runner, batch[0]))
    times = np.empty((runs, len(runners)))
    for k in range(-1, runs):
        progress.say(f"run {k + 1} of {runs}")
        for j, (runner, batch) in enumerate(runners):
            start = time.perf_counter_ns()
            runner(**batch)
            times[k, j] = (time.perf_counter_ns() - start) / 1e3
    median = np.median(times, axis=0)
    return [
        Timing(str(path), float(median[j]), float(times[:, j].min()), float(median[0] / median[j]))
        for j, path in enumerate(paths)
    ]


def _batch(inputs: Sequence[Tensor]) -> int:
    return (inputs[0].shape[0] if inputs and inputs[0].shape else 1) or 1


def _inputs(file: Inspection) -> tuple[Input, ...]:
    return tuple(Input(t.name, t.shape, t.dtype) for t in file.inputs)


def _batches(file: Inspection, data: Any) -> list[dict[str, np.ndarray]]:
    """The samples as the file takes them."""
    inputs = _inputs(file)
    size = _batch(file.inputs)
    if data is None:
        if sum(8 * math.prod(generated_shape(i)) for i in inputs) > LARGEST_NOISE:  # float64
            raise ConversionError(
                f"The inputs are too large for samples that are made up: pass `data`. Received: "
                f"{ {i.name: i.shape for i in inputs} } in {file.path!r}"
            )
        arrays = generate(inputs)
    else:
        arrays = per_input(data, [i.name for i in inputs], "data", one=is_array, ordered=False)
        arrays = {i.name: np.asarray(arrays[i.name]).astype(i.dtype) for i in inputs}
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    for i in inputs:
        if not fits(arrays[i.name].shape[1:], i.shape[1:]):
            raise ValueError(
                f"`data` must hold samples of shape {i.shape[1:]} for the input {i.name!r} of "
                f"{file.path!r}. Received: an array of shape {arrays[i.name].shape}"
            )
    number = min(counts.values(), default=0)
    if len(set(counts.values())) > 1 or not number or number % size:
        raise ValueError(
            f"`data` must hold the same number of samples for every input, a multiple of {size}. "
            f"Received: {counts}"
        )
    return [
        {name: array[k : k + size] for name, array in arrays.items()}
        for k in range(0, number, size)
    ]
