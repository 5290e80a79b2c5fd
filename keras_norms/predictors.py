"""How a condition becomes the coefficients of `AdaptiveNormalization`.

A predictor is a row of `PREDICTORS`: the arguments that matter to it, how it makes its weights on
the layer, and how it turns a condition c into gamma, beta and, with `gate`, a gate. Each of these
is shaped `(samples, channels)` or, where positions have their own, as x with the channels last.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import activations, initializers, ops

from keras_norms import sums
from keras_norms.base import PARTS, as_floats, wide
from keras_norms.geometry import Shape, geometry, parameter_shape
from keras_norms.moments import expand_mask
from keras_norms.normalize import exact_gradients, moments, scale_shift


@dataclass(frozen=True)
class Predictor:
    """A way from a condition to coefficients.

    Attributes:
        build: of the layer, the shapes of x and c; adds the weights, gives the `InputSpec` of c.
        predict: of the layer, x, c and c's mask; gives the coefficients.
        options: the layer's arguments that matter to it, with their defaults.
        weights: those whose initializer, regularizer and constraint are arguments, too, with the
            default initializers.
    """

    build: Callable[[Any, Shape, Shape], keras.InputSpec]
    predict: Callable[[Any, Any, Any, Any], Sequence[Any]]
    options: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Any]:
        """The arguments of the weights, with their defaults."""
        defaults = {f"{w}_{part}": None for w in self.weights for part in PARTS}
        return defaults | {f"{w}_initializer": first for w, first in self.weights.items()}


def find(predictor: Any) -> Predictor:
    """The predictor of that name, or that of any Keras layer."""
    if isinstance(predictor, keras.Layer):
        return LAYER
    if not isinstance(predictor, str) or predictor not in PREDICTORS:
        raise ValueError(
            f"`predictor` must be of {tuple(PREDICTORS)}, or a Keras layer. "
            f"Received: predictor={predictor!r}."
        )
    return PREDICTORS[predictor]


def take_arguments(chosen: Predictor, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Takes the arguments of any predictor out of kwargs; all of the chosen one, given or not.

    Raises: ValueError, if there is one that means nothing to the chosen predictor.
    """
    known = [row.options | row.parts for row in (*PREDICTORS.values(), LAYER)]
    given = {name: kwargs.pop(name) for row in known for name in row if name in kwargs}
    own = chosen.options | chosen.parts
    if strange := {name: value for name, value in given.items() if name not in own}:
        raise ValueError(
            f"This `predictor` takes {', '.join(own) or 'no arguments of its own'}. "
            f"Received: {', '.join(f'{name}={value!r}' for name, value in strange.items())}."
        )
    if given.get("gate"):  # adaLN-Zero
        own |= {name: "zeros" for name in own if name.endswith("_initializer")}
    if (activation := given.get("predictor_activation")) is not None:
        given["predictor_activation"] = activations.get(activation)
    arguments = own | given
    for name in ("classes", "hidden", "kernel_size"):
        value = arguments.get(name, 1)
        none = name == "hidden" and value is None
        if not none and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(
                f"`{name}` must be a positive int{' or None' * (name == 'hidden')}. "
                f"Received: {name}={value!r}."
            )
    return arguments


def coefficients(layer: Any, x: Any, c: Any, mask: Any) -> tuple[Any, ...]:
    """Gamma, beta and, with `gate`, the gate.

    Args:
        mask: of c, or None.
    """
    gamma, *others = layer.chosen.predict(layer, x, c, mask)
    return (gamma + 1.0 if layer.unit_offset else gamma), *others


