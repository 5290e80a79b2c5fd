"""SwitchableNormalization."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_norms.base import as_floats
from keras_norms.geometry import Geometry, Shape, geometry
from keras_norms.mixture import Mixture
from keras_norms.moments import Moments, arithmetic, element_count, merge, widened
from keras_norms.moving import MovingNormalization, bessel
from keras_norms.normalize import moments, normalize_by

STATISTICS = ("instance", "layer", "batch")


@keras.saving.register_keras_serializable("keras_norms")
class SwitchableNormalization(Mixture, MovingNormalization):
    """Normalizes by a learned mixture of instance, layer and batch statistics.

        y = (x - mean) / sqrt(variance + epsilon) * gamma + beta
        mean = sum_k softmax(mean_weights)[k] * mean_k
        variance = sum_k softmax(variance_weights)[k] * variance_k

    k runs over `statistics`: "instance" is taken over space (per sample and channel), "layer" over
    space and channels (per sample), "batch" over samples and space (per channel; at inference its
    moving average). x is read once: the others are merged from the instances'. `gamma`, `beta` and
    the moving statistics have an element per channel, `mean_weights` and `variance_weights` one per
    statistic, in the order of `statistics`.

    Args:
        axis: int, the axis of the channels; not 0, which holds the samples.
        momentum: float in [0, 1], the weight of the past in the moving averages; None: all batches
            weigh the same. `recompute_statistics` takes the paper's "batch average".
        epsilon: float >= 0, added to the variance, so in units of x squared.
        *affine: `center`, `scale`, `beta_initializer`, `gamma_initializer`, `beta_regularizer`,
            `gamma_regularizer`, `beta_constraint`, `gamma_constraint`, as in Keras' norms.
        statistics: some of ("instance", "layer", "batch"), in this order; without space (rank 2)
            take ("layer", "batch"), since an instance is then its own mean.
        unbiased_instance_variance: bool, whether an instance of n elements has n / (n - 1) times
            its variance, from which the other variances are built: as the authors' code.
        **kwargs: `moving_mean_initializer`, `moving_variance_initializer`,
            `unbiased_moving_variance` and `freeze_statistics` as in `BatchNormalization`;
            `activation`, applied to the result; those of `keras.Layer` (`name`, `dtype`, ...).

    Call arguments:
        inputs: `(batch, ..., channels)`, or with the channels at `axis`; rank 2 or more, only the
            number of channels need be known; float16, bfloat16, float32 or float64.
        training: bool, whether "batch" is this batch and moves the moving statistics.
        mask: optional, bool, the positions that the statistics are taken over: the sizes of the
            input's axes without the channel axis, from the left (trailing ones may be missing).
            Every position is normalized; a sample or batch masked as a whole counts as a whole.

    Returns: same shape, in the layer's compute dtype. Computed in float32 or wider. A batch without
    elements, or masked as a whole, leaves the moving statistics as they are.

    Raises:
        ValueError: `statistics` are others, none or in another order; `axis` is 0, out of bounds or
            of unknown size; `momentum` is not in [0, 1]; `mask` does not fit the input.

    Differences from the authors' code:
        - An instance of one element has the variance 0 also with `unbiased_instance_variance`
          (there: NaN), and variances are merged from centred ones (there: E[x^2] - E[x]^2).
        - The moving variance starts at 1 (there: 0); `moving_variance_initializer="zeros"`.

    Source: Luo et al. 2019, arXiv:1806.10779, equations 3 to 6.
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float | None = 0.9,
        epsilon: float = 1e-5,
        *affine: Any,
        statistics: Sequence[str] = STATISTICS,
        unbiased_instance_variance: bool = False,
        **kwargs: Any,
    ):
        super().__init__(axis, epsilon, *affine, momentum=momentum, **kwargs)
        several = isinstance(statistics, list | tuple)
        known = [name for name in STATISTICS if several and name in statistics]
        if not known or known != list(statistics):
            raise ValueError(
                f"`statistics` must be some of {STATISTICS}, in this order. "
                f"Received: statistics={statistics!r}."
            )
        self.statistics = known
        self.unbiased_instance_variance = unbiased_instance_variance

    @property
    def mixed(self) -> Sequence[str]:
        return self.statistics

    @property
    def moving(self) -> tuple[str, ...]:
        return super().moving if "batch" in self.statistics else ()

    def geometry_of(self, shape: Shape) -> Geometry:
        return geometry(shape, self.axis, apart="samples", groups=-1)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.add_mixture()

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        x = as_floats(inputs, self.compute_dtype)
        view = self.geometry_of(x.shape)
        own = moments(x, view, mask=mask)
        count = element_count(x, view, mask)
        if self.unbiased_instance_variance:
            dtype = own.variance.dtype
            correction = bessel(count if mask is None else ops.expand_dims(count, 1), dtype)
            own = own._replace(variance=own.variance * correction)
        if self.goes_by_batch(training):
            own = widened(own)
        parts = {
            "instance": lambda: own,
            "layer": lambda: merge(own, 1),
            "batch": lambda: self.across_samples(own, count, training),
        }
        mixed = self._mixed(own, [parts[name]() for name in self.statistics])
        dtype = keras.backend.result_type(x.dtype, "float32")
        mixed = Moments(*(ops.cast(statistic, dtype) for statistic in mixed))
        y = normalize_by(mixed, x, view, **self.arguments())
        return ops.cast(y, self.compute_dtype)

    def _mixed(self, own: Moments, parts: list[Moments]) -> Moments:
        """The mixture of parts that broadcast against `own`, the mean by differences from its."""
        mean = variance = ops.zeros_like(own.variance)
        by_mean, by_variance = (
            ops.cast(weights, variance.dtype)[:, None, None] for weights in self.shares()
        )
        add, _, multiply, _ = arithmetic(variance.dtype)
        for k, part in enumerate(parts):
            offset = part.residual
            if part is not own:
                offset = add(ops.stop_gradient(part.center - own.center), offset)
            mean += multiply(offset, by_mean[k])
            variance = add(variance, multiply(part.variance, by_variance[k]))
        return Moments(own.center, mean, variance)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "statistics": list(self.statistics),
            "unbiased_instance_variance": self.unbiased_instance_variance,
        }
