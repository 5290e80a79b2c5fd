"""What the layers share: arguments, weights, configuration, call.

A layer that normalizes names its geometry, nothing else: a subclass gives `geometry_of(shape)`.
"""

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import activations, constraints, initializers, ops, regularizers

from keras_norms.geometry import AxisError, Geometry, Shape, geometry, parameter_shape
from keras_norms.normalize import Normalized, normalize, scale_shift

# An initializer, regularizer, constraint or activation: its name, configuration, or itself.
Identifier = str | dict[str, Any] | Callable[..., Any]


PARTS = {"initializer": initializers, "regularizer": regularizers, "constraint": constraints}


class ChannelLayer(keras.Layer):
    """A layer that knows which axes of its input are the channels.

    Args:
        axis: int, or a list or tuple of ints: the channel axis or axes.
        activation: optional, applied to the result: a name, a function or its configuration. relu,
            silu and gelu are part of the compiled op.
        **kwargs: those of `keras.Layer`.
    """

    def __init__(
        self, axis: int | Sequence[int] = -1, *, activation: Identifier | None = None, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.axis: Any = list(axis) if isinstance(axis, list | tuple) else axis
        self.activation = None if activation is None else activations.get(activation)
        self.declared: tuple[tuple[str, tuple[str, ...]], ...] = ()
        self.supports_masking = True
        # The input keeps its dtype: float32 data cast to float16 first could overflow.
        self.autocast = False

    def declare(self, name: str, **parts: Identifier | None) -> None:
        """Keeps arguments of a weight: its `initializer`, `regularizer` and `constraint`.

        They become the attributes `{name}_initializer`, ... and go into the configuration.
        """
        for part, identifier in parts.items():
            setattr(self, f"{name}_{part}", PARTS[part].get(identifier))
        self.declared = (*self.declared, (name, tuple(parts)))

    def add_declared(self, name: str, shape: Sequence[int], initial: Any = None) -> Any:
        """The trainable weight of that name.

        Args:
            initial: initializer, where none is declared or given.
        """
        parts = {part: getattr(self, f"{name}_{part}") for part in dict(self.declared)[name]}
        initializer = parts.pop("initializer", None)
        return self.add_parameter(name, shape, initializer or initial, **parts)

    def add_parameter(
        self, name: str, shape: Sequence[int], initializer: Identifier, **parts: Any
    ) -> Any:
        """A trainable weight, which stays in its dtype under a mixed policy."""
        return self.add_weight(
            name=name, shape=tuple(shape), initializer=initializer, autocast=False, **parts
        )

    def finished(self, y: Any) -> Any:
        """y, through the activation, in the layer's compute dtype."""
        return ops.cast(y if self.activation is None else self.activation(y), self.compute_dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        try:
            parameter_shape(input_shape, self.axis)
        except AxisError as error:
            raise ValueError(str(error)) from None
        return input_shape

    def get_config(self) -> dict[str, Any]:
        axis = list(self.axis) if isinstance(self.axis, list) else self.axis
        config = {**super().get_config(), "axis": axis}
        for name, parts in self.declared:
            for part in parts:
                key = f"{name}_{part}"
                config[key] = PARTS[part].serialize(getattr(self, key))
        if self.activation is not None:
            config["activation"] = activations.serialize(self.activation)
        return config

    def changed(self, **defaults: Any) -> dict[str, Any]:
        """The named arguments that are not at their default.

        Only those go into a configuration, where Keras has the layer without them, so that it
        loads into Keras as long as it can.
        """
        given = {name: getattr(self, name) for name in defaults}
        return {name: value for name, value in given.items() if value != defaults[name]}


class Normalization(ChannelLayer):
    """A layer that normalizes over a `Geometry`.

    Args:
        axis: int, or a list or tuple of ints: the channel axis or axes.
        epsilon: float >= 0, added to the variance, so in units of the input squared.
        **kwargs: `activation`, and those of `keras.Layer`.
    """

    subtract_mean = True

    def __init__(self, axis: int | Sequence[int] = -1, epsilon: float = 1e-3, **kwargs: Any):
        super().__init__(axis, **kwargs)
        self.epsilon: float = number("epsilon", epsilon, least=0)

    def geometry_of(self, shape: Shape) -> Geometry:
        """The geometry of an input of this shape; ValueError where there is none."""
        raise NotImplementedError

    def normalized(
        self, inputs: Any, gamma: Any = None, beta: Any = None, mask: Any = None
    ) -> Normalized:
        """`normalize` and the activation, y in the layer's compute dtype."""
        inputs = as_floats(inputs, self.compute_dtype)
        y, mean, variance = normalize(
            inputs,
            self.geometry_of(inputs.shape),
            gamma=gamma,
            beta=beta,
            epsilon=self.epsilon,
            subtract_mean=self.subtract_mean,
            mask=mask,
            activation=self.activation,
        )
        return Normalized(ops.cast(y, self.compute_dtype), mean, variance)

    def build(self, input_shape: Shape) -> None:
        self.geometry_of(input_shape)  # for its errors, before there are weights

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


class Affine(ChannelLayer):
    """A layer that ends with `* gamma + beta`, an element per channel.

    Args:
        axis: int, or a list or tuple of ints: the channel axis or axes.
        center: bool, whether there is a `beta`.
        scale: bool, whether there is a `gamma`.
        beta_initializer, gamma_initializer: of the weights, shaped as the channels.
        beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint: optional.
        **kwargs: `activation`, and those of `keras.Layer`.
    """

    any_rank = False  # whether a layer that is built takes inputs of another rank

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Identifier = "zeros",
        gamma_initializer: Identifier = "ones",
        beta_regularizer: Identifier | None = None,
        gamma_regularizer: Identifier | None = None,
        beta_constraint: Identifier | None = None,
        gamma_constraint: Identifier | None = None,
        **kwargs: Any,
    ):
        super().__init__(axis, **kwargs)
        self.center = center
        self.scale = scale
        self.declare(
            "beta",
            initializer=beta_initializer,
            regularizer=beta_regularizer,
            constraint=beta_constraint,
        )
        self.declare(
            "gamma",
            initializer=gamma_initializer,
            regularizer=gamma_regularizer,
            constraint=gamma_constraint,
        )
        self.gamma: Any = None
        self.beta: Any = None

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        shape = parameter_shape(input_shape, self.axis)
        if not self.any_rank:
            axes = {self.axis: input_shape[self.axis]}
            self.input_spec = keras.InputSpec(ndim=len(input_shape), axes=axes)
        for name, wanted in (("gamma", self.scale), ("beta", self.center)):
            if wanted:
                setattr(self, name, self.add_declared(name, shape))

    def scaled(self, x: Any) -> Any:
        """`activation(x * gamma + beta)`, in the compute dtype."""
        if self.gamma is None and self.beta is None:
            return self.finished(x)
        view = geometry(x.shape, self.axis, apart="nothing", groups=-1)
        gamma = ops.ones_like(self.beta) if self.gamma is None else self.gamma
        y = scale_shift(x, view, scale=gamma, shift=self.beta, activation=self.activation)
        return ops.cast(y, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "center": self.center, "scale": self.scale}


class AffineNormalization(Affine, Normalization):
    """A normalization followed by `* gamma + beta`.

    Args:
        axis: int, or a list or tuple of ints: the channel axis or axes.
        epsilon: float >= 0, added to the variance, so in units of the input squared.
        *affine, **kwargs: those of `Affine`: `center`, `scale`, `beta_initializer`,
            `gamma_initializer`, `beta_regularizer`, `gamma_regularizer`, `beta_constraint`,
            `gamma_constraint`; `activation`; and those of `keras.Layer`.
    """

    def __init__(
        self, axis: int | Sequence[int] = -1, epsilon: float = 1e-3, *affine: Any, **kwargs: Any
    ):
        super().__init__(axis, *affine, epsilon=epsilon, **kwargs)

    def arguments(self) -> dict[str, Any]:
        """What the functions of `normalize` are told of this layer."""
        return {
            "gamma": self.gamma,
            "beta": self.beta,
            "epsilon": self.epsilon,
            "activation": self.activation,
        }

    def call(self, inputs: Any, mask: Any = None) -> Any:
        return self.normalized(inputs, self.gamma, self.beta, mask).y


def replica_state(
    layer: keras.Layer, name: str, shape: tuple[int, ...], initializer: Identifier
) -> Any:
    """A weight that calls assign, float32 or wider, without gradients.

    The layer tracks it when it is made an attribute. Each replica keeps its own, without a
    collective; read from outside it is their mean (`add_weight` does not offer that, and would
    show the first replica's).
    """
    with layer._open_name_scope():
        return keras.Variable(
            initializer=initializers.get(initializer),
            shape=shape,
            dtype=keras.backend.result_type(layer.variable_dtype, "float32"),
            trainable=False,
            autocast=False,
            aggregation="mean",
            synchronization="on_read",
            name=name,
        )


def as_floats(x: Any, dtype: str | None = None) -> Any:
    """x as a tensor of floats (integers become float32), widened to `dtype`, never narrowed."""
    x = ops.convert_to_tensor(x)
    if not keras.backend.is_float_dtype(x.dtype):
        given = keras.backend.standardize_dtype(x.dtype)
        if given != "bool" and not keras.backend.is_int_dtype(given):
            raise TypeError(f"The input must be of real numbers. Received: dtype={given}.")
        x = ops.cast(x, "float32")
    return x if dtype is None else ops.cast(x, keras.backend.result_type(x.dtype, dtype))


def spread(parameter: Any, shape: Shape, axis: int | Sequence[int]) -> Any:
    """A parameter, shaped as `parameter_shape` says, with axes of size 1 so that it broadcasts.

    Args:
        shape: of what it broadcasts against.
    """
    rank = len(shape)
    axes = [a % rank for a in sorted(axis if isinstance(axis, list | tuple) else [axis])]
    parameter = ops.transpose(parameter, sorted(range(len(axes)), key=axes.__getitem__))
    return ops.reshape(parameter, [shape[a] if a in axes else 1 for a in range(rank)])


def wide(x: Any) -> Any:
    """x in float32, or in float64 if it is."""
    return ops.cast(x, keras.backend.result_type(x.dtype, "float32"))


def number(name: str, value: Any, *, least: float | None = None, most: float | None = None) -> Any:
    """The argument, if it is a real number within its bounds; TypeError or ValueError if not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a number. Received: {name}={value!r}.")
    if least is not None and most is not None and not least <= value <= most:
        raise ValueError(f"`{name}` must be in [{least}, {most}]. Received: {name}={value}.")
    if least is not None and not value >= least:
        raise ValueError(f"`{name}` must be at least {least}. Received: {name}={value}.")
    if value != value:
        raise ValueError(f"`{name}` must not be NaN. Received: {name}={value}.")
    return value


def check_groups(groups: Any) -> None:
    """Raises, unless it may be the number of groups of channels, or -1."""
    if not isinstance(groups, int) or (groups < 1 and groups != -1):
        raise ValueError(
            "`groups` must be a positive int, or -1 for a group per channel. "
            f"Received: groups={groups!r}."
        )
