"""The sample that a file holds, with the outputs that Keras gives: JSON in the file's metadata.

Any program can replay it, as an app on a phone does; `test_vectors` reads it into NumPy.
"""

import base64
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_norms.messages import one_line
from keras_norms.tflite import inspection
from keras_norms.tflite.errors import ConversionError
from keras_norms.tflite.metadata import TEST_VECTORS, entries

# A sample that would make the file much larger is left out.
LARGEST = 1 << 16

_CODES = f"?{np.typecodes['AllInteger']}{np.typecodes['AllFloat']}"
_TYPES = {np.dtype(code).name: np.dtype(code) for code in _CODES}
_LARGEST_SIZE = (1 << 31) - 1  # of a tensor's axis in the file format
_MOST_AXES = 32  # NumPy has arrays of more since its version 2


@dataclass(frozen=True, eq=False)  # arrays have no one truth value
class Sample:
    """What a file was converted with, to be replayed.

    Attributes:
        inputs: by name, of one batch, as `run` takes them.
        outputs: by name, what Keras computes of them.
    """

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def test_vectors(path: str | os.PathLike) -> Sample | None:
    """The sample that the converter stored in a `.tflite` file.

    Returns: a `Sample`; None if the file holds none: it was converted with `metadata=False`, its
        sample would take more than 64 KiB, or it is not one of ours.
    Raises: ConversionError, a ValueError, if the file or the sample in it is damaged.
    """
    _, file = inspection.read(path)
    found = entries(file).get(TEST_VECTORS)
    if found is None:
        return None
    try:
        return decoded(found)
    except (ValueError, RecursionError) as error:
        raise ConversionError(
            f"The test vectors are damaged: {one_line(error)}. Received: {str(path)!r}"
        ) from error


# Names that begin with "test" are tests to pytest, where somebody imports this one.
test_vectors.__test__ = False


def encoded(
    inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> dict[str, Any] | None:
    """One run's inputs and the outputs expected; None if they are too large."""
    arrays = [*inputs.values(), *outputs.values()]
    if sum(np.asarray(array).nbytes for array in arrays) > LARGEST:
        return None
    return {
        kind: {name: _written(array) for name, array in values.items()}
        for kind, values in (("inputs", inputs), ("outputs", outputs))
    }


def decoded(text: bytes) -> Sample:
    """Raises: ValueError, RecursionError, if it is not what `encoded` makes."""
    found = json.loads(text)
    if not isinstance(found, dict) or set(found) != {"inputs", "outputs"}:
        raise ValueError(f"they must be an object of inputs and outputs, not {_shown(found)}")
    for kind, values in found.items():
        if not isinstance(values, dict) or not values:
            raise ValueError(f"the {kind} must be an object of arrays, not {_shown(values)}")
    return Sample(
        **{
            kind: {name: _read(value, name) for name, value in values.items()}
            for kind, values in found.items()
        }
    )


def _written(array: np.ndarray) -> dict[str, Any]:
    array = np.asarray(array, order="C")
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "data": base64.b64encode(array.tobytes()).decode(),
    }


def _read(value: Any, name: str) -> np.ndarray:
    if not isinstance(value, dict) or set(value) != {"shape", "dtype", "data"}:
        raise ValueError(f"{name!r:.50} must have a shape, a dtype and data, not {_shown(value)}")
    shape, dtype, data = value["shape"], value["dtype"], value["data"]
    sizes = shape if isinstance(shape, list) and len(shape) <= _MOST_AXES else [None]
    if not all(type(size) is int and 0 <= size <= _LARGEST_SIZE for size in sizes):
        raise ValueError(f"the shape of {name!r:.50} must be a list of sizes, not {_shown(shape)}")
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise ValueError(f"the dtype of {name!r:.50} must be one of numbers, not {_shown(dtype)}")
    if not isinstance(data, str):
        raise ValueError(f"the data of {name!r:.50} must be text, not {_shown(data)}")
    try:
        content = base64.b64decode(data, validate=True)
    except ValueError as error:
        raise ValueError(f"the data of {name!r:.50} are not base64: {error}") from error
    needed = math.prod(shape) * _TYPES[dtype].itemsize
    if len(content) != needed:
        raise ValueError(
            f"{name!r:.50} must have {needed} bytes for {dtype} of shape {_shown(shape)}, not "
            f"{len(content)}"
        )
    return np.frombuffer(content, _TYPES[dtype]).reshape(shape).copy()


def _shown(value: Any) -> str:
    return f"{value!r:.80}"
