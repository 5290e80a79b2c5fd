"""InstanceNormalization."""

import keras

from keras_norms.base import AffineNormalization
from keras_norms.geometry import Geometry, Shape, geometry


@keras.saving.register_keras_serializable("keras_norms")
class InstanceNormalization(AffineNormalization):
    """Normalizes each channel of each sample.

        y = (x - mean) / sqrt(variance + epsilon) * gamma + beta

    `mean` and `variance` (biased) are taken over space. `gamma` and `beta` have an element per
    channel. Keras has this as `GroupNormalization(groups=-1)`.

    Args:
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
            number of channels need be known; float16, bfloat16, float32 or float64. Without
            space (rank 2) each element is its own mean and the result is `beta`.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider. A mask is
    passed on to the next layer and does not change the result.

    Raises:
        ValueError: `axis` is 0, out of bounds or of unknown size.

    Source: Ulyanov, Vedaldi and Lempitsky 2016, arXiv:1607.08022, equation 1.
    """

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="samples", groups=-1)
