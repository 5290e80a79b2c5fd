"""The compiled ops themselves, called as they are: results, gradients of both orders, what they
keep, what they refuse, and when they run."""

import hashlib
import math
import re

import conftest
import keras
import numpy as np
import pytest
import reference
import support
import tensorflow as tf
from tensorflow.python.framework import kernels

import keras_norms as kn
from keras_norms import cuda, library
from keras_norms import fused as room

pytestmark = pytest.mark.usefixtures("fused")

# name: shape, sample_axes, before_axes, channel_axes, groups. Odd sizes, 1, no multiple of 8.
GEOMETRIES = {
    "nhwc": ((3, 5, 7, 22), 1, 2, 1, 2),
    "nchw": ((3, 22, 5, 7), 1, 0, 1, 2),
    "nhcw": ((3, 5, 6, 7), 1, 1, 1, 3),
    "narrow_groups": ((2, 13, 51), 1, 1, 1, 17),
    "instances": ((3, 5, 7, 11), 1, 2, 1, 11),
    "instances_first": ((3, 11, 5, 7), 1, 0, 1, 11),
    "batch": ((5, 7, 3, 11), 0, 3, 1, 11),
    "batch_first": ((13, 11, 7), 0, 1, 1, 11),
    "rows": ((5, 7, 37), 2, 0, 1, 1),
    "two_channel_axes": ((5, 3, 7, 2), 1, 0, 2, 7),
    "whole_samples": ((3, 5, 7, 11), 1, 0, 3, 1),
    "one_row": ((1023,), 0, 0, 1, 1),
    "one_element": ((1,), 0, 0, 1, 1),
    "one_element_a_group": ((5, 1, 6), 1, 1, 1, 6),
}
NAMES = pytest.mark.parametrize("name", GEOMETRIES)
DTYPES = pytest.mark.parametrize(
    "dtype, mean", [("float32", 1e2), ("float64", 1e4), ("bfloat16", 3), ("float16", 1e2)]
)
EPSILON = 1e-3


