"""BatchNormalization."""

from typing import Any

import keras
from keras import initializers, ops

from keras_norms.base import AffineNormalization, Identifier, as_floats
from keras_norms.geometry import Geometry, Shape, geometry, parameter_shape
from keras_norms.moments import check_mask, has_elements, moving_average
from keras_norms.normalize import scale_shift


@keras.saving.register_keras_serializable("keras_norms")
class BatchNormalization(AffineNormalization):
    """Normalizes each channel over the batch, at inference by moving averages.

        training:    y = (x - mean) / sqrt(variance + epsilon) * gamma + beta
                     moving_mean = moving_mean * momentum + mean * (1 - momentum)
                     moving_variance = moving_variance * momentum + variance * (1 - momentum)
        inference:   y = (x - moving_mean) / sqrt(moving_variance + epsilon) * gamma + beta

    `mean` and `variance` (biased) are taken over samples and space. `gamma`, `beta` and the moving
    statistics have an element per channel. The layer is in inference as long as
    `layer.trainable` is False, whatever `training` says.

    Args:
        axis: int, the axis of the channels.
        momentum: float in [0, 1], the weight of the past in the moving statistics.
        epsilon: float >= 0, added to the variance, so in units of x squared.
        center: bool, whether `beta` is added.
        scale: bool, whether `gamma` multiplies.
        beta_initializer, gamma_initializer, moving_mean_initializer,
            moving_variance_initializer: initializers of the weights.
        beta_regularizer, gamma_regularizer: optional regularizers of the weights.
        beta_constraint, gamma_constraint: optional constraints of the weights.
        renorm, renorm_clipping, renorm_momentum: batch renormalization, not supported yet:
            `renorm` must be False, and the two others then mean nothing.
        synchronized: bool, whether the statistics are those of all replicas. Not supported yet
            with more than one replica.
        **kwargs: those of `keras.Layer` (`name`, `dtype`, ...).

    Call arguments:
        inputs: `(batch, ..., channels)`, or with the channels at `axis`; any rank, only the number
            of channels need be known; float16, bfloat16, float32 or float64.
        training: bool, whether to normalize by the batch and to update the moving statistics.
        mask: optional, bool, the positions that the statistics are taken over: the sizes of the
            input's axes without the channel axis, from the left (trailing ones may be missing).
            Every position is normalized.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider; the moving
    statistics are float32 or wider. A batch without elements, or masked as a whole, leaves them
    as they are.

    Raises:
        NotImplementedError: `renorm=True`.
        ValueError: `axis` is out of bounds or of unknown size, `momentum` is not in [0, 1], `mask`
            does not fit the input, `synchronized=True` with several replicas or a backend other
            than TensorFlow.
        TypeError: `axis` is no int.

    Differences from Keras:
        - `mask` aligns with the input's axes without the channel axis, so it is right for any
          `axis`; with channels last it is Keras' mask.
        - An empty or wholly masked batch leaves the moving statistics as they are (Keras: NaN, and
          a step towards 0).
        - The mean is subtracted before scaling and long sums are taken in parts, so the result
          holds for data far from zero and for millions of elements per channel.
        - With dtype "float16" or "bfloat16" the moving statistics are float32.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1 (with biased variances also in
    the moving average, as Keras).
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Identifier = "zeros",
        gamma_initializer: Identifier = "ones",
        moving_mean_initializer: Identifier = "zeros",
        moving_variance_initializer: Identifier = "ones",
        beta_regularizer: Identifier | None = None,
        gamma_regularizer: Identifier | None = None,
        beta_constraint: Identifier | None = None,
        gamma_constraint: Identifier | None = None,
        renorm: bool = False,
        renorm_clipping: dict[str, float] | None = None,
        renorm_momentum: float = 0.99,
        synchronized: bool = False,
        **kwargs: Any,
    ):
        super().__init__(
            int(axis),
            float(epsilon),
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
        if renorm:
            raise NotImplementedError(
                "Batch renormalization is not supported yet: `renorm` must be False. "
                f"Received: renorm={renorm}."
            )
        if synchronized and keras.backend.backend() != "tensorflow":
            raise ValueError(
                "`synchronized=True` needs the TensorFlow backend. "
                f"Received: synchronized={synchronized}, backend={keras.backend.backend()}."
            )
        if not 0 <= float(momentum) <= 1:
            raise ValueError(f"`momentum` must be in [0, 1]. Received: momentum={momentum}.")
        self.momentum = float(momentum)
        self.moving_mean_initializer = initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = initializers.get(moving_variance_initializer)
        self.renorm = renorm
        self.renorm_clipping = renorm_clipping
        self.renorm_momentum = renorm_momentum
        self.synchronized = synchronized
        self.moving_mean: Any = None
        self.moving_variance: Any = None

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="nothing", groups=-1)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        for name in ("moving_mean", "moving_variance"):
            weight = self.add_weight(
                name=name,
                shape=parameter_shape(input_shape, self.axis),
                dtype=keras.backend.result_type(self.variable_dtype, "float32"),
                initializer=getattr(self, f"{name}_initializer"),
                trainable=False,
                autocast=False,
            )
            setattr(self, name, weight)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        inputs = as_floats(inputs, self.compute_dtype)
        view = self.geometry_of(inputs.shape)
        if training and self.trainable:
            if self.synchronized:
                _check_one_replica()
            y, *statistics = self.normalized(inputs, self.gamma, self.beta, mask)
            valid = has_elements(inputs, view, mask)
            moving_statistics = self.moving_mean, self.moving_variance
            for moving, new in zip(moving_statistics, statistics, strict=True):
                moving.assign(moving_average(moving, new, self.momentum, valid))
            return y
        if mask is not None:
            check_mask(mask, inputs.shape, view)
        scale = ops.rsqrt(self.moving_variance + self.epsilon)
        scale = scale if self.gamma is None else scale * self.gamma
        y = scale_shift(inputs, view, center=self.moving_mean, scale=scale, shift=self.beta)
        return ops.cast(y, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "moving_mean_initializer": initializers.serialize(self.moving_mean_initializer),
            "moving_variance_initializer": initializers.serialize(self.moving_variance_initializer),
            "renorm": self.renorm,
            "renorm_clipping": self.renorm_clipping,
            "renorm_momentum": self.renorm_momentum,
            "synchronized": self.synchronized,
        }


def _check_one_replica() -> None:
    import tensorflow as tf

    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas > 1:
        raise ValueError(
            "`synchronized=True` is not supported yet with more than one replica: leave it False "
            f"(each replica then uses its own statistics). Received: {replicas} replicas."
        )
