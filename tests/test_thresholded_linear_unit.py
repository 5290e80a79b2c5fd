import keras
import numpy as np
import pytest
import support

import keras_norms as kn


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(
    "shape, arguments, parameter",
    [
        ((3, 5, 7, 6), {}, (6,)),
        ((3, 6, 5, 7), {"axis": 1}, (6,)),
        ((5, 6), {}, (6,)),
        ((2, 3, 2, 5, 6), {"axis": -2}, (5,)),
        ((3, 5, 7, 6), {"tau_shared_axes": []}, (5, 7, 6)),
        ((3, 5, 7, 6), {"tau_shared_axes": [1, -2]}, (1, 1, 6)),
        ((3, 6, 5, 7), {"axis": 1, "tau_shared_axes": (3,)}, (6, 5, 1)),
    ],
)
def test_matches_reference(shape, arguments, parameter, affine):
    layer = kn.ThresholdedLinearUnit(**arguments, affine=affine)
    support.check(layer, shape, "portable", "graph", means=(0.0, 1e2))
    names = ["tau", "alpha"] if affine else ["tau"]
    assert [(w.name, tuple(w.shape)) for w in layer.weights] == [(n, parameter) for n in names]


@pytest.mark.parametrize("shared", [[1, 2], [1], []])
def test_shared_axes_are_those_of_prelu(shared):
    ours, theirs = (
        kn.ThresholdedLinearUnit(tau_shared_axes=shared),
        keras.layers.PReLU(shared_axes=shared),
    )
    for layer in (ours, theirs):
        layer.build((None, 5, 7, 6))
    assert ours.tau.shape == theirs.alpha.shape


def test_starts_as_relu(rng):
    x = rng.normal(size=(3, 5, 6)).astype("float32")
    for affine in (False, True):
        layer = kn.ThresholdedLinearUnit(affine=affine)
        np.testing.assert_array_equal(layer(x), np.maximum(x, 0))


def test_where_equal_the_gradient_is_of_x(mode):
    """As `tf.maximum` has it, and so tensorflow-addons; `torch.maximum`, as in timm, halves it."""
    layer = kn.ThresholdedLinearUnit(tau_initializer=keras.initializers.Constant(0.25))
    x = np.array([[0.25, 0.5, 0.0]], "float32")
    layer.build(x.shape)
    got = support.runner(layer, mode)(x, np.full_like(x, 3))
    np.testing.assert_array_equal(got.y, [[0.25, 0.5, 0.25]])
    np.testing.assert_array_equal(got.dx, [[3, 3, 0]])
    np.testing.assert_array_equal(got.gradients["tau"], [0, 0, 3])


def test_gradient_of_tau_is_exact_over_millions(mode):
    """A plain sum of 4 million float32 ones along the first axis may stop at 2**24 or drift."""
    layer = kn.ThresholdedLinearUnit(tau_initializer="ones")
    x = np.zeros((2003, 2011, 1), "float32")
    layer.build(x.shape)
    got = support.runner(layer, mode)(x, np.full_like(x, 0.1))
    want = np.array([2003 * 2011 * float(np.float32(0.1))])
    support.close(got.gradients["tau"], want, atol=0, rtol=support.GRADIENT)


def test_half_inputs_are_compared_unrounded():
    """tau = 1.0005 is no float16; 1 is below it."""
    initial = keras.initializers.Constant(1.0005)
    layer = kn.ThresholdedLinearUnit(tau_initializer=initial, dtype="mixed_float16")
    x = np.ones((1, 2), "float16")
    layer.build(x.shape)
    got = support.runner(layer, "eager")(x, x)
    assert got.y.dtype == "float16" and layer.tau.dtype == "float32"
    np.testing.assert_array_equal(got.dx, np.zeros((1, 2)))


@pytest.mark.parametrize("affine", [False, True])
def test_nan_of_either_is_kept(affine, mode):
    layer = kn.ThresholdedLinearUnit(affine=affine)
    x = np.array([[np.nan, 1.0, -1.0, np.inf]], "float32")
    layer.build(x.shape)
    layer.tau.assign([0.0, np.nan, 2.0, 0.0])
    if affine:
        layer.alpha.assign([0.0, 0.0, 1.0, 0.5])
    got = support.runner(layer, mode)(x, x).y
    np.testing.assert_array_equal(got, [[np.nan, np.nan, 1.0 if affine else 2.0, np.inf]])


def test_config_and_losses():
    layer = kn.ThresholdedLinearUnit(
        affine=True,
        tau_shared_axes=(1,),
        tau_initializer=keras.initializers.Constant(2.0),
        tau_regularizer=keras.regularizers.L2(0.1),
        alpha_initializer="ones",
        alpha_constraint=keras.constraints.NonNeg(),
    )
    layer.build((3, 5, 6))
    np.testing.assert_allclose(layer.losses, [0.1 * 4 * 6], rtol=1e-6)
    config = layer.get_config()
    assert config["tau_shared_axes"] == [1]
    again = kn.ThresholdedLinearUnit.from_config(config)
    assert again.get_config() == config
    again.build((3, 5, 6))
    assert isinstance(again.alpha.constraint, keras.constraints.NonNeg)
    np.testing.assert_array_equal(again.tau, np.full((1, 6), 2.0))


@pytest.mark.parametrize(
    "shared, shape, error, message",
    [
        (
            [0],
            (2, 5, 6),
            ValueError,
            "`tau_shared_axes` must name axes of the input other than the samples' (0), none twice."
            " Received: tau_shared_axes=[0], shape=(2, 5, 6).",
        ),
        (
            [1, -2],
            (2, 5, 6),
            ValueError,
            "`tau_shared_axes` must name axes of the input other than the samples' (0), none twice."
            " Received: tau_shared_axes=[1, -2], shape=(2, 5, 6).",
        ),
        (
            [],
            (2, None, 6),
            ValueError,
            "The axes that `tau` is not shared over must be of known size. "
            "Received: tau_shared_axes=[], shape=(2, None, 6).",
        ),
        (
            "12",
            (2, 5, 6),
            TypeError,
            "`tau_shared_axes` must be a list of ints or None. Received: tau_shared_axes='12'.",
        ),
        (
            2,
            (2, 5, 6),
            TypeError,
            "`tau_shared_axes` must be a list of ints or None. Received: tau_shared_axes=2.",
        ),
    ],
)
def test_errors(shared, shape, error, message):
    with pytest.raises(error) as caught:
        kn.ThresholdedLinearUnit(tau_shared_axes=shared).build(shape)
    assert str(caught.value) == message