class View:
    """A geometry for the ops and, as the view [n, s, g, d, t], for the reference."""

    def __init__(self, shape, samples, before, channels, groups):
        self.shape, self.groups = shape, groups
        first, last = samples + before, samples + before + channels
        self.axes = {"sample_axes": samples, "before_axes": before, "channel_axes": channels}
        self.channels = shape[first:last]
        self.samples = shape[:samples]
        self.statistics = (*self.samples, groups)
        n, s, c, t = (
            math.prod(sizes)
            for sizes in (self.samples, shape[samples:first], self.channels, shape[last:])
        )
        self.view = (n, s, groups, c // groups, t)
        # Each channel is a group where the coefficients are given per sample and channel.
        self.per_channel = (n, s, c, 1, t)
        self.per_group = (n, 1, groups, 1, 1)

    def of(self, x):
        return reference.float64(x).reshape(self.view)

    def parameter(self, gamma):
        return None if gamma is None else np.reshape(gamma, self.view[2:4])

    def forward(self, x, gamma, beta, subtract_mean=True):
        gamma, beta = self.parameter(gamma), self.parameter(beta)
        want = reference.forward(self.of(x), gamma, beta, (1, 3, 4), (2, 3), EPSILON, subtract_mean)
        y, mean, variance = want
        return (y.reshape(self.shape), *(s.reshape(self.statistics) for s in (mean, variance)))

    def backward(self, dy, x, gamma, subtract_mean=True):
        want = reference.backward(
            self.of(dy),
            self.of(x),
            self.parameter(gamma),
            (1, 3, 4),
            (2, 3),
            EPSILON,
            subtract_mean,
        )
        return want._replace(
            dx=want.dx.reshape(self.shape),
            dgamma=want.dgamma.reshape(self.channels),
            dbeta=want.dbeta.reshape(self.channels),
        )


def view_of(name):
    return View(*GEOMETRIES[name])


def wide(dtype):
    return "float64" if dtype == "float64" else "float32"


def unit(dtype):
    return support.EPS64 if dtype == "float64" else support.EPS32


def draw(view, dtype, mean, seed=3):
    """x of deviation 1 around the mean, dy, gamma and beta."""
    generator = np.random.default_rng(seed)
    x = tf.cast(generator.normal(mean, 1, view.shape), dtype)
    dy = tf.cast(generator.normal(size=view.shape), dtype)
    gamma, beta = tf.cast(generator.normal(size=(2, *view.channels)), wide(dtype))
    return x, dy, gamma, beta


def halves(epsilon):
    """A double as the two floats that the ops take."""
    high = float(np.float32(epsilon))
    return {"epsilon": high, "epsilon_low": epsilon - high}


def normalize(view, x, gamma=None, beta=None, subtract_mean=True, **changes):
    empty = tf.zeros(0, wide(x.dtype.name))
    attributes = {
        **view.axes,
        "groups": view.groups,
        **halves(EPSILON),
        "subtract_mean": subtract_mean,
        "has_gamma": gamma is not None,
        "has_beta": beta is not None,
        **changes,
    }
    gamma, beta = (empty if p is None else p for p in (gamma, beta))
    return room._ops.keras_norms_normalize(x=x, gamma=gamma, beta=beta, **attributes)


def normalize_grad(view, dy, x, gamma, mean, variance, subtract_mean=True, beta=None, **changes):
    attributes = {
        **view.axes,
        "groups": view.groups,
        **halves(EPSILON),
        "subtract_mean": subtract_mean,
        "has_gamma": gamma is not None,
        **changes,
    }
    empty = tf.zeros(0, mean.dtype)
    gamma, beta = (empty if p is None else p for p in (gamma, beta))
    return room._ops.keras_norms_normalize_grad(
        dy=dy, x=x, gamma=gamma, beta=beta, mean=mean, variance=variance, **attributes
    )


def moments(view, x, subtract_mean=True, **changes):
    attributes = {**view.axes, "groups": view.groups, "U": wide(x.dtype.name), **changes}
    return room._ops.keras_norms_moments(x=x, subtract_mean=subtract_mean, **attributes)


def moments_grad(view, x, mean, residual, dmean, dvariance, **changes):
    return room._ops.keras_norms_moments_grad(
        x=x,
        mean=mean,
        residual=residual,
        dmean=dmean,
        dvariance=dvariance,
        **{**view.axes, "groups": view.groups, **changes},
    )


def scale_shift(view, x, center, scale, shift, **changes):
    empty = tf.zeros(0, wide(x.dtype.name))
    attributes = {
        **view.axes,
        "has_center": center is not None,
        "has_shift": shift is not None,
        **changes,
    }
    center, shift = (empty if c is None else c for c in (center, shift))
    return room._ops.keras_norms_scale_shift(
        x=x, center=center, scale=scale, shift=shift, **attributes
    )


def scale_shift_grad(view, dy, x, center, scale, shift=None, **changes):
    attributes = {**view.axes, "has_center": center is not None, **changes}
    empty = tf.zeros(0, scale.dtype)
    center, shift = (empty if c is None else c for c in (center, shift))
    return room._ops.keras_norms_scale_shift_grad(
        dy=dy, x=x, center=center, scale=scale, shift=shift, **attributes
    )


# Results ---------------------------------------------------------------------------------------


def check_normalize(view, x, gamma, beta, got, subtract_mean=True, what=""):
    """y, mean and variance beside the reference, within the promised bounds."""
    dtype = x.dtype.name
    y, mean, variance = view.forward(x, gamma, beta, subtract_mean)
    size = np.abs(reference.float64(x)).max(initial=0)
    # float64: the bound of a sum, in units of x. float32: the promise.
    bound = 32 * support.EPS64 * (1 + size) if dtype == "float64" else support.FORWARD["fused"]
    size_y = 1.0 if subtract_mean else np.abs(y).max(initial=0)  # without a mean, y is of any size
    atol = bound * support.largest(gamma) * max(size_y, 1)
    support.close(got[0], y, atol=atol, rtol=support.ROUNDING[dtype], what=f"y {what}")
    # The mean is rounded to its type; the variance's error counts half in y.
    support.close(got[1], mean, atol=bound, rtol=unit(dtype), what=f"mean {what}")
    support.close(got[2], variance, atol=bound, rtol=bound, what=f"variance {what}")
    assert (got[1].dtype, got[2].dtype) == (wide(dtype), wide(dtype))


def check_normalize_grad(view, dy, x, gamma, got, subtract_mean=True, what=""):
    """dx, dgamma and dbeta beside the reference, within the promised bounds."""
    dtype = x.dtype.name
    want = view.backward(dy, x, gamma, subtract_mean)
    size = np.abs(reference.float64(x)).max(initial=0)
    bound = 32 * support.EPS64 * (1 + size) if dtype == "float64" else support.GRADIENT
    eps, rtol = unit(dtype), support.ROUNDING[dtype]
    # Where terms cancel, a few units in the last place of the terms stay.
    atol = bound * np.abs(want.dx).max(initial=0) + 8 * eps * want.scale
    support.close(got[0], want.dx, atol=atol, rtol=rtol, what=f"dx {what}")
    terms = 8 * eps * np.abs(reference.float64(dy)).max(initial=0)
    for name, value, result in zip(("dgamma", "dbeta"), want[1:3], got[1:], strict=True):
        if result.shape != (0,):
            atol = bound * np.abs(value).max(initial=0) + terms
            support.close(result, value, atol=atol, what=f"{name} {what}")


@NAMES
@DTYPES
def test_normalize_matches_reference(name, dtype, mean):
    view = view_of(name)
    x, _, gamma, beta = draw(view, dtype, mean)
    check_normalize(view, x, gamma, beta, normalize(view, x, gamma, beta))
    got = normalize(view, x, gamma, subtract_mean=False)
    check_normalize(view, x, gamma, None, got, subtract_mean=False, what="without the mean")


@pytest.mark.parametrize("has_gamma", [False, True])
@pytest.mark.parametrize("has_beta", [False, True])
@pytest.mark.parametrize("name", ["nhwc", "nchw", "nhcw", "rows"])
def test_normalize_without_gamma_or_beta(name, has_gamma, has_beta):
    view = view_of(name)
    x, dy, gamma, beta = draw(view, "float32", 1e4)
    gamma, beta = gamma if has_gamma else None, beta if has_beta else None
    got = normalize(view, x, gamma, beta)
    check_normalize(view, x, gamma, beta, got)
    got = normalize_grad(view, dy, x, gamma, *got[1:], has_beta=has_beta)
    assert [g.shape for g in got[1:]] == [
        view.channels if p else (0,) for p in (has_gamma, has_beta)
    ]
    check_normalize_grad(view, dy, x, gamma, got)


@NAMES
@DTYPES
@pytest.mark.parametrize("subtract_mean", [True, False])
def test_normalize_grad_matches_reference(name, dtype, mean, subtract_mean):
    view = view_of(name)
    x, dy, gamma, _ = draw(view, dtype, mean if subtract_mean else 0)
    _, *statistics = normalize(view, x, gamma, subtract_mean=subtract_mean)
    got = normalize_grad(view, dy, x, gamma, *statistics, subtract_mean)
    check_normalize_grad(view, dy, x, gamma, got, subtract_mean)


@NAMES
@DTYPES
@pytest.mark.parametrize("subtract_mean", [True, False])
def test_moments_match_reference(name, dtype, mean, subtract_mean):
    view = view_of(name)
    x, *_ = draw(view, dtype, mean)
    got = moments(view, x, subtract_mean)
    _, mean, variance = view.forward(x, None, None, subtract_mean)
    size = np.abs(reference.float64(x)).max()
    bound = 32 * support.EPS64 * (1 + size) if dtype == "float64" else support.FORWARD["fused"]
    support.close(got[0], mean, atol=bound, rtol=unit(dtype), what="mean")
    # With what rounding lost the mean is exact in units of the deviation, wherever it lies.
    support.close(sum(map(reference.float64, got[:2])), mean, atol=bound, what="mean + residual")
    support.close(got[2], variance, atol=bound, rtol=bound, what="variance")


@NAMES
@DTYPES
def test_moments_grad_matches_reference(name, dtype, mean):
    view = view_of(name)
    x, *_ = draw(view, dtype, mean)
    upstream = np.random.default_rng(5).normal(size=(2, *view.statistics))
    dmean, dvariance = tf.cast(upstream, wide(dtype))
    mean, residual, _ = moments(view, x)
    got = moments_grad(view, x, mean, residual, dmean, dvariance)
    x = view.of(x)
    centred = x - x.mean((1, 3, 4), keepdims=True)
    dmean, dvariance = (reference.float64(d).reshape(view.per_group) for d in (dmean, dvariance))
    want = (dmean + 2 * dvariance * centred) / np.prod([view.view[i] for i in (1, 3, 4)])
    bound = 32 * support.EPS64 * (1 + np.abs(x).max()) if dtype == "float64" else support.GRADIENT
    atol = bound * np.abs(want).max()
    want = want.reshape(view.shape)
    # What leaves float16's normal range is rounded to multiples of its smallest number, 2**-24.
    atol += 2.0**-25 if dtype == "float16" else 0
    support.close(got, want, atol=atol, rtol=support.ROUNDING[dtype])


@NAMES
@DTYPES
@pytest.mark.parametrize("bare", [False, True])
def test_scale_shift_and_its_gradient_match_reference(name, dtype, mean, bare):
    view = view_of(name)
    x, dy, *_ = draw(view, dtype, mean)
    shape = (*view.samples, *view.channels)
    generator = np.random.default_rng(5)
    center = generator.normal(mean, 1, shape)
    scale, shift = generator.normal(size=(2, *shape))
    center, scale, shift = (tf.cast(c, wide(dtype)) for c in (center, scale, shift))
    if bare:
        center = shift = None
    got = scale_shift(view, x, center, scale, shift)
    gradients = scale_shift_grad(view, dy, x, center, scale)

    n, _, c, _, _ = view.per_channel
    x, dy = (reference.float64(v).reshape(view.per_channel) for v in (x, dy))
    center, scale, shift = (
        np.zeros((n, 1, c, 1, 1)) if v is None else reference.float64(v).reshape(n, 1, c, 1, 1)
        for v in (center, scale, shift)
    )
    scaled = (x - center) * scale
    want = (scaled + shift).reshape(view.shape)
    eps, rtol = unit(dtype), support.ROUNDING[dtype]
    # Three roundings, each of half a unit in the last place of a number of this size.
    atol = 1.5 * eps * (np.abs(scaled).max() + np.abs(shift).max())
    support.close(got, want, atol=atol, rtol=rtol, what="y")
    # One rounding.
    dx = (dy * scale).reshape(view.shape)
    support.close(gradients[0], dx, atol=eps * np.abs(dx).max(), rtol=rtol, what="dx")
    centred = x - center
    for name, terms, result in (
        ("dscale", dy * centred, gradients[1]),
        ("dshift", dy, gradients[2]),
    ):
        want = terms.sum((1, 3, 4)).reshape(shape)
        # The promise, and what terms that cancel leave.
        bound = support.GRADIENT if eps == support.EPS32 else 64 * eps
        atol = bound * np.abs(want).max() + 8 * eps * np.abs(terms).max()
        support.close(result, want, atol=atol, what=name)


@pytest.mark.parametrize("shape", [(0, 5, 7, 6), (2, 0, 7, 6), (2, 5, 7, 0), (2, 2**40, 0, 6)])
def test_without_elements(shape):
    """No elements: means and variances are 0, sums are 0, and 2^40 rows of nothing take no time."""
    view = View((*shape[:3], 2), 1, 2, 1, 2) if shape[3] == 0 else View(shape, 1, 2, 1, 2)
    view.shape, view.channels = shape, shape[3:]
    x, gamma = tf.zeros(shape), tf.ones(view.channels)
    y, *statistics = normalize(view, x, gamma, gamma)
    assert y.shape == shape
    got = [*statistics, *moments(view, x)]
    for statistic in got:
        np.testing.assert_array_equal(statistic, np.zeros(view.statistics))
    dx, dgamma, dbeta = normalize_grad(view, x, x, gamma, *statistics)
    assert dx.shape == shape
    for sums in (dgamma, dbeta):
        np.testing.assert_array_equal(sums, np.zeros(view.channels))
    assert moments_grad(view, x, *got[:2], *statistics).shape == shape
    coefficient = tf.ones((*view.samples, *view.channels))
    assert scale_shift(view, x, coefficient, coefficient, coefficient).shape == shape
    dx, dscale, dshift = scale_shift_grad(view, x, x, coefficient, coefficient)
    assert dx.shape == shape
    for sums in (dscale, dshift):
        np.testing.assert_array_equal(sums, np.zeros(coefficient.shape))


@pytest.mark.parametrize("epsilon", [0.0, 1e-40, 1e-3, 0.1 + 1e-12, 1e30])
def test_epsilon_is_a_double(epsilon, rng):
    """The two attributes together hold it to twice float32's precision, which float64 data sees."""
    view = View((3, 17), 1, 0, 1, 1)
    x = tf.constant(rng.normal(size=view.shape))
    got, _, variance = normalize(view, x, **halves(epsilon))
    x = x.numpy()
    want = (x - x.mean(1, keepdims=True)) / np.sqrt(variance.numpy() + epsilon)
    # Two floats hold 48 bits; half of the error counts.
    support.close(got, want, atol=32 * support.EPS64, rtol=2.0**-49)


# Refusals --------------------------------------------------------------------------------------

NHWC = View((2, 3, 5, 4), 1, 2, 1, 2)
X, GAMMA, STATISTICS = tf.zeros(NHWC.shape), tf.zeros(4), tf.zeros((2, 2))
COEFFICIENTS = tf.zeros((2, 4))
RANK = (
    "`sample_axes`, `before_axes` and `channel_axes` must not add up to more than the rank of "
    "`x`. Received: sample_axes={}, before_axes={}, channel_axes={}, x.shape=({})"
)


def shape_rule(name, want, got):
    return (
        f"`{name}` must have shape ({want}) for this `x` and these attributes. "
        f"Received: {name}.shape=({got})"
    )


def epsilon_rule(value):
    return f"`epsilon` must be finite and at least 0. Received: epsilon={value}"


# op, its tensors, its attributes, the message of the op and, where the shape function leaves that
# to TensorFlow, a part of the message in a graph.
RANKS = "must be equal rank"
DIMENSION = "Dimension {} in both shapes must be equal"
WRONG = {
    "groups": (
        normalize,
        (X, GAMMA, GAMMA),
        {"groups": 3},
        "`groups` must divide the number of channels. Received: groups=3, channels=4, "
        "x.shape=(2, 3, 5, 4)",
        None,
    ),
    "groups_more_than_channels": (
        moments,
        (X,),
        {"groups": 8},
        "`groups` must divide the number of channels. Received: groups=8, channels=4, "
        "x.shape=(2, 3, 5, 4)",
        None,
    ),
    "groups_beyond_int64": (
        normalize,
        (X,),
        {"groups": 2**62},
        f"`groups` must divide the number of channels. Received: groups={2**62}, channels=4, "
        "x.shape=(2, 3, 5, 4)",
        None,
    ),
    "axes_overflow": (
        normalize,
        (X,),
        {"sample_axes": 2**62, "before_axes": 2**62, "channel_axes": 2**62},
        RANK.format(2**62, 2**62, 2**62, "2, 3, 5, 4"),
        None,
    ),
    "axes": (
        scale_shift,
        (X, None, COEFFICIENTS, None),
        {"before_axes": 3},
        RANK.format(1, 3, 1, "2, 3, 5, 4"),
        None,
    ),
    "rank_0": (moments, (tf.zeros(()),), {}, RANK.format(1, 2, 1, ""), None),
    "rank_0_gradient": (
        scale_shift_grad,
        (tf.zeros(()), tf.zeros(()), COEFFICIENTS, COEFFICIENTS),
        {},
        RANK.format(1, 2, 1, ""),
        None,
    ),
    "epsilon_negative": (normalize, (X,), {"epsilon": -1.0}, epsilon_rule(-1), None),
    "epsilon_nan": (normalize, (X,), {"epsilon": math.nan}, epsilon_rule("nan"), None),
    "epsilon_infinite": (normalize, (X,), {"epsilon": math.inf}, epsilon_rule("inf"), None),
    "epsilon_low_nan": (normalize, (X,), {"epsilon_low": math.nan}, epsilon_rule("nan"), None),
    "epsilon_of_gradient": (
        normalize_grad,
        (X, X, GAMMA, STATISTICS, STATISTICS),
        {"epsilon": -math.inf},
        epsilon_rule("-inf"),
        None,
    ),
    "gamma": (
        normalize,
        (X, tf.zeros(3)),
        {},
        shape_rule("gamma", 4, 3),
        DIMENSION.format(0),
    ),
    "gamma_rank": (
        normalize,
        (X, tf.zeros((4, 1))),
        {},
        shape_rule("gamma", 4, "4, 1"),
        RANKS,
    ),
    "gamma_scalar": (normalize, (X, tf.zeros(())), {}, shape_rule("gamma", 4, ""), RANKS),
    "gamma_missing": (
        normalize,
        (X,),
        {"has_gamma": True},
        shape_rule("gamma", 4, 0),
        DIMENSION.format(0),
    ),
    "gamma_unwanted": (
        normalize,
        (X, GAMMA),
        {"has_gamma": False},
        shape_rule("gamma", 0, 4),
        DIMENSION.format(0),
    ),
    "beta": (normalize, (X, None, tf.zeros(5)), {}, shape_rule("beta", 4, 5), DIMENSION.format(0)),
    "dy": (
        normalize_grad,
        (tf.zeros((2, 3, 4, 5)), X, GAMMA, STATISTICS, STATISTICS),
        {},
        shape_rule("dy", "2, 3, 5, 4", "2, 3, 4, 5"),
        DIMENSION.format(2),
    ),
    "gamma_of_gradient": (
        normalize_grad,
        (X, X, tf.zeros(2), STATISTICS, STATISTICS),
        {},
        shape_rule("gamma", 4, 2),
        DIMENSION.format(0),
    ),
    "mean_of_gradient": (
        normalize_grad,
        (X, X, GAMMA, tf.zeros((2, 4)), STATISTICS),
        {},
        shape_rule("mean", "2, 2", "2, 4"),
        DIMENSION.format(1),
    ),
    "variance_of_gradient": (
        normalize_grad,
        (X, X, GAMMA, STATISTICS, tf.zeros(2)),
        {},
        shape_rule("variance", "2, 2", 2),
        RANKS,
    ),
    "beta_of_gradient": (
        normalize_grad,
        (X, X, GAMMA, STATISTICS, STATISTICS),
        {"beta": tf.zeros(3), "activation": "relu"},
        shape_rule("beta", 4, 3),
        DIMENSION.format(0),
    ),
    "mean_of_moments": (
        moments_grad,
        (X, tf.zeros((1, 2)), *[STATISTICS] * 3),
        {},
        shape_rule("mean", "2, 2", "1, 2"),
        DIMENSION.format(0),
    ),
    "residual": (
        moments_grad,
        (X, STATISTICS, tf.zeros(0), *[STATISTICS] * 2),
        {},
        shape_rule("residual", "2, 2", 0),
        RANKS,
    ),
    "dmean": (
        moments_grad,
        (X, *[STATISTICS] * 2, tf.zeros((2, 1)), STATISTICS),
        {},
        shape_rule("dmean", "2, 2", "2, 1"),
        DIMENSION.format(1),
    ),
    "dvariance": (
        moments_grad,
        (X, *[STATISTICS] * 3, tf.zeros((2, 2, 1))),
        {},
        shape_rule("dvariance", "2, 2", "2, 2, 1"),
        RANKS,
    ),
    "center": (
        scale_shift,
        (X, tf.zeros((2, 5)), COEFFICIENTS, COEFFICIENTS),
        {},
        shape_rule("center", "2, 4", "2, 5"),
        DIMENSION.format(1),
    ),
    "scale": (
        scale_shift,
        (X, None, GAMMA, None),
        {},
        shape_rule("scale", "2, 4", 4),
        RANKS,
    ),
    "shift": (
        scale_shift,
        (X, COEFFICIENTS, COEFFICIENTS, tf.zeros((3, 4))),
        {},
        shape_rule("shift", "2, 4", "3, 4"),
        DIMENSION.format(0),
    ),
    "dy_of_scale_shift": (
        scale_shift_grad,
        (tf.zeros((2, 3, 5, 5)), X, COEFFICIENTS, COEFFICIENTS),
        {},
        shape_rule("dy", "2, 3, 5, 4", "2, 3, 5, 5"),
        DIMENSION.format(3),
    ),
    "center_of_gradient": (
        scale_shift_grad,
        (X, X, tf.zeros(4), COEFFICIENTS),
        {},
        shape_rule("center", "2, 4", 4),
        RANKS,
    ),
    "scale_of_gradient": (
        scale_shift_grad,
        (X, X, COEFFICIENTS, tf.zeros((0, 4))),
        {},
        shape_rule("scale", "2, 4", "0, 4"),
        DIMENSION.format(0),
    ),
    "shift_of_gradient": (
        scale_shift_grad,
        (X, X, COEFFICIENTS, COEFFICIENTS),
        {"shift": GAMMA, "activation": "gelu"},
        shape_rule("shift", "2, 4", 4),
        RANKS,
    ),
}


def call(op, tensors, attributes, how):
    """The op: eager, in a graph of known shapes, or of unknown ones."""
    if how == "eager":
        return op(NHWC, *tensors, **attributes)
    there = [t for t in tensors if t is not None]

    def run(*given):
        given = iter(given)
        return op(NHWC, *(None if t is None else next(given) for t in tensors), **attributes)

    signature = [tf.TensorSpec(t.shape if how == "graph" else None, t.dtype) for t in there]
    run = tf.function(run, input_signature=signature, jit_compile=how == "xla", autograph=False)
    return run(*there)


@pytest.mark.parametrize("how", ["eager", "graph", "unknown_shapes", "xla"])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_call(name, how):
    op, tensors, attributes, message, in_graph = WRONG[name]
    if how == "graph":
        with pytest.raises(ValueError, match=re.escape(in_graph or message)):
            call(op, tensors, attributes, how)
    elif how == "unknown_shapes" and "epsilon" in name:  # needs no shape to be found
        with pytest.raises(ValueError, match=re.escape(message)):
            call(op, tensors, attributes, how)
    else:
        expected = (
            (tf.errors.InvalidArgumentError, ValueError)
            if how == "xla"
            else (tf.errors.InvalidArgumentError)
        )
        with pytest.raises(expected, match=re.escape(message)):
            call(op, tensors, attributes, how)


@pytest.mark.parametrize(
    "attribute, value, least",
    [
        ("groups", 0, 1),
        ("groups", -1, 1),
        ("sample_axes", -1, 0),
        ("before_axes", -(2**63), 0),
        ("channel_axes", 0, 1),
    ],
)
def test_attribute_below_its_least_value(attribute, value, least):
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=f"'{attribute}' of {value} must be at least minimum {least}",
    ):
        call(normalize, (X,), {attribute: value}, "eager")
    with pytest.raises(ValueError, match=f"'{attribute}' .* passed {value} less than"):
        call(normalize, (X,), {attribute: value}, "graph")


