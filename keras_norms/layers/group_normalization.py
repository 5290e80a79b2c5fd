"""GroupNormalization."""

from typing import Any

import keras

from keras_norms.base import AffineNormalization, Identifier
from keras_norms.geometry import Geometry, Shape, geometry


@keras.saving.register_keras_serializable("keras_norms")
class GroupNormalization(AffineNormalization):
    """Normalizes each group of channels of each sample.

        y = (x - mean) / sqrt(variance + epsilon) * gamma + beta

    `mean` and `variance` (biased) are taken over space and the `channels / groups` neighbouring
    channels of a group. `gamma` and `beta` have an element per channel.

    Args:
        groups: int, divides the number of channels. -1, or the number of channels, makes it
            `InstanceNormalization`.
        axis: int, the axis of the channels; not 0, which holds the samples.
        epsilon: float >= 0, added to the variance, so in units of x squared.
        center: bool, whether `beta` is added.
        scale: bool, whether `gamma` multiplies.
        beta_initializer, gamma_initializer: initializers of the weights.
        beta_regularizer, gamma_regularizer: optional regularizers of the weights.
        beta_constraint, gamma_constraint: optional constraints of the weights.
        **kwargs: those of `keras.Layer` (`name`, `dtype`, ...).

    Call arguments:
        inputs: `(batch, ..., channels)`, or with the channels at `axis`; rank 2 or more, only the
            number of channels need be known; float16, bfloat16, float32 or float64.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider. A mask is
    passed on to the next layer and does not change the result.

    Raises:
        ValueError: `groups` is no positive int and not -1, or does not divide the number of
            channels; `axis` is 0, out of bounds or of unknown size.

    Differences from Keras:
        - The configuration holds `groups` as it was given, also after `build`.
        - The mean is subtracted before scaling and long sums are taken in parts, so the result
          holds for data far from zero and for large images.

    Source: Wu and He 2018, arXiv:1803.08494, equation 7.
    """

    def __init__(
        self,
        groups: int = 32,
        axis: int = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Identifier = "zeros",
        gamma_initializer: Identifier = "ones",
        beta_regularizer: Identifier | None = None,
        gamma_regularizer: Identifier | None = None,
        beta_constraint: Identifier | None = None,
        gamma_constraint: Identifier | None = None,
        **kwargs: Any,
    ):
        if not isinstance(groups, int) or (groups < 1 and groups != -1):
            raise ValueError(
                "`groups` must be a positive int, or -1 for a group per channel. "
                f"Received: groups={groups!r}."
            )
        super().__init__(
            axis,
            epsilon,
            center,
            scale,
            beta_initializer,
            gamma_initializer,
            beta_regularizer,
            gamma_regularizer,
            beta_constraint,
            gamma_constraint,
            **kwargs,
        )
        self.groups = groups

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="samples", groups=self.groups)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "groups": self.groups}