def modulate(x: Any, gamma: Any, beta: Any, axis: int, activation: Any = None) -> Any:
    """`activation(x * gamma + beta)` in float32 or wider; rounded, if they are of samples."""
    if len(gamma.shape) == 2:
        view = geometry(x.shape, axis, apart="samples", groups=-1)
        return scale_shift(x, view, scale=gamma, shift=beta, activation=activation)
    dtype = keras.backend.result_type(x.dtype, gamma.dtype)
    gamma, beta = (ops.cast(along(part, x, axis), dtype) for part in (gamma, beta))
    x = ops.copy(ops.cast(x, dtype))  # as in `moments.centre`
    # Where sizes are unknown, only the backend's own gradients know what was broadcast.
    known = None not in (*x.shape[1:], *gamma.shape[1:])
    with exact_gradients() if known else sums.plain_gradients():
        # Gamma first: else TFLite's converter to int8 gives x, a product, this one's scale.
        y = sums.add(sums.multiply(gamma, x), beta)
    return y if activation is None else activation(y)


def along(coefficient: Any, x: Any, axis: int) -> Any:
    """A coefficient with x's rank, so that it broadcasts against x."""
    if len(coefficient.shape) > 2:
        return ops.moveaxis(coefficient, -1, axis)
    shape: list[Any] = [1] * len(x.shape)
    shape[0], shape[axis] = ops.shape(coefficient)
    return sums.reshape(coefficient, shape)


def gate_shape(layer: Any, x: Shape, c: Shape) -> Shape:
    """The shape of the gate for x and c of these shapes."""
    own = isinstance(layer.predictor, keras.Layer)
    predicted = layer.predictor.compute_output_shape(c) if own else c
    shape = list(predicted[:-1]) if own and len(predicted) > 2 else [x[0]] + [1] * (len(x) - 2)
    shape.insert(layer.axis % len(x), x[layer.axis])
    return tuple(shape)


def call_with_mask(layer: keras.Layer, x: Any, mask: Any) -> Any:
    """layer(x), told the mask if it takes one."""
    if mask is None or "mask" not in inspect.signature(layer.call).parameters:
        return layer(x)
    return layer(x, mask=mask)


def restored(given: Any) -> Any:
    """A Keras layer from its configuration; anything else as it is."""
    return keras.saving.deserialize_keras_object(given) if isinstance(given, dict) else given


def serialized(given: Any) -> Any:
    """The configuration of a layer, whether built or not; anything else as it is."""
    if not isinstance(given, keras.Layer):
        return given
    config = keras.saving.serialize_keras_object(given)
    return {key: value for key, value in config.items() if key != "build_config"}


def _condition(rule: str, x: Shape, c: Shape) -> ValueError:
    return ValueError(
        f"The condition, the second input, must be {rule}. Received: shapes={[x, c]}."
    )


def _floats(layer: Any, c: Any) -> Any:
    return wide(as_floats(c, layer.compute_dtype))


def _count(layer: Any) -> int:
    """How many coefficients a channel has."""
    return 3 if layer.gate else 2


def _split(layer: Any, prediction: Any) -> Sequence[Any]:
    return ops.split(prediction, _count(layer), axis=-1)


# A matrix.


def _build_dense(layer: Any, x: Shape, c: Shape) -> keras.InputSpec:
    if len(c) != 2 or c[1] is None:
        raise _condition("shaped (batch, features), their number known", x, c)
    outputs = _count(layer) * x[layer.axis]
    layer.kernel = layer.add_declared("kernel", (c[1], outputs))
    layer.bias = layer.add_declared("bias", (outputs,))
    return keras.InputSpec(ndim=2, axes={1: c[1]})


def _dense(layer: Any, x: Any, c: Any, mask: Any) -> Sequence[Any]:
    c = _floats(layer, c)
    if layer.predictor_activation is not None:
        c = layer.predictor_activation(c)
    return _split(layer, _biased(ops.matmul(c, ops.cast(layer.kernel, c.dtype)), layer.bias))


def _biased(y: Any, bias: Any) -> Any:
    """With exact gradients, since a bias may be that of many positions."""
    bias = ops.reshape(ops.cast(bias, y.dtype), [1] * (len(y.shape) - 1) + [-1])
    with exact_gradients():
        return sums.add(y, bias)


