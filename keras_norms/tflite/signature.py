"""A model's inputs, with every size fixed unless it is asked for: static shapes run best."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np


@dataclass(frozen=True)
class Input:
    name: str
    shape: tuple[int | None, ...]  # with the batch; None where the file takes any size
    dtype: str


@dataclass(frozen=True)
class Signature:
    inputs: tuple[Input, ...]
    structure: Any  # nested as the model takes them

    @property
    def batch(self) -> int:
        """The samples of one run; one at a time where the file takes any number."""
        return self.inputs[0].shape[0] or 1

    @property
    def dynamic(self) -> bool:
        return any(None in i.shape for i in self.inputs)

    def pack(self, tensors: Sequence) -> Any:
        """The tensors, one an input, nested as the model takes them."""
        return keras.tree.pack_sequence_as(self.structure, list(tensors))

    def arrays(self, data: Any) -> dict[str, np.ndarray]:
        """Checks a user's samples and names them by input.

        Raises: ValueError, if they do not fit the inputs or do not fill whole batches.
        """
        values = per_input(data, [i.name for i in self.inputs], "data", one=is_array)
        arrays = {i.name: np.asarray(values[i.name]).astype(i.dtype) for i in self.inputs}
        batch = self.batch
        counts = {len(a) if a.ndim else 0 for a in arrays.values()}
        for i in self.inputs:
            if not fits(arrays[i.name].shape[1:], i.shape[1:]):
                raise ValueError(
                    f"`data` must hold samples of shape {i.shape[1:]} for the input {i.name!r}. "
                    f"Received: an array of shape {arrays[i.name].shape}"
                )
        if len(counts) > 1 or 0 in counts or counts.pop() % batch:
            raise ValueError(
                "`data` must hold the same number of samples for every input, a multiple of "
                f"batch_size={batch}. Received: { {n: len(a) for n, a in arrays.items()} }"
            )
        return arrays


def fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Whether a shape is as wanted; None is any size."""
    pairs = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(b in (None, a) for a, b in pairs)


def signature(model: keras.Model, *, batch_size: int | None, input_shapes: Any = None) -> Signature:
    """Fixes the sizes of a built model's inputs.

    Args:
        batch_size: int > 0, the samples of one run, or None: any number.
        input_shapes: sizes without the batch, where the model leaves some open: a tuple for one
            input; for several a list in the order of `model.inputs`, or a dict by input name. A
            size given as None stays open.

    Raises: ValueError, if a size stays unknown or disagrees with the model.
    """
    structure = _structure(model, input_shapes)
    tensors = keras.tree.flatten(structure)
    names = _names(tensors)
    given = None
    if input_shapes is not None:
        given = per_input(input_shapes, names, "input_shapes", _is_shape)
    functional = hasattr(model, "_inputs_struct") or isinstance(model, keras.Sequential)
    inputs = []
    for name, tensor in zip(names, tensors, strict=True):
        known = tuple(tensor.shape)[1:]  # the batch is that of a first call, Keras takes any other
        shape = known if given is None else tuple(given[name])
        if functional:  # else all sizes are those of a first call
            _check_agreement(name, known, shape)
        if given is None:
            _check_known(name, shape)
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if keras.backend.is_float_dtype(dtype):
            dtype = "float32"
        if dtype == "string":
            raise ValueError(f"Inputs must be numbers. Received: {name!r} of dtype 'string'")
        sizes = (None if size is None else int(size) for size in shape)
        inputs.append(Input(name, (batch_size, *sizes), dtype))
    return Signature(tuple(inputs), structure)


def is_array(value: Any) -> bool:
    return hasattr(value, "shape")


UNORDERED = " A file does not keep the order of the model's inputs."


def per_input(
    values: Any, names: list[str], argument: str, one: Callable[[Any], bool], ordered: bool = True
) -> dict[str, Any]:
    """One value an input, by name, from the ways of giving them; `one` tells a single value.

    Where the names are not `ordered` as the user's inputs are, several come by name alone.
    """
    if len(names) == 1 and one(values):
        return {names[0]: values}
    if isinstance(values, Mapping) and set(values) == set(names):
        return dict(values)
    several = isinstance(values, list | tuple) and len(values) == len(names)
    if several and (ordered or len(names) == 1) and all(map(one, values)):
        return dict(zip(names, values, strict=True))
    kind = "a shape (without the batch)" if argument == "input_shapes" else "an array of samples"
    raise ValueError(
        f"`{argument}` must be {kind} for each input ({', '.join(names)}): "
        f"{'in a list in this order, ' * ordered}in a dict by name, or alone if there is one "
        f"input.{UNORDERED * (not ordered)} Received: {_shown(values)}"
    )


def _structure(model: keras.Model, input_shapes: Any) -> Any:
    """The model's inputs as KerasTensors, nested as it takes them."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0]
    if hasattr(model, "_inputs_struct"):  # Functional
        return model._inputs_struct
    recorded = list((getattr(model, "_build_shapes_dict", None) or {}).values())
    if recorded:
        return _tensors(recorded[0], model.input_dtype, "input")
    if input_shapes is None:
        raise ValueError(
            f"The input shape of the model {model.name!r} is not known: pass `input_shapes` "
            "(without the batch), or call the model once."
        )
    return _tensors(_batched(input_shapes), model.input_dtype, "input")


def _tensors(shapes: Any, dtype: str, name: str) -> Any:
    if isinstance(shapes, Mapping):
        return {key: _tensors(value, dtype, str(key)) for key, value in shapes.items()}
    if _is_shape(shapes):
        return keras.KerasTensor(tuple(shapes), dtype, name=name)
    return [_tensors(value, dtype, f"{name}_{k}") for k, value in enumerate(shapes)]


def _batched(shapes: Any) -> Any:
    if isinstance(shapes, Mapping):
        return {key: _batched(value) for key, value in shapes.items()}
    if _is_shape(shapes):
        return (None, *shapes)
    if isinstance(shapes, list | tuple):
        return [_batched(value) for value in shapes]
    raise ValueError(f"`input_shapes` must hold tuples of sizes. Received: {shapes!r}")


def _names(tensors: list) -> list[str]:
    names: list[str] = []
    for tensor in tensors:
        name = "".join(c if c.isalnum() and c.isascii() else "_" for c in tensor.name)
        while name in names:
            name += "_"
        names.append(name)
    return names


def _check_agreement(name: str, known: tuple, shape: tuple) -> None:
    if not fits(shape, known) or any(size is not None and size < 1 for size in shape):
        raise ValueError(
            f"`input_shapes` must agree with the model, whose input {name!r} has shape {known} "
            f"without the batch. Received: {shape}"
        )


def _check_known(name: str, shape: tuple) -> None:
    if not all(size is not None and size > 0 for size in shape):
        raise ValueError(
            f"Every size must be known and above 0. Received: {shape} for the input {name!r}. Pass "
            "`input_shapes` (without the batch), as in `input_shapes=(224, 224, 3)`; a size given "
            "there as None stays open, which costs operations and speed."
        )


def _is_shape(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        size is None or (isinstance(size, int | np.integer) and not isinstance(size, bool))
        for size in value
    )


def _shown(values: Any) -> str:
    if isinstance(values, Mapping):
        return "{" + ", ".join(f"{key!r}: {_shown(value)}" for key, value in values.items()) + "}"
    if isinstance(values, list | tuple) and not _is_shape(values):
        return "[" + ", ".join(map(_shown, values[:8])) + "]"
    return f"an array of shape {tuple(values.shape)}" if is_array(values) else f"{values!r:.200}"
