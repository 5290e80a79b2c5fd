"""The same numbers as tensorflow-addons, and where it is wrong or refuses, its value beside ours.

It runs in an environment of its own, which `make test-peers` makes; arrays are exchanged as .npz.
"""

import json
import os
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
import support
import tensorflow as tf

import keras_norms as kn

SCRIPT = Path(__file__).parent / "peers" / "addons.py"
pytestmark = pytest.mark.peers

# id: ours, its arguments; theirs, its arguments; shape, mean of the data.
CASES = {
    "IN": (kn.InstanceNormalization, {}, "InstanceNormalization", {}, (3, 5, 7, 6), 1.0),
    "IN, axis 1": (
        *(kn.InstanceNormalization, {"axis": 1, "epsilon": 1e-5}),
        *("InstanceNormalization", {"axis": 1, "epsilon": 1e-5}, (3, 6, 5, 7), 1.0),
    ),
    "IN, no affine": (
        *(kn.InstanceNormalization, {"center": False, "scale": False}),
        *("InstanceNormalization", {"center": False, "scale": False}, (3, 5, 6), 1.0),
    ),
    "GN": (
        *(kn.GroupNormalization, {"groups": 3}),
        *("GroupNormalization", {"groups": 3}, (3, 5, 7, 6), 1.0),
    ),
    "GN, axis 1": (
        *(kn.GroupNormalization, {"groups": 2, "axis": 1}),
        *("GroupNormalization", {"groups": 2, "axis": 1}, (3, 6, 35), 1.0),
    ),
    "GN, rank 2": (
        *(kn.GroupNormalization, {"groups": 2}, "GroupNormalization", {"groups": 2}),
        *((5, 22), 1.0),
    ),
    "FRN": (
        *(kn.FilterResponseNormalization, {}, "FilterResponseNormalization", {}),
        *((3, 5, 7, 6), 1.0),
    ),
    "FRN, learned epsilon": (
        *(kn.FilterResponseNormalization, {"learned_epsilon": True}),
        *("FilterResponseNormalization", {"learned_epsilon": True}, (3, 5, 7, 6), 1.0),
    ),
    "TLU, per element": (
        *(kn.ThresholdedLinearUnit, {"tau_shared_axes": []}, "TLU", {}, (3, 5, 7, 6), 0.0),
    ),
    "TLU, affine": (
        *(kn.ThresholdedLinearUnit, {"tau_shared_axes": [], "affine": True}),
        *("TLU", {"affine": True}, (3, 5, 6), 0.0),
    ),
}


@pytest.fixture(scope="module")
def addons(tmp_path_factory):
    """Calls tensorflow-addons with (name, arguments, x, dy, weights); its results by name."""
    python = os.environ.get("KERAS_NORMS_ADDONS_PYTHON")
    if not python:
        pytest.fail("KERAS_NORMS_ADDONS_PYTHON must name its Python: run `make test-peers`.")

    def call(cases):
        folder = tmp_path_factory.mktemp("peers")
        arrays = {}
        for i, (_, _, x, dy, weights) in enumerate(cases):
            arrays |= {f"x_{i}": x, f"dy_{i}": dy}
            arrays |= {f"w_{i}_{name}": w for name, w in weights.items()}
        np.savez(folder / "in.npz", **arrays)
        described = [{"name": case[0], "arguments": case[1]} for case in cases]
        (folder / "cases.json").write_text(json.dumps(described))
        paths = [folder / name for name in ("cases.json", "in.npz", "out.npz")]
        subprocess.run(
            [python, SCRIPT, *paths],
            check=True,
            timeout=300,
            env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "KERAS_BACKEND")},
        )
        out = np.load(folder / "out.npz")
        errors = [
            str(out[f"error_{i}"]) if f"error_{i}" in out else None for i in range(len(cases))
        ]
        results = [{} for _ in cases]
        for key in out:
            name, *rest = key.split("_")
            if name in ("y", "dx", "g"):
                results[int(rest[0])]["_".join([name, *rest[1:]])] = out[key]
        return results, errors

    return call


