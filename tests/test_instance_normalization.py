import numpy as np
import pytest
import reference
import support
import tensorflow as tf

import keras_norms as kn

# name: shape, axis. Distinct primes, 1, or no multiple of 8.
GEOMETRIES = {
    "nhwc": ((3, 5, 7, 11), -1),
    "nchw": ((3, 11, 5, 7), 1),
    "nhcw": ((3, 5, 11, 7), 2),
    "rank_2": ((5, 7), -1),
    "rank_3": ((2, 13, 19), 2),
    "rank_3_first": ((2, 19, 13), -2),
    "rank_5": ((2, 3, 2, 5, 7), -1),
    "rank_5_first": ((2, 7, 3, 2, 5), 1),
    "one_channel": ((3, 17, 5, 1), -1),
    "two_elements": ((5, 2, 1, 9), -1),
    "batch_1": ((1, 17, 19, 3), -1),
    "wide": ((2, 3, 67), -1),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_matches_reference(name, kernel, mode):
    shape, axis = GEOMETRIES[name]
    support.check(kn.InstanceNormalization(axis), shape, kernel, mode)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("scale", [False, True])
def test_without_gamma_or_beta(center, scale, kernel):
    layer = kn.InstanceNormalization(1, 1e-5, center, scale)
    support.check(layer, (3, 11, 5, 7), kernel, "eager")
    assert [w.name for w in layer.weights] == ["gamma"] * scale + ["beta"] * center


@pytest.mark.parametrize(
    "dtype, means", [("float64", support.MEANS), ("bfloat16", (0, 1e1)), ("float16", (0, 1e2))]
)
@pytest.mark.parametrize("shape, axis", [((3, 5, 7, 11), -1), ((3, 11, 5, 7), 1)])
def test_other_types(dtype, means, shape, axis, kernel, mode):
    layer = kn.InstanceNormalization(axis, dtype=support.policy(dtype))
    support.check(layer, shape, kernel, mode, means=means, dtype=dtype)


@pytest.mark.parametrize(
    "shape, axis, mean",
    [
        ((1, 2003, 2011, 2), -1, 1e6),
        pytest.param((1, 1, 2003, 2011), 1, 1e4, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("mode", support.GRAPH_IS_SLOW)
def test_four_million_elements_a_channel(shape, axis, mean, kernel, mode):
    support.check(kn.InstanceNormalization(axis), shape, kernel, mode, means=(mean,))


def test_without_space_the_result_is_beta(kernel, mode, rng):
    layer = support.built(kn.InstanceNormalization(), (5, 7))
    x, dy = rng.normal(1e4, 1, size=(2, 5, 7)).astype("float32")
    got = support.runner(layer, mode)(x, dy)
    np.testing.assert_array_equal(got.y, np.broadcast_to(layer.beta.numpy(), (5, 7)))
    np.testing.assert_array_equal(got.dx, np.zeros((5, 7)))
    np.testing.assert_array_equal(got.dgamma, np.zeros(7))


def test_contrast_and_brightness_do_not_matter(kernel, rng):
    """The layer's purpose: y(a * x + b) = y(x), for each sample its own a and b (epsilon 0)."""
    x = rng.normal(size=(3, 5, 7, 11)).astype("float32")
    a = np.array([0.25, 8.0, 2.0], "float32")[:, None, None, None]  # exact factors
    layer = support.built(kn.InstanceNormalization(epsilon=0.0), x.shape)
    gamma = support.largest(layer.gamma.numpy())
    # Adding b = 3 rounds x to 2**-22, that is 2.4e-7 * 1.5 of the deviation at most after a = 0.25.
    atol = (2 * support.FORWARD[kernel] + 4 * support.EPS32) * gamma
    support.close(layer(a * x + 3), layer(x).numpy(), atol=atol)


def test_nan_stays_in_its_channel_of_its_sample(kernel, mode, rng):
    shape = (3, 5, 7, 11)
    layer = support.built(kn.InstanceNormalization(), shape)
    run = support.runner(layer, mode)
    x, dy = rng.normal(size=(2, *shape)).astype("float32")
    good = run(x, dy)
    x[1, 2, 3, 4] = np.nan
    got = run(x, dy)
    assert np.isnan(got.y[1, ..., 4]).all()
    others = np.ones(shape, bool)
    others[1, ..., 4] = False
    for name in ("y", "dx"):
        np.testing.assert_array_equal(getattr(got, name)[others], getattr(good, name)[others])


@pytest.mark.parametrize("shape", [(0, 5, 7, 11), (2, 0, 7, 11)])
def test_empty_input(shape, kernel, mode):
    layer = support.built(kn.InstanceNormalization(), shape)
    x = np.zeros(shape, "float32")
    got = support.runner(layer, mode)(x, x)
    assert got.y.shape == got.dx.shape == shape
    np.testing.assert_array_equal(got.dgamma, np.zeros(11))


def test_weights_and_config():
    layer = kn.InstanceNormalization(2, 1e-4, name="norm")
    layer.build((None, None, 7, None))
    assert [(w.name, tuple(w.shape)) for w in layer.weights] == [("gamma", (7,)), ("beta", (7,))]
    config = layer.get_config()
    assert (config["axis"], config["epsilon"], config["name"]) == (2, 1e-4, "norm")
    assert "groups" not in config
    assert layer.compute_output_shape((None, 5, 7, None)) == (None, 5, 7, None)


@pytest.mark.parametrize(
    "axis, shape, message",
    [
        (0, (2, 5, 6), "Axis 0 holds the samples.*axis=0"),
        (3, (2, 5, 6), r"Axis 3 is out of bounds .*\(2, 5, 6\)"),
        (-1, (2, 5, None), "must be known.*None"),
        (-1, (6,), "at least two axes"),
    ],
)
def test_errors_of_build(axis, shape, message):
    with pytest.raises(ValueError, match=message):
        kn.InstanceNormalization(axis).build(shape)


# Running statistics, which PyTorch alone has.


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("unbiased", [False, True])
def test_running_statistics(axis, unbiased, kernel, mode, rng):
    """The samples' average mean and variance; inference goes by them."""
    x = np.moveaxis(rng.normal(3, 2, (4, 7, 5, 3)), -1, axis).astype("float32")
    space = tuple(a for a in range(1, 4) if a != axis % 4)
    layer = kn.InstanceNormalization(
        axis, track_running_stats=True, momentum=0.75, unbiased_moving_variance=unbiased
    )
    support.built(layer, x.shape)
    step = support.compiled(lambda x: layer(x, training=True), mode)
    gamma, beta = support.parameters(layer)
    want = reference.instance_norm(x, gamma, beta, axis=axis)
    support.close(step(tf.constant(x)), want.y, atol=support.FORWARD[kernel] * np.abs(gamma).max())
    wide = x.astype("float64")
    mean = wide.mean(space).mean(0) * 0.25
    variance = 0.75 + wide.var(space, ddof=int(unbiased)).mean(0) * 0.25
    support.close(layer.moving_mean, mean, atol=4e-6)
    support.close(layer.moving_variance, variance, atol=4e-6)
    want = reference.frozen_batch_norm(
        x, gamma, beta, layer.moving_mean, layer.moving_variance, axis=axis
    )
    support.close(layer(x), want, atol=2e-5)


def test_running_statistics_skip_masked_samples(kernel, rng):
    x = rng.normal(3, 2, (4, 7, 3)).astype("float32")
    mask = rng.uniform(size=(4, 7)) < 0.6
    mask[2] = False
    layer = kn.InstanceNormalization(track_running_stats=True, momentum=0.0)
    layer(x, training=True, mask=tf.constant(mask))
    kept = [x[i][mask[i]].astype("float64") for i in (0, 1, 3)]
    support.close(layer.moving_mean, np.mean([v.mean(0) for v in kept], 0), atol=4e-6)
    support.close(layer.moving_variance, np.mean([v.var(0) for v in kept], 0), atol=1e-5)
    before = layer.get_weights()
    for call in ((x, np.zeros((4, 7), "bool")), (x[:0], None)):
        layer(call[0], training=True, mask=call[1])
        np.testing.assert_array_equal(layer.get_weights(), before)


def test_without_tracking_there_are_no_statistics():
    layer = kn.InstanceNormalization(momentum=None)
    layer.build((2, 5, 3))
    assert [w.name for w in layer.weights] == ["gamma", "beta"]
