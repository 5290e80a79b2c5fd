import keras
import numpy as np
import pytest
import reference_mixing
import support
import tensorflow as tf

import keras_norms as kn
from keras_norms.simplex import largest_radius, sparsemax, sparsestmax

SHAPE = (5, 7, 3, 6)
LARGEST = (2 / 3) ** 0.5
RADII = [0.0, 0.1, 0.3, 0.41, 0.5, 0.6, 0.75, LARGEST]


def logits(size, count=200):
    return np.random.default_rng(size).normal(size=(count, size)).astype("float32")


@tf.function(autograph=False)
def _rows(z, radius):
    return tf.map_fn(lambda row: sparsestmax(row, radius), z)


@tf.function(autograph=False)
def _gradients(z, radius, dy):
    with tf.GradientTape() as tape:
        tape.watch(z)
        y = _rows(z, radius)
    return tape.gradient(y, z, dy)


def sparsest(z, radius):
    """Of each row."""
    return _rows(tf.constant(z), tf.constant(radius, "float64")).numpy()


# The functions.


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_sparsemax(size):
    z = logits(size)
    got = tf.function(lambda z: tf.map_fn(sparsemax, z), autograph=False)(tf.constant(z))
    want = np.stack([reference_mixing.sparsemax(row) for row in z])
    support.close(got, want, atol=4 * support.EPS32)


@pytest.mark.parametrize("radius", RADII)
def test_sparsestmax(radius):
    z = logits(3)
    got = sparsest(z, radius)
    want = np.stack([reference_mixing.sparsestmax(row, radius) for row in z])
    support.close(got, want, atol=1e-5)  # a direction is a quotient of differences
    support.close(got.sum(1), np.ones(len(z)), atol=1e-6)
    assert got.min() >= 0
    assert np.linalg.norm(got - 1 / 3, axis=1).min() >= radius - 1e-5


def test_sparsestmax_by_hand():
    """The center is (1/3, 1/3, 1/3); from it (1, 0, 0) is sqrt(2/3) away, edges sqrt(1/6)."""
    z = tf.constant([0.6, 0.4, 0.0])  # on an edge, 0.432 from the center
    np.testing.assert_allclose(sparsestmax(z, 0.3), z, atol=1e-7)
    # On the edge it must be sqrt(0.25 - 1/6) from (0.5, 0.5, 0).
    there = (0.25 - 1 / 6) ** 0.5 / 2**0.5
    np.testing.assert_allclose(sparsestmax(z, 0.5), [0.5 + there, 0.5 - there, 0], atol=1e-6)
    np.testing.assert_array_equal(sparsestmax(z, LARGEST), [1, 0, 0])


@pytest.mark.parametrize("radius", [0.0, 0.3, 0.5, 0.7])
def test_no_point_of_the_set_is_nearer(radius):
    ticks = np.linspace(0, 1, 201)
    a, b = (v.ravel() for v in np.meshgrid(ticks, ticks))
    points = np.stack([a, b, 1 - a - b], 1)
    points = points[(points[:, 2] >= 0) & (np.linalg.norm(points - 1 / 3, axis=1) >= radius)]
    z = logits(3, 40)
    got = sparsest(z, radius)
    least = np.linalg.norm(points[None] - z[:, None], axis=2).min(1)
    assert (np.linalg.norm(got - z, axis=1) <= least + 1e-5).all()


@pytest.mark.parametrize("radius", RADII)
def test_gradient(radius):
    """Against central differences in float64, where no face is near its border."""
    dy = np.array([0.3, -1.2, 0.7])
    step = 1e-6
    z = logits(3, 60).astype("float64")
    slopes = tf.constant(np.broadcast_to(dy, z.shape))
    got = _gradients(tf.constant(z), tf.constant(radius, "float64"), slopes).numpy()
    want = np.stack(
        [
            (sparsest(z + step * e, radius) - sparsest(z - step * e, radius)) @ dy / (2 * step)
            for e in np.eye(3)
        ],
        axis=1,
    )
    support.close(got, want, atol=1e-4)
    if radius == LARGEST:
        np.testing.assert_array_equal(got, 0)


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_equal_logits_stay_uniform(size, radius):
    z = tf.ones(size)
    with tf.GradientTape() as tape:
        tape.watch(z)
        y = sparsestmax(z, radius)
    support.close(y, np.full(size, 1 / size), atol=1e-6)
    assert np.abs(tape.gradient(y, z, tf.range(size, dtype="float32"))).max() <= 2


@pytest.mark.parametrize("size", [1, 2, 3])
def test_largest_radius_leaves_one(size):
    got = sparsest(logits(size), largest_radius(size))
    np.testing.assert_array_equal(np.sort(got, axis=1)[:, :-1], 0)
    support.close(got.max(1), np.ones(len(got)), atol=support.EPS32)
    np.testing.assert_array_equal(got.argmax(1), logits(size).argmax(1))


