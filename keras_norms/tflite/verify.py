"""Runs a written file and compares it with the model. That it loads proves nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_norms.tflite import progress
from keras_norms.tflite.errors import ConversionError
from keras_norms.tflite.runtimes import RUNTIMES, run_content
from keras_norms.tflite.signature import Input

SAMPLES = 8
OPEN = 32  # what an open size is in samples that are made up


@dataclass(frozen=True)
class Agreement:
    """One runtime's result beside Keras'.

    Attributes:
        runtime: what ran the file.
        max_error: largest difference, in the output that agrees worst.
        max_output: largest value of that output in Keras.
        sqnr: of that output, in dB: its power over that of the difference; None if there is none.
    """

    runtime: str
    max_error: float
    max_output: float
    sqnr: float | None

    @property
    def ratio(self) -> float:
        return self.max_error / (self.max_output or 1)


def generate(inputs: tuple[Input, ...]) -> dict[str, np.ndarray]:
    """Samples for a comparison where the user gave none, the same ones every time.

    Numbers from N(0, 1), integers of 0 and 1 (indices, which are in the range of any table).
    """
    random = np.random.default_rng(20)
    arrays = {}
    for i in inputs:
        shape = generated_shape(i)
        whole = not i.dtype.startswith("float")
        values = random.integers(0, 2, shape) if whole else random.standard_normal(shape)
        arrays[i.name] = values.astype(i.dtype)
    return arrays


def generated_shape(i: Input) -> tuple[int, ...]:
    batch, *rest = (OPEN if k and size is None else size or 1 for k, size in enumerate(i.shape))
    return (-(-SAMPLES // batch) * batch, *rest)


def verified(
    content: bytes,
    want: dict[str, np.ndarray],
    samples: dict[str, np.ndarray],
    tolerance: float | None,
    delegates: Sequence[Any] = (),
) -> list[Agreement]:
    """Runs the file in every runtime of this machine.

    Raises: ConversionError, as `compare`.
    """
    found = []
    for runtime in RUNTIMES:
        progress.say(f"running the file in {runtime}")
        got = run_content(content, samples, runtime, delegates)
        found.append(compare(str(runtime), want, got, tolerance))
    return found


def compare(
    runtime: str,
    want: dict[str, np.ndarray],
    got: dict[str, np.ndarray],
    tolerance: float | None,
) -> Agreement:
    """Compares the outputs of Keras and LiteRT, each relative to its own largest value.

    Args:
        tolerance: None allows any difference.

    Raises: ConversionError, if one differs by more than `tolerance` times that, or is not finite.
    """
    agreements = []
    if len(got) == len(want) == 1:
        got = dict.fromkeys(want, next(iter(got.values())))
    for name, reference in want.items():
        reference = reference.astype("float64")
        if got[name].shape != reference.shape:
            raise ConversionError(
                f"The output {name!r} has shape {got[name].shape} in LiteRT and {reference.shape} "
                "in Keras. No file was written."
            )
        for where, values in ("Keras", reference), ("LiteRT", got[name]):
            if not np.all(np.isfinite(values)):
                count = np.size(values) - np.count_nonzero(np.isfinite(values))
                raise ConversionError(
                    f"The output {name!r} has {count} of {np.size(values)} values in {where} that "
                    "are NaN or infinite, so nothing shows that the file is right. No file was "
                    "written. (Other samples can be given as `data`.)"
                )
        difference = got[name].astype("float64") - reference
        error = float(np.max(np.abs(difference), initial=0))
        largest = float(np.max(np.abs(reference), initial=0))
        if tolerance is not None and error > tolerance * largest:
            raise ConversionError(
                f"LiteRT and Keras disagree: the output {name!r} is off by {error:.3g} where its "
                f"largest value is {largest:.3g}. Allowed: tolerance={tolerance:g} times that. No "
                f"file was written. ({runtime}. Rounding in a deep network may need a larger "
                "`tolerance`.)"
            )
        noise, power = np.sum(difference**2), np.sum(reference**2)
        sqnr = float(10 * np.log10(power / noise)) if noise and power else None
        agreements.append(Agreement(runtime, error, largest, sqnr))
    return max(agreements, key=lambda a: a.ratio)
