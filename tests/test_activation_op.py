"""The activation that the compiled ops apply in the same pass, and its gradients of both orders."""

import math

import numpy as np
import pytest
import reference
import support
import tensorflow as tf
from test_fused import EPSILON, View, check_gradient, check_second, coefficients, draw, wide
from test_fused import normalize as op
from test_fused import scale_shift as scale_shift_op

import keras_norms as kn
from keras_norms import fused as room

pytestmark = pytest.mark.usefixtures("fused")

VIEWS = {
    "layer": View((9, 7, 137), 2, 0, 1, 1),
    "short_rows": View((37, 2, 22), 2, 0, 1, 1),
    "batch": View((5, 7, 3, 11), 0, 3, 1, 11),
    "group": View((3, 5, 7, 22), 1, 2, 1, 2),
    "group_first": View((3, 6, 11, 13), 1, 0, 1, 2),
    "short_runs": View((3, 6, 3, 2), 1, 0, 1, 3),
}
NAMES = pytest.mark.parametrize("name", VIEWS)
ACTIVATIONS = pytest.mark.parametrize("activation", room.ACTIVATIONS)


# The activations and their derivatives in float64.


def erf(z):
    return np.vectorize(math.erf, otypes=[np.float64])(z)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def activate(activation, z):
    if activation == "relu":
        return np.maximum(z, 0)
    if activation == "silu":
        return z * sigmoid(z)
    return z * (1 + erf(z / math.sqrt(2))) / 2


def derivative(activation, z):
    if activation == "relu":
        return (z > 0).astype(np.float64)
    if activation == "silu":
        return sigmoid(z) * (1 + z * (1 - sigmoid(z)))
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return (1 + erf(z / math.sqrt(2))) / 2 + z * density


def away_from_kinks(activation, z, dy):
    """dy, without what the last rounding of z decides on: at relu's kink."""
    return tf.where(np.abs(z) < 1e-3, tf.zeros_like(dy), dy) if activation == "relu" else dy