def test_more_means_than_memory():
    """2^62 samples of no elements ask for more means than fit an address."""
    x = tf.zeros((2**62, 0, 5, 4))
    message = re.escape(
        f"`x` must have fewer than 2^56 elements and means. Received: x.shape=({2**62}, 0, 5, 4), "
        "groups=2"
    )
    for op in (normalize, moments):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            op(NHWC, x)


@pytest.mark.parametrize("x, u", [("float64", "float32"), ("float32", "float64")])
@pytest.mark.parametrize("how", ["eager", "graph", "xla"])
def test_types_that_do_not_fit_are_refused(x, u, how):
    """Under XLA, which chooses no kernel by type, the op would read and write the wrong sizes."""
    error, message = tf.errors.NotFoundError, "Could not find device for node: .*U=DT_"
    if how != "eager":
        error, names = ValueError, {"float32": "float", "float64": "double"}
        message = re.escape(
            "Parameters and statistics must be float64 when `x` is, and float32 otherwise. "
            f"Received: {names[x]} and {names[u]}"
        )
    x = tf.cast(X, x)
    gamma, statistics, scale = (tf.cast(t, u) for t in (GAMMA, STATISTICS, COEFFICIENTS))
    for op, tensors, changes in (
        (normalize, (x, gamma, gamma), {}),
        (normalize_grad, (x, x, gamma, statistics, statistics), {}),
        (moments, (x,), {"U": u}),
        (moments_grad, (x, *[statistics] * 4), {}),
        (scale_shift, (x, scale, scale, scale), {}),
        (scale_shift_grad, (x, x, scale, scale), {}),
    ):
        with pytest.raises(error, match=message):
            call(op, tensors, changes, how)


