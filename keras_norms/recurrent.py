"""What the recurrent cells share: the norms inside of them, their states, dropout."""

import copy
from collections.abc import Mapping
from typing import Any, NoReturn

import keras
from keras import initializers, ops

from keras_norms.base import PARTS
from keras_norms.time_steps import DIGITS, digits_of, needs_steps, of, steps_of

DEFAULTS = {"gamma_initializer": "ones", "beta_initializer": "zeros"}


class NormalizedCell:
    """A cell of Keras, which stands behind this class among the bases, with norms inside.

    A subclass names its places for norms; its `call` begins with `entered` and ends with `left`.

    Args:
        norm: None for layer normalization; a layer, of which each place gets a fresh one; or its
            configuration.
        time_steps: int, the rows of moving statistics; None where `norm` has none.
        own: the cell's own arguments, by name.
        *arguments, **kwargs: those of Keras' cell.
    """

    widths: Mapping[str, int]  # the places, and how many units wide their inputs are
    # What the cell's own arguments are called by layer normalization, and its epsilon here.
    own: Mapping[str, str] = {
        "norm_gamma_initializer": "gamma_initializer",
        "norm_beta_initializer": "beta_initializer",
        "norm_epsilon": "epsilon",
    }
    default_epsilon = 1e-3

    def __init__(
        self, *arguments: Any, norm: Any, time_steps: int | None, own: dict[str, Any], **kwargs: Any
    ):
        super().__init__(*arguments, **kwargs)
        self.dropout_mask_count = None  # one mask for all gates
        self.begins = True  # whether the next call may be the first one of a sequence
        for name, value in own.items():
            part = PARTS.get(name.rsplit("_", 1)[-1])
            setattr(self, name, value if part is None else part.get(value))
        self.template = None if norm is None else Template(norm)
        self.time_steps = time_steps
        self.with_steps = False
        if norm is not None:
            self._refuse_changed()
        for name in self.widths:
            setattr(self, name, self._fresh(name))
        if time_steps is not None and not self.with_steps:
            raise ValueError(
                "`time_steps` must be None where `norm` has no moving statistics. "
                f"Received: time_steps={time_steps!r}, norm={norm!r}."
            )
        if self.with_steps:
            self.state_size = [*self._own_sizes(), DIGITS]

    @property
    def norm(self) -> dict[str, Any] | None:
        """The configuration of the norm that stands for layer normalization."""
        return None if self.template is None else copy.deepcopy(self.template.configuration)

    def layer_normalization(self, **arguments: Any) -> keras.Layer:
        """The norm that is taken by default."""
        raise NotImplementedError

    def _own_sizes(self) -> list[int]:
        size = self.state_size
        return list(size) if isinstance(size, list | tuple) else [size]

    def _serialized(self, name: str, value: Any) -> Any:
        part = PARTS.get(name.rsplit("_", 1)[-1])
        return value if part is None else part.serialize(part.get(value))

    def _refuse_changed(self) -> None:
        defaults = {**DEFAULTS, "epsilon": self.default_epsilon}
        changed = {
            name: getattr(self, name)
            for name, of_layer in self.own.items()
            if self._serialized(name, getattr(self, name))
            != self._serialized(name, defaults.get(of_layer))
        }
        if changed:
            raise ValueError(
                "With `norm` given, its own arguments hold, and those of the layer normalization "
                f"that it replaces must be left out. Received: {changed}."
            )

    def _fresh(self, name: str) -> keras.Layer:
        if self.template is None:
            own = {of_layer: _clone(getattr(self, key)) for key, of_layer in self.own.items()}
            return self.layer_normalization(**own, name=name, dtype=self.dtype_policy)
        layer = self.template.fresh(name, self.dtype_policy)
        if not needs_steps(layer):
            return layer
        self.with_steps = True
        return of(layer, self.time_steps, (None, self.widths[name] * self.units))

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.input_spec = keras.InputSpec(ndim=2, axes={-1: input_shape[-1]})
        for name, width in self.widths.items():
            norm, shape = getattr(self, name), (None, width * self.units)
            norm.build(shape)
            given = tuple(norm.compute_output_shape(shape))
            if given != shape:
                raise ValueError(
                    "`norm` must give what has the shape of its input. "
                    f"Received: norm={norm}, which makes {given} of {shape}."
                )

    def get_initial_state(self, batch_size: Any = None) -> list[Any]:
        self.begins = True
        sizes = self._own_sizes()
        return [ops.zeros((batch_size, size), dtype=self.compute_dtype) for size in sizes]

    def reset_dropout_mask(self) -> None:
        """Called by the RNN layer when a sequence ends."""
        super().reset_dropout_mask()
        self.begins = True

    def entered(self, states: Any) -> tuple[list[Any], Any]:
        """The cell's states proper, and of each sample the step (None if nothing depends on it)."""
        states = list(states) if isinstance(states, list | tuple) else [states]
        wanted = len(self._own_sizes())
        if len(states) != wanted:
            last = (
                f" (the last one counts the steps: zeros shaped (batch, {DIGITS}) at the start)"
                if self.with_steps
                else ""
            )
            raise ValueError(f"The cell has {wanted} states{last}. Received: {len(states)} states.")
        return (states[:-1], steps_of(states[-1])) if self.with_steps else (states, None)

    def dropped(self, x: Any, h: Any, training: Any) -> tuple[Any, Any]:
        """Input and state after dropout, by the masks of the whole sequence."""
        if training and 0 < self.dropout < 1:
            x = x * self.get_dropout_mask(x)
        if training and 0 < self.recurrent_dropout < 1:
            h = h * self.get_recurrent_dropout_mask(h)
        return x, h

    def normalized(self, name: str, x: Any, steps: Any, training: Any) -> Any:
        """x through the norm of that name."""
        layer = getattr(self, name)
        if steps is None:
            return layer(x)
        return layer(x, training=training, step=steps, begins=self.begins)

    def left(self, states: list[Any], steps: Any, entered: Any) -> Any:
        """The states after the step, nested as those before it."""
        self.begins = False
        if steps is not None:
            states = [*states, digits_of(steps + 1, self.compute_dtype)]
        return states if isinstance(entered, list | tuple) else states[0]

    def get_config(self) -> dict[str, Any]:
        own = {name: self._serialized(name, getattr(self, name)) for name in self.own}
        config = {**super().get_config(), **own}
        if self.template is not None:
            config["norm"] = self.norm
        if self.time_steps is not None:
            config["time_steps"] = self.time_steps
        return config


