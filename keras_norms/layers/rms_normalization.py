"""RMSNormalization."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_norms.base import Normalization
from keras_norms.geometry import Geometry, Shape, geometry, parameter_shape


@keras.saving.register_keras_serializable("keras_norms")
class RMSNormalization(Normalization):
    """Divides the channels of each position by their root mean square.

        y = x / sqrt(mean(x**2) + epsilon) * scale

    The mean is taken over `axis`; every other axis is kept apart. `scale` has an element for each
    element along `axis`.

    Args:
        axis: int, or a list or tuple of ints: the axes to normalize over. `scale` is shaped as
            those axes, sorted as they are given.
        epsilon: float >= 0, added to the mean square, so in units of x squared.
        **kwargs: those of `keras.Layer` (`name`, `dtype`, ...).

    Call arguments:
        x: any rank, `axis` of known sizes; float16, bfloat16, float32 or float64.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider. A mask is
    passed on to the next layer and does not change the result.

    Raises:
        TypeError: `axis` is no int and no list or tuple of ints.
        ValueError: `axis` is out of bounds, repeats or is of unknown size.

    Differences from Keras:
        - `scale` lies along `axis` whichever it is; Keras broadcasts it along the last axes.
        - Under a mixed policy `scale` stays float32.
        - A mask is passed on; Keras drops it with a warning.
        - The configuration holds `axis` as it was given, also after `build`.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467, equation 4 (there without epsilon).
    """

    subtract_mean = False

    def __init__(self, axis: int | Sequence[int] = -1, epsilon: float = 1e-6, **kwargs: Any):
        super().__init__(axis, epsilon, **kwargs)
        self.scale: Any = None

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="positions")

    def build(self, input_shape: Shape) -> None:
        self.geometry_of(input_shape)  # for its errors, before there is a weight
        self.scale = self.add_weight(
            name="scale",
            shape=parameter_shape(input_shape, self.axis),
            initializer="ones",
            autocast=False,
        )

    def call(self, x: Any) -> Any:
        return self.normalized(x, self.scale).y
