"""DynamicTanh."""

from typing import Any

import keras
from keras import initializers, ops

from keras_norms.base import Affine, Identifier, as_floats, wide
from keras_norms.geometry import Geometry, Shape, geometry
from keras_norms.normalize import scale_shift


@keras.saving.register_keras_serializable("keras_norms")
class DynamicTanh(Affine):
    """Squashes each element, in the place of a normalization: there are no statistics.

        y = tanh(alpha * x) * gamma + beta

    `alpha` is a scalar, `gamma` and `beta` have an element per channel.

    Args:
        axis: int, the axis of the channels.
        alpha_initializer: initializer of `alpha`; None: 0.5, as in the paper.
        alpha_regularizer, alpha_constraint: optional.
        **kwargs: `center`, `scale`, `beta_initializer`, `gamma_initializer`, `beta_regularizer`,
            `gamma_regularizer`, `beta_constraint`, `gamma_constraint`, as in Keras' norms;
            `activation`, applied to the result; those of `keras.Layer` (`name`, `dtype`, ...).

    Call arguments:
        inputs: any rank, only the number of channels need be known; float16, bfloat16, float32 or
            float64.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider.

    Raises:
        TypeError: `axis` is no int.
        ValueError: `axis` is out of bounds or of unknown size.

    Source: Zhu et al. 2025, arXiv:2503.10622, equation 1.
    """

    def __init__(
        self,
        axis: int = -1,
        alpha_initializer: Identifier | None = None,
        alpha_regularizer: Identifier | None = None,
        alpha_constraint: Identifier | None = None,
        **kwargs: Any,
    ):
        super().__init__(axis, **kwargs)
        self.declare(
            "alpha",
            initializer=alpha_initializer,
            regularizer=alpha_regularizer,
            constraint=alpha_constraint,
        )
        self.alpha: Any = None

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="nothing", groups=-1)

    def build(self, input_shape: Shape) -> None:
        self.geometry_of(input_shape)  # for its errors, before there are weights
        super().build(input_shape)
        self.alpha = self.add_declared("alpha", (), initializers.Constant(0.5))

    def call(self, inputs: Any) -> Any:
        x = wide(as_floats(inputs, self.compute_dtype))
        view = self.geometry_of(x.shape)
        ones = ops.ones((x.shape[self.axis],), dtype=self.alpha.dtype)
        # The scalars are spread over the channels: their gradients are then sums in parts.
        y = ops.tanh(scale_shift(x, view, scale=self.alpha * ones))
        return self.scaled(y)
