"""Batch statistics with a row for each time step, for the norms inside of recurrent cells.

A cell is called step by step, and its step is one of its states, so that loops of every backend
carry it. A step moves its row once, however often it is called: Keras' loop calls the first step
twice (once to learn the output's type), and a batch that is masked as a whole keeps its step.
"""

import functools
from typing import Any

import keras
from keras import ops

from keras_norms.geometry import Shape, geometry
from keras_norms.moments import Moments, moving_average
from keras_norms.moving import MovingNormalization, Record, active_records
from keras_norms.normalize import normalize_by

# The step as digits of this base: bfloat16, which states may be of, counts exactly to 256 only.
BASE, DIGITS = 256, 3


def steps_of(count: Any) -> Any:
    """The step of each sample, float32, of digits shaped (batch, DIGITS)."""
    places = ops.convert_to_tensor([float(BASE**k) for k in range(DIGITS)])
    return ops.sum(ops.cast(ops.stop_gradient(count), "float32") * places, axis=-1)


def digits_of(steps: Any, dtype: str) -> Any:
    """The inverse of `steps_of`."""
    digits = [ops.mod(ops.floor(steps / BASE**k), BASE) for k in range(DIGITS)]
    return ops.cast(ops.stack(digits, axis=-1), dtype)


class _Undo:
    """What a step began with, to repeat it. No weights: they hold for one call of the RNN layer."""

    def __init__(self, layer: MovingNormalization, tables: dict[str, Any]):
        add = super(PerTimeStep, layer).add_moving
        self.step = add("last_step", (), "zeros")
        self.rows = {
            name: add(f"{name}_before", t.shape[1:], "zeros") for name, t in tables.items()
        }


class PerTimeStep(MovingNormalization):
    """Gives a norm a row of moving statistics per time step; `of` makes it of the norm's class.

    Call arguments:
        inputs, training, mask: as the norm's; inputs of rank 2.
        step: float32, `(batch,)`, of each sample, counted from 0; steps beyond the last row share
            it. Inference takes each sample's own row, so what is beside it changes nothing; a
            batch that is trained on moves the row of its furthest sample.
        begins: bool, whether this may be the first call of a sequence.
    """

    time_steps = 1

    def add_moving(self, name: str, shape: tuple[int, ...], initializer: Any) -> Any:
        return super().add_moving(name, (self.time_steps, *shape), initializer)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        names = [*self.moving, *(["batch_count"] if self.batch_count is not None else [])]
        self.undo = _Undo(self, {name: getattr(self, name) for name in names})

    def goes_by_batch(self, training: bool | None) -> bool:
        by_batch = super().goes_by_batch(training)
        if by_batch and keras.backend.backend() == "jax":
            raise ValueError(
                "With a row of moving statistics per time step, training and "
                "`recompute_statistics` need TensorFlow or PyTorch: the loop of JAX cannot move "
                "weights. Inference and `freeze_statistics` work. Received: backend=jax, "
                f"layer={self.path!r}."
            )
        return by_batch

    def call(
        self,
        inputs: Any,
        training: bool | None = None,
        mask: Any = None,
        *,
        step: Any,
        begins: bool = False,
    ) -> Any:
        # With a mask, samples may be behind.
        self.step = ops.max(step, initial=0) if self.goes_by_batch(training) else step
        self.begins = begins
        try:
            return super().call(inputs, training, mask)
        finally:
            self.step = None  # a tensor of this graph

    def update(self, count: Any, **statistics: Any) -> None:
        records = active_records.get()
        if records is not None and self in records:
            if not isinstance(records[self], StepRecords):
                records[self] = StepRecords(self)
            records[self].add(int(self.step), count, statistics, self.begins)
            return
        self.again = False if self.begins else ops.equal(self.step, self.undo.step)
        super().update(count, **statistics)
        self.undo.step.assign(self.step)

    def next_momentum(self, valid: Any) -> Any:
        if self.momentum is not None:
            return self.momentum
        seen = self._begin("batch_count") + ops.cast(valid, self.batch_count.dtype)
        self._end("batch_count", seen)
        return 1 - 1 / ops.maximum(seen, 1)

    def move(self, statistics: dict[str, Any], momentum: Any, valid: Any) -> None:
        for name in self.moving:
            old = self._begin(name)
            self._end(name, moving_average(old, statistics[name], momentum, valid))

    def by_moving_statistics(self, inputs: Any, mask: Any = None) -> Any:
        mean, variance = (self._row(name) for name in self.moving)
        each = inputs.shape[-1] // mean.shape[-1]
        if each > 1:
            mean, variance = (ops.repeat(row, each, axis=-1) for row in (mean, variance))
        view = geometry(inputs.shape, -1, apart="samples", groups=-1)
        y = normalize_by(Moments(mean, None, variance), inputs, view, **self.arguments())
        return ops.cast(y, self.compute_dtype)

    def _index(self) -> Any:
        return ops.cast(ops.minimum(self.step, self.time_steps - 1), "int32")

    def _row(self, name: str) -> Any:
        return ops.take(getattr(self, name), self._index(), axis=0)

    def _begin(self, name: str) -> Any:
        """The row as it was before this step."""
        row, before = self._row(name), self.undo.rows[name]
        row = row if self.again is False else ops.where(self.again, before, row)
        before.assign(row)
        return row

    def _end(self, name: str, row: Any) -> None:
        table = getattr(self, name)
        index = ops.reshape(self._index(), (1, 1))
        table.assign(ops.scatter_update(table, index, ops.expand_dims(row, 0)))

    def take(self, record: Any) -> None:
        names = [*self.moving, *(["batch_count"] if self.batch_count is not None else [])]
        tables = {name: ops.convert_to_numpy(getattr(self, name)).copy() for name in names}
        for row, one in record.finished().items():
            statistics = {**one.statistics, "batch_count": one.batches}
            variance = statistics["moving_variance"]
            statistics["moving_variance"] = self.corrected(variance, one.count)
            for name, table in tables.items():
                table[row] = statistics[name]
        for name, table in tables.items():
            getattr(self, name).assign(table)


