import numpy as np
import pytest
import reference
import support
import tensorflow as tf

import keras_norms as kn

# name: shape, groups, axis. Distinct primes where groups allow, 1, or no multiple of 8.
GEOMETRIES = {
    "nhwc": ((3, 5, 7, 22), 2, -1),
    "nchw": ((3, 22, 5, 7), 2, 1),
    "nhcw": ((3, 5, 6, 7), 3, 2),
    "wide": ((2, 13, 1, 51), 17, -1),
    "rank_2": ((5, 6), 3, -1),
    "rank_3": ((2, 11, 26), 13, 2),
    "rank_3_first": ((2, 26, 11), 2, -2),
    "rank_5": ((2, 3, 2, 5, 6), 2, -1),
    "rank_5_first": ((2, 6, 3, 2, 5), 3, 1),
    "rank_5_middle": ((2, 3, 6, 2, 5), 2, 2),
    "one_group": ((3, 5, 7, 11), 1, -1),
    "one_group_first": ((3, 11, 5, 7), 1, 1),
    "group_per_channel": ((3, 5, 7, 11), 11, -1),
    "one_element_a_group": ((1, 1, 1, 2), 2, -1),
    "two_elements_a_group": ((7, 1, 6), 3, -1),
    "batch_1": ((1, 17, 19, 6), 3, -1),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_matches_reference(name, kernel, mode):
    shape, groups, axis = GEOMETRIES[name]
    support.check(kn.GroupNormalization(groups, axis=axis), shape, kernel, mode)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("shape, axis", [((3, 5, 7, 6), -1), ((3, 6, 5, 7), 1)])
def test_without_gamma_or_beta(center, scale, shape, axis, kernel):
    layer = kn.GroupNormalization(3, axis=axis, epsilon=1e-5, center=center, scale=scale)
    support.check(layer, shape, kernel, "eager")
    assert [w.name for w in layer.weights] == ["gamma"] * scale + ["beta"] * center


@pytest.mark.parametrize(
    "dtype, means",
    [
        ("float64", support.MEANS),
        ("bfloat16", (0, 1e1)),
        ("float16", (0, 1e2)),
    ],
)
@pytest.mark.parametrize("shape, axis", [((3, 5, 7, 22), -1), ((3, 22, 5, 7), 1)])
def test_other_types(dtype, means, shape, axis, kernel, mode):
    layer = kn.GroupNormalization(2, axis=axis, dtype=support.policy(dtype))
    support.check(layer, shape, kernel, mode, means=means, dtype=dtype)


# Groups of 600 x 400 x 8 elements, Keras' worst case (keras-team/keras#19348), and of 4 millions.
@pytest.mark.parametrize(
    "shape, groups, axis, mean",
    [
        ((1, 600, 400, 24), 3, -1, 1e2),
        ((1, 2, 1009, 2003), 1, 1, 1e6),
    ],
)
@pytest.mark.parametrize("mode", support.GRAPH_IS_SLOW)
def test_large_image(shape, groups, axis, mean, kernel, mode):
    support.check(kn.GroupNormalization(groups, axis=axis), shape, kernel, mode, means=(mean,))


def test_large_half_inputs_do_not_overflow(kernel, rng):
    """Squares of 3e4 are beyond float16 (65504); the statistics are float32."""
    x = rng.normal(0, 1.5e4, (2, 5, 3, 6)).astype("float16")
    layer = support.built(kn.GroupNormalization(2, dtype="mixed_float16"), x.shape)
    want, _ = support.expected(layer, x, x)
    gamma, _ = support.parameters(layer)
    atol = support.FORWARD[kernel] * support.largest(gamma)
    support.close(layer(x), want.y, atol=atol, rtol=support.ROUNDING["float16"])


@pytest.mark.parametrize("value", [0.0, 3.7, 1e6 + 0.5, -1e-30])
def test_constant_input_gives_beta(value, kernel, mode):
    shape = (2, 5, 7, 6)
    layer = support.built(kn.GroupNormalization(3), shape)
    run = support.runner(layer, mode)
    x = np.full(shape, value, "float32")
    got = run(x, np.ones(shape, "float32"))
    # x - mean is at most the rounding of the mean's residual, times rstd = 1 / sqrt(0.001) = 32.
    atol = 32 * support.EPS32 * abs(value) * support.EPS32 * 8 + support.EPS32
    want = np.broadcast_to(layer.beta.numpy(), shape)
    support.close(got.y, want, atol=atol * support.largest(layer.gamma.numpy()))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [-1, 1])
