import keras
import numpy as np
import pytest
import reference
import reference_mixing
import support
import tensorflow as tf

import keras_norms as kn

SHAPE = (5, 7, 3, 6)

# name: shape, axis.
GEOMETRIES = {
    "nchw": ((3, 11, 5, 7), 1),
    "rank_2": ((23, 7), -1),
    "rank_3": ((2, 13, 5), 2),
    "rank_5": ((2, 3, 2, 5, 7), -1),
    "one_position": ((5, 1, 1, 6), -1),
    "batch_1": ((1, 17, 3, 5), -1),
    "one_channel": ((3, 5, 7, 1), -1),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_matches_reference(name, kernel):
    shape, axis = GEOMETRIES[name]
    support.check(kn.SwitchableNormalization(axis), shape, kernel, "eager", training=True)


@pytest.mark.parametrize("statistics", [("instance", "batch"), ("layer", "batch"), ("layer",)])
def test_subsets_match_reference(statistics, kernel):
    layer = kn.SwitchableNormalization(statistics=statistics)
    support.check(layer, SHAPE, kernel, "eager", means=(0, 1e6), training=True)


# The authors' code, transcribed: variances unbiased, E[x^2] - E[x]^2.


class Authors:
    def __init__(self, gamma, beta, mean_weights, variance_weights, momentum=0.9, epsilon=1e-5):
        self.parameters = gamma, beta, mean_weights, variance_weights
        self.momentum, self.epsilon = momentum, epsilon
        self.mean, self.variance = np.zeros(len(gamma)), np.zeros(len(gamma))

    def __call__(self, x, training):
        gamma, beta, *logits = self.parameters
        flat = x.astype("float64").reshape(len(x), -1, x.shape[-1])
        with np.errstate(invalid="ignore", divide="ignore"):
            n = flat.shape[1]
            mean_in, var_in = flat.mean(1), flat.var(1) * n / (n - 1)
        square = var_in + mean_in**2
        mean_ln = mean_in.mean(1, keepdims=True)
        var_ln = square.mean(1, keepdims=True) - mean_ln**2
        if training:
            mean_bn = mean_in.mean(0)
            var_bn = square.mean(0) - mean_bn**2
            self.mean = self.momentum * self.mean + (1 - self.momentum) * mean_bn
            self.variance = self.momentum * self.variance + (1 - self.momentum) * var_bn
        else:
            mean_bn, var_bn = self.mean, self.variance
        a, b = (np.exp(w) / np.exp(w).sum() for w in logits)
        mean = a[0] * mean_in + a[1] * mean_ln + a[2] * mean_bn
        var = b[0] * var_in + b[1] * var_ln + b[2] * var_bn
        y = (flat - mean[:, None]) / np.sqrt(var[:, None] + self.epsilon)
        return (y * gamma + beta).reshape(x.shape)


def test_is_the_authors_algorithm(kernel, rng):
    layer = kn.SwitchableNormalization(
        unbiased_instance_variance=True, moving_variance_initializer="zeros"
    )
    support.built(layer, SHAPE)
    names = "gamma", "beta", "mean_weights", "variance_weights"
    theirs = Authors(*(getattr(layer, name).numpy().astype("float64") for name in names))
    for training in (True, True, False):
        x = rng.normal(3, 2, SHAPE).astype("float32")
        atol = support.FORWARD[kernel] * support.largest(layer.gamma.numpy())
        support.close(layer(x, training=training), theirs(x, training), atol=atol)
        support.close(layer.moving_mean, theirs.mean, atol=2e-6)
        support.close(layer.moving_variance, theirs.variance, atol=2e-5)


def test_one_position(kernel, rng):
    """An instance of one element: NaN in the authors' code, also without "instance"."""
    x = rng.normal(3, 2, (5, 1, 1, 6)).astype("float32")
    one, zero = np.ones(6), np.zeros(6)
    assert np.isnan(Authors(one, zero, zero[:3], zero[:3])(x, True)).all()
    for unbiased in (False, True):
        layer = kn.SwitchableNormalization(unbiased_instance_variance=unbiased)
        support.check(layer, x.shape, kernel, "eager", means=(3,), training=True)


def test_unbiased_for_unknown_sizes(kernel, rng):
    layer = support.built(kn.SwitchableNormalization(unbiased_instance_variance=True), SHAPE)
    x = rng.normal(3, 1, SHAPE).astype("float32")
    weights = support.weights_of(layer)
    want = reference_mixing.switchable_normalization(x, weights, layer.get_config(), True)
    spec = tf.TensorSpec([None, None, None, 6])
    got = tf.function(lambda x: layer(x, training=True), input_signature=[spec])(x)
    support.close(got, want, atol=2e-5 * support.largest(layer.gamma.numpy()))


# Of one statistic it is the norm of that name.

ALONE = {
    "instance": (kn.InstanceNormalization, {}),
    "layer": (kn.GroupNormalization, {"groups": 1}),  # layer norm with a gamma per channel
    "batch": (kn.BatchNormalization, {}),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ALONE)
def test_one_statistic_is_that_norm(name, training, masked, kernel, rng):
    cls, arguments = ALONE[name]
    other = support.built(cls(epsilon=1e-3, **arguments), SHAPE)
    layer = kn.SwitchableNormalization(momentum=0.99, epsilon=1e-3, statistics=[name])
    support.built(layer, SHAPE)
    weights = dict(zip((w.name for w in layer.weights), layer.weights, strict=True))
    for weight in other.weights:
        weights[weight.name].assign(weight)
    x = tf.constant(rng.normal(1e4, 2, SHAPE).astype("float32"))
    mask = rng.uniform(size=SHAPE[:3]) < 0.6
    mask[1] = False  # a sample as a whole
    options = {"mask": tf.constant(mask)} if masked else {}
    both = {"training": training} if name == "batch" else {}
    got, want = layer(x, training=training, **options), other(x, **both, **options)
    size = support.largest(other.gamma.numpy()) * (1 if training or name != "batch" else 1e4 / 0.03)
    support.close(got, want.numpy().astype("float64"), atol=8e-6 * size)
    for weight in other.non_trainable_weights:
        support.close(weights[weight.name], weight.numpy().astype("float64"), atol=0, rtol=1e-5)


def test_mixture():
    layer = kn.SwitchableNormalization(statistics=("instance", "batch"))
    layer.build(SHAPE)
    assert layer.mixture() == {
        "mean": {"instance": 0.5, "batch": 0.5},
        "variance": {"instance": 0.5, "batch": 0.5},
    }
    layer.variance_weights.assign(np.log([1.0, 3.0]))
    got = layer.mixture()["variance"]
    assert list(got) == ["instance", "batch"]
    np.testing.assert_allclose(list(got.values()), [0.25, 0.75], rtol=1e-6)


# Moving statistics.


@pytest.mark.parametrize("momentum", [0.9, 0.0, None])
def test_moving_statistics_after_one_step_and_two(momentum, kernel, rng):
    layer = support.built(kn.SwitchableNormalization(momentum=momentum), SHAPE)
    run = support.runner(layer, "eager", training=True)
    mean, variance = np.zeros(6), np.ones(6)
    for step in range(2):
        x = rng.normal(1e4 + step, 2, SHAPE).astype("float32")
        run(x, x)
        _, *batch = reference.batch_norm(x, None, None)
        past = momentum if momentum is not None else 1 - 1 / (step + 1)
        mean, variance = (
            reference.moving_average(old, new.ravel(), past)
            for old, new in zip((mean, variance), batch, strict=True)
        )
        support.close(layer.moving_mean, mean, atol=0, rtol=4 * support.EPS32)
        support.close(layer.moving_variance, variance, atol=0, rtol=2e-5)


def changed(layer, x, **arguments):
    """Whether a call moves the moving statistics."""
    before = [w.numpy() for w in layer.non_trainable_weights]
    y = layer(x, **arguments)
    assert np.isfinite(y.numpy()).all()
    return any(
        (w.numpy() != b).any() for w, b in zip(layer.non_trainable_weights, before, strict=True)
    )


@pytest.mark.parametrize("momentum", [0.9, None])
def test_what_leaves_the_moving_statistics(momentum, kernel, rng):
    layer = support.built(kn.SwitchableNormalization(momentum=momentum), SHAPE)
    x = rng.normal(3, 1, SHAPE).astype("float32")
    assert changed(layer, x, training=True)
    assert not changed(layer, x)
    assert not changed(layer, x[:0], training=True)
    assert not changed(layer, x[:, :0], training=True)
    assert not changed(layer, x, training=True, mask=tf.zeros(SHAPE[:3], "bool"))
    assert not changed(layer, x, training=True, mask=tf.zeros(SHAPE[:1], "bool"))
    layer.freeze_statistics = True
    assert not changed(layer, x, training=True)
    layer.freeze_statistics, layer.trainable = False, False
    assert not changed(layer, x, training=True)


def test_mask_of_samples(kernel, rng):
    """Those left out are normalized by the statistics of the others."""
    layer = support.built(kn.SwitchableNormalization(momentum=0.0, statistics=["batch"]), SHAPE)
    x = rng.normal(3, 1, SHAPE).astype("float32")
    keep = np.array([True, False, True, True, False])
    got = layer(x, training=True, mask=tf.constant(keep))
    _, mean, variance = reference.batch_norm(x[keep], None, None)
    support.close(layer.moving_mean, mean.ravel(), atol=2e-6)
    support.close(layer.moving_variance, variance.ravel(), atol=1e-5)
    gamma, beta = support.parameters(layer)
    moving = mean.ravel(), variance.ravel()
    want = reference.frozen_batch_norm(x, gamma, beta, *moving, epsilon=1e-5)
    support.close(got, want, atol=2e-5 * support.largest(gamma))


def test_recomputed_statistics_are_those_of_all_batches(rng):
    """The paper's "batch average", here of all elements."""
    layer = kn.SwitchableNormalization()
    model = keras.Sequential([keras.Input(SHAPE[1:]), layer])
    batches = [
        rng.normal(i, 1 + i, (n, *SHAPE[1:])).astype("float32") for i, n in enumerate((5, 3))
    ]
    assert kn.recompute_statistics(model, batches, verbose=0) == [layer.path]
    _, mean, variance = reference.batch_norm(np.concatenate(batches), None, None)
    support.close(layer.moving_mean, mean.ravel(), atol=1e-6)
    support.close(layer.moving_variance, variance.ravel(), atol=1e-5)


def test_nothing_moves_without_batch_statistics():
    layer = kn.SwitchableNormalization(statistics=["instance", "layer"], momentum=None)
    layer.build(SHAPE)
    names = ["gamma", "beta", "mean_weights", "variance_weights"]
    assert [w.name for w in layer.weights] == names
    model = keras.Sequential([keras.Input(SHAPE[1:]), layer])
    with pytest.raises(ValueError, match="holds no layer of keras_norms with moving statistics"):
        kn.recompute_statistics(model, [np.zeros(SHAPE)], verbose=0)


# Arguments.


@pytest.mark.parametrize("given", [(), ("batch", "layer"), ("batch", "batch"), ("group",), "batch"])
def test_statistics_are_checked(given):
    with pytest.raises(ValueError) as error:
        kn.SwitchableNormalization(statistics=given)
    assert str(error.value) == (
        "`statistics` must be some of ('instance', 'layer', 'batch'), in this order. "
        f"Received: statistics={given!r}."
    )


def test_axis_0_holds_the_samples():
    with pytest.raises(ValueError, match="Axis 0 holds the samples"):
        kn.SwitchableNormalization(0).build(SHAPE)


def test_weights_and_config():
    layer = kn.SwitchableNormalization(1, momentum=None, scale=False, statistics=("layer", "batch"))
    layer.build((None, 7, None))
    shapes = {"beta": (7,), "moving_mean": (7,), "moving_variance": (7,), "batch_count": ()}
    shapes |= {"mean_weights": (2,), "variance_weights": (2,)}
    assert {w.name: tuple(w.shape) for w in layer.weights} == shapes
    trainable = ["beta", "mean_weights", "variance_weights"]
    assert [w.name for w in layer.trainable_weights] == trainable
    config = layer.get_config()
    assert (config["statistics"], config["momentum"]) == (["layer", "batch"], None)


def test_graph_of_a_step_is_small():
    """It was 2439 operations for open sizes, and 17 s to trace a model with four of these."""
    layer = kn.SwitchableNormalization()
    layer.build((None, None, None, 8))

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 8))], autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            y = layer(x, training=True)
        return tape.gradient(y, [w.value for w in layer.trainable_weights], y)

    if kn.kernel_info().fused:
        assert len(step.get_concrete_function().graph.get_operations()) < 800


def test_mixture_of_a_layer_that_is_not_built():
    with pytest.raises(ValueError, match="`mixture` needs a layer that is built"):
        kn.SwitchableNormalization().mixture()


def test_mask_over_channels_is_refused():
    """Without space, too: each sample would count by how many of its channels are True."""
    x, mask = np.zeros((4, 3), "float32"), np.ones((4, 3), "bool")
    for layer in (kn.SwitchableNormalization(), kn.EvoNormalizationB0()):
        with pytest.raises(ValueError, match=r"`mask` must have the sizes of the input's axes"):
            layer(x, training=True, mask=mask)
