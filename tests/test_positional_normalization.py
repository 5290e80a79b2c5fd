import keras
import numpy as np
import pytest
import reference_scaling
import support
import tensorflow as tf

import keras_norms as kn


@pytest.mark.parametrize("arguments", [{}, {"center": True, "scale": True}])
@pytest.mark.parametrize(
    "shape, axis", [((3, 5, 7, 11), -1), ((3, 11, 5, 7), 1), ((5, 6), 1), ((2, 3, 13, 2, 5), 2)]
)
def test_matches_reference(shape, axis, arguments, kernel):
    support.check(kn.PositionalNormalization(axis, **arguments), shape, kernel, "graph")


def moments_by_hand(x, axis, epsilon):
    x = x.astype("float64")
    std = np.sqrt(x.var(axis, keepdims=True) + epsilon)
    return x.mean(axis, keepdims=True), std


@pytest.mark.parametrize("shape, axis", [((3, 5, 7, 11), -1), ((3, 11, 5, 7), 1)])
def test_moments(shape, axis, kernel, mode, rng):
    layer = kn.PositionalNormalization(axis, return_moments=True)
    layer.build(shape)
    run = support.compiled(lambda v: layer(v), mode)
    for mean in support.MEANS:
        x = rng.normal(mean, 1, shape).astype("float32")
        y, got_mean, got_std = run(tf.constant(x))
        want_mean, want_std = moments_by_hand(x, axis, 1e-5)
        support.close(y, (x - want_mean) / want_std, atol=support.FORWARD[kernel])
        # The mean is rounded when it is returned.
        support.close(got_mean, want_mean, atol=support.FORWARD[kernel], rtol=support.EPS32)
        support.close(got_std, want_std, atol=support.FORWARD[kernel])


def test_gradients_flow_through_all_three(kernel, mode, rng):
    """Against the complex step, which is exact to rounding."""
    shape = (2, 3, 5)
    layer = kn.PositionalNormalization(return_moments=True, epsilon=1e-3)
    layer.build(shape)
    x, dy = rng.normal(3, 1, (2, *shape)).astype("float32")
    dmean, dstd = rng.normal(size=(2, 2, 3, 1)).astype("float32")
    got = support.runner(layer, mode)(x, (dy, dmean, dstd))
    want = np.zeros(shape)
    for at in np.ndindex(shape):
        moved = x.astype("complex128")
        moved[at] += 1e-30j
        outputs = reference_scaling.positional_normalization(moved, {}, layer.get_config(), True)
        pairs = zip((dy, dmean, dstd), outputs, strict=True)
        want[at] = sum((d * o.imag / 1e-30).sum() for d, o in pairs)
    support.close(got.dx, want, atol=support.GRADIENT * np.abs(want).max())


def test_moment_shortcut_gives_the_input_back(rng):
    """As in an encoder and decoder: a functional model, on open sizes."""
    inputs = keras.Input((None, None, 6))
    layer = kn.PositionalNormalization(return_moments=True)
    y, mean, std = layer(inputs)
    model = keras.Model(inputs, y * std + mean)
    assert mean.shape == std.shape == (None, None, None, 1)
    x = rng.normal(2, 3, (2, 5, 7, 6)).astype("float32")
    support.close(model(x), x.astype("float64"), atol=8 * support.EPS32 * np.abs(x).max())
    shapes = ((None, 5, 7, 6), (None, 5, 7, 1), (None, 5, 7, 1))
    assert layer.compute_output_shape((None, 5, 7, 6)) == shapes
    first = kn.PositionalNormalization(1, return_moments=True)
    assert first.compute_output_shape((2, 6, 5)) == ((2, 6, 5), (2, 1, 5), (2, 1, 5))


def test_mask_is_passed_on_with_each(rng):
    x = tf.constant(rng.normal(size=(2, 3, 5)).astype("float32"))
    x._keras_mask = mask = tf.constant([[True, True, False], [True, False, False]])
    outputs = kn.PositionalNormalization(return_moments=True)(x)
    assert all(part._keras_mask is mask for part in outputs)
    assert kn.PositionalNormalization()(x)._keras_mask is mask


def test_half_inputs_give_half_moments(rng):
    x = rng.normal(200, 100, (2, 3, 5)).astype("float16")  # squares beyond 65504
    layer = kn.PositionalNormalization(return_moments=True, dtype="mixed_float16")
    y, mean, std = layer(x)
    assert {part.dtype.name for part in (y, mean, std)} == {"float16"}
    for got, want in zip((mean, std), moments_by_hand(x, -1, 1e-5), strict=True):
        support.close(got, want, atol=0, rtol=1.01 * support.ROUNDING["float16"])


def test_authors_code_takes_the_unbiased_variance(rng):
    """theirs = ours * sqrt((n - 1) / n), epsilon aside."""
    x = rng.normal(size=(2, 3, 5)).astype("float32")
    theirs = (x - x.mean(-1, keepdims=True)) / x.std(-1, ddof=1, keepdims=True)
    ours = kn.PositionalNormalization(epsilon=0.0)(x)
    support.close(ours * np.sqrt(4 / 5).astype("float32"), theirs, atol=support.FORWARD["portable"])


def test_several_axes_are_refused():
    with pytest.raises(TypeError) as error:
        kn.PositionalNormalization([1, 2]).build((2, 5, 6))
    assert str(error.value) == (
        "`axis` must be an int: there is one channel axis. Received: shape=(2, 5, 6), axis=[1, 2]."
    )
