"""EvoNormalizationS0."""

from typing import Any

import keras
from keras import ops

from keras_norms import sums
from keras_norms.base import as_floats, spread, wide
from keras_norms.geometry import Shape, geometry, parameter_shape
from keras_norms.layers.group_normalization import GroupNormalization
from keras_norms.moments import Moments
from keras_norms.normalize import moments, normalize_by


@keras.saving.register_keras_serializable("keras_norms")
class EvoNormalizationS0(GroupNormalization):
    """Normalization and activation in one, by the variances of groups of each sample.

        y = x * sigmoid(v * x) / sqrt(variance + epsilon) * gamma + beta

    `variance` (biased) is taken over space and the `channels / groups` neighbouring channels of a
    group. x is not centred, and no activation need follow. `gamma`, `beta` and `v` (at first 1)
    have an element per channel.

    Args:
        groups: int, divides the number of channels; -1: every channel is a group.
        axis: int, the axis of the channels; not 0, which holds the samples.
        epsilon: float >= 0, added to the variance, so in units of x squared.
        *affine, **kwargs: as in `GroupNormalization`: `center`, `scale`, `beta_initializer`,
            `gamma_initializer`, `beta_regularizer`, `gamma_regularizer`, `beta_constraint`,
            `gamma_constraint`, `group_size`; `activation`, applied to the result; those of
            `keras.Layer` (`name`, `dtype`, ...).

    Call arguments:
        inputs: `(batch, ..., channels)`, or with the channels at `axis`; rank 2 or more, only the
            number of channels need be known; float16, bfloat16, float32 or float64.
        mask: optional, bool, the positions that the variance is taken over: the sizes of the
            input's axes without the channel axis, from the left (trailing ones may be missing).
            Every position is normalized; a sample that is masked as a whole counts as a whole.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider.

    Raises:
        ValueError: `groups` is no positive int and not -1, `groups` or `group_size` does not divide
            the number of channels; `axis` is 0, out of bounds or of unknown size; `mask` does not
            fit the input.

    Source: Liu et al. 2020, arXiv:2004.02967, table 2.
    """

    def __init__(
        self, groups: int = 32, axis: int = -1, epsilon: float = 1e-5, *affine: Any, **kwargs: Any
    ):
        super().__init__(groups, axis, epsilon, *affine, **kwargs)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.v = self.add_parameter("v", parameter_shape(input_shape, self.axis), "ones")

    def call(self, inputs: Any, mask: Any = None) -> Any:
        # A tensor of this graph: TensorFlow loses one that a branch of tf.cond captured when a
        # custom gradient holds it.
        x = ops.copy(as_floats(inputs, self.compute_dtype))
        groups = self.geometry_of(x.shape)
        variance = moments(x, groups, mask=mask).variance
        x = wide(x)
        v = spread(ops.cast(self.v, x.dtype), ops.shape(x), self.axis)
        x = x * ops.sigmoid(sums.multiply(x, v))
        view = geometry(x.shape, self.axis, apart="samples", groups=-1)
        variance = ops.repeat(variance, view.groups // groups.groups, axis=1)
        y = normalize_by(Moments(None, None, variance), x, view, **self.arguments())
        return ops.cast(y, self.compute_dtype)
