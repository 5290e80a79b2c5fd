"""Mean and variance over a `Geometry`, with and without a mask; merging; moving averages.

Everything here is `keras.ops`, so it runs on every backend, and holds in float32 for data far from
zero: a float32 mean of 1e6 is itself off by 0.03, so the data are shifted by that rough mean
(without error, the two being close) and the mean of what remains is taken off in turn. Variances
are means of centred squares, never E[x^2] - E[x]^2.
"""

import math
import operator
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_norms import sums
from keras_norms.geometry import Geometry


class Moments(NamedTuple):
    """Mean and variance of each group, shaped sample axes + (groups,).

    The mean is `center + residual`, two numbers because one is too coarse far from zero: `center`
    is near it and carries no gradient, `residual` is small and does.
    """

    center: object
    residual: object
    variance: object


class Centred(NamedTuple):
    """`x - mean`, and the statistics with axes of size 1 so that they broadcast against it."""

    x: object
    mean: object
    residual: object  # what rounding `mean` lost: the mean is mean + residual
    variance: object


def centre(x, geometry: Geometry, *, subtract_mean: bool = True, mask=None) -> Centred:
    """Takes the mean off x.

    Args:
        x: float32 or float64, axes in the geometry's order.
        subtract_mean: False takes the mean as 0, and the variance is then the mean square.
        mask: bool, of x's rank, broadcasts against x. The statistics are those of its True
            positions; a group without any is taken whole.
    """
    if mask is not None:
        mask = or_whole(mask, geometry)
    if subtract_mean:
        rough = sums.settled(ops.stop_gradient(group_mean(x, geometry, mask)))
        x = x - rough
        residual = group_mean(x, geometry, mask)
        x = sums.subtract(x, residual)
    else:
        # A tensor of this graph: TensorFlow loses one that a branch of tf.cond captured when a
        # custom gradient holds it.
        x = ops.copy(x)
    variance = group_mean(ops.square(x), geometry, mask)
    if not subtract_mean:
        rough = residual = ops.zeros_like(variance)
    return Centred(x, rough, residual, variance)


def or_whole(mask, geometry: Geometry):
    """A mask that broadcasts against x; True throughout a group that it leaves out as a whole."""
    return ops.logical_or(mask, ops.logical_not(ops.any(mask, _axes(geometry), keepdims=True)))


