"""Batch renormalization (Ioffe 2017): training corrected towards the moving statistics."""

from typing import Any

from keras import initializers, ops

from keras_norms.base import number
from keras_norms.moments import Moments, moving_average


class Renormalization:
    """The corrections r and d of a layer, and the statistics that they come from.

        r = clip(stddev / renorm_stddev, rmin, rmax)
        d = clip((mean - renorm_mean) / renorm_stddev, -dmax, dmax)

    Args:
        clipping: dict with any of "rmin", "rmax" and "dmax", or None.
        momentum: float in [0, 1], of `renorm_mean` and `renorm_stddev`.
    """

    KEYS = ("rmin", "rmax", "dmax")

    def __init__(self, clipping: dict[str, float] | None, momentum: float):
        clipping = {} if clipping is None else clipping
        if not isinstance(clipping, dict):
            raise TypeError(
                f"`renorm_clipping` must be a dict or None. Received: renorm_clipping={clipping!r}."
            )
        for key in clipping:
            number(f"renorm_clipping[{key!r}]", clipping[key])
        if set(clipping) - set(self.KEYS):
            raise ValueError(
                f"`renorm_clipping` may have the keys {self.KEYS}. "
                f"Received: renorm_clipping={clipping}."
            )
        self.rmin, self.rmax, self.dmax = (clipping.get(key) for key in self.KEYS)
        if None not in (self.rmin, self.rmax) and self.rmax < self.rmin:
            raise ValueError(
                "`rmax` must be at least `rmin` in `renorm_clipping`. "
                f"Received: renorm_clipping={clipping}."
            )
        if self.dmax is not None and self.dmax < 0:
            raise ValueError(
                "`dmax` must be at least 0 in `renorm_clipping`. "
                f"Received: renorm_clipping={clipping}."
            )
        self.momentum = number("renorm_momentum", momentum, least=0, most=1)

    def build(self, layer: Any, shape: tuple[int, ...]) -> None:
        """Adds the weights, named as Keras names them."""

        def stddev(shape, dtype=None):
            return ops.sqrt(_fresh(layer.moving_variance_initializer)(shape, dtype=dtype))

        mean = _fresh(layer.moving_mean_initializer)
        layer.moving_stddev = layer.add_moving("moving_stddev", shape, stddev)
        layer.renorm_mean = layer.add_moving("renorm_mean", shape, mean)
        layer.renorm_stddev = layer.add_moving("renorm_stddev", shape, stddev)

    def corrections(self, layer: Any, found: Moments) -> tuple[Any, Any]:
        """r and d, through which no gradient flows."""
        dtype = found.variance.dtype
        past = ops.maximum(ops.cast(layer.renorm_stddev, dtype), layer.epsilon**0.5)
        r = ops.sqrt(found.variance + layer.epsilon) / past
        # The mean and its past are close: their difference is exact, and the residual adds to it.
        d = (found.center - ops.cast(layer.renorm_mean, dtype) + found.residual) / past
        r = r if self.rmin is None else ops.maximum(r, self.rmin)
        r = r if self.rmax is None else ops.minimum(r, self.rmax)
        d = d if self.dmax is None else ops.clip(d, -self.dmax, self.dmax)
        return ops.stop_gradient(r), ops.stop_gradient(d)

    def move(self, layer: Any, mean: Any, variance: Any, momentum: Any, valid: Any) -> None:
        """Moves the statistics, those for inference by `momentum`.

        `moving_variance` is what `moving_stddev` says.
        """
        stddev = ops.sqrt(variance + layer.epsilon)
        for name, new, past in (
            ("renorm_mean", mean, self.momentum),
            ("renorm_stddev", stddev, self.momentum),
            ("moving_mean", mean, momentum),
            ("moving_stddev", stddev, momentum),
        ):
            weight = getattr(layer, name)
            weight.assign(moving_average(weight, new, past, valid))
        variance = ops.relu(ops.square(layer.moving_stddev) - layer.epsilon)
        layer.moving_variance.assign(moving_average(layer.moving_variance, variance, 0.0, valid))

    def set(self, layer: Any, mean: Any, variance: Any) -> None:
        """Puts these in the place of all moving statistics but `moving_variance`."""
        for name in ("moving_mean", "renorm_mean"):
            getattr(layer, name).assign(mean)
        for name in ("moving_stddev", "renorm_stddev"):
            getattr(layer, name).assign(ops.sqrt(variance + layer.epsilon))


def _fresh(initializer: Any) -> Any:
    """A copy: one with a seed gives each weight the same numbers."""
    clones = isinstance(initializer, initializers.Initializer)
    return initializer.clone() if clones else initializer
