import keras
import numpy as np
import pytest
import support

import keras_norms as kn


@pytest.mark.parametrize(
    "shape, axis", [((3, 5, 67), -1), ((3, 11, 5, 7), 1), ((5, 6), 1), ((2, 3, 13, 2, 5), 2)]
)
def test_matches_reference(shape, axis, kernel):
    support.check(kn.LayerScale(axis), shape, kernel, "graph", means=(0.0, 1e4))


def test_starts_small(kernel, rng):
    x = rng.normal(size=(3, 5, 7)).astype("float32")
    layer = kn.LayerScale()
    np.testing.assert_array_equal(layer(x), x * np.float32(1e-5))
    assert [(w.name, tuple(w.shape)) for w in layer.weights] == [("gamma", (7,))]


def test_gradient_of_gamma_is_exact_over_millions(kernel, mode):
    layer = kn.LayerScale()
    x = np.full((2003, 2011, 1), 0.1, "float32")
    layer.build(x.shape)
    got = support.runner(layer, mode)(x, np.ones_like(x))
    want = np.array([2003 * 2011 * float(np.float32(0.1))])
    support.close(got.dgamma, want, atol=0, rtol=support.GRADIENT)


def test_half_inputs_are_scaled_in_float32(kernel):
    """1e-9 is 0 in float16; its product with 6e4 is not."""
    layer = kn.LayerScale(init_value=1e-9, dtype="mixed_float16")
    x = np.full((1, 2), 6e4, "float16")
    support.close(layer(x), np.full((1, 2), 6e-5), atol=2.0**-25)  # half of the smallest float16
    assert layer.gamma.dtype == "float32"


def test_config_and_losses():
    layer = kn.LayerScale(
        init_value=2,
        gamma_regularizer=keras.regularizers.L2(0.1),
        gamma_constraint=keras.constraints.NonNeg(),
    )
    layer.build((3, None, 7))
    np.testing.assert_allclose(layer.losses, [0.1 * 4 * 7], rtol=1e-6)
    config = layer.get_config()
    again = kn.LayerScale.from_config(config)
    assert again.get_config() == config and config["init_value"] == 2
    again.build((3, None, 7))
    assert isinstance(again.gamma.constraint, keras.constraints.NonNeg)


def test_errors():
    with pytest.raises(TypeError) as error:
        kn.LayerScale(init_value="ones")
    assert str(error.value) == "`init_value` must be a number. Received: init_value='ones'."
    with pytest.raises(ValueError, match=r"must be known.*None"):
        kn.LayerScale(1).build((2, None, 6))
    with pytest.raises(TypeError, match="there is one channel axis"):
        kn.LayerScale([1, 2]).build((2, 5, 6))
