import keras
import numpy as np
import pytest
import reference
import support
import tensorflow as tf

import keras_norms as kn

# name: shape, axis. Distinct primes, 1, or no multiple of 8.
GEOMETRIES = {
    "tokens": ((3, 5, 67), -1),
    "long": ((2, 1031), -1),
    "one_element": ((5, 1), -1),
    "rank_1": ((19,), 0),
    "rank_4": ((3, 5, 7, 11), -1),
    "channels_first": ((3, 11, 5, 7), 1),
    "all_but_samples": ((3, 5, 7, 11), (1, 2, 3)),
    "apart": ((3, 5, 7, 11), [1, 3]),
    "mixed_signs": ((3, 5, 7, 11), [1, -1]),
    "equal_sizes": ((2, 4, 3, 4), 1),  # where Keras' scale lands on the wrong axis unnoticed
    "batch_1": ((1, 1, 131), -1),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_matches_reference(name, kernel, mode):
    shape, axis = GEOMETRIES[name]
    support.check(kn.RMSNormalization(axis), shape, kernel, mode)


@pytest.mark.parametrize(
    "dtype, means", [("float64", support.MEANS), ("bfloat16", (0, 1e1)), ("float16", (0, 1e2))]
)
@pytest.mark.parametrize("shape, axis", [((3, 5, 67), -1), ((3, 11, 5, 7), 1)])
def test_other_types(dtype, means, shape, axis, kernel, mode):
    layer = kn.RMSNormalization(axis, dtype=support.policy(dtype))
    support.check(layer, shape, kernel, mode, means=means, dtype=dtype)


@pytest.mark.parametrize("mode", support.GRAPH_IS_SLOW)
def test_four_million_elements_a_sample(kernel, mode):
    layer = kn.RMSNormalization([1, 2])
    support.check(layer, (1, 2003, 2011), kernel, mode, means=(1e2,))


def test_by_hand(kernel):
    layer = kn.RMSNormalization(epsilon=0.0)
    layer.build((1, 2))
    layer.scale.assign([1, 2])
    want = [[3 / np.sqrt(12.5), 8 / np.sqrt(12.5)]]  # mean square (9 + 16) / 2
    support.close(layer(np.array([[3, 4]], "float32")), want, atol=4 * support.EPS32)


def test_zeros_stay_zeros(kernel, mode):
    layer = support.built(kn.RMSNormalization(), (3, 67))
    x = np.zeros((3, 67), "float32")
    dy = np.ones((3, 67), "float32")
    got = support.runner(layer, mode)(x, dy)
    np.testing.assert_array_equal(got.y, x)
    # y = x * scale / sqrt(epsilon) near 0: the gradient is 1000 * scale, to a rounding or two.
    want = np.broadcast_to(1e3 * layer.scale.numpy().astype("float64"), x.shape)
    support.close(got.dx, want, rtol=4 * support.EPS32, atol=0)


def test_nan_stays_in_its_row(kernel, mode, rng):
    shape = (3, 5, 67)
    layer = support.built(kn.RMSNormalization(), shape)
    run = support.runner(layer, mode)
    x, dy = rng.normal(size=(2, *shape)).astype("float32")
    good = run(x, dy)
    x[1, 2, 3] = np.nan
    got = run(x, dy)
    assert np.isnan(got.y[1, 2]).all()
    others = np.ones(shape, bool)
    others[1, 2] = False
    for name in ("y", "dx"):
        np.testing.assert_array_equal(getattr(got, name)[others], getattr(good, name)[others])


@pytest.mark.parametrize("shape", [(0, 5, 67), (3, 0, 67)])
def test_empty_input(shape, kernel, mode):
    layer = support.built(kn.RMSNormalization(), shape)
    x = np.zeros(shape, "float32")
    got = support.runner(layer, mode)(x, x)
    assert got.y.shape == got.dx.shape == shape
    np.testing.assert_array_equal(got.dgamma, np.zeros(67))


def test_weights_and_config():
    layer = kn.RMSNormalization([1, -1])
    layer.build((3, 5, 7, 11))
    assert [(w.name, tuple(w.shape)) for w in layer.weights] == [("scale", (11, 5))]
    np.testing.assert_array_equal(layer.scale, np.ones((11, 5)))
    config = layer.get_config()
    assert (config["axis"], config["epsilon"]) == ([1, -1], 1e-6)
    assert layer.compute_output_shape((3, 5, 7, 11)) == (3, 5, 7, 11)


@pytest.mark.parametrize(
    "axis, shape, message",
    [
        (3, (2, 5, 6), r"Axis 3 is out of bounds for shape \(2, 5, 6\)"),
        ([1, 1], (2, 5, 6), "none twice"),
        (1, (2, None, 6), "must be known.*None"),
    ],
)
def test_errors_of_build(axis, shape, message):
    with pytest.raises(ValueError, match=message):
        kn.RMSNormalization(axis).build(shape)


# What Llama and Gemma need.


@pytest.mark.parametrize("cast_mode", ["gemma", "llama"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("axis", [-1, 1, [1, -1]])
def test_offset_and_cast_modes(cast_mode, dtype, axis, kernel, rng):
    """The weight is around zero; "llama" rounds before the product with it, "gemma" after."""
    shape = (3, 5, 7)
    policy = support.policy(dtype)
    layer = kn.RMSNormalization(axis, offset=1.0, cast_mode=cast_mode, dtype=policy)
    layer.build(shape)
    np.testing.assert_array_equal(layer.scale, np.zeros(layer.scale.shape))
    layer.scale.assign(rng.uniform(-0.5, 0.5, layer.scale.shape))
    x = tf.constant(rng.normal(2, 3, shape), dtype)
    weight = layer.scale.numpy() + np.float32(1)
    rounded = tf.constant(weight, dtype).numpy() if cast_mode == "llama" else weight
    plain = reference.rms_norm(x.numpy(), None, axis=axis).y
    want = plain * reference.spread(rounded, reference.positive(axis, 3), 3)
    roundings = 2 if cast_mode == "llama" else 1
    got = layer(x)
    assert got.dtype == dtype
    rtol = 1.01 * roundings * support.ROUNDING[dtype]
    support.close(got, want, atol=support.FORWARD[kernel] * 2, rtol=rtol)
    if cast_mode == "llama":
        step = tf.cast(tf.constant(plain.astype("float32")), dtype)
        product = step * reference.spread(rounded, reference.positive(axis, 3), 3).astype(dtype)
        if dtype != "float32":  # rounding for rounding, but for the last bit of the first
            assert np.mean(got.numpy() == product.numpy()) > 0.97


def test_without_scale(kernel, rng):
    """Keras has no way to leave the weight out."""
    layer = kn.RMSNormalization(use_scale=False)
    x = rng.normal(size=(3, 7)).astype("float32")
    support.close(layer(x), reference.rms_norm(x, None).y, atol=support.FORWARD[kernel])
    assert layer.weights == []
    assert layer.get_config()["use_scale"] is False


def test_plain_config_loads_into_keras():
    assert set(kn.RMSNormalization().get_config()) == set(
        keras.layers.RMSNormalization().get_config()
    )


def test_cast_mode_and_offset_errors():
    message = '`cast_mode` must be "gemma" or "llama". Received: cast_mode=\'none\'.'
    with pytest.raises(ValueError, match=message):
        kn.RMSNormalization(cast_mode="none")
    with pytest.raises(TypeError, match=r"`offset` must be a number. Received: offset='1'."):
        kn.RMSNormalization(offset="1")
