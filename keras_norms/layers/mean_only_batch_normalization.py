"""MeanOnlyBatchNormalization."""

from typing import Any

import keras
from keras import ops

from keras_norms.base import Identifier, as_floats
from keras_norms.geometry import Geometry, Shape, geometry
from keras_norms.moments import check_mask, element_count
from keras_norms.moving import MovingNormalization, refuse
from keras_norms.normalize import moments, scale_shift

# What a layer that divides by nothing has no use for.
UNUSED = (
    *("epsilon", "scale", "gamma_initializer", "gamma_regularizer", "gamma_constraint"),
    *("moving_variance_initializer", "unbiased_moving_variance"),
)


@keras.saving.register_keras_serializable("keras_norms")
class MeanOnlyBatchNormalization(MovingNormalization):
    """Takes the batch's mean off each channel, at inference its moving average.

        training:    y = x - mean + beta
                     moving_mean = moving_mean * momentum + mean * (1 - momentum)
        inference:   y = x - moving_mean + beta

    `mean` is taken over samples and space. Nothing is divided by: that is left to the layer before
    it, whose kernel has weight normalization and needs no bias. `beta` and `moving_mean` have an
    element per channel. The layer is in inference as long as `layer.trainable` is False, whatever
    `training` says.

    Args:
        axis: int, the axis of the channels.
        momentum: float in [0, 1], the weight of the past; None: all batches weigh the same.
        center: bool, whether `beta` is added.
        beta_initializer, moving_mean_initializer: initializers of the weights.
        beta_regularizer, beta_constraint: optional.
        **kwargs: `freeze_statistics=True` trains beta alone, by the moving mean (also an attribute;
            compile again after changing it); `activation`, applied to the result; those of
            `keras.Layer` (`name`, `dtype`, ...).

    Call arguments:
        inputs: `(batch, ..., channels)`, or with the channels at `axis`; any rank, only the number
            of channels need be known; float16, bfloat16, float32 or float64.
        training: bool, whether to go by the batch's mean and to update the moving mean.
        mask: optional, bool, the positions that the mean is taken over: the sizes of the input's
            axes without the channel axis, from the left (trailing ones may be missing). The mean is
            taken off every position.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider. A batch without
    elements, or masked as a whole, leaves the moving mean as it is.

    Raises:
        ValueError: `axis` is out of bounds or of unknown size; `momentum` is not in [0, 1]; `mask`
            does not fit the input; an argument of `BatchNormalization` means nothing here.

    Source: Salimans and Kingma 2016, arXiv:1602.07868, section 4.
    """

    pooled = False  # the mean of all elements is that of the batches' means, by their elements

    def __init__(
        self,
        axis: int = -1,
        momentum: float | None = 0.99,
        center: bool = True,
        beta_initializer: Identifier = "zeros",
        moving_mean_initializer: Identifier = "zeros",
        beta_regularizer: Identifier | None = None,
        beta_constraint: Identifier | None = None,
        **kwargs: Any,
    ):
        refuse(kwargs, *UNUSED)
        super().__init__(
            axis,
            momentum=momentum,
            center=center,
            scale=False,
            beta_initializer=beta_initializer,
            moving_mean_initializer=moving_mean_initializer,
            beta_regularizer=beta_regularizer,
            beta_constraint=beta_constraint,
            **kwargs,
        )

    @property
    def moving(self) -> tuple[str, ...]:
        return ("moving_mean",)

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="nothing", groups=-1)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        x = as_floats(inputs, self.compute_dtype)
        view = self.geometry_of(x.shape)
        shift = None if self.beta is None else ops.convert_to_tensor(self.beta)
        if self.goes_by_batch(training):
            center, residual, _ = moments(x, view, mask=mask)
            mean = ops.stop_gradient(center + residual)
            self.update(element_count(x, view, mask), moving_mean=mean)
            shift = -residual if shift is None else ops.cast(shift, residual.dtype) - residual
        else:
            center = ops.convert_to_tensor(self.moving_mean)
            if mask is not None:
                check_mask(mask, x.shape, view)
        ones = ops.ones_like(center)
        y = scale_shift(x, view, center=center, scale=ones, shift=shift, activation=self.activation)
        return ops.cast(y, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {name: value for name, value in config.items() if name not in UNUSED}
