"""The same numbers as tensorflow-addons, and where it is wrong or refuses, its value beside ours.

It runs in an environment of its own, which `make test-peers` makes; arrays are exchanged as .npz.
"""

import json
import os
import subprocess
from pathlib import Path

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
