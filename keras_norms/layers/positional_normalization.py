"""PositionalNormalization."""

from typing import Any

import keras
from keras import ops

from keras_norms.base import AffineNormalization, as_floats
from keras_norms.geometry import Geometry, Shape, geometry, one_axis
from keras_norms.normalize import moments


@keras.saving.register_keras_serializable("keras_norms")
class PositionalNormalization(AffineNormalization):
    """Normalizes the channels of each position, and can hand out what it took off.

        y = (x - mean) / sqrt(variance + epsilon) * gamma + beta

    `mean` and `variance` (biased) are taken over the channels. With `return_moments` a later layer
    can put them back, the paper's moment shortcut: `y, mean, std = norm(x)` in the encoder,
    `z * std + mean` in the decoder. `gamma` and `beta` have an element per channel.

    Args:
        axis: int, the axis of the channels.
        epsilon: float >= 0, added to the variance, so in units of x squared.
        return_moments: bool, whether mean and standard deviation are returned, too.
        center, scale: bool, whether `beta` is added, whether `gamma` multiplies.
        **kwargs: `beta_initializer`, `gamma_initializer`, `beta_regularizer`,
            `gamma_regularizer`, `beta_constraint`, `gamma_constraint`; `activation`, applied to y;
            those of `keras.Layer` (`name`, `dtype`, ...).

    Call arguments:
        inputs: any rank, only the number of channels need be known; float16, bfloat16, float32 or
            float64.
        mask: optional, bool, the elements that the statistics are taken over, as in
            `LayerNormalization`: one of whole positions changes nothing.

    Returns: y, shaped as the inputs, in the layer's compute dtype; with `return_moments` the tuple
    `(y, mean, std)`, where `std = sqrt(variance + epsilon)`, both with size 1 at `axis`, and
    gradients flow through all three. Computed in float32 or wider.

    Raises:
        TypeError: `axis` is no int.
        ValueError: `axis` is out of bounds or of unknown size; `mask` does not fit the input.

    Source: Li et al. 2019, arXiv:1907.04312, equations 1 and 2. The authors' PyTorch code takes
    the unbiased variance, n / (n - 1) times this one of n channels.
    """

    def __init__(
        self,
        axis: int = -1,
        epsilon: float = 1e-5,
        return_moments: bool = False,
        center: bool = False,
        scale: bool = False,
        **kwargs: Any,
    ):
        super().__init__(axis, epsilon, center, scale, **kwargs)
        self.return_moments = return_moments

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, one_axis(self.axis, shape), apart="positions")

    def call(self, inputs: Any, mask: Any = None) -> Any:
        y = self.normalized(inputs, self.gamma, self.beta, mask).y
        if not self.return_moments:
            return y
        inputs = as_floats(inputs, self.compute_dtype)
        found = moments(inputs, self.geometry_of(inputs.shape), mask=mask)
        std = ops.sqrt(found.variance + self.epsilon)
        return y, *(
            ops.cast(ops.moveaxis(statistic, -1, self.axis), self.compute_dtype)
            for statistic in (found.center + found.residual, std)
        )

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        masks = (previous_mask,) * 3
        return masks if self.return_moments and previous_mask is not None else previous_mask

    def compute_output_shape(self, input_shape: Shape) -> Any:
        shape = super().compute_output_shape(input_shape)
        if not self.return_moments:
            return shape
        channels = self.axis % len(shape)
        statistic = tuple(1 if a == channels else size for a, size in enumerate(shape))
        return shape, statistic, statistic

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "return_moments": self.return_moments}
