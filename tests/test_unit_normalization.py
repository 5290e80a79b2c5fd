import keras
import numpy as np
import pytest
import support

import keras_norms as kn

GEOMETRIES = [
    ((3, 5, 67), -1),
    ((3, 11, 5, 7), 1),
    ((5, 6), 1),
    ((19,), 0),
    ((2, 3, 13, 2, 5), [1, 2, -1]),
]


@pytest.mark.parametrize("shape, axis", GEOMETRIES)
def test_matches_reference(shape, axis):
    support.check(kn.UnitNormalization(axis), shape, "portable", "graph")


@pytest.mark.parametrize("shape, axis", GEOMETRIES)
def test_matches_keras(shape, axis, rng):
    x, dy = rng.normal(size=(2, *shape)).astype("float32")
    ours, theirs = (
        support.runner(make(axis), "eager")(x, dy)
        for make in (kn.UnitNormalization, keras.layers.UnitNormalization)
    )
    support.close(ours.y, theirs.y.astype("float64"), atol=4 * support.EPS32)
    atol = support.GRADIENT * np.abs(theirs.dx).max()
    support.close(ours.dx, theirs.dx.astype("float64"), atol=atol)


@pytest.mark.parametrize("axis", [-1, [1, 2], 0])
def test_config_is_that_of_keras(axis):
    ours, theirs = (
        kn.UnitNormalization(axis, name="u"),
        keras.layers.UnitNormalization(axis, name="u"),
    )
    assert ours.get_config() == theirs.get_config()
    assert kn.UnitNormalization.from_config(theirs.get_config()).get_config() == ours.get_config()
    assert keras.layers.UnitNormalization.from_config(ours.get_config()).axis == axis


@pytest.mark.parametrize("size", [1e-37, 1e-20, 1e20, 3e38])
def test_any_size_of_float32(size, mode):
    """Keras: 0 where the squares overflow (1e20), 1e-8 in each of a row of 1e-20."""
    x = np.full((1, 4), size, "float32")
    x[0, 0] *= -1
    layer = kn.UnitNormalization()
    layer.build(x.shape)
    got = support.runner(layer, mode)(x, x * 0 + 1)
    support.close(got.y, [[-0.5, 0.5, 0.5, 0.5]], atol=support.EPS32)
    theirs = np.asarray(keras.layers.UnitNormalization()(x))
    if size in (1e20, 1e-20):
        support.close(np.abs(theirs[0]), np.full(4, 0 if size > 1 else 1e-8), atol=1e-13)


@pytest.mark.parametrize("size", [1e-7, 300.0, 6e4])
def test_any_size_of_float16(size):
    """Keras: 0 for a row of 300s, whose squares are beyond 65504."""
    x = np.full((1, 4), size, "float16")
    got = kn.UnitNormalization(dtype="mixed_float16")(x)
    np.testing.assert_array_equal(got, np.full((1, 4), 0.5))
    theirs = keras.layers.UnitNormalization(dtype="mixed_float16")(x)
    if size == 300:
        np.testing.assert_array_equal(theirs, np.zeros((1, 4)))


def test_zeros(mode):
    """Keras: a gradient of 1e12, in float16 NaN for y."""
    x = np.zeros((2, 4), "float32")
    x[1] = [3, 0, 4, 0]
    layer = kn.UnitNormalization()
    layer.build(x.shape)
    got = support.runner(layer, mode)(x, np.ones_like(x))
    np.testing.assert_array_equal(got.y[0], np.zeros(4))
    np.testing.assert_array_equal(got.dx[0], np.zeros(4))
    support.close(got.y[1], [0.6, 0, 0.8, 0], atol=support.EPS32)
    # (dy - y * sum(y * dy)) / 5
    support.close(got.dx[1], [(1 - 0.84) / 5, 0.2, (1 - 1.12) / 5, 0.2], atol=support.EPS32)
    theirs = support.runner(keras.layers.UnitNormalization(), "eager")(x, np.ones_like(x))
    np.testing.assert_allclose(theirs.dx[0], np.full(4, 1e12), rtol=1e-6)
    half = np.zeros((1, 4), "float16")
    np.testing.assert_array_equal(kn.UnitNormalization(dtype="mixed_float16")(half), half)
    assert np.isnan(keras.layers.UnitNormalization(dtype="mixed_float16")(half)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_value_stays_in_its_row(bad, mode, rng):
    x = rng.normal(size=(2, 3, 7)).astype("float32")
    layer = kn.UnitNormalization()
    layer.build(x.shape)
    run = support.runner(layer, mode)
    good = run(x, x)
    x[1, 2, 3] = bad
    got = run(x, x)
    assert np.isnan(got.y[1, 2, 3])
    assert np.isnan(got.y[1, 2]).all() or bad == np.inf  # the others beside inf are 0
    others = np.ones(x.shape, bool)
    others[1, 2] = False
    for name in ("y", "dx"):
        np.testing.assert_array_equal(getattr(got, name)[others], getattr(good, name)[others])


def test_unknown_sizes_along_the_axis(rng):
    """Keras' takes them, too."""
    inputs = keras.Input((None, 5))
    model = keras.Model(inputs, kn.UnitNormalization([1, 2])(inputs))
    x = rng.normal(size=(2, 7, 5)).astype("float32")
    want = x / np.sqrt(np.square(x.astype("float64")).sum((1, 2), keepdims=True))
    support.close(model(x), want, atol=4 * support.EPS32)


@pytest.mark.parametrize("shape, axis", [((0, 5), -1), ((3, 0), -1), ((3, 0, 2), 1)])
def test_empty_input(shape, axis, mode):
    layer = kn.UnitNormalization(axis)
    layer.build(shape)
    x = np.zeros(shape, "float32")
    got = support.runner(layer, mode)(x, x)
    assert got.y.shape == got.dx.shape == shape


def test_errors():
    with pytest.raises(TypeError) as error:
        kn.UnitNormalization("last")
    assert str(error.value) == (
        "`axis` must be an int or a list or tuple of ints. Received: axis='last'."
    )
    with pytest.raises(ValueError, match=r"Axis 3 is out of bounds for shape \(2, 5, 6\)"):
        kn.UnitNormalization(3).build((2, 5, 6))
