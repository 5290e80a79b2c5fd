import importlib.util

import numpy as np
import pytest
import support
import tensorflow as tf

import keras_norms as kn

KRIZHEVSKY = {"depth_radius": 2, "bias": 2.0, "alpha": 1e-4, "beta": 0.75}


@pytest.mark.parametrize(
    "shape, axis", [((3, 5, 7, 11), -1), ((3, 11, 5, 7), 1), ((5, 6), 1), ((2, 3, 13, 2, 5), 2)]
)
@pytest.mark.parametrize("arguments", [{}, KRIZHEVSKY, {"convention": "torch", "alpha": 3.0}])
def test_matches_reference(shape, axis, arguments):
    layer = kn.LocalResponseNormalization(axis, **arguments)
    support.check(layer, shape, "portable", "graph", means=(0.0, 1e2))


@pytest.mark.parametrize("radius", [0, 1, 3, 4, 7, 8, 12, 30])
def test_matches_tensorflow(radius, rng):
    """Any radius: the windows are made of sums of 1, 2, 4, ... neighbours."""
    x = rng.normal(size=(2, 3, 5, 13)).astype("float32")
    for arguments in ({"bias": 1.0, "alpha": 1.0, "beta": 0.5}, {**KRIZHEVSKY, "alpha": 0.3}):
        arguments = {**arguments, "depth_radius": radius}
        got = kn.LocalResponseNormalization(**arguments)(x)
        want = tf.nn.local_response_normalization(x, **arguments).numpy().astype("float64")
        support.close(got, want, atol=8 * support.EPS32)  # a sum and a power, of either


def test_defaults_are_those_of_tensorflow(rng):
    x = rng.normal(size=(2, 3, 5, 13)).astype("float32")
    want = tf.nn.local_response_normalization(x).numpy().astype("float64")
    support.close(kn.LocalResponseNormalization()(x), want, atol=4 * support.EPS32)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is missing")
@pytest.mark.parametrize("size", [1, 3, 5, 9])
@pytest.mark.parametrize("arguments", [{"alpha": 1e-4, "beta": 0.75}, {"alpha": 2.0, "beta": 0.5}])
def test_matches_torch(size, arguments, rng):
    import torch

    x = rng.normal(0, 3, (2, 7, 3, 5)).astype("float32")
    layer = kn.LocalResponseNormalization(
        1, depth_radius=size // 2, bias=1.5, convention="torch", **arguments
    )
    want = torch.nn.LocalResponseNorm(size, k=1.5, **arguments)(torch.tensor(x))
    support.close(layer(x), want.numpy().astype("float64"), atol=3 * 16 * support.EPS32)


def test_small_channels_beside_a_large_one(mode):
    """Differences of running sums would lose 1e-4**2 beside 1e4**2."""
    x = np.full((1, 13), 1e-4, "float32")
    x[0, 2] = 1e4
    layer = kn.LocalResponseNormalization(depth_radius=1, bias=0.0)
    layer.build(x.shape)
    got = support.runner(layer, mode)(x, x).y
    far = np.r_[0, 4:12]
    want = 1 / np.sqrt(np.r_[2, np.full(8, 3)])
    support.close(got[0, far], want, atol=4 * support.EPS32)


def test_half_squares_do_not_overflow():
    x = np.full((1, 3), 3e4, "float16")
    got = kn.LocalResponseNormalization(depth_radius=1, dtype="mixed_float16")(x)
    want = 1 / np.sqrt([[2, 3, 2]])
    support.close(got, want, atol=0, rtol=1.01 * support.ROUNDING["float16"])


def test_nan_stays_in_its_windows(rng):
    x = rng.normal(size=(2, 3, 13)).astype("float32")
    layer = kn.LocalResponseNormalization(depth_radius=2)
    good = layer(x).numpy()
    x[1, 2, 6] = np.nan
    got = layer(x).numpy()
    assert np.isnan(got[1, 2, 4:9]).all()
    others = np.ones(x.shape, bool)
    others[1, 2, 4:9] = False
    np.testing.assert_array_equal(got[others], good[others])


def test_gradient_of_zeros_is_finite(mode):
    x = np.zeros((2, 5), "float32")
    layer = kn.LocalResponseNormalization(bias=4.0)
    layer.build(x.shape)
    got = support.runner(layer, mode)(x, np.ones_like(x))
    np.testing.assert_array_equal(got.y, x)
    support.close(got.dx, np.full(x.shape, 0.5), atol=support.EPS32)
    assert layer.weights == []


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (
            {"convention": "keras"},
            ValueError,
            '`convention` must be "tensorflow" or "torch". Received: convention=\'keras\'.',
        ),
        (
            {"depth_radius": 2.0},
            TypeError,
            "`depth_radius` must be an int. Received: depth_radius=2.0.",
        ),
        (
            {"depth_radius": -1},
            ValueError,
            "`depth_radius` must be at least 0. Received: depth_radius=-1.",
        ),
        ({"bias": -1.0}, ValueError, "`bias` must be at least 0. Received: bias=-1.0."),
        ({"alpha": "1"}, TypeError, "`alpha` must be a number. Received: alpha='1'."),
        ({"beta": -0.5}, ValueError, "`beta` must be at least 0. Received: beta=-0.5."),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error) as caught:
        kn.LocalResponseNormalization(**arguments)
    assert str(caught.value) == message
