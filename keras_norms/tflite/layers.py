"""How the norm layers of a model are called while it is traced for a file.

Ours are called as they are, but for those whose own arithmetic leaves 16-bit floats, which are
given x divided by its largest magnitude. In the place of one of Keras' stands ours, with its
weights. Kernels that wrappers compute are computed once.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import MethodType
from typing import Any

import keras
import numpy as np
from keras import ops

import keras_norms as kn
from keras_norms.base import PARTS
from keras_norms.geometry import geometry
from keras_norms.normalize import along_channels, moments, normalize, scale_shift
from keras_norms.reparametrization import Reparametrization
from keras_norms.substitution import Substitution
from keras_norms.tflite import marks
from keras_norms.tflite.errors import ConversionError
from keras_norms.tflite.norms import Norm

# Layers that square x by themselves, with the power of x's unit that their numbers have: divided by
# it with x, they give the same result, or the result divided by it.
_OF_UNIT: dict[type, dict[str, int]] = {
    kn.SwitchableNormalization: {"epsilon": 2, "moving_mean": 1, "moving_variance": 2},
    kn.SparseSwitchableNormalization: {"epsilon": 2, "moving_mean": 1, "moving_variance": 2},
    kn.MultiScaleNormalization: {"epsilon": 2},
    kn.FilterResponseNormalization: {"epsilon": 2, "added_epsilon": 2},
    kn.EvoNormalizationS0: {"epsilon": 2, "v": -1},
    kn.GlobalResponseNormalization: {"epsilon": 1, "beta": 1, "result": 1},
}
_LEAST = 1e-3

# Keras' layers, by the name that ours has too, and when ours computes something else.
_TWINS: dict[type, Callable[[Any, int], str]] = {
    keras.layers.BatchNormalization: lambda layer, rank: "",
    keras.layers.GroupNormalization: lambda layer, rank: "",
    keras.layers.LayerNormalization: lambda layer, rank: (
        "rms_scaling divides by the standard deviation"
        if layer.rms_scaling
        else ""
        if _sorted(layer.axis, rank)
        else "Keras takes gamma in another order of the axes"
    ),
    keras.layers.RMSNormalization: lambda layer, rank: (
        "" if _axes(layer.axis, rank) == [rank - 1] else "Keras takes scale along the last axis"
    ),
    keras.layers.UnitNormalization: lambda layer, rank: "",
}
_WEIGHTS = ("gamma", "beta", "scale", "moving_mean", "moving_variance")


def replacements(model: keras.Model, column: str) -> dict[keras.Layer, Callable]:
    """How each norm layer of the model is to be called.

    Args:
        column: of `lowering.TABLE`.

    Raises: ConversionError, if a layer is derived from ours but stands in no table.
    """
    from keras_norms.catalog import CATALOG  # the table imports every layer

    ours = {row.cls: row.form for row in CATALOG}
    found: dict[keras.Layer, Callable] = {}
    for layer in model._flatten_layers():
        form = ours.get(type(layer))
        if form == "layer":
            found[layer] = _own(layer, column)
        elif type(layer) in _TWINS:
            found[layer] = _twin(layer, column)
        else:
            _check(layer, ours)
    return found


def _check(layer: keras.Layer, known: Mapping[type, str]) -> None:
    """Refuses a layer that is derived from ours elsewhere: it may compute anything."""
    own, *bases = (cls.__module__.startswith("keras_norms.") for cls in type(layer).__mro__)
    if any(bases) and not own:
        raise ConversionError(
            f"The converter must know every keras_norms layer. Received: {layer.path!r} of "
            f"class {type(layer).__name__}; known: {', '.join(c.__name__ for c in known)}. "
            "A class of your own should hold such a layer, not inherit from it."
        )


def baked(model: keras.Model) -> ExitStack:
    """Within it, our wrappers have their kernels computed: constants of the file."""
    found = [
        (layer, [(v, keras.ops.convert_to_numpy(value)) for v, value in layer.values()])
        for layer in model._flatten_layers()
        if isinstance(layer, Reparametrization)
    ]
    stack = ExitStack()
    for layer, values in found:
        stack.enter_context(
            marks.attribute(layer, "values", lambda values=values: _tensors(values))
        )
    return stack


def unrolled(model: keras.Model) -> ExitStack:
    """Within it, recurrent layers are a copy of their cell for each step, and not a loop."""
    stack = ExitStack()
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.RNN) and not layer.unroll:
            stack.enter_context(marks.attribute(layer, "unroll", True))
    return stack


def retraced(model: keras.Model) -> ExitStack:
    """Within it, the layers' own tf.functions have no traces yet, and keep none after it.

    A trace is kept by the shapes of the inputs alone: a file would hold what was traced for another
    purpose, and the model would go on with marks in the place of its norms.
    """
    import tensorflow as tf

    kind = tf.types.experimental.PolymorphicFunction
    of_class: dict[type, dict[str, Any]] = {}
    stack = ExitStack()
    for layer in model._flatten_layers():
        cls = type(layer)
        if cls not in of_class:
            known = {k: v for base in reversed(cls.__mro__) for k, v in vars(base).items()}
            of_class[cls] = {k: v for k, v in known.items() if isinstance(v, kind)}
        own = {k: v for k, v in vars(layer).items() if isinstance(v, kind)}
        for name, function in {**of_class[cls], **own}.items():
            plain = function.python_function
            if name not in own:
                plain = MethodType(plain, layer)
            fresh = tf.function(plain, input_signature=function.input_signature)
            stack.enter_context(marks.attribute(layer, name, fresh))
    return stack


def computed(model: keras.Model) -> list[Norm]:
    """The model's wrappers, of which nothing is left but the kernels they compute."""
    return [
        Norm(
            layer.path,
            "folded",
            layer=type(layer).__name__,
            why="in the weights that it computes",
        )
        for layer in model._flatten_layers()
        if isinstance(layer, Reparametrization | keras.layers.SpectralNormalization)
    ]


