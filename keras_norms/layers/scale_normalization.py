"""ScaleNormalization."""

import math
from typing import Any

import keras
from keras import initializers, ops

from keras_norms.base import Identifier, Normalization, as_floats, wide
from keras_norms.geometry import Geometry, Shape, geometry, one_axis
from keras_norms.normalize import normalize


@keras.saving.register_keras_serializable("keras_norms")
class ScaleNormalization(Normalization):
    """Gives the channels of each position one learned length.

        y = scale * x / sqrt(sum(x**2) + epsilon)

    The sum is taken over `axis`; every other axis is kept apart. `scale` is a scalar, which starts
    at the square root of the number of channels: there the layer is `RMSNormalization`.

    Args:
        axis: int, the axis of the channels.
        epsilon: float >= 0, added to the sum of squares, so in units of x squared.
        scale_initializer: initializer of `scale`; None: the square root of the number of channels.
        scale_regularizer, scale_constraint: optional.
        **kwargs: `activation`, applied to the result; those of `keras.Layer` (`name`, ...).

    Call arguments:
        inputs: any rank, only the number of channels need be known; float16, bfloat16, float32 or
            float64.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider.

    Raises:
        TypeError: `axis` is no int.
        ValueError: `axis` is out of bounds or of unknown size.

    Source: Nguyen and Salazar 2019, arXiv:1910.05895, equation 5. There the length is kept above
    epsilon, `max(sqrt(sum(x**2)), epsilon)`; here epsilon is inside the root, so that y is smooth.
    """

    subtract_mean = False

    def __init__(
        self,
        axis: int = -1,
        epsilon: float = 1e-5,
        scale_initializer: Identifier | None = None,
        scale_regularizer: Identifier | None = None,
        scale_constraint: Identifier | None = None,
        **kwargs: Any,
    ):
        super().__init__(axis, epsilon, **kwargs)
        self.declare(
            "scale",
            initializer=scale_initializer,
            regularizer=scale_regularizer,
            constraint=scale_constraint,
        )
        self.scale: Any = None

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, one_axis(self.axis, shape), apart="positions")

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        initial = initializers.Constant(math.sqrt(input_shape[self.axis]))
        self.scale = self.add_declared("scale", (), initial)

    def call(self, inputs: Any) -> Any:
        x = as_floats(inputs, self.compute_dtype)
        channels = max(x.shape[self.axis], 1)
        # sum = channels * mean: what is left is a root mean square.
        gamma = wide(self.scale) / math.sqrt(channels)
        gamma = ops.broadcast_to(gamma, (x.shape[self.axis],))
        y = normalize(
            x,
            self.geometry_of(x.shape),
            gamma=gamma,
            epsilon=self.epsilon / channels,
            subtract_mean=False,
            activation=self.activation,
        ).y
        return ops.cast(y, self.compute_dtype)
