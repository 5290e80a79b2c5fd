"""BatchNormalization."""

from typing import Any

import keras
from keras import ops

from keras_norms.base import Identifier, as_floats
from keras_norms.geometry import Geometry, Shape, geometry, one_axis
from keras_norms.ghost import check_size, normalize_sub_batches
from keras_norms.moments import element_count
from keras_norms.moving import MovingNormalization
from keras_norms.normalize import moments, normalize_by
from keras_norms.renorm import Renormalization
from keras_norms.replicas import over_replicas


@keras.saving.register_keras_serializable("keras_norms")
class BatchNormalization(MovingNormalization):
    """Normalizes each channel over the batch, at inference by moving averages.

        training:    y = (x - mean) / sqrt(variance + epsilon) * gamma + beta
                     moving_mean = moving_mean * momentum + mean * (1 - momentum)
                     moving_variance = moving_variance * momentum + variance * (1 - momentum)
        inference:   y = (x - moving_mean) / sqrt(moving_variance + epsilon) * gamma + beta

    `mean` and `variance` (biased) are taken over samples and space. `gamma`, `beta` and the moving
    statistics have an element per channel. The layer is in inference as long as
    `layer.trainable` is False, whatever `training` says. `recompute_statistics` replaces the moving
    statistics by those of a data set.

    Args:
        axis: int, the axis of the channels.
        momentum: float in [0, 1], the weight of the past; None: all batches weigh the same.
        epsilon: float >= 0, added to the variance, so in units of x squared.
        center, scale: bool, whether `beta` is added, whether `gamma` multiplies.
        beta_initializer, gamma_initializer, moving_mean_initializer,
            moving_variance_initializer: initializers of the weights.
        beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint: optional.
        renorm: bool, whether training is corrected towards the moving statistics, which lets it
            cope with small batches: see `BatchRenormalization`.
        renorm_clipping: dict of the corrections' bounds: "rmin", "rmax", "dmax", each optional.
        renorm_momentum: float in [0, 1], of the statistics that the corrections go by.
        synchronized: bool, whether the statistics are those of all replicas of a `tf.distribute`
            strategy, by one collective forward and one backward.
        virtual_batch_size: int, the samples that are normalized together in training ("ghost
            batches"; what does not fill the last one makes a smaller one). None: all. The moving
            statistics are those of the whole batch. Not with `renorm` or `synchronized`.
        **kwargs: `unbiased_moving_variance=True` keeps the population's variance, as PyTorch;
            `freeze_statistics=True` trains gamma and beta alone, by the moving statistics (also an
            attribute; compile again after changing it, as with `trainable`); `activation`;
            those of `keras.Layer` (`name`, `dtype`, ...).

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
        ValueError: `axis` is out of bounds or of unknown size, `momentum` is not in [0, 1], `mask`
            does not fit the input, `renorm_clipping` has other keys or rmax < rmin or dmax < 0,
            `synchronized=True` with another backend than TensorFlow, `virtual_batch_size` with
            `renorm`, `synchronized` or `axis` 0.
        TypeError: `axis` or `virtual_batch_size` is no int, `momentum` no number.

    Differences from Keras:
        - `mask` aligns with the input's axes without the channel axis, so it is right for any
          `axis`; with channels last it is Keras' mask.
        - An empty or wholly masked batch leaves the moving statistics as they are (Keras: NaN, and
          a step towards 0).
        - The mean is subtracted before scaling, long sums are taken in parts and replicas are
          merged by their centred moments, so the result holds for data far from zero, for millions
          of elements per channel and for batches of unequal size.
        - With dtype "float16" or "bfloat16" the moving statistics are float32.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1 (with biased variances also in
    the moving average, as Keras).
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float | None = 0.99,
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
        virtual_batch_size: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            one_axis(axis),
            float(epsilon),
            center,
            scale,
            beta_initializer,
            gamma_initializer,
            beta_regularizer,
            gamma_regularizer,
            beta_constraint,
            gamma_constraint,
            momentum=None if momentum is None else float(momentum),
            moving_mean_initializer=moving_mean_initializer,
            moving_variance_initializer=moving_variance_initializer,
            **kwargs,
        )
        if synchronized and keras.backend.backend() != "tensorflow":
            raise ValueError(
                "`synchronized=True` needs the TensorFlow backend. "
                f"Received: synchronized={synchronized}, backend={keras.backend.backend()}."
            )
        if virtual_batch_size is not None:
            check_size(virtual_batch_size, renorm=renorm, synchronized=synchronized)
        self.renorm = renorm
        self.renorm_clipping = renorm_clipping
        self.renorm_momentum = renorm_momentum
        self.synchronized = synchronized
        self.virtual_batch_size = virtual_batch_size
        self.renormalization = Renormalization(renorm_clipping, renorm_momentum) if renorm else None

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="nothing", groups=-1)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        if self.renormalization:
            self.renormalization.build(self, self.moving_shape(input_shape))

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        plain = not (self.synchronized or self.renormalization or self.virtual_batch_size)
        if plain or not self.goes_by_batch(training):
            return super().call(inputs, training, mask)
        inputs = as_floats(inputs, self.compute_dtype)
        view = self.geometry_of(inputs.shape)
        count = element_count(inputs, view, mask)
        if self.virtual_batch_size:
            size = self.virtual_batch_size
            y = normalize_sub_batches(inputs, self.axis, size, mask, **self.arguments())
            y = ops.cast(y, self.compute_dtype)
            center, residual, variance = moments(ops.stop_gradient(inputs), view, mask=mask)
            mean = center + residual
        else:
            y, count, mean, variance = self._by_moments(inputs, view, mask, count)
        self.update(count, moving_mean=mean, moving_variance=variance)
        return y

    def _by_moments(self, x: Any, view: Geometry, mask: Any, count: Any) -> tuple:
        found = moments(x, view, mask=mask)
        if self.synchronized:
            found, count = over_replicas(found, count, element_count(x, view))
        mean, correction = found.center + found.residual, None
        if self.renormalization:
            correction = self.renormalization.corrections(self, found)
        y = normalize_by(found, x, view, correction=correction, **self.arguments())
        statistics = map(ops.stop_gradient, (mean, found.variance))
        return ops.cast(y, self.compute_dtype), count, *statistics

    def move(self, statistics: dict[str, Any], momentum: Any, valid: Any) -> None:
        if self.renormalization:
            mean, variance = (statistics[name] for name in self.moving)
            self.renormalization.move(self, mean, variance, momentum, valid)
        else:
            super().move(statistics, momentum, valid)

    def set_statistics(self, statistics: dict[str, Any]) -> None:
        super().set_statistics(statistics)
        if self.renormalization:
            self.renormalization.set(self, *(statistics[name] for name in self.moving))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "renorm": self.renorm,
            "renorm_clipping": self.renorm_clipping,
            "renorm_momentum": self.renorm_momentum,
            "synchronized": self.synchronized,
            **self.changed(virtual_batch_size=None),
        }
