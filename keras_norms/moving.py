"""Statistics of the batches seen in training, kept as weights for inference."""

import contextlib
import contextvars
from typing import Any

import numpy as np
from keras import ops

from keras_norms.base import AffineNormalization, Identifier, as_floats, number, replica_state
from keras_norms.geometry import Shape, geometry, parameter_shape
from keras_norms.moments import (
    Moments,
    check_mask,
    element_count,
    moving_average,
    over_samples,
)
from keras_norms.normalize import normalize_by


class MovingNormalization(AffineNormalization):
    """A normalization that infers with moving averages of its training statistics.

    A subclass whose training differs calls `update` there and `by_moving_statistics` at inference.

    Args:
        axis, epsilon, **kwargs: as in `AffineNormalization`.
        momentum: float in [0, 1], the weight of the past; None: every batch weighs the same.
        moving_mean_initializer, moving_variance_initializer: initializers of the weights.
        unbiased_moving_variance: bool, whether the moving variance is that of the population: a
            batch of n elements enters with n / (n - 1) times its variance.
        freeze_statistics: bool, whether training, too, goes by the moving statistics, which then
            stay as they are. Also an attribute, for the time after construction; a model that is
            compiled has to be compiled again, as with `trainable`.
    """

    # Whether the statistics of several batches are those of all their elements together, or else
    # the average of the batches'.
    pooled = True

    def __init__(
        self,
        axis: int = -1,
        epsilon: float = 1e-3,
        *affine: Any,
        momentum: float | None = 0.99,
        moving_mean_initializer: Identifier = "zeros",
        moving_variance_initializer: Identifier = "ones",
        unbiased_moving_variance: bool = False,
        freeze_statistics: bool = False,
        **kwargs: Any,
    ):
        super().__init__(axis, epsilon, *affine, **kwargs)
        self.momentum = (
            None if momentum is None else float(number("momentum", momentum, least=0, most=1))
        )
        self.declare("moving_mean", initializer=moving_mean_initializer)
        self.declare("moving_variance", initializer=moving_variance_initializer)
        self.unbiased_moving_variance = unbiased_moving_variance
        self.freeze_statistics = freeze_statistics
        self.moving_mean: Any = None
        self.moving_variance: Any = None
        self.batch_count: Any = None

    @property
    def moving(self) -> tuple[str, ...]:
        """Names of the weights that `update` moves."""
        return "moving_mean", "moving_variance"

    def moving_shape(self, input_shape: Shape) -> tuple[int, ...]:
        """The shape of the moving statistics."""
        return parameter_shape(input_shape, self.axis)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        for name in self.moving:
            initializer = getattr(self, f"{name}_initializer")
            setattr(self, name, self.add_moving(name, self.moving_shape(input_shape), initializer))
        if self.momentum is None and self.moving:
            self.batch_count = self.add_moving("batch_count", (), "zeros")

    def add_moving(self, name: str, shape: tuple[int, ...], initializer: Identifier) -> Any:
        """A weight that training moves without gradients, float32 or wider."""
        return replica_state(self, name, shape, initializer)

    def goes_by_batch(self, training: bool | None) -> bool:
        """Whether this call normalizes by the batch's statistics."""
        if active_records.get() is not None and self in active_records.get():
            return True
        return bool(training) and self.trainable and not self.freeze_statistics

    def corrected(self, variance: Any, count: Any) -> Any:
        """The variance of `count` elements, as the moving variance is to hold it."""
        if not self.unbiased_moving_variance:
            return variance
        return variance * bessel(count, variance.dtype)

    def update(self, count: Any, **statistics: Any) -> None:
        """Moves the averages towards a batch's statistics; they stay where it has no elements.

        Args:
            count: elements or samples that the statistics are of.
            **statistics: `moving_mean`, `moving_variance`, ..., without gradients; the variance
                biased, if the layer is `pooled`.
        """
        record = active_records.get()
        if record is not None and self in record:
            record[self].add(count, statistics)
            return
        if self.pooled:
            variance = self.corrected(statistics["moving_variance"], count)
            statistics = {**statistics, "moving_variance": variance}
        valid = True if isinstance(count, int) and count > 0 else ops.convert_to_tensor(count > 0)
        self.move(statistics, self.next_momentum(valid), valid)

    def next_momentum(self, valid: Any) -> Any:
        """The weight of the past in this step, which is counted where it is valid."""
        if self.momentum is not None:
            return self.momentum
        seen = self.batch_count + ops.cast(valid, self.batch_count.dtype)
        self.batch_count.assign(seen)
        return 1 - 1 / ops.maximum(seen, 1)

    def move(self, statistics: dict[str, Any], momentum: Any, valid: Any) -> None:
        """One step of the averages."""
        for name in self.moving:
            weight = getattr(self, name)
            weight.assign(moving_average(weight, statistics[name], momentum, valid))

    def of_channels(self) -> tuple[Any, Any]:
        """The moving mean (None: 0) and variance of each channel, which inference goes by."""
        return self.moving_mean, self.moving_variance

    def across_samples(self, own: Moments, count: Any, training: bool | None) -> Moments:
        """The statistics of the channels, shaped (1, channels).

        The batch's, merged from those of its samples, which then also move the averages; or the
        moving ones, where the layer does not go by the batch.

        Args:
            own: of the samples, shaped (samples, channels).
            count: elements of each sample, as `element_count` gives it.
        """
        if not self.goes_by_batch(training):
            # Copies: a later step of training on PyTorch changes the weights in place.
            moving = (ops.copy(ops.cast(w, own.variance.dtype)) for w in self.of_channels())
            mean, variance = (ops.expand_dims(w, 0) for w in moving)
            return Moments(mean, ops.zeros_like(mean), variance)
        found, count = over_samples(own, count)
        center, residual, variance = (ops.stop_gradient(s[0]) for s in found)
        self.update(count, moving_mean=center + residual, moving_variance=variance)
        return found

    def by_moving_statistics(self, inputs: Any, mask: Any = None) -> Any:
        """`activation((inputs - mean) / sqrt(variance + epsilon) * gamma + beta)`."""
        view = geometry(inputs.shape, self.axis, apart="nothing", groups=-1)
        if mask is not None:
            check_mask(mask, inputs.shape, view)
        center, variance = self.of_channels()
        y = normalize_by(Moments(center, None, variance), inputs, view, **self.arguments())
        return ops.cast(y, self.compute_dtype)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        inputs = as_floats(inputs, self.compute_dtype)
        if not self.goes_by_batch(training):
            return self.by_moving_statistics(inputs, mask)
        y, mean, variance = self.normalized(inputs, self.gamma, self.beta, mask)
        count = element_count(inputs, self.geometry_of(inputs.shape), mask)
        self.update(count, moving_mean=mean, moving_variance=variance)
        return y

    def set_statistics(self, statistics: dict[str, Any]) -> None:
        """Puts these in the place of the moving statistics."""
        for name in self.moving:
            getattr(self, name).assign(statistics[name])

    def take(self, record: "Record") -> None:
        """Puts what was recorded in the place of the moving statistics."""
        statistics = dict(record.statistics)
        if self.pooled:
            variance = statistics["moving_variance"]
            statistics["moving_variance"] = self.corrected(variance, record.count)
        self.set_statistics(statistics)
        if self.batch_count is not None:
            self.batch_count.assign(record.batches)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "momentum": self.momentum,
            **self.changed(unbiased_moving_variance=False, freeze_statistics=False),
        }


