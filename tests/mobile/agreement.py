"""How far what a runtime gave is from what was wanted."""

import math

import numpy as np


def relative_error(want: np.ndarray, got: np.ndarray) -> float:
    """The largest difference, relative to the largest wanted value; infinite where one is NaN."""
    want, got = _doubles(want, got)
    error = np.max(np.abs(got - want), initial=0)
    largest = np.max(np.abs(want), initial=0)
    if not np.isfinite(error):
        return math.inf
    return float(error / largest) if largest else (math.inf if error else 0.0)


def sqnr(want: np.ndarray, got: np.ndarray) -> float:
    """Signal to quantization noise in dB: what is wanted, over the difference, as power."""
    want, got = _doubles(want, got)
    noise = np.sum(np.square(got - want))
    signal = np.sum(np.square(want))
    if not np.isfinite(noise) or not signal:
        return -math.inf
    return float(10 * np.log10(signal / noise)) if noise else math.inf


def _doubles(want: np.ndarray, got: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if np.shape(want) != np.shape(got):
        raise ValueError(f"Shapes must agree. Received: {np.shape(want)}, {np.shape(got)}")
    return np.asarray(want, "float64"), np.asarray(got, "float64")
