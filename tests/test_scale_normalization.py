import keras
import numpy as np
import pytest
import support

import keras_norms as kn


@pytest.mark.parametrize(
    "shape, axis",
    [((3, 5, 67), -1), ((3, 11, 5, 7), 1), ((5, 6), 1), ((2, 3, 13, 2, 5), 2)],
)
def test_matches_reference(shape, axis, kernel):
    support.check(kn.ScaleNormalization(axis), shape, kernel, "graph")


def test_by_hand(kernel):
    layer = kn.ScaleNormalization(epsilon=11.0)
    layer.build((1, 2))
    layer.scale.assign(2.0)
    y = layer(np.array([[3, 4]], "float32"))
    support.close(y, np.array([[1.0, 4 / 3]]), atol=4 * support.EPS32)  # sqrt(9 + 16 + 11) is 6


def test_starts_as_rms_normalization(kernel, rng):
    x = rng.normal(size=(3, 5, 67)).astype("float32")
    layer = kn.ScaleNormalization(epsilon=67e-6)
    want = kn.RMSNormalization(epsilon=1e-6)(x)
    support.close(layer(x), want.numpy().astype("float64"), atol=4 * 4 * support.EPS32)
    assert [(w.name, tuple(w.shape)) for w in layer.weights] == [("scale", ())]
    np.testing.assert_allclose(layer.scale, np.sqrt(67), rtol=support.EPS32)


def test_zeros_stay_zeros(kernel, mode):
    """The paper's max(norm, epsilon) has a kink there, this has none."""
    x = np.zeros((2, 3, 5), "float32")
    layer = kn.ScaleNormalization(epsilon=1e-4, scale_initializer="ones")
    layer.build(x.shape)
    got = support.runner(layer, mode)(x, x + 1)
    np.testing.assert_array_equal(got.y, x)
    support.close(got.dx, np.full(x.shape, 1e2), atol=0, rtol=4 * support.EPS32)


def test_nan_stays_at_its_position(kernel, rng):
    x = rng.normal(size=(2, 3, 5, 7)).astype("float32")
    layer = kn.ScaleNormalization()
    good = layer(x).numpy()
    x[1, 2, 3, 4] = np.nan
    got = layer(x).numpy()
    assert np.isnan(got[1, 2, 3]).all()
    others = np.ones(x.shape, bool)
    others[1, 2, 3] = False
    np.testing.assert_array_equal(got[others], good[others])


def test_config_and_losses():
    layer = kn.ScaleNormalization(
        scale_initializer=keras.initializers.Constant(3.0),
        scale_regularizer=keras.regularizers.L2(0.1),
        scale_constraint=keras.constraints.NonNeg(),
    )
    layer.build((3, None, 7))
    np.testing.assert_allclose(layer.losses, [0.9], rtol=1e-6)
    again = kn.ScaleNormalization.from_config(layer.get_config())
    again.build((3, None, 7))
    assert again.scale == 3.0
    assert isinstance(again.scale.constraint, keras.constraints.NonNeg)
    assert kn.ScaleNormalization().get_config()["scale_initializer"] is None


def test_errors():
    with pytest.raises(TypeError) as error:
        kn.ScaleNormalization((1, 2)).build((2, 5, 6))
    assert str(error.value) == (
        "`axis` must be an int: there is one channel axis. Received: shape=(2, 5, 6), axis=[1, 2]."
    )
    with pytest.raises(ValueError, match=r"must be known.*None"):
        kn.ScaleNormalization().build((2, 5, None))