def _tensors(values: list) -> list:
    return [(variable, ops.convert_to_tensor(value)) for variable, value in values]


def _own(layer: keras.Layer, column: str) -> Callable:
    """The call of one of ours, in a form of its own where it has one."""
    call = layer.call
    form = _FORMS.get(type(layer))
    if form is None and column in HALVES and type(layer) in _HALF_FORMS:
        form = _HALF_FORMS[type(layer)]
    if form is None:
        return call

    def written(inputs, *args, training=None, mask=None, **kwargs):
        y = None
        if mask is None and not training:
            y = form(layer, inputs, call)
        if y is not None:
            return y
        given = {"training": training, "mask": mask}
        kwargs |= {name: value for name, value in given.items() if value is not None}
        return call(inputs, *args, **kwargs)

    return written


# Each gives a layer's result, or None where its arguments ask for the layer itself.


def _unit(layer: Any, x: Any, call: Callable) -> Any:
    """x over the root of the sum of its squares, by their mean."""
    axis = layer.axis
    view = geometry(tuple(x.shape), axis, apart="positions")
    sizes = [x.shape[a % len(x.shape)] for a in sorted(axis if isinstance(axis, list) else [axis])]
    gamma = np.full(sizes, math.prod(sizes) ** -0.5, "float32")
    return layer.finished(normalize(x, view, gamma=gamma, epsilon=1e-30, subtract_mean=False).y)


def _thresholded(layer: Any, x: Any, call: Callable) -> Any:
    return layer.finished(ops.maximum(x, layer.line(x)))


def _mixed(layer: Any, x: Any, call: Callable) -> Any:
    """An instance norm and a batch norm side by side."""
    if not layer.epsilon:
        return None
    view = layer.geometry_of(x.shape)
    gate = ops.convert_to_tensor(layer.gate)
    gamma = ops.ones_like(gate) if layer.gamma is None else ops.convert_to_tensor(layer.gamma)
    own = normalize(x, view, gamma=gamma * (1 - gate), epsilon=layer.epsilon).y
    mean, variance = layer.of_channels()
    batch = scale_shift(
        x,
        geometry(x.shape, layer.axis, apart="nothing", groups=-1),
        center=mean,
        scale=gamma * gate * ops.rsqrt(ops.convert_to_tensor(variance) + layer.epsilon),
        shift=layer.beta,
    )
    return layer.finished(own + batch)