def test_integers_are_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="'T' of int32 is not in the list"):
        call(moments, (tf.cast(X, "int32"),), {"U": "float32"}, "eager")


def test_shapes_are_inferred_as_far_as_they_are_known():
    view = NHWC

    @tf.function(
        input_signature=[tf.TensorSpec((None, None, 5, 4)), tf.TensorSpec(None)], autograph=False
    )
    def run(x, gamma):
        y, mean, variance = normalize(view, x, gamma)
        assert y.shape.as_list() == [None, None, 5, 4]
        assert mean.shape.as_list() == variance.shape.as_list() == [None, 2]
        dx, dgamma, dbeta = normalize_grad(view, y, x, gamma, mean, variance, has_beta=False)
        assert dx.shape.as_list() == [None, None, 5, 4]
        assert (dgamma.shape.as_list(), dbeta.shape.as_list()) == ([4], [0])
        assert all(m.shape.as_list() == [None, 2] for m in moments(view, x))
        assert moments_grad(view, x, mean, mean, mean, mean).shape.as_list() == [None, None, 5, 4]
        scale = tf.zeros((tf.shape(x)[0], 4))
        assert scale_shift(view, x, None, scale, None).shape.as_list() == [None, None, 5, 4]
        _, dscale, dshift = scale_shift_grad(view, x, x, None, scale)
        assert dscale.shape.as_list() == dshift.shape.as_list() == [None, 4]
        return y

    x, _, gamma, _ = draw(view, "float32", 0)
    check_normalize(view, x, gamma, None, (run(x, gamma), *normalize(view, x, gamma)[1:]))