# The layer.


@pytest.mark.parametrize("share", [0, 0.45, 1])
def test_matches_reference(share, kernel):
    layer = support.built(kn.SparseSwitchableNormalization(), SHAPE)
    layer.radius.assign(share * layer.largest_radius)
    layer.mean_weights.assign([0.4, 0.3, 0.1])  # all of them at a radius of 0
    layer.variance_weights.assign([-0.2, 0.3, 0.1])
    run = support.runner(layer, "eager", training=True)
    draw = np.random.default_rng(11)
    for mean in (0, 1e4):
        x, dy = support.drawn(draw, mean, SHAPE), support.drawn(draw, 0, SHAPE)
        support.compare(layer, x, dy, run(x, dy), kernel, what=f"mean {mean:g}")


def test_chosen_statistics_are_all_that_matters(kernel, rng):
    """With one statistic left it is that norm, and no gradient reaches the logits."""
    layer = support.built(kn.SparseSwitchableNormalization(), SHAPE)
    layer.radius.assign(layer.largest_radius)
    layer.mean_weights.assign([1, 2, 1.9])
    layer.variance_weights.assign([1, 1.01, 1])
    chosen = {"instance": 0.0, "layer": 1.0, "batch": 0.0}
    assert layer.mixture() == {"mean": chosen, "variance": chosen}
    other = kn.GroupNormalization(1, epsilon=1e-5)
    other.build(SHAPE)
    other.set_weights([layer.gamma.numpy(), layer.beta.numpy()])
    x, dy = rng.normal(3, 1, (2, *SHAPE)).astype("float32")
    got = support.runner(layer, "eager", training=True)(x, dy)
    support.close(got.y, other(x).numpy().astype("float64"), atol=1e-5)
    for name in ("mean_weights", "variance_weights"):
        np.testing.assert_array_equal(got.gradients[name], 0)


# The callback.


def model_of(*layers):
    inner = keras.Sequential([keras.Input((5, 4)), *layers])
    model = keras.Sequential([keras.Input((5, 4)), keras.layers.Dense(4), inner])
    model.compile("sgd", "mse", run_eagerly=True)  # faster for a few steps
    return model


class Seen(keras.callbacks.Callback):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.radii = layer, []

    def on_train_batch_end(self, batch, logs=None):
        self.radii.append(float(self.layer.radius.numpy()))


def test_callback_raises_the_radius_of_nested_layers(rng):
    two = kn.SparseSwitchableNormalization(statistics=["layer", "batch"])
    model = model_of(kn.SparseSwitchableNormalization(), two)
    x = rng.normal(size=(12, 5, 4)).astype("float32")
    seen = Seen(two)
    raising = kn.callbacks.SparsityRadius(epochs=2, start=0.2)
    model.fit(x, x, batch_size=6, epochs=4, verbose=0, callbacks=[raising, seen])
    largest = 0.5**0.5
    support.close(seen.radii, np.repeat([0.2, 0.6, 1, 1], 2) * largest, atol=1e-6)
    for layer in model.layers[-1].layers:
        support.close(layer.radius, layer.largest_radius, atol=1e-6)
        for weights in layer.mixture().values():
            assert sorted(weights.values())[-1] == pytest.approx(1, abs=1e-6)
    model.fit(x, x, epochs=2, initial_epoch=1, verbose=0, callbacks=[raising])
    support.close(two.radius, 0.6 * largest, atol=1e-6)


def test_callback_needs_a_layer():
    model = model_of(kn.SwitchableNormalization())
    with pytest.raises(ValueError) as error:
        model.fit(
            np.ones((2, 5, 4)), np.ones((2, 5, 4)), callbacks=[kn.callbacks.SparsityRadius(2)]
        )
    assert str(error.value) == (
        "`SparsityRadius` needs a model with a `SparseSwitchableNormalization`. "
        f"Received: model={model.name!r}."
    )


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        ({"epochs": 0}, ValueError, "`epochs` must be at least 1. Received: epochs=0."),
        ({"epochs": "2"}, TypeError, "`epochs` must be a number. Received: epochs='2'."),
        (
            {"epochs": 2, "start": 1.5},
            ValueError,
            "`start` must be in [0, 1]. Received: start=1.5.",
        ),
    ],
)
def test_callback_checks_its_arguments(arguments, kind, message):
    with pytest.raises(kind) as error:
        kn.callbacks.SparsityRadius(**arguments)
    assert str(error.value) == message


def test_weights():
    layer = kn.SparseSwitchableNormalization(statistics=["instance", "batch"])
    layer.build((None, 5, 7))
    assert [w.name for w in layer.non_trainable_weights] == [
        "moving_mean",
        "moving_variance",
        "radius",
    ]
    assert layer.radius.shape == () and layer.radius.numpy() == 0
    assert layer.largest_radius == pytest.approx(0.5**0.5)
