"""Marks the norms of a model while it is traced, so that they are found again in the file.

TensorFlow's converter turns a function that claims to implement an operation into one custom
operator. So each norm becomes `KerasNorms>Normalize`, each scale and shift per channel
`KerasNorms>ScaleShift`, and where a layer begins and ends stand `KerasNorms>Enter` and
`KerasNorms>Leave`. `lowering.py` replaces them all.

Layers of Keras are marked as ours are, where they compute the same.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_norms import normalize
from keras_norms.geometry import Geometry
from keras_norms.moments import Moments

PREFIX = "KerasNorms>"
NORMALIZE, SCALE_SHIFT, ENTER, LEAVE = (
    f"{PREFIX}{name}" for name in ("Normalize", "ScaleShift", "Enter", "Leave")
)


def mark(name: str, attributes: Mapping[str, Any], body: Callable, *tensors: Any) -> Any:
    """The tensors through a custom operator, which computes `body` until it is replaced.

    The body must be right: a tf.function that the model calls, and that is no layer's own, keeps
    the trace with the mark for calls to come.
    """
    import tensorflow as tf

    signature = f'name: "{name}" attr {{ key: "tfl_fusable_op" value {{ b: true }} }}'
    for key, value in attributes.items():
        signature += f' attr {{ key: "{key}" value {{ {_typed(value)} }} }}'
    function = tf.function(body, experimental_implements=signature, autograph=False)
    return function(*(tf.convert_to_tensor(t) for t in tensors))


def _typed(value: Any) -> str:
    if isinstance(value, bool):
        return f"b: {str(value).lower()}"
    if isinstance(value, int):
        return f"i: {value}"
    if isinstance(value, float):
        return f"f: {value!r}"
    return f's: "{value}"'


def _of(view: Geometry) -> dict[str, int]:
    names = ("samples", "before", "channels", "after", "groups")
    return {name: int(getattr(view, name)) for name in names}


class Marks:
    """A `normalize.Writer`."""

    def active(self) -> bool:
        import tensorflow as tf

        return not tf.executing_eagerly()

    def normalize(self, x, geometry, gamma, beta, epsilon, subtract_mean):
        def body(x, *parameters):
            given = iter(parameters)
            both = (None if p is None else next(given) for p in (gamma, beta))
            return normalize.portably(x, geometry, *both, epsilon, subtract_mean)[0]

        attributes = {
            **_of(geometry),
            "epsilon": float(epsilon),
            "subtract_mean": bool(subtract_mean),
            "has_gamma": gamma is not None,
            "has_beta": beta is not None,
            "activation": "none",
        }
        given = [p for p in (gamma, beta) if p is not None]
        return mark(NORMALIZE, attributes, body, x, *given)

    def moments(self, x, geometry, subtract_mean):
        # Products: LiteRT has no 16-bit square, nor a 16-bit squared difference that is right.
        mean = _of_groups(x, geometry) if subtract_mean else None
        rest = x if mean is None else x - _along_groups(mean, x, geometry)
        variance = _of_groups(rest * rest, geometry)
        zeros = ops.zeros(ops.shape(variance), variance.dtype)
        return Moments(zeros if mean is None else mean, zeros, variance)

    def scale_shift(self, x, geometry, center, scale, shift):
        if geometry.samples:
            center, scale, shift = (
                normalize.along_channels(c, geometry) for c in (center, scale, shift)
            )
            y = (x if center is None else x - center) * scale
            return y if shift is None else y + shift
        if center is not None:
            moved = center * scale
            shift = 0.0 - moved if shift is None else shift - moved
        if shift is None:
            shift = ops.zeros(ops.shape(scale), scale.dtype)
        if len(scale.shape) != geometry.channels:
            raise AssertionError("A scale has an element per channel.")

        def body(x, scale, shift):
            return normalize.scale_shift_portably(x, geometry, None, scale, shift)

        return mark(SCALE_SHIFT, _of(geometry), body, x, scale, shift)


def _of_groups(x: Any, view: Geometry) -> Any:
    """The mean over space and the channels of a group, shaped samples + (groups,)."""
    axes = view.space_axes + (view.channel_axes if view.groups == 1 else ())
    mean = ops.mean(x, axes, keepdims=True) if axes else x
    samples = ops.shape(x)[: view.samples]
    if 1 < view.groups < math.prod(x.shape[a] for a in view.channel_axes):
        each = math.prod(x.shape[a] for a in view.channel_axes) // view.groups
        mean = ops.mean(ops.reshape(mean, (-1, view.groups, each)), -1)
    return ops.reshape(mean, (*samples, view.groups))


def _along_groups(statistic: Any, x: Any, view: Geometry) -> Any:
    """Back, so that it broadcasts against x."""
    samples = ops.shape(x)[: view.samples]
    sizes = [x.shape[a] for a in view.channel_axes]
    each = math.prod(sizes) // view.groups
    if view.groups == 1:
        sizes = [1] * len(sizes)
    elif each > 1:
        statistic = ops.reshape(statistic, (-1, view.groups, 1))
        statistic = statistic * ops.ones((1, 1, each), statistic.dtype)
    return ops.reshape(statistic, (*samples, *[1] * view.before, *sizes, *[1] * view.after))


# Of calls, each its own over the life of the process: one of an earlier conversion is told apart.
_NUMBERS = itertools.count()


@dataclass
class Call:
    """One call of a layer while the model is traced."""

    layer: keras.Layer
    note: str = ""  # what is to be said of how it was called

    @property
    def path(self) -> str:
        return path_of(self.layer)


def path_of(layer: keras.Layer) -> str:
    """A layer without weights may have no path, as it is never built."""
    return layer.path or layer.name


class Marked:
    """The calls of a model's norm layers, by the number that stands in the file's marks."""

    def __init__(self):
        self.calls: dict[int, Call] = {}
        self._inside = False

    def around(self, layer: keras.Layer, call: Callable) -> Callable:
        """`call`, with marks where it begins and ends; none around layers inside the layer."""

        def marked(inputs, *args, **kwargs):
            import tensorflow as tf

            if self._inside or tf.executing_eagerly():
                return call(inputs, *args, **kwargs)
            number = next(_NUMBERS)
            self.calls[number] = Call(layer)
            self._inside = True
            try:
                outputs = call(_each(ENTER, number, inputs), *args, **kwargs)
            finally:
                self._inside = False
            self.calls[number].note = getattr(call, "note", "")
            return _each(LEAVE, number, outputs)

        return marked


def _each(name: str, number: int, tensors: Any) -> Any:
    def body(tensor):
        return tensor + ops.cast(0, tensor.dtype)

    return keras.tree.map_structure(
        lambda t: t if t is None else mark(name, {"number": number}, body, t), tensors
    )


@contextmanager
def marking(replacements: Mapping[keras.Layer, Callable]) -> Iterator[Marked]:
    """Within it, layers are called by functions in the place of their `call`, and marked."""
    marked = Marked()
    with ExitStack() as stack:
        stack.enter_context(normalize.written_by(Marks()))
        for layer, call in replacements.items():
            stack.enter_context(attribute(layer, "call", marked.around(layer, call)))
        yield marked


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within it, an object's own attribute has this value; a class' attribute shows again after."""
    own = vars(owner)
    missing = object()
    before = own.get(name, missing)
    own[name] = value
    try:
        yield
    finally:
        if before is missing:
            del own[name]
        else:
            own[name] = before


def options(values: Mapping[str, Any]) -> list[int]:
    """The options of a custom operator, as bytes."""
    from flatbuffers import flexbuffers

    return list(flexbuffers.Dumps(dict(values)))
