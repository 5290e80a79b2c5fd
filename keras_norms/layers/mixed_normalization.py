"""MixedNormalization."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_norms.base import Identifier, as_floats, number
from keras_norms.constraints import UnitInterval
from keras_norms.geometry import Geometry, Shape, geometry
from keras_norms.moments import arithmetic, element_count, widened
from keras_norms.moving import MovingNormalization
from keras_norms.normalize import moments, normalize_by

MIXES = ("gate", "split")


@keras.saving.register_keras_serializable("keras_norms")
class MixedNormalization(MovingNormalization):
    """Mixes batch and instance normalization, by a learned gate or by channels.

        y = (gate * x_batch + (1 - gate) * x_instance) * gamma + beta
        x_batch = (x - batch_mean) / sqrt(batch_variance + epsilon)
        x_instance = (x - instance_mean) / sqrt(instance_variance + epsilon)

    Batch statistics are taken over samples and space (per channel; at inference their moving
    averages), those of an instance over space (per sample and channel); variances are biased.
    `mix="gate"` is batch-instance normalization: `gate` is trained, at first 1 (batch), and kept in
    [0, 1]. `mix="split"` is that of IBN-Net: `gate` is no weight but 0 for the first
    `round(instance_share * channels)` channels and 1 for the others. Both read x once for the
    statistics, as the batch's are merged from the instances', and once for y. `gamma`, `beta`,
    `gate` and the moving statistics have an element per channel.

    Without space (rank 2, or space of one position) an instance is its own mean: `x_instance` is 0.

    Args:
        mix: "gate" or "split".
        axis: int, the axis of the channels; not 0, which holds the samples.
        momentum: float in [0, 1], the weight of the past in the moving averages; None: all batches
            weigh the same.
        epsilon: float >= 0, added to the variances, so in units of x squared.
        *affine: `center`, `scale`, `beta_initializer`, `gamma_initializer`, `beta_regularizer`,
            `gamma_regularizer`, `beta_constraint`, `gamma_constraint`, as in Keras' norms.
        instance_share: float in [0, 1], with "split", the channels that instance norm has.
        gate_initializer, gate_constraint: with "gate", of the weight; the constraint is
            `keras_norms.constraints.UnitInterval`, applied after each update; None: there is none.
        **kwargs: `moving_mean_initializer`, `moving_variance_initializer`,
            `unbiased_moving_variance` and `freeze_statistics` as in `BatchNormalization`;
            `activation`, applied to the result; those of `keras.Layer` (`name`, `dtype`, ...).

    Call arguments:
        inputs: `(batch, ..., channels)`, or with the channels at `axis`; rank 2 or more, only the
            number of channels need be known; float16, bfloat16, float32 or float64.
        training: bool, whether batch statistics are this batch's and move the moving statistics.
        mask: optional, bool, the positions that the statistics are taken over: the sizes of the
            input's axes without the channel axis, from the left (trailing ones may be missing).
            Every position is normalized; a sample or batch masked as a whole counts as a whole.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider. A batch without
    elements, or masked as a whole, leaves the moving statistics as they are.

    Raises:
        ValueError: `mix` is another; `instance_share` or `momentum` is not in [0, 1]; `axis` is 0,
            out of bounds or of unknown size; `mask` does not fit the input.
        TypeError: `instance_share` is no number.

    Differences from IBN-Net's code: `round`, so half of an odd number of channels is the next even
    one (there the lower), and the moving statistics have elements for all channels; those of the
    first are not used.

    Source: Nam and Kim 2018, arXiv:1805.07925 ("gate"); Pan et al. 2018, arXiv:1807.09441, the
    layer of IBN-a ("split").
    """

    def __init__(
        self,
        mix: str = "gate",
        axis: int = -1,
        momentum: float | None = 0.99,
        epsilon: float = 1e-3,
        *affine: Any,
        instance_share: float = 0.5,
        gate_initializer: Identifier = "ones",
        gate_constraint: Identifier | None = UnitInterval,
        **kwargs: Any,
    ):
        if mix not in MIXES:
            raise ValueError(f"`mix` must be one of {MIXES}. Received: mix={mix!r}.")
        super().__init__(axis, epsilon, *affine, momentum=momentum, **kwargs)
        self.mix = mix
        self.instance_share = number("instance_share", instance_share, least=0, most=1)
        self.declare("gate", initializer=gate_initializer, constraint=gate_constraint)
        self.gate: Any = None

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="samples", groups=-1)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        (channels,) = shape = self.moving_shape(input_shape)
        if self.mix == "gate":
            self.gate = self.add_declared("gate", shape)
        else:
            self.gate = np.arange(channels) >= round(self.instance_share * channels)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        x = as_floats(inputs, self.compute_dtype)
        view = self.geometry_of(x.shape)
        own = moments(x, view, mask=mask)
        if self.goes_by_batch(training):
            own = widened(own)
        batch = self.across_samples(own, element_count(x, view, mask), training)
        # x_batch is x_instance * r + d, as in batch renormalization.
        dtype = own.variance.dtype
        add, subtract, multiply, _ = arithmetic(dtype)
        epsilon = self._epsilon(own.variance)
        root = ops.sqrt(own.variance + epsilon)
        scale = ops.rsqrt(batch.variance + self._epsilon(batch.variance))
        from_batch = ops.stop_gradient(own.center - batch.center)
        d = multiply(subtract(add(from_batch, own.residual), batch.residual), scale)
        r = multiply(root, scale)
        gate = ops.expand_dims(ops.cast(self.gate, dtype), 0)
        correction = add(multiply(r, gate), 1 - gate), multiply(d, gate)
        arguments = {**self.arguments(), "epsilon": epsilon}
        y = normalize_by(own, x, view, correction=correction, **arguments)
        return ops.cast(y, self.compute_dtype)

    def _epsilon(self, variance: Any) -> Any:
        """Where epsilon is 0, and x its own mean, any other: the difference is 0, not undefined."""
        if isinstance(self.epsilon, int | float) and self.epsilon == 0:
            return ops.cast(ops.equal(variance, 0), variance.dtype)
        return self.epsilon

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mix": self.mix, "instance_share": self.instance_share}
