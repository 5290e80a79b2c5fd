"""MultiScaleNormalization."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_norms import sums
from keras_norms.base import AffineNormalization, as_floats, check_groups, wide
from keras_norms.geometry import Geometry, Shape, geometry
from keras_norms.mixture import Mixture
from keras_norms.moments import expand_mask, or_whole
from keras_norms.normalize import exact_gradients, moments
from keras_norms.windows import Local, in_windows


@keras.saving.register_keras_serializable("keras_norms")
class MultiScaleNormalization(Mixture, AffineNormalization):
    """Normalizes each position by a learned mixture of statistics around it, local to global.

        y = (x - mean) / sqrt(variance + epsilon) * gamma + beta
        mean = sum_k softmax(mean_weights)[k] * mean_k
        variance = sum_k softmax(variance_weights)[k] * variance_k

    k runs over `windows`. `mean_k` and `variance_k` (biased) are those of a position and a group of
    channels: they are taken over the `channels / groups` neighbouring channels of the group at all
    positions of the same sample that are at most `(windows[k] - 1) / 2` away along every axis of
    space. At the edges the window is cut off: only positions that exist count. A window None is the
    whole sample, and so is one that reaches from each position to all others, of
    `2 * size - 1` or more. `gamma` and `beta` have an element per channel, `mean_weights` and
    `variance_weights` (at first 1) one per window.

    `windows=(None,)` is `GroupNormalization`: with `groups=-1` `InstanceNormalization`, with
    `groups=1` layer normalization over space and channels. `windows=(1,)` with `groups=1` is
    `PositionalNormalization`. Without space (rank 2) every window is the whole sample.

    Args:
        windows: list or tuple, at least one, distinct: odd positive ints, the positions that a
            window is wide along each axis of space, or None for the whole sample.
        groups: int, divides the number of channels; -1: every channel is a group.
        axis: int, the axis of the channels; not 0, which holds the samples.
        epsilon: float >= 0, added to the variance, so in units of x squared.
        *affine: `center`, `scale`, `beta_initializer`, `gamma_initializer`, `beta_regularizer`,
            `gamma_regularizer`, `beta_constraint`, `gamma_constraint`, as in Keras' norms.
        **kwargs: `activation`, applied to the result; those of `keras.Layer` (`name`, ...).

    Call arguments:
        inputs: `(batch, ..., channels)`, or with the channels at `axis`; rank 2 or more, only the
            number of channels need be known; float16, bfloat16, float32 or float64.
        mask: optional, bool, the positions that the statistics are taken over: the sizes of the
            input's axes without the channel axis, from the left (trailing ones may be missing).
            Every position is normalized; a window without any of them takes the statistics of the
            sample, and a sample that is masked as a whole counts as a whole.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider.

    Raises:
        ValueError: `windows` are others, repeat or are none; `groups` is no positive int and not
            -1, or does not divide the number of channels; `axis` is 0, out of bounds or of unknown
            size; `mask` does not fit the input.

    Source: this layer's own definition. Its family are local context normalization, of one window
    and not learned (Ortiz et al. 2020, arXiv:2003.06922), and the learned mixture of
    `SwitchableNormalization` (Luo et al. 2019, arXiv:1806.10779).
    """

    def __init__(
        self,
        windows: Sequence[int | None] = (3, 7, None),
        groups: int = 1,
        axis: int = -1,
        epsilon: float = 1e-3,
        *affine: Any,
        **kwargs: Any,
    ):
        known = isinstance(windows, list | tuple) and all(map(_is_window, windows))
        if not known or not windows or len(set(windows)) < len(windows):
            raise ValueError(
                "`windows` must be a list or tuple of at least one window, none twice: an odd "
                "positive int, which holds for every axis of space, or None for the whole sample. "
                f"Received: windows={windows!r}."
            )
        check_groups(groups)
        super().__init__(axis, epsilon, *affine, **kwargs)
        self.windows = tuple(windows)
        self.groups = groups

    @property
    def mixed(self) -> Sequence[int | None]:
        return self.windows

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="samples", groups=self.groups)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.add_mixture()

    def call(self, inputs: Any, mask: Any = None) -> Any:
        x = as_floats(inputs, self.compute_dtype)
        view = self.geometry_of(x.shape)
        # Shaped samples, space of size 1, groups. Means are told from the sample's center.
        shape = (-1, *[1] * len(view.space_axes), view.groups)
        center, *rest = (ops.reshape(s, shape) for s in moments(x, view, mask=mask))
        with exact_gradients():
            found = self._around(x, view, center, Local(None, *rest), mask)
            by_mean, by_variance = self.shares()
            mean = _mixed([local.mean for local in found], by_mean)
            variance = _mixed([local.variance for local in found], by_variance)
            scale = ops.rsqrt(variance + self.epsilon)
            center, mean, scale = (
                self._of_channels(s, view, x.shape) for s in (center, mean, scale)
            )
            y = sums.multiply(sums.subtract(wide(x) - center, mean), scale)
        return self.scaled(y)

    def _around(self, x: Any, view: Geometry, center: Any, whole: Local, mask: Any) -> list[Local]:
        """The statistics of each window, by position; the sample's where it is a window."""
        sizes = [x.shape[a] for a in view.space_axes]
        widths = [None if w is None or _reaches_all(w, sizes) else w for w in self.windows]
        if not any(widths):
            return [whole] * len(widths)
        mask = None if mask is None else expand_mask(mask, x.shape, view)
        if mask is not None:
            mask = or_whole(mask, view)
            x = ops.where(mask, x, ops.zeros_like(x))
        positions = geometry(x.shape, self.axis, apart="positions", groups=view.groups)
        found = moments(x, positions)
        mean, variance = (found.center - center) + found.residual, found.variance
        if mask is None:
            own = Local(ops.ones_like(variance[:1, ..., :1]), mean, variance)
            return [whole if w is None else in_windows(own, w) for w in widths]
        mask = ops.moveaxis(mask, view.channel_axes[0], -1)
        mean, variance = (ops.where(mask, s, ops.zeros_like(s)) for s in (mean, variance))
        own = Local(ops.cast(mask, mean.dtype) * ops.ones_like(mean[..., :1]), mean, variance)
        return [whole if w is None else _or(in_windows(own, w), whole) for w in widths]

    def _of_channels(self, statistic: Any, view: Geometry, shape: Shape) -> Any:
        """From samples, space, groups to what broadcasts against an input of this shape."""
        channels = shape[self.axis]
        if 1 < view.groups < channels:
            sizes = ops.shape(statistic)[:-1]
            statistic = ops.reshape(statistic, (-1, view.groups, 1))
            each = ops.zeros((1, 1, channels // view.groups), statistic.dtype)
            statistic = sums.reshape(sums.add(statistic, each), (*sizes, channels))
        return ops.moveaxis(statistic, -1, view.channel_axes[0])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "windows": list(self.windows), "groups": self.groups}


def _is_window(width: Any) -> bool:
    whole = isinstance(width, int) and not isinstance(width, bool)
    return width is None or (whole and width > 0 and width % 2 == 1)


def _reaches_all(width: int, sizes: Sequence[int | None]) -> bool:
    """Whether the window holds all positions, wherever it is."""
    return all(size is not None and width // 2 >= size - 1 for size in sizes)


def _or(local: Local, whole: Local) -> Local:
    """The first, or where it has no elements the other."""
    absent = ops.cast(local.count == 0, local.mean.dtype)
    pairs = (local.mean, whole.mean), (local.variance, whole.variance)
    return Local(None, *(sums.add(own, sums.multiply(other, absent)) for own, other in pairs))


def _mixed(statistics: Sequence[Any], weights: Any) -> Any:
    one = [1] * len(statistics[0].shape)
    weights = ops.cast(weights, statistics[0].dtype)
    parts = (
        sums.multiply(statistic, ops.reshape(weights[k], one))
        for k, statistic in enumerate(statistics)
    )
    return functools.reduce(sums.add, parts)
