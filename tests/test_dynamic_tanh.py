import keras
import numpy as np
import pytest
import support

import keras_norms as kn


@pytest.mark.parametrize(
    "shape, axis", [((3, 5, 67), -1), ((3, 11, 5, 7), 1), ((5, 6), 1), ((2, 3, 13, 2, 5), 2)]
)
def test_matches_reference(shape, axis, kernel):
    support.check(kn.DynamicTanh(axis), shape, kernel, "graph", means=(0.0,))


@pytest.mark.parametrize("center, scale", [(True, False), (False, True), (False, False)])
def test_without_gamma_or_beta(center, scale, kernel):
    layer = kn.DynamicTanh(center=center, scale=scale)
    support.check(layer, (3, 5, 7), kernel, "graph", means=(0.0,))
    assert [w.name for w in layer.weights] == [*["gamma"] * scale, *["beta"] * center, "alpha"]


def test_weights(kernel):
    layer = kn.DynamicTanh()
    x = np.array([[-3.0, 0.0, 1e30, np.nan]], "float32")
    want = [[np.tanh(-1.5), 0, 1, np.nan]]
    support.close(layer(x), want, atol=4 * support.EPS32)
    shapes = {"gamma": (4,), "beta": (4,), "alpha": ()}
    assert {w.name: tuple(w.shape) for w in layer.weights} == shapes
    assert layer.alpha == 0.5
    assert layer.get_config()["alpha_initializer"] is None


def test_gradient_of_alpha_is_exact_over_millions(kernel, mode):
    """A sum of 4 million terms into one number."""
    layer = kn.DynamicTanh(center=False, scale=False)
    x = np.full((2003, 2011, 1), 0.1, "float32")
    layer.build(x.shape)
    got = support.runner(layer, mode)(x, x)
    tenth = float(np.float32(0.1))
    want = 2003 * 2011 * tenth**2 / np.cosh(tenth / 2) ** 2
    support.close(got.gradients["alpha"], np.array(want), atol=0, rtol=support.GRADIENT)


def test_half_inputs_are_scaled_unrounded(kernel):
    """alpha * x is taken in float32: in float16, 8000 * 10 would be infinite, its sign alike."""
    layer = kn.DynamicTanh(alpha_initializer="ones", dtype="mixed_float16")
    x = np.array([[0.3, 1.7, -0.001]], "float16")
    layer(x)
    layer.alpha.assign(1.3)
    want = np.tanh(x.astype("float64") * 1.3)
    support.close(layer(x), want, atol=0, rtol=1.01 * support.ROUNDING["float16"])


def test_config_and_losses():
    layer = kn.DynamicTanh(
        alpha_initializer=keras.initializers.Constant(0.25),
        alpha_regularizer=keras.regularizers.L2(0.1),
        alpha_constraint=keras.constraints.NonNeg(),
    )
    layer.build((3, None, 7))
    np.testing.assert_allclose(layer.losses, [0.1 * 0.0625], rtol=1e-6)
    again = kn.DynamicTanh.from_config(layer.get_config())
    again.build((3, None, 7))
    assert again.alpha == 0.25
    assert isinstance(again.alpha.constraint, keras.constraints.NonNeg)


@pytest.mark.parametrize("axis, error", [(3, ValueError), ([1, 2], TypeError)])
def test_errors_of_build(axis, error):
    with pytest.raises(error, match="axis"):
        kn.DynamicTanh(axis).build((2, 5, 6))
    with pytest.raises(ValueError, match=r"must be known.*None"):
        kn.DynamicTanh(1).build((2, None, 6))