# Gradients -------------------------------------------------------------------------------------

# Small: finite differences take a run for each element. Every part of the view is above 1 once.
SMALL = {
    "middle": View((2, 3, 4, 2), 1, 1, 1, 2),
    "last": View((2, 5, 3), 1, 1, 1, 3),
    "first": View((2, 6, 3), 1, 0, 1, 2),
    "rows": View((3, 7), 1, 0, 1, 1),
    "batch": View((5, 3), 0, 1, 1, 3),
}
SMALL_NAMES = pytest.mark.parametrize("name", SMALL)


def check_gradient(function, inputs):
    """Gradients beside central differences, each element.

    Their error: delta^2 = 1e-10 times a third derivative of about 100 (rstd is about 1), and
    rounding, 1e-16 * |f| / delta = 1e-10.
    """
    got, want = tf.test.compute_gradient(function, inputs, delta=1e-5)
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        assert np.abs(w).max() > 1e-3  # there is something to compare
        np.testing.assert_allclose(
            g, w, rtol=0, atol=3e-8 * max(1, np.abs(w).max()), err_msg=f"{i}"
        )


def small(view, seed=5):
    """x, gamma, beta, dy in float64."""
    x, dy, gamma, beta = draw(view, "float64", 3, seed)
    return x, gamma, beta, dy


@SMALL_NAMES
@pytest.mark.parametrize("subtract_mean", [True, False])
def test_gradient_of_normalize(name, subtract_mean):
    view = SMALL[name]
    x, gamma, beta, _ = small(view)
    check_gradient(lambda *inputs: normalize(view, *inputs, subtract_mean)[0], [x, gamma, beta])


@SMALL_NAMES
def test_gradient_of_moments(name):
    view = SMALL[name]
    x, *_ = small(view)
    for i in (0, 2):
        check_gradient(lambda x, i=i: moments(view, x)[i], [x])
    check_gradient(lambda x: moments(view, x, subtract_mean=False)[2], [x])
    with tf.GradientTape() as tape:
        tape.watch(x)
        mean = moments(view, x, subtract_mean=False)[0]
    np.testing.assert_array_equal(tape.gradient(mean, x), tf.zeros_like(x))  # the constant 0


def coefficients(view, seed=9):
    shape = (3, *view.samples, *view.channels)
    return list(tf.unstack(tf.constant(np.random.default_rng(seed).normal(size=shape))))


@SMALL_NAMES
def test_gradient_of_scale_shift(name):
    view = SMALL[name]
    x, *_ = small(view)
    check_gradient(lambda *inputs: scale_shift(view, *inputs), [x, *coefficients(view)])
    scale = coefficients(view)[1]
    check_gradient(lambda x, scale: scale_shift(view, x, None, scale, None), [x, scale])