def _evo_b0(layer: Any, x: Any, call: Callable) -> Any:
    """x over max(deviation of the batch, v * x + deviation of the sample), all in x's unit."""
    rate = _rate(x, _LEAST)
    shape = [1] * len(x.shape)
    shape[layer.axis] = -1
    v, batch = (
        ops.reshape(t, shape)
        for t in (layer.v, ops.sqrt(ops.convert_to_tensor(layer.moving_variance) + layer.epsilon))
    )
    u = x * rate
    view = layer.geometry_of(x.shape)
    own = along_channels(moments(u, view).variance, view)
    own = ops.sqrt(own + layer.epsilon * rate * rate)
    return layer.scaled(u / ops.maximum(batch * rate, u * v + own))


def _local_response(layer: Any, x: Any, call: Callable) -> Any:
    """x * (bias + alpha * sum)^-beta, with the sum of squares in a unit of its own."""
    alpha = layer.alpha_of_each
    if not alpha > 0:
        return None
    rate = _rate(x, 1e-2 / math.sqrt(alpha))
    unit = rate / math.sqrt(alpha)  # at most 100
    size = layer.bias * unit * unit + layer.summed(ops.square(x * rate))
    return layer.finished(x * ops.power(unit, 2 * layer.beta) * ops.power(size, -layer.beta))


def _rate(x: Any, least: float) -> Any:
    """1 / the largest magnitude of all, which counts as `least` if it is less."""
    largest = ops.max(ops.abs(x), axis=tuple(range(len(x.shape))), keepdims=True)
    return 1.0 / ops.maximum(largest, least)


def _in_units(layer: Any, x: Any, call: Callable) -> Any:
    """The layer's result by x over its largest magnitude, which is 1 then."""
    if isinstance(layer, kn.FilterResponseNormalization) and not layer.learned_epsilon:
        return None
    degrees = _OF_UNIT[type(layer)]
    rate = _rate(x, _LEAST)
    vector = ops.reshape(rate, (1,))
    values, numbers = [], {}
    for name, degree in degrees.items():
        value = getattr(layer, name, None)
        if name == "result" or value is None:
            continue
        of_unit = value
        for _ in range(abs(degree)):
            of_unit = of_unit * vector if degree > 0 else of_unit / vector
        if isinstance(value, keras.Variable):
            values.append((value, ops.reshape(of_unit, value.shape)))
        else:
            numbers[name] = of_unit
    with ExitStack() as stack:
        for name, value in numbers.items():
            stack.enter_context(marks.attribute(layer, name, value))
        stack.enter_context(Substitution(values))
        y = call(x * rate)
    return y / rate if "result" in degrees else y


# For every target, and for those that compute in 16-bit floats.
_FORMS: dict[type, Callable] = {
    kn.MixedNormalization: _mixed,
    kn.ThresholdedLinearUnit: _thresholded,
    kn.UnitNormalization: _unit,
}
_HALF_FORMS: dict[type, Callable] = {
    **dict.fromkeys(_OF_UNIT, _in_units),
    kn.EvoNormalizationB0: _evo_b0,
    kn.LocalResponseNormalization: _local_response,
}
HALVES = ("any", "gpu", "npu")


def _twin(layer: keras.Layer, column: str) -> Callable:
    """The call of our layer with the weights of one of Keras'."""
    original = layer.call

    def call(inputs, training=None, mask=None):
        why = _TWINS[type(layer)](layer, len(inputs.shape))
        call.note = why and f"as Keras computes it: {why}"
        if why or training:
            return original(inputs, **({"training": training} if training else {}))
        ours = getattr(kn, type(layer).__name__)
        twin = ours.from_config({**_numbers_of(layer), "dtype": "float32"})
        twin.built = True
        for name in _WEIGHTS:
            if getattr(layer, name, None) is not None:
                vars(twin)[name] = getattr(layer, name)
        return _own(twin, column)(inputs)

    return call


def _numbers_of(layer: keras.Layer) -> dict[str, Any]:
    """The configuration without what makes weights, which may be a user's unregistered function."""
    makers = tuple(PARTS)
    return {k: v for k, v in layer.get_config().items() if not k.endswith(makers)}


def _axes(axis: Any, rank: int) -> list[int]:
    return [a % rank for a in (axis if isinstance(axis, list | tuple) else [axis])]


def _sorted(axis: Any, rank: int) -> bool:
    return _axes(axis, rank) == sorted(_axes(axis, rank))
