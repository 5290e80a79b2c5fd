import itertools

import keras
import numpy as np
import pytest
import support

import keras_norms as kn

# name: shape, axis. Distinct primes, 1, or no multiple of 8.
GEOMETRIES = {
    "nhwc": ((3, 5, 7, 11), -1),
    "nchw": ((3, 11, 5, 7), 1),
    "nhcw": ((3, 5, 6, 7), 2),
    "rank_3": ((2, 11, 26), 2),
    "rank_5_first": ((2, 6, 3, 2, 5), 1),
    "batch_1": ((1, 17, 19, 6), -1),
}


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_matches_reference(name, learned, kernel):
    shape, axis = GEOMETRIES[name]
    layer = kn.FilterResponseNormalization(axis, 1e-4, learned_epsilon=learned)
    support.check(layer, shape, kernel, "graph", means=(0.0, 1e4))


def test_by_hand(kernel):
    layer = kn.FilterResponseNormalization(epsilon=0.5, learned_epsilon=True)
    layer.build((1, 2, 1))
    layer.added_epsilon.assign(-3.0)  # its size counts
    layer.gamma.assign([4.0])
    layer.beta.assign([1.0])
    y = layer(np.array([[[3.0], [4.0]]], "float32"))
    want = 1 + 4 * np.array([[[3.0], [4.0]]]) / np.sqrt(12.5 + 3.5)  # (9 + 16) / 2
    support.close(y, want, atol=4 * support.EPS32 * 5)


def test_without_space_it_is_nearly_the_sign(kernel):
    """Rank 2: x / sqrt(x**2 + epsilon), why the paper learns epsilon there."""
    x = np.array([[3.0, -0.5, 1e-3, 0.0]], "float32")
    r = 1 / np.sqrt(x.astype("float64") ** 2 + 1e-6)
    for shape, learned in itertools.product([(1, 4), (1, 1, 1, 4)], [False, True]):
        layer = kn.FilterResponseNormalization(
            epsilon=1e-6, learned_epsilon=learned, learned_epsilon_initializer="zeros"
        )
        layer.build(shape)
        got = support.runner(layer, "eager")(x.reshape(shape), np.ones(shape, "float32"))
        support.close(got.y.reshape(x.shape), x * r, atol=support.FORWARD[kernel])
        # epsilon * r**3, as the difference of two terms of size r.
        error = np.abs(got.dx.reshape(x.shape) - 1e-6 * r**3)
        assert (error <= 8 * support.EPS32 * r).all()


@pytest.mark.parametrize("learned", [False, True])
def test_masked_positions_do_not_count(learned, kernel, rng):
    kn.set_kernel("auto")  # a mask is always portable
    x = rng.normal(size=(3, 5, 7, 6)).astype("float32")
    mask = rng.random((3, 5)) < 0.5
    mask[:, 0], mask[2] = True, False  # the last sample is masked as a whole: it counts whole
    layer = kn.FilterResponseNormalization(epsilon=1e-4, learned_epsilon=learned)
    got = layer(x, mask=mask)
    for n in range(3):
        kept = x[n][mask[n]] if n < 2 else x[n]
        nu2 = np.square(kept.astype("float64")).mean((0, 1))
        want = x[n] / np.sqrt(nu2 + 1e-4 + 1e-4 * learned)
        support.close(got[n], want, atol=support.FORWARD["portable"])


@pytest.mark.parametrize("learned", [False, True])
def test_nan_stays_in_its_channel(learned, kernel, rng):
    shape = (3, 5, 7, 6)
    layer = kn.FilterResponseNormalization(learned_epsilon=learned)
    layer = support.built(layer, shape)
    run = support.runner(layer, "graph")
    x, dy = rng.normal(size=(2, *shape)).astype("float32")
    good = run(x, dy)
    x[1, 2, 3, 4] = np.nan
    got = run(x, dy)
    assert np.isnan(got.y[1, ..., 4]).all()
    others = np.ones(shape, bool)
    others[1, ..., 4] = False
    for name in ("y", "dx"):
        np.testing.assert_array_equal(getattr(got, name)[others], getattr(good, name)[others])


def test_weights_and_config():
    layer = kn.FilterResponseNormalization(
        learned_epsilon=True, learned_epsilon_constraint=keras.constraints.NonNeg(), center=False
    )
    layer.build((None, None, None, 6))  # tensorflow-addons refuses unknown height and width
    shapes = {"gamma": (6,), "learned_epsilon": ()}
    assert {w.name: tuple(w.shape) for w in layer.weights} == shapes
    assert layer.added_epsilon == np.float32(1e-4)
    assert isinstance(layer.added_epsilon.constraint, keras.constraints.NonNeg)
    config = layer.get_config()
    assert (config["epsilon"], config["learned_epsilon"]) == (1e-6, True)
    assert config["learned_epsilon_initializer"] is None
    again = kn.FilterResponseNormalization.from_config(
        {**config, "learned_epsilon_initializer": keras.initializers.Constant(0.5)}
    )
    again.build((3, 5, 6))
    assert again.added_epsilon == 0.5
    plain = kn.FilterResponseNormalization()
    plain.build((3, 5, 6))
    assert [w.name for w in plain.weights] == ["gamma", "beta"]


def test_axes_of_space_are_refused():
    """tensorflow-addons has `axis=[1, 2]`, which is space."""
    with pytest.raises(TypeError) as error:
        kn.FilterResponseNormalization([1, 2])
    assert str(error.value) == (
        "`axis` must be an int, the channel axis: space is all other axes but the first (in "
        "TensorFlow Addons `axis` is space). Received: axis=[1, 2]."
    )


@pytest.mark.parametrize(
    "axis, shape, message",
    [
        (0, (2, 5, 6), "Axis 0 holds the samples.*axis=0"),
        (3, (2, 5, 6), r"Axis 3 is out of bounds .*\(2, 5, 6\)"),
        (-1, (2, 5, None), "must be known.*None"),
    ],
)
def test_errors_of_build(axis, shape, message):
    with pytest.raises(ValueError, match=message):
        kn.FilterResponseNormalization(axis).build(shape)
