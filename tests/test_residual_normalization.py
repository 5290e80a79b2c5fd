import json

import keras
import numpy as np
import pytest
import support
import tensorflow as tf

import keras_norms as kn

SHAPE = (3, 5, 67)


def drawn(rng, shape=SHAPE, mean=0.0, dtype="float32"):
    return [x.astype(dtype) for x in rng.normal(mean, 1, (2, *shape))]


@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("shape, axis", [(SHAPE, -1), ((3, 11, 5, 7), 1), ((5, 6), 1)])
def test_matches_reference(norm, order, shape, axis, kernel):
    layer = kn.ResidualNormalization(norm, axis, order=order, alpha=2.0)
    means = support.MEANS if norm == "layer" else (0.0, 1e2)
    support.check(layer, [shape, shape], kernel, "graph", means=means)


@pytest.mark.parametrize(
    "norm, inner", [("layer", "LayerNormalization"), ("rms", "RMSNormalization")]
)
def test_is_the_norm_of_the_sum(norm, inner, kernel, rng):
    x, update = drawn(rng)
    want = getattr(kn, inner)()(x + update).numpy().astype("float64")
    support.close(kn.ResidualNormalization(norm)([x, update]), want, atol=support.FORWARD[kernel])
    y, s = kn.ResidualNormalization(norm, order="pre", alpha=0.5)([x, update])
    np.testing.assert_array_equal(s, x * np.float32(0.5) + update)
    support.close(
        y, getattr(kn, inner)()(s).numpy().astype("float64"), atol=support.FORWARD[kernel]
    )


def test_half_sum_is_taken_in_float32(kernel, rng):
    """4e4 + 4e4 is infinite in float16; its rounding would be 32."""
    x, update = drawn(rng, mean=4e4, dtype="float16")
    x, update = x + rng.normal(0, 1e3, SHAPE).astype("float16"), update
    layer = kn.ResidualNormalization(epsilon=1e-5, dtype="mixed_float16")
    layer.build([SHAPE, SHAPE])
    want, _ = support.expected(layer, [x, update], x.astype("float32"))
    got = layer([x, update])
    assert got.dtype == "float16" and layer.inner.gamma.dtype == "float32"
    support.close(got, want.y, atol=support.FORWARD[kernel], rtol=support.ROUNDING["float16"])
    _, s = kn.ResidualNormalization(order="pre", dtype="mixed_float16")([x / 4, update / 4])
    assert s.dtype == "float16"
    want = x.astype("float64") / 4 + update.astype("float64") / 4
    support.close(s, want, atol=0, rtol=1.01 * support.ROUNDING["float16"])


def test_dropout_is_of_the_update_in_training(rng):
    x, update = drawn(rng, (7, 11, 13))
    layer = kn.ResidualNormalization(order="pre", dropout=0.25, seed=3)
    _, s = layer([x, update], training=False)
    np.testing.assert_array_equal(s, x + update)
    _, s = layer([x, update], training=True)
    change = (s.numpy().astype("float64") - x) / update
    kept = change > 0.5
    support.close(change[kept], np.full(kept.sum(), 1 / 0.75), atol=1e-3)
    support.close(change[~kept], np.zeros((~kept).sum()), atol=1e-3)
    assert abs(kept.mean() - 0.75) < 0.05  # 1001 draws: a standard deviation of 0.014
    _, other = layer([x, update], training=True)
    assert np.abs(other - s).max() > 0
    _, again = kn.ResidualNormalization(order="pre", dropout=0.25, seed=3)(
        [x, update], training=True
    )
    np.testing.assert_array_equal(again, s)


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5", "model.h5"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"order": "pre", "dropout": 0.5, "seed": 1, "gamma_initializer": "random_normal"},
        {"norm": "rms", "offset": 1.0, "epsilon": 1e-4, "activation": "silu"},
        {"axis": [1, 2], "center": False, "alpha": 2},
    ],
)
def test_saved_and_restored(arguments, name, tmp_path, rng):
    def network(layer):
        inputs = [keras.Input(SHAPE[1:]), keras.Input(SHAPE[1:])]
        return keras.Model(inputs, layer(inputs))

    if name == "model.h5":  # Keras' legacy format drops a list of several axes
        arguments = {**arguments, "axis": -1}
    layer = kn.ResidualNormalization(**arguments)
    model = network(layer)
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape))
    if name == "model.weights.h5":
        model.save_weights(tmp_path / name)
        again = network(kn.ResidualNormalization.from_config(layer.get_config()))
        again.load_weights(tmp_path / name)
    else:
        model.save(tmp_path / name)
        again = keras.saving.load_model(tmp_path / name)
    x = drawn(rng)
    for got, want in zip(*map(tf.nest.flatten, (again(x), model(x))), strict=True):
        np.testing.assert_array_equal(got, want)


