"""LayerScale."""

from typing import Any

import keras
from keras import initializers, ops

from keras_norms.base import ChannelLayer, Identifier, as_floats, number
from keras_norms.geometry import Geometry, Shape, geometry
from keras_norms.normalize import scale_shift


@keras.saving.register_keras_serializable("keras_norms")
class LayerScale(ChannelLayer):
    """Multiplies each channel by a weight that starts small.

        y = x * gamma

    At the end of a residual branch it starts the branch near zero, so that deep stacks train.
    `gamma` has an element per channel.

    Args:
        axis: int, the axis of the channels.
        init_value: float, what `gamma` starts at: in the paper 0.1 up to 18 layers, 1e-5 for 24 and
            1e-6 beyond.
        gamma_regularizer, gamma_constraint: optional.
        **kwargs: `activation`, applied to the result; those of `keras.Layer` (`name`, ...).

    Call arguments:
        inputs: any rank, only the number of channels need be known; float16, bfloat16, float32 or
            float64.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider.

    Raises:
        TypeError: `axis` is no int, `init_value` is no number.
        ValueError: `axis` is out of bounds or of unknown size.

    Source: Touvron et al. 2021, arXiv:2103.17239, section 2, the matrix diag(lambda).
    """

    def __init__(
        self,
        axis: int = -1,
        init_value: float = 1e-5,
        gamma_regularizer: Identifier | None = None,
        gamma_constraint: Identifier | None = None,
        **kwargs: Any,
    ):
        super().__init__(axis, **kwargs)
        self.init_value = number("init_value", init_value)
        self.declare("gamma", regularizer=gamma_regularizer, constraint=gamma_constraint)
        self.gamma: Any = None

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="nothing", groups=-1)

    def build(self, input_shape: Shape) -> None:
        self.geometry_of(input_shape)  # for its errors, before there are weights
        channels = input_shape[self.axis]
        self.input_spec = keras.InputSpec(ndim=len(input_shape), axes={self.axis: channels})
        initial = initializers.Constant(self.init_value)
        self.gamma = self.add_declared("gamma", (channels,), initial)

    def call(self, inputs: Any) -> Any:
        x = as_floats(inputs, self.compute_dtype)
        view = self.geometry_of(x.shape)
        y = scale_shift(x, view, scale=self.gamma, activation=self.activation)
        return ops.cast(y, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "init_value": self.init_value}
