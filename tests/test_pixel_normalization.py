import numpy as np
import pytest
import support

import keras_norms as kn


@pytest.mark.parametrize(
    "shape, axis",
    [
        ((3, 5, 7, 11), -1),
        ((3, 11, 5, 7), 1),
        ((5, 6), 1),
        ((2, 3, 13, 2, 5), 2),
        ((3, 5, 7, 11), [1, -1]),
    ],
)
def test_matches_reference(shape, axis, kernel):
    support.check(kn.PixelNormalization(axis), shape, kernel, "graph")


def test_is_rms_normalization_without_its_weight(kernel, rng):
    x = rng.normal(size=(3, 5, 7, 6)).astype("float32")
    layer = kn.PixelNormalization()
    want = kn.RMSNormalization(epsilon=1e-8, use_scale=False)(x)
    np.testing.assert_array_equal(layer(x), want)
    assert layer.weights == [] and layer.epsilon == 1e-8


def test_zeros_stay_zeros(kernel, mode):
    x = np.zeros((2, 3, 5), "float32")
    got = support.runner(support.built(kn.PixelNormalization(), x.shape), mode)(x, x + 1)
    np.testing.assert_array_equal(got.y, x)
    # y = x / sqrt(1e-8) near 0.
    support.close(got.dx, np.full(x.shape, 1e4), atol=0, rtol=4 * support.EPS32)


def test_nan_stays_at_its_position(kernel, rng):
    x = rng.normal(size=(2, 3, 5, 7)).astype("float32")
    layer = kn.PixelNormalization()
    good = layer(x).numpy()
    x[1, 2, 3, 4] = np.nan
    got = layer(x).numpy()
    assert np.isnan(got[1, 2, 3]).all()
    others = np.ones(x.shape, bool)
    others[1, 2, 3] = False
    np.testing.assert_array_equal(got[others], good[others])


def test_errors_of_build():
    with pytest.raises(ValueError, match=r"must be known.*None"):
        kn.PixelNormalization().build((2, 5, None))
