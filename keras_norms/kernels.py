"""The kernels of a layer, as matrices with a column for each output."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_norms.base import wide

# Names of the weights that are taken where none are named.
NAMES = ("kernel", "recurrent_kernel", "depthwise_kernel", "pointwise_kernel", "embeddings")

_LAST = (
    *(keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D),
    *(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D),
)
_TRANSPOSED = tuple(getattr(keras.layers, f"Conv{n}DTranspose") for n in (1, 2, 3))
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
# Layers whose outputs, before the activation, have a channel for each output of one kernel.
WITH_PRE_ACTIVATIONS = (
    *_LAST[:4],
    *_TRANSPOSED,
    *_DEPTHWISE,
    keras.layers.EinsumDense,
)


@dataclass(frozen=True)
class Kernel:
    """A weight of a layer, and which of its axes number the outputs.

    Attributes:
        name: of the weight, and where several have it, with a number.
        axes: the axes of the outputs, positive and in order.
    """

    variable: keras.Variable
    name: str
    axes: tuple[int, ...]

    @property
    def outputs(self) -> int:
        return math.prod(self.variable.shape[a] for a in self.axes)

    @property
    def inputs(self) -> int:
        """How many elements each output has."""
        return math.prod(self.variable.shape) // self.outputs

    def matrix(self) -> Any:
        """The weight's value in float32 or wider, shaped (inputs, outputs)."""
        return as_matrix(wide(ops.convert_to_tensor(self.variable.value)), self.axes)

    def shaped(self, matrix: Any) -> Any:
        """Back from a matrix to the weight's shape and type."""
        shape = tuple(self.variable.shape)
        order = _outputs_last(len(shape), self.axes)
        value = ops.reshape(matrix, [shape[a] for a in order])
        if order != sorted(order):
            value = ops.transpose(value, sorted(range(len(order)), key=order.__getitem__))
        return ops.cast(value, self.variable.dtype)


def as_matrix(x: Any, axes: Sequence[int]) -> Any:
    """x with these axes as its columns."""
    order = _outputs_last(len(x.shape), axes)
    columns = math.prod(x.shape[a] for a in axes)
    if order != sorted(order):
        x = ops.transpose(x, order)
    return ops.reshape(x, (-1, columns))


def _outputs_last(rank: int, axes: Sequence[int]) -> list[int]:
    return [a for a in range(rank) if a not in axes] + list(axes)


def kernels_of(
    layer: keras.Layer, names: Sequence[str] | None = None, axis: Any = None
) -> list[Kernel]:
    """The kernels of a built layer and of the layers inside it, in the order of its weights.

    Args:
        names: of the weights; None: all of `NAMES`.
        axis: int or list of ints, their axes of outputs; None: by the type of layer.

    Raises:
        ValueError: there is none, or its axes are not known.
    """
    found: dict[int, tuple[Any, keras.Variable, str]] = {}
    for owner in layer._flatten_layers():
        for name in names or NAMES:
            weight = getattr(owner, name, None)
            if isinstance(weight, keras.Variable):
                found[id(weight)] = owner, weight, name  # the innermost layer that has it
    place = {id(weight): k for k, weight in enumerate(layer.weights)}
    listed = [found[key] for key in sorted(found, key=lambda key: place.get(key, len(place)))]
    missing = set(names or ()) - {name for *_, name in listed}
    if missing or not listed:
        own = [weight.path.rsplit("/", 1)[-1] for weight in layer.weights]
        raise ValueError(
            f"{type(layer).__name__} object has no weight {sorted(missing) or ' or '.join(NAMES)} "
            "to compute; a layer that makes its weights when called must be called before it is "
            f"wrapped. Received: layer={layer}, with the weights {own}, weight_names={names}."
        )
    unique = _unique(name for *_, name in listed)
    return [
        Kernel(weight, label, _axes(owner, weight, name, axis))
        for (owner, weight, name), label in zip(listed, unique, strict=True)
    ]


def _unique(names: Iterator[str]) -> list[str]:
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name}_{seen[name] - 1}"


