"""Mean and variance over a `Geometry`, with and without a mask; merging; moving averages.

Everything here is `keras.ops`, so it runs on every backend, and holds in float32 for data far from
zero: a float32 mean of 1e6 is itself off by 0.03, so the data are shifted by that rough mean
(without error, the two being close) and the mean of what remains is taken off in turn. Variances
are means of centred squares, never E[x^2] - E[x]^2.
"""

import math
from typing import NamedTuple

from keras import ops

from keras_norms import sums
from keras_norms.geometry import Geometry


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
            positions; where there are none they are 0.
    """
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


def group_mean(x, geometry: Geometry, mask=None):
    """Mean over the space and the channels of a group, broadcastable against x."""
    axes = geometry.space_axes
    if geometry.groups == 1:
        axes = tuple(sorted(axes + geometry.channel_axes))
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


def compact(statistic, geometry: Geometry):
    """From axes that broadcast against x to the sample axes and one axis of groups."""
    samples = ops.shape(statistic)[: geometry.samples]
    size = math.prod(statistic.shape[geometry.samples :])
    if size == geometry.groups:
        return sums.reshape(statistic, (*samples, size))
    return sums.reshape(statistic, (*samples, geometry.groups, size // geometry.groups))[..., 0]


def expand_mask(mask, shape, geometry: Geometry):
    """A mask over the axes of x but the channels, made to broadcast against x.

    It aligns from the left and may leave out trailing axes: with channels last, `(batch, time)`
    masks both `(batch, time, channels)` and `(batch, time, width, channels)`.

    Args:
        mask: bool or numbers (True where not 0).
        shape: shape of x, in the caller's order of axes.
    """
    given = check_mask(mask, shape, geometry)
    mask = ops.cast(mask, "bool")
    for axis in range(len(shape)):
        if axis not in given:
            mask = ops.expand_dims(mask, axis)
    return mask


def check_mask(mask, shape, geometry: Geometry) -> list[int]:
    """The axes of x that the mask's axes stand for; ValueError if they do not fit."""
    order = geometry.order or tuple(range(len(shape)))
    channels = {order[a] for a in geometry.channel_axes}
    axes = [a for a in range(len(shape)) if a not in channels][: len(mask.shape)]
    sizes = [(size, shape[a]) for size, a in zip(mask.shape, axes, strict=False)]
    if len(axes) < len(mask.shape) or any(
        None not in pair and pair[0] not in (1, pair[1]) for pair in sizes
    ):
        raise ValueError(
            "`mask` must have the sizes of the input's axes without the channel axis, from the "
            f"left; trailing axes may be missing. Received: mask.shape={tuple(mask.shape)}, "
            f"inputs.shape={tuple(shape)}, channel axis={sorted(channels)}."
        )
    return axes


def has_elements(x, geometry: Geometry, mask=None):
    """Whether there is anything to take moments of: a bool tensor, or True if that is certain."""
    count = math.prod(ops.shape(x)[geometry.samples :])
    filled = True if isinstance(count, int) and count else ops.convert_to_tensor(count > 0)
    return filled if mask is None else ops.logical_and(filled, ops.any(ops.cast(mask, "bool")))


def merge(mean, variance, axis: int):
    """Mean and variance of parts of equal size, taken together (Chan, Golub and LeVeque 1983).

    Args:
        mean, variance: of each part, the parts along `axis`, which stays with size 1.
    """
    whole = sums.mean(mean, [axis])
    between = sums.mean(ops.square(sums.subtract(mean, whole)), [axis])
    return whole, sums.mean(variance, [axis]) + between


def moving_average(old, new, momentum: float, valid=True):
    """`old * momentum + new * (1 - momentum)`, or `old` where not valid."""
    average = old * momentum + ops.cast(new, old.dtype) * (1.0 - momentum)
    return average if valid is True else ops.where(valid, average, old)
