"""The catalog's rows as the tests use them: examples, models, parametrizations.

Without TensorFlow: the tests of other backends use them, too.
"""

import fcntl
import json
import os

import keras
import numpy as np
import oracle
import pytest
import reference

from keras_norms.base import ChannelLayer
from keras_norms.catalog import CATALOG

each = pytest.mark.parametrize("row", CATALOG, ids=lambda row: row.name)


def first_of(key) -> list:
    """A row for each value of the key, the first that has it."""
    found = {}
    for row in CATALOG:
        found.setdefault(key(row), row)
    return list(found.values())


# Layers proper, not wrappers of other layers or cells.
LAYERS = [row for row in CATALOG if row.form == "layer"]
OTHERS = [row for row in CATALOG if row.form != "layer"]

# The five that bounds and drop-in use are promised for, and one for each way into the library.
CLASSIC = [row for row in CATALOG if row.name in oracle.CLASSIC]
DISTINCT = first_of(lambda row: (row.fused, row.form))
THOROUGH = CLASSIC + [row for row in DISTINCT if row not in CLASSIC]


def kernels(row) -> list[str]:
    """What the row can run on: a portable layer has one path."""
    return ["portable", "fused"] if row.fused else ["portable"]


def on_kernels(rows=CATALOG, *, both=True, **others):
    """Parametrizes `row` and `kernel`, and others; a value may be a `pytest.param` of its own.

    A case on the compiled op counts for the support matrix' column of it. Without `both` the
    portable path of a layer that the op serves is left to `make test-slow`.
    """
    cases = []
    for row in rows:
        for kernel in kernels(row):
            marks = [pytest.mark.supports("fused CPU")] if kernel == "fused" else []
            if row.fused and kernel == "portable" and not both:
                marks.append(pytest.mark.slow)
            cases.append(pytest.param(row, kernel, marks=marks, id=f"{kernel}-{row.name}"))
    marks = [pytest.mark.parametrize("row, kernel", cases, indirect=["kernel"])]
    marks += [pytest.mark.parametrize(name, values) for name, values in others.items()]

    def decorate(function):
        for mark in marks:
            function = mark(function)
        return function

    return decorate


def drawn(draw, mean, like, dtype="float32"):
    """Numbers of deviation 1 around the mean, nested and shaped as shapes or arrays are."""
    if isinstance(like, list) or (isinstance(like, tuple) and not isinstance(like[0], int)):
        return type(like)(_summable(drawn(draw, mean, one, dtype), mean) for one in like)
    return draw.normal(mean, 1, getattr(like, "shape", like)).astype(dtype)


def _summable(x, mean):
    """x, far from zero rounded to what a float32 of four times the mean is rounded to.

    So the sum that a residual layer begins with is exact, and its norm can be held to the bounds.
    """
    if not mean or isinstance(x, list | tuple):
        return x
    unit = np.spacing(np.float32(4 * abs(mean)))
    return (np.round(x / unit) * unit).astype(x.dtype)


def signed(layer, shape, seed=7):
    """The layer, built, with gamma and beta of either sign and sizes from 0.5 to 2.

    Args:
        shape: of the input; a list of shapes for a layer that takes several.
    """
    several = isinstance(shape, list)
    shapes = shape if several else [shape]
    axis = layer.axis if isinstance(layer, ChannelLayer) else -1
    if 0 not in reference.positive(axis, len(shapes[0])):
        shapes = [(None, *one[1:]) for one in shapes]
    layer.build(shapes if several else shapes[0])
    draw = np.random.default_rng(seed)
    for weight in layer.trainable_weights:
        weight.assign(draw.choice([-1, 1], weight.shape) * draw.uniform(0.5, 2, weight.shape))
    return layer


def make(row, **arguments):
    return row.example(**arguments)


def own(row, layer):
    """The object of the row's class in its example."""
    return layer.cell if row.form == "cell" else layer


def shapes(row, shape=None):
    """The shape of the input, or a list of them for a layer that takes several."""
    shape = row.shape if shape is None else shape
    return shape if row.inputs == 1 else [shape] * row.inputs


def data(row, mean=3.0, seed=1, dtype="float32", shape=None):
    """An input, or a list of them."""
    return drawn(np.random.default_rng(seed), mean, shapes(row, shape), dtype)


def slopes(row, layer, seed=2, shape=None):
    """Random gradients of what the layer gives."""
    like = layer.compute_output_shape(shapes(row, shape))
    return drawn(np.random.default_rng(seed), 0, like)


def first(values):
    """The result proper, of a layer that may give more."""
    return values[0] if isinstance(values, list | tuple) else values


def shuffled(layer, seed=5):
    """Every weight drawn anew, also those that are not trained; variances stay positive."""
    draw = np.random.default_rng(seed)
    for weight in layer.weights:
        weight.assign(draw.uniform(0.5, 2, weight.shape))
    return layer


def built(row, **arguments):
    """The layer with trainable weights of either sign."""
    return signed(make(row, **arguments), shapes(row))


def trained(row, **arguments):
    """The layer with all weights as they might be after training."""
    layer = make(row, **arguments)
    layer.build(shapes(row))
    return shuffled(layer)


def model_of(row, layer, *after, shape=None):
    """A functional model of the layer; what comes after it gets its result proper."""
    shape = row.shape[1:] if shape is None else shape
    inputs = [keras.Input(shape) for _ in range(row.inputs)]
    y = first(layer(inputs if row.inputs > 1 else inputs[0]))
    for one in after:
        y = one(y)
    return keras.Model(inputs if row.inputs > 1 else inputs[0], y)


def norm_of(model, row):
    """The row's example in a model."""
    kind = type(make(row))
    (layer,) = (layer for layer in model.layers if type(layer) is kind)
    return layer


def outputs_of(model, x):
    return np.asarray(keras.ops.convert_to_numpy(model(x)))


def once(tmp_path_factory, name, function):
    """What the function gives, in JSON's terms; run by one of pytest's workers for all of them."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = folder / f"{name}.json"
        if not file.exists():
            file.write_text(json.dumps(function()))
        return json.loads(file.read_text())