def test_bad_value_stays_in_its_group(bad, axis, kernel, mode, rng):
    shape = (3, 5, 7, 6) if axis == -1 else (3, 6, 5, 7)
    layer = support.built(kn.GroupNormalization(3, axis=axis), shape)
    run = support.runner(layer, mode)
    x, dy = rng.normal(size=(2, *shape)).astype("float32")
    good = run(x, dy)
    at = (1, 2, 3, 4) if axis == -1 else (1, 4, 2, 3)  # channel 4 is in group 2 of channels 4, 5
    x[at] = bad
    got = run(x, dy)
    group = (1, ..., slice(4, 6)) if axis == -1 else (1, slice(4, 6))
    assert np.isnan(got.y[group]).all()
    others = np.ones(shape, bool)
    others[group] = False
    for name in ("y", "dx"):
        np.testing.assert_array_equal(getattr(got, name)[others], getattr(good, name)[others])


@pytest.mark.parametrize("shape", [(0, 5, 7, 6), (2, 0, 7, 6)])
def test_empty_input(shape, kernel, mode):
    layer = support.built(kn.GroupNormalization(3), shape)
    x = np.zeros(shape, "float32")
    got = support.runner(layer, mode)(x, x)
    assert got.y.shape == got.dx.shape == shape
    np.testing.assert_array_equal(got.dgamma, np.zeros(6))
    np.testing.assert_array_equal(got.dbeta, np.zeros(6))


def test_sample_does_not_depend_on_its_batch(kernel, rng):
    """tensorflow/addons#2745: there, the result depended on whether the batch was 1."""
    x = rng.uniform(size=(4, 60, 40, 24)).astype("float32")
    layer = support.built(kn.GroupNormalization(3), x.shape)
    whole = layer(x).numpy()
    for i in range(4):
        alone = layer(x[i : i + 1]).numpy()
        # Two roundings of the same sums.
        support.close(alone, whole[i : i + 1], atol=2 * support.FORWARD[kernel] * 4)


def test_epsilon_counts(kernel, rng):
    x = rng.normal(0, 1e-2, (3, 5, 7, 6)).astype("float32")  # variance 1e-4 beside epsilon 1e-3
    for epsilon in (1e-3, 1e-8, 0.0):
        layer = support.built(kn.GroupNormalization(3, epsilon=epsilon), x.shape)
        want = reference.group_norm(
            x, layer.gamma.numpy(), layer.beta.numpy(), groups=3, epsilon=epsilon
        )
        atol = support.FORWARD[kernel] * support.largest(layer.gamma.numpy())
        support.close(layer(x), want.y, atol=atol, what=f"epsilon {epsilon}")


def test_weights_and_config():
    layer = kn.GroupNormalization(-1)
    layer.build((None, 5, 7, 6))
    assert [(w.name, tuple(w.shape)) for w in layer.weights] == [("gamma", (6,)), ("beta", (6,))]
    np.testing.assert_array_equal(layer.gamma, np.ones(6))
    np.testing.assert_array_equal(layer.beta, np.zeros(6))
    assert layer.get_config()["groups"] == -1  # as given, also after build
    assert layer.compute_output_shape((None, 5, None, 6)) == (None, 5, None, 6)


@pytest.mark.parametrize(
    "arguments, shape, message",
    [
        ({"groups": 4}, (2, 5, 6), "`groups` must .* Received: groups=4, channels=6"),
        ({"groups": 7}, (2, 5, 6), "`groups` must .* Received: groups=7, channels=6"),
        ({"groups": 2, "axis": 0}, (2, 5, 6), "Axis 0 holds the samples.*axis=0"),
        ({"groups": 2, "axis": 3}, (2, 5, 6), r"Axis 3 is out of bounds .*\(2, 5, 6\)"),
        ({"groups": 2}, (2, 5, None), "must be known.*None"),
        ({"groups": 1}, (6,), "at least two axes"),
    ],
)
def test_errors_of_build(arguments, shape, message):
    with pytest.raises(ValueError, match=message):
        kn.GroupNormalization(**arguments).build(shape)


