"""GlobalResponseNormalization."""

from typing import Any

import keras
from keras import ops

from keras_norms import sums
from keras_norms.base import AffineNormalization, Identifier, as_floats
from keras_norms.geometry import Geometry, Shape, geometry
from keras_norms.moments import element_count
from keras_norms.normalize import exact_gradients, moments, scale_shift


@keras.saving.register_keras_serializable("keras_norms")
class GlobalResponseNormalization(AffineNormalization):
    """Weights each channel of each sample by its norm beside those of the other channels.

        g = sqrt(sum(x**2))
        y = gamma * x * g / (mean(g) + epsilon) + beta + x

    The sum is taken over space, the mean over the channels. `gamma` and `beta` have an element per
    channel and start at 0, where the layer is the identity.

    Args:
        axis: int, the axis of the channels; not 0, which holds the samples.
        epsilon: float >= 0, added to the mean norm, so in units of x.
        center, scale: bool, whether there is `beta`, whether there is `gamma` (1 if not).
        beta_initializer, gamma_initializer: initializers of the weights.
        **kwargs: `beta_regularizer`, `gamma_regularizer`, `beta_constraint`, `gamma_constraint`;
            `activation`, applied to the result; those of `keras.Layer` (`name`, `dtype`, ...).

    Call arguments:
        inputs: `(batch, ..., channels)`, or with the channels at `axis`; rank 2 or more, only the
            number of channels need be known; float16, bfloat16, float32 or float64.
        mask: optional, bool, the positions that the norms are taken over: the sizes of the input's
            axes without the channel axis, from the left (trailing ones may be missing). Every
            position is weighted; a sample that is masked as a whole counts as a whole.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider. The gradient
    of the norm of a channel that is all 0 is taken as 0 (of `tf.norm` it is NaN).

    Raises:
        TypeError: `axis` is no int.
        ValueError: `axis` is 0, out of bounds or of unknown size; `mask` does not fit the input.

    Source: Woo et al. 2023, arXiv:2301.00808, equations 1 to 3 and algorithm 1.
    """

    def __init__(
        self,
        axis: int = -1,
        epsilon: float = 1e-6,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Identifier = "zeros",
        gamma_initializer: Identifier = "zeros",
        **kwargs: Any,
    ):
        super().__init__(
            axis, epsilon, center, scale, beta_initializer, gamma_initializer, **kwargs
        )

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="samples", groups=-1)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        x = as_floats(inputs, self.compute_dtype)
        view = self.geometry_of(x.shape)
        square = moments(x, view, subtract_mean=False, mask=mask).variance
        empty = ops.equal(square, 0)
        root = ops.where(empty, 0.0, ops.sqrt(ops.where(empty, ops.ones_like(square), square)))
        # g is root * sqrt(count), which could overflow and cancels but for epsilon.
        epsilon = self.epsilon / ops.sqrt(_count(x, view, mask, square.dtype))
        scale = root / (sums.mean(root, [1]) + epsilon)
        shift = None
        with exact_gradients():
            if self.scale:
                scale = sums.multiply(scale, _row(self.gamma, scale))
            if self.center:
                shift = sums.add(ops.zeros_like(scale), _row(self.beta, scale))
        y = scale_shift(x, view, scale=1 + scale, shift=shift, activation=self.activation)
        return ops.cast(y, self.compute_dtype)


def _row(parameter: Any, like: Any) -> Any:
    return ops.expand_dims(ops.cast(parameter, like.dtype), 0)


def _count(x: Any, view: Geometry, mask: Any, dtype: str) -> Any:
    """How many positions a norm is taken over, at least 1; broadcasts against (batch, channels)."""
    whole = ops.cast(ops.maximum(element_count(x, view), 1), dtype)
    if mask is None:
        return whole
    count = ops.cast(element_count(x, view, mask), dtype)
    return ops.expand_dims(ops.where(count > 0, count, whole), -1)