class StepRecords:
    """A `Record` for each row."""

    def __init__(self, layer: PerTimeStep):
        self.layer = layer
        self.rows: dict[int, Record] = {}
        self.last: tuple | None = None  # counts once another step follows

    @property
    def statistics(self) -> bool:
        return bool(self.finished())

    def add(self, step: int, count: Any, statistics: dict[str, Any], begins: bool) -> None:
        if begins or (self.last and self.last[0] != step):
            self.finished()
        self.last = step, count, statistics

    def finished(self) -> dict[int, Record]:
        """The rows that have statistics."""
        if self.last:
            step, count, statistics = self.last
            row = min(step, self.layer.time_steps - 1)
            self.rows.setdefault(row, Record(self.layer.pooled)).add(count, statistics)
            self.last = None
        return {row: record for row, record in self.rows.items() if record.statistics}


def needs_steps(norm: keras.Layer) -> bool:
    """Whether the norm keeps statistics from call to call."""
    return any(
        isinstance(part, keras.layers.BatchNormalization)
        or (isinstance(part, MovingNormalization) and part.moving)
        for part in norm._flatten_layers()
    )


def of(norm: MovingNormalization, time_steps: Any, shape: Shape) -> PerTimeStep:
    """The norm with a row per time step.

    Args:
        shape: of its input.
    """
    both = ("moving_mean", "moving_variance")
    plain = isinstance(norm, MovingNormalization) and norm.moving == both
    others = getattr(norm, "renorm", False) or getattr(norm, "synchronized", False)
    if not plain or others or norm.geometry_of(shape).samples:
        raise ValueError(
            "`norm` with moving statistics must be a `BatchNormalization` without `renorm` and "
            "`synchronized`, or a `BatchGroupNormalization`, of keras_norms. "
            f"Received: norm={type(norm).__module__}.{type(norm).__name__}, {norm.get_config()}."
        )
    if isinstance(time_steps, bool) or not isinstance(time_steps, int) or time_steps < 1:
        raise ValueError(
            "`time_steps` must be an int of at least 1 where `norm` has moving statistics: they "
            "have a row for each time step, and later steps share the last one. "
            f"Received: time_steps={time_steps!r}, norm={norm!r}."
        )
    layer = _class_of(type(norm)).from_config(norm.get_config())
    layer.time_steps = time_steps
    return layer


@functools.cache
def _class_of(cls: type[MovingNormalization]) -> type[PerTimeStep]:
    return type(f"PerTimeStep{cls.__name__}", (PerTimeStep, cls), {})