def _axes(owner: keras.Layer, weight: keras.Variable, name: str, axis: Any) -> tuple[int, ...]:
    rank = len(weight.shape)
    if axis is not None:
        axes = sorted(a % rank if -rank <= a < rank else rank for a in _listed(axis))
        if len(set(axes)) < len(axes) or not axes or axes[-1] >= rank:
            raise ValueError(
                "`axis` must name axes of the weight, none twice. "
                f"Received: axis={axis}, {name}.shape={tuple(weight.shape)}."
            )
        return tuple(axes)
    if isinstance(owner, keras.layers.EinsumDense):
        _, kernel, output = _letters(owner)
        return tuple(a for a, letter in enumerate(kernel) if letter in output)
    if isinstance(owner, _TRANSPOSED):
        return (rank - 2,)
    if isinstance(owner, _DEPTHWISE) or name == "depthwise_kernel":
        return rank - 2, rank - 1
    if isinstance(owner, keras.layers.Embedding):
        return (0,)
    if isinstance(owner, _LAST) or hasattr(owner, "state_size"):  # a recurrent cell
        return (rank - 1,)
    raise ValueError(
        f"Which axes of {name} number the outputs is not known of {type(owner).__name__}: give "
        f"`axis`. Received: layer={owner}, {name}.shape={tuple(weight.shape)}."
    )


def _listed(axis: Any) -> list[int]:
    axes = list(axis) if isinstance(axis, list | tuple) else [axis]
    if not all(isinstance(a, int) and not isinstance(a, bool) for a in axes):
        raise TypeError(
            f"`axis` must be None, an int or a list or tuple of ints. Received: axis={axis!r}."
        )
    return axes


def _letters(layer: keras.layers.EinsumDense) -> tuple[str, str, str]:
    """The letters of an einsum's inputs, kernel and outputs."""
    operands, output = layer.equation.replace(" ", "").split("->")
    inputs, kernel = operands.split(",")
    return inputs, kernel, output


def has_pre_activations(layer: keras.Layer) -> bool:
    """Whether the layer's bias, if it has one, has an element for each output of its kernel."""
    if not isinstance(layer, keras.layers.EinsumDense):
        return isinstance(layer, WITH_PRE_ACTIVATIONS)
    _, kernel, output = _letters(layer)
    return layer.bias_axes is None or set(kernel) & set(output) <= set(layer.bias_axes)


def along_bias(layer: keras.Layer, kernel: Kernel, values: Any) -> Any:
    """An element per output of the kernel, as an addend to the layer's bias and of its shape.

    Args:
        layer: one that `has_pre_activations`, and a bias.
    """
    if not isinstance(layer, keras.layers.EinsumDense):
        return ops.reshape(values, layer.bias.shape)
    # The bias has the axes of the result from its first one on, whose order may be another.
    _, letters, output = _letters(layer)
    named = output.replace("...", "")
    first = min(named.index(letter) for letter in layer.bias_axes)
    places = [named.index(letter) - first for letter in letters if letter in named]
    sizes = [kernel.variable.shape[a] for a in kernel.axes]
    order = sorted(range(len(places)), key=places.__getitem__)
    values = ops.transpose(ops.reshape(values, sizes), order)
    whole = [1] * len(layer.bias.shape)
    for place, size in zip(places, sizes, strict=True):
        whole[place] = size
    return ops.broadcast_to(ops.reshape(values, whole), layer.bias.shape)


def output_axes(layer: keras.Layer, rank: int) -> tuple[int, ...]:
    """The axes of a layer's result that number the outputs of its kernel.

    Args:
        layer: one of `WITH_PRE_ACTIVATIONS`.
        rank: of the result.
    """
    if isinstance(layer, keras.layers.EinsumDense):
        _, kernel, output = _letters(layer)
        named = output.replace("...", "." * (rank - len(output.replace("...", ""))))
        return tuple(named.index(letter) for letter in kernel if letter in output)
    return (1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1,)
