"""UnitNormalization."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_norms import sums
from keras_norms.base import ChannelLayer, as_floats, wide
from keras_norms.geometry import Shape, parameter_shape
from keras_norms.normalize import exact_gradients


@keras.saving.register_keras_serializable("keras_norms")
class UnitNormalization(ChannelLayer):
    """Gives the elements along `axis` the length 1.

        y = x / sqrt(sum(x**2))

    The sum is taken over `axis`; every other axis is kept apart. Where all x are 0, y and its
    gradient are 0. There are no weights.

    Args:
        axis: int, or a list or tuple of ints: the axes to normalize over.
        **kwargs: `activation`, applied to the result; those of `keras.Layer` (`name`, ...).

    Call arguments:
        inputs: any rank; float16, bfloat16, float32 or float64.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider.

    Raises:
        TypeError: `axis` is no int and no list or tuple of ints.
        ValueError: `axis` is out of bounds or repeats.

    Differences from Keras:
        - x is divided by the largest of it before it is squared, so y has length 1 for x of any
          size (Keras: 0 for a row of 300s in float16 or of 1e20s in float32, too short for one of
          1e-20s).
        - The gradient where all x are 0 is 0 (Keras: 1e12 times y's; in float16 y itself is NaN).

    Source: `keras.layers.UnitNormalization`; as a layer of a network it is the normalization of
    Nguyen and Salazar 2019, arXiv:1910.05895, equation 5, without its scale.
    """

    def __init__(self, axis: int | Sequence[int] = -1, **kwargs: Any):
        if not isinstance(axis, int | list | tuple):
            raise TypeError(
                f"`axis` must be an int or a list or tuple of ints. Received: axis={axis!r}."
            )
        super().__init__(axis, **kwargs)

    def build(self, input_shape: Shape) -> None:
        parameter_shape(input_shape, self.axis)  # for its errors

    def call(self, inputs: Any) -> Any:
        x = wide(as_floats(inputs, self.compute_dtype))
        rank = len(x.shape)
        axes = [a % rank for a in (self.axis if isinstance(self.axis, list) else [self.axis])]
        largest = ops.max(ops.abs(ops.stop_gradient(x)), axis=axes, keepdims=True, initial=0)
        x = x / ops.where(ops.equal(largest, 0), ops.ones_like(largest), largest)
        shape = ops.shape(x)
        count = ops.cast(math.prod(shape[a] for a in axes), x.dtype)
        square = sums.mean(ops.square(x), axes) * count
        empty = ops.equal(square, 0)
        scale = ops.where(empty, 0.0, ops.rsqrt(ops.where(empty, ops.ones_like(square), square)))
        with exact_gradients():
            return self.finished(sums.multiply(x, scale))
