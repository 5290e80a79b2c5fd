import keras
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
    "rank_1": ((19,), 0),
    "rank_2": ((23, 7), -1),
    "rank_3": ((2, 13, 19), 2),
    "rank_3_first": ((2, 19, 13), -2),
    "rank_5": ((2, 3, 2, 5, 7), -1),
    "samples_as_channels": ((5, 3, 7), 0),
    "one_channel": ((3, 17, 5, 1), -1),
    "one_element_a_channel": ((1, 1, 1, 5), -1),
    "two_elements_a_channel": ((2, 9), -1),
    "batch_1": ((1, 17, 19, 3), -1),
    "wide": ((2, 3, 67), -1),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_matches_reference(name, kernel, mode):
    shape, axis = GEOMETRIES[name]
    support.check(kn.BatchNormalization(axis), shape, kernel, mode, training=True)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("scale", [False, True])
def test_without_gamma_or_beta(center, scale, kernel):
    layer = kn.BatchNormalization(1, center=center, scale=scale)
    support.check(layer, (3, 11, 5, 7), kernel, "eager", training=True)
    names = ["gamma"] * scale + ["beta"] * center + ["moving_mean", "moving_variance"]
    assert [w.name for w in layer.weights] == names
    frozen(layer, (3, 11, 5, 7), kernel, "eager")


@pytest.mark.parametrize(
    "dtype, means", [("float64", support.MEANS), ("bfloat16", (0, 1e1)), ("float16", (0, 1e2))]
)
@pytest.mark.parametrize("shape, axis", [((3, 5, 7, 11), -1), ((3, 11, 5, 7), 1)])
def test_other_types(dtype, means, shape, axis, kernel, mode):
    layer = kn.BatchNormalization(axis, dtype=support.policy(dtype))
    support.check(layer, shape, kernel, mode, means=means, dtype=dtype, training=True)


