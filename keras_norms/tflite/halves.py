"""float16: weights in half the bytes, everything computed in float32."""

import numpy as np

from keras_norms.tflite.graph import File, Graph

# Smaller constants save less than the operation that widens them takes.
SMALL = 64


def halve(content: bytes) -> bytes:
    """The file with its float32 constants in float16, each widened by a DEQUANTIZE.

    This is what TensorFlow's converter writes: the CPU widens them once, when it loads the file;
    GPU delegates take them as they are. A constant that float16 cannot hold to 2^-11 of its largest
    value stays as it is: one above 65504, or an epsilon of 1e-12.
    """
    file = File(content)
    for graph in file.graphs:
        _halve(graph)
    return file.dump()


def _halve(graph: Graph) -> None:
    taken = {t for op in graph.operators for t in graph.inputs(op) if t >= 0}
    wide: dict[int, int] = {}  # what takes the place of a constant
    widened = []
    for tensor in sorted(taken):
        half = _half(graph.value(tensor))
        if half is None:
            continue
        name = graph.tensor_name(tensor)
        narrow = graph.constant(half, f"{name}_float16")
        wide[tensor] = graph.tensor(half.shape, np.float32, f"{name}_float32")
        widened.append(graph.operator("DEQUANTIZE", [narrow], [wide[tensor]], version=3))
    for op in graph.operators:
        op.inputs = [wide.get(t, t) for t in graph.inputs(op)]
    graph.raw.outputs = [wide.get(int(t), int(t)) for t in graph.raw.outputs]
    graph.operators[:0] = widened


def _half(values: np.ndarray | None) -> np.ndarray | None:
    if values is None or values.dtype != np.float32 or values.size < SMALL:
        return None
    largest = np.abs(values).max()
    with np.errstate(over="ignore"):
        half = values.astype("float16")
    error = np.abs(half.astype("float32") - values).max()
    return half if np.isfinite(largest) and error <= largest * 2.0**-11 else None