def derivative(function, weights):
    """The gradient of `sum(function(*inputs) * weights)` as a function of weights and inputs."""

    def gradient(weights, *inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = function(*inputs)
        return tape.gradient(y, inputs, weights)

    return gradient


def check_second(function, weights, inputs):
    gradient = derivative(function, weights)
    count = len(inputs)
    for i in range(count):  # of each first gradient, by the weights and by all inputs
        got, want = tf.test.compute_gradient(
            lambda *a, i=i: gradient(*a)[i], [weights, *inputs], delta=1e-5
        )
        assert max(np.abs(w).max() for w in want) > 1e-2
        for j, (g, w) in enumerate(zip(got, want, strict=True)):
            # As in check_gradient, one derivative further.
            atol = 3e-7 * max(1, np.abs(w).max())
            np.testing.assert_allclose(g, w, rtol=0, atol=atol, err_msg=f"gradient {i} by {j}")


@pytest.mark.parametrize("name, subtract_mean", [*((n, True) for n in SMALL), ("middle", False)])
def test_second_gradient_of_normalize(name, subtract_mean):
    view = SMALL[name]
    x, gamma, beta, dy = small(view)

    def function(x, gamma):
        return normalize(view, x, gamma, beta, subtract_mean)[0]

    check_second(function, dy, [x, gamma])


@SMALL_NAMES
def test_second_gradient_of_moments(name):
    view = SMALL[name]
    x, *_ = small(view)
    weights = tf.constant(np.random.default_rng(1).normal(size=(2, *view.statistics)))
    check_second(lambda x: tf.stack(moments(view, x)[::2]), weights, [x])


@pytest.mark.parametrize("name", ["middle", "rows", "batch"])
def test_second_gradient_of_scale_shift(name):
    view = SMALL[name]
    x, _, _, dy = small(view)
    center, scale, shift = coefficients(view)
    check_second(lambda x, c, s: scale_shift(view, x, c, s, shift), dy, [x, center, scale])


def test_statistics_of_normalize_are_not_differentiated():
    view = SMALL["middle"]
    x, gamma, *_ = small(view)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        _, mean, variance = kn.normalize.normalize(
            x,
            kn.geometry.geometry(x.shape, 2, apart="samples", groups=2),
            gamma=gamma,
            epsilon=1e-3,
        )
    assert tape.gradient(mean, x) is None
    assert tape.gradient(variance, x) is None


LAYERS = {
    "GroupNormalization": (lambda **k: kn.GroupNormalization(2, **k), (3, 5, 3, 6)),
    "GroupNormalization_first": (lambda **k: kn.GroupNormalization(3, axis=1, **k), (3, 6, 5, 3)),
    "InstanceNormalization": (kn.InstanceNormalization, (3, 5, 3, 6)),
    "LayerNormalization": (kn.LayerNormalization, (3, 5, 11)),
    "LayerNormalization_two_axes": (lambda **k: kn.LayerNormalization([1, -1], **k), (3, 5, 2, 3)),
    "RMSNormalization": (kn.RMSNormalization, (3, 5, 11)),
    "BatchNormalization": (kn.BatchNormalization, (3, 5, 3, 6)),
}


def penalties(layer, x, weight, kernel, mode):
    """WGAN-GP's penalty and its gradients by the input and the layer's weights."""

    def penalty(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=False) if isinstance(layer, kn.BatchNormalization) else layer(x)
            score = tf.reduce_sum(tf.tanh(y) * weight)
        slope = tf.reshape(tape.gradient(score, x), (x.shape[0], -1))
        return tf.reduce_mean(tf.square(tf.norm(slope, axis=1) - 1))

    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = penalty(x)
        variables = [v.value for v in layer.trainable_variables]
        return value, *tape.gradient(value, [x, *variables])

    kn.set_kernel(kernel)
    return support.compiled(both, mode)(x)


@pytest.mark.parametrize(
    "name, mode",
    [
        *((name, "eager") for name in LAYERS),
        ("GroupNormalization", "xla"),
        ("RMSNormalization", "xla"),
    ],
)
def test_penalty_on_gradients_is_the_portable_one(name, mode, rng):
    make, shape = LAYERS[name]
    layer = support.built(make(epsilon=1e-2, dtype="float64"), shape)
    if isinstance(layer, kn.BatchNormalization):
        layer.moving_mean.assign(rng.normal(size=6))
        layer.moving_variance.assign(rng.uniform(0.5, 2, size=6))
    x = tf.constant(rng.normal(2, 1, shape))
    weight = tf.constant(rng.normal(size=shape))
    got, want = (penalties(layer, x, weight, kernel, mode) for kernel in ("fused", "portable"))
    for g, w in zip(got, want, strict=True):
        largest = np.abs(w).max()
        assert largest > 0.01
        # Sums of some ten float64 terms, 1 / epsilon**2 = 1e4 apart at most. Batch normalization
        # keeps its statistics, and XLA its functions, in float32.
        exact = not isinstance(layer, kn.BatchNormalization)
        support.close(g, w, atol=(1e-11 if exact else 1e-5) * largest)


# What is kept for the way back -----------------------------------------------------------------


def saved(function, shapes):
    """Bytes of each tensor that the gradients take from the forward pass, and their ops' types."""
    with tf.Graph().as_default() as graph:
        inputs = [tf.compat.v1.placeholder(tf.float32, shape) for shape in shapes]
        y = function(*inputs)
        dy = tf.compat.v1.placeholder(tf.float32, y.shape)
        forward = set(graph.get_operations()) - {dy.op}
        tf.gradients(y, inputs, dy)
        backward = [op for op in graph.get_operations() if op not in forward]
        kept = {t.name: t for op in backward for t in op.inputs if t.op in forward}
        # Not those that tell a shape only.
        return {
            name: t.dtype.size * math.prod(t.shape)
            for name, t in kept.items()
            if math.prod(t.shape) > 0
        }


@pytest.mark.parametrize(
    "name, function, channels, statistics",
    [
        ("group", lambda x, g, b: kn.ops.group_norm(x, 2, g, b), (22,), (3, 2)),
        ("instance", lambda x, g, b: kn.ops.instance_norm(x, g, b), (22,), (3, 22)),
        ("layer", lambda x, g, b: kn.ops.layer_norm(x, g, b), (22,), (3, 5, 7)),
        ("batch", lambda x, g, b: kn.ops.batch_norm(x, g, b).y, (22,), (22,)),
        ("rms", lambda x, g: kn.ops.rms_norm(x, g), (22,), (3, 5, 7)),
    ],
)
def test_only_x_gamma_and_statistics_are_kept(name, function, channels, statistics):
    shape = (3, 5, 7, 22)
    count = 2 if name == "rms" else 3
    got = saved(function, (shape, channels, channels)[:count])
    want = [shape, channels, statistics, statistics]
    assert sorted(got.values()) == sorted(4 * math.prod(sizes) for sizes in want), got
    kn.set_kernel("portable")
    assert sum(saved(function, (shape, channels, channels)[:count]).values()) > sum(got.values())


def test_frozen_batch_norm_keeps_x_and_two_vectors():
    shape = (3, 5, 7, 22)

    def function(x, center, scale, shift):
        view = kn.geometry.geometry(shape, -1, apart="nothing", groups=-1)
        return kn.normalize.scale_shift(x, view, center=center, scale=scale, shift=shift)

    got = saved(function, [shape, (22,), (22,), (22,)])
    assert sorted(got.values()) == [4 * 22, 4 * 22, 4 * math.prod(shape)], got


# When it runs ----------------------------------------------------------------------------------


def ops_of(function, *inputs):
    """Types of the ops of ours in the function's graph."""
    graph = tf.function(function, autograph=False).get_concrete_function(*inputs).graph
    return [op.type for op in graph.get_operations() if op.type.startswith("KerasNorms>")]


def test_kernel_decides_which_path_runs():
    x = tf.ones((2, 3, 4))
    kn.set_kernel("auto")
    assert ops_of(lambda x: kn.ops.layer_norm(x), x) == ["KerasNorms>Normalize"]
    with kn.portable():
        assert kn.get_kernel() == kn.kernel_info().kernel == "portable"
        assert ops_of(lambda x: kn.ops.layer_norm(x), x) == []
    kn.set_kernel("fused")
    assert kn.get_kernel() == kn.kernel_info().kernel == "fused"
    assert ops_of(lambda x: kn.ops.layer_norm(x), x) == ["KerasNorms>Normalize"]
    kn.set_kernel("portable")
    assert ops_of(lambda x: kn.ops.layer_norm(x), x) == []


@pytest.mark.parametrize("training, op", [(True, "Normalize"), (False, "ScaleShift")])
def test_batch_norm_uses_an_op_in_training_and_in_inference(training, op):
    layer = support.built(kn.BatchNormalization(), (5, 7, 6))
    x = tf.ones((5, 7, 6))
    assert ops_of(lambda x: layer(x, training=training), x) == [f"KerasNorms>{op}"]


def test_unknown_kernel():
    with pytest.raises(ValueError) as caught:
        kn.set_kernel("fast")
    assert str(caught.value) == (
        "The kernel must be one of ('auto', 'fused', 'portable'). Received: 'fast'."
    )
    assert kn.get_kernel() == "fused"


def test_portable_ends_with_its_block_also_by_an_error():
    def fail():
        with kn.portable(), kn.portable():
            raise OSError

    with pytest.raises(OSError):
        fail()
    assert kn.get_kernel() == "fused"


def refused(reason):
    return re.escape(
        f'The kernel is set to "fused", which cannot serve here: {reason} '
        '`keras_norms.set_kernel("auto")` falls back to the portable path.'
    )


def without_library(monkeypatch):
    monkeypatch.setattr(room, "_ops", None)
    monkeypatch.setattr(room, "why_not", "It is away. Run `keras-norms build`.")
    return "It is away. Run `keras-norms build`."


def with_gpu(monkeypatch, capability=(9, 0), architectures=()):
    monkeypatch.setattr(room, "gpus", lambda: (("H200", capability),))
    monkeypatch.setattr(room, "_architectures", architectures)
    return (
        "TensorFlow sees a GPU and the library has no CUDA kernels. "
        "Run `pip install keras-norms[cuda]`, then `keras-norms build --cuda`."
    )


def with_old_gpu(monkeypatch):
    with_gpu(monkeypatch, (7, 0), cuda.ARCHITECTURES)
    return (
        "The library has no CUDA kernels for H200, which has compute capability 7.0, but for "
        "sm_75, sm_80, sm_86, sm_90, compute_90."
    )


@pytest.mark.parametrize("situation", [without_library, with_gpu, with_old_gpu])
def test_fused_raises_and_auto_is_silent_where_it_cannot_run(situation, monkeypatch, rng):
    reason = situation(monkeypatch)
    x = tf.constant(rng.normal(size=(5, 7)), tf.float32)
    layer = kn.LayerNormalization()
    with pytest.raises(RuntimeError, match=refused(reason)):
        layer(x)
    kn.set_kernel("auto")
    got = layer(x)
    assert ops_of(layer, x) == []
    kn.set_kernel("portable")
    np.testing.assert_array_equal(got, layer(x))
    kn.set_kernel("fused")
    with pytest.raises(RuntimeError, match=refused(reason)):
        kn.BatchNormalization()(x)


@pytest.mark.parametrize("op", ["Normalize", "Moments", "ScaleShift"])
@pytest.mark.parametrize("gradient", ["", "Grad"])
def test_registered_kernels(op, gradient):
    """For GPUs where the record says so, and for all types that `unusable_here` lets through."""
    found = {}
    for kernel in kernels.get_registered_kernels_for_op(f"KerasNorms>{op}{gradient}").kernel:
        if "XLA" not in kernel.device_type:
            types = {
                c.name: [tf.as_dtype(t).name for t in c.allowed_values.list.type]
                for c in kernel.constraint
            }
            assert types["U"] == ["float64" if types["T"] == ["float64"] else "float32"]
            found.setdefault(kernel.device_type, set()).update(types["T"])
    want = {"CPU": set(room.DTYPES)}
    if library.read_record(library.library_path())["cuda"]:
        want["GPU"] = set(room.GPU_DTYPES)
    assert found == want


def test_a_gpu_that_the_library_has_kernels_for(monkeypatch, rng):
    """The GPU is not there: the op runs where TensorFlow puts it, on the CPU."""
    assert kn.kernel_info().devices == ("CPU", "XLA:CPU")
    with_gpu(monkeypatch)
    assert kn.kernel_info().devices == ("CPU", "XLA:CPU")
    with_gpu(monkeypatch, architectures=cuda.ARCHITECTURES)
    assert kn.kernel_info().devices == ("CPU", "XLA:CPU", "GPU", "XLA:CUDA")
    layer = kn.LayerNormalization()
    for dtype in ("float16", "bfloat16", "float32"):
        assert ops_of(layer, tf.cast(rng.normal(size=(5, 7)), dtype))
    layer = kn.LayerNormalization(dtype="float64")
    x = tf.constant(rng.normal(size=(5, 7)))
    reason = "on a GPU the op is for float16, bfloat16, float32; the input is float64."
    with pytest.raises(RuntimeError, match=refused(reason)):
        layer(x)
    kn.set_kernel("auto")
    assert ops_of(layer, x) == []


@pytest.mark.parametrize(
    "x, reason",
    [
        (
            tf.zeros(3, tf.int32),
            "the op is for float16, bfloat16, float32, float64; the input is int32.",
        ),
        (np.zeros(3, "float32"), "the input is no dense tensor of TensorFlow but ndarray."),
        (
            tf.sparse.from_dense([1.0, 0.0]),
            "the input is no dense tensor of TensorFlow but SparseTensor.",
        ),
        (
            tf.ragged.constant([[1.0], []]),
            "the input is no dense tensor of TensorFlow but RaggedTensor.",
        ),
        (keras.KerasTensor((2, 3)), "the input is no dense tensor of TensorFlow but KerasTensor."),
    ],
)
def test_reason_for_what_is_no_tensor_of_floats(x, reason):
    assert room.unusable_here(x) == reason


def test_gpus_are_those_that_are_visible(monkeypatch):
    gpu = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
    details = {"device_name": "H200", "compute_capability": (9, 0)}
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [gpu])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details)
    for visible, found in (([gpu], (("H200", (9, 0)),)), ([], ())):
        monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind, v=visible: v)
        assert room.gpus.__wrapped__() == found


