"""What is around each position, taken together."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from keras import ops

from keras_norms import sums

# Tensors of one shape, or that broadcast against each other but for the axis of a window.
Parts = Sequence[Any]


class Local(NamedTuple):
    """Mean and biased variance of `count` elements at each position; all 0 where there are none."""

    count: Any  # floats without gradients
    mean: Any
    variance: Any


def around(parts: Parts, axis: int, radius: int, merge: Callable[[Parts, Parts], Parts]) -> Parts:
    """Merges the `2 * radius + 1` neighbours of each position along an axis, in their order.

    By doubling: 2 neighbours, 4 and so on, and of these what the width is made of.

    Args:
        parts: where zeros, which are taken beyond the ends, stand for nothing.
        axis: int >= 0; its size may be unknown.
        merge: of neighbours that come before and those that come after; associative.
    """
    size = 2 * radius + 1

    def without(parts, first, last):
        return [_without(part, axis, first, last) for part in parts]

    parts = [_padded(part, axis, radius, radius) for part in parts]
    total, start, width = None, 0, 1  # the parts hold `width` neighbours, `start` are merged
    while True:
        if size & width:
            these = without(parts, start, size - start - width)
            total = these if total is None else merge(total, these)
            start += width
        half, width = width, 2 * width
        if width > size:
            return total
        parts = merge(without(parts, 0, half), without(parts, half, 0))


def _padded(x: Any, axis: int, before: int, after: int) -> Any:
    """x between zeros."""
    return ops.pad(x, [(before, after) if a == axis else (0, 0) for a in range(len(x.shape))])


def _without(x: Any, axis: int, first: int, last: int) -> Any:
    """x without its first and last so many; TensorFlow's own gradient of it is 40 times slower."""

    @sums.with_gradient
    def cut(x):
        at = (*[slice(None)] * axis, slice(first, -last or None))
        return x[at], lambda dy: _padded(dy, axis, first, last)

    return cut(x)


def together(before: Parts, after: Parts) -> Local:
    """Moments of two parts as those of one (Chan, Golub and LeVeque 1983)."""
    before, after = Local(*before), Local(*after)
    count = before.count + after.count
    share = after.count / ops.maximum(count, 1)
    rest = 1 - share
    offset = after.mean - before.mean
    within = before.variance * rest + after.variance * share
    return Local(count, before.mean + offset * share, within + ops.square(offset) * (share * rest))


def in_windows(local: Local, width: int) -> Local:
    """The moments in windows of `width` positions along each axis but the first and last."""
    for axis in range(1, len(local.mean.shape) - 1):
        size = local.mean.shape[axis]
        radius = width // 2 if size is None else min(width // 2, max(size - 1, 0))
        local = Local(*around(local, axis, radius, together))
    return local