# Tables.


def _build_embedding(layer: Any, x: Shape, c: Shape) -> keras.InputSpec:
    if len(c) not in (1, 2) or c[1:] not in ((), (1,)):
        raise _condition("labels shaped (batch,) or (batch, 1)", x, c)
    for name in ("gamma", "beta"):
        setattr(layer, name, layer.add_declared(name, (layer.classes, x[layer.axis])))
    return keras.InputSpec(max_ndim=2)


def _embedding(layer: Any, x: Any, c: Any, mask: Any) -> Sequence[Any]:
    labels = _labels(c, layer.classes)
    fits = ops.logical_and(labels >= 0, labels < layer.classes)
    # What a table gives outside of it depends on the backend and the device: NaN is found.
    near = ops.cast(ops.clip(labels, 0, layer.classes - 1), "int32")
    tables = (wide(ops.convert_to_tensor(table)) for table in (layer.gamma, layer.beta))
    rows = [ops.take(table, near, axis=0) for table in tables]
    return [ops.where(ops.expand_dims(fits, 1), row, float("nan")) for row in rows]


def _labels(c: Any, classes: int) -> Any:
    """Labels shaped (batch,), as int32 or int64; ValueError if they are known and do not fit."""
    c = ops.convert_to_tensor(c)
    dtype = keras.backend.standardize_dtype(c.dtype)
    if not keras.backend.is_int_dtype(dtype):
        raise TypeError(f"The condition must be integer labels. Received: dtype={dtype}.")
    c = ops.cast(c, "int64" if dtype in ("int64", "uint64") else "int32")
    c = c if len(c.shape) == 1 else c[:, 0]
    try:
        values = ops.convert_to_numpy(c)
    except (NotImplementedError, TypeError):  # a graph's, or JAX's while it traces
        return c
    strange = values[(values < 0) | (values >= classes)]
    if strange.size:
        raise ValueError(
            f"Labels must be in [0, {classes - 1}], as `classes` says. "
            f"Received: classes={classes}, labels {strange[:8].tolist()}."
        )
    return c


# A map.


def _build_conv(layer: Any, x: Shape, c: Shape) -> keras.InputSpec:
    if len(x) not in (3, 4, 5) or len(c) != len(x) or c[layer.axis] is None:
        raise _condition("a map of x's rank, which is 3, 4 or 5, of known channels", x, c)
    size, features = (layer.kernel_size,) * (len(x) - 2), c[layer.axis]
    if layer.hidden is not None:
        for name, shape in (("kernel", (*size, features, layer.hidden)), ("bias", (layer.hidden,))):
            parts = {part: getattr(layer, f"{name}_{part}") for part in PARTS}
            if isinstance(parts["initializer"], initializers.Initializer):
                parts["initializer"] = parts["initializer"].clone()  # draws other numbers
            setattr(layer, f"hidden_{name}", layer.add_parameter(f"hidden_{name}", shape, **parts))
        features = layer.hidden
    outputs = 2 * x[layer.axis]
    layer.kernel = layer.add_declared("kernel", (*size, features, outputs))
    layer.bias = layer.add_declared("bias", (outputs,))
    return keras.InputSpec(ndim=len(c), axes={layer.axis: c[layer.axis]})


def _conv(layer: Any, x: Any, c: Any, mask: Any) -> Sequence[Any]:
    c = _floats(layer, c)
    if mask is not None:
        view = geometry(c.shape, layer.axis, apart="samples", groups=-1)
        mask = expand_mask(mask, c.shape, view)
        c = c if mask is None else ops.where(mask, c, ops.zeros_like(c))
    c = ops.moveaxis(c, layer.axis, -1)
    samples = ops.shape(c)[0]
    filled = isinstance(samples, int) and samples > 0
    if not filled:  # TensorFlow's convolutions on the CPU give no samples a wrong shape
        missing = 1 - ops.minimum(samples, 1)
        c = ops.pad(c, [[0, missing], *[[0, 0]] * (len(c.shape) - 1)])
    sizes = list(ops.shape(x))
    del sizes[layer.axis]
    for axis in range(1, len(sizes)):
        c = _nearest(c, axis, sizes[axis])
    if layer.hidden is not None:
        c = ops.relu(_convolved(c, layer.hidden_kernel, layer.hidden_bias))
    y = _convolved(c, layer.kernel, layer.bias)
    return _split(layer, y if filled else y[:samples])