def test_masked_statistics_are_portable():
    layer = support.built(kn.BatchNormalization(), (5, 7, 6))
    mask = tf.ones((5, 7), bool)
    x = tf.ones((5, 7, 6))
    assert ops_of(lambda x: layer(x, training=True, mask=mask), x) == []
    assert ops_of(lambda x: layer(x, training=False, mask=mask), x) == ["KerasNorms>ScaleShift"]


def test_kernel_info():
    info = kn.kernel_info()
    assert info.fused and info.why_not is None
    assert info.tensorflow == tf.__version__
    assert info.devices[0] == "CPU"
    assert info.simd in ("avx512", "avx2", "baseline")


# In other processes: threads and instructions --------------------------------------------------

# Large enough for several threads and, in "instances", for one sum to be shared by them.
LARGE = {
    "nhwc": ((3, 61, 67, 48), 1, 2, 1, 8),
    "nchw": ((3, 26, 97, 61), 1, 0, 1, 2),
    "nhcw": ((2, 113, 30, 71), 1, 1, 1, 3),
    "narrow_groups": ((5, 997, 51), 1, 1, 1, 17),
    "instances": ((2, 307, 311, 3), 1, 2, 1, 3),
    "batch": ((31, 29, 23, 22), 0, 3, 1, 22),
    "batch_first": ((7, 11, 4999), 0, 1, 1, 11),
    "rows": ((997, 331), 1, 0, 1, 1),
    "whole": ((1, 400001), 1, 0, 1, 1),
}

