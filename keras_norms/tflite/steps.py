"""Samples as users have them, all at once or one step of a data set after the other.

A step holds a value for each input: alone for one input, in a list or a tuple in the inputs' order,
or in a dict by name. Or it is what `model.fit` takes, the tuple `(x, y)` or
`(x, y, sample_weight)`, of which x alone counts:

- for one input, a tuple of two or three is `fit`'s;
- for several, it is where x holds an array for each: `((a, b), y)` or `({"a": a, "b": b}, y)`, and
  `([a, b], y)` unless y is a list or a tuple as well. A tuple of an array for each input is the
  inputs: `(a, b)` for two inputs is never `(x, y)`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_norms.tflite.probe import Batch
from keras_norms.tflite.signature import UNORDERED, Input, fits, is_array

ENDLESS = -1  # tf.data.INFINITE_CARDINALITY


def collected(data: Any, inputs: Sequence[Input], most: int) -> Batch:
    """Representative data as arrays `(samples, ...)` by input name.

    Args:
        data: as `samples.batches` takes it.
        most: no more samples than these are taken.

    Raises: ValueError, if they do not fit the inputs.
    """
    if callable(data) and not is_array(data) and not isinstance(data, Iterable):
        data = data()
    if len(inputs) == 1 and _may_be_of_fit(data, inputs) and is_array(data[0]):
        data = data[0]
    name = "representative_data"
    named = _named(data, inputs, name)
    if named is not None:
        return {i.name: _array(named[i.name], i, name)[:most] for i in inputs}
    if not isinstance(data, Iterable):
        raise ValueError(_expected(inputs, data, name))
    return _joined(data, inputs, name, most)


def whole(data: Any, inputs: Sequence[Input], ordered: bool = True) -> Any:
    """`data` in which a tf.data.Dataset, all of it, is arrays; anything else is as it was.

    Args:
        ordered: whether the inputs are in the model's order. If not, as in a file, several come by
            name alone.

    Raises: ValueError, if the data set has no end or does not fit the inputs.
    """
    if not hasattr(data, "cardinality"):
        return data
    if int(data.cardinality()) == ENDLESS:
        raise ValueError(
            f"`data` must have an end, as `data.take(100)` has. Received: {data!r:.200}"
        )
    arrays = _joined(data, inputs, "data", None, ordered)
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))


def _joined(
    data: Iterable, inputs: Sequence[Input], argument: str, most: int | None, ordered: bool = True
) -> Batch:
    """The samples of all steps, or of the first that have so many."""
    parts: dict[str, list] = {i.name: [] for i in inputs}
    taken = 0
    for step in data:
        values = _values(step, inputs, argument, ordered)
        got = {i.name: _array(values[i.name], i, argument, one=True) for i in inputs}
        if len({len(array) for array in got.values()}) != 1:
            counts = {name: len(array) for name, array in got.items()}
            raise ValueError(
                f"Every step of `{argument}` must hold the same number of samples for every "
                f"input. Received: {counts}"
            )
        for name, array in got.items():
            if parts[name] and parts[name][0].shape[1:] != array.shape[1:]:
                raise ValueError(
                    f"Every step of `{argument}` must hold samples of one shape. Received: "
                    f"{parts[name][0].shape[1:]} and {array.shape[1:]} for the input {name!r}"
                )
            parts[name].append(array)
        taken += len(got[inputs[0].name])
        if most is not None and taken >= most:
            break
    none = {i.name: [np.empty((0, *(size or 0 for size in i.shape[1:])), i.dtype)] for i in inputs}
    return {name: np.concatenate(some or none[name])[:most] for name, some in parts.items()}


def _values(step: Any, inputs: Sequence[Input], argument: str, ordered: bool) -> dict[str, Any]:
    """A step's values by input name."""
    x, named = step, _named(step, inputs, argument)
    if named is None and _may_be_of_fit(step, inputs):
        x, named = step[0], _named(step[0], inputs, argument)
    if named is None and isinstance(step, list | tuple) and len(inputs) == len(step):
        named = {i.name: value for i, value in zip(inputs, step, strict=True)}
    by_place = len(inputs) > 1 and not isinstance(x, Mapping)
    if named is None or (by_place and not ordered):
        raise ValueError(_expected(inputs, step, argument, ordered))
    return named


def _may_be_of_fit(step: Any, inputs: Sequence[Input]) -> bool:
    """Whether a step can be `(x, y)` or `(x, y, sample_weight)`: not what x holds."""
    if not isinstance(step, tuple) or len(step) not in (2, 3):
        return False
    x, y = step[:2]
    if len(inputs) == 1 or isinstance(x, Mapping | tuple):
        return True
    return isinstance(x, list) and not isinstance(y, list | tuple)


def _named(data: Any, inputs: Sequence[Input], argument: str) -> dict[str, Any] | None:
    """Values by input name, if the data is one value for each input."""
    names = [i.name for i in inputs]
    if isinstance(data, Mapping):
        if set(data) != set(names):
            raise ValueError(_expected(inputs, data, argument))
        return dict(data)
    if is_array(data):
        return {names[0]: data} if len(names) == 1 else None
    several = isinstance(data, list | tuple) and len(data) == len(names)
    if several and all(map(is_array, data)):
        return dict(zip(names, data, strict=True))
    return None


def _array(value: Any, i: Input, argument: str, one: bool = False) -> np.ndarray:
    """`(samples, ...)` of the input's type."""
    array = np.asarray(value)
    if one and array.ndim == len(i.shape) - 1:
        array = array[None]
    if array.ndim != len(i.shape) or not fits(array.shape[1:], i.shape[1:]):
        raise ValueError(
            f"`{argument}` must hold samples of shape {tuple(i.shape[1:])} for the input "
            f"{i.name!r}. Received: an array of shape {array.shape}"
        )
    return array.astype(i.dtype)


def _expected(inputs: Sequence[Input], received: Any, argument: str, ordered: bool = True) -> str:
    if isinstance(received, Mapping):
        shown = f"a dict of {', '.join(map(repr, received))}"
    elif isinstance(received, list | tuple):
        shown = f"a {type(received).__name__} of {len(received)}"
    else:
        shown = f"{received!r:.100}"
    many, also = "a tf.data.Dataset", ""
    if argument == "representative_data":
        many, also = "an iterable", ", or a function that returns one"
    return (
        f"`{argument}` must be arrays of samples, one for each input "
        f"({', '.join(i.name for i in inputs)}), {'in a list in this order or ' * ordered}in a "
        f"dict by name, or {many} of such or of `(x, y)` with such an x{also}."
        f"{UNORDERED * (not ordered)} Received: {shown}"
    )
