import keras
import numpy as np
import pytest
import reference
import support
import tensorflow as tf

import keras_norms as kn

SHAPE = (5, 7, 3, 6)

# name: shape, axis, groups.
GEOMETRIES = {
    "one_group": (SHAPE, -1, 1),
    "nchw": ((3, 10, 5, 7), 1, 5),
    "rank_2": ((23, 8), -1, 2),
    "rank_5": ((2, 3, 2, 5, 6), -1, 3),
    "rank_1": ((12,), 0, 3),
    "batch_1": ((1, 17, 3, 4), -1, 2),
    "one_position": ((5, 1, 1, 6), -1, 2),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_matches_reference(name, kernel):
    shape, axis, groups = GEOMETRIES[name]
    layer = kn.BatchGroupNormalization(groups, axis)
    support.check(layer, shape, kernel, "eager", training=True)
    assert layer.moving_mean.shape == layer.moving_variance.shape == (groups,)


@pytest.mark.parametrize("name", ["nchw", "rank_5", "rank_1"])
def test_inference_matches_reference(name, kernel, rng):
    shape, axis, groups = GEOMETRIES[name]
    layer = support.built(kn.BatchGroupNormalization(groups, axis), shape)
    layer.moving_mean.assign(rng.normal(3, 1, groups))
    layer.moving_variance.assign(rng.uniform(0.5, 2, groups))
    run = support.runner(layer, "eager")
    x, dy = support.drawn(rng, 3, shape), support.drawn(rng, 0, shape)
    support.compare(layer, x, dy, run(x, dy), kernel, training=False)


@pytest.mark.parametrize("groups", [-1, 6])
def test_a_group_per_channel_is_batch_normalization(groups, kernel, rng):
    layer = support.built(kn.BatchGroupNormalization(groups, momentum=0.9), SHAPE)
    other = kn.BatchNormalization(momentum=0.9)
    other.build(SHAPE)
    other.set_weights(layer.get_weights())
    for training in (True, True, False):
        x, dy = rng.normal(1e2, 1, (2, *SHAPE)).astype("float32")
        got, want = (support.runner(v, "eager", training=training)(x, dy) for v in (layer, other))
        np.testing.assert_array_equal(got.y, want.y)
        np.testing.assert_array_equal(got.dx, want.dx)
    for a, b in zip(layer.weights, other.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def of_groups(x, groups):
    """Mean and variance of each group over the rest."""
    split = np.moveaxis(x.astype("float64").reshape(*x.shape[:-1], groups, -1), -2, 0)
    flat = split.reshape(groups, -1)
    return flat.mean(1), flat.var(1)


@pytest.mark.parametrize("momentum", [0.9, None])
@pytest.mark.parametrize("mean", [0, 1e6])
def test_moving_statistics_after_one_step_and_two(momentum, mean, kernel, rng):
    layer = support.built(kn.BatchGroupNormalization(2, momentum=momentum), SHAPE)
    moving = np.zeros(2), np.ones(2)
    for step in range(2):
        x = rng.normal(mean, 2 + step, SHAPE).astype("float32")
        layer(x, training=True)
        past = momentum if momentum is not None else 1 - 1 / (step + 1)
        batch = of_groups(x, 2)
        moving = [reference.moving_average(o, n, past) for o, n in zip(moving, batch, strict=True)]
        support.close(layer.moving_mean, moving[0], atol=2e-6, rtol=4 * support.EPS32)
        support.close(layer.moving_variance, moving[1], atol=0, rtol=2e-5)


def test_unbiased_moving_variance_counts_the_channels_of_a_group(kernel, rng):
    layer = kn.BatchGroupNormalization(2, momentum=0.0, unbiased_moving_variance=True)
    x = rng.normal(3, 2, (3, 4)).astype("float32")
    layer(x, training=True)
    support.close(layer.moving_variance, of_groups(x, 2)[1] * 6 / 5, atol=1e-5)


def test_mask(kernel, rng):
    """Each position's channels count or do not; the rest is normalized all the same."""
    shape = (3, 13, 6)
    layer = support.built(kn.BatchGroupNormalization(2, momentum=0.0), shape)
    x = rng.normal(1e4, 1, shape).astype("float32")
    mask = rng.uniform(size=shape[:2]) < 0.6
    got = layer(x, training=True, mask=tf.constant(mask))
    mean, variance = of_groups(x[mask], 2)
    support.close(layer.moving_mean, mean, atol=2e-3)
    support.close(layer.moving_variance, variance, atol=1e-5)
    gamma, beta = support.parameters(layer)
    moving = np.repeat(mean, 3), np.repeat(variance, 3)
    want = reference.frozen_batch_norm(x, gamma, beta, *moving)
    support.close(got, want, atol=2e-5 * support.largest(gamma))


def test_what_leaves_the_moving_statistics(kernel, rng):
    layer = support.built(kn.BatchGroupNormalization(2, momentum=0.5), SHAPE)
    x = rng.normal(3, 1, SHAPE).astype("float32")
    nothing = tf.zeros(SHAPE[:2], "bool")
    for given, arguments in ((x[:0], {}), (x[:, :0], {}), (x, {"mask": nothing})):
        assert np.isfinite(layer(given, training=True, **arguments)).all()
    layer.freeze_statistics = True
    layer(x, training=True)
    np.testing.assert_array_equal(layer.moving_mean, np.zeros(2))
    np.testing.assert_array_equal(layer.moving_variance, np.ones(2))


def test_recomputed_statistics_are_those_of_all_batches(rng):
    layer = kn.BatchGroupNormalization(3)
    model = keras.Sequential([keras.Input(SHAPE[1:]), layer])
    batches = [
        rng.normal(i, 1 + i, (n, *SHAPE[1:])).astype("float32") for i, n in enumerate((5, 3))
    ]
    kn.recompute_statistics(model, batches, verbose=0)
    mean, variance = of_groups(np.concatenate(batches), 3)
    support.close(layer.moving_mean, mean, atol=1e-6)
    support.close(layer.moving_variance, variance, atol=1e-5)


@pytest.mark.parametrize("groups", [0, -2, 2.0, None])
def test_groups_are_checked(groups):
    with pytest.raises(ValueError) as error:
        kn.BatchGroupNormalization(groups)
    assert str(error.value) == (
        "`groups` must be a positive int, or -1 for a group per channel. "
        f"Received: groups={groups!r}."
    )


@pytest.mark.parametrize("groups", [4, 12])
def test_groups_must_divide_the_channels(groups):
    """More groups than channels, which cut space in the paper, are refused, too."""
    with pytest.raises(ValueError) as error:
        kn.BatchGroupNormalization(groups).build((None, 7, 6))
    assert str(error.value) == (
        "`groups` must be positive and divide the number of channels. "
        f"Received: groups={groups}, channels=6 (shape=(None, 7, 6), axis=-1)."
    )
