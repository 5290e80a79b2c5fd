import numpy as np
import pytest
import support
import tensorflow as tf

import keras_norms as kn

# name: shape, axis. Distinct primes, 1, or no multiple of 8.
GEOMETRIES = {
    "nhwc": ((3, 5, 7, 11), -1),
    "nchw": ((3, 11, 5, 7), 1),
    "rank_2": ((5, 6), -1),
    "rank_3_first": ((2, 26, 11), 1),
    "rank_5_middle": ((2, 3, 6, 2, 5), 2),
    "one_channel": ((3, 5, 7, 1), -1),
    "batch_1": ((1, 17, 19, 6), -1),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_matches_reference(name, kernel):
    shape, axis = GEOMETRIES[name]
    support.check(kn.GlobalResponseNormalization(axis), shape, kernel, "graph", means=(0.0, 1e4))


@pytest.mark.parametrize("center, scale", [(True, False), (False, True), (False, False)])
def test_without_gamma_or_beta(center, scale, kernel):
    layer = kn.GlobalResponseNormalization(center=center, scale=scale)
    support.check(layer, (3, 5, 7, 6), kernel, "eager", means=(0.0,))
    assert [w.name for w in layer.weights] == ["gamma"] * scale + ["beta"] * center


def test_starts_as_the_identity(kernel, rng):
    x = rng.normal(size=(3, 5, 7, 6)).astype("float32")
    layer = kn.GlobalResponseNormalization()
    np.testing.assert_array_equal(layer(x), x)
    assert {w.name: tuple(w.shape) for w in layer.weights} == {"gamma": (6,), "beta": (6,)}
    for weight in layer.weights:
        np.testing.assert_array_equal(weight, np.zeros(6))


def test_by_hand(kernel):
    """g = (5, 15), mean 10: the first channel counts half, the second one and a half."""
    layer = kn.GlobalResponseNormalization(epsilon=0.0)
    layer.build((1, 2, 2))
    layer.gamma.assign([2.0, 2.0])
    x = np.array([[[3, 9], [4, 12]]], "float32")
    want = x + 2 * x * np.array([0.5, 1.5])
    support.close(layer(x), want, atol=4 * support.EPS32 * 48)


def test_zeros_have_a_gradient(kernel, mode, rng):
    """Of a norm by `tf.norm`, it would be NaN where a channel is all 0."""
    x = rng.normal(size=(2, 5, 7, 6)).astype("float32")
    x[0, ..., 2] = 0
    x[1] = 0
    with tf.GradientTape() as tape:
        zeros = tf.constant(x)
        tape.watch(zeros)
        norm = tf.norm(zeros, axis=[1, 2])
    assert np.isnan(tape.gradient(norm, zeros)[0, ..., 2]).all()
    layer = support.built(kn.GlobalResponseNormalization(), x.shape)
    dy = np.ones_like(x)
    got = support.runner(layer, mode)(x, dy)
    np.testing.assert_array_equal(got.dx[0, ..., 2], 1)  # y is x + beta there
    np.testing.assert_array_equal(got.dx[1], 1)
    assert np.isfinite(got.y).all() and np.isfinite(got.dx).all()
    beta = layer.beta.numpy()
    np.testing.assert_array_equal(got.y[1], np.broadcast_to(beta, (5, 7, 6)))


def test_epsilon_is_added_to_the_mean_norm(kernel, rng):
    """1e-6 beside a norm of 1e-6, and at any number of positions."""
    x = rng.normal(0, 1e-7, (2, 5, 7, 6)).astype("float32")
    layer = support.built(kn.GlobalResponseNormalization(center=False), x.shape)
    want, _ = support.expected(layer, x, x)
    support.close(layer(x), want.y, atol=1e-7 * 4 * support.FORWARD[kernel])


def test_large_values_do_not_overflow(kernel):
    """A norm of 4e4 * sqrt(35) is beyond float16."""
    x = np.full((1, 5, 7, 2), 4e4, "float16")
    layer = kn.GlobalResponseNormalization(gamma_initializer="ones", dtype="mixed_float16")
    y = layer(x * np.array([1, 0.25], "float16"))
    want = 4e4 * np.array([1 + 1.6, 0.25 * 1.4])
    assert np.isposinf(y[..., 0]).all()  # 1.04e5 itself is no float16
    support.close(y[0, 0, 0, 1], want[1], atol=0, rtol=2 * support.ROUNDING["float16"])


def test_masked_positions_do_not_count(rng):
    x = rng.normal(size=(3, 5, 7, 6)).astype("float32")
    mask = rng.random((3, 5)) < 0.5
    mask[:, 0], mask[2] = True, False  # the last sample is masked as a whole: it counts whole
    layer = support.built(kn.GlobalResponseNormalization(epsilon=0.1), x.shape)
    got = layer(x, mask=mask)
    gamma, beta = support.parameters(layer)
    for n in range(3):
        kept = x[n][mask[n]] if n < 2 else x[n]
        g = np.sqrt(np.square(kept.astype("float64")).sum((0, 1)))
        want = gamma * x[n] * g / (g.mean() + 0.1) + beta + x[n]
        support.close(got[n], want, atol=support.FORWARD["portable"] * 4)


def test_nan_stays_in_its_sample(kernel, rng):
    """Its channel's norm is part of the mean norm, so the sample's other channels see it."""
    x = rng.normal(size=(3, 5, 7, 6)).astype("float32")
    layer = support.built(kn.GlobalResponseNormalization(), x.shape)
    good = layer(x).numpy()
    x[1, 2, 3, 4] = np.nan
    got = layer(x).numpy()
    assert np.isnan(got[1]).all()
    np.testing.assert_array_equal(got[[0, 2]], good[[0, 2]])


@pytest.mark.parametrize(
    "axis, shape, message",
    [
        (0, (2, 5, 6), "Axis 0 holds the samples.*axis=0"),
        (3, (2, 5, 6), r"Axis 3 is out of bounds .*\(2, 5, 6\)"),
        (-1, (2, 5, None), "must be known.*None"),
    ],
)
def test_errors_of_build(axis, shape, message):
    with pytest.raises(ValueError, match=message):
        kn.GlobalResponseNormalization(axis).build(shape)
