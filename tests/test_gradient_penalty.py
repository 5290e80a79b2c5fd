"""The gradient penalty of WGAN-GP (Gulrajani et al. 2017): the gradient of a gradient's norm.

    penalty = mean((|d critic(x) / d x| - 1)^2)

Its gradient by every weight and by x, beside central differences in float64.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_norms as kn

NORMS = {
    "BN, inference": lambda **k: kn.BatchNormalization(**k),
    "LN": lambda **k: kn.LayerNormalization(epsilon=1e-5, **k),
    "LN over images": lambda **k: kn.LayerNormalization([1, 2, 3], **k),
    "IN": lambda **k: kn.InstanceNormalization(**k),
    "GN": lambda **k: kn.GroupNormalization(2, **k),
    "RMS": lambda **k: kn.RMSNormalization(**k),
    "GN + SiLU": lambda **k: kn.GroupNormalization(2, activation="silu", **k),
    "BN + GELU, inference": lambda **k: kn.BatchNormalization(activation="gelu", **k),
}


def critic(norm):
    options = {"dtype": "float64"}
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((4, 5, 3), dtype="float64"),
            keras.layers.Conv2D(6, 3, padding="same", **options),
            NORMS[norm](**options),
            keras.layers.Activation("tanh", **options),
            keras.layers.Flatten(**options),
            keras.layers.Dense(1, **options),
        ]
    )
    draw = np.random.default_rng(4)
    for weight in model.layers[1].weights:
        weight.assign(draw.uniform(0.5, 2, weight.shape))
    return model


@pytest.mark.parametrize("norm", NORMS)
def test_gradient_penalty(norm, kernel):
    check(norm, jit=False)


@pytest.mark.parametrize("norm", list(NORMS)[:-2])
def test_gradient_penalty_inside_xla(norm, fused):
    check(norm, jit=True)


def check(norm, jit):
    model = critic(norm)
    weights = model.trainable_weights

    @tf.function(autograph=False, jit_compile=jit)
    def step(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                score = tf.reduce_sum(model(x, training=False))
            slope = inner.gradient(score, x)
            norm = tf.sqrt(tf.reduce_sum(slope**2, [1, 2, 3]) + 1e-12)
            penalty = tf.reduce_mean((norm - 1) ** 2)
        return penalty, outer.gradient(penalty, [x, *(w.value for w in weights)])

    draw = np.random.default_rng(5)
    x = draw.normal(size=(3, 4, 5, 3))
    penalty, (dx, *gradients) = step(tf.constant(x))
    assert 0 < float(penalty) < 1e3
    step_size = 1e-5
    for index, (weight, gradient) in enumerate([(None, dx), *zip(weights, gradients, strict=True)]):
        if gradient is None:  # the last bias is no part of the slope
            assert weight is weights[-1]
            continue
        direction = draw.normal(size=gradient.shape)
        values = []
        for sign in (1, -1):
            if weight is None:
                values.append(float(step(tf.constant(x + sign * step_size * direction))[0]))
            else:
                start = weight.numpy()
                weight.assign(start + sign * step_size * direction)
                values.append(float(step(tf.constant(x))[0]))
                weight.assign(start)
        want = (values[0] - values[1]) / (2 * step_size)
        got = float((gradient.numpy() * direction).sum())
        # The step squared times a third derivative, and rounding over the step.
        np.testing.assert_allclose(
            got, want, rtol=1e-6, atol=1e-7 * max(1, abs(values[0])), err_msg=str(index)
        )


def test_second_gradient_of_two_norms_in_a_loop(kernel):
    """Both gradients are of one tensor, which the loop captures once."""
    draw = np.random.default_rng(6)
    norms = [kn.LayerNormalization(epsilon=1e-5, dtype="float64") for _ in range(2)]
    weight, x, v = draw.normal(size=(3, 2, 5))

    @tf.function(autograph=False)
    def slope(x):
        def body(i, h):
            return i + 1, tf.tanh(norms[0](x) + norms[1](h))

        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = tf.while_loop(lambda i, _: i < 3, body, (0, x), maximum_iterations=3)[1]
                value = tf.reduce_sum(y**2 * weight)
            size = tf.reduce_sum(inner.gradient(value, x) ** 2)
        return size, outer.gradient(size, x)

    size, gradient = slope(tf.constant(x))
    up, down = (float(slope(tf.constant(x + sign * 1e-5 * v))[0]) for sign in (1, -1))
    got, want = float(tf.reduce_sum(gradient * v)), (up - down) / 2e-5
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7 * float(size))
