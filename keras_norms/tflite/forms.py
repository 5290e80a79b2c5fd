"""The ways to write a norm in LiteRT's built-in operators: one small function each.

All take x and give y = (x - mean) / sqrt(variance + epsilon) * gamma + beta over a `View`. None
adds a tensor above rank 4, takes a difference to the power of two (LiteRT's 16-bit kernels have
none) or reshapes x more than once each way.

    centred    x - mean, and products with it
    scaled     the same of x divided by its largest magnitude: squares of 16-bit floats overflow
               beyond 256, and those of a mobile GPU are 16 bits wide

Groups of channels are formed where space is gone: what is reshaped there is small.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from keras_norms.geometry import Geometry
from keras_norms.tflite.builder import Builder
from keras_norms.tflite.graph import Shape

# What 1 can be divided by in 16-bit floats, and the largest root of a number there, with room.
LEAST, ROOT = 6.2e-5, 200.0
# The least mean square of numbers of which the largest is 1, where epsilon does not keep it from 0.
SMALLEST = 1e-7


@dataclass(frozen=True, kw_only=True)
class View(Geometry):
    """What a norm does with x: its geometry, and the tensors of gamma and beta, where there are."""

    epsilon: float
    subtract_mean: bool
    gamma: int | None = None
    beta: int | None = None


def centred(b: Builder, x: int, view: View) -> int:
    return _outside(b, x, view, scaled=False)


def scaled(b: Builder, x: int, view: View) -> int:
    return _outside(b, x, view, scaled=True)


def _outside(b: Builder, x: int, view: View, scaled: bool) -> int:
    """With x of rank 4 at most, and space or one group."""
    shape = b.shape(x)
    flat, view = _flat(shape, view)
    gamma, beta = (_parameter(b, p, flat, view) for p in (view.gamma, view.beta))
    view = replace(view, gamma=gamma, beta=beta)
    y = (_merged if _grouped(flat, view) else _direct)(b, b.reshape(x, flat), view, scaled)
    return b.reshape(y, shape)


def _flat(shape: Shape, view: View) -> tuple[Shape, View]:
    """The shape in which a form works, and the view of it."""
    space = [shape[a] for a in view.space_axes]
    channels = math.prod(shape[a] for a in view.channel_axes)
    if view.groups > 1 and not space:  # each group is a row
        shape = (*shape[: view.samples], view.groups, channels // view.groups)
        return _flat(shape, replace(view, samples=view.samples + 1, channels=1, groups=1))
    if len(shape) <= 4:
        return shape, view
    first = view.samples + view.before
    last = first + view.channels
    runs = [
        (shape[:1], shape[1 : view.samples]) if view.samples > 1 else (shape[: view.samples],),
        (shape[view.samples : first],),
        ((channels,),),
        (shape[last:],),
    ]
    sizes, counts = [], []
    for run in runs:
        parts = [_product(part) for part in run if part]
        sizes += parts
        counts.append(len(parts))
    samples, before, one, after = counts
    return tuple(sizes), replace(view, samples=samples, before=before, channels=one, after=after)


def _product(sizes: Shape) -> int | None:
    return None if None in sizes else math.prod(sizes)


def _parameter(b: Builder, parameter: int | None, shape: Shape, view: View) -> int | None:
    """Gamma or beta, so that it broadcasts against x of this shape."""
    if parameter is None:
        return None
    wanted = [shape[a] for a in view.channel_axes]
    first = view.channel_axes[0]
    if len(wanted) == 1 and math.prod(b.shape(parameter)) != wanted[0]:  # groups are rows
        first -= 1
        wanted.insert(0, shape[first])
    wanted += [1] * (len(shape) - first - len(wanted))
    value = b.graph.value(parameter)
    if value is not None:
        return b.constant(value.reshape(wanted), b.graph.tensor_name(parameter).split("/")[-1])
    return b.reshape(parameter, tuple(wanted))


def _grouped(shape: Shape, view: View) -> bool:
    return 1 < view.groups < math.prod(shape[a] for a in view.channel_axes)


def _direct(b: Builder, x: int, view: View, scaled: bool) -> int:
    """Of one group, or of groups of one channel."""
    axes = view.space_axes + (view.channel_axes if view.groups == 1 else ())
    rest = b.sub(x, b.mean(x, axes)) if view.subtract_mean else x
    if not scaled:
        variance = b.mean(b.mul(rest, rest), axes)
        return _affine(b, rest, b.rsqrt(_plus_epsilon(b, variance, view)), view)
    rate = _rate(b, b.max(b.abs(rest), axes), view)
    unit = b.mul(rest, rate)
    variance = b.mean(b.mul(unit, unit), axes)
    return _affine(b, unit, b.rsqrt(_plus_epsilon(b, variance, view, rate)), view)


def _rate(b: Builder, largest: int, view: View) -> int:
    """1 / the largest magnitude, where neither it nor epsilon in its units leaves 16-bit floats."""
    least = max(LEAST, math.sqrt(view.epsilon) / ROOT)
    return b.div(b.scalar(1), b.maximum(largest, b.scalar(least)))


def _plus_epsilon(b: Builder, variance: int, view: View, rate: int | None = None) -> int:
    """Variance and epsilon, in units of 1 / rate**2."""
    if view.epsilon == 0:
        return variance
    if rate is None:
        return b.add(variance, b.scalar(view.epsilon))
    root = b.mul(rate, b.scalar(math.sqrt(view.epsilon)))
    total = b.add(variance, b.mul(root, root))
    if view.epsilon * LEAST**-2 < SMALLEST:
        total = b.maximum(total, b.scalar(SMALLEST))
    return total


def _affine(b: Builder, rest: int, scale: int, view: View) -> int:
    if view.gamma is not None and view.space_axes:  # the product is small
        y = b.mul(rest, b.mul(scale, view.gamma))
    else:
        y = b.mul(rest, scale)
        y = y if view.gamma is None else b.mul(y, view.gamma)
    return y if view.beta is None else b.add(y, view.beta)


def _merged(b: Builder, x: int, view: View, scaled: bool) -> int:
    """Of groups of several channels, with space."""
    shape = b.shape(x)
    channels = math.prod(shape[a] for a in view.channel_axes)
    small = tuple(1 if a in view.space_axes else size for a, size in enumerate(shape))
    rows = (_product(shape[: view.samples]), view.groups, channels // view.groups)

    def of_group(t, reduce=b.mean):
        """From a number a channel to one a group."""
        return reduce(b.reshape(t, rows), [2])

    def of_channels(t, by=None):
        """Back, times a number a channel."""
        by = b.constant(np.ones((1, 1, rows[2]), np.float32), "ones") if by is None else by
        return b.reshape(b.mul(t, by), small)

    rest, rate = x, None
    if view.subtract_mean:
        rest = b.sub(x, of_channels(of_group(b.mean(x, view.space_axes))))
    if scaled:
        rate = _rate(b, of_group(b.max(b.abs(rest), view.space_axes), b.max), view)
        rest = b.mul(rest, of_channels(rate))
    variance = of_group(b.mean(b.mul(rest, rest), view.space_axes))
    scale = b.rsqrt(_plus_epsilon(b, variance, view, rate))
    gamma = None if view.gamma is None else _rows(b, view.gamma, rows)
    y = b.mul(rest, of_channels(scale, gamma))
    return y if view.beta is None else b.add(y, view.beta)


def _rows(b: Builder, parameter: int, rows: Shape) -> int:
    value = b.graph.value(parameter)
    if value is None:
        return b.reshape(parameter, (1, *rows[1:]))
    name = b.graph.tensor_name(parameter).split("/")[-1]
    return b.constant(value.reshape(1, *rows[1:]), name)


# What a lowering can be called in the table, and who writes it.
FORMS = {"centred": centred, "scaled": scaled}