class Template:
    """A layer as its configuration; no dict, whose copy Keras would put in its place."""

    def __init__(self, norm: keras.Layer | dict[str, Any]):
        self.configuration = norm
        if isinstance(norm, keras.Layer):
            self.configuration = keras.saving.serialize_keras_object(norm)
        elif not isinstance(norm, dict) or not {"class_name", "config"} <= set(norm):
            self._refuse(norm)

    def fresh(self, name: str, policy: Any) -> keras.Layer:
        """A layer of that name and dtype policy, not yet built."""
        configuration = copy.deepcopy(self.configuration)
        configuration.pop("build_config", None)  # of the shape that the layer may have seen
        policy = keras.dtype_policies.serialize(policy)
        configuration["config"] = {**configuration["config"], "name": name, "dtype": policy}
        layer = keras.saving.deserialize_keras_object(configuration)
        if not isinstance(layer, keras.Layer):
            self._refuse(layer)
        return layer

    def _refuse(self, norm: Any) -> NoReturn:
        raise TypeError(
            "`norm` must be a Keras layer, as `RMSNormalization()`, its configuration or None. "
            f"Received: norm={norm!r}, of type {type(norm).__name__}."
        )


def _clone(value: Any) -> Any:
    """An initializer with a seed of its own, or the value."""
    return value.clone() if isinstance(value, initializers.Initializer) else value