def of_ours(cls, arguments, shape, mean):
    layer = cls(**arguments)
    layer.build((None, *shape[1:]))
    draw = np.random.default_rng(3)
    for weight in layer.weights:
        weight.assign(draw.choice([-1, 1], weight.shape) * draw.uniform(0.5, 2, weight.shape))
    x = draw.normal(mean, 1, shape).astype("float32")
    dy = draw.normal(size=shape).astype("float32")
    return layer, x, dy, support.weights_of(layer)


def test_same_numbers(addons, kernel):
    """Outputs and all gradients."""
    made = [of_ours(ours, arguments, *rest) for ours, arguments, _, _, *rest in CASES.values()]
    calls = [
        (theirs, arguments, *m[1:])
        for (_, _, theirs, arguments, *_), m in zip(CASES.values(), made, strict=True)
    ]
    results, errors = addons(calls)
    assert errors == [None] * len(CASES)
    for name, (layer, x, dy, _), want in zip(CASES, made, results, strict=True):
        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        variables = {f"g_{w.name}": w.value for w in layer.trainable_weights}
        dx, gradients = tape.gradient(y, [x, variables], tf.constant(dy))
        pairs = {"y": y, "dx": dx} | gradients
        for key, got in pairs.items():
            value = want[key].astype("float64").reshape(got.shape)
            # Both sides are float32: ours within 2e-5 of the exact, theirs about as much.
            support.close(got, value, atol=4e-5 * np.abs(value).max(), what=f"{name}, {key}")


CELLS = {
    "LSTM": (kn.LayerNormLSTMCell, {"units": 11}),
    "LSTM, arguments": (
        kn.LayerNormLSTMCell,
        {"units": 5, "norm_epsilon": 1e-5, "use_bias": False, "recurrent_activation": "tanh"},
    ),
    "simple RNN": (kn.LayerNormSimpleRNNCell, {"units": 11}),
    "simple RNN, arguments": (
        kn.LayerNormSimpleRNNCell,
        {"units": 5, "layernorm_epsilon": 1e-3, "activation": "sigmoid"},
    ),
}


# In units of the largest element. In float32 both sides round, and 7 normalizations amplify that.
@pytest.mark.parametrize("dtype, close", [("float32", 1e-5), ("float64", 1e-13)])
def test_same_numbers_of_cells(dtype, close, addons, kernel):
    """Outputs of all steps and all gradients, of weights that are handed over in their order."""
    made, draw = [], np.random.default_rng(4)
    for cls, arguments in CELLS.values():
        cell = cls(**arguments, dtype=dtype)
        rnn = keras.layers.RNN(cell, return_sequences=True, dtype=dtype)
        rnn.build((None, 7, 3))
        for weight in rnn.weights:
            weight.assign(draw.choice([-1, 1], weight.shape) * draw.uniform(0.3, 1, weight.shape))
        x, dy = draw.normal(size=(5, 7, 3)), draw.normal(size=(5, 7, arguments["units"]))
        x, dy = x.astype(dtype), dy.astype(dtype)
        made.append((rnn, x, dy, support.weights_of(rnn)))
    results, errors = addons(
        [
            (cls.__name__, arguments, *m[1:])
            for (cls, arguments), m in zip(CELLS.values(), made, strict=True)
        ]
    )
    assert errors == [None] * len(CELLS)
    for name, (rnn, x, dy, weights), want in zip(CELLS, made, results, strict=True):
        got = support.runner(rnn, "graph")(x, dy)
        pairs = {"y": got.y, "dx": got.dx}
        pairs |= {f"g_{key}": gradient for key, gradient in got.gradients.items()}
        assert set(pairs) == set(want) and len(got.gradients) == len(weights)
        for key, value in pairs.items():
            atol = close * max(1, np.abs(want[key]).max())
            support.close(value, want[key].astype("float64"), atol=atol, what=f"{name}, {key}")


# A layer of both, its input.
WRAPPED = {
    "Dense": (("Dense", {"units": 11}), (5, 7)),
    "Conv2D": (("Conv2D", {"filters": 6, "kernel_size": [3, 2]}), (2, 7, 5, 3)),
}


