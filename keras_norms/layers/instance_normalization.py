"""InstanceNormalization."""

from typing import Any

import keras
from keras import ops

from keras_norms.base import as_floats
from keras_norms.geometry import Geometry, Shape, geometry
from keras_norms.moments import element_count
from keras_norms.moving import MovingNormalization


@keras.saving.register_keras_serializable("keras_norms")
class InstanceNormalization(MovingNormalization):
    """Normalizes each channel of each sample.

        y = (x - mean) / sqrt(variance + epsilon) * gamma + beta

    `mean` and `variance` (biased) are taken over space. `gamma` and `beta` have an element per
    channel. Keras has this as `GroupNormalization(groups=-1)`.

    Args:
        axis: int, the axis of the channels; not 0, which holds the samples.
        epsilon: float >= 0, added to the variance, so in units of x squared.
        *affine: `center`, `scale`, `beta_initializer`, `gamma_initializer`, `beta_regularizer`,
            `gamma_regularizer`, `beta_constraint`, `gamma_constraint`, as in Keras' norms.
        track_running_stats: bool, whether training keeps moving averages of the samples' mean and
            variance, and inference normalizes by them, as in PyTorch.
        momentum: float in [0, 1], the weight of the past in them; None: all batches weigh the same.
        **kwargs: `moving_mean_initializer`, `moving_variance_initializer`,
            `unbiased_moving_variance` and `freeze_statistics` as in `BatchNormalization`;
            `activation`, applied to the result; those of `keras.Layer` (`name`, `dtype`, ...).

    Call arguments:
        inputs: `(batch, ..., channels)`, or with the channels at `axis`; rank 2 or more, only the
            number of channels need be known; float16, bfloat16, float32 or float64. Without
            space (rank 2) each element is its own mean and the result is `beta`.
        training: bool, matters with `track_running_stats`.
        mask: optional, bool, the positions that the statistics are taken over: the sizes of the
            input's axes without the channel axis, from the left (trailing ones may be missing).
            Every position is normalized; a sample that is masked as a whole counts as a whole.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider.

    Raises:
        ValueError: `axis` is 0, out of bounds or of unknown size; `momentum` is not in [0, 1];
            `mask` does not fit the input.

    Source: Ulyanov, Vedaldi and Lempitsky 2016, arXiv:1607.08022, equation 1.
    """

    pooled = False  # the average sample's variance, which is not that of all samples together

    def __init__(
        self,
        axis: int = -1,
        epsilon: float = 1e-3,
        *affine: Any,
        track_running_stats: bool = False,
        momentum: float | None = 0.99,
        **kwargs: Any,
    ):
        super().__init__(axis, epsilon, *affine, momentum=momentum, **kwargs)
        self.track_running_stats = track_running_stats

    @property
    def moving(self) -> tuple[str, ...]:
        return super().moving if self.track_running_stats else ()

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="samples", groups=-1)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not self.track_running_stats:
            return self.normalized(inputs, self.gamma, self.beta, mask).y
        inputs = as_floats(inputs, self.compute_dtype)
        if not self.goes_by_batch(training):
            return self.by_moving_statistics(inputs, mask)
        y, mean, variance = self.normalized(inputs, self.gamma, self.beta, mask)
        count = element_count(inputs, self.geometry_of(inputs.shape), mask)
        kept = ops.cast(ops.broadcast_to(count, ops.shape(inputs)[:1]) > 0, mean.dtype)
        samples = ops.sum(kept)
        share = ops.expand_dims(kept / ops.maximum(samples, 1), -1)
        variance = self.corrected(variance, count if mask is None else ops.expand_dims(count, -1))
        mean, variance = (ops.sum(s * share, axis=0) for s in (mean, variance))
        self.update(samples, moving_mean=mean, moving_variance=variance)
        return y

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "track_running_stats": self.track_running_stats}
