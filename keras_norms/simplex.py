"""Weights that are 0 or more and sum to 1, some of them exactly 0, from any numbers."""

from typing import Any

from keras import ops

# As far from the center counts as the center, whose neighbours have no stable direction in float32.
NEAR = 1e-6


def largest_radius(size: int) -> float:
    """How far a corner of the simplex is from its center."""
    return ((size - 1) / size) ** 0.5


def sparsemax(logits: Any) -> Any:
    """The point of the simplex next to `logits`, shaped (n,) (Martins and Astudillo 2016).

    Each round leaves out what falls to 0, at least one of them unless it is done.
    """
    support = ops.ones_like(logits)
    for _ in range(logits.shape[0]):
        threshold = (ops.sum(logits * support) - 1) / ops.sum(support)
        support = ops.cast(logits > threshold, logits.dtype)
    return ops.relu(logits - threshold)


def sparsestmax(logits: Any, radius: Any) -> Any:
    """The point of the simplex next to `logits` that is `radius` or more from the simplex' center.

    `sparsemax` gives a point inside a face of the simplex (all of it, an edge, a corner). If that
    is too near, it is pushed away from the face's center, and if that leads out of the simplex,
    taken back to it, onto a smaller face, where the same is done. A face's center stays: from there
    no direction is nearer than another.

    Args:
        logits: shaped (n,).
        radius: scalar, 0 (`sparsemax`) to `largest_radius(n)` (one weight is 1).

    Source: Shao et al. 2019, arXiv:1903.03793, algorithm 1 (there for n = 3).
    """
    size = logits.shape[0]
    radius = ops.cast(ops.stop_gradient(radius), logits.dtype)
    # More than the largest, so that rounding cannot leave a corner short.
    radius = ops.where(radius > largest_radius(size) - NEAR, ops.ones_like(radius), radius)
    point = sparsemax(logits)
    for _ in range(size - 1):
        support = ops.cast(point > 0, logits.dtype)
        count = ops.sum(support)
        needed = ops.sqrt(ops.relu(ops.square(radius) - (1 / count - 1 / size)))
        offset = point - support / count
        square = ops.sum(ops.square(offset))
        center = square < NEAR**2
        distance = ops.sqrt(ops.where(center, ops.ones_like(square), square))
        pushed = sparsemax(support / count + offset * (needed / distance))
        point = ops.where(ops.logical_or(center, distance >= needed), point, pushed)
    return point