def wrapped(case, data_init):
    (name, arguments), shape = case
    layer = kn.WeightNormalization(getattr(keras.layers, name)(**arguments), data_init)
    draw = np.random.default_rng(5)
    x = draw.normal(1, 1, shape).astype("float32")
    dy = draw.normal(size=layer(x).shape).astype("float32")
    return layer, x, dy


def test_same_numbers_of_wrappers(addons, kernel):
    """Weight normalization without data: outputs, and gradients of x, g, v and the bias."""
    made, calls, draw = [], [], np.random.default_rng(6)
    for case in WRAPPED.values():
        layer, x, dy = wrapped(case, False)
        for weight in layer.weights:
            weight.assign(draw.choice([-1, 1], weight.shape) * draw.uniform(0.5, 2, weight.shape))
        made.append((layer, x, dy))
        arguments = {"layer": case[0], "data_init": False}
        calls.append(("WeightNormalization", arguments, x, dy, support.weights_of(layer)))
    results, errors = addons(calls)
    assert errors == [None] * len(WRAPPED)
    for name, (layer, x, dy), want in zip(WRAPPED, made, results, strict=True):
        got = support.runner(layer, "graph")(x, dy)
        pairs = {"y": got.y, "dx": got.dx}
        pairs |= {f"g_{key}": gradient for key, gradient in got.gradients.items()}
        assert set(pairs) == set(want) == {"y", "dx", "g_g", "g_kernel", "g_bias"}
        for key, value in pairs.items():
            atol = 4e-5 * np.abs(want[key]).max()
            support.close(value, want[key].astype("float64"), atol=atol, what=f"{name}, {key}")


def test_where_its_weight_normalization_is_wrong(addons, kernel):
    """It measures with v for v / |v|; a transposed convolution's g is of its input channels."""
    transposed = ("Conv2DTranspose", {"filters": 6, "kernel_size": 3}), (8, 5, 4, 5)
    (_, x, dy), (_, image, _) = wrapped(WRAPPED["Dense"], True), wrapped(transposed, True)
    x = np.random.default_rng(5).normal(1, 2, (200, 7)).astype("float32")
    calls = [
        ("WeightNormalization", {"layer": WRAPPED["Dense"][0]}, x, dy, {}),
        ("WeightNormalization", {"layer": transposed[0], "data_init": False}, image, dy, {}),
    ]
    (dense, convolution), errors = addons(calls)
    assert errors == [None, None]
    assert np.abs(dense["y"].std(0) - 1).max() > 0.05
    assert convolution["g_g"].shape == (5,)
    layer, *_ = wrapped(WRAPPED["Dense"], True)
    np.testing.assert_allclose(np.std(layer(x, training=True), 0), 1, atol=1e-3)
    layer, *_ = wrapped(transposed, True)
    assert layer.gains[0].shape == (6,)


def test_where_it_refuses(addons):
    """FilterResponseNormalization there is for rank 4 with known height and width only."""
    for shape in ((3, 5, 6), (3, 2, 5, 7, 6)):
        layer, x, dy, weights = of_ours(kn.FilterResponseNormalization, {}, shape, 1.0)
        _, (error,) = addons([("FilterResponseNormalization", {}, x, dy, weights)])
        assert "Only 4-D tensors" in error
        want, _ = support.expected(layer, x, dy)
        support.close(layer(x), want.y, atol=2e-5 * np.abs(want.y).max())


def test_where_it_is_wrong(addons, kernel):
    """One sample of 600x400x24 in [0, 1): off by 8.7e-4 there (tensorflow/addons#2745)."""
    x = np.random.default_rng(1).uniform(size=(1, 600, 400, 24)).astype("float32")
    ones, zeros = np.ones(24, "float32"), np.zeros(24, "float32")
    (theirs,), _ = addons(
        [("GroupNormalization", {"groups": 3}, x, x, {"gamma": ones, "beta": zeros})]
    )
    layer = kn.GroupNormalization(3)
    layer.build(x.shape)
    want, _ = support.expected(layer, x, x)
    assert np.abs(theirs["y"] - want.y).max() > 1e-4
    support.close(layer(x), want.y, atol=support.FORWARD[kernel], rtol=2.0**-24)
