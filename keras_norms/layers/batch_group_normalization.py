"""BatchGroupNormalization."""

from typing import Any

import keras
from keras import ops

from keras_norms.base import check_groups
from keras_norms.geometry import Geometry, Shape, geometry
from keras_norms.moving import MovingNormalization


@keras.saving.register_keras_serializable("keras_norms")
class BatchGroupNormalization(MovingNormalization):
    """Normalizes each group of channels over the batch, at inference by moving averages.

        training:    y = (x - mean) / sqrt(variance + epsilon) * gamma + beta
                     moving_mean = moving_mean * momentum + mean * (1 - momentum)
                     moving_variance = moving_variance * momentum + variance * (1 - momentum)
        inference:   y = (x - moving_mean) / sqrt(moving_variance + epsilon) * gamma + beta

    `mean` and `variance` (biased) are taken over samples, space and the `channels / groups`
    neighbouring channels of a group: the smaller the batch, the fewer groups. `gamma` and `beta`
    have an element per channel, the moving statistics one per group.

    Args:
        groups: int, divides the number of channels. -1, or the number of channels, makes it
            `BatchNormalization`.
        axis: int, the axis of the channels.
        momentum: float in [0, 1], the weight of the past; None: all batches weigh the same.
        epsilon: float >= 0, added to the variance, so in units of x squared.
        *affine: `center`, `scale`, `beta_initializer`, `gamma_initializer`, `beta_regularizer`,
            `gamma_regularizer`, `beta_constraint`, `gamma_constraint`, as in Keras' norms.
        **kwargs: `moving_mean_initializer`, `moving_variance_initializer`,
            `unbiased_moving_variance` and `freeze_statistics` as in `BatchNormalization`;
            `activation`, applied to the result; those of `keras.Layer` (`name`, `dtype`, ...).

    Call arguments:
        inputs: `(batch, ..., channels)`, or with the channels at `axis`; any rank, only the number
            of channels need be known; float16, bfloat16, float32 or float64.
        training: bool, whether to normalize by the batch and to update the moving statistics.
        mask: optional, bool, the positions that the statistics are taken over: the sizes of the
            input's axes without the channel axis, from the left (trailing ones may be missing).
            Every position is normalized.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider. A batch without
    elements, or masked as a whole, leaves the moving statistics as they are.

    Raises:
        ValueError: `groups` is no positive int and not -1, or does not divide the number of
            channels; `axis` is out of bounds or of unknown size; `momentum` is not in [0, 1];
            `mask` does not fit the input.

    Differences from the paper: there may be more groups than channels, which then cut space, too;
    here there may not (ValueError), so that any size of space will do.

    Source: Zhou et al. 2020, arXiv:2009.04529, section 3.
    """

    def __init__(
        self,
        groups: int = 32,
        axis: int = -1,
        momentum: float | None = 0.99,
        epsilon: float = 1e-3,
        *affine: Any,
        **kwargs: Any,
    ):
        check_groups(groups)
        super().__init__(axis, epsilon, *affine, momentum=momentum, **kwargs)
        self.groups = groups

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="nothing", groups=self.groups)

    def moving_shape(self, input_shape: Shape) -> tuple[int, ...]:
        return (self.geometry_of(input_shape).groups,)

    def of_channels(self) -> tuple[Any, Any]:
        (groups,) = self.moving_mean.shape
        each = self.input_spec.axes[self.axis] // groups
        return tuple(ops.repeat(w, each) for w in super().of_channels())

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "groups": self.groups}
