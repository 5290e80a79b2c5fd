"""What a file says of itself: how it was converted, and a sample (`vectors.py`).

Both are JSON in the file's metadata, where an app on a phone finds them. They hold no date, so two
conversions of a model give the same bytes.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_norms.tflite.graph import File, schema

CONVERSION = "keras_norms.conversion"
TEST_VECTORS = "keras_norms.test_vectors"


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
    for name, text in entries(file).items():
        try:
            found[name] = json.loads(text)
        except (ValueError, RecursionError):
            continue
    return found


def entries(file: File) -> dict[str, bytes]:
    """The same as they stand there."""
    buffers = {}  # of a name that stands there often, the last
    for entry in file.raw.metadata or []:
        name = (entry.name or b"").decode(errors="replace")
        if name in (CONVERSION, TEST_VECTORS) and 0 <= entry.buffer < len(file.raw.buffers):
            buffers[name] = file.raw.buffers[entry.buffer].data
    return {name: bytes(() if data is None else data) for name, data in buffers.items()}
