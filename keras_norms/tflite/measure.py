"""How far a quantized file's numbers are from the float32 file's."""

from dataclasses import dataclass

import numpy as np

from keras_norms.tflite.probe import Seen

# Decibels above which two float32 computations do not differ; 0 / 0 is called this.
SAME = 150.0


@dataclass(frozen=True)
class Distance:
    """Attributes:
    sqnr: the signal's power over the error's, over all samples, in dB; more is better.
    worst: the same of the worst batch alone.
    max_error: the largest difference.
    """

    sqnr: float
    worst: float
    max_error: float


def distance(want: np.ndarray, got: np.ndarray) -> Distance:
    """Of arrays whose first axis counts batches.

    Values that are not finite are infinitely far.
    """
    if want.shape != got.shape:
        raise ValueError(f"Shapes must agree. Received: {want.shape} and {got.shape}")
    want = want.reshape(len(want), -1).astype("float64")
    error = np.abs(got.reshape(len(want), -1).astype("float64") - want)
    if not np.all(np.isfinite(error)):
        return Distance(-SAME, -SAME, float("inf"))
    signal, noise = np.sum(want**2, axis=1), np.sum(error**2, axis=1)
    each = [_decibels(s, n) for s, n in zip(signal, noise, strict=True)]
    return Distance(
        sqnr=_decibels(signal.sum(), noise.sum()),
        worst=min(each),
        max_error=float(error.max(initial=0)),
    )


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return SAME
    return float(np.clip(10 * np.log10(max(signal, 1e-300) / noise), -SAME, SAME))


def outputs(want: Seen, got: Seen, part: slice = slice(None)) -> dict[str, Distance]:
    """Of every output of floats, over some of the batches."""
    return {
        name: distance(array[part], got.outputs[name][part])
        for name, array in want.outputs.items()
        if array.dtype.kind == "f"
    }


def tensors(want: Seen, got: Seen, part: slice = slice(None)) -> dict[str, Distance]:
    """Of every tensor that both were asked for."""
    return {
        name: distance(array[part], got.tensors[name][part]) for name, array in want.tensors.items()
    }