def _nearest(c: Any, axis: int, size: Any) -> Any:
    """c with another size along an axis: element i is that at floor(i * old / new)."""
    old = ops.shape(c)[axis]
    if isinstance(old, int) and isinstance(size, int) and old == size:
        return c
    index = ops.arange(size, dtype="int32") * old // ops.maximum(size, 1)
    return ops.take(c, index, axis=axis)


def _convolved(c: Any, kernel: Any, bias: Any) -> Any:
    kernel = ops.cast(kernel, c.dtype)
    return _biased(ops.conv(c, kernel, padding="same", data_format="channels_last"), bias)


# Another map's statistics.


def _build_statistics(layer: Any, x: Shape, c: Shape) -> keras.InputSpec:
    if len(c) < 3 or parameter_shape(c, layer.axis) != (x[layer.axis],):
        raise _condition("a map with as many channels as x, of rank 3 or more", x, c)
    return keras.InputSpec(min_ndim=3, axes={layer.axis: x[layer.axis]})


def _statistics(layer: Any, x: Any, c: Any, mask: Any) -> Sequence[Any]:
    c = as_floats(c, layer.compute_dtype)
    view = geometry(c.shape, layer.axis, apart="samples", groups=-1)
    found = moments(c, view, mask=mask)
    return ops.sqrt(found.variance + layer.statistics_epsilon), found.center + found.residual


# A Keras layer.


def _build_layer(layer: Any, x: Shape, c: Shape) -> keras.InputSpec:
    if not layer.predictor.built:
        layer.predictor.build(c)
        layer.predictor.built = True
    return keras.InputSpec()


def _layer(layer: Any, x: Any, c: Any, mask: Any) -> Sequence[Any]:
    prediction = call_with_mask(layer.predictor, c, mask)
    sizes = list(x.shape)
    numbers = _count(layer) * sizes.pop(layer.axis)
    shape = tuple(prediction.shape)
    positions = len(shape) == len(x.shape) and all(
        size in (1, None, whole) or whole is None
        for size, whole in zip(shape[1:-1], sizes[1:], strict=True)
    )
    if shape[-1] != numbers or not (positions or len(shape) == 2):
        raise ValueError(
            f"`predictor` must give {_count(layer)} numbers per channel on its last axis, for each "
            "sample or for each position of x (or with size 1 in the place of one of x's). "
            f"Received: its output's shape={shape}, for inputs shaped {tuple(x.shape)} and "
            f"{tuple(c.shape)}, axis={layer.axis}."
        )
    return _split(layer, wide(prediction))


PREDICTORS = {
    "dense": Predictor(
        _build_dense,
        _dense,
        {"unit_offset": True, "gate": False, "predictor_activation": None},
        {"kernel": "glorot_uniform", "bias": "zeros"},
    ),
    "embedding": Predictor(
        _build_embedding, _embedding, {"classes": None}, {"gamma": "ones", "beta": "zeros"}
    ),
    "conv": Predictor(
        _build_conv,
        _conv,
        {"unit_offset": True, "hidden": 128, "kernel_size": 3},
        {"kernel": "glorot_uniform", "bias": "zeros"},
    ),
    "statistics": Predictor(_build_statistics, _statistics),
}
LAYER = Predictor(_build_layer, _layer, {"unit_offset": True, "gate": False})
