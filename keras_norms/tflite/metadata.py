"""What a file says of itself: how it was converted, and a sample with the outputs that Keras gives.

Both are JSON in the file's metadata, where an app on a phone finds them. They hold no date, so two
conversions of a model give the same bytes.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_norms.tflite.graph import File, schema

CONVERSION = "keras_norms.conversion"
TEST_VECTORS = "keras_norms.test_vectors"

# A sample that would make the file much larger is left out.
LARGEST_SAMPLE = 1 << 16


def written(content: bytes, entries: Mapping[str, Any]) -> bytes:
    """The bytes of the file with these entries, each as JSON."""
    file = File(content)
    file.raw.metadata = file.raw.metadata or []
    for name, value in entries.items():
        entry = schema().MetadataT()
        entry.name = name.encode()
        text = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        entry.buffer = file.buffer(np.frombuffer(text, np.uint8))
        file.raw.metadata.append(entry)
    return file.dump()


def read(file: File) -> dict[str, Any]:
    """Our entries of a file; one that is damaged is left out."""
    found = {}
    for entry in file.raw.metadata or []:
        name = (entry.name or b"").decode(errors="replace")
        if name in (CONVERSION, TEST_VECTORS) and 0 <= entry.buffer < len(file.raw.buffers):
            data = file.raw.buffers[entry.buffer].data
            try:
                found[name] = json.loads(bytes(() if data is None else data))
            except ValueError:
                continue
    return found


def test_vectors(
    inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> dict[str, Any] | None:
    """One run's inputs and the outputs expected; None if they are too large."""
    arrays = [*inputs.values(), *outputs.values()]
    if sum(np.asarray(array).nbytes for array in arrays) > LARGEST_SAMPLE:
        return None
    return {
        kind: {name: _array(array) for name, array in values.items()}
        for kind, values in (("inputs", inputs), ("outputs", outputs))
    }


def _array(array: np.ndarray) -> dict[str, Any]:
    array = np.ascontiguousarray(array)
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "data": base64.b64encode(array.tobytes()).decode(),
    }
