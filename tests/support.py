"""What the tests share: running a layer forward and backward, and the bounds it is held to."""

import os
import subprocess
import sys
import textwrap
from typing import NamedTuple

import numpy as np
import reference
import tensorflow as tf

import keras_norms as kn

MEANS = (0.0, 1e2, 1e4, 1e6)

EPS32 = float(np.finfo("float32").eps)

# The promised bounds for float32 data of standard deviation 1 around any mean up to 1e6, in units
# of max|gamma| (forward) and of the largest element (gradients).
FORWARD = {"fused": 4e-6, "portable": 2e-5}
GRADIENT = 2e-5

# float64 beside float64: a mean is off by its own rounding, a unit in the last place or two.
EPS64 = float(np.finfo("float64").eps)

# What rounding the result to its type adds, relative to it: half a unit in the last place.
ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}


class Outputs(NamedTuple):
    y: np.ndarray
    dx: np.ndarray
    dgamma: np.ndarray | None
    dbeta: np.ndarray | None


# The reference of each layer, called with the layer's own arguments.
REFERENCE = {
    "BatchNormalization": (reference.batch_norm, reference.batch_norm_gradients),
    "LayerNormalization": (reference.layer_norm, reference.layer_norm_gradients),
    "InstanceNormalization": (reference.instance_norm, reference.instance_norm_gradients),
    "GroupNormalization": (reference.group_norm, reference.group_norm_gradients),
    "RMSNormalization": (reference.rms_norm, reference.rms_norm_gradients),
}


def expected(layer, x, dy) -> tuple[reference.Forward, reference.Backward]:
    """Forward and backward results of a built layer, by the reference."""
    forward, gradients = REFERENCE[type(layer).__name__]
    arguments = {"axis": layer.axis, "epsilon": layer.epsilon}
    if isinstance(layer, kn.GroupNormalization):
        arguments["groups"] = layer.groups
    gamma, beta = parameters(layer)
    if isinstance(layer, kn.RMSNormalization):
        want = forward(x, gamma, **arguments)
    else:
        want = forward(x, gamma, beta, **arguments)
    return want, gradients(dy, x, gamma, **arguments)


def parameters(layer):
    """Gamma and beta as arrays, None where the layer has none."""
    if isinstance(layer, kn.RMSNormalization):
        return layer.scale.numpy(), None
    return (None if p is None else p.numpy() for p in (layer.gamma, layer.beta))


def largest(gamma) -> float:
    return 1.0 if gamma is None else float(np.abs(gamma).max())


def built(layer, shape, seed=7):
    """The layer, built, with gamma and beta of either sign and sizes from 0.5 to 2."""
    layer.build(
        (None, *shape[1:]) if 0 not in reference.positive(layer.axis, len(shape)) else shape
    )
    draw = np.random.default_rng(seed)
    for weight in layer.trainable_weights:
        weight.assign(draw.choice([-1, 1], weight.shape) * draw.uniform(0.5, 2, weight.shape))
    return layer


def compiled(function, mode):
    """The function of tensors as the mode says."""
    if mode == "eager":
        return function
    return tf.function(function, jit_compile=mode == "xla", autograph=False)


def runner(layer, mode, **arguments):
    """A function of arrays (x, dy) that gives the layer's y and gradients as arrays."""

    def step(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **arguments)
        weights = list(layer.trainable_variables)
        gradients = tape.gradient(y, [x, *(w.value for w in weights)], dy)
        return y, gradients[0], dict(zip([w.name for w in weights], gradients[1:], strict=True))

    step = compiled(step, mode)

    def run(x, dy):
        y, dx, rest = step(tf.constant(x), tf.constant(dy))
        rest = {name: value.numpy() for name, value in rest.items()}
        dgamma = rest.get("gamma", rest.get("scale"))
        return Outputs(y.numpy(), dx.numpy(), dgamma, rest.get("beta"))

    return run


def close(got, want, *, atol, rtol=0.0, what=""):
    """Every element within atol + rtol * |want|, and the same shape."""
    got = np.asarray(got).astype(np.float64)
    assert got.shape == np.shape(want), f"{what}: shape {got.shape}, wanted {np.shape(want)}"
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=what)


def check(layer, shape, kernel, mode, *, means=MEANS, dtype="float32", **arguments):
    """Compares y, dx, dgamma and dbeta with the reference, for data of deviation 1 around means."""
    built(layer, shape)
    run = runner(layer, mode, **arguments)
    draw = np.random.default_rng(11)
    for mean in means:
        x = draw.normal(mean, 1, shape).astype(dtype)
        dy = draw.normal(size=shape).astype(dtype)
        compare(layer, x, dy, run(x, dy), kernel, what=f"mean {mean:g}")


def compare(layer, x, dy, got: Outputs, kernel, what=""):
    """Holds one result to the promised bounds."""
    want, back = expected(layer, x, dy)
    gamma, _ = parameters(layer)
    if x.dtype == np.float64:
        forward = gradient = 32 * EPS64 * (1 + np.abs(x).max(initial=0))
        unit = EPS64
    else:
        forward, gradient, unit = FORWARD[kernel], GRADIENT, EPS32
    rtol = ROUNDING[x.dtype.name]
    close(got.y, want.y, atol=forward * largest(gamma), rtol=rtol, what=f"y, {what}")
    # dx is a difference of terms of size |g| * rstd: where they cancel (few elements in a group)
    # their rounding stays, a few units in the last place.
    atol = gradient * np.abs(back.dx).max(initial=0) + 8 * unit * back.scale
    close(got.dx, back.dx, atol=atol, rtol=rtol, what=f"dx, {what}")
    for name in ("dgamma", "dbeta"):
        result, value = getattr(got, name), getattr(back, name)
        if result is None:
            continue
        # A sum that cancels keeps the rounding of its terms, |dy| times a normalized x of a few.
        atol = gradient * np.abs(value).max(initial=0) + 8 * unit * np.abs(dy).max(initial=0)
        close(result, value, atol=atol, what=f"{name}, {what}")


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
