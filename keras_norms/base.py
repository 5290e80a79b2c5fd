"""What the norm layers share: arguments, gamma and beta, configuration, call.

A layer names its geometry, nothing else: a subclass gives `geometry_of(shape)`.
"""

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import constraints, initializers, ops, regularizers

from keras_norms.geometry import AxisError, Geometry, Shape, parameter_shape
from keras_norms.normalize import Normalized, normalize

# An initializer, regularizer or constraint: its name, configuration, or itself.
Identifier = str | dict[str, Any] | Callable[..., Any]


class Normalization(keras.Layer):
    """A layer that normalizes over a `Geometry`.

    Args:
        axis: int, or a list or tuple of ints: the channel axis or axes.
        epsilon: float >= 0, added to the variance, so in units of the input squared.
        **kwargs: those of `keras.Layer`.
    """

    subtract_mean = True

    def __init__(self, axis: int | Sequence[int], epsilon: float, **kwargs: Any):
        super().__init__(**kwargs)
        if not isinstance(epsilon, numbers.Real):
            raise TypeError(f"`epsilon` must be a number. Received: epsilon={epsilon!r}.")
        if not epsilon >= 0:
            raise ValueError(f"`epsilon` must be at least 0. Received: epsilon={epsilon}.")
        self.axis: Any = list(axis) if isinstance(axis, list | tuple) else axis
        self.epsilon: float = epsilon
        self.supports_masking = True
        # The input keeps its dtype: float32 data cast to float16 first could overflow.
        self.autocast = False

    def geometry_of(self, shape: Shape) -> Geometry:
        """The geometry of an input of this shape; ValueError where there is none."""
        raise NotImplementedError

    def normalized(
        self, inputs: Any, gamma: Any = None, beta: Any = None, mask: Any = None
    ) -> Normalized:
        """`normalize` over the layer's geometry, y in the layer's compute dtype."""
        inputs = as_floats(inputs, self.compute_dtype)
        y, mean, variance = normalize(
            inputs,
            self.geometry_of(inputs.shape),
            gamma=gamma,
            beta=beta,
            epsilon=self.epsilon,
            subtract_mean=self.subtract_mean,
            mask=mask,
        )
        return Normalized(ops.cast(y, self.compute_dtype), mean, variance)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        try:
            parameter_shape(input_shape, self.axis)
        except AxisError as error:
            raise ValueError(str(error)) from None
        return input_shape

    def get_config(self) -> dict[str, Any]:
        axis = list(self.axis) if isinstance(self.axis, list) else self.axis
        return {**super().get_config(), "axis": axis, "epsilon": self.epsilon}


class AffineNormalization(Normalization):
    """A normalization followed by `* gamma + beta`.

    Args:
        center: bool, whether there is a `beta`.
        scale: bool, whether there is a `gamma`.
        beta_initializer, gamma_initializer: of the weights, shaped as the channels.
        beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint: optional.
    """

    any_rank = False  # whether a layer that is built takes inputs of another rank

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        epsilon: float = 1e-3,
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
        super().__init__(axis, epsilon, **kwargs)
        self.center = center
        self.scale = scale
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.beta_constraint = constraints.get(beta_constraint)
        self.gamma_constraint = constraints.get(gamma_constraint)
        self.gamma: Any = None
        self.beta: Any = None

    def build(self, input_shape: Shape) -> None:
        self.geometry_of(input_shape)  # for its errors, before there are weights
        shape = parameter_shape(input_shape, self.axis)
        if not self.any_rank:
            axes = {self.axis: input_shape[self.axis]}
            self.input_spec = keras.InputSpec(ndim=len(input_shape), axes=axes)
        if self.scale:
            self.gamma = self.add_weight(
                name="gamma",
                shape=shape,
                initializer=self.gamma_initializer,
                regularizer=self.gamma_regularizer,
                constraint=self.gamma_constraint,
                autocast=False,
            )
        if self.center:
            self.beta = self.add_weight(
                name="beta",
                shape=shape,
                initializer=self.beta_initializer,
                regularizer=self.beta_regularizer,
                constraint=self.beta_constraint,
                autocast=False,
            )

    def call(self, inputs: Any) -> Any:
        return self.normalized(inputs, self.gamma, self.beta).y

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "center": self.center,
            "scale": self.scale,
            "beta_initializer": initializers.serialize(self.beta_initializer),
            "gamma_initializer": initializers.serialize(self.gamma_initializer),
            "beta_regularizer": regularizers.serialize(self.beta_regularizer),
            "gamma_regularizer": regularizers.serialize(self.gamma_regularizer),
            "beta_constraint": constraints.serialize(self.beta_constraint),
            "gamma_constraint": constraints.serialize(self.gamma_constraint),
        }


def as_floats(x: Any, dtype: str | None = None) -> Any:
    """x as a tensor of floats (integers become float32), widened to `dtype`, never narrowed."""
    x = ops.convert_to_tensor(x)
    if not keras.backend.is_float_dtype(x.dtype):
        given = keras.backend.standardize_dtype(x.dtype)
        if given != "bool" and not keras.backend.is_int_dtype(given):
            raise TypeError(f"The input must be of real numbers. Received: dtype={given}.")
        x = ops.cast(x, "float32")
    return x if dtype is None else ops.cast(x, keras.backend.result_type(x.dtype, dtype))
