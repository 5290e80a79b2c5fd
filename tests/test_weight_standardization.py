import keras
import numpy as np
import pytest
import reference_kernels as reference
import support
import tensorflow as tf
from keras import layers as L

import keras_norms as kn


def kernel_of(wrapper, inputs=29):
    """What a Dense layer without bias gives for the unit matrix."""
    return wrapper(np.eye(inputs, dtype="float32"))


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.3])
@pytest.mark.parametrize("scaled, gamma", [(False, 1.0), (True, 1.0), (True, 1.7139)])
def test_arguments(epsilon, scaled, gamma, kernel, rng):
    layer = kn.WeightStandardization(L.Dense(5, use_bias=False), epsilon, scaled, gamma)
    kernel_of(layer)
    v = rng.normal(0.3, 0.7, (29, 5))
    layer.layer.kernel.assign(v)
    gain = rng.uniform(0.5, 2, 5).astype("float32") if scaled else None
    if scaled:
        assert layer.gains[0].name == "gain" and (layer.gains[0].numpy() == 1).all()
        layer.gains[0].assign(gain)
    want = reference.standardized(layer.layer.kernel.numpy(), epsilon, gain, gamma)
    support.close(kernel_of(layer), want, atol=support.FORWARD[kernel] * np.abs(want).max())


def test_outputs_of_scaled_layers_keep_their_variance(rng):
    """What the scaled form is for: gamma makes up for relu, through ten layers."""
    gamma = float(np.sqrt(2 / (1 - 1 / np.pi)))
    x = np.maximum(rng.normal(size=(2000, 256)), 0).astype("float32")
    for _ in range(10):
        layer = L.Dense(256, "relu", kernel_initializer=keras.initializers.RandomNormal(0.7, 0.05))
        y = kn.WeightStandardization(layer, scaled=True, gamma=gamma)(x)
        x = np.asarray(y)
    # The mean square of relu of a unit normal is 1/2; its variance times gamma squared, 1.
    assert 0.8 < (x.var(0) * gamma**2).mean() < 1.2


def test_constant_kernels(kernel):
    """A variance of 0: the result is 0, without epsilon's root a NaN."""
    layer = kn.WeightStandardization(L.Dense(5, use_bias=False, kernel_initializer="ones"))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(kernel_of(layer) ** 2)
    assert float(loss) == 0
    assert np.isfinite(tape.gradient(loss, layer.layer.kernel.value)).all()


def test_one_weight_per_output(kernel):
    layer = kn.WeightStandardization(L.Dense(5, use_bias=False))
    np.testing.assert_array_equal(kernel_of(layer, 1), np.zeros((1, 5)))


def test_constraint_and_regularizer_are_of_v(rng):
    x = rng.normal(size=(6, 7)).astype("float32")
    inner = L.Dense(5, kernel_constraint="non_neg", kernel_regularizer="l2")
    model = keras.Sequential([keras.Input((7,)), kn.WeightStandardization(inner)])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    np.testing.assert_allclose(
        float(sum(model.losses)), 0.01 * np.square(inner.kernel.numpy()).sum(), rtol=1e-6
    )
    model.fit(x, x[:, :5], verbose=0)
    assert inner.kernel.numpy().min() == 0
    assert np.asarray(model.layers[0].remove().kernel).min() < 0


@pytest.mark.parametrize(
    "arguments, error, says",
    [
        ({"epsilon": -0.1}, ValueError, "`epsilon` must be at least 0. Received: epsilon=-0.1."),
        ({"epsilon": "no"}, TypeError, "`epsilon` must be a number. Received: epsilon='no'."),
        (
            {"scaled": True, "gamma": None},
            TypeError,
            "`gamma` must be a number. Received: gamma=None.",
        ),
        (
            {"gamma": 1.7},
            ValueError,
            "`gamma` needs `scaled=True`. Received: gamma=1.7, scaled=False.",
        ),
    ],
)
def test_errors(arguments, error, says):
    with pytest.raises(error) as caught:
        kn.WeightStandardization(L.Dense(5), **arguments)
    assert str(caught.value) == says