def group_mean(x, geometry: Geometry, mask=None):
    """Mean over the space and the channels of a group, broadcastable against x."""
    axes = _axes(geometry)
    if mask is None:
        mean = sums.mean(x, axes)
    else:
        share = sums.mean(ops.cast(mask, x.dtype), axes)
        mean = sums.mean(ops.where(mask, x, ops.zeros_like(x)), axes)
        mean = mean / ops.where(share > 0, share, ops.ones_like(share))
    channels = math.prod(x.shape[a] for a in geometry.channel_axes)
    if not 1 < geometry.groups < channels:
        return mean
    # The groups are split here, where space is gone, so that x itself is never reshaped.
    sizes = (-1, geometry.groups, channels // geometry.groups)
    means = sums.mean(ops.reshape(mean, sizes), [2])
    means = means + ops.zeros((1, 1, sizes[2]), dtype=x.dtype)
    return sums.reshape(means, ops.shape(mean))


def _axes(geometry: Geometry) -> tuple[int, ...]:
    """The axes that a mean is taken over, where groups of several channels are single channels."""
    axes = geometry.space_axes
    return tuple(sorted(axes + geometry.channel_axes)) if geometry.groups == 1 else axes


def compact(statistic, geometry: Geometry):
    """From axes that broadcast against x to the sample axes and one axis of groups."""
    samples = ops.shape(statistic)[: geometry.samples]
    size = math.prod(statistic.shape[geometry.samples :])
    if size == geometry.groups:
        return sums.reshape(statistic, (*samples, size))
    # Of rank 3, whatever the samples: TFLite's delegates take no more than 4.
    statistic = ops.reshape(statistic, (-1, geometry.groups, size // geometry.groups))[..., 0]
    return (
        statistic if geometry.samples == 1 else sums.reshape(statistic, (*samples, geometry.groups))
    )


def expand_mask(mask, shape, geometry: Geometry):
    """A mask made to broadcast against x, its axes in the geometry's order; None if it cannot
    matter.

    It aligns from the left with the axes of x but the channels, and may leave out trailing axes:
    with channels last, `(batch, time)` masks both `(batch, time, channels)` and
    `(batch, time, width, channels)`. Where statistics are taken over channels alone (layer
    normalization) it aligns with all axes. A mask over axes that are kept apart leaves whole groups
    in or out, so it cannot matter.

    Args:
        mask: bool or numbers (True where not 0).
        shape: shape of x, in the caller's order of axes.
    """
    given = check_mask(mask, shape, geometry)
    order = geometry.order or tuple(range(len(shape)))
    if set(given) <= set(order[: geometry.samples]):
        return None
    mask = ops.cast(mask, "bool")
    for axis in range(len(shape)):
        if axis not in given:
            mask = ops.expand_dims(mask, axis)
    return mask if geometry.order is None else ops.transpose(mask, order)


def check_mask(mask, shape, geometry: Geometry) -> list[int]:
    """The axes of x that the mask's axes stand for; ValueError if they do not fit."""
    order = geometry.order or tuple(range(len(shape)))
    alone = geometry.groups == 1 and not geometry.space_axes  # channels, as in layer normalization
    channels = set() if alone else {order[a] for a in geometry.channel_axes}
    axes = [a for a in range(len(shape)) if a not in channels][: len(mask.shape)]
    sizes = [(size, shape[a]) for size, a in zip(mask.shape, axes, strict=False)]
    if len(axes) < len(mask.shape) or any(
        None not in pair and pair[0] not in (1, pair[1]) for pair in sizes
    ):
        without = f" without the channel axis {sorted(channels)}" if channels else ""
        raise ValueError(
            f"`mask` must have the sizes of the input's axes{without}, from the left; trailing "
            f"axes may be missing. Received: mask.shape={tuple(mask.shape)}, "
            f"inputs.shape={tuple(shape)}."
        )
    return axes


def element_count(x, geometry: Geometry, mask=None):
    """How many elements of x each mean is of: an int, or with a mask a tensor (samples axes).

    Args:
        x: axes in the caller's order.
        mask: as in `expand_mask`, not over channels.
    """
    shape = ops.shape(x)
    order = geometry.order or tuple(range(len(shape)))
    channels = [order[a] for a in geometry.channel_axes]
    each = math.prod(shape[a] for a in channels) // geometry.groups
    others = [shape[a] for a in range(len(shape)) if a not in channels]
    if mask is None:
        return math.prod(others[geometry.samples :]) * each
    kept = ops.cast(ops.cast(mask, "bool"), "float32")
    for axis, size in enumerate(others):
        if axis >= len(mask.shape):
            each = each * (size if axis >= geometry.samples else 1)
        elif axis >= geometry.samples and mask.shape[axis] in (1, None):
            # Broadcast, which an open size may turn out to be.
            given = 1 if mask.shape[axis] else ops.maximum(ops.shape(mask)[axis], 1)
            each = each * (size // given)
    count = ops.sum(kept, axis=tuple(range(geometry.samples, len(mask.shape))))
    return count * ops.cast(each, "float32")


def merge(moments: Moments, axis: int, counts=None) -> Moments:
    """Moments of parts, taken together (Chan, Golub and LeVeque 1983); `axis` stays with size 1.

    Args:
        moments: of each part, the parts along `axis`.
        counts: elements of each part, broadcastable; None: all of them have equally many. Without
            any element all is 0.
    """
    center, residual, variance = moments
    _, subtract, multiply, mean = arithmetic(variance.dtype)
    if counts is not None:
        total = ops.sum(counts, axis=axis, keepdims=True)
        share = ops.cast(counts, variance.dtype) / ops.cast(ops.maximum(total, 1), variance.dtype)

        def mean(parts, axes):
            return ops.sum(parts * share, axis=axes, keepdims=True)

    whole = sums.settled(ops.stop_gradient(mean(center, [axis])))
    offset = ops.stop_gradient(center - whole) + residual
    rest = mean(offset, [axis])
    apart = subtract(offset, rest)
    between = mean(multiply(apart, apart), [axis])  # LiteRT has no 16-bit squared difference
    return Moments(whole, rest, mean(variance, [axis]) + between)


def widened(moments: Moments) -> Moments:
    """In float64, where sums over samples take a few nodes of a graph and not hundreds.

    JAX has no float64 unless told so, and needs none here: it traces known sizes only.
    """
    if keras.backend.backend() == "jax":
        return moments
    return Moments(*(ops.cast(statistic, "float64") for statistic in moments))


def arithmetic(dtype):
    """add, subtract, multiply and mean: those of `sums`, or plain ones where it is float64."""
    if keras.backend.standardize_dtype(dtype) == "float64":
        return operator.add, operator.sub, operator.mul, _plain_mean
    return sums.add, sums.subtract, sums.multiply, sums.mean


def _plain_mean(x, axes):
    count = ops.maximum(math.prod(ops.shape(x)[a] for a in axes), 1)
    return ops.sum(x, axis=axes, keepdims=True) / ops.cast(count, x.dtype)


def over_samples(moments: Moments, count: Any) -> tuple[Moments, Any]:
    """The moments of all samples together, shaped (1, groups), and how many elements they are of.

    Args:
        moments: shaped (samples, groups).
        count: elements of each sample, as `element_count` gives it. Where there are none at all,
            every sample counts as a whole.
    """
    samples = ops.shape(moments.variance)[0]
    if isinstance(count, int) or not len(count.shape):
        return merge(moments, 0), count * samples
    counts = ops.expand_dims(ops.broadcast_to(count, (samples,)), 1)
    total = ops.sum(counts)
    return merge(moments, 0, ops.where(total > 0, counts, ops.ones_like(counts))), total


def moving_average(old, new, momentum, valid=True):
    """`old * momentum + new * (1 - momentum)`, or `old` where not valid."""
    old = ops.convert_to_tensor(old)  # JAX takes no variable as an argument of `where`
    average = old * momentum + ops.cast(new, old.dtype) * (1.0 - momentum)
    return average if valid is True else ops.where(valid, average, old)
