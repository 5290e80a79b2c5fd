"""PixelNormalization."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_norms.base import Normalization
from keras_norms.geometry import Geometry, Shape, geometry


@keras.saving.register_keras_serializable("keras_norms")
class PixelNormalization(Normalization):
    """Divides the channels of each position by their root mean square, without weights.

        y = x / sqrt(mean(x**2) + epsilon)

    The mean is taken over `axis`; every other axis is kept apart. With a weight per channel it is
    `RMSNormalization`.

    Args:
        axis: int, the axis of the channels, or a list or tuple of ints.
        epsilon: float >= 0, added to the mean square, so in units of x squared.
        **kwargs: `activation`, applied to the result; those of `keras.Layer` (`name`, ...).

    Call arguments:
        inputs: any rank, `axis` of known size; float16, bfloat16, float32 or float64.
        mask: optional, bool, the elements that the mean is taken over, as in `LayerNormalization`:
            one of whole positions changes nothing.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider.

    Raises:
        TypeError: `axis` is no int and no list or tuple of ints.
        ValueError: `axis` is out of bounds, repeats or is of unknown size; `mask` does not fit the
            input.

    Source: Karras et al. 2018, arXiv:1710.10196, section 4.2.
    """

    subtract_mean = False

    def __init__(self, axis: int | Sequence[int] = -1, epsilon: float = 1e-8, **kwargs: Any):
        super().__init__(axis, epsilon, **kwargs)

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="positions")

    def call(self, inputs: Any, mask: Any = None) -> Any:
        return self.normalized(inputs, mask=mask).y