@pytest.mark.parametrize("groups", [0, -2, 2.0, "2", None])
def test_errors_of_groups(groups):
    with pytest.raises(ValueError, match=f"`groups` must be .* Received: groups={groups!r}"):
        kn.GroupNormalization(groups)


def test_penalty_on_gradients(kernel, mode, rng):
    """WGAN-GP: the gradient of a gradient's norm, through GroupNormalization, in float64."""
    shape = (2, 5, 3, 6)
    layer = support.built(kn.GroupNormalization(3, epsilon=1e-2, dtype="float64"), shape)
    x, weight = rng.normal(size=(2, *shape))

    def penalty(x, gamma):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = kn.ops.group_norm(x, 3, gamma, layer.beta, epsilon=1e-2)
            score = tf.reduce_sum(tf.square(y) * weight)
        slope = tf.reshape(tape.gradient(score, x), (shape[0], -1))
        return tf.reduce_mean(tf.square(tf.norm(slope, axis=1) - 1))

    def both(x, gamma):
        with tf.GradientTape() as tape:
            tape.watch((x, gamma))
            value = penalty(x, gamma)
        return value, *tape.gradient(value, (x, gamma))

    gamma = layer.gamma.numpy()
    value, dx, dgamma = support.compiled(both, mode)(tf.constant(x), tf.constant(gamma))

    def want(x, gamma):
        y = reference.group_norm(x, gamma, layer.beta.numpy(), groups=3, epsilon=1e-2).y
        back = reference.group_norm_gradients(2 * y * weight, x, gamma, groups=3, epsilon=1e-2)
        return ((np.linalg.norm(back.dx.reshape(2, -1), axis=1) - 1) ** 2).mean()

    np.testing.assert_allclose(value, want(x, gamma), rtol=1e-11)  # sums of 30 float64 terms
    for i in [(0, 0, 0, 0), (1, 4, 2, 5), (0, 3, 1, 2)]:
        step = np.zeros(shape)
        step[i] = 1e-5
        slope = (want(x + step, gamma) - want(x - step, gamma)) / 2e-5
        # Central differences: step squared times a third derivative, and rounding 1e-16 / 1e-5.
        np.testing.assert_allclose(dx[i], slope, rtol=1e-6, atol=1e-7 * np.abs(dx).max())
    for i in range(6):
        step = 1e-5 * np.eye(6)[i]
        slope = (want(x, gamma + step) - want(x, gamma - step)) / 2e-5
        np.testing.assert_allclose(dgamma[i], slope, rtol=1e-6, atol=1e-7 * np.abs(dgamma).max())


@pytest.mark.parametrize("group_size", [1, 2, 6])
def test_group_size(group_size, kernel, rng):
    """The channels of a group instead of their number, as in Flax."""
    x = rng.normal(size=(3, 5, 6)).astype("float32")
    layers = [
        support.built(layer, x.shape)
        for layer in (
            kn.GroupNormalization(group_size=group_size),
            kn.GroupNormalization(6 // group_size),
        )
    ]
    np.testing.assert_array_equal(*(layer(x) for layer in layers))
    assert layers[0].get_config()["group_size"] == group_size
    assert "group_size" not in layers[1].get_config()


def test_group_size_errors():
    for size in (0, -1, 2.0):
        message = rf"`group_size` must be a positive int or None. Received: group_size={size}."
        with pytest.raises(ValueError, match=message):
            kn.GroupNormalization(group_size=size)
    message = r"`group_size` must divide the number of channels. Received: group_size=4, channels=6"
    with pytest.raises(ValueError, match=message):
        kn.GroupNormalization(group_size=4)(np.zeros((2, 5, 6)))
