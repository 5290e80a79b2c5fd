"""Representative data: what the ranges of a quantized file are measured on."""

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_norms.tflite import steps
from keras_norms.tflite.probe import Batch
from keras_norms.tflite.signature import Input

FEW = 10
MOST = 1024


def batches(data: Any, inputs: Sequence[Input], *, most: int = MOST) -> list[Batch]:
    """A user's representative data as batches of the file's size.

    Args:
        data: samples, in any of these ways:
            - an array `(samples, ...)`, for a model of one input;
            - arrays for each input, in a list in the inputs' order or in a dict by name;
            - an iterable of such (a generator, a list of dicts, a `tf.data.Dataset`), each of any
              number of samples, or one sample without the axis for samples; or of what `model.fit`
              takes, `(x, y)` or `(x, y, sample_weight)`: `steps.py` has the rule;
            - a function that returns such an iterable, as TensorFlow's `representative_dataset`.
        inputs: the file's.
        most: no more samples than these are taken: an iterable may have no end.

    Returns: batches; the first samples fill up the last one.
    Raises: ValueError, if the samples do not fit the inputs, are not finite, or are none.
    Warns: UserWarning, if fewer than ten are different, or an input is the same number throughout.
    """
    arrays = steps.collected(data, inputs, most)
    count = {name: len(array) for name, array in arrays.items()}
    if len(set(count.values())) != 1 or not min(count.values()):
        raise ValueError(
            "`representative_data` must hold the same number of samples, at least one, for every "
            f"input. Received: {count}"
        )
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            bad = array.size - np.count_nonzero(np.isfinite(array))
            raise ValueError(
                "`representative_data` must be finite. Received: "
                f"{bad} of {array.size} values of {name!r} that are NaN or infinite"
            )
    for message in doubts(arrays):
        warnings.warn(message, UserWarning, stacklevel=2)
    size, samples = inputs[0].shape[0], min(count.values())
    order = np.arange(-(-samples // size) * size) % samples
    return [
        {name: array[order[k : k + size]] for name, array in arrays.items()}
        for k in range(0, len(order), size)
    ]


def doubts(arrays: Batch) -> list[str]:
    """Reasons why ranges that are measured on these samples may be wrong."""
    found = []
    # A batch may have been filled up with samples from the start.
    rows = zip(*(array.reshape(len(array), -1) for array in arrays.values()), strict=True)
    different = len({b"".join(part.tobytes() for part in row) for row in rows})
    if different < FEW:
        found.append(
            f"The representative data has {different} different samples; the ranges of a quantized "
            "file want at least ten, better a hundred, as they come in use."
        )
    for name, array in arrays.items():
        if array.dtype.kind == "f" and np.all(array == array.flat[0]):
            found.append(f"The representative data of {name!r} is {array.flat[0]:g} everywhere.")
    return found


def first(given: Sequence[Batch], samples: int) -> list[Batch]:
    """The first batches, with at least so many samples."""
    size = max(1, len(next(iter(given[0].values()))))
    return list(itertools.islice(given, -(-samples // size)))


def stressed(given: Sequence[Batch], *, seed: int = 7) -> list[Batch]:
    """The same samples, weaker by factors that differ from one to the next, and shifted.

    A gain from 0.1 to 1, uniform in its logarithm, and a shift of up to 1.5 standard deviations of
    the sample. Neither leads out of the range that the samples fill together: any quantized file
    clips what is beyond it, which would hide what is asked here. Integers stay as they are.
    """
    draw = np.random.default_rng(seed)
    names = [name for name, array in given[0].items() if array.dtype.kind == "f"]
    least = {name: min(float(batch[name].min()) for batch in given) for name in names}
    most = {name: max(float(batch[name].max()) for batch in given) for name in names}
    result = []
    for batch in given:
        changed = dict(batch)
        for name in names:
            x = batch[name]
            one, axes = (len(x), *[1] * (x.ndim - 1)), tuple(range(1, x.ndim))
            y = x * 10 ** draw.uniform(-1, 0, one)
            shift = y.std(axes, keepdims=True) * draw.uniform(-1.5, 1.5, one)
            down = least[name] - y.min(axes, keepdims=True)
            up = most[name] - y.max(axes, keepdims=True)
            # `down` is above `up` where 0 is far outside of the range: then between the two.
            y = y + np.clip(shift, np.minimum(down, up), np.maximum(down, up))
            changed[name] = y.astype(x.dtype)
        result.append(changed)
    return result
