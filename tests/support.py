"""What the tests share: running a layer forward and backward, and the bounds it is held to."""

import inspect
import os
import subprocess
import sys
import textwrap
from typing import Any, NamedTuple

import numpy as np
import oracle
import pytest
import rows
import tensorflow as tf

import keras_norms as kn

MEANS = (0.0, 1e2, 1e4, 1e6)

# For tests of a second and more.
GRAPH_IS_SLOW = ("eager", "xla", pytest.param("graph", marks=pytest.mark.slow))

EPS32 = float(np.finfo("float32").eps)

# The promised bounds for float32 data of standard deviation 1 around any mean up to 1e6, in units
# of max|gamma| (forward) and of the largest element (gradients).
FORWARD = {"fused": 4e-6, "portable": 2e-5}
GRADIENT = 2e-5

# float64 beside float64: a mean is off by its own rounding, a unit in the last place or two.
EPS64 = float(np.finfo("float64").eps)

# What rounding the result to its type adds, relative to it: half a unit in the last place.
ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}

REFERENCE = oracle.CLASSIC
drawn, built = rows.drawn, rows.signed


class Outputs(NamedTuple):
    """What a layer gave: y and dx nested as it gives and takes them, gradients by weight name."""

    y: Any
    dx: Any
    gradients: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]  # all of them, as they were before the call

    @property
    def dgamma(self):
        return self.gradients.get("gamma", self.gradients.get("scale"))

    @property
    def dbeta(self):
        return self.gradients.get("beta")


def training(layer) -> dict:
    """The arguments of a training call."""
    return {"training": True} if "training" in inspect.signature(layer.call).parameters else {}


def weights_of(layer) -> dict[str, np.ndarray]:
    return {name: weight.numpy() for name, weight in oracle.named(layer).items()}


def expected(layer, x, dy, *, training=True, weights=None):
    """Forward and backward results of a built layer, by its reference.

    Args:
        weights: by name, those that the call began with; None: as they are.
    """
    weights = weights_of(layer) if weights is None else weights
    return oracle.expected(layer, x, dy, weights, training)


def parameters(layer):
    """Gamma and beta as arrays, None where the layer has none."""
    if isinstance(layer, kn.RMSNormalization):
        return layer.scale.numpy(), None
    found = weights_of(layer)
    return found.get("gamma"), found.get("beta")


def largest(gamma) -> float:
    return 1.0 if gamma is None else float(np.abs(gamma).max(initial=0))


def size_of(layer, y) -> float:
    """The unit of the promised bounds: max|gamma|, or the size of outputs that are not centred.

    A normalized element is within a few deviations; what is beyond has kept the input's size.
    """
    unit = largest(parameters(layer)[0])
    size = max((float(np.abs(part).max(initial=0)) for part in tf.nest.flatten(y)), default=0)
    return unit if oracle.is_classic(layer) or size <= 8 * unit else size


def compiled(function, mode):
    """The function of tensors as the mode says."""
    if mode == "eager":
        return function
    return tf.function(function, jit_compile=mode == "xla", autograph=False)


def tensors(values):
    return tf.nest.map_structure(tf.constant, values)


def arrays(values):
    return tf.nest.map_structure(np.asarray, values)


def runner(layer, mode, **arguments):
    """A function of arrays (x, dy) that gives the layer's y and gradients as arrays."""

    def step(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **arguments)
        weights = oracle.named(layer, trainable=True)
        sources = [x, [w.value for w in weights.values()]]
        dx, rest = tape.gradient(y, sources, dy, unconnected_gradients="zero")
        return y, dx, dict(zip(weights, rest, strict=True))

    step = compiled(step, mode)

    def run(x, dy):
        before = weights_of(layer)
        return Outputs(*arrays(step(tensors(x), tensors(dy))), before)

    return run


def close(got, want, *, atol, rtol=0.0, what=""):
    """Every element within atol + rtol * |want|, and the same shape."""
    got = np.asarray(got).astype(np.float64)
    assert got.shape == np.shape(want), f"{what}: shape {got.shape}, wanted {np.shape(want)}"
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=what)


def check(layer, shape, kernel, mode, *, means=MEANS, dtype="float32", **arguments):
    """Compares y, dx and the weights' gradients with the reference, for data of deviation 1."""
    built(layer, shape)
    run = runner(layer, mode, **arguments)
    draw = np.random.default_rng(11)
    like = layer.compute_output_shape(shape)
    for mean in means:
        x, dy = drawn(draw, mean, shape, dtype), drawn(draw, 0, like, dtype)
        compare(layer, x, dy, run(x, dy), kernel, what=f"mean {mean:g}")


def gradient_bound(value, terms, gradient=GRADIENT, unit=EPS32) -> float:
    """The bound for a gradient that is a sum of terms of this size.

    Relative to its largest element; where the terms cancel, their rounding stays, a few units in
    the last place. What is below the smallest normal float32 is 0.
    """
    tiny = float(np.finfo("float32").tiny)
    return gradient * np.abs(value).max(initial=0) + 8 * unit * terms + tiny


def compare(layer, x, dy, got: Outputs, kernel, what="", training=True):
    """Holds one result to the promised bounds."""
    want, back = expected(layer, x, dy, training=training, weights=got.weights)
    first, *_ = tf.nest.flatten(x)
    steepest = max(np.abs(part).max(initial=0) for part in tf.nest.flatten(dy))
    if first.dtype == np.float64:
        largest_x = max(np.abs(part).max(initial=0) for part in tf.nest.flatten(x))
        forward = gradient = 32 * EPS64 * (1 + largest_x)
        unit = EPS64
    else:
        forward, gradient, unit = FORWARD[kernel], GRADIENT, EPS32
    # The backends take tanh' for 1 - tanh**2, off by a rounding of 1.
    saturated = steepest if type(layer).__name__ == "DynamicTanh" else 0
    rtol = ROUNDING[first.dtype.name]
    atol = forward * size_of(layer, want.y)
    pairs = zip(tf.nest.flatten(got.y), tf.nest.flatten(want.y), strict=True)
    for result, value in pairs:
        close(result, value, atol=atol, rtol=rtol, what=f"y, {what}")
    # dx is a difference of terms of size |g| * rstd: where they cancel (few elements in a group)
    # their rounding stays, a few units in the last place.
    for result, value in zip(back.at(got.dx), back.dx_parts, strict=True):
        atol = gradient * np.abs(value).max(initial=0) + 8 * unit * (back.scale + saturated)
        close(result, value, atol=atol, rtol=rtol, what=f"dx, {what}")
    assert set(got.gradients) <= set(back.gradients), (got.gradients.keys(), back.gradients.keys())
    for name, result in got.gradients.items():
        # A sum that cancels keeps the rounding of its terms, |dy| times a normalized x of a few.
        value = back.gradients[name]
        terms = max(steepest, back.terms.get(name, 0))
        if saturated:
            terms += np.abs(dy * x).sum() * largest(parameters(layer)[0])
        atol = gradient * np.abs(value).max(initial=0) + 8 * unit * terms
        close(result, value, atol=atol, what=f"gradient of {name}, {what}")


def policy(dtype) -> str:
    """The policy under which a layer computes in this type with parameters of its own type."""
    return f"mixed_{dtype}" if dtype in ("float16", "bfloat16") else dtype


def run_python(script, *arguments, env=None, check=True):
    """Runs a script in a fresh interpreter, from the repository, and returns what it printed."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if check:
        assert result.returncode == 0, result.stdout + result.stderr
    return result
