import keras
import numpy as np
import pytest
import support
import tensorflow as tf

import keras_norms as kn

SHAPE = (5, 7, 3, 6)

# name: shape, axis.
GEOMETRIES = {
    "nchw": ((3, 10, 5, 7), 1),
    "rank_2": ((23, 4), -1),
    "rank_3": ((2, 13, 6), 2),
    "rank_5": ((2, 3, 2, 5, 4), -1),
    "one_position": ((5, 1, 1, 6), -1),
    "batch_1": ((1, 17, 3, 4), -1),
}


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("series", ["B0", "S0"])
def test_matches_reference(series, name, kernel):
    shape, axis = GEOMETRIES[name]
    layers = {"B0": kn.EvoNormalizationB0(axis), "S0": kn.EvoNormalizationS0(2, axis)}
    arguments = {"training": True} if series == "B0" else {}
    support.check(layers[series], shape, kernel, "eager", **arguments)


def timm_b0(x, weight, bias, v, running, training, momentum=0.1, eps=1e-3):
    """timm's EvoNorm2dB0, channels last; momentum in PyTorch's sense."""
    n = x.size // x.shape[-1]
    variance = running
    if training:
        variance = x.var((0, 1, 2))
        running = running * (1 - momentum) + variance * momentum * (n / (n - 1))
    left = np.sqrt(variance + eps)
    right = x * v + np.sqrt(x.var((1, 2), keepdims=True) + eps)
    return x / np.maximum(left, right) * weight + bias, running


def test_b0_is_that_of_timm(kernel, rng):
    layer = support.built(kn.EvoNormalizationB0(unbiased_moving_variance=True), SHAPE)
    weight, bias, v = (w.numpy().astype("float64") for w in (layer.gamma, layer.beta, layer.v))
    running = np.ones(6)
    for training in (True, True, False):
        x = rng.normal(0.5, 2, SHAPE).astype("float32")
        want, running = timm_b0(x.astype("float64"), weight, bias, v, running, training)
        support.close(layer(x, training=training), want, atol=1e-5)
        support.close(layer.moving_variance, running, atol=1e-5)


def test_s0_is_that_of_timm(kernel, rng):
    layer = support.built(kn.EvoNormalizationS0(group_size=2), SHAPE)
    x = rng.normal(0.5, 2, SHAPE).astype("float32")
    wide = x.astype("float64")
    std = np.sqrt(wide.reshape(5, 21, 3, 2).var((1, 3)) + 1e-5)
    std = np.repeat(std, 2, axis=1)[:, None, None]
    weight, bias, v = (w.numpy().astype("float64") for w in (layer.gamma, layer.beta, layer.v))
    support.close(layer(x), wide / (1 + np.exp(-wide * v)) / std * weight + bias, atol=1e-5)


def test_b0_of_a_large_v_is_bounded():
    """Where v x is the larger, y tends to 1 / v."""
    layer = kn.EvoNormalizationB0()
    x = np.array([[[1.0]], [[1e6]]], "float32")
    layer.build(x.shape)
    layer.v.assign([4])
    support.close(layer(x, training=False)[1], [[0.25]], atol=1e-6)


@pytest.mark.parametrize("momentum", [0.9, None])
def test_moving_variance_after_one_step_and_two(momentum, kernel, rng):
    layer = kn.EvoNormalizationB0(momentum=momentum)
    want = np.ones(6)
    for step in range(2):
        x = rng.normal(1e4, 1 + step, SHAPE).astype("float32")
        layer(x, training=True)
        past = momentum if momentum is not None else 1 - 1 / (step + 1)
        want = want * past + x.astype("float64").var((0, 1, 2)) * (1 - past)
        support.close(layer.moving_variance, want, atol=0, rtol=2e-5)


def test_what_leaves_the_moving_variance(kernel, rng):
    layer = support.built(kn.EvoNormalizationB0(momentum=0.5), SHAPE)
    x = rng.normal(3, 1, SHAPE).astype("float32")
    nothing = {"mask": tf.zeros(SHAPE[:2], "bool")}
    for given, arguments in ((x[:0], {}), (x[:, :0], {}), (x, nothing)):
        assert np.isfinite(layer(given, training=True, **arguments)).all()
    layer(x)
    layer.freeze_statistics = True
    layer(x, training=True)
    np.testing.assert_array_equal(layer.moving_variance, np.ones(6))


def test_masks(kernel, rng):
    """Neighbours of one value in the mask: as if the others were not there."""
    x = rng.normal(3, 1, SHAPE).astype("float32")
    mask = np.zeros(SHAPE[:2], bool)
    mask[:, :4] = True
    for layer in (kn.EvoNormalizationB0(momentum=0.0), kn.EvoNormalizationS0(2)):
        support.built(layer, SHAPE)
        arguments = support.training(layer)
        got = layer(x, mask=tf.constant(mask), **arguments).numpy()[:, :4]
        want = layer(x[:, :4], **arguments).numpy().astype("float64")
        support.close(got, want, atol=1e-5)
    variance = x[:, :4].astype("float64").var((0, 1, 2))
    layer = kn.EvoNormalizationB0(momentum=0.0)
    layer(x, mask=tf.constant(mask), training=True)
    support.close(layer.moving_variance, variance, atol=1e-5)


def test_recomputed_variance_is_that_of_all_batches(rng):
    layer = kn.EvoNormalizationB0()
    model = keras.Sequential([keras.Input(SHAPE[1:]), layer])
    batches = [
        rng.normal(i, 1 + i, (n, *SHAPE[1:])).astype("float32") for i, n in enumerate((5, 3))
    ]
    kn.recompute_statistics(model, batches, verbose=0)
    want = np.concatenate(batches).astype("float64").var((0, 1, 2))
    support.close(layer.moving_variance, want, atol=1e-5)


def test_weights_and_config():
    layer = kn.EvoNormalizationB0(1, scale=False)
    layer.build((None, 7, None))
    assert [w.name for w in layer.weights] == ["beta", "v", "moving_variance"]
    assert [w.name for w in layer.trainable_weights] == ["beta", "v"]
    np.testing.assert_array_equal(layer.v, np.ones(7))
    assert "moving_mean_initializer" not in layer.get_config()
    layer = kn.EvoNormalizationS0(center=False, group_size=2)
    layer.build((None, 7, 6))
    assert [w.name for w in layer.weights] == ["gamma", "v"]
    assert layer.get_config()["group_size"] == 2


def test_errors():
    with pytest.raises(ValueError) as error:
        kn.EvoNormalizationS0().build((None, 7, 6))
    assert str(error.value) == (
        "`groups` must be positive and divide the number of channels. "
        "Received: groups=32, channels=6 (shape=(None, 7, 6), axis=-1)."
    )
    with pytest.raises(ValueError, match="Axis 0 holds the samples"):
        kn.EvoNormalizationB0(0).build((5, 7))


def test_arguments_that_mean_nothing_are_refused():
    for layer, name in (
        (kn.EvoNormalizationB0, "moving_mean_initializer"),
        (kn.PowerNormalization, "moving_mean_initializer"),
        (kn.PowerNormalization, "moving_variance_initializer"),
    ):
        message = rf"Unrecognized keyword arguments, which mean nothing here: \{{'{name}': 'ones'"
        with pytest.raises(ValueError, match=message):
            layer(**{name: "ones"})