def test_config_holds_the_norms_arguments():
    layer = kn.ResidualNormalization(
        "layer", beta_regularizer=keras.regularizers.L2(0.1), scale=False, name="r"
    )
    config = json.loads(json.dumps(layer.get_config()))
    assert config["scale"] is False and config["epsilon"] is None and "center" not in config
    again = kn.ResidualNormalization.from_config(config)
    assert again.get_config() == layer.get_config()
    assert again.inner.beta_regularizer.get_config() == layer.inner.beta_regularizer.get_config()
    assert (again.inner.epsilon, kn.ResidualNormalization("rms").inner.epsilon) == (1e-3, 1e-6)
    layer.build([SHAPE, SHAPE])
    assert [(w.name, tuple(w.shape)) for w in layer.weights] == [("beta", (67,))]
    layer = kn.ResidualNormalization("rms", offset=1.0)
    layer.build([SHAPE, SHAPE])
    assert [(w.name, tuple(w.shape)) for w in layer.weights] == [("scale", (67,))]
    assert layer.get_config()["offset"] == 1.0


def test_first_mask_is_passed_on(rng):
    x, update = (tf.constant(part) for part in drawn(rng))
    x._keras_mask = mask = tf.constant(rng.random(SHAPE[:2]) < 0.5)
    assert kn.ResidualNormalization()([x, update])._keras_mask is mask
    y, s = kn.ResidualNormalization(order="pre")([x, update])
    assert y._keras_mask is s._keras_mask is mask
    # It says whose statistics count, where they are taken over what it masks.
    got = kn.ResidualNormalization(axis=[1, 2])([x, update])
    want = kn.LayerNormalization([1, 2])(x + update, mask=mask).numpy().astype("float64")
    support.close(got, want, atol=support.FORWARD["portable"])


def test_in_a_functional_model_of_open_sizes(kernel, rng):
    inputs = keras.Input((None, 6))
    layer = kn.ResidualNormalization(order="pre", alpha=1.5)
    y, s = layer([inputs, keras.layers.Dense(6)(inputs)])
    assert y.shape == s.shape == (None, None, 6)
    model = keras.Model(inputs, [y, s])
    assert [part.shape for part in model(rng.normal(size=(2, 7, 6)))] == [(2, 7, 6)] * 2
    shape = (None, 5, 6)
    assert layer.compute_output_shape([shape, shape]) == (shape, shape)


RULE = "`inputs` must be the list [x, update], two tensors of one shape. "


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"norm": "batch"}, '`norm` must be "layer" or "rms". Received: norm=\'batch\'.'),
        ({"order": "mid"}, '`order` must be "post" or "pre". Received: order=\'mid\'.'),
        ({"dropout": 1.5}, "`dropout` must be in [0, 1]. Received: dropout=1.5."),
        ({"epsilon": -1.0}, "`epsilon` must be at least 0. Received: epsilon=-1.0."),
    ],
)
def test_errors_of_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        kn.ResidualNormalization(**arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "shapes, received",
    [
        ([(2, 5, 6)], "shapes=[(2, 5, 6)]"),
        ([(2, 5, 6), (2, 1, 6)], "shapes=[(2, 5, 6), (2, 1, 6)]"),
        ([(2, 6), (2, 5, 6)], "shapes=[(2, 6), (2, 5, 6)]"),
        ((2, 5, 6), "shapes=[(2, 5, 6)]"),
    ],
)
def test_errors_of_inputs(shapes, received):
    with pytest.raises(ValueError) as error:
        kn.ResidualNormalization().build(shapes)
    assert str(error.value) == f"{RULE}Received: {received}."


def test_arguments_of_the_other_norm_are_refused():
    with pytest.raises(ValueError, match="offset"):
        kn.ResidualNormalization("layer", offset=1.0)
