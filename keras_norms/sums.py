"""Sums over long axes, and broadcasting whose gradients are such sums, that stay exact in float32.

A backend may add four million numbers one after the other (TensorFlow on the CPU does when the
long axis comes first); the result is then off by 1 %. Here a long mean is a tree of short ones:
an axis at a time, axes over `BLOCK` cut into blocks. Each stage is a mean and not a sum, because
XLA joins a sum of sums back into one. The gradient of a broadcast is a long sum too, so the
elementwise functions below define theirs by the same tree. All of them can be differentiated any
number of times.
"""

import contextlib
import contextvars
import functools
import math

import keras
import numpy as np
from keras import ops

# As many numbers are added at once: along the last axis the backends add in several partial sums,
# along others one after the other.
BLOCK_LAST, BLOCK = 1024, 256


_plain: contextvars.ContextVar[bool] = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain_gradients():
    """Within the block, gradients are the backend's own.

    For graphs that are written to a file, where a gradient of ours would be lost.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def with_gradient(function):
    """Lets `function(*tensors) -> (result, gradient)` define its own gradient.

    Only where the backend's own is inexact: PyTorch adds in pairs, and its custom gradients would
    take what the closure holds for constants, so second derivatives would be wrong there.
    """
    defined = (
        ops.custom_gradient(function) if keras.backend.backend() in ("tensorflow", "jax") else None
    )

    def call(*tensors):
        own = defined is not None and not _plain.get()
        if own and not any(isinstance(t, keras.KerasTensor) for t in tensors):
            return defined(*tensors)
        return function(*tensors)[0]

    return call


@with_gradient
def add(x, y):
    """`x + y`, of the same rank."""
    return x + y, lambda dz: (_sum_to(dz, x), _sum_to(dz, y))


@with_gradient
def subtract(x, y):
    """`x - y`, of the same rank."""
    return x - y, lambda dz: (_sum_to(dz, x), -_sum_to(dz, y))


@with_gradient
def multiply(x, y):
    """`x * y`, of the same rank."""
    return x * y, lambda dz: (_sum_to(dz * y, x), _sum_to(dz * x, y))


def mean(x, axes):
    """Mean over `axes`, which stay with size 1. The mean of nothing is 0."""
    for first, last in _stages(x.shape, axes):
        size = _product(x.shape[first:last])
        if _fits(x.shape, first, last) and size is not None:
            axis = tuple(range(first, last))
            x = (ops.mean if size else ops.sum)(x, axis=axis, keepdims=True)
        else:
            x = _blocks(x, first, last)
    return x


def settled(x):
    """x, as a number that is the same wherever it is used.

    XLA computes a mean anew in each loop that uses it, and in some of them contracts the division
    by the count with the subtraction that follows, without rounding in between. At a mean of 1e6
    these means differ by 0.03. Nothing is contracted across a comparison.
    """
    if _plain.get():
        return x
    largest = float(np.finfo(keras.backend.standardize_dtype(x.dtype)).max)
    return ops.clip(x, -largest, largest)


def reshape(x, shape):
    """`ops.reshape` that spares the graph a shape when only one size is unknown."""
    unknown = [i for i, size in enumerate(shape) if not isinstance(size, int)]
    if len(unknown) == 1 and math.prod(s for s in shape if isinstance(s, int)):
        shape = [-1 if i == unknown[0] else size for i, size in enumerate(shape)]
    return ops.reshape(x, shape)


def _sum_to(x, like):
    """Sums `x` over the axes along which `like` was broadcast."""
    pairs = enumerate(zip(x.shape, like.shape, strict=True))
    axes = [axis for axis, (size, small) in pairs if small == 1 and size != 1]
    return mean(x, axes) * _count(x, axes) if axes else x


def _count(x, axes):
    """How many elements a mean over `axes` has, or 1."""
    shape = ops.shape(x)
    return _at_least_1(math.prod(shape[a] for a in axes), x.dtype)


def _stages(shape, axes):
    """Ranges of axes to reduce together: those of known size, in short runs, then the others."""
    known, unknown = [], []
    for axis in sorted(axes, reverse=True):
        stages = unknown if shape[axis] is None else known
        first, last = stages[-1] if stages else (None, None)
        if first == axis + 1 and _fits(shape, axis, last):
            stages[-1] = axis, last
        elif shape[axis] != 1:
            stages.append((axis, axis + 1))
    return known + unknown


def _fits(shape, first, last):
    """Whether the axes may be reduced together (unknown sizes: together, then in blocks)."""
    size = _product(shape[first:last])
    return size is None or size <= _limit(shape[last:])


def _blocks(x, first, last, levels=2):
    """Mean over the axes `first` to `last - 1`, together longer than a block or of unknown size."""
    shape = ops.shape(x)
    lead, size, rest = (math.prod(s) for s in (shape[:first], shape[first:last], shape[last:]))
    kept = [1 if first <= a < last else shape[a] for a in range(len(shape))]
    known = isinstance(size, int)
    block = _block(size if known else 1, _limit([rest]))
    blocks = size // block
    even = known and size % block == 0
    x = reshape(x, (lead, size, rest))
    head = x if even else x[:, : blocks * block]
    means = ops.mean(reshape(head, (lead, blocks, block, rest)), axis=2)
    if known:
        result = mean(means, [1])
    elif levels > 1:
        result = _blocks(means, 1, 2, levels - 1)
    else:
        result = ops.sum(means, axis=1, keepdims=True) / _at_least_1(blocks, x.dtype)
    if not even:
        size, count = _at_least_1(size, x.dtype), _at_least_1(blocks * block, x.dtype)
        tail = ops.sum(x[:, blocks * block :], axis=1, keepdims=True)
        result = result * (count / size) + tail / size
    return reshape(result, kept)


@functools.cache
def _block(size, limit):
    """Length of the blocks: the largest divisor of `size`, or `limit` if there is no useful one."""
    largest = max(b for b in range(1, limit + 1) if size % b == 0)
    return largest if largest >= limit // 16 else limit


def _limit(after):
    """How many numbers may be added at once, given the sizes of the axes after them."""
    return BLOCK_LAST if _product(after) == 1 else BLOCK


def _product(sizes):
    sizes = list(sizes)
    return math.prod(sizes) if all(isinstance(s, int) for s in sizes) else None


def _at_least_1(count, dtype):
    """A count as a divisor: a float tensor where it is unknown."""
    return max(count, 1) if isinstance(count, int) else ops.cast(ops.maximum(count, 1), dtype)
