import numpy as np
import pytest
import support
import tensorflow as tf

import keras_norms as kn

# name: shape, axis. Distinct primes, 1, or no multiple of 8.
GEOMETRIES = {
    "tokens": ((3, 5, 67), -1),
    "tokens_first": ((3, 67, 5), 1),
    "long": ((2, 1031), -1),
    "short": ((7, 3), 1),
    "one_element": ((5, 1), -1),
    "two_elements": ((7, 2), -1),
    "rank_1": ((19,), 0),
    "rank_4": ((3, 5, 7, 11), -1),
    "channels_first": ((3, 11, 5, 7), 1),
    "middle": ((3, 5, 11, 7), -2),
    "all_but_samples": ((3, 5, 7, 11), (1, 2, 3)),
    "last_two": ((3, 5, 7, 11), [-2, -1]),
    "apart": ((3, 5, 7, 11), [1, 3]),
    "apart_first": ((5, 3, 7), [0, 2]),
    "unsorted": ((3, 5, 7, 11), [3, 1]),
    "mixed_signs": ((3, 5, 7, 11), [1, -1]),
    "mixed_signs_of_three": ((3, 5, 7, 11), [2, -1, 1]),
    "with_samples": ((3, 5, 7), [0]),
    "everything": ((3, 5, 7), [0, 1, 2]),
    "rank_5": ((2, 3, 5, 2, 7), [2, 4]),
    "batch_1": ((1, 1, 131), -1),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_matches_reference(name, kernel, mode):
    shape, axis = GEOMETRIES[name]
    support.check(kn.LayerNormalization(axis), shape, kernel, mode)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("axis", [-1, [1, -1]])
def test_without_gamma_or_beta(center, scale, axis, kernel):
    layer = kn.LayerNormalization(axis, 1e-5, center, scale)
    support.check(layer, (3, 5, 7, 11), kernel, "eager")
    assert [w.name for w in layer.weights] == ["gamma"] * scale + ["beta"] * center


@pytest.mark.parametrize(
    "dtype, means", [("float64", support.MEANS), ("bfloat16", (0, 1e1)), ("float16", (0, 1e2))]
)
@pytest.mark.parametrize("shape, axis", [((3, 5, 67), -1), ((3, 11, 5, 7), 1)])
def test_other_types(dtype, means, shape, axis, kernel, mode):
    layer = kn.LayerNormalization(axis, dtype=support.policy(dtype))
    support.check(layer, shape, kernel, mode, means=means, dtype=dtype)


@pytest.mark.parametrize("mode", support.GRAPH_IS_SLOW)
def test_four_million_elements_a_sample(kernel, mode):
    layer = kn.LayerNormalization([1, 2])
    support.check(layer, (1, 2003, 2011), kernel, mode, means=(1e6,))


@pytest.mark.parametrize("mode", support.GRAPH_IS_SLOW)
def test_many_rows(kernel, mode):
    """Sums of dgamma and dbeta over 300,000 positions."""
    support.check(kn.LayerNormalization(), (300_007, 5), kernel, mode, means=(1e4,))


def test_close_large_numbers(kernel, mode):
    """microsoft/onnxruntime#28463: NaN elsewhere. Deviations +-1.5, +-0.5, variance 1.25."""
    x = np.array([[40000, 40001, 40002, 40003]], "float32")
    layer = kn.LayerNormalization(epsilon=0.0)
    layer.build(x.shape)
    got = support.compiled(layer, mode)(tf.constant(x))
    want = np.array([[-1.5, -0.5, 0.5, 1.5]]) / np.sqrt(1.25)
    support.close(got, want, atol=support.FORWARD[kernel])


def test_very_large_and_very_small_numbers(kernel):
    """Squares stay in range up to 1e18 and down to 1e-18 in float32."""
    x = np.random.default_rng(5).normal(size=(3, 67)).astype("float32")
    for size in (1e17, 1e-17):
        layer = support.built(kn.LayerNormalization(epsilon=0.0), x.shape)
        scaled = x * np.float32(size)
        want, _ = support.expected(layer, scaled, scaled)
        atol = support.FORWARD[kernel] * support.largest(layer.gamma.numpy())
        support.close(layer(scaled), want.y, atol=atol, what=f"size {size}")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_value_stays_in_its_row(bad, kernel, mode, rng):
    shape = (3, 5, 67)
    layer = support.built(kn.LayerNormalization(), shape)
    run = support.runner(layer, mode)
    x, dy = rng.normal(size=(2, *shape)).astype("float32")
    good = run(x, dy)
    x[1, 2, 3] = bad
    got = run(x, dy)
    assert np.isnan(got.y[1, 2]).all()
    others = np.ones(shape, bool)
    others[1, 2] = False
    for name in ("y", "dx"):
        np.testing.assert_array_equal(getattr(got, name)[others], getattr(good, name)[others])


@pytest.mark.parametrize("shape", [(0, 5, 67), (3, 0, 67)])
def test_empty_input(shape, kernel, mode):
    layer = support.built(kn.LayerNormalization(), shape)
    x = np.zeros(shape, "float32")
    got = support.runner(layer, mode)(x, x)
    assert got.y.shape == got.dx.shape == shape
    np.testing.assert_array_equal(got.dgamma, np.zeros(67))
    np.testing.assert_array_equal(got.dbeta, np.zeros(67))


def test_constant_row_gives_beta(kernel, mode):
    shape = (3, 67)
    layer = support.built(kn.LayerNormalization(), shape)
    x = np.full(shape, 1234.5, "float32")
    got = support.runner(layer, mode)(x, np.ones(shape, "float32"))
    # What the residual mean leaves of 1234.5: two roundings, times rstd = 1 / sqrt(0.001).
    atol = 32 * 1234.5 * support.EPS32**2 * 67 * support.largest(layer.gamma.numpy())
    support.close(got.y, np.broadcast_to(layer.beta.numpy(), shape), atol=atol)


@pytest.mark.parametrize(
    "axis, parameter_shape",
    [
        (-1, (11,)),
        ((1, 2, 3), (5, 7, 11)),
        ([3, 1], (5, 11)),
        ([1, -1], (11, 5)),
        ([-1, -3], (5, 11)),
    ],
)
def test_weights_and_config(axis, parameter_shape):
    layer = kn.LayerNormalization(axis)
    layer.build((3, 5, 7, 11))
    shapes = [(w.name, tuple(w.shape)) for w in layer.weights]
    assert shapes == [("gamma", parameter_shape), ("beta", parameter_shape)]
    assert layer.get_config()["axis"] == (axis if isinstance(axis, int) else list(axis))
    assert layer.compute_output_shape((3, 5, 7, 11)) == (3, 5, 7, 11)


@pytest.mark.parametrize(
    "axis, shape, message",
    [
        (3, (2, 5, 6), r"Axis 3 is out of bounds for shape \(2, 5, 6\)"),
        ([1, 1], (2, 5, 6), r"none twice. Received: axis=\[1, 1\]"),
        ([2, -1], (2, 5, 6), r"none twice. Received: axis=\[2, -1\]"),
        ([], (2, 5, 6), "at least one"),
        (1, (2, None, 6), "must be known.*None"),
    ],
)
def test_errors_of_build(axis, shape, message):
    with pytest.raises(ValueError, match=message):
        kn.LayerNormalization(axis).build(shape)


@pytest.mark.parametrize("axis", ["1", 1.0, None, {1}])
def test_errors_of_axis(axis):
    with pytest.raises(TypeError, match="`axis` must be an int or a list or tuple"):
        kn.LayerNormalization(axis)


def test_rms_scaling_is_refused():
    with pytest.raises(ValueError, match=r"rms_scaling.*RMSNormalization"):
        kn.LayerNormalization(rms_scaling=True)
    assert kn.LayerNormalization(rms_scaling=False).epsilon == 1e-3