# One process imports TensorFlow; copies of it, each for itself, set it up and run.
PROCESS = """
import os, sys, warnings
sys.path.insert(0, sys.argv[1])
import keras, numpy as np, tensorflow as tf
for run in sys.argv[2:]:
    warnings.simplefilter("ignore", DeprecationWarning)  # of copying a process that has threads
    child = os.fork()
    if not child:
        file, threads, simd = run.split("|")
        tf.config.threading.set_intra_op_parallelism_threads(int(threads))
        if simd:
            os.environ["KERAS_NORMS_SIMD"] = simd
        import test_fused
        np.savez(file, **test_fused.everything())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, run
"""


def everything():
    """Each op's outputs for large geometries and every type, as arrays or, for most, as hashes."""
    results = {"simd": np.array(kn.kernel_info().simd)}
    for name, geometry in LARGE.items():
        view = View(*geometry)
        for dtype in ("float32", "bfloat16", "float16", "float64"):
            x, dy, gamma, beta = draw(view, dtype, 10)
            y, mean, variance = normalize(view, x, gamma, beta)
            gradients = normalize_grad(view, dy, x, gamma, mean, variance)
            m, residual, v = moments(view, x)
            dm = moments_grad(view, x, m, residual, v, m)
            scale = tf.ones((*view.samples, *view.channels), wide(dtype)) * 1.1
            outputs = [
                *(y, mean, variance, *gradients, m, residual, v, dm),
                scale_shift(view, x, scale, scale, scale),
                *scale_shift_grad(view, dy, x, scale, scale),
                *activated(view, x, dy, gamma, beta, mean, variance, scale),
            ]
            for i, output in enumerate(outputs):
                content = np.ascontiguousarray(output.numpy()).tobytes()
                results[f"hash {name} {dtype} {i}"] = np.array(hashlib.sha256(content).hexdigest())
            if dtype == "float32":
                results |= {f"{name} {i}": o.numpy() for i, o in enumerate((*outputs[:6],))}
    return results


def activated(view, x, dy, gamma, beta, mean, variance, scale):
    """The ops with an activation, whose gradients walk over x in other steps."""
    silu = {"activation": "silu"}
    return [
        normalize(view, x, gamma, beta, **silu)[0],
        *normalize_grad(view, dy, x, gamma, mean, variance, beta=beta, **silu),
        scale_shift(view, x, scale, scale, scale, **silu),
        *scale_shift_grad(view, dy, x, scale, scale, scale, **silu),
    ]


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What `everything` gives with 1, 2 and 4 threads, and with fewer instructions."""
    conftest.need_fused()
    folder = tmp_path_factory.mktemp("processes")
    here = conftest.__file__.rpartition("/")[0]
    runs = {"1": "1|", "2": "2|", "4": "4|", "avx2": "2|avx2", "baseline": "2|baseline"}
    files = {name: folder / f"{name}.npz" for name in runs}
    support.run_python(PROCESS, here, *(f"{files[name]}|{run}" for name, run in runs.items()))
    results = {}
    for name, file in files.items():
        with np.load(file) as found:
            results[name] = dict(found)
    return results


@pytest.mark.parametrize("threads", ["2", "4"])
def test_bitwise_the_same_for_any_number_of_threads(threads, processes):
    hashes = {k: str(v) for k, v in processes[threads].items() if k.startswith("hash")}
    assert len(hashes) == len(LARGE) * 4 * 22
    assert hashes == {k: str(v) for k, v in processes["1"].items() if k.startswith("hash")}


@pytest.mark.parametrize("simd", ["1", "avx2", "baseline"])
def test_within_the_bounds_by_any_instructions(simd, processes):
    found = processes[simd]
    best = kn.kernel_info().simd
    ranks = ("baseline", "avx2", "avx512")
    want = best if simd == "1" else min(simd, best, key=ranks.index)
    assert str(found["simd"]) == want
    for name, geometry in LARGE.items():
        view = View(*geometry)
        x, dy, gamma, beta = draw(view, "float32", 10)
        got = [tf.constant(found[f"{name} {i}"]) for i in range(6)]
        check_normalize(view, x, gamma, beta, got[:3], what=name)
        check_normalize_grad(view, dy, x, gamma, got[3:], what=name)