def refuse(kwargs: dict[str, Any], *names: str) -> None:
    """ValueError, as Keras' of an unknown argument, for those that mean nothing to a layer."""
    given = {name: kwargs[name] for name in names if name in kwargs}
    if given:
        raise ValueError(f"Unrecognized keyword arguments, which mean nothing here: {given}.")


def bessel(count: Any, dtype: str = "float32") -> Any:
    """n / (n - 1), what makes the variance of n elements unbiased; 1 where n is 1 or 0."""
    if isinstance(count, int | float):
        return count / (count - 1) if count > 1 else 1.0
    count = ops.cast(count, dtype)
    return ops.where(count > 1, count / ops.maximum(count - 1, 1), 1.0)


class Record:
    """Statistics of several batches together, in float64."""

    def __init__(self, pooled: bool):
        self.pooled = pooled
        self.batches = 0
        self.count = 0.0
        self.statistics: dict[str, np.ndarray] = {}

    def add(self, count: Any, statistics: dict[str, Any]) -> None:
        count = float(count)
        if not count:
            return
        self.batches += 1
        self.count += count
        share = count / self.count
        given = {name: ops.convert_to_numpy(s).astype("float64") for name, s in statistics.items()}
        if not self.statistics:
            self.statistics = given
            return
        known = self.statistics
        if self.pooled:  # the spread of the batches' means, too
            between = (given["moving_mean"] - known["moving_mean"]) ** 2 * (1 - share)
            given["moving_variance"] = given["moving_variance"] + between
        self.statistics = {name: s + (given[name] - s) * share for name, s in known.items()}


active_records: contextvars.ContextVar[dict[MovingNormalization, Record] | None] = (
    contextvars.ContextVar("record", default=None)
)


@contextlib.contextmanager
def recording(layers: list[MovingNormalization]):
    """Within the block these layers go by the batch and record, and change no weight."""
    records = {layer: Record(layer.pooled) for layer in layers}
    token = active_records.set(records)
    try:
        yield records
    finally:
        active_records.reset(token)