def run(function, mode, inputs, dy):
    """y and the gradients by all inputs."""

    def step(dy, *inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = function(*inputs)
        return [y, *tape.gradient(y, inputs, dy)]

    return support.compiled(step, mode)(dy, *inputs)


def bounds(dtype, mean):
    """The promises: forward and backward, a rounding of the arithmetic, a rounding of the type."""
    if dtype == "float64":
        bound = 32 * support.EPS64 * (1 + abs(mean))
        return bound, bound, support.EPS64, support.ROUNDING[dtype]
    return support.FORWARD["fused"], support.GRADIENT, support.EPS32, support.ROUNDING[dtype]


def check_normalize(view, activation, dtype, mean, mode="eager", **which):
    x, dy, gamma, beta = draw(view, dtype, mean)
    gamma = tf.sign(gamma) * (0.5 + tf.abs(gamma))
    subtract_mean = which.get("subtract_mean", True)
    z, _, _ = view.forward(x, gamma, beta, subtract_mean)
    dy = away_from_kinks(activation, z, dy)
    got = run(
        lambda *inputs: op(view, *inputs, activation=activation, **which)[0],
        mode,
        (x, gamma, beta),
        dy,
    )
    forward, backward, eps, rounding = bounds(dtype, mean)
    # The steepest slope is 1.13.
    atol = 1.13 * forward * support.largest(gamma)
    support.close(got[0], activate(activation, z), atol=atol, rtol=rounding, what="y")

    dz = reference.float64(dy) * derivative(activation, z)
    want = view.backward(dz, x, gamma, subtract_mean)
    # Between the steps, dz is rounded to x's type.
    step = rounding if dtype in ("bfloat16", "float16") else 0
    atol = backward * np.abs(want.dx).max() + (8 * eps + 2 * step) * want.scale
    support.close(got[1], want.dx, atol=atol, rtol=rounding, what="dx")
    terms = (8 * eps + 8 * step) * np.abs(reference.float64(dy)).max()
    for name, value, result in zip(("dgamma", "dbeta"), want[1:3], got[2:], strict=True):
        atol = backward * np.abs(value).max() + terms
        support.close(result, value, atol=atol, what=name)


@NAMES
@ACTIVATIONS
@pytest.mark.parametrize("mean", [0, 1e2, 1e6])
def test_normalize(name, activation, mean):
    check_normalize(VIEWS[name], activation, "float32", mean)


@NAMES
@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_normalize_in_a_graph(name, mode):
    activation = room.ACTIVATIONS[len(name) % 3]
    check_normalize(VIEWS[name], activation, "float32", 1e2, mode)


@NAMES
@ACTIVATIONS
@pytest.mark.parametrize("dtype, mean", [("bfloat16", 3), ("float16", 10), ("float64", 1e4)])
def test_normalize_of_other_types(name, activation, dtype, mean):
    check_normalize(VIEWS[name], activation, dtype, mean)


@ACTIVATIONS
def test_normalize_without_the_mean(activation):
    check_normalize(VIEWS["layer"], activation, "float32", 0, subtract_mean=False)


@ACTIVATIONS
@pytest.mark.parametrize("parameters", [(None, None), ("gamma", None), (None, "beta")])
def test_normalize_without_gamma_or_beta(activation, parameters):
    view = VIEWS["group_first"]
    x, dy, *values = draw(view, "float32", 1e2)
    gamma, beta = (v if p else None for v, p in zip(values, parameters, strict=True))
    z, _, _ = view.forward(x, gamma, beta)
    dy = away_from_kinks(activation, z, dy)
    y, dx = run(lambda x: op(view, x, gamma, beta, activation=activation)[0], "eager", (x,), dy)
    support.close(y, activate(activation, z), atol=1e-5 * support.largest(gamma))
    want = view.backward(reference.float64(dy) * derivative(activation, z), x, gamma)
    support.close(dx, want.dx, atol=support.GRADIENT * np.abs(want.dx).max())


@NAMES
@ACTIVATIONS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bare", [False, True])
def test_scale_shift(name, activation, dtype, bare):
    check_scale_shift(name, activation, dtype, bare)


@pytest.mark.parametrize("name, activation", [("batch", "relu"), ("group_first", "gelu")])
def test_scale_shift_in_xla(name, activation):
    check_scale_shift(name, activation, "float32", False, "xla")


def check_scale_shift(name, activation, dtype, bare, mode="eager"):
    view, mean = VIEWS[name], 0 if bare else 1e4
    x, dy, *_ = draw(view, dtype, mean)
    center, scale, shift = (
        tf.cast(c + m, wide(dtype)) for c, m in zip(coefficients(view), (mean, 0, 0), strict=True)
    )
    n, _, c, _, _ = view.per_channel
    xv, dyv = (reference.float64(v).reshape(view.per_channel) for v in (x, dy))
    cv, sv, tv = (reference.float64(v).reshape(n, 1, c, 1, 1) for v in (center, scale, shift))
    cv, tv = (0 * cv, 0 * tv) if bare else (cv, tv)
    z = (xv - cv) * sv + tv
    dy = away_from_kinks(activation, z.reshape(view.shape), dy)
    dyv = reference.float64(dy).reshape(view.per_channel)

    def function(x, scale, *rest):
        center, shift = rest or (None, None)
        return scale_shift_op(view, x, center, scale, shift, activation=activation)

    inputs = (x, scale) if bare else (x, scale, center, shift)
    got = run(function, mode, inputs, dy)
    eps = support.EPS64 if dtype == "float64" else support.EPS32
    terms = eps * (np.abs((xv - cv) * sv).max() + np.abs(tv).max())
    support.close(got[0], activate(activation, z).reshape(view.shape), atol=4 * terms, what="y")
    dz = dyv * derivative(activation, z)
    dx = dz * sv
    bound = 64 * eps + terms
    support.close(got[1], dx.reshape(view.shape), atol=bound * np.abs(dyv * sv).max(), what="dx")
    sums = {"dscale": dz * (xv - cv), "dcenter": -dx, "dshift": dz}
    for (what, parts), result in zip(sums.items(), got[2:], strict=False):
        want = parts.sum((1, 3, 4)).reshape(result.shape)
        atol = (support.GRADIENT if eps == support.EPS32 else 1e-12) * np.abs(want).max()
        atol += 4 * bound * np.abs(parts).max()
        support.close(result, want, atol=atol, what=what)


@ACTIVATIONS
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_values_at_the_ends(activation, dtype):
    """NaN stays; silu and gelu end in their limits, 0 and infinity; no finite z is lost."""
    view = View((12, 1), 0, 1, 1, 1)
    z = [math.nan, math.inf, -math.inf, 6e4, -6e4, 40, -40, 13.5, -13.5, 0.0, -0.0, 1e-3]
    x = tf.reshape(tf.cast(z, dtype), (12, 1))
    one = tf.ones(1, wide(dtype))
    y, dx = run(
        lambda x: scale_shift_op(view, x, None, one, None, activation=activation),
        "eager",
        (x,),
        tf.ones_like(x),
    )
    y, dx = (reference.float64(v).ravel() for v in (y, dx))
    z = reference.float64(x).ravel()
    assert np.isnan(y[0])
    np.testing.assert_array_equal(y[1:5], [math.inf, 0, z[3], 0])
    np.testing.assert_array_equal(dx[1:5], [1, 0, 1, 0])
    tolerance = {"rtol": support.ROUNDING[dtype] * 1.01, "atol": 3e-7}
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(y[5:], activate(activation, z[5:]), **tolerance)
        np.testing.assert_allclose(dx[5:], derivative(activation, z[5:]), **tolerance)


@ACTIVATIONS
def test_error_of_the_activation_itself(activation):
    """float32: a few units in the last place of 1 or of z, for 2e5 values up to 15."""
    z = np.linspace(-15, 15, 200001, dtype="float32")[:, None]
    view = View(z.shape, 0, 1, 1, 1)
    one = tf.ones(1)
    y, dx = run(
        lambda x: scale_shift_op(view, x, None, one, None, activation=activation),
        "eager",
        (tf.constant(z),),
        tf.ones(z.shape),
    )
    z = z.astype(np.float64)
    size = np.maximum(1, np.abs(z))
    assert (np.abs(y - activate(activation, z)) / size).max() < 2e-7
    assert np.abs(dx - derivative(activation, z)).max() < 4e-7


# Gradients of both orders, beside central differences in float64; relu's kink is kept away from.
SMALL = {
    "rows": View((3, 5), 1, 0, 1, 1),
    "batch": View((5, 3), 0, 1, 1, 3),
    "first": View((2, 4, 3), 1, 0, 1, 2),
}


def small(view):
    x, dy, gamma, beta = draw(view, "float64", 3, 5)
    z, _, _ = view.forward(x, gamma, beta)
    assert np.abs(z).min() > 1e-3
    return x, gamma, beta, dy


@pytest.mark.parametrize(
    "name, activation",
    [*(("rows", a) for a in room.ACTIVATIONS), ("batch", "silu"), ("first", "gelu")],
)
def test_gradients_of_normalize(name, activation):
    view = SMALL[name]
    *inputs, dy = small(view)

    def function(*inputs):
        return op(view, *inputs, activation=activation)[0]

    check_gradient(function, inputs)
    check_second(function, dy, inputs)


@ACTIVATIONS
def test_gradients_of_scale_shift(activation):
    view = SMALL["batch"]
    x, _, _, dy = small(view)
    inputs = [x, *coefficients(view)]

    def function(*inputs):
        return scale_shift_op(view, *inputs, activation=activation)

    check_gradient(function, inputs)
    check_second(function, dy, inputs)


# The door that the layers come through.


def test_fused_names_the_activation():
    view = kn.geometry.geometry((3, 5, 6), -1, apart="samples", groups=2)
    x = tf.constant(np.random.default_rng(1).normal(2, 1, (3, 5, 6)), tf.float32)
    gamma, beta = tf.ones(6), tf.zeros(6)
    plain = room.normalize(x, view, gamma, beta, EPSILON, True)[0]
    for name, function in (("relu", tf.nn.relu), ("silu", tf.nn.silu), ("gelu", tf.nn.gelu)):
        got = room.normalize(x, view, gamma, beta, EPSILON, True, name)[0]
        support.close(got, function(plain), atol=1e-6)
        scale = tf.ones((3, 6))
        got = room.scale_shift(x, view, None, scale, None, activation=name)
        support.close(got, function(x), atol=1e-6)


def test_unknown_activation():
    with pytest.raises(tf.errors.InvalidArgumentError, match="tanh"):
        op(VIEWS["layer"], tf.ones((9, 7, 137)), activation="tanh")


def kept(activation):
    """Sizes of what the gradient takes from the forward pass."""
    view = VIEWS["group"]
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, view.shape)
        gamma, beta, dy = (tf.compat.v1.placeholder(tf.float32, s) for s in (22, 22, view.shape))
        y = op(view, x, gamma, beta, activation=activation)[0]
        forward = set(graph.get_operations()) - {dy.op}
        tf.gradients(y, [x, gamma, beta], dy)
        backward = [o for o in graph.get_operations() if o not in forward]
        names = {t.name: math.prod(t.shape) for o in backward for t in o.inputs if t.op in forward}
        return sorted(size for size in names.values() if size)


def test_nothing_but_x_parameters_and_statistics_is_kept():
    x, statistics = 3 * 5 * 7 * 22, 3 * 2
    assert kept("none") == [statistics, statistics, 22, x]
    assert kept("gelu") == [statistics, statistics, 22, 22, x]