# Two channels, so that a backend's sums along the other axes add one number after the other.
@pytest.mark.parametrize(
    "shape, axis, mean",
    [
        ((1, 2003, 2111, 2), -1, 1e2),
        pytest.param((4_200_000, 2), -1, 1e6, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("mode", support.GRAPH_IS_SLOW)
def test_four_million_elements_a_channel(shape, axis, mean, kernel, mode):
    layer = kn.BatchNormalization(axis, momentum=0.0)
    support.check(layer, shape, kernel, mode, means=(mean,), training=True)
    x = np.random.default_rng(11).normal(mean, 1, shape).astype("float32")  # as in check
    want = reference.batch_norm(x, None, None, axis=axis)
    # The moving mean is a float32 near `mean`; of the variance, 4e-6 as for the output.
    close_statistics(layer, want.mean.ravel(), want.variance.ravel(), kernel)


def close_statistics(layer, mean, variance, kernel, what=""):
    """float32 statistics: the mean to a rounding or two, the variance to the output's bound."""
    unit = support.EPS64 if layer.moving_mean.dtype == "float64" else support.EPS32
    bound = 32 * unit if unit == support.EPS64 else support.FORWARD[kernel]
    scale = np.sqrt(variance.max(initial=0))
    support.close(layer.moving_mean, mean, rtol=2 * unit, atol=bound * scale, what=what)
    support.close(layer.moving_variance, variance, rtol=2 * bound, atol=unit, what=what)


# Moving statistics.


@pytest.mark.parametrize("momentum", [0.99, 0.9, 0.0, 1.0])
@pytest.mark.parametrize("mean", support.MEANS)
def test_moving_statistics_after_one_step_and_two(momentum, mean, kernel, mode, rng):
    shape = (3, 5, 7, 11)
    layer = support.built(kn.BatchNormalization(momentum=momentum), shape)
    run = support.runner(layer, mode, training=True)
    moving = np.zeros(11), np.ones(11)
    for step in range(2):
        x = rng.normal(mean + 10 * step, 2, shape).astype("float32")
        run(x, x)
        _, *batch = reference.batch_norm(x, None, None)
        moving = [
            reference.moving_average(old, new.ravel(), momentum)
            for old, new in zip(moving, batch, strict=True)
        ]
        close_statistics(layer, *moving, kernel, what=f"step {step}")


def test_variance_is_biased(kernel):
    """By hand: 1, 2, 3, 4 has the biased variance 1.25 (unbiased: 1.667)."""
    layer = kn.BatchNormalization(momentum=0.0)
    layer(np.array([[1], [2], [3], [4]], "float32"), training=True)
    np.testing.assert_array_equal(layer.moving_mean, [2.5])
    np.testing.assert_array_equal(layer.moving_variance, [1.25])


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
def test_moving_statistics_are_float32_under_half_types(dtype, kernel, rng):
    layer = kn.BatchNormalization(momentum=0.99, dtype=dtype)
    x = rng.normal(3, 1, (64, 5)).astype("float32")
    for _ in range(3):
        y = layer(x, training=True)
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    assert layer.moving_mean.dtype == layer.moving_variance.dtype == "float32"
    want = x.astype("float64").mean(0) * (1 - 0.99**3)
    # float32 of a float32 input: the input itself was not cast to half.
    support.close(layer.moving_mean, want, rtol=4 * support.EPS32, atol=1e-6)


def test_no_gradient_flows_through_the_moving_statistics(kernel, rng):
    x = tf.constant(rng.normal(size=(5, 3)), "float32")
    layer = support.built(kn.BatchNormalization(), x.shape)
    with tf.GradientTape() as tape:
        tape.watch(x)
        layer(x, training=True)
        total = tf.reduce_sum(layer.moving_mean) + tf.reduce_sum(layer.moving_variance)
    assert tape.gradient(total, x) is None


@pytest.mark.parametrize("shape", [(0, 5, 7, 11), (2, 0, 7, 11), (0, 11)])
def test_empty_batch_leaves_the_moving_statistics(shape, kernel, mode):
    layer = support.built(kn.BatchNormalization(momentum=0.5), shape)
    layer.moving_mean.assign(np.arange(11))
    layer.moving_variance.assign(np.arange(11) + 1)
    x = np.zeros(shape, "float32")
    got = support.runner(layer, mode, training=True)(x, x)
    assert got.y.shape == got.dx.shape == shape
    np.testing.assert_array_equal(got.dgamma, np.zeros(11))
    np.testing.assert_array_equal(layer.moving_mean, np.arange(11))
    np.testing.assert_array_equal(layer.moving_variance, np.arange(11) + 1)


def test_empty_batch_of_unknown_size(kernel):
    """The same in one function for every batch size."""
    layer = support.built(kn.BatchNormalization(momentum=0.5), (None, 3))

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def train(x):
        return layer(x, training=True)

    assert train(tf.zeros((0, 3))).shape == (0, 3)
    np.testing.assert_array_equal(layer.moving_variance, [1, 1, 1])
    train(tf.constant([[2.0, 4.0, 6.0]]))
    np.testing.assert_array_equal(layer.moving_mean, [1, 2, 3])
    np.testing.assert_array_equal(layer.moving_variance, [0.5, 0.5, 0.5])


def test_constant_input(kernel, mode):
    shape = (3, 5, 7)
    layer = support.built(kn.BatchNormalization(momentum=0.0), shape)
    x = np.full(shape, 1234.5, "float32")
    got = support.runner(layer, mode, training=True)(x, np.ones(shape, "float32"))
    atol = 32 * 1234.5 * support.EPS32**2 * 15 * support.largest(layer.gamma.numpy())
    support.close(got.y, np.broadcast_to(layer.beta.numpy(), shape), atol=atol)
    np.testing.assert_array_equal(layer.moving_mean, np.full(7, 1234.5))
    support.close(layer.moving_variance, np.zeros(7), atol=(1234.5 * support.EPS32) ** 2)


def test_nan_stays_in_its_channel(kernel, mode, rng):
    shape = (3, 5, 7, 11)
    layer = support.built(kn.BatchNormalization(), shape)
    run = support.runner(layer, mode, training=True)
    x, dy = rng.normal(size=(2, *shape)).astype("float32")
    good = run(x, dy)
    before = layer.moving_mean.numpy().copy()
    x[1, 2, 3, 4] = np.nan
    got = run(x, dy)
    others = np.arange(11) != 4
    assert np.isnan(got.y[..., 4]).all() and np.isnan(layer.moving_mean.numpy()[4])
    for name in ("y", "dx"):
        np.testing.assert_array_equal(
            getattr(got, name)[..., others], getattr(good, name)[..., others]
        )
    _, mean, _ = reference.batch_norm(x, None, None)
    want = reference.moving_average(before, mean.ravel(), 0.99)[others]
    support.close(layer.moving_mean.numpy()[others], want, atol=4 * support.EPS32)


# Inference.


def frozen(layer, shape, kernel, mode, means=support.MEANS, **arguments):
    """Inference by statistics of the data's own size, forward and backward."""
    draw = np.random.default_rng(13)
    (channels,) = reference.positive(layer.axis, len(shape))
    other = tuple(a for a in range(len(shape)) if a != channels)
    run = support.runner(layer, mode, **arguments)
    for mean in means:
        layer.moving_mean.assign(draw.normal(mean, 1, shape[channels]))
        layer.moving_variance.assign(draw.uniform(0.5, 2, shape[channels]))
        x = draw.normal(mean, 1, shape).astype("float32")
        dy = draw.normal(size=shape).astype("float32")
        gamma, beta = support.parameters(layer)
        moving = layer.moving_mean.numpy(), layer.moving_variance.numpy()
        got = run(x, dy)
        options = {"axis": layer.axis, "epsilon": layer.epsilon}
        want = reference.frozen_batch_norm(x, gamma, beta, *moving, **options)
        deviation = np.sqrt(moving[1].min())
        # The promised bound of frozen statistics; x * scale + shift is allowed.
        bound = 8 * support.EPS32 * (1 + abs(moving[0]).max() / deviation) * support.largest(gamma)
        support.close(got.y, want, atol=bound, rtol=2.0**-24, what=f"y, mean {mean:g}")
        h = reference.frozen_batch_norm(x, None, None, *moving, **options)
        rstd = reference.spread(
            1 / np.sqrt(moving[1].astype("float64") + layer.epsilon), (channels,), x.ndim
        )
        scale = rstd if gamma is None else rstd * reference.spread(gamma, (channels,), x.ndim)
        support.close(got.dx, dy * scale, atol=support.GRADIENT * np.abs(dy * scale).max())
        for result, value in (
            (got.dgamma, (dy * h).sum(other)),
            (got.dbeta, dy.astype("float64").sum(other)),
        ):
            if result is not None:
                atol = support.GRADIENT * np.abs(value).max() + 8 * support.EPS32 * np.abs(dy).max()
                atol += bound / support.largest(gamma) * np.abs(dy).sum(other).max() * (mean > 0)
                support.close(result, value, atol=atol, what=f"parameters, mean {mean:g}")
        np.testing.assert_array_equal(layer.moving_mean, moving[0])
        np.testing.assert_array_equal(layer.moving_variance, moving[1])


@pytest.mark.parametrize("name", GEOMETRIES)
def test_inference_matches_reference(name, kernel, mode):
    shape, axis = GEOMETRIES[name]
    frozen(support.built(kn.BatchNormalization(axis), shape), shape, kernel, mode)


def test_untrainable_layer_is_in_inference(kernel, mode):
    layer = support.built(kn.BatchNormalization(), (3, 5, 7, 11))
    layer.trainable = False
    draw = np.random.default_rng(13)
    layer.moving_mean.assign(draw.normal(size=11))
    x = draw.normal(size=(3, 5, 7, 11)).astype("float32")
    gamma, beta = support.parameters(layer)
    moving = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    want = reference.frozen_batch_norm(x, gamma, beta, *moving)
    got = support.compiled(lambda x: layer(x, training=True), mode)(tf.constant(x))
    bound = 8 * support.EPS32 * (1 + abs(moving[0]).max()) * support.largest(gamma)
    support.close(got, want, atol=bound)
    np.testing.assert_array_equal(layer.moving_mean, moving[0])
    layer.trainable = True
    layer(x, training=True)
    assert np.abs(layer.moving_mean.numpy() - moving[0]).max() > 0


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_inference_in_other_types(dtype, kernel, mode, rng):
    layer = support.built(kn.BatchNormalization(dtype=support.policy(dtype)), (3, 5, 7))
    layer.moving_mean.assign(rng.normal(size=7))
    layer.moving_variance.assign(rng.uniform(0.5, 2, 7))
    x = rng.normal(size=(3, 5, 7)).astype(dtype)
    moving = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    gamma, beta = support.parameters(layer)
    want = reference.frozen_batch_norm(x, gamma, beta, *moving)
    unit = support.EPS64 if dtype == "float64" else support.EPS32
    bound = 8 * unit * (1 + abs(moving[0] / np.sqrt(moving[1])).max()) * support.largest(gamma)
    got = support.compiled(layer, mode)(tf.constant(x))
    assert got.dtype == dtype
    support.close(got, want, atol=bound, rtol=support.ROUNDING[dtype])


# Masks.

# name: shape, axis, shape of the mask, and the axes of x that it has.
MASKS = {
    "sequence": ((3, 13, 7), -1, (3, 13), (0, 1)),
    "sequence_first": ((3, 7, 13), 1, (3, 13), (0, 2)),
    "image": ((3, 5, 4, 7), -1, (3, 5, 4), (0, 1, 2)),
    "image_first": ((3, 7, 5, 4), 1, (3, 5, 4), (0, 2, 3)),
    "rows_of_image": ((3, 5, 4, 7), -1, (3, 5), (0, 1)),
    "samples": ((5, 4, 7), -1, (5,), (0,)),
    "one_for_all": ((5, 4, 7), -1, (1, 4), (0, 1)),
}


@pytest.mark.parametrize("name", MASKS)
def test_mask_matches_reference(name, kernel, mode):
    shape, axis, mask_shape, axes = MASKS[name]
    draw = np.random.default_rng(17)
    mask = draw.uniform(size=mask_shape) < 0.6
    mask.flat[0], mask.flat[-1] = False, True
    layer = support.built(kn.BatchNormalization(axis, momentum=0.0), shape)
    run = support.runner(layer, mode, training=True, mask=tf.constant(mask))
    gamma, beta = support.parameters(layer)
    where = reference.spread(mask, axes, len(shape)) > 0
    for mean in support.MEANS:
        x = draw.normal(mean, 1, shape).astype("float32")
        dy = draw.normal(size=shape).astype("float32")
        got = run(x, dy)
        want = reference.batch_norm(x, gamma, beta, axis=axis, where=where)
        back = reference.batch_norm_gradients(dy, x, gamma, axis=axis, where=where)
        # Masks run on the portable path whichever kernel is set.
        support.close(
            got.y, want.y, atol=2e-5 * support.largest(gamma), rtol=2.0**-24, what=f"{mean}"
        )
        for result, value in zip((got.dx, got.dgamma, got.dbeta), back[:3], strict=True):
            support.close(result, value, atol=2e-5 * np.abs(value).max(), what=f"mean {mean:g}")
        close_statistics(layer, want.mean.ravel(), want.variance.ravel(), "portable")


def test_mask_of_nothing_leaves_the_moving_statistics(kernel, mode, rng):
    shape = (3, 13, 7)
    layer = support.built(kn.BatchNormalization(momentum=0.5), shape)
    layer.moving_mean.assign(np.arange(7))
    mask = tf.zeros((3, 13), "bool")
    x = rng.normal(size=shape).astype("float32")
    got = support.runner(layer, mode, training=True, mask=mask)(x, x)
    assert np.isfinite(got.y).all() and np.isfinite(got.dx).all()
    np.testing.assert_array_equal(layer.moving_mean, np.arange(7))
    np.testing.assert_array_equal(layer.moving_variance, np.ones(7))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_what_the_mask_hides_does_not_matter(bad, kernel, mode, rng):
    shape = (3, 13, 7)
    mask = rng.uniform(size=shape[:2]) < 0.6
    mask[1, 2] = False
    layer = support.built(kn.BatchNormalization(momentum=0.0), shape)
    run = support.runner(layer, mode, training=True, mask=tf.constant(mask))
    x, dy = rng.normal(size=(2, *shape)).astype("float32")
    good = run(x, dy)
    moving = layer.moving_mean.numpy().copy(), layer.moving_variance.numpy().copy()
    x[1, 2] = bad
    got = run(x, dy)
    np.testing.assert_array_equal(got.y[mask], good.y[mask])
    np.testing.assert_array_equal(layer.moving_mean, moving[0])
    np.testing.assert_array_equal(layer.moving_variance, moving[1])


def test_mask_comes_from_the_model(kernel, rng):
    model = keras.Sequential([keras.layers.Masking(), kn.BatchNormalization(momentum=0.0)])
    x = rng.normal(size=(3, 13, 7)).astype("float32")
    x[0, 5:] = 0
    x[2, 1:] = 0
    model(x, training=True)
    where = (x != 0).any(-1, keepdims=True)
    want = reference.batch_norm(x, None, None, where=where)
    close_statistics(model.layers[1], want.mean.ravel(), want.variance.ravel(), "portable")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mask_shape", [(3, 7), (13,), (3, 13, 7), (13, 3)])
def test_mask_of_wrong_shape(mask_shape, training):
    layer = kn.BatchNormalization()
    with pytest.raises(ValueError, match=r"`mask` must have .*Received: mask.shape=\("):
        layer(np.zeros((3, 13, 7), "float32"), training=training, mask=np.ones(mask_shape, bool))


# Arguments.


def test_synchronized_on_one_replica_is_the_same(kernel, rng):
    x = rng.normal(1e2, 1, (5, 7, 3)).astype("float32")
    layers = [support.built(kn.BatchNormalization(synchronized=s), x.shape) for s in (False, True)]
    got = [layer(x, training=True).numpy().astype("float64") for layer in layers]
    support.close(*got, atol=2 * support.FORWARD[kernel] * support.largest(layers[0].gamma.numpy()))
    got = [layer.moving_variance.numpy().astype("float64") for layer in layers]
    support.close(*got, atol=0, rtol=8 * support.EPS32)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_momentum_out_of_range(momentum):
    with pytest.raises(ValueError, match=r"`momentum` must be in \[0, 1\]. Received: momentum="):
        kn.BatchNormalization(momentum=momentum)


@pytest.mark.parametrize("epsilon", [-1e-3, float("nan")])
def test_epsilon_out_of_range(epsilon):
    with pytest.raises(ValueError, match=r"`epsilon` must be at least 0. Received: epsilon="):
        kn.BatchNormalization(epsilon=epsilon)


def test_weights_and_config():
    layer = kn.BatchNormalization(1, momentum=0.5, epsilon=1e-4)
    layer.build((None, 7, None, None))
    names = ["gamma", "beta", "moving_mean", "moving_variance"]
    assert [(w.name, tuple(w.shape)) for w in layer.weights] == [(n, (7,)) for n in names]
    assert [w.name for w in layer.trainable_weights] == names[:2]
    for weight, value in zip(layer.weights, (1, 0, 0, 1), strict=True):
        np.testing.assert_array_equal(weight, np.full(7, value))
    config = layer.get_config()
    assert (config["axis"], config["momentum"], config["epsilon"]) == (1, 0.5, 1e-4)
    assert layer.compute_output_shape((None, 7, 5, None)) == (None, 7, 5, None)


@pytest.mark.parametrize(
    "axis, shape, message",
    [
        (3, (2, 5, 6), r"Axis 3 is out of bounds for shape \(2, 5, 6\)"),
        (-4, (2, 5, 6), "Axis -4 is out of bounds"),
        (-1, (2, 5, None), "must be known.*None"),
    ],
)
def test_errors_of_build(axis, shape, message):
    with pytest.raises(ValueError, match=message):
        kn.BatchNormalization(axis).build(shape)
