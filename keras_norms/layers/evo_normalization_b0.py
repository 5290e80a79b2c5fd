"""EvoNormalizationB0."""

from typing import Any

import keras
from keras import activations, ops

from keras_norms.base import as_floats, wide
from keras_norms.geometry import Geometry, Shape, geometry
from keras_norms.moments import arithmetic, element_count, over_samples, widened
from keras_norms.moving import MovingNormalization, refuse
from keras_norms.normalize import moments, scale_shift


@keras.saving.register_keras_serializable("keras_norms")
class EvoNormalizationB0(MovingNormalization):
    """Normalization and activation in one, by batch and instance variances.

        y = x / max(sqrt(batch_variance + epsilon), v * x + sqrt(instance_variance + epsilon))
              * gamma + beta

    `batch_variance` is taken over samples and space (per channel; at inference `moving_variance`),
    `instance_variance` over space (per sample and channel); both are biased. x is not centred, and
    no activation need follow. `gamma`, `beta`, `v` (at first 1) and the moving variance have an
    element per channel.

    Args:
        axis: int, the axis of the channels; not 0, which holds the samples.
        momentum: float in [0, 1], the weight of the past in the moving variance; None: all batches
            weigh the same.
        epsilon: float >= 0, added to the variances, so in units of x squared.
        *affine: `center`, `scale`, `beta_initializer`, `gamma_initializer`, `beta_regularizer`,
            `gamma_regularizer`, `beta_constraint`, `gamma_constraint`, as in Keras' norms.
        **kwargs: `unbiased_moving_variance=True` keeps the population's variance, as timm;
            `moving_variance_initializer` and `freeze_statistics` as in `BatchNormalization`;
            `activation`, applied to the result; those of `keras.Layer` (`name`, `dtype`, ...).

    Call arguments:
        inputs: `(batch, ..., channels)`, or with the channels at `axis`; rank 2 or more, only the
            number of channels need be known; float16, bfloat16, float32 or float64.
        training: bool, whether to go by the batch and to update the moving variance.
        mask: optional, bool, the positions that the variances are taken over: the sizes of the
            input's axes without the channel axis, from the left (trailing ones may be missing).
            Every position is normalized; a sample or batch masked as a whole counts as a whole.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider. A batch without
    elements, or masked as a whole, leaves the moving variance as it is.

    Raises:
        ValueError: `axis` is 0, out of bounds or of unknown size; `momentum` is not in [0, 1];
            `mask` does not fit the input.

    Source: Liu et al. 2020, arXiv:2004.02967, table 2 (the sign of v is free; as timm).
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float | None = 0.9,
        epsilon: float = 1e-3,
        *affine: Any,
        **kwargs: Any,
    ):
        refuse(kwargs, "moving_mean_initializer")
        super().__init__(axis, epsilon, *affine, momentum=momentum, **kwargs)

    @property
    def moving(self) -> tuple[str, ...]:
        return ("moving_variance",)

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="samples", groups=-1)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.v = self.add_parameter("v", self.moving_shape(input_shape), "ones")

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        # A tensor of this graph: TensorFlow loses one that a branch of tf.cond captured when a
        # custom gradient holds it.
        x = ops.copy(as_floats(inputs, self.compute_dtype))
        view = self.geometry_of(x.shape)
        own = moments(x, view, mask=mask)
        x = wide(x)
        if self.goes_by_batch(training):
            own = widened(own)
            found, count = over_samples(own, element_count(x, view, mask))
            center, residual, variance = (ops.stop_gradient(s[0]) for s in found)
            self.update(count, moving_mean=center + residual, moving_variance=variance)
            variance = found.variance
        else:
            variance = ops.expand_dims(ops.cast(self.moving_variance, x.dtype), 0)
        dtype = own.variance.dtype
        add, subtract, _, _ = arithmetic(dtype)
        instance = ops.sqrt(own.variance + self.epsilon)
        batch = ops.sqrt(ops.cast(variance, dtype) + self.epsilon)

        def of_samples(row):
            return ops.cast(add(ops.zeros_like(instance), row), x.dtype)

        # max(batch, v * x + instance) is relu(v * x + (instance - batch)) + batch.
        v = of_samples(ops.expand_dims(ops.cast(self.v, dtype), 0))
        shift = ops.cast(subtract(instance, batch), x.dtype)
        above = scale_shift(x, view, scale=v, shift=shift, activation=activations.relu)
        size = scale_shift(above, view, scale=ops.ones_like(v), shift=of_samples(batch))
        return self.scaled(x / size)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["moving_mean_initializer"]
        return config
