"""The one view behind every norm: `x[n, s, g, d, t]`.

    n  samples kept apart           g  groups          d  channels of a group
    s  space before the channels    t  space after the channels

Mean and variance are taken over `(s, d, t)`, one for each `(n, g)`; gamma and beta are given per
channel `(g, d)`. A norm is a choice of which axes play which part:

    norm       geometry(...)                                                [n, s, g, d, t]
    batch      (8, 32, 32, 64), -1, apart="nothing", groups=-1             [1, 8192, 64, 1, 1]
    instance   (8, 32, 32, 64), -1, apart="samples", groups=-1             [8, 1024, 64, 1, 1]
    group      (8, 32, 32, 64), -1, apart="samples", groups=4              [8, 1024, 4, 16, 1]
    the same   (8, 64, 32, 32), 1, apart="samples", groups=4               [8, 1, 4, 16, 1024]
    layer      (8, 128, 512), -1, apart="positions"                        [1024, 1, 1, 512, 1]
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

Shape = tuple[int | None, ...]


class AxisError(ValueError, IndexError):
    """An axis that the shape does not have. Both types, as in NumPy: callers expect either."""


@dataclass(frozen=True)
class Geometry:
    """Which axes of `x` play which part, in the order samples, space, channels, space."""

    samples: int  # how many leading axes are kept apart (n)
    before: int  # how many axes of space come before the channels (s)
    channels: int  # how many axes are channels (g and d)
    after: int  # how many axes of space come after the channels (t)
    groups: int  # g; the channels are g * d
    order: tuple[int, ...] | None = None  # transposition of x into this order; None: it is in it
    parameter_order: tuple[int, ...] | None = None  # the same for the axes of gamma and beta

    @property
    def channel_axes(self) -> tuple[int, ...]:
        first = self.samples + self.before
        return tuple(range(first, first + self.channels))

    @property
    def space_axes(self) -> tuple[int, ...]:
        first = self.samples + self.before
        last = first + self.channels
        return (*range(self.samples, first), *range(last, last + self.after))

    def view(self, shape: Shape) -> Shape:
        """Sizes `(n, s, g, d, t)` of an `x` of this (transposed) shape; None where unknown."""
        first = self.samples + self.before
        last = first + self.channels
        n, s, t = (
            product(sizes)
            for sizes in (shape[: self.samples], shape[self.samples : first], shape[last:])
        )
        return n, s, self.groups, product(shape[first:last]) // self.groups, t

    def untransposed(self, shape: Shape) -> tuple["Geometry", "Geometry"] | None:
        """The same norm of an x of this shape as it lies, not transposed into `order`.

        Returns: the geometry of the statistics, whose channels are the positions that follow the
            axes normalized over, each a group of its own; and that of gamma and beta. None where
            one geometry does for both, or where no two of them do.
        """
        if self.order is None or self.before or self.after or self.groups != 1:
            return None
        axes = self.order[self.samples :]
        first, last = axes[0], axes[-1] + 1
        kept = product(shape[last:])
        if last - first != self.channels or not kept:
            return None
        rest = len(shape) - last
        statistics = Geometry(first, before=self.channels, channels=rest, after=0, groups=kept)
        parameters = Geometry(0, before=first, channels=self.channels, after=rest, groups=1)
        return statistics, parameters


def product(sizes: Sequence[int | None]) -> int | None:
    """Product of the sizes; None if one of them is unknown."""
    return None if None in sizes else math.prod(sizes)


def parameter_shape(shape: Shape, axis: int | Sequence[int]) -> tuple[int, ...]:
    """Shape of gamma and beta: the sizes of the channel axes, the axes sorted as they are given.

    That is Keras' rule: `axis=[1, -1]` gives `(shape[-1], shape[1])`, since -1 sorts before 1.
    """
    return tuple(shape[a] for a in _axes(shape, axis))


def one_axis(axis: int | Sequence[int], shape: Shape | None = None) -> int:
    """The axis, if it is one int and not several; TypeError, or ValueError for a text, if not."""
    try:
        return operator.index(axis)
    except TypeError:
        error = ValueError if isinstance(axis, str) else TypeError
        given = "" if shape is None else f"shape={tuple(shape)}, "
        raise error(
            f"`axis` must be an int: there is one channel axis. Received: {given}axis={axis!r}."
        ) from None


def geometry(shape: Shape, axis: int | Sequence[int], *, apart: str, groups: int = 1) -> Geometry:
    """The geometry of a norm over an `x` of this shape.

    Args:
        shape: sizes of x, None where unknown.
        axis: the channel axis; with "positions", one or several.
        apart: what is kept apart, "positions" (every axis but the channels), "samples" (axis 0)
            or "nothing".
        groups: int, divides the number of channels; -1: every channel is a group.

    Raises:
        ValueError: the axes do not exist, repeat, are of unknown size or include the samples, or
            `groups` does not divide the channels.
        TypeError: `axis` or `groups` is no int, or there are several axes where one is wanted.
    """
    given = f"shape={tuple(shape)}, axis={axis}"
    rank = len(shape)
    axes = [a % rank for a in _axes(shape, axis)]
    if apart != "positions":
        one_axis(axis, shape)
    channels = product([shape[a] for a in axes])
    if channels is None:
        raise ValueError(f"The size of the channel axis must be known. Received: {given}.")
    if apart == "samples" and 0 in axes:
        raise ValueError(
            "Axis 0 holds the samples, so it cannot be the channel axis, and the input must have "
            f"at least two axes. Received: {given}."
        )
    groups = channels if groups == -1 else operator.index(groups)
    if groups < 1 or channels % groups:
        raise ValueError(
            "`groups` must be positive and divide the number of channels. "
            f"Received: groups={groups}, channels={channels} ({given})."
        )
    others = [a for a in range(rank) if a not in axes]
    kept = {"positions": len(others), "samples": 1, "nothing": 0}[apart]
    samples, space = others[:kept], others[kept:]
    before = [a for a in space if a < min(axes)]
    after = [a for a in space if a > min(axes)]
    order = (*samples, *before, *sorted(axes), *after)
    parameter_order = tuple(sorted(range(len(axes)), key=axes.__getitem__))
    return Geometry(
        samples=len(samples),
        before=len(before),
        channels=len(axes),
        after=len(after),
        groups=groups,
        order=None if order == tuple(range(rank)) else order,
        parameter_order=None if parameter_order == tuple(range(len(axes))) else parameter_order,
    )


def _axes(shape: Shape, axis: int | Sequence[int]) -> list[int]:
    """The axes sorted as given, each checked."""
    several = isinstance(axis, list | tuple)
    try:
        axes = sorted(operator.index(a) for a in (axis if several else (axis,)))
    except TypeError:
        raise TypeError(
            f"`axis` must be an int or a list or tuple of ints. Received: axis={axis!r}."
        ) from None
    rank = len(shape)
    for a in axes:
        if not -rank <= a < rank:
            raise AxisError(
                f"Axis {a} is out of bounds for shape {tuple(shape)}. Received: axis={axis}."
            )
    if not axes or len({a % rank for a in axes}) < len(axes):
        raise ValueError(
            "`axis` must name at least one axis and none twice. "
            f"Received: axis={axis}, shape={tuple(shape)}."
        )
    return axes
