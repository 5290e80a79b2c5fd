"""Writes the operators of a lowering: each method adds one and gives its result.

Sizes are worked out here, with None where one is left open, so that a form can ask for them.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_norms.tflite.graph import Graph, Shape


class Builder:
    """New operators for a graph, in order, named below `scope`.

    Attributes:
        operators: those written so far.
    """

    def __init__(self, graph: Graph, scope: str):
        self.graph = graph
        self.scope = scope
        self.operators: list[Any] = []

    def shape(self, tensor: int) -> Shape:
        return self.graph.shape(tensor)

    def constant(self, value: Any, name: str = "constant") -> int:
        return self.graph.constant(np.asarray(value), f"{self.scope}/{name}")

    def scalar(self, value: float) -> int:
        """A number as float32, which must not become 0 or infinite in it."""
        return self.constant(np.float32(value), "number")

    def add(self, a: int, b: int) -> int:
        return self._elementwise("ADD", a, b, fusedActivationFunction=0)

    def sub(self, a: int, b: int) -> int:
        return self._elementwise("SUB", a, b, fusedActivationFunction=0)

    def mul(self, a: int, b: int) -> int:
        return self._elementwise("MUL", a, b, fusedActivationFunction=0)

    def div(self, a: int, b: int) -> int:
        return self._elementwise("DIV", a, b, fusedActivationFunction=0)

    def maximum(self, a: int, b: int) -> int:
        return self._elementwise("MAXIMUM", a, b)

    def abs(self, a: int) -> int:
        return self._elementwise("ABS", a)

    def sqrt(self, a: int) -> int:
        return self._elementwise("SQRT", a)

    def rsqrt(self, a: int) -> int:
        return self._elementwise("RSQRT", a)

    def mean(self, a: int, axes: Sequence[int]) -> int:
        return self._reduction("MEAN", a, axes)

    def max(self, a: int, axes: Sequence[int]) -> int:
        return self._reduction("REDUCE_MAX", a, axes)

    def reshape(self, a: int, shape: Shape) -> int:
        """To a shape of which at most one size is left open."""
        if self.shape(a) == tuple(shape):
            return a
        if list(shape).count(None) > 1:
            raise ValueError(f"At most one size can be left open. Received: shape={shape}")
        sizes = [-1 if size is None else size for size in shape]
        target = self.constant(np.asarray(sizes, np.int32), "shape")
        return self._add("RESHAPE", [a, target], shape, newShape=sizes)

    def _elementwise(self, name: str, *operands: int, **options: Any) -> int:
        shape = broadcast(*(self.shape(t) for t in operands))
        return self._add(name, operands, shape, **options)

    def _reduction(self, name: str, a: int, axes: Sequence[int]) -> int:
        shape = [1 if k in axes else size for k, size in enumerate(self.shape(a))]
        over = self.constant(np.asarray(sorted(axes), np.int32), "axes")
        return self._add(name, [a, over], tuple(shape), keepDims=True)

    def _add(self, name: str, inputs: Sequence[int], shape: Shape, **options: Any) -> int:
        result = self.graph.tensor(shape, np.float32, f"{self.scope}/{name.lower()}")
        self.operators.append(self.graph.operator(name, inputs, [result], **options))
        return result


def broadcast(*shapes: Shape) -> Shape:
    """The shape of an elementwise result; an open size broadcasts like any but 1."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    result = []
    for sizes in zip(*padded, strict=True):
        known = {size for size in sizes if size not in (1, None)}
        if len(known) > 1:
            raise ValueError(f"Shapes must broadcast. Received: {shapes}")
        result.append(known.pop() if known else None if None in sizes else 1)
    return tuple(result)


def count(shape: Sequence[int | None]) -> int | None:
    """How many elements; None where a size is open."""
    return None if None in shape else math.prod(shape)
